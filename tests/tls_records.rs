//! Established TLS connections: by ourselves they take a fraction of the memory that they take by
//! OpenSSL's session, and a setting says by whom.

mod support;

use openssl::ssl::SslVersion;
use support::process::more_open_files;
use support::tls::{Authority, TlsClient, TlsTalk, before_a_broker, tls_routes};
use support::tls_broker::tls_broker;
use support::*;

/// Connections before the first look, so that what the process takes once has been taken.
const FIRST: usize = 300;
/// Connections between the two looks.
const MORE: usize = 1000;

fn connect(port: u16, count: usize) -> Vec<TlsTalk> {
    let versions = [SslVersion::TLS1_2, SslVersion::TLS1_3];
    (0..count)
        .map(|number| {
            let client = TlsClient::to(port).name("a.test");
            let client = client.version(versions[number % 2]);
            let connect = Connect::v311(&format!("device-{number}"));
            client.mqtt(&connect).expect("a connection")
        })
        .collect()
}

/// Bytes of memory for each of many idle connections with this setting.
fn bytes_each(layer: &str) -> f64 {
    let ca = Authority::new("root");
    let more = format!("mqtt_proxy: {{tls: {{record_layer: {layer}}}}}\n");
    let (broker, port, files) = before_a_broker(&ca, &more);
    let proxy = Proxy::start(&files, &[port]);
    let mut all = connect(port, FIRST);
    let before = proxy.resident_kib();
    all.extend(connect(port, MORE));
    let after = proxy.resident_kib();
    for talk in &mut all {
        talk.expect_alive();
    }
    assert_eq!(broker.accepted(), FIRST + MORE);
    after.saturating_sub(before) as f64 * 1024.0 / MORE as f64
}

#[test]
fn an_idle_connection_takes_little_unless_openssl_has_it() {
    more_open_files();
    let (own, openssl) = (bytes_each("own"), bytes_each("openssl"));
    eprintln!("{own} bytes a connection by ourselves, {openssl} by OpenSSL");
    assert!(
        openssl > 8_000.0,
        "OpenSSL's sessions are not there: {openssl}"
    );
    assert!(
        own < openssl / 3.0,
        "{own} by ourselves, {openssl} by OpenSSL"
    );
}

/// The same of connections whose broker speaks TLS.
fn bytes_each_to_a_broker(layer: &str) -> f64 {
    let ca = Authority::new("root");
    let (seen, _hellos) = std::sync::mpsc::channel();
    let broker = tls_broker(&ca.issue(&["broker"]), seen, |_| {});
    let port = free_port();
    let own = format!("mqtt_proxy: {{tls: {{record_layer: {layer}}}}}\n");
    let upstream = format!("scheme: tls, nodes: {{\"{}\": 1}}", broker.addr());
    let files = Files::new(&config_with(&[port], &own), &tls_routes(&upstream, &[]));
    let proxy = Proxy::start(&files, &[port]);
    let connect = |n: usize| Client::mqtt(port, &Connect::v311(&format!("device-{n}")));
    let mut all: Vec<Client> = (0..FIRST).map(connect).collect();
    let before = proxy.resident_kib();
    all.extend((FIRST..FIRST + MORE).map(connect));
    let after = proxy.resident_kib();
    all.iter_mut().for_each(Client::expect_alive);
    after.saturating_sub(before) as f64 * 1024.0 / MORE as f64
}

#[test]
fn so_does_one_to_a_broker() {
    more_open_files();
    let [own, openssl] = ["own", "openssl"].map(bytes_each_to_a_broker);
    eprintln!("{own} bytes a connection by ourselves, {openssl} by OpenSSL");
    assert!(
        own < openssl / 3.0,
        "{own} by ourselves, {openssl} by OpenSSL"
    );
}

#[test]
fn bulk_and_messages_pass_either_way_with_either_setting() {
    let ca = Authority::new("root");
    for layer in ["own", "openssl"] {
        let broker = Broker::echo();
        let port = free_port();
        let ssls = [support::tls::ssl("1", "a.test", &ca.issue(&["a.test"]), "")];
        let routes = format!(
            "stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{}\": 1}}}}}}\nssls:\n  - {}\n#END\n",
            broker.addr(),
            ssls[0]
        );
        let more = format!("mqtt_proxy: {{tls: {{record_layer: {layer}}}}}\n");
        let files = Files::new(&support::tls::tls_config(&[port], "", &more), &routes);
        let _proxy = Proxy::start(&files, &[port]);
        for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            let client = TlsClient::to(port).name("a.test").version(version);
            let mut talk = client.connect().expect("a connection");
            for size in [1, 64, 20_000, 100_000] {
                let bytes: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
                talk.send(&bytes).expect("send");
                talk.expect(&bytes);
            }
        }
    }
}
