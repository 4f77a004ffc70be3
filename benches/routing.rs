//! Which route takes a connection: 10, 1,000 and 10,000 routes, and building the whole table.
//!
//! The time of a look-up must not grow with the number of routes in the common cases: one port a
//! route, one client network a route, both.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mqtt_proxy::config::settings::Provider;
use mqtt_proxy::config::standalone::{self, Resources};
use mqtt_proxy::route::{Request, RouteIndex};
use mqtt_proxy::table::Table;
use mqtt_proxy::upstream::{Context, Shared};

const COUNTS: [usize; 3] = [10, 1_000, 10_000];

/// A file with `count` routes, each with its own port and client network, over `count / 10`
/// upstreams of three nodes.
fn file(count: usize) -> String {
    let mut text = String::from("stream_routes:\n");
    for route in 0..count {
        text += &format!(
            "  - {{id: r{route}, server_port: {}, remote_addr: 10.{}.{}.0/24, upstream_id: u{}, \
             plugins: {{mqtt-proxy: {{protocol_level: 4}}}}}}\n",
            route % 500 + 2000,
            route / 250,
            route % 250,
            route % count.div_ceil(10),
        );
    }
    text += "upstreams:\n";
    for upstream in 0..count.div_ceil(10) {
        text += &format!(
            "  - {{id: u{upstream}, type: chash, key: mqtt_client_id, nodes: {{\"10.9.{}.1:1883\": 1, \
             \"10.9.{}.2:1883\": 1, \"10.9.{}.3:1883\": 1}}}}\n",
            upstream % 250,
            upstream % 250,
            upstream % 250,
        );
    }
    text + "#END\n"
}

fn resources(text: &str) -> Resources {
    let plugins = ["mqtt-proxy".to_owned()];
    let loaded = standalone::load(
        text,
        Path::new("apisix.yaml"),
        Provider::Yaml,
        &|_| None,
        &plugins,
        None,
    );
    let (resources, problems) = loaded.expect("the file is good");
    assert!(problems.is_empty(), "{problems:?}");
    resources
}

fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route_match");
    for count in COUNTS {
        let resources = resources(&file(count));
        let index = RouteIndex::new(resources.stream_routes.iter().map(|route| &**route));
        let last = count - 1;
        let request = |network: usize| Request {
            client: IpAddr::V4(Ipv4Addr::new(
                10,
                (network / 250) as u8,
                (network % 250) as u8,
                7,
            )),
            server: SocketAddr::from(([127, 0, 0, 1], (network % 500 + 2000) as u16)),
            sni: None,
        };
        assert_eq!(index.find(&request(last)), Some(last));
        group.bench_function(BenchmarkId::new("last_route", count), |bencher| {
            bencher.iter(|| index.find(black_box(&request(last))));
        });
        group.bench_function(BenchmarkId::new("no_route", count), |bencher| {
            bencher.iter(|| index.find(black_box(&request(60_000))));
        });
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    group.sample_size(10);
    let shared = Shared::default();
    let tls = mqtt_proxy::tls::Shared::offline().expect("randomness");
    let context = Context {
        tls: &tls,
        ssls: &[],
        shared: &shared,
    };
    for count in COUNTS {
        let text = file(count);
        group.bench_function(BenchmarkId::new("load_file", count), |bencher| {
            bencher.iter(|| resources(&text));
        });
        let resources = resources(&text);
        group.bench_function(BenchmarkId::new("build", count), |bencher| {
            bencher.iter(|| Table::build(&resources, &context, &Table::default()));
        });
        let served = Table::build(&resources, &context, &Table::default());
        group.bench_function(BenchmarkId::new("rebuild_unchanged", count), |bencher| {
            bencher.iter(|| Table::build(&resources, &context, &served));
        });
    }
}

criterion_group!(benches, look_up, build);
criterion_main!(benches);
