//! Which connections are to leave, as one table and the health of its nodes have it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crate::config::resource::leaving::{Drain, Rebalance};
use crate::session::relay::pair::Pair;
use crate::upstream::Upstream;
use crate::upstream::node::Node;

/// Why a connection leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// Its node takes no new connections.
    Drain,
    /// Its place on the ring is with another node.
    Rebalance,
}

/// A connection that is to leave.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Place of its upstream in the plan.
    pub upstream: usize,
    /// Why.
    pub cause: Cause,
    /// The node that it leaves, or, to rebalance, the one where it belongs.
    pub node: Arc<Node>,
}

/// An upstream with `drain` or `rebalance`.
pub(super) struct Planned {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// Labels of the nodes that take new connections.
    pub in_use: HashSet<String>,
    /// Connections that began before this are looked at for rebalancing. Younger ones are where
    /// they are because their own node did not take them.
    pub rebalance_before: Option<Instant>,
}

impl Planned {
    /// Looks at nothing for rebalancing yet.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        let in_use = upstream.nodes_in_use();
        Planned {
            in_use: in_use.map(|node| node.label().to_owned()).collect(),
            rebalance_before: None,
            upstream,
        }
    }

    /// How its connections leave nodes, if they do.
    pub fn drain(&self) -> Option<&Drain> {
        self.upstream.config().drain.as_ref()
    }

    /// How they come home, if they do.
    pub fn rebalance(&self) -> Option<&Rebalance> {
        self.upstream.config().rebalance.as_ref()
    }

    /// Whether the node is in the upstream, with a weight or without.
    pub fn has(&self, label: &str) -> bool {
        self.upstream.nodes().any(|node| node.label() == label)
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Plan {
    /// The upstreams.
    pub upstreams: Vec<Planned>,
    by_label: HashMap<String, usize>,
}

impl Plan {
    /// A plan of these upstreams.
    pub fn new(upstreams: Vec<Planned>) -> Self {
        let labels = upstreams.iter().enumerate();
        Plan {
            by_label: labels
                .map(|(index, planned)| (planned.upstream.label().to_owned(), index))
                .collect(),
            upstreams,
        }
    }

    /// The upstream of this label.
    pub fn of(&self, label: &str) -> Option<&Planned> {
        Some(&self.upstreams[*self.by_label.get(label)?])
    }

    /// Whether and why this pair is to leave now. Upstream and nodes are known by their labels: a
    /// pair may be older than the table, or than the process.
    pub fn wanted(&self, pair: &Pair) -> Option<Wanted> {
        if pair.is_leaving() {
            return None;
        }
        let record = pair.record();
        let node = record.broker.as_ref()?.node();
        let index = *self.by_label.get(record.upstream()?.label())?;
        let planned = &self.upstreams[index];
        let wanted = |cause, node: &Arc<Node>| Wanted {
            upstream: index,
            cause,
            node: node.clone(),
        };
        if !planned.in_use.contains(node.label()) {
            // Nobody is sent away who finds nothing better.
            let leaves = planned.drain().is_some() && planned.upstream.has_room();
            return leaves.then(|| wanted(Cause::Drain, node));
        }
        if record.started() >= planned.rebalance_before? {
            return None;
        }
        let home = planned.upstream.home(record.key.as_deref()?)?;
        (home.label() != node.label()).then(|| wanted(Cause::Rebalance, home))
    }
}
