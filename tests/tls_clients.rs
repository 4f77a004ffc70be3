//! The clients that people have: paho and mosquitto's over TLS and with certificates, to a
//! mosquitto that asks for one itself; and what `openssl s_client` is told.

mod support;

use std::path::Path;
use std::process::Command;

use support::mosquitto::{self, Mosquitto};
use support::process::Process;
use support::s_client::s_client;
use support::tls::{Authority, TlsClient, before_a_broker, ssl, tls_config, write};
use support::*;

/// Runs the whole story of `paho_session.py` over TLS.
fn paho(port: u16, level: &str, files: &[&str]) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/paho_session.py");
    let ids = ["sub", "pub", "read"].map(|role| format!("{role}-{level}-{}", files.len()));
    let mut command = Command::new("/usr/bin/python3");
    command.arg(&script).arg(port.to_string()).arg(level);
    command.args(&ids).args(files);
    let hint = "`make test` installs it (Debian: apt-get install python3-paho-mqtt)";
    Process::spawn("paho", &mut command, hint)
}

#[test]
fn paho_and_mosquitto_clients_over_tls_and_mutual_tls() {
    let ca = Authority::new("root");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| write(dir.path(), name, text);
    let (server, device) = (ca.issue(&["localhost", "127.0.0.1"]), ca.issue(&["device"]));
    let trust = path("ca.pem", &ca.pem());
    let (server_cert, server_key) = (path("s.pem", &server.cert), path("s.key", &server.key));
    let (cert, key) = (path("d.pem", &device.cert), path("d.key", &device.key));
    let broker = Mosquitto::start_with(&format!(
        "cafile {trust}\ncertfile {server_cert}\nkeyfile {server_key}\nrequire_certificate true\n"
    ));
    let routes = |client: &str| {
        format!(
            "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [3, 4, 5]}}}}\n    \
             upstream: {{scheme: tls, pass_host: node, nodes: {{\"{}\": 1}}, tls: {{verify: true, \
             ca: \"file://{trust}\", client_cert_id: out}}}}\n\
             ssls:\n  - {}\n  - {{id: out, type: client, {}}}\n#END\n",
            broker.addr(),
            ssl("in", "localhost", &server, client),
            ca.issue(&["the-proxy"]).yaml(),
        )
    };
    let port = free_port();
    let config = tls_config(&[port], "  ssl: {fallback_sni: localhost}\n", "");
    let files = Files::new(&config, &routes(""));
    let mut proxy = Proxy::start(&files, &[port]);
    let story = |level: &str, files: &[&str]| {
        let mut story = paho(port, level, files);
        story.wait_for_line_after(0, "the whole story went well", SOON * 3);
        assert!(story.wait_for_exit(SOON).success());
    };
    for level in ["3", "4", "5"] {
        story(level, &[&trust]);
    }
    let mutual = format!(", client: {{ca: \"file://{trust}\"}}");
    proxy.reload(|| files.replace_routes(routes(&mutual)));
    for level in ["4", "5"] {
        story(level, &[&trust, &cert, &key]);
    }
    // Without its certificate it ends in the handshake, and says so.
    let mut stranger = paho(port, "4", &[&trust]);
    assert!(!stranger.wait_for_exit(SOON * 2).success());
    proxy.wait_for_log("tls_client_certificate: client certificate: the client shows none");
    // mosquitto's own clients, both ways through.
    let own = ["--cafile", &trust, "--cert", &cert, "--key", &key];
    let with = |more: &[&str]| -> Vec<String> {
        own.iter()
            .chain(more)
            .map(|text| (*text).to_owned())
            .collect()
    };
    fn texts(all: &[String]) -> Vec<&str> {
        all.iter().map(String::as_str).collect()
    }
    let listen = with(&["-i", "listener", "-t", "a/#", "-q", "1"]);
    let mut subscriber = mosquitto::subscriber(port, &texts(&listen));
    broker.wait_for_subscriber("listener");
    for version in ["mqttv311", "mqttv5"] {
        let say = with(&["-t", "a/b", "-m", version, "-q", "1", "-V", version]);
        let ran = mosquitto::publish(port, &texts(&say));
        assert_eq!(ran.code, 0, "{}", ran.all());
        subscriber.wait_for_line_after(0, version, SOON);
    }
}

#[test]
fn what_openssl_is_told() {
    let ca = Authority::new("root");
    let (broker, port, files) = before_a_broker(&ca, "");
    let proxy = Proxy::start(&files, &[port]);
    let trust = write(files.dir(), "ca.pem", &ca.pem());
    let told = |args: &[&str], until: &str| {
        let args = [&["-servername", "a.test", "-CAfile", &trust], args].concat();
        s_client(port, &args, b"", until)
    };
    for (version, shown) in [("-tls1_2", "New, TLSv1.2, "), ("-tls1_3", "New, TLSv1.3, ")] {
        let said = told(&[version, "-verify_return_error"], "Verify return code: 0");
        assert!(said.contains(shown), "{version}: {said}");
    }
    let old = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let said = told(&old, "alert");
    assert!(said.contains("alert protocol version"), "{said}");
    // No cipher in common.
    let said = told(
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
        "alert",
    );
    assert!(said.contains("alert handshake failure"), "{said}");
    let said = s_client(port, &["-servername", "b.test"], b"", "alert");
    assert!(said.contains("unrecognized name"), "{said}");
    let said = s_client(port, &["-noservername"], b"", "alert");
    assert!(said.contains("alert"), "{said}");
    assert_eq!(broker.accepted(), 0);
    proxy.wait_until_idle(port);
}

#[test]
fn renegotiation_is_refused() {
    let ca = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&ca, "");
    let mut proxy = Proxy::start(&files, &[port]);
    let mut other = TlsClient::to(port)
        .name("a.test")
        .mqtt(&Connect::v311("other"))
        .unwrap();
    // `R` asks s_client for a renegotiation.
    let args = ["-tls1_2", "-servername", "a.test"];
    let said = s_client(port, &args, b"R\n", "no renegotiation");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation"), "{said}");
    other.expect_alive();
    assert!(proxy.is_running());
    drop(other);
    proxy.wait_until_idle(port);
}
