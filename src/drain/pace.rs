//! When the next connection leaves.

use std::time::{Duration, Instant};

use crate::upstream::random::{fraction, random};

/// A pace that could not be kept for a while is made up for by at most this much of it at once.
const MOST_LATE: Duration = Duration::from_millis(250);
/// Longer pauses than this are looked at again before they are over: the rate may rise.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Departures at a rate that may change at any moment. Each gap is drawn anew, from half to one
/// and a half times the mean, so that clients which come back do not march in step.
#[derive(Debug, Clone)]
pub struct Pace {
    last: Instant,
    jitter: f64,
}

impl Pace {
    /// A pace whose first departure is one gap from now.
    pub fn from(now: Instant) -> Self {
        Pace {
            last: now,
            jitter: jitter(),
        }
    }

    /// Somebody waits again after nobody has: what was not used is not made up for.
    pub fn resume(&mut self, now: Instant, rate: f64) {
        if self.next(rate) < now {
            *self = Pace::from(now);
        }
    }

    /// How many of those who are `waiting` leave now, at `rate` a second.
    pub fn due(&mut self, now: Instant, rate: f64, waiting: usize) -> usize {
        if let Some(earliest) = now.checked_sub(MOST_LATE)
            && self.next(rate) < earliest
        {
            self.last = earliest.max(self.last);
        }
        let mut count = 0;
        while count < waiting {
            let next = self.next(rate);
            if next > now {
                break;
            }
            (self.last, self.jitter) = (next, jitter());
            count += 1;
        }
        count
    }

    /// When the next one is due.
    pub fn next(&self, rate: f64) -> Instant {
        let gap = Duration::try_from_secs_f64(self.jitter / rate);
        self.last
            + gap
                .unwrap_or(Duration::MAX / 4)
                .min(Duration::from_secs(366 * 86400))
    }

    /// When to look again: when the next one is due, or before that if it is far.
    pub fn look(&self, now: Instant, rate: f64) -> Instant {
        self.next(rate).min(now + LONGEST_LOOK)
    }
}

/// From 0.5 to below 1.5.
fn jitter() -> f64 {
    0.5 + fraction(random())
}

/// The rate at which `left` connections are gone when `time` has passed.
pub fn rate_for(left: usize, time: Duration) -> f64 {
    // A deadline that has passed means now, which is a rate like any other.
    left as f64 / time.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many leave within `time` when it is looked at each `step`.
    fn departures(rate: f64, time: Duration, step: Duration) -> usize {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        let (mut count, mut at) = (0, Duration::ZERO);
        while at < time {
            at += step;
            count += pace.due(start + at, rate, usize::MAX);
        }
        count
    }

    #[test]
    fn the_mean_is_the_rate_however_often_it_is_looked_at() {
        for step in [1, 7, 100, 240] {
            let step = Duration::from_millis(step);
            let count = departures(200.0, Duration::from_secs(50), step);
            assert!((9_700..10_300).contains(&count), "{count} {step:?}");
        }
    }

    #[test]
    fn what_was_missed_for_long_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        let count = pace.due(start + Duration::from_secs(60), 100.0, usize::MAX);
        // A quarter of a second: 25, and gaps are random.
        assert!((17..36).contains(&count), "{count}");
    }

    #[test]
    fn a_pause_in_which_nobody_waited_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        let later = start + Duration::from_secs(9);
        pace.resume(later, 100.0);
        assert_eq!(pace.due(later, 100.0, usize::MAX), 0);
        let running = pace.next(100.0);
        pace.resume(later, 100.0);
        assert_eq!(pace.next(100.0), running);
    }

    #[test]
    fn nobody_leaves_before_a_gap_has_passed_and_a_higher_rate_counts_at_once() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        assert_eq!(pace.due(start, 1000.0, 9), 0);
        assert_eq!(pace.due(start + Duration::from_secs(1), 0.01, 9), 0);
        assert!(pace.due(start + Duration::from_secs(2), 1000.0, 9) > 0);
        assert!(pace.look(start, 1e-9) <= start + LONGEST_LOOK);
    }

    #[test]
    fn a_deadline_makes_its_own_rate() {
        assert_eq!(rate_for(100, Duration::from_secs(50)), 2.0);
        assert!(rate_for(1, Duration::ZERO) >= 1e6);
        assert_eq!(rate_for(0, Duration::ZERO), 0.0);
    }
}
