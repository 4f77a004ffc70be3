//! The access log: a line when a connection is admitted and one when it ends, with who ended it and
//! how far it had come, in three formats, to streams and to files that are rotated.

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::metrics::value;
use support::mqtt::{disconnect, hex};
use support::tls::{Authority, TlsClient, ssl, tls_config, tls_routes};
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, config_with, free_port, free_ports, local,
    wait_until,
};

const DROPPED: &str = "mqtt_proxy_access_log_dropped_total";

/// A route to `nodes` in a folder whose `config.yaml` ends with `more`.
fn files(port: u16, node: std::net::SocketAddr, more: &str) -> Files {
    let routes = format!(
        "stream_routes:\n  - id: devices\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream_id: brokers\nupstreams:\n  - {{id: brokers, type: chash, key: mqtt_client_id, \
         nodes: {{\"{node}\": 1}}}}\n#END\n"
    );
    Files::new(&config_with(&[port], more), &routes)
}

fn own(rest: &str) -> String {
    format!("mqtt_proxy:\n  access_log: {{path: access.log{rest}}}\n")
}

/// The lines of a file once there are `count`.
fn lines(files: &Files, name: &str, count: usize) -> Vec<String> {
    wait_until("the lines of the access log", SOON, || {
        let text = fs::read_to_string(files.path(name)).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count && text.ends_with('\n')).then_some(lines)
    })
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn ended(line: &Value) -> [&str; 3] {
    ["end_side", "end_phase", "end_reason"].map(|name| line[name].as_str().expect(name))
}

#[test]
fn one_line_when_it_is_admitted_and_one_when_it_ends() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = files(port, broker.addr(), &own(""));
    let _proxy = Proxy::start(&files, &[port]);
    let connect = Connect::v5("dev\"1\"\u{7f}")
        .username("fleet")
        .keep_alive(30)
        .properties(&hex("11 00000e10"));
    let mut client = Client::mqtt(port, &connect);
    let from = client.local_addr().to_string();

    let admitted = json(&lines(&files, "access.log", 1)[0]);
    assert_eq!(admitted["event"], "connected");
    assert_eq!(admitted["client"], from.as_str());
    assert_eq!(admitted["listener"], format!("127.0.0.1:{port}"));
    assert_eq!(admitted["mqtt_version"], 5);
    assert_eq!(admitted["client_id"], "dev\"1\"\u{7f}");
    assert_eq!(admitted["username"], "fleet");
    assert_eq!(admitted["keep_alive"], 30);
    assert_eq!(admitted["clean_start"], true);
    assert_eq!(admitted["session_expiry"], 3600);
    assert_eq!(admitted["route"], "devices");
    assert_eq!(admitted["upstream"], "brokers");
    assert_eq!(admitted["node"], broker.addr().to_string());
    assert_eq!(admitted["node_addr"], broker.addr().to_string());
    assert_eq!(admitted["hash_key"], "configured");
    assert_eq!(admitted["tries"], 1);
    assert!(admitted["connect_seconds"].as_f64().expect("a number") < 10.0);
    assert!(admitted["dial_seconds"].as_f64().expect("a number") < 10.0);
    assert!(admitted.get("end_side").is_none());

    client.send(&disconnect());
    client.finish_sending();
    let all = lines(&files, "access.log", 2);
    let end = json(&all[1]);
    assert_eq!(all.len(), 2);
    assert_eq!(end["event"], "ended");
    assert_eq!(end["conn"], admitted["conn"]);
    assert_eq!(end["client_id"], admitted["client_id"]);
    assert_eq!(ended(&end), ["client", "relay", "client_closed"]);
    assert_eq!(end["connack"], 0);
    assert!(end["first_byte_seconds"].as_f64().expect("a number") < 10.0);
    let sent = connect.build().len() + disconnect().len();
    assert_eq!(end["to_broker_bytes"], sent);
    // CONNACK, and the echo of DISCONNECT.
    assert_eq!(end["to_client_bytes"], 5 + disconnect().len());
    assert!(!all[1].contains('\u{7f}'), "a control character in the log");
}

#[test]
fn connections_that_a_leaving_process_cuts_have_their_line() {
    let broker = Broker::mqtt();
    for (signal, times) in [(Signal::INT, 1), (Signal::TERM, 2)] {
        let port = free_port();
        let files = files(port, broker.addr(), &own(", format: logfmt"));
        let mut proxy = Proxy::start(&files, &[port]);
        let _client = Client::mqtt(port, &Connect::v311("a"));
        for time in 0..times {
            if time > 0 {
                proxy.wait_for_log("SIGTERM");
            }
            proxy.signal(signal);
        }
        proxy.wait_for_exit(SOON);
        let all = lines(&files, "access.log", 2);
        let end = " end_side=proxy end_phase=relay end_reason=shutdown";
        assert!(all[1].ends_with(end), "{}", all[1]);
        assert!(all[1].contains(" event=ended conn="), "{}", all[1]);
    }
}

#[test]
fn apisix_keys_write_apisix_format() {
    let broker = Broker::mqtt();
    let port = free_port();
    let more = "nginx_config:\n  stream: {enable_access_log: true}\n";
    let files = files(port, broker.addr(), more);
    let mut proxy = Proxy::start(&files, &[port]);
    let client = Client::mqtt(port, &Connect::v311("a"));
    drop(client);
    // The folder is not called conf, so it is the prefix itself.
    let line = lines(&files, "logs/access_stream.log", 1).remove(0);
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!(fields[0], "127.0.0.1");
    assert!(
        fields[1].starts_with('[') && fields[2].ends_with(']'),
        "{line}"
    );
    assert_eq!(fields[3..5], ["TCP", "200"]);
    assert_eq!(fields[5..7], ["4", "15"], "bytes sent and received");
    assert!(
        fields[7].parse::<f64>().is_ok_and(|time| time < 10.0),
        "{line}"
    );

    proxy.reload(|| files.replace_routes("stream_routes: []\n#END\n"));
    Client::to(port).expect_closed();
    let refused = lines(&files, "logs/access_stream.log", 2).remove(1);
    assert!(refused.contains(" TCP 001 0 0 "), "{refused}");
}

#[test]
fn a_format_of_ones_own_escapes_as_nginx_does() {
    let broker = Broker::mqtt();
    let port = free_port();
    let format = "$remote_addr|${mqtt_client_id}|$upstream_addr|$ssl_alpn_protocol|$end_side";
    let more = format!(
        "nginx_config:\n  stream:\n    access_log_format: '{format}'\n{}",
        own(", format: nginx")
    );
    let files = files(port, broker.addr(), &more);
    let mut proxy = Proxy::start(&files, &[port]);
    proxy.wait_for_log("$ssl_alpn_protocol has no value here");
    drop(Client::mqtt(port, &Connect::v311("a\"\u{e9}")));
    let line = lines(&files, "access.log", 1).remove(0);
    let expected = format!("127.0.0.1|a\\x22\\xC3\\xA9|{}|-|client", broker.addr());
    assert_eq!(line, expected);
}

#[test]
fn variables_of_tls_are_in_every_format() {
    let broker = Broker::mqtt();
    let ca = Authority::new("root");
    let client = format!(", client: {{ca: {:?}}}", ca.pem());
    let ssls = [ssl("1", "a.test", &ca.issue(&["a.test"]), &client)];
    let routes = tls_routes(&support::tls::one_node(broker.addr()), &ssls);
    let identity = ca.issue(&["dev 1"]);
    let certificate = openssl::x509::X509::from_pem(identity.cert.as_bytes()).expect("PEM");
    let digest = certificate.digest(openssl::hash::MessageDigest::sha1());
    let digest = digest.expect("SHA-1");
    let fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let serial = certificate.serial_number().to_bn().expect("a number");
    let serial = serial.to_hex_str().expect("a number").to_string();
    let expected = [
        ("ssl_server_name", "a.test"),
        ("ssl_protocol", "TLSv1.3"),
        ("ssl_cipher", "TLS_AES_256_GCM_SHA384"),
        ("ssl_session_reused", "."),
        ("ssl_client_verify", "SUCCESS"),
        ("ssl_client_s_dn", "CN=dev 1,O=mqtt-proxy tests"),
        ("ssl_client_cn", "dev 1"),
        ("ssl_client_serial", &serial),
        ("ssl_client_fingerprint", &fingerprint),
    ];
    let variables: Vec<String> = expected.map(|(name, _)| format!("${name}")).into();
    let format = variables.join("|");
    for kind in ["json", "logfmt", "nginx"] {
        let port = free_port();
        let more = format!(
            "nginx_config:\n  stream:\n    access_log_format: '{format}'\n{}",
            own(&format!(", format: {kind}"))
        );
        let files = Files::new(&tls_config(&[port], "", &more), &routes);
        let _proxy = Proxy::start(&files, &[port]);
        let client = TlsClient::to(port).name("A.test").identity(&identity);
        let client = client.version(openssl::ssl::SslVersion::TLS1_3);
        drop(client.mqtt(&Connect::v311("x")).expect("a handshake"));
        let line = match kind {
            "nginx" => lines(&files, "access.log", 1).remove(0),
            _ => lines(&files, "access.log", 2).remove(1),
        };
        match kind {
            "nginx" => assert_eq!(line, expected.map(|(_, value)| value).join("|")),
            "json" => {
                let line = json(&line);
                for (name, value) in expected {
                    assert_eq!(line[name], value, "{name}");
                }
                assert!(line["handshake_seconds"].as_f64().expect("a number") > 0.0);
            }
            _ => {
                for (name, value) in expected {
                    let quoted = value.contains(' ') || value.contains('=');
                    let field = match quoted {
                        true => format!(" {name}=\"{value}\" "),
                        false => format!(" {name}={value} "),
                    };
                    assert!(line.contains(&field), "{field} in {line}");
                }
            }
        }
    }
}

#[test]
fn an_unknown_variable_is_an_error_with_its_place() {
    let broker = Broker::mqtt();
    let port = free_port();
    let more = "nginx_config:\n  stream:\n    enable_access_log: true\n    \
                access_log_format: '$remote_adr'\n";
    let files = files(port, broker.addr(), more);
    let ran = support::cli(&[
        "check".as_ref(),
        "-c".as_ref(),
        files.config_path().as_os_str(),
    ]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    let told = "nginx_config.stream.access_log_format: unknown variable \"$remote_adr\"";
    assert!(ran.stdout.contains(told), "{}", ran.all());
}

#[test]
fn client_ids_can_be_hashed_or_left_out() {
    let broker = Broker::mqtt();
    for (policy, expected) in [("hash", Some("ba7816bf8f01cfea")), ("omit", None)] {
        let port = free_port();
        let more = own(&format!(", client_id: {policy}"));
        let files = files(port, broker.addr(), &more);
        let _proxy = Proxy::start(&files, &[port]);
        let connect = Connect::v311("abc").username("somebody");
        let _client = Client::mqtt(port, &connect);
        let line = lines(&files, "access.log", 1).remove(0);
        assert_eq!(
            json(&line).get("client_id").and_then(Value::as_str),
            expected
        );
        assert!(
            !line.contains("abc") && !line.contains("somebody"),
            "{line}"
        );
    }
}

#[test]
fn sigusr1_opens_a_renamed_file_again() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = files(port, broker.addr(), &own(""));
    let mut proxy = Proxy::start(&files, &[port]);
    let client = Client::mqtt(port, &Connect::v311("a"));
    lines(&files, "access.log", 1);
    fs::rename(files.path("access.log"), files.path("old.log")).expect("rename");
    proxy.signal(Signal::USR1);
    proxy.wait_for_log("access log opened again");
    drop(client);
    let new = lines(&files, "access.log", 1);
    assert_eq!(json(&new[0])["event"], "ended");
    assert_eq!(lines(&files, "old.log", 1).len(), 1);
}

#[test]
fn the_file_is_rotated_by_size() {
    let broker = Broker::mqtt();
    let port = free_port();
    let more = own(", rotate_size: 4000, rotate_keep: 3");
    let files = files(port, broker.addr(), &more);
    let _proxy = Proxy::start(&files, &[port]);
    for number in 0..60 {
        drop(Client::mqtt(port, &Connect::v311(&format!("dev-{number}"))));
    }
    wait_until("the last line", SOON, || {
        // A line that comes later may rotate it away.
        let newest = ["access.log", "access.log.1"];
        let texts = newest.map(|name| fs::read_to_string(files.path(name)).unwrap_or_default());
        let mut lines = texts.iter().flat_map(|text| text.lines());
        lines
            .any(|line| line.contains("\"dev-59\"") && line.contains("ended"))
            .then_some(())
    });
    for name in ["access.log", "access.log.1", "access.log.2", "access.log.3"] {
        let text = fs::read_to_string(files.path(name)).expect(name);
        text.lines().for_each(|line| _ = json(line));
    }
    assert!(!files.path("access.log.4").exists());
}

#[test]
fn standard_error_takes_the_lines_too() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = files(
        port,
        broker.addr(),
        "mqtt_proxy:\n  access_log: {format: logfmt}\n",
    );
    let mut proxy = Proxy::start(&files, &[port]);
    let mark = proxy.mark();
    drop(Client::mqtt(port, &Connect::v311("dev 7")));
    let line = proxy.wait_for_log_after(mark, "event=ended");
    assert!(line.starts_with("ts=20"), "{line}");
    assert!(line.contains(" client_id=\"dev 7\" "), "{line}");
}

#[test]
fn a_log_that_nobody_takes_drops_lines_and_delays_nobody() {
    let broker = Broker::mqtt();
    let [port, metrics] = free_ports();
    let more = format!(
        "mqtt_proxy:\n  metrics: {{addr: \"127.0.0.1:{metrics}\"}}\n  \
         access_log: {{path: pipe, queue: 16}}\n"
    );
    let files = files(port, broker.addr(), &more);
    let made = Command::new("mkfifo").arg(files.path("pipe")).status();
    assert!(made.expect("mkfifo").success());
    // Both ends here, so that opening waits for nobody; nothing is ever read.
    let _reader = fs::File::options()
        .read(true)
        .write(true)
        .open(files.path("pipe"))
        .expect("the pipe");
    let mut proxy = Proxy::start(&files, &[port]);
    let mut kept = Client::mqtt(port, &Connect::v311("kept"));
    // A pipe holds 64 KiB, which is some hundred lines.
    for number in 0..400 {
        drop(Client::mqtt(port, &Connect::v311(&format!("dev-{number}"))));
    }
    wait_until("dropped lines", SOON, || {
        (value(local(metrics), DROPPED, &[]) > 0.0).then_some(())
    });
    kept.expect_alive();
    proxy.signal(Signal::INT);
    let start = std::time::Instant::now();
    proxy.wait_for_exit(SOON);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "leaving took {took:?}");
}

#[test]
fn a_file_that_cannot_be_opened_stops_the_start() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = files(
        port,
        broker.addr(),
        "mqtt_proxy:\n  access_log: {path: config.yaml/access.log}\n",
    );
    let mut proxy = Proxy::spawn(&files, |_| {});
    proxy.wait_for_log("access log:");
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(1));
}

#[test]
fn the_line_of_the_end_survives_an_upgrade() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = files(port, broker.addr(), &own(""));
    let meeting = files.dir().to_owned();
    let mut old = Proxy::start_with(&files, &[local(port)], |command| {
        command.env("RUNTIME_DIRECTORY", &meeting);
    });
    let mut client = Client::mqtt(port, &Connect::v5("dev-1").username("fleet"));
    let admitted = json(&lines(&files, "access.log", 1)[0]);
    let mut new = Proxy::spawn(&files, |command| {
        command.arg("--upgrade").env("RUNTIME_DIRECTORY", &meeting);
    });
    wait_until("the new process to wait for the old one", SOON, || {
        let mut entries = fs::read_dir(files.dir()).expect("the folder").flatten();
        let is_socket = |name: &str| name.starts_with("upgrade-") && name.ends_with(".sock");
        let found = entries.any(|entry| is_socket(&entry.file_name().to_string_lossy()));
        found.then_some(())
    });
    old.signal(Signal::QUIT);
    new.wait_for_log("connections taken over");
    old.wait_for_exit(SOON);
    assert_eq!(lines(&files, "access.log", 1).len(), 1, "no end was told");
    client.expect_alive();
    drop(client);
    let end = json(&lines(&files, "access.log", 2)[1]);
    assert_eq!(ended(&end), ["client", "relay", "client_closed"]);
    for name in [
        "conn",
        "client",
        "client_id",
        "username",
        "node_addr",
        "keep_alive",
    ] {
        assert_eq!(end[name], admitted[name], "{name}");
    }
}
