//! How names are resolved: `apisix.dns_resolver…` for nodes given by name, `discovery.dns` for
//! services.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::load::{find, flag, seconds, text};
use crate::config::diagnostic::{At, Problems, quote};
use crate::config::document::Node;

/// Which name servers are asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// `apisix.dns_resolver` or `discovery.dns.servers`, port 53 unless written; empty = those of
    /// the system.
    pub servers: Vec<SocketAddr>,
    /// `discovery.dns.resolv_conf` instead of `/etc/resolv.conf`, as written; relative to the
    /// folder of `config.yaml`.
    pub resolv_conf: Option<PathBuf>,
    /// `apisix.dns_resolver_valid`: overrides the TTL of records.
    pub valid: Option<Duration>,
    /// `apisix.resolver_timeout`. Default 5 s.
    pub timeout: Duration,
    /// `apisix.enable_resolv_search_opt`: apply the system's search domains. Default true.
    pub search: bool,
    /// Look into `/etc/hosts` first: for nodes, not for services (APISIX).
    pub hosts: bool,
}

impl Default for DnsSettings {
    fn default() -> Self {
        DnsSettings {
            servers: Vec::new(),
            resolv_conf: None,
            valid: None,
            timeout: Duration::from_secs(5),
            search: true,
            hosts: true,
        }
    }
}

/// `discovery.dns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoverySettings {
    /// Who is asked. Without `servers` and `resolv_conf`: the name servers of nodes.
    pub dns: DnsSettings,
    /// In which order record types are asked for; the first that a service has counts.
    pub order: Vec<RecordType>,
}

/// An entry of `discovery.dns.order`. `CNAME` is accepted and none: every answer is followed
/// through its aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    /// The type that had an answer last time.
    Last,
    /// Targets with port, weight and priority.
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses; left out with `apisix.enable_ipv6: false` (APISIX).
    Aaaa,
}

/// APISIX's order.
const DEFAULT_ORDER: [RecordType; 4] = [
    RecordType::Last,
    RecordType::Srv,
    RecordType::A,
    RecordType::Aaaa,
];

impl Default for DiscoverySettings {
    fn default() -> Self {
        DiscoverySettings {
            dns: DnsSettings {
                hosts: false,
                ..DnsSettings::default()
            },
            order: DEFAULT_ORDER.to_vec(),
        }
    }
}

/// How nodes given by name are resolved.
pub(super) fn dns(root: &Node, problems: &mut Problems) -> DnsSettings {
    let default = DnsSettings::default();
    let apisix = At::Root.key("apisix");
    DnsSettings {
        servers: servers(
            find(root, &["apisix", "dns_resolver"]),
            &apisix.key("dns_resolver"),
            problems,
        ),
        valid: find(root, &["apisix", "dns_resolver_valid"])
            .and_then(Node::as_i64)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
        timeout: seconds(root, &["apisix", "resolver_timeout"], default.timeout),
        search: flag(
            root,
            &["apisix", "enable_resolv_search_opt"],
            default.search,
        ),
        ..default
    }
}

/// How services are resolved; what `discovery.dns` leaves open is as for `nodes`.
pub(super) fn discovery(
    root: &Node,
    nodes: &DnsSettings,
    ipv6: bool,
    problems: &mut Problems,
) -> DiscoverySettings {
    let block = find(root, &["discovery", "dns"]);
    let discovery = At::Root.key("discovery");
    let at = discovery.key("dns");
    let list = block.and_then(|block| block.get("servers"));
    let mut servers = servers(list, &at.key("servers"), problems);
    let resolv_conf = block
        .and_then(|block| text(block, &["resolv_conf"]))
        .map(PathBuf::from);
    if list.is_none() && resolv_conf.is_none() {
        servers.clone_from(&nodes.servers);
    }
    let order = order(block, ipv6, &at, problems);
    DiscoverySettings {
        dns: DnsSettings {
            servers,
            resolv_conf,
            // APISIX overrides only the TTL of nodes.
            valid: None,
            hosts: false,
            ..nodes.clone()
        },
        order,
    }
}

fn order(
    block: Option<&Node>,
    ipv6: bool,
    at: &At<'_>,
    problems: &mut Problems,
) -> Vec<RecordType> {
    let mut order = DEFAULT_ORDER.to_vec();
    let written = block.and_then(|block| block.entry("order"));
    if let Some(written) = written.filter(|written| written.value.is_list()) {
        let items = written.value.items().iter();
        let known: Option<Vec<Option<RecordType>>> = items
            .map(|item| match item.as_str()? {
                "last" => Some(Some(RecordType::Last)),
                "SRV" => Some(Some(RecordType::Srv)),
                "A" => Some(Some(RecordType::A)),
                "AAAA" => Some(Some(RecordType::Aaaa)),
                "CNAME" => Some(None),
                _ => None,
            })
            .collect();
        // What is no type at all has been told by the table.
        if let Some(known) = known {
            order = known.into_iter().flatten().collect();
            if order.iter().all(|kind| *kind == RecordType::Last) {
                let message = "order asks for no record that leads to an address (SRV, A, AAAA)";
                problems.error(written.key_position, &at.key("order"), message);
            }
        }
    }
    order.retain(|kind| ipv6 || *kind != RecordType::Aaaa);
    order
}

fn servers(list: Option<&Node>, at: &At<'_>, problems: &mut Problems) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    let items = list.map(Node::items).unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let Some(text) = item.as_str() else { continue };
        match name_server(text) {
            Some(server) if servers.contains(&server) => {}
            Some(server) => servers.push(server),
            None => problems.error(
                item.position,
                &at.index(index),
                format!("{} is no address of a name server", quote(text)),
            ),
        }
    }
    servers
}

/// `ip`, `[v6]`, `ip:port`, `[v6]:port`; the port is 53 unless written.
fn name_server(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, 53)),
        Err(_) => text
            .parse()
            .ok()
            .filter(|server: &SocketAddr| server.port() > 0),
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
