use super::*;
use crate::table::Table;

fn listener() -> SocketAddr {
    "0.0.0.0:9100".parse().unwrap()
}

/// Everything that is counted without a table, once.
fn count(metrics: &Metrics) {
    let listener = metrics.listener(listener());
    listener.accepted();
    listener.opened();
    listener.relayed(Traffic {
        from_client: 10,
        to_broker: 11,
        from_broker: 20,
        to_client: 21,
    });
    listener.session("502", "10.0.0.1:1883");
    metrics.refused("malformed");
    metrics.ended("client_closed");
    metrics.connack(Origin::Proxy, 0x81);
    metrics.connack(Origin::Broker, 0);
    metrics.connect_read(Duration::from_micros(300));
    metrics.connack_after(Duration::from_millis(20));
    metrics.handshake("ok", Some(Duration::from_millis(3)));
    metrics.handshake("tls_no_name", None);
    metrics.reloaded(true);
    metrics.reloaded(false);
    metrics.upgraded("succeeded");
    metrics.taken_over(7);
    metrics.access_log_dropped().inc();
}

/// The same in a scrape.
const LINES: [&str; 22] = [
    "mqtt_proxy_connections_accepted_total{listen_addr=\"0.0.0.0:9100\"} 1",
    "apisix_stream_bandwidth{listen_addr=\"0.0.0.0:9100\",type=\"ingress\",side=\"downstream\"} 10",
    "apisix_stream_bandwidth{listen_addr=\"0.0.0.0:9100\",type=\"egress\",side=\"upstream\"} 11",
    "apisix_stream_bandwidth{listen_addr=\"0.0.0.0:9100\",type=\"ingress\",side=\"upstream\"} 20",
    "apisix_stream_bandwidth{listen_addr=\"0.0.0.0:9100\",type=\"egress\",side=\"downstream\"} 21",
    "apisix_stream_status{code=\"502\",listen_addr=\"0.0.0.0:9100\",node=\"10.0.0.1:1883\"} 1",
    "mqtt_proxy_to_broker_bytes_total 11",
    "mqtt_proxy_to_client_bytes_total 21",
    "mqtt_proxy_refused_total{reason=\"malformed\"} 1",
    "mqtt_proxy_connections_ended_total{reason=\"client_closed\"} 1",
    "mqtt_proxy_connack_total{origin=\"proxy\",code=\"0x81\"} 1",
    "mqtt_proxy_connack_total{origin=\"broker\",code=\"0x00\"} 1",
    "mqtt_proxy_connect_parse_seconds_bucket{le=\"0.0001\"} 0",
    "mqtt_proxy_connect_parse_seconds_bucket{le=\"0.0005\"} 1",
    "mqtt_proxy_connect_parse_seconds_sum 0.0003",
    "mqtt_proxy_connack_seconds_bucket{le=\"+Inf\"} 1",
    "mqtt_proxy_tls_handshakes_total{result=\"ok\"} 1",
    "mqtt_proxy_tls_handshake_seconds_count 1",
    "mqtt_proxy_config_reload_total{result=\"rejected\"} 1",
    "mqtt_proxy_upgrades_total{result=\"succeeded\"} 1",
    "mqtt_proxy_upgrade_connections_total 7",
    "mqtt_proxy_access_log_dropped_total 1",
];

fn expect(text: &str, line: &str) {
    let found = text.lines().any(|found| found == line);
    assert!(found, "{line} is missing in:\n{text}");
}

#[test]
fn the_text_has_apisix_names_and_ours() {
    let metrics = Metrics::default();
    count(&metrics);
    let text = metrics.encode();
    LINES.iter().for_each(|line| expect(&text, line));
    expect(
        &text,
        "apisix_stream_active_connections{listen_addr=\"0.0.0.0:9100\"} 1",
    );
    expect(&text, "mqtt_proxy_config_last_reload_successful 0");
    let plain = metrics.encode_plain();
    LINES.iter().for_each(|line| expect(&plain, line));
    expect(&plain, "# TYPE apisix_stream_status counter");
    expect(&plain, "# TYPE mqtt_proxy_refused_total counter");
    expect(&plain, "# TYPE mqtt_proxy_connack_seconds histogram");
    assert!(!plain.contains("# EOF"));
}

#[test]
fn counters_carry_on_in_another_process_and_gauges_do_not() {
    let (old, new) = (Metrics::default(), Metrics::default());
    count(&old);
    let first = old.encode();
    new.carry_on(&first, "");
    new.carry_on(
        "# EOF\nnonsense\nunknown_total{a=\"b\"} 7\nmqtt_proxy_refused_total{ 1",
        "",
    );
    let text = new.encode();
    LINES.iter().for_each(|line| expect(&text, line));
    let active = "apisix_stream_active_connections{listen_addr=\"0.0.0.0:9100\"} 0";
    expect(&text, active);

    // What the old process counts after that, and no more.
    old.connect_read(Duration::from_micros(50));
    old.connect_read(Duration::from_secs(60));
    old.refused("malformed");
    old.listener(listener()).session("200", "");
    new.carry_on(&old.encode(), &first);
    let text = new.encode();
    for line in [
        "mqtt_proxy_connect_parse_seconds_bucket{le=\"0.0001\"} 1",
        "mqtt_proxy_connect_parse_seconds_bucket{le=\"0.0005\"} 2",
        "mqtt_proxy_connect_parse_seconds_bucket{le=\"10.0\"} 2",
        "mqtt_proxy_connect_parse_seconds_bucket{le=\"+Inf\"} 3",
        "mqtt_proxy_connect_parse_seconds_count 3",
        "mqtt_proxy_connack_seconds_count 1",
        "mqtt_proxy_refused_total{reason=\"malformed\"} 2",
        "apisix_stream_status{code=\"200\",listen_addr=\"0.0.0.0:9100\",node=\"\"} 1",
    ] {
        expect(&text, line);
    }
}

#[test]
fn series_that_alerts_look_at_are_there_from_the_start() {
    let metrics = Metrics::of(Arc::new(CurrentTable::from_pointee(Table::default())));
    metrics.expect(&["no_route"], &["aborted"], &["failed"]);
    let text = metrics.encode();
    for line in [
        "mqtt_proxy_refused_total{reason=\"no_route\"} 0",
        "mqtt_proxy_connections_ended_total{reason=\"aborted\"} 0",
        "mqtt_proxy_upgrades_total{result=\"failed\"} 0",
        "mqtt_proxy_config_reload_total{result=\"rejected\"} 0",
        "mqtt_proxy_connack_seconds_count 0",
    ] {
        expect(&text, line);
    }
    assert!(text.contains("\nprocess_open_fds "), "{text}");
}
