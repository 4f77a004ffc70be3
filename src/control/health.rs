//! `/v1/healthcheck`, in the shape of APISIX's control API.

use serde_json::{Value, json};

use super::api::Answer;
use super::{Control, place_of};
use crate::config::resource::checks::{Active, Probe};
use crate::config::standalone::Resources;
use crate::upstream::Upstream;
use crate::upstream::health::Failure;
use crate::upstream::node::Node;

/// Sections whose items APISIX checks; `routes` are those of HTTP, of which there are none.
const SECTIONS: [&str; 4] = ["routes", "services", "stream_routes", "upstreams"];

impl Control {
    /// All checkers.
    pub(super) fn checkers(&self) -> Answer {
        let table = self.table.load();
        let mut checked: Vec<_> = table
            .upstreams()
            .filter(|upstream| upstream.checks().is_some())
            .map(|upstream| (place_of(upstream), upstream))
            .collect();
        checked.sort_unstable_by_key(|(place, _)| *place);
        let documents = checked.into_iter().map(|(_, upstream)| checker(upstream));
        Answer::ok(documents.collect())
    }

    /// The checker of one item.
    pub(super) fn checker(&self, section: &str, id: &str) -> Answer {
        if !SECTIONS.contains(&section) {
            return Answer::bad_request(format!("invalid src type {section}"));
        }
        let table = self.table.load();
        let mut upstreams = table.upstreams();
        let found = upstreams
            .find(|upstream| place_of(upstream) == (section, id) && upstream.checks().is_some());
        if let Some(upstream) = found {
            return Answer::ok(checker(upstream));
        }
        let resources = self.source.resources();
        let exists = resources.is_some_and(|resources| exists(&resources, section, id));
        Answer::not_found(match exists {
            true => format!("no checker for {section}[{id}]"),
            false => format!("{section}[{id}] not found"),
        })
    }
}

fn exists(resources: &Resources, section: &str, id: &str) -> bool {
    match section {
        "upstreams" => resources.upstreams.iter().any(|item| item.id == id),
        "services" => resources.services.iter().any(|item| item.id == id),
        "stream_routes" => resources.stream_routes.iter().any(|item| item.id == id),
        _ => false,
    }
}

fn checker(upstream: &Upstream) -> Value {
    let (section, id) = place_of(upstream);
    let checks = upstream.checks();
    let active = checks.and_then(|checks| checks.active.as_ref());
    let nodes: Vec<Value> = upstream
        .nodes_once()
        .flat_map(|node| targets(node, active))
        .collect();
    json!({
        "name": format!("/{section}/{id}"),
        "type": probe_name(active),
        "nodes": nodes,
    })
}

/// The name of what is done to find out; APISIX has no checks without probes.
pub(super) fn probe_name(active: Option<&Active>) -> &'static str {
    match active.map(|active| &active.probe) {
        None => "passive",
        Some(Probe::Tcp) => "tcp",
        Some(Probe::Http(probe)) if probe.tls.is_some() => "https",
        Some(Probe::Http(_)) => "http",
        Some(Probe::Mqtt(_)) => "mqtt",
    }
}

/// One entry for each address of the node; all have the health of the node. A name that has never
/// resolved stands for itself.
fn targets(node: &Node, active: Option<&Active>) -> Vec<Value> {
    let snapshot = node.health().snapshot();
    let mut counter = json!({
        "success": snapshot.successes,
        "http_failure": snapshot.failures(Failure::Http),
        "tcp_failure": snapshot.failures(Failure::Tcp),
        "timeout_failure": snapshot.failures(Failure::Timeout),
    });
    if probe_name(active) == "mqtt" {
        counter["mqtt_failure"] = snapshot.failures(Failure::Mqtt).into();
    }
    let probed = active.and_then(|active| active.port);
    let entry = |ip: String, port: u16| {
        json!({
            "ip": ip,
            "port": probed.unwrap_or(port),
            "hostname": node.host(),
            "status": snapshot.status(),
            "counter": counter,
        })
    };
    let addresses = node.addresses();
    match addresses.is_empty() {
        true => vec![entry(node.host().to_owned(), node.port())],
        false => addresses
            .iter()
            .map(|address| entry(address.ip().to_string(), address.port()))
            .collect(),
    }
}
