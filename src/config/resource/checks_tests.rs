use super::*;
use crate::config::resource::testing::Judged;
use crate::config::schema::checks::CHECKS;

fn judge(text: &str) -> Judged<Option<Checks>> {
    Judged::new(text, &CHECKS, |node, _, at, context| {
        build(node, at, context)
    })
}

fn active(text: &str) -> Active {
    let judged = judge(text);
    assert_eq!(judged.messages, Vec::<String>::new(), "{text}");
    judged.value.unwrap().active.unwrap()
}

#[test]
fn apisix_defaults() {
    let checks = judge("{active: {}}").value.unwrap();
    let active = checks.active.unwrap();
    let Probe::Http(http) = &active.probe else {
        panic!("http is the default: {active:?}");
    };
    assert_eq!(
        (http.tls, &*http.method, &*http.path, &*http.body),
        (None, "GET", "/", "")
    );
    assert_eq!(http.healthy, [200, 302]);
    assert_eq!(http.unhealthy, [429, 404, 500, 501, 502, 503, 504, 505]);
    let second = Duration::from_secs(1);
    assert_eq!(
        (
            active.timeout,
            active.healthy_interval,
            active.unhealthy_interval
        ),
        (second, second, second)
    );
    assert_eq!((active.concurrency, active.successes), (10, 2));
    let limits = |tcp, timeouts, http, mqtt| Limits {
        tcp,
        timeouts,
        http,
        mqtt,
    };
    assert_eq!(active.failures, limits(2, 3, 5, 2));
    assert_eq!(checks.passive.failures, limits(2, 7, 0, 0));
    assert_eq!(checks.passive.recovery, Duration::from_secs(30));
}

#[test]
fn every_field_counts() {
    let read = active(
        "active: {type: https, timeout: 0.5, concurrency: 3, host: broker.test, port: 8443,
           http_method: POST, http_path: /h?a=b, http_req_body: '{}', https_verify_certificate: false,
           req_headers: ['X-A: b'], healthy: {interval: 5, http_statuses: [204], successes: 3},
           unhealthy: {interval: 7, http_statuses: [500], http_failures: 1, tcp_failures: 4, timeouts: 6}}",
    );
    let expected = Active {
        probe: Probe::Http(HttpProbe {
            tls: Some(Verify(false)),
            method: "POST".to_owned(),
            path: "/h?a=b".to_owned(),
            body: "{}".to_owned(),
            headers: vec!["X-A: b".to_owned()],
            healthy: vec![204],
            unhealthy: vec![500],
        }),
        timeout: Duration::from_millis(500),
        concurrency: 3,
        host: Some("broker.test".to_owned()),
        port: Some(8443),
        healthy_interval: Duration::from_secs(5),
        unhealthy_interval: Duration::from_secs(7),
        successes: 3,
        failures: Limits {
            tcp: 4,
            timeouts: 6,
            http: 1,
            mqtt: 2,
        },
    };
    assert_eq!(read, expected);
}

#[test]
fn a_missing_block_means_its_defaults() {
    let bare = active("{active: {type: tcp}}");
    let full = active("{active: {type: tcp, healthy: {}, unhealthy: {}}}");
    assert_eq!(bare, full);
}

#[test]
fn mqtt_probes_and_their_secret() {
    let read = active(
        "{active: {type: mqtt, mqtt: {client_id_prefix: p-, username: u, password: pw-1, protocol_level: 5},
           unhealthy: {mqtt_failures: 1}}}",
    );
    assert_eq!(read.failures.mqtt, 1);
    let Probe::Mqtt(probe) = &read.probe else {
        panic!("{read:?}");
    };
    assert_eq!((probe.client_id_prefix.as_str(), probe.level), ("p-", 5));
    assert!(!format!("{read:?}").contains("pw-1"));
}

#[test]
fn passive_may_stand_alone() {
    let judged =
        judge("{passive: {unhealthy: {tcp_failures: 3, timeouts: 0}, recovery_time: 2.5}}");
    assert_eq!(judged.messages, Vec::<String>::new());
    let checks = judged.value.unwrap();
    assert!(checks.active.is_none());
    assert_eq!(
        (
            checks.passive.failures.tcp,
            checks.passive.failures.timeouts,
            checks.passive.recovery
        ),
        (3, 0, Duration::from_millis(2500))
    );
}

#[test]
fn what_no_probe_can_send_is_an_error() {
    for (text, path) in [
        ("{active: {http_path: no-slash}}", "x.active.http_path"),
        ("{active: {http_path: \"/a b\"}}", "x.active.http_path"),
        (
            "{active: {http_path: \"/a\\r\\nX: y\"}}",
            "x.active.http_path",
        ),
        (
            "{active: {req_headers: [\"no colon\"]}}",
            "x.active.req_headers",
        ),
        (
            "{active: {req_headers: [\"A: b\\r\\nC: d\"]}}",
            "x.active.req_headers",
        ),
        (
            "{active: {type: mqtt, mqtt: {username: \"a\\0\"}}}",
            "x.active.mqtt.username",
        ),
        (
            "{active: {type: mqtt, mqtt: {password: a}}}",
            "x.active.mqtt",
        ),
    ] {
        let messages = judge(text).messages;
        assert_eq!(messages.len(), 1, "{text}: {messages:?}");
        assert!(
            messages[0].starts_with(&format!("{path}: ")),
            "{messages:?}"
        );
    }
}
