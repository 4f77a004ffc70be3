//! An upgrade of the running binary cuts no connection whose broker speaks TLS.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use openssl::ssl::{SslContextBuilder, SslVersion};
use rustix::process::Signal;
use support::generations::{Generations, send_signal};
use support::handover::{Waiting, socket_in, take_nothing};
use support::mosquitto::{Mosquitto, publish as publish_by_mosquitto, subscriber};
use support::mqtt::publish;
use support::tls::{Authority, TlsClient, TlsTalk, ssl, tls_config, tls_routes, write};
use support::tls_broker::{Hello, tls_broker};
use support::*;

const SUITES: [(SslVersion, &str); 6] = [
    (SslVersion::TLS1_3, "TLS_AES_128_GCM_SHA256"),
    (SslVersion::TLS1_3, "TLS_AES_256_GCM_SHA384"),
    (SslVersion::TLS1_3, "TLS_CHACHA20_POLY1305_SHA256"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"),
];

fn only(builder: &mut SslContextBuilder, (version, suite): (SslVersion, &str)) {
    builder.set_min_proto_version(Some(version)).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
    match version {
        SslVersion::TLS1_3 => builder.set_ciphersuites(suite).unwrap(),
        _ => builder.set_cipher_list(suite).unwrap(),
    }
}

/// A proxy before brokers that speak TLS, each in its way: a listener without TLS, one with it, and
/// in front of each broker one of its own.
struct Setup {
    brokers: Vec<Broker>,
    ports: Vec<u16>,
    tls: u16,
    files: Files,
    proxy: Generations,
    _seen: std::sync::mpsc::Receiver<Hello>,
}

fn start(suites: &[(SslVersion, &str)], own: &str) -> Setup {
    let root = Authority::new("root");
    let (seen, hellos) = channel();
    let identity = root.issue(&["127.0.0.1", "a.test"]);
    let brokers: Vec<Broker> = suites
        .iter()
        .map(|suite| tls_broker(&identity, seen.clone(), |builder| only(builder, *suite)))
        .collect();
    let ports: Vec<u16> = brokers.iter().map(|_| free_port()).collect();
    let tls = free_port();
    let verify = format!("tls: {{verify: true, ca: {:?}}}", root.pem());
    let mut routes = String::from("stream_routes:\n");
    for (broker, port) in brokers.iter().zip(&ports) {
        routes.push_str(&format!(
            "  - {{id: {port}, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, \
             upstream: {{scheme: tls, {verify}, nodes: {{\"{}\": 1}}}}}}\n",
            broker.addr()
        ));
    }
    // The last broker behind TLS as well.
    let all = tls_routes(
        &format!(
            "scheme: tls, {verify}, nodes: {{\"{}\": 1}}",
            brokers[brokers.len() - 1].addr()
        ),
        &[ssl("1", "a.test", &root.issue(&["a.test"]), "")],
    );
    let routes = all.replacen("stream_routes:\n", &routes, 1);
    let listens: String = ports
        .iter()
        .map(|port| format!("      - \"127.0.0.1:{port}\"\n"))
        .collect();
    let files = Files::new(&tls_config(&[tls], &listens, own), &routes);
    let every: Vec<u16> = ports.iter().copied().chain([tls]).collect();
    let proxy = Generations::start(&files, &every);
    Setup {
        brokers,
        ports,
        tls,
        files,
        proxy,
        _seen: hellos,
    }
}

impl Setup {
    /// A client of each broker.
    fn plain(&self, prefix: &str) -> Vec<Client> {
        let connect = |port: &u16| Client::mqtt(*port, &Connect::v311(&format!("{prefix}-{port}")));
        self.ports.iter().map(connect).collect()
    }

    /// Clients with TLS in both versions.
    fn with_tls(&self, prefix: &str) -> Vec<TlsTalk> {
        let versions = [SslVersion::TLS1_2, SslVersion::TLS1_3];
        let clients = versions.map(|version| {
            let client = TlsClient::to(self.tls).name("a.test").version(version);
            let connect = Connect::v311(&format!("{prefix}-tls"));
            client.mqtt(&connect).expect("a connection")
        });
        clients.into()
    }
}

#[test]
fn connections_to_tls_brokers_move_and_publish_all_the_while() {
    let mut setup = start(&SUITES, "");
    let (mut idle, mut idle_tls) = (setup.plain("idle"), setup.with_tls("idle"));
    let (over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (mut busy, mut busy_tls) = (setup.plain("busy"), setup.with_tls("busy"));
        let (over, rounds) = (&over, &rounds);
        scope.spawn(move || {
            let mut size = 1;
            while !over.load(Ordering::SeqCst) {
                // From one byte to several records.
                size = (size * 7) % 60_000 + 1;
                let packet = publish("t", &vec![size as u8; size]);
                busy.iter_mut().for_each(|client| client.send(&packet));
                for client in &mut busy_tls {
                    client.send(&packet).expect("send");
                }
                busy.iter_mut().for_each(|client| client.expect(&packet));
                busy_tls
                    .iter_mut()
                    .for_each(|client| client.expect(&packet));
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..4 {
            let before = rounds.load(Ordering::SeqCst);
            wait_until("traffic", SOON, || {
                (rounds.load(Ordering::SeqCst) > before + 5).then_some(())
            });
            // Returns when the old process is gone: nobody is left there.
            let moved = setup.proxy.upgrade();
            assert_eq!(moved.connections, 2 * (SUITES.len() + 2), "{moved:?}");
            idle.iter_mut().for_each(Client::expect_alive);
            idle_tls.iter_mut().for_each(TlsTalk::expect_alive);
        }
        over.store(true, Ordering::SeqCst);
    });
    let accepted: usize = setup.brokers.iter().map(Broker::accepted).sum();
    assert_eq!(accepted, 2 * (SUITES.len() + 2), "nobody connected again");
}

#[test]
fn what_a_slow_client_is_owed_by_a_tls_broker_moves_as_well() {
    let mut setup = start(&SUITES[..4], "");
    let mut clients = setup.plain("slow");
    let packet = publish(
        "t",
        &(0..3 << 20).map(|n| (n / 251) as u8).collect::<Vec<_>>(),
    );
    // The brokers echo what nobody reads yet.
    for client in &mut clients {
        let mut writer = client.stream.try_clone().expect("a socket");
        let packet = packet.clone();
        std::thread::spawn(move || std::io::Write::write_all(&mut writer, &packet));
    }
    let mut read = 0;
    for part in [1_000, 500_000, 1_000_000] {
        for client in &mut clients {
            client.expect(&packet[read..read + part]);
        }
        read += part;
        assert_eq!(setup.proxy.upgrade().connections, 4);
    }
    for client in &mut clients {
        client.expect(&packet[read..]);
        client.expect_alive();
    }
}

#[test]
fn mosquitto_with_client_certificates_notices_nothing() {
    let ca = Authority::new("root");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| write(dir.path(), name, text);
    let server = ca.issue(&["127.0.0.1"]);
    let mosquitto = Mosquitto::start_with(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        path("ca.pem", &ca.pem()),
        path("cert.pem", &server.cert),
        path("key.pem", &server.key)
    ));
    let own = ca.issue(&["the-proxy"]);
    let port = free_port();
    let routes = tls_routes(
        &format!(
            "scheme: tls, tls: {{verify: true, ca: {:?}, client_cert: {:?}, client_key: {:?}}}, \
             nodes: {{\"{}\": 1}}",
            ca.pem(),
            own.cert,
            own.key,
            mosquitto.addr()
        ),
        &[],
    );
    let files = Files::new(&config(&[port]), &routes);
    let mut proxy = Generations::start(&files, &[port]);
    let mut listens = subscriber(port, &["-i", "listens", "-t", "t/#", "-q", "1"]);
    mosquitto.wait_for_subscriber("listens");
    for n in 0..3 {
        // The one that has just published may not have ended yet.
        let moved = proxy.upgrade();
        assert!((1..=2).contains(&moved.connections), "{moved:?}");
        let text = format!("after upgrade {n}");
        let sent = publish_by_mosquitto(port, &["-i", "says", "-t", "t/1", "-m", &text, "-q", "1"]);
        assert_eq!(sent.code, 0, "{}", sent.all());
        listens.wait_for_line_after(0, &text, SOON);
    }
    assert_eq!(mosquitto.times_seen("listens"), 1);
}

#[test]
fn sessions_that_openssl_holds_stay_in_the_old_process_and_live() {
    let own = "mqtt_proxy: {tls: {record_layer: openssl}}\n";
    let mut setup = start(&SUITES[..1], own);
    let mut stays = setup.plain("stays");
    let old = setup.proxy.current();
    assert_eq!(setup.proxy.begin_upgrade().connections, 0);
    stays[0].expect_alive();
    drop(stays);
    setup.proxy.wait_until_gone(old);
}

#[test]
fn a_version_that_takes_those_of_clients_only_gets_no_others() {
    let setup = start(&SUITES[..1], "");
    let mut live = setup.plain("live");
    let waiting = Waiting::at(socket_in(&setup.proxy.runtime(), &setup.files));
    let mark = setup.proxy.mark();
    setup.proxy.signal_current(Signal::QUIT);
    let old = waiting.accept();
    let ready = format!(
        r#"{{"protocol":1,"version":"0.1.0","pid":{},"takes_tls":true}}"#,
        std::process::id()
    );
    take_nothing(&old, &ready);
    let said = "0 connections handed over";
    setup.proxy.wait_for_output_after(mark, said, SOON);
    live[0].expect_alive();
    send_signal(setup.proxy.current(), Signal::INT);
}
