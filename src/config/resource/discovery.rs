//! `discovery_type` and `service_name`: nodes that are found in DNS.

use std::fmt;

use super::address;
use super::read::{Context, text};
use super::upstream::{Host, UpstreamNode};
use crate::config::diagnostic::{At, quote};
use crate::config::document::Node;
use crate::config::names::did_you_mean;

/// A service in DNS, of which an upstream gets its nodes at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// The name that is asked for, as written.
    pub name: String,
    /// The port of every node; `None` = that of its SRV record. Without one, addresses (A, AAAA)
    /// are no nodes: a stream has no default port (APISIX).
    pub port: Option<u16>,
}

impl fmt::Display for Discovery {
    /// `service_name` as written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What an upstream gets its nodes from instead of `nodes`.
pub(super) enum Found {
    /// A service that is looked up at run time.
    Service(Discovery),
    /// A service that is an address: there is nothing to look up.
    Node(UpstreamNode),
}

/// Reads the two fields; what is wrong with them is told.
pub(super) fn build(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Option<Found> {
    // With `nodes` beside it, a lone service_name is ignored, as in APISIX.
    let (kind, service) = (text(node, "discovery_type")?, text(node, "service_name")?);
    if kind != "dns" {
        let position = node.get("discovery_type")?.position;
        let message = format!(
            "unknown discovery_type {}{} (only dns is served)",
            quote(&kind),
            did_you_mean(&kind, ["dns"])
        );
        context.error(position, &at.key("discovery_type"), message);
        return None;
    }
    let position = node.get("service_name")?.position;
    let at = at.key("service_name");
    match address::split(&service) {
        Ok((Host::Name(name), port)) => Some(Found::Service(Discovery { name, port })),
        Ok((host, Some(port))) => Some(Found::Node(UpstreamNode {
            host,
            port,
            weight: 1,
            priority: 0,
        })),
        Ok((Host::Ip(_), None)) => {
            let message = format!("service_name {} has no port", quote(&service));
            context.error(position, &at, message);
            None
        }
        Err(why) => {
            let message = format!("service_name {}: {why}", quote(&service));
            context.error(position, &at, message);
            None
        }
    }
}
