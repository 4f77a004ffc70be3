use super::*;

fn read(text: &str, previous: Option<&Resources>) -> Result<(Resources, Vec<String>), Vec<String>> {
    let env = |name: &str| match name {
        "PORT" => Some("1883".to_string()),
        _ => None,
    };
    let plugins = crate::config::settings::DEFAULT_STREAM_PLUGINS.map(str::to_string);
    let format = if text.starts_with('{') {
        Provider::Json
    } else {
        Provider::Yaml
    };
    let shown = |all: Vec<Diagnostic>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    load(text, Path::new("a.yaml"), format, &env, &plugins, previous)
        .map(|(resources, all)| (resources, shown(all)))
        .map_err(shown)
}

fn yaml(text: &str) -> (Resources, Vec<String>) {
    read(&format!("{text}\n#END\n"), None).unwrap()
}

#[test]
fn the_file_of_the_blog() {
    let (resources, told) = yaml(
        "stream_routes:\n  - id: 1\n    upstream_id: 1\n    plugins:\n      mqtt-proxy:\n        \
         protocol_name: \"MQTT\"\n        protocol_level: 5 # use MQTT 5.0\nupstreams:\n  - nodes:\n      \
         \"host.docker.internal:1883\": 1\n      \"host.docker.internal:1884\": 1\n    type: chash\n    \
         key: mqtt_client_id\n    id: 1",
    );
    assert_eq!(told, Vec::<String>::new());
    let route = &resources.stream_routes[0];
    assert_eq!(
        (route.id.as_str(), route.upstream_id.as_deref()),
        ("1", Some("1"))
    );
    assert_eq!(
        route.plugins.mqtt_proxy.as_ref().unwrap().protocols[0].level,
        5
    );
    let upstream = &resources.upstreams[0];
    assert_eq!(upstream.id, "1");
    assert_eq!(upstream.upstream.nodes.len(), 2);
    assert_eq!(upstream.upstream.hash_key.to_string(), "mqtt_client_id");
}

#[test]
fn end_marks() {
    let good = "stream_routes: []\n";
    for end in [
        "#END",
        "#END\n",
        "#END      ",
        "#END\r\n",
        "# foo #END",
        "#END\n\n\n\n\n\n",
    ] {
        assert!(read(&format!("{good}{end}"), None).is_ok(), "{end:?}");
    }
    assert!(read("foo: 1 #END", None).is_ok());
    for end in ["", "#END       ", "#END\nx: 1", "#END.", "# END", "#end"] {
        let told = read(&format!("{good}{end}"), None).unwrap_err();
        assert_eq!(told.len(), 1, "{end:?}");
        assert!(told[0].ends_with("missing valid end flag: the file must end with a line #END"));
    }
    assert!(read("", None).is_err());
    assert_eq!(
        read("a: é\nb: 1", None).unwrap_err(),
        ["a.yaml:2:5: missing valid end flag: the file must end with a line #END"]
    );
}

#[test]
fn files_that_cannot_be_read_whole() {
    for (text, message) in [
        ("#END\n", "a.yaml:1:1: the document is empty"),
        ("--- {}\n#END\n", "a.yaml:1:1: the document is empty"),
        (
            "- 1\n#END\n",
            "a.yaml:1:1: expected a mapping of sections, found a list",
        ),
        (
            "a: [\n#END\n",
            "a.yaml:3:1: not YAML: while parsing a node, did not find expected node content",
        ),
        (
            "# ${{NOBODY}}\na: 1\n#END\n",
            "a.yaml:1:3: environment variable NOBODY is not set and has no default (write ${{NOBODY:=default}})",
        ),
        ("{}", "a.yaml:1:1: the document is empty"),
        ("{\"a\": }", "a.yaml:1:7: not JSON: expected value"),
        (
            "{\"a\": \"${{NOBODY}}\"}",
            "a.yaml:1:7: environment variable NOBODY is not set and has no default (write ${{NOBODY:=default}})",
        ),
    ] {
        assert_eq!(read(text, None).unwrap_err(), [message], "{text}");
    }
}

#[test]
fn json_is_the_same_without_the_mark() {
    let (resources, told) = read(
        "{\"stream_routes\": [{\"id\": 1, \"server_port\": \"${{PORT}}\", \"upstream\": {\"nodes\": {\"a:1\": 1}}}]}",
        None,
    )
    .unwrap();
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(resources.stream_routes[0].server_port, Some(1883));
    // No YAML typing.
    let (_, told) = read(
        "{\"stream_routes\": [{\"tls_passthrough\": \"yes\", \"upstream_id\": 1}]}",
        None,
    )
    .unwrap();
    assert!(
        told.iter()
            .any(|m| m.contains("expected a boolean, found the string \"yes\""))
    );
}

#[test]
fn positions_survive_substitution() {
    let (_, told) = yaml(
        "stream_routes:\n  - {id: \"r${{PORT}}\", upstream_id: 1, server_port: 0}\nupstreams: [{id: 1, nodes: {}}]",
    );
    let line = "  - {id: \"r${{PORT}}\", upstream_id: 1, server_port: 0}";
    let column = line.find("0}").unwrap() + 1;
    assert_eq!(
        told,
        [format!(
            "a.yaml:2:{column}: stream_routes[0].server_port: server_port 0 is out of range (1-65535)"
        )]
    );
}

#[test]
fn ids() {
    let (resources, told) = yaml(
        "stream_routes:\n  - upstream_id: u\n  - {id: 7, upstream_id: u}\n  - {id: a.b-c_d, upstream_id: u}\n  - {upstream_id: u}\n\
         upstreams: [{id: u, nodes: {}}]",
    );
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(ids_list(&resources), ["arr_1", "7", "a.b-c_d", "arr_4"]);
}

fn ids_list(resources: &Resources) -> Vec<&str> {
    resources
        .stream_routes
        .iter()
        .map(|route| route.id.as_str())
        .collect()
}

#[test]
fn a_bad_object_harms_no_other() {
    let (resources, told) = yaml(
        "stream_routes:\n  - {id: 1, upstream_id: u, server_port: 70000, sin: x}\n  - text\n  - {id: 2, upstream_id: u}\n  - 7\n  - {id: {}, upstream_id: u}\n\
         upstreams: [{id: u, nodes: {}}]",
    );
    assert_eq!(ids_list(&resources), ["2"]);
    assert_eq!(
        told,
        [
            "a.yaml:2:42: stream_routes[0].server_port: server_port 70000 is out of range (1-65535)",
            "a.yaml:2:49: stream_routes[0].sin: unknown field \"sin\"; did you mean \"sni\"?",
            "a.yaml:3:5: stream_routes[1]: expected a mapping, found the string \"text\"",
            "a.yaml:5:5: stream_routes[3]: expected a mapping, found the integer 7",
            "a.yaml:6:10: stream_routes[4].id: expected a string or an integer, found a mapping",
        ]
    );
}

#[test]
fn duplicate_ids_take_the_earlier_place() {
    let (resources, told) = yaml(
        "stream_routes:\n  - {id: 1, upstream_id: u, server_port: 1}\n  - {id: 2, upstream_id: u}\n  - {id: \"1\", upstream_id: u, server_port: 3}\n\
         upstreams: [{id: u, nodes: {}}]",
    );
    assert_eq!(ids_list(&resources), ["1", "2"]);
    assert_eq!(resources.stream_routes[0].server_port, Some(3));
    assert_eq!(
        told,
        [
            "a.yaml:4:10: warning: stream_routes[2].id: id \"1\" is also that of stream_routes[0]; this one takes its place"
        ]
    );
}

#[test]
fn the_version_before_stays_at_its_place() {
    let (before, _) = yaml(
        "stream_routes: [{id: 1, upstream_id: u, server_port: 1}, {id: 2, upstream_id: u}]\nupstreams: [{id: u, nodes: {}}]",
    );
    let text = "stream_routes:\n  - {id: 3, upstream_id: u}\n  - {id: 1, upstream_id: u, server_port: x, y: 1}\n  - {id: 4, server_port: x}\nupstreams: [{id: u, nodes: 5}]\n#END";
    let (after, told) = read(text, Some(&before)).unwrap();
    assert_eq!(ids_list(&after), ["3", "1"]);
    assert!(Arc::ptr_eq(
        &after.stream_routes[1],
        &before.stream_routes[0]
    ));
    assert!(Arc::ptr_eq(&after.upstreams[0], &before.upstreams[0]));
    let stays = "; the version that was loaded before stays in service";
    assert_eq!(
        told,
        [
            format!("a.yaml:3:42: stream_routes[1].server_port: expected an integer, found the string \"x\"{stays}"),
            format!("a.yaml:3:45: stream_routes[1].y: unknown field \"y\"{stays}"),
            "a.yaml:4:5: warning: stream_routes[2]: the route has no upstream: its connections will be refused".to_string(),
            "a.yaml:4:26: stream_routes[2].server_port: expected an integer, found the string \"x\"".to_string(),
            format!("a.yaml:5:28: upstreams[0].nodes: expected a mapping or a list, found the integer 5{stays}"),
        ]
    );
    // A good object of the same id in the same file goes before the version of yesterday.
    let text = "stream_routes:\n  - {id: 1, upstream_id: u, server_port: 9}\n  - {id: 1, server_port: x}\nupstreams: [{id: u, nodes: {}}]\n#END";
    let (after, told) = read(text, Some(&before)).unwrap();
    assert_eq!(after.stream_routes.len(), 1);
    assert_eq!(after.stream_routes[0].server_port, Some(9));
    assert!(!told.concat().contains("stays in service"));
    // And a good one further down replaces it.
    let text = "stream_routes:\n  - {id: 1, server_port: x}\n  - {id: 1, upstream_id: u, server_port: 9}\nupstreams: [{id: u, nodes: {}}]\n#END";
    let (after, _) = read(text, Some(&before)).unwrap();
    assert_eq!(after.stream_routes.len(), 1);
    assert_eq!(after.stream_routes[0].server_port, Some(9));
}

#[test]
fn absent_objects_are_gone() {
    let (before, _) =
        yaml("stream_routes: [{id: 1, upstream_id: u}]\nupstreams: [{id: u, nodes: {}}]");
    let (after, _) = read("upstreams: [{id: u, nodes: {}}]\n#END", Some(&before)).unwrap();
    assert!(after.stream_routes.is_empty());
    assert_eq!(after.upstreams, before.upstreams);
}

#[test]
fn reloading_the_same_objects_elsewhere_changes_nothing() {
    let text = "stream_routes: [{id: 1, upstream_id: u}]\nupstreams: [{id: u, nodes: {'a:1': 1}}]";
    assert_eq!(yaml(text).0, yaml(&format!("# moved\n\n\n{text}")).0);
}

#[test]
fn sections() {
    let (resources, told) = yaml(
        "stream_routes: ~\nupstreams:\nservices: {}\nssls: {a: 1}\nroutes: []\nconsumers: []\nstream_route: []\nfoo: 1\nplugin_metadata: []",
    );
    assert_eq!(resources, Resources::default());
    assert_eq!(
        told,
        [
            "a.yaml:4:7: ssls: expected a list, found a mapping",
            "a.yaml:5:1: warning: routes: routes has no effect here",
            "a.yaml:6:1: warning: consumers: consumers has no effect here",
            "a.yaml:7:1: warning: stream_route: unknown section \"stream_route\"; did you mean \"stream_routes\"?",
            "a.yaml:8:1: warning: foo: unknown section \"foo\"",
            "a.yaml:9:1: warning: plugin_metadata: plugin_metadata has no effect here",
        ]
    );
}

#[test]
fn a_section_that_is_no_list_leaves_things_as_they_were() {
    let (before, _) =
        yaml("stream_routes: [{id: 1, upstream_id: u}]\nupstreams: [{id: u, nodes: {}}]");
    let (after, told) = read(
        "stream_routes: text\nupstreams: [{id: u, nodes: {}}]\n#END",
        Some(&before),
    )
    .unwrap();
    assert_eq!(after, before);
    assert_eq!(
        told,
        [
            "a.yaml:1:16: stream_routes: expected a list, found the string \"text\"; the version that was loaded before stays in service"
        ]
    );
}

#[test]
fn dangling_references() {
    let (resources, told) = yaml(
        "stream_routes:\n  - {id: 1, upstream_id: nobody}\n  - {id: 2, service_id: nobody}\n  - {id: 3, upstream_id: 1, service_id: nobody}\n  \
         - {id: 4, upstream_id: 2}\nservices:\n  - {id: 1, upstream_id: nobody}\nupstreams:\n  - {id: 1, nodes: {}, tls: {client_cert_id: 9}}\n  - {id: 2, nodes: 5}",
    );
    assert_eq!(resources.stream_routes.len(), 4);
    assert_eq!(
        told,
        [
            "a.yaml:2:26: warning: stream_routes[0].upstream_id: there is no good object \"nobody\" in upstreams",
            "a.yaml:3:25: warning: stream_routes[1].service_id: there is no good object \"nobody\" in services",
            "a.yaml:5:26: warning: stream_routes[3].upstream_id: there is no good object \"2\" in upstreams",
            "a.yaml:7:26: warning: services[0].upstream_id: there is no good object \"nobody\" in upstreams",
            "a.yaml:9:46: warning: upstreams[0].tls.client_cert_id: there is no good object \"9\" in ssls with type client",
            "a.yaml:10:20: upstreams[1].nodes: expected a mapping or a list, found the integer 5",
        ]
    );
}

#[test]
fn the_plugins_section_replaces_the_list() {
    let route = "stream_routes: [{id: 1, upstream_id: u, plugins: {mqtt-proxy: {protocol_level: 4}}}]\nupstreams: [{id: u, nodes: {}}]\n";
    let (resources, told) = yaml(&format!(
        "{route}plugins: [{{name: mqtt-proxy, stream: true}}, {{name: limit-count}}, {{name: syslog, stream: false}}]"
    ));
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(resources.plugins, Some(vec!["mqtt-proxy".to_string()]));
    let (resources, told) = yaml(&format!("{route}plugins: []"));
    assert_eq!(resources.plugins, Some(vec![]));
    assert!(resources.stream_routes.is_empty());
    assert!(told[0].contains("plugin [mqtt-proxy] is not listed in stream_plugins"));
    // An invalid list is refused whole.
    let (before, _) = yaml("plugins: [{name: mqtt-proxy, stream: true}]");
    let text = format!("{route}plugins: [{{name: mqtt-proxy, stream: \"true\"}}]\n#END");
    let (after, told) = read(&text, Some(&before)).unwrap();
    assert_eq!(after.plugins, before.plugins);
    assert!(told[0].contains("plugins[0].stream: expected a boolean, found the string \"true\""));
    // Without the section the list of config.yaml counts again.
    assert_eq!(yaml(route).0.plugins, None);
    let (_, told) = yaml("plugins: [{name: mqtt-proxi, stream: true}]");
    assert!(told[0].contains("warning: plugins[0]: unknown stream plugin \"mqtt-proxi\""));
}

#[test]
fn keys_written_twice_are_told() {
    let (resources, told) = yaml(
        "stream_routes:\n  - {id: 1, upstream_id: a, upstream_id: u}\nupstreams: [{id: u, nodes: {}}]",
    );
    assert_eq!(resources.stream_routes[0].upstream_id.as_deref(), Some("u"));
    assert_eq!(
        told,
        [
            "a.yaml:2:13: warning: stream_routes[0].upstream_id: \"upstream_id\" is written again below, which is what counts"
        ]
    );
}

#[test]
fn ten_thousand_routes_load_quickly() {
    let mut text = String::from("stream_routes:\n");
    for n in 0..10_000 {
        text.push_str(&format!(
            "  - id: r{n}\n    server_port: {}\n    upstream_id: u{}\n    remote_addr: 10.{}.{}.0/24\n    \
             plugins:\n      mqtt-proxy:\n        protocol_level: 4\n",
            n % 65535 + 1, n % 1000, n / 256, n % 256
        ));
    }
    text.push_str("upstreams:\n");
    for n in 0..1000 {
        text.push_str(&format!(
            "  - id: u{n}\n    type: chash\n    key: mqtt_client_id\n    nodes:\n      - {{host: 10.0.0.1, port: 1883, weight: 1}}\n      \
             - {{host: 10.0.0.2, port: 1883, weight: 1}}\n      - {{host: 10.0.0.3, port: 1883, weight: 1}}\n"
        ));
    }
    text.push_str("#END\n");
    // Of this thread alone: others may have the processor meanwhile.
    let cpu = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let used = text.split(' ').next().and_then(|used| used.parse().ok());
        std::time::Duration::from_nanos(used.unwrap())
    };
    let began = cpu();
    let (resources, told) = read(&text, None).unwrap();
    let took = cpu() - began;
    assert_eq!(
        (
            resources.stream_routes.len(),
            resources.upstreams.len(),
            told.len()
        ),
        (10_000, 1000, 0)
    );
    // A generous bound that anything quadratic misses, even without optimisation.
    println!("loaded in {took:?}");
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

const GOOD: &str = "stream_routes:\n  - id: 1\n    server_port: 9100\n    snis: [a.test]\n    service_id: s\n    plugins: &p\n      mqtt-proxy: {protocol_level: [3, 4, 5], upstream: {ip: 1.2.3.4, port: 1}}\n\
services: [{id: s, upstream: {nodes: {'[::1]:1': 1, 'a.test:2': 2}, type: chash, hash_on: vars_combinations, key: '$remote_addr-${mqtt_username ?? x}'}, plugins: *p}]\n\
upstreams:\n  - {id: 1, nodes: [{host: a, port: ${{PORT}}, weight: 1, priority: -1}], retries: 1, timeout: {connect: 1, send: 1, read: 0.5}, checks: {active: {healthy: {}}}}\n\
ssls: [{id: 1, sni: a, cert: $env://A, key: $env://B}]\nplugins: [{name: mqtt-proxy, stream: true}]\n#END\n";

proptest::proptest! {
    #[test]
    fn mutated_files_never_panic(
        at in 0usize..1200, cut in 0usize..12, with in "([ -~\n]{0,4}|é|\\$\\{\\{|&p|\\*p|<<: )", yaml in proptest::bool::ANY
    ) {
        let start = at.min(GOOD.len());
        let end = (start + cut).min(GOOD.len());
        let text = format!("{}{}{}", &GOOD[..start], with, &GOOD[end..]);
        let format = if yaml { Provider::Yaml } else { Provider::Json };
        let (before, _) = read(GOOD, None).unwrap();
        let _ = load(&text, Path::new("a"), format, &|_| None, &[], Some(&before));
    }

    #[test]
    fn any_text_never_panics(text in "(?s).{0,100}") {
        let _ = read(&format!("{text}\n#END"), None);
    }
}
