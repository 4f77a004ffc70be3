//! The consistent hash ring of one priority level: Pingora's `LoadBalancer` with Ketama.
//!
//! For nodes given by an IPv4 address the ring is nginx's `hash … consistent` and so APISIX's
//! chash, point by point, as long as the weights come in divided by their greatest common divisor.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::selection::consistent::KetamaHashing;
use pingora_load_balancing::{Backend, Backends, Extensions, LoadBalancer};

use super::node::Node;
use crate::config::resource::weights::{MAX_RING_WEIGHT, common_divisor};
use crate::config::settings::RingIdentity;

/// Points on the ring for each unit of weight; nginx's and APISIX's number.
pub const POINTS_PER_WEIGHT: usize = 160;

/// What stands at a place of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the node within its level.
    pub member: usize,
    /// The one address that this place stands for, when the place is an address and not a name.
    pub address: Option<SocketAddr>,
}

/// Where a node given by name stands on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// At one place made of its name.
    Name,
    /// At each of its addresses, with its whole weight at each.
    Addresses,
    /// At each of its addresses, with an equal part of its weight: APISIX's rule for the targets
    /// of SRV records.
    Shares,
}

impl Places {
    /// What the settings ask for; `of_service`: the nodes are those of a service in DNS.
    pub fn of(identity: RingIdentity, of_service: bool) -> Self {
        match (identity, of_service) {
            (RingIdentity::Name, _) => Places::Name,
            (RingIdentity::Address, false) => Places::Addresses,
            (RingIdentity::Address, true) => Places::Shares,
        }
    }
}

impl From<RingIdentity> for Places {
    fn from(identity: RingIdentity) -> Self {
        Places::of(identity, false)
    }
}

/// What the ring was last built from.
#[derive(Default)]
struct Snapshot {
    by_address: HashMap<SocketAddr, (Place, u32)>,
    points: usize,
}

/// The nodes of a level on the ring: Pingora asks it for the backends.
struct Stands {
    members: Vec<(Arc<Node>, u32)>,
    places: Places,
    current: ArcSwap<Snapshot>,
}

impl Stands {
    /// Works out the places from what the names resolve to now. The last of several nodes with
    /// the same address decides its weight, as in APISIX.
    fn refresh(&self) {
        let mut snapshot = Snapshot::default();
        let parts = match self.places {
            Places::Shares => shares(&self.members),
            Places::Name | Places::Addresses => self.members.iter().map(|&(_, w)| w).collect(),
        };
        for (member, ((node, weight), part)) in self.members.iter().zip(parts).enumerate() {
            let mut add = |at: SocketAddr, address: Option<SocketAddr>| {
                let place = Place { member, address };
                snapshot.by_address.insert(at, (place, part));
            };
            match (node.fixed_address(), self.places) {
                _ if *weight == 0 => {}
                (Some(address), _) => add(address, Some(address)),
                (None, Places::Name) => add(place_of_name(node.label()), None),
                (None, Places::Addresses | Places::Shares) => {
                    for address in node.addresses() {
                        add(address, Some(address));
                    }
                }
            }
        }
        let weights = snapshot
            .by_address
            .values()
            .map(|&(_, weight)| weight as usize);
        snapshot.points = weights.sum::<usize>() * POINTS_PER_WEIGHT;
        self.current.store(Arc::new(snapshot));
    }
}

/// What each address of a member weighs so that all of its addresses together weigh what it does:
/// integers, divided by their common divisor. Where a ring cannot have points that fine, an address
/// weighs what its node does.
fn shares(members: &[(Arc<Node>, u32)]) -> Vec<u32> {
    let whole = || members.iter().map(|&(_, weight)| weight);
    let counts: Vec<u64> = members
        .iter()
        .map(|(node, _)| node.addresses().len().max(1) as u64)
        .collect();
    let multiple = counts.iter().try_fold(1_u64, |all, &count| {
        (all / divisor_of(all, count)).checked_mul(count)
    });
    let parts: Option<Vec<u32>> = multiple.and_then(|multiple| {
        let parts = whole().zip(&counts).map(|(weight, count)| {
            let part = u64::from(weight).checked_mul(multiple / count)?;
            u32::try_from(part).ok()
        });
        parts.collect()
    });
    let Some(mut parts) = parts else {
        return whole().collect();
    };
    let divisor = common_divisor(parts.iter().copied());
    parts.iter_mut().for_each(|part| *part /= divisor);
    let sum = parts
        .iter()
        .zip(&counts)
        .map(|(&part, count)| u64::from(part) * count);
    match sum.sum::<u64>() > MAX_RING_WEIGHT {
        true => whole().collect(),
        false => parts,
    }
}

/// The greatest common divisor of two numbers above zero.
fn divisor_of(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The place of a name on the ring: an address in 100::/64, the prefix that never reaches a
/// network (RFC 6666), made from the name alone, so that a broker which comes back under another
/// address keeps its clients.
fn place_of_name(label: &str) -> SocketAddr {
    let (name, port) = label.rsplit_once(':').unwrap_or((label, "0"));
    let digest = openssl::sha::sha256(name.to_ascii_lowercase().as_bytes());
    let mut octets = [0_u8; 16];
    octets[0] = 0x01;
    octets[8..].copy_from_slice(&digest[..8]);
    SocketAddr::new(Ipv6Addr::from(octets).into(), port.parse().unwrap_or(0))
}

struct Discovery(Arc<Stands>);

#[async_trait]
impl ServiceDiscovery for Discovery {
    async fn discover(&self) -> pingora_core::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let backends = self
            .0
            .current
            .load()
            .by_address
            .iter()
            .map(|(&address, &(_, weight))| Backend {
                addr: PeerAddr::Inet(address),
                weight: weight as usize,
                ext: Extensions::new(),
            })
            .collect();
        Ok((backends, HashMap::new()))
    }
}

/// The ring of one priority level.
pub struct Ring {
    balancer: LoadBalancer<KetamaHashing>,
    stands: Arc<Stands>,
}

impl Ring {
    /// Builds the ring for `members`: nodes with their weights, divided by their common divisor.
    /// Weight 0 has no place.
    pub fn new(members: Vec<(Arc<Node>, u32)>, places: impl Into<Places>) -> Self {
        let stands = Arc::new(Stands {
            members,
            places: places.into(),
            current: ArcSwap::default(),
        });
        let backends = Backends::new(Box::new(Discovery(stands.clone())));
        let ring = Ring {
            balancer: LoadBalancer::from_backends(backends),
            stands,
        };
        ring.refresh();
        ring
    }

    /// Follows a change of the addresses behind names. Must not run twice at once for one ring.
    pub fn refresh(&self) {
        self.stands.refresh();
        // Discovery above never waits, so one poll finishes it.
        match poll_once(self.balancer.update()) {
            Some(Ok(())) => {}
            Some(Err(error)) => log::error!("hash ring not rebuilt: {error}"),
            None => unreachable!("the ring's discovery never waits"),
        }
    }

    /// The first place clockwise from `key` that is not among `tried` and whose member is
    /// `wanted`.
    pub fn pick(
        &self,
        key: &[u8],
        tried: &[Place],
        wanted: impl Fn(usize) -> bool,
    ) -> Option<Place> {
        let snapshot = self.stands.current.load();
        if tried.len() >= snapshot.by_address.len() {
            return None;
        }
        let place_of = |backend: &Backend| {
            let address = backend.addr.as_inet()?;
            snapshot.by_address.get(address).map(|&(place, _)| place)
        };
        let accepted = Cell::new(None);
        // Pingora's bound counts points, not nodes: this many pass every node at least once.
        self.balancer
            .select_with(key, snapshot.points, |backend, _| {
                let fits = |place: &Place| !tried.contains(place) && wanted(place.member);
                accepted.set(place_of(backend).filter(fits));
                accepted.get().is_some()
            })?;
        accepted.get()
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Ring")
            .field("places", &self.stands.current.load().by_address.len())
            .finish()
    }
}

fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::Name;
    use super::*;

    fn ring(nodes: &[(&str, u32)]) -> Ring {
        let members = nodes
            .iter()
            .map(|&(address, weight)| (Arc::new(Node::fixed(address.parse().unwrap())), weight))
            .collect();
        Ring::new(members, RingIdentity::Name)
    }

    /// Indices of the nodes in the order in which a key tries them.
    fn order(ring: &Ring, key: &str) -> Vec<usize> {
        let mut tried = Vec::new();
        while let Some(place) = ring.pick(key.as_bytes(), &tried, |_| true) {
            tried.push(place);
        }
        tried.iter().map(|place| place.member).collect()
    }

    /// `key order` lines of the vectors that were measured on APISIX.
    #[test]
    fn the_ring_is_apisix_ring_for_ipv4_nodes() {
        let vectors = include_str!("chash_vectors.txt");
        let mut checked = 0;
        let mut current: Option<Ring> = None;
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nodes") => {
                    let nodes: Vec<(&str, u32)> = words
                        .map(|word| word.split_once('=').unwrap())
                        .map(|(address, weight)| (address, weight.parse().unwrap()))
                        .collect();
                    current = Some(ring(&nodes));
                }
                Some(key) => {
                    let expected: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
                    assert_eq!(order(current.as_ref().unwrap(), key), expected, "{line}");
                    checked += 1;
                }
                None => {}
            }
        }
        assert_eq!(checked, 100, "five sets of twenty keys");
    }

    #[test]
    fn a_name_keeps_its_place_when_its_address_changes() {
        let broker = Arc::new(Name::with_addresses(
            "broker-b",
            ["10.0.0.9".parse().unwrap()],
        ));
        let members = vec![
            (Arc::new(Node::fixed("10.0.0.1:1883".parse().unwrap())), 1),
            (Arc::new(Node::named(broker.clone(), 1883)), 1),
        ];
        let ring = Ring::new(members, RingIdentity::Name);
        let before: Vec<_> = (0..200).map(|n| order(&ring, &n.to_string())).collect();
        broker.set(["10.0.0.77".parse().unwrap()]);
        ring.refresh();
        let after: Vec<_> = (0..200).map(|n| order(&ring, &n.to_string())).collect();
        assert_eq!(before, after);
        assert!(before.iter().any(|order| order[0] == 1));
    }

    #[test]
    fn by_address_every_address_of_a_name_has_its_own_place() {
        let name = Arc::new(Name::with_addresses(
            "broker",
            ["127.0.0.1".parse().unwrap()],
        ));
        let by_name = vec![(Arc::new(Node::named(name.clone(), 1883)), 1)];
        let ring = Ring::new(by_name, RingIdentity::Address);
        let first = ring.pick(b"foo", &[], |_| true).unwrap();
        assert_eq!(first.address, Some("127.0.0.1:1883".parse().unwrap()));

        name.set(["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap()));
        ring.refresh();
        assert_eq!(order(&ring, "foo").len(), 2);
    }

    /// The example of APISIX's documentation: two addresses of a target share its weight.
    #[test]
    fn the_addresses_of_a_target_share_its_weight() {
        let resolved = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap());
            Arc::new(Name::with_addresses(name, addresses))
        };
        let target = |name: &Arc<Name>, weight| (Arc::new(Node::named(name.clone(), 1980)), weight);
        let (a, b) = (
            resolved("a", &["1.1.1.1"]),
            resolved("b", &["1.1.1.2", "1.1.1.3"]),
        );
        let found = Ring::new(vec![target(&a, 3), target(&b, 1)], Places::Shares);
        let written = ring(&[
            ("1.1.1.1:1980", 6),
            ("1.1.1.2:1980", 1),
            ("1.1.1.3:1980", 1),
        ]);
        for n in 0..500 {
            let key = n.to_string();
            let pick = |ring: &Ring| ring.pick(key.as_bytes(), &[], |_| true).unwrap().address;
            assert_eq!(pick(&found), pick(&written), "{key}");
        }

        // Weights that no ring can have are not split.
        let many: Vec<String> = (1..=251).map(|n| format!("10.1.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let many = resolved("many", &many);
        assert_eq!(
            shares(&[target(&a, 4_000), target(&many, 3_999)]),
            [4_000, 3_999]
        );
    }

    #[test]
    fn an_empty_ring_picks_nobody() {
        assert_eq!(ring(&[]).pick(b"foo", &[], |_| true), None);
        assert_eq!(
            ring(&[("127.0.0.1:1883", 0)]).pick(b"foo", &[], |_| true),
            None
        );
    }
}
