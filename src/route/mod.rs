//! Which stream route takes a connection.
//!
//! The rule is APISIX's: with an SNI the routes of that name are asked first (the exact name, then
//! the longest wildcard, `*` last), then, in file order, the routes without one. All address
//! predicates of a route must hold; the first route that fits wins.

mod index;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::config::resource::stream_route::StreamRoute;
use index::AddressIndex;

/// What is known about a connection when its route is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The local address and port on which the connection arrived.
    pub server: SocketAddr,
    /// The server name of a TLS client; `None` on a plain connection.
    pub sni: Option<&'a str>,
}

/// All routes of a table, indexed: the cost of a look-up depends on how many different kinds of
/// predicates are in use, not on how many routes there are.
#[derive(Debug, Default)]
pub struct RouteIndex {
    without_sni: AddressIndex,
    exact: HashMap<String, AddressIndex>,
    /// By what follows the `*`; matches any number of labels, as in APISIX's routes.
    wildcard: HashMap<String, AddressIndex>,
    /// The lengths of the keys of `wildcard`, so that only these suffixes are looked up.
    suffix_lengths: BTreeSet<usize>,
}

impl RouteIndex {
    /// Indexes `routes`; a look-up answers with positions in this order.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a StreamRoute>) -> Self {
        let mut index = RouteIndex::default();
        for (position, route) in routes.into_iter().enumerate() {
            if route.snis.is_empty() {
                index.without_sni.add(position, route);
            }
            for sni in &route.snis {
                let names = match sni.strip_prefix('*') {
                    Some(suffix) => {
                        index.suffix_lengths.insert(suffix.len());
                        index.wildcard.entry(suffix.to_owned()).or_default()
                    }
                    None => index.exact.entry(sni.clone()).or_default(),
                };
                names.add(position, route);
            }
        }
        index
    }

    /// The position of the route that takes the connection.
    pub fn find(&self, request: &Request<'_>) -> Option<usize> {
        request
            .sni
            .and_then(|sni| self.find_by_name(sni, request))
            .or_else(|| self.without_sni.find(request))
    }

    fn find_by_name(&self, sni: &str, request: &Request<'_>) -> Option<usize> {
        let sni = sni.strip_suffix('.').unwrap_or(sni).to_ascii_lowercase();
        let exact = self.exact.get(&sni).and_then(|routes| routes.find(request));
        exact.or_else(|| {
            let longest_first = self.suffix_lengths.iter().rev();
            longest_first
                .filter_map(|length| sni.get(sni.len().checked_sub(*length)?..))
                .filter_map(|suffix| self.wildcard.get(suffix))
                .find_map(|routes| routes.find(request))
        })
    }
}

#[cfg(test)]
mod tests;
