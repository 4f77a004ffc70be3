//! The addresses that one connection tries, in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::{option, vec};

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
    /// Places of this level that were tried, without `place`.
    tried: Vec<Place>,
    /// The one that is being tried. Most connections need no other, and then nothing is allocated.
    place: Option<Place>,
    pending: Addresses,
    tries_left: usize,
    only: Option<Target>,
    skipped: Option<SocketAddr>,
    terms: Terms,
}

/// Addresses of one node that are to be tried.
enum Addresses {
    One(option::IntoIter<SocketAddr>),
    Several(vec::IntoIter<SocketAddr>),
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
            place: None,
            pending: Addresses::One(None.into_iter()),
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

    /// The next address of the node that is being tried.
    fn pending(&mut self) -> Option<Target> {
        let address = match &mut self.pending {
            Addresses::One(address) => address.next(),
            Addresses::Several(addresses) => addresses.next(),
        }?;
        let member = self.place?.member;
        let node = self.levels.get(self.level)?.members[member].node.clone();
        Some(Target { node, address })
    }

    /// Goes on to the next node. False when there is no other.
    fn next_place(&mut self) -> bool {
        self.tried.extend(self.place.take());
        while let Some(level) = self.levels.get(self.level) {
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
            let node = &level.members[place.member].node;
            self.pending = match (place.address, self.key) {
                (Some(address), _) => Addresses::One(Some(address).into_iter()),
                (None, []) => Addresses::Several(node.addresses_in_turn().into_iter()),
                (None, key) => Addresses::Several(node.addresses_for_key(key).into_iter()),
            };
            self.place = Some(place);
            return true;
        }
        false
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
            match self.pending() {
                Some(target) if self.skipped != Some(target.address) => return Some(target),
                Some(_) => {}
                None if self.next_place() => {}
                None => return None,
            }
        }
    }
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
