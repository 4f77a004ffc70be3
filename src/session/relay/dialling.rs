//! Pairs whose broker has not answered yet.
//!
//! The broker's socket connects without blocking and without the runtime; CONNECT is owed to it
//! meanwhile. Nothing is read from the client before the broker has answered.

use std::io::{self, ErrorKind};
use std::time::Instant;

use rustix::event::epoll::{self, EventFlags};
use rustix::net::sockopt::socket_error;

use super::engine::End;
use super::pair::Pair;
use super::socket::{BROKER, CLIENT, Registered, token};
use super::thread::State;
use crate::session::outcome;

/// What becomes of a pair whose broker is being dialled.
pub trait Dialled: Send + std::fmt::Debug {
    /// When the broker is given up.
    fn deadline(&self) -> Instant;
    /// The broker has answered; the pair is relayed from now on.
    fn connected(&mut self, pair: &mut Pair);
    /// It has not, and this is why; [`ErrorKind::TimedOut`] is the deadline.
    fn failed(self: Box<Self>, client: End, pair: Pair, error: io::Error);
}

impl State {
    /// Sends what is owed, in case the broker has answered already: on the machine itself it has.
    /// What is not known to be connected is watched.
    pub(super) fn begin_dial(&mut self, index: usize) {
        let relayed = &mut self.pairs[index];
        let generation = relayed.generation;
        let [client, broker] = &mut relayed.sockets;
        let sent = relayed.pair.send_owed(&mut Registered {
            socket: broker,
            epoll: &self.epoll,
            // Not in the set yet; what it does not take now it is watched for below.
            token: None,
            shelf: &self.shelf,
            ending: false,
        });
        match sent {
            Ok(0) => {}
            Ok(_) => return self.connected(index),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return self.dial_failed(index, error),
        }
        broker.writable = false;
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let sides = [
            (client, CLIENT, flags),
            (broker, BROKER, flags | EventFlags::OUT),
        ];
        let watched = sides.into_iter().try_for_each(|(socket, side, flags)| {
            let data = token(index, side, generation, 0);
            epoll::add(&self.epoll, &socket.fd, data, flags)?;
            socket.watched = true;
            Ok::<_, rustix::io::Errno>(())
        });
        if let Err(error) = watched {
            return self.dial_failed(index, error.into());
        }
        let deadline = relayed.dial.as_ref().map(|dial| dial.deadline());
        let left = deadline.map(|deadline| deadline.saturating_duration_since(self.now));
        self.expect_idle(left);
    }

    /// An event of a pair whose broker is being dialled.
    pub(super) fn dial_event(&mut self, index: usize, side: usize, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if side == CLIENT {
            if broken {
                // It wants nothing any more.
                self.remove(index)
                    .pair
                    .abandon(outcome::End::ClientLeftEarly);
            }
            return;
        }
        let broker = &self.pairs[index].sockets[BROKER].fd;
        let error = match socket_error(broker) {
            Ok(Ok(())) if broken => Some(ErrorKind::ConnectionReset.into()),
            Ok(Ok(())) => None,
            Ok(Err(error)) | Err(error) => Some(error.into()),
        };
        match error {
            Some(error) => self.dial_failed(index, error),
            None if flags.contains(EventFlags::OUT) => self.connected(index),
            None => {}
        }
    }

    fn connected(&mut self, index: usize) {
        let relayed = &mut self.pairs[index];
        if let Some(mut dial) = relayed.dial.take() {
            dial.connected(&mut relayed.pair);
        }
        relayed.last_activity = self.now;
        if self.watch(index) {
            self.advance(index);
        }
    }

    /// The broker has not answered: somebody else goes on from here.
    pub(super) fn dial_failed(&mut self, index: usize, error: io::Error) {
        let relayed = self.remove(index);
        let [client, broker] = relayed.sockets;
        drop(broker);
        if client.watched {
            let _ = epoll::delete(&self.epoll, &client.fd);
        }
        if let Some(dial) = relayed.dial {
            let client = End {
                socket: client.fd,
                tls: client.tls,
            };
            dial.failed(client, relayed.pair, error);
        }
    }
}
