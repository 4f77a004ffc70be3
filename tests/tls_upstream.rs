//! TLS toward brokers: what is sent, what is verified, and what happens when it fails.

mod support;

use std::net::SocketAddr;

use support::mosquitto::{Mosquitto, publish};
use support::tls::{Authority, TlsClient, ssl, tls_config, tls_routes, write};
use support::tls_broker::tls_broker;
use support::*;

fn upstream(nodes: &[SocketAddr], more: &str) -> String {
    let nodes: Vec<String> = nodes.iter().map(|addr| format!("\"{addr}\": 1")).collect();
    format!("scheme: tls{more}, nodes: {{{}}}", nodes.join(", "))
}

#[test]
fn the_server_name_that_a_broker_gets_and_resumption() {
    let ca = Authority::new("root");
    let (seen, hellos) = std::sync::mpsc::channel();
    let broker = tls_broker(&ca.issue(&["broker"]), seen, |_| {});
    let [plain, tls] = free_ports();
    let listens = format!("      - \"127.0.0.1:{plain}\"\n");
    let ssls = [ssl("1", "a.test", &ca.issue(&["a.test"]), "")];
    let node = [broker.addr()];
    let files = Files::new(
        &tls_config(&[tls], &listens, ""),
        &tls_routes(&upstream(&node, ""), &ssls),
    );
    let mut proxy = Proxy::start(&files, &[plain, tls]);
    let connect = Connect::v311("device-1");
    Client::mqtt(plain, &connect).expect_alive();
    let next = || hellos.recv_timeout(SOON).unwrap();
    assert_eq!(next(), (Some("apisix_backend".into()), false));
    Client::mqtt(plain, &connect).expect_alive();
    assert_eq!(
        next(),
        (Some("apisix_backend".into()), true),
        "the session is resumed"
    );
    let client = TlsClient::to(tls).name("A.test");
    client.mqtt(&connect).unwrap().expect_alive();
    assert_eq!(next(), (Some("a.test".into()), false));
    for (more, name) in [
        (
            ", pass_host: rewrite, upstream_host: inner.test",
            Some("inner.test".to_owned()),
        ),
        // The node is an address, which is no server name.
        (", pass_host: node", None),
    ] {
        proxy.reload(|| files.replace_routes(tls_routes(&upstream(&node, more), &ssls)));
        Client::mqtt(plain, &connect).expect_alive();
        assert_eq!(next(), (name.clone(), false));
        client.mqtt(&connect).unwrap().expect_alive();
        assert_eq!(next(), (name, true));
    }
}

#[test]
fn verify_really_verifies_and_a_failed_handshake_is_a_failed_connect() {
    let (ca, other) = (Authority::new("root"), Authority::new("other"));
    let (seen, hellos) = std::sync::mpsc::channel();
    let right = tls_broker(&ca.issue(&["127.0.0.1"]), seen.clone(), |_| {});
    let wrong_name = tls_broker(&ca.issue(&["elsewhere.test"]), seen.clone(), |_| {});
    let wrong_ca = tls_broker(&other.issue(&["127.0.0.1"]), seen, |_| {});
    // A plain broker that closes on whatever is no CONNECT.
    let no_tls = Broker::scripted(|_conn| {});
    let port = free_port();
    let verified = |nodes: &[SocketAddr], name: &str| {
        upstream(
            nodes,
            &format!(
                ", retries: 3, tls: {{verify: true, ca: {:?}}}{name}",
                ca.pem()
            ),
        )
    };
    let all = [
        wrong_name.addr(),
        wrong_ca.addr(),
        no_tls.addr(),
        right.addr(),
    ];
    let files = Files::new(&config(&[port]), &tls_routes(&verified(&all, ""), &[]));
    let mut proxy = Proxy::start(&files, &[port]);
    for _ in 0..8 {
        Client::mqtt(port, &Connect::v311("device-1")).expect_alive();
    }
    proxy.wait_for_log("does not answer: TLS handshake: certificate for 127.0.0.1");
    // With the name that it has, the other one is good as well.
    let more = ", pass_host: rewrite, upstream_host: elsewhere.test";
    let routes = tls_routes(&verified(&[wrong_name.addr()], more), &[]);
    proxy.reload(|| files.replace_routes(routes));
    Client::mqtt(port, &Connect::v311("device-1")).expect_alive();
    // The default is APISIX's: anything goes.
    let routes = tls_routes(&upstream(&[wrong_ca.addr()], ""), &[]);
    proxy.reload(|| files.replace_routes(routes));
    Client::mqtt(port, &Connect::v311("device-1")).expect_alive();
    // Where no node is good, the client is told.
    let routes = tls_routes(&verified(&[wrong_ca.addr()], ""), &[]);
    proxy.reload(|| files.replace_routes(routes));
    let mut client = Client::to(port);
    client.send(&Connect::v311("device-1").build());
    client.expect_last(&[0x20, 2, 0, 3]);
    assert!(hellos.try_iter().count() >= 10);
}

#[test]
fn authorities_of_the_proxy_and_certificates_from_the_environment() {
    let (ca, other) = (Authority::new("root"), Authority::new("other"));
    let (seen, _hellos) = std::sync::mpsc::channel();
    let right = tls_broker(&ca.issue(&["127.0.0.1"]), seen.clone(), |_| {});
    let wrong = tls_broker(&other.issue(&["127.0.0.1"]), seen, |_| {});
    let own = ca.issue(&["the-proxy"]);
    let port = free_port();
    let routes = |node: SocketAddr| {
        let tls = ", tls: {verify: true, client_cert: $env://OUT_CERT, client_key: $env://OUT/key}";
        tls_routes(&upstream(&[node], tls), &[])
    };
    let trusted = "  ssl: {ssl_trusted_certificate: trusted.pem}\n";
    let listens = format!("      - \"127.0.0.1:{port}\"\n");
    let files = Files::new(
        &tls_config(&[], &format!("{listens}{trusted}"), ""),
        &routes(right.addr()),
    );
    // A relative path starts at the folder of config.yaml.
    files.replace("trusted.pem", ca.pem());
    let mut proxy = Proxy::start_with(&files, &[local(port)], |command| {
        command.env("OUT_CERT", &own.cert);
        command.env("OUT", format!("{{\"key\": {:?}}}", own.key));
        command.current_dir("/");
    });
    Client::mqtt(port, &Connect::v311("device-1")).expect_alive();
    proxy.reload(|| files.replace_routes(routes(wrong.addr())));
    let mut client = Client::to(port);
    client.send(&Connect::v311("device-1").build());
    client.expect_last(&[0x20, 2, 0, 3]);
    proxy.wait_for_log("TLS handshake: certificate for 127.0.0.1");
}

#[test]
fn check_says_once_for_each_upstream_what_is_not_verified() {
    let ca = Authority::new("root");
    let verified = format!("tls: {{verify: true, ca: {:?}}}", ca.pem());
    let nodes = "scheme: tls, nodes: {\"10.0.0.1:8883\": 1, \"10.0.0.2:8883\": 1}";
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream_id: silent}}\n  - {{id: 2, upstream_id: silent}}\n  \
         - {{id: 3, server_port: 1, upstream: {{{nodes}}}}}\nupstreams:\n  - {{id: silent, {nodes}}}\n  \
         - {{id: loose, {nodes}, tls: {{verify: false}}}}\n  - {{id: strict, {nodes}, {verified}}}\n  \
         - {{id: plain, nodes: {{\"10.0.0.1:1883\": 1}}}}\n#END\n"
    );
    let files = Files::new(&config(&[free_port()]), &routes);
    let ran = cli(&["check", "-c", files.config_path().to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let told: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.contains("certificates are not verified"))
        .collect();
    assert_eq!(told.len(), 3, "{}", ran.all());
    for place in [
        "upstreams[0].tls",
        "upstreams[1].tls",
        "stream_routes[2].upstream.tls",
    ] {
        let found = told.iter().filter(|line| line.contains(place)).count();
        assert_eq!(found, 1, "{place}: {}", ran.all());
    }
}

#[test]
fn mosquitto_with_tls_on_both_sides_and_client_certificates() {
    let ca = Authority::new("root");
    let dir = tempfile::tempdir().unwrap();
    let server = ca.issue(&["127.0.0.1", "localhost"]);
    let path = |name: &str, text: &str| write(dir.path(), name, text);
    let (ca_file, cert, key) = (
        path("ca.pem", &ca.pem()),
        path("cert.pem", &server.cert),
        path("key.pem", &server.key),
    );
    let mosquitto = Mosquitto::start_with(&format!(
        "cafile {ca_file}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\n"
    ));
    let (device, to_broker) = (ca.issue(&["device-1"]), ca.issue(&["the-proxy"]));
    let (device_cert, device_key) = (path("d.pem", &device.cert), path("d.key", &device.key));
    let client = format!(", client: {{ca: {:?}}}", ca.pem());
    let ssls = [
        ssl("1", "'*'", &server, &client),
        format!("{{id: 2, type: client, {}}}", to_broker.yaml()),
    ];
    let inline = format!(
        "client_cert: {:?}, client_key: {:?}",
        to_broker.cert, to_broker.key
    );
    let port = free_port();
    let files = Files::new(
        &tls_config(&[port], "  ssl: {fallback_sni: a.test}\n", ""),
        "stream_routes: []\n#END\n",
    );
    let mut proxy = Proxy::start(&files, &[port]);
    for certificate in [&*inline, "client_cert_id: 2"] {
        let tls = format!(
            ", pass_host: node, tls: {{verify: true, ca: {:?}, {certificate}}}",
            ca.pem()
        );
        let routes = tls_routes(&upstream(&[mosquitto.addr()], &tls), &ssls);
        proxy.reload(|| files.replace_routes(routes));
        let args = [
            "--cafile", &ca_file, "-t", "a", "-m", "b", "-q", "1", "-V", "mqttv311",
        ];
        let own = [
            "--cert",
            &*device_cert,
            "--key",
            &*device_key,
            "-i",
            certificate,
        ];
        let ran = publish(port, &[&args[..], &own].concat());
        assert_eq!(ran.code, 0, "{}", ran.all());
        mosquitto.wait_for_client(certificate);
        // Without a certificate nobody gets past the proxy.
        let ran = publish(port, &[&args[..], &["-i", "stranger"]].concat());
        assert_ne!(ran.code, 0, "{}", ran.all());
        assert!(!mosquitto.has_seen("stranger"));
    }
    // Without one of its own, the proxy does not get past the broker.
    let routes = tls_routes(&upstream(&[mosquitto.addr()], ""), &ssls);
    proxy.reload(|| files.replace_routes(routes));
    let args = ["--cafile", &ca_file, "-t", "a", "-m", "b", "-i", "lost"];
    let own = ["--cert", &*device_cert, "--key", &*device_key];
    let ran = publish(port, &[&args[..], &own].concat());
    assert_ne!(ran.code, 0, "{}", ran.all());
    assert!(!mosquitto.has_seen("lost"));
}
