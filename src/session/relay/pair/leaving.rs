//! A pair that is told to leave: whole packets to both sides, then what each of them is told, then
//! the ends of both streams, and a moment in which both may still send into the void.

use std::time::{Duration, Instant};

use super::flow::{Flow, Owed};
use super::{DISCARD_LIMIT, Pair, State};
use crate::config::resource::leaving::Will;
use crate::mqtt::{self, DisconnectReason};
use crate::session::outcome::End;

/// How long a pair that leaves may take to come to a packet boundary both ways: a peer that reads
/// slowly, or stops in the middle of a packet, cannot hold it for longer.
pub const BOUNDARY_LIMIT: Duration = Duration::from_secs(10);
/// The client's own DISCONNECT "normal disconnection", the same bytes in every version (MQTT 5.0
/// §3.14.2.1: a reason code of 0 may be left out).
const CLIENT_DISCONNECT: [u8; 2] = [0xe0, 0x00];

/// How a pair leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Farewell {
    /// What its end is put down to.
    pub end: End,
    /// What a client of MQTT 5 is told; others have no such packet.
    pub reason: DisconnectReason,
    /// Whether the broker publishes the client's will.
    pub will: Will,
}

/// How far a pair has come in leaving.
#[derive(Debug)]
pub(super) enum Leaving {
    /// Both flows go on up to their next packet boundary, and no further.
    ToBoundary { farewell: Farewell, until: Instant },
    /// Both sides are told, or what they are told is owed to them.
    Told,
}

/// How far a flow may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// As far as there is something.
    On,
    /// To the next boundary; `accepted`: one that lies behind a CONNACK.
    Boundary { accepted: bool },
    /// Not at all; once the receiver has its end, the sender is read into the void.
    Void,
}

impl Reach {
    /// How many bytes may be read at a time at most.
    pub(super) fn limit(self, flow: &Flow) -> usize {
        match self {
            Reach::On => usize::MAX,
            Reach::Void => 0,
            Reach::Boundary { accepted } => match flow.framing.to_boundary() {
                // The first byte of the packet that is waited for.
                Some(0) if accepted && !flow.framing.is_accepted() => 1,
                Some(count) => count,
                None => 0,
            },
        }
    }
}

impl Flow {
    /// Nothing is owed, and nothing more is to be read.
    fn has_arrived(&self, reach: Reach) -> bool {
        self.owed.is_none() && (self.state != State::Open || reach.limit(self) == 0)
    }

    /// Ends it, with these last words if its receiver has got whole packets so far.
    fn end_with(&mut self, words: Option<&[u8]>) {
        if self.state != State::Open {
            return;
        }
        self.state = State::Ended;
        let between = self.owed.is_none() && self.framing.is_at_boundary();
        // What is owed beyond that would never be whole.
        self.owed = words.filter(|_| between).map(|words| {
            Box::new(Owed {
                bytes: words.to_vec(),
                written: 0,
            })
        });
    }
}

impl Pair {
    /// Has the pair leave: at the next packet boundary (one both ways) each side is told as the
    /// farewell says and gets the end of its stream; a pair without MQTT, or whose framing is
    /// broken, gets just that. What was read before reaches its receiver, unless it takes that
    /// longer than [`BOUNDARY_LIMIT`]. The caller advances the pair afterwards. Only the first
    /// farewell counts.
    pub fn leave(&mut self, farewell: Farewell, now: Instant) {
        let until = now + BOUNDARY_LIMIT;
        self.leaving
            .get_or_insert_with(|| Box::new(Leaving::ToBoundary { farewell, until }));
    }

    /// Whether it has been told to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Until when it may look for a boundary: then [`Pair::boundary_limit_passed`] is due.
    pub fn boundary_limit(&self) -> Option<Instant> {
        match self.leaving.as_deref() {
            Some(Leaving::ToBoundary { until, .. }) => Some(*until),
            Some(Leaving::Told) | None => None,
        }
    }

    /// It has taken too long: both streams end where they are, and only a side that has got whole
    /// packets is told anything. The caller advances the pair afterwards.
    pub fn boundary_limit_passed(&mut self) {
        self.tell();
    }

    /// How far the flow to the broker and the flow to the client may read.
    pub(super) fn reach(&self) -> (Reach, Reach) {
        let boundary = |accepted| Reach::Boundary { accepted };
        match self.leaving.as_deref() {
            None => (Reach::On, Reach::On),
            Some(Leaving::ToBoundary { .. }) => (boundary(false), boundary(true)),
            Some(Leaving::Told) => (Reach::Void, Reach::Void),
        }
    }

    /// Tells both sides once both are at a boundary; says whether that is now.
    pub(super) fn tell_at_boundary(&mut self) -> bool {
        let (up, down) = self.reach();
        let looking = matches!(self.leaving.as_deref(), Some(Leaving::ToBoundary { .. }));
        let arrived = looking && self.up.has_arrived(up) && self.down.has_arrived(down);
        if arrived {
            self.tell();
        }
        arrived
    }

    /// The broker first: its session of this client should be over before the client comes back.
    fn tell(&mut self) {
        let Some(Leaving::ToBoundary { farewell, .. }) = self.leaving.as_deref() else {
            return;
        };
        let farewell = *farewell;
        self.leaving = Some(Box::new(Leaving::Told));
        self.note(farewell.end);
        let word = match farewell.will {
            Will::Suppress => Some(&CLIENT_DISCONNECT[..]),
            Will::Publish => None,
        };
        self.up.end_with(word.filter(|_| self.level.is_some()));
        let accepted = self.down.framing.is_accepted();
        let word = self.level.filter(|_| accepted);
        let word = word.and_then(|level| mqtt::disconnect(level, farewell.reason));
        self.down
            .end_with(word.as_ref().map(|packet| packet.as_slice()));
        self.idle.after_broker_end = None;
        let open = self.idle.open.unwrap_or(DISCARD_LIMIT);
        self.idle.open = Some(open.min(DISCARD_LIMIT));
    }
}

#[cfg(test)]
#[path = "leaving_tests.rs"]
mod tests;
