//! Which certificate a TLS client gets, what it may speak, and what it is told when it gets none.

mod support;

use openssl::ssl::SslVersion;
use support::s_client::s_client;
use support::tls::{Authority, Days, Identity, TlsClient, one_node, ssl, tls_config, tls_routes};
use support::*;

fn apisix(broker: &Broker, ssls: &[String]) -> String {
    tls_routes(&one_node(broker.addr()), ssls)
}

struct Setup {
    port: u16,
    broker: Broker,
    _files: Files,
    proxy: Proxy,
}

fn start(more: &str, ssls: &[String]) -> Setup {
    let port = free_port();
    let broker = Broker::mqtt();
    let files = Files::new(&tls_config(&[port], more, ""), &apisix(&broker, ssls));
    let proxy = Proxy::start(&files, &[port]);
    Setup {
        port,
        broker,
        _files: files,
        proxy,
    }
}

#[test]
fn the_name_chooses_the_certificate() {
    let ca = Authority::new("root");
    let issue = |name: &str| ca.issue(&[name]);
    let ssls = [
        ssl("1", "'*'", &issue("any"), ""),
        ssl("2", "'*.a.test'", &issue("wild-a"), ""),
        ssl("3", "x.a.test, Y.A.Test.", &issue("exact"), ""),
        ssl("4", "x.a.test", &issue("second"), ""),
        ssl("5", "off.test", &issue("off"), ", status: 0"),
        ssl("6", "'*.y.a.test'", &issue("wild-y"), ""),
        format!("{{id: 7, sni: '*dot.test', {}}}", issue("dot").yaml()),
    ];
    let setup = start("  ssl: {fallback_sni: x.a.test}\n", &ssls);
    let shown = |name: &str| TlsClient::to(setup.port).name(name).certificate().unwrap();
    assert_eq!(shown("x.a.test"), "exact");
    assert_eq!(shown("X.a.TEST"), "exact");
    assert_eq!(shown("y.a.test."), "exact");
    assert_eq!(shown("z.a.test"), "wild-a");
    assert_eq!(shown("a.test"), "any");
    assert_eq!(shown("z.y.a.test"), "wild-y");
    // APISIX looks no further than the longest wildcard and refuses these two.
    assert_eq!(shown("q.z.y.a.test"), "any");
    assert_eq!(shown("localhost"), "any");
    assert_eq!(shown("off.test"), "any");
    assert_eq!(shown("mydot.test"), "dot");
    assert_eq!(shown("dot.test"), "dot");
    // Without a name: fallback_sni.
    assert_eq!(TlsClient::to(setup.port).certificate().unwrap(), "exact");
    // And the whole way to a broker works, in both versions.
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let client = TlsClient::to(setup.port).name("z.a.test").version(version);
        let mut talk = client.mqtt(&Connect::v311("device-1")).unwrap();
        talk.expect_alive();
    }
    assert_eq!(setup.broker.accepted(), 2);
}

#[test]
fn a_name_without_a_certificate_ends_with_its_alert() {
    let ca = Authority::new("root");
    let mut setup = start("", &[ssl("1", "a.test", &ca.issue(&["a.test"]), "")]);
    let client = TlsClient::to(setup.port);
    let error = client
        .clone()
        .name("b.test")
        .connect()
        .map(drop)
        .unwrap_err();
    assert!(error.contains("unrecognized name"), "{error}");
    let line = setup
        .proxy
        .wait_for_log("failed to match any SSL certificate by SNI: b.test");
    assert!(line.contains("tls_unknown_name"), "{line}");
    // Without a name, and no fallback_sni.
    let error = client.connect().map(drop).unwrap_err();
    assert!(
        error.contains("missing extension") || error.contains("109"),
        "{error}"
    );
    setup.proxy.wait_for_log("failed to find SNI");
    // A name with control characters is no name; nothing of it reaches the log as it is.
    let said = s_client(setup.port, &["-servername", "a\u{1b}[31mb"], b"", "alert");
    assert!(said.contains("alert"), "{said}");
    assert!(
        !setup
            .proxy
            .lines()
            .iter()
            .any(|line| line.contains('\u{1b}'))
    );
    assert_eq!(setup.broker.accepted(), 0);
}

#[test]
fn an_address_is_no_name_unless_a_certificate_has_it() {
    let ca = Authority::new("root");
    let ssls = [
        ssl("1", "a.test", &ca.issue(&["fallback"]), ""),
        ssl("2", "10.0.0.1", &ca.issue(&["address"]), ""),
    ];
    let setup = start("  ssl: {fallback_sni: a.test}\n", &ssls);
    let shown = |name: &str| TlsClient::to(setup.port).name(name).certificate();
    assert_eq!(shown("127.0.0.1").unwrap(), "fallback");
    assert_eq!(shown("10.0.0.1").unwrap(), "address");
    let error = shown("127.0.0.1.test").unwrap_err();
    assert!(error.contains("unrecognized name"), "{error}");
}

#[test]
fn rsa_beside_ecdsa_and_the_chain_of_each() {
    let root = Authority::new("root");
    let middle = root.intermediate("middle");
    let (ec, rsa) = (middle.issue(&["a.test"]), root.issue_rsa(&["a.test"]));
    let both = format!(
        "{{id: 1, sni: a.test, {}, certs: [{:?}], keys: [{:?}]}}",
        ec.yaml(),
        rsa.cert,
        rsa.key
    );
    let setup = start("", &[both]);
    let client = TlsClient::to(setup.port).name("a.test").trust(&root);
    for (ciphers, certificates) in [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", 2),
        ("ECDHE-RSA-AES128-GCM-SHA256", 1),
    ] {
        let talk = client.clone().ciphers(ciphers).connect().unwrap();
        assert_eq!(talk.stream.ssl().current_cipher().unwrap().name(), ciphers);
        let chain = talk.stream.ssl().peer_cert_chain().unwrap();
        assert_eq!(chain.len(), certificates, "{ciphers}");
    }
}

#[test]
fn versions_of_an_object_and_ciphers_of_the_proxy() {
    let ca = Authority::new("root");
    let issue = |name: &str| ca.issue_rsa(&[name]);
    let ssls = [
        ssl("1", "default.test", &issue("default.test"), ""),
        ssl(
            "2",
            "old.test",
            &issue("old.test"),
            ", ssl_protocols: [TLSv1.1, TLSv1.2]",
        ),
        ssl(
            "3",
            "new.test",
            &issue("new.test"),
            ", ssl_protocols: [TLSv1.3]",
        ),
    ];
    let more = "mqtt_proxy: {tls: {ciphers: \"ECDHE-RSA-AES256-GCM-SHA384:@SECLEVEL=0:ECDHE-RSA-AES128-SHA\", ciphersuites: TLS_CHACHA20_POLY1305_SHA256}}\n";
    let port = free_port();
    let broker = Broker::mqtt();
    let files = Files::new(&tls_config(&[port], "", more), &apisix(&broker, &ssls));
    let _proxy = Proxy::start(&files, &[port]);
    let cipher = |name: &str, version: SslVersion| {
        let client = TlsClient::to(port).name(name).version(version);
        let talk = client.connect().ok()?;
        Some(
            talk.stream
                .ssl()
                .current_cipher()
                .unwrap()
                .name()
                .to_owned(),
        )
    };
    let (v1, v2, v3) = (SslVersion::TLS1_1, SslVersion::TLS1_2, SslVersion::TLS1_3);
    assert_eq!(cipher("default.test", v1), None);
    assert_eq!(
        cipher("default.test", v2).unwrap(),
        "ECDHE-RSA-AES256-GCM-SHA384"
    );
    assert_eq!(
        cipher("default.test", v3).unwrap(),
        "TLS_CHACHA20_POLY1305_SHA256"
    );
    assert_eq!(cipher("old.test", v1).unwrap(), "ECDHE-RSA-AES128-SHA");
    assert_eq!(cipher("old.test", v3), None);
    assert_eq!(cipher("new.test", v2), None);
    assert!(cipher("new.test", v3).is_some());
}

#[test]
fn certificates_from_files_are_taken_up_when_they_change() {
    let ca = Authority::new("root");
    let (first, second) = (ca.issue(&["first"]), ca.issue(&["second"]));
    let port = free_port();
    let broker = Broker::mqtt();
    let files = Files::new(&tls_config(&[port], "", ""), "#END\n");
    files.replace("cert.pem", &first.cert);
    files.replace("key.pem", &first.key);
    let path = |name: &str| format!("file://{}", files.path(name).display());
    let from_files = format!(
        "{{id: 1, sni: a.test, cert: \"{}\", key: \"{}\"}}",
        path("cert.pem"),
        path("key.pem")
    );
    files.replace_routes(apisix(&broker, &[from_files]));
    let mut proxy = Proxy::start(&files, &[port]);
    let client = TlsClient::to(port).name("a.test");
    let mut before = client.mqtt(&Connect::v311("device-1")).unwrap();
    assert_eq!(before.certificate(), "first");
    // A certificate whose key is not there yet harms nobody.
    let mark = proxy.mark();
    files.replace("cert.pem", &second.cert);
    proxy.wait_for_log_after(mark, "does not belong to the certificate");
    assert_eq!(client.certificate().unwrap(), "first");
    files.replace("key.pem", &second.key);
    wait_until("the new certificate", SOON, || {
        (client.certificate().unwrap() == "second").then_some(())
    });
    before.expect_alive();
}

#[test]
fn check_tells_what_is_wrong_with_certificates() {
    let ca = Authority::new("root");
    let (good, other) = (ca.issue(&["a.test"]), ca.issue(&["b.test"]));
    let mixed = Identity {
        cert: good.cert.clone(),
        key: other.key.clone(),
    };
    let ssls = [
        ssl("mixed", "a.test", &mixed, ""),
        ssl("ended", "b.test", &ca.issue_valid(&["b"], Days(-9, -3)), ""),
        ssl("early", "c.test", &ca.issue_valid(&["c"], Days(3, 90)), ""),
        ssl("soon", "d.test", &ca.issue_valid(&["d"], Days(-3, 10)), ""),
        format!(
            "{{id: gone, sni: e.test, cert: \"file:///nowhere/c.pem\", key: {:?}}}",
            good.key
        ),
        ssl("fine", "f.test", &good, ""),
    ];
    let broker = Broker::mqtt();
    let files = Files::new(&tls_config(&[free_port()], "", ""), &apisix(&broker, &ssls));
    let ran = cli(&["check", "-c", files.config_path().to_str().unwrap()]);
    assert_eq!(ran.code, 78, "{}", ran.all());
    for (line, what) in [
        (
            "apisix.yaml:6:",
            "ssls[0].key: the key does not belong to the certificate",
        ),
        (
            "apisix.yaml:7:",
            "ssl ended: the certificate expired 3 days ago",
        ),
        (
            "apisix.yaml:8:",
            "ssl early: the certificate is not valid before 3 days from now",
        ),
        (
            "apisix.yaml:9:",
            "ssl soon: the certificate expires in 10 days",
        ),
        (
            "apisix.yaml:10:",
            "\"file:///nowhere/c.pem\" cannot be read",
        ),
    ] {
        let found = ran
            .stdout
            .lines()
            .any(|said| said.contains(line) && said.contains(what));
        assert!(found, "{line} {what}\n{}", ran.all());
    }
    assert!(!ran.stdout.contains("fine"), "{}", ran.all());
    assert!(!ran.all().contains("PRIVATE KEY") && !ran.all().contains(&other.key[40..80]));
}

#[test]
fn the_metric_says_when_each_object_ends() {
    let ca = Authority::new("root");
    let [port, metrics] = free_ports();
    let broker = Broker::mqtt();
    let more = format!("mqtt_proxy: {{metrics: {{addr: \"127.0.0.1:{metrics}\"}}}}\n");
    let ssls = |days| {
        [
            ssl(
                "first",
                "a.test",
                &ca.issue_valid(&["a"], Days(-1, days)),
                "",
            ),
            ssl("gone", "b.test", &ca.issue_valid(&["b"], Days(-1, 40)), ""),
        ]
    };
    let files = Files::new(&tls_config(&[port], "", &more), &apisix(&broker, &ssls(40)));
    let mut proxy = Proxy::start(&files, &[port]);
    let end = |id: &str| {
        let name = format!("mqtt_proxy_certificate_expiry_timestamp_seconds{{ssl=\"{id}\"}} ");
        let (_, _, text) = support::metrics::get(local(metrics), "/apisix/prometheus/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&name).map(str::to_owned));
        line.map(|value| value.parse::<u64>().unwrap())
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let in_days = |days: u64| now.as_secs() + days * 86_400;
    let close = |end: u64, days| end.abs_diff(in_days(days)) < 300;
    assert!(close(end("first").unwrap(), 40) && close(end("gone").unwrap(), 40));
    proxy.reload(|| files.replace_routes(apisix(&broker, &ssls(90)[..1])));
    assert!(close(end("first").unwrap(), 90));
    assert_eq!(end("gone"), None);
}
