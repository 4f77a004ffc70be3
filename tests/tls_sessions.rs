//! An established TLS connection on either side: keys that are renewed in the middle, a broker that
//! renegotiates, and ends with and without a close_notify. The other end is OpenSSL's own program.

mod support;

use std::net::SocketAddr;
use std::process::Command;

use support::process::Process;
use support::tls::{Authority, Identity, ssl, tls_config, write};
use support::*;

const HINT: &str = "Debian: apt-get install openssl";

/// A proxy that ends TLS on the first port and takes plain TCP on the second, before one node.
fn start(node: SocketAddr, upstream: &str, identity: &Identity) -> (Proxy, [u16; 2], Files) {
    start_with("", node, upstream, identity)
}

/// The same with this below the other settings.
fn start_with(
    own: &str,
    node: SocketAddr,
    upstream: &str,
    identity: &Identity,
) -> (Proxy, [u16; 2], Files) {
    let [tls, plain] = free_ports();
    let listens = format!("      - \"127.0.0.1:{plain}\"\n");
    let config = tls_config(&[tls], &listens, own);
    let routes = format!(
        "stream_routes:\n  - {{id: 1, upstream: {{nodes: {{\"{node}\": 1}}{upstream}}}}}\n\
         ssls:\n  - {}\n#END\n",
        ssl("1", "a.test", identity, "")
    );
    let files = Files::new(&config, &routes);
    (Proxy::start(&files, &[tls, plain]), [tls, plain], files)
}

fn s_client(port: u16, args: &[&str]) -> Process {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]);
    command.args(["-servername", "a.test"]).args(args);
    Process::spawn_listening("openssl s_client", &mut command, HINT)
}

/// Says it and waits until it comes back from the broker.
fn expect_echo(client: &mut Process, text: &str) {
    let mark = client.mark();
    client.say(text);
    client.wait_for_line_after(mark, text, SOON);
}

#[test]
fn a_client_may_renew_its_keys_at_any_time() {
    let ca = Authority::new("root");
    let broker = Broker::echo();
    let (_proxy, [port, _], _files) = start(broker.addr(), "", &ca.issue(&["a.test"]));
    let mut client = s_client(port, &["-tls1_3"]);
    expect_echo(&mut client, "before");
    for turn in 0..3 {
        // `k` renews its own keys, `K` asks the other side to do the same.
        for letter in ["k", "K"] {
            let mark = client.mark();
            client.say(letter);
            client.wait_for_line_after(mark, "KEYUPDATE", SOON);
            expect_echo(&mut client, &format!("after {letter} {turn}"));
            expect_echo(&mut client, &format!("again {letter} {turn}"));
        }
    }
    assert_eq!(broker.accepted(), 1);
}

/// `openssl s_server` as a broker.
struct Server {
    process: Process,
    addr: SocketAddr,
    _folder: tempfile::TempDir,
}

fn s_server(identity: &Identity, args: &[&str]) -> Server {
    let folder = tempfile::tempdir().expect("temp dir");
    let cert = write(folder.path(), "cert.pem", &identity.cert);
    let key = write(folder.path(), "key.pem", &identity.key);
    let addr = local(free_port());
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &addr.to_string()]);
    command.args(["-cert", &cert, "-key", &key]).args(args);
    let mut process = Process::spawn_listening("openssl s_server", &mut command, HINT);
    process.wait_for_line_after(0, "ACCEPT", SOON);
    Server {
        process,
        addr,
        _folder: folder,
    }
}

impl Server {
    /// Bytes get through both ways.
    fn expect_alive(&mut self, client: &mut Client, text: &str) {
        let mark = self.process.mark();
        client.send(format!("to {text}\n").as_bytes());
        self.process
            .wait_for_line_after(mark, &format!("to {text}"), SOON);
        self.process.say(&format!("from {text}"));
        client.expect(format!("from {text}\n").as_bytes());
    }
}

#[test]
fn a_broker_may_renew_its_keys_at_any_time() {
    let ca = Authority::new("root");
    let mut server = s_server(&ca.issue(&["broker"]), &["-tls1_3"]);
    let identity = ca.issue(&["a.test"]);
    let (_proxy, [_, plain], _files) = start(server.addr, ", scheme: tls", &identity);
    let mut client = Client::to(plain);
    server.expect_alive(&mut client, "begin");
    for turn in 0..3 {
        for letter in ["k", "K"] {
            server.process.say(letter);
            server.expect_alive(&mut client, &format!("{letter} {turn}"));
        }
    }
}

/// Where OpenSSL has the session.
#[test]
fn a_broker_may_renegotiate() {
    let ca = Authority::new("root");
    let mut server = s_server(&ca.issue(&["broker"]), &["-tls1_2"]);
    let identity = ca.issue(&["a.test"]);
    let own = "mqtt_proxy: {tls: {record_layer: openssl}}\n";
    let (_proxy, [_, plain], _files) = start_with(own, server.addr, ", scheme: tls", &identity);
    let mut client = Client::to(plain);
    server.expect_alive(&mut client, "begin");
    for turn in 0..3 {
        let mark = server.process.mark();
        server.process.say("r");
        server
            .process
            .wait_for_line_after(mark, "SSL_do_handshake -> 1", SOON);
        // The client speaks while the handshake is under way.
        server.expect_alive(&mut client, &format!("turn {turn}"));
    }
}

#[test]
fn a_client_may_not_renegotiate_and_is_told_so() {
    let ca = Authority::new("root");
    let broker = Broker::echo();
    let (_proxy, [port, _], _files) = start(broker.addr(), "", &ca.issue(&["a.test"]));
    let mut client = s_client(port, &["-tls1_2"]);
    expect_echo(&mut client, "before");
    let mark = client.mark();
    client.say("R");
    client.wait_for_line_after(mark, "no renegotiation", SOON);
}
