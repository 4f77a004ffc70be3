//! `mqtt_proxy.upstream_bind`: the addresses from which nodes are connected to.

use std::net::IpAddr;

use super::load::find;
use crate::config::diagnostic::{At, Problems};
use crate::config::document::Node;

/// Reads the list; whether the machine has the addresses shows when they are used.
pub(super) fn read(root: &Node, problems: &mut Problems) -> Vec<IpAddr> {
    let own = At::Root.key("mqtt_proxy");
    let at = own.key("upstream_bind");
    let list = find(root, &["mqtt_proxy", "upstream_bind"]);
    let mut addresses: Vec<IpAddr> = Vec::new();
    let items = list.map(Node::items).unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let parsed = item.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        // What is no address has been told by the table.
        let Some(address) = parsed.map(|address| address.to_canonical()) else {
            continue;
        };
        if address.is_unspecified() || address.is_multicast() {
            let message = format!("{address} is no address that a connection can come from");
            problems.error(item.position, &at.index(index), message);
        } else if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
