//! What weights mean for the hash ring: a node has 160 points for its weight divided by the
//! greatest common divisor of the weights in its priority, as in APISIX and nginx.

use std::collections::{BTreeMap, HashMap};

use super::upstream::{Balancer, Upstream, UpstreamNode};
use crate::config::standalone::Resources;

/// Largest sum of the divided weights of one priority: four million points.
pub const MAX_RING_WEIGHT: u64 = 25_000;

/// Ring points for each unit of divided weight.
const POINTS: u64 = 160;

/// Greatest common divisor of the weights, zeros left out; 1 when there is none.
pub fn common_divisor(weights: impl IntoIterator<Item = u32>) -> u32 {
    let divisor = weights.into_iter().fold(0u32, |mut a, mut b| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    });
    divisor.max(1)
}

/// The nodes of every priority, and the common divisor of their weights.
fn levels(nodes: &[UpstreamNode]) -> BTreeMap<i64, (u32, Vec<&UpstreamNode>)> {
    let mut levels: BTreeMap<i64, (u32, Vec<&UpstreamNode>)> = BTreeMap::new();
    for node in nodes {
        levels.entry(node.priority).or_default().1.push(node);
    }
    for (divisor, nodes) in levels.values_mut() {
        *divisor = common_divisor(nodes.iter().map(|node| node.weight));
    }
    levels
}

/// Why the ring of these nodes would be too large, if it would.
pub(super) fn oversized_ring(nodes: &[UpstreamNode]) -> Option<String> {
    levels(nodes).into_iter().find_map(|(_, (divisor, nodes))| {
        let sum: u64 = nodes
            .iter()
            .map(|node| u64::from(node.weight / divisor))
            .sum();
        (sum > MAX_RING_WEIGHT).then(|| {
            format!(
                "the hash ring would need {} points (160 for each unit of weight after division by \
                 the common divisor {divisor}; at most {}); use weights with a common divisor",
                sum * POINTS,
                MAX_RING_WEIGHT * POINTS
            )
        })
    })
}

/// Scales the weights of every priority whose ring would be too large down to one that is not; no
/// node loses its weight altogether. For nodes that nobody can be told about.
pub fn fit_to_ring(nodes: &mut [UpstreamNode]) {
    let too_large: BTreeMap<i64, u64> = levels(nodes)
        .into_iter()
        .map(|(priority, (divisor, nodes))| {
            let weights = nodes.iter().map(|node| u64::from(node.weight));
            let sum: u64 = weights.sum();
            (priority, (sum, sum / u64::from(divisor)))
        })
        .filter(|(_, (_, divided))| *divided > MAX_RING_WEIGHT)
        .map(|(priority, (sum, _))| (priority, sum))
        .collect();
    for node in nodes {
        if let Some(sum) = too_large.get(&node.priority)
            && node.weight > 0
        {
            let scaled = u64::from(node.weight) * MAX_RING_WEIGHT / sum;
            node.weight = u32::try_from(scaled.max(1)).unwrap_or(u32::MAX);
        }
    }
}

/// The priorities of which every node has weight 0.
pub(super) fn priorities_without_weight(nodes: &[UpstreamNode]) -> Vec<i64> {
    levels(nodes)
        .into_iter()
        .filter(|(_, (_, nodes))| nodes.iter().all(|node| node.weight == 0))
        .map(|(priority, _)| priority)
        .collect()
}

/// Names the chash upstreams of which an edit of weights has changed the common divisor, so that
/// most clients move to other nodes although the shares hardly changed.
pub fn gcd_change_warnings(old: &Resources, new: &Resources) -> Vec<String> {
    let before: HashMap<String, &Upstream> = all(old).collect();
    all(new)
        .filter_map(|(name, upstream)| {
            let earlier = before.get(&name).copied()?;
            change(earlier, upstream).map(|change| format!("{name}: {change}"))
        })
        .collect()
}

/// All upstreams with what they are called in messages.
fn all(resources: &Resources) -> impl Iterator<Item = (String, &Upstream)> {
    let named = resources
        .upstreams
        .iter()
        .map(|named| (format!("upstream {}", named.id), &named.upstream));
    let routes = resources.stream_routes.iter().filter_map(|route| {
        let upstream = route.upstream.as_ref()?;
        Some((format!("upstream of stream route {}", route.id), upstream))
    });
    let services = resources.services.iter().filter_map(|service| {
        let upstream = service.upstream.as_ref()?;
        Some((format!("upstream of service {}", service.id), upstream))
    });
    named.chain(routes).chain(services)
}

fn change(old: &Upstream, new: &Upstream) -> Option<String> {
    if old.balancer != Balancer::Chash || new.balancer != Balancer::Chash || old.nodes == new.nodes
    {
        return None;
    }
    let before = levels(&old.nodes);
    levels(&new.nodes)
        .into_iter()
        .find_map(|(priority, (divisor, nodes))| {
            let (old_divisor, old_nodes) = before.get(&priority)?;
            if *old_divisor == divisor {
                return None;
            }
            let old_units: HashMap<String, u64> = old_nodes
                .iter()
                .map(|node| (node.to_string(), u64::from(node.weight / old_divisor)))
                .collect();
            // A node's points are a chain, of which more weight only adds links: what both rings
            // have is the smaller number of each node.
            let (mut both, mut either) = (0u64, 0u64);
            let mut units_left = old_units.values().sum::<u64>();
            for node in nodes {
                let units = u64::from(node.weight / divisor);
                let earlier = old_units.get(&node.to_string()).copied().unwrap_or(0);
                both += units.min(earlier);
                either += units.max(earlier);
                units_left -= earlier;
            }
            either += units_left;
            (both * 2 < either).then(|| {
                format!(
                    "the common divisor of the weights changed from {old_divisor} to {divisor}: \
                     only {both} of {either} parts of the hash ring stay, most clients move to \
                     other nodes"
                )
            })
        })
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
