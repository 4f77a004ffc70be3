//! Histograms of durations that many threads observe at once.
//!
//! `prometheus_client` has one behind a mutex, which every connection of every thread would take.
//! This one is atomic counters, in as many copies as it takes for threads not to share a cache line:
//! an observation is two additions, some nanoseconds each (`benches/telemetry.rs`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in nanoseconds; the last bucket has none.
const BOUNDS: [u64; BUCKETS - 1] = [
    100_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    10_000_000_000,
];
/// With the sum, these fill two cache lines.
const BUCKETS: usize = 15;
/// Copies, over which the threads spread.
const SHARDS: usize = 8;

const NANOSECONDS: f64 = 1e9;

/// A histogram of durations, from 0.1 ms to 10 s. It takes no memory to speak of before the first
/// observation.
#[derive(Debug, Default)]
pub struct Histogram {
    shards: OnceLock<Box<[Shard; SHARDS]>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Not cumulative.
    buckets: [AtomicU64; BUCKETS],
    /// Nanoseconds. Wraps after 584 years of observed time, which Prometheus takes for a restart.
    sum: AtomicU64,
}

/// What a histogram has counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// The sum of all observations in seconds.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
    /// Upper bound in seconds and count of each bucket, not cumulative; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Small values are the common ones.
        let bucket = BOUNDS.iter().position(|&bound| nanos <= bound);
        let shard = &self.shards()[own_shard(SHARDS)];
        shard.sum.fetch_add(nanos, Ordering::Relaxed);
        // Whoever finds it counted finds it in the sum.
        shard.buckets[bucket.unwrap_or(BUCKETS - 1)].fetch_add(1, Ordering::Release);
    }

    /// What was counted so far; `None` when nothing was.
    pub fn counted(&self) -> Option<Counted> {
        let shards = self.shards.get()?;
        let total = |get: &dyn Fn(&Shard) -> &AtomicU64| {
            let each = shards
                .iter()
                .map(|shard| get(shard).load(Ordering::Acquire));
            each.fold(0_u64, u64::wrapping_add)
        };
        let counts: Vec<u64> = (0..BUCKETS)
            .map(|bucket| total(&|shard| &shard.buckets[bucket]))
            .collect();
        Some(Counted {
            sum: total(&|shard| &shard.sum) as f64 / NANOSECONDS,
            count: counts.iter().sum(),
            buckets: bounds().zip(counts).collect(),
        })
    }

    /// A histogram that nobody has observed anything in yet.
    pub fn nothing() -> Counted {
        Counted {
            sum: 0.0,
            count: 0,
            buckets: bounds().map(|bound| (bound, 0)).collect(),
        }
    }

    /// Adds observations that another process counted, in the bucket that ends at `bound` seconds.
    pub fn add_to_bucket(&self, bound: f64, count: u64) {
        let bucket = bounds().position(|own| bound <= own);
        let shard = &self.shards()[0];
        shard.buckets[bucket.unwrap_or(BUCKETS - 1)].fetch_add(count, Ordering::Relaxed);
    }

    /// Adds their sum in seconds.
    pub fn add_to_sum(&self, seconds: f64) {
        let nanos = (seconds.max(0.0) * NANOSECONDS) as u64;
        self.shards()[0].sum.fetch_add(nanos, Ordering::Relaxed);
    }

    fn shards(&self) -> &[Shard; SHARDS] {
        self.shards.get_or_init(Box::default)
    }
}

/// The bounds in seconds, the infinite one included.
fn bounds() -> impl Iterator<Item = f64> {
    let finite = BOUNDS.iter().map(|&bound| bound as f64 / NANOSECONDS);
    finite.chain([f64::INFINITY])
}

/// Which of `count` copies of a counter the calling thread uses. Threads get them in turn.
pub fn own_shard(count: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // A thread whose locals are gone already takes the first.
    OWN.try_with(|own| own % count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_of_all_threads_are_counted_once() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counted(), None);
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        histogram.observe(Duration::from_micros(100));
                        histogram.observe(Duration::from_micros(101));
                        histogram.observe(Duration::from_secs(11));
                    }
                });
            }
        });
        let counted = histogram.counted().unwrap();
        assert_eq!(counted.count, 30_000);
        assert_eq!(counted.buckets[0], (0.0001, 10_000), "a bound is inside");
        assert_eq!(counted.buckets[1], (0.0005, 10_000));
        assert_eq!(counted.buckets[BUCKETS - 1], (f64::INFINITY, 10_000));
        let sum = 10_000.0 * (0.0001 + 0.000_101 + 11.0);
        assert!((counted.sum - sum).abs() < 1e-3, "{}", counted.sum);
    }

    #[test]
    fn what_another_process_counted_is_added_to_the_same_buckets() {
        let (old, new) = (Histogram::default(), Histogram::default());
        for micros in [50, 300, 20_000_000] {
            old.observe(Duration::from_micros(micros));
        }
        let counted = old.counted().unwrap();
        for &(bound, count) in &counted.buckets {
            new.add_to_bucket(bound, count);
        }
        new.add_to_sum(counted.sum);
        assert_eq!(new.counted(), Some(counted));
        // A bound that this version does not have goes to the next larger one.
        new.add_to_bucket(0.0003, 1);
        assert_eq!(new.counted().unwrap().buckets[1], (0.0005, 2));
    }
}
