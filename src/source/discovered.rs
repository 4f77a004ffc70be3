//! Following the nodes of services: when they change, the table is made anew from what was loaded
//! last, exactly as a reload would.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Source;
use crate::table::Table;
use crate::upstream::Upstream;

/// How long the start of the process waits for the names and services of its first table.
pub(super) const FIRST_ANSWERS: Duration = Duration::from_secs(3);
/// Changes that come within this time are taken together: a table may have thousands of services.
pub(super) const GATHER: Duration = Duration::from_millis(50);
/// So many nodes of one change are named in the log.
const MAX_NODES_NAMED: usize = 10;

/// Whether a service has other nodes by now than the table was built with.
pub(super) fn is_outdated(table: &Table) -> bool {
    table.upstreams().any(|upstream| upstream.is_outdated())
}

impl Source {
    /// Has new connections served by the nodes that services have now.
    pub(super) fn rediscover(&self) {
        let before = self.table.load_full();
        if !is_outdated(&before) {
            return;
        }
        let Some(resources) = self.resources() else {
            return;
        };
        let table = self.table_of(&resources);
        self.serve(table);
        // Whoever waits for this line finds it served.
        for upstream in self.table.load().upstreams() {
            let earlier = before.upstream(upstream.label());
            if upstream.service().is_some() && !earlier.is_some_and(|e| Arc::ptr_eq(e, upstream)) {
                tell(earlier.map(|earlier| &**earlier), upstream);
            }
        }
    }
}

fn tell(before: Option<&Upstream>, now: &Upstream) {
    let Some(service) = now.service() else { return };
    let labels = |upstream: &Upstream| -> BTreeSet<String> {
        let nodes = upstream.nodes_once();
        nodes.map(|node| node.label().to_owned()).collect()
    };
    let (earlier, nodes) = (before.map(labels).unwrap_or_default(), labels(now));
    let joined: Vec<&str> = nodes.difference(&earlier).map(String::as_str).collect();
    let gone: Vec<&str> = earlier.difference(&nodes).map(String::as_str).collect();
    let what = match (joined.is_empty(), gone.is_empty()) {
        (true, true) => "other weights or priorities".to_owned(),
        (false, true) => format!("new: {}", named(&joined)),
        (true, false) => format!("gone: {}", named(&gone)),
        (false, false) => format!("new: {}; gone: {}", named(&joined), named(&gone)),
    };
    log::info!(
        "upstream {}: service {} has {} node(s); {what}",
        now.label(),
        service.config(),
        nodes.len()
    );
}

fn named(labels: &[&str]) -> String {
    let first = &labels[..labels.len().min(MAX_NODES_NAMED)];
    match labels.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
