//! Which addresses a connection tries, and in which order.

use crate::config::resource::upstream::{
    Balancer, HashKey, Host, Upstream as Config, UpstreamNode,
};
use crate::upstream::{Context, Shared, Upstream};

fn node(address: &str, weight: u32, priority: i64) -> UpstreamNode {
    let (host, port) = address.rsplit_once(':').unwrap();
    let host = match host.parse() {
        Ok(ip) => Host::Ip(ip),
        Err(_) => Host::Name(host.to_owned()),
    };
    UpstreamNode {
        host,
        port: port.parse().unwrap(),
        weight,
        priority,
    }
}

fn config(balancer: Balancer, nodes: Vec<UpstreamNode>, retries: Option<u32>) -> Config {
    Config {
        name: None,
        nodes,
        balancer,
        hash_key: HashKey::Address,
        retries,
        retry_timeout: None,
        timeout: None,
        scheme: Default::default(),
        upstream_tls: Default::default(),
        checks: None,
        slow_start: None,
        balance_factor: None,
        drain: None,
        rebalance: None,
        discovery: None,
    }
}

fn order(config: &Config, key: &[u8]) -> Vec<String> {
    let shared = Shared::default();
    // The registry forgets a name that nobody holds.
    let broker = shared.names.get("broker");
    broker.set(["10.0.0.8", "10.0.0.9"].map(|ip| ip.parse().unwrap()));
    let tls = crate::tls::Shared::offline().unwrap();
    let context = Context {
        shared: &shared,
        tls: &tls,
        ssls: &[],
    };
    let upstream = Upstream::build("1".to_owned(), config, &context, None);
    let targets = upstream.targets(key);
    targets.map(|target| target.address.to_string()).collect()
}

#[test]
fn every_node_once_in_ring_order() {
    let nodes = (1883..1886)
        .map(|port| node(&format!("127.0.0.1:{port}"), 1, 0))
        .collect();
    assert_eq!(
        order(&config(Balancer::Chash, nodes, None), b"foo"),
        ["127.0.0.1:1883", "127.0.0.1:1884", "127.0.0.1:1885"],
        "vector V1 of APISIX"
    );
}

#[test]
fn retries_bound_the_tries() {
    let nodes = || vec![node("127.0.0.1:1", 1, 0), node("127.0.0.1:2", 1, 0)];
    let tries = |retries| order(&config(Balancer::RoundRobin, nodes(), retries), b"").len();
    assert_eq!(tries(None), 2);
    assert_eq!(tries(Some(0)), 1);
    assert_eq!(tries(Some(7)), 2, "no node is tried twice");
}

#[test]
fn the_only_node_is_dialled_again() {
    let one = vec![node("127.0.0.1:1", 0, 0)];
    let again = config(Balancer::Chash, one, Some(3));
    assert_eq!(order(&again, b"foo"), ["127.0.0.1:1"; 4]);
}

#[test]
fn a_lower_priority_follows_when_the_higher_is_used_up() {
    let nodes = vec![
        node("127.0.0.1:3", 1, -1),
        node("127.0.0.1:1", 2, 1),
        node("127.0.0.1:2", 1, 0),
    ];
    assert_eq!(
        order(&config(Balancer::LeastConn, nodes, None), b""),
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    );
}

#[test]
fn a_node_of_weight_zero_is_not_even_a_retry() {
    let nodes = vec![node("127.0.0.1:1", 0, 0), node("127.0.0.1:2", 1, 0)];
    for balancer in [Balancer::Chash, Balancer::RoundRobin] {
        let config = config(balancer, nodes.clone(), None);
        assert_eq!(order(&config, b"k"), ["127.0.0.1:2"], "{balancer:?}");
    }
}

#[test]
fn the_last_of_two_equal_nodes_decides_the_weight() {
    let nodes = vec![
        node("127.0.0.1:1", 1, 0),
        node("127.0.0.1:2", 1, 0),
        node("127.0.0.1:1", 0, 0),
    ];
    let config = config(Balancer::RoundRobin, nodes, None);
    assert_eq!(order(&config, b""), ["127.0.0.1:2"]);
}

#[test]
fn every_address_of_a_name_is_tried_before_the_next_node() {
    let nodes = vec![node("broker:1883", 1, 1), node("127.0.0.1:2", 1, 0)];
    let order = order(&config(Balancer::Chash, nodes, None), b"foo");
    assert_eq!(order.len(), 3);
    assert!(
        order[..2]
            .iter()
            .all(|address| address.starts_with("10.0.0.")),
        "{order:?}"
    );
    assert_eq!(order[2], "127.0.0.1:2");
}

#[test]
fn no_node_no_target() {
    assert!(order(&config(Balancer::Chash, vec![], Some(5)), b"foo").is_empty());
    let unresolved = vec![node("unknown:1883", 1, 0)];
    assert!(order(&config(Balancer::Chash, unresolved, None), b"foo").is_empty());
}
