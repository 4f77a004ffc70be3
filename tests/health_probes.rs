//! Active health checks: each type of probe against nodes that are up, down, hanging and flapping,
//! as the log, the metrics and the clients see it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Name};
use support::broker::Conn;
use support::ports::BlackHole;
use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, SOON, config_with, free_port, local, metrics,
    wait_until,
};

/// A proxy with one MQTT route over `upstream` (YAML flow form, without braces).
struct Setup {
    proxy: Proxy,
    port: u16,
    metrics: u16,
}

fn start(upstream: &str) -> Setup {
    let (port, metrics) = (free_port(), free_port());
    let own = format!("mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics}\"}}}}\n");
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{{upstream}}}\n#END\n"
    );
    let files = Files::new(&config_with(&[port], &own), &routes);
    Setup {
        proxy: Proxy::start(&files, &[port]),
        port,
        metrics,
    }
}

impl Setup {
    fn is_healthy(&self, node: &str) -> bool {
        let label = format!("node=\"{node}\"");
        metrics::value(
            local(self.metrics),
            "mqtt_proxy_upstream_healthy",
            &[&label],
        ) == 1.0
    }

    fn wait_until_healthy(&self, node: &str, healthy: bool) {
        let what = format!("{node} to become healthy: {healthy}");
        wait_until(&what, SOON, || {
            (self.is_healthy(node) == healthy).then_some(())
        });
    }

    fn transitions(&self, node: &str, to: &str) -> f64 {
        let labels = [format!("node=\"{node}\""), format!("to=\"{to}\"")];
        metrics::value(
            local(self.metrics),
            "mqtt_proxy_upstream_health_transitions_total",
            &[&labels[0], &labels[1]],
        )
    }
}

/// What an endpoint of [`endpoint`] does with each connection.
const UP: u8 = 0;
const DOWN: u8 = 1;
const HANGING: u8 = 2;
const REFUSING: u8 = 3;

/// A health endpoint whose behaviour can be switched. A connection that is down is reset.
fn endpoint(answer: impl Fn(&mut Conn, u8) + Send + Sync + 'static) -> (Broker, Arc<AtomicU8>) {
    let mode = Arc::new(AtomicU8::new(UP));
    let switch = mode.clone();
    let broker = Broker::scripted(move |mut conn| match mode.load(Ordering::SeqCst) {
        DOWN => conn.reset(),
        HANGING => conn.drain(),
        mode => answer(&mut conn, mode),
    });
    (broker, switch)
}

fn http(conn: &mut Conn, mode: u8) {
    let mut head = [0; 4096];
    conn.read(&mut head);
    let answer: &[u8] = match mode {
        UP => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        _ => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    };
    conn.send(answer);
    conn.finish_sending();
    conn.drain();
}

fn mqtt(conn: &mut Conn, mode: u8) {
    match mode {
        UP => {
            conn.accept_mqtt();
            conn.drain();
        }
        _ => {
            conn.read_packet();
            conn.send(&[0x20, 2, 0, 3]);
        }
    }
}

const QUICK: &str = "healthy: {successes: 1}, \
    unhealthy: {tcp_failures: 1, timeouts: 1, http_failures: 1, mqtt_failures: 1}";

/// A node whose endpoint goes through all its modes: in each bad one it is unhealthy, in between
/// healthy again.
fn every_mode(kind: &str, answer: impl Fn(&mut Conn, u8) + Send + Sync + 'static, modes: &[u8]) {
    let broker = Broker::mqtt();
    let (endpoint, mode) = endpoint(answer);
    let node = broker.addr().to_string();
    let mut setup = start(&format!(
        "nodes: {{\"{}\": 1}}, checks: {{active: {{type: {kind}, timeout: 0.3, port: {}, {QUICK}}}}}",
        node,
        endpoint.port()
    ));
    for &bad in modes {
        setup.wait_until_healthy(&node, true);
        mode.store(bad, Ordering::SeqCst);
        setup.wait_until_healthy(&node, false);
        mode.store(UP, Ordering::SeqCst);
    }
    setup.wait_until_healthy(&node, true);
    let times = modes.len() as f64;
    assert_eq!(setup.transitions(&node, "unhealthy"), times);
    assert_eq!(setup.transitions(&node, "healthy"), times);
    for (text, count) in [
        ("is unhealthy: 1 ", modes.len()),
        ("is healthy again", modes.len()),
    ] {
        let line = format!("upstream route/1: node {} {text}", node);
        assert_eq!(setup.proxy.count(&line), count, "one line each: {line}");
    }
    assert!(setup.proxy.is_running());
}

#[test]
fn http_probes() {
    every_mode("http", http, &[DOWN, HANGING, REFUSING]);
}

#[test]
fn mqtt_probes() {
    every_mode("mqtt", mqtt, &[DOWN, HANGING, REFUSING]);
}

#[test]
fn https_probes_with_and_without_verification() {
    let (cert, key) = self_signed("localhost");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("TLS");
    acceptor.set_certificate(&cert).expect("certificate");
    acceptor.set_private_key(&key).expect("key");
    let acceptor = acceptor.build();
    let broker = Broker::scripted(move |conn| {
        let Ok(mut stream) = acceptor.accept(conn.stream) else {
            return;
        };
        let mut head = [0; 4096];
        let _ = std::io::Read::read(&mut stream, &mut head);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let _ = std::io::Write::write_all(&mut stream, answer);
        let _ = stream.shutdown();
    });
    let node = broker.addr().to_string();
    let upstream = |verify| {
        format!(
            "nodes: {{\"{node}\": 1}}, checks: {{active: {{type: https, host: localhost, \
             https_verify_certificate: {verify}, {QUICK}}}}}"
        )
    };
    let mut strict = start(&upstream(true));
    strict.wait_until_healthy(&node, false);
    strict.proxy.wait_for_log("is unhealthy: 1 TCP failures");
    let probes = broker.accepted();
    let loose = start(&upstream(false));
    // The strict proxy probes it too: enough for both to have seen it a few times.
    wait_until("some more probes", SOON, || {
        (broker.accepted() > probes + 6).then_some(())
    });
    assert!(loose.is_healthy(&node));
    assert_eq!(loose.transitions(&node, "unhealthy"), 0.0);
}

#[test]
fn tcp_probes_start_when_the_upstream_is_loaded_and_without_blocks() {
    let mut broker = Broker::mqtt();
    let (dead, hole) = (DeadPort::new(), BlackHole::new());
    let node = broker.addr().to_string();
    // No `healthy`, no `unhealthy` and no client: in APISIX nothing would ever be probed.
    let mut setup = start(&format!(
        "nodes: {{\"{node}\": 1, \"{}\": 1, \"{}\": 1}}, checks: {{active: {{type: tcp, timeout: 0.3}}}}",
        dead.addr(),
        hole.addr()
    ));
    setup.wait_until_healthy(&dead.addr().to_string(), false);
    setup.wait_until_healthy(&hole.addr().to_string(), false);
    assert!(setup.is_healthy(&node));
    setup
        .proxy
        .wait_for_log("is unhealthy: 2 TCP failures in a row");
    setup
        .proxy
        .wait_for_log("is unhealthy: 3 timeouts in a row");
    for n in 0..9 {
        Client::mqtt(setup.port, &Connect::v311(&format!("client-{n}")));
    }
    let failures = "mqtt_proxy_upstream_connect_failures_total";
    assert_eq!(
        metrics::value(local(setup.metrics), failures, &[]),
        0.0,
        "no client was sent to an unhealthy node"
    );

    broker.stop_listening();
    setup.wait_until_healthy(&node, false);
    setup
        .proxy
        .wait_for_log("all nodes are unhealthy; health is ignored");
    broker.listen();
    setup.wait_until_healthy(&node, true);
    setup
        .proxy
        .wait_for_log("a node is healthy again and health counts");
}

#[test]
fn the_mqtt_probe_says_goodbye_and_has_its_own_client_id() {
    let (broker, _) = endpoint(mqtt);
    let _setup = start(&format!(
        "nodes: {{\"{}\": 1}}, checks: {{active: {{type: mqtt, \
         mqtt: {{client_id_prefix: probe-, username: u, password: p}}}}}}",
        broker.addr()
    ));
    let ids: Vec<Vec<u8>> = (0..2)
        .map(|index| {
            let seen = broker.connection(index);
            seen.wait_for_end();
            let bytes = seen.received();
            assert!(bytes.ends_with(b"\0\x01u\0\x01p\xe0\0"), "{bytes:?}");
            let id = bytes.windows(6).position(|part| part == b"probe-");
            let id = id.unwrap_or_else(|| panic!("no client id in {bytes:?}"));
            bytes[id..id + 14].to_vec()
        })
        .collect();
    assert_ne!(ids[0], ids[1], "no probe takes over another one's session");
}

#[test]
fn an_http_probe_is_what_the_file_says() {
    let (broker, _) = endpoint(http);
    let _setup = start(&format!(
        "nodes: {{\"127.0.0.1:1\": 1}}, checks: {{active: {{type: http, port: {}, host: emqx.test, \
         http_method: POST, http_path: \"/a?b=c\", http_req_body: xy, req_headers: [\"X-Own: 1\"]}}}}",
        broker.port()
    ));
    let seen = broker.connection(0);
    seen.wait_for_end();
    let request = String::from_utf8(seen.received()).expect("text");
    assert!(request.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{request}");
    for line in [
        "Host: emqx.test\r\n",
        "X-Own: 1\r\n",
        "Content-Length: 2\r\n",
    ] {
        assert!(request.contains(line), "{line} is not in {request}");
    }
    assert!(request.ends_with("\r\n\r\nxy"), "{request}");
}

/// A certificate for `name` that no CA has signed.
fn self_signed(name: &str) -> (X509, PKey<Private>) {
    let rsa = openssl::rsa::Rsa::generate(2048).expect("a key");
    let key = PKey::from_rsa(rsa).expect("a key");
    let mut subject = X509Name::builder().expect("a name");
    subject.append_entry_by_text("CN", name).expect("a name");
    let subject = subject.build();
    let mut cert = X509::builder().expect("a certificate");
    let serial = BigNum::from_u32(1).and_then(|serial| serial.to_asn1_integer());
    cert.set_serial_number(&serial.expect("a number"))
        .expect("serial");
    cert.set_version(2).expect("version");
    cert.set_subject_name(&subject).expect("subject");
    cert.set_issuer_name(&subject).expect("issuer");
    cert.set_not_before(&Asn1Time::days_from_now(0).expect("time"))
        .expect("time");
    cert.set_not_after(&Asn1Time::days_from_now(1).expect("time"))
        .expect("time");
    cert.set_pubkey(&key).expect("key");
    let names = SubjectAlternativeName::new()
        .dns(name)
        .build(&cert.x509v3_context(None, None));
    cert.append_extension(names.expect("names")).expect("names");
    cert.sign(&key, MessageDigest::sha256()).expect("signed");
    (cert.build(), key)
}
