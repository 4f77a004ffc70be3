//! What health does to clients: who moves when a node fails, who comes home when it is back, what
//! failed connects show, and what a reload keeps.

mod support;

use std::collections::BTreeMap;

use support::mosquitto::Mosquitto;
use support::process::more_open_files;
use support::setup::{Setup, routes, start};
use support::{
    Broker, Brokers, Client, Connect, DeadPort, Files, Proxy, Ring, SOON, free_port, local,
    metrics, wait_until,
};

const QUICK: &str = "active: {type: tcp, healthy: {successes: 1}, unhealthy: {tcp_failures: 1}}";

#[test]
fn on_a_ring_only_the_failed_nodes_clients_move_and_they_come_home() {
    let mut brokers = Brokers::mqtt(3);
    let nodes = brokers.nodes();
    let ring = Ring::equal(&nodes);
    let setup = start(&format!(
        "type: chash, key: mqtt_client_id, nodes: {}, checks: {{{QUICK}}}",
        brokers.equal()
    ));
    let home = |id: &str| nodes[ring.pick(id)].clone();
    let ids: Vec<String> = (0..60).map(|n| format!("client-{n}")).collect();
    let at = |brokers: &Brokers| -> BTreeMap<String, String> {
        ids.iter()
            .map(|id| {
                let mut client = Client::mqtt(setup.port, &Connect::v311(id));
                client.send(id.as_bytes());
                client.expect(id.as_bytes());
                let place = wait_until("the client to reach a broker", SOON, || {
                    brokers.0.iter().position(|broker| {
                        (0..broker.accepted()).rev().any(|index| {
                            let seen = broker.connection(index);
                            seen.end().is_none() && seen.received().ends_with(id.as_bytes())
                        })
                    })
                });
                (id.clone(), nodes[place].clone())
            })
            .collect()
    };
    let before = at(&brokers);
    assert!(before.iter().all(|(id, node)| *node == home(id)));

    brokers.0[1].stop_listening();
    setup.wait_until_healthy(&nodes[1], false);
    for (id, node) in at(&brokers) {
        let order = ring.order(&id);
        let expected = match order[0] {
            1 => order[1],
            first => first,
        };
        assert_eq!(node, nodes[expected], "{id}");
    }
    assert_eq!(setup.connect_failures(), 0.0);

    brokers.0[1].listen();
    setup.wait_until_healthy(&nodes[1], true);
    assert_eq!(at(&brokers), before, "everybody is home again");
}

#[test]
fn failed_connects_take_a_node_out_and_time_brings_it_back() {
    let broker = Broker::mqtt();
    let dead = DeadPort::new();
    let mut setup = start(&format!(
        "nodes: {{\"{}\": 1, \"{}\": 1}}, \
         checks: {{passive: {{unhealthy: {{tcp_failures: 2}}, recovery_time: 5}}}}",
        broker.addr(),
        dead.addr()
    ));
    setup.clients("client-", 20);
    assert_eq!(
        setup.connect_failures(),
        2.0,
        "then nobody tried it any more"
    );
    setup
        .proxy
        .wait_for_log("is unhealthy: 2 TCP failures in a row, last: connect for a client");
    setup
        .proxy
        .wait_for_log("is healthy again: its recovery_time has passed");
    setup.clients("client-", 20);
    assert_eq!(setup.connect_failures(), 4.0, "it was given another chance");
}

#[test]
fn with_every_node_unhealthy_clients_are_served_all_the_same() {
    let brokers = Brokers::mqtt(2);
    let nodes = brokers.nodes();
    // The probes' port is dead, the brokers themselves are fine.
    let dead = DeadPort::new();
    for kind in ["roundrobin", "least_conn", "chash, key: mqtt_client_id"] {
        let mut setup = start(&format!(
            "type: {kind}, nodes: {}, checks: {{active: {{type: tcp, port: {}, \
             unhealthy: {{tcp_failures: 1}}}}}}",
            brokers.equal(),
            dead.port()
        ));
        for node in &nodes {
            setup.wait_until_healthy(node, false);
        }
        setup.proxy.wait_for_log("all nodes are unhealthy");
        let before = brokers.accepted();
        let clients = setup.clients("client-", 20);
        let got: Vec<usize> = brokers
            .accepted()
            .iter()
            .zip(before)
            .map(|(a, b)| a - b)
            .collect();
        assert!(got.iter().all(|&count| count > 0), "{kind}: {got:?}");
        drop(clients);
        assert_eq!(setup.proxy.count("all nodes are unhealthy"), 1, "{kind}");
    }
}

#[test]
fn a_reload_keeps_what_is_known_about_nodes_that_stay() {
    let brokers = Brokers::mqtt(2);
    let nodes = brokers.nodes();
    let dead = DeadPort::new();
    let upstream = |more: &str, checks: &str| {
        routes(&format!(
            "nodes: {{\"{}\": 1, \"{}\": 1{more}}}{checks}",
            nodes[0],
            dead.addr()
        ))
    };
    let checks = format!(", checks: {{{QUICK}}}");
    let mut setup = start("nodes: {}");
    let files = setup.files.clone();
    setup
        .proxy
        .reload(|| files.replace_routes(upstream("", &checks)));
    let dead_node = dead.addr().to_string();
    setup.wait_until_healthy(&dead_node, false);

    let more = format!(", \"{}\": 1", nodes[1]);
    setup
        .proxy
        .reload(|| files.replace_routes(upstream(&more, &checks)));
    assert!(!setup.is_healthy(&dead_node));
    setup.clients("client-", 10);
    assert_eq!(setup.connect_failures(), 0.0);
    assert_eq!(
        setup.proxy.count("is unhealthy:"),
        1,
        "nothing was learnt again"
    );

    // Without checks nothing is unhealthy, and a node that leaves takes its metrics along.
    setup
        .proxy
        .reload(|| files.replace_routes(upstream("", "")));
    assert!(setup.is_healthy(&dead_node));
    let gone = format!("node=\"{}\"", nodes[1]);
    let (_, _, text) = metrics::get(local(setup.metrics), metrics::PATH);
    assert!(!text.contains(&gone), "{text}");
}

/// The acceptance of health checks as a whole: 1,000 clients over three real brokers, one of which
/// is killed.
#[test]
fn kill_9_of_one_of_three_brokers_under_1000_connections() {
    more_open_files();
    let mut brokers: Vec<Mosquitto> = (0..3).map(|_| Mosquitto::start()).collect();
    let nodes: Vec<String> = brokers.iter().map(|b| b.addr().to_string()).collect();
    let list: Vec<String> = nodes.iter().map(|node| format!("\"{node}\": 1")).collect();
    let setup = start(&format!(
        "type: chash, key: mqtt_client_id, nodes: {{{}}}, \
         checks: {{active: {{type: mqtt, healthy: {{successes: 1}}, unhealthy: {{tcp_failures: 1}}}}}}",
        list.join(", ")
    ));
    let ring = Ring::equal(&nodes);
    let victim = 1;
    let mut clients: Vec<(String, Client)> = (0..1000)
        .map(|n| format!("client-{n}"))
        .map(|id| (id.clone(), Client::mqtt(setup.port, &Connect::v311(&id))))
        .collect();
    let live = |node: &str| setup.live(node);
    let home = |index: usize| {
        clients
            .iter()
            .filter(|(id, _)| ring.pick(id) == index)
            .count()
    };
    let homes: Vec<usize> = (0..3).map(home).collect();
    let placed: Vec<usize> = nodes.iter().map(|node| live(node)).collect();
    assert_eq!(placed, homes);

    brokers[victim].kill();
    let (lost, mut kept): (Vec<_>, Vec<_>) = clients
        .drain(..)
        .partition(|(id, _)| ring.pick(id) == victim);
    for (id, mut client) in lost {
        client.expect_closed();
        // As a device does: it comes back at once.
        kept.push((id.clone(), Client::mqtt(setup.port, &Connect::v311(&id))));
    }
    setup.wait_until_healthy(&nodes[victim], false);
    let moved: Vec<usize> = [0, 2]
        .iter()
        .map(|&node| live(&nodes[node]) - homes[node])
        .collect();
    assert_eq!(moved.iter().sum::<usize>(), homes[victim]);
    assert!(
        moved.iter().all(|&count| count > homes[victim] / 4),
        "spread over both: {moved:?}"
    );
    for (_, client) in &mut kept {
        client.send(&[0xc0, 0]);
        client.expect(&[0xd0, 0]);
    }

    brokers[victim].start_again();
    setup.wait_until_healthy(&nodes[victim], true);
    // The clients of the dead node reconnect and are home; the others were never touched.
    let (lost, others): (Vec<_>, Vec<_>) = kept
        .into_iter()
        .partition(|(id, _)| ring.pick(id) == victim);
    let mut clients = others;
    for (id, old) in lost {
        drop(old);
        clients.push((id.clone(), Client::mqtt(setup.port, &Connect::v311(&id))));
    }
    wait_until("everybody to be home", SOON, || {
        let placed: Vec<usize> = nodes.iter().map(|node| live(node)).collect();
        (placed == homes).then_some(())
    });
}

#[test]
fn disable_upstream_healthcheck_turns_every_check_off() {
    let broker = Broker::mqtt();
    let dead = DeadPort::new();
    let (port, metrics_port) = (free_port(), free_port());
    let upstream = format!(
        "type: roundrobin, nodes: {{\"{}\": 1, \"{}\": 1}}, checks: {{{QUICK}, \
         passive: {{unhealthy: {{tcp_failures: 1}}}}}}",
        broker.addr(),
        dead.addr()
    );
    let config = |off: bool| {
        format!(
            "apisix: {{proxy_mode: stream, disable_upstream_healthcheck: {off}, \
             stream_proxy: {{tcp: [\"127.0.0.1:{port}\"]}}}}\n\
             deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n\
             mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics_port}\"}}}}\n"
        )
    };
    let start = |off| {
        let files = Files::new(&config(off), &routes(&upstream));
        let proxy = Proxy::start(&files, &[port]);
        Setup {
            proxy,
            files,
            port,
            metrics: metrics_port,
        }
    };
    let checked = start(false);
    checked.wait_until_healthy(&dead.addr().to_string(), false);
    drop(checked);
    // Behind the last probe in the queue.
    let before = broker.accepted();
    let last = Client::to(broker.port()).local_addr();
    wait_until("the last one to be accepted", SOON, || {
        (before..broker.accepted()).find(|&n| broker.connection(n).peer == last)
    });
    let accepted = broker.accepted();

    let setup = start(true);
    // Clients meet the dead node first again and again.
    setup.clients("client-", 20);
    let failures = setup.connect_failures();
    assert!(failures >= 10.0, "{failures}");
    assert!(setup.is_healthy(&dead.addr().to_string()));
    assert_eq!(broker.accepted() - accepted, 20, "clients only, no probe");
}
