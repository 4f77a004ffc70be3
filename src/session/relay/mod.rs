//! Relaying an established pair for as long as it lives.
//!
//! Here a connection spends its weeks, so here it must be small: two sockets, a few words of
//! state, no buffer while nothing moves. [`pair`] is what a relay does, without I/O; two engines
//! drive it: [`engine`], an epoll loop of its own for pairs of plain sockets, and [`task`], a
//! tokio task for any other kind of stream.

pub mod engine;
pub mod pair;
pub mod task;
#[cfg(test)]
mod testing;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use super::outcome::Record;
use engine::Engine;

/// An established pair and all that the relay must know about it. This is the whole interface
/// between the connection path and whatever relays: sockets, bytes still owed to each side, when
/// silence means the end, and the record that tells whoever counts that it has ended.
#[derive(Debug)]
pub struct Established<C, B> {
    /// The client's side.
    pub client: C,
    /// The broker's side.
    pub broker: B,
    /// Bytes from the client that the broker has not got yet: CONNECT and what followed it.
    pub to_broker: Vec<u8>,
    /// Bytes from the broker that the client has not got yet.
    pub to_client: Vec<u8>,
    /// When silence ends the connection.
    pub idle: IdleTimeout,
    /// Where the end is recorded, by being dropped.
    pub record: Record,
}

/// How long both sides may be silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdleTimeout {
    /// While both sides are open; `None` for ever.
    pub open: Option<Duration>,
    /// Once the broker has ended its side: nothing can come of an MQTT connection then but the
    /// client's own end. `None` leaves it at `open`.
    pub after_broker_end: Option<Duration>,
}

/// The engines of the process.
pub struct Relays {
    threads: usize,
    engines: OnceLock<Vec<Engine>>,
    next: AtomicUsize,
}

impl Relays {
    /// Relays plain pairs on `threads` threads, which are started with the first pair (a process
    /// that becomes a daemon forks before that, and threads do not survive a fork).
    pub fn new(threads: usize) -> Self {
        Relays {
            threads: threads.max(1),
            engines: OnceLock::new(),
            next: AtomicUsize::new(0),
        }
    }

    /// Relays the pair from now on, apart from the task that brought it here.
    pub fn hand_over(&self, pair: Established<TcpStream, TcpStream>) {
        let engines = self.engines.get_or_init(|| {
            let started = (0..self.threads).map(Engine::start);
            let (engines, errors): (Vec<_>, Vec<_>) = started.partition(Result::is_ok);
            for error in errors.into_iter().filter_map(Result::err) {
                log::error!("a relay thread cannot start: {error}");
            }
            engines.into_iter().filter_map(Result::ok).collect()
        });
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match engines.get(turn % engines.len().max(1)) {
            Some(engine) => engine.hand_over(pair),
            None => task::spawn(pair),
        }
    }
}
