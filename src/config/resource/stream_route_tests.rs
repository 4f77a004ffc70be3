use super::*;
use crate::config::resource::testing::Judged;
use crate::config::schema::stream_route::STREAM_ROUTE;

fn judge(text: &str) -> Judged<StreamRoute> {
    Judged::new(text, &STREAM_ROUTE, build)
}

#[test]
fn all_fields() {
    let judged = judge(
        "id: 5\nname: n\ndesc: d\nlabels: {a: b}\ncreate_time: 1\nupdate_time: 2\n\
         remote_addr: 127.0.0.1/26\nserver_addr: '::1'\nserver_port: 9100\nsni: '*.A.test.'\n\
         tls_passthrough: yes\nupstream: {nodes: {'a:1': 1}}\nupstream_id: 7\nservice_id: s\n\
         plugins: {mqtt-proxy: {protocol_level: 4}}\n",
    );
    assert_eq!(judged.messages, Vec::<String>::new());
    let route = judged.value;
    // Bits behind the prefix are masked.
    assert_eq!(route.remote_addr.unwrap().to_string(), "127.0.0.0/26");
    assert_eq!(route.server_addr.unwrap().to_string(), "::1/128");
    assert_eq!(route.server_port, Some(9100));
    assert_eq!(route.snis, ["*.a.test"]);
    assert_eq!(route.tls_passthrough, Some(true));
    assert_eq!(route.upstream_id.as_deref(), Some("7"));
    assert_eq!(route.service_id.as_deref(), Some("s"));
    assert!(route.upstream.is_some() && route.plugins.mqtt_proxy.is_some());
    assert_eq!(route.position.to_string(), "1:1");
}

#[test]
fn what_is_wrong_is_told() {
    for (text, messages) in [
        (
            "{upstream_id: 1, remote_addr: ':/8'}",
            vec!["x.remote_addr: invalid remote_addr \":/8\": expected an address or a CIDR block"],
        ),
        (
            "{upstream_id: 1, server_port: 70000}",
            vec!["x.server_port: server_port 70000 is out of range (1-65535)"],
        ),
        (
            "{upstream_id: 1, sni: 'a b'}",
            vec!["x.sni: invalid sni \"a b\": expected a host name, possibly with a leading *"],
        ),
        (
            "{upstream_id: 1, sni: a, snis: [b]}",
            vec!["x: sni and snis exclude each other"],
        ),
        (
            "{upstream_id: 1, protocol: {name: redis}}",
            vec!["x.protocol: protocol (xRPC) is not supported"],
        ),
        (
            "{upstream_id: 1, sever_port: 1}",
            vec!["x.sever_port: unknown field \"sever_port\"; did you mean \"server_port\"?"],
        ),
        (
            "{upstream_id: 'a b'}",
            vec![
                "x.upstream_id: invalid upstream_id \"a b\": expected letters, digits, '-', '_' and '.'",
            ],
        ),
        (
            "{upstream_id: 0}",
            vec!["x.upstream_id: upstream_id 0 is too small (at least 1)"],
        ),
        (
            "{id: 1}",
            vec!["warning: x: the route has no upstream: its connections will be refused"],
        ),
        (
            "{upstream_id: 1, remote_addr: }",
            vec!["x.remote_addr: expected a string, found null"],
        ),
        (
            "{upstream_id: 1, modifiedIndex: 3}",
            vec!["x.modifiedIndex: unknown field \"modifiedIndex\""],
        ),
    ] {
        assert_eq!(judge(text).messages, messages, "{text}");
    }
}

#[test]
fn routes_that_only_moved_are_equal() {
    let text = "upstream_id: 1\nserver_port: 9100\n";
    let moved = format!("\n\n# comment\n{text}");
    assert_eq!(judge(text).value, judge(&moved).value);
    assert_ne!(
        judge(text).value.position.line,
        judge(&moved).value.position.line
    );
    assert_ne!(
        judge(text).value,
        judge("upstream_id: 1\nserver_port: 9101\n").value
    );
}
