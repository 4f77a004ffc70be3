use super::*;
use crate::config::settings::{ControlSettings, DiscoverySettings, DnsSettings, Listener};

fn env(name: &str) -> Option<String> {
    (name == "PORT").then(|| "9100".to_string())
}

fn loaded(text: &str) -> Loaded<Settings> {
    load(text, Path::new("config.yaml"), &env)
}

/// Settings of a file that also listens on 9100, and what was told.
fn with_listener(text: &str) -> (Option<Settings>, Vec<String>) {
    let loaded = loaded(&format!(
        "apisix: {{stream_proxy: {{tcp: [9100]}}}}\n{text}"
    ));
    let told = loaded.diagnostics.iter().map(ToString::to_string).collect();
    let failed = loaded.has_errors();
    (loaded.value.filter(|_| !failed), told)
}

fn good(text: &str) -> Settings {
    let loaded = loaded(text);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    loaded.value.unwrap()
}

fn messages(text: &str) -> Vec<String> {
    loaded(text)
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn defaults() {
    let settings = good("apisix: {stream_proxy: {tcp: [9100]}}");
    assert_eq!(
        settings,
        Settings {
            listeners: vec![Listener {
                addr: "0.0.0.0:9100".parse().unwrap(),
                tls: false,
                tls_passthrough: false,
                proxy_protocol: false,
                proxy_protocol_to_upstream: false,
                written: "9100".to_string(),
                position: Default::default(),
            }],
            udp_listeners: 0,
            provider: Provider::Yaml,
            standalone_file: None,
            workers: Workers::Auto,
            enable_ipv6: true,
            dns: DnsSettings::default(),
            discovery: DiscoverySettings::default(),
            health_checks: true,
            upstream_bind: vec![],
            stream_plugins: DEFAULT_STREAM_PLUGINS.map(str::to_string).to_vec(),
            fallback_sni: None,
            trusted_certificate: None,
            metrics: Some(MetricsSettings {
                addr: "127.0.0.1:9091".parse().unwrap(),
                path: "/apisix/prometheus/metrics".to_string(),
                required: false,
            }),
            control: Some(ControlSettings {
                addr: "127.0.0.1:9090".parse().unwrap(),
                written: false,
            }),
            status: None,
            access_log: None,
            connect: ConnectMode::Strict,
            refusal: RefusalMode::Connack,
            ring_identity: RingIdentity::Name,
            limits: Limits::default(),
            idle: Idle::default(),
            tls: TlsSettings::default(),
            shutdown: ShutdownSettings::default(),
            upgrade: UpgradeSettings::default(),
            pingora: None,
            without_effect: vec![],
        }
    );
}

#[test]
fn the_file_of_the_blog() {
    let text = "apisix:\n  enable_admin: false\n  stream_proxy:\n    only: false # allow HTTP as well\n    \
                tcp:\n      - addr: 9000\n        tls: false\ndeployment:\n  role: data_plane\n  \
                role_data_plane:\n    config_provider: yaml\nstream_plugins:\n  - mqtt-proxy\n#END\n";
    assert_eq!(messages(text), Vec::<String>::new());
    let settings = good(text);
    assert_eq!(settings.listeners[0].addr.to_string(), "0.0.0.0:9000");
    assert_eq!(settings.stream_plugins, ["mqtt-proxy"]);
    assert_eq!(
        settings.without_effect,
        ["apisix.enable_admin", "apisix.stream_proxy.only"]
    );
}

#[test]
fn listeners_in_all_forms() {
    let settings = good(
        "apisix:\n  proxy_protocol: {enable_tcp_pp: true}\n  stream_proxy:\n    tcp:\n      - 9100\n      \
         - '127.0.0.1:9101'\n      - '[::1]:9102'\n      - 2000-2002\n      - addr: 9103\n        \
         tls: on\n        proxy_protocol: no\n        proxy_protocol_to_upstream: yes\n        \
         tls_passthrough: true\n",
    );
    let shown: Vec<String> = settings
        .listeners
        .iter()
        .map(|l| {
            format!(
                "{} {}{}{}{} {}",
                l.addr,
                u8::from(l.tls),
                u8::from(l.tls_passthrough),
                u8::from(l.proxy_protocol),
                u8::from(l.proxy_protocol_to_upstream),
                l.position
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "0.0.0.0:9100 0010 5:9",
            "127.0.0.1:9101 0010 6:9",
            "[::1]:9102 0010 7:9",
            "0.0.0.0:2000 0010 8:9",
            "0.0.0.0:2001 0010 8:9",
            "0.0.0.0:2002 0010 8:9",
            "0.0.0.0:9103 1101 9:15",
        ]
    );
    assert_eq!(settings.listeners[3].written, "2000-2002");
}

#[test]
fn wrong_listeners_are_told_together() {
    assert_eq!(
        messages(
            "apisix:\n  stream_proxy:\n    tcp:\n      - 70000\n      - 9100\n      - 9100\n      - 80.5\n      - {tls: true}\n      - true\n"
        ),
        [
            "config.yaml:4:9: apisix.stream_proxy.tcp[0]: port 70000 is out of range (1-65535)",
            "config.yaml:6:9: apisix.stream_proxy.tcp[2]: 0.0.0.0:9100 is listed twice, first at line 5",
            "config.yaml:7:9: apisix.stream_proxy.tcp[3]: expected an integer, a string or a mapping, \
             found the number 80.5",
            "config.yaml:8:9: apisix.stream_proxy.tcp[4]: property \"addr\" is required",
            "config.yaml:9:9: apisix.stream_proxy.tcp[5]: expected an integer, a string or a \
             mapping, found the boolean true",
        ]
    );
}

#[test]
fn without_a_listener_there_is_nothing_to_serve() {
    let message = "nothing to serve: apisix.stream_proxy.tcp lists no listener";
    for (text, place) in [
        ("", "1:1"),
        ("# only a comment\n#END\n", "1:1"),
        ("apisix:\n  proxy_mode: http\n", "1:1"),
        ("apisix:\n  stream_proxy: {tcp: []}\n", "2:18"),
        ("apisix:\n  stream_proxy: ~\n", "2:3"),
    ] {
        let found = messages(text);
        assert_eq!(found, [format!("config.yaml:{place}: {message}")], "{text}");
        assert!(loaded(text).has_errors());
    }
    // UDP alone is nothing either.
    let found = messages("apisix: {stream_proxy: {udp: [9100, 9101]}}");
    assert_eq!(found.len(), 2);
    assert!(found[0].ends_with(message));
    assert!(found[1].ends_with("warning: apisix.stream_proxy.udp: UDP is not served (2 listed)"));
}

#[test]
fn keys_nobody_knows_are_warnings_with_the_nearest_name() {
    let (settings, told) = with_listener("stream_plugin: []\nmqtt_proxy: {limit: {}}\n");
    assert!(settings.is_some());
    assert_eq!(
        told,
        [
            "config.yaml:2:1: warning: stream_plugin: unknown field \"stream_plugin\"; did you mean \"stream_plugins\"?",
            "config.yaml:3:14: warning: mqtt_proxy.limit: unknown field \"limit\"; did you mean \"limits\"?",
        ]
    );
}

#[test]
fn what_apisix_knows_is_listed_once() {
    let settings = good(
        "apisix: {node_listen: 9080, stream_proxy: {tcp: [1]}, ssl: {enable: true, ssl_protocols: x}}\n\
         nginx_config: {error_log: x, http: {anything: 1}, stream: {real_ip_from: y}}\n\
         plugins: [a]\ndeployment: {role_traditional: {config_provider: yaml}, etcd: {host: []}, \
         admin: {admin_key: [{key: hush}]}}\nplugin_attr: {log-rotate: {}, own: {}}\nwasm: {}\n",
    );
    assert_eq!(
        settings.without_effect,
        [
            "apisix.node_listen",
            "apisix.ssl.enable",
            "apisix.ssl.ssl_protocols",
            "nginx_config.error_log",
            "nginx_config.http",
            "nginx_config.stream.real_ip_from",
            "plugins",
            "deployment.etcd.host",
            "deployment.admin.admin_key",
            "plugin_attr.log-rotate",
            "wasm",
        ]
    );
}

#[test]
fn own_settings() {
    let (settings, told) = with_listener(
        "mqtt_proxy:\n  standalone_file: routes.yaml\n  connect: tolerant\n  refusal: close\n  \
         ring_identity: address\n  limits: {first_byte_timeout: 0.5, connect_timeout: 2, \
         max_connect_size: 64, max_connections: 9}\n  idle: {keep_alive_factor: 2, \
         keep_alive_margin: 0}\n  metrics: {addr: '[::1]:9', path: /m}\n  shutdown: {timeout: 1, rate: 0.5, \
         will: suppress}\n  upgrade: {linger: 0, rate: 7}\n\
         pingora: {threads: 4, unknown: [1]}\nnginx_config: {worker_processes: 3}\n",
    );
    assert_eq!(told, Vec::<String>::new());
    let settings = settings.unwrap();
    assert_eq!(settings.standalone_file, Some(PathBuf::from("routes.yaml")));
    assert_eq!(settings.connect, ConnectMode::Tolerant);
    assert_eq!(settings.refusal, RefusalMode::Close);
    assert_eq!(settings.ring_identity, RingIdentity::Address);
    assert_eq!(
        settings.limits,
        Limits {
            first_byte_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            max_connect_size: 64,
            max_connections: 9,
        }
    );
    assert_eq!(settings.idle.keep_alive_factor, 2.0);
    assert_eq!(settings.idle.keep_alive_margin, Duration::ZERO);
    let metrics = settings.metrics.unwrap();
    assert_eq!(
        (metrics.addr.to_string().as_str(), metrics.path.as_str()),
        ("[::1]:9", "/m")
    );
    assert_eq!(
        settings.shutdown,
        ShutdownSettings {
            timeout: Duration::from_secs(1),
            rate: Some(0.5),
            will: Will::Suppress,
        }
    );
    assert_eq!(
        settings.upgrade,
        UpgradeSettings {
            linger: Duration::ZERO,
            rate: 7.0,
            will: Will::Publish,
        }
    );
    assert_eq!(
        settings.workers,
        Workers::Count(NonZeroUsize::new(3).unwrap())
    );
    let pingora = settings.pingora.unwrap();
    let keys: Vec<&str> = pingora.keys.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["threads", "unknown"]);
    assert_eq!(
        pingora.value,
        serde_yaml::from_str::<serde_yaml::Value>("{threads: 4, unknown: [1]}").unwrap()
    );
}

#[test]
fn bounds_of_own_settings() {
    for (text, message) in [
        (
            "limits: {max_connect_size: 63}",
            "max_connect_size 63 is out of range (64-1048576)",
        ),
        (
            "limits: {first_byte_timeout: 0}",
            "first_byte_timeout 0 must be greater than 0",
        ),
        ("limits: {connect_timeout: 1e99}", "is out of range"),
        (
            "limits: {max_connections: -1}",
            "max_connections -1 is out of range",
        ),
        (
            "idle: {keep_alive_factor: 0.5}",
            "keep_alive_factor 0.5 is out of range (1-100)",
        ),
        (
            "metrics: {addr: 9091}",
            "expected a string, found the integer 9091",
        ),
        (
            "metrics: {addr: localhost}",
            "expected an address with a port",
        ),
        ("metrics: {path: m}", "expected a path that begins with /"),
        (
            "connect: lax",
            "unknown connect \"lax\" (one of strict, tolerant)",
        ),
        ("shutdown: {timeout: -1}", "timeout -1 is out of range"),
        ("standalone_file: ''", "standalone_file is empty"),
    ] {
        let (settings, told) = with_listener(&format!("mqtt_proxy: {{{text}}}"));
        assert_eq!(settings, None, "{text}");
        assert!(
            told.len() == 1 && told[0].contains(message),
            "{text}: {told:?}"
        );
    }
}

#[test]
fn providers() {
    for (text, provider, warned) in [
        ("", Provider::Yaml, false),
        (
            "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}",
            Provider::Yaml,
            false,
        ),
        (
            "deployment: {role: data_plane, role_data_plane: {config_provider: json}}",
            Provider::Json,
            false,
        ),
        (
            "deployment: {role: traditional, role_traditional: {config_provider: yaml}}",
            Provider::Yaml,
            false,
        ),
        (
            "deployment: {role_traditional: {config_provider: etcd}}",
            Provider::Yaml,
            true,
        ),
        (
            "deployment: {role: data_plane, role_data_plane: {config_provider: xds}}",
            Provider::Yaml,
            true,
        ),
        ("deployment: {role: traditional}", Provider::Yaml, true),
        // Only the block of the role counts.
        (
            "deployment: {role: traditional, role_data_plane: {config_provider: json}}",
            Provider::Yaml,
            true,
        ),
    ] {
        let (settings, told) = with_listener(text);
        assert_eq!(settings.unwrap().provider, provider, "{text}");
        assert_eq!(told.len(), usize::from(warned), "{text}: {told:?}");
        if warned {
            assert!(
                told[0].contains("reads apisix.yaml beside config.yaml"),
                "{told:?}"
            );
        }
    }
}

#[test]
fn workers_from_file_and_environment() {
    let with = |text: &str, variable: Option<&str>| {
        let text = format!("apisix: {{stream_proxy: {{tcp: [1]}}}}\nnginx_config: {{{text}}}");
        let loaded = load(&text, Path::new("c"), &|name| {
            variable
                .filter(|_| name == "APISIX_WORKER_PROCESSES")
                .map(str::to_string)
        });
        (
            loaded.value.map(|settings| settings.workers),
            loaded.diagnostics.len(),
        )
    };
    let count = |n| Some(Workers::Count(NonZeroUsize::new(n).unwrap()));
    assert_eq!(
        with("worker_processes: auto", None),
        (Some(Workers::Auto), 0)
    );
    assert_eq!(with("worker_processes: 2", None), (count(2), 0));
    assert_eq!(with("worker_processes: '2'", None), (count(2), 0));
    assert_eq!(
        with("worker_processes: many", None),
        (Some(Workers::Auto), 1)
    );
    assert_eq!(with("worker_processes: 2", Some("5")), (count(5), 0));
    assert_eq!(with("worker_processes: 2", Some("x")), (count(2), 1));
}

#[test]
fn source_addresses() {
    let text = |list: &str| {
        format!("apisix: {{stream_proxy: {{tcp: [1]}}}}\nmqtt_proxy: {{upstream_bind: {list}}}")
    };
    let settings = good(&text("[127.0.0.2, '::1', '::ffff:127.0.0.2']"));
    let shown: Vec<String> = settings
        .upstream_bind
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["127.0.0.2", "::1"]);
    let told = messages(&text("['::', 'x']"));
    assert!(
        told[0].contains("upstream_bind[0]: :: is no address that a connection"),
        "{told:?}"
    );
}

#[test]
fn health_checks_can_be_turned_off() {
    let settings = good("apisix: {stream_proxy: {tcp: [1]}, disable_upstream_healthcheck: true}");
    assert!(!settings.health_checks);
    assert_eq!(settings.without_effect, [""; 0]);
}

#[test]
fn metrics_of_the_prometheus_plugin() {
    let (settings, _) = with_listener("stream_plugins: [mqtt-proxy, prometheus]");
    assert_eq!(
        settings.unwrap().metrics,
        Some(MetricsSettings {
            addr: "127.0.0.1:9091".parse().unwrap(),
            path: "/apisix/prometheus/metrics".to_string(),
            required: true,
        })
    );
    let metrics = |text| with_listener(text).0.unwrap().metrics;
    let unasked = metrics("").unwrap();
    assert_eq!(unasked.addr.to_string(), "127.0.0.1:9091");
    assert!(!unasked.required);
    let elsewhere = metrics("plugin_attr: {prometheus: {export_addr: {port: 1}}}").unwrap();
    assert_eq!(elsewhere.addr.to_string(), "127.0.0.1:1");
    assert!(!elsewhere.required);
    for off in [
        "mqtt_proxy: {metrics: {enabled: false}}",
        "plugin_attr: {prometheus: {enable_export_server: false}}",
    ] {
        assert_eq!(metrics(off), None, "{off}");
    }
    let (settings, _) = with_listener(
        "stream_plugins: [prometheus]\nplugin_attr: {prometheus: {export_uri: /p, export_addr: {ip: 127.0.0.2, port: 1}}}",
    );
    let metrics = settings.unwrap().metrics.unwrap();
    assert_eq!(
        (metrics.addr.to_string().as_str(), metrics.path.as_str()),
        ("127.0.0.2:1", "/p")
    );
    let (settings, told) = with_listener(
        "stream_plugins: [prometheus]\nplugin_attr: {prometheus: {enable_export_server: false}}",
    );
    assert!(settings.is_none() && told[0].contains("need the export server"));
    let (_, told) = with_listener(
        "stream_plugins: [prometheus]\nplugin_attr: {prometheus: {export_addr: {ip: here}}}",
    );
    assert!(told[0].contains("export_addr.ip: expected an address, found the string \"here\""));
}

#[test]
fn variables_and_yaml_1_1() {
    let settings = good(
        "apisix:\n  enable_ipv6: off\n  stream_proxy:\n    tcp: ['${{PORT}}', '${{NONE:=9101}}']\n",
    );
    assert_eq!(settings.listeners[0].addr.port(), 9100);
    assert_eq!(settings.listeners[1].addr.port(), 9101);
    assert!(!settings.enable_ipv6);
    assert_eq!(
        messages("apisix:\n  x: ${{MISSING}}\n"),
        [
            "config.yaml:2:6: environment variable MISSING is not set and has no default (write ${{MISSING:=default}})"
        ]
    );
}

#[test]
fn a_file_that_is_no_yaml_or_no_mapping() {
    let found = messages("apisix: [");
    assert!(
        found.len() == 1 && found[0].contains("not YAML: "),
        "{found:?}"
    );
    assert_eq!(
        messages("- 1\n"),
        ["config.yaml:1:1: expected a mapping, found a list"]
    );
    let (_, told) = with_listener("apisix: {stream_proxy: {tcp: [1]}}");
    assert!(
        told[0].contains("warning: apisix: \"apisix\" is written again below"),
        "{told:?}"
    );
}

#[test]
fn unknown_stream_plugins_are_warnings() {
    let (settings, told) = with_listener("stream_plugins: [mqtt-proxi, mqtt-proxy, mqtt-proxy]");
    assert_eq!(
        settings.unwrap().stream_plugins,
        ["mqtt-proxi", "mqtt-proxy"]
    );
    assert!(told[0].contains("unknown stream plugin \"mqtt-proxi\"; did you mean \"mqtt-proxy\"?"));
    let (settings, _) = with_listener("stream_plugins: []");
    assert!(settings.unwrap().stream_plugins.is_empty());
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "(?s).{0,120}") {
        let _ = loaded(&text);
    }

    #[test]
    fn mutated_files_never_panic(at in 0usize..600, with in "[ -~\n]{0,3}", cut in 0usize..20) {
        let text = "apisix:\n  stream_proxy:\n    tcp: [9100, '2000-2010', {addr: '[::1]:1', tls: on}]\n  \
                    dns_resolver: [1.1.1.1]\nmqtt_proxy: {limits: {connect_timeout: 3}, metrics: {}}\n\
                    deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
        let start = at.min(text.len());
        let end = (start + cut).min(text.len());
        let _ = loaded(&format!("{}{}{}", &text[..start], with, &text[end..]));
    }
}
