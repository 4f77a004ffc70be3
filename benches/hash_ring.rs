//! The consistent hash ring: building it and looking keys up, with 3, 100 and 1,000 nodes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mqtt_proxy::config::settings::RingIdentity;
use mqtt_proxy::upstream::node::Node;
use mqtt_proxy::upstream::ring::Ring;

const COUNTS: [usize; 3] = [3, 100, 1_000];

fn members(count: usize) -> Vec<(Arc<Node>, u32)> {
    let address = |node: usize| ([10, 0, (node / 250) as u8, (node % 250) as u8], 1883).into();
    (0..count)
        .map(|node| (Arc::new(Node::fixed(address(node))), 1))
        .collect()
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash_ring");
    for count in COUNTS {
        let nodes = members(count);
        group.bench_function(BenchmarkId::new("build", count), |bencher| {
            bencher.iter(|| Ring::new(nodes.clone(), RingIdentity::Name));
        });
        let ring = Ring::new(nodes, RingIdentity::Name);
        let mut client = 0_u32;
        group.bench_function(BenchmarkId::new("first_node", count), |bencher| {
            bencher.iter(|| {
                client = client.wrapping_add(1);
                ring.pick(black_box(&client.to_le_bytes()), &[], |_| true)
            });
        });
        group.bench_function(BenchmarkId::new("third_node", count), |bencher| {
            bencher.iter(|| {
                client = client.wrapping_add(1);
                let key = client.to_le_bytes();
                let mut tried = Vec::with_capacity(3);
                for _ in 0..3 {
                    tried.extend(ring.pick(black_box(&key), &tried, |_| true));
                }
                tried
            });
        });
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
