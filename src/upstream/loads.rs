//! How loaded the members of a level are, kept up to date with every connection that begins or
//! ends, so that no pick has to walk over all members.
//!
//! `least_conn` asks for the member with the fewest connections for its weight (a tournament tree:
//! a change or a pick costs a path from a leaf to the root), bounded consistent hashing for the
//! number of connections in all.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// No member: an empty leaf, or one that takes no part.
const NOBODY: u32 = u32::MAX;

/// Live connections of the members of one level.
#[derive(Debug)]
pub struct Loads(Mutex<State>);

#[derive(Debug)]
struct State {
    members: Vec<MemberLoad>,
    /// Connections of all members.
    total: usize,
    /// Weights of the members that take part.
    weight: u64,
    /// Winner of each subtree; 1 is the root, the leaves are the second half.
    tree: Vec<u32>,
    picks: u64,
}

#[derive(Debug)]
struct MemberLoad {
    weight: u32,
    live: usize,
    takes_part: bool,
    /// When it was picked last: among equals the one that has waited longest is next.
    picked: u64,
}

impl MemberLoad {
    /// Whether a new connection rather goes here: APISIX's score, (1 + connections) / weight,
    /// smallest first; weight 0 comes last.
    fn before(&self, other: &MemberLoad) -> bool {
        let score = |a: &MemberLoad, b: &MemberLoad| (1 + a.live as u128) * u128::from(b.weight);
        let key = |a, b| (score(a, b), a.picked);
        match (self.weight, other.weight) {
            (0, 0) => (self.live, self.picked) < (other.live, other.picked),
            (0, _) => false,
            (_, 0) => true,
            _ => key(self, other) < key(other, self),
        }
    }
}

impl State {
    fn leaves(&self) -> usize {
        self.tree.len() / 2
    }

    fn better(&self, a: u32, b: u32) -> u32 {
        match (self.members.get(a as usize), self.members.get(b as usize)) {
            (Some(left), Some(right)) if right.before(left) => b,
            (None, Some(_)) => b,
            _ => a,
        }
    }

    /// Plays again every match that a member is in.
    fn replay(&mut self, member: usize) {
        let mut at = self.leaves() + member;
        self.tree[at] = match self.members[member].takes_part {
            true => member as u32,
            false => NOBODY,
        };
        while at > 1 {
            at /= 2;
            self.tree[at] = self.better(self.tree[2 * at], self.tree[2 * at + 1]);
        }
    }
}

impl Loads {
    /// Members with these weights and no connections. Weights are at most 65,535 many.
    pub fn new(weights: impl Iterator<Item = u32>) -> Self {
        let members: Vec<MemberLoad> = weights
            .map(|weight| MemberLoad {
                weight,
                live: 0,
                takes_part: true,
                picked: 0,
            })
            .collect();
        let leaves = members.len().next_power_of_two();
        let mut state = State {
            weight: members.iter().map(|member| u64::from(member.weight)).sum(),
            members,
            total: 0,
            tree: vec![NOBODY; 2 * leaves],
            picks: 0,
        };
        for member in 0..state.members.len() {
            state.replay(member);
        }
        Loads(Mutex::new(state))
    }

    /// Asks `live` how many connections a member has now. Asking under the lock makes the last
    /// of several changes at once the one that stays.
    pub fn update(&self, member: usize, live: impl FnOnce() -> usize) {
        let mut state = self.state();
        let live = live();
        let State { members, total, .. } = &mut *state;
        let Some(load) = members.get_mut(member) else {
            return;
        };
        *total = *total - load.live + live;
        load.live = live;
        state.replay(member);
    }

    /// Which members take part from now on; where none does, all do.
    pub fn set_healthy(&self, healthy: &[bool]) {
        let mut state = self.state();
        let none = !healthy.contains(&true);
        for (member, &healthy) in healthy.iter().enumerate() {
            if state.members[member].takes_part != (healthy || none) {
                state.members[member].takes_part = healthy || none;
                state.replay(member);
            }
        }
        let part = state.members.iter().filter(|member| member.takes_part);
        state.weight = part.map(|member| u64::from(member.weight)).sum();
    }

    /// The least loaded member that is `wanted`.
    pub fn least(&self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut state = self.state();
        let mut open = vec![1];
        while let Some(best) = (0..open.len()).reduce(|a, b| {
            let (left, right) = (state.tree[open[a]], state.tree[open[b]]);
            if state.better(left, right) == left {
                a
            } else {
                b
            }
        }) {
            let top = open.swap_remove(best);
            let winner = state.tree[top];
            if winner == NOBODY {
                return None;
            }
            let member = winner as usize;
            if wanted(member) {
                state.picks += 1;
                state.members[member].picked = state.picks;
                state.replay(member);
                return Some(member);
            }
            // Who is second here lost to the winner somewhere on its way up.
            let mut at = state.leaves() + member;
            while at != top {
                open.push(at ^ 1);
                at /= 2;
            }
        }
        None
    }

    /// Whether one more connection on `member` keeps within `factor` percent of its share of all
    /// connections: HAProxy's `hash-balance-factor`, rounded up, the new connection included.
    pub fn has_room(&self, member: usize, factor: u32) -> bool {
        let state = self.state();
        let Some(load) = state.members.get(member) else {
            return false;
        };
        let all = (state.total as u128 + 1) * u128::from(load.weight) * u128::from(factor);
        let share = all.div_ceil(100 * u128::from(state.weight.max(1)));
        (load.live as u128) < share
    }

    /// A poisoned lock only means that another task panicked; every update is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lightest_is_first_and_equals_take_turns() {
        let loads = Loads::new([1, 1, 1].into_iter());
        let picks: Vec<_> = (0..6).map(|_| loads.least(|_| true).unwrap()).collect();
        let mut first: Vec<_> = picks[..3].to_vec();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2]);
        assert_eq!(picks[..3], picks[3..]);
        loads.update(1, || 4);
        loads.update(2, || 1);
        assert_eq!(loads.least(|_| true), Some(0));
        assert_eq!(loads.least(|member| member != 0), Some(2));
        assert_eq!(loads.least(|_| false), None);
    }

    #[test]
    fn nobody_is_picked_from_nobody() {
        assert_eq!(Loads::new([].into_iter()).least(|_| true), None);
    }

    #[test]
    fn room_is_a_share_of_all_connections() {
        let loads = Loads::new([1, 1, 2].into_iter());
        assert!(loads.has_room(0, 125), "an empty node has room for one");
        for (member, live) in [(0, 25), (1, 20), (2, 55)] {
            loads.update(member, || live);
        }
        // 101 connections: shares of 25.25, 25.25 and 50.5, times 1.25.
        for member in [0, 1, 2] {
            assert!(loads.has_room(member, 125));
        }
        loads.update(0, || 32);
        assert!(!loads.has_room(0, 101));
        loads.set_healthy(&[true, false, true]);
        assert!(loads.has_room(0, 101), "fewer nodes have larger shares");
    }

    proptest! {
        /// The tree finds what a walk over all members finds.
        #[test]
        fn as_a_walk(
            nodes in prop::collection::vec((0_u32..4, 0_usize..9, any::<bool>(), any::<bool>()), 1..40)
        ) {
            let loads = Loads::new(nodes.iter().map(|node| node.0));
            for (member, node) in nodes.iter().enumerate() {
                loads.update(member, || node.1);
            }
            let healthy: Vec<bool> = nodes.iter().map(|node| node.2).collect();
            loads.set_healthy(&healthy);
            let none = !healthy.contains(&true);
            let score = |member: usize| match nodes[member].0 {
                0 => (f64::INFINITY, nodes[member].1),
                weight => ((1 + nodes[member].1) as f64 / f64::from(weight), 0),
            };
            let expected = (0..nodes.len())
                .filter(|&member| (healthy[member] || none) && nodes[member].3)
                .map(score)
                .min_by(|a, b| a.partial_cmp(b).unwrap());
            let found = loads.least(|member| nodes[member].3).map(score);
            prop_assert_eq!(found, expected);
        }
    }
}
