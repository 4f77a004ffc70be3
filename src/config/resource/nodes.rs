//! `nodes` of an upstream, in both forms.

use std::collections::HashMap;

use super::address;
use super::read::Context;
use super::upstream::{Host, UpstreamNode};
use crate::config::diagnostic::{At, Position, quote};
use crate::config::document::{Node, Value};

/// Most nodes of an upstream.
const MAX_NODES: usize = 65_535;

/// The nodes; what is wrong is told, and such nodes are left out.
pub(super) fn nodes(node: &Node, at: &At<'_>, context: &mut Context<'_>) -> Vec<UpstreamNode> {
    let mut found = Nodes::default();
    match &node.value {
        Value::Map(entries) => {
            if entries.len() > MAX_NODES {
                let message = format!("nodes has {} items, at most {MAX_NODES}", entries.len());
                context.error(node.position, at, message);
                return Vec::new();
            }
            for entry in entries {
                let at = at.key(&entry.key);
                let weight = weight(&entry.value);
                let address = address::split(&entry.key);
                let place = (entry.key_position, &at);
                if let Some((host, port)) = whole(address, &entry.key, None, place, context) {
                    found.add(host, port, (weight, 0), place, context);
                }
            }
        }
        Value::Seq(items) if items.len() <= MAX_NODES => {
            for (index, item) in items.iter().enumerate() {
                let at = at.index(index);
                let Some(host) = item.get("host") else {
                    continue;
                };
                let Some(text) = host.as_str() else { continue };
                let port = item.get("port").and_then(Node::as_i64);
                let priority = item.get("priority").and_then(Node::as_i64).unwrap_or(0);
                let weight = item.get("weight").map_or(0, weight);
                let place = (item.position, &at);
                if let Some((host, port)) = whole(address::host(text), text, port, place, context) {
                    found.add(host, port, (weight, priority), place, context);
                }
            }
        }
        // A longer list has been told by the table.
        _ => {}
    }
    found.list
}

/// A weight that the table has judged.
fn weight(node: &Node) -> u32 {
    node.as_i64()
        .and_then(|weight| u32::try_from(weight).ok())
        .unwrap_or(0)
}

/// Host and port, unless something is wrong.
fn whole(
    address: Result<(Host, Option<u16>), String>,
    written: &str,
    port: Option<i64>,
    (position, at): (Position, &At<'_>),
    context: &mut Context<'_>,
) -> Option<(Host, u16)> {
    let (host, inner) = match address {
        Ok(address) => address,
        Err(message) => {
            context.error(position, at, format!("node {}: {message}", quote(written)));
            return None;
        }
    };
    if let (Some(_), Some(inner)) = (port, inner) {
        let message = format!(
            "node {} has port {inner} in its host and another one as port",
            quote(written)
        );
        context.error(position, at, message);
        return None;
    }
    match (port, inner) {
        // A port out of range has been told by the table.
        (Some(port), _) => Some((host, u16::try_from(port).ok().filter(|port| *port > 0)?)),
        (None, Some(port)) => Some((host, port)),
        (None, None) => {
            let message = format!("node {} has no port", quote(written));
            context.error(position, at, message);
            None
        }
    }
}

#[derive(Default)]
struct Nodes {
    list: Vec<UpstreamNode>,
    places: HashMap<(Host, u16, i64), usize>,
}

impl Nodes {
    /// Adds a node; one that is there already gets the new weight, as in APISIX.
    fn add(
        &mut self,
        host: Host,
        port: u16,
        (weight, priority): (u32, i64),
        (position, at): (Position, &At<'_>),
        context: &mut Context<'_>,
    ) {
        let node = UpstreamNode {
            host,
            port,
            weight,
            priority,
        };
        let key = (node.host.clone(), port, priority);
        match self.places.get(&key) {
            Some(&place) => {
                let message = format!("node {node} is listed twice; the last weight counts");
                context.warn(position, at, message);
                if let Some(earlier) = self.list.get_mut(place) {
                    earlier.weight = weight;
                }
            }
            None => {
                self.places.insert(key, self.list.len());
                self.list.push(node);
            }
        }
    }
}
