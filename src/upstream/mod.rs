//! Upstreams: nodes, balancers, names and connecting with retries.

pub mod connect;
pub mod discovery;
pub mod ewma;
pub mod hash_key;
pub mod health;
pub mod level;
pub mod loads;
pub mod names;
pub mod node;
pub(crate) mod random;
mod registry;
pub mod ring;
pub mod round_robin;
mod shared;
pub mod source_address;
pub mod targets;
pub mod variables;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::config::resource::checks::Checks;
use crate::config::resource::credentials::CertificatePair;
use crate::config::resource::upstream::{
    self as resource, Balancer, HashKey, Host, Scheme, UpstreamNode,
};
use crate::config::resource::weights;
use crate::histogram::Histogram;
use crate::tls::client::{ClientTls, ClientTlsError};
use discovery::Service;
use hash_key::{Key, Source};
use health::probe::Verdict;
use health::{Change, Failure, Seen};
use level::{Level, Member, Terms, Wish};
use names::NameUser;
use node::{Node, NodeUser};
use ring::Places;
use source_address::SourceAddresses;
use targets::Targets;
use variables::Variables;

pub use shared::{Context, Shared};

/// How an upstream with `scheme: tls` speaks it, or why it cannot.
fn client_tls(
    label: &str,
    config: &resource::Upstream,
    identity: &Result<Option<Arc<CertificatePair>>, ClientTlsError>,
    context: &Context<'_>,
) -> Option<Result<ClientTls, ClientTlsError>> {
    if config.scheme != Scheme::Tls {
        return None;
    }
    let (trusted, layer) = (
        context.tls.trusted.as_deref(),
        context.tls.settings.record_layer,
    );
    let built = identity.clone().and_then(|identity| {
        ClientTls::build(&config.upstream_tls, identity.as_deref(), trusted, layer)
    });
    if let Err(error) = &built {
        log::error!("upstream {label} cannot be reached over TLS: {error}");
    }
    Some(built)
}

/// An upstream at run time: immutable but for what its names resolve to and its counts.
pub struct Upstream {
    label: String,
    config: resource::Upstream,
    levels: Vec<Level>,
    tls: Option<Result<ClientTls, ClientTlsError>>,
    identity: Option<Arc<CertificatePair>>,
    /// The service that its nodes are of, and those that it had when the upstream was built.
    found: Option<(Arc<Service>, Arc<Vec<UpstreamNode>>)>,
    health_checks: bool,
    source_addresses: Arc<SourceAddresses>,
    refreshing: Mutex<()>,
    /// Every node is unhealthy, so none is worse than another.
    ignore_health: AtomicBool,
    /// How many addresses its nodes have in all.
    addresses: AtomicUsize,
    /// Where each node stands in the levels, by its own address in memory.
    places: HashMap<usize, Vec<(usize, usize)>>,
    /// How long connects for clients took that succeeded, over all loads that have it.
    connect_times: Arc<Histogram>,
}

impl Upstream {
    /// Builds the upstream that logs and metrics call `label`.
    ///
    /// `previous` is the upstream that stood at the same place of the table before: nodes that
    /// are still there are taken over with their counts.
    pub fn build(
        label: String,
        config: &resource::Upstream,
        context: &Context<'_>,
        previous: Option<&Upstream>,
    ) -> Arc<Self> {
        let known: HashMap<&str, &Arc<Node>> = previous
            .iter()
            .flat_map(|upstream| upstream.nodes())
            .map(|node| (node.label(), node))
            .collect();
        let shared = context.shared;
        let found = config.discovery.as_ref().map(|discovery| {
            let service = shared.services.get(discovery);
            let nodes = service.nodes();
            (service, nodes)
        });
        let (configured, names) = match &found {
            Some((_, nodes)) => (usable(nodes, config.balancer), shared.services.targets()),
            None => (config.nodes.clone(), &*shared.names),
        };
        let mut named = Vec::new();
        let mut by_priority: BTreeMap<i64, Vec<Member>> = BTreeMap::new();
        let mut seen: HashMap<(i64, String), usize> = HashMap::new();
        for configured in &configured {
            let label = Node::label_of(&configured.host, configured.port);
            let known = known.get(label.as_str()).copied();
            let node = match &configured.host {
                Host::Ip(ip) => known
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Node::fixed((*ip, configured.port).into()))),
                Host::Name(name) => {
                    let name = names.get(name);
                    named.push(name.clone());
                    // A node is another one where its name is resolved elsewhere.
                    known
                        .filter(|node| node.is_named(&name))
                        .cloned()
                        .unwrap_or_else(|| Arc::new(Node::named(name, configured.port)))
                }
            };
            let members = by_priority.entry(configured.priority).or_default();
            match seen.entry((configured.priority, label)) {
                // APISIX keys nodes by host and port: the last of several decides the weight.
                Entry::Occupied(place) => members[*place.get()].weight = configured.weight,
                Entry::Vacant(place) => {
                    place.insert(members.len());
                    members.push(Member {
                        node,
                        weight: configured.weight,
                    });
                }
            }
        }
        let bounded = config.balance_factor.is_some();
        let places = Places::of(shared.ring_identity, found.is_some());
        let levels: Vec<Level> = by_priority
            .into_values()
            .rev()
            .map(|members| Level::new(members, config.balancer, places, bounded))
            .collect();
        let mut places: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
        for (place, level) in levels.iter().enumerate() {
            for (member, Member { node, .. }) in level.members.iter().enumerate() {
                let known = places.entry(Arc::as_ptr(node).addr()).or_default();
                known.push((place, member));
            }
        }
        let identity = context.client_certificate(config);
        let label_for_tls = label.clone();
        let upstream = Arc::new(Upstream {
            label,
            config: config.clone(),
            levels,
            tls: client_tls(&label_for_tls, config, &identity, context),
            identity: identity.ok().flatten(),
            found,
            health_checks: shared.health_checks,
            source_addresses: shared.source_addresses.clone(),
            refreshing: Mutex::new(()),
            ignore_health: AtomicBool::new(false),
            addresses: AtomicUsize::new(0),
            places,
            connect_times: previous
                .map(|previous| previous.connect_times.clone())
                .unwrap_or_default(),
        });
        upstream.judge_levels();
        for name in named {
            let user: Weak<Upstream> = Arc::downgrade(&upstream);
            name.subscribe(user);
        }
        // A name may have got its addresses between the building of the ring and now.
        upstream.addresses_changed();
        upstream
    }

    /// `ID` of an upstream object, or `route/ID`, `service/ID` for one written inline.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How long connects for clients took that succeeded, TLS included.
    pub fn connect_times(&self) -> &Histogram {
        &self.connect_times
    }

    /// The label of the node that has this address now.
    pub fn node_at(&self, address: SocketAddr) -> Option<&str> {
        let mut nodes = self.nodes();
        let node = nodes.find(|node| node.addresses().contains(&address))?;
        Some(node.label())
    }

    /// Whether building it again from `config` would make the same.
    pub fn is_same(&self, config: &resource::Upstream, context: &Context<'_>) -> bool {
        let identity = context.client_certificate(config).ok().flatten();
        self.config == *config
            && self.identity == identity
            && !self.is_outdated()
            && !matches!(self.tls, Some(Err(_)))
    }

    /// Whether the service that its nodes are of has other nodes now.
    pub fn is_outdated(&self) -> bool {
        let found = self.found.as_ref();
        found.is_some_and(|(service, nodes)| !Arc::ptr_eq(&service.nodes(), nodes))
    }

    /// The service that its nodes are of, instead of being configured.
    pub fn service(&self) -> Option<&Service> {
        self.found.as_ref().map(|(service, _)| &**service)
    }

    /// The health checks of its nodes, unless they are turned off as a whole.
    pub fn checks(&self) -> Option<&Checks> {
        self.config.checks.as_ref().filter(|_| self.health_checks)
    }

    /// Where connections to its nodes come from.
    pub fn source_addresses(&self) -> &SourceAddresses {
        &self.source_addresses
    }

    /// How TLS is spoken to the nodes; `None` for plain TCP.
    pub fn tls(&self) -> Option<&Result<ClientTls, ClientTlsError>> {
        self.tls.as_ref()
    }

    /// The object that it was built from.
    pub fn config(&self) -> &resource::Upstream {
        &self.config
    }

    /// The nodes as they are written, or were found when it was built, in that order.
    pub fn written_nodes(&self) -> &[UpstreamNode] {
        match &self.found {
            Some((_, nodes)) => nodes,
            None => &self.config.nodes,
        }
    }

    /// All nodes, highest priority first.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.levels
            .iter()
            .flat_map(|level| &level.members)
            .map(|member| &member.node)
    }

    /// All nodes, each once even where several priorities share it.
    pub fn nodes_once(&self) -> impl Iterator<Item = &Arc<Node>> {
        let mut seen = HashSet::new();
        self.nodes().filter(move |node| seen.insert(node.label()))
    }

    /// The nodes that take new connections. A node of weight 0 does so only in a level where all
    /// have it, or alone.
    pub fn nodes_in_use(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.levels.iter().flat_map(Level::nodes_in_use)
    }

    /// Whether a connection that is sent away finds a healthy node.
    pub fn has_room(&self) -> bool {
        !self.ignore_health.load(Ordering::Relaxed)
            && self.nodes_in_use().any(|node| node.health().is_healthy())
    }

    /// The node where a connection with this key has its place on the ring now: the first that
    /// would be tried for it, as long as that has room for it. `None` without a ring, and while
    /// health is ignored.
    pub fn home(&self, key: &[u8]) -> Option<&Arc<Node>> {
        let terms = self.terms();
        if self.config.balancer != Balancer::Chash || terms.ignore_health {
            return None;
        }
        let pick = |terms: Terms| {
            let wish = Wish {
                key,
                tried: &[],
                terms,
            };
            let picked = |level: &Level| Some((std::ptr::from_ref(level), level.pick(&wish)?));
            self.levels.iter().find_map(picked)
        };
        let (level, place) = pick(terms)?;
        let unbounded = Terms {
            balance_factor: None,
            ..terms
        };
        let same = terms.balance_factor.is_none() || pick(unbounded) == Some((level, place));
        let level = self.levels.iter().find(|one| std::ptr::eq(*one, level))?;
        same.then(|| &level.members[place.member].node)
    }

    /// The hash key of a connection; empty where the balancer does not hash.
    pub fn key(&self, variables: &Variables<'_>) -> Key {
        match self.config.balancer {
            Balancer::Chash => hash_key::resolve(&self.config.hash_key, variables),
            Balancer::RoundRobin | Balancer::LeastConn | Balancer::Ewma => Key {
                bytes: Vec::new(),
                source: Source::Configured,
            },
        }
    }

    /// The nodes in the order in which a connection with this key tries them, all levels, without
    /// regard to what names resolve to now: what `explain` prints.
    pub fn node_order(&self, key: &[u8]) -> Vec<&Node> {
        let mut order = Vec::new();
        for level in &self.levels {
            let mut tried = Vec::new();
            while let Some(place) = level.pick(&Wish {
                key,
                tried: &tried,
                terms: Terms {
                    ignore_health: true,
                    ..Terms::default()
                },
            }) {
                tried.push(place);
                order.push(&*level.members[place.member].node);
            }
        }
        order
    }

    /// The addresses to try for a connection with this key, one after the other.
    pub fn targets<'a>(&'a self, key: &'a [u8]) -> Targets<'a> {
        let terms = self.terms();
        let addresses = self.addresses.load(Ordering::Relaxed);
        Targets::new(&self.levels, key, self.config.retries, addresses, terms)
    }

    fn terms(&self) -> Terms {
        Terms {
            ignore_health: self.ignore_health.load(Ordering::Relaxed),
            slow_start: self.config.slow_start,
            balance_factor: self.config.balance_factor,
        }
    }

    /// Called when a table with this upstream starts to serve: from now on it hears of what
    /// happens to its nodes, and no longer the upstream that had them before.
    pub fn enter_service(self: &Arc<Self>) {
        let user: Weak<Upstream> = Arc::downgrade(self);
        let counted = self.levels.iter().any(Level::counts);
        for node in self.nodes() {
            match self.checks() {
                Some(_) => node.health().learn(),
                None => node.health().forget(),
            }
            node.serve(user.clone(), counted);
        }
        // Connections that began or ended since the upstream was built.
        for level in self.levels.iter().filter(|level| level.counts()) {
            for member in 0..level.members.len() {
                level.follow_load(member);
            }
        }
        self.health_changed();
    }

    /// A connect for a client succeeded and took so long.
    pub(crate) fn connected(&self, node: &Node, took: Duration) {
        self.connect_times.observe(took);
        node.counts().connected.fetch_add(1, Ordering::Relaxed);
        node.health().connected();
        if self.config.balancer == Balancer::Ewma {
            node.connect_time().add(took);
        }
    }

    /// A connect for a client failed. What the proxy itself is short of says nothing about the
    /// node.
    fn connect_failed(&self, node: &Node, error: &io::Error) {
        node.counts().failed.fetch_add(1, Ordering::Relaxed);
        let Some(checks) = self.checks() else {
            return;
        };
        let failure = match error.kind() {
            io::ErrorKind::TimedOut => Failure::Timeout,
            _ if is_shortage(error) => return,
            _ => Failure::Tcp,
        };
        let limits = &checks.passive.failures;
        if let Some(change) = node.health().failed(Seen::Connect, failure, limits) {
            self.announce(node, change, &format!("connect for a client: {error}"));
        }
    }

    /// A probe of the node ended.
    fn probed(&self, node: &Node, verdict: Verdict) {
        let (upstream, label) = (&self.label, node.label());
        log::debug!("upstream {upstream}: probe of {label}: {verdict:?}");
        let Some(active) = self.checks().and_then(|checks| checks.active.as_ref()) else {
            return;
        };
        let change = match &verdict {
            Verdict::Neither => None,
            Verdict::Success => node.health().probe_succeeded(active.successes),
            Verdict::Failed(failure, _) => {
                node.health()
                    .failed(Seen::Probe, *failure, &active.failures)
            }
        };
        match (change, verdict) {
            (Some(change), Verdict::Failed(_, why)) => self.announce(node, change, &why),
            (Some(change), _) => {
                let why = format!("{} probes in a row succeeded", active.successes);
                self.announce(node, change, &why);
            }
            (None, _) => {}
        }
    }

    /// An unhealthy node that is not probed has been left alone for long enough.
    fn recovered(&self, node: &Node) {
        if let Some(change) = node.health().recover() {
            self.announce(node, change, "its recovery_time has passed");
        }
    }

    /// Logs a change of health and has the balancers follow it.
    fn announce(&self, node: &Node, change: Change, why: &str) {
        let (upstream, node_label) = (&self.label, node.label());
        match change {
            Change::Healthy => {
                node.tell_health_changed();
                // Whoever reads this finds the node in use.
                log::info!("upstream {upstream}: node {node_label} is healthy again: {why}");
            }
            Change::Unhealthy(count, failure) => {
                log::warn!(
                    "upstream {upstream}: node {node_label} is unhealthy: {count} {} in a row, last: {why}",
                    failure.plural()
                );
                node.tell_health_changed();
            }
        }
    }

    /// Has the balancers follow the health of their nodes; says whether all are unhealthy now and
    /// were before.
    fn judge_levels(&self) -> (bool, bool) {
        let _one_at_a_time = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for level in &self.levels {
            level.follow_health();
        }
        let none = !self.levels.is_empty() && !self.levels.iter().any(Level::has_healthy);
        (none, self.ignore_health.swap(none, Ordering::Relaxed))
    }

    /// How `explain` and the documentation name the balancer.
    pub fn describe_balancer(&self) -> String {
        match (self.config.balancer, &self.config.hash_key) {
            (Balancer::RoundRobin, _) => "roundrobin".to_owned(),
            (Balancer::LeastConn, _) => "least_conn".to_owned(),
            (Balancer::Ewma, _) => "ewma".to_owned(),
            (Balancer::Chash, HashKey::Address) => "chash on the client address".to_owned(),
            (Balancer::Chash, HashKey::Variable(name)) => format!("chash on {name}"),
            (Balancer::Chash, HashKey::Template(template)) => format!("chash on {template}"),
        }
    }
}

impl NameUser for Upstream {
    fn addresses_changed(&self) {
        // Two names of one upstream may change at once; a ring must not be rebuilt twice at once.
        let _one_at_a_time = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = self.nodes_once().map(|node| node.addresses().len()).sum();
        self.addresses.store(count, Ordering::Relaxed);
        for level in &self.levels {
            level.refresh();
        }
    }
}

impl NodeUser for Upstream {
    fn health_changed(&self) {
        match self.judge_levels() {
            (true, false) => log::error!(
                "upstream {}: all nodes are unhealthy; health is ignored and every node is used",
                self.label
            ),
            (false, true) => log::info!(
                "upstream {}: a node is healthy again and health counts",
                self.label
            ),
            _ => {}
        }
    }

    fn load_changed(&self, node: &Node) {
        let at: usize = std::ptr::from_ref(node).addr();
        for &(level, member) in self.places.get(&at).into_iter().flatten() {
            self.levels[level].follow_load(member);
        }
    }
}

/// Whether a connect failed for want of descriptors, buffers, ports or addresses of our own.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let of_addresses = matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse | io::ErrorKind::OutOfMemory
    );
    of_addresses || Errno::from_io_error(error).is_some_and(|errno| short.contains(&errno))
}

/// The nodes of a service as a balancer can have them: whoever runs the name server could otherwise
/// ask for a ring of any size.
fn usable(nodes: &[UpstreamNode], balancer: Balancer) -> Vec<UpstreamNode> {
    let mut nodes = nodes.to_vec();
    if balancer == Balancer::Chash {
        weights::fit_to_ring(&mut nodes);
    }
    nodes
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Upstream")
            .field("label", &self.label)
            .field("levels", &self.levels)
            .finish_non_exhaustive()
    }
}
