//! Private keys and the keys of tickets are in no log, no error and no answer, whatever is wrong.

mod support;

use rustix::process::Signal;
use support::generations::Generations;
use support::tls::{Authority, Identity, TlsClient, one_node, ssl, tls_config, tls_routes};
use support::*;

/// Everything that must not be shown of a key: each line of its PEM.
fn secrets(keys: &[&str]) -> Vec<String> {
    let lines = keys.iter().flat_map(|key| key.lines());
    let lines = lines.filter(|line| !line.starts_with('-') && line.len() > 10);
    lines.map(|line| line[..10].to_owned()).collect()
}

fn expect_none(secrets: &[String], what: &str, said: &str) {
    for secret in secrets {
        assert!(!said.contains(secret), "{what} shows a key: {said}");
    }
    assert!(!said.contains("PRIVATE KEY"), "{what}: {said}");
}

#[test]
fn no_key_is_ever_shown() {
    let ca = Authority::new("root");
    let broker = Broker::mqtt();
    let [good, by_file, by_env, to_broker, other] = ["a", "b", "c", "d", "e"].map(|name| {
        let identity = ca.issue_rsa(&[name]);
        assert!(identity.key.lines().count() > 10);
        identity
    });
    let mixed = Identity {
        cert: good.cert.clone(),
        key: other.key.clone(),
    };
    let swapped = Identity {
        cert: good.key.clone(),
        key: good.cert.clone(),
    };
    let cut = Identity {
        cert: good.cert.clone(),
        key: good.key[..good.key.len() / 2].to_owned(),
    };
    let secrets = secrets(&[
        &good.key,
        &by_file.key,
        &by_env.key,
        &to_broker.key,
        &other.key,
    ]);
    assert!(secrets.len() > 50);
    let port = free_port();
    let config = tls_config(
        &[port],
        "",
        "mqtt_proxy: {tls: {ticket_key_file: tickets.key}}\n",
    );
    let files = Files::new(&config, "#END\n");
    files.replace("tickets.key", [b'T'; 80]);
    files.replace("b.pem", &by_file.cert);
    files.replace("b.key", &by_file.key);
    let upstream = format!(
        "{}, scheme: tcp, tls: {{client_cert: {:?}, client_key: {:?}}}",
        one_node(broker.addr()),
        to_broker.cert,
        to_broker.key
    );
    let path = |name: &str| files.path(name).display().to_string();
    let fine = [
        ssl("1", "a.test", &good, ""),
        format!(
            "{{id: 2, sni: b.test, cert: \"file://{}\", key: \"file://{}\"}}",
            path("b.pem"),
            path("b.key")
        ),
        "{id: 3, sni: c.test, cert: $env://C_CERT, key: $env://C/key}".to_owned(),
    ];
    let bad = [
        ssl("1", "a.test", &mixed, ""),
        ssl("4", "d.test", &swapped, ""),
        ssl("5", "e.test", &cut, ""),
        format!(
            "{{id: 6, sni: f.test, cert: {:?}, key: [{:?}]}}",
            good.cert, good.key
        ),
        format!(
            "{{id: 7, sni: g.test, cert: {:?}, keyy: {:?}}}",
            good.cert, good.key
        ),
        "{id: 8, sni: h.test, cert: $env://C_CERT, key: $env://C/other}".to_owned(),
        format!(
            "{{id: 9, sni: i.test, cert: \"file://{0}\", key: \"file://{0}\"}}",
            path("b.key")
        ),
    ];
    files.replace_routes(tls_routes(&upstream, &fine));
    let environment = |command: &mut std::process::Command| {
        command.env("C_CERT", &by_env.cert);
        command.env("C", format!("{{\"key\": {:?}}}", by_env.key));
        command.env("RUST_LOG", "trace");
    };
    let mut proxy = Generations::start_with(&files, &[port], environment);
    for name in ["a.test", "b.test", "c.test"] {
        let client = TlsClient::to(port).name(name);
        client.mqtt(&Connect::v311(name)).unwrap().expect_alive();
    }
    // What is wrong is told, one by one; what was served stays.
    let mark = proxy.mark();
    files.replace_routes(tls_routes(&upstream, &bad));
    proxy.signal(Signal::HUP);
    proxy.wait_for_log_after(mark, "the key does not belong to the certificate");
    proxy.wait_for_log_after(mark, " reloaded");
    assert_eq!(
        TlsClient::to(port).name("a.test").certificate().unwrap(),
        "a"
    );
    let mark = proxy.mark();
    files.replace("tickets.key", [b'T'; 79]);
    proxy.wait_for_log_after(mark, "are no ticket keys");
    files.replace("tickets.key", [b'T'; 80]);
    // A text that is no YAML any more, in the middle of a key.
    let broken = tls_routes(&upstream, &fine).replacen("-----END", "\"-----END", 1);
    let mark = proxy.mark();
    files.replace_routes(&broken);
    proxy.signal(Signal::HUP);
    proxy.wait_for_log_after(mark, "not applied");
    for routes in [&broken, &tls_routes(&upstream, &bad)] {
        files.replace_routes(routes);
        for format in ["text", "json"] {
            let config = files.config_path();
            let args = ["check", "--format", format, "-c", config.to_str().unwrap()];
            let ran = proxy::cli_with(&args, environment);
            assert_eq!(ran.code, 78, "{}", ran.all());
            expect_none(&secrets, "check", &ran.all());
        }
    }
    files.replace_routes(tls_routes(&upstream, &fine));
    let ran = explain::run(&files, &port.to_string(), &["--sni", "a.test"]);
    expect_none(&secrets, "explain", &ran.all());
    proxy.upgrade();
    let said = proxy.lines().join("\n");
    expect_none(&secrets, "the log", &said);
    // Neither as text nor as a list of numbers.
    assert!(!said.contains("TTTT") && !said.contains("84, 84") && !said.contains("84,84"));
}
