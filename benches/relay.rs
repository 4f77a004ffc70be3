//! The relay between two loopback connections: one small message there and back, and bulk.
//!
//! Both engines stand behind the same interface, an established pair: the epoll loop that relays
//! plain sockets, and the tokio task that relays any stream.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mqtt_proxy::session::connections::Connections;
use mqtt_proxy::session::listener::Listener;
use mqtt_proxy::session::outcome::Record;
use mqtt_proxy::session::relay::pair::Pair;
use mqtt_proxy::session::relay::{Established, IdleTimeout, Relays, task};
use mqtt_proxy::telemetry::metrics::Metrics;
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
async fn relayed(relay: impl FnOnce(Established<TcpStream, TcpStream>)) -> (TcpStream, TcpStream) {
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
    relay(Established {
        client: client_side,
        broker: broker_side,
        pair: Pair::new(Vec::new(), Vec::new(), idle, record),
    });
    (client, broker)
}

fn measure(
    criterion: &mut Criterion,
    engine: &str,
    relay: impl FnOnce(Established<TcpStream, TcpStream>),
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut group = criterion.benchmark_group(format!("relay_{engine}"));
    let (mut client, mut broker) = runtime.block_on(relayed(relay));
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

fn benches(criterion: &mut Criterion) {
    let relays = Relays::new(1);
    measure(criterion, "epoll", |pair| relays.hand_over(pair));
    measure(criterion, "task", |pair| {
        task::spawn(pair, Arc::default());
    });
}

criterion_group!(relay_benches, benches);
criterion_main!(relay_benches);
