//! Metrics, in Prometheus' text form.
//!
//! Names that APISIX's stream prometheus plugin has are kept; the rest is `mqtt_proxy_*`. Labels
//! are bounded by the configuration and by fixed lists of reasons: never a client id.
//!
//! What every connection counts is a few relaxed additions to atomics that it has at hand: those of
//! its listener, its route and its node, and histograms that threads do not share. Only refusals and
//! ends look a label up.

mod carry_on;
mod family;
mod listeners;
mod observed;
mod process;
mod samples;
mod tables;
mod text;

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Semaphore;

use super::leaving::LeavingMetrics;
use crate::table::CurrentTable;
use listeners::{ListenerMetrics, Listeners};
use observed::{Observed, ObservedMetrics};
use process::ProcessMetrics;
use tables::TableMetrics;

pub use listeners::{ListenerCounts, Traffic};
pub use observed::Origin;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Cow<'static, str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: Cow<'static, str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySsl {
    ssl: String,
}

/// The fixed labels of the build.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    openssl: &'static str,
}

/// Results of a load: applied or not.
const RESULTS: [&str; 2] = ["applied", "rejected"];

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    table: Arc<CurrentTable>,
    listeners: Arc<Listeners>,
    observed: Arc<Observed>,
    refused: Family<ByReason, Counter>,
    ended: Family<ByReason, Counter>,
    handshakes: Family<ByResult, Counter>,
    reloads: Family<ByResult, Counter>,
    reload_applied: Gauge,
    config_errors: Gauge,
    last_reload: Gauge<f64, AtomicU64>,
    certificate_expiry: Family<BySsl, Gauge>,
    upgrades: Family<ByResult, Counter>,
    taken_over: Counter,
    connections_limit: Gauge,
    access_log_dropped: Counter,
    /// Connections that are to leave.
    pub leaving: LeavingMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::of(Arc::default())
    }
}

impl Metrics {
    /// The metrics of a process that serves `table`.
    pub fn of(table: Arc<CurrentTable>) -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            table,
            listeners: Arc::default(),
            observed: Arc::default(),
            refused: Family::default(),
            ended: Family::default(),
            handshakes: Family::default(),
            reloads: Family::default(),
            reload_applied: Gauge::default(),
            config_errors: Gauge::default(),
            last_reload: Gauge::default(),
            certificate_expiry: Family::default(),
            upgrades: Family::default(),
            taken_over: Counter::default(),
            connections_limit: Gauge::default(),
            access_log_dropped: Counter::default(),
            leaving: LeavingMetrics::default(),
        };
        for result in RESULTS {
            metrics.reloads.get_or_create_owned(&by_result(result));
        }
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        self.leaving.register(registry);
        let listeners = ListenerMetrics(self.listeners.clone());
        registry.register_collector(Box::new(listeners));
        let table = TableMetrics(self.table.clone());
        registry.register_collector(Box::new(table));
        let observed = ObservedMetrics(self.observed.clone());
        registry.register_collector(Box::new(observed));
        registry.register_collector(Box::new(ProcessMetrics));
        registry.register(
            "mqtt_proxy_refused",
            "Connections that were not let through to a broker",
            self.refused.clone(),
        );
        registry.register(
            "mqtt_proxy_connections_ended",
            "Connections that ended, by what ended them",
            self.ended.clone(),
        );
        registry.register(
            "mqtt_proxy_connections_limit",
            "How many client connections may live at a time",
            self.connections_limit.clone(),
        );
        registry.register(
            "mqtt_proxy_tls_handshakes",
            "TLS connections of clients that have begun, by what came of it",
            self.handshakes.clone(),
        );
        registry.register(
            "mqtt_proxy_config_reload",
            "Loads of the standalone file",
            self.reloads.clone(),
        );
        registry.register(
            "mqtt_proxy_config_last_reload_successful",
            "Whether the last load of the standalone file was applied (1) or not (0)",
            self.reload_applied.clone(),
        );
        registry.register(
            "mqtt_proxy_config_errors",
            "Errors in the standalone file as it is served: objects left out or kept as they were",
            self.config_errors.clone(),
        );
        registry.register_with_unit(
            "mqtt_proxy_config_last_success_timestamp",
            "When the standalone file was applied last",
            Unit::Seconds,
            self.last_reload.clone(),
        );
        registry.register_with_unit(
            "mqtt_proxy_certificate_expiry_timestamp",
            "When the first certificate of an ssl object ends",
            Unit::Seconds,
            self.certificate_expiry.clone(),
        );
        registry.register(
            "mqtt_proxy_upgrades",
            "Upgrades of the running process, by what came of them",
            self.upgrades.clone(),
        );
        registry.register(
            "mqtt_proxy_upgrade_connections",
            "Live connections that were taken over from the process before, in all upgrades",
            self.taken_over.clone(),
        );
        registry.register(
            "mqtt_proxy_access_log_dropped",
            "Lines of the access log that were not written",
            self.access_log_dropped.clone(),
        );
        let build = Family::<Build, Gauge>::default();
        let labels = Build {
            version: env!("CARGO_PKG_VERSION"),
            openssl: openssl::version::version(),
        };
        build.get_or_create(&labels).set(1);
        registry.register("mqtt_proxy_build_info", "The version that runs", build);
    }

    /// Has series there from the start that otherwise begin with their first event: an alert on
    /// the increase of a counter misses the one that creates it.
    pub fn expect(
        &self,
        refusals: &[&'static str],
        ends: &[&'static str],
        upgrades: &[&'static str],
    ) {
        for reason in refusals {
            self.refused.get_or_create_owned(&by_reason(reason));
        }
        for reason in ends {
            self.ended.get_or_create_owned(&by_reason(reason));
        }
        for result in upgrades {
            self.upgrades.get_or_create_owned(&by_result(result));
        }
    }

    /// What is counted by the listener on this address.
    pub fn listener(&self, address: SocketAddr) -> Arc<ListenerCounts> {
        self.listeners.get(address)
    }

    /// A connection was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&by_reason(reason)).inc();
    }

    /// A connection ended.
    pub fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&by_reason(reason)).inc();
    }

    /// CONNECT was read whole, so long after the client could begin to send it.
    pub fn connect_read(&self, took: Duration) {
        self.observed.connect_read.observe(took);
    }

    /// A CONNACK with this code was sent to a client.
    pub fn connack(&self, origin: Origin, code: u8) {
        self.observed.connacks.count(origin, code);
    }

    /// The broker answered CONNECT after so long.
    pub fn connack_after(&self, took: Duration) {
        self.observed.connack.observe(took);
    }

    /// A TLS connection of a client has begun, or was not let through; a handshake that was made
    /// `took` so long.
    pub fn handshake(&self, result: &'static str, took: Option<Duration>) {
        self.handshakes.get_or_create(&by_result(result)).inc();
        if let Some(took) = took {
            self.observed.handshake.observe(took);
        }
    }

    /// Handshakes in flight take their places here, of which there are `limit`.
    pub fn handshake_places(&self, places: Arc<Semaphore>, limit: usize) {
        // Set once, at start.
        let _ = self.observed.handshakes.set((places, limit));
    }

    /// So many client connections may live at a time.
    pub fn connections_limit(&self, limit: usize) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connections_limit.set(limit);
    }

    /// Counts lines of the access log that were not written.
    pub fn access_log_dropped(&self) -> Counter {
        self.access_log_dropped.clone()
    }

    /// The standalone file was read: applied (with or without bad objects) or not.
    pub fn reloaded(&self, applied: bool) {
        let result = RESULTS[usize::from(!applied)];
        self.reloads.get_or_create(&by_result(result)).inc();
        self.reload_applied.set(applied.into());
        if applied {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH);
            self.last_reload
                .set(since.unwrap_or_default().as_secs_f64());
        }
    }

    /// A new table is served, with so many errors in its file.
    pub fn serving(&self, errors: usize) {
        self.config_errors
            .set(i64::try_from(errors).unwrap_or(i64::MAX));
        let table = self.table.load();
        let nodes = table.upstreams().flat_map(|upstream| upstream.nodes());
        let nodes: HashSet<&str> = nodes.map(|node| node.label()).collect();
        self.listeners.keep_nodes(&nodes);
    }

    /// Which `ssl` objects there are now and when each ends, in Unix seconds.
    pub fn certificates_end<'a>(&self, ends: impl Iterator<Item = (&'a str, i64)>) {
        self.certificate_expiry.clear();
        for (ssl, end) in ends {
            let ssl = ssl.to_owned();
            self.certificate_expiry
                .get_or_create(&BySsl { ssl })
                .set(end);
        }
    }

    /// An upgrade ended like this.
    pub fn upgraded(&self, result: &'static str) {
        self.upgrades.get_or_create(&by_result(result)).inc();
    }

    /// So many live connections were taken over from the process before.
    pub fn taken_over(&self, connections: usize) {
        self.taken_over.inc_by(connections as u64);
    }

    /// The text that a scrape gets: OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// The same in the older text format, for a scraper that does not ask for OpenMetrics.
    pub fn encode_plain(&self) -> String {
        text::from_openmetrics(&self.encode())
    }
}

fn by_reason(reason: &'static str) -> ByReason {
    ByReason {
        reason: Cow::Borrowed(reason),
    }
}

fn by_result(result: &'static str) -> ByResult {
    ByResult {
        result: Cow::Borrowed(result),
    }
}

#[cfg(test)]
mod tests;
