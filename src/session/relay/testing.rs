//! What the tests of both engines need: a record to be dropped, and what it counted.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::session::connections::Connections;
use crate::session::listener::Listener;
use crate::session::outcome::Record;
use crate::telemetry::metrics::Metrics;

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
