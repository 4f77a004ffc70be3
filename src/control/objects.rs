//! Items of the standalone file as they are served: `/v1/upstreams`, `/v1/stream_routes`, and the
//! schemas they keep to.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Control;
use super::api::Answer;
use super::health::probe_name;
use crate::config::resource::checks::{Active, Checks, Limits, Probe};
use crate::config::resource::plugin::Plugins;
use crate::config::resource::stream_route::StreamRoute;
use crate::config::resource::upstream::{self as resource, Balancer, HashKey, Scheme, ServerName};
use crate::config::schema::{self, json_schema};
use crate::table::Route;
use crate::upstream::Upstream;
use crate::upstream::node::Node;

/// Priority and version of APISIX's plugin, which are part of the shape.
const MQTT_PROXY_PRIORITY: i64 = 1000;
const MQTT_PROXY_VERSION: f64 = 0.1;

/// `/v1/schema`. Each schema is a document of its own.
pub(super) fn schemas() -> Answer {
    let schema = |object| json_schema(object, false);
    Answer::ok(json!({
        "main": {
            "stream_route": schema(&schema::stream_route::STREAM_ROUTE),
            "upstream": schema(&schema::upstream::UPSTREAM),
            "service": schema(&schema::service::SERVICE),
            "ssl": schema(&schema::ssl::SSL),
        },
        "plugins": {},
        "stream_plugins": {
            "mqtt-proxy": {
                "priority": MQTT_PROXY_PRIORITY,
                "version": MQTT_PROXY_VERSION,
                "schema": schema(&schema::plugin::MQTT_PROXY),
            },
        },
    }))
}

impl Control {
    /// The items of `upstreams`.
    pub(super) fn upstreams(&self) -> Answer {
        let Some(resources) = self.source.resources() else {
            return Answer::ok(json!([]));
        };
        let ids = resources.upstreams.iter().map(|item| item.id.as_str());
        let table = self.table.load();
        let built: HashMap<&str, &Upstream> = table
            .upstreams()
            .map(|upstream| (upstream.label(), &**upstream))
            .collect();
        // A reload may be between the two: what is in both is in order.
        let served = ids.filter_map(|id| built.get(id).copied());
        Answer::ok(served.map(item).collect())
    }

    /// One item of `upstreams`.
    pub(super) fn upstream(&self, id: &str) -> Answer {
        let table = self.table.load();
        let mut upstreams = table.upstreams();
        // Those inside routes and services have labels that are no ids.
        match upstreams.find(|upstream| upstream.label() == id) {
            Some(upstream) => Answer::ok(item(upstream)),
            None => Answer::not_found(format!("upstream[{id}] not found")),
        }
    }

    /// The items of `stream_routes`, in file order.
    pub(super) fn stream_routes(&self) -> Answer {
        let table = self.table.load();
        let resources = self.source.resources();
        let written = resources.iter().flat_map(|found| &found.stream_routes);
        let written: HashMap<&str, &StreamRoute> =
            written.map(|route| (route.id.as_str(), &**route)).collect();
        let routes = table.routes().iter().map(|route| {
            let value = match written.get(route.id.as_str()) {
                Some(written) => route_value(written),
                None => json!({"id": route.id}),
            };
            json!({
                "key": format!("/stream_routes/{}", route.id),
                "value": value,
                "runtime": target(route),
            })
        });
        Answer::ok(routes.collect())
    }
}

/// Where the connections of a route go, or why nowhere.
pub(super) fn target(route: &Route) -> Value {
    match &route.upstream {
        Ok(upstream) => json!({"upstream": upstream.label()}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

/// An upstream with what is known about its nodes.
fn item(upstream: &Upstream) -> Value {
    let (config, nodes_written) = (upstream.config(), upstream.written_nodes());
    let named = |node: &resource::UpstreamNode| matches!(node.host, resource::Host::Name(_));
    json!({
        "key": format!("/upstreams/{}", upstream.label()),
        "has_domain": nodes_written.iter().any(named),
        "value": upstream_value(Some(upstream.label()), config, nodes_written),
        "runtime": {"nodes": nodes(upstream)},
    })
}

/// Every node of an upstream as it is now, in file order.
pub(super) fn nodes(upstream: &Upstream) -> Vec<Value> {
    let known: HashMap<&str, &Node> = upstream
        .nodes()
        .map(|node| (node.label(), &**node))
        .collect();
    let live: usize = upstream.nodes_once().map(|node| node.live()).sum();
    let nodes = upstream.written_nodes().iter().filter_map(|written| {
        let node = known.get(Node::label_of(&written.host, written.port).as_str())?;
        let status = node.health().snapshot().status();
        let share = match live {
            0 => 0.0,
            _ => node.live() as f64 / live as f64,
        };
        Some(json!({
            "node": node.label(),
            "addresses": node.addresses(),
            "weight": written.weight,
            "priority": written.priority,
            "status": upstream.checks().map(|_| status),
            "connections": node.live(),
            "share": share,
        }))
    });
    nodes.collect()
}

fn seconds(duration: Duration) -> Value {
    match duration.subsec_nanos() {
        0 => duration.as_secs().into(),
        _ => duration.as_secs_f64().into(),
    }
}

/// The object in the words of the file. Private keys and certificates are left out.
fn upstream_value(
    id: Option<&str>,
    config: &resource::Upstream,
    nodes: &[resource::UpstreamNode],
) -> Value {
    let nodes = nodes.iter().map(|node| {
        json!({
            "host": node.host.to_string(),
            "port": node.port,
            "weight": node.weight,
            "priority": node.priority,
        })
    });
    let mut value = Map::new();
    let mut put = |key: &str, written: Value| {
        if !written.is_null() {
            value.insert(key.to_owned(), written);
        }
    };
    put("id", json!(id));
    put("name", json!(config.name));
    put("type", config.balancer.name().into());
    if config.balancer == Balancer::Chash {
        let on = match config.hash_key {
            HashKey::Template(_) => "vars_combinations",
            HashKey::Address | HashKey::Variable(_) => "vars",
        };
        put("hash_on", on.into());
        put("key", config.hash_key.to_string().into());
    }
    put("nodes", nodes.collect());
    put("retries", json!(config.retries));
    put("retry_timeout", json!(config.retry_timeout.map(seconds)));
    let timeout = config.timeout.map(|timeout| {
        json!({
            "connect": seconds(timeout.connect),
            "send": seconds(timeout.send),
            "read": seconds(timeout.read),
        })
    });
    put("timeout", json!(timeout));
    if config.scheme == Scheme::Tls {
        let tls = &config.upstream_tls;
        put("scheme", "tls".into());
        let written = json!({"verify": tls.verify, "client_cert_id": tls.client_cert_id});
        put("tls", without_nulls(written));
        match &tls.name {
            ServerName::Client => put("pass_host", "pass".into()),
            ServerName::Node => put("pass_host", "node".into()),
            ServerName::Fixed(name) => {
                put("pass_host", "rewrite".into());
                put("upstream_host", name.as_str().into());
            }
        }
    }
    put("checks", json!(config.checks.as_ref().map(checks_value)));
    put("slow_start", json!(config.slow_start.map(seconds)));
    put("hash_balance_factor", json!(config.balance_factor));
    if let Some(discovery) = &config.discovery {
        put("discovery_type", "dns".into());
        put("service_name", discovery.to_string().into());
    }
    Value::Object(value)
}

fn limits_value(limits: &Limits) -> Value {
    json!({
        "tcp_failures": limits.tcp,
        "timeouts": limits.timeouts,
        "http_failures": limits.http,
        "mqtt_failures": limits.mqtt,
    })
}

fn checks_value(checks: &Checks) -> Value {
    let mut value = json!({
        "passive": {
            "unhealthy": limits_value(&checks.passive.failures),
            "recovery_time": seconds(checks.passive.recovery),
        },
    });
    if let Some(active) = &checks.active {
        value["active"] = active_value(active);
    }
    value
}

/// Credentials, headers, bodies and queries of probes are left out.
fn active_value(active: &Active) -> Value {
    let mut healthy = json!({
        "interval": seconds(active.healthy_interval),
        "successes": active.successes,
    });
    let mut unhealthy = limits_value(&active.failures);
    unhealthy["interval"] = seconds(active.unhealthy_interval);
    let mut value = json!({
        "type": probe_name(Some(active)),
        "timeout": seconds(active.timeout),
        "concurrency": active.concurrency,
        "host": active.host,
        "port": active.port,
    });
    if let Probe::Http(probe) = &active.probe {
        let path = probe.path.split('?').next();
        value["http_path"] = json!(path);
        value["http_method"] = json!(probe.method);
        value["https_verify_certificate"] = json!(probe.tls.as_ref().map(|verify| verify.0));
        healthy["http_statuses"] = json!(probe.healthy);
        unhealthy["http_statuses"] = json!(probe.unhealthy);
    }
    value["healthy"] = healthy;
    value["unhealthy"] = unhealthy;
    without_nulls(value)
}

/// The object without what is not written.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(entries) = &mut value {
        entries.retain(|_, value| !value.is_null());
    }
    value
}

fn route_value(route: &StreamRoute) -> Value {
    let upstream = route.upstream.as_ref();
    let snis = Some(&route.snis).filter(|snis| !snis.is_empty());
    without_nulls(json!({
        "id": route.id,
        "name": route.name,
        "remote_addr": route.remote_addr.map(|net| net.to_string()),
        "server_addr": route.server_addr.map(|net| net.to_string()),
        "server_port": route.server_port,
        "snis": snis,
        "tls_passthrough": route.tls_passthrough,
        "upstream": upstream.map(|upstream| upstream_value(None, upstream, &upstream.nodes)),
        "upstream_id": route.upstream_id,
        "service_id": route.service_id,
        "plugins": plugins_value(&route.plugins),
    }))
}

fn plugins_value(plugins: &Plugins) -> Value {
    let mut value = Map::new();
    if let Some(plugin) = &plugins.mqtt_proxy {
        let mut levels: Vec<i64> = plugin.protocols.iter().map(|known| known.level).collect();
        levels.dedup();
        let mut written = match levels[..] {
            [level] => json!({"protocol_level": level}),
            _ => json!({"protocol_level": levels}),
        };
        let mut names = plugin.protocols.iter().map(|known| known.name.as_str());
        // Several names are those of the standard, which need not be written.
        if let Some(first) = names.next()
            && names.all(|name| name == first)
        {
            written["protocol_name"] = first.into();
        }
        value.insert("mqtt-proxy".to_owned(), written);
    }
    Value::Object(value)
}
