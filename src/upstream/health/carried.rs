//! The health of a node as data, for another process.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Counts, Health, State};

/// What is known about the health of a node. Times are as long ago, because clocks of processes
/// do not compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Carried {
    /// Whether new connections may go to it.
    pub healthy: bool,
    /// How often it became healthy.
    pub to_healthy: u64,
    /// How often it became unhealthy.
    pub to_unhealthy: u64,
    /// What probes have shown since the state changed last.
    pub probes: InARow,
    /// The same of connects for clients.
    pub connects: InARow,
    /// Milliseconds since the last probe began; `None` before the first.
    pub probed_ms: Option<u64>,
    /// Milliseconds since the state changed; `None` = never.
    pub changed_ms: Option<u64>,
}

impl Default for Carried {
    fn default() -> Self {
        Health::default().carried()
    }
}

/// Successes and failures in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InARow {
    /// Successes.
    pub successes: u8,
    /// Failures by kind, in the order of [`Failure`](super::Failure). A kind that one side does
    /// not know counts nothing.
    pub failures: Vec<u8>,
}

impl From<&Counts> for InARow {
    fn from(counts: &Counts) -> Self {
        InARow {
            successes: counts.successes,
            failures: counts.failures.to_vec(),
        }
    }
}

impl From<&InARow> for Counts {
    fn from(row: &InARow) -> Self {
        let mut counts = Counts {
            successes: row.successes,
            ..Counts::default()
        };
        for (count, failures) in counts.failures.iter_mut().zip(&row.failures) {
            *count = *failures;
        }
        counts
    }
}

impl Health {
    /// What is known now.
    pub fn carried(&self) -> Carried {
        let state = self.state();
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed().as_millis() as u64);
        let (to_healthy, to_unhealthy) = self.transitions();
        Carried {
            healthy: self.is_healthy(),
            to_healthy,
            to_unhealthy,
            probes: (&state.probes).into(),
            connects: (&state.connects).into(),
            probed_ms: ago(state.probed),
            changed_ms: ago(state.changed),
        }
    }

    /// Goes on from what another process knew. Whoever uses the node is still to be told.
    pub fn restore(&self, carried: &Carried) {
        let now = Instant::now();
        // The clock of a machine that started a moment ago cannot look back that far.
        let at = |ago: Option<u64>| {
            ago.map(|ms| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now))
        };
        let connects = Counts::from(&carried.connects);
        let mut state = self.state();
        let failed = connects.failures.iter().any(|&count| count > 0);
        self.connects_failed.store(failed, Ordering::Relaxed);
        *state = State {
            probes: (&carried.probes).into(),
            connects,
            probed: at(carried.probed_ms),
            // Without a time, an unhealthy node that is not probed would never get another chance.
            changed: at(carried.changed_ms).or((!carried.healthy).then_some(now)),
            unchecked: state.unchecked,
        };
        self.healthy.store(carried.healthy, Ordering::Relaxed);
        let counters = [
            (&self.to_healthy, carried.to_healthy),
            (&self.to_unhealthy, carried.to_unhealthy),
        ];
        for (counter, value) in counters {
            counter.store(value, Ordering::Relaxed);
        }
        drop(state);
        self.transition.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::health::tests::LIMITS;
    use crate::upstream::health::{Change, Failure, Seen};

    fn restored(from: &Health) -> Health {
        let text = serde_json::to_string(&from.carried()).unwrap();
        let health = Health::default();
        health.restore(&serde_json::from_str(&text).unwrap());
        health
    }

    #[test]
    fn another_process_goes_on_counting_where_this_one_stopped() {
        let old = Health::default();
        assert_eq!(old.failed(Seen::Connect, Failure::Tcp, &LIMITS), None);
        let new = restored(&old);
        assert!(new.is_healthy());
        assert_eq!(
            new.failed(Seen::Connect, Failure::Tcp, &LIMITS),
            Some(Change::Unhealthy(2, Failure::Tcp))
        );
        let newest = restored(&new);
        assert!(!newest.is_healthy());
        assert_eq!(newest.transitions(), (0, 1));
        assert_eq!(newest.changed_at().is_some(), new.changed_at().is_some());
        assert_eq!(newest.probe_succeeded(1), Some(Change::Healthy));
    }

    #[test]
    fn a_connect_that_succeeds_forgets_failures_of_before() {
        let old = Health::default();
        old.failed(Seen::Connect, Failure::Tcp, &LIMITS);
        let new = restored(&old);
        new.connected();
        assert_eq!(new.failed(Seen::Connect, Failure::Tcp, &LIMITS), None);
    }

    #[test]
    fn what_another_version_leaves_out_or_adds_does_no_harm() {
        let text = r#"{"probes":{"failures":[1,0,0,0,9,9]},"later":1}"#;
        let carried: Carried = serde_json::from_str(text).unwrap();
        assert!(
            carried.healthy,
            "a node is healthy until something shows otherwise"
        );
        let health = Health::default();
        health.restore(&carried);
        assert!(health.failed(Seen::Probe, Failure::Tcp, &LIMITS).is_some());
    }
}
