//! Listening sockets in the epoll set of a relay thread.
//!
//! A connection that is accepted where it will be relayed costs no switch between threads. What a
//! door does with it is not the relay's business.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::engine::{Engine, Question};
use super::thread::State;

/// Connections accepted in one go, before those that are relayed have their turn.
const BATCH: usize = 16;

/// Events at or above this are for listeners; the rest of the number says for which.
pub(super) const LISTENERS: u64 = u64::MAX << 24;

/// Accepts connections of one listening socket, on whichever relay thread finds one waiting.
pub trait Door: Send + Sync {
    /// The listening socket, non-blocking.
    fn socket(&self) -> BorrowedFd<'_>;
    /// The address it listens on.
    fn address(&self) -> SocketAddr;
    /// Accepts one connection, if there is one, and begins to serve it. `again` is for a door
    /// that shuts: it has this thread look here again.
    fn accept(&self, again: Again) -> Accepted;
}

/// What came of accepting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// One was taken; more may wait.
    One,
    /// None waits.
    None,
    /// None can be taken before [`Again::open`] is called.
    Shut,
}

/// Opens a door that has shut, on the thread on which it has.
#[derive(Clone)]
pub struct Again {
    engine: Engine,
    door: usize,
}

impl Again {
    /// Connections may be accepted again.
    pub fn open(&self) {
        self.engine.open(self.door);
    }
}

/// A door of this thread.
pub(super) struct Listening {
    /// `None` once it has been given up; others keep their numbers.
    door: Option<Arc<dyn Door>>,
    shut: bool,
    /// Nobody is to accept here any more but those that wait already.
    given_up: bool,
}

impl State {
    pub(super) fn listen(&mut self, door: Arc<dyn Door>) {
        self.listening.push(Listening {
            door: Some(door),
            shut: false,
            given_up: false,
        });
        self.watch_door(self.listening.len() - 1);
    }

    /// Stops accepting until [`State::resume_listening`]; connections wait in the kernel's queue.
    pub(super) fn pause_listening(&mut self, heard: Question) {
        self.paused = true;
        for door in self.listening.iter().filter_map(|own| own.door.as_ref()) {
            // Not there if the door is shut.
            let _ = epoll::delete(&self.epoll, door.socket());
        }
        drop(heard);
    }

    /// While nothing is accepted: lets go of the listeners with these addresses, once those that
    /// wait there are accepted.
    pub(super) fn give_up(&mut self, addresses: &[SocketAddr], heard: Question) {
        for number in 0..self.listening.len() {
            let address = self.listening[number]
                .door
                .as_ref()
                .map(|door| door.address());
            if address.is_some_and(|address| addresses.contains(&address)) {
                self.listening[number].given_up = true;
                self.empty(number);
            }
        }
        drop(heard);
    }

    /// Accepts whoever waits at a door that is given up, and lets go of it.
    fn empty(&mut self, number: usize) {
        let again = Again {
            engine: self.engine.clone(),
            door: number,
        };
        let listening = &mut self.listening[number];
        while let Some(door) = &listening.door {
            match door.accept(again.clone()) {
                Accepted::One => {}
                Accepted::None => listening.door = None,
                // There is no place; this thread looks here again when there is one.
                Accepted::Shut => return,
            }
        }
    }

    pub(super) fn resume_listening(&mut self) {
        self.paused = false;
        for door in 0..self.listening.len() {
            self.watch_door(door);
        }
    }

    /// Lets go of every listener for good.
    pub(super) fn stop_listening(&mut self) {
        for door in self.listening.drain(..).filter_map(|own| own.door) {
            // The set holds a socket by its open file, which lives on while others have it.
            let _ = epoll::delete(&self.epoll, door.socket());
        }
    }

    pub(super) fn open_door(&mut self, door: usize) {
        if let Some(listening) = self.listening.get_mut(door) {
            listening.shut = false;
            match listening.given_up {
                true => self.empty(door),
                false => self.watch_door(door),
            }
        }
    }

    fn watch_door(&self, number: usize) {
        let listening = &self.listening[number];
        let Some(door) = &listening.door else {
            return;
        };
        if self.paused || listening.shut || listening.given_up {
            return;
        }
        // One thread is woken for a connection, not all of them.
        let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
        let data = EventData::new_u64(LISTENERS + number as u64);
        match epoll::add(&self.epoll, door.socket(), data, flags) {
            Err(error) if error != rustix::io::Errno::EXIST => {
                log::error!("a listener cannot be watched, nothing is accepted on it: {error}");
            }
            _ => {}
        }
    }

    pub(super) fn accept(&mut self, number: usize) {
        let Some(listening) = self.listening.get_mut(number) else {
            return;
        };
        let Some(door) = &listening.door else {
            return;
        };
        if self.paused {
            return;
        }
        for _ in 0..BATCH {
            let again = Again {
                engine: self.engine.clone(),
                door: number,
            };
            match door.accept(again) {
                Accepted::One => {}
                Accepted::None => return,
                Accepted::Shut => {
                    listening.shut = true;
                    let _ = epoll::delete(&self.epoll, door.socket().as_fd());
                    return;
                }
            }
        }
    }
}
