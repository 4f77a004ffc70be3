use super::*;
use crate::config::settings::{AccessLogTarget, Escape, Part};

fn details() -> Details {
    Details {
        id: 0xabc,
        level: Some(5),
        client_id: Some(printable(b"dev \"1\"\n\x1b[2J\xff").into()),
        keep_alive: Some(60),
        clean_start: Some(true),
        connect_us: Some(1500),
        dial_us: Some(2000),
        first_byte_us: Some(10_000),
        connack: Some(0),
        tls: Some(Box::new(TlsDetails {
            server_name: Some(printable(b"a\n.test").into()),
            protocol: Some("TLSv1.3".into()),
            serial: Some("0A".into()),
            common_name: Some("dev \"1\"".into()),
            ..TlsDetails::default()
        })),
        ..Details::default()
    }
}

fn line(details: &Details, ended: bool) -> Line<'_> {
    Line {
        client: "10.0.0.1:5000".parse().unwrap(),
        listener: "127.0.0.1:9100".parse().unwrap(),
        route: Some("devices"),
        route_name: None,
        service: None,
        service_name: None,
        upstream: Some("brokers"),
        node: Some("broker:1883"),
        details,
        ending: ended.then_some(Ending {
            side: "client",
            phase: "relay",
            reason: "client_closed",
            status: "200",
            duration: Duration::from_millis(1234),
            to_broker: 10,
            to_client: 20,
        }),
    }
}

#[test]
fn json_is_json_whatever_a_client_calls_itself() {
    let details = details();
    let bytes = format::json(&line(&details, true));
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value["client_id"], "dev \"1\"\n\u{1b}[2J\\xFF");
    assert_eq!(value["end_side"], "client");
    assert_eq!(value["duration_seconds"], 1.234);
    assert_eq!(value["connect_seconds"], 0.0015);
    assert_eq!(value["mqtt_version"], 5);
    assert_eq!(value["connack"], 0);
    assert_eq!(value["first_byte_seconds"], 0.01);
    assert_eq!(value["ssl_server_name"], "a\n.test");
    assert_eq!(value["ssl_client_cn"], "dev \"1\"");
    assert_eq!(value["ssl_client_verify"], "SUCCESS");
    assert_eq!(value["ssl_session_reused"], ".");
    assert!(value.get("ssl_cipher").is_none());
    assert!(bytes[..bytes.len() - 1].iter().all(|&byte| byte >= 0x20));
}

#[test]
fn logfmt_quotes_what_needs_it() {
    let details = details();
    let text = String::from_utf8(format::logfmt(&line(&details, false))).unwrap();
    assert!(
        text.contains(r#" client_id="dev \"1\"\n\u001b[2J\\xFF" "#),
        "{text}"
    );
    let tls = r#" ssl_server_name="a\n.test" ssl_protocol=TLSv1.3 ssl_session_reused=. "#;
    assert!(text.contains(tls), "{text}");
    assert!(
        text.contains(" event=connected conn=0000000000000abc "),
        "{text}"
    );
    assert!(!text.contains("end_side"), "{text}");
}

#[test]
fn nginx_escapes_as_nginx_does() {
    let parts = ["status", "mqtt_client_id", "ssl_cipher", "session_time"];
    let parts: Vec<Part> = parts
        .iter()
        .flat_map(|name| {
            [
                Part::Variable((*name).to_owned()),
                Part::Text("|".to_owned()),
            ]
        })
        .collect();
    let details = details();
    let text =
        |escape| String::from_utf8(nginx::line(&line(&details, true), &parts, escape)).unwrap();
    assert_eq!(
        text(Escape::Default),
        "200|dev \\x221\\x22\\x0A\\x1B[2J\\x5CxFF|-|1.234|\n"
    );
    assert_eq!(
        text(Escape::Json),
        "200|dev \\\"1\\\"\\n\\u001b[2J\\\\xFF||1.234|\n"
    );
    assert_eq!(
        text(Escape::None),
        "200|dev \"1\"\\x0A\\x1B[2J\\xFF||1.234|\n"
    );
}

#[test]
fn long_names_are_cut() {
    assert_eq!(printable(&[b'x'; 128]), "x".repeat(128));
    assert_eq!(printable(&[b'x'; 65_535]), "x".repeat(128) + "…");
}

fn log_to(path: &Path, rotate_size: u64) -> (Arc<AccessLog>, Counter) {
    let dropped = Counter::default();
    let settings = AccessLogSettings {
        target: AccessLogTarget::File(path.to_owned()),
        format: AccessLogFormat::Logfmt,
        rotate_size,
        rotate_keep: 2,
        client_id: ClientIdPolicy::Hash,
        queue: 1024,
    };
    let log = AccessLog::open(&settings, Path::new("config.yaml"), dropped.clone()).unwrap();
    (log, dropped)
}

#[test]
fn files_are_rotated_by_size_and_no_line_is_lost_or_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let details = details();
    let one = format::logfmt(&line(&details, true)).len() as u64;
    let (log, dropped) = log_to(&path, 3 * one + one / 2);
    for _ in 0..8 {
        log.write(&line(&details, true));
        log.flush(Duration::from_secs(10));
    }
    let lines = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().count()
    };
    assert_eq!(
        ["access.log", "access.log.1", "access.log.2"].map(lines),
        [2, 3, 3]
    );
    assert!(!folder.path().join("access.log.3").exists());
    assert_eq!(dropped.get(), 0);
}

#[test]
fn the_hash_is_what_sha256sum_prints() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = log_to(&folder.path().join("access.log"), 0);
    assert_eq!(log.shown(b"abc").as_deref(), Some("ba7816bf8f01cfea"));
}

#[test]
fn variables_of_tls_and_of_the_broker_in_nginx_format() {
    let names = [
        "ssl_server_name",
        "ssl_client_cn",
        "ssl_client_verify",
        "upstream_first_byte_time",
        "mqtt_connack",
        "stream_session_reason",
    ];
    let pieces = names.iter().flat_map(|name| {
        let variable = Part::Variable((*name).to_owned());
        [variable, Part::Text("|".to_owned())]
    });
    let parts: Vec<Part> = pieces.collect();
    let bytes = nginx::line(&line(&details(), true), &parts, Escape::Default);
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "a\\x0A.test|dev \\x221\\x22|SUCCESS|0.012|0|closed|\n"
    );
}

#[test]
fn what_a_certificate_calls_a_client_is_under_the_policy_for_names() {
    use crate::tls::identity::{ClientCertificate, TlsVariables};
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = log_to(&folder.path().join("access.log"), 0);
    let tls = TlsVariables {
        client: Some(ClientCertificate {
            subject: "CN=abc".to_owned(),
            common_name: Some("abc".to_owned()),
            serial: "01".to_owned(),
            fingerprint: "ff".to_owned(),
        }),
        ..TlsVariables::default()
    };
    let shown = TlsDetails::of(&tls, |name| log.shown(name));
    assert_eq!(shown.get("ssl_client_cn"), Some("ba7816bf8f01cfea"));
    assert_ne!(shown.get("ssl_client_s_dn"), Some("CN=abc"));
    assert_eq!(shown.get("ssl_client_serial"), Some("01"));
}
