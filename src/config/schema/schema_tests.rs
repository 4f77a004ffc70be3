use std::path::Path;

use super::*;
use crate::config::document::{Node, parse_yaml};

static INNER: Object = Object::strict(
    "Inner",
    "Inside.",
    &[
        Field::new("port", Kind::PORT, "A port.").required(),
        Field::new("weight", Kind::int_from(0), "A weight.").default(Literal::Int(1)),
        Field::new(
            "share",
            Kind::Number {
                min: 0.0,
                above: true,
                max: 1.0,
            },
            "A share.",
        ),
    ],
);

static OUTER: Object = Object::strict(
    "Outer",
    "Outside.",
    &[
        Field::new("name", common::NAME, "A name."),
        Field::new("mode", Kind::Choice(&["strict", "tolerant"]), "A mode."),
        Field::new("status", Kind::IntChoice(&[1, 0]), "A status."),
        Field::new("on", Kind::Bool, "A switch."),
        Field::new("inner", Kind::Object(&INNER), "An object."),
        Field::new(
            "several",
            Kind::List(List::of(&NAMES).at_least(1).at_most(2).unique()),
            "A list.",
        ),
        Field::new(
            "either",
            Kind::Either(&[Kind::INT, Kind::TEXT]),
            "Two kinds.",
        ),
        Field::new(
            "key",
            Kind::Text(Text::sized(4, 8).or_reference()),
            "A secret.",
        )
        .secret(),
        Field::new("old", Kind::Any, "").no_effect(),
        Field::new("labels", Kind::Object(&common::LABELS), "Labels."),
        Field::new("network", common::NETWORK, "A network."),
    ],
)
.rules(&[
    Rule::NotTogether(&["mode", "status"]),
    Rule::Needs("on", "name"),
]);

static NAMES: Kind = Kind::TEXT;

fn node(text: &str) -> Node {
    parse_yaml(text, None).unwrap().root
}

fn messages(text: &str) -> Vec<String> {
    check(&node(text), &OUTER, Path::new("f"))
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn good_values_say_nothing() {
    let good = "name: x\nmode: strict\ninner: {port: 1883, weight: 2.0, share: 0.5}\n\
                several: [a, b]\neither: 1\nkey: $env://K\nold: [anything]\nlabels: {a: b}\n\
                network: 10.0.0.0/8\n";
    assert_eq!(messages(good), Vec::<String>::new());
    assert_eq!(messages("{}"), Vec::<String>::new());
    // Lua cannot tell an empty list from an empty mapping.
    assert_eq!(messages("[]"), Vec::<String>::new());
}

#[test]
fn all_problems_at_once_each_with_its_place() {
    let text = "inner:\n  port: 70000\n  wieght: 1\nmode: strikt\neither: [1]\n";
    assert_eq!(
        messages(text),
        [
            "f:2:9: inner.port: port 70000 is out of range (1-65535)",
            "f:3:3: inner.wieght: unknown field \"wieght\"; did you mean \"weight\"?",
            "f:4:7: mode: unknown mode \"strikt\"; did you mean \"strict\"? (one of strict, tolerant)",
            "f:5:9: either: expected an integer or a string, found a list",
        ]
    );
}

#[test]
fn types() {
    for (text, message) in [
        (
            "inner: {port: x}",
            "f:1:15: inner.port: expected an integer, found the string \"x\"",
        ),
        (
            "inner: {port: 1.5}",
            "f:1:15: inner.port: expected an integer, found the number 1.5",
        ),
        (
            "on: \"yes\"\nname: a",
            "f:1:5: on: expected a boolean, found the string \"yes\"",
        ),
        (
            "name: yes",
            "f:1:7: name: expected a string, found the boolean true",
        ),
        (
            "inner: 5",
            "f:1:8: inner: expected a mapping, found the integer 5",
        ),
        (
            "several: {a: 1}",
            "f:1:10: several: expected a list, found a mapping",
        ),
        ("name:", "f:1:1: name: expected a string, found null"),
        ("5", "f:1:1: expected a mapping, found the integer 5"),
    ] {
        assert_eq!(messages(text), [message], "{text}");
    }
}

#[test]
fn bounds() {
    for (text, message) in [
        ("inner: {port: 0}", "port 0 is out of range (1-65535)"),
        (
            "inner: {port: 1, weight: -1}",
            "weight -1 is too small (at least 0)",
        ),
        (
            "inner: {port: 1, share: 0}",
            "share 0 must be greater than 0",
        ),
        (
            "inner: {port: 1, share: 1.5}",
            "share 1.5 is out of range (0-1)",
        ),
        (
            "inner: {port: 1, share: .inf}",
            "share must be a finite number",
        ),
        ("inner: {weight: 1}", "property \"port\" is required"),
        ("name: ''", "name is empty"),
        ("status: 2", "unknown status 2 (one of 1, 0)"),
        ("several: []", "several is an empty list"),
        ("several: [a, b, c]", "several has 3 items, at most 2"),
        ("several: [a, a]", "the string \"a\" is listed twice"),
        (
            "labels: {a: 'b c'}",
            "invalid value \"b c\": expected a text without blanks",
        ),
        (
            "network: ':/8'",
            "invalid network \":/8\": expected an address or a CIDR block",
        ),
        (
            "network: 1.2.3.4/33",
            "invalid network \"1.2.3.4/33\": expected an address or a CIDR block",
        ),
        (
            "{mode: strict, status: 1}",
            "mode and status exclude each other",
        ),
        ("on: true", "on needs name"),
    ] {
        let found = messages(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(
            found[0].ends_with(&format!(": {message}")),
            "{text}: {found:?}"
        );
    }
    let long = messages(&format!("name: {}", "x".repeat(257)));
    assert!(long[0].ends_with("name is too long: 257 characters, at most 256"));
}

#[test]
fn secrets_are_not_shown() {
    for text in [
        "key: 123456789",
        "key: [hush]",
        "key: hu",
        "key: hushhushhush",
    ] {
        let found = messages(text).concat();
        assert!(!found.contains("hu") && !found.contains("123"), "{found}");
    }
    assert_eq!(
        messages("key: 7"),
        ["f:1:6: key: expected a string, found an integer"]
    );
}

#[test]
fn null_may_be_absent_and_ignored_fields_are_collected() {
    let mut problems = crate::config::diagnostic::Problems::new(Path::new("f"));
    let mut checker = Checker::new(&mut problems);
    checker.null_is_absent = true;
    let at = crate::config::diagnostic::At::Root;
    checker.object(
        &node("{name: ~, inner: {port: ~}, old: 1, nmae: ~}"),
        &OUTER,
        &at,
        false,
    );
    assert_eq!(checker.without_effect, ["old"]);
    let told: Vec<String> = problems
        .finish()
        .iter()
        .map(|d| d.message.clone())
        .collect();
    assert_eq!(
        told,
        [
            "property \"port\" is required",
            "unknown field \"nmae\"; did you mean \"name\"?"
        ]
    );
}

#[test]
fn json_schema_says_what_the_table_says() {
    let schema = json_schema(&OUTER, false);
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(
        schema["properties"]["mode"]["enum"],
        serde_json::json!(["strict", "tolerant"])
    );
    assert_eq!(schema["properties"]["inner"]["$ref"], "#/$defs/Inner");
    let inner = &schema["$defs"]["Inner"];
    assert_eq!(inner["properties"]["port"]["maximum"], 65535);
    assert_eq!(inner["properties"]["port"]["description"], "A port.");
    assert_eq!(inner["properties"]["weight"]["default"], 1);
    assert_eq!(inner["required"], serde_json::json!(["port"]));
    assert_eq!(
        schema["properties"]["old"]["description"],
        "Known to APISIX, no effect here."
    );
    let nullable = json_schema(&OUTER, true);
    assert_eq!(
        nullable["properties"]["on"]["type"],
        serde_json::json!(["boolean", "null"])
    );
}

/// The JSON Schemas and the checks agree on objects that are good and on objects that are not.
#[test]
fn json_schemas_and_checks_agree() {
    let node_a = "nodes: {'a:1': 1}";
    let upstream = format!("upstream: {{{node_a}}}");
    let routes = [
        (true, format!("id: 1\n{upstream}")),
        (
            true,
            "id: a-b.c_d\nupstream_id: 7\nsnis: [a.test]\nremote_addr: 10.0.0.0/8".to_string(),
        ),
        (
            true,
            "plugins: {mqtt-proxy: {protocol_level: [3, 4]}}\nupstream_id: x".to_string(),
        ),
        (false, "id: ''".to_string()),
        (false, "id: 0".to_string()),
        (false, "id: a b".to_string()),
        (false, "server_port: 0".to_string()),
        (false, "server_port: '9100'".to_string()),
        (false, "sni: a\nsnis: [b]".to_string()),
        (false, "snis: []".to_string()),
        (false, "status: 1".to_string()),
        (false, "upstream: {}".to_string()),
        (false, "upstream: {nodes: [{host: a, port: 1}]}".to_string()),
        (false, "upstream: {nodes: {'a:1': -1}}".to_string()),
        (false, format!("upstream: {{{node_a}, retries: 0.5}}")),
        (
            false,
            format!("upstream: {{{node_a}, timeout: {{connect: 1, send: 1}}}}"),
        ),
        (
            false,
            format!("upstream: {{{node_a}, timeout: {{connect: 0, send: 1, read: 1}}}}"),
        ),
        (
            false,
            format!("upstream: {{{node_a}, service_name: a, discovery_type: dns}}"),
        ),
        (true, format!("upstream: {{{node_a}, service_name: a}}")),
        (
            true,
            format!("upstream: {{{node_a}, checks: {{passive: {{}}}}}}"),
        ),
        (
            false,
            format!("upstream: {{{node_a}, checks: {{extra: {{}}}}}}"),
        ),
        (
            false,
            format!("upstream: {{{node_a}, checks: {{active: {{healthy: {{successes: 255}}}}}}}}"),
        ),
        (
            true,
            format!("upstream: {{{node_a}, checks: {{active: {{type: tcp, extra: 1}}}}}}"),
        ),
        (false, format!("upstream: {{{node_a}, scheme: ftp}}")),
        (
            true,
            format!("upstream: {{{node_a}, scheme: tls, tls: {{client_cert_id: 1}}}}"),
        ),
    ];
    let validator =
        jsonschema::validator_for(&json_schema(&stream_route::STREAM_ROUTE, false)).unwrap();
    for (good, text) in &routes {
        let node = node(text);
        let json = serde_json::to_value(node.to_yaml()).unwrap();
        let errors = check(&node, &stream_route::STREAM_ROUTE, Path::new("f"));
        let errors: Vec<_> = errors.iter().filter(|found| found.is_error()).collect();
        assert_eq!(errors.is_empty(), *good, "{text}: {errors:?}");
        assert_eq!(validator.is_valid(&json), *good, "{text}");
    }
    let pem = format!("cert: {}, key: {}", "c".repeat(128), "k".repeat(64));
    let ssls = [
        (true, format!("{{sni: a, {pem}}}")),
        (true, format!("{{type: client, {pem}}}")),
        (
            true,
            "{sni: a, cert: $ENV://CERT, key: $secret://vault/1/key}".to_string(),
        ),
        (false, format!("{{type: server, {pem}}}")),
        (false, format!("{{sni: a, snis: [b], {pem}}}")),
        (false, format!("{{sni: a, status: 3, {pem}}}")),
        (false, "{sni: a, cert: c, key: k}".to_string()),
    ];
    let validator = jsonschema::validator_for(&json_schema(&ssl::SSL, false)).unwrap();
    for (good, text) in &ssls {
        let node = node(text);
        let json = serde_json::to_value(node.to_yaml()).unwrap();
        let errors = check(&node, &ssl::SSL, Path::new("f"));
        assert_eq!(errors.is_empty(), *good, "{text}: {errors:?}");
        assert_eq!(validator.is_valid(&json), *good, "{text}");
    }
    let settings = [
        (
            true,
            "apisix: {stream_proxy: {tcp: [9100, {addr: '[::1]:1', tls: true}]}}\nunknown: 1",
        ),
        (
            true,
            "mqtt_proxy: {connect: ~, limits: {max_connect_size: 64}}\napisix: ~",
        ),
        (false, "mqtt_proxy: {connect: lax}"),
        (false, "mqtt_proxy: {limits: {first_byte_timeout: 0}}"),
        (false, "apisix: {proxy_mode: tcp}"),
        (false, "nginx_config: {worker_processes: 0}"),
        (false, "stream_plugins: mqtt-proxy"),
        (
            false,
            "deployment: {role_data_plane: {config_provider: yml}}",
        ),
    ];
    let validator = jsonschema::validator_for(&json_schema(&config::CONFIG, true)).unwrap();
    for (good, text) in settings {
        let node = node(text);
        let json = serde_json::to_value(node.to_yaml()).unwrap();
        let mut problems = crate::config::diagnostic::Problems::new(Path::new("f"));
        let mut checker = Checker::new(&mut problems);
        checker.null_is_absent = true;
        checker.object(
            &node,
            &config::CONFIG,
            &crate::config::diagnostic::At::Root,
            false,
        );
        assert_eq!(
            problems.errors() == 0,
            good,
            "{text}: {:?}",
            problems.finish()
        );
        assert_eq!(validator.is_valid(&json), good, "{text}");
    }
}

#[test]
fn every_published_schema_is_a_schema() {
    for schema in [
        json_schema(&standalone::STANDALONE, false),
        json_schema(&config::CONFIG, true),
    ] {
        assert!(jsonschema::meta::is_valid(&schema));
        assert!(jsonschema::validator_for(&schema).is_ok());
    }
}

mod random {
    use super::*;
    use crate::config::diagnostic::Position;
    use crate::config::document::{Entry, Value};
    use proptest::prelude::*;

    fn tree() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<f64>().prop_map(Value::Float),
            "[a-z0-9:.$é]{0,10}".prop_map(Value::String),
        ];
        let node = |value| Node {
            position: Position::START,
            value,
        };
        leaf.prop_map(node).prop_recursive(5, 60, 6, move |inner| {
            let key = prop_oneof![
                "[a-z_]{1,10}",
                prop::sample::select(vec![
                    "nodes",
                    "upstream",
                    "checks",
                    "active",
                    "healthy",
                    "http_statuses",
                    "tls",
                    "timeout",
                    "id",
                    "key",
                    "apisix",
                    "stream_proxy",
                    "tcp",
                    "mqtt_proxy",
                    "limits",
                ])
                .prop_map(str::to_string),
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Seq),
                prop::collection::vec((key, inner), 0..6).prop_map(|entries| {
                    Value::Map(
                        entries
                            .into_iter()
                            .map(|(key, value)| Entry {
                                key,
                                key_position: Position::START,
                                value,
                            })
                            .collect(),
                    )
                }),
            ]
            .prop_map(node)
        })
    }

    proptest! {
        #[test]
        fn check_never_panics(tree in tree()) {
            for table in [
                &stream_route::STREAM_ROUTE, &upstream::UPSTREAM, &service::SERVICE, &ssl::SSL,
                &config::CONFIG, &standalone::STANDALONE,
            ] {
                let _ = check(&tree, table, Path::new("f"));
            }
        }
    }
}
