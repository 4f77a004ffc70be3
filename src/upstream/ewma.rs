//! `ewma`: the quicker of two random nodes, by the moving average of their connect times.
//!
//! As in APISIX (and ingress-nginx, from where it has it), the average decays while a node is not
//! used, so that one that was slow is tried again. Weights decide how often a node is drawn.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::random::random;

/// After this time without a measurement an average counts e times less (APISIX).
const DECAY: Duration = Duration::from_secs(10);
/// So often two nodes are drawn before all are walked over.
const DRAWS: usize = 8;

/// The moving average of one node's connect times.
#[derive(Debug, Default)]
pub struct ConnectTime(Mutex<Option<(f64, Instant)>>);

impl ConnectTime {
    /// A connect took so long.
    pub fn add(&self, took: Duration) {
        self.add_at(took, Instant::now());
    }

    fn add_at(&self, took: Duration, now: Instant) {
        let mut average = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let took = took.as_secs_f64();
        *average = Some(match *average {
            None => (took, now),
            Some((before, at)) => {
                let kept = decay(now.saturating_duration_since(at));
                (before * kept + took * (1.0 - kept), now)
            }
        });
    }

    /// The average in seconds and how long ago it was last brought up to date, for another process.
    pub fn snapshot(&self) -> Option<(f64, Duration)> {
        let average = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        average.map(|(average, at)| (average, at.elapsed()))
    }

    /// Goes on from what another process measured.
    pub fn restore(&self, (seconds, ago): (f64, Duration)) {
        let now = Instant::now();
        if seconds.is_finite() && seconds >= 0.0 {
            let mut average = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *average = Some((seconds, now.checked_sub(ago).unwrap_or(now)));
        }
    }

    /// Seconds; 0 before the first measurement, so that every node is measured soon.
    fn at(&self, now: Instant) -> f64 {
        let average = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        average.map_or(0.0, |(average, at)| {
            average * decay(now.saturating_duration_since(at))
        })
    }
}

fn decay(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

/// Who is drawn how often.
#[derive(Debug)]
pub struct Lots {
    /// Members with a weight, and the sum of all weights up to and with theirs.
    upto: Vec<(u64, usize)>,
}

impl Lots {
    /// Weight 0 is never drawn.
    pub fn new(weights: &[u32]) -> Self {
        let mut sum = 0;
        let with_weight = (0..weights.len()).filter(|&member| weights[member] > 0);
        let upto = with_weight
            .map(|member| {
                sum += u64::from(weights[member]);
                (sum, member)
            })
            .collect();
        Lots { upto }
    }

    fn draw(&self) -> Option<usize> {
        let (sum, _) = *self.upto.last()?;
        let lot = random() % sum;
        let place = self.upto.partition_point(|&(upto, _)| upto <= lot);
        self.upto.get(place).map(|&(_, member)| member)
    }

    /// The quicker of two random members that are `wanted`.
    pub fn pick<'a>(
        &self,
        wanted: impl Fn(usize) -> bool,
        time: impl Fn(usize) -> &'a ConnectTime,
    ) -> Option<usize> {
        let mut first = None;
        for _ in 0..DRAWS {
            let drawn = self.draw().filter(|&member| wanted(member));
            match (first, drawn) {
                (None, _) => first = drawn,
                (Some(one), Some(other)) if one != other => {
                    let now = Instant::now();
                    let quicker = time(other).at(now) < time(one).at(now);
                    return Some(if quicker { other } else { one });
                }
                _ => {}
            }
        }
        // Few or none are left: the next one in a random place of the row.
        first.or_else(|| {
            let start = random() as usize % self.upto.len().max(1);
            let (before, from) = self.upto.split_at(start);
            let mut members = from.iter().chain(before).map(|&(_, member)| member);
            members.find(|&member| wanted(member))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_moves_and_decays() {
        let time = ConnectTime::default();
        let start = Instant::now();
        assert_eq!(time.at(start), 0.0);
        time.add_at(Duration::from_secs(1), start);
        time.add_at(Duration::from_secs(3), start + DECAY);
        let average = time.at(start + DECAY);
        let expected = (-1.0_f64).exp() + 3.0 * (1.0 - (-1.0_f64).exp());
        assert!((average - expected).abs() < 1e-9, "{average}");
        assert!(time.at(start + 11 * DECAY) < average / 1000.0);
    }

    #[test]
    fn the_quick_node_gets_most_and_every_node_some() {
        let times: Vec<ConnectTime> = (0..4).map(|_| ConnectTime::default()).collect();
        let now = Instant::now();
        for (member, time) in times.iter().enumerate() {
            time.add_at(
                Duration::from_millis(if member == 2 { 1 } else { 100 }),
                now,
            );
        }
        let lots = Lots::new(&[1, 1, 1, 1]);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[lots.pick(|_| true, |member| &times[member]).unwrap()] += 1;
        }
        // It is in half of all pairs of four, and ties go to the one that was drawn first.
        assert!((1700..2300).contains(&counts[2]), "{counts:?}");
        assert!(counts.iter().all(|&count| count > 300), "{counts:?}");
    }

    #[test]
    fn only_wanted_members_with_a_weight() {
        let time = ConnectTime::default();
        let lots = Lots::new(&[1, 0, 1000]);
        assert_eq!(lots.pick(|member| member == 0, |_| &time), Some(0));
        assert_eq!(lots.pick(|member| member == 1, |_| &time), None);
        assert_eq!(Lots::new(&[]).pick(|_| true, |_| &time), None);
    }
}
