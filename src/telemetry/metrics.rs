//! Metrics, in Prometheus' text form.
//!
//! Names that APISIX's stream prometheus plugin has are kept; the rest is `mqtt_proxy_*`. Labels
//! are bounded by the configuration and by fixed lists of reasons: never a client id.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::upstreams::UpstreamMetrics;
use crate::table::CurrentTable;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listen_addr: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Cow<'static, str>,
}

fn by_reason(reason: &str) -> ByReason {
    ByReason {
        reason: Cow::Owned(reason.to_owned()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUpstream {
    upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySsl {
    ssl: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// Results of a load: applied or not.
const RESULTS: [&str; 2] = ["applied", "rejected"];

/// Series and values of a scrape, as far as the values are whole numbers.
fn samples(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series, value.parse().ok()?))
    })
}

/// The fixed labels of the build.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: Family<ByRoute, Counter>,
    active: Family<ByListener, Gauge>,
    hash_key_missing: Family<ByRoute, Counter>,
    refused: Family<ByReason, Counter>,
    ended: Family<ByReason, Counter>,
    connect_failures: Family<ByUpstream, Counter>,
    reloads: Family<ByResult, Counter>,
    last_reload: Gauge<f64, AtomicU64>,
    certificate_expiry: Family<BySsl, Gauge>,
    bytes_to_broker: Counter,
    bytes_to_client: Counter,
    access_log_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            connections: Family::default(),
            active: Family::default(),
            hash_key_missing: Family::default(),
            refused: Family::default(),
            ended: Family::default(),
            connect_failures: Family::default(),
            reloads: Family::default(),
            last_reload: Gauge::default(),
            certificate_expiry: Family::default(),
            bytes_to_broker: Counter::default(),
            bytes_to_client: Counter::default(),
            access_log_dropped: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    /// The metrics of a process that serves `table`.
    pub fn of(table: Arc<CurrentTable>) -> Self {
        let mut metrics = Metrics::default();
        let upstreams = Box::new(UpstreamMetrics(table));
        metrics.registry.register_collector(upstreams);
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "apisix_stream_connection",
            "Connections that a stream route took",
            self.connections.clone(),
        );
        registry.register(
            "apisix_stream_active_connections",
            "Client connections that are open",
            self.active.clone(),
        );
        registry.register(
            "mqtt_proxy_hash_key_missing",
            "Connections hashed by their address because the hash key has no value, such as an \
             empty client id",
            self.hash_key_missing.clone(),
        );
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
            "mqtt_proxy_upstream_connect_failures",
            "Connects to a node that failed",
            self.connect_failures.clone(),
        );
        registry.register(
            "mqtt_proxy_config_reload",
            "Loads of the standalone file",
            self.reloads.clone(),
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
        registry.register_with_unit(
            "mqtt_proxy_to_broker",
            "Bytes relayed from clients to brokers, counted when a connection ends",
            Unit::Bytes,
            self.bytes_to_broker.clone(),
        );
        registry.register_with_unit(
            "mqtt_proxy_to_client",
            "Bytes relayed from brokers to clients, counted when a connection ends",
            Unit::Bytes,
            self.bytes_to_client.clone(),
        );
        registry.register(
            "mqtt_proxy_access_log_dropped",
            "Lines of the access log that were not written",
            self.access_log_dropped.clone(),
        );
        let build = Family::<Build, Gauge>::default();
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&Build { version }).set(1);
        registry.register("mqtt_proxy_build_info", "The version that runs", build);
    }

    /// A route took a connection.
    pub fn connection_on_route(&self, route: &str) {
        let route = route.to_owned();
        self.connections.get_or_create(&ByRoute { route }).inc();
    }

    /// The gauge of the open client connections of one listener.
    pub fn active_connections(&self, listen_addr: String) -> Gauge {
        self.active.get_or_create_owned(&ByListener { listen_addr })
    }

    /// A connection was hashed by its address for want of a key.
    pub fn hash_key_missing(&self, route: &str) {
        let route = route.to_owned();
        self.hash_key_missing
            .get_or_create(&ByRoute { route })
            .inc();
    }

    /// A connection was refused.
    pub fn refused(&self, reason: &'static str) {
        let reason = Cow::Borrowed(reason);
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    /// A connection ended after so many bytes.
    pub fn ended(&self, reason: &'static str, to_broker: u64, to_client: u64) {
        let reason = Cow::Borrowed(reason);
        self.ended.get_or_create(&ByReason { reason }).inc();
        self.bytes_to_broker.inc_by(to_broker);
        self.bytes_to_client.inc_by(to_client);
    }

    /// Counts lines of the access log that were not written.
    pub fn access_log_dropped(&self) -> Counter {
        self.access_log_dropped.clone()
    }

    /// A connect to a node of `upstream` failed.
    pub fn connect_failed(&self, upstream: &str) {
        let upstream = upstream.to_owned();
        self.connect_failures
            .get_or_create(&ByUpstream { upstream })
            .inc();
    }

    /// The standalone file was read: applied (with or without bad objects) or not.
    pub fn reloaded(&self, applied: bool) {
        let result = RESULTS[usize::from(!applied)];
        self.reloads.get_or_create(&ByResult { result }).inc();
        if applied {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH);
            self.last_reload
                .set(since.unwrap_or_default().as_secs_f64());
        }
    }

    /// Adds the counters of another process, as [`encode`](Self::encode) wrote them there, less
    /// what it had written `before` (empty at first). Gauges count what this process holds itself;
    /// a counter that it does not have is left out.
    pub fn carry_on(&self, text: &str, before: &str) {
        let before: HashMap<&str, u64> = samples(before).collect();
        for (series, value) in samples(text) {
            let more = value.saturating_sub(before.get(series).copied().unwrap_or(0));
            let (name, label) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.split('"').nth(1).unwrap_or_default()),
                None => (series, ""),
            };
            self.counter(name, label, |counter| {
                counter.inc_by(more);
            });
        }
    }

    fn counter(&self, name: &str, label: &str, add: impl FnOnce(&Counter)) {
        let owned = || label.to_owned();
        match name {
            "apisix_stream_connection_total" => {
                add(&self.connections.get_or_create(&ByRoute { route: owned() }));
            }
            "mqtt_proxy_hash_key_missing_total" => {
                add(&self
                    .hash_key_missing
                    .get_or_create(&ByRoute { route: owned() }));
            }
            "mqtt_proxy_upstream_connect_failures_total" => {
                let by = ByUpstream { upstream: owned() };
                add(&self.connect_failures.get_or_create(&by));
            }
            "mqtt_proxy_refused_total" => add(&self.refused.get_or_create(&by_reason(label))),
            "mqtt_proxy_connections_ended_total" => {
                add(&self.ended.get_or_create(&by_reason(label)));
            }
            "mqtt_proxy_config_reload_total" => {
                let result = RESULTS.into_iter().find(|result| *result == label);
                if let Some(result) = result {
                    add(&self.reloads.get_or_create(&ByResult { result }));
                }
            }
            "mqtt_proxy_to_broker_bytes_total" => add(&self.bytes_to_broker),
            "mqtt_proxy_access_log_dropped_total" => add(&self.access_log_dropped),
            "mqtt_proxy_to_client_bytes_total" => add(&self.bytes_to_client),
            _ => {}
        }
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

    /// The text that a scrape gets.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_carry_on_in_another_process_and_gauges_do_not() {
        let old = Metrics::default();
        old.connection_on_route("mqtt");
        old.active_connections("0.0.0.0:9100".to_owned()).inc();
        old.ended("client_closed", 10, 20);
        let new = Metrics::default();
        new.ended("client_closed", 1, 1);
        let first = old.encode();
        new.carry_on(&first, "");
        new.carry_on(
            "# EOF\nnonsense\nunknown_total{a=\"b\"} 7\nmqtt_proxy_refused_total{ 1",
            "",
        );
        old.refused("malformed");
        new.carry_on(&old.encode(), &first);
        let text = new.encode();
        assert!(text.contains("apisix_stream_connection_total{route=\"mqtt\"} 1"));
        assert!(text.contains("mqtt_proxy_connections_ended_total{reason=\"client_closed\"} 2"));
        assert!(text.contains("mqtt_proxy_to_client_bytes_total 21"));
        assert!(text.contains("mqtt_proxy_refused_total{reason=\"malformed\"} 1"));
        assert!(!text.contains("active_connections{"), "{text}");
    }

    #[test]
    fn the_text_has_apisix_names_and_ours() {
        let metrics = Metrics::default();
        metrics.connection_on_route("mqtt");
        metrics.active_connections("0.0.0.0:9100".to_owned()).inc();
        metrics.hash_key_missing("mqtt");
        metrics.refused("malformed");
        metrics.ended("client_closed", 10, 20);
        metrics.connect_failed("1");
        metrics.reloaded(true);
        metrics.reloaded(false);
        let text = metrics.encode();
        for line in [
            "apisix_stream_connection_total{route=\"mqtt\"} 1",
            "apisix_stream_active_connections{listen_addr=\"0.0.0.0:9100\"} 1",
            "mqtt_proxy_hash_key_missing_total{route=\"mqtt\"} 1",
            "mqtt_proxy_refused_total{reason=\"malformed\"} 1",
            "mqtt_proxy_connections_ended_total{reason=\"client_closed\"} 1",
            "mqtt_proxy_upstream_connect_failures_total{upstream=\"1\"} 1",
            "mqtt_proxy_config_reload_total{result=\"applied\"} 1",
            "mqtt_proxy_config_reload_total{result=\"rejected\"} 1",
            "mqtt_proxy_to_broker_bytes_total 10",
            "mqtt_proxy_to_client_bytes_total 20",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
