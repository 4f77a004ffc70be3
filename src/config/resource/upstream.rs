//! Upstreams: nodes, balancing, retries, timeouts, TLS to the broker.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::checks::{self, Checks};
use super::credentials::{Authorities, CertificatePair};
use super::discovery::{self, Discovery, Found};
use super::leaving::{self, Drain, Rebalance};
use super::pem::Part;
use super::read::{Context, id, seconds, text};
use super::{hash_key, nodes, weights};
use crate::config::diagnostic::{At, Origin, quote};
use crate::config::document::Node;
use crate::config::names::did_you_mean;
use crate::config::template::Template;

/// An item of `upstreams`.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedUpstream {
    /// The id as text; `arr_N` (N from 1) when the file gives none.
    pub id: String,
    /// The upstream itself, equal to the same text written inside a route.
    pub upstream: Upstream,
    /// Where the upstream stands in the file; never part of equality.
    pub position: Origin,
}

/// Where connections go, as APISIX's upstream schema has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Name for people.
    pub name: Option<String>,
    /// The nodes in file order, without duplicates of host, port and priority; may be empty. At
    /// most 65,535.
    pub nodes: Vec<UpstreamNode>,
    /// How a node is chosen.
    pub balancer: Balancer,
    /// What a consistent hash is taken of; of no effect with other balancers.
    pub hash_key: HashKey,
    /// Further attempts after the first; `None` = number of nodes − 1.
    pub retries: Option<u32>,
    /// No retry starts later than this after the first attempt; `None` = no limit.
    pub retry_timeout: Option<Duration>,
    /// Timeouts; `None` = the defaults of connect 60 s and an idle timeout of the proxy's choice.
    pub timeout: Option<Timeouts>,
    /// Plain TCP or TLS to the node.
    pub scheme: Scheme,
    /// Client certificate and verification for [`Scheme::Tls`].
    pub upstream_tls: UpstreamTls,
    /// Health checks; without them every node counts as healthy.
    pub checks: Option<Checks>,
    /// How long a node that is healthy again takes to get its full share of new connections.
    pub slow_start: Option<Duration>,
    /// How many percent of its share of the live connections a node of a ring may have before
    /// further ones go to the next; above 100. Only with chash.
    pub balance_factor: Option<u32>,
    /// How live connections leave nodes that take no new ones; `None` = they stay.
    pub drain: Option<Drain>,
    /// How live connections come home to nodes that are back; `None` = they stay. Only with chash.
    pub rebalance: Option<Rebalance>,
    /// A service of which the nodes are, instead of `nodes`, which is empty then.
    pub discovery: Option<Discovery>,
}

/// How a node is chosen (`type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balancer {
    /// Weighted round robin.
    #[default]
    RoundRobin,
    /// Consistent hashing (Ketama).
    Chash,
    /// Fewest connections in proportion to the weight.
    LeastConn,
    /// The quicker of two random nodes, by the moving average of connect times.
    Ewma,
}

impl Balancer {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Balancer::RoundRobin => "roundrobin",
            Balancer::Chash => "chash",
            Balancer::LeastConn => "least_conn",
            Balancer::Ewma => "ewma",
        }
    }
}

/// What a consistent hash is taken of (`hash_on` and `key`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashKey {
    /// The client's address without port.
    #[default]
    Address,
    /// One variable; the client's address when it has no value.
    Variable(String),
    /// A text with variables; the client's address when none of them has a value.
    Template(Template),
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HashKey::Address => f.write_str("remote_addr"),
            HashKey::Variable(name) => f.write_str(name),
            HashKey::Template(template) => template.fmt(f),
        }
    }
}

/// Timeouts of an upstream; each is above zero and at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For establishing a connection to one node.
    pub connect: Duration,
    /// Idle time while sending; the larger of `send` and `read` is the idle timeout (APISIX).
    pub send: Duration,
    /// Idle time while reading.
    pub read: Duration,
}

/// What is spoken to the nodes (`scheme`); everything but `tls` means raw bytes in APISIX too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// Plain TCP.
    #[default]
    Tcp,
    /// TLS around the client's bytes.
    Tls,
}

/// The server name that a node gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServerName {
    /// That of the client where it came over TLS, else `apisix_backend` (APISIX).
    #[default]
    Client,
    /// The host of the node.
    Node,
    /// This one.
    Fixed(String),
}

/// `tls` of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Client certificate and its private key (`client_cert`, `client_key`).
    pub client_pair: Option<Arc<CertificatePair>>,
    /// An item of `ssls` of type `client` instead.
    pub client_cert_id: Option<String>,
    /// Verify the node's certificate, chain and name.
    pub verify: bool,
    /// Who may sign it; `None` = `apisix.ssl.ssl_trusted_certificate`, or the system's.
    pub ca: Option<Arc<Authorities>>,
    /// The server name that is sent (`pass_host` and `upstream_host`).
    pub name: ServerName,
}

/// One node of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamNode {
    /// Address or name.
    pub host: Host,
    /// TCP port, 1–65535.
    pub port: u16,
    /// Share of the connections; 0 takes part only as the balancer says.
    pub weight: u32,
    /// Nodes of a lower priority are used once all of a higher one failed.
    pub priority: i64,
}

impl fmt::Display for UpstreamNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The host of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name to resolve, as written.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

/// Builds an item of `upstreams` that its table has judged.
pub(crate) fn build_named(
    node: &Node,
    id_text: String,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> NamedUpstream {
    NamedUpstream {
        id: id_text,
        upstream: build(node, at, context),
        position: Origin(node.position),
    }
}

/// Builds an upstream that its table has judged. Inline upstreams are judged like those with an
/// id; APISIX lets them pass and fails with each connection.
pub(crate) fn build(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Upstream {
    let balancer = balancer(node, at, context);
    let mut nodes = node
        .get("nodes")
        .map(|nodes| nodes::nodes(nodes, &at.key("nodes"), context))
        .unwrap_or_default();
    let discovery = match discovery::build(node, at, context) {
        Some(Found::Service(service)) => Some(service),
        Some(Found::Node(node)) => {
            nodes.push(node);
            None
        }
        None => None,
    };
    let hash_key = match balancer {
        Balancer::Chash => {
            ring(node, &nodes, at, context);
            hash_key::build(node, at, context)
        }
        _ => HashKey::Address,
    };
    Upstream {
        name: text(node, "name"),
        nodes,
        balancer,
        hash_key,
        retries: node
            .get("retries")
            .and_then(Node::as_i64)
            .and_then(|retries| u32::try_from(retries).ok()),
        retry_timeout: seconds(node, "retry_timeout"),
        timeout: node.get("timeout").and_then(|timeout| {
            Some(Timeouts {
                connect: seconds(timeout, "connect")?,
                send: seconds(timeout, "send")?,
                read: seconds(timeout, "read")?,
            })
        }),
        scheme: match node.get("scheme").and_then(Node::as_str) {
            Some("tls") => Scheme::Tls,
            _ => Scheme::Tcp,
        },
        upstream_tls: upstream_tls(node, at, context),
        checks: node
            .get("checks")
            .and_then(|checks| checks::build(checks, &at.key("checks"), context)),
        slow_start: seconds(node, "slow_start"),
        balance_factor: balance_factor(node, balancer, at, context),
        drain: leaving::drain(node),
        rebalance: leaving::rebalance(node, balancer, at, context),
        discovery,
    }
}

fn balancer(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Balancer {
    let Some(written) = node.get("type") else {
        return Balancer::RoundRobin;
    };
    let known = [
        Balancer::RoundRobin,
        Balancer::Chash,
        Balancer::LeastConn,
        Balancer::Ewma,
    ];
    let Some(name) = written.as_str() else {
        return Balancer::RoundRobin;
    };
    if let Some(balancer) = known.into_iter().find(|balancer| balancer.name() == name) {
        return balancer;
    }
    let message = format!(
        "unknown type {}{} (one of roundrobin, chash, least_conn, ewma)",
        quote(name),
        did_you_mean(name, known.map(Balancer::name))
    );
    context.error(written.position, &at.key("type"), message);
    Balancer::RoundRobin
}

/// HAProxy's `hash-balance-factor`, in percent.
fn balance_factor(
    node: &Node,
    balancer: Balancer,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> Option<u32> {
    let written = node.get("hash_balance_factor")?;
    let factor = u32::try_from(written.as_i64()?).ok()?;
    let at = at.key("hash_balance_factor");
    match factor {
        0 => None,
        1..=100 => {
            let message = format!(
                "hash_balance_factor {factor} leaves no room for everybody: more than 100, or 0 = off"
            );
            context.error(written.position, &at, message);
            None
        }
        _ if balancer != Balancer::Chash => {
            let message = "hash_balance_factor has no effect: type is not chash";
            context.warn(written.position, &at, message);
            None
        }
        _ => Some(factor),
    }
}

/// What consistent hashing asks of the weights.
fn ring(node: &Node, nodes: &[UpstreamNode], at: &At<'_>, context: &mut Context<'_>) {
    let Some(entry) = node.entry("nodes") else {
        return;
    };
    let at = at.key("nodes");
    if let Some(message) = weights::oversized_ring(nodes) {
        context.error(entry.key_position, &at, message);
    }
    // A single node is used whatever its weight.
    if nodes.len() > 1 {
        for priority in weights::priorities_without_weight(nodes) {
            let message = format!(
                "all weights of priority {priority} are 0: all are used equally, where APISIX closes every connection"
            );
            context.warn(entry.key_position, &at, message);
        }
    }
}

fn upstream_tls(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> UpstreamTls {
    let name = server_name(node, at, context);
    let at = at.key("tls");
    let Some(tls) = node.get("tls") else {
        if let Some(scheme) = node.entry("scheme")
            && scheme.value.as_str() == Some("tls")
        {
            context.warn(scheme.key_position, &at, UNVERIFIED);
        }
        return UpstreamTls {
            name,
            ..UpstreamTls::default()
        };
    };
    let mut written = |key: &str| {
        let value = tls.get(key)?;
        match context.resolve(value.as_str()?) {
            Ok(text) => Some((value.position, text)),
            Err(message) => {
                context.error(value.position, &at.key(key), message);
                None
            }
        }
    };
    let (cert, key, ca) = (written("client_cert"), written("client_key"), written("ca"));
    let client_pair = cert.zip(key).and_then(|((cert_at, cert), (key_at, key))| {
        let told = context.credentials.pair(&cert, &key).map_err(|problems| {
            for (part, message) in problems {
                match part {
                    Part::Cert => context.error(cert_at, &at.key("client_cert"), message),
                    Part::Key => context.error(key_at, &at.key("client_key"), message),
                }
            }
        });
        told.ok()
    });
    let ca = ca.and_then(|(position, text)| {
        let told = context.credentials.authorities(&text).map_err(|why| {
            let message = format!("failed to parse ca: {why}");
            context.error(position, &at.key("ca"), message);
        });
        told.ok()
    });
    let verify = tls.get("verify").and_then(Node::as_bool).unwrap_or(false);
    if !verify && node.get("scheme").and_then(Node::as_str) == Some("tls") {
        context.warn(tls.position, &at, UNVERIFIED);
    }
    UpstreamTls {
        client_pair,
        client_cert_id: id(tls, "client_cert_id"),
        verify,
        ca,
        name,
    }
}

/// Said once for each upstream with TLS that leaves APISIX's default.
const UNVERIFIED: &str =
    "the nodes' certificates are not verified, as in APISIX; verify: true does";

/// `pass_host` and `upstream_host`, which APISIX uses for HTTP only.
fn server_name(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> ServerName {
    match node.get("pass_host").and_then(Node::as_str) {
        Some("node") => ServerName::Node,
        Some("rewrite") => match text(node, "upstream_host") {
            Some(host) => ServerName::Fixed(host),
            None => {
                if node.get("scheme").and_then(Node::as_str) == Some("tls") {
                    let message = "pass_host rewrite needs upstream_host";
                    context.error(node.position, &at.key("pass_host"), message);
                }
                ServerName::Client
            }
        },
        _ => ServerName::Client,
    }
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
