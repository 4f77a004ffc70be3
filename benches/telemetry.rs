//! What a connection pays for being counted: one observation of a histogram, alone and with three
//! other threads at the same one, beside the histogram of `prometheus_client`.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use mqtt_proxy::histogram::Histogram;
use mqtt_proxy::telemetry::metrics::{Metrics, Traffic};
use prometheus_client::metrics::histogram::{Histogram as Locked, exponential_buckets};

/// Measures `observe` while `others` threads do the same.
fn beside(criterion: &mut Criterion, name: &str, others: usize, observe: impl Fn() + Sync) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    observe();
                }
            });
        }
        criterion.bench_function(&format!("{name}/{others}_other_threads"), |bencher| {
            bencher.iter(&observe);
        });
        over.store(true, Ordering::Relaxed);
    });
}

fn benches(criterion: &mut Criterion) {
    let own = Histogram::default();
    let locked = Locked::new(exponential_buckets(0.0001, 2.0, 14));
    let metrics = Metrics::default();
    let listener = metrics.listener("127.0.0.1:9100".parse().unwrap());
    for others in [0, 1, 3] {
        let took = Duration::from_micros(700);
        beside(criterion, "histogram", others, || {
            own.observe(black_box(took));
        });
        beside(criterion, "histogram_of_prometheus_client", others, || {
            locked.observe(black_box(took).as_secs_f64());
        });
        beside(criterion, "relayed_bytes", others, || {
            listener.relayed(black_box(Traffic {
                from_client: 64,
                to_broker: 64,
                ..Traffic::default()
            }));
        });
        beside(criterion, "end_of_a_connection", others, || {
            metrics.ended(black_box("client_closed"));
            listener.session(black_box("200"), black_box("10.0.0.1:1883"));
        });
    }
}

criterion_group!(telemetry_benches, benches);
criterion_main!(telemetry_benches);
