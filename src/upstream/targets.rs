//! The addresses that one connection tries, in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::level::{Level, Terms, Wish};
use super::node::Node;
use super::ring::Place;

/// One address to dial.
#[derive(Debug, Clone)]
pub struct Target {
    /// The node that the address belongs to.
    pub node: Arc<Node>,
    /// Where to connect.
    pub address: SocketAddr,
}

/// Walks the levels of an upstream for one connection, as APISIX does: each node at most once,
/// clockwise from the key on a ring, the next lower priority when a level is used up, `retries`
/// further tries after the first (default: every other address there is).
///
/// Unhealthy nodes are left out, unless every node of the upstream is unhealthy or it is the only
/// one.
///
/// A node name with several addresses is tried at each of them before the next node. With one
/// address in all, that one is dialled again for each retry.
pub struct Targets<'a> {
    levels: &'a [Level],
    key: &'a [u8],
    level: usize,
    tried: Vec<Place>,
    pending: VecDeque<Target>,
    tries_left: usize,
    only: Option<Target>,
    skipped: Option<SocketAddr>,
    terms: Terms,
}

impl<'a> Targets<'a> {
    /// `addresses`: how many there are in all, over all nodes.
    pub(super) fn new(
        levels: &'a [Level],
        key: &'a [u8],
        retries: Option<u32>,
        addresses: usize,
        terms: Terms,
    ) -> Self {
        let others = addresses.saturating_sub(1);
        let only_node = match levels {
            [level] => match &*level.members {
                [member] => Some(&member.node),
                _ => None,
            },
            _ => None,
        };
        // APISIX: an upstream of one node uses it whatever its weight, and again and again.
        let only = only_node.filter(|_| others == 0).and_then(|node| {
            let address = *node.addresses().first()?;
            let node = node.clone();
            Some(Target { node, address })
        });
        Targets {
            levels,
            key,
            level: 0,
            tried: Vec::new(),
            pending: VecDeque::new(),
            tries_left: 1 + retries.map_or(others, |retries| retries as usize),
            only,
            skipped: None,
            terms,
        }
    }

    /// Goes on after this address, which was the first one and has been tried.
    pub fn after_first(mut self, address: SocketAddr) -> Self {
        self.tries_left = self.tries_left.saturating_sub(1);
        self.skipped = Some(address);
        self
    }

    fn refill(&mut self) {
        while self.pending.is_empty() {
            let Some(level) = self.levels.get(self.level) else {
                return;
            };
            let wish = Wish {
                key: self.key,
                tried: &self.tried,
                terms: self.terms,
            };
            let Some(place) = level.pick(&wish) else {
                self.level += 1;
                self.tried.clear();
                continue;
            };
            self.tried.push(place);
            let node = &level.members[place.member].node;
            let addresses = match (place.address, self.key) {
                (Some(address), _) => vec![address],
                (None, []) => node.addresses_in_turn(),
                (None, key) => node.addresses_for_key(key),
            };
            self.pending
                .extend(addresses.into_iter().map(|address| Target {
                    node: node.clone(),
                    address,
                }));
        }
    }
}

impl Iterator for Targets<'_> {
    type Item = Target;

    fn next(&mut self) -> Option<Target> {
        self.tries_left = self.tries_left.checked_sub(1)?;
        if let Some(only) = &self.only {
            return Some(only.clone());
        }
        loop {
            self.refill();
            let target = self.pending.pop_front()?;
            if self.skipped != Some(target.address) {
                return Some(target);
            }
        }
    }
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
