//! How often a relay thread comes to the point where it would sleep.

use std::time::{Duration, Instant};

/// Waits that are counted before the pace is judged.
const WAITS: u32 = 64;
/// The time that they take at most if it is hot: 25,000 waits a second. Messages that come one by
/// one do not get there.
const HOT: Duration = Duration::from_micros(40 * WAITS as u64);

/// The pace of the last waits.
pub(super) struct Pace {
    since: Instant,
    waits: u32,
    hot: bool,
}

impl Pace {
    /// No waits yet.
    pub fn from(now: Instant) -> Self {
        Pace {
            since: now,
            waits: 0,
            hot: false,
        }
    }

    /// Counts one more, and says whether there are so many that the thread should let others who
    /// share its processor go first: they may have more for it in a moment, and many events at a
    /// time cost less than as many wake-ups.
    pub fn is_hot(&mut self, now: Instant) -> bool {
        self.waits += 1;
        if self.waits == WAITS {
            self.hot = now.duration_since(self.since) < HOT;
            (self.since, self.waits) = (now, 0);
        }
        self.hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is hot after so many waits, so far apart.
    fn after(pace: &mut Pace, now: &mut Instant, waits: u32, apart: Duration) -> bool {
        let waits = (0..waits).map(|_| {
            *now += apart;
            pace.is_hot(*now)
        });
        waits.last().unwrap_or_default()
    }

    #[test]
    fn it_follows_the_pace() {
        let mut now = Instant::now();
        let mut pace = Pace::from(now);
        let (quick, slow) = (Duration::from_micros(20), Duration::from_micros(100));
        assert!(!after(&mut pace, &mut now, WAITS - 1, quick));
        assert!(after(&mut pace, &mut now, 1, quick));
        assert!(!after(&mut pace, &mut now, WAITS, slow));
        assert!(after(&mut pace, &mut now, WAITS, quick));
        assert!(!after(&mut pace, &mut now, WAITS, Duration::from_secs(1)));
    }
}
