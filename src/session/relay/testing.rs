//! What the tests of the relay need: connected sockets, a pair that an engine relays, a record to be
//! dropped, and what it counted.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::engine::{Carried, Engine};
use super::pair::Pair;
use super::{Established, IdleTimeout};
use crate::session::connections::Connections;
use crate::session::listener::Listener;
use crate::session::outcome::Record;
use crate::telemetry::metrics::Metrics;
use crate::tls::link::Link;

/// How long anything may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A connection on loopback; the second end, which is the relay's, does not block. `buffer` is the
/// size of the kernel's buffers.
pub fn connected(buffer: Option<usize>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    if let Some(size) = buffer {
        SockRef::from(&listener).set_recv_buffer_size(size).unwrap();
        SockRef::from(&listener).set_send_buffer_size(size).unwrap();
    }
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

/// A runtime, to which the sockets belong at first.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Has an engine relay a pair that owes these bytes to the broker and to the client.
pub fn relayed(
    runtime: &Runtime,
    [client, broker]: [Link; 2],
    [to_broker, to_client]: [&[u8]; 2],
    idle: IdleTimeout,
    counts: &Counts,
) -> Engine {
    let engine = Engine::start(0).unwrap();
    let _inside = runtime.enter();
    let established = Established {
        client,
        broker,
        pair: Pair::new(
            to_broker.to_vec(),
            to_client.to_vec(),
            idle,
            counts.record(),
        ),
    };
    engine.adopt(vec![Carried::try_from(established).unwrap()]);
    engine
}

/// Where the end of a connection shows.
#[derive(Default)]
pub struct Counts {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The live connections.
    pub connections: Arc<Connections>,
}

impl Counts {
    /// The record of a connection that has just been accepted.
    pub fn record(&self) -> Record {
        let listener = Arc::new(Listener {
            address: "127.0.0.1:9100".parse().unwrap(),
            counts: self.metrics.listener("127.0.0.1:9100".parse().unwrap()),
            tls: None,
        });
        Record::open(
            "127.0.0.1:5000".parse().unwrap(),
            listener,
            self.metrics.clone(),
            Arc::new(Semaphore::new(1)).try_acquire_owned().ok(),
            self.connections.enter(),
        )
    }

    /// What the end of the one connection was put down to, if it has ended.
    pub fn end(&self) -> Option<String> {
        let text = self.metrics.encode();
        let line = text
            .lines()
            .find(|line| line.starts_with("mqtt_proxy_connections_ended_total"))?;
        Some(line.split('"').nth(1)?.to_owned())
    }

    /// Waits for the end of the one connection, which is counted a moment before its place is free.
    pub fn wait_for_end(&self) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(end) = self.end().filter(|_| self.connections.live() == 0) {
                return end;
            }
            assert!(Instant::now() < deadline, "the connection does not end");
            std::thread::yield_now();
        }
    }

    /// Bytes to the broker and to the client.
    pub fn bytes(&self) -> (u64, u64) {
        let text = self.metrics.encode();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse().unwrap()
        };
        (
            value("mqtt_proxy_to_broker_bytes_total"),
            value("mqtt_proxy_to_client_bytes_total"),
        )
    }
}
