//! An established pair: both directions until both end, byte for byte, with back-pressure, an idle
//! timeout that follows the client's keep alive, and resets that do not get lost.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use support::files::config_listening;
use support::mqtt::ACCEPTED;
use support::random::Random;
use support::{
    Broker, Client, Connect, DeadPort, End, Files, Proxy, SOON, config, config_with, free_port,
    local, on, wait_until,
};

fn plain(broker: &Broker) -> (Proxy, u16) {
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr()
    );
    (
        Proxy::start(&Files::new(&config(&[port]), &routes), &[port]),
        port,
    )
}

/// An MQTT route; `more` goes into config.yaml, `upstream` into the upstream.
fn mqtt_route(broker: &Broker, more: &str, upstream: &str) -> (Proxy, u16) {
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}{upstream}}}\n#END\n",
        broker.addr()
    );
    (
        Proxy::start(&Files::new(&config_with(&[port], more), &routes), &[port]),
        port,
    )
}

#[test]
fn a_plain_route_dials_at_once_and_lets_the_server_speak_first() {
    let broker = Broker::greeting(local(free_port()), b"220 ready\r\n");
    let (_proxy, port) = plain(&broker);
    let mut client = Client::to(port);
    client.expect(b"220 ready\r\n");
    client.send(b"EHLO\r\n");
    client.expect(b"EHLO\r\n");
}

#[test]
fn the_mysql_example_forwards_only_connections_to_its_address_and_port() {
    const GREETING: &[u8] = b"\x4a\x00\x00\x00\x0a8.2.0\x00\x19\x00\x00\x00";
    let [first, second] = support::free_ports();
    let mysql = Broker::greeting(local(free_port()), GREETING);
    let routes = format!(
        "stream_routes:\n  - id: stream-route-mysql\n    server_addr: \"127.0.0.10\"\n    \
         server_port: {second}\n    upstream:\n      nodes:\n        \"{}\": 1\n      \
         type: roundrobin\n#END\n",
        mysql.addr()
    );
    let listens = [format!("127.0.0.1:{first}"), format!("127.0.0.10:{second}")];
    let files = Files::new(&config_listening(&listens, ""), &routes);
    let _proxy = Proxy::start_at(&files, &[local(first), on("127.0.0.10", second)]);

    let mut client = Client::to_addr(on("127.0.0.10", second));
    client.expect(GREETING);
    client.send(b"login");
    client.expect(b"login");
    Client::to(first).expect_fin();
}

#[test]
fn a_plain_route_without_a_living_server_is_closed_cleanly() {
    let dead = DeadPort::new();
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        dead.addr()
    );
    let _proxy = Proxy::start(&Files::new(&config(&[port]), &routes), &[port]);
    Client::to(port).expect_fin();
}

#[test]
fn the_end_of_the_clients_side_is_passed_on_and_the_answer_still_comes_back() {
    let broker = Broker::scripted(|mut conn| {
        conn.drain();
        let answer = format!("{} bytes", conn.seen.received().len());
        conn.send(answer.as_bytes());
    });
    let (_proxy, port) = plain(&broker);
    let mut client = Client::to(port);
    client.send(&vec![1; 100_000]);
    client.finish_sending();
    client.expect_last(b"100000 bytes");
    assert_eq!(broker.connection(0).wait_for_end(), End::Fin);
}

#[test]
fn the_end_of_the_brokers_side_is_passed_on_and_the_client_may_go_on_sending() {
    let broker = Broker::scripted(|mut conn| {
        conn.send(b"that is all from me");
        conn.finish_sending();
        conn.drain();
    });
    let (_proxy, port) = plain(&broker);
    let mut client = Client::to(port);
    client.expect_last(b"that is all from me");
    let bytes = Random::new(3).bytes(200_000);
    client.send(&bytes);
    client.finish_sending();
    let seen = broker.connection(0);
    seen.wait_for(&bytes);
    assert_eq!(seen.wait_for_end(), End::Fin);
}

#[test]
fn both_directions_are_byte_exact_under_any_segmentation() {
    let broker = Broker::scripted(|mut conn| {
        // Echoes in pieces of its own.
        let mut random = Random::new(99);
        let mut buffer = vec![0; 9_000];
        loop {
            let len = 1 + random.below(9_000);
            let n = conn.read(&mut buffer[..len]);
            if n == 0 {
                break;
            }
            for piece in random.pieces(&buffer[..n], 3_000) {
                conn.send(piece);
            }
        }
        conn.finish_sending();
    });
    let (_proxy, port) = plain(&broker);
    let runs: Vec<_> = (0..8)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut random = Random::new(seed);
                let bytes = random.bytes(400_000);
                let mut client = Client::to(port);
                let mut sender = client.stream.try_clone().expect("clone");
                let sent = bytes.clone();
                let longest = [40, 700, 1_500, 20_000][seed as usize % 4];
                let writer = std::thread::spawn(move || {
                    for piece in random.pieces(&sent, longest) {
                        sender.write_all(piece).expect("send");
                    }
                    sender.shutdown(Shutdown::Write).expect("shutdown");
                });
                let (received, end) = client.read_to_end(SOON * 2);
                writer.join().expect("the writer");
                assert!(received == bytes, "seed {seed}: other bytes came back");
                assert_eq!(end, End::Fin);
            })
        })
        .collect();
    for run in runs {
        run.join().expect("byte-exact");
    }
}

/// More than the kernel's buffers can take on one path, so that the sender must block.
const FLOOD: usize = 96 << 20;

fn flood() -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random::new(7);
    let block = random.bytes(1 << 20);
    (0..FLOOD >> 20).map(move |n| {
        let mut block = block.clone();
        block[..8].copy_from_slice(&(n as u64).to_be_bytes());
        block
    })
}

/// Sends the flood into `stream`, counting what went out.
fn pour(mut stream: std::net::TcpStream, sent: Arc<AtomicUsize>) {
    for block in flood() {
        for part in block.chunks(64 << 10) {
            stream.write_all(part).expect("the flood goes on");
            sent.fetch_add(part.len(), Ordering::SeqCst);
        }
    }
    stream.shutdown(Shutdown::Write).expect("shutdown");
}

/// Waits until nothing more is taken for a while, and says how much was.
fn blocked(sent: &AtomicUsize) -> usize {
    let mut last = (sent.load(Ordering::SeqCst), Instant::now());
    wait_until("the sender to be blocked", SOON * 2, || {
        let now = sent.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(700)).then_some(now)
    })
}

/// Reads to the end through `read` and compares every byte with the flood; says how much it was.
fn take(mut read: impl FnMut(&mut [u8]) -> usize) -> usize {
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    for expected in flood() {
        let mut filled = 0;
        while filled < expected.len() {
            match read(&mut buffer[filled..]) {
                0 => return total + filled,
                n => filled += n,
            }
        }
        assert!(
            buffer == expected,
            "other bytes than sent, in the MiB behind {total}"
        );
        total += filled;
    }
    total + read(&mut buffer)
}

#[test]
fn a_broker_that_stops_reading_blocks_its_client_and_not_the_memory_of_the_proxy() {
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (result, taken) = mpsc::channel();
    let broker = Broker::scripted(move |mut conn| {
        gate.lock().expect("gate").recv().expect("the gate opens");
        let got = take(|buffer| std::io::Read::read(&mut conn.stream, buffer).unwrap_or(0));
        result.send(got).expect("the test waits");
    });
    let (proxy, port) = plain(&broker);
    let client = Client::to(port);
    let before = proxy.resident_kib();
    let sent = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (stream, sent) = (client.stream.try_clone().expect("clone"), Arc::clone(&sent));
        std::thread::spawn(move || pour(stream, sent))
    };
    let stuck = blocked(&sent);
    assert!(stuck < FLOOD, "the sender must block before all is sent");
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(
        grown < 8 << 10,
        "the proxy holds {grown} KiB for one blocked connection"
    );

    open.send(()).expect("the broker waits");
    let got = taken.recv_timeout(SOON * 3).expect("the broker reads all");
    writer.join().expect("the writer");
    assert_eq!(got, FLOOD, "every byte arrives");
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(
        grown < 8 << 10,
        "the proxy still holds {grown} KiB after the flood"
    );
}

#[test]
fn a_client_that_stops_reading_blocks_its_broker_and_not_the_memory_of_the_proxy() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let broker = Broker::scripted(move |mut conn| {
        pour(
            conn.stream.try_clone().expect("clone"),
            Arc::clone(&counter),
        );
        conn.drain();
    });
    let (proxy, port) = plain(&broker);
    let before = proxy.resident_kib();
    let mut client = Client::to(port);
    let stuck = blocked(&sent);
    assert!(stuck < FLOOD, "the broker must block before all is sent");
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(
        grown < 8 << 10,
        "the proxy holds {grown} KiB for one blocked connection"
    );
    // The other direction still flows.
    client.send(b"acknowledged");

    client.stream.set_read_timeout(Some(SOON)).expect("timeout");
    let got = take(|buffer| std::io::Read::read(&mut client.stream, buffer).expect("a read"));
    assert_eq!(got, FLOOD, "every byte arrives");
}

#[test]
fn one_blocked_connection_does_not_slow_the_others() {
    let broker = Broker::scripted(|mut conn| {
        let mut first = [0];
        conn.read(&mut first);
        if first == *b"b" {
            std::thread::park_timeout(Duration::from_secs(20));
        } else {
            conn.send(&first);
            conn.echo();
        }
    });
    let (_proxy, port) = plain(&broker);
    let sent = Arc::new(AtomicUsize::new(0));
    let mut blockers = Vec::new();
    for _ in 0..4 {
        let mut client = Client::to(port);
        client.send(b"b");
        let (stream, sent) = (client.stream.try_clone().expect("clone"), Arc::clone(&sent));
        std::thread::spawn(move || {
            let mut stream = stream;
            while stream.write_all(&[0; 65_536]).is_ok() {
                sent.fetch_add(65_536, Ordering::SeqCst);
            }
        });
        blockers.push(client);
    }
    blocked(&sent);
    let mut client = Client::to(port);
    client.send(b"x");
    client.expect(b"x");
    let start = Instant::now();
    for _ in 0..200 {
        client.expect_alive();
    }
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "200 round trips: {:?}",
        start.elapsed()
    );
    for blocker in blockers {
        blocker.reset();
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    support::process::more_open_files();
    let broker = Broker::mqtt();
    let (proxy, port) = mqtt_route(&broker, "", "");
    let burst = Random::new(4).bytes(64 << 10);
    let connect = |n: usize| {
        let mut client = Client::mqtt(port, &Connect::v311(&format!("idle-{n}")));
        client.send(&burst);
        client.expect(&burst);
        client
    };
    // The first ones pay for what is allocated once.
    let mut clients: Vec<Client> = (0..50).map(connect).collect();
    let before = proxy.resident_kib();
    clients.extend((50..650).map(connect));
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(
        grown < 600 * 8,
        "{} KiB for each of 600 idle connections",
        grown as f64 / 600.0
    );
}

#[test]
fn small_writes_are_not_held_back() {
    // Without TCP_NODELAY on both of the proxy's sockets the second of two small writes waits for
    // the acknowledgement of the first: 40 ms each time.
    let broker = Broker::scripted(|mut conn| {
        let mut buffer = [0; 64];
        let mut got = 0;
        loop {
            match conn.read(&mut buffer) {
                0 => break,
                n => got += n,
            }
            while got >= 2 {
                got -= 2;
                conn.send(b"a");
                conn.send(b"b");
            }
        }
    });
    let (_proxy, port) = plain(&broker);
    let mut client = Client::to(port);
    let mut rounds: Vec<Duration> = (0..60)
        .map(|_| {
            let start = Instant::now();
            client.send(b"1");
            client.send(b"2");
            client.expect(b"ab");
            start.elapsed()
        })
        .collect();
    rounds.sort();
    assert!(rounds[30] < Duration::from_millis(20), "{rounds:?}");
}

#[test]
fn tcp_keepalive_runs_on_both_sides() {
    let broker = Broker::mqtt();
    let (_proxy, port) = mqtt_route(&broker, "", "");
    let mut client = Client::mqtt(port, &Connect::v311("kept"));
    client.expect_alive();
    let towards_client = (port, client.local_addr().port());
    let towards_broker = (broker.connection(0).peer.port(), broker.port());
    for (here, there) in [towards_client, towards_broker] {
        wait_until("a keepalive timer on the proxy's socket", SOON, || {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
            table
                .lines()
                .any(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    let port_of = |i: usize| {
                        let text = fields.get(i)?.split(':').nth(1)?;
                        u16::from_str_radix(text, 16).ok()
                    };
                    port_of(1) == Some(here)
                        && port_of(2) == Some(there)
                        && fields.get(5).is_some_and(|timer| timer.starts_with("02"))
                })
                .then_some(())
        });
    }
}

#[test]
fn a_reset_by_the_client_ends_the_brokers_side() {
    let broker = Broker::mqtt();
    let (proxy, port) = mqtt_route(&broker, "", "");
    let client = Client::mqtt(port, &Connect::v311("gone"));
    client.reset();
    broker.connection(0).wait_for_end();
    proxy.wait_until_idle(port);
}

#[test]
fn a_reset_by_the_broker_ends_the_clients_side() {
    let (reset, now) = mpsc::channel::<()>();
    let now = Mutex::new(now);
    let broker = Broker::scripted(move |mut conn| {
        conn.accept_mqtt();
        let _ = now.lock().expect("now").recv();
        conn.reset();
    });
    let (proxy, port) = mqtt_route(&broker, "", "");
    let mut client = Client::mqtt(port, &Connect::v311("left"));
    reset.send(()).expect("the broker waits");
    client.expect_closed();
    drop(client);
    proxy.wait_until_idle(port);
}

#[test]
fn a_broker_that_closes_ends_the_client_once_everything_has_arrived() {
    let broker = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        conn.send(&[9; 500_000]);
    });
    let (proxy, port) = mqtt_route(&broker, "", "");
    let mut client = Client::mqtt(port, &Connect::v311("taken-over"));
    let (bytes, _) = client.read_to_end(SOON);
    assert_eq!(bytes.len(), 500_000);
    drop(client);
    proxy.wait_until_idle(port);
}

const SHORT_IDLE: &str =
    "mqtt_proxy:\n  idle:\n    keep_alive_factor: 1.0\n    keep_alive_margin: 1\n";

#[test]
fn an_mqtt_connection_is_ended_when_it_is_idle_for_longer_than_its_keep_alive_allows() {
    let broker = Broker::mqtt();
    let (_proxy, port) = mqtt_route(&broker, SHORT_IDLE, "");
    let start = Instant::now();
    let mut client = Client::mqtt(port, &Connect::v311("idle").keep_alive(1));
    client.expect_closed();
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(1_900),
        "not before 1 × 1.0 + 1 s: {waited:?}"
    );
    assert!(
        waited < Duration::from_secs(10),
        "soon after it: {waited:?}"
    );
    broker.connection(0).wait_for_end();
}

#[test]
fn traffic_in_one_direction_keeps_a_connection_alive() {
    let upwards = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        conn.drain();
    });
    let downwards = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        for _ in 0..40 {
            std::thread::park_timeout(Duration::from_millis(250));
            conn.send(b"x");
        }
        conn.drain();
    });
    let (_a, up) = mqtt_route(&upwards, SHORT_IDLE, "");
    let (_b, down) = mqtt_route(&downwards, SHORT_IDLE, "");
    let connect = Connect::v311("busy").keep_alive(4);
    let mut sender = Client::mqtt(up, &connect);
    let mut receiver = Client::mqtt(down, &connect);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(8_500) {
        sender.send(b"y");
        sender.expect_silence(Duration::from_millis(200));
        let (bytes, end) = receiver.read_up_to(100, Duration::from_millis(50));
        assert!(
            end.is_none(),
            "the receiver was cut after {:?} ({bytes:?})",
            start.elapsed()
        );
    }
}

#[test]
fn keep_alive_0_means_no_idle_timeout() {
    let broker = Broker::mqtt();
    let (_proxy, port) = mqtt_route(&broker, SHORT_IDLE, "");
    let mut client = Client::mqtt(port, &Connect::v311("patient").keep_alive(0));
    client.expect_silence(Duration::from_secs(4));
    client.expect_alive();
}

#[test]
fn the_upstreams_timeout_wins_over_the_keep_alive_and_the_larger_of_send_and_read_counts() {
    let broker = Broker::mqtt();
    let more = "mqtt_proxy:\n  idle:\n    keep_alive_factor: 1.0\n    keep_alive_margin: 0\n";
    let (_proxy, port) = mqtt_route(
        &broker,
        more,
        ", timeout: {connect: 1, send: 2.5, read: 0.5}",
    );
    let start = Instant::now();
    let mut client = Client::mqtt(port, &Connect::v311("idle").keep_alive(1));
    client.expect_closed();
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(2_400),
        "not before max(send, read): {waited:?}"
    );
    assert!(
        waited < Duration::from_secs(10),
        "soon after it: {waited:?}"
    );
}

#[test]
fn a_plain_connection_is_idle_by_the_upstreams_timeout_only() {
    let broker = Broker::echo();
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{}\": 1}}, timeout: {{connect: 5, send: 1, read: 1.5}}}}}}\n#END\n",
        broker.addr()
    );
    let _proxy = Proxy::start(&Files::new(&config(&[port]), &routes), &[port]);
    let start = Instant::now();
    let mut client = Client::to(port);
    client.expect_closed();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(1_400), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
}

#[test]
fn a_client_that_half_closed_is_still_subject_to_the_idle_timeout() {
    let broker = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        conn.drain();
        std::thread::park_timeout(Duration::from_secs(10));
    });
    let (proxy, port) = mqtt_route(&broker, SHORT_IDLE, "");
    let mut client = Client::to(port);
    client.send(&Connect::v311("half").keep_alive(1).build());
    client.finish_sending();
    let (bytes, _) = client.read_to_end(Duration::from_secs(7));
    assert_eq!(bytes, ACCEPTED);
    drop(client);
    proxy.wait_until_idle(port);
}
