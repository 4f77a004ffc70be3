//! Balancers at work: least_conn across reloads, a ring with a bound, the slow start of a node
//! that is back, ewma, and priorities with health.

mod support;

use support::setup::{Setup, routes, start};
use support::{Broker, Brokers, Client, Connect, DeadPort, SOON, wait_until};

#[test]
fn least_conn_follows_connections_that_end_and_survives_reloads() {
    let brokers = Brokers::mqtt(3);
    let nodes = brokers.nodes();
    let upstream =
        |weights: &[u32]| format!("type: least_conn, nodes: {}", brokers.weighted(weights));
    let mut setup = start(&upstream(&[1, 1, 1]));
    let live =
        |setup: &Setup| -> Vec<usize> { nodes.iter().map(|node| setup.live(node)).collect() };
    let mut clients = setup.clients("a-", 30);
    assert_eq!(live(&setup), [10, 10, 10]);

    // Three quarters of the clients leave; whoever they left behind, newcomers even it out.
    clients.truncate(8);
    wait_until("the clients to be gone", SOON, || {
        (live(&setup).iter().sum::<usize>() == 8).then_some(())
    });
    clients.extend(setup.clients("b-", 22));
    assert_eq!(live(&setup), [10, 10, 10]);

    // A changed weight: the counts are still known, so only the heavier node gets newcomers.
    let files = setup.files.clone();
    setup
        .proxy
        .reload(|| files.replace_routes(routes(&upstream(&[1, 1, 4]))));
    assert_eq!(live(&setup), [10, 10, 10]);
    clients.extend(setup.clients("c-", 30));
    assert_eq!(live(&setup), [10, 10, 40]);
}

#[test]
fn no_node_of_a_bounded_ring_gets_more_than_its_bound() {
    let brokers = Brokers::mqtt(3);
    let nodes = brokers.nodes();
    let setup = start(&format!(
        "type: chash, key: mqtt_client_id, hash_balance_factor: 110, nodes: {}",
        brokers.equal()
    ));
    let mut clients = Vec::new();
    for n in 0..120 {
        clients.push(Client::mqtt(
            setup.port,
            &Connect::v311(&format!("client-{n}")),
        ));
        if n % 10 == 9 {
            let bound = ((n + 1) as f64 * 1.10 / 3.0).ceil() as usize;
            for node in &nodes {
                let live = setup.live(node);
                assert!(
                    live <= bound,
                    "{live} of {} on {node}, bound {bound}",
                    n + 1
                );
            }
        }
    }
}

#[test]
fn a_node_that_is_back_is_not_flooded() {
    let mut brokers = Brokers::mqtt(2);
    let nodes = brokers.nodes();
    for kind in [
        "roundrobin",
        "least_conn",
        "ewma",
        "chash, key: mqtt_client_id",
    ] {
        let setup = start(&format!(
            "type: {kind}, slow_start: 3600, nodes: {}, checks: {{active: {{type: tcp, \
             healthy: {{successes: 1}}, unhealthy: {{tcp_failures: 1}}}}}}",
            brokers.equal()
        ));
        let before = setup.clients("before-", 40);
        // ewma goes where connects are quickest, which on loopback is chance: no share is promised.
        assert!(
            kind == "ewma" || setup.live(&nodes[0]) > 5,
            "{kind}: all nodes start at full share"
        );
        drop(before);
        brokers.0[0].stop_listening();
        setup.wait_until_healthy(&nodes[0], false);
        brokers.0[0].listen();
        setup.wait_until_healthy(&nodes[0], true);
        wait_until("the old clients to be gone", SOON, || {
            (setup.live(&nodes[0]) == 0).then_some(())
        });
        let clients = setup.clients("after-", 40);
        let got = setup.live(&nodes[0]);
        assert!(got <= 2, "{kind}: {got} of {}", clients.len());
    }
}

#[test]
fn ewma_serves_from_every_node() {
    let brokers = Brokers::mqtt(3);
    let setup = start(&format!("type: ewma, nodes: {}", brokers.equal()));
    let clients = setup.clients("client-", 60);
    assert_eq!(brokers.accepted().iter().sum::<usize>(), clients.len());
    for node in brokers.nodes() {
        assert!(setup.live(&node) > 0, "{node}");
    }
}

#[test]
fn a_lower_priority_serves_while_the_higher_is_unhealthy() {
    let (main, spare) = (Broker::mqtt(), Broker::mqtt());
    let mut main = main;
    let dead = DeadPort::new();
    let node = |broker: &Broker, priority: i32| {
        format!(
            "{{host: 127.0.0.1, port: {}, weight: 1, priority: {priority}}}",
            broker.port()
        )
    };
    let setup = start(&format!(
        "nodes: [{}, {}, {{host: 127.0.0.1, port: {}, weight: 1, priority: 1}}], \
         checks: {{active: {{type: tcp, healthy: {{successes: 1}}, unhealthy: {{tcp_failures: 1}}}}}}",
        node(&main, 1),
        node(&spare, 0),
        dead.port()
    ));
    let (main_node, spare_node) = (main.addr().to_string(), spare.addr().to_string());
    setup.wait_until_healthy(&dead.addr().to_string(), false);
    let first = setup.clients("first-", 5);
    assert_eq!((setup.live(&main_node), setup.live(&spare_node)), (5, 0));
    main.stop_listening();
    setup.wait_until_healthy(&main_node, false);
    let second = setup.clients("second-", 5);
    assert_eq!((setup.live(&main_node), setup.live(&spare_node)), (5, 5));
    main.listen();
    setup.wait_until_healthy(&main_node, true);
    let third = setup.clients("third-", 5);
    assert_eq!((setup.live(&main_node), setup.live(&spare_node)), (10, 5));
    assert_eq!(first.len() + second.len() + third.len(), 15);
}
