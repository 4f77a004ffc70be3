//! Whether this process serves, and the whole of it at a glance: `/status/ready`, `/v1/status`.

use serde_json::{Value, json};

use super::Control;
use super::api::Answer;
use super::objects::{nodes, target};

impl Control {
    /// What keeps this process from serving new clients; `None` when nothing does.
    fn not_ready(&self) -> Option<&'static str> {
        if self.leaving.get().is_none_or(|leaving| *leaving.borrow()) {
            return Some("this process is leaving");
        }
        if self.accepts.get().is_none() {
            return Some("the listeners do not accept yet");
        }
        if !*self.accepting.borrow() {
            return Some("another process accepts on the listeners");
        }
        if self.source.resources().is_none() {
            return Some("no configuration has been loaded yet");
        }
        None
    }

    /// `/status/ready`, in APISIX's words.
    pub(super) fn readiness(&self) -> Answer {
        match self.not_ready() {
            None => Answer::ok(json!({"status": "ok"})),
            Some(why) => Answer::unavailable_with(json!({"status": "error", "error": why})),
        }
    }

    /// Everything that `mqtt-proxy status` shows.
    pub(super) async fn overview(&self) -> Answer {
        let counts = match self.counts().await {
            Ok(counts) => counts,
            Err(answer) => return answer,
        };
        let table = self.table.load();
        let routes = table.routes().iter().map(|route| {
            let mut value = target(route);
            value["id"] = route.id.as_str().into();
            value["name"] = json!(route.name);
            value["connections"] = counts.of_route(&route.id).into();
            value
        });
        let mut upstreams: Vec<_> = table.upstreams().collect();
        upstreams.sort_unstable_by_key(|upstream| upstream.label());
        let upstreams = upstreams.into_iter().map(|upstream| {
            json!({
                "id": upstream.label(),
                "balancer": upstream.describe_balancer(),
                "nodes": nodes(upstream),
            })
        });
        let load = self.source.last_load();
        let not_ready = self.not_ready();
        Answer::ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": not_ready.is_none(),
            "not_ready_because": not_ready,
            "config": self.config,
            "standalone_file": std::path::absolute(&self.source.file.path).ok(),
            "last_load": load.map(|load| json!({
                "at": load.at.to_string(),
                "applied": load.applied,
            })),
            "connections": {"live": self.connections.live(), "limit": self.limit},
            "listeners": self.listener_values(),
            "routes": routes.collect::<Vec<Value>>(),
            "upstreams": upstreams.collect::<Vec<Value>>(),
        }))
    }
}
