//! From the text of `config.yaml` to [`Settings`].

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listen::{ProxyProtocolDefaults, listeners};
use super::{
    ConnectMode, DEFAULT_STREAM_PLUGINS, Idle, Limits, MetricsSettings, PingoraSettings, Provider,
    RecordLayer, RefusalMode, RingIdentity, Settings, ShutdownSettings, TlsSettings,
    UpgradeSettings, Workers, access_log, control, dns, upstream_bind,
};
use crate::config::Loaded;
use crate::config::diagnostic::{At, Position, Problems, quote};
use crate::config::document::{Node, SyntaxError, Value, parse_yaml};
use crate::config::resource::leaving::{MAX_RATE, MIN_RATE, Will, will};
use crate::config::resource::pem;
use crate::config::resource::plugin::{STREAM_PLUGINS, warn_unknown};
use crate::config::schema::Checker;
use crate::config::schema::config::CONFIG;
use crate::config::substitute::substitute_tree;

/// Reads `config.yaml`. `file` is what diagnostics call it, `env` looks up environment variables.
///
/// All problems are reported at once.
pub fn load(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Loaded<Settings> {
    let mut problems = Problems::new(file);
    let value = read(text, env, &mut problems);
    Loaded {
        value,
        diagnostics: problems.finish(),
    }
}

fn read(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Settings> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parsed = match parse_yaml(text, None) {
        Ok(parsed) => parsed,
        Err(SyntaxError { position, message }) => {
            problems.error(position, &At::Root, format!("not YAML: {message}"));
            return None;
        }
    };
    crate::config::standalone::report_oddities(&parsed, problems);
    let mut root = parsed.root;
    match substitute_tree(&mut root, env) {
        Ok(warnings) => {
            for warning in warnings {
                problems.warn(warning.position, &At::Root, warning.message);
            }
        }
        Err(missing) => {
            for variable in missing {
                problems.error(variable.position, &At::Root, variable.message);
            }
            return None;
        }
    }
    if root.is_null() {
        root.value = Value::Map(Vec::new());
    }
    let mut checker = Checker::new(problems);
    checker.null_is_absent = true;
    checker.object(&root, &CONFIG, &At::Root, false);
    let without_effect = checker.without_effect;
    if !root.is_object() {
        return None;
    }
    Some(settings(&root, env, without_effect, problems))
}

/// The value at the end of a chain of keys.
pub(super) fn find<'n>(root: &'n Node, path: &[&str]) -> Option<&'n Node> {
    path.iter().try_fold(root, |node, key| node.get(key))
}

/// Where a value stands, or the nearest thing around it that is there.
pub(super) fn place(root: &Node, path: &[&str]) -> Position {
    let mut node = root;
    let mut position = root.position;
    for key in path {
        let Some(entry) = node.entry(key) else { break };
        position = entry.key_position;
        node = &entry.value;
    }
    position
}

pub(super) fn text(root: &Node, path: &[&str]) -> Option<String> {
    find(root, path)?.as_str().map(str::to_string)
}

pub(super) fn flag(root: &Node, path: &[&str], default: bool) -> bool {
    find(root, path).and_then(Node::as_bool).unwrap_or(default)
}

pub(super) fn seconds(root: &Node, path: &[&str], default: Duration) -> Duration {
    find(root, path)
        .and_then(Node::as_f64)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(default)
}

pub(super) fn count(root: &Node, path: &[&str], default: usize) -> usize {
    find(root, path)
        .and_then(Node::as_i64)
        .and_then(|value| usize::try_from(value).ok())
        .unwrap_or(default)
}

fn settings(
    root: &Node,
    env: &dyn Fn(&str) -> Option<String>,
    without_effect: Vec<String>,
    problems: &mut Problems,
) -> Settings {
    let limits = Limits::default();
    let idle = Idle::default();
    let own = |names: [&'static str; 2]| ["mqtt_proxy", names[0], names[1]];
    let choice = |name: &str| text(root, &["mqtt_proxy", name]);
    let udp_listeners = udp(root, problems);
    let listeners = tcp(root, problems);
    let stream_plugins = stream_plugins(root, problems);
    let metrics = metrics(root, &stream_plugins, problems);
    let enable_ipv6 = flag(root, &["apisix", "enable_ipv6"], true);
    let node_names = dns::dns(root, problems);
    let discovery = dns::discovery(root, &node_names, enable_ipv6, problems);
    let control = (
        control::control(root, problems),
        control::status(root, problems),
    );
    let metrics_too = metrics.as_ref();
    let (control, status) =
        control::without_conflicts(root, control, &listeners, metrics_too, problems);
    Settings {
        listeners,
        udp_listeners,
        provider: provider(root, env, problems),
        standalone_file: text(root, &["mqtt_proxy", "standalone_file"]).map(PathBuf::from),
        workers: workers(root, env, problems),
        enable_ipv6,
        dns: node_names,
        discovery,
        health_checks: !flag(root, &["apisix", "disable_upstream_healthcheck"], false),
        upstream_bind: upstream_bind::read(root, problems),
        stream_plugins,
        fallback_sni: text(root, &["apisix", "ssl", "fallback_sni"]),
        trusted_certificate: text(root, &["apisix", "ssl", "ssl_trusted_certificate"])
            .filter(|file| file != "system")
            .map(PathBuf::from),
        metrics,
        control,
        status,
        access_log: access_log::read(root, problems),
        connect: match choice("connect").as_deref() {
            Some("tolerant") => ConnectMode::Tolerant,
            _ => ConnectMode::Strict,
        },
        refusal: match choice("refusal").as_deref() {
            Some("close") => RefusalMode::Close,
            _ => RefusalMode::Connack,
        },
        ring_identity: match choice("ring_identity").as_deref() {
            Some("address") => RingIdentity::Address,
            _ => RingIdentity::Name,
        },
        limits: Limits {
            first_byte_timeout: seconds(
                root,
                &own(["limits", "first_byte_timeout"]),
                limits.first_byte_timeout,
            ),
            connect_timeout: seconds(
                root,
                &own(["limits", "connect_timeout"]),
                limits.connect_timeout,
            ),
            max_connect_size: count(
                root,
                &own(["limits", "max_connect_size"]),
                limits.max_connect_size,
            ),
            max_connections: count(
                root,
                &own(["limits", "max_connections"]),
                limits.max_connections,
            ),
        },
        idle: Idle {
            keep_alive_factor: find(root, &own(["idle", "keep_alive_factor"]))
                .and_then(Node::as_f64)
                .unwrap_or(idle.keep_alive_factor),
            keep_alive_margin: seconds(
                root,
                &own(["idle", "keep_alive_margin"]),
                idle.keep_alive_margin,
            ),
        },
        tls: tls(root, problems),
        shutdown: shutdown(root),
        upgrade: upgrade(root),
        pingora: find(root, &["pingora"]).map(|own| PingoraSettings {
            value: own.to_yaml(),
            position: own.position.into(),
            keys: own
                .entries()
                .iter()
                .map(|entry| (entry.key.clone(), entry.key_position.into()))
                .collect(),
        }),
        without_effect,
    }
}

fn rate(root: &Node, block: &str) -> Option<f64> {
    let written = find(root, &["mqtt_proxy", block, "rate"]).and_then(Node::as_f64)?;
    // 0 has a meaning of its own where it is allowed.
    (written > 0.0).then(|| written.clamp(MIN_RATE, MAX_RATE))
}

fn will_of(root: &Node, block: &str) -> Will {
    find(root, &["mqtt_proxy", block]).map_or(Will::Publish, will)
}

fn shutdown(root: &Node) -> ShutdownSettings {
    let default = ShutdownSettings::default();
    ShutdownSettings {
        timeout: seconds(
            root,
            &["mqtt_proxy", "shutdown", "timeout"],
            default.timeout,
        ),
        rate: rate(root, "shutdown"),
        will: will_of(root, "shutdown"),
    }
}

fn upgrade(root: &Node) -> UpgradeSettings {
    let default = UpgradeSettings::default();
    UpgradeSettings {
        linger: seconds(root, &["mqtt_proxy", "upgrade", "linger"], default.linger),
        rate: rate(root, "upgrade").unwrap_or(default.rate),
        will: will_of(root, "upgrade"),
    }
}

fn tls(root: &Node, problems: &mut Problems) -> TlsSettings {
    let default = TlsSettings::default();
    let path = |name: &'static str| ["mqtt_proxy", "tls", name];
    for (name, check) in [
        ("ciphers", pem::is_cipher_list as fn(&str) -> bool),
        ("ciphersuites", pem::are_ciphersuites),
    ] {
        if let Some(node) = find(root, &path(name))
            && node.as_str().is_some_and(|text| !check(text))
        {
            let own = At::Root.key("mqtt_proxy");
            let tls = own.key("tls");
            let message = "OpenSSL knows no such list (names are separated by colons)";
            problems.error(node.position, &tls.key(name), message);
        }
    }
    TlsSettings {
        ciphers: text(root, &path("ciphers")),
        ciphersuites: text(root, &path("ciphersuites")),
        handshake_timeout: seconds(root, &path("handshake_timeout"), default.handshake_timeout),
        max_handshakes: count(root, &path("max_handshakes"), default.max_handshakes),
        record_layer: match text(root, &path("record_layer")).as_deref() {
            Some("openssl") => RecordLayer::OpenSsl,
            _ => RecordLayer::Own,
        },
        ticket_key_file: text(root, &path("ticket_key_file")).map(PathBuf::from),
    }
}

fn tcp(root: &Node, problems: &mut Problems) -> Vec<super::Listener> {
    const PATH: [&str; 3] = ["apisix", "stream_proxy", "tcp"];
    let defaults = ProxyProtocolDefaults {
        accept: flag(root, &["apisix", "proxy_protocol", "enable_tcp_pp"], false),
        send: flag(
            root,
            &["apisix", "proxy_protocol", "enable_tcp_pp_to_upstream"],
            false,
        ),
    };
    let apisix = At::Root.key("apisix");
    let stream_proxy = apisix.key("stream_proxy");
    let at = stream_proxy.key("tcp");
    match find(root, &PATH).filter(|tcp| !tcp.items().is_empty()) {
        Some(tcp) => listeners(tcp, defaults, &at, problems),
        None => {
            // A value of the wrong type has been told.
            if find(root, &PATH).is_none_or(Node::is_list) {
                problems.error(
                    place(root, &PATH),
                    &At::Root,
                    "nothing to serve: apisix.stream_proxy.tcp lists no listener",
                );
            }
            Vec::new()
        }
    }
}

fn udp(root: &Node, problems: &mut Problems) -> usize {
    const PATH: [&str; 3] = ["apisix", "stream_proxy", "udp"];
    let entries = find(root, &PATH).map_or(0, |udp| udp.items().len());
    if entries > 0 {
        problems.warn(
            place(root, &PATH),
            &At::Key(
                &At::Key(&At::Key(&At::Root, "apisix"), "stream_proxy"),
                "udp",
            ),
            format!("UDP is not served ({entries} listed)"),
        );
    }
    entries
}

fn provider(
    root: &Node,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Provider {
    let Some(deployment) = find(root, &["deployment"]) else {
        return Provider::Yaml;
    };
    let block = match deployment.get("role").and_then(Node::as_str) {
        Some("data_plane") => "role_data_plane",
        Some("control_plane") => "role_control_plane",
        _ => "role_traditional",
    };
    let path = ["deployment", block, "config_provider"];
    match find(root, &path).map(|node| &node.value) {
        Some(Value::String(text)) if text == "json" => return Provider::Json,
        Some(Value::String(text)) if text == "etcd" || text == "xds" => {}
        // "yaml", or a wrong value that has been told.
        Some(_) => return Provider::Yaml,
        None => {}
    }
    // APISIX takes this variable for `config_provider: yaml`.
    if env("APISIX_STAND_ALONE").as_deref() == Some("true") {
        return Provider::Yaml;
    }
    let written = text(root, &path);
    let message = format!(
        "config_provider is {}; this program has no such provider and reads apisix.yaml beside \
         config.yaml (write config_provider: yaml)",
        match &written {
            Some(provider) => provider.clone(),
            None => "etcd by APISIX's default".to_string(),
        }
    );
    let deployment = At::Root.key("deployment");
    let block = deployment.key(block);
    problems.warn(place(root, &path), &block.key("config_provider"), message);
    Provider::Yaml
}

fn workers(root: &Node, env: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) -> Workers {
    const PATH: [&str; 2] = ["nginx_config", "worker_processes"];
    let nginx_config = At::Root.key("nginx_config");
    let at = nginx_config.key("worker_processes");
    let positive = |text: &str| text.trim().parse::<NonZeroUsize>().ok();
    if let Some(text) = env("APISIX_WORKER_PROCESSES") {
        if let Some(count) = positive(&text) {
            return Workers::Count(count);
        }
        problems.warn(
            place(root, &PATH),
            &at,
            format!(
                "APISIX_WORKER_PROCESSES={} is no number from 1 and is ignored",
                quote(&text)
            ),
        );
    }
    if flag(root, &["apisix", "enable_dev_mode"], false) {
        return Workers::Count(NonZeroUsize::MIN);
    }
    let Some(node) = find(root, &PATH) else {
        return Workers::Auto;
    };
    if let Some(count) = node
        .as_i64()
        .and_then(|count| NonZeroUsize::new(usize::try_from(count).ok()?))
    {
        return Workers::Count(count);
    }
    match node.as_str() {
        None | Some("auto") => Workers::Auto,
        Some(text) => match positive(text) {
            Some(count) => Workers::Count(count),
            None => {
                problems.error(
                    node.position,
                    &at,
                    format!("{} is neither a number nor auto", quote(text)),
                );
                Workers::Auto
            }
        },
    }
}

fn stream_plugins(root: &Node, problems: &mut Problems) -> Vec<String> {
    let Some(list) = find(root, &["stream_plugins"]).filter(|node| node.is_list()) else {
        return DEFAULT_STREAM_PLUGINS.map(str::to_string).to_vec();
    };
    let at = At::Root.key("stream_plugins");
    let mut names: Vec<String> = Vec::new();
    for (index, item) in list.items().iter().enumerate() {
        let Some(name) = item.as_str() else { continue };
        if !STREAM_PLUGINS.contains(&name) {
            warn_unknown(name, item.position, &at.index(index), problems);
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_string());
        }
    }
    names
}

fn metrics(
    root: &Node,
    stream_plugins: &[String],
    problems: &mut Problems,
) -> Option<MetricsSettings> {
    const DEFAULT_PATH: &str = "/apisix/prometheus/metrics";
    const ATTR: [&str; 2] = ["plugin_attr", "prometheus"];
    let default_addr = SocketAddr::from(([127, 0, 0, 1], 9091));
    if let Some(block) = find(root, &["mqtt_proxy", "metrics"]) {
        return flag(block, &["enabled"], true).then(|| MetricsSettings {
            addr: block
                .get("addr")
                .and_then(Node::as_str)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default_addr),
            path: text(block, &["path"]).unwrap_or_else(|| DEFAULT_PATH.to_string()),
            required: true,
        });
    }
    let required = stream_plugins.iter().any(|name| name == "prometheus");
    let plugin_attr = At::Root.key("plugin_attr");
    let prometheus = plugin_attr.key("prometheus");
    if !flag(root, &[ATTR[0], ATTR[1], "enable_export_server"], true) {
        if required {
            problems.error(
                place(root, &[ATTR[0], ATTR[1], "enable_export_server"]),
                &prometheus.key("enable_export_server"),
                "stream metrics need the export server (APISIX refuses this as well)",
            );
        }
        return None;
    }
    Some(MetricsSettings {
        addr: address(
            root,
            &[ATTR[0], ATTR[1], "export_addr"],
            default_addr,
            problems,
        ),
        path: text(root, &[ATTR[0], ATTR[1], "export_uri"])
            .unwrap_or_else(|| DEFAULT_PATH.to_string()),
        required,
    })
}

/// The `ip` and `port` of the mapping at the end of `path`.
pub(super) fn address(
    root: &Node,
    path: &[&str],
    default: SocketAddr,
    problems: &mut Problems,
) -> SocketAddr {
    let Some(block) = find(root, path) else {
        return default;
    };
    let mut ip = default.ip();
    if let Some(node) = block.get("ip")
        // A value of another type has been told.
        && let Some(text) = node.as_str()
    {
        match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => ip = address,
            Err(_) => {
                let named = format!("{}.ip", path.join("."));
                let message = format!("expected an address, found {}", node.describe());
                problems.error_path(node.position, &named, message);
            }
        }
    }
    let port = block.get("port").and_then(Node::as_i64);
    let port = port.and_then(|port| u16::try_from(port).ok());
    SocketAddr::new(ip, port.unwrap_or(default.port()))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
