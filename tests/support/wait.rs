//! Waiting for a condition, with a deadline, instead of sleeping for a time.

use std::time::{Duration, Instant};

/// The deadline for things that normally take milliseconds: far above what a loaded machine needs,
/// so that reaching it means "never".
pub const SOON: Duration = Duration::from_secs(15);

/// Waits until a count has not changed for a while, and returns it.
pub fn wait_until_still(what: &str, mut count: impl FnMut() -> usize) -> usize {
    let (mut before, mut since) = (count(), Instant::now());
    wait_until(what, SOON, || {
        let now = count();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(300)).then_some(before)
    })
}

/// Polls `probe` every few milliseconds until it yields a value.
///
/// # Panics
/// When `within` has passed: the message names `what` was waited for.
pub fn wait_until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(
            start.elapsed() < within,
            "waited {within:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(3));
    }
}
