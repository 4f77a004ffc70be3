//! The control API over the real binary: health, objects, connections, readiness, and what it does
//! with requests that are none.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::control::{ask, document, wait_for};
use support::dns::{Dns, Srv};
use support::files::{config_controlled, config_of};
use support::generations::Generations;
use support::tls::Authority;
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, config_with, free_port, free_ports, local,
    wait_until,
};

/// One MQTT route `devices` over the upstream `brokers` (YAML flow form, without braces).
fn routes(upstream: &str) -> String {
    format!(
        "stream_routes:\n  - id: devices\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: brokers\nupstreams:\n  - {{id: brokers, {upstream}}}\n#END\n"
    )
}

fn over(broker: &Broker) -> String {
    routes(&format!("nodes: {{\"{}\": 1}}", broker.addr()))
}

/// A proxy before this upstream: the proxy, its port, its control API.
fn start(routes: &str) -> (Proxy, u16, SocketAddr) {
    let [port, control] = free_ports();
    let files = Files::new(&config_controlled(&[port], control, ""), routes);
    let mut proxy = Proxy::start(&files, &[port]);
    proxy.wait_for_log("control API at");
    (proxy, port, local(control))
}

#[test]
fn the_health_of_a_node_is_seen_changing() {
    let (good, mut other) = (Broker::mqtt(), Broker::mqtt());
    let checks = "checks: {active: {type: tcp, healthy: {interval: 1, successes: 1}, \
                  unhealthy: {interval: 1, tcp_failures: 1}}}";
    let upstream = format!(
        "nodes: {{\"{}\": 1, \"{}\": 2}}, {checks}",
        good.addr(),
        other.addr()
    );
    let (_proxy, _, control) = start(&routes(&upstream));
    let path = "/v1/healthcheck/upstreams/brokers";
    let port = u64::from(other.port());
    let status_of = |checker: &Value| {
        let nodes = checker["nodes"].as_array().expect("nodes").clone();
        let node = nodes.into_iter().find(|node| node["port"] == port);
        node.expect("the node")
    };
    let checker = document(control, path);
    assert_eq!(
        status_of(&checker),
        json!({
            "ip": "127.0.0.1", "port": port, "hostname": "127.0.0.1", "status": "healthy",
            "counter": {"success": status_of(&checker)["counter"]["success"], "http_failure": 0,
                        "tcp_failure": 0, "timeout_failure": 0},
        })
    );
    assert_eq!(checker["name"], "/upstreams/brokers");
    assert_eq!(checker["type"], "tcp");
    let becomes = |status: &str| {
        wait_for(control, path, SOON, |_, found| {
            status_of(found)["status"] == status
        });
    };
    other.stop_listening();
    becomes("unhealthy");
    let all = document(control, "/v1/healthcheck");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    let item = document(control, "/v1/upstream/brokers");
    assert_eq!(item["runtime"]["nodes"][1]["status"], "unhealthy", "{item}");
    assert_eq!(item["runtime"]["nodes"][0]["status"], "healthy", "{item}");
    other.listen();
    becomes("healthy");
}

#[test]
fn objects_are_served_in_apisix_shape() {
    let broker = Broker::mqtt();
    let node = format!("\"{}\": 3", broker.addr());
    let text = format!(
        "stream_routes:\n  - id: 1\n    server_addr: 127.0.0.0/8\n    upstream_id: 7\n  \
         - id: 2\n    server_port: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{type: chash, key: mqtt_client_id, nodes: {{{node}}}}}\n  - id: 3\n    \
         server_port: 2\n    service_id: gone\nupstreams:\n  - {{id: 7, name: fleet, nodes: {{{node}}}}}\n#END\n"
    );
    let (_proxy, _, control) = start(&text);
    let written = json!([{
        "host": "127.0.0.1", "port": broker.port(), "weight": 3, "priority": 0,
    }]);
    let all = document(control, "/v1/upstreams");
    assert_eq!(
        all.as_array().map(Vec::len),
        Some(1),
        "inline ones are not listed: {all}"
    );
    let one = document(control, "/v1/upstream/7");
    assert_eq!(one, all[0]);
    assert_eq!(one["key"], "/upstreams/7");
    assert_eq!(
        one["value"],
        json!({"id": "7", "name": "fleet", "type": "roundrobin", "nodes": written})
    );
    let routes = document(control, "/v1/stream_routes");
    assert_eq!(
        routes,
        json!([
            {"key": "/stream_routes/1", "runtime": {"upstream": "7"},
             "value": {"id": "1", "server_addr": "127.0.0.0/8", "upstream_id": "7", "plugins": {}}},
            {"key": "/stream_routes/2", "runtime": {"upstream": "route/2"},
             "value": {"id": "2", "server_port": 1,
                       "upstream": {"type": "chash", "hash_on": "vars", "key": "mqtt_client_id",
                                    "nodes": written},
                       "plugins": {"mqtt-proxy": {"protocol_level": 4, "protocol_name": "MQTT"}}}},
            {"key": "/stream_routes/3",
             "runtime": {"error": "failed to fetch service configuration by id: gone"},
             "value": {"id": "3", "server_port": 2, "service_id": "gone", "plugins": {}}},
        ])
    );
    let schema = document(control, "/v1/schema");
    let route = &schema["main"]["stream_route"];
    assert!(
        jsonschema::is_valid(route, &routes[1]["value"]),
        "{}",
        routes[1]
    );
    assert!(!jsonschema::is_valid(route, &json!({"server_port": 0})));
    let plugin = &schema["stream_plugins"]["mqtt-proxy"]["schema"];
    assert!(jsonschema::is_valid(plugin, &json!({"protocol_level": 4})));
    for (path, code, message) in [
        ("/v1/upstream/8", 404, "upstream[8] not found"),
        (
            "/v1/upstream/route/2",
            404,
            "nothing is served at this path",
        ),
        (
            "/v1/healthcheck/upstreams/7",
            404,
            "no checker for upstreams[7]",
        ),
        (
            "/v1/healthcheck/stream_routes/9",
            404,
            "stream_routes[9] not found",
        ),
        (
            "/v1/healthcheck/upstreams",
            404,
            "missing src id for src type upstreams",
        ),
        ("/v1/healthcheck/x/1", 400, "invalid src type x"),
        ("/v1/connections?client_id=", 400, "client_id is empty"),
        (
            "/v1/connections?client_id=%zz",
            400,
            "client_id is not percent-encoded",
        ),
        ("/", 404, "nothing is served at this path"),
    ] {
        let expected = (code, json!({"error_msg": message}));
        assert_eq!(ask(control, path), expected, "{path}");
    }
}

#[test]
fn a_connection_is_found_by_its_client_id_also_after_an_upgrade() {
    let (broker, gone) = (Broker::mqtt(), Broker::mqtt());
    let [port, control] = free_ports();
    let files = Files::new(&config_controlled(&[port], control, ""), &over(&gone));
    let mut proxy = Generations::start(&files, &[port]);
    let control = local(control);
    proxy.wait_for_output_after(0, "control API at", SOON);
    let _left_behind = Client::mqtt(port, &Connect::v311("left-behind"));
    proxy.reload(|| files.replace_routes(over(&broker)));
    let mut others: Vec<Client> = (0..20)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("other-{n}"))))
        .collect();
    let mut client = Client::mqtt(port, &Connect::v5("ä/b+ c&d=%"));
    client.send(&[7; 100]);
    client.expect(&[7; 100]);
    let path = "/v1/connections?client_id=%C3%A4/b+%20c%26d=%25";
    let connect = Connect::v5("ä/b+ c&d=%").build().len() as u64;
    let is_whole = |document: &Value| {
        let found = document["connections"].as_array().expect("connections");
        assert_eq!(found.len(), 1, "{document}");
        let found = &found[0];
        for (key, expected) in [
            ("client", json!(client.local_addr())),
            ("listener", json!(local(port))),
            ("tls", json!(false)),
            ("route", json!("devices")),
            ("upstream", json!("brokers")),
            ("node", json!(broker.addr())),
            ("tls_to_node", json!(false)),
        ] {
            assert_eq!(found[key], expected, "{key}: {found}");
        }
        found["to_broker_bytes"] == connect + 100 && found["age_seconds"].is_f64()
    };
    wait_for(control, path, SOON, |code, document| {
        code == 200 && is_whole(document)
    });
    let by_node = |connections: &Value, node: &Broker| {
        let nodes = connections["nodes"].as_array().expect("nodes").clone();
        let found = nodes
            .into_iter()
            .find(|known| known["node"] == json!(node.addr()));
        let found = found.unwrap_or_else(|| panic!("{} in {connections}", node.addr()));
        (found["connections"].clone(), found["configured"].clone())
    };
    let counted = |pid: u32| {
        let connections = document(control, "/v1/connections");
        assert_eq!(connections["relayed"], 22, "{connections}");
        assert_eq!(connections["listeners"][0]["connections"], 22);
        assert_eq!(
            connections["routes"],
            json!([{"route": "devices", "connections": 22}])
        );
        assert_eq!(by_node(&connections, &broker), (json!(21), json!(true)));
        assert_eq!(by_node(&connections, &gone), (json!(1), json!(false)));
        assert_eq!(document(control, "/v1/status")["pid"], pid);
    };
    counted(proxy.current());

    let moved = proxy.upgrade();
    assert_eq!(moved.connections, 22);
    assert!(
        is_whole(&document(control, path)),
        "as before, in another process"
    );
    assert_eq!(document(control, "/v1/status")["pid"], moved.pid);
    client.expect_alive();
    others.iter_mut().for_each(Client::expect_alive);
    drop(client);
    wait_for(control, path, SOON, |code, _| code == 404);
    // And on by one more.
    let next = proxy.upgrade();
    let found = document(control, "/v1/connections?client_id=other-7");
    assert_eq!(
        found["connections"][0]["client"],
        json!(others[7].local_addr())
    );
    assert_eq!(document(control, "/v1/status")["pid"], next.pid);
}

#[test]
fn requests_find_an_answer_at_every_moment_of_an_upgrade() {
    let broker = Broker::mqtt();
    let [port, control] = free_ports();
    let files = Files::new(&config_controlled(&[port], control, ""), &over(&broker));
    let mut proxy = Generations::start(&files, &[port]);
    proxy.wait_for_output_after(0, "control API at", SOON);
    let _client = Client::mqtt(port, &Connect::v311("a"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let asking = std::thread::spawn(move || {
        let mut refused = 0;
        let mut connects = 0;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            connects += 1;
            refused += usize::from(TcpStream::connect(local(control)).is_err());
            // A flood would fill the queue in which the questions wait as well.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        (refused, connects)
    });
    for _ in 0..3 {
        let next = proxy.upgrade();
        assert_eq!(document(local(control), "/v1/status")["pid"], next.pid);
        assert_eq!(ask(local(control), "/status/ready").0, 200);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (refused, connects) = asking.join().expect("the thread");
    assert!(connects > 0);
    assert_eq!(refused, 0, "of {connects} connects");
}

#[test]
fn readiness_ends_with_sigterm_and_the_rest_goes_on_until_the_last_connection_has_ended() {
    let broker = Broker::mqtt();
    let [port, control, status] = free_ports();
    let apisix =
        format!("  control: {{port: {control}}}\n  status: {{ip: 127.0.0.1, port: {status}}}\n");
    let config = config_of(&apisix, &[format!("127.0.0.1:{port}")], "");
    let files = Files::new(&config, &over(&broker));
    let mut proxy = Proxy::start(&files, &[port]);
    proxy.wait_for_log("control API at");
    proxy.wait_for_log("status server at");
    let (control, status) = (local(control), local(status));
    let ok = json!({"status": "ok"});
    wait_for(status, "/status/ready", SOON, |code, _| code == 200);
    for addr in [control, status] {
        for path in ["/status", "/statusx", "/status/ready"] {
            assert_eq!(ask(addr, path), (200, ok.clone()), "{path}");
        }
    }
    assert_eq!(
        ask(status, "/v1/status").0,
        404,
        "it says no more than that"
    );
    let client = Client::mqtt(port, &Connect::v311("dev-42"));
    proxy.signal(Signal::TERM);
    for addr in [control, status] {
        let why = wait_for(addr, "/status/ready", SOON, |code, _| code == 503);
        assert_eq!(
            why,
            json!({"status": "error", "error": "this process is leaving"})
        );
        assert_eq!(ask(addr, "/status"), (200, ok.clone()));
    }
    let found = document(control, "/v1/connections?client_id=dev-42");
    assert_eq!(
        found["connections"][0]["client"],
        json!(client.local_addr())
    );
    drop(client);
    assert!(proxy.wait_for_exit(SOON).success());
}

#[test]
fn a_proxy_without_routes_is_not_ready() {
    let broker = Broker::mqtt();
    let [port, control] = free_ports();
    let files = Files::empty("apisix.yaml");
    files.replace("config.yaml", config_controlled(&[port], control, ""));
    let mut proxy = Proxy::start(&files, &[port]);
    proxy.wait_for_log("control API at");
    let control = local(control);
    wait_for(control, "/status/ready", SOON, |code, why| {
        code == 503 && why["error"] == "no configuration has been loaded yet"
    });
    assert_eq!(document(control, "/v1/upstreams"), json!([]));
    assert_eq!(
        document(control, "/v1/status")["last_load"]["applied"],
        false
    );
    files.replace_routes(over(&broker));
    wait_for(control, "/status/ready", SOON, |code, _| code == 200);
    files.replace_routes("stream_routes: [");
    wait_for(control, "/v1/status", SOON, |_, status| {
        status["last_load"]["applied"] == false
    });
    assert_eq!(
        ask(control, "/status/ready").0,
        200,
        "it serves what it had"
    );
}

/// Sends these bytes and reads what comes until the other side ends.
fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.set_read_timeout(Some(SOON)).expect("timeout");
    // It may have had enough before all is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn garbage_and_large_and_slow_requests_do_no_harm() {
    let broker = Broker::mqtt();
    let (mut proxy, port, control) = start(&over(&broker));
    let request = |more: &str| format!("GET /status HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    assert!(raw(control, request("").as_bytes()).starts_with("HTTP/1.1 200"));
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET /%%%%zz?%=& HTTP/1.1\r\n\r\n",
        "GET /v1/ä HTTP/1.1\r\nHost: ä\r\n\r\n".as_bytes(),
    ] {
        let answer = raw(control, &[garbage, b"\r\n\r\n"].concat());
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    let head = format!("X-Large: {}\r\n", "a".repeat(20_000));
    let answer = raw(control, request(&head).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = "X-Many: a\r\n".repeat(10_000);
    assert!(!raw(control, request(&many).as_bytes()).contains("200 OK"));
    let before = proxy.resident_kib();
    for _ in 0..4 {
        let head = format!("X-Endless: {}", "a".repeat(4 << 20));
        assert!(!raw(control, request(&head).as_bytes()).contains("200 OK"));
    }
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more");
    let post = raw(
        control,
        b"POST /v1/gc HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    );
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    // More of them than there are places; each says a byte and no more.
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(control).expect("connect");
            stream.write_all(b"G").expect("send");
            stream
        })
        .collect();
    Client::mqtt(port, &Connect::v311("a")).expect_alive();
    let within = Duration::from_secs(90);
    wait_until("the slow ones to be cut off", within, || {
        let mut stream = TcpStream::connect(control).ok()?;
        stream.set_read_timeout(Some(within)).ok()?;
        stream.write_all(request("").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    drop(slow);
    assert!(proxy.is_running());
    assert_eq!(proxy.count("ERROR"), 0, "{:#?}", proxy.lines());
}

#[test]
fn a_taken_port_keeps_no_proxy_from_serving_and_is_taken_over_when_it_is_free() {
    let broker = Broker::mqtt();
    let [one, two, control] = free_ports();
    let files = |port| Files::new(&config_controlled(&[port], control, ""), &over(&broker));
    let (first_files, second_files) = (files(one), files(two));
    let mut first = Proxy::start(&first_files, &[one]);
    first.wait_for_log("control API at");
    let mut second = Proxy::start(&second_files, &[two]);
    second.wait_for_log(&format!("control API: cannot listen on {}", local(control)));
    Client::mqtt(two, &Connect::v311("a")).expect_alive();
    let pid = |proxy: &Proxy| json!(proxy.id());
    assert_eq!(document(local(control), "/v1/status")["pid"], pid(&first));
    assert!(first.stop().success());
    second.wait_for_log("control API at");
    assert_eq!(document(local(control), "/v1/status")["pid"], pid(&second));
}

#[test]
fn a_socket_that_was_bound_late_moves_in_an_upgrade_too() {
    let broker = Broker::mqtt();
    let [port, control] = free_ports();
    let holder = TcpListener::bind(local(control)).expect("bind");
    let files = Files::new(&config_controlled(&[port], control, ""), &over(&broker));
    let mut proxy = Generations::start(&files, &[port]);
    proxy.wait_for_output_after(0, "control API: cannot listen", SOON);
    drop(holder);
    proxy.wait_for_output_after(0, "control API at", SOON);
    let mark = proxy.mark();
    let next = proxy.upgrade();
    proxy.wait_for_output_after(mark, "control API at", SOON);
    assert_eq!(document(local(control), "/v1/status")["pid"], next.pid);
    let said = &proxy.lines()[mark..];
    assert!(
        !said
            .iter()
            .any(|line| line.contains("control API: cannot listen")),
        "{said:#?}"
    );
}

#[test]
fn by_default_it_is_at_9090_unless_somebody_else_is() {
    let broker = Broker::mqtt();
    let port = free_port();
    // Held by this test or, on a busy machine, by whoever was first: taken in either case.
    let _holder = TcpListener::bind(local(9090));
    let listens = [format!("127.0.0.1:{port}")];
    let files = Files::new(&config_of("", &listens, ""), &over(&broker));
    let mut proxy = Proxy::start(&files, &[port]);
    let line = wait_until("a word about the control API", SOON, || {
        proxy
            .lines()
            .into_iter()
            .find(|line| line.contains("control API"))
    });
    // The other holder may have left between the two.
    if _holder.is_ok() {
        assert!(
            line.contains("WARN") && line.contains("127.0.0.1:9090 is not free"),
            "{line}"
        );
    }
    Client::mqtt(port, &Connect::v311("a")).expect_alive();
    let off = Files::new(&config_with(&[free_port()], ""), &over(&broker));
    let text = std::fs::read_to_string(off.config_path()).expect("config.yaml");
    assert!(text.contains("enable_control: false"));
    proxy.wait_for_log("listening on");
}

#[test]
fn no_secret_is_in_any_answer() {
    let broker = Broker::mqtt();
    let ca = Authority::new("root");
    let (server, client) = (ca.issue(&["a.test"]), ca.issue(&["client"]));
    let (inline, of_ssl) = (client.key.clone(), server.key.clone());
    let node = format!("nodes: {{\"{}\": 1}}", broker.addr());
    let text = format!(
        "stream_routes:\n  - id: r\n    upstream: {{scheme: tls, tls: {{client_cert: {cert:?}, client_key: {inline:?}}}, {node}}}\n\
         ssls:\n  - {{id: s, sni: a.test, {ssl}}}\n\
         upstreams:\n  - {{id: m, {node}, checks: {{active: {{type: mqtt, mqtt: {{username: probe-user, password: probe-word}}}}}}}}\n  \
         - {{id: h, {node}, checks: {{active: {{type: http, http_path: '/x?token=path-word', \
         req_headers: ['Authorization: header-word']}}}}}}\n#END\n",
        cert = client.cert,
        ssl = server.yaml(),
    );
    let (proxy, port, control) = start(&text);
    let _client = Client::to(port);
    let key_line = |key: &str| key.lines().nth(1).expect("a line of the key").to_owned();
    let secrets = [
        key_line(&inline),
        key_line(&of_ssl),
        "PRIVATE KEY".to_owned(),
        "probe-user".to_owned(),
        "probe-word".to_owned(),
        "path-word".to_owned(),
        "header-word".to_owned(),
    ];
    for path in [
        "/v1/status",
        "/v1/schema",
        "/v1/healthcheck",
        "/v1/healthcheck/upstreams/m",
        "/v1/healthcheck/upstreams/h",
        "/v1/upstreams",
        "/v1/upstream/m",
        "/v1/upstream/h",
        "/v1/stream_routes",
        "/v1/connections",
    ] {
        let answer = document(control, path).to_string();
        for secret in &secrets {
            assert!(
                !answer.contains(secret.as_str()),
                "{path} has {secret}: {answer}"
            );
        }
    }
    let upstreams = document(control, "/v1/upstreams");
    assert_eq!(upstreams[1]["value"]["checks"]["active"]["http_path"], "/x");
    assert_eq!(proxy.count("probe-word"), 0, "nor in the log");
}

#[test]
fn nodes_that_are_found_in_dns_are_shown_and_checks_that_are_off_are_none() {
    let (dns, broker) = (Dns::start(), Broker::mqtt());
    dns.set("broker.test", &["127.0.0.1"], 60);
    let record = Srv {
        priority: 10,
        weight: 3,
        port: broker.port(),
        target: "broker.test".to_owned(),
    };
    dns.set_srv("_mqtt._tcp.test", &[record], 60);
    let [port, control] = free_ports();
    let apisix = format!("  control: {{port: {control}}}\n  disable_upstream_healthcheck: true\n");
    let discovery = format!("discovery: {{dns: {{servers: [\"{}\"]}}}}\n", dns.addr());
    let config = config_of(&apisix, &[format!("127.0.0.1:{port}")], &discovery);
    let upstream =
        "discovery_type: dns, service_name: _mqtt._tcp.test, checks: {active: {type: tcp}}";
    let mut proxy = Proxy::start(&Files::new(&config, &routes(upstream)), &[port]);
    proxy.wait_for_log("control API at");
    let control = local(control);
    let item = wait_for(control, "/v1/upstream/brokers", SOON, |_, item| {
        item["runtime"]["nodes"]
            .as_array()
            .is_some_and(|nodes| !nodes.is_empty())
    });
    let node = &item["runtime"]["nodes"][0];
    assert_eq!(node["node"], format!("broker.test:{}", broker.port()));
    assert_eq!(
        (&node["weight"], &node["status"]),
        (&json!(3), &Value::Null)
    );
    assert_eq!(item["value"]["nodes"][0]["host"], "broker.test");
    assert_eq!(item["value"]["service_name"], "_mqtt._tcp.test");
    assert_eq!(item["has_domain"], true);
    assert_eq!(document(control, "/v1/healthcheck"), json!([]));
    let (code, why) = ask(control, "/v1/healthcheck/upstreams/brokers");
    assert_eq!(
        (code, &why["error_msg"]),
        (404, &json!("no checker for upstreams[brokers]"))
    );
}
