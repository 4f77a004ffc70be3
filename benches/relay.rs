//! The relay between two loopback connections: one small message there and back, and bulk.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mqtt_proxy::session::connections::Connections;
use mqtt_proxy::session::listener::Listener;
use mqtt_proxy::session::outcome::Record;
use mqtt_proxy::session::relay::pair::Pair;
use mqtt_proxy::session::relay::{Established, IdleTimeout, Relays};
use mqtt_proxy::telemetry::metrics::Metrics;
use mqtt_proxy::tls::link::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const BULK: usize = 1024 * 1024;

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, two) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (one, two) = (one.unwrap(), two.unwrap().0);
    one.set_nodelay(true).unwrap();
    two.set_nodelay(true).unwrap();
    (one, two)
}

/// A relayed pair: what the client holds and what the broker holds.
async fn relayed(relays: &Relays) -> (TcpStream, TcpStream) {
    let (client, client_side) = connected().await;
    let (broker_side, broker) = connected().await;
    let metrics = Arc::new(Metrics::default());
    let listener = Arc::new(Listener {
        address: "127.0.0.1:9100".parse().unwrap(),
        counts: metrics.listener("127.0.0.1:9100".parse().unwrap()),
        tls: None,
    });
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().ok();
    let live = Arc::new(Connections::default()).enter();
    let idle = IdleTimeout {
        open: Some(Duration::from_secs(600)),
        after_broker_end: None,
    };
    let record = Record::open(client.local_addr().unwrap(), listener, metrics, place, live);
    relays.hand_over(Established {
        client: Link::Plain(client_side),
        broker: Link::Plain(broker_side),
        pair: Pair::new(Vec::new(), Vec::new(), idle, record),
    });
    (client, broker)
}

fn benches(criterion: &mut Criterion) {
    let relays = Relays::new(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("relay");
    let (mut client, mut broker) = runtime.block_on(relayed(&relays));
    group.bench_function("64_bytes_there_and_back", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let mut message = [1_u8; 64];
                client.write_all(&message).await.unwrap();
                broker.read_exact(&mut message).await.unwrap();
                broker.write_all(&message).await.unwrap();
                client.read_exact(&mut message).await.unwrap();
            });
        });
    });
    group.throughput(Throughput::Bytes(BULK as u64));
    let bytes = vec![2_u8; BULK];
    let mut received = vec![0_u8; BULK];
    group.bench_function("one_mebibyte", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let (sent, got) =
                    tokio::join!(client.write_all(&bytes), broker.read_exact(&mut received));
                sent.unwrap();
                got.unwrap();
            });
        });
    });
}

criterion_group!(relay_benches, benches);
criterion_main!(relay_benches);
