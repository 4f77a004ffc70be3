//! What the old process knows about nodes and the new one would have to find out again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::table::Table;
use crate::upstream::Upstream;
use crate::upstream::health::carried::Carried;
use crate::upstream::node::NodeUser;

/// What is known about one node of one upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Label of its upstream.
    pub upstream: String,
    /// Its own label.
    pub node: String,
    /// Its health, where health is checked.
    #[serde(default)]
    pub health: Option<Carried>,
    /// The average time of a connect in seconds, and its age in milliseconds.
    #[serde(default)]
    pub connect_time: Option<(f64, u64)>,
}

/// Everything that is known about the nodes of the table.
pub fn of(table: &Table) -> Vec<NodeRecord> {
    let of_one = |upstream: &Arc<Upstream>| {
        let label = upstream.label().to_owned();
        let checked = upstream.config().checks.is_some();
        let record = move |node: &Arc<crate::upstream::node::Node>| NodeRecord {
            upstream: label.clone(),
            node: node.label().to_owned(),
            health: checked.then(|| node.health().carried()),
            connect_time: node
                .connect_time()
                .snapshot()
                .map(|(seconds, age)| (seconds, age.as_millis() as u64)),
        };
        let records = upstream.nodes_once().map(record);
        records
            .filter(|record| record.health.is_some() || record.connect_time.is_some())
            .collect::<Vec<_>>()
    };
    table.upstreams().flat_map(of_one).collect()
}

/// Has the nodes that this table still has go on from there.
pub fn restore(table: &Table, records: &[NodeRecord]) {
    let known: HashMap<(&str, &str), &NodeRecord> = records
        .iter()
        .map(|record| ((record.upstream.as_str(), record.node.as_str()), record))
        .collect();
    for upstream in table.upstreams() {
        let mut unhealthy = Vec::new();
        for node in upstream.nodes_once() {
            let Some(record) = known.get(&(upstream.label(), node.label())) else {
                continue;
            };
            if let Some((seconds, age_ms)) = record.connect_time {
                let ago = Duration::from_millis(age_ms);
                node.connect_time().restore((seconds, ago));
            }
            // Without checks nobody would ever find out that the node is well again.
            if let (Some(health), Some(_)) = (&record.health, &upstream.config().checks) {
                node.health().restore(health);
                if !health.healthy {
                    unhealthy.push(node.label());
                }
            }
        }
        if !unhealthy.is_empty() {
            let (label, nodes) = (upstream.label(), unhealthy.join(", "));
            log::info!("upstream {label}: unhealthy already before the upgrade: {nodes}");
            upstream.health_changed();
        }
    }
}
