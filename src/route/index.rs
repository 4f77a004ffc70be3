//! Address predicates, indexed by tuple space search (as Open vSwitch classifies packets): routes
//! whose predicates have the same form - a port or none, a prefix length of the server address,
//! one of the client address - share a hash table. A look-up asks each form once.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Request;
use crate::config::resource::stream_route::StreamRoute;

/// The routes of one SNI, or those without.
#[derive(Debug, Default)]
pub struct AddressIndex {
    /// In the order of `first`, so that a look-up can stop early.
    forms: Vec<Form>,
}

/// The routes whose predicates have the same form.
#[derive(Debug)]
struct Form {
    port: bool,
    server: Option<Prefix>,
    client: Option<Prefix>,
    /// The earliest route among them.
    first: usize,
    /// The earliest route for each combination of values.
    routes: HashMap<Values, usize>,
}

/// Address family and prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    ipv4: bool,
    length: u8,
}

/// The values that a form compares; 0 where it does not look.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Values {
    port: u16,
    server: u128,
    client: u128,
}

impl AddressIndex {
    /// Adds the route at `position`. Positions must be added in ascending order.
    pub fn add(&mut self, position: usize, route: &StreamRoute) {
        let port = route.server_port.is_some();
        let server = route.server_addr.map(Prefix::of);
        let client = route.remote_addr.map(Prefix::of);
        let known = self
            .forms
            .iter()
            .position(|form| form.port == port && form.server == server && form.client == client);
        let form = known.unwrap_or_else(|| {
            self.forms.push(Form {
                port,
                server,
                client,
                first: position,
                routes: HashMap::new(),
            });
            self.forms.len() - 1
        });
        let values = Values {
            port: route.server_port.unwrap_or(0),
            server: route.server_addr.map_or(0, |net| bits(net.network())),
            client: route.remote_addr.map_or(0, |net| bits(net.network())),
        };
        // The same predicates again, later in the file: never reached, as in APISIX.
        self.forms[form].routes.entry(values).or_insert(position);
    }

    /// The earliest route whose predicates all hold.
    pub fn find(&self, request: &Request<'_>) -> Option<usize> {
        let mut found: Option<usize> = None;
        for form in &self.forms {
            if found.is_some_and(|position| position < form.first) {
                break;
            }
            let Some(position) = form.find(request) else {
                continue;
            };
            found = Some(found.map_or(position, |earlier| earlier.min(position)));
        }
        found
    }
}

impl Form {
    fn find(&self, request: &Request<'_>) -> Option<usize> {
        let values = Values {
            port: if self.port { request.server.port() } else { 0 },
            server: masked(self.server, request.server.ip())?,
            client: masked(self.client, request.client)?,
        };
        self.routes.get(&values).copied()
    }
}

impl Prefix {
    fn of(net: IpNet) -> Self {
        Prefix {
            ipv4: net.network().is_ipv4(),
            length: net.prefix_len(),
        }
    }
}

/// The bits of `ip` that the prefix covers; `None` when it is of the other family.
fn masked(prefix: Option<Prefix>, ip: IpAddr) -> Option<u128> {
    let Some(prefix) = prefix else {
        return Some(0);
    };
    let width = if prefix.ipv4 { 32 } else { 128 };
    let host_bits = width - u32::from(prefix.length);
    // A prefix of length 0 in IPv6 shifts everything out.
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    (prefix.ipv4 == ip.is_ipv4()).then(|| bits(ip) & mask)
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}
