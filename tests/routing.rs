//! Which stream route a connection takes, and which upstream and plugins that gives it.

mod support;

use std::net::SocketAddr;

use support::files::config_listening;
use support::mqtt::ACCEPTED;
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, config, config_with, explain, free_port,
    free_ports, local, on, wait_until,
};

/// Brokers that speak first and say who they are.
fn named(name: &'static str) -> Broker {
    Broker::greeting(local(free_port()), name.as_bytes())
}

/// Which of the named brokers answers a plain connection to `addr` from `source`.
fn reached(source: &str, addr: SocketAddr, len: usize) -> String {
    let mut client = Client::from(source, addr);
    String::from_utf8(client.read_exactly(len)).expect("a name")
}

#[test]
fn server_port_chooses_between_listeners() {
    let [one, two] = free_ports();
    let (a, b) = (named("a"), named("b"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {one}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, server_port: {two}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        b.addr()
    );
    let files = Files::new(&config(&[one, two]), &routes);
    let _proxy = Proxy::start(&files, &[one, two]);
    assert_eq!(reached("127.0.0.1", local(one), 1), "a");
    assert_eq!(reached("127.0.0.1", local(two), 1), "b");
    assert_eq!(explain(&files, &one.to_string(), &[])["route"], "1");
    assert_eq!(
        explain(&files, &format!("127.0.0.1:{two}"), &[])["route"],
        "2"
    );
}

#[test]
fn server_addr_is_the_local_address_of_the_connection_and_may_be_a_network() {
    let port = free_port();
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_addr: 127.0.0.2, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, server_addr: 127.0.1.0/24, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 3, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        b.addr(),
        c.addr()
    );
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.1.77"];
    let listens = hosts.map(|host| format!("{host}:{port}"));
    let files = Files::new(&config_listening(&listens, ""), &routes);
    let _proxy = Proxy::start_at(&files, &hosts.map(|host| on(host, port)));
    assert_eq!(reached("127.0.0.1", on("127.0.0.2", port), 1), "a");
    assert_eq!(reached("127.0.0.1", on("127.0.1.77", port), 1), "b");
    assert_eq!(reached("127.0.0.1", on("127.0.0.1", port), 1), "c");
}

#[test]
fn remote_addr_is_the_client_and_may_be_a_network_with_host_bits() {
    let port = free_port();
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, remote_addr: 127.0.0.9, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, remote_addr: 127.0.0.65/26, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 3, remote_addr: 127.9.0.0/16, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        b.addr(),
        c.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(reached("127.0.0.9", local(port), 1), "a");
    assert_eq!(reached("127.0.0.64", local(port), 1), "b");
    assert_eq!(reached("127.0.0.127", local(port), 1), "b");
    assert_eq!(reached("127.9.200.3", local(port), 1), "c");
    for nobody in ["127.0.0.10", "127.0.0.128", "127.8.0.1"] {
        Client::from(nobody, local(port)).expect_fin();
    }
    let from = |ip| explain(&files, &port.to_string(), &["--from", ip])["route"].clone();
    assert_eq!(
        (from("127.0.0.9"), from("127.0.0.100")),
        ("1".into(), "2".into())
    );
}

#[test]
fn ipv6_listeners_and_addresses_work() {
    let port = free_port();
    let (a, b) = (named("a"), named("b"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, remote_addr: \"::1\", server_addr: \"::/64\", upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, remote_addr: 127.0.0.0/8, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        b.addr()
    );
    let listens = [format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
    let files = Files::new(&config_listening(&listens, ""), &routes);
    let _proxy = Proxy::start_at(&files, &[local(port), on("::1", port)]);
    assert_eq!(reached("::1", on("::1", port), 1), "a");
    assert_eq!(reached("127.0.0.1", local(port), 1), "b");
}

#[test]
fn the_first_match_in_file_order_wins_however_specific_later_routes_are() {
    let [port, other] = free_ports();
    let (a, b, c, d) = (named("a"), named("b"), named("c"), named("d"));
    let routes = format!(
        "stream_routes:\n  - {{id: z, remote_addr: 127.0.0.0/24, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: y, server_port: {port}, remote_addr: 127.0.0.1/32, server_addr: 127.0.0.1, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: x, server_port: {port}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: w, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        b.addr(),
        c.addr(),
        d.addr()
    );
    let files = Files::new(&config(&[port, other]), &routes);
    let _proxy = Proxy::start(&files, &[port, other]);
    assert_eq!(reached("127.0.0.1", local(port), 1), "a");
    assert_eq!(reached("127.0.1.1", local(port), 1), "c");
    assert_eq!(reached("127.0.1.1", local(other), 1), "d");
    assert_eq!(b.accepted(), 0, "the shadowed route takes nobody");
}

#[test]
fn the_first_match_is_the_right_one_among_a_thousand_routes() {
    let port = free_port();
    let (a, b) = (named("a"), named("b"));
    let mut routes = String::from("stream_routes:\n");
    for n in 0..1000 {
        let (network, broker) = match n {
            700 => ("127.0.0.7".to_owned(), &a),
            800 => ("127.0.0.0/24".to_owned(), &b),
            _ => (format!("10.{}.{}.0/24", n / 256, n % 256), &a),
        };
        routes.push_str(&format!(
            "  - {{id: {}, server_port: {port}, remote_addr: {network}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n",
            n + 1,
            broker.addr()
        ));
    }
    routes.push_str("#END\n");
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(reached("127.0.0.7", local(port), 1), "a");
    assert_eq!(reached("127.0.0.8", local(port), 1), "b");
    assert_eq!(
        explain(&files, &port.to_string(), &["--from", "127.0.0.7"])["route"],
        "701"
    );
    assert_eq!(
        explain(&files, &port.to_string(), &["--from", "127.0.0.8"])["route"],
        "801"
    );
    assert_eq!(
        explain(&files, &port.to_string(), &["--from", "10.1.3.9"])["route"],
        "260"
    );
}

#[test]
fn a_connection_without_a_route_is_closed_cleanly_and_gets_no_byte() {
    let port = free_port();
    let broker = named("a");
    let routes = format!(
        "stream_routes:\n  - {{id: 1, remote_addr: 10.0.0.1, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    Client::to(port).expect_fin();
    assert_eq!(broker.accepted(), 0);
}

#[test]
fn an_sni_route_is_never_taken_by_a_plain_connection() {
    let port = free_port();
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, sni: mqtt.example.com, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, sni: \"*\", upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 3, snis: [a.example.com, \"*.example.org\"], upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 4, remote_addr: 127.0.0.2, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        a.addr(),
        a.addr(),
        b.addr(),
        c.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    Client::to(port).expect_fin();
    assert_eq!(reached("127.0.0.2", local(port), 1), "c");
    assert_eq!((a.accepted(), b.accepted()), (0, 0));
    // Offline, the order in which TLS connections will take them is already there.
    let with = |name| explain(&files, &port.to_string(), &["--sni", name])["route"].clone();
    assert_eq!(with("mqtt.example.com"), "1", "an exact name");
    assert_eq!(with("a.example.com"), "3", "one of several names");
    assert_eq!(with("x.y.example.org"), "3", "a wildcard covers any depth");
    assert_eq!(with("elsewhere.test"), "2", "the last resort");
}

#[test]
fn upstream_id_wins_over_service_id_and_over_an_inline_upstream() {
    let port = free_port();
    let (by_id, service, inline) = (named("u"), named("s"), named("i"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream_id: u1, service_id: s1, upstream: {{nodes: {{\"{}\": 1}}}}}}\n\
         services:\n  - {{id: s1, upstream: {{nodes: {{\"{}\": 1}}}}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}}}\n\
         upstreams:\n  - {{id: u1, nodes: {{\"{}\": 1}}}}\n#END\n",
        inline.addr(),
        service.addr(),
        by_id.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    // With upstream_id the service is ignored, its plugins included: the broker may speak first.
    assert_eq!(reached("127.0.0.1", local(port), 1), "u");
    assert_eq!(explain(&files, &port.to_string(), &[])["upstream"], "u1");
}

#[test]
fn with_a_service_the_routes_own_upstream_wins_then_the_services_inline_one_then_its_upstream_id() {
    let ports: [u16; 4] = free_ports();
    let (route, service, by_id) = (named("r"), named("s"), named("u"));
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {}, service_id: both, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, server_port: {}, service_id: both}}\n  \
         - {{id: 3, server_port: {}, service_id: only-id}}\n  \
         - {{id: 4, server_port: {}, service_id: only-inline}}\n\
         services:\n  - {{id: both, upstream_id: 7, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: only-id, upstream_id: 7}}\n  \
         - {{id: only-inline, upstream: {{nodes: {{\"{}\": 1}}}}}}\n\
         upstreams:\n  - {{id: 7, nodes: {{\"{}\": 1}}}}\n#END\n",
        ports[0],
        route.addr(),
        ports[1],
        ports[2],
        ports[3],
        service.addr(),
        service.addr(),
        by_id.addr()
    );
    let _proxy = Proxy::start(&Files::new(&config(&ports), &routes), &ports);
    let got = ports.map(|port| reached("127.0.0.1", local(port), 1));
    assert_eq!(got, ["r", "s", "u", "s"]);
}

#[test]
fn plugins_of_a_service_work_and_the_routes_own_plugin_replaces_them() {
    let [plain, own] = free_ports();
    let broker = Broker::mqtt();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {plain}, service_id: 1}}\n  \
         - {{id: 2, server_port: {own}, service_id: 1, plugins: {{mqtt-proxy: {{protocol_level: 5}}}}}}\n\
         services:\n  - {{id: 1, upstream: {{nodes: {{\"{}\": 1}}}}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[plain, own]), &routes);
    let _proxy = Proxy::start(&files, &[plain, own]);

    Client::mqtt(plain, &Connect::v311("a")).expect_alive();
    let mut refused = Client::to(plain);
    refused.send(&Connect::v5("a").build());
    refused.expect_last(&[0x20, 0x03, 0x00, 0x84, 0x00]);

    Client::mqtt(own, &Connect::v5("a")).expect_alive();
    let mut refused = Client::to(own);
    refused.send(&Connect::v311("a").build());
    refused.expect_last(&[0x20, 0x02, 0x00, 0x01]);
}

#[test]
fn a_dangling_reference_is_a_warning_at_load_and_closes_only_its_own_connections() {
    let ports: [u16; 3] = free_ports();
    let broker = named("a");
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {}, upstream_id: gone, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, server_port: {}, service_id: gone, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 3, server_port: {}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        ports[0],
        broker.addr(),
        ports[1],
        broker.addr(),
        ports[2],
        broker.addr()
    );
    let files = Files::new(&config(&ports), &routes);
    let mut proxy = Proxy::start(&files, &ports);
    proxy.wait_for_log("stream_routes[0].upstream_id");
    proxy.wait_for_log("stream_routes[1].service_id");
    Client::to(ports[0]).expect_fin();
    Client::to(ports[1]).expect_fin();
    assert_eq!(reached("127.0.0.1", local(ports[2]), 1), "a");
    assert_eq!(broker.accepted(), 1);
}

#[test]
fn a_route_without_any_upstream_closes_its_connections() {
    let port = free_port();
    let files = Files::new(&config(&[port]), "stream_routes:\n  - id: 1\n#END\n");
    let _proxy = Proxy::start(&files, &[port]);
    Client::to(port).expect_fin();
}

#[test]
fn a_plugin_that_is_disabled_by_its_meta_does_not_run() {
    let port = free_port();
    let broker = named("a");
    let routes = format!(
        "stream_routes:\n  - {{id: 1, plugins: {{mqtt-proxy: {{protocol_level: 4, _meta: {{disable: true}}}}}}, \
         upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(reached("127.0.0.1", local(port), 1), "a");
}

#[test]
fn an_upstream_that_wants_tls_is_never_dialled_in_the_clear() {
    let port = free_port();
    let broker = Broker::silent();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, \
         upstream: {{scheme: tls, nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    let mut client = Client::to(port);
    client.send(
        &Connect::v311("a")
            .username("alice")
            .password(b"secret")
            .build(),
    );
    let seen = broker.connection(0);
    let first = wait_until("the broker to be spoken to", SOON, || {
        seen.received().first().copied()
    });
    assert_eq!(first, 0x16, "a TLS handshake and no CONNECT in the clear");
}

#[test]
fn a_plugin_that_config_yaml_does_not_list_is_unknown() {
    let [port, other] = free_ports();
    let broker = Broker::mqtt();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n  \
         - {{id: 2, server_port: {other}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        broker.addr(),
        broker.addr()
    );
    let more = "stream_plugins:\n  - ip-restriction\n";
    let files = Files::new(&config_with(&[port, other], more), &routes);
    let mut proxy = Proxy::start(&files, &[port, other]);
    let line = proxy.wait_for_log("stream_routes[0].plugins.mqtt-proxy");
    assert!(
        line.contains("stream_plugins"),
        "it says where it would be listed: {line}"
    );
    Client::to(port).expect_fin();
    let mut client = Client::to(other);
    client.send(&Connect::v311("a").build());
    client.expect(ACCEPTED);
}
