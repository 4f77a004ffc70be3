use super::*;
use crate::config::resource::testing::Judged;
use crate::config::schema::upstream::ANYTHING;

fn judge(text: &str) -> Judged<Plugins> {
    Judged::new(text, &ANYTHING, |node, _, at, context| {
        build(Some(node), at, context)
    })
}

fn protocols_of(conf: &str) -> String {
    let judged = judge(&format!("mqtt-proxy: {{{conf}}}"));
    let errors: Vec<_> = judged
        .messages
        .iter()
        .filter(|m| !m.starts_with("warning"))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    let conf = judged.value.mqtt_proxy.unwrap();
    let shown: Vec<_> = conf
        .protocols
        .iter()
        .map(|p| format!("{}/{}", p.name, p.level))
        .collect();
    shown.join(" ")
}

#[test]
fn protocol_names_and_levels() {
    assert_eq!(protocols_of("protocol_level: 4"), "MQTT/4");
    assert_eq!(protocols_of("protocol_level: 5.0"), "MQTT/5");
    assert_eq!(
        protocols_of("protocol_name: MQTT, protocol_level: 3"),
        "MQTT/3"
    );
    assert_eq!(
        protocols_of("protocol_name: MQIsdp, protocol_level: 3"),
        "MQIsdp/3"
    );
    assert_eq!(protocols_of("protocol_level: 3"), "MQTT/3 MQIsdp/3");
    assert_eq!(
        protocols_of("protocol_level: [3, 4, 5]"),
        "MQIsdp/3 MQTT/4 MQTT/5"
    );
    assert_eq!(
        protocols_of("protocol_name: X, protocol_level: [3, 4]"),
        "X/3 X/4"
    );
    assert_eq!(protocols_of("protocol_name: '', protocol_level: 4"), "/4");
    assert_eq!(protocols_of("protocol_level: 300"), "MQTT/300");
}

#[test]
fn wrong_configurations_of_mqtt_proxy() {
    let conf = |text: &str| judge(&format!("mqtt-proxy: {text}")).messages;
    assert_eq!(
        conf("{}"),
        ["x.mqtt-proxy: property \"protocol_level\" is required"]
    );
    // No configuration is an empty one.
    assert_eq!(
        conf("~"),
        ["x.mqtt-proxy: property \"protocol_level\" is required"]
    );
    assert_eq!(
        conf("{protocol_level: '4'}"),
        ["x.mqtt-proxy.protocol_level: expected an integer or a list, found the string \"4\""]
    );
    assert_eq!(
        conf("{protocol_level: 4.5}"),
        ["x.mqtt-proxy.protocol_level: expected an integer or a list, found the number 4.5"]
    );
    assert_eq!(
        conf("{protocol_level: []}"),
        ["x.mqtt-proxy.protocol_level: protocol_level is an empty list"]
    );
    assert_eq!(
        conf("{protocol_level: [4, 4]}"),
        ["x.mqtt-proxy.protocol_level[1]: the integer 4 is listed twice"]
    );
    assert_eq!(
        conf("{protocol_level: [256]}"),
        ["x.mqtt-proxy.protocol_level[0]: protocol_level 256 is out of range (0-255)"]
    );
    assert_eq!(
        conf("{protocol_level: -1}"),
        [
            "warning: x.mqtt-proxy.protocol_level: no packet can have protocol level -1: it is one byte"
        ]
    );
    assert_eq!(
        conf("{protocol_level: 4, protocol_nmae: MQTT}"),
        [
            "warning: x.mqtt-proxy.protocol_nmae: unknown field \"protocol_nmae\"; did you mean \"protocol_name\"?"
        ]
    );
    assert_eq!(
        conf("5"),
        ["x.mqtt-proxy: invalid plugin conf: expected a mapping, found the integer 5"]
    );
}

#[test]
fn plugins_that_cannot_be_used() {
    assert_eq!(
        judge("{mqtt-proxi: {}}").messages,
        ["x.mqtt-proxi: unknown plugin [mqtt-proxi]; did you mean \"mqtt-proxy\"?"]
    );
    assert_eq!(
        judge("{x-rewrite: {}}").messages,
        ["x.x-rewrite: unknown plugin [x-rewrite]"]
    );
    assert_eq!(
        judge("{prometheus: {}}").messages,
        ["x.prometheus: plugin [prometheus] is not listed in stream_plugins"]
    );
    for name in ["ip-restriction", "limit-conn", "traffic-split"] {
        assert_eq!(
            judge(&format!("{{{name}: {{}}}}")).messages,
            [format!("x.{name}: plugin [{name}] is not supported")]
        );
    }
    assert_eq!(
        judge("{syslog: {host: a}}").messages,
        ["warning: x.syslog: plugin [syslog] has no effect here"]
    );
}

#[test]
fn disabled_plugins_are_absent_and_not_judged() {
    let judged = judge(
        "{mqtt-proxy: {protocol_level: x, _meta: {disable: true, filter: [a]}}, limit-conn: {_meta: {disable: yes}}}",
    );
    assert_eq!(judged.messages, Vec::<String>::new());
    assert_eq!(judged.value, Plugins::default());
    // But they must exist.
    assert_eq!(
        judge("{nobody: {_meta: {disable: true}}}").messages.len(),
        1
    );
    assert!(
        judge("{mqtt-proxy: {protocol_level: 4, _meta: {disable: false}}}")
            .value
            .mqtt_proxy
            .is_some()
    );
}

#[test]
fn meta() {
    let with =
        |meta: &str| judge(&format!("mqtt-proxy: {{protocol_level: 4, _meta: {meta}}}")).messages;
    assert_eq!(
        with("{priority: 5, error_response: no}"),
        [
            "x.mqtt-proxy._meta.error_response: expected a string or a mapping, found the boolean false"
        ]
    );
    assert_eq!(
        with("{priority: 5, error_response: {a: b}}"),
        Vec::<String>::new()
    );
    assert_eq!(
        with("{filter: [[remote_addr, ==, a]]}"),
        ["x.mqtt-proxy._meta.filter: _meta.filter is not supported"]
    );
    assert_eq!(
        with("{pre_function: 'return 1'}"),
        ["x.mqtt-proxy._meta.pre_function: _meta.pre_function is not supported"]
    );
    assert_eq!(
        with("{disabled: true}"),
        ["x.mqtt-proxy._meta.disabled: unknown field \"disabled\"; did you mean \"disable\"?"]
    );
    assert_eq!(
        with("{disable: 'true'}"),
        ["x.mqtt-proxy._meta.disable: expected a boolean, found the string \"true\""]
    );
    assert_eq!(
        judge("{syslog: {_meta: {filter: [a]}}}").messages,
        [
            "x.syslog._meta.filter: _meta.filter is not supported",
            "warning: x.syslog: plugin [syslog] has no effect here",
        ]
        .map(str::to_string)
        .into_iter()
        .rev()
        .collect::<Vec<_>>()
    );
}

#[test]
fn the_upstream_of_apisix_2() {
    let with = |upstream: &str| {
        judge(&format!(
            "mqtt-proxy: {{protocol_level: 4, upstream: {upstream}}}"
        ))
    };
    for (text, node) in [
        ("{ip: 127.0.0.1, port: 1980}", "127.0.0.1:1980"),
        ("{host: localhost, port: 1883}", "localhost:1883"),
        ("{ip: '::1', port: 1}", "[::1]:1"),
    ] {
        let judged = with(text);
        assert_eq!(judged.messages.len(), 1);
        assert!(judged.messages[0].contains("warning: x.mqtt-proxy.upstream: deprecated form"));
        let upstream = judged.value.mqtt_proxy.unwrap().upstream.unwrap();
        assert_eq!(upstream.nodes.len(), 1);
        assert_eq!(upstream.nodes[0].to_string(), node);
        assert_eq!(upstream.nodes[0].weight, 1);
    }
    // APISIX 3 ignores the key, whatever it is.
    for (text, why) in [
        ("{port: 1}", "it has neither ip nor host"),
        ("{ip: a}", "property \"port\" is required"),
        ("{ip: a, port: 0}", "port 0 is out of range"),
        ("{ip: 5, port: 1}", "expected a string"),
        ("7", "expected a mapping"),
        ("{ip: 'a:1', port: 1}", "\"a:1\" has a port"),
        ("{ip: 'a b', port: 1}", "not a host name"),
    ] {
        let judged = with(text);
        assert_eq!(judged.messages.len(), 1, "{text}");
        assert!(
            judged.messages[0]
                .starts_with("warning: x.mqtt-proxy.upstream: ignored, as in APISIX 3: ")
        );
        assert!(
            judged.messages[0].contains(why),
            "{text}: {:?}",
            judged.messages
        );
        assert_eq!(judged.value.mqtt_proxy.unwrap().upstream, None);
    }
    assert!(with("~").messages.is_empty());
}
