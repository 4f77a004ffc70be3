//! Stream routes: which connections they take and where these go.

use ipnet::IpNet;

use super::plugin::{self, Plugins};
use super::read::{Context, id, snis, text};
use super::upstream::{self, Upstream};
use crate::config::diagnostic::{At, Origin};
use crate::config::document::Node;

/// One item of `stream_routes`, as APISIX's `stream_route` schema has it.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRoute {
    /// The id as text; `arr_N` (N from 1) when the file gives none.
    pub id: String,
    /// Name for people and for the variable `route_name`.
    pub name: Option<String>,
    /// Clients this route takes; `None` takes all.
    pub remote_addr: Option<IpNet>,
    /// Local addresses this route takes connections on; `None` takes all.
    pub server_addr: Option<IpNet>,
    /// Local port this route takes connections on; `None` takes all.
    pub server_port: Option<u16>,
    /// Server names (`sni` or `snis`), in lower case without a trailing dot; a leading `*` is a
    /// wildcard of any depth. Empty = a route for every connection, with or without a name.
    pub snis: Vec<String>,
    /// On a listener with both `tls` and `tls_passthrough`: pass TLS through instead of ending it.
    pub tls_passthrough: Option<bool>,
    /// The upstream written inside the route.
    pub upstream: Option<Upstream>,
    /// The upstream by id; goes before everything else (APISIX).
    pub upstream_id: Option<String>,
    /// The service by id; ignored when there is an `upstream_id` (APISIX).
    pub service_id: Option<String>,
    /// The route's own plugins.
    pub plugins: Plugins,
    /// Where the route stands in the file; never part of equality.
    pub position: Origin,
}

/// Builds the route from an item that its table has judged.
pub(crate) fn build(
    node: &Node,
    id_text: String,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> StreamRoute {
    if let Some(entry) = node.entry("protocol") {
        let message = "protocol (xRPC) is not supported";
        context.error(entry.key_position, &at.key("protocol"), message);
    }
    let route = StreamRoute {
        id: id_text,
        name: text(node, "name"),
        remote_addr: network(node, "remote_addr"),
        server_addr: network(node, "server_addr"),
        server_port: node
            .get("server_port")
            .and_then(Node::as_i64)
            .and_then(|port| u16::try_from(port).ok()),
        snis: snis(node),
        tls_passthrough: node.get("tls_passthrough").and_then(Node::as_bool),
        upstream: node
            .get("upstream")
            .map(|upstream| upstream::build(upstream, &at.key("upstream"), context)),
        upstream_id: id(node, "upstream_id"),
        service_id: id(node, "service_id"),
        plugins: plugin::build(node.get("plugins"), &at.key("plugins"), context),
        position: Origin(node.position),
    };
    let in_plugin = route
        .plugins
        .mqtt_proxy
        .as_ref()
        .is_some_and(|conf| conf.upstream.is_some());
    let somewhere = ["upstream", "upstream_id", "service_id"]
        .iter()
        .any(|key| node.entry(key).is_some());
    if !somewhere && !in_plugin {
        let message = "the route has no upstream: its connections will be refused";
        context.warn(node.position, at, message);
    }
    route
}

/// An address is the network of that address alone; bits behind the prefix are cut.
fn network(node: &Node, key: &str) -> Option<IpNet> {
    let text = node.get(key)?.as_str()?;
    match text.parse::<IpNet>() {
        Ok(network) => Some(network.trunc()),
        Err(_) => text.parse::<std::net::IpAddr>().ok().map(IpNet::from),
    }
}

#[cfg(test)]
#[path = "stream_route_tests.rs"]
mod tests;
