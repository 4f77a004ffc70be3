//! Configurations of the plugins of stream routes and services.

use super::address;
use super::read::Context;
use super::upstream::{Balancer, HashKey, Scheme, Upstream, UpstreamNode, UpstreamTls};
use crate::config::diagnostic::{At, Position, Problems, quote};
use crate::config::document::{Entry, Node, Value};
use crate::config::names::{did_you_mean, nearest};
use crate::config::schema::Checker;
use crate::config::schema::plugin::{LEGACY_UPSTREAM, META, MQTT_PROXY};

/// The stream plugins of APISIX.
pub const STREAM_PLUGINS: [&str; 6] = [
    "ip-restriction",
    "limit-conn",
    "mqtt-proxy",
    "prometheus",
    "syslog",
    "traffic-split",
];

/// The plugins of a route or service; a plugin with `_meta.disable: true` counts as absent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plugins {
    /// `mqtt-proxy`: read CONNECT before the upstream is picked.
    pub mqtt_proxy: Option<MqttProxy>,
}

/// The `mqtt-proxy` plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct MqttProxy {
    /// What CONNECT may say; never empty.
    pub protocols: Vec<Protocol>,
    /// The form of APISIX 2.x, `upstream: {ip|host, port}`: one node, used where neither route nor
    /// service has another upstream.
    pub upstream: Option<Upstream>,
}

/// A protocol name and level that a route accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Protocol name, compared byte for byte: `MQTT`, or `MQIsdp` in MQTT 3.1.
    pub name: String,
    /// Protocol level: 3 = MQTT 3.1, 4 = 3.1.1, 5 = 5.0. APISIX sets no bounds; only 0–255 can
    /// ever be met.
    pub level: i64,
}

/// Reads `plugins` of a route or service.
pub(crate) fn build(node: Option<&Node>, at: &At<'_>, context: &mut Context<'_>) -> Plugins {
    let mut plugins = Plugins::default();
    for entry in node.map(Node::entries).unwrap_or_default() {
        let at = at.key(&entry.key);
        if !usable(entry, &at, context) {
            continue;
        }
        // A plugin without configuration has an empty one, as in APISIX.
        let empty = Node {
            position: entry.key_position,
            value: Value::Map(Vec::new()),
        };
        let conf = if entry.value.is_null() {
            &empty
        } else {
            &entry.value
        };
        if !conf.is_object() {
            let message = format!(
                "invalid plugin conf: expected a mapping, found {}",
                conf.describe()
            );
            context.error(conf.position, &at, message);
            continue;
        }
        if is_disabled(conf) {
            continue;
        }
        match entry.key.as_str() {
            "mqtt-proxy" => plugins.mqtt_proxy = Some(mqtt_proxy(conf, &at, context)),
            "prometheus" => meta(conf, &at, context),
            "syslog" => {
                meta(conf, &at, context);
                context.warn(
                    entry.key_position,
                    &at,
                    "plugin [syslog] has no effect here",
                );
            }
            name => {
                let message = format!("plugin [{name}] is not supported");
                context.error(entry.key_position, &at, message);
            }
        }
    }
    plugins
}

/// Whether the plugin exists and may be used.
fn usable(entry: &Entry, at: &At<'_>, context: &mut Context<'_>) -> bool {
    let name = entry.key.as_str();
    let known = STREAM_PLUGINS.contains(&name);
    if known && context.plugins.iter().any(|listed| listed == name) {
        return true;
    }
    let message = if known {
        format!("plugin [{name}] is not listed in stream_plugins")
    } else {
        // Names are printed bare, as APISIX does, unless they would break the line.
        let shown = quote(name);
        format!(
            "unknown plugin [{}]{}",
            shown.trim_matches('"'),
            did_you_mean(name, STREAM_PLUGINS)
        )
    };
    context.error(entry.key_position, at, message);
    false
}

/// `_meta.disable: true`.
fn is_disabled(conf: &Node) -> bool {
    conf.get("_meta")
        .and_then(|meta| meta.get("disable"))
        .and_then(Node::as_bool)
        == Some(true)
}

/// Judges `_meta` of a plugin that has no table of its own.
fn meta(conf: &Node, at: &At<'_>, context: &mut Context<'_>) {
    if let Some(meta) = conf.get("_meta") {
        Checker::new(context.problems).object(meta, &META, &at.key("_meta"), false);
    }
    conditions(conf, at, context);
}

/// What would change whether a plugin runs and cannot be ignored.
fn conditions(conf: &Node, at: &At<'_>, context: &mut Context<'_>) {
    let Some(meta) = conf.get("_meta") else {
        return;
    };
    let at = at.key("_meta");
    for name in ["filter", "pre_function"] {
        if let Some(entry) = meta.entry(name).filter(|entry| !entry.value.is_null()) {
            let message = format!("_meta.{name} is not supported");
            context.error(entry.key_position, &at.key(name), message);
        }
    }
}

fn mqtt_proxy(conf: &Node, at: &At<'_>, context: &mut Context<'_>) -> MqttProxy {
    Checker::new(context.problems).object(conf, &MQTT_PROXY, at, false);
    conditions(conf, at, context);
    MqttProxy {
        protocols: protocols(conf, at, context),
        upstream: conf
            .entry("upstream")
            .filter(|entry| !entry.value.is_null())
            .and_then(|entry| legacy_upstream(entry, &at.key("upstream"), context)),
    }
}

/// The protocols that `protocol_name` and `protocol_level` admit.
///
/// APISIX has one name, `MQTT` unless written, and one level. Here a level 3 without a name also
/// means `MQIsdp`, the name that MQTT 3.1 really has, and a list admits several levels.
fn protocols(conf: &Node, at: &At<'_>, context: &mut Context<'_>) -> Vec<Protocol> {
    let name = conf.get("protocol_name").and_then(Node::as_str);
    let Some(levels) = conf.get("protocol_level") else {
        return Vec::new();
    };
    let protocol = |name: &str, level: i64| Protocol {
        name: name.to_string(),
        level,
    };
    if let Some(level) = levels.as_i64() {
        if !(0..=255).contains(&level) {
            let message = format!("no packet can have protocol level {level}: it is one byte");
            context.warn(levels.position, &at.key("protocol_level"), message);
        }
        return match (name, level) {
            (Some(name), _) => vec![protocol(name, level)],
            (None, 3) => vec![protocol("MQTT", 3), protocol("MQIsdp", 3)],
            (None, _) => vec![protocol("MQTT", level)],
        };
    }
    let several = levels.items().iter().filter_map(Node::as_i64);
    several
        .map(|level| match (name, level) {
            (Some(name), _) => protocol(name, level),
            (None, 3) => protocol("MQIsdp", 3),
            (None, _) => protocol("MQTT", level),
        })
        .collect()
}

/// `upstream: {ip|host, port}` of APISIX 2.x. APISIX 3 ignores it, so nothing in it is an error.
fn legacy_upstream(entry: &Entry, at: &At<'_>, context: &mut Context<'_>) -> Option<Upstream> {
    let position = entry.key_position;
    let ignored = |context: &mut Context<'_>, why: String| {
        context.warn(position, at, format!("ignored, as in APISIX 3: {why}"));
        None
    };
    let node = &entry.value;
    // Judged apart: its problems are reasons to ignore it.
    let mut problems = Problems::new(std::path::Path::new(""));
    Checker::new(&mut problems).object(node, &LEGACY_UPSTREAM, &At::Root, false);
    let errors = problems.errors();
    let unknown = (!problems.is_empty()).then(|| problems.finish());
    if errors > 0 {
        let first = unknown.and_then(|all| all.into_iter().find(|found| found.is_error()));
        return ignored(
            context,
            first.map(|found| found.message).unwrap_or_default(),
        );
    }
    let Some(written) = node.get("host").or(node.get("ip")).and_then(Node::as_str) else {
        return ignored(context, "it has neither ip nor host".to_string());
    };
    let host = match address::host(written) {
        Ok((host, None)) => host,
        Ok((_, Some(_))) => return ignored(context, format!("{} has a port", quote(written))),
        Err(message) => return ignored(context, format!("{}: {message}", quote(written))),
    };
    let port = node.get("port").and_then(Node::as_i64)?;
    context.warn(
        position,
        at,
        "deprecated form of APISIX 2.x, used only where route and service have no upstream; \
         write it as upstream of the route",
    );
    Some(Upstream {
        name: None,
        nodes: vec![UpstreamNode {
            host,
            port: u16::try_from(port).ok()?,
            weight: 1,
            priority: 0,
        }],
        balancer: Balancer::RoundRobin,
        hash_key: HashKey::Address,
        retries: None,
        retry_timeout: None,
        timeout: None,
        scheme: Scheme::Tcp,
        upstream_tls: UpstreamTls::default(),
        checks: None,
        slow_start: None,
        balance_factor: None,
        drain: None,
        rebalance: None,
        discovery: None,
    })
}

/// The plugins that the section `plugins` of a standalone file enables in stream.
pub(crate) fn enabled(section: &Node, at: &At<'_>, problems: &mut Problems) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (index, item) in section.items().iter().enumerate() {
        let in_stream = item.get("stream").and_then(Node::as_bool) == Some(true);
        let Some(name) = item
            .get("name")
            .and_then(Node::as_str)
            .filter(|_| in_stream)
        else {
            continue;
        };
        if !STREAM_PLUGINS.contains(&name) {
            warn_unknown(name, item.position, &at.index(index), problems);
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_string());
        }
    }
    names
}

/// Tells of a stream plugin that is enabled and does not exist.
pub(crate) fn warn_unknown(name: &str, position: Position, at: &At<'_>, problems: &mut Problems) {
    let hint = match nearest(name, STREAM_PLUGINS) {
        Some(found) => format!("; did you mean {}?", quote(found)),
        None => String::new(),
    };
    problems.warn(
        position,
        at,
        format!("unknown stream plugin {}{hint}", quote(name)),
    );
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
