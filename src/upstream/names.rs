//! Node names: resolved in the background, read by connections without waiting.
//!
//! A name is resolved when a table first uses it and again when the TTL of its records ends
//! (`dns_resolver_valid` overrides the TTL). A resolver that fails or is slow never delays a
//! connection and never takes an address away: the last good answer stays in use and the name is
//! asked again with a growing pause.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::ServiceReadyNotifier;
use pingora_core::services::background::BackgroundService;
use tokio::sync::{Notify, mpsc};

use crate::config::settings::DnsSettings;

/// A record with a shorter TTL is asked for again no sooner than this.
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// How often a query is sent to a server that does not answer.
const QUERY_ATTEMPTS: usize = 2;
/// How long the start of the process waits for the names of its first table.
const FIRST_ANSWERS: Duration = Duration::from_secs(3);
/// The longest pause between two tries of a name that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Something that has to follow when the addresses of a name change.
pub trait NameUser: Send + Sync {
    /// Called from the resolver's task after the new addresses are in place.
    fn addresses_changed(&self);
}

/// One name and what it resolves to. Shared by every node that has this name.
pub struct Name {
    name: String,
    addresses: ArcSwap<Vec<IpAddr>>,
    users: Mutex<Vec<Weak<dyn NameUser>>>,
    answered: Notify,
}

impl std::fmt::Debug for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} -> {:?}", self.name, self.addresses())
    }
}

impl Name {
    /// A name with addresses that are known from elsewhere.
    pub fn with_addresses(name: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let known = Name {
            name: name.to_owned(),
            addresses: ArcSwap::default(),
            users: Mutex::default(),
            answered: Notify::new(),
        };
        known.set(addresses);
        known
    }

    /// The name as configured.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The addresses in use, IPv4 first, each family sorted; empty before the first good answer.
    pub fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    /// Replaces the addresses; says whether they are other ones than before.
    pub fn set(&self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let changed = **self.addresses.load() != addresses;
        if changed {
            self.addresses.store(Arc::new(addresses));
            for user in lock(&self.users).iter().filter_map(Weak::upgrade) {
                user.addresses_changed();
            }
        }
        self.answered.notify_waiters();
        changed
    }

    /// Has `user` told of every change from now on, for as long as it lives.
    pub fn subscribe(&self, user: Weak<dyn NameUser>) {
        let mut users = lock(&self.users);
        users.retain(|user| user.strong_count() > 0);
        users.push(user);
    }
}

/// All names in use, and the Pingora background service that keeps them resolved.
pub struct Names {
    settings: DnsSettings,
    ipv6: bool,
    known: Mutex<HashMap<String, Weak<Name>>>,
    added: mpsc::UnboundedSender<Weak<Name>>,
    queue: Mutex<Option<mpsc::UnboundedReceiver<Weak<Name>>>>,
}

impl Names {
    /// Prepares the registry; nothing is asked before the service runs.
    pub fn new(settings: DnsSettings, ipv6: bool) -> Arc<Self> {
        let (added, queue) = mpsc::unbounded_channel();
        Arc::new(Names {
            settings,
            ipv6,
            known: Mutex::default(),
            added,
            queue: Mutex::new(Some(queue)),
        })
    }

    /// The entry of `name`, which is kept resolved for as long as somebody holds it.
    pub fn get(&self, name: &str) -> Arc<Name> {
        let mut known = lock(&self.known);
        let key = name.to_ascii_lowercase();
        if let Some(entry) = known.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        known.retain(|_, entry| entry.strong_count() > 0);
        let entry = Arc::new(Name::with_addresses(name, []));
        known.insert(key, Arc::downgrade(&entry));
        // The receiver lives as long as the service; without it (offline commands) nothing is
        // resolved, which is what `check` and `explain` want.
        let _ = self.added.send(Arc::downgrade(&entry));
        entry
    }

    /// Waits until every name in use has an address, or has failed once, or `limit` has passed.
    pub async fn settled(&self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        let entries: Vec<Arc<Name>> = lock(&self.known)
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for entry in entries {
            let answered = entry.answered.notified();
            if entry.addresses().is_empty()
                && tokio::time::timeout_at(deadline, answered).await.is_err()
            {
                log::warn!("node name {} has no address yet", entry.as_str());
            }
        }
    }

    fn resolver(&self) -> Result<TokioResolver, hickory_resolver::net::NetError> {
        let (system, mut options) = read_system_conf().unwrap_or_else(|error| {
            log::warn!("resolv.conf cannot be read: {error}");
            Default::default()
        });
        let (domain, search, mut servers) = system.into_parts();
        if !self.settings.servers.is_empty() {
            let configured = self.settings.servers.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                for connection in &mut server.connections {
                    connection.port = address.port();
                }
                server
            });
            servers = configured.collect();
        }
        let (domain, search) = match self.settings.search {
            true => (domain, search),
            false => (None, Vec::new()),
        };
        options.timeout = self.settings.timeout;
        options.attempts = QUERY_ATTEMPTS;
        options.cache_size = 0;
        options.ip_strategy = match self.ipv6 {
            true => LookupIpStrategy::Ipv4AndIpv6,
            false => LookupIpStrategy::Ipv4Only,
        };
        let config = ResolverConfig::from_parts(domain, search, servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
    }

    /// Keeps one name resolved until nobody uses it any more.
    async fn keep_resolved(entry: Weak<Name>, resolver: Arc<TokioResolver>, ttl: Option<Duration>) {
        let mut pause = SHORTEST_TTL;
        while let Some(name) = entry.upgrade() {
            match resolver.lookup_ip(name.as_str()).await {
                Ok(answer) => {
                    let before = name.addresses();
                    if name.set(answer.iter()) {
                        log::info!(
                            "node name {} resolves to {:?} (before: {before:?})",
                            name.as_str(),
                            name.addresses()
                        );
                    }
                    let left = answer
                        .valid_until()
                        .saturating_duration_since(Instant::now());
                    pause = SHORTEST_TTL;
                    drop(name);
                    tokio::time::sleep(ttl.unwrap_or(left).max(SHORTEST_TTL)).await;
                }
                Err(error) => {
                    log::warn!(
                        "failed to parse domain: {}, error: {error}; {} in use, next try in {} s",
                        name.as_str(),
                        match name.addresses().len() {
                            0 => "no address".to_owned(),
                            count => format!("the last {count} known address(es)"),
                        },
                        pause.as_secs()
                    );
                    name.answered.notify_waiters();
                    drop(name);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Names {
    /// Ready when the names of the first table have addresses, so that no connection is accepted
    /// before it can be served, and after [`FIRST_ANSWERS`] in any case.
    async fn start_with_ready_notifier(
        &self,
        mut shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let first_answers = async {
            self.settled(FIRST_ANSWERS).await;
            ready.notify_ready();
            std::future::pending().await
        };
        tokio::select! {
            () = self.resolve_all(&mut shutdown) => {}
            () = first_answers => {}
        }
    }
}

impl Names {
    async fn resolve_all(&self, shutdown: &mut ShutdownWatch) {
        let Some(mut queue) = lock(&self.queue).take() else {
            return;
        };
        let resolver = match self.resolver() {
            Ok(resolver) => Arc::new(resolver),
            Err(error) => {
                log::error!("node names cannot be resolved: {error}");
                return;
            }
        };
        loop {
            tokio::select! {
                Some(entry) = queue.recv() => {
                    tokio::spawn(Self::keep_resolved(entry, resolver.clone(), self.settings.valid));
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// A poisoned lock only means that another task panicked; the data are replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counter(AtomicUsize);
    impl NameUser for Counter {
        fn addresses_changed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_a_real_change_is_told() {
        let counter = Arc::new(Counter(AtomicUsize::new(0)));
        let name = Name::with_addresses("b", ["10.0.0.2".parse().unwrap()]);
        let user: Arc<dyn NameUser> = counter.clone();
        name.subscribe(Arc::downgrade(&user));
        assert!(!name.set(["10.0.0.2".parse().unwrap()]));
        assert!(name.set(["::1", "10.0.0.2", "10.0.0.1"].map(|ip| ip.parse().unwrap())));
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        assert_eq!(
            format!("{:?}", name.addresses()),
            "[10.0.0.1, 10.0.0.2, ::1]"
        );
    }

    #[test]
    fn a_name_is_shared_and_forgotten_with_its_last_user() {
        let names = Names::new(DnsSettings::default(), true);
        let one = names.get("Broker.test");
        assert!(Arc::ptr_eq(&one, &names.get("broker.TEST")));
        drop(one);
        names.get("other.test");
        assert_eq!(lock(&names.known).len(), 1);
    }
}
