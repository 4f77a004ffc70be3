//! One priority level of an upstream: its nodes and the balancer over them.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::ewma::Lots;
use super::loads::Loads;
use super::node::Node;
use super::random::{fraction, random};
use super::ring::{Place, Places, Ring};
use super::round_robin::RoundRobin;
use crate::config::resource::upstream::Balancer;
use crate::config::resource::weights::common_divisor;

/// So many nodes that are coming back a pick without a key passes over; then one is as good as
/// another.
const MAX_REFUSALS: usize = 16;

/// A node and its weight within a level. The node is shared with earlier tables, the weight is not.
#[derive(Debug, Clone)]
pub struct Member {
    /// The node.
    pub node: Arc<Node>,
    /// The configured weight.
    pub weight: u32,
}

/// The nodes of one priority and the balancer that orders them.
#[derive(Debug)]
pub struct Level {
    /// The nodes, in file order.
    pub members: Vec<Member>,
    picker: Picker,
    has_healthy: AtomicBool,
    /// What the balancer follows: which members were healthy when it was told last.
    judged: Mutex<Vec<bool>>,
}

#[derive(Debug)]
enum Picker {
    Chash {
        ring: Ring,
        /// Only where nodes are not to get more than their share.
        loads: Option<Loads>,
    },
    RoundRobin(Cut<RoundRobin>),
    LeastConn(Loads),
    Ewma(Cut<Lots>),
}

/// A balancer over all nodes, and the same over the healthy ones only.
#[derive(Debug)]
struct Cut<T> {
    every: T,
    healthy: ArcSwap<T>,
}

impl<T> Cut<T> {
    fn new(build: impl Fn(&[u32]) -> T, weights: &[u32]) -> Self {
        Cut {
            every: build(weights),
            healthy: ArcSwap::from_pointee(build(weights)),
        }
    }
}

/// On what terms a pick is made, beyond the balancer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// Unhealthy nodes are as good as others.
    pub ignore_health: bool,
    /// How long a node that is healthy again takes to get its full share.
    pub slow_start: Option<Duration>,
    /// Percent of its share of all connections that a node of a ring may have.
    pub balance_factor: Option<u32>,
}

/// What one pick is made for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The hash key; only a ring looks at it.
    pub key: &'a [u8],
    /// Places that were tried before.
    pub tried: &'a [Place],
    /// The terms.
    pub terms: Terms,
}

impl Level {
    /// Builds the balancer over `members`. Where every weight is 0 all count alike, as in APISIX's
    /// round robin (its chash closes every connection then). `bounded`: [`Terms::balance_factor`]
    /// will be used.
    pub fn new(
        members: Vec<Member>,
        balancer: Balancer,
        places: impl Into<Places>,
        bounded: bool,
    ) -> Self {
        let weights = reduced_weights(&members);
        let picker = match balancer {
            Balancer::Chash => {
                let loads = bounded.then(|| Loads::new(weights.iter().copied()));
                let nodes = members.iter().map(|member| member.node.clone());
                let ring = Ring::new(nodes.zip(weights).collect(), places);
                Picker::Chash { ring, loads }
            }
            Balancer::RoundRobin => Picker::RoundRobin(Cut::new(RoundRobin::new, &weights)),
            Balancer::LeastConn => {
                Picker::LeastConn(Loads::new(members.iter().map(|member| member.weight)))
            }
            Balancer::Ewma => Picker::Ewma(Cut::new(Lots::new, &weights)),
        };
        let level = Level {
            judged: Mutex::new(vec![true; members.len()]),
            members,
            picker,
            has_healthy: AtomicBool::new(true),
        };
        for member in 0..level.members.len() {
            level.follow_load(member);
        }
        level.follow_health();
        level
    }

    /// The nodes that take connections: those with a weight, or all where none has one.
    pub fn nodes_in_use(&self) -> impl Iterator<Item = &Arc<Node>> {
        let no_weight = self.members.iter().all(|member| member.weight == 0);
        let used = move |member: &&Member| no_weight || member.weight > 0;
        self.members.iter().filter(used).map(|member| &member.node)
    }

    /// The next place to try, or `None` when the level has no other.
    pub fn pick(&self, wish: &Wish<'_>) -> Option<Place> {
        let Wish { key, tried, terms } = *wish;
        if !terms.ignore_health && !self.has_healthy() {
            return None;
        }
        let usable = |member: usize| terms.ignore_health || self.is_healthy(member);
        let wanted =
            |member: usize| usable(member) && tried.iter().all(|place| place.member != member);
        let refusals = Cell::new(0);
        let admitted = |member: usize| {
            if refusals.get() >= MAX_REFUSALS || self.admits(member, terms.slow_start, None) {
                return true;
            }
            refusals.set(refusals.get() + 1);
            false
        };
        let member = match &self.picker {
            Picker::Chash { ring, loads } => {
                let bound = loads.as_ref().zip(terms.balance_factor);
                let has_room =
                    |member| bound.is_none_or(|(loads, factor)| loads.has_room(member, factor));
                let first_choice = |member: usize| {
                    usable(member)
                        && self.admits(member, terms.slow_start, Some(key))
                        && has_room(member)
                };
                return ring
                    .pick(key, tried, first_choice)
                    .or_else(|| ring.pick(key, tried, usable));
            }
            Picker::RoundRobin(cut) => {
                let again = |cycle: &RoundRobin| loop {
                    let member = cycle.pick(wanted)?;
                    // Drawn again instead of passed on: else its neighbour would get its share.
                    if admitted(member) {
                        return Some(member);
                    }
                };
                match terms.ignore_health {
                    true => again(&cut.every)?,
                    false => again(&cut.healthy.load())?,
                }
            }
            Picker::LeastConn(loads) => loads
                .least(|member| wanted(member) && admitted(member))
                .or_else(|| loads.least(wanted))?,
            Picker::Ewma(cut) => {
                let time = |member: usize| self.members[member].node.connect_time();
                let pick = |lots: &Lots| {
                    lots.pick(|member| wanted(member) && admitted(member), time)
                        .or_else(|| lots.pick(wanted, time))
                };
                match terms.ignore_health {
                    true => pick(&cut.every)?,
                    false => pick(&cut.healthy.load())?,
                }
            }
        };
        Some(Place {
            member,
            address: None,
        })
    }

    /// Whether a node that has come back takes this connection already: a share that grows from
    /// nothing to all within `slow_start`. With a key it is the same keys that it keeps taking.
    fn admits(&self, member: usize, slow_start: Option<Duration>, key: Option<&[u8]>) -> bool {
        let Some(slow_start) = slow_start else {
            return true;
        };
        let node = &self.members[member].node;
        let Some(back) = node.health().back_for() else {
            return true;
        };
        let share = back.as_secs_f64() / slow_start.as_secs_f64();
        share >= 1.0
            || share
                > match key {
                    Some(key) => node.place_of_key(key),
                    None => fraction(random()),
                }
    }

    fn is_healthy(&self, member: usize) -> bool {
        self.members[member].node.health().is_healthy()
    }

    /// Whether a connection can be placed here without regard to unhealthy nodes.
    pub fn has_healthy(&self) -> bool {
        self.has_healthy.load(Ordering::Relaxed)
    }

    /// Follows a change of the health of its nodes. Unhealthy ones leave the round altogether, so
    /// that a pick never walks over them; whatever is left counts as if it were all there is, the
    /// weight 0 of a last node included (APISIX).
    pub fn follow_health(&self) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let healthy: Vec<bool> = (0..self.members.len())
            .map(|member| self.is_healthy(member))
            .collect();
        if *judged == healthy {
            return;
        }
        let no_weight = self.members.iter().all(|member| member.weight == 0);
        let ring = matches!(self.picker, Picker::Chash { .. });
        // Without a weight a node has no place on a ring.
        let pickable = |member: &Member| !ring || no_weight || member.weight > 0;
        let any = self
            .members
            .iter()
            .zip(&healthy)
            .any(|(member, &healthy)| healthy && pickable(member));
        self.has_healthy.store(any, Ordering::Relaxed);
        match &self.picker {
            Picker::Chash { loads, .. } => {
                if let Some(loads) = loads {
                    loads.set_healthy(&healthy);
                }
            }
            Picker::LeastConn(loads) => loads.set_healthy(&healthy),
            Picker::RoundRobin(cut) => {
                let weights = self.weights_of(&healthy);
                cut.healthy.store(Arc::new(RoundRobin::new(&weights)));
            }
            Picker::Ewma(cut) => {
                let weights = self.weights_of(&healthy);
                cut.healthy.store(Arc::new(Lots::new(&weights)));
            }
        }
        *judged = healthy;
    }

    /// The weights of the healthy members, reduced among themselves; 0 for the others.
    fn weights_of(&self, healthy: &[bool]) -> Vec<u32> {
        let places: Vec<usize> = (0..healthy.len()).filter(|&place| healthy[place]).collect();
        let left: Vec<Member> = places
            .iter()
            .map(|&place| self.members[place].clone())
            .collect();
        let mut weights = vec![0; healthy.len()];
        for (place, weight) in places.into_iter().zip(reduced_weights(&left)) {
            weights[place] = weight;
        }
        weights
    }

    /// Whether the balancer has to hear of every connection that begins or ends.
    pub fn counts(&self) -> bool {
        self.loads().is_some()
    }

    /// Follows a connection of a member that began or ended.
    pub fn follow_load(&self, member: usize) {
        if let Some(loads) = self.loads() {
            loads.update(member, || self.members[member].node.live());
        }
    }

    fn loads(&self) -> Option<&Loads> {
        match &self.picker {
            Picker::Chash { loads, .. } => loads.as_ref(),
            Picker::LeastConn(loads) => Some(loads),
            Picker::RoundRobin(_) | Picker::Ewma(_) => None,
        }
    }

    /// Follows a change of the addresses behind names.
    pub fn refresh(&self) {
        if let Picker::Chash { ring, .. } = &self.picker {
            ring.refresh();
        }
    }
}

/// The weights divided by their greatest common divisor, zeros ignored; all 1 where all are 0.
fn reduced_weights(members: &[Member]) -> Vec<u32> {
    let weights = || members.iter().map(|member| member.weight);
    if weights().all(|weight| weight == 0) {
        return vec![1; members.len()];
    }
    let divisor = common_divisor(weights());
    weights().map(|weight| weight / divisor).collect()
}

#[cfg(test)]
#[path = "level_tests.rs"]
mod tests;
