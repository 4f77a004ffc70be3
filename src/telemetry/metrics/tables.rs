//! Metrics of routes, upstreams and nodes, read from the current table at each scrape: what has
//! left the configuration has left them too.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family::{Label, counters, gauges, histograms};
use crate::histogram::Histogram;
use crate::table::{CurrentTable, Route, Table};
use crate::upstream::Upstream;
use crate::upstream::node::Node;

/// Routes, upstreams and nodes of the current table.
#[derive(Debug)]
pub(super) struct TableMetrics(pub Arc<CurrentTable>);

impl Collector for TableMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.0.load();
        let mut upstreams: Vec<&Arc<Upstream>> = table.upstreams().collect();
        upstreams.sort_unstable_by_key(|upstream| upstream.label());
        routes(&mut encoder, &table)?;
        histograms(
            &mut encoder,
            "mqtt_proxy_upstream_connect_seconds",
            "How long a connect to a node took that succeeded, its TLS handshake included",
            upstreams.iter().filter_map(|upstream| {
                let counted = upstream.connect_times().counted()?;
                Some(([("upstream", upstream.label())], counted))
            }),
        )?;
        nodes(&mut encoder, &upstreams)
    }
}

fn routes(encoder: &mut DescriptorEncoder<'_>, table: &Table) -> fmt::Result {
    fn label(route: &Arc<Route>) -> [Label<'_>; 1] {
        [("route", route.id.as_str())]
    }
    let each = || table.routes().iter();
    counters(
        encoder,
        "apisix_stream_connection",
        "Connections that a stream route took",
        each().map(|route| {
            let connections = route.counts.connections.load(Ordering::Relaxed);
            (label(route), connections)
        }),
    )?;
    counters(
        encoder,
        "mqtt_proxy_hash_key_missing",
        "Connections hashed by their address because the hash key has no value, such as an empty \
         client id",
        // Most routes never miss one; ten thousand zeros are a lot of text.
        each().filter_map(|route| {
            let missing = route.counts.hash_key_missing.load(Ordering::Relaxed);
            (missing > 0).then_some((label(route), missing))
        }),
    )
}

fn nodes(encoder: &mut DescriptorEncoder<'_>, upstreams: &[&Arc<Upstream>]) -> fmt::Result {
    let nodes: Vec<(&str, &Arc<Node>)> = upstreams
        .iter()
        .flat_map(|upstream| upstream.nodes_once().map(|node| (upstream.label(), node)))
        .collect();
    fn labels<'a>((upstream, node): &(&'a str, &'a Arc<Node>)) -> [Label<'a>; 2] {
        [("upstream", upstream), ("node", node.label())]
    }
    gauges(
        encoder,
        "mqtt_proxy_upstream_healthy",
        "Whether a node counts as healthy (1) or not (0)",
        nodes
            .iter()
            .map(|of| (labels(of), i64::from(of.1.health().is_healthy()))),
    )?;
    gauges(
        encoder,
        "mqtt_proxy_upstream_connections",
        "Client connections that are being made to a node or live on it",
        nodes
            .iter()
            .map(|of| (labels(of), i64::try_from(of.1.live()).unwrap_or(i64::MAX))),
    )?;
    counters(
        encoder,
        "mqtt_proxy_upstream_connected",
        "Connects to a node that succeeded",
        nodes.iter().map(|of| {
            let connected = of.1.counts().connected.load(Ordering::Relaxed);
            (labels(of), connected)
        }),
    )?;
    counters(
        encoder,
        "mqtt_proxy_upstream_connect_failures",
        "Connects to a node that failed",
        nodes.iter().map(|of| {
            let failed = of.1.counts().failed.load(Ordering::Relaxed);
            (labels(of), failed)
        }),
    )?;
    counters(
        encoder,
        "mqtt_proxy_upstream_health_transitions",
        "How often a node became healthy or unhealthy",
        nodes.iter().flat_map(|(upstream, node)| {
            let (to_healthy, to_unhealthy) = node.health().transitions();
            [("healthy", to_healthy), ("unhealthy", to_unhealthy)].map(|(to, count)| {
                let labels = [("upstream", *upstream), ("node", node.label()), ("to", to)];
                (labels, count)
            })
        }),
    )
}

/// What counts in the current table, to be found by labels.
pub(super) struct Counting<'a> {
    routes: HashMap<&'a str, &'a Arc<Route>>,
    upstreams: HashMap<&'a str, &'a Arc<Upstream>>,
    nodes: HashMap<(&'a str, &'a str), &'a Arc<Node>>,
}

impl<'a> Counting<'a> {
    /// Everything in `table`.
    pub fn of(table: &'a Table) -> Self {
        let nodes = |upstream: &'a Arc<Upstream>| {
            let label = upstream.label();
            upstream
                .nodes()
                .map(move |node| ((label, node.label()), node))
        };
        Counting {
            routes: table
                .routes()
                .iter()
                .map(|route| (route.id.as_str(), route))
                .collect(),
            upstreams: table
                .upstreams()
                .map(|upstream| (upstream.label(), upstream))
                .collect(),
            nodes: table.upstreams().flat_map(nodes).collect(),
        }
    }

    /// The connect times of an upstream.
    pub fn connect_times(&self, upstream: &str) -> Option<&Histogram> {
        Some(self.upstreams.get(upstream)?.connect_times())
    }

    /// Adds what another process counted, if what it counted is still there.
    pub fn carry_on(&self, name: &str, labels: &HashMap<&str, String>, more: u64) {
        let label = |name| labels.get(name).map(String::as_str).unwrap_or_default();
        if let Some(route) = self.routes.get(label("route")) {
            match name {
                "apisix_stream_connection_total" => &route.counts.connections,
                "mqtt_proxy_hash_key_missing_total" => &route.counts.hash_key_missing,
                _ => return,
            }
            .fetch_add(more, Ordering::Relaxed);
        }
        if let Some(node) = self.nodes.get(&(label("upstream"), label("node"))) {
            match (name, label("to")) {
                ("mqtt_proxy_upstream_connected_total", _) => {
                    node.counts().connected.fetch_add(more, Ordering::Relaxed);
                }
                ("mqtt_proxy_upstream_connect_failures_total", _) => {
                    node.counts().failed.fetch_add(more, Ordering::Relaxed);
                }
                ("mqtt_proxy_upstream_health_transitions_total", "healthy") => {
                    node.health().add_transitions(more, 0);
                }
                ("mqtt_proxy_upstream_health_transitions_total", "unhealthy") => {
                    node.health().add_transitions(0, more);
                }
                _ => {}
            }
        }
    }
}
