//! Starting, signals, ending, and the metrics endpoint that lives as long.

mod support;

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::files::config_listening;
use support::served::is_accepted;
use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, SOON, cli, config, config_with, free_port,
    free_ports, local, metrics, wait_until,
};

fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

/// A proxy with one MQTT route; `more` goes behind the rest of config.yaml.
fn start(more: &str) -> (Broker, u16, Proxy) {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config_with(&[port], more), &routes(&broker));
    let proxy = Proxy::start(&files, &[port]);
    (broker, port, proxy)
}

fn refused(port: u16) -> bool {
    TcpStream::connect_timeout(&local(port), Duration::from_secs(1)).is_err()
}

#[test]
fn sigterm_with_no_connection_ends_at_once_with_0() {
    let (_broker, _port, mut proxy) = start("");
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn sigterm_closes_the_listener_waits_for_live_connections_and_ends_with_the_last_one() {
    let (_broker, port, mut proxy) = start("");
    let mut first = Client::mqtt(port, &Connect::v311("first"));
    let mut last = Client::mqtt(port, &Connect::v5("last"));
    proxy.signal(Signal::TERM);
    wait_until("the listener to close", SOON, || {
        refused(port).then_some(())
    });
    first.expect_alive();
    last.expect_alive();
    drop(first);
    last.expect_silence(Duration::from_millis(500));
    last.expect_alive();
    assert!(proxy.is_running(), "one connection is left");
    let start = Instant::now();
    drop(last);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn sigterm_waits_no_longer_than_the_shutdown_timeout() {
    let (_broker, port, mut proxy) = start("mqtt_proxy:\n  shutdown:\n    timeout: 1\n");
    let mut client = Client::mqtt(port, &Connect::v311("stays").keep_alive(0));
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    client.expect_closed();
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(900),
        "not before the timeout: {waited:?}"
    );
    assert!(
        waited < Duration::from_secs(12),
        "soon after it: {waited:?}"
    );
}

#[test]
fn a_connect_that_is_being_read_at_sigterm_is_still_served() {
    let (_broker, port, mut proxy) = start("");
    let connect = Connect::v311("late").build();
    let mut client = Client::to(port);
    client.send(&connect[..9]);
    wait_until("it to be accepted", SOON, || {
        is_accepted(port, client.local_addr().port()).then_some(())
    });
    proxy.signal(Signal::TERM);
    wait_until("the listener to close", SOON, || {
        refused(port).then_some(())
    });
    client.send(&connect[9..]);
    client.expect(support::mqtt::ACCEPTED);
    client.expect_alive();
    drop(client);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn sigint_ends_now_whatever_is_connected() {
    let (_broker, port, mut proxy) = start("");
    let mut client = Client::mqtt(port, &Connect::v311("cut"));
    let start = Instant::now();
    proxy.signal(Signal::INT);
    proxy.wait_for_exit(SOON);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
    client.expect_closed();
}

#[test]
fn sigint_during_the_wait_of_sigterm_ends_now() {
    let (_broker, port, mut proxy) = start("");
    let mut client = Client::mqtt(port, &Connect::v311("cut"));
    proxy.signal(Signal::TERM);
    wait_until("the listener to close", SOON, || {
        refused(port).then_some(())
    });
    client.expect_alive();
    proxy.signal(Signal::INT);
    let start = Instant::now();
    proxy.wait_for_exit(SOON);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn other_signals_are_logged_and_kill_nobody() {
    let (_broker, port, mut proxy) = start("");
    let mut client = Client::mqtt(port, &Connect::v311("a"));
    // SIGUSR2 starts a successor, which is no matter for a test that only ends what it started.
    // SIGQUIT hands over to one, and none is waiting here.
    for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::QUIT, "SIGQUIT")] {
        let mark = proxy.mark();
        proxy.signal(signal);
        proxy.wait_for_log_after(mark, name);
        client.expect_alive();
        Client::mqtt(port, &Connect::v311("b")).expect_alive();
        assert!(proxy.is_running(), "{name}");
    }
    let mark = proxy.mark();
    proxy.signal(Signal::HUP);
    proxy.wait_for_log_after(mark, "reloaded");
    client.expect_alive();
}

#[test]
fn a_signal_right_after_the_start_is_not_lost() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &routes(&broker));
    for round in 0..20 {
        let mut proxy = Proxy::start(&files, &[port]);
        if round % 2 == 0 {
            let mark = proxy.mark();
            proxy.signal(Signal::HUP);
            proxy.wait_for_log_after(mark, "reloaded");
        }
        proxy.signal(Signal::TERM);
        assert_eq!(
            proxy.wait_for_exit(Duration::from_secs(5)).code(),
            Some(0),
            "round {round}"
        );
    }
}

#[test]
fn a_port_in_use_stops_the_start_at_once_with_a_clear_message() {
    let broker = Broker::mqtt();
    let [free, taken] = free_ports();
    let _holder = TcpListener::bind(local(taken)).expect("bind");
    let files = Files::new(&config(&[free, taken]), &routes(&broker));
    let start = Instant::now();
    let mut proxy = Proxy::spawn(&files, |_| {});
    let code = proxy.wait_for_exit(SOON).code();
    assert!(matches!(code, Some(1 | 78)), "exit code {code:?}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "at once: {:?}",
        start.elapsed()
    );
    let line = proxy.wait_for_log(&format!("127.0.0.1:{taken}"));
    assert!(line.contains("in use"), "{line}");
    assert!(refused(free), "no half-started process is left");
}

#[test]
fn a_port_of_a_proxy_that_ended_can_be_listened_on_again_at_once() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &routes(&broker));
    for _ in 0..3 {
        let mut proxy = Proxy::start(&files, &[port]);
        let client = Client::mqtt(port, &Connect::v311("a"));
        proxy.signal(Signal::INT);
        proxy.wait_for_exit(SOON);
        drop(client);
    }
}

#[test]
fn a_proxy_protocol_listener_says_clearly_that_it_is_not_served_yet() {
    let broker = Broker::mqtt();
    let port = free_port();
    let text = config(&[port]).replace(
        &format!("- \"127.0.0.1:{port}\""),
        &format!("- {{addr: \"127.0.0.1:{port}\", proxy_protocol: true}}"),
    );
    let files = Files::new(&text, &routes(&broker));
    let ran = cli(&[
        "check".as_ref(),
        "-c".as_ref(),
        files.config_path().as_os_str(),
    ]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(ran.stdout.contains("config.yaml:5:"), "{}", ran.all());
    assert!(ran.stdout.contains("PROXY protocol"), "{}", ran.all());

    let mut proxy = Proxy::spawn(&files, |_| {});
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(78));
    proxy.wait_for_log("PROXY protocol");
    assert!(refused(port));
}

#[test]
fn nothing_to_serve_is_an_error() {
    for text in [
        "apisix:\n  proxy_mode: http\n",
        "apisix:\n  proxy_mode: stream\n",
        "{}\n",
    ] {
        let files = Files::new(text, "stream_routes: []\n#END\n");
        let ran = cli(&[
            "check".as_ref(),
            "-c".as_ref(),
            files.config_path().as_os_str(),
        ]);
        assert_eq!(ran.code, 78, "{text}{}", ran.all());
        let mut proxy = Proxy::spawn(&files, |_| {});
        assert_eq!(proxy.wait_for_exit(SOON).code(), Some(78), "{text}");
    }
}

#[test]
fn connections_that_go_well_leave_no_line_in_the_log() {
    let (_broker, port, proxy) = start("");
    let before = proxy.lines();
    for n in 0..20 {
        Client::mqtt(port, &Connect::v311(&format!("secret-id-{n}"))).expect_alive();
    }
    proxy.wait_until_idle(port);
    assert_eq!(proxy.lines(), before);
}

#[test]
fn beyond_max_connections_clients_wait_and_are_served_when_others_leave() {
    let (broker, port, _proxy) = start("mqtt_proxy:\n  limits:\n    max_connections: 2\n");
    let first = Client::mqtt(port, &Connect::v311("first"));
    let mut second = Client::mqtt(port, &Connect::v311("second"));
    let mut third = Client::to(port);
    third.send(&Connect::v311("third").build());
    third.expect_silence(Duration::from_millis(400));
    assert_eq!(broker.accepted(), 2);
    second.expect_alive();
    drop(first);
    third.expect(support::mqtt::ACCEPTED);
    second.expect_alive();
}

#[test]
fn metrics_count_connections_and_how_they_end() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let text = routes(&broker).replace("id: 1", "id: fleet");
    let files = Files::new(&config_with(&[port], &more), &text);
    let _proxy = Proxy::start(&files, &[port]);
    let at = local(scrape);
    let listen = format!("listen_addr=\"127.0.0.1:{port}\"");
    let active = || metrics::value(at, "apisix_stream_active_connections", &[&listen]);
    let total = || metrics::value(at, "apisix_stream_connection_total", &["route=\"fleet\""]);
    let ended = || metrics::value(at, "mqtt_proxy_connections_ended_total", &[]);

    let mut clients: Vec<Client> = (0..5)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("c{n}"))))
        .collect();
    wait_until("five live connections", SOON, || {
        (active() == 5.0).then_some(())
    });
    assert_eq!(total(), 5.0);
    clients.truncate(2);
    wait_until("three to end", SOON, || (ended() == 3.0).then_some(()));
    assert_eq!((total(), active()), (5.0, 2.0));
    Client::to(port).send(b"GET / HTTP/1.1\r\n\r\n");
    wait_until("the refused one to be counted", SOON, || {
        (ended() == 4.0).then_some(())
    });
    assert_eq!(
        total(),
        6.0,
        "a refused connection on a matched route counts, as in APISIX"
    );

    let (code, head, body) = metrics::get(at, metrics::PATH);
    assert_eq!(code, 200);
    assert!(
        head.to_lowercase().contains("content-type: text/plain")
            || head
                .to_lowercase()
                .contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    assert!(
        body.contains("# TYPE apisix_stream_connection_total counter")
            || body.contains("# TYPE apisix_stream_connection counter"),
        "{body}"
    );
    assert!(!body.contains("c0"), "never a client id in a label");
    assert_eq!(metrics::get(at, "/elsewhere").0, 404);
}

#[test]
fn connect_failures_are_counted_by_upstream() {
    let dead = DeadPort::new();
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n    path: /m\n");
    let text = format!(
        "stream_routes:\n  - {{id: 1, upstream_id: lost}}\nupstreams:\n  - {{id: lost, nodes: {{\"{}\": 1}}}}\n#END\n",
        dead.addr()
    );
    let _proxy = Proxy::start(&Files::new(&config_with(&[port], &more), &text), &[port]);
    for n in 1..=3 {
        Client::to(port).expect_closed();
        let (code, _, body) = metrics::get(local(scrape), "/m");
        assert_eq!(code, 200);
        let name = "mqtt_proxy_upstream_connect_failures_total";
        assert_eq!(
            metrics::sum(&body, name, &["upstream=\"lost\""]),
            f64::from(n)
        );
    }
}

#[test]
fn the_prometheus_plugin_turns_the_endpoint_on_where_apisix_would_have_it() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let more = format!(
        "stream_plugins:\n  - mqtt-proxy\n  - prometheus\nplugin_attr:\n  prometheus:\n    export_addr:\n      \
         ip: 127.0.0.1\n      port: {scrape}\n"
    );
    let files = Files::new(&config_with(&[port], &more), &routes(&broker));
    let _proxy = Proxy::start(&files, &[port]);
    Client::mqtt(port, &Connect::v311("a"));
    let total = metrics::value(
        local(scrape),
        "apisix_stream_connection_total",
        &["route=\"1\""],
    );
    assert_eq!(total, 1.0);
}

#[test]
fn the_metrics_endpoint_survives_odd_requests() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let files = Files::new(&config_with(&[port], &more), &routes(&broker));
    let mut proxy = Proxy::start(&files, &[port]);
    let _silent = Client::to(scrape);
    for bytes in [
        &b"\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\n\r\n",
        b"\xff\x00\xff\r\n\r\n",
        b"GET",
    ] {
        let mut client = Client::to(scrape);
        client.try_send(bytes);
    }
    let mut endless = Client::to(scrape);
    endless.try_send(&[b'x'; 200_000]);
    assert_eq!(metrics::get(local(scrape), metrics::PATH).0, 200);
    assert!(proxy.is_running());
}

#[test]
fn without_metrics_nothing_listens_but_the_listeners() {
    let broker = Broker::mqtt();
    let port = free_port();
    let off = "mqtt_proxy: {metrics: {enabled: false}}\n";
    let text = config_listening(&[format!("127.0.0.1:{port}")], off);
    let files = Files::new(&text, &routes(&broker));
    let proxy = Proxy::start(&files, &[port]);
    assert_eq!(proxy.count("listening on"), 1, "{:?}", proxy.lines());
}
