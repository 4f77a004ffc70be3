//! Metrics of nodes, read from the current table at each scrape: a node that has left the
//! configuration has left them too.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::table::CurrentTable;
use crate::upstream::Upstream;
use crate::upstream::node::Node;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNode {
    upstream: String,
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Transition {
    upstream: String,
    node: String,
    to: &'static str,
}

/// The nodes of every upstream of the current table.
#[derive(Debug)]
pub(super) struct UpstreamMetrics(pub Arc<CurrentTable>);

impl Collector for UpstreamMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.0.load();
        let mut upstreams: Vec<&Arc<Upstream>> = table.upstreams().collect();
        upstreams.sort_unstable_by_key(|upstream| upstream.label());
        let nodes: Vec<(&str, &Arc<Node>)> = upstreams
            .iter()
            .flat_map(|upstream| upstream.nodes_once().map(|node| (upstream.label(), node)))
            .collect();
        let labels = |upstream: &str, node: &Node| ByNode {
            upstream: upstream.to_owned(),
            node: node.label().to_owned(),
        };

        let mut family = encoder.encode_descriptor(
            "mqtt_proxy_upstream_healthy",
            "Whether a node counts as healthy (1) or not (0)",
            None,
            MetricType::Gauge,
        )?;
        for (upstream, node) in &nodes {
            let healthy = ConstGauge::new(i64::from(node.health().is_healthy()));
            healthy.encode(family.encode_family(&labels(upstream, node))?)?;
        }

        let mut family = encoder.encode_descriptor(
            "mqtt_proxy_upstream_connections",
            "Client connections that are being made to a node or live on it",
            None,
            MetricType::Gauge,
        )?;
        for (upstream, node) in &nodes {
            let live = ConstGauge::new(i64::try_from(node.live()).unwrap_or(i64::MAX));
            live.encode(family.encode_family(&labels(upstream, node))?)?;
        }

        let mut family = encoder.encode_descriptor(
            "mqtt_proxy_upstream_health_transitions",
            "How often a node became healthy or unhealthy",
            None,
            MetricType::Counter,
        )?;
        for (upstream, node) in &nodes {
            let (to_healthy, to_unhealthy) = node.health().transitions();
            for (to, count) in [("healthy", to_healthy), ("unhealthy", to_unhealthy)] {
                let labels = Transition {
                    upstream: (*upstream).to_owned(),
                    node: node.label().to_owned(),
                    to,
                };
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
