//! How pairs come to a relay thread, and how they leave it for another one.

use rustix::event::epoll::{self, EventFlags};

use super::engine::{Carried, End, Takes, Which};
use super::socket::{Lacks, Socket, token};
use super::thread::{LONGEST_TICK, Relayed, SCRATCH, State};
use crate::tls::staging::Staging;

impl State {
    /// Relays a pair from now on.
    pub(super) fn adopt(&mut self, carried: Carried) {
        let generation = self.next_generation();
        let fresh = carried.lacks != Lacks::Nothing;
        let movable = carried.can_move(Takes::All);
        self.movable += usize::from(movable);
        if carried.client.tls.is_some() || carried.broker.tls.is_some() {
            self.lend_staging();
        }
        let index = self.pairs.insert(Relayed {
            sockets: [
                Socket::new(carried.client, Lacks::Nothing),
                Socket::new(carried.broker, carried.lacks),
            ],
            pair: carried.pair,
            generation,
            queued: false,
            last_activity: carried.last_activity,
            dial: carried.dial,
            movable,
        });
        if fresh {
            // Its options are set at the next tick, if it lives to see it.
            self.expect_idle(Some(4 * LONGEST_TICK));
        }
        if self.pairs[index].dial.is_some() {
            return self.begin_dial(index);
        }
        if self.watch(index) {
            // Only what is here already: what the sockets have shows in their first events.
            self.advance(index);
        }
    }

    /// Puts those sockets of a pair into the set that are not in it. False if it could not be
    /// done and the pair is gone.
    pub(super) fn watch(&mut self, index: usize) -> bool {
        let relayed = &mut self.pairs[index];
        let generation = relayed.generation;
        let idle = relayed.pair.idle_timeout();
        for side in 0..2 {
            let socket = &mut relayed.sockets[side];
            if socket.watched {
                continue;
            }
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            let data = token(index, side, generation, 0);
            if let Err(error) = epoll::add(&self.epoll, &socket.fd, data, flags) {
                log::error!("a connection is cut, epoll refuses it: {error}");
                self.remove(index);
                return false;
            }
            socket.watched = true;
        }
        self.expect_idle(idle);
        true
    }

    /// Has buffers of this thread's size ready for TLS.
    fn lend_staging(&self) {
        let staging = self.shelf.take();
        let staging = staging.unwrap_or_else(|| Staging::new(SCRATCH));
        self.shelf.set(Some(staging));
    }

    /// Takes a pair out.
    pub(super) fn remove(&mut self, index: usize) -> Relayed {
        let relayed = self.pairs.remove(index);
        self.movable -= usize::from(relayed.movable);
        relayed
    }

    /// Takes out these pairs, if their brokers have answered; those that are still being dialled
    /// stay.
    pub(super) fn release(&mut self, which: Which) -> Vec<Carried> {
        if which != Which::All && self.movable == 0 {
            return Vec::new();
        }
        let goes = |pair: &Relayed| match which {
            Which::All => true,
            Which::Movable(takes) => pair.can_move(takes),
        };
        let released = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.dial.is_none() && goes(pair));
        let released: Vec<usize> = released.map(|(index, _)| index).collect();
        let let_go = |index| {
            let Relayed {
                sockets,
                pair,
                last_activity,
                ..
            } = self.remove(index);
            let [client, broker] = sockets.map(|mut socket| {
                socket.complete();
                // The set holds a socket by its open file, which outlives this descriptor when
                // another process has it too.
                let _ = epoll::delete(&self.epoll, &socket.fd);
                End {
                    socket: socket.fd,
                    tls: socket.tls,
                }
            });
            Carried {
                client,
                broker,
                pair,
                last_activity,
                dial: None,
                lacks: Lacks::Nothing,
            }
        };
        released.into_iter().map(let_go).collect()
    }
}
