//! `drain` and `rebalance` of an upstream: live connections that are moved, which APISIX never
//! does.

use std::time::Duration;

use super::read::{Context, seconds};
use super::upstream::Balancer;
use crate::config::diagnostic::At;
use crate::config::document::Node;

/// Connections a second that are sent away unless the file says otherwise.
pub const DEFAULT_RATE: f64 = 200.0;
/// The lowest pace.
pub const MIN_RATE: f64 = 0.01;
/// The highest.
pub const MAX_RATE: f64 = 100_000.0;
/// In how many seconds the last connection has left a node, unless the file says otherwise.
pub const DEFAULT_TIMEOUT: u32 = 3600;

/// What becomes of the wills of clients that are sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Will {
    /// The broker publishes them, as after any connection that just ends.
    #[default]
    Publish,
    /// The broker forgets them: it gets the client's DISCONNECT first.
    Suppress,
}

/// How live connections leave a node that takes no new ones: one of weight 0, or one that was
/// removed from the upstream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drain {
    /// Connections a second, for all leaving nodes of the upstream together.
    pub rate: f64,
    /// When the last has left a node, whatever that makes of the rate; `None` = the rate alone
    /// counts.
    pub timeout: Option<Duration>,
    /// What becomes of their wills.
    pub will: Will,
}

/// How live connections come home to a node that is back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rebalance {
    /// Connections a second, for the upstream.
    pub rate: f64,
    /// What becomes of their wills.
    pub will: Will,
}

/// What becomes of wills, as `will` in this mapping says.
pub(crate) fn will(node: &Node) -> Will {
    match node.get("will").and_then(Node::as_str) {
        Some("suppress") => Will::Suppress,
        _ => Will::Publish,
    }
}

fn rate(node: &Node) -> f64 {
    let written = node.get("rate").and_then(Node::as_f64);
    written.unwrap_or(DEFAULT_RATE).clamp(MIN_RATE, MAX_RATE)
}

/// Builds `drain` of an upstream that its table has judged.
pub(super) fn drain(upstream: &Node) -> Option<Drain> {
    let node = upstream.get("drain").filter(|node| node.is_object())?;
    Some(Drain {
        rate: rate(node),
        timeout: match node.get("timeout") {
            None => Some(Duration::from_secs(DEFAULT_TIMEOUT.into())),
            Some(_) => seconds(node, "timeout"),
        },
        will: will(node),
    })
}

/// Builds `rebalance` of an upstream that its table has judged.
pub(super) fn rebalance(
    upstream: &Node,
    balancer: Balancer,
    at: &At<'_>,
    context: &mut Context<'_>,
) -> Option<Rebalance> {
    let entry = upstream.entry("rebalance")?;
    let node = Some(&entry.value).filter(|node| node.is_object())?;
    if balancer != Balancer::Chash {
        let message =
            "rebalance has no effect: type is not chash, and no connection has a place of its own";
        context.warn(entry.key_position, &at.key("rebalance"), message);
        return None;
    }
    Some(Rebalance {
        rate: rate(node),
        will: will(node),
    })
}
