//! `checks` of an upstream: which nodes count as healthy, and how that is found out.
//!
//! Fields and defaults are APISIX's. Two things differ on purpose: a missing `healthy` or
//! `unhealthy` block means its defaults (APISIX stops probing then), and `passive` may stand alone.

use std::time::Duration;

use super::read::{Context, seconds, text};
use crate::config::diagnostic::{At, quote};
use crate::config::document::Node;

/// Health checks of an upstream. At least one of the two kinds is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Checks {
    /// Probes of the proxy's own.
    pub active: Option<Active>,
    /// What connects for clients show. Its defaults count where only `active` is written.
    pub passive: Passive,
}

/// Probes of the proxy's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    /// What a probe is.
    pub probe: Probe,
    /// Longest time of a whole probe.
    pub timeout: Duration,
    /// Probes of the upstream that run at a time, 1–1,000.
    pub concurrency: usize,
    /// Host header and TLS server name instead of the node's.
    pub host: Option<String>,
    /// Port instead of the node's.
    pub port: Option<u16>,
    /// From probe to probe of a healthy node, at least a second.
    pub healthy_interval: Duration,
    /// From probe to probe of an unhealthy node, at least a second.
    pub unhealthy_interval: Duration,
    /// How many successes in a row make a node healthy, 1–254.
    pub successes: u8,
    /// How many failures in a row make it unhealthy.
    pub failures: Limits,
}

/// How many failures of each kind in a row make a node unhealthy; 0 = that kind never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Refused, unreachable, reset, TLS that fails.
    pub tcp: u8,
    /// No answer in time.
    pub timeouts: u8,
    /// An HTTP status that counts as failure.
    pub http: u8,
    /// Something else than CONNACK 0.
    pub mqtt: u8,
}

/// What a probe is.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A connection that is closed at once.
    Tcp,
    /// One HTTP/1.1 request.
    Http(HttpProbe),
    /// CONNECT, CONNACK, DISCONNECT.
    Mqtt(MqttProbe),
}

/// One HTTP/1.1 request. Nothing in it contains a control character but the body.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    /// HTTPS; whether the certificate is verified.
    pub tls: Option<Verify>,
    /// The method.
    pub method: String,
    /// The path, starting with `/`.
    pub path: String,
    /// The body; empty = none.
    pub body: String,
    /// Further header lines, without line ends.
    pub headers: Vec<String>,
    /// Statuses that count as success.
    pub healthy: Vec<u16>,
    /// Statuses that count as failure; one in neither list counts as nothing.
    pub unhealthy: Vec<u16>,
}

/// Whether a TLS probe verifies the certificate of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verify(pub bool);

/// A CONNECT that a broker should accept.
#[derive(Clone, PartialEq)]
pub struct MqttProbe {
    /// The client id is this and eight random characters; at most 64 bytes.
    pub client_id_prefix: String,
    /// User name.
    pub username: Option<String>,
    /// Password; only with a user name.
    pub password: Option<String>,
    /// 4 (MQTT 3.1.1) or 5.
    pub level: u8,
}

impl std::fmt::Debug for MqttProbe {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("MqttProbe")
            .field("client_id_prefix", &self.client_id_prefix)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("level", &self.level)
            .finish()
    }
}

/// What connects for clients show.
#[derive(Debug, Clone, PartialEq)]
pub struct Passive {
    /// How many failed connects in a row make a node unhealthy; only `tcp` and `timeouts` matter.
    pub failures: Limits,
    /// After how long an unhealthy node is tried again where there are no active probes.
    pub recovery: Duration,
}

const DEFAULT_RECOVERY: Duration = Duration::from_secs(30);
/// Longest header line, path or credential of a probe, in bytes.
const MAX_TEXT: usize = 8192;
/// Longest body of a probe, in bytes.
const MAX_BODY: usize = 65_536;

/// Builds the checks that the table has judged; what a probe cannot send is an error.
pub(super) fn build(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Option<Checks> {
    let passive = node.get("passive");
    let active = node
        .get("active")
        .map(|active| active_of(active, &at.key("active"), context));
    if active.is_none() && passive.is_none() {
        return None;
    }
    let unhealthy = passive.and_then(|passive| passive.get("unhealthy"));
    let limit = |key, default| count(unhealthy, key, default);
    Some(Checks {
        active,
        passive: Passive {
            failures: Limits {
                tcp: limit("tcp_failures", 2),
                timeouts: limit("timeouts", 7),
                http: 0,
                mqtt: 0,
            },
            recovery: passive
                .and_then(|passive| seconds(passive, "recovery_time"))
                .unwrap_or(DEFAULT_RECOVERY),
        },
    })
}

fn active_of(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Active {
    let healthy = node.get("healthy");
    let unhealthy = node.get("unhealthy");
    let limit = |key, default| count(unhealthy, key, default);
    let probe = match node.get("type").and_then(Node::as_str) {
        Some("tcp") => Probe::Tcp,
        Some("mqtt") => Probe::Mqtt(mqtt(node.get("mqtt"), &at.key("mqtt"), context)),
        Some("https") => {
            let verify = node.get("https_verify_certificate").and_then(Node::as_bool);
            let verify = Verify(verify.unwrap_or(true));
            Probe::Http(http(node, Some(verify), at, context))
        }
        _ => Probe::Http(http(node, None, at, context)),
    };
    let concurrency = node.get("concurrency").and_then(Node::as_i64);
    Active {
        probe,
        timeout: seconds(node, "timeout").unwrap_or(Duration::from_secs(1)),
        concurrency: concurrency.map_or(10, |count| count.clamp(1, 1000) as usize),
        host: text(node, "host"),
        port: node
            .get("port")
            .and_then(Node::as_i64)
            .and_then(|port| u16::try_from(port).ok()),
        healthy_interval: interval(healthy),
        unhealthy_interval: interval(unhealthy),
        successes: count(healthy, "successes", 2),
        failures: Limits {
            tcp: limit("tcp_failures", 2),
            timeouts: limit("timeouts", 3),
            http: limit("http_failures", 5),
            mqtt: limit("mqtt_failures", 2),
        },
    }
}

fn count(block: Option<&Node>, key: &str, default: u8) -> u8 {
    block
        .and_then(|block| block.get(key)?.as_i64())
        .and_then(|count| u8::try_from(count).ok())
        .unwrap_or(default)
}

fn interval(block: Option<&Node>) -> Duration {
    block
        .and_then(|block| seconds(block, "interval"))
        .unwrap_or(Duration::from_secs(1))
}

fn http(node: &Node, tls: Option<Verify>, at: &At<'_>, context: &mut Context<'_>) -> HttpProbe {
    let statuses = |block: &str, default: &[u16]| {
        let written = node.get(block).and_then(|block| block.get("http_statuses"));
        written.map_or(default.to_vec(), |list| {
            let status = |item: &Node| u16::try_from(item.as_i64()?).ok();
            list.items().iter().filter_map(status).collect()
        })
    };
    let path = text(node, "http_path").unwrap_or_else(|| "/".to_owned());
    let body = text(node, "http_req_body").unwrap_or_default();
    if !path.starts_with('/') || path.contains(' ') || !sendable(&path) {
        complain(
            node,
            "http_path",
            "is no path that a request can have",
            at,
            context,
        );
    }
    if body.len() > MAX_BODY {
        complain(node, "http_req_body", "is longer than 64 KiB", at, context);
    }
    let headers: Vec<String> = node
        .get("req_headers")
        .map(Node::items)
        .unwrap_or_default()
        .iter()
        .filter_map(|header| header.as_str().map(str::to_owned))
        .collect();
    for header in &headers {
        let name = header.split_once(':').map_or("", |(name, _)| name);
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) || !sendable(header) {
            let what = format!("has {}, which is no \"Name: value\"", quote(header));
            complain(node, "req_headers", &what, at, context);
        }
    }
    HttpProbe {
        tls,
        method: text(node, "http_method").unwrap_or_else(|| "GET".to_owned()),
        path,
        body,
        headers,
        healthy: statuses("healthy", &[200, 302]),
        unhealthy: statuses("unhealthy", &[429, 404, 500, 501, 502, 503, 504, 505]),
    }
}

fn mqtt(node: Option<&Node>, at: &At<'_>, context: &mut Context<'_>) -> MqttProbe {
    let field = |key| node.and_then(|node| text(node, key));
    let probe = MqttProbe {
        client_id_prefix: field("client_id_prefix").unwrap_or_else(|| "mqtt-health-".to_owned()),
        username: field("username"),
        password: field("password"),
        level: count(node, "protocol_level", 4),
    };
    if let Some(node) = node {
        let written = [
            ("client_id_prefix", Some(&probe.client_id_prefix)),
            ("username", probe.username.as_ref()),
        ];
        for (key, value) in written {
            if value.is_some_and(|value| !sendable(value)) {
                // [MQTT-1.5.4-2]; control characters need not be taken by a server.
                complain(
                    node,
                    key,
                    "has characters that a broker may refuse",
                    at,
                    context,
                );
            }
        }
        if probe
            .password
            .as_ref()
            .is_some_and(|password| password.len() > MAX_TEXT)
        {
            complain(node, "password", "is longer than 8 KiB", at, context);
        }
    }
    probe
}

fn sendable(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn complain(node: &Node, key: &str, what: &str, at: &At<'_>, context: &mut Context<'_>) {
    let position = node.get(key).map_or(node.position, |value| value.position);
    context.error(position, &at.key(key), format!("{key} {what}"));
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
