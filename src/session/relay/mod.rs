//! Relaying an established pair for as long as it lives.
//!
//! Here a connection spends its weeks, so here it must be small: two sockets, a few words of
//! state, no buffer while nothing moves. [`pair`] is what a relay does, without I/O; two engines
//! drive it: [`engine`], an epoll loop of its own for pairs of plain sockets, and [`task`], a
//! tokio task for any other kind of stream.

pub mod engine;
pub mod pair;
mod socket;
pub mod task;
#[cfg(test)]
mod testing;
mod thread;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use super::outcome::Record;
use engine::{Carried, Engine, Question};

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
    elsewhere: Mutex<Option<Sender<Carried>>>,
}

impl Relays {
    /// Relays plain pairs on `threads` threads, which are started with the first pair (a process
    /// that becomes a daemon forks before that, and threads do not survive a fork).
    pub fn new(threads: usize) -> Self {
        Relays {
            threads: threads.max(1),
            engines: OnceLock::new(),
            next: AtomicUsize::new(0),
            elsewhere: Mutex::default(),
        }
    }

    /// Relays the pair from now on, apart from the task that brought it here.
    pub fn hand_over(&self, pair: Established<TcpStream, TcpStream>) {
        if self.engines().is_empty() {
            return task::spawn(pair);
        }
        match Carried::try_from(pair) {
            Ok(carried) => self.carry_on(carried),
            Err(error) => log::error!("a socket could not leave the runtime: {error}"),
        }
    }

    /// Has new pairs sent to `elsewhere` instead of being relayed here; `None` ends that.
    pub fn redirect(&self, elsewhere: Option<Sender<Carried>>) {
        *lock(&self.elsewhere) = elsewhere;
    }

    /// Relays the pair, or sends it where new pairs go.
    fn carry_on(&self, carried: Carried) {
        // Sent under the lock: once `redirect` has returned, nothing more comes the old way.
        let refused = match &*lock(&self.elsewhere) {
            Some(elsewhere) => elsewhere.send(carried).err().map(|SendError(pair)| pair),
            None => Some(carried),
        };
        if let Some(carried) = refused {
            self.adopt(vec![carried]);
        }
    }

    /// Relays pairs that were relayed before, here or in another process.
    pub fn adopt(&self, pairs: Vec<Carried>) {
        let engines = self.engines();
        if engines.is_empty() {
            log::error!(
                "{} connections are cut: no relay thread could start",
                pairs.len()
            );
            return;
        }
        let each = pairs.len().div_ceil(engines.len()).max(1);
        let mut pairs = pairs.into_iter();
        loop {
            let share: Vec<Carried> = pairs.by_ref().take(each).collect();
            if share.is_empty() {
                return;
            }
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            engines[turn % engines.len()].adopt(share);
        }
    }

    /// Takes every pair out of the engines. They are relayed by nobody until somebody adopts them.
    pub fn release(&self) -> Vec<Carried> {
        let (to, released) = channel();
        for engine in self.engines.get().into_iter().flatten() {
            engine.release(to.clone());
        }
        drop(to);
        released.into_iter().flatten().collect()
    }

    /// Has each relay thread that there is drop a copy of the question, as a sign of life.
    pub fn ask(&self, question: &Question) {
        for engine in self.engines.get().into_iter().flatten() {
            engine.ask(question.clone());
        }
    }

    fn engines(&self) -> &[Engine] {
        self.engines.get_or_init(|| {
            let started = (0..self.threads).map(Engine::start);
            let started = started.inspect(|engine| {
                if let Err(error) = engine {
                    log::error!("a relay thread cannot start: {error}");
                }
            });
            started.filter_map(Result::ok).collect()
        })
    }
}

/// A poisoned lock only means that another task panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
