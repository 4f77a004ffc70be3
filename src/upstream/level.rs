//! One priority level of an upstream: its nodes and the balancer over them.

use std::sync::Arc;

use super::node::Node;
use super::ring::{Place, Ring};
use super::round_robin::RoundRobin;
use crate::config::resource::upstream::Balancer;
use crate::config::resource::weights::common_divisor;
use crate::config::settings::RingIdentity;

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
}

#[derive(Debug)]
enum Picker {
    Chash(Ring),
    RoundRobin(RoundRobin),
    LeastConn,
}

impl Level {
    /// Builds the balancer over `members`. Where every weight is 0 all count alike, as in APISIX's
    /// round robin (its chash closes every connection then).
    pub fn new(members: Vec<Member>, balancer: Balancer, identity: RingIdentity) -> Self {
        let weights = reduced_weights(&members);
        let picker = match balancer {
            Balancer::Chash => {
                let nodes = members.iter().map(|member| member.node.clone());
                Picker::Chash(Ring::new(nodes.zip(weights).collect(), identity))
            }
            Balancer::RoundRobin => Picker::RoundRobin(RoundRobin::new(&weights)),
            Balancer::LeastConn => Picker::LeastConn,
        };
        Level { members, picker }
    }

    /// The next place to try for `key` after those in `tried`, or `None` when the level has no
    /// other. Only a ring looks at the key.
    pub fn pick(&self, key: &[u8], tried: &[Place]) -> Option<Place> {
        let untried = |member: usize| tried.iter().all(|place| place.member != member);
        let member = match &self.picker {
            Picker::Chash(ring) => return ring.pick(key, tried),
            Picker::RoundRobin(cycle) => cycle.pick(untried)?,
            Picker::LeastConn => (0..self.members.len())
                .filter(|&member| untried(member))
                .min_by(|&a, &b| self.load(a).total_cmp(&self.load(b)))?,
        };
        Some(Place {
            member,
            address: None,
        })
    }

    /// APISIX's least_conn score: (1 + connections) / weight; weight 0 comes last.
    fn load(&self, member: usize) -> f64 {
        let Member { node, weight } = &self.members[member];
        (1 + node.live()) as f64 / f64::from(*weight)
    }

    /// Follows a change of the addresses behind names.
    pub fn refresh(&self) {
        if let Picker::Chash(ring) = &self.picker {
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
mod tests {
    use super::super::node::InFlight;
    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let address = |index: usize| format!("10.0.0.{}:1883", index + 1).parse().unwrap();
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Member {
                node: Arc::new(Node::fixed(address(index))),
                weight,
            })
            .collect()
    }

    #[test]
    fn weights_are_reduced_as_apisix_does_it() {
        assert_eq!(reduced_weights(&members(&[2, 4, 6])), [1, 2, 3]);
        assert_eq!(reduced_weights(&members(&[100, 0, 100])), [1, 0, 1]);
        assert_eq!(reduced_weights(&members(&[0, 0])), [1, 1]);
        assert_eq!(reduced_weights(&members(&[10, 9])), [10, 9]);
    }

    #[test]
    fn least_conn_takes_the_lightest_node_and_weight_zero_last() {
        let level = Level::new(members(&[3, 1, 0]), Balancer::LeastConn, RingIdentity::Name);
        let mut live = Vec::new();
        let mut picks = Vec::new();
        for _ in 0..4 {
            let place = level.pick(b"", &[]).unwrap();
            picks.push(place.member);
            live.push(InFlight::on(level.members[place.member].node.clone()));
        }
        assert_eq!(
            picks,
            [0, 0, 0, 1],
            "three to the node of weight 3, then a tie goes on"
        );
        let place = |member| Place {
            member,
            address: None,
        };
        assert_eq!(level.pick(b"", &[place(0), place(1)]), Some(place(2)));
        assert_eq!(level.pick(b"", &[place(0), place(1), place(2)]), None);
    }

    #[test]
    fn all_weights_zero_count_alike() {
        for balancer in [Balancer::Chash, Balancer::RoundRobin, Balancer::LeastConn] {
            let level = Level::new(members(&[0, 0]), balancer, RingIdentity::Name);
            assert!(level.pick(b"foo", &[]).is_some(), "{balancer:?}");
        }
    }
}
