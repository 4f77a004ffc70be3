//! `mqtt-proxy status` against running proxies, others, and nobody.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};
use support::files::{config_controlled, config_of};
use support::proxy::{Ran, cli_with};
use support::{Broker, Client, Connect, DeadPort, Files, Proxy, cli, free_ports};

fn routes(broker: &Broker, dead: &DeadPort) -> String {
    format!(
        "stream_routes:\n  - id: devices\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: brokers\nupstreams:\n  - {{id: brokers, type: chash, key: mqtt_client_id, nodes: {{\"{}\": 3}}}}\n  \
         - {{id: spare, nodes: [{{host: 127.0.0.1, port: {}, weight: 1, priority: -1}}], \
         checks: {{active: {{type: tcp, unhealthy: {{interval: 1, tcp_failures: 1}}}}}}}}\n#END\n",
        broker.addr(),
        dead.port()
    )
}

/// A broker, a port that refuses, and a proxy before them.
struct Setup {
    broker: Broker,
    dead: DeadPort,
    files: Files,
    port: u16,
    control: u16,
}

impl Setup {
    fn new() -> Self {
        let (broker, dead) = (Broker::mqtt(), DeadPort::new());
        let [port, control] = free_ports();
        let config = config_controlled(&[port], control, "");
        Setup {
            files: Files::new(&config, &routes(&broker, &dead)),
            broker,
            dead,
            port,
            control,
        }
    }

    fn start(&self) -> Proxy {
        let mut proxy = Proxy::start(&self.files, &[self.port]);
        proxy.wait_for_log("control API at");
        proxy
    }
}

/// `status -c FILE` with more arguments.
fn status(config: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["status", "-c", config.to_str().expect("text")];
    args.extend(more);
    cli(&args)
}

#[test]
fn a_running_proxy_is_shown_in_a_terminal_and_as_json() {
    let setup = Setup::new();
    let Setup {
        broker,
        dead,
        files,
        port,
        ..
    } = &setup;
    let mut proxy = setup.start();
    proxy.wait_for_log("is unhealthy");
    let live: Vec<Client> = (0..3)
        .map(|n| Client::mqtt(*port, &Connect::v311(&format!("dev-{n}"))))
        .collect();

    let ran = status(&files.config_path(), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.all());
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    let line = |start: &str| {
        let mut lines = ran.stdout.lines();
        let found = lines.find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no line {start:?}: {}", ran.all()))
    };
    assert!(line("process").contains(&format!("{}, up ", proxy.id())));
    assert!(line("process").ends_with(", ready"));
    assert!(line("version").ends_with(env!("CARGO_PKG_VERSION")));
    assert!(
        line("routes file").contains("apisix.yaml, loaded 20"),
        "{}",
        ran.all()
    );
    assert!(line("connections").contains("3 of at most "));
    assert_eq!(
        words(line(&format!("127.0.0.1:{port}"))),
        [&format!("127.0.0.1:{port}"), "-", "3"]
    );
    assert_eq!(words(line("devices")), ["devices", "brokers", "3"]);
    let node = broker.addr().to_string();
    assert_eq!(
        words(line("brokers")),
        [
            "brokers",
            "chash",
            "on",
            "mqtt_client_id",
            &node,
            "0",
            "3",
            "not",
            "checked",
            "3",
            "100.0",
            "%"
        ]
    );
    let node = dead.addr().to_string();
    assert_eq!(
        words(line("spare")),
        [
            "spare",
            "roundrobin",
            &node,
            "-1",
            "1",
            "unhealthy",
            "0",
            "0.0",
            "%"
        ]
    );
    // Every node begins in the same column.
    let column = line("UPSTREAM  BALANCER").find("NODE").expect("NODE");
    assert!(line("spare")[column..].starts_with(&node), "{}", ran.all());

    let ran = status(&files.config_path(), &["--format", "json"]);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(document["pid"], proxy.id());
    assert_eq!(document["upstreams"][1]["nodes"][0]["status"], "unhealthy");
    drop(live);
}

#[test]
fn one_connection_by_its_client_id() {
    let setup = Setup::new();
    let Setup {
        broker,
        files,
        port,
        control,
        ..
    } = &setup;
    let _proxy = setup.start();
    let mut client = Client::mqtt(*port, &Connect::v311("büro/7 &x=%41"));
    client.expect_alive();
    let ran = status(&files.config_path(), &["--client-id", "büro/7 &x=%41"]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    for expected in [
        "client id   büro/7 &x=%41".to_owned(),
        format!("client      {}", client.local_addr()),
        format!("listener    127.0.0.1:{port}"),
        "route       devices".to_owned(),
        "upstream    brokers".to_owned(),
        format!("node        {}", broker.addr()),
    ] {
        assert!(
            ran.stdout.lines().any(|line| line == expected),
            "{expected:?}: {}",
            ran.all()
        );
    }
    let addr = format!("127.0.0.1:{control}");
    let by_address = [
        "status",
        "--control",
        &addr,
        "--client-id",
        "büro/7 &x=%41",
        "--format",
        "json",
    ];
    let ran = cli(&by_address);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        document["connections"][0]["client"],
        json!(client.local_addr())
    );
    let ran = status(&files.config_path(), &["--client-id", "nobody"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "mqtt-proxy: no connection of this client is relayed\n"
    );
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_plain_sentence_where_nobody_answers_or_somebody_else() {
    let Setup {
        broker,
        dead,
        files,
        port,
        control,
    } = Setup::new();
    let [other] = free_ports();
    let fails = |files: &Files, expected: &str| {
        let ran = status(&files.config_path(), &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.all());
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.all());
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.all());
    };
    fails(&files, &format!("nothing answers at 127.0.0.1:{control}"));

    // Another proxy has the address.
    let neighbour = Files::new(
        &config_controlled(&[other], control, ""),
        &routes(&broker, &dead),
    );
    let mut proxy = Proxy::start(&neighbour, &[other]);
    proxy.wait_for_log("control API at");
    fails(&files, &format!("answers process {} with ", proxy.id()));
    drop(proxy);

    // Something that is no proxy.
    let foreign = TcpListener::bind(("127.0.0.1", control)).expect("bind");
    std::thread::spawn(move || {
        for stream in foreign.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nServer: APISIX/3.18.0\r\n\r\n{}");
        }
    });
    fails(&files, "is no mqtt-proxy");

    let off = config_of(
        "  enable_control: false\n",
        &[format!("127.0.0.1:{port}")],
        "",
    );
    fails(&Files::new(&off, ""), "has no control API");
}

#[test]
fn without_a_file_the_one_in_conf_says_where_to_ask() {
    let setup = Setup::new();
    let files = &setup.files;
    // The folder is its own `conf`.
    std::os::unix::fs::symlink(".", files.path("conf")).expect("a link");
    let proxy = setup.start();
    let ran = cli_with(&["status"], |command| {
        command.current_dir(files.dir());
    });
    assert_eq!(ran.code, 0, "{}", ran.all());
    assert!(ran.stdout.contains(&format!("{}, up", proxy.id())));
}
