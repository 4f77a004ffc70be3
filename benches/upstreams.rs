//! Picking a node and building an upstream, with 3, 100 and 1,000 nodes, all of them healthy and
//! every second one down; and the memory that an upstream takes.

mod counting;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mqtt_proxy::config::resource::checks::Limits;
use mqtt_proxy::config::resource::upstream::Balancer;
use mqtt_proxy::config::settings::{Provider, RingIdentity};
use mqtt_proxy::config::standalone;
use mqtt_proxy::tls;
use mqtt_proxy::upstream::health::{Failure, Seen};
use mqtt_proxy::upstream::level::{Level, Member, Terms, Wish};
use mqtt_proxy::upstream::node::{InFlight, Node};
use mqtt_proxy::upstream::{Context, Shared, Upstream};

const COUNTS: [usize; 3] = [3, 100, 1_000];
const BALANCERS: [Balancer; 4] = [
    Balancer::Chash,
    Balancer::RoundRobin,
    Balancer::LeastConn,
    Balancer::Ewma,
];

fn members(count: usize) -> Vec<Member> {
    let address = |node: usize| ([10, 0, (node / 250) as u8, (node % 250) as u8], 1883).into();
    (0..count)
        .map(|node| Member {
            node: Arc::new(Node::fixed(address(node))),
            weight: 1,
        })
        .collect()
}

fn knock_out_every_second(level: &Level) {
    let limits = Limits {
        tcp: 1,
        timeouts: 1,
        http: 1,
        mqtt: 1,
    };
    for member in level.members.iter().step_by(2) {
        let health = member.node.health();
        health.failed(Seen::Probe, Failure::Tcp, &limits);
    }
    level.follow_health();
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for balancer in BALANCERS {
        for count in COUNTS {
            for down in [false, true] {
                let level = Level::new(members(count), balancer, RingIdentity::Name, true);
                if down {
                    knock_out_every_second(&level);
                }
                let state = if down { "half_down" } else { "healthy" };
                let id = BenchmarkId::new(format!("{}/{state}", balancer.name()), count);
                let terms = Terms {
                    balance_factor: Some(125),
                    ..Terms::default()
                };
                let mut client = 0_u32;
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        client = client.wrapping_add(1);
                        let place = level.pick(&Wish {
                            key: black_box(&client.to_le_bytes()),
                            tried: &[],
                            terms,
                        });
                        // A connection that begins and ends.
                        let member = place.expect("somebody is healthy").member;
                        let connection = InFlight::on(level.members[member].node.clone());
                        level.follow_load(member);
                        drop(connection);
                        level.follow_load(member);
                    });
                });
            }
        }
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    for balancer in BALANCERS {
        for count in COUNTS {
            let nodes = members(count);
            group.bench_function(BenchmarkId::new(balancer.name(), count), |bencher| {
                bencher.iter(|| Level::new(nodes.clone(), balancer, RingIdentity::Name, false));
            });
        }
    }
}

/// Upstreams of which the memory is averaged.
const UPSTREAMS: usize = 8;

/// Prints what an upstream with all of its nodes takes, whatever is asked to be timed.
fn memory(_: &mut Criterion) {
    let shared = Shared::default();
    let tls = tls::Shared::offline().expect("randomness");
    let context = Context {
        shared: &shared,
        tls: &tls,
        ssls: &[],
    };
    println!("bytes of one upstream, its nodes included:");
    for balancer in BALANCERS {
        for count in COUNTS {
            let nodes: Vec<String> = (0..count)
                .map(|node| format!("\"10.0.{}.{}:1883\": 1", node / 250, node % 250))
                .collect();
            let text = format!(
                "upstreams: [{{id: 1, type: {}, key: remote_addr, nodes: {{{}}}}}]\n#END\n",
                balancer.name(),
                nodes.join(", ")
            );
            let path = Path::new("apisix.yaml");
            let loaded = standalone::load(&text, path, Provider::Yaml, &|_| None, &[], None);
            let resources = loaded.expect("the file is good").0;
            let config = &resources.upstreams[0].upstream;
            let before = counting::live();
            let built: Vec<Arc<Upstream>> = (0..UPSTREAMS)
                .map(|n| Upstream::build(n.to_string(), config, &context, None))
                .collect();
            let bytes = (counting::live() - before) / built.len();
            println!(
                "  {:<10} {count:>5} nodes {bytes:>12} ({} a node)",
                balancer.name(),
                bytes / count
            );
        }
    }
}

criterion_group!(benches, memory, pick, build);
criterion_main!(benches);
