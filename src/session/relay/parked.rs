//! Connections in their beginnings: a socket, and somebody who waits for what it has.
//!
//! A connection is accepted when the handshake of TCP is done; TLS takes two more steps, and
//! CONNECT comes after that. Until then it is a socket in the epoll set and whoever waits for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::socket::{PARKED, token};
use super::thread::State;

/// How long costly steps may go on before everything else has its turn again. One is always
/// taken; a signature with RSA takes longer than this.
const TURN: Duration = Duration::from_micros(400);

/// Who waits for a connection.
pub trait Waiting: Send {
    /// When to go on in any case.
    fn until(&self) -> Instant;

    /// Whether the next step takes so much time that others go first.
    fn is_costly(&self) -> bool;

    /// Does what can be done with what the socket has, which is read until it has no more.
    fn step(&mut self, socket: BorrowedFd<'_>) -> Step;

    /// Goes on with the socket, after [`Step::Over`] or because its time has come.
    fn go_on(self: Box<Self>, socket: OwnedFd);
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// More has to come.
    Wait,
    /// The socket has to take what is owed to it, or more has to come.
    Owe,
    /// Nothing more is to be waited for.
    Over,
}

/// A socket that waits for bytes, for its end, or for a point in time.
pub struct Parked {
    /// The socket.
    pub socket: OwnedFd,
    /// Who waits.
    pub waiting: Box<dyn Waiting>,
}

/// One that a relay thread watches.
pub(super) struct Watched {
    socket: OwnedFd,
    /// Not there while it takes a step.
    waiting: Option<Box<dyn Waiting>>,
    generation: u32,
    /// In the queue for a costly step.
    queued: bool,
    /// Watched for room to write as well.
    owes: bool,
}

/// Those whose next step is costly, in the order of their events: place and generation.
pub(super) type Costly = VecDeque<(usize, u32)>;

const FLAGS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

impl State {
    pub(super) fn park(&mut self, parked: Parked) {
        let Parked { socket, waiting } = parked;
        let generation = self.next_generation();
        let until = waiting.until();
        let index = self.parked.insert(Watched {
            socket,
            waiting: Some(waiting),
            generation,
            queued: false,
            owes: false,
        });
        let data = token(index, 0, generation, PARKED);
        if let Err(error) = epoll::add(&self.epoll, &self.parked[index].socket, data, FLAGS) {
            log::error!("a connection is cut, epoll refuses it: {error}");
            self.parked.remove(index);
            return;
        }
        self.expect_late(until);
    }

    /// Something came, or the connection ended.
    pub(super) fn unpark(&mut self, index: usize, generation: u32) {
        let Some(watched) = self.parked.get_mut(index) else {
            return;
        };
        if watched.generation != generation || watched.queued {
            return;
        }
        match &watched.waiting {
            Some(waiting) if waiting.is_costly() => {
                watched.queued = true;
                self.costly.push_back((index, generation));
            }
            _ => self.step(index),
        }
    }

    /// Takes costly steps, for some time.
    pub(super) fn take_costly_steps(&mut self) {
        if self.costly.is_empty() {
            return;
        }
        self.current = None;
        let end = Instant::now() + TURN;
        while let Some((index, generation)) = self.costly.pop_front() {
            let watched = self.parked.get_mut(index);
            let Some(watched) = watched.filter(|watched| watched.generation == generation) else {
                continue;
            };
            watched.queued = false;
            self.step(index);
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn step(&mut self, index: usize) {
        let watched = &mut self.parked[index];
        let Some(mut waiting) = watched.waiting.take() else {
            return;
        };
        let step = waiting.step(watched.socket.as_fd());
        let until = waiting.until();
        watched.waiting = Some(waiting);
        match step {
            Step::Over => return self.go_on(index),
            Step::Owe if !watched.owes => {
                watched.owes = true;
                let data = token(index, 0, watched.generation, PARKED);
                let flags = FLAGS | EventFlags::OUT;
                // Still ours, so it is in the set.
                let _ = epoll::modify(&self.epoll, &watched.socket, data, flags);
            }
            Step::Owe | Step::Wait => {}
        }
        self.expect_late(until);
    }

    fn go_on(&mut self, index: usize) {
        let Watched {
            socket, waiting, ..
        } = self.parked.remove(index);
        // Still ours, so it is in the set.
        let _ = epoll::delete(&self.epoll, &socket);
        if let Some(waiting) = waiting {
            waiting.go_on(socket);
        }
    }

    fn expect_late(&mut self, until: Instant) {
        self.expect_idle(Some(until.saturating_duration_since(self.now)));
    }

    /// After a panic: drops the connection whose step met it, and has the events of all others
    /// come again, of which some may be lost.
    pub(super) fn look_at_beginnings_again(&mut self) {
        self.parked.retain(|_, watched| watched.waiting.is_some());
        self.costly.clear();
        for (index, watched) in &mut self.parked {
            watched.queued = false;
            let flags = match watched.owes {
                true => FLAGS | EventFlags::OUT,
                false => FLAGS,
            };
            let data = token(index, 0, watched.generation, PARKED);
            // Still ours, so it is in the set.
            let _ = epoll::modify(&self.epoll, &watched.socket, data, flags);
        }
    }

    /// Goes on with those whose time has come; says how soon the next one's comes.
    pub(super) fn look_for_late_ones(&mut self) -> Option<Duration> {
        let now = self.now;
        let (late, early): (Vec<_>, Vec<_>) = self
            .parked
            .iter()
            .filter_map(|(index, watched)| Some((index, watched.waiting.as_ref()?.until())))
            .partition(|(_, until)| *until <= now);
        late.into_iter().for_each(|(index, _)| self.go_on(index));
        let next = early.into_iter().map(|(_, until)| until - now);
        next.min()
    }
}

#[cfg(test)]
#[path = "parked_tests.rs"]
mod tests;
