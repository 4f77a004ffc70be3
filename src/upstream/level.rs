//! One priority level of an upstream: its nodes and the balancer over them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

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
    has_healthy: AtomicBool,
    /// What the balancer follows: which members were healthy when it was told last.
    judged: Mutex<Vec<bool>>,
}

#[derive(Debug)]
enum Picker {
    Chash(Ring),
    RoundRobin {
        every: RoundRobin,
        healthy: ArcSwap<RoundRobin>,
    },
    LeastConn,
}

/// What one pick is made for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The hash key; only a ring looks at it.
    pub key: &'a [u8],
    /// Places that were tried before.
    pub tried: &'a [Place],
    /// Unhealthy nodes are as good as others.
    pub ignore_health: bool,
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
            Balancer::RoundRobin => Picker::RoundRobin {
                every: RoundRobin::new(&weights),
                healthy: ArcSwap::from_pointee(RoundRobin::new(&[])),
            },
            Balancer::LeastConn => Picker::LeastConn,
        };
        let level = Level {
            members,
            picker,
            has_healthy: AtomicBool::new(true),
            judged: Mutex::default(),
        };
        level.follow_health();
        level
    }

    /// The next place to try, or `None` when the level has no other.
    pub fn pick(&self, wish: &Wish<'_>) -> Option<Place> {
        let Wish {
            key,
            tried,
            ignore_health,
        } = *wish;
        if !ignore_health && !self.has_healthy() {
            return None;
        }
        let untried = |member: usize| tried.iter().all(|place| place.member != member);
        let usable = |member: usize| ignore_health || self.is_healthy(member);
        let wanted = |member: usize| usable(member) && untried(member);
        let member = match &self.picker {
            Picker::Chash(ring) => return ring.pick(key, tried, usable),
            Picker::RoundRobin { every, .. } if ignore_health => every.pick(untried)?,
            Picker::RoundRobin { healthy, .. } => healthy.load().pick(wanted)?,
            Picker::LeastConn => (0..self.members.len())
                .filter(|&member| wanted(member))
                .min_by(|&a, &b| self.load(a).total_cmp(&self.load(b)))?,
        };
        Some(Place {
            member,
            address: None,
        })
    }

    fn is_healthy(&self, member: usize) -> bool {
        self.members[member].node.health().is_healthy()
    }

    /// Whether a connection can be placed here without regard to unhealthy nodes.
    pub fn has_healthy(&self) -> bool {
        self.has_healthy.load(Ordering::Relaxed)
    }

    fn find_healthy(&self) -> bool {
        let no_weight = self.members.iter().all(|member| member.weight == 0);
        let ring = matches!(self.picker, Picker::Chash(_));
        // Without a weight a node has no place on a ring.
        let pickable = |member: &Member| !ring || no_weight || member.weight > 0;
        let mut members = self.members.iter();
        members.any(|member| pickable(member) && member.node.health().is_healthy())
    }

    /// Follows a change of the health of its nodes. Unhealthy ones leave the round altogether, so
    /// that a pick never walks over them; whatever is left counts as if it were all there is, the
    /// weight 0 of a last node included (APISIX).
    pub fn follow_health(&self) {
        let members = self.members.iter();
        let healthy: Vec<bool> = members
            .map(|member| member.node.health().is_healthy())
            .collect();
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if *judged == healthy {
            return;
        }
        *judged = healthy;
        self.has_healthy
            .store(self.find_healthy(), Ordering::Relaxed);
        let Picker::RoundRobin { healthy, .. } = &self.picker else {
            return;
        };
        let (places, left): (Vec<usize>, Vec<Member>) = (0..self.members.len())
            .filter(|&member| self.is_healthy(member))
            .map(|member| (member, self.members[member].clone()))
            .unzip();
        let mut weights = vec![0; self.members.len()];
        for (place, weight) in places.into_iter().zip(reduced_weights(&left)) {
            weights[place] = weight;
        }
        healthy.store(Arc::new(RoundRobin::new(&weights)));
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
    use super::super::health::{Failure, Seen};
    use super::super::node::InFlight;
    use super::*;
    use crate::config::resource::checks::Limits;

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

    fn pick(level: &Level, key: &[u8], tried: &[Place]) -> Option<Place> {
        level.pick(&Wish {
            key,
            tried,
            ignore_health: false,
        })
    }

    fn knock_out(node: &Node) {
        let limits = Limits {
            tcp: 1,
            timeouts: 0,
            http: 0,
            mqtt: 0,
        };
        node.health().failed(Seen::Probe, Failure::Tcp, &limits);
    }

    #[test]
    fn unhealthy_nodes_are_passed_over_unless_health_is_ignored() {
        for balancer in [Balancer::Chash, Balancer::RoundRobin, Balancer::LeastConn] {
            let level = Level::new(members(&[1, 1, 1, 0]), balancer, RingIdentity::Name);
            knock_out(&level.members[0].node);
            knock_out(&level.members[2].node);
            level.follow_health();
            for n in 0..50_u32 {
                let place = pick(&level, &n.to_le_bytes(), &[]).unwrap();
                assert_eq!(place.member, 1, "{balancer:?}");
            }
            assert!(level.has_healthy());
            let mut tried = Vec::new();
            while let Some(place) = level.pick(&Wish {
                key: b"foo",
                tried: &tried,
                ignore_health: true,
            }) {
                tried.push(place);
            }
            assert!(tried.len() >= 3, "{balancer:?}: {tried:?}");
            knock_out(&level.members[1].node);
            level.follow_health();
            // Only on a ring has the last node, of weight 0, no place at all.
            let left = pick(&level, b"foo", &[]).map(|place| place.member);
            match balancer {
                Balancer::Chash => assert_eq!((left, level.has_healthy()), (None, false)),
                _ => assert_eq!((left, level.has_healthy()), (Some(3), true), "{balancer:?}"),
            }
        }
    }

    #[test]
    fn on_a_ring_healthy_nodes_keep_their_keys() {
        let level = Level::new(members(&[1, 1, 1]), Balancer::Chash, RingIdentity::Name);
        let places = || -> Vec<usize> {
            (0..2000_u32)
                .map(|n| pick(&level, &n.to_le_bytes(), &[]).unwrap().member)
                .collect()
        };
        let before = places();
        knock_out(&level.members[1].node);
        level.follow_health();
        for (before, after) in before.into_iter().zip(places()) {
            match before {
                1 => assert_ne!(after, 1),
                _ => assert_eq!(after, before),
            }
        }
    }

    #[test]
    fn least_conn_takes_the_lightest_node_and_weight_zero_last() {
        let level = Level::new(members(&[3, 1, 0]), Balancer::LeastConn, RingIdentity::Name);
        let mut live = Vec::new();
        let mut picks = Vec::new();
        for _ in 0..4 {
            let place = pick(&level, b"", &[]).unwrap();
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
        assert_eq!(pick(&level, b"", &[place(0), place(1)]), Some(place(2)));
        assert_eq!(pick(&level, b"", &[place(0), place(1), place(2)]), None);
    }

    #[test]
    fn all_weights_zero_count_alike() {
        for balancer in [Balancer::Chash, Balancer::RoundRobin, Balancer::LeastConn] {
            let level = Level::new(members(&[0, 0]), balancer, RingIdentity::Name);
            assert!(pick(&level, b"foo", &[]).is_some(), "{balancer:?}");
        }
    }
}
