use super::*;
use crate::config::resource::leaving::Will;
use crate::config::resource::testing::Judged;
use crate::config::schema::upstream::UPSTREAM;

fn judge(text: &str) -> Judged<Upstream> {
    Judged::new(text, &UPSTREAM, |node, _, at, context| {
        build(node, at, context)
    })
}

fn messages(text: &str) -> Vec<String> {
    judge(text).messages
}

fn nodes(text: &str) -> Vec<String> {
    let judged = judge(&format!("nodes: {text}"));
    assert_eq!(judged.messages, Vec::<String>::new());
    judged
        .value
        .nodes
        .iter()
        .map(|node| format!("{node} w{} p{}", node.weight, node.priority))
        .collect()
}

#[test]
fn nodes_in_both_forms() {
    assert_eq!(
        nodes("{'127.0.0.1:1883': 1, 'broker.test:1884': 0, '[::1]:1885': 4294967295}"),
        [
            "127.0.0.1:1883 w1 p0",
            "broker.test:1884 w0 p0",
            "[::1]:1885 w4294967295 p0"
        ]
    );
    assert_eq!(
        nodes(
            "[{host: 127.0.0.1, port: 1, weight: 1}, {host: '::1', port: 2, weight: 2, priority: -1, metadata: {a: b}}, {host: '[::1]', port: 3, weight: 3}]"
        ),
        ["127.0.0.1:1 w1 p0", "[::1]:2 w2 p-1", "[::1]:3 w3 p0"]
    );
    assert!(nodes("{}").is_empty());
    assert!(nodes("[]").is_empty());
}

#[test]
fn wrong_nodes() {
    for (text, message) in [
        (
            "{'127.0.0.1': 1}",
            "x.nodes[\"127.0.0.1\"]: node \"127.0.0.1\" has no port",
        ),
        (
            "{'::1:1883': 1}",
            "x.nodes[\"::1:1883\"]: node \"::1:1883\" has no port",
        ),
        (
            "{'a:0': 1}",
            "x.nodes[\"a:0\"]: node \"a:0\": port 0 is out of range (1-65535)",
        ),
        (
            "{'a:1': -1}",
            "x.nodes[\"a:1\"]: value -1 is out of range (0-4294967295)",
        ),
        (
            "{'a:1': x}",
            "x.nodes[\"a:1\"]: expected an integer, found the string \"x\"",
        ),
        (
            "[{host: a, weight: 1}]",
            "x.nodes[0]: node \"a\" has no port",
        ),
        (
            "[{host: a, port: 70000, weight: 1}]",
            "x.nodes[0].port: port 70000 is out of range (1-65535)",
        ),
        (
            "[{host: a, port: 1}]",
            "x.nodes[0]: property \"weight\" is required",
        ),
        (
            "[{port: 1, weight: 1}]",
            "x.nodes[0]: property \"host\" is required",
        ),
        (
            "[{host: 'a:1', port: 1, weight: 1}]",
            "x.nodes[0]: node \"a:1\" has port 1 in its host and another one as port",
        ),
        (
            "[{host: '*', port: 1, weight: 1}]",
            "x.nodes[0]: node \"*\": a node cannot be a wildcard",
        ),
        (
            "[a]",
            "x.nodes[0]: expected a mapping, found the string \"a\"",
        ),
        (
            "[{host: a, port: 1, weight: 1, wieght: 2}]",
            "warning: x.nodes[0].wieght: unknown field \"wieght\"; did you mean \"weight\"?",
        ),
        (
            "5",
            "x.nodes: expected a mapping or a list, found the integer 5",
        ),
    ] {
        assert_eq!(messages(&format!("nodes: {text}")), [message], "{text}");
    }
}

#[test]
fn duplicate_nodes_collapse_and_the_last_weight_counts() {
    let judged = judge(
        "nodes: [{host: a, port: 1, weight: 1}, {host: b, port: 1, weight: 2}, {host: a, port: 1, weight: 3}, {host: a, port: 1, weight: 4, priority: 1}]",
    );
    assert_eq!(
        judged.messages,
        ["warning: x.nodes[2]: node a:1 is listed twice; the last weight counts"]
    );
    let weights: Vec<_> = judged.value.nodes.iter().map(|node| node.weight).collect();
    assert_eq!(weights, [3, 2, 4]);
}

#[test]
fn too_many_nodes() {
    let many: Vec<String> = (0..65_536)
        .map(|n| format!("'10.{}.{}.1:{}': 1", n / 256, n % 256, 1))
        .collect();
    let found = messages(&format!("nodes: {{{}}}", many.join(", ")));
    assert_eq!(found, ["x.nodes: nodes has 65536 items, at most 65535"]);
    let many: Vec<String> = (0..65_536)
        .map(|n| format!("{{host: h{n}, port: 1, weight: 1}}"))
        .collect();
    let found = messages(&format!("nodes: [{}]", many.join(", ")));
    assert_eq!(found, ["x.nodes: nodes has 65536 items, at most 65535"]);
}

#[test]
fn balancers() {
    let kind = |text: &str| judge(&format!("{{nodes: {{'a:1': 1}}, {text}}}"));
    assert_eq!(kind("id: 1").value.balancer, Balancer::RoundRobin);
    assert_eq!(
        kind("type: roundrobin").value.balancer,
        Balancer::RoundRobin
    );
    assert_eq!(kind("type: least_conn").value.balancer, Balancer::LeastConn);
    assert_eq!(
        kind("type: chash, key: remote_addr").value.balancer,
        Balancer::Chash
    );
    assert_eq!(kind("type: ewma").value.balancer, Balancer::Ewma);
    assert_eq!(
        kind("type: cash").messages,
        [
            "x.type: unknown type \"cash\"; did you mean \"chash\"? (one of roundrobin, chash, least_conn, ewma)"
        ]
    );
    assert_eq!(
        kind("type: 5").messages,
        ["x.type: expected a string, found the integer 5"]
    );
}

fn key(text: &str) -> (HashKey, Vec<String>) {
    let judged = judge(&format!("{{type: chash, nodes: {{'a:1': 1}}, {text}}}"));
    (judged.value.hash_key, judged.messages)
}

#[test]
fn hash_keys() {
    let variable = |name: &str| HashKey::Variable(name.to_string());
    assert_eq!(
        key("key: mqtt_client_id"),
        (variable("mqtt_client_id"), vec![])
    );
    assert_eq!(
        key("hash_on: vars, key: remote_addr"),
        (variable("remote_addr"), vec![])
    );
    // Beyond APISIX's own pattern.
    assert_eq!(
        key("key: mqtt_username"),
        (variable("mqtt_username"), vec![])
    );
    assert_eq!(key("key: server_port"), (variable("server_port"), vec![]));
    let (template, told) = key("hash_on: vars_combinations, key: '$mqtt_username-${remote_addr}'");
    assert!(matches!(template, HashKey::Template(_)) && told.is_empty());
    assert_eq!(template.to_string(), "$mqtt_username-${remote_addr}");
    let (address, told) = key("hash_on: consumer");
    assert_eq!(address, HashKey::Address);
    assert!(told[0].starts_with("warning: x.hash_on: hash_on consumer has nothing to read"));
    for hash_on in ["header", "cookie"] {
        let (address, told) = key(&format!("hash_on: {hash_on}, key: x-id"));
        assert_eq!(address, HashKey::Address);
        assert_eq!(
            told,
            [format!(
                "warning: x.hash_on: hash_on {hash_on} has nothing to read in a stream: the client's address is hashed"
            )]
        );
    }
}

#[test]
fn hash_keys_without_a_value() {
    for name in ["uri", "host", "query_string", "request_uri", "arg_id"] {
        let (address, told) = key(&format!("key: {name}"));
        assert_eq!(address, HashKey::Address);
        assert_eq!(
            told,
            [format!(
                "warning: x.key: \"{name}\" never has a value in a stream: the client's address is hashed"
            )]
        );
    }
    let (variable, told) = key("key: server_name");
    assert_eq!(variable, HashKey::Variable("server_name".into()));
    assert!(told[0].contains("it puts all clients on one node"));
    let (variable, told) = key("key: upstream_addr");
    assert_eq!(variable, HashKey::Variable("upstream_addr".into()));
    assert!(told[0].contains("has no value here before a node is picked"));
    let (_, told) = key("hash_on: vars_combinations, key: plain");
    assert!(told[0].contains("\"plain\" has no variable"));
    let (_, told) = key("hash_on: vars_combinations, key: $mqtt_clientid");
    assert!(told[0].contains(
        "unknown variable \"mqtt_clientid\" is always empty; did you mean $mqtt_client_id?"
    ));
}

#[test]
fn wrong_hash_keys() {
    for (text, message) in [
        (
            "id: 1",
            "x: missing key: chash needs the name of a variable to hash, such as mqtt_client_id",
        ),
        (
            "hash_on: header",
            "x: missing key: chash needs the name of a variable to hash, such as mqtt_client_id",
        ),
        (
            "key: mqtt_clientid",
            "x.key: \"mqtt_clientid\" is no variable of a stream connection; did you mean \"mqtt_client_id\"?",
        ),
        (
            "key: $mqtt_client_id",
            "x.key: \"$mqtt_client_id\" is no variable of a stream connection; did you mean \"mqtt_client_id\"?",
        ),
        ("key: 5", "x.key: expected a string, found the integer 5"),
        (
            "key: remote_addr, hash_on: var",
            "x.hash_on: unknown hash_on \"var\"; did you mean \"vars\"? (one of vars, header, cookie, consumer, vars_combinations)",
        ),
    ] {
        assert_eq!(key(text).1, [message], "{text}");
    }
    // Other balancers have no key.
    assert!(messages("{nodes: {'a:1': 1}, key: nonsense}").is_empty());
}

#[test]
fn zero_weights_on_a_ring_are_told() {
    let text = "{type: chash, key: remote_addr, nodes: {'a:1': 0, 'b:1': 0}}";
    assert_eq!(
        messages(text),
        [
            "warning: x.nodes: all weights of priority 0 are 0: all are used equally, where APISIX closes every connection"
        ]
    );
    assert!(messages("{type: chash, key: remote_addr, nodes: {'a:1': 0}}").is_empty());
    assert!(messages("{nodes: {'a:1': 0, 'b:1': 0}}").is_empty());
}

#[test]
fn other_fields() {
    let judged = judge(
        "name: n\nnodes: {'a:1': 1}\nretries: 0\nretry_timeout: 0\ntimeout: {connect: 0.5, send: 1, read: 2}\n\
         scheme: tls\nkeepalive_pool: {size: 1}\npass_host: rewrite\nupstream_host: a.test\n\
         checks: {active: {type: tcp, healthy: {}, extra: 1}}\ntls: {client_cert_id: 3, verify: on}\n",
    );
    assert_eq!(judged.messages, Vec::<String>::new());
    let upstream = judged.value;
    assert_eq!(upstream.name.as_deref(), Some("n"));
    assert_eq!(upstream.retries, Some(0));
    assert_eq!(upstream.retry_timeout, None);
    assert_eq!(
        upstream.timeout.unwrap().connect,
        Duration::from_millis(500)
    );
    assert_eq!(upstream.scheme, Scheme::Tls);
    assert_eq!(upstream.upstream_tls.client_cert_id.as_deref(), Some("3"));
    assert!(upstream.upstream_tls.verify);
    assert!(upstream.checks.is_some());
    for scheme in ["grpc", "grpcs", "http", "https", "tcp", "udp", "kafka"] {
        let judged = judge(&format!("{{nodes: {{}}, scheme: {scheme}}}"));
        assert_eq!(
            (judged.value.scheme, judged.messages.len()),
            (Scheme::Tcp, 0)
        );
    }
}

#[test]
fn wrong_other_fields() {
    for (text, message) in [
        (
            "retries: -1",
            "x.retries: retries -1 is out of range (0-4294967295)",
        ),
        (
            "retry_timeout: -1",
            "x.retry_timeout: retry_timeout -1 is too small (at least 0)",
        ),
        (
            "timeout: {connect: 1, send: 1}",
            "x.timeout: property \"read\" is required",
        ),
        (
            "timeout: {connect: 0, send: 1, read: 1}",
            "x.timeout.connect: connect 0 must be greater than 0",
        ),
        ("checks: {}", "x.checks: needs active or passive"),
        (
            "checks: {active: {type: udp}}",
            "x.checks.active.type: unknown type \"udp\" (one of http, https, tcp, mqtt)",
        ),
        (
            "checks: {active: {healthy: {interval: 0}}}",
            "x.checks.active.healthy.interval: interval 0 is too small (at least 1)",
        ),
        (
            "checks: {active: {unhealthy: {http_statuses: [600]}}}",
            "x.checks.active.unhealthy.http_statuses[0]: http_statuses 600 is out of range (200-599)",
        ),
        (
            "tls: {client_cert_id: 'a b'}",
            "x.tls.client_cert_id: invalid client_cert_id \"a b\": expected letters, digits, '-', '_' and '.'",
        ),
        (
            "scheme: ftp",
            "x.scheme: unknown scheme \"ftp\" (one of grpc, grpcs, http, https, tcp, tls, udp, kafka)",
        ),
        ("weight: 1", "x.weight: unknown field \"weight\""),
        (
            "discovery_type: dns, service_name: a",
            "x: takes only one of: nodes; service_name and discovery_type",
        ),
    ] {
        let found = messages(&format!("{{nodes: {{'a:1': 1}}, {text}}}"));
        let errors: Vec<_> = found.iter().filter(|m| !m.starts_with("warning")).collect();
        assert_eq!(errors, [message], "{text}");
    }
    assert_eq!(
        messages("{name: a}"),
        ["x: needs nodes, or service_name and discovery_type"]
    );
}

#[test]
fn a_service_in_dns() {
    for (written, name, port) in [
        ("a.test", "a.test", None),
        ("_mqtt._tcp.a.test", "_mqtt._tcp.a.test", None),
        ("a.test:1883", "a.test", Some(1883)),
    ] {
        let judged = judge(&format!(
            "{{discovery_type: dns, service_name: '{written}'}}"
        ));
        assert_eq!(judged.messages, [""; 0], "{written}");
        let discovery = judged.value.discovery.unwrap();
        assert_eq!((discovery.name.as_str(), discovery.port), (name, port));
        assert_eq!(discovery.to_string(), written);
    }
}

#[test]
fn a_service_that_is_an_address_is_a_node() {
    let judged = judge("{discovery_type: dns, service_name: '[::1]:1883'}");
    assert_eq!(judged.messages, [""; 0]);
    assert_eq!(judged.value.discovery, None);
    assert_eq!(judged.value.nodes[0].to_string(), "[::1]:1883");
    assert_eq!(judged.value.nodes[0].weight, 1);
}

#[test]
fn services_that_cannot_be_looked_up() {
    for (text, message) in [
        (
            "discovery_type: dsn, service_name: a.test",
            "x.discovery_type: unknown discovery_type \"dsn\"; did you mean \"dns\"? (only dns is served)",
        ),
        (
            "discovery_type: consul, service_name: a",
            "x.discovery_type: unknown discovery_type \"consul\" (only dns is served)",
        ),
        (
            "discovery_type: dns, service_name: 'a.test:70000'",
            "x.service_name: service_name \"a.test:70000\": port 70000 is out of range (1-65535)",
        ),
        (
            "discovery_type: dns, service_name: 127.0.0.1",
            "x.service_name: service_name \"127.0.0.1\" has no port",
        ),
    ] {
        assert_eq!(messages(&format!("{{{text}}}")), [message], "{text}");
    }
}

#[test]
fn the_key_is_hidden() {
    let found = messages(&format!(
        "{{nodes: {{}}, tls: {{client_cert: {}, client_key: {}}}}}",
        "c".repeat(200),
        "hush".repeat(20)
    ));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(!found.concat().contains("hush"));
}

#[test]
fn slow_start_and_the_bound_of_a_ring() {
    let build = |text: &str| {
        let judged = judge(&format!("{{nodes: {{'a:1': 1}}, {text}}}"));
        let upstream = judged.value;
        (
            upstream.slow_start,
            upstream.balance_factor,
            judged.messages,
        )
    };
    let none: Vec<String> = Vec::new();
    let chash = "type: chash, key: remote_addr";
    assert_eq!(
        build(&format!(
            "{chash}, slow_start: 30, hash_balance_factor: 125"
        )),
        (Some(Duration::from_secs(30)), Some(125), none.clone())
    );
    assert_eq!(
        build(&format!("{chash}, slow_start: 0, hash_balance_factor: 0")),
        (None, None, none)
    );
    let (_, factor, messages) = build(&format!("{chash}, hash_balance_factor: 100"));
    assert_eq!(factor, None);
    assert!(
        messages[0].starts_with("x.hash_balance_factor: hash_balance_factor 100 leaves no room"),
        "{messages:?}"
    );
    let (_, factor, messages) = build("hash_balance_factor: 125");
    assert_eq!(factor, None);
    assert_eq!(
        messages,
        ["warning: x.hash_balance_factor: hash_balance_factor has no effect: type is not chash"]
    );
}

#[test]
fn how_live_connections_move() {
    let build = |text: &str| {
        let judged = judge(&format!("{{nodes: {{'a:1': 1}}, {text}}}"));
        let upstream = judged.value;
        (upstream.drain, upstream.rebalance, judged.messages)
    };
    let chash = "type: chash, key: mqtt_client_id";
    assert_eq!(
        build(&format!("{chash}, drain: {{}}, rebalance: {{}}")),
        (
            Some(Drain {
                rate: 200.0,
                timeout: Some(Duration::from_secs(3600)),
                will: Will::Publish,
            }),
            Some(Rebalance {
                rate: 200.0,
                will: Will::Publish,
            }),
            Vec::new()
        )
    );
    let (drain, ..) = build("drain: {rate: 0.5, timeout: 0, will: suppress}");
    assert_eq!(
        drain,
        Some(Drain {
            rate: 0.5,
            timeout: None,
            will: Will::Suppress,
        })
    );
    let (_, rebalance, messages) = build("rebalance: {rate: 5}");
    assert_eq!(rebalance, None);
    assert_eq!(
        messages,
        [
            "warning: x.rebalance: rebalance has no effect: type is not chash, and no connection \
             has a place of its own"
        ]
    );
    for (text, expected) in [
        ("drain: 5", "x.drain: "),
        ("drain: {rate: 0}", "x.drain.rate: "),
        ("drain: {rate: 100001}", "x.drain.rate: "),
        ("drain: {timeout: -1}", "x.drain.timeout: "),
        ("drain: {will: keep}", "x.drain.will: "),
        ("drain: {pace: 5}", "x.drain.pace: "),
        (
            "type: chash, key: remote_addr, rebalance: {rate: fast}",
            "x.rebalance.rate: ",
        ),
    ] {
        let (.., messages) = build(text);
        assert!(messages[0].starts_with(expected), "{text}: {messages:?}");
    }
}
