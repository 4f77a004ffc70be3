//! `/v1/connections`: how many connections there are and where, and one of them by its client id.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::Control;
use super::api::Answer;
use crate::session::listener::TlsMode;
use crate::session::outcome::{ClientIdHash, Record};
use crate::session::relay::Sight;

/// How long the relay threads may take to look at all their pairs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Routes that are listed, those with the most connections first.
const TOP_ROUTES: usize = 20;
/// Connections of one client id that are listed: in order there is one.
const MAX_FOUND: usize = 100;

/// What relay threads count. Labels are bounded by what the configuration has and has had.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    relayed: usize,
    routes: HashMap<String, usize>,
    /// By upstream and node.
    nodes: HashMap<(String, String), usize>,
}

impl Counts {
    fn see(&mut self, sight: &Sight<'_>) {
        let Record { route, broker, .. } = sight.record;
        self.relayed += 1;
        let Some(route) = route else { return };
        match self.routes.get_mut(&route.id) {
            Some(count) => *count += 1,
            None => {
                self.routes.insert(route.id.clone(), 1);
            }
        }
        if let Some(broker) = broker {
            let upstream = route.upstream.as_ref().ok();
            let upstream = upstream.map_or("", |upstream| upstream.label());
            let node = (upstream.to_owned(), broker.node().label().to_owned());
            *self.nodes.entry(node).or_default() += 1;
        }
    }

    fn add(&mut self, other: Counts) {
        self.relayed += other.relayed;
        for (route, count) in other.routes {
            *self.routes.entry(route).or_default() += count;
        }
        for (node, count) in other.nodes {
            *self.nodes.entry(node).or_default() += count;
        }
    }

    /// Relayed connections of a route.
    pub fn of_route(&self, id: &str) -> usize {
        self.routes.get(id).copied().unwrap_or_default()
    }
}

impl Control {
    /// Counts every relayed connection; an answer instead when a relay thread is stuck.
    pub(super) async fn counts(&self) -> Result<Counts, Answer> {
        let folded = self.relays.fold(Counts::default(), Counts::see);
        let folded = timeout(PATIENCE, folded).await.map_err(|_| stuck())?;
        Ok(folded.into_iter().fold(Counts::default(), |mut all, one| {
            all.add(one);
            all
        }))
    }

    /// How many there are, by listener, node and route.
    pub(super) async fn connections(&self) -> Answer {
        let mut counts = match self.counts().await {
            Ok(counts) => counts,
            Err(answer) => return answer,
        };
        let mut nodes = Vec::new();
        let table = self.table.load();
        let mut upstreams: Vec<_> = table.upstreams().collect();
        upstreams.sort_unstable_by_key(|upstream| upstream.label());
        for upstream in upstreams {
            for node in upstream.nodes_once() {
                let key = (upstream.label().to_owned(), node.label().to_owned());
                // What relays count is a part of what the node counts.
                counts.nodes.remove(&key);
                nodes.push(node_value(&key, node.live(), true));
            }
        }
        let mut gone: Vec<_> = counts.nodes.into_iter().collect();
        gone.sort_unstable();
        nodes.extend(
            gone.iter()
                .map(|(key, count)| node_value(key, *count, false)),
        );
        let mut routes: Vec<_> = counts.routes.into_iter().collect();
        routes.sort_unstable_by(|(one, few), (other, many)| many.cmp(few).then(one.cmp(other)));
        let in_all = routes.len();
        let top = routes.into_iter().take(TOP_ROUTES);
        Answer::ok(json!({
            "live": self.connections.live(),
            "limit": self.limit,
            "relayed": counts.relayed,
            "listeners": self.listener_values(),
            "nodes": nodes,
            "routes": top
                .map(|(route, count)| json!({"route": route, "connections": count}))
                .collect::<Vec<_>>(),
            "routes_with_connections": in_all,
        }))
    }

    /// Every listener with its connections, in file order.
    pub(super) fn listener_values(&self) -> Vec<Value> {
        let listeners = self.listeners.iter().map(|listener| {
            let tls = listener.tls.as_ref().map(|tls| match tls.mode {
                TlsMode::End => "ends",
                TlsMode::Pass => "passes through",
                TlsMode::RouteDecides => "by route",
            });
            json!({
                "address": listener.address,
                "tls": tls,
                "connections": listener.counts.active(),
            })
        });
        listeners.collect()
    }

    /// The relayed connections of one client id.
    pub(super) async fn find(&self, key: ClientIdHash) -> Answer {
        let see = move |found: &mut Vec<Value>, sight: &Sight<'_>| {
            if sight.record.client_id_hash == Some(key) && found.len() < MAX_FOUND {
                found.push(connection_value(sight));
            }
        };
        let folded = self.relays.fold(Vec::new(), see);
        match timeout(PATIENCE, folded).await {
            Err(_) => stuck(),
            Ok(found) => {
                let found: Vec<Value> = found.into_iter().flatten().take(MAX_FOUND).collect();
                match found.is_empty() {
                    true => Answer::not_found("no connection of this client is relayed"),
                    false => Answer::ok(json!({"connections": found})),
                }
            }
        }
    }
}

fn stuck() -> Answer {
    Answer::unavailable("a relay thread does not answer")
}

fn node_value((upstream, node): &(String, String), count: usize, configured: bool) -> Value {
    json!({
        "upstream": upstream,
        "node": node,
        "connections": count,
        "configured": configured,
    })
}

fn connection_value(sight: &Sight<'_>) -> Value {
    let record = sight.record;
    let route = record.route.as_deref();
    let upstream = route.and_then(|route| route.upstream.as_ref().ok());
    let by_route = route.is_some_and(|route| !route.tls_passthrough);
    // Of what is passed through no client id can be read: such a client came in the plain.
    let tls = record
        .listener
        .tls
        .as_ref()
        .is_some_and(|tls| match tls.mode {
            TlsMode::End => true,
            TlsMode::Pass => false,
            TlsMode::RouteDecides => by_route,
        });
    json!({
        "client": record.client,
        "listener": record.listener.address,
        "tls": tls,
        "route": route.map(|route| &route.id),
        "upstream": upstream.map(|upstream| upstream.label()),
        "node": record.broker.as_ref().map(|broker| broker.node().label()),
        "tls_to_node": upstream.is_some_and(|upstream| upstream.tls().is_some()),
        "age_seconds": whole_milliseconds(record.age()),
        "silent_seconds": whole_milliseconds(sight.last_activity.elapsed()),
        "to_broker_bytes": record.to_broker,
        "to_client_bytes": record.to_client,
    })
}

fn whole_milliseconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}
