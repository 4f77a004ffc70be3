//! Weighted round robin over the nodes of one priority level, shared by all threads.
//!
//! One cycle is laid out once, with every node as evenly spread as its weight allows; a pick is
//! one atomic increment. Over each full cycle the counts are exactly the weights, whichever thread
//! picks, and nothing about it depends on the order in which connections end.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::random::random;

/// The longest cycle that is laid out. Weights whose sum (divided by their common divisor) is
/// larger are scaled down to it; no node with a weight loses its last place.
const MAX_CYCLE: u64 = 65_536;

/// The cycle of one priority level.
#[derive(Debug)]
pub struct RoundRobin {
    cycle: Box<[u32]>,
    next: AtomicUsize,
}

impl RoundRobin {
    /// Lays out the cycle for `weights`, which are divided by their common divisor already.
    /// A weight of 0 gets no place. The first pick is at a random place of the cycle, as in
    /// APISIX, so that many proxies started at once do not all begin with the same node.
    pub fn new(weights: &[u32]) -> Self {
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let scaled = |weight: u32| match weight {
            0 => 0,
            _ if total <= MAX_CYCLE => u64::from(weight),
            _ => (u64::from(weight) * MAX_CYCLE / total).max(1),
        };
        let mut places = Vec::new();
        for (index, &weight) in weights.iter().enumerate() {
            let count = scaled(weight);
            // The middle of each of `count` equal parts of the cycle, as an exact fraction.
            places.extend((0..count).map(|part| ((2 * part + 1, 2 * count), index as u32)));
        }
        places.sort_by(|((a, of_a), i), ((b, of_b), j)| (a * of_b).cmp(&(b * of_a)).then(i.cmp(j)));
        RoundRobin {
            cycle: places.into_iter().map(|(_, index)| index).collect(),
            next: AtomicUsize::new(random() as usize),
        }
    }

    /// The next node for which `wanted` holds, or `None` when no node in the cycle is wanted.
    pub fn pick(&self, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        if self.cycle.is_empty() {
            return None;
        }
        let start = self.next.fetch_add(1, Ordering::Relaxed) % self.cycle.len();
        let (before, from) = self.cycle.split_at(start);
        from.iter()
            .chain(before)
            .map(|&index| index as usize)
            .find(|&index| wanted(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[u32], picks: usize) -> Vec<usize> {
        let balancer = RoundRobin::new(weights);
        let mut counts = vec![0; weights.len()];
        for _ in 0..picks {
            counts[balancer.pick(|_| true).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn a_cycle_holds_exactly_the_weights() {
        assert_eq!(counts(&[1, 2, 3], 600), [100, 200, 300]);
        assert_eq!(counts(&[5, 0, 5], 100), [50, 0, 50]);
    }

    #[test]
    fn a_heavy_node_is_interleaved_not_run_through_in_a_row() {
        let balancer = RoundRobin::new(&[6, 2]);
        let picks: Vec<usize> = (0..8).map(|_| balancer.pick(|_| true).unwrap()).collect();
        let longest = picks
            .chunk_by(|a, b| a == b)
            .map(<[usize]>::len)
            .max()
            .unwrap();
        assert!(longest <= 4, "{picks:?}");
    }

    #[test]
    fn an_unwanted_node_is_passed_over() {
        let balancer = RoundRobin::new(&[1, 1, 1]);
        for _ in 0..9 {
            assert_eq!(balancer.pick(|index| index == 2), Some(2));
        }
        assert_eq!(balancer.pick(|_| false), None);
    }

    #[test]
    fn huge_coprime_weights_are_scaled_and_nobody_is_lost() {
        let balancer = RoundRobin::new(&[4_000_000_000, 3_999_999_999, 1]);
        assert!(balancer.cycle.len() as u64 <= MAX_CYCLE + 3);
        assert_eq!(balancer.pick(|index| index == 2), Some(2));
    }

    #[test]
    fn no_weight_at_all_picks_nobody() {
        assert_eq!(RoundRobin::new(&[]).pick(|_| true), None);
        assert_eq!(RoundRobin::new(&[0]).pick(|_| true), None);
    }
}
