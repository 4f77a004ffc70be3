//! Randomness that spreads load: nothing here is a secret.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// 64 random bits.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A random time below `limit`.
pub(crate) fn below(limit: Duration) -> Duration {
    limit.mul_f64(fraction(random()))
}

/// A number from 0 to below 1 from random bits.
pub(crate) fn fraction(bits: u64) -> f64 {
    // The 53 bits that an f64 holds exactly.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_spread_evenly() {
        let limit = Duration::from_secs(10);
        let times: Vec<f64> = (0..10_000).map(|_| below(limit).as_secs_f64()).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        assert!((4.8..5.2).contains(&mean), "{mean}");
        assert!(times.iter().all(|time| (0.0..10.0).contains(time)));
        assert!(fraction(u64::MAX) < 1.0);
    }
}
