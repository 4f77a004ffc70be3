//! Live connections leave a node that takes no new ones: at the pace of the upstream, told why, at
//! a packet boundary, and nobody else notices.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::crowd::ids;
use support::mosquitto::{self, Mosquitto};
use support::mqtt;
use support::process::more_open_files;
use support::setup::{Setup, start};
use support::tls::{Authority, TlsClient, ssl, tls_config, tls_routes};
use support::{
    Broker, Brokers, Client, Connect, Crowd, End, Files, Proxy, SOON, config, config_with,
    expect_pace, free_port, free_ports, local, metrics, wait_until,
};

/// DISCONNECT "use another server", "server moved".
const ANOTHER: &[u8] = &[0xe0, 2, 0x9c, 0];
const MOVED: &[u8] = &[0xe0, 2, 0x9d, 0];

/// A round robin upstream over these brokers with these weights, and `more` of its keys.
fn upstream(brokers: &Brokers, weights: &[u32], more: &str) -> String {
    format!("nodes: {}{more}", brokers.weighted(weights))
}

impl Setup {
    fn remaining(&self, node: &str) -> f64 {
        let labels = ["upstream=\"route/1\"", &format!("node=\"{node}\"")];
        self.value("mqtt_proxy_drain_remaining", &labels)
    }
}

#[test]
fn a_node_of_weight_0_is_drained_at_the_rate_and_nobody_else_notices() {
    more_open_files();
    let brokers = Brokers::mqtt(2);
    let nodes = brokers.nodes();
    let mut setup = start(&upstream(&brokers, &[1, 1], ""));
    let crowd = Crowd::connect(setup.port, &ids(1600));
    assert_eq!(brokers.accepted(), [800, 800]);
    let start = Instant::now();
    setup.edit(&upstream(&brokers, &[0, 1], ", drain: {rate: 200}"));
    wait_until("the gauge", SOON, || {
        (setup.remaining(&nodes[0]) > 0.0).then_some(())
    });
    let ended = crowd.wait_for(800, Duration::from_secs(60));
    expect_pace(&ended, start, 200.0, 16);
    for ended in &ended {
        let told = if ended.client % 2 == 0 { ANOTHER } else { &[] };
        assert_eq!((&*ended.got, ended.end), (told, End::Fin));
    }
    wait_until("the node to be empty", SOON, || {
        (setup.remaining(&nodes[0]) == 0.0).then_some(())
    });
    setup
        .proxy
        .wait_for_log("the last connection has left node");
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    assert_eq!(setup.ended("drained"), 800.0);
    // Every connection of the broker that leaves has ended, none of the other.
    for client in [0, 1, 399, 799] {
        assert_eq!(brokers.0[0].connection(client).wait_for_end(), End::Fin);
        assert_eq!(brokers.0[1].connection(client).end(), None);
    }
    // Whoever comes back is served by the other.
    let (broker, mut client) = brokers.visit(setup.port, &Connect::v5("device-0"));
    assert_eq!(broker, 1);
    client.expect_alive();
}

#[test]
fn a_node_that_was_removed_is_drained_and_its_clients_are_told_that_it_moved() {
    let brokers = Brokers::mqtt(3);
    let mut setup = start(&upstream(&brokers, &[1, 1, 1], ""));
    let crowd = Crowd::connect(setup.port, &ids(30));
    let two = Brokers(brokers.0.into_iter().skip(1).collect());
    // Without `drain` a removed node keeps what it has.
    setup.edit(&upstream(&two, &[1, 1], ""));
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    setup.edit(&upstream(&two, &[1, 1], ", drain: {rate: 1000}"));
    let ended = crowd.wait_for(10, SOON);
    for ended in &ended {
        let told = if ended.client % 2 == 0 { MOVED } else { &[] };
        assert_eq!((&*ended.got, ended.end), (told, End::Fin));
    }
    crowd.expect_nobody_leaves(Duration::from_millis(300));
    // An upstream that is gone has no `drain` any more: its connections are let be.
    let files = setup.files.clone();
    setup
        .proxy
        .reload(|| files.replace_routes("stream_routes: []\n#END\n"));
    crowd.expect_nobody_leaves(Duration::from_millis(500));
}

#[test]
fn the_next_edit_stops_it_or_changes_its_pace() {
    let brokers = Brokers::mqtt(2);
    let nodes = brokers.nodes();
    let mut setup = start(&upstream(&brokers, &[1, 1], ""));
    let crowd = Crowd::connect(setup.port, &ids(400));
    setup.edit(&upstream(&brokers, &[0, 1], ", drain: {rate: 40}"));
    crowd.wait_for(10, SOON);
    // The weight is back.
    setup.edit(&upstream(&brokers, &[1, 1], ", drain: {rate: 40}"));
    let stopped = crowd.wait_until_still();
    assert!(stopped < 200, "{stopped}");
    crowd.expect_nobody_leaves(Duration::from_millis(700));
    let body = metrics::get(local(setup.metrics), metrics::PATH).2;
    assert!(!body.contains("mqtt_proxy_drain_remaining{"), "{body}");
    // Drained again, and `drain` removed.
    setup.edit(&upstream(&brokers, &[0, 1], ", drain: {rate: 40}"));
    crowd.wait_for(stopped + 5, SOON);
    setup.edit(&upstream(&brokers, &[0, 1], ""));
    crowd.wait_until_still();
    crowd.expect_nobody_leaves(Duration::from_millis(700));
    // So slowly that nobody leaves, then quickly.
    setup.edit(&upstream(&brokers, &[0, 1], ", drain: {rate: 0.01}"));
    wait_until("the gauge", SOON, || {
        (setup.remaining(&nodes[0]) > 0.0).then_some(())
    });
    crowd.expect_nobody_leaves(Duration::from_millis(300));
    setup.edit(&upstream(&brokers, &[0, 1], ", drain: {rate: 2000}"));
    crowd.wait_for(200, SOON);
    wait_until("the gauge", SOON, || {
        (setup.remaining(&nodes[0]) == 0.0).then_some(())
    });
    assert_eq!(crowd.ended().len(), 200);
}

#[test]
fn the_timeout_makes_a_slow_rate_faster() {
    let brokers = Brokers::mqtt(2);
    let mut setup = start(&upstream(&brokers, &[1, 1], ""));
    let crowd = Crowd::connect(setup.port, &ids(200));
    let start = Instant::now();
    setup.edit(&upstream(
        &brokers,
        &[0, 1],
        ", drain: {rate: 1, timeout: 3}",
    ));
    let ended = crowd.wait_for(100, SOON);
    let half = ended[49].at - start;
    assert!(
        half > Duration::from_secs(1),
        "spread over the time: {half:?}"
    );
    let all = ended[99].at - start;
    assert!(all > Duration::from_secs(2), "{all:?}");
    assert!(all < Duration::from_secs(8), "{all:?}");
}

#[test]
fn where_no_other_node_is_healthy_or_has_a_weight_nobody_is_sent_away() {
    let brokers = Brokers::mqtt(2);
    let drain = ", drain: {rate: 1000}, checks: {active: {type: tcp, healthy: {successes: 1}, \
                 unhealthy: {tcp_failures: 1, interval: 1}}}";
    let mut setup = start(&upstream(&brokers, &[1, 1], drain));
    let crowd = Crowd::connect(setup.port, &ids(20));
    setup.edit(&upstream(&brokers, &[0, 0], drain));
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    let mut brokers = brokers;
    brokers.0[1].stop_listening();
    setup.wait_until_healthy(&brokers.nodes()[1], false);
    setup.edit(&upstream(&brokers, &[0, 1], drain));
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    brokers.0[1].listen();
    let ended = crowd.wait_for(10, SOON);
    assert_eq!(ended.len(), 10);
}

#[test]
fn plain_tcp_connections_just_end() {
    let (one, two) = (Broker::echo(), Broker::echo());
    let port = free_port();
    let text = |weight: u32| {
        format!(
            "stream_routes: [{{id: 1, upstream_id: 1}}]\nupstreams:\n  - {{id: 1, drain: {{will: suppress}}, \
             nodes: {{\"{}\": {weight}, \"{}\": 1}}}}\n#END\n",
            one.addr(),
            two.addr()
        )
    };
    let files = Files::new(&config(&[port]), &text(1));
    let mut proxy = Proxy::start(&files, &[port]);
    let mut clients: Vec<Client> = (0..2).map(|_| Client::to(port)).collect();
    for client in &mut clients {
        client.send(b"\0 no MQTT");
        client.expect(b"\0 no MQTT");
    }
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    proxy.reload(|| files.replace_routes(text(0)));
    let seen = one.connection(0);
    assert_eq!(seen.wait_for_end(), End::Fin);
    assert_eq!(seen.received(), b"\0 no MQTT");
    let first = wait_until("one to end", SOON, || {
        clients.iter_mut().position(|client| {
            let (bytes, end) = client.read_up_to(1, Duration::from_millis(50));
            assert!(bytes.is_empty());
            end == Some(End::Fin)
        })
    });
    let mut other = clients.remove(1 - first);
    other.send(b"x");
    other.expect(b"x");
}

#[test]
fn connections_over_tls_leave_as_others_do() {
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let ca = Authority::new("root");
    let ssls = [ssl("1", "'*'", &ca.issue(&["localhost"]), "")];
    let text = |weights: &[u32]| {
        let upstream = upstream(&brokers, weights, ", drain: {will: suppress}");
        tls_routes(&upstream, &ssls).replace("protocol_level: 4", "protocol_level: [4, 5]")
    };
    let config = tls_config(&[port], "  ssl: {fallback_sni: localhost}\n", "");
    let files = Files::new(&config, &text(&[1, 1]));
    let mut proxy = Proxy::start(&files, &[port]);
    let mut clients: Vec<_> = (0..10)
        .map(|n| {
            let connect = Connect::v5(&format!("c{n}"));
            let before = brokers.accepted();
            let mut client = TlsClient::to(port).connect().expect("a connection");
            client.send(&connect.build()).expect("CONNECT");
            client.expect(mqtt::ACCEPTED_5);
            (brokers.accepted()[0] > before[0], client)
        })
        .collect();
    proxy.reload(|| files.replace_routes(text(&[0, 1])));
    for (leaves, client) in &mut clients {
        match leaves {
            true => client.expect(ANOTHER),
            false => client.expect_alive(),
        }
    }
    assert_eq!(brokers.accepted(), [5, 5]);
    for client in 0..5 {
        let seen = brokers.0[0].connection(client);
        assert_eq!(seen.wait_for_end(), End::Fin);
        assert!(seen.received().ends_with(&mqtt::disconnect()));
        assert_eq!(brokers.0[1].connection(client).end(), None);
    }
}

/// The whole packets of a stream; `None` when the last one is cut.
fn packets(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let digits = bytes[1..].iter().position(|byte| byte & 0x80 == 0)? + 1;
        let length = bytes[1..=digits]
            .iter()
            .rev()
            .fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
        let (packet, rest) = bytes.split_at_checked(1 + digits + length)?;
        found.push(packet);
        bytes = rest;
    }
    Some(found)
}

/// PUBLISH packets of many sizes, some larger than a socket takes at once.
fn publishes(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    let sizes = [0, 1, 125, 126, 5_000, 300_000, 17, 16_400, 40];
    (seed..).map(move |n| {
        let size = sizes[(n * n % 9) as usize];
        mqtt::publish("t", &vec![n as u8; size])
    })
}

#[test]
fn packets_stay_whole_while_publishes_stream_both_ways() {
    const CLIENTS: usize = 24;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    // Streams to the client for ever and reads what comes.
    let leaving = Broker::scripted(move |mut conn| {
        if !conn.accept_mqtt() {
            return;
        }
        let mut writer = conn.stream.try_clone().expect("clone");
        let stopped = Arc::clone(&stopped);
        let sending = std::thread::spawn(move || {
            for packet in publishes(3) {
                if stopped.load(Ordering::SeqCst) || writer.write_all(&packet).is_err() {
                    break;
                }
            }
            let _ = writer.shutdown(Shutdown::Write);
        });
        conn.drain();
        let _ = sending.join();
    });
    let staying = Broker::mqtt();
    let text = |weight: u32| {
        format!(
            "nodes: [{{host: 127.0.0.1, port: {}, weight: {weight}, priority: 1}}, \
             {{host: 127.0.0.1, port: {}, weight: 1, priority: 1}}], drain: {{rate: 40, will: suppress}}",
            leaving.port(),
            staying.port()
        )
    };
    let mut setup = start(&text(1));
    let mut streaming = Vec::new();
    let mut others = Vec::new();
    for n in 0..2 * CLIENTS {
        let level = if n % 4 < 2 { 5 } else { 4 };
        let before = leaving.accepted();
        let client = Client::mqtt(setup.port, &Connect::level(level, &format!("c{n}")));
        match leaving.accepted() > before {
            true => streaming.push((level, client.stream)),
            false => others.push(client),
        }
    }
    assert_eq!(streaming.len(), CLIENTS);
    let streaming: Vec<_> = streaming
        .into_iter()
        .map(|(level, stream)| {
            let mut writer = stream.try_clone().expect("clone");
            std::thread::spawn(move || {
                for packet in publishes(5) {
                    if writer.write_all(&packet).is_err() {
                        break;
                    }
                }
            });
            std::thread::spawn(move || {
                let (mut stream, mut got) = (stream, Vec::new());
                stream
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .expect("timeout");
                stream.read_to_end(&mut got).expect("a clean end");
                // Ends its own side now, as a client does.
                let _ = stream.shutdown(Shutdown::Both);
                (level, got)
            })
        })
        .collect();
    setup.edit(&text(0));
    for client in streaming {
        let (level, got) = client.join().expect("a client");
        let packets = packets(&got).expect("whole packets");
        let (last, before) = packets.split_last().expect("packets");
        let before = match level {
            5 => {
                assert_eq!(*last, ANOTHER);
                before
            }
            _ => &packets[..],
        };
        let expected = publishes(3).take(before.len());
        assert!(
            expected.eq(before.iter().map(|packet| packet.to_vec())),
            "in order, none lost"
        );
    }
    stop.store(true, Ordering::SeqCst);
    for n in 0..CLIENTS {
        let seen = leaving.connection(n);
        assert_eq!(seen.wait_for_end(), End::Fin);
        let received = seen.received();
        let packets = packets(&received).expect("whole packets");
        assert_eq!(packets.last(), Some(&&mqtt::disconnect()[..]));
        let sent = publishes(5).take(packets.len() - 2);
        let got = packets[1..packets.len() - 1]
            .iter()
            .map(|packet| packet.to_vec());
        assert!(sent.eq(got), "in order, none lost");
    }
    others.iter_mut().for_each(Client::expect_alive);
}

#[test]
fn wills_are_published_or_suppressed_by_a_real_broker() {
    let (leaving, staying) = (Mosquitto::start(), Mosquitto::start());
    let ports: [u16; 2] = free_ports();
    let text = |weight: u32| {
        let route = |id: usize, port: u16, will: &str| {
            format!(
                "  - id: {id}\n    server_port: {port}\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
                 upstream: {{nodes: {{\"{}\": {weight}, \"{}\": {}}}, drain: {{rate: 500, will: {will}}}}}\n",
                leaving.addr(),
                staying.addr(),
                1 - weight
            )
        };
        let (one, two) = (
            route(1, ports[0], "suppress"),
            route(2, ports[1], "publish"),
        );
        format!("stream_routes:\n{one}{two}#END\n")
    };
    let files = Files::new(&config_with(&ports, ""), &text(1));
    let mut proxy = Proxy::start(&files, &ports);
    let address = leaving.addr().port();
    let args = ["-t", "will/#", "-i", "watcher", "-v", "-q", "1"];
    let watcher = mosquitto::subscriber(address, &args);
    leaving.wait_for_subscriber("watcher");
    let mut clients = Vec::new();
    for (port, how) in ports.into_iter().zip(["suppress", "publish"]) {
        for level in [4, 5] {
            let id = format!("{how}-{level}");
            let connect = Connect::level(level, &id).will(&format!("will/{id}"), b"gone");
            let mut client = Client::to(port);
            client.send(&connect.build());
            // CONNACK of MQTT 5 has properties that are the broker's business.
            let connack = client.read_exactly(2);
            assert_eq!(connack[0], 0x20);
            client.read_exactly(usize::from(connack[1]));
            clients.push((level, client));
        }
    }
    proxy.reload(|| files.replace_routes(text(0)));
    for (level, client) in &mut clients {
        match level {
            5 => client.expect_last(ANOTHER),
            _ => client.expect_fin(),
        }
    }
    watcher.wait_for_output_after(0, "will/publish-4 gone", SOON);
    watcher.wait_for_output_after(0, "will/publish-5 gone", SOON);
    mosquitto::publish(address, &["-t", "will/last", "-m", "word", "-q", "1"]);
    watcher.wait_for_output_after(0, "will/last word", SOON);
    let lines = watcher.lines();
    assert!(
        !lines.iter().any(|line| line.contains("suppress")),
        "{lines:?}"
    );
}
