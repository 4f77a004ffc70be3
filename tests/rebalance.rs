//! Live connections come home to a node that is back or was added: those that belong there, at the
//! pace of the upstream, and no others.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::crowd::ids;
use support::process::more_open_files;
use support::setup::start;
use support::{Brokers, Client, Connect, Crowd, End, Ring, SOON, expect_pace, wait_until};

/// DISCONNECT "use another server".
const ANOTHER: &[u8] = &[0xe0, 2, 0x9c, 0];

fn upstream(nodes: &str, more: &str) -> String {
    format!("type: chash, key: mqtt_client_id, nodes: {nodes}{more}")
}

#[test]
fn a_node_that_is_added_gets_the_clients_whose_place_it_is_at_the_rate() {
    more_open_files();
    let brokers = Brokers::mqtt(3);
    let nodes = brokers.nodes();
    let ids = ids(1500);
    let mut setup = start(&upstream(
        &brokers.weighted(&[1, 1, 0]),
        ", rebalance: {rate: 100}",
    ));
    let crowd = Crowd::connect(setup.port, &ids);
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    let ring = Ring::equal(&nodes);
    let moving: BTreeSet<usize> = (0..ids.len())
        .filter(|n| ring.pick(&ids[*n]) == 2)
        .collect();
    let begin = Instant::now();
    setup.edit(&upstream(&brokers.equal(), ", rebalance: {rate: 100}"));
    let label = format!("node=\"{}\"", nodes[2]);
    wait_until("the gauge", SOON, || {
        let labels = ["upstream=\"route/1\"", &label];
        (setup.value("mqtt_proxy_rebalance_remaining", &labels) > 0.0).then_some(())
    });
    let ended = crowd.wait_for(moving.len(), Duration::from_secs(60));
    expect_pace(&ended, begin, 100.0, 16);
    let who: BTreeSet<usize> = ended.iter().map(|ended| ended.client).collect();
    assert_eq!(who, moving, "those whose place it is, and no others");
    for ended in &ended {
        let told = if ended.client % 2 == 0 { ANOTHER } else { &[] };
        assert_eq!((&*ended.got, ended.end), (told, End::Fin));
    }
    let before = brokers.accepted();
    assert_eq!(before[2], 0);
    for client in &moving {
        let mut client = Client::mqtt(setup.port, &Connect::v5(&ids[*client]));
        client.expect_alive();
    }
    assert_eq!(brokers.accepted(), [before[0], before[1], moving.len()]);
    crowd.expect_nobody_leaves(Duration::from_millis(1500));
    assert_eq!(setup.ended("rebalanced"), moving.len() as f64);
    let left = setup.value("mqtt_proxy_rebalance_remaining", &[]);
    assert_eq!(left, 0.0);
}

#[test]
fn clients_of_a_node_that_was_down_come_home_once_it_is_healthy() {
    let mut brokers = Brokers::mqtt(3);
    let nodes = brokers.nodes();
    let ring = Ring::equal(&nodes);
    let ids = ids(150);
    let checks = ", checks: {active: {type: tcp, healthy: {successes: 1, interval: 1}, \
                  unhealthy: {tcp_failures: 1, interval: 1}}}, rebalance: {rate: 500}";
    let setup = start(&upstream(&brokers.equal(), checks));
    brokers.0[1].stop_listening();
    setup.wait_until_healthy(&nodes[1], false);
    let crowd = Crowd::connect(setup.port, &ids);
    let homeless: BTreeSet<usize> = (0..ids.len())
        .filter(|n| ring.pick(&ids[*n]) == 1)
        .collect();
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    brokers.0[1].listen();
    setup.wait_until_healthy(&nodes[1], true);
    let ended = crowd.wait_for(homeless.len(), SOON);
    let who: BTreeSet<usize> = ended.iter().map(|ended| ended.client).collect();
    assert_eq!(who, homeless);
    crowd.expect_nobody_leaves(Duration::from_millis(1500));
}

#[test]
fn without_rebalance_nobody_moves_and_the_next_edit_stops_it() {
    let brokers = Brokers::mqtt(3);
    let ids = ids(300);
    let mut setup = start(&upstream(&brokers.weighted(&[1, 1, 0]), ""));
    // Their keys are not kept: `rebalance` was not there when they came.
    let old = Crowd::connect(setup.port, &ids[..150]);
    setup.edit(&upstream(
        &brokers.weighted(&[1, 1, 0]),
        ", rebalance: {rate: 10}",
    ));
    let new = Crowd::connect(setup.port, &ids[150..]);
    setup.edit(&upstream(&brokers.equal(), ", rebalance: {rate: 10}"));
    new.wait_for(5, SOON);
    setup.edit(&upstream(&brokers.equal(), ""));
    new.wait_until_still();
    assert!(new.ended().len() < 30, "{}", new.ended().len());
    new.expect_nobody_leaves(Duration::from_millis(700));
    setup.edit(&upstream(
        &brokers.weighted(&[1, 1, 0]),
        ", rebalance: {rate: 500}",
    ));
    new.expect_nobody_leaves(Duration::from_millis(500));
    // The node is gone again before anybody has moved.
    assert!(old.ended().is_empty());
}
