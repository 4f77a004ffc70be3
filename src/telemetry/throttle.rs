//! Log lines that a storm cannot turn into a flood.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(1);
/// How many kinds are remembered; kinds come from fixed lists and from the configuration.
const MAX_KINDS: usize = 4096;

/// Lets the first line of each kind through at once, then at most one a second, and says how many
/// were left out in between.
#[derive(Debug, Default)]
pub struct Throttle {
    kinds: Mutex<HashMap<String, Kind>>,
}

#[derive(Debug)]
struct Kind {
    last: Instant,
    suppressed: u64,
}

impl Throttle {
    /// Whether a line of this kind may be written now: `Some(text)` to append, which is empty or
    /// tells how many lines were suppressed since the last one.
    pub fn admit(&self, kind: &str) -> Option<String> {
        self.admit_at(kind, Instant::now())
    }

    fn admit_at(&self, kind: &str, now: Instant) -> Option<String> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = kinds.get_mut(kind) else {
            if kinds.len() >= MAX_KINDS {
                kinds.clear();
            }
            let first = Kind {
                last: now,
                suppressed: 0,
            };
            kinds.insert(kind.to_owned(), first);
            return Some(String::new());
        };
        if now.saturating_duration_since(known.last) < PAUSE {
            known.suppressed += 1;
            return None;
        }
        known.last = now;
        Some(match std::mem::take(&mut known.suppressed) {
            0 => String::new(),
            count => format!(" ({count} more like this since the last line)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_for_each_kind_and_none_is_forgotten() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let at = |kind, millis| throttle.admit_at(kind, start + Duration::from_millis(millis));
        assert_eq!(at("a", 0).as_deref(), Some(""));
        assert_eq!(at("b", 1).as_deref(), Some(""));
        assert_eq!(at("a", 10), None);
        assert_eq!(at("a", 999), None);
        let text = at("a", 1000).unwrap();
        assert!(text.contains("2 more"), "{text}");
        assert_eq!(at("a", 2000).as_deref(), Some(""));
    }
}
