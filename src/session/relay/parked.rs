//! Clients whose first bytes have not come yet.
//!
//! A connection is accepted when the handshake of TCP is done; CONNECT comes a little later. Until
//! then it is one socket here, and what is to be done with it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::socket::{PARKED, token};
use super::thread::State;

/// A socket that waits for its first bytes, for its end, or for a point in time.
pub struct Parked {
    /// The socket.
    pub socket: OwnedFd,
    /// When to go on in any case.
    pub until: Instant,
    /// What to do then.
    pub resume: Box<dyn FnOnce(OwnedFd) + Send>,
}

/// One that a relay thread watches.
pub(super) struct Watched {
    parked: Parked,
    generation: u32,
}

impl State {
    pub(super) fn park(&mut self, parked: Parked) {
        let generation = self.next_generation();
        let until = parked.until;
        let index = self.parked.insert(Watched { parked, generation });
        let data = token(index, 0, generation, PARKED);
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let socket = &self.parked[index].parked.socket;
        if let Err(error) = epoll::add(&self.epoll, socket, data, flags) {
            log::error!("a connection is cut, epoll refuses it: {error}");
            self.parked.remove(index);
            return;
        }
        self.expect_idle(Some(until.saturating_duration_since(self.now)));
    }

    /// Something came, or the connection ended.
    pub(super) fn unpark(&mut self, index: usize, generation: u32) {
        if (self.parked.get(index)).is_some_and(|watched| watched.generation == generation) {
            self.resume(index);
        }
    }

    fn resume(&mut self, index: usize) {
        let Watched { parked, .. } = self.parked.remove(index);
        // Still ours, so it is in the set.
        let _ = epoll::delete(&self.epoll, &parked.socket);
        (parked.resume)(parked.socket);
    }

    /// Goes on with those whose time has come; says how soon the next one's comes.
    pub(super) fn look_for_late_ones(&mut self) -> Option<Duration> {
        let now = self.now;
        let (late, early): (Vec<_>, Vec<_>) = self
            .parked
            .iter()
            .map(|(index, watched)| (index, watched.parked.until))
            .partition(|(_, until)| *until <= now);
        late.into_iter().for_each(|(index, _)| self.resume(index));
        let next = early.into_iter().map(|(_, until)| until - now);
        next.min()
    }
}
