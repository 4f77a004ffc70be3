//! What a relay thread looks at from time to time, because no event tells of it: idle timeouts,
//! deadlines, memory that is not needed any more.

use std::io::ErrorKind;
use std::time::Duration;

use super::engine::lock;
use super::pair::BOUNDARY_LIMIT;
use super::socket::BROKER;
use super::thread::{LONGEST_TICK, SHORTEST_TICK, State};
use crate::ffi;

/// Connections that are not worth the work of giving their memory back.
const FEW: usize = 64;

impl State {
    /// Makes sure that the ticks are close enough for this idle timeout.
    pub(super) fn expect_idle(&mut self, idle: Option<Duration>) {
        let Some(idle) = idle else {
            return;
        };
        let tick = (idle / 4).clamp(SHORTEST_TICK, LONGEST_TICK);
        if self.tick.is_none_or(|current| tick < current) {
            self.tick = Some(tick);
            self.next_tick = self.now + tick;
        }
    }

    /// Looks for everything whose time is over, and gives the sockets of pairs that live what
    /// they still lack.
    pub(super) fn look_at_all(&mut self) {
        (self.tick, self.current) = (None, None);
        let now = self.now;
        let mut shortest: Option<Duration> = None;
        let mut sooner = |left: Duration| {
            shortest = Some(shortest.map_or(left, |shortest| shortest.min(left)));
        };
        let (mut late, mut overdue) = (Vec::new(), Vec::new());
        let mut gone = 0;
        self.pairs.retain(|index, relayed| {
            if let Some(dial) = &relayed.dial {
                match dial.deadline().checked_duration_since(now) {
                    Some(left) => sooner(left),
                    None => late.push(index),
                }
                return true;
            }
            relayed.sockets[BROKER].complete();
            if let Some(limit) = relayed.pair.boundary_limit() {
                if now >= limit {
                    overdue.push(index);
                    return true;
                }
                sooner(BOUNDARY_LIMIT);
            }
            let Some(idle) = relayed.pair.idle_timeout() else {
                return true;
            };
            let passed = now.saturating_duration_since(relayed.last_activity) >= idle;
            match passed {
                true => {
                    gone += usize::from(relayed.movable);
                    relayed.pair.idle_timeout_passed();
                }
                false => sooner(idle),
            }
            !passed
        });
        self.movable -= gone;
        self.expect_idle(shortest);
        for index in late {
            self.dial_failed(index, ErrorKind::TimedOut.into());
        }
        self.end_of_patience(overdue);
        let left = self.look_for_late_ones();
        self.expect_idle(left);
        // After a storm the memory goes back.
        let held = self.pairs.len() + self.parked.len();
        if self.most_held > FEW && held < self.most_held / 4 {
            self.most_held = held;
            self.pairs.shrink_to_fit();
            self.parked.shrink_to_fit();
            self.orders.shrink_to_fit();
            lock(&self.engine.shared.orders).shrink_to_fit();
            ffi::memory::give_back();
        }
        if self.most_held > FEW {
            // They will go some time; without idle timeouts nothing else makes the thread look.
            self.expect_idle(Some(4 * LONGEST_TICK));
        }
    }
}
