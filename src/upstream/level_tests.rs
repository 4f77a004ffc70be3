//! Picking within one level.

use super::*;
use crate::config::resource::checks::Limits;
use crate::config::settings::RingIdentity;
use crate::upstream::health::carried::Carried;
use crate::upstream::health::{Failure, Seen};
use crate::upstream::node::InFlight;

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
        terms: Terms::default(),
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
        let level = Level::new(members(&[1, 1, 1, 0]), balancer, RingIdentity::Name, false);
        knock_out(&level.members[0].node);
        knock_out(&level.members[2].node);
        level.follow_health();
        for n in 0..50_u32 {
            let place = pick(&level, &n.to_le_bytes(), &[]).unwrap();
            assert_eq!(place.member, 1, "{balancer:?}");
        }
        assert!(level.has_healthy());
        knock_out(&level.members[1].node);
        level.follow_health();
        // Only on a ring has the last node, of weight 0, no place at all.
        let left = pick(&level, b"foo", &[]).map(|place| place.member);
        match balancer {
            Balancer::Chash => assert_eq!((left, level.has_healthy()), (None, false)),
            _ => assert_eq!((left, level.has_healthy()), (Some(3), true), "{balancer:?}"),
        }
        knock_out(&level.members[3].node);
        level.follow_health();
        assert_eq!(pick(&level, b"foo", &[]), None);
        let mut tried = Vec::new();
        while let Some(place) = level.pick(&Wish {
            key: b"foo",
            tried: &tried,
            terms: Terms {
                ignore_health: true,
                ..Terms::default()
            },
        }) {
            tried.push(place);
        }
        assert!(tried.len() >= 3, "{balancer:?}: {tried:?}");
    }
}

#[test]
fn on_a_ring_healthy_nodes_keep_their_keys() {
    let level = Level::new(
        members(&[1, 1, 1]),
        Balancer::Chash,
        RingIdentity::Name,
        false,
    );
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
    let level = Level::new(
        members(&[3, 1, 0]),
        Balancer::LeastConn,
        RingIdentity::Name,
        false,
    );
    let mut live = Vec::new();
    let mut picks = Vec::new();
    for _ in 0..4 {
        let place = pick(&level, b"", &[]).unwrap();
        picks.push(place.member);
        live.push(InFlight::on(level.members[place.member].node.clone()));
        level.follow_load(place.member);
    }
    assert_eq!(
        picks,
        [0, 0, 1, 0],
        "three to the node of weight 3; a tie goes to the one that has waited longer"
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
        let level = Level::new(members(&[0, 0]), balancer, RingIdentity::Name, false);
        assert!(pick(&level, b"foo", &[]).is_some(), "{balancer:?}");
    }
}

/// `count` nodes of weight 1, one of which was unhealthy and has been back for so long that the
/// time that a test takes makes no difference.
fn with_one_back(count: usize, balancer: Balancer) -> Level {
    let level = Level::new(
        members(&vec![1; count]),
        balancer,
        RingIdentity::Name,
        false,
    );
    knock_out(&level.members[0].node);
    level.follow_health();
    let health = level.members[0].node.health();
    health.recover();
    health.restore(&Carried {
        changed_ms: Some(100_000),
        ..health.carried()
    });
    level.follow_health();
    level
}

#[test]
fn a_node_that_is_back_gets_a_growing_share() {
    for balancer in [
        Balancer::Chash,
        Balancer::RoundRobin,
        Balancer::LeastConn,
        Balancer::Ewma,
    ] {
        let level = with_one_back(3, balancer);
        let share = |slow_start: Duration| {
            let picks = (0..3000_u32).map(|n| {
                let wish = Wish {
                    key: &n.to_le_bytes(),
                    tried: &[],
                    terms: Terms {
                        slow_start: Some(slow_start),
                        ..Terms::default()
                    },
                };
                level.pick(&wish).unwrap().member
            });
            picks.filter(|&member| member == 0).count()
        };
        assert!(
            share(Duration::from_secs(36_000_000)) < 30,
            "{balancer:?}: at first"
        );
        let full = share(Duration::from_nanos(1));
        assert!((700..1400).contains(&full), "{balancer:?}: at last {full}");
        // Half of the time has passed when the node has been back for as long as is left.
        let back = level.members[0].node.health().back_for().unwrap();
        let half = share(back * 2);
        assert!((350..850).contains(&half), "{balancer:?}: half way {half}");
    }
}

#[test]
fn on_a_ring_the_share_that_comes_home_only_grows() {
    let level = with_one_back(3, Balancer::Chash);
    let at_home = |slow_start: Duration| -> Vec<u32> {
        (0..2000_u32)
            .filter(|n| {
                let terms = Terms {
                    slow_start: Some(slow_start),
                    ..Terms::default()
                };
                let wish = Wish {
                    key: &n.to_le_bytes(),
                    tried: &[],
                    terms,
                };
                level.pick(&wish).unwrap().member == 0
            })
            .collect()
    };
    let back = level.members[0].node.health().back_for().unwrap();
    let (some, more) = (at_home(back * 8), at_home(back * 2));
    assert!(some.len() < more.len());
    assert!(some.iter().all(|key| more.contains(key)));
}

#[test]
fn when_all_nodes_are_coming_back_nobody_is_refused() {
    for balancer in [
        Balancer::Chash,
        Balancer::RoundRobin,
        Balancer::LeastConn,
        Balancer::Ewma,
    ] {
        let level = Level::new(members(&[1; 50]), balancer, RingIdentity::Name, false);
        for member in &level.members {
            knock_out(&member.node);
            member.node.health().recover();
        }
        level.follow_health();
        let terms = Terms {
            slow_start: Some(Duration::from_secs(3600)),
            ..Terms::default()
        };
        let mut tried = Vec::new();
        while let Some(place) = level.pick(&Wish {
            key: b"foo",
            tried: &tried,
            terms,
        }) {
            tried.push(place);
        }
        assert_eq!(tried.len(), 50, "{balancer:?}");
    }
}

/// Where each of `ids` goes when all of them connect and stay; the spread is the largest number
/// of connections of a node divided by the mean.
fn placed(level: &Level, ids: u32, factor: Option<u32>) -> (Vec<usize>, f64) {
    let terms = Terms {
        balance_factor: factor,
        ..Terms::default()
    };
    let mut live = Vec::new();
    let mut places = Vec::new();
    for id in 0..ids {
        let key = format!("client-{id}");
        let wish = Wish {
            key: key.as_bytes(),
            tried: &[],
            terms,
        };
        let member = level.pick(&wish).unwrap().member;
        places.push(member);
        live.push(InFlight::on(level.members[member].node.clone()));
        level.follow_load(member);
    }
    let nodes = level.members.len();
    let loads = (0..nodes).map(|member| level.members[member].node.live());
    let mean = f64::from(ids) / nodes as f64;
    (places, loads.max().unwrap() as f64 / mean)
}

/// The spread of 100,000 client ids over 3, 10 and 100 nodes, without and with a bound, and the
/// share of ids that move when the last node joins. The numbers are printed with `--nocapture`.
#[test]
fn spread_and_moves_of_100_000_ids() {
    const IDS: u32 = 100_000;
    let ring = |count: usize, bounded| {
        let members = members(&vec![1; count]);
        Level::new(members, Balancer::Chash, RingIdentity::Name, bounded)
    };
    for count in [3, 10, 100] {
        let (free, free_spread) = placed(&ring(count, false), IDS, None);
        for factor in [105, 125, 150] {
            let (_, spread) = placed(&ring(count, true), IDS, Some(factor));
            // Rounding up adds one connection at most.
            let bound = f64::from(factor) / 100.0 + count as f64 / f64::from(IDS);
            println!("{count} nodes, factor {factor}: max/mean {spread:.3}");
            assert!(spread <= bound, "{count} nodes: {spread} above {bound}");
        }
        let (joined, _) = placed(&ring(count + 1, false), IDS, None);
        let moved = free.iter().zip(&joined).filter(|(a, b)| a != b).count();
        let to_the_new = joined.iter().filter(|&&node| node == count).count();
        let share = moved as f64 / f64::from(IDS);
        println!("{count} nodes: max/mean {free_spread:.3}, {share:.4} move when one joins");
        assert_eq!(moved, to_the_new, "nobody moves between the old nodes");
        assert!(free_spread < 1.35, "{count} nodes: {free_spread}");
        assert!(share < 1.35 / (count + 1) as f64, "{count} nodes: {share}");
    }
}
