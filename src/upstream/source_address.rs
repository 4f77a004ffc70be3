//! Where connections to nodes come from (`mqtt_proxy.upstream_bind`).
//!
//! A connection is told from others by both addresses and ports, so that one local address has one
//! port for each connection to a node: about 28,000 with Linux's default range. Several local
//! addresses have that many each.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{SockAddr, SockRef, Socket};

/// The local addresses of each family, used by turns; none = the kernel chooses.
#[derive(Debug, Default)]
pub struct SourceAddresses {
    v4: Turns,
    v6: Turns,
}

/// The addresses of one family.
#[derive(Debug, Default)]
struct Turns {
    sources: Vec<Source>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Source {
    address: SockAddr,
    ip: IpAddr,
    /// The last bind to it failed, which the log knows.
    failing: AtomicBool,
}

impl SourceAddresses {
    /// The addresses to use.
    pub fn new(addresses: &[IpAddr]) -> Self {
        let turns = |is_v4| Turns {
            sources: addresses
                .iter()
                .filter(|ip| ip.is_ipv4() == is_v4)
                .map(|&ip| Source {
                    address: SocketAddr::new(ip, 0).into(),
                    ip,
                    failing: AtomicBool::new(false),
                })
                .collect(),
            next: AtomicUsize::new(0),
        };
        SourceAddresses {
            v4: turns(true),
            v6: turns(false),
        }
    }

    /// Binds a socket that is about to connect to `target`; to be called before connect. The port
    /// is chosen by connect(2) and not here, so that one port serves connections to several nodes
    /// (IP_BIND_ADDRESS_NO_PORT, ip(7); it covers IPv6 as well).
    ///
    /// An address that cannot be bound is passed over for the next one.
    ///
    /// # Errors
    /// When none of the family can be bound. That is the machine's shortage and says nothing about
    /// the node: see [`is_shortage`](super::is_shortage).
    pub fn bind<'s>(&self, socket: impl Into<SockRef<'s>>, target: IpAddr) -> io::Result<()> {
        match target {
            IpAddr::V4(_) => self.v4.bind(&socket.into()),
            IpAddr::V6(_) => self.v6.bind(&socket.into()),
        }
    }

    /// The address that [`bind`](Self::bind) would take first, for connections that somebody else
    /// opens.
    pub(super) fn next(&self, target: IpAddr) -> Option<IpAddr> {
        let turns = match target {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        turns.in_turn().next().map(|source| source.ip)
    }
}

impl Turns {
    /// All sources, starting one further at each call.
    fn in_turn(&self) -> impl Iterator<Item = &Source> {
        let start = match self.sources.len() {
            0 | 1 => 0,
            count => self.next.fetch_add(1, Ordering::Relaxed) % count,
        };
        let (before, from) = self.sources.split_at(start);
        from.iter().chain(before)
    }

    fn bind(&self, socket: &Socket) -> io::Result<()> {
        if self.sources.is_empty() {
            return Ok(());
        }
        setsockopt(socket, IpBindAddressNoPort, &true)?;
        let mut last = None;
        for source in self.in_turn() {
            match socket.bind(&source.address) {
                Ok(()) => {
                    if source.failing.swap(false, Ordering::Relaxed) {
                        log::info!("{source} can be used again");
                    }
                    return Ok(());
                }
                Err(error) => {
                    if !source.failing.swap(true, Ordering::Relaxed) {
                        log::warn!("{source} cannot be used: {error}");
                    }
                    last = Some(io::Error::new(error.kind(), format!("{source}: {error}")));
                }
            }
        }
        last.map_or(Ok(()), Err)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mqtt_proxy.upstream_bind {}", self.ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    /// Of TEST-NET-1: no machine has it.
    const NOWHERE: &str = "192.0.2.1";

    fn sources(addresses: &[&str]) -> SourceAddresses {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        SourceAddresses::new(&addresses)
    }

    /// Where a new socket to a target of the same family is bound, or the kind of the error.
    fn bound(sources: &SourceAddresses, target: &str) -> Result<IpAddr, io::ErrorKind> {
        let target: IpAddr = target.parse().unwrap();
        let domain = Domain::for_address(SocketAddr::new(target, 1));
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        match sources.bind(&socket, target) {
            Ok(()) => Ok(socket.local_addr().unwrap().as_socket().unwrap().ip()),
            Err(error) => Err(error.kind()),
        }
    }

    #[test]
    fn the_addresses_of_the_targets_family_take_turns() {
        let sources = sources(&["127.0.0.2", "::1", "127.0.0.3"]);
        let took: Vec<String> = (0..4)
            .map(|_| bound(&sources, "10.0.0.1").unwrap().to_string())
            .collect();
        assert_eq!(took, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);
        assert_eq!(bound(&sources, "fd00::1").unwrap().to_string(), "::1");
    }

    #[test]
    fn without_an_address_of_the_family_the_kernel_chooses() {
        let sources = sources(&["127.0.0.2"]);
        assert!(bound(&sources, "fd00::1").unwrap().is_unspecified());
        assert!(
            bound(&SourceAddresses::default(), "10.0.0.1")
                .unwrap()
                .is_unspecified()
        );
    }

    #[test]
    fn an_address_that_the_machine_has_not_is_passed_over() {
        let some = sources(&[NOWHERE, "127.0.0.2"]);
        for _ in 0..4 {
            assert_eq!(bound(&some, "10.0.0.1").unwrap().to_string(), "127.0.0.2");
        }
        let none = sources(&[NOWHERE]);
        assert_eq!(
            bound(&none, "10.0.0.1"),
            Err(io::ErrorKind::AddrNotAvailable)
        );
    }

    #[test]
    fn the_port_is_left_to_connect() {
        let sources = sources(&["127.0.0.2"]);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        sources.bind(&socket, "10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().port(), 0);
    }
}
