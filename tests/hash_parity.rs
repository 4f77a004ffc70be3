//! A client id goes to the very node that APISIX would pick, and when nodes fail the others are
//! tried in APISIX's order. The published vectors check an independent model of the ring; the model
//! checks `explain`, which works offline, and the running proxy, which needs ports of this machine.

mod support;

use support::mqtt::ACCEPTED;
use support::vectors::{IPV4, Set, V1, V2, V3, V4, V5, V6};
use support::{
    Brokers, Client, Connect, Files, Proxy, Ring, config, config_with, explain, explained_nodes,
    free_port, free_ports, local, metrics, on, ring,
};

/// One MQTT route over a `chash` upstream on the client id; `nodes` is in YAML's flow form.
fn by_client_id(nodes: &str) -> String {
    hashed("key: mqtt_client_id", nodes)
}

/// The same with another hash key.
fn hashed(key: &str, nodes: &str) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins:\n      mqtt-proxy: {{protocol_level: 4}}\n    \
         upstream:\n      type: chash\n      {key}\n      nodes: {nodes}\n#END\n"
    )
}

fn flow(nodes: &[(&str, u32)]) -> String {
    let items: Vec<String> = nodes.iter().map(|(n, w)| format!("\"{n}\": {w}")).collect();
    format!("{{{}}}", items.join(", "))
}

/// Ids as devices have them, and the keys of the vectors.
fn ids() -> Vec<String> {
    let mut ids: Vec<String> = V1
        .orders
        .iter()
        .map(|(key, ..)| (*key).to_owned())
        .collect();
    ids.extend((0..40).map(|n| format!("sensor/hall-{}/{n:04}", n % 7)));
    ids.extend((0..40).map(|n| format!("00:1B:44:11:3A:{n:02X}")));
    ids.push("küche-温度-1".to_owned());
    ids
}

#[test]
fn the_model_of_the_ring_reproduces_every_published_vector() {
    for Set {
        name,
        nodes,
        points,
        lowest,
        orders,
    } in [V1, V2, V3, V4, V5, V6]
    {
        let ring = Ring::apisix(nodes);
        assert_eq!(ring.points().len(), points, "{name}: number of points");
        assert_eq!(ring.points()[..5], lowest, "{name}: the lowest points");
        for (key, crc, order) in orders {
            assert_eq!(ring::crc32(key.as_bytes()), *crc, "{name}: hash of {key}");
            assert_eq!(ring.order(key), *order, "{name}: order for {key}");
        }
    }
    let doubled: Vec<(&str, u32)> = V2.nodes.iter().map(|(node, w)| (*node, w * 2)).collect();
    assert_eq!(
        Ring::apisix(&doubled).points(),
        Ring::apisix(V2.nodes).points()
    );
    let own: Vec<u32> = Ring::equal(&["127.0.0.1:1883"])
        .points()
        .iter()
        .map(|point| point.0)
        .collect();
    for first in [0x06ca_badb, 0xe720_6574, 0x0761_d7a2] {
        assert!(
            own.contains(&first),
            "one of the first points of 127.0.0.1:1883"
        );
    }
}

#[test]
fn explain_gives_the_published_order_for_every_vector_of_ipv4_nodes() {
    for Set {
        name,
        nodes,
        orders,
        ..
    } in IPV4
    {
        let files = Files::new(&config(&[9100]), &by_client_id(&flow(nodes)));
        for (key, _, order) in orders {
            let expected: Vec<&str> = order.iter().map(|index| nodes[*index].0).collect();
            let told = explained_nodes(&files, "9100", &["--client-id", key]);
            assert_eq!(told, expected, "{name}: {key}");
        }
    }
}

#[test]
fn explain_sees_no_difference_between_weights_1_2_3_and_2_4_6() {
    let doubled: Vec<(&str, u32)> = V2.nodes.iter().map(|(node, w)| (*node, w * 2)).collect();
    let files = Files::new(&config(&[9100]), &by_client_id(&flow(&doubled)));
    for (key, _, order) in V2.orders {
        let expected: Vec<&str> = order.iter().map(|index| V2.nodes[*index].0).collect();
        assert_eq!(
            explained_nodes(&files, "9100", &["--client-id", key]),
            expected,
            "{key}"
        );
    }
}

#[test]
fn the_order_in_which_nodes_are_written_does_not_matter() {
    let backwards: Vec<(&str, u32)> = V2.nodes.iter().rev().copied().collect();
    let files = Files::new(&config(&[9100]), &by_client_id(&flow(&backwards)));
    for (key, _, order) in V2.orders {
        let expected: Vec<&str> = order.iter().map(|index| V2.nodes[*index].0).collect();
        assert_eq!(
            explained_nodes(&files, "9100", &["--client-id", key]),
            expected,
            "{key}"
        );
    }
}

/// IPv6 is the documented difference: a node is its address without brackets, NUL, its port.
#[test]
fn ipv6_nodes_are_on_the_ring_with_their_address_as_nginx_prints_it_without_brackets() {
    let identified: Vec<(String, Vec<u8>, u32)> = V4
        .nodes
        .iter()
        .zip(["1883", "1884"])
        .map(|((node, w), port)| ((*node).to_owned(), format!("::1\0{port}").into_bytes(), *w))
        .collect();
    let ring = Ring::identified(&identified);
    let files = Files::new(&config(&[9100]), &by_client_id(&flow(V4.nodes)));
    for (key, ..) in V4.orders {
        let told = explained_nodes(&files, "9100", &["--client-id", key]);
        assert_eq!(told, ring.names_for(key), "{key}");
    }
}

#[test]
fn the_running_proxy_sends_every_client_to_the_node_that_apisix_would_pick() {
    let brokers = Brokers::mqtt(3);
    let port = free_port();
    let files = Files::new(&config(&[port]), &by_client_id(&brokers.equal()));
    let _proxy = Proxy::start(&files, &[port]);

    let ring = Ring::equal(&brokers.nodes());
    for id in ids() {
        let (broker, _client) = brokers.visit(port, &Connect::v311(&id));
        assert_eq!(broker, ring.pick(&id), "client {id}");
    }
    let told = explained_nodes(&files, &port.to_string(), &["--client-id", "foo"]);
    assert_eq!(told, ring.names_for("foo"), "explain and the proxy agree");
}

#[test]
fn weights_count_relative_to_each_other_and_weight_0_takes_nobody() {
    let brokers = Brokers::mqtt(3);
    let ports: [u16; 3] = free_ports();
    let weights = [[1, 2, 3], [2, 4, 6], [100, 0, 100]];
    let mut routes = String::from("stream_routes:\n");
    for (port, weights) in ports.iter().zip(&weights) {
        routes.push_str(&format!(
            "  - id: \"{port}\"\n    server_port: {port}\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
             upstream: {{type: chash, key: mqtt_client_id, nodes: {}}}\n",
            brokers.weighted(weights)
        ));
    }
    routes.push_str("#END\n");
    let files = Files::new(&config(&ports), &routes);
    let _proxy = Proxy::start(&files, &ports);

    let nodes = brokers.nodes();
    for (port, weights) in ports.iter().zip(&weights) {
        let weighted: Vec<(&String, u32)> = nodes.iter().zip(weights.iter().copied()).collect();
        let ring = Ring::apisix(&weighted);
        for id in ids() {
            let (broker, _client) = brokers.visit(*port, &Connect::v311(&id));
            assert_eq!(broker, ring.pick(&id), "client {id}, weights {weights:?}");
            assert!(weights[broker] > 0, "a node of weight 0 takes nobody");
        }
    }
}

#[test]
fn when_nodes_die_the_others_are_tried_in_the_order_of_the_ring() {
    let mut brokers = Brokers::mqtt(3);
    let port = free_port();
    let files = Files::new(&config(&[port]), &by_client_id(&brokers.equal()));
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());

    for dead in [&[0][..], &[1], &[2], &[0, 1], &[0, 2], &[1, 2]] {
        for index in dead {
            brokers.0[*index].stop_listening();
        }
        for id in ids() {
            let order = ring.order(&id);
            let survivor = order.iter().find(|node| !dead.contains(node));
            let (broker, _client) = brokers.visit(port, &Connect::v311(&id));
            assert_eq!(
                Some(&broker),
                survivor,
                "client {id} with {dead:?} dead, order {order:?}"
            );
        }
        for index in dead {
            brokers.0[*index].listen();
        }
    }
    for id in ids() {
        let (broker, _client) = brokers.visit(port, &Connect::v311(&id));
        assert_eq!(
            broker,
            ring.pick(&id),
            "client {id} returns once every node lives again"
        );
    }
}

#[test]
fn an_empty_client_id_hashes_the_client_address_and_is_counted() {
    let brokers = Brokers::mqtt(3);
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let files = Files::new(
        &config_with(&[port], &more),
        &by_client_id(&brokers.equal()),
    );
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    let missing = || {
        let name = "mqtt_proxy_hash_key_missing_total";
        metrics::value(local(scrape), name, &["route=\"1\""])
    };
    assert_eq!(missing(), 0.0);

    for last in 1..=30 {
        let source = format!("127.0.0.{last}");
        let (broker, _client) = brokers.watch(|| {
            let mut client = Client::from(&source, local(port));
            client.send(&Connect::v311("").build());
            client.expect(ACCEPTED);
            client
        });
        assert_eq!(
            broker,
            ring.pick(&source),
            "a client without id from {source}"
        );
    }
    assert_eq!(missing(), 30.0, "every one of them is counted");
    let _client = Client::mqtt(port, &Connect::v311("with-id"));
    assert_eq!(missing(), 30.0, "a client with an id is not");

    let told = explain(
        &files,
        &port.to_string(),
        &["--client-id", "", "--from", "127.0.0.9"],
    );
    assert_eq!(told["hash_key"], "127.0.0.9");
}

#[test]
fn a_key_may_combine_variables() {
    let brokers = Brokers::mqtt(3);
    let templates = [
        ("$remote_addr:$server_port", "127.0.0.1:PORT"),
        ("${mqtt_username}/${mqtt_client_id}", "alice/pump-7"),
        ("v$mqtt_protocol_level-$mqtt_client_id", "v4-pump-7"),
        ("$mqtt_client_id@$server_addr", "pump-7@127.0.0.1"),
        ("${mqtt_username ?? nobody}.$protocol", "alice.TCP"),
        ("plain-$route_id", "plain-ROUTE"),
    ];
    let ports: [u16; 6] = free_ports();
    let mut routes = String::from("stream_routes:\n");
    for (port, (template, _)) in ports.iter().zip(&templates) {
        routes.push_str(&format!(
            "  - id: r{port}\n    server_port: {port}\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
             upstream: {{type: chash, hash_on: vars_combinations, key: \"{template}\", nodes: {}}}\n",
            brokers.equal()
        ));
    }
    routes.push_str("#END\n");
    let files = Files::new(&config(&ports), &routes);
    let _proxy = Proxy::start(&files, &ports);
    let ring = Ring::equal(&brokers.nodes());

    for (port, (template, key)) in ports.iter().zip(&templates) {
        let key = key
            .replace("PORT", &port.to_string())
            .replace("ROUTE", &format!("r{port}"));
        let connect = Connect::v311("pump-7").username("alice");
        let (broker, _client) = brokers.visit(*port, &connect);
        assert_eq!(broker, ring.pick(&key), "{template} is {key}");
        let told = explain(
            &files,
            &port.to_string(),
            &[
                "--client-id",
                "pump-7",
                "--username",
                "alice",
                "--from",
                "127.0.0.1",
                "--level",
                "4",
            ],
        );
        assert_eq!(told["hash_key"], key, "{template}");
    }
    // The spread of one template over many clients, not only one point of the ring.
    for n in 0..40 {
        let id = format!("pump-{n}");
        let connect = Connect::v311(&id).username("bob");
        let (broker, _client) = brokers.visit(ports[1], &connect);
        assert_eq!(broker, ring.pick(format!("bob/{id}")), "client {id}");
    }
}

#[test]
fn a_combination_of_which_nothing_is_known_hashes_the_client_address() {
    let brokers = Brokers::mqtt(3);
    let port = free_port();
    let key = "hash_on: vars_combinations\n      key: \"$mqtt_username\"";
    let files = Files::new(&config(&[port]), &hashed(key, &brokers.equal()));
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    for last in 1..=12 {
        let source = format!("127.0.0.{last}");
        let (broker, _client) = brokers.watch(|| {
            let mut client = Client::from(&source, local(port));
            client.send(&Connect::v311("some-id").build());
            client.expect(ACCEPTED);
            client
        });
        assert_eq!(
            broker,
            ring.pick(&source),
            "a client without user name from {source}"
        );
    }
}

#[test]
fn a_plain_route_can_hash_the_client_address() {
    let brokers = Brokers((0..3).map(|_| support::Broker::echo()).collect());
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    upstream: {{type: chash, key: remote_addr, nodes: {}}}\n#END\n",
        brokers.equal()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    for last in 1..=30 {
        let source = format!("127.0.0.{last}");
        let (broker, mut client) = brokers.watch(|| Client::from(&source, local(port)));
        client.send(b"hello");
        client.expect(b"hello");
        assert_eq!(broker, ring.pick(&source), "from {source}");
    }
}

#[test]
fn without_the_plugin_the_client_id_is_unknown_and_the_address_is_hashed() {
    let brokers = Brokers::mqtt(3);
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    upstream: {{type: chash, key: mqtt_client_id, nodes: {}}}\n#END\n",
        brokers.equal()
    );
    let files = Files::new(&config(&[port]), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    for id in ["foo", "bar", "client-5", "client-9"] {
        let (broker, _client) = brokers.watch(|| {
            let mut client = Client::from("127.0.0.1", on("127.0.0.1", port));
            client.send(&Connect::v311(id).build());
            client.expect(ACCEPTED);
            client
        });
        assert_eq!(broker, ring.pick("127.0.0.1"), "client {id}");
    }
}
