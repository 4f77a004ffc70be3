//! `mqtt_proxy.upstream_bind`: connections to brokers come from several addresses by turns, and an
//! address that cannot be used is the machine's trouble and not the broker's.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use support::setup::{Setup, start_with};
use support::{Broker, Client, Connect, Files, SOON, cli, config_with, free_port, on, wait_until};

/// An address of TEST-NET-1: no machine has it.
const NOWHERE: &str = "192.0.2.1";

fn start(upstream: &str, addresses: &str) -> Setup {
    start_with(upstream, &format!(", upstream_bind: [{addresses}]"), |_| {})
}

/// How many connections came from where.
fn sources(broker: &Broker) -> BTreeMap<IpAddr, usize> {
    let mut sources = BTreeMap::new();
    for index in 0..broker.accepted() {
        let peer = broker.connection(index).peer;
        *sources.entry(peer.ip()).or_default() += 1;
    }
    sources
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn connections_to_one_broker_come_from_each_address_in_turn() {
    let broker = Broker::mqtt();
    let setup = start(
        &format!("nodes: {{\"{}\": 1}}", broker.addr()),
        "127.0.0.2, \"::1\", 127.0.0.3",
    );
    let mut clients = setup.clients("client-", 40);
    let expected = BTreeMap::from([(ip("127.0.0.2"), 20), (ip("127.0.0.3"), 20)]);
    assert_eq!(sources(&broker), expected);
    clients.iter_mut().for_each(Client::expect_alive);
}

#[test]
fn an_ipv6_broker_gets_connections_from_the_ipv6_address_and_without_one_from_anywhere() {
    let broker = Broker::mqtt_at(on("::1", free_port()));
    let upstream = format!("nodes: {{\"{}\": 1}}", broker.addr());
    let setup = start(&upstream, "127.0.0.2, \"::1\"");
    setup.clients("client-", 3);
    let setup = start(&upstream, "127.0.0.2");
    setup.clients("client-", 3);
    assert_eq!(sources(&broker), BTreeMap::from([(ip("::1"), 6)]));
}

#[test]
fn probes_come_from_these_addresses_too() {
    for kind in ["tcp", "http", "mqtt"] {
        let broker = Broker::mqtt();
        let upstream = format!(
            "nodes: {{\"{}\": 1}}, checks: {{active: {{type: {kind}}}}}",
            broker.addr()
        );
        let _setup = start(&upstream, "127.0.0.2");
        let peer = broker.connection(0).peer;
        assert_eq!(peer.ip(), ip("127.0.0.2"), "{kind}");
    }
}

#[test]
fn an_address_that_cannot_be_used_is_passed_over_and_named_once() {
    let broker = Broker::mqtt();
    let mut setup = start(
        &format!("nodes: {{\"{}\": 1}}", broker.addr()),
        &format!("{NOWHERE}, 127.0.0.2"),
    );
    setup.clients("client-", 10);
    assert_eq!(sources(&broker), BTreeMap::from([(ip("127.0.0.2"), 10)]));
    assert_eq!(setup.connect_failures(), 0.0);
    let line = format!("mqtt_proxy.upstream_bind {NOWHERE} cannot be used: ");
    setup.proxy.wait_for_log(&line);
    assert_eq!(setup.proxy.count(&line), 1);
}

#[test]
fn without_any_usable_address_the_broker_is_not_blamed() {
    let broker = Broker::mqtt();
    let node = broker.addr().to_string();
    let mut setup = start(
        &format!(
            "nodes: {{\"{node}\": 1}}, checks: {{\
             active: {{type: tcp, unhealthy: {{tcp_failures: 1, timeouts: 1}}}}, \
             passive: {{unhealthy: {{tcp_failures: 1, timeouts: 1}}}}}}"
        ),
        NOWHERE,
    );
    for n in 0..5 {
        let mut client = Client::to(setup.port);
        client.send(&Connect::v311(&format!("client-{n}")).build());
        client.expect_last(&[0x20, 0x02, 0x00, 0x03]);
    }
    assert_eq!(setup.connect_failures(), 5.0);
    setup
        .proxy
        .wait_for_log(&format!("mqtt_proxy.upstream_bind {NOWHERE}: "));
    wait_until("the log of the first failure", SOON, || {
        (setup.proxy.count("cannot be used") == 1).then_some(())
    });
    assert!(
        setup.is_healthy(&node),
        "neither clients nor probes have shown anything"
    );
    assert_eq!(setup.proxy.count("is unhealthy"), 0);
    assert_eq!(broker.accepted(), 0);
}

#[test]
fn what_is_no_local_address_is_an_error_with_its_place() {
    for (written, message) in [
        (
            "[127.0.0.1, broker.test]",
            "mqtt_proxy.upstream_bind[1]: invalid upstream_bind \"broker.test\": expected an IPv4 or IPv6 address",
        ),
        (
            "[\"0.0.0.0\"]",
            "mqtt_proxy.upstream_bind[0]: 0.0.0.0 is no address that a connection can come from",
        ),
    ] {
        let own = format!("mqtt_proxy:\n  upstream_bind: {written}\n");
        let files = Files::new(
            &config_with(&[free_port()], &own),
            "stream_routes: []\n#END\n",
        );
        let path = files.config_path();
        let ran = cli(&["check".as_ref(), "-c".as_ref(), path.as_os_str()]);
        assert_eq!(ran.code, 78, "{}", ran.all());
        assert!(ran.stdout.contains(message), "{}", ran.all());
        assert!(ran.stdout.contains("config.yaml:11:"), "{}", ran.all());
    }
}
