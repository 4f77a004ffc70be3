//! The connections of one upstream that leave for one cause.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::pace::{Pace, rate_for};
use super::plan::{Cause, Plan, Planned, Wanted};
use crate::mqtt::DisconnectReason;
use crate::session::outcome::End;
use crate::session::relay::Relays;
use crate::session::relay::orders::{Condition, PairId};
use crate::session::relay::pair::Farewell;
use crate::upstream::node::Node;
use crate::upstream::random::random;

/// The job.
pub(super) struct Job {
    pub cause: Cause,
    /// Place of the upstream in the plan.
    pub upstream: usize,
    pace: Pace,
    queue: Vec<(PairId, Arc<Node>)>,
    /// Something was in the queue since it was asked last.
    worked: bool,
    /// Nodes that take no new connections, by label: several of one label where a node was
    /// removed, added and removed again, or came from another process.
    departing: BTreeMap<String, Departing>,
}

/// Those that leave nodes of one label.
struct Departing {
    nodes: HashMap<usize, Arc<Node>>,
    /// Since when connections leave.
    since: Option<Instant>,
}

impl Departing {
    fn live(&self) -> usize {
        self.nodes.values().map(|node| node.live()).sum()
    }
}

impl Job {
    /// A job with nothing to do yet.
    pub fn new(cause: Cause, upstream: usize, now: Instant) -> Self {
        Job {
            cause,
            upstream,
            pace: Pace::from(now),
            queue: Vec::new(),
            worked: false,
            departing: BTreeMap::new(),
        }
    }

    /// The same for the next plan: its nodes and pace stay, its list is made again. Nodes that are
    /// in use again are forgotten, and so are those that are empty and gone.
    pub fn renewed(mut self, upstream: usize, planned: &Planned) -> Self {
        self.upstream = upstream;
        self.departing.retain(|label, departing| {
            !planned.in_use.contains(label) && (planned.has(label) || departing.live() > 0)
        });
        self
    }

    /// Empties its list.
    pub fn forget(&mut self) {
        (self.queue, self.worked) = (Vec::new(), false);
    }

    /// Whether its list is empty.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether anything was on the list since this was asked last.
    pub fn worked(&mut self) -> bool {
        std::mem::take(&mut self.worked)
    }

    /// Notes a node that takes no new connections.
    pub fn departs(&mut self, node: &Arc<Node>) {
        let departing = self
            .departing
            .entry(node.label().to_owned())
            .or_insert_with(|| Departing {
                nodes: HashMap::new(),
                since: None,
            });
        let place = Arc::as_ptr(node).addr();
        departing.nodes.insert(place, node.clone());
    }

    /// Notes connections that are to leave.
    pub fn found(&mut self, id: PairId, wanted: Wanted) {
        if self.cause == Cause::Drain {
            self.departs(&wanted.node);
        }
        self.queue.push((id, wanted.node));
    }

    /// All that could be found is in the list now: says in the log what begins.
    pub fn begin(&mut self, planned: &Planned, now: Instant) {
        if self.queue.is_empty() {
            return;
        }
        self.worked = true;
        // In no order: every relay thread and every node has its share at any time.
        for place in (1..self.queue.len()).rev() {
            let other = (random() % (place as u64 + 1)) as usize;
            self.queue.swap(place, other);
        }
        let label = planned.upstream.label();
        let (count, rate) = (self.queue.len(), self.rate(planned, now));
        match self.cause {
            Cause::Drain => {
                for (node, departing) in &mut self.departing {
                    if departing.since.is_none() && departing.live() > 0 {
                        departing.since = Some(now);
                        let live = departing.live();
                        log::info!("upstream {label}: {live} connections leave node {node}");
                    }
                }
            }
            Cause::Rebalance => log::info!(
                "upstream {label}: {count} connections move to their own nodes, {rate} a second"
            ),
        }
        self.pace.resume(now, rate);
    }

    fn rate(&self, planned: &Planned, now: Instant) -> f64 {
        match self.cause {
            Cause::Rebalance => planned.rebalance().map_or(1.0, |rebalance| rebalance.rate),
            Cause::Drain => {
                let Some(drain) = planned.drain() else {
                    return 1.0;
                };
                let needed = self.departing.values().filter_map(|departing| {
                    let end = departing.since? + drain.timeout?;
                    let left = end.saturating_duration_since(now);
                    Some(rate_for(departing.live(), left))
                });
                drain.rate.max(needed.sum())
            }
        }
    }

    /// Has those leave who are due, and says when to look again; `None` when the list is empty.
    pub fn step(&mut self, plan: &Arc<Plan>, relays: &Relays, now: Instant) -> Option<Instant> {
        let planned = &plan.upstreams[self.upstream];
        let rate = self.rate(planned, now);
        let due = self.pace.due(now, rate, self.queue.len());
        let leave = self.queue.split_off(self.queue.len() - due);
        if !leave.is_empty() {
            let (asked, cause) = (plan.clone(), self.cause);
            let condition: Condition = Arc::new(move |pair| {
                let wanted = asked.wanted(pair);
                wanted.is_some_and(|wanted| wanted.cause == cause)
            });
            let (known, gone): (Vec<_>, Vec<_>) = leave
                .into_iter()
                .partition(|(_, node)| planned.has(node.label()));
            for (leave, reason) in [
                (known, DisconnectReason::UseAnotherServer),
                (gone, DisconnectReason::ServerMoved),
            ] {
                let ids: Vec<PairId> = leave.into_iter().map(|(id, _)| id).collect();
                relays.leave(&ids, self.farewell(planned, reason), Some(&condition));
            }
        }
        (!self.queue.is_empty()).then(|| self.pace.look(now, rate))
    }

    fn farewell(&self, planned: &Planned, reason: DisconnectReason) -> Farewell {
        let will = match self.cause {
            Cause::Drain => planned.drain().map(|drain| drain.will),
            Cause::Rebalance => planned.rebalance().map(|rebalance| rebalance.will),
        };
        Farewell {
            end: match self.cause {
                Cause::Drain => End::Drained,
                Cause::Rebalance => End::Rebalanced,
            },
            reason,
            will: will.unwrap_or_default(),
        }
    }

    /// Whether connections live on nodes that they are to leave, as far as that is known.
    pub fn is_left_to_do(&self) -> bool {
        self.departing
            .values()
            .any(|departing| departing.live() > 0)
    }

    /// Says in the log which nodes are empty now.
    pub fn note_empty_nodes(&mut self, planned: &Planned) {
        for (node, departing) in &mut self.departing {
            if departing.since.is_some() && departing.live() == 0 {
                departing.since = None;
                let label = planned.upstream.label();
                log::info!("upstream {label}: the last connection has left node {node}");
            }
        }
    }

    /// How many connections are left, by node: that they leave, or where they belong.
    pub fn left(&self) -> BTreeMap<&str, usize> {
        let mut left = BTreeMap::new();
        match self.cause {
            Cause::Drain => {
                for (node, departing) in &self.departing {
                    left.insert(node.as_str(), departing.live());
                }
            }
            Cause::Rebalance => {
                for (_, home) in &self.queue {
                    *left.entry(home.label()).or_default() += 1;
                }
            }
        }
        left
    }
}
