//! How many connections are still to leave their node, or to come home to it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNode {
    upstream: String,
    node: String,
}

/// The gauges of `drain` and `rebalance`.
#[derive(Debug, Default)]
pub struct LeavingMetrics {
    drain: Family<ByNode, Gauge>,
    rebalance: Family<ByNode, Gauge>,
}

impl LeavingMetrics {
    /// Adds them to a scrape.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "mqtt_proxy_drain_remaining",
            "Connections that have not left yet a node that they are sent away from",
            self.drain.clone(),
        );
        registry.register(
            "mqtt_proxy_rebalance_remaining",
            "Connections that are to be sent away so that they come home to a node",
            self.rebalance.clone(),
        );
    }

    fn family(&self, drains: bool) -> &Family<ByNode, Gauge> {
        match drains {
            true => &self.drain,
            false => &self.rebalance,
        }
    }

    /// So many are left for a node: to drain it, or to rebalance.
    pub fn set(&self, drains: bool, upstream: &str, node: &str, left: usize) {
        let labels = ByNode {
            upstream: upstream.to_owned(),
            node: node.to_owned(),
        };
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        self.family(drains).get_or_create(&labels).set(left);
    }

    /// Nothing is to be done for this node any more.
    pub fn remove(&self, drains: bool, upstream: &str, node: &str) {
        self.family(drains).remove(&ByNode {
            upstream: upstream.to_owned(),
            node: node.to_owned(),
        });
    }
}
