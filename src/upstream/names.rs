//! Node names: resolved in the background, read by connections without waiting.
//!
//! A name is resolved when a table first uses it and again when the TTL of its records ends
//! (`dns_resolver_valid` overrides the TTL). A resolver that fails or is slow never delays a
//! connection and never takes an address away: the last good answer stays in use and the name is
//! asked again with a growing pause.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use super::registry::{Answered, Pauses, Registry, lock};
use crate::config::settings::DnsSettings;

/// A record with a shorter TTL is asked for again no sooner than this.
pub(super) const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// How often a query is sent to a server that does not answer.
const QUERY_ATTEMPTS: usize = 2;
/// What says how names are resolved, unless the settings name another file.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A larger one is not read.
const MAX_RESOLV_CONF: u64 = 1024 * 1024;

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
    answered: Answered,
}

impl std::fmt::Debug for Name {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} -> {:?}", self.name, self.addresses())
    }
}

impl Name {
    /// A name with addresses that are known from elsewhere.
    pub fn with_addresses(name: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort_unstable();
        Name {
            name: name.to_owned(),
            answered: Answered::new(!addresses.is_empty()),
            addresses: ArcSwap::from_pointee(addresses),
            users: Mutex::default(),
        }
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
        self.answered.tell();
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
    registry: Registry<Name>,
}

impl Names {
    /// Prepares the registry; nothing is asked before the service runs.
    pub fn new(settings: DnsSettings, ipv6: bool) -> Arc<Self> {
        Arc::new(Names {
            settings,
            ipv6,
            registry: Registry::new(),
        })
    }

    /// The entry of `name`, which is kept resolved for as long as somebody holds it.
    pub fn get(&self, name: &str) -> Arc<Name> {
        let key = name.to_ascii_lowercase();
        self.registry.get(key, || Name::with_addresses(name, []))
    }

    /// Waits until every name in use has an address, or has failed once, or `limit` has passed.
    pub async fn settled(&self, limit: Duration) {
        Self::wait_for(&self.registry.all(), limit).await;
    }

    /// Waits until each of these names has an address, or has failed once, or `limit` has passed.
    pub(super) async fn wait_for(names: &[Arc<Name>], limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        for name in names {
            if !name.answered.wait_until(deadline).await {
                log::warn!("node name {} has no address yet", name.as_str());
            }
        }
    }

    /// Keeps one name resolved until nobody uses it any more.
    async fn keep_resolved(entry: Weak<Name>, resolver: Arc<TokioResolver>, ttl: Option<Duration>) {
        let mut pauses = Pauses::default();
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
                    pauses = Pauses::default();
                    drop(name);
                    tokio::time::sleep(ttl.unwrap_or(left).max(SHORTEST_TTL)).await;
                }
                Err(error) => {
                    let pause = pauses.next();
                    log::warn!(
                        "failed to parse domain: {}, error: {error}; {} in use, next try in {} s",
                        name.as_str(),
                        match name.addresses().len() {
                            0 => "no address".to_owned(),
                            count => format!("the last {count} known address(es)"),
                        },
                        pause.as_secs()
                    );
                    name.answered.tell();
                    drop(name);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Names {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(mut queue) = self.registry.queue() else {
            return;
        };
        let mut resolver = None;
        loop {
            tokio::select! {
                Some(entry) = queue.recv() => {
                    // Made when there is a name: where nothing is resolved, nothing need be there.
                    let resolver = resolver.get_or_insert_with(|| resolver_of(&self.settings, self.ipv6));
                    if let Some(resolver) = resolver {
                        let resolver = resolver.clone();
                        tokio::spawn(Self::keep_resolved(entry, resolver, self.settings.valid));
                    }
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// A resolver without a cache: whoever uses it asks again when the TTL ends. `None`, with an ERROR
/// in the log, where the settings lead to none.
pub(super) fn resolver_of(settings: &DnsSettings, ipv6: bool) -> Option<Arc<TokioResolver>> {
    let file = settings.resolv_conf.as_deref();
    let (system, mut options) = read_resolv_conf(file.unwrap_or(Path::new(RESOLV_CONF)));
    let (domain, search, mut servers) = system.into_parts();
    if !settings.servers.is_empty() {
        let configured = settings.servers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        });
        servers = configured.collect();
    }
    let (domain, search) = match settings.search {
        true => (domain, search),
        false => (None, Vec::new()),
    };
    options.timeout = settings.timeout;
    options.attempts = QUERY_ATTEMPTS;
    options.cache_size = 0;
    options.ip_strategy = match ipv6 {
        true => LookupIpStrategy::Ipv4AndIpv6,
        false => LookupIpStrategy::Ipv4Only,
    };
    if !settings.hosts {
        options.use_hosts_file = ResolveHosts::Never;
    }
    let config = ResolverConfig::from_parts(domain, search, servers);
    let built = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build();
    built
        .inspect_err(|error| log::error!("names cannot be resolved: {error}"))
        .ok()
        .map(Arc::new)
}

/// What the file says; nothing, with a WARN in the log, where it cannot be read.
fn read_resolv_conf(path: &Path) -> (ResolverConfig, ResolverOpts) {
    let read = || {
        let size = std::fs::metadata(path)?.len();
        match size > MAX_RESOLV_CONF {
            true => Err(std::io::Error::other("it is larger than 1 MiB")),
            false => std::fs::read(path),
        }
    };
    let text = read().map_err(|error| error.to_string());
    let parsed = text.and_then(|text| parse_resolv_conf(text).map_err(|error| error.to_string()));
    parsed.unwrap_or_else(|error| {
        log::warn!("{} cannot be read: {error}", path.display());
        Default::default()
    })
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
    fn a_name_is_one_whatever_its_case() {
        let names = Names::new(DnsSettings::default(), true);
        let one = names.get("Broker.test");
        assert!(Arc::ptr_eq(&one, &names.get("broker.TEST")));
    }
}
