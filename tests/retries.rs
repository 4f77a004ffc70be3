//! Connecting: which node is tried, how often, for how long, and when the client is told that there
//! is none.

mod support;

use std::time::{Duration, Instant};

use support::ports::BlackHole;
use support::{
    Broker, Brokers, Client, Connect, DeadPort, End, Files, Proxy, Ring, SOON, config_with,
    free_port, free_ports, local, metrics,
};

const UNAVAILABLE: &[u8] = &[0x20, 0x02, 0x00, 0x03];
/// One worker thread: a round robin has one position to start from.
const ONE_WORKER: &str = "nginx_config:\n  worker_processes: 1\n";

/// A proxy with one MQTT route over this upstream (YAML flow form, without braces).
fn proxy(upstream: &str) -> (Proxy, u16) {
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{{upstream}}}\n#END\n"
    );
    let files = Files::new(&config_with(&[port], ONE_WORKER), &routes);
    (Proxy::start(&files, &[port]), port)
}

/// What a client gets: `Ok` with the open client, or the bytes and end of a refusal.
fn knock(port: u16, id: &str) -> Result<Client, (Vec<u8>, End)> {
    let mut client = Client::to(port);
    client.send(&Connect::v311(id).build());
    let (answer, end) = client.read_up_to(4, SOON);
    if answer == support::mqtt::ACCEPTED {
        return Ok(client);
    }
    let end = end.unwrap_or_else(|| client.read_to_end(SOON).1);
    Err((answer, end))
}

/// How many of `count` new connections each broker gets. The clients stay connected.
fn spread(brokers: &Brokers, port: u16, count: usize) -> Vec<usize> {
    let before = brokers.accepted();
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(knock(port, &format!("client-{n}")).unwrap_or_else(|e| panic!("{n}: {e:?}")));
    }
    brokers
        .accepted()
        .iter()
        .zip(before)
        .map(|(now, then)| now - then)
        .collect()
}

#[test]
fn a_dead_node_costs_no_client_its_connection() {
    let broker = Broker::mqtt();
    let dead = DeadPort::new();
    let nodes = format!(
        "nodes: {{\"{}\": 1, \"{}\": 1}}",
        dead.addr(),
        broker.addr()
    );
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(&format!("{kind}, {nodes}"));
        let before = broker.accepted();
        for n in 0..20 {
            knock(port, &format!("client-{n}")).unwrap_or_else(|e| panic!("{kind} {n}: {e:?}"));
        }
        assert_eq!(broker.accepted() - before, 20, "{kind}");
    }
}

#[test]
fn retries_0_tries_one_node_only() {
    let brokers = Brokers::mqtt(1);
    let dead = DeadPort::new();
    let nodes = [dead.addr().to_string(), brokers.nodes().remove(0)];
    let (_proxy, port) = proxy(&format!(
        "retries: 0, type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1, \"{}\": 1}}",
        nodes[0], nodes[1]
    ));
    let ring = Ring::equal(&nodes);
    for id in ring.ids_for(0, "lost-", 5) {
        assert_eq!(
            knock(port, &id).err(),
            Some((UNAVAILABLE.to_vec(), End::Fin)),
            "{id}"
        );
    }
    for id in ring.ids_for(1, "fine-", 5) {
        assert!(knock(port, &id).is_ok(), "{id}");
    }
}

#[test]
fn retries_counts_attempts_behind_the_first_and_defaults_to_all_other_nodes() {
    let broker = Broker::mqtt();
    let dead = [DeadPort::new(), DeadPort::new()];
    let nodes = [dead[0].addr(), dead[1].addr(), broker.addr()].map(|addr| addr.to_string());
    let text = format!(
        "nodes: {{\"{}\": 1, \"{}\": 1, \"{}\": 1}}",
        nodes[0], nodes[1], nodes[2]
    );
    let ring = Ring::equal(&nodes);
    let third: Vec<String> = (0..10_000)
        .map(|n| format!("id-{n}"))
        .filter(|id| ring.order(id)[2] == 2)
        .take(6)
        .collect();
    let second: Vec<String> = (0..10_000)
        .map(|n| format!("id-{n}"))
        .filter(|id| ring.order(id)[1] == 2)
        .take(6)
        .collect();

    let (_one, one_retry) = proxy(&format!(
        "retries: 1, type: chash, key: mqtt_client_id, {text}"
    ));
    let (_all, default) = proxy(&format!("type: chash, key: mqtt_client_id, {text}"));
    for id in &third {
        let refused = Some((UNAVAILABLE.to_vec(), End::Fin));
        assert_eq!(
            knock(one_retry, id).err(),
            refused,
            "{id} needs two retries"
        );
        assert!(knock(default, id).is_ok(), "{id} with the default");
    }
    for id in &second {
        assert!(knock(one_retry, id).is_ok(), "{id} needs one retry");
    }
}

#[test]
fn a_single_node_is_dialled_again_as_often_as_retries_says() {
    let dead = DeadPort::new();
    let [port, scrape] = free_ports();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 7}}\n\
         upstreams:\n  - {{id: 7, retries: 3, nodes: {{\"{}\": 1}}}}\n#END\n",
        dead.addr()
    );
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let _proxy = Proxy::start(&Files::new(&config_with(&[port], &more), &routes), &[port]);
    assert_eq!(
        knock(port, "a").err(),
        Some((UNAVAILABLE.to_vec(), End::Fin))
    );
    let failures = metrics::value(
        local(scrape),
        "mqtt_proxy_upstream_connect_failures_total",
        &["upstream=\"7\""],
    );
    assert_eq!(failures, 4.0, "one attempt and three retries");
}

#[test]
fn when_every_node_is_dead_the_client_is_told_after_each_was_tried() {
    let dead = [DeadPort::new(), DeadPort::new(), DeadPort::new()];
    let nodes: Vec<String> = dead
        .iter()
        .map(|d| format!("\"{}\": 1", d.addr()))
        .collect();
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(&format!("{kind}, nodes: {{{}}}", nodes.join(", ")));
        assert_eq!(
            knock(port, "a").err(),
            Some((UNAVAILABLE.to_vec(), End::Fin)),
            "{kind}"
        );
        let mut five = Client::to(port);
        five.send(&Connect::v5("a").build());
        five.expect_last(&[0x20, 0x03, 0x00, 0x88, 0x00]);
    }
}

#[test]
fn a_node_that_does_not_answer_is_left_after_the_connect_timeout() {
    let hole = BlackHole::new();
    let broker = Broker::mqtt();
    let nodes = [hole.addr().to_string(), broker.addr().to_string()];
    let (_proxy, port) = proxy(&format!(
        "type: chash, key: mqtt_client_id, timeout: {{connect: 1, send: 60, read: 60}}, \
         nodes: {{\"{}\": 1, \"{}\": 1}}",
        nodes[0], nodes[1]
    ));
    let ring = Ring::equal(&nodes);
    let start = Instant::now();
    assert!(knock(port, &ring.id_for(0, "slow-")).is_ok());
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(900), "{waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[test]
fn retry_timeout_ends_the_search_before_the_nodes_do() {
    let holes = [BlackHole::new(), BlackHole::new()];
    let broker = Broker::mqtt();
    let nodes = [holes[0].addr(), holes[1].addr(), broker.addr()].map(|addr| addr.to_string());
    let ring = Ring::equal(&nodes);
    let id = (0..)
        .map(|n| format!("id-{n}"))
        .find(|id| ring.order(id)[2] == 2)
        .expect("an id");
    let with = |retry_timeout: &str| {
        proxy(&format!(
            "type: chash, key: mqtt_client_id, timeout: {{connect: 1, send: 60, read: 60}}, \
             {retry_timeout}nodes: {{\"{}\": 1, \"{}\": 1, \"{}\": 1}}",
            nodes[0], nodes[1], nodes[2]
        ))
    };
    // Attempts end after 1 and 2 s; a retry may start before 1.9 s and not behind it.
    let (_limited, limited) = with("retry_timeout: 1.9, ");
    let start = Instant::now();
    assert_eq!(
        knock(limited, &id).err(),
        Some((UNAVAILABLE.to_vec(), End::Fin))
    );
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(1_900),
        "a retry before the limit runs: {waited:?}"
    );
    assert_eq!(broker.accepted(), 0, "none is started behind it");

    let (_none, unlimited) = with("retry_timeout: 0, ");
    assert!(knock(unlimited, &id).is_ok(), "0 is no limit");
}

#[test]
fn a_client_that_leaves_while_nodes_are_tried_is_not_connected_to_any() {
    let hole = BlackHole::new();
    let broker = Broker::mqtt();
    let nodes = [hole.addr().to_string(), broker.addr().to_string()];
    let (proxy, port) = proxy(&format!(
        "type: chash, key: mqtt_client_id, timeout: {{connect: 1.5, send: 60, read: 60}}, \
         nodes: {{\"{}\": 1, \"{}\": 1}}",
        nodes[0], nodes[1]
    ));
    let ring = Ring::equal(&nodes);
    let mut client = Client::to(port);
    client.send(&Connect::v311(&ring.id_for(0, "gone-")).build());
    client.expect_silence(Duration::from_millis(300));
    client.reset();
    proxy.wait_until_idle(port);
    if broker.accepted() == 1 {
        broker.connection(0).wait_for_end();
    }
}

#[test]
fn round_robin_follows_the_weights_and_weight_0_takes_nobody() {
    let brokers = Brokers::mqtt(3);
    let (_a, port) = proxy(&format!("nodes: {}", brokers.weighted(&[1, 2, 3])));
    assert_eq!(spread(&brokers, port, 60), [10, 20, 30]);
    let (_b, port) = proxy(&format!(
        "type: roundrobin, nodes: {}",
        brokers.weighted(&[2, 0, 1])
    ));
    assert_eq!(spread(&brokers, port, 30), [20, 0, 10]);
    let (_c, port) = proxy(&format!("nodes: {}", brokers.equal()));
    assert_eq!(spread(&brokers, port, 30), [10, 10, 10]);
}

#[test]
fn a_node_of_weight_0_is_no_retry_target_either() {
    let broker = Broker::mqtt();
    let dead = DeadPort::new();
    let nodes = format!(
        "nodes: {{\"{}\": 1, \"{}\": 0}}",
        dead.addr(),
        broker.addr()
    );
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(&format!("{kind}, {nodes}"));
        for id in ["a", "b", "c"] {
            assert_eq!(
                knock(port, id).err(),
                Some((UNAVAILABLE.to_vec(), End::Fin)),
                "{kind}"
            );
        }
    }
    assert_eq!(broker.accepted(), 0);
}

/// For chash a difference to APISIX, whose ring is empty then and which closes every connection.
#[test]
fn when_all_weights_are_0_all_nodes_are_used_equally() {
    let brokers = Brokers::mqtt(2);
    let (_a, port) = proxy(&format!("nodes: {}", brokers.weighted(&[0, 0])));
    assert_eq!(spread(&brokers, port, 20), [10, 10]);
    let (mut proxy, port) = proxy(&format!(
        "type: chash, key: mqtt_client_id, nodes: {}",
        brokers.weighted(&[0, 0])
    ));
    proxy.wait_for_log("weights of priority 0 are 0");
    let ring = Ring::equal(&brokers.nodes());
    for n in 0..20 {
        let id = format!("id-{n}");
        assert_eq!(
            brokers.visit(port, &Connect::v311(&id)).0,
            ring.pick(&id),
            "{id}"
        );
    }
}

#[test]
fn a_single_node_is_used_whatever_its_weight() {
    let brokers = Brokers::mqtt(1);
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(&format!("{kind}, nodes: {}", brokers.weighted(&[0])));
        assert!(knock(port, "a").is_ok(), "{kind}");
    }
}

#[test]
fn of_duplicate_nodes_the_last_weight_counts() {
    let brokers = Brokers::mqtt(2);
    let [a, b] = [&brokers.0[0], &brokers.0[1]];
    let node = |broker: &Broker, weight: u32| {
        format!(
            "{{host: 127.0.0.1, port: {}, weight: {weight}}}",
            broker.port()
        )
    };
    let list = [node(a, 9), node(b, 1), node(a, 3)].join(", ");
    let (_a, port) = proxy(&format!("nodes: [{list}]"));
    assert_eq!(spread(&brokers, port, 40), [30, 10]);

    let (_b, port) = proxy(&format!(
        "type: chash, key: mqtt_client_id, nodes: [{list}]"
    ));
    let nodes = brokers.nodes();
    let ring = Ring::apisix(&[(&nodes[0], 3), (&nodes[1], 1)]);
    for n in 0..40 {
        let id = format!("dup-{n}");
        let (broker, _client) = brokers.visit(port, &Connect::v311(&id));
        assert_eq!(broker, ring.pick(&id), "{id}");
    }
}

#[test]
fn a_lower_priority_is_used_only_when_every_node_of_the_higher_ones_has_failed() {
    let mut brokers = Brokers::mqtt(4);
    let ports: Vec<u16> = brokers.0.iter().map(Broker::port).collect();
    for kind in ["type: roundrobin", "type: chash, key: mqtt_client_id"] {
        let (_proxy, port) = proxy(&format!(
            "{kind}, nodes: [{{host: 127.0.0.1, port: {}, weight: 1, priority: -1}}, \
             {{host: 127.0.0.1, port: {}, weight: 1}}, \
             {{host: 127.0.0.1, port: {}, weight: 1, priority: 10}}, \
             {{host: 127.0.0.1, port: {}, weight: 1, priority: 10}}]",
            ports[0], ports[1], ports[2], ports[3]
        ));
        let got = spread(&brokers, port, 20);
        assert_eq!(got[..2], [0, 0], "{kind}: {got:?}");
        assert!(
            got[2] > 0 && got[3] > 0,
            "{kind}: both of the highest: {got:?}"
        );
        brokers.0[2].stop_listening();
        assert_eq!(spread(&brokers, port, 10), [0, 0, 0, 10], "{kind}");
        brokers.0[3].stop_listening();
        assert_eq!(spread(&brokers, port, 10), [0, 10, 0, 0], "{kind}");
        brokers.0[1].stop_listening();
        assert_eq!(spread(&brokers, port, 10), [10, 0, 0, 0], "{kind}");
        for index in [1, 2, 3] {
            brokers.0[index].listen();
        }
        let got = spread(&brokers, port, 20);
        assert_eq!(got[..2], [0, 0], "{kind}, all alive again: {got:?}");
    }
}

#[test]
fn nothing_is_retried_once_a_node_has_accepted() {
    let closing = Broker::scripted(|mut conn| {
        let _ = conn.read_packet();
    });
    let broker = Broker::mqtt();
    let nodes = [closing.addr().to_string(), broker.addr().to_string()];
    let (_proxy, port) = proxy(&format!(
        "type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1, \"{}\": 1}}",
        nodes[0], nodes[1]
    ));
    let ring = Ring::equal(&nodes);
    for id in ring.ids_for(0, "unlucky-", 3) {
        let mut client = Client::to(port);
        client.send(&Connect::v311(&id).build());
        client.expect_closed();
    }
    assert_eq!((closing.accepted(), broker.accepted()), (3, 0));
}

#[test]
fn nodes_may_be_a_list_or_a_map_inline_or_by_id() {
    let brokers = Brokers::mqtt(2);
    let ports: [u16; 3] = free_ports();
    let list: Vec<String> = brokers
        .0
        .iter()
        .map(|b| format!("{{host: 127.0.0.1, port: {}, weight: 1}}", b.port()))
        .collect();
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {}, upstream: {{nodes: {}}}}}\n  \
         - {{id: 2, server_port: {}, upstream: {{nodes: [{}]}}}}\n  \
         - {{id: 3, server_port: {}, upstream_id: shared}}\n\
         upstreams:\n  - {{id: shared, type: roundrobin, nodes: [{}]}}\n#END\n",
        ports[0],
        brokers.equal(),
        ports[1],
        list.join(", "),
        ports[2],
        list.join(", ")
    );
    let files = Files::new(&config_with(&ports, ONE_WORKER), &routes);
    let _proxy = Proxy::start(&files, &ports);
    for port in ports {
        assert_eq!(spread(&brokers, port, 10), [5, 5]);
    }
}
