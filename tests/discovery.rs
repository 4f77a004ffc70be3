//! Services in DNS (`discovery_type: dns`): SRV and address records become nodes, changes are
//! followed without a reload and without harm to anybody, and a name server that fails takes
//! nothing away.

mod support;

use std::time::{Duration, Instant};

use support::dns::{Dns, Srv};
use support::generations::Generations;
use support::{
    Broker, Brokers, Client, Connect, Files, Proxy, Ring, SOON, cli, explain, free_port, local,
    metrics, on, wait_until,
};

/// A proxy that finds its nodes through `dns`.
struct Setup {
    proxy: Proxy,
    files: Files,
    port: u16,
    metrics: u16,
}

/// `discovery`: what stands below `discovery.dns` besides the servers; `own`: more of `mqtt_proxy`.
fn config(dns: &Dns, ports: [u16; 2], discovery: &str, own: &str) -> String {
    let [port, metrics] = ports;
    format!(
        "apisix:\n  proxy_mode: stream\n  resolver_timeout: 1\n  stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}\n\
         discovery: {{dns: {{servers: [\"{}\"]{discovery}}}}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
         nginx_config: {{worker_processes: 1}}\n\
         mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics}\"}}{own}}}\n",
        dns.addr()
    )
}

fn routes(upstream: &str) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: brokers\nupstreams:\n  - {{id: brokers, discovery_type: dns, {upstream}}}\n#END\n"
    )
}

fn start_with(dns: &Dns, upstream: &str, discovery: &str, own: &str) -> Setup {
    let (port, metrics) = (free_port(), free_port());
    let files = Files::new(
        &config(dns, [port, metrics], discovery, own),
        &routes(upstream),
    );
    Setup {
        proxy: Proxy::start(&files, &[port]),
        files,
        port,
        metrics,
    }
}

fn start(dns: &Dns, upstream: &str) -> Setup {
    start_with(dns, upstream, "", "")
}

impl Setup {
    fn of_node(&self, name: &str, node: &str) -> f64 {
        let label = format!("node=\"{node}\"");
        metrics::value(local(self.metrics), name, &[&label])
    }

    /// The nodes that the metrics show.
    fn nodes(&self) -> Vec<String> {
        let (_, _, text) = metrics::get(local(self.metrics), metrics::PATH);
        let mut nodes: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("mqtt_proxy_upstream_healthy{"))
            .filter_map(|line| Some(line.split_once("node=\"")?.1.split_once('"')?.0.to_owned()))
            .collect();
        nodes.sort();
        nodes
    }

    fn wait_for_nodes(&self, expected: &[String]) {
        let mut expected = expected.to_vec();
        expected.sort();
        wait_until(&format!("the nodes to be {expected:?}"), SOON, || {
            (self.nodes() == expected).then_some(())
        });
    }
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Srv {
    Srv {
        priority,
        weight,
        port,
        target: target.to_owned(),
    }
}

/// Brokers on ports of their own, each with a name of its own in DNS.
fn named(dns: &Dns, count: usize) -> (Brokers, Vec<String>) {
    let brokers = Brokers::mqtt(count);
    let names: Vec<String> = (0..count).map(|n| format!("broker-{n}.test")).collect();
    for name in &names {
        dns.set(name, &["127.0.0.1"], 60);
    }
    (brokers, names)
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("meter-{n}")).collect()
}

#[test]
fn srv_records_are_nodes_with_port_and_weight() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 3);
    let record = |n: usize, weight| srv(10, weight, brokers.0[n].port(), &names[n]);
    dns.set_srv(
        "_mqtt._tcp.brokers.test",
        &[record(0, 3), record(1, 1), record(2, 0)],
        60,
    );
    let setup = start(
        &dns,
        "service_name: _mqtt._tcp.brokers.test, type: roundrobin",
    );
    let clients: Vec<Client> = ids(50)
        .iter()
        .map(|id| Client::mqtt(setup.port, &Connect::v311(id)))
        .collect();
    assert_eq!(brokers.accepted(), [30, 10, 10], "weight 0 counts as 1");
    drop(clients);
    let labels: Vec<String> = (0..3)
        .map(|n| format!("{}:{}", names[n], brokers.0[n].port()))
        .collect();
    assert_eq!(setup.nodes(), labels);
}

#[test]
fn the_lowest_srv_priority_serves_first() {
    let dns = Dns::start();
    let (mut brokers, names) = named(&dns, 2);
    let record = |n: usize, priority| srv(priority, 1, brokers.0[n].port(), &names[n]);
    dns.set_srv("brokers.test", &[record(0, 20), record(1, 10)], 60);
    let setup = start(&dns, "service_name: brokers.test");
    for id in ids(6) {
        assert_eq!(brokers.visit(setup.port, &Connect::v311(&id)).0, 1);
    }
    brokers.0[1].stop_listening();
    for id in ids(6) {
        assert_eq!(
            brokers.visit(setup.port, &Connect::v311(&id)).0,
            0,
            "failover"
        );
    }
}

#[test]
fn every_address_of_a_target_is_used() {
    let dns = Dns::start();
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let (brokers, port) = Brokers::on_hosts(&hosts);
    dns.set("a.test", &hosts[..1], 60);
    dns.set("b.test", &hosts[1..], 60);
    dns.set_srv(
        "brokers.test",
        &[srv(0, 2, port, "a.test"), srv(0, 2, port, "b.test")],
        60,
    );
    let setup = start(&dns, "service_name: brokers.test, type: roundrobin");
    for id in ids(40) {
        Client::mqtt(setup.port, &Connect::v311(&id));
    }
    assert_eq!(
        brokers.accepted(),
        [20, 10, 10],
        "two addresses share a weight"
    );
}

/// With `ring_identity: address`, clients are where APISIX has them: on a ring of addresses.
#[test]
fn a_ring_of_addresses_is_that_of_apisix() {
    let dns = Dns::start();
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let (brokers, port) = Brokers::on_hosts(&hosts);
    let ring_of = |weights: [u32; 3]| {
        let nodes: Vec<(String, u32)> = brokers.nodes().into_iter().zip(weights).collect();
        Ring::apisix(&nodes)
    };
    dns.set("a.test", &hosts[..1], 60);
    dns.set("b.test", &hosts[1..], 60);
    dns.set_srv(
        "brokers.test",
        &[srv(0, 60, port, "a.test"), srv(0, 20, port, "b.test")],
        60,
    );
    let chash = "type: chash, key: mqtt_client_id";
    let own = ", ring_identity: address";
    let of_targets = start_with(
        &dns,
        &format!("service_name: brokers.test, {chash}"),
        "",
        own,
    );
    let ring = ring_of([6, 1, 1]);
    for (id, broker) in brokers.map(of_targets.port, &ids(60)) {
        assert_eq!(broker, ring.pick(&id), "{id}");
    }
    dns.set("plain.test", &hosts, 60);
    let of_addresses = start(
        &dns,
        &format!("service_name: \"plain.test:{port}\", {chash}"),
    );
    let ring = ring_of([1, 1, 1]);
    for (id, broker) in brokers.map(of_addresses.port, &ids(60)) {
        assert_eq!(broker, ring.pick(&id), "{id}");
    }
}

#[test]
fn a_target_keeps_its_clients_when_its_address_changes() {
    let dns = Dns::start();
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let (brokers, port) = Brokers::on_hosts(&hosts);
    dns.set("a.test", &hosts[..1], 1);
    dns.set("b.test", &hosts[1..2], 1);
    dns.set_srv(
        "brokers.test",
        &[srv(0, 1, port, "a.test"), srv(0, 1, port, "b.test")],
        60,
    );
    let setup = start(
        &dns,
        "service_name: brokers.test, type: chash, key: mqtt_client_id",
    );
    let before = brokers.map(setup.port, &ids(40));
    let (witness, _) = before
        .iter()
        .find(|(_, b)| **b == 1)
        .expect("b has clients");
    dns.set("b.test", &hosts[2..], 1);
    wait_until("the new address to be used", SOON, || {
        (brokers.visit(setup.port, &Connect::v311(witness)).0 == 2).then_some(())
    });
    for (id, broker) in brokers.map(setup.port, &ids(40)) {
        assert_eq!(
            broker,
            [0, 2][before[&id]],
            "{id}: b's clients follow it, nobody else moves"
        );
    }
}

#[test]
fn address_records_are_nodes_with_the_port_of_service_name() {
    let dns = Dns::start();
    let hosts = ["127.0.0.1", "127.0.0.2"];
    let (brokers, port) = Brokers::on_hosts(&hosts);
    dns.set("brokers.test", &hosts, 60);
    let setup = start(&dns, &format!("service_name: \"brokers.test:{port}\""));
    for id in ids(10) {
        Client::mqtt(setup.port, &Connect::v311(&id));
    }
    assert_eq!(brokers.accepted(), [5, 5]);
    assert_eq!(setup.nodes(), brokers.nodes());

    // IPv6 addresses are asked for where there are no others, and not where `order` says so.
    let six = Broker::mqtt_at(on("::1", free_port()));
    dns.set("six.test", &["::1"], 60);
    let upstream = format!("service_name: \"six.test:{}\"", six.port());
    let setup = start(&dns, &upstream);
    Client::mqtt(setup.port, &Connect::v311("a"));
    let mut setup = start_with(&dns, &upstream, ", order: [SRV, A]", "");
    setup
        .proxy
        .wait_for_log("it has no record of a type that is asked for; no node in use");
    let mut client = Client::to(setup.port);
    client.send(&Connect::v311("a").build());
    client.expect_last(&[0x20, 0x02, 0x00, 0x03]);
}

#[test]
fn addresses_without_a_port_are_told() {
    let dns = Dns::start();
    dns.set("brokers.test", &["127.0.0.1"], 60);
    let mut setup = start(&dns, "service_name: brokers.test");
    setup.proxy.wait_for_log(
        "service brokers.test: its records have no port: write one behind the name in service_name",
    );
}

#[test]
fn a_changed_answer_is_followed_and_nodes_that_stay_keep_everything() {
    let dns = Dns::start();
    let (mut brokers, names) = named(&dns, 4);
    let records: Vec<Srv> = (0..4)
        .map(|n| srv(0, 1, brokers.0[n].port(), &names[n]))
        .collect();
    let labels: Vec<String> = (0..4)
        .map(|n| format!("{}:{}", names[n], brokers.0[n].port()))
        .collect();
    brokers.0[1].stop_listening();
    dns.set_srv("brokers.test", &records[..3], 1);
    let mut setup = start(
        &dns,
        "service_name: brokers.test, type: chash, key: mqtt_client_id, \
         checks: {passive: {unhealthy: {tcp_failures: 1}, recovery_time: 3600}}",
    );
    let before = brokers.map(setup.port, &ids(60));
    assert_eq!(
        setup.of_node("mqtt_proxy_upstream_healthy", &labels[1]),
        0.0,
        "clients have shown that the dead node is dead"
    );
    let mut clients: Vec<(usize, Client)> = ids(60)
        .iter()
        .map(|id| brokers.visit(setup.port, &Connect::v311(id)))
        .collect();
    let live = |setup: &Setup, n: usize| {
        setup.of_node("mqtt_proxy_upstream_connections", &labels[n]) as usize
    };
    wait_until("the clients of the map to be gone", SOON, || {
        (live(&setup, 0) + live(&setup, 2) == 60).then_some(())
    });
    let counts = (live(&setup, 0), live(&setup, 2));

    // A node joins, and one of those that have clients leaves.
    let mark = setup.proxy.mark();
    dns.set_srv(
        "brokers.test",
        &[records[0].clone(), records[1].clone(), records[3].clone()],
        1,
    );
    setup.proxy.wait_for_log_after(
        mark,
        &format!(
            "upstream brokers: service brokers.test has 3 node(s); new: {}; gone: {}",
            labels[3], labels[2]
        ),
    );
    assert_eq!(live(&setup, 0), counts.0, "its count is still known");
    assert_eq!(
        setup.of_node("mqtt_proxy_upstream_healthy", &labels[1]),
        0.0,
        "so is its health"
    );
    assert_eq!(
        setup.proxy.count("is unhealthy:"),
        1,
        "nothing was learnt again"
    );
    for (_, client) in &mut clients {
        client.expect_alive();
    }
    let after = brokers.map(setup.port, &ids(60));
    for (id, broker) in &after {
        assert!(
            *broker == before[id] || *broker == 3 || before[id] == 2,
            "{id} moved for nothing"
        );
    }
    assert!(after.values().any(|broker| *broker == 3));
    setup.wait_for_nodes(&[&labels[..2], &labels[3..]].concat());
}

#[test]
fn the_ttl_is_respected() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 1);
    let record = srv(0, 1, brokers.0[0].port(), &names[0]);
    dns.set_srv("steady.test", std::slice::from_ref(&record), 300);
    dns.set_srv("quick.test", &[record], 1);
    let steady = start(&dns, "service_name: steady.test");
    let quick = start(&dns, "service_name: quick.test");
    wait_until(
        "the quick one to be asked for again and again",
        SOON,
        || (dns.queries("quick.test") > 6).then_some(()),
    );
    // A query that is answered late is sent again.
    assert!(dns.queries("steady.test") <= 3);
    assert_eq!((steady.nodes().len(), quick.nodes().len()), (1, 1));
}

#[test]
fn a_name_server_that_fails_or_is_silent_takes_no_node_away_and_delays_nobody() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 2);
    let record = |n: usize| srv(0, 1, brokers.0[n].port(), &names[n]);
    dns.set_srv("brokers.test", &[record(0)], 1);
    let mut setup = start(&dns, "service_name: brokers.test, type: roundrobin");
    let (_, mut old) = brokers.visit(setup.port, &Connect::v311("old"));

    dns.remove("brokers.test");
    setup
        .proxy
        .wait_for_log("the last 1 known node(s) in use, next try in 1 s");
    setup
        .proxy
        .wait_for_log("the last 1 known node(s) in use, next try in 2 s");
    dns.set_mute(true);
    let asked = dns.queries("brokers.test");
    wait_until("the silent server to be asked", SOON, || {
        (dns.queries("brokers.test") > asked).then_some(())
    });
    let began = Instant::now();
    for id in ids(10) {
        assert_eq!(brokers.visit(setup.port, &Connect::v311(&id)).0, 0);
    }
    // A query is given up after a second at the earliest: nobody waited for one.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");

    dns.set_mute(false);
    dns.set_srv("brokers.test", &[record(1)], 60);
    let label = format!("{}:{}", names[1], brokers.0[1].port());
    wait_until("the new answer", SOON * 2, || {
        (setup.nodes() == [label.clone()]).then_some(())
    });
    assert_eq!(brokers.visit(setup.port, &Connect::v311("a")).0, 1);
    old.expect_alive();
}

#[test]
fn a_service_that_appears_late_is_found() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 1);
    let mut setup = start(&dns, "service_name: late.test");
    let mut client = Client::to(setup.port);
    client.send(&Connect::v311("a").build());
    client.expect_last(&[0x20, 0x02, 0x00, 0x03]);
    setup.proxy.wait_for_log("no valid upstream node");
    dns.set_srv(
        "late.test",
        &[srv(0, 1, brokers.0[0].port(), &names[0])],
        60,
    );
    setup.wait_for_nodes(&[format!("{}:{}", names[0], brokers.0[0].port())]);
    Client::mqtt(setup.port, &Connect::v311("a"));
}

#[test]
fn an_edit_that_leads_to_a_service_serves_its_nodes_at_once() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 2);
    let record = |n: usize| srv(0, 1, brokers.0[n].port(), &names[n]);
    dns.set_srv("old.test", &[record(0)], 60);
    dns.set_srv("new.test", &[record(1)], 60);
    let mut setup = start(&dns, "service_name: old.test");
    assert_eq!(brokers.visit(setup.port, &Connect::v311("a")).0, 0);
    let files = setup.files.clone();
    setup
        .proxy
        .reload(|| files.replace_routes(routes("service_name: new.test")));
    // The reload waits for the answer, but no more than for a moment.
    setup.wait_for_nodes(&[format!("{}:{}", names[1], brokers.0[1].port())]);
    assert_eq!(brokers.visit(setup.port, &Connect::v311("a")).0, 1);

    // A bad edit leaves it in service, and an unknown registry is one.
    let bad =
        routes("service_name: new.test").replace("discovery_type: dns", "discovery_type: nacos");
    setup.proxy.reload(|| files.replace_routes(bad));
    setup
        .proxy
        .wait_for_log("unknown discovery_type \"nacos\" (only dns is served)");
    assert_eq!(brokers.visit(setup.port, &Connect::v311("a")).0, 1);
}

#[test]
fn discovery_without_servers_asks_those_of_resolv_conf_or_of_nodes() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 1);
    dns.set_srv(
        "brokers.test",
        &[srv(0, 1, brokers.0[0].port(), &names[0])],
        60,
    );
    // The search domain is applied to the service and not to its targets.
    dns.set_srv(
        "brokers.search.test",
        &[srv(0, 1, brokers.0[0].port(), &names[0])],
        60,
    );
    let port = free_port();
    let base = format!(
        "apisix: {{proxy_mode: stream, dns_resolver: [\"{}\"], stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n",
        dns.addr()
    );
    for (discovery, service) in [
        (String::new(), "brokers.test"),
        (
            format!(
                "discovery: {{dns: {{resolv_conf: own.conf, servers: [\"{}\"]}}}}\n",
                dns.addr()
            ),
            "brokers",
        ),
    ] {
        let files = Files::new(
            &format!("{base}{discovery}"),
            &routes(&format!("service_name: {service}")),
        );
        files.replace("own.conf", "nameserver 127.0.0.1\nsearch search.test\n");
        let _proxy = Proxy::start(&files, &[port]);
        Client::mqtt(port, &Connect::v311("a"));
    }
    let files = Files::new(
        &format!("{base}discovery: {{dns: {{resolv_conf: nowhere.conf}}}}\n"),
        &routes("service_name: brokers"),
    );
    let path = files.config_path();
    let ran = cli(&["check".as_ref(), "-c".as_ref(), path.as_os_str()]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    assert!(
        ran.stdout.contains("discovery.dns.resolv_conf: "),
        "{}",
        ran.all()
    );
    assert!(
        ran.stdout.contains("nowhere.conf cannot be read"),
        "{}",
        ran.all()
    );
}

#[test]
fn an_upgrade_finds_the_nodes_before_it_takes_their_connections() {
    let dns = Dns::start();
    let (brokers, names) = named(&dns, 2);
    let records: Vec<Srv> = (0..2)
        .map(|n| srv(0, 1, brokers.0[n].port(), &names[n]))
        .collect();
    dns.set_srv("brokers.test", &records, 60);
    let (port, metrics) = (free_port(), free_port());
    let files = Files::new(
        &config(&dns, [port, metrics], "", ""),
        &routes("service_name: brokers.test, type: least_conn"),
    );
    let mut proxy = Generations::start(&files, &[port]);
    let mut live: Vec<Client> = ids(20)
        .iter()
        .map(|id| Client::mqtt(port, &Connect::v311(id)))
        .collect();
    proxy.upgrade();
    live.iter_mut().for_each(Client::expect_alive);
    for (name, broker) in names.iter().zip(&brokers.0) {
        let label = format!("node=\"{name}:{}\"", broker.port());
        let count = || metrics::value(local(metrics), "mqtt_proxy_upstream_connections", &[&label]);
        wait_until("the connections to count on their nodes", SOON, || {
            (count() == 10.0).then_some(())
        });
    }
    let more: Vec<Client> = (20..40)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("meter-{n}"))))
        .collect();
    assert_eq!(brokers.accepted(), [20, 20], "{} more", more.len());
}

#[test]
fn explain_and_check_need_no_dns() {
    let dns = Dns::start();
    let port = free_port();
    let files = Files::new(
        &config(&dns, [port, free_port()], "", ""),
        &routes("service_name: \"brokers.test:1883\", type: chash, key: mqtt_client_id"),
    );
    let path = files.config_path();
    let ran = cli(&[
        "check".as_ref(),
        "--strict".as_ref(),
        "-c".as_ref(),
        path.as_os_str(),
    ]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let listen = port.to_string();
    let explained = explain(&files, &listen, &["--client-id", "dev-42"]);
    assert_eq!(explained["service"], "brokers.test:1883");
    assert_eq!(explained["hash_key"], "dev-42");
    assert_eq!(explained["nodes"], serde_json::json!([]));
    assert_eq!(dns.queries("brokers.test"), 0);
}
