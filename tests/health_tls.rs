//! The mqtt probe of an upstream with `scheme: tls` speaks TLS as connections of clients do: with
//! the same verification, server name and client certificate.

mod support;

use std::sync::mpsc::{Receiver, Sender, channel};

use openssl::pkey::PKey;
use openssl::ssl::{NameType, SslAcceptor, SslMethod};
use openssl::x509::X509;
use support::mosquitto::Mosquitto;
use support::setup::start;
use support::tls::{Authority, Identity, write};
use support::{Broker, SOON, mqtt};

const QUICK: &str = "checks: {active: {type: mqtt, timeout: 5, mqtt: {client_id_prefix: probe-}, \
    healthy: {successes: 1}, unhealthy: {tcp_failures: 1, timeouts: 1}}}";

/// A broker that speaks TLS and accepts every MQTT client; it tells the server name and the bytes
/// of each.
fn tls_broker(identity: &Identity, seen: Sender<(Option<String>, Vec<u8>)>) -> Broker {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    let cert = X509::from_pem(identity.cert.as_bytes()).unwrap();
    let key = PKey::private_key_from_pem(identity.key.as_bytes()).unwrap();
    acceptor.set_certificate(&cert).unwrap();
    acceptor.set_private_key(&key).unwrap();
    let acceptor = acceptor.build();
    let seen = std::sync::Mutex::new(seen);
    Broker::scripted(move |conn| {
        use std::io::{Read, Write};
        let Ok(mut stream) = acceptor.accept(conn.stream) else {
            return;
        };
        let name = stream.ssl().servername(NameType::HOST_NAME);
        let name = name.map(str::to_owned);
        let mut buffer = [0; 1024];
        let Ok(count) = stream.read(&mut buffer) else {
            return;
        };
        let _ = stream.write_all(mqtt::ACCEPTED);
        let _ = seen.lock().unwrap().send((name, buffer[..count].to_vec()));
        let _ = stream.read(&mut buffer);
    })
}

fn probe(hellos: &Receiver<(Option<String>, Vec<u8>)>) -> Option<String> {
    let (name, connect) = hellos.recv_timeout(SOON).unwrap();
    assert!(
        connect.windows(6).any(|part| part == b"probe-"),
        "{connect:?}"
    );
    name
}

#[test]
fn the_certificate_is_verified_where_the_upstream_verifies_it() {
    let (ca, other) = (Authority::new("root"), Authority::new("other"));
    let (seen, hellos) = channel();
    let broker = tls_broker(&ca.issue(&["127.0.0.1"]), seen);
    let node = broker.addr().to_string();
    let upstream = |tls: &str| format!("scheme: tls{tls}, nodes: {{\"{node}\": 1}}, {QUICK}");
    let verified = |ca: &Authority| format!(", tls: {{verify: true, ca: {:?}}}", ca.pem());

    let good = start(&upstream(&verified(&ca)));
    assert_eq!(
        probe(&hellos).as_deref(),
        Some("apisix_backend"),
        "as clients without a name"
    );
    probe(&hellos);
    assert!(good.is_healthy(&node));
    drop(good);

    let mut bad = start(&upstream(&verified(&other)));
    bad.wait_until_healthy(&node, false);
    bad.proxy
        .wait_for_log("TLS handshake: certificate for 127.0.0.1");
    drop(bad);

    while hellos.try_recv().is_ok() {}
    let loose = start(&upstream(
        ", pass_host: rewrite, upstream_host: brokers.test",
    ));
    assert_eq!(probe(&hellos).as_deref(), Some("brokers.test"));
    probe(&hellos);
    assert!(loose.is_healthy(&node));
}

#[test]
fn a_broker_that_speaks_no_tls_or_hangs_in_the_handshake_is_unhealthy() {
    let (plain, silent) = (Broker::mqtt(), Broker::silent());
    let (plain_node, silent_node) = (plain.addr().to_string(), silent.addr().to_string());
    let mut setup = start(&format!(
        "scheme: tls, nodes: {{\"{plain_node}\": 1, \"{silent_node}\": 1}}, {QUICK}"
    ));
    setup.wait_until_healthy(&plain_node, false);
    setup.wait_until_healthy(&silent_node, false);
    let line = format!("node {silent_node} is unhealthy: 1 timeouts");
    setup.proxy.wait_for_log(&line);
}

#[test]
fn mosquitto_that_asks_for_a_client_certificate() {
    let ca = Authority::new("root");
    let dir = tempfile::tempdir().unwrap();
    let server = ca.issue(&["127.0.0.1"]);
    let path = |name: &str, text: &str| write(dir.path(), name, text);
    let mut mosquitto = Mosquitto::start_with(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        path("ca.pem", &ca.pem()),
        path("cert.pem", &server.cert),
        path("key.pem", &server.key)
    ));
    let node = mosquitto.addr().to_string();
    let own = ca.issue(&["the-proxy"]);
    let upstream = |certificate: &str| {
        let ca = ca.pem();
        format!(
            "scheme: tls, tls: {{verify: true, ca: {ca:?}{certificate}}}, \
             nodes: {{\"{node}\": 1}}, {QUICK}"
        )
    };
    let certificate = format!(", client_cert: {:?}, client_key: {:?}", own.cert, own.key);
    let good = start(&upstream(&certificate));
    let without = start(&upstream(""));
    without.wait_until_healthy(&node, false);
    assert!(good.is_healthy(&node));

    mosquitto.kill();
    good.wait_until_healthy(&node, false);
    mosquitto.start_again();
    good.wait_until_healthy(&node, true);
}
