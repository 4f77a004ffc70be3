//! Nodes given by name: all addresses of the name are used, it is resolved again when the TTL ends,
//! and it keeps its place on the ring whatever it stands for.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::dns::Dns;
use support::{
    Broker, Brokers, Client, Connect, End, Files, Proxy, Ring, SOON, free_port, on, wait_until,
};

const ONE_WORKER: &str = "nginx_config:\n  worker_processes: 1\n";

/// A proxy that asks `dns`, with one MQTT route over this upstream; `more` goes behind the rest of
/// config.yaml and `apisix` under `apisix:`.
fn proxy_with(dns: &Dns, upstream: &str, apisix: &str, more: &str) -> (Proxy, u16) {
    let port = free_port();
    let config = format!(
        "apisix:\n  proxy_mode: stream\n  dns_resolver: [\"{}\"]\n{apisix}  stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n{more}",
        dns.addr()
    );
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: 1\nupstreams:\n  - {{id: 1, {upstream}}}\n#END\n"
    );
    (Proxy::start(&Files::new(&config, &routes), &[port]), port)
}

fn proxy(dns: &Dns, upstream: &str) -> (Proxy, u16) {
    proxy_with(dns, upstream, "", ONE_WORKER)
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("meter-{n}")).collect()
}

#[test]
fn a_name_is_resolved_and_all_its_addresses_are_used() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1", "127.0.0.2", "127.0.0.3"], 60);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let (_proxy, port) = proxy(
        &dns,
        &format!("type: roundrobin, nodes: {{\"broker.test:{node}\": 1}}"),
    );
    let clients: Vec<Client> = ids(60)
        .iter()
        .map(|id| Client::mqtt(port, &Connect::v311(id)))
        .collect();
    let got = brokers.accepted();
    assert!(
        got.iter().all(|count| *count > 0),
        "every address gets clients: {got:?}"
    );
    assert_eq!(got.iter().sum::<usize>(), clients.len());
}

#[test]
fn under_chash_an_id_keeps_its_address_of_the_name() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1", "127.0.0.2", "127.0.0.3"], 60);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let (_proxy, port) = proxy(
        &dns,
        &format!("type: chash, key: mqtt_client_id, nodes: {{\"broker.test:{node}\": 1}}"),
    );
    let first = brokers.map(port, &ids(40));
    for broker in 0..3 {
        assert!(
            first.values().any(|b| *b == broker),
            "every address gets clients: {first:?}"
        );
    }
    // The server may give the addresses in another order each time.
    assert_eq!(
        brokers.map(port, &ids(40)),
        first,
        "the same id, the same address"
    );
}

#[test]
fn when_one_address_of_a_name_is_dead_the_others_serve() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1", "127.0.0.2"], 60);
    let (mut brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2"]);
    brokers.0[0].stop_listening();
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(
            &dns,
            &format!("{kind}, nodes: {{\"broker.test:{node}\": 1}}"),
        );
        for id in ids(12) {
            Client::mqtt(port, &Connect::v311(&id));
        }
    }
    assert_eq!(brokers.accepted(), [0, 24]);
}

#[test]
fn a_name_is_resolved_again_when_its_ttl_ends_and_not_much_before() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1"], 1);
    dns.set("steady.test", &["127.0.0.1"], 300);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2"]);
    let (_proxy, port) = proxy(
        &dns,
        &format!("nodes: {{\"broker.test:{node}\": 1, \"steady.test:{node}\": 0}}"),
    );
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);

    dns.set("broker.test", &["127.0.0.2"], 1);
    let changed = Instant::now();
    wait_until(
        "new connections to follow the changed address",
        SOON,
        || (brokers.visit(port, &Connect::v311("a")).0 == 1).then_some(()),
    );
    assert!(
        changed.elapsed() < Duration::from_secs(10),
        "took {:?}",
        changed.elapsed()
    );
    for id in ids(10) {
        assert_eq!(
            brokers.visit(port, &Connect::v311(&id)).0,
            1,
            "and stay there"
        );
    }
    assert!(dns.queries("steady.test") <= 8, "a long TTL is respected");
}

#[test]
fn dns_resolver_valid_overrides_the_ttl() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1"], 3600);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2"]);
    let (_proxy, port) = proxy_with(
        &dns,
        &format!("nodes: {{\"broker.test:{node}\": 1}}"),
        "  dns_resolver_valid: 1\n",
        "",
    );
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);
    dns.set("broker.test", &["127.0.0.2"], 3600);
    wait_until("the overridden TTL to end", SOON, || {
        (brokers.visit(port, &Connect::v311("a")).0 == 1).then_some(())
    });
}

#[test]
fn established_connections_outlive_a_change_of_the_name() {
    let dns = Dns::start();
    dns.set("broker.test", &["127.0.0.1"], 1);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2"]);
    let (_proxy, port) = proxy(&dns, &format!("nodes: {{\"broker.test:{node}\": 1}}"));
    let (_, mut old) = brokers.visit(port, &Connect::v311("old"));
    dns.set("broker.test", &["127.0.0.2"], 1);
    wait_until("the change to be seen", SOON, || {
        (brokers.visit(port, &Connect::v311("a")).0 == 1).then_some(())
    });
    old.expect_alive();
}

#[test]
fn a_node_keeps_its_clients_when_its_address_changes() {
    let dns = Dns::start();
    dns.set("a.test", &["127.0.0.1"], 1);
    dns.set("b.test", &["127.0.0.2"], 1);
    dns.set("c.test", &["127.0.0.3"], 1);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let names = ["a", "b", "c"].map(|name| format!("{name}.test:{node}"));
    let (_proxy, port) = proxy(
        &dns,
        &format!(
            "type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1, \"{}\": 1, \"{}\": 1}}",
            names[0], names[1], names[2]
        ),
    );
    let before = brokers.map(port, &ids(60));
    for broker in 0..3 {
        assert!(
            before.values().any(|b| *b == broker),
            "every name gets clients: {before:?}"
        );
    }

    dns.set("b.test", &["127.0.0.4"], 1);
    let of_b = before
        .iter()
        .find(|(_, broker)| **broker == 1)
        .expect("b has clients")
        .0
        .clone();
    wait_until("the new address of b to be used", SOON, || {
        (brokers.visit(port, &Connect::v311(&of_b)).0 == 3).then_some(())
    });
    let after = brokers.map(port, &ids(60));
    let expected: BTreeMap<String, usize> = before
        .into_iter()
        .map(|(id, broker)| (id, if broker == 1 { 3 } else { broker }))
        .collect();
    assert_eq!(after, expected, "b's clients follow it, nobody else moves");
}

#[test]
fn ring_identity_address_puts_resolved_addresses_on_the_ring_as_apisix_does() {
    let dns = Dns::start();
    dns.set("a.test", &["127.0.0.1"], 1);
    dns.set("b.test", &["127.0.0.2"], 1);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    let (_proxy, port) = proxy_with(
        &dns,
        &format!(
            "type: chash, key: mqtt_client_id, nodes: {{\"a.test:{node}\": 1, \"b.test:{node}\": 1}}"
        ),
        "",
        "mqtt_proxy:\n  ring_identity: address\n",
    );
    let addresses = brokers.nodes();
    let ring = Ring::equal(&addresses[..2]);
    for (id, broker) in brokers.map(port, &ids(60)) {
        assert_eq!(broker, ring.pick(&id), "{id}");
    }

    dns.set("b.test", &["127.0.0.3"], 1);
    let moved = Ring::equal(&[&addresses[0], &addresses[2]]);
    let witness = moved.id_for(1, "witness-");
    wait_until("the new address to be on the ring", SOON, || {
        (brokers.visit(port, &Connect::v311(&witness)).0 == 2).then_some(())
    });
    for (id, broker) in brokers.map(port, &ids(60)) {
        assert_eq!(broker, [0, 2][moved.pick(&id)], "{id}");
    }
}

#[test]
fn a_name_that_does_not_resolve_leaves_the_other_nodes_in_service_and_is_named_in_the_log() {
    let dns = Dns::start();
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1"]);
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (mut proxy, port) = proxy(
            &dns,
            &format!("{kind}, nodes: {{\"nowhere.test:{node}\": 1, \"127.0.0.1:{node}\": 1}}"),
        );
        let start = Instant::now();
        for id in ids(10) {
            assert_eq!(brokers.visit(port, &Connect::v311(&id)).0, 0);
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "took {:?}",
            start.elapsed()
        );
        proxy.wait_for_log("nowhere.test");
    }
}

#[test]
fn a_name_that_never_resolves_is_an_unavailable_broker_and_a_later_answer_mends_it() {
    let dns = Dns::start();
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1"]);
    let (_proxy, port) = proxy(&dns, &format!("nodes: {{\"late.test:{node}\": 1}}"));
    let mut client = Client::to(port);
    client.send(&Connect::v311("a").build());
    client.expect_last(&[0x20, 0x02, 0x00, 0x03]);

    dns.set("late.test", &["127.0.0.1"], 60);
    wait_until("the name to be asked for again", SOON * 2, || {
        let mut client = Client::to(port);
        client.send(&Connect::v311("a").build());
        let (answer, _) = client.read_up_to(4, SOON);
        (answer == support::mqtt::ACCEPTED).then_some(())
    });
    assert!(brokers.0[0].accepted() >= 1);
}

#[test]
fn a_silent_dns_server_does_not_hold_up_nodes_that_need_none() {
    let dns = Dns::start();
    dns.set_mute(true);
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1"]);
    let (_proxy, port) = proxy(
        &dns,
        &format!("type: roundrobin, nodes: {{\"mute.test:{node}\": 1, \"127.0.0.1:{node}\": 1}}"),
    );
    let start = Instant::now();
    for id in ids(6) {
        assert_eq!(brokers.visit(port, &Connect::v311(&id)).0, 0);
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn etc_hosts_answers_before_any_dns_server() {
    let dns = Dns::start();
    let (brokers, node) = Brokers::on_hosts(&["127.0.0.1"]);
    let (_proxy, port) = proxy(&dns, &format!("nodes: {{\"localhost:{node}\": 1}}"));
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);
    assert_eq!(dns.queries("localhost"), 0);
}

#[test]
fn ipv6_answers_are_used_unless_enable_ipv6_is_off() {
    let dns = Dns::start();
    dns.set("six.test", &["::1"], 60);
    let (brokers, node) = Brokers::on_hosts(&["::1"]);
    let upstream = format!("nodes: {{\"six.test:{node}\": 1}}");
    let (_on, port) = proxy_with(&dns, &upstream, "", "");
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);

    let (_off, port) = proxy_with(&dns, &upstream, "  enable_ipv6: false\n", "");
    let mut client = Client::to(port);
    client.send(&Connect::v311("a").build());
    client.expect_last(&[0x20, 0x02, 0x00, 0x03]);
}

#[test]
fn plain_routes_resolve_names_too() {
    let dns = Dns::start();
    dns.set("mysql.test", &["127.0.0.2"], 60);
    let server = Broker::greeting(on("127.0.0.2", free_port()), b"hello");
    let port = free_port();
    let config = format!(
        "apisix:\n  proxy_mode: http&stream\n  dns_resolver: [\"{}\"]\n  stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n",
        dns.addr()
    );
    let routes = format!(
        "stream_routes:\n  - {{id: 1, service_id: 1}}\nservices:\n  - {{id: 1, upstream: {{nodes: {{\"mysql.test:{}\": 1}}}}}}\n#END\n",
        server.port()
    );
    let _proxy = Proxy::start(&Files::new(&config, &routes), &[port]);
    let mut client = Client::to(port);
    client.expect(b"hello");
    client.finish_sending();
    assert_eq!(client.read_to_end(SOON).1, End::Fin);
}
