//! An independent model of APISIX's `chash` ring (resty.chash, the algorithm of nginx's
//! `hash … consistent`), written from its description and checked against the published vectors.

/// Points of a node of weight 1 after the weights are divided by their greatest common divisor.
const POINTS: u32 = 160;

/// A consistent-hash ring over named nodes.
pub struct Ring {
    names: Vec<String>,
    points: Vec<(u32, usize)>,
}

impl Ring {
    /// The ring of `host:port` nodes with their weights, as APISIX builds it: the identity of a
    /// node is its text with every colon replaced by NUL.
    pub fn apisix<S: AsRef<str>>(nodes: &[(S, u32)]) -> Self {
        let identified: Vec<(String, Vec<u8>, u32)> = nodes
            .iter()
            .map(|(node, weight)| {
                let identity = node.as_ref().replace(':', "\0").into_bytes();
                (node.as_ref().to_owned(), identity, *weight)
            })
            .collect();
        Self::identified(&identified)
    }

    /// The ring of nodes with weight 1 each.
    pub fn equal<S: AsRef<str>>(nodes: &[S]) -> Self {
        let weighted: Vec<(&str, u32)> = nodes.iter().map(|node| (node.as_ref(), 1)).collect();
        Self::apisix(&weighted)
    }

    /// The ring of nodes whose identities are given: name, identity bytes, weight.
    pub fn identified(nodes: &[(String, Vec<u8>, u32)]) -> Self {
        let divisor = nodes.iter().map(|node| node.2).fold(0, gcd).max(1);
        let mut points = Vec::new();
        for (index, (_, identity, weight)) in nodes.iter().enumerate() {
            let mut previous = 0_u32;
            for _ in 0..POINTS * (weight / divisor) {
                let mut bytes = identity.clone();
                bytes.extend_from_slice(&previous.to_le_bytes());
                previous = crc32(&bytes);
                points.push((previous, index));
            }
        }
        points.sort_unstable();
        Self {
            names: nodes.iter().map(|node| node.0.clone()).collect(),
            points,
        }
    }

    /// All points in order, each with the index of its node.
    pub fn points(&self) -> &[(u32, usize)] {
        &self.points
    }

    /// The indices of the nodes in the order in which they are tried for this key.
    pub fn order(&self, key: impl AsRef<[u8]>) -> Vec<usize> {
        let hash = crc32(key.as_ref());
        let first = self.points.partition_point(|(point, _)| *point < hash);
        let mut order = Vec::new();
        for step in 0..self.points.len() {
            let (_, node) = self.points[(first + step) % self.points.len()];
            if !order.contains(&node) {
                order.push(node);
            }
        }
        order
    }

    /// The index of the node that this key belongs to.
    pub fn pick(&self, key: impl AsRef<[u8]>) -> usize {
        self.order(key)[0]
    }

    /// The names of the nodes in the order of attempts.
    pub fn names_for(&self, key: impl AsRef<[u8]>) -> Vec<&str> {
        self.order(key)
            .into_iter()
            .map(|index| self.names[index].as_str())
            .collect()
    }

    /// The first of the ids `<prefix>0`, `<prefix>1`, … that belongs to the node `index`.
    pub fn id_for(&self, index: usize, prefix: &str) -> String {
        self.ids_for(index, prefix, 1).remove(0)
    }

    /// The first `count` of these ids.
    pub fn ids_for(&self, index: usize, prefix: &str, count: usize) -> Vec<String> {
        let ids = (0..100_000).map(|n| format!("{prefix}{n}"));
        let found: Vec<String> = ids
            .filter(|id| self.pick(id) == index)
            .take(count)
            .collect();
        assert_eq!(found.len(), count, "ids of node {index}");
        found
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// CRC32 as zlib computes it (IEEE 802.3, reflected).
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
