//! Clients that do not finish, speak something else or too much; TLS that is passed through; and
//! certificates replaced under live traffic.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use openssl::ssl::{HandshakeError, SslVersion};
use support::client::show;
use support::tls::{Authority, TlsClient, before_a_broker, one_node, ssl, tls_config, tls_routes};
use support::*;

/// The alert that ends the bytes which a client got.
fn alert(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [.., 21, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

#[test]
fn garbage_half_handshakes_and_the_deadline() {
    let ca = Authority::new("root");
    let more = "mqtt_proxy: {tls: {handshake_timeout: 2, max_handshakes: 2}}\n";
    let (broker, port, files) = before_a_broker(&ca, more);
    let mut proxy = Proxy::start(&files, &[port]);
    for (sent, description) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], 10),
        (&Connect::v311("plain").build(), 10),
        (&[22, 3, 1, 0, 4, 2, 0, 0, 0], 50),
        // A ClientHello that says it is larger than 16 KiB.
        (&[22, 3, 1, 0, 4, 1, 0, 64, 1], 50),
        (&[22, 3, 1, 0, 0], 50),
    ] {
        let mut client = Client::to(port);
        client.send(sent);
        let (bytes, end) = client.read_to_end(SOON);
        assert_eq!(
            alert(&bytes),
            Some(description),
            "{}: {}",
            show(sent),
            show(&bytes)
        );
        assert_eq!(end, client::End::Fin, "a reset could destroy the alert");
    }
    // Both places for handshakes are taken by clients that stop in the middle …
    let started = Instant::now();
    let mut stuck: Vec<Client> = (0..2).map(|_| Client::to(port)).collect();
    stuck[1].send(&[22, 3, 1, 2, 0, 1, 0]);
    // … so that a good one waits, and is served when their time is over.
    let good = TlsClient::to(port).name("a.test");
    good.mqtt(&Connect::v311("device-1"))
        .unwrap()
        .expect_alive();
    assert!(
        started.elapsed() > Duration::from_millis(1_900),
        "{:?}",
        started.elapsed()
    );
    for client in &mut stuck {
        client.expect_closed();
    }
    proxy.wait_for_log("tls_timeout: TLS handshake not complete within 2s");
    assert_eq!(broker.accepted(), 1);
    proxy.wait_until_idle(port);
}

/// A connection of which nothing is read yet.
#[derive(Debug)]
struct Deaf(std::net::TcpStream);

impl std::io::Read for Deaf {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

impl std::io::Write for Deaf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_client_that_stops_after_the_servers_answer() {
    let ca = Authority::new("root");
    let more = "mqtt_proxy: {tls: {handshake_timeout: 2}}\n";
    let (broker, port, files) = before_a_broker(&ca, more);
    let mut proxy = Proxy::start(&files, &[port]);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let ssl = TlsClient::to(port).name("a.test").version(version).ssl();
        let half = match ssl.connect(Deaf(Client::to(port).stream)) {
            Err(HandshakeError::WouldBlock(half)) => half,
            _ => panic!("nothing was read"),
        };
        let stream = half.get_ref().0.try_clone().unwrap();
        let (bytes, _) = Client { stream }.read_to_end(SOON);
        assert_eq!(bytes.first(), Some(&22), "the server's answer");
    }
    proxy.wait_for_log("tls_timeout: TLS handshake not complete within 2s");
    assert_eq!(broker.accepted(), 0);
    proxy.wait_until_idle(port);
}

#[test]
fn a_hello_of_16_kib_is_served_and_a_longer_one_refused() {
    let ca = Authority::new("root");
    let (broker, port, files) = before_a_broker(&ca, "");
    let mut proxy = Proxy::start(&files, &[port]);
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let client = TlsClient::to(port).name("a.test").version(version);
        let long = client.clone().longer_hello(15_900);
        long.mqtt(&Connect::v311("device-1"))
            .unwrap()
            .expect_alive();
        let error = client.longer_hello(16_384).connect().map(drop).unwrap_err();
        assert!(error.contains("decode error"), "{error}");
    }
    proxy.wait_for_log("tls_client_hello: ClientHello is larger than 16 KiB");
    assert_eq!(broker.accepted(), 2);
}

#[test]
fn tls_is_passed_through_to_the_broker() {
    let (ca, inner) = (Authority::new("root"), Authority::new("inner"));
    let (one, two) = (Broker::echo(), Broker::echo());
    let behind = Broker::mqtt();
    // A second proxy ends TLS behind the first one: any TLS server would do.
    let [pass, either, inside] = free_ports();
    let inner_ssls = [ssl("1", "'*'", &inner.issue(&["inner"]), "")];
    let inner_files = Files::new(
        &tls_config(&[inside], "", ""),
        &tls_routes(&one_node(behind.addr()), &inner_ssls),
    );
    let _inner = Proxy::start(&inner_files, &[inside]);
    let config = format!(
        "apisix:\n  stream_proxy:\n    tcp:\n\
         \x20     - {{addr: \"127.0.0.1:{pass}\", tls_passthrough: true}}\n\
         \x20     - {{addr: \"127.0.0.1:{either}\", tls: true, tls_passthrough: true}}\n"
    );
    let node = |addr| format!("upstream: {{nodes: {{\"{addr}\": 1}}}}");
    let routes = format!(
        "stream_routes:\n  - {{id: 1, sni: \"*.in.test\", tls_passthrough: true, {}}}\n  \
         - {{id: 2, sni: one.test, {}}}\n  - {{id: 3, {}}}\nssls:\n  - {}\n#END\n",
        node(local(inside)),
        node(one.addr()),
        node(two.addr()),
        ssl("1", "one.test", &ca.issue(&["outer"]), ""),
    );
    let files = Files::new(&config, &routes);
    let _proxy = Proxy::start(&files, &[pass, either]);
    for port in [pass, either] {
        let client = TlsClient::to(port).name("a.in.test").trust(&inner);
        let mut client = client.connect().err().map_or_else(
            || panic!("the certificate of `inner` is not for this name"),
            |_| {
                TlsClient::to(port)
                    .name("a.in.test")
                    .mqtt(&Connect::v311("device-1"))
                    .unwrap()
            },
        );
        assert_eq!(
            client.certificate(),
            "inner",
            "the broker's own certificate"
        );
        client.expect_alive();
    }
    // Where the route does not say so, TLS ends at the listener that can.
    let mut ended = TlsClient::to(either).name("one.test").connect().unwrap();
    assert_eq!(ended.certificate(), "outer");
    ended.send(b"hello").unwrap();
    ended.expect(b"hello");
    // On the other listener the broker gets the ClientHello itself; who has no name, or speaks no
    // TLS, takes the route without one.
    let mut plain = Client::to(pass);
    plain.send(b"no TLS at all");
    plain.expect(b"no TLS at all");
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
}

#[test]
fn a_certificate_is_replaced_under_live_traffic_without_a_drop() {
    const CLIENTS: usize = 500;
    let ca = Authority::new("root");
    let broker = Broker::mqtt();
    let port = free_port();
    let routes = |name: &str| {
        let ssls = [ssl("1", "a.test", &ca.issue(&[name]), "")];
        tls_routes(&one_node(broker.addr()), &ssls)
    };
    let files = Files::new(&tls_config(&[port], "", ""), &routes("before"));
    let mut proxy = Proxy::start(&files, &[port]);
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicUsize::new(0));
    let publishers: Vec<_> = (0..10)
        .map(|thread| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                let client = TlsClient::to(port).name("a.test");
                let id = |index| format!("device-{thread}-{index}");
                let mut live: Vec<_> = (0..CLIENTS / 10)
                    .map(|index| client.mqtt(&Connect::v311(&id(index))).unwrap())
                    .collect();
                while !stop.load(Ordering::SeqCst) {
                    live.iter_mut().for_each(|talk| talk.expect_alive());
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                live.iter_mut().for_each(|talk| talk.expect_alive());
                live.len()
            })
        })
        .collect();
    let further = |rounds: &AtomicUsize| {
        let before = rounds.load(Ordering::SeqCst);
        wait_until("every client to publish", SOON * 4, || {
            (rounds.load(Ordering::SeqCst) >= before + 20).then_some(())
        });
    };
    further(&rounds);
    for name in ["after", "later"] {
        proxy.reload(|| files.replace_routes(routes(name)));
        assert_eq!(
            TlsClient::to(port).name("a.test").certificate().unwrap(),
            name
        );
        further(&rounds);
    }
    stop.store(true, Ordering::SeqCst);
    let alive: usize = publishers
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!((alive, broker.accepted()), (CLIENTS, CLIENTS));
}
