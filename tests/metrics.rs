//! What a scrape shows while connections live, over an upgrade, and where it is to be had.

mod support;

use std::net::{SocketAddr, TcpListener};

use support::generations::Generations;
use support::metrics::{PATH, get, sum, value};
use support::mqtt::{PINGREQ, publish};
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, config_with, free_ports, local, wait_until,
};

fn own(scrape: u16) -> String {
    format!("mqtt_proxy:\n  metrics: {{addr: \"127.0.0.1:{scrape}\"}}\n")
}

fn routes(node: SocketAddr) -> String {
    format!(
        "stream_routes:\n  - id: devices\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: brokers\nupstreams:\n  - {{id: brokers, type: chash, key: mqtt_client_id, \
         nodes: {{\"{node}\": 1}}}}\n#END\n"
    )
}

#[test]
fn bytes_are_counted_while_they_move() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let files = Files::new(&config_with(&[port], &own(scrape)), &routes(broker.addr()));
    let _proxy = Proxy::start(&files, &[port]);
    let connect = Connect::v311("a").build();
    let mut client = Client::to(port);
    client.send(&connect);
    client.expect(support::mqtt::ACCEPTED);
    let large = publish("t", &vec![7; 300_000]);
    client.send(&large);
    assert!(client.read_exactly(large.len()) == large, "the echo");
    let up = (connect.len() + large.len()) as f64;
    let down = (support::mqtt::ACCEPTED.len() + large.len()) as f64;
    for (direction, side, expected) in [
        ("ingress", "downstream", up),
        ("egress", "upstream", up),
        ("ingress", "upstream", down),
        ("egress", "downstream", down),
    ] {
        let labels = [
            format!("type=\"{direction}\""),
            format!("side=\"{side}\""),
            format!("listen_addr=\"127.0.0.1:{port}\""),
        ];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let of = |text: &str| sum(text, "apisix_stream_bandwidth", &labels);
        wait_until(&format!("{direction} {side}"), SOON, || {
            (of(&get(local(scrape), PATH).2) == expected).then_some(())
        });
    }
    let text = get(local(scrape), PATH).2;
    assert_eq!(sum(&text, "mqtt_proxy_to_broker_bytes_total", &[]), up);
    assert_eq!(sum(&text, "mqtt_proxy_connections_ended_total", &[]), 0.0);
    client.expect_alive();
}

#[test]
fn each_stage_of_a_connection_has_its_histogram() {
    // Refuses everybody, slowly enough for nobody to mistake it for the time of anything else.
    let broker = Broker::scripted(|mut conn| {
        conn.read_packet();
        std::thread::sleep(std::time::Duration::from_millis(300));
        conn.send(&[0x20, 2, 0, 5]);
        conn.drain();
    });
    let [port, scrape] = free_ports();
    let files = Files::new(&config_with(&[port], &own(scrape)), &routes(broker.addr()));
    let _proxy = Proxy::start(&files, &[port]);
    for _ in 0..3 {
        let mut client = Client::to(port);
        client.send(&Connect::v311("a").build());
        client.expect(&[0x20, 2, 0, 5]);
    }
    // The client may have its CONNACK before it is counted.
    wait_until("three CONNACKs", SOON, || {
        let counted = value(local(scrape), "mqtt_proxy_connack_seconds_count", &[]);
        (counted == 3.0).then_some(())
    });
    let text = get(local(scrape), PATH).2;
    for (name, labels) in [
        ("mqtt_proxy_connect_parse_seconds", &[][..]),
        (
            "mqtt_proxy_upstream_connect_seconds",
            &["upstream=\"brokers\""],
        ),
        ("mqtt_proxy_connack_seconds", &[]),
    ] {
        let of = |suffix: &str| sum(&text, &format!("{name}_{suffix}"), labels);
        assert_eq!(of("count"), 3.0, "{name}");
        let infinite = [labels, &["le=\"+Inf\""]].concat();
        let last = sum(&text, &format!("{name}_bucket"), &infinite);
        assert_eq!(last, 3.0, "{name}");
        assert!(of("sum") > 0.0, "{name}");
    }
    let slow = sum(&text, "mqtt_proxy_connack_seconds_sum", &[]);
    // A connection is let through a moment before its time begins.
    assert!((0.75..60.0).contains(&slow), "{slow}");
    let quick = sum(&text, "mqtt_proxy_connack_seconds_bucket", &["le=\"0.25\""]);
    assert_eq!(quick, 0.0);
    let labels = ["origin=\"broker\"", "code=\"0x05\""];
    assert_eq!(sum(&text, "mqtt_proxy_connack_total", &labels), 3.0);
    let labels = ["upstream=\"brokers\"", "node="];
    let connected = sum(&text, "mqtt_proxy_upstream_connected_total", &labels);
    assert_eq!(connected, 3.0);
}

#[test]
fn counters_carry_on_over_an_upgrade_and_its_result_is_counted() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let files = Files::new(&config_with(&[port], &own(scrape)), &routes(broker.addr()));
    let mut proxy = Generations::start_copy(&files, &[port]);
    let mut kept = Client::mqtt(port, &Connect::v311("kept"));
    kept.expect_alive();
    drop(Client::mqtt(port, &Connect::v311("gone")));
    drop(Client::mqtt(port, &Connect::v311("")));
    wait_until("two ends", SOON, || {
        let ended = value(local(scrape), "mqtt_proxy_connections_ended_total", &[]);
        (ended == 2.0).then_some(())
    });
    proxy.install_script("exit 3");
    proxy.upgrade_in_vain();
    proxy.install_real();
    let before = get(local(scrape), PATH).2;
    proxy.upgrade();
    // The last counts of the old process come when it leaves.
    wait_until("the upgrade to be complete", SOON, || {
        (proxy.count("upgrade: complete") >= 2).then_some(())
    });
    let after = get(local(scrape), PATH).2;
    let result = |of: &str| format!("result=\"{of}\"");
    let upgrades = |of: &str| sum(&after, "mqtt_proxy_upgrades_total", &[&result(of)]);
    assert_eq!(upgrades("succeeded"), 1.0);
    assert_eq!(
        upgrades("not_started"),
        1.0,
        "counted by the process before"
    );
    let taken = sum(&after, "mqtt_proxy_upgrade_connections_total", &[]);
    assert_eq!(taken, 1.0);

    let mut compared = 0;
    for line in before.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let counts = series.contains("_total")
            || series.contains("_bucket")
            || series.contains("_count")
            || series.starts_with("apisix_stream_");
        let own = ["process_", "mqtt_proxy_upgrade", "mqtt_proxy_config_reload"];
        if !counts || own.iter().any(|own| series.starts_with(own)) {
            continue;
        }
        let now = after.lines().find_map(|line| {
            let (other, value) = line.rsplit_once(' ')?;
            (other == series).then_some(value)
        });
        assert_eq!(now, Some(value), "{series}");
        compared += 1;
    }
    assert!(compared > 60, "only {compared} series:\n{before}");
    for (name, expected) in [
        ("apisix_stream_active_connections", 1.0),
        ("mqtt_proxy_upstream_connections", 1.0),
        ("mqtt_proxy_hash_key_missing_total", 1.0),
        ("mqtt_proxy_connections_accepted_total", 3.0),
    ] {
        assert_eq!(sum(&after, name, &[]), expected, "{name}");
    }
    kept.send(PINGREQ);
    kept.expect(PINGREQ);
}

#[test]
fn the_process_is_described_as_every_exporter_does() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let files = Files::new(&config_with(&[port], &own(scrape)), &routes(broker.addr()));
    let proxy = Proxy::start(&files, &[port]);
    let _clients: Vec<Client> = (0..20)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("c{n}"))))
        .collect();
    let text = get(local(scrape), PATH).2;
    let value = |name: &str| sum(&text, name, &[]);
    let held = value("process_open_fds");
    assert!((40.0..400.0).contains(&held), "{held} descriptors");
    assert!(value("process_max_fds") > held);
    let resident = proxy.resident_kib() as f64 * 1024.0;
    let told = value("process_resident_memory_bytes");
    assert!((0.5..2.0).contains(&(told / resident)), "{told} {resident}");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let age = now.as_secs_f64() - value("process_start_time_seconds");
    assert!((-5.0..3600.0).contains(&age), "{age}");
    assert!(value("mqtt_proxy_connections_limit") > 100.0);
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert_eq!(sum(&text, "mqtt_proxy_build_info", &[&version]), 1.0);
}

#[test]
fn openmetrics_is_for_those_who_ask_for_it() {
    use std::io::{Read, Write};
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let files = Files::new(&config_with(&[port], &own(scrape)), &routes(broker.addr()));
    let _proxy = Proxy::start(&files, &[port]);
    let (_, head, body) = get(local(scrape), PATH);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("# TYPE mqtt_proxy_refused_total counter"));
    let mut client = Client::to(scrape);
    // What Prometheus sends.
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let request =
        format!("GET {PATH} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    client.stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    client.stream.set_read_timeout(Some(SOON)).expect("timeout");
    client.stream.read_to_string(&mut answer).expect("text");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

/// Where metrics are to be served when nobody asks for them in so many words.
fn unasked(scrape: u16) -> String {
    format!("plugin_attr: {{prometheus: {{export_addr: {{port: {scrape}}}}}}}\n")
}

#[test]
fn metrics_that_nobody_asked_for_are_served_unless_somebody_has_the_port() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let files = Files::new(
        &config_with(&[port], &unasked(scrape)),
        &routes(broker.addr()),
    );
    let mut first = Proxy::start(&files, &[port, scrape]);
    assert_eq!(get(local(scrape), PATH).0, 200);

    let [second_port] = free_ports();
    let config = config_with(&[second_port], &unasked(scrape));
    let files = Files::new(&config, &routes(broker.addr()));
    let mut second = Proxy::start(&files, &[second_port]);
    let line = second.wait_for_log("no metrics are served");
    assert!(line.contains(&format!("127.0.0.1:{scrape}")), "{line}");
    assert!(line.contains("WARN"), "{line}");
    Client::mqtt(second_port, &Connect::v311("a")).expect_alive();
    assert!(first.is_running());
}

#[test]
fn metrics_that_were_asked_for_are_served_or_nothing_is() {
    let broker = Broker::mqtt();
    let [port] = free_ports();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let scrape = taken.local_addr().expect("an address").port();
    let listed = format!(
        "stream_plugins: [mqtt-proxy, prometheus]\n{}",
        unasked(scrape)
    );
    for more in [own(scrape), listed] {
        let files = Files::new(&config_with(&[port], &more), &routes(broker.addr()));
        let mut proxy = Proxy::spawn(&files, |_| {});
        proxy.wait_for_log(&format!("cannot listen on 127.0.0.1:{scrape}"));
        assert_eq!(proxy.wait_for_exit(SOON).code(), Some(1));
    }
}
