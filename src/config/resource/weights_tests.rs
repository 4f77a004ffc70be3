use std::sync::Arc;

use super::*;
use crate::config::diagnostic::Origin;
use crate::config::resource::testing::Judged;
use crate::config::resource::upstream::{self, NamedUpstream};
use crate::config::schema::upstream::UPSTREAM;

#[test]
fn common_divisors() {
    assert_eq!(common_divisor([2, 4, 6]), 2);
    assert_eq!(common_divisor([0, 100, 50]), 50);
    assert_eq!(common_divisor([0, 0]), 1);
    assert_eq!(common_divisor([]), 1);
    assert_eq!(common_divisor([7]), 7);
    assert_eq!(common_divisor([u32::MAX, u32::MAX]), u32::MAX);
}

#[test]
fn weights_that_no_ring_can_have_are_scaled_down_and_others_stay() {
    let fitted = |weights: &[u32]| -> Vec<u32> {
        let resources = resources(weights);
        let mut nodes = resources.upstreams[0].upstream.nodes.clone();
        fit_to_ring(&mut nodes);
        nodes.iter().map(|node| node.weight).collect()
    };
    assert_eq!(fitted(&[60, 20, 1]), [60, 20, 1]);
    assert_eq!(
        fitted(&[60_000, 20_000]),
        [60_000, 20_000],
        "a ring of 3 and 1"
    );
    let scaled = fitted(&[65_535, 32_767, 1, 0]);
    assert_eq!(scaled[2..], [1, 0]);
    assert_eq!(scaled[0] / scaled[1], 2);
    let sum: u32 = scaled.iter().sum();
    assert!(u64::from(sum) <= MAX_RING_WEIGHT + 4, "{scaled:?}");
}

fn resources(weights: &[u32]) -> Resources {
    let nodes: Vec<String> = weights
        .iter()
        .enumerate()
        .map(|(n, weight)| format!("'10.0.0.{n}:1883': {weight}"))
        .collect();
    let text = format!(
        "{{type: chash, key: mqtt_client_id, nodes: {{{}}}}}",
        nodes.join(", ")
    );
    let judged = Judged::new(&text, &UPSTREAM, |node, _, at, context| {
        upstream::build(node, at, context)
    });
    Resources {
        upstreams: vec![Arc::new(NamedUpstream {
            id: "1".to_string(),
            upstream: judged.value,
            position: Origin::default(),
        })],
        ..Resources::default()
    }
}

fn warned(old: &[u32], new: &[u32]) -> bool {
    !gcd_change_warnings(&resources(old), &resources(new)).is_empty()
}

#[test]
fn edits_that_move_most_clients_are_told() {
    assert!(warned(&[100, 100, 100], &[100, 100, 99]));
    assert!(warned(&[100, 100, 99], &[100, 100, 100]));
    assert_eq!(
        gcd_change_warnings(&resources(&[100, 100]), &resources(&[100, 99])),
        [
            "upstream 1: the common divisor of the weights changed from 100 to 1: only 2 of 199 \
             parts of the hash ring stay, most clients move to other nodes"
        ]
    );
}

#[test]
fn harmless_edits_are_not() {
    assert!(!warned(&[1, 1], &[2, 2]));
    assert!(!warned(&[1, 1], &[2, 1]));
    assert!(!warned(&[2, 2], &[2, 1]));
    assert!(!warned(&[1, 2, 3], &[2, 4, 6]));
    assert!(!warned(&[100, 100], &[100, 0]));
    assert!(!warned(&[5], &[5, 5]));
    assert!(!warned(&[7, 7], &[7, 7]));
}

#[test]
fn rings_are_bounded() {
    let text = "{type: chash, key: remote_addr, nodes: {'a:1': 25000, 'b:1': 1}}";
    let judged = Judged::new(text, &UPSTREAM, |node, _, at, context| {
        upstream::build(node, at, context)
    });
    assert_eq!(
        judged.messages,
        [
            "x.nodes: the hash ring would need 4000160 points (160 for each unit of weight after \
             division by the common divisor 1; at most 4000000); use weights with a common divisor"
        ]
    );
    // The same ratio with a common divisor, and weights that round robin does not mind.
    for text in [
        "{type: chash, key: remote_addr, nodes: {'a:1': 24999, 'b:1': 1}}",
        "{type: chash, key: remote_addr, nodes: {'a:1': 4000000000, 'b:1': 4000000000}}",
        "{nodes: {'a:1': 25000, 'b:1': 1}}",
    ] {
        let judged = Judged::new(text, &UPSTREAM, |node, _, at, context| {
            upstream::build(node, at, context)
        });
        assert!(judged.messages.is_empty(), "{:?}", judged.messages);
    }
}
