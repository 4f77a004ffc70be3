//! Every connection of the process leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::{Pace, rate_for};
use crate::config::resource::leaving::Will;
use crate::mqtt::DisconnectReason;
use crate::session::connections::Connections;
use crate::session::outcome::End;
use crate::session::relay::Relays;
use crate::session::relay::orders::{PairId, Search};
use crate::session::relay::pair::Farewell;

/// How soon connections that have just been established are looked for again.
const SEARCH_AGAIN: Duration = Duration::from_millis(500);
/// The shortest pause between two steps.
const SHORTEST: Duration = Duration::from_millis(1);
/// How soon the result of a search is looked at.
const SEARCHING: Duration = Duration::from_millis(2);

/// The departure of all connections, those included that are still on their way to a broker.
/// Nothing here waits: [`Exodus::step`] says when it wants to be called again.
pub struct Exodus {
    relays: Arc<Relays>,
    connections: Arc<Connections>,
    will: Will,
    rate: Option<f64>,
    /// When the last one is told.
    end: Option<Instant>,
    pace: Pace,
    waiting: Vec<PairId>,
    search: Option<Search<()>>,
    search_again: Instant,
}

impl Exodus {
    /// From now on connections leave: `rate` a second, and faster where the last would otherwise
    /// not be told by `end`. Without a rate they are spread evenly until then; with neither they
    /// leave at once.
    pub fn begin(
        relays: Arc<Relays>,
        connections: Arc<Connections>,
        rate: Option<f64>,
        end: Option<Instant>,
        will: Will,
    ) -> Self {
        let now = Instant::now();
        Exodus {
            relays,
            connections,
            will,
            rate,
            end,
            pace: Pace::from(now),
            waiting: Vec::new(),
            search: None,
            search_again: now,
        }
    }

    /// Everybody who is still there leaves now.
    pub fn hurry(&mut self) {
        (self.rate, self.end) = (None, None);
    }

    fn rate(&self, now: Instant) -> f64 {
        let left = self.connections.live().max(1);
        let needed = self
            .end
            .map(|end| rate_for(left, end.saturating_duration_since(now)));
        match (self.rate, needed) {
            (Some(rate), Some(needed)) => rate.max(needed),
            (Some(rate), None) | (None, Some(rate)) => rate,
            (None, None) => rate_for(left, Duration::ZERO),
        }
    }

    /// Has those leave who are due; says when to call it again.
    pub fn step(&mut self, now: Instant) -> Instant {
        let rate = self.rate(now);
        if let Some(search) = &self.search {
            let mut found = Vec::new();
            let complete = search.take(&mut found);
            if self.waiting.is_empty() {
                self.pace.resume(now, rate);
            }
            self.waiting.extend(found.into_iter().map(|(id, ())| id));
            if complete {
                self.search = None;
            }
        } else if self.waiting.is_empty() && now >= self.search_again {
            self.search_again = now + SEARCH_AGAIN;
            self.search = Some(
                self.relays
                    .search(|pair| (!pair.is_leaving()).then_some(())),
            );
        }
        let farewell = Farewell {
            end: End::Shutdown,
            reason: DisconnectReason::ServerShuttingDown,
            will: self.will,
        };
        if !self.waiting.is_empty() {
            let due = self.pace.due(now, rate, self.waiting.len());
            let leave = self.waiting.split_off(self.waiting.len() - due);
            self.relays.leave(&leave, farewell, None);
        }
        let look = match &self.search {
            Some(_) => now + SEARCHING,
            None if !self.waiting.is_empty() => self.pace.look(now, rate),
            None => self.search_again,
        };
        look.max(now + SHORTEST)
    }
}
