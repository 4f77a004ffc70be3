//! Health of nodes: what is known about one node, and when that changes.
//!
//! The states and counters are those of APISIX's checker (lua-resty-healthcheck): a node starts
//! healthy, so many failures of one kind in a row make it unhealthy, so many successes in a row
//! make it healthy again; one success forgets the failures and the other way round. Probes and
//! connects for clients count apart, because a broker that hangs still accepts connections.

pub mod carried;
pub mod http;
pub mod mqtt;
pub mod probe;
pub mod prober;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::resource::checks::Limits;

/// How something that a node was asked for failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Refused, unreachable, reset, or TLS failed.
    Tcp,
    /// No answer in time.
    Timeout,
    /// An HTTP status that counts as failure.
    Http,
    /// Something else than CONNACK 0.
    Mqtt,
}

impl Failure {
    /// How logs name several of them.
    pub fn plural(self) -> &'static str {
        match self {
            Failure::Tcp => "TCP failures",
            Failure::Timeout => "timeouts",
            Failure::Http => "HTTP failures",
            Failure::Mqtt => "MQTT failures",
        }
    }
}

/// Who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A probe.
    Probe,
    /// A connect for a client.
    Connect,
}

/// A node changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is healthy again.
    Healthy,
    /// It is unhealthy, after so many failures of a kind.
    Unhealthy(u8, Failure),
}

#[derive(Debug, Default)]
struct Counts {
    successes: u8,
    failures: [u8; 4],
}

impl Counts {
    /// Counts a failure; says after how many of its kind the limit is reached.
    fn failed(&mut self, failure: Failure, limits: &Limits) -> Option<u8> {
        self.successes = 0;
        let limit = match failure {
            Failure::Tcp => limits.tcp,
            Failure::Timeout => limits.timeouts,
            Failure::Http => limits.http,
            Failure::Mqtt => limits.mqtt,
        };
        let count = &mut self.failures[failure as usize];
        *count = count.saturating_add(1);
        (limit > 0 && *count >= limit).then_some(*count)
    }
}

/// What is known about the health of a node at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether new connections may go to the node.
    pub healthy: bool,
    /// Probes in a row that succeeded, since the last that did not or the last change of state.
    pub successes: u8,
    /// Failures in a row by [`Failure`]: of probes, or of connects where those are more.
    failures: [u8; 4],
}

impl Snapshot {
    /// Failures of a kind in a row.
    pub fn failures(&self, kind: Failure) -> u8 {
        self.failures[kind as usize]
    }

    /// The state in the words of APISIX's checker, which has two more: on the way from one to the
    /// other.
    pub fn status(&self) -> &'static str {
        match (self.healthy, self.failures != [0; 4], self.successes > 0) {
            (true, false, _) => "healthy",
            (true, true, _) => "mostly_healthy",
            (false, _, false) => "unhealthy",
            (false, _, true) => "mostly_unhealthy",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    probes: Counts,
    connects: Counts,
    /// When the last probe began.
    probed: Option<Instant>,
    /// When the state changed last; `None` = never.
    changed: Option<Instant>,
    /// Nobody checks this node: what an upstream of before still learns counts for nothing.
    unchecked: bool,
}

/// The health of one node. Lives as long as the node, so through reloads.
#[derive(Debug)]
pub struct Health {
    healthy: AtomicBool,
    /// Connects failed since the last one that succeeded: spares the lock on every success.
    connects_failed: AtomicBool,
    state: Mutex<State>,
    to_healthy: AtomicU64,
    to_unhealthy: AtomicU64,
    transition: watch::Sender<()>,
}

impl Default for Health {
    /// A node is healthy until something shows otherwise (APISIX).
    fn default() -> Self {
        Health {
            healthy: AtomicBool::new(true),
            connects_failed: AtomicBool::new(false),
            state: Mutex::default(),
            to_healthy: AtomicU64::new(0),
            to_unhealthy: AtomicU64::new(0),
            transition: watch::Sender::new(()),
        }
    }
}

impl Health {
    /// Whether new connections may go to the node.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// How often the node became healthy and unhealthy.
    pub fn transitions(&self) -> (u64, u64) {
        (
            self.to_healthy.load(Ordering::Relaxed),
            self.to_unhealthy.load(Ordering::Relaxed),
        )
    }

    /// Adds changes that another process counted.
    pub fn add_transitions(&self, to_healthy: u64, to_unhealthy: u64) {
        self.to_healthy.fetch_add(to_healthy, Ordering::Relaxed);
        self.to_unhealthy.fetch_add(to_unhealthy, Ordering::Relaxed);
    }

    /// What is known now.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let (probes, connects) = (&state.probes.failures, &state.connects.failures);
        Snapshot {
            healthy: self.is_healthy(),
            successes: state.probes.successes,
            failures: std::array::from_fn(|kind| probes[kind].max(connects[kind])),
        }
    }

    /// A probe succeeded; `needed` in a row make an unhealthy node healthy.
    pub fn probe_succeeded(&self, needed: u8) -> Option<Change> {
        let mut state = self.state();
        let counts = &mut state.probes;
        counts.failures = [0; 4];
        counts.successes = counts.successes.saturating_add(1);
        let change = !self.is_healthy() && counts.successes >= needed;
        change.then(|| self.change(state, Change::Healthy))
    }

    /// A probe or a connect failed.
    pub fn failed(&self, seen: Seen, failure: Failure, limits: &Limits) -> Option<Change> {
        let mut state = self.state();
        if state.unchecked {
            return None;
        }
        let counts = match seen {
            Seen::Probe => &mut state.probes,
            Seen::Connect => {
                self.connects_failed.store(true, Ordering::Relaxed);
                // What clients see fail is no step on the way back either.
                state.probes.successes = 0;
                &mut state.connects
            }
        };
        let count = counts.failed(failure, limits)?;
        self.is_healthy()
            .then(|| self.change(state, Change::Unhealthy(count, failure)))
    }

    /// A connect for a client succeeded: earlier ones that failed are forgotten. The way back
    /// from unhealthy leads through probes or time (APISIX knows no passive recovery either).
    pub fn connected(&self) {
        if self.connects_failed.swap(false, Ordering::Relaxed) {
            self.state().connects = Counts::default();
        }
    }

    /// An unhealthy node that is not probed gets another chance.
    pub fn recover(&self) -> Option<Change> {
        let state = self.state();
        (!self.is_healthy()).then(|| self.change(state, Change::Healthy))
    }

    /// Health is checked from now on.
    pub fn learn(&self) {
        self.state().unchecked = false;
    }

    /// Health is not checked any more: forgets everything. Probes and connects that are under way
    /// make no difference.
    pub fn forget(&self) {
        let mut state = self.state();
        *state = State {
            unchecked: true,
            ..State::default()
        };
        self.healthy.store(true, Ordering::Relaxed);
    }

    fn change(&self, mut state: MutexGuard<'_, State>, change: Change) -> Change {
        let (healthy, counter) = match change {
            Change::Healthy => (true, &self.to_healthy),
            Change::Unhealthy(..) => (false, &self.to_unhealthy),
        };
        state.probes = Counts::default();
        state.connects = Counts::default();
        state.changed = Some(Instant::now());
        self.healthy.store(healthy, Ordering::Relaxed);
        counter.fetch_add(1, Ordering::Relaxed);
        drop(state);
        self.transition.send_replace(());
        change
    }

    /// A probe begins now.
    fn probe_begins(&self) {
        self.state().probed = Some(Instant::now());
    }

    /// When the next probe is due, `interval` after the last one began; `None` before the first.
    fn next_probe(&self, interval: Duration) -> Option<Instant> {
        self.state().probed.map(|probed| probed + interval)
    }

    /// For how long a node that was unhealthy has been healthy again; `None` where it never was
    /// unhealthy, or is.
    pub fn back_for(&self) -> Option<Duration> {
        if self.to_healthy.load(Ordering::Relaxed) == 0 || !self.is_healthy() {
            return None;
        }
        Some(self.changed_at()?.elapsed())
    }

    /// Since when the node has been in its state; `None` = from the start.
    fn changed_at(&self) -> Option<Instant> {
        self.state().changed
    }

    /// Tells of every change of state from now on.
    fn transition(&self) -> watch::Receiver<()> {
        self.transition.subscribe()
    }

    /// A poisoned lock only means that another task panicked; counters are whole at any moment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LIMITS: Limits = Limits {
        tcp: 2,
        timeouts: 3,
        http: 5,
        mqtt: 0,
    };

    #[test]
    fn failures_in_a_row_of_one_kind_make_a_node_unhealthy() {
        let health = Health::default();
        assert_eq!(health.failed(Seen::Probe, Failure::Tcp, &LIMITS), None);
        assert_eq!(health.failed(Seen::Probe, Failure::Timeout, &LIMITS), None);
        assert_eq!(health.failed(Seen::Probe, Failure::Timeout, &LIMITS), None);
        assert!(health.is_healthy(), "one TCP failure and two timeouts");
        assert_eq!(health.probe_succeeded(2), None);
        assert_eq!(health.failed(Seen::Probe, Failure::Tcp, &LIMITS), None);
        assert_eq!(
            health.failed(Seen::Probe, Failure::Tcp, &LIMITS),
            Some(Change::Unhealthy(2, Failure::Tcp))
        );
        assert!(!health.is_healthy());
        assert_eq!(
            health.failed(Seen::Probe, Failure::Tcp, &LIMITS),
            None,
            "it is unhealthy already"
        );
    }

    #[test]
    fn a_snapshot_tells_how_far_it_is_to_the_other_state() {
        let health = Health::default();
        let fail = || health.failed(Seen::Probe, Failure::Tcp, &LIMITS);
        assert_eq!(health.snapshot().status(), "healthy");
        fail();
        health.failed(Seen::Connect, Failure::Tcp, &LIMITS);
        let snapshot = health.snapshot();
        assert_eq!(snapshot.status(), "mostly_healthy");
        assert_eq!(
            snapshot.failures(Failure::Tcp),
            1,
            "each row counts for itself"
        );
        fail();
        assert_eq!(health.snapshot().status(), "unhealthy");
        health.probe_succeeded(2);
        assert_eq!(health.snapshot().status(), "mostly_unhealthy");
        health.probe_succeeded(2);
        assert_eq!(health.snapshot().status(), "healthy");
    }

    #[test]
    fn successes_in_a_row_make_it_healthy_again() {
        let health = Health::default();
        let fail = || health.failed(Seen::Probe, Failure::Tcp, &LIMITS);
        fail();
        fail();
        assert_eq!(health.probe_succeeded(2), None);
        fail();
        assert_eq!(health.probe_succeeded(2), None, "the row was broken");
        assert_eq!(health.probe_succeeded(2), Some(Change::Healthy));
        assert_eq!(health.transitions(), (1, 1));
    }

    #[test]
    fn a_limit_of_zero_never_counts() {
        let health = Health::default();
        for _ in 0..300 {
            assert_eq!(health.failed(Seen::Connect, Failure::Mqtt, &LIMITS), None);
        }
    }

    #[test]
    fn connects_that_succeed_do_not_hide_probes_that_fail() {
        let health = Health::default();
        let hangs = || health.failed(Seen::Probe, Failure::Timeout, &LIMITS);
        for _ in 0..2 {
            assert_eq!(hangs(), None);
            health.failed(Seen::Connect, Failure::Tcp, &LIMITS);
            health.connected();
        }
        assert_eq!(hangs(), Some(Change::Unhealthy(3, Failure::Timeout)));
        health.connected();
        assert!(!health.is_healthy(), "a connect is no way back");
        assert_eq!(health.recover(), Some(Change::Healthy));
        assert_eq!(health.recover(), None);
    }

    #[test]
    fn forgetting_makes_healthy_without_a_transition() {
        let health = Health::default();
        for _ in 0..2 {
            health.failed(Seen::Connect, Failure::Tcp, &LIMITS);
        }
        health.forget();
        assert!(health.is_healthy());
        assert_eq!(health.transitions(), (0, 1));
    }

    #[test]
    fn what_was_under_way_when_checks_ended_makes_no_node_unhealthy() {
        let health = Health::default();
        health.forget();
        for _ in 0..3 {
            assert_eq!(health.failed(Seen::Probe, Failure::Tcp, &LIMITS), None);
            assert_eq!(health.failed(Seen::Connect, Failure::Tcp, &LIMITS), None);
        }
        assert_eq!(health.snapshot().status(), "healthy");
        health.learn();
        assert_eq!(health.failed(Seen::Probe, Failure::Tcp, &LIMITS), None);
        let change = health.failed(Seen::Probe, Failure::Tcp, &LIMITS);
        assert_eq!(change, Some(Change::Unhealthy(2, Failure::Tcp)));
    }
}
