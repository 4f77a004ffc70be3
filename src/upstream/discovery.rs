//! Services in DNS (`discovery_type: dns`): the nodes of an upstream, found at run time.
//!
//! A service is looked up when a table first uses it and again when the TTL of its records ends.
//! When its nodes change, whoever made the table is told and makes it anew, as after an edit of the
//! file: nodes that stay keep their counts, their health and their place on a ring. A name server
//! that fails or is slow never delays a connection and never takes a node away: the last good answer
//! stays in use and the service is looked up again with a growing pause.
//!
//! The rules are APISIX's (its `discovery/dns` and the DNS client below it). What differs: the
//! target of an SRV record is a node given by name, which keeps its place on a ring when its
//! address changes, and not one node for each of the addresses.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{self, RData};
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::watch;

use super::names::{Name, Names, SHORTEST_TTL, resolver_of};
use super::registry::{Answered, Pauses, Registry, lock};
use crate::config::resource::address;
use crate::config::resource::discovery::Discovery;
use crate::config::resource::upstream::{Host, UpstreamNode};
use crate::config::settings::{DiscoverySettings, DnsSettings, RecordType};

/// How long new targets of a service may take to be resolved before they are nodes all the same.
const TARGETS: Duration = Duration::from_secs(2);

/// One service and the nodes that it has. Shared by every upstream that names it.
#[derive(Debug)]
pub struct Service {
    config: Discovery,
    nodes: ArcSwap<Vec<UpstreamNode>>,
    /// Keeps them resolved.
    targets: Mutex<Vec<Arc<Name>>>,
    answered: Answered,
}

impl Service {
    /// The nodes in use, sorted; none before the first good answer.
    pub fn nodes(&self) -> Arc<Vec<UpstreamNode>> {
        self.nodes.load_full()
    }

    /// What the configuration says of it.
    pub fn config(&self) -> &Discovery {
        &self.config
    }
}

/// All services in use, and the Pingora background service that keeps them looked up.
pub struct Services {
    registry: Registry<Service>,
    finder: Arc<Finder>,
}

impl Services {
    /// Prepares the registry; nothing is asked before the service runs.
    pub fn new(settings: DiscoverySettings, ipv6: bool) -> Arc<Self> {
        // A target is a whole name [RFC 2782]: no search domain belongs behind it.
        let of_targets = DnsSettings {
            search: false,
            ..settings.dns.clone()
        };
        Arc::new(Services {
            registry: Registry::new(),
            finder: Arc::new(Finder {
                settings,
                ipv6,
                targets: Names::new(of_targets, ipv6),
                changes: watch::Sender::new(0),
            }),
        })
    }

    /// The entry of a service, which is kept looked up for as long as somebody holds it.
    pub fn get(&self, config: &Discovery) -> Arc<Service> {
        let key = config.to_string().to_ascii_lowercase();
        self.registry.get(key, || Service {
            config: config.clone(),
            nodes: ArcSwap::default(),
            targets: Mutex::default(),
            answered: Answered::new(false),
        })
    }

    /// Where the targets of services are resolved.
    pub fn targets(&self) -> &Names {
        &self.finder.targets
    }

    /// Tells of every change of the nodes of any service.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.finder.changes.subscribe()
    }

    /// Waits until every service in use has nodes, or has failed once, or `limit` has passed.
    pub async fn settled(&self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        for service in self.registry.all() {
            if !service.answered.wait_until(deadline).await {
                log::warn!("service {} has no nodes yet", service.config);
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Services {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(mut queue) = self.registry.queue() else {
            return;
        };
        let finder = &self.finder;
        let resolve_targets = finder.targets.start(shutdown.clone());
        let look_up = async {
            let mut resolver = None;
            loop {
                tokio::select! {
                    Some(entry) = queue.recv() => {
                        let resolver = resolver
                            .get_or_insert_with(|| resolver_of(&finder.settings.dns, finder.ipv6));
                        if let Some(resolver) = resolver {
                            tokio::spawn(finder.clone().keep_found(entry, resolver.clone()));
                        }
                    }
                    _ = shutdown.changed() => return,
                }
            }
        };
        tokio::join!(resolve_targets, look_up);
    }
}

/// What finds the nodes of services.
struct Finder {
    settings: DiscoverySettings,
    ipv6: bool,
    targets: Arc<Names>,
    changes: watch::Sender<u64>,
}

impl Finder {
    /// Keeps one service looked up until nobody uses it any more.
    async fn keep_found(self: Arc<Self>, entry: Weak<Service>, resolver: Arc<TokioResolver>) {
        let mut pauses = Pauses::default();
        let mut last = None;
        while let Some(service) = entry.upgrade() {
            let pause = match self.look_up(&service.config, last, &resolver).await {
                Ok(answer) => {
                    last = Some(answer.kind);
                    pauses = Pauses::default();
                    self.publish(&service, answer.nodes).await;
                    let left = answer.valid_until.saturating_duration_since(Instant::now());
                    left.max(SHORTEST_TTL)
                }
                Err(error) => {
                    let pause = pauses.next();
                    log::warn!(
                        "service {}: {error}; {} in use, next try in {} s",
                        service.config,
                        match service.nodes().len() {
                            0 => "no node".to_owned(),
                            count => format!("the last {count} known node(s)"),
                        },
                        pause.as_secs()
                    );
                    service.answered.tell();
                    pause
                }
            };
            drop(service);
            tokio::time::sleep(pause).await;
        }
    }

    /// Has these nodes used. New targets are resolved first: a node without an address is none yet.
    async fn publish(&self, service: &Service, nodes: Vec<UpstreamNode>) {
        let targets: Vec<Arc<Name>> = nodes
            .iter()
            .filter_map(|node| match &node.host {
                Host::Name(name) => Some(self.targets.get(name)),
                Host::Ip(_) => None,
            })
            .collect();
        Names::wait_for(&targets, TARGETS).await;
        *lock(&service.targets) = targets;
        if **service.nodes.load() != nodes {
            service.nodes.store(Arc::new(nodes));
            self.changes
                .send_modify(|count| *count = count.wrapping_add(1));
        }
        service.answered.tell();
    }

    /// Asks for one record type after the other until there is one with nodes. A server that fails
    /// ends the search: what else the name has may be something quite different.
    async fn look_up(
        &self,
        service: &Discovery,
        last: Option<rr::RecordType>,
        resolver: &TokioResolver,
    ) -> Result<Answer, LookUpError> {
        let order = self.settings.order.iter().filter_map(|kind| match kind {
            RecordType::Last => last,
            RecordType::Srv => Some(rr::RecordType::SRV),
            RecordType::A => Some(rr::RecordType::A),
            RecordType::Aaaa => Some(rr::RecordType::AAAA),
        });
        let mut tried = Vec::new();
        let mut useless = LookUpError::NoRecords;
        for kind in order {
            if tried.contains(&kind) {
                continue;
            }
            tried.push(kind);
            let answer = match resolver.lookup(service.name.as_str(), kind).await {
                Ok(answer) => answer,
                Err(none) if none.is_no_records_found() => continue,
                Err(failed) => return Err(failed.into()),
            };
            let data = answer.answers().iter().map(|record| &record.data);
            match nodes_of(data, service.port) {
                Ok(nodes) => {
                    return Ok(Answer {
                        kind,
                        nodes,
                        valid_until: answer.valid_until(),
                    });
                }
                Err(why) => useless = why,
            }
        }
        Err(useless)
    }
}

/// A good answer.
struct Answer {
    kind: rr::RecordType,
    nodes: Vec<UpstreamNode>,
    valid_until: Instant,
}

/// Why a look-up led to no nodes.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error("failed to query the DNS server: {0}")]
    Dns(#[from] NetError),
    #[error("it has no record of a type that is asked for")]
    NoRecords,
    #[error("its records have no port: write one behind the name in service_name")]
    NoPort,
    #[error("its SRV records name no target")]
    NoTarget,
}

/// The nodes that an answer stands for, sorted, so that an answer in another order is the same.
/// Their number is bounded by the 64 KiB that an answer of DNS may have.
fn nodes_of<'a>(
    data: impl Iterator<Item = &'a RData>,
    port: Option<u16>,
) -> Result<Vec<UpstreamNode>, LookUpError> {
    let mut nodes = Vec::new();
    let mut useless = LookUpError::NoRecords;
    for data in data {
        let (host, port, weight, priority) = match data {
            RData::A(a) => (Host::Ip(IpAddr::V4(a.0)), port, 1, 0),
            RData::AAAA(aaaa) => (Host::Ip(IpAddr::V6(aaaa.0)), port, 1, 0),
            RData::SRV(srv) => {
                let target = srv.target.to_ascii();
                // "." says that the service is not there [RFC 2782].
                let Ok((host, None)) = address::host(target.trim_end_matches('.')) else {
                    useless = LookUpError::NoTarget;
                    continue;
                };
                (
                    lower(host),
                    port.or(Some(srv.port)),
                    // Weight 0 asks for a very small chance [RFC 2782].
                    u32::from(srv.weight.max(1)),
                    // The lowest SRV priority is used first, and the highest of a node.
                    -i64::from(srv.priority),
                )
            }
            _ => continue,
        };
        match port {
            Some(port) if port > 0 => nodes.push(UpstreamNode {
                host,
                port,
                weight,
                priority,
            }),
            _ => useless = LookUpError::NoPort,
        }
    }
    if nodes.is_empty() {
        return Err(useless);
    }
    nodes.sort_by_cached_key(|node| {
        (
            std::cmp::Reverse(node.priority),
            node.host.to_string(),
            node.port,
            std::cmp::Reverse(node.weight),
        )
    });
    // The same node twice: the larger weight counts, whatever the order of the answer.
    nodes.dedup_by(|a, b| (&a.host, a.port, a.priority) == (&b.host, b.port, b.priority));
    Ok(nodes)
}

/// Names in DNS have no case, and some servers answer in that of the query, which varies.
fn lower(host: Host) -> Host {
    match host {
        Host::Name(name) => Host::Name(name.to_ascii_lowercase()),
        ip => ip,
    }
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
