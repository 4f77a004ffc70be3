//! Active health checks: each type of probe against nodes that are up, down, hanging and flapping,
//! as the log, the metrics and the clients see it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use support::broker::Conn;
use support::ports::BlackHole;
use support::setup::{start, start_verbose};
use support::tls::Authority;
use support::{Broker, DeadPort, SOON, wait_until};

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
    conn.send(answer(mode));
    conn.finish_sending();
    conn.drain();
}

fn answer(mode: u8) -> &'static [u8] {
    match mode {
        UP => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        _ => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    }
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
        "nodes: {{\"{}\": 1}}, checks: {{active: {{type: {kind}, timeout: 3, port: {}, {QUICK}}}}}",
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
        wait_until("the last line", SOON, || {
            (setup.proxy.count(&line) >= count).then_some(())
        });
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

/// The same over TLS, with a certificate that no authority of the system has signed.
fn https() -> impl Fn(&mut Conn, u8) + Send + Sync + 'static {
    let identity = Authority::new("root").issue(&["localhost"]);
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("TLS");
    let cert = X509::from_pem(identity.cert.as_bytes()).expect("a certificate");
    let key = PKey::private_key_from_pem(identity.key.as_bytes()).expect("a key");
    acceptor.set_certificate(&cert).expect("certificate");
    acceptor.set_private_key(&key).expect("key");
    let acceptor = acceptor.build();
    move |conn: &mut Conn, mode| {
        let stream = conn.stream.try_clone().expect("a descriptor");
        let Ok(mut stream) = acceptor.accept(stream) else {
            return;
        };
        let mut head = [0; 4096];
        let _ = std::io::Read::read(&mut stream, &mut head);
        let _ = std::io::Write::write_all(&mut stream, answer(mode));
        let _ = stream.shutdown();
    }
}

#[test]
fn https_probes() {
    let kind = "https, host: localhost, https_verify_certificate: false";
    every_mode(kind, https(), &[DOWN, HANGING, REFUSING]);
}

#[test]
fn https_probes_with_and_without_verification() {
    let (broker, _) = endpoint(https());
    let node = broker.addr().to_string();
    let upstream = |verify| {
        format!(
            "nodes: {{\"{node}\": 1}}, checks: {{active: {{type: https, host: localhost, \
             https_verify_certificate: {verify}, timeout: 5, {QUICK}}}}}"
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

/// A node that is fine at every second probe only: two failures in a row make it unhealthy and
/// never come, and once it is out, two successes in a row would bring it back and never come.
fn flapping(kind: &str, answer: impl Fn(&mut Conn, u8) + Send + Sync + 'static) {
    let broker = Broker::mqtt();
    let probes = AtomicUsize::new(0);
    let steadily_bad = Arc::new(AtomicBool::new(false));
    let bad = steadily_bad.clone();
    let endpoint = Broker::scripted(move |mut conn| {
        let odd = probes.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        match odd || bad.load(Ordering::SeqCst) {
            true => conn.reset(),
            false => answer(&mut conn, UP),
        }
    });
    let node = broker.addr().to_string();
    let setup = start(&format!(
        "nodes: {{\"{node}\": 1}}, checks: {{active: {{type: {kind}, port: {}, timeout: 5, \
         healthy: {{successes: 2}}, unhealthy: {{tcp_failures: 2}}}}}}",
        endpoint.port()
    ));
    let wait_for_probes = |more: usize| {
        let before = endpoint.accepted();
        wait_until("more probes", SOON, || {
            (endpoint.accepted() >= before + more).then_some(())
        });
    };
    wait_for_probes(5);
    assert_eq!(setup.transitions(&node, "unhealthy"), 0.0);
    steadily_bad.store(true, Ordering::SeqCst);
    setup.wait_until_healthy(&node, false);
    steadily_bad.store(false, Ordering::SeqCst);
    wait_for_probes(5);
    assert!(!setup.is_healthy(&node));
    assert_eq!(setup.transitions(&node, "healthy"), 0.0);
}

#[test]
fn a_node_that_flaps_faster_than_the_limits_stays_what_it_is() {
    std::thread::scope(|scope| {
        scope.spawn(|| flapping("http", http));
        scope.spawn(|| flapping("mqtt", mqtt));
        let kind = "https, host: localhost, https_verify_certificate: false";
        scope.spawn(|| flapping(kind, https()));
    });
}

/// The same for `tcp`, where a failure is a port that nobody listens on.
#[test]
fn a_port_that_flaps_faster_than_the_limits_stays_what_it_is() {
    let mut broker = Broker::mqtt();
    let node = broker.addr().to_string();
    let mut setup = start_verbose(&format!(
        "nodes: {{\"{node}\": 1}}, checks: {{active: {{type: tcp, \
         healthy: {{interval: 2, successes: 2}}, \
         unhealthy: {{interval: 2, tcp_failures: 2}}}}}}"
    ));
    let flap = |broker: &mut Broker, setup: &mut support::setup::Setup, times: usize| {
        for _ in 0..times {
            let mark = setup.proxy.mark();
            broker.stop_listening();
            setup.proxy.wait_for_log_after(mark, "Failed(Tcp");
            let mark = setup.proxy.mark();
            broker.listen();
            setup.proxy.wait_for_log_after(mark, ": Success");
        }
    };
    flap(&mut broker, &mut setup, 3);
    assert_eq!(setup.transitions(&node, "unhealthy"), 0.0);
    broker.stop_listening();
    setup.wait_until_healthy(&node, false);
    let mark = setup.proxy.mark();
    broker.listen();
    setup.proxy.wait_for_log_after(mark, ": Success");
    flap(&mut broker, &mut setup, 2);
    assert!(!setup.is_healthy(&node));
    assert_eq!(setup.transitions(&node, "healthy"), 0.0);
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
    setup.clients("client-", 9);
    assert_eq!(
        setup.connect_failures(),
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
         timeout: 5, mqtt: {{client_id_prefix: probe-, username: u, password: p}}}}}}",
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
