//! A node: one broker as the configuration names it, and what is known about it at run time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;

use super::ewma::ConnectTime;
use super::health::Health;
use super::names::Name;
use crate::config::resource::upstream::Host;

/// Where a node's addresses come from.
#[derive(Debug)]
enum Addresses {
    Fixed(SocketAddr),
    Resolved(Arc<Name>, u16),
}

/// Something that has to follow when the state of a node changes.
pub trait NodeUser: std::fmt::Debug + Send + Sync {
    /// Called after the node became healthy or unhealthy.
    fn health_changed(&self);
    /// Called after a connection of `node` began or ended, where the user asked for it.
    fn load_changed(&self, node: &Node);
}

/// What is counted of a node, for as long as it is one of its upstream.
#[derive(Debug, Default)]
pub struct NodeCounts {
    /// Connects for clients that succeeded.
    pub connected: AtomicU64,
    /// Connects for clients that failed.
    pub failed: AtomicU64,
}

/// One broker. Shared by all tables that name it within the same upstream, so that its counts
/// survive a reload.
#[derive(Debug)]
pub struct Node {
    label: String,
    addresses: Addresses,
    live: AtomicUsize,
    counts: NodeCounts,
    turn: AtomicUsize,
    health: Health,
    connect_time: ConnectTime,
    /// Its user hears of connections, too.
    counted: AtomicBool,
    /// The upstream in service that the node belongs to.
    user: ArcSwapOption<Weak<dyn NodeUser>>,
}

impl Node {
    /// A node whose address the configuration gives.
    pub fn fixed(address: SocketAddr) -> Self {
        Self::new(address.to_string(), Addresses::Fixed(address))
    }

    /// A node given by name; its addresses are those that `name` resolves to at the moment.
    pub fn named(name: Arc<Name>, port: u16) -> Self {
        Self::new(
            format!("{}:{port}", name.as_str()),
            Addresses::Resolved(name, port),
        )
    }

    fn new(label: String, addresses: Addresses) -> Self {
        Node {
            label,
            addresses,
            live: AtomicUsize::new(0),
            counts: NodeCounts::default(),
            turn: AtomicUsize::new(0),
            health: Health::default(),
            connect_time: ConnectTime::default(),
            counted: AtomicBool::new(false),
            user: ArcSwapOption::empty(),
        }
    }

    /// Its health.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What is counted of it.
    pub fn counts(&self) -> &NodeCounts {
        &self.counts
    }

    /// The moving average of the time that a connect to it takes.
    pub fn connect_time(&self) -> &ConnectTime {
        &self.connect_time
    }

    /// Has `user` told of every change from now on, instead of an earlier one; of connections
    /// only when they are `counted`.
    pub fn serve(&self, user: Weak<dyn NodeUser>, counted: bool) {
        self.user.store(Some(Arc::new(user)));
        self.counted.store(counted, Ordering::Relaxed);
    }

    /// Tells the user of the node that its health changed.
    pub fn tell_health_changed(&self) {
        if let Some(user) = self.user() {
            user.health_changed();
        }
    }

    fn tell_load_changed(&self) {
        if self.counted.load(Ordering::Relaxed)
            && let Some(user) = self.user()
        {
            user.load_changed(self);
        }
    }

    fn user(&self) -> Option<Arc<dyn NodeUser>> {
        self.user.load().as_ref()?.upgrade()
    }

    /// A place from 0 to below 1 that a key has for good with this node.
    pub fn place_of_key(&self, key: &[u8]) -> f64 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.label.as_bytes());
        hasher.update(&[0]);
        hasher.update(key);
        f64::from(mix(hasher.finalize())) / (f64::from(u32::MAX) + 1.0)
    }

    /// The host as configured, without port; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        let (host, _) = self.label.rsplit_once(':').unwrap_or((&self.label, ""));
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port as configured.
    pub fn port(&self) -> u16 {
        match &self.addresses {
            Addresses::Fixed(address) => address.port(),
            Addresses::Resolved(_, port) => *port,
        }
    }

    /// `host:port` as configured (`[v6]:port`): what logs, metrics and `explain` print.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The label of a node before it is built, to find it in an earlier table.
    pub fn label_of(host: &Host, port: u16) -> String {
        match host {
            Host::Ip(ip) => SocketAddr::new(*ip, port).to_string(),
            Host::Name(name) => format!("{name}:{port}"),
        }
    }

    /// Whether its addresses are those of this entry.
    pub fn is_named(&self, name: &Arc<Name>) -> bool {
        matches!(&self.addresses, Addresses::Resolved(own, _) if Arc::ptr_eq(own, name))
    }

    /// The address to be its place on a hash ring, when the configuration gives one.
    pub fn fixed_address(&self) -> Option<SocketAddr> {
        match self.addresses {
            Addresses::Fixed(address) => Some(address),
            Addresses::Resolved(..) => None,
        }
    }

    /// Every address that is known now, IPv4 before IPv6. Empty while a name has never resolved.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match &self.addresses {
            Addresses::Fixed(address) => vec![*address],
            Addresses::Resolved(name, port) => name
                .addresses()
                .iter()
                .map(|&ip| SocketAddr::new(ip, *port))
                .collect(),
        }
    }

    /// The known addresses in the order in which a connection with this hash key tries them.
    ///
    /// Each key has its own stable order (highest random weight first): an address that appears
    /// or disappears moves only the keys it wins or loses. IPv6 addresses follow all IPv4 ones,
    /// because the two are usually the same broker and a listener on one family only is common.
    pub fn addresses_for_key(&self, key: &[u8]) -> Vec<SocketAddr> {
        let mut addresses = self.addresses();
        if addresses.len() > 1 {
            addresses.sort_by_cached_key(|address| {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(address.to_string().as_bytes());
                hasher.update(&[0]);
                hasher.update(key);
                // CRC is linear: without mixing, two addresses would split all keys alike.
                let score = mix(hasher.finalize());
                (address.is_ipv6(), std::cmp::Reverse(score), *address)
            });
        }
        addresses
    }

    /// The known addresses, starting one further at each call, for balancers without a key.
    pub fn addresses_in_turn(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses();
        let first_family = addresses.iter().take_while(|a| a.is_ipv4()).count();
        let rotate = match first_family {
            0 => addresses.len(),
            count => count,
        };
        if rotate > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            addresses[..rotate].rotate_left(turn % rotate);
        }
        addresses
    }

    /// Connections that are being made to this node or live on it.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Counts one connection on a node for as long as it exists.
#[derive(Debug)]
pub struct InFlight(Arc<Node>);

impl InFlight {
    /// Counts a connection on `node` from now on.
    pub fn on(node: Arc<Node>) -> Self {
        node.live.fetch_add(1, Ordering::Relaxed);
        node.tell_load_changed();
        InFlight(node)
    }

    /// The node on which the connection counts.
    pub fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
        self.0.tell_load_changed();
    }
}

/// A bijection that spreads every input bit over the whole word (the finaliser of MurmurHash3).
fn mix(mut value: u32) -> u32 {
    value ^= value >> 16;
    value = value.wrapping_mul(0x85eb_ca6b);
    value ^= value >> 13;
    value = value.wrapping_mul(0xc2b2_ae35);
    value ^ (value >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn named(addresses: &[&str]) -> Node {
        let name = Name::with_addresses("broker", addresses.iter().map(|a| a.parse().unwrap()));
        Node::named(Arc::new(name), 1883)
    }

    #[test]
    fn an_address_that_goes_moves_only_its_own_keys() {
        let three = named(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let two = named(&["10.0.0.1", "10.0.0.3"]);
        let mut share: HashMap<SocketAddr, usize> = HashMap::new();
        for client in 0..3000 {
            let key = format!("client-{client}");
            let before = three.addresses_for_key(key.as_bytes())[0];
            let after = two.addresses_for_key(key.as_bytes())[0];
            *share.entry(before).or_default() += 1;
            if before.ip().to_string() != "10.0.0.2" {
                assert_eq!(before, after, "{key}");
            }
        }
        assert!(
            share.values().all(|&n| (800..1200).contains(&n)),
            "{share:?}"
        );
    }

    #[test]
    fn ipv6_is_tried_after_every_ipv4_address() {
        let node = named(&["::1", "127.0.0.1"]);
        for key in ["a", "b", "c", "d"] {
            assert!(node.addresses_for_key(key.as_bytes())[0].is_ipv4());
        }
        assert!(node.addresses_in_turn()[0].is_ipv4());
        assert!(node.addresses_in_turn()[0].is_ipv4());
    }

    #[test]
    fn without_a_key_the_addresses_take_turns() {
        let node = named(&["10.0.0.1", "10.0.0.2"]);
        assert_ne!(node.addresses_in_turn()[0], node.addresses_in_turn()[0]);
    }

    #[test]
    fn a_connection_counts_while_it_exists() {
        let node = Arc::new(Node::fixed("127.0.0.1:1883".parse().unwrap()));
        let one = InFlight::on(node.clone());
        let two = InFlight::on(node.clone());
        assert_eq!(node.live(), 2);
        drop(one);
        assert_eq!((node.live(), two.node().label()), (1, "127.0.0.1:1883"));
    }
}
