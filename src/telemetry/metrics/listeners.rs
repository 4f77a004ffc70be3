//! What is counted by listener: connections, bytes, and how sessions end in APISIX's words.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family::{bare_counters, counters, gauges, sole_counter};
use crate::histogram::own_shard;

/// The values of the label `code` of `apisix_stream_status`.
pub const CODES: [&str; 6] = ["001", "200", "400", "500", "502", "503"];
/// The flows of `apisix_stream_bandwidth`: type and side.
const FLOWS: [(&str, &str); 4] = [
    ("ingress", "downstream"),
    ("egress", "upstream"),
    ("ingress", "upstream"),
    ("egress", "downstream"),
];
/// Copies of the byte counts, over which the relay threads spread.
const SHARDS: usize = 8;

/// Bytes of relayed connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received from clients.
    pub from_client: u64,
    /// Sent to brokers.
    pub to_broker: u64,
    /// Received from brokers.
    pub from_broker: u64,
    /// Sent to clients.
    pub to_client: u64,
}

/// What is counted by one listener. Shared by all its connections, wherever they are served.
#[derive(Debug)]
pub struct ListenerCounts {
    address: String,
    accepted: AtomicU64,
    active: AtomicI64,
    bytes: [Bytes; SHARDS],
    /// By the label of the node; "" where none was picked.
    ends: RwLock<HashMap<String, [AtomicU64; CODES.len()]>>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Bytes([AtomicU64; FLOWS.len()]);

impl ListenerCounts {
    fn new(address: String) -> Self {
        ListenerCounts {
            address,
            accepted: AtomicU64::new(0),
            active: AtomicI64::new(0),
            bytes: Default::default(),
            ends: RwLock::default(),
        }
    }

    /// A connection was accepted.
    pub fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection is served by this process from now on.
    pub fn opened(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// It is not any more.
    pub fn closed(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that this process serves now.
    pub fn active(&self) -> i64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Bytes were relayed.
    pub fn relayed(&self, traffic: Traffic) {
        let Bytes(counts) = &self.bytes[own_shard(SHARDS)];
        for (count, more) in counts.iter().zip(traffic.flows()) {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// A session of a route ended with one of [`CODES`]; `node` is the label of its last node.
    pub fn session(&self, code: &str, node: &str) {
        self.add_sessions(code, node, 1);
    }

    fn add_sessions(&self, code: &str, node: &str, count: u64) {
        let Some(place) = CODES.iter().position(|known| *known == code) else {
            return;
        };
        {
            let ends = self.ends.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = ends.get(node) {
                known[place].fetch_add(count, Ordering::Relaxed);
                return;
            }
        }
        let mut ends = self.ends.write().unwrap_or_else(PoisonError::into_inner);
        let counts = ends.entry(node.to_owned()).or_default();
        counts[place].fetch_add(count, Ordering::Relaxed);
    }

    fn flows(&self) -> [u64; FLOWS.len()] {
        let mut sums = [0; FLOWS.len()];
        for Bytes(counts) in &self.bytes {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sums
    }
}

impl Traffic {
    /// In the order of [`FLOWS`].
    fn flows(self) -> [u64; FLOWS.len()] {
        [
            self.from_client,
            self.to_broker,
            self.from_broker,
            self.to_client,
        ]
    }
}

/// The listeners of the process, those of an earlier process that still have connections included.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<BTreeMap<SocketAddr, Arc<ListenerCounts>>>);

impl Listeners {
    /// The counts of the listener on this address.
    pub fn get(&self, address: SocketAddr) -> Arc<ListenerCounts> {
        let mut all = self.all();
        let counts = all
            .entry(address)
            .or_insert_with(|| Arc::new(ListenerCounts::new(address.to_string())));
        counts.clone()
    }

    /// Forgets nodes that are not among these any more.
    pub fn keep_nodes(&self, nodes: &HashSet<&str>) {
        for counts in self.all().values() {
            let mut ends = counts.ends.write().unwrap_or_else(PoisonError::into_inner);
            ends.retain(|node, _| node.is_empty() || nodes.contains(node.as_str()));
        }
    }

    /// Bytes to brokers and to clients, over all listeners.
    pub fn bytes(&self) -> (u64, u64) {
        let all = self.all();
        let flows = all.values().map(|counts| counts.flows());
        flows.fold((0, 0), |(up, down), flows| (up + flows[1], down + flows[3]))
    }

    /// Adds what another process counted. `labels` are those of a series.
    pub fn carry_on(&self, name: &str, labels: &HashMap<&str, String>, more: u64) {
        let label = |name| labels.get(name).map(String::as_str).unwrap_or_default();
        let Ok(address) = label("listen_addr").parse() else {
            return;
        };
        let counts = self.get(address);
        match name {
            "mqtt_proxy_connections_accepted_total" => {
                counts.accepted.fetch_add(more, Ordering::Relaxed);
            }
            "apisix_stream_status" => counts.add_sessions(label("code"), label("node"), more),
            "apisix_stream_bandwidth" => {
                let wanted = (label("type"), label("side"));
                let flow = FLOWS.iter().position(|flow| *flow == wanted);
                if let Some(flow) = flow {
                    counts.bytes[0].0[flow].fetch_add(more, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Arc<ListenerCounts>>> {
        // Nothing in it can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes [`Listeners`] at each scrape.
#[derive(Debug)]
pub(super) struct ListenerMetrics(pub Arc<Listeners>);

impl Collector for ListenerMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all().clone();
        let each = || all.values();
        counters(
            &mut encoder,
            "mqtt_proxy_connections_accepted",
            "Connections that a listener accepted",
            each().map(|counts| {
                let accepted = counts.accepted.load(Ordering::Relaxed);
                ([("listen_addr", counts.address.as_str())], accepted)
            }),
        )?;
        gauges(
            &mut encoder,
            "apisix_stream_active_connections",
            "Client connections that are open",
            each().map(|counts| {
                let active = counts.active.load(Ordering::Relaxed);
                ([("listen_addr", counts.address.as_str())], active)
            }),
        )?;
        bare_counters(
            &mut encoder,
            "apisix_stream_bandwidth",
            "Bytes of relayed connections, while they move: received (ingress) and sent (egress), \
             on the side of clients (downstream) and of brokers (upstream)",
            each().flat_map(|counts| {
                let flows = FLOWS.iter().zip(counts.flows());
                flows.map(|(&(direction, side), bytes)| {
                    let labels = [
                        ("listen_addr", counts.address.as_str()),
                        ("type", direction),
                        ("side", side),
                    ];
                    (labels, bytes)
                })
            }),
        )?;
        let mut sessions = Vec::new();
        for counts in each() {
            let ends = counts.ends.read().unwrap_or_else(PoisonError::into_inner);
            for (node, codes) in ends.iter() {
                for (code, count) in CODES.iter().zip(codes) {
                    match count.load(Ordering::Relaxed) {
                        0 => {}
                        count => sessions.push((counts, *code, node.clone(), count)),
                    }
                }
            }
        }
        bare_counters(
            &mut encoder,
            "apisix_stream_status",
            "Sessions of a route that ended, by APISIX's status code and the last node",
            sessions.iter().map(|(counts, code, node, count)| {
                let labels = [
                    ("code", *code),
                    ("listen_addr", counts.address.as_str()),
                    ("node", node.as_str()),
                ];
                (labels, *count)
            }),
        )?;
        let (to_broker, to_client) = self.0.bytes();
        let help = "Bytes sent to brokers";
        sole_counter(&mut encoder, "mqtt_proxy_to_broker_bytes", help, to_broker)?;
        let help = "Bytes sent to clients";
        sole_counter(&mut encoder, "mqtt_proxy_to_client_bytes", help, to_client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_left_the_configuration_leave_the_metrics() {
        let listeners = Listeners::default();
        let counts = listeners.get("127.0.0.1:9100".parse().unwrap());
        for node in ["", "a:1", "b:1"] {
            counts.session("200", node);
        }
        counts.session("418", "a:1");
        listeners.keep_nodes(&HashSet::from(["b:1"]));
        let ends = counts.ends.read().unwrap();
        let mut left: Vec<&str> = ends.keys().map(String::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["", "b:1"]);
        assert_eq!(ends["b:1"][1].load(Ordering::Relaxed), 1);
    }
}
