//! Relaying an established pair for as long as it lives.
//!
//! Here a connection spends its weeks, so here it must be small: two sockets, a few words of
//! state, no buffer while nothing moves. [`pair`] is what a relay does, without I/O; [`engine`]
//! drives it, an epoll loop apart from the runtime. Either side may have TLS.

pub mod dialling;
pub mod engine;
pub mod first_answer;
mod holding;
pub mod listening;
pub mod orders;
mod pace;
pub mod pair;
pub mod parked;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
mod thread;
mod ticks;
#[cfg(test)]
mod tls_tests;
mod visit;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::tls::link::Link;
use engine::{Carried, Engine, Question, Takes, Which, here};
use listening::Door;
use pair::Pair;
use parked::Parked;
pub use visit::Sight;
use visit::{Fold, Visit};

/// How many connections more than another a relay thread may hold before new ones go there.
const UNEVEN: usize = 16;

/// An established pair and all that the relay must know about it: what the connection path gives
/// to whatever relays.
#[derive(Debug)]
pub struct Established {
    /// The client's side.
    pub client: Link,
    /// The broker's side.
    pub broker: Link,
    /// What is relayed: bytes still owed, when silence means the end, and the record.
    pub pair: Pair,
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
    starting: Mutex<()>,
    next: AtomicUsize,
    elsewhere: Mutex<Option<(Sender<Carried>, Takes)>>,
}

impl Relays {
    /// Relays pairs on `threads` threads, which are started with the first pair (a process that
    /// becomes a daemon forks before that, and threads do not survive a fork).
    pub fn new(threads: usize) -> Self {
        Relays {
            threads: threads.max(1),
            engines: OnceLock::new(),
            starting: Mutex::default(),
            next: AtomicUsize::new(0),
            elsewhere: Mutex::default(),
        }
    }

    /// Relays the pair from now on, apart from the task that brought it here.
    pub fn hand_over(&self, pair: Established) {
        match Carried::try_from(pair) {
            Ok(carried) => self.carry_on(carried),
            Err(error) => log::error!("a socket could not leave the runtime: {error}"),
        }
    }

    /// Has new pairs that can move to such a process sent to `elsewhere` instead of being relayed
    /// here; `None` ends that.
    pub fn redirect(&self, elsewhere: Option<(Sender<Carried>, Takes)>) {
        *lock(&self.elsewhere) = elsewhere;
    }

    /// Relays the pair, or sends it where new pairs go.
    fn carry_on(&self, carried: Carried) {
        // Sent under the lock: once `redirect` has returned, nothing more comes the old way.
        let refused = match &*lock(&self.elsewhere) {
            Some((elsewhere, takes)) if carried.can_move(*takes) => {
                elsewhere.send(carried).err().map(|SendError(pair)| pair)
            }
            _ => Some(carried),
        };
        if let Some(carried) = refused {
            self.adopt(vec![carried]);
        }
    }

    /// Connects the pair to its broker and relays it then, on the thread that calls if that is a
    /// relay thread and has not much more to do than the others.
    ///
    /// # Errors
    /// The pair itself, when there is no relay thread.
    pub fn dial(&self, carried: Carried) -> Result<(), Box<Carried>> {
        match self.nearest() {
            Some(engine) => {
                engine.adopt(vec![carried]);
                Ok(())
            }
            None => Err(Box::new(carried)),
        }
    }

    /// Keeps a connection that is in its beginning; cuts it when there is no relay thread, which it
    /// would need later.
    pub fn park(&self, parked: Parked) {
        match self.nearest() {
            Some(engine) => engine.park(parked),
            None => log::error!("a connection is cut: no relay thread could start"),
        }
    }

    /// The relay thread that calls, unless it holds many more connections than another one.
    fn nearest(&self) -> Option<&Engine> {
        let engines = self.engines();
        let own = here().and_then(|number| engines.get(number));
        if let (Some(_), [only]) = (own, engines) {
            return Some(only);
        }
        let least = engines.iter().min_by_key(|engine| engine.held())?;
        let fair = |own: &&Engine| own.held() <= least.held() + least.held() / 8 + UNEVEN;
        Some(own.filter(fair).unwrap_or(least))
    }

    /// Whether there is a relay thread.
    pub fn can_relay(&self) -> bool {
        !self.engines().is_empty()
    }

    /// Accepts on every relay thread.
    pub fn listen(&self, door: &Arc<dyn Door>) {
        for engine in self.engines() {
            engine.listen(door.clone());
        }
    }

    /// Has the relay threads accept nothing for a while; returns when all have heard it.
    pub async fn pause_listening(&self) {
        let (question, mut answers) = tokio::sync::mpsc::channel(1);
        for engine in self.engines.get().into_iter().flatten() {
            engine.pause_listening(question.clone());
        }
        drop(question);
        answers.recv().await;
    }

    /// While nothing is accepted: has them let go of the listeners with these addresses; returns
    /// when those that waited there are being served.
    pub async fn give_up(&self, addresses: Arc<[SocketAddr]>) {
        let (question, mut answers) = tokio::sync::mpsc::channel(1);
        for engine in self.engines.get().into_iter().flatten() {
            engine.give_up(addresses.clone(), question.clone());
        }
        drop(question);
        answers.recv().await;
    }

    /// Has them accept again.
    pub fn resume_listening(&self) {
        let engines = self.engines.get().into_iter().flatten();
        engines.for_each(Engine::resume_listening);
    }

    /// Has them let go of every listening socket.
    pub fn stop_listening(&self) {
        let engines = self.engines.get().into_iter().flatten();
        engines.for_each(Engine::stop_listening);
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

    /// Takes pairs out of the engines. They are relayed by nobody until somebody adopts them.
    pub fn release(&self, which: Which) -> Vec<Carried> {
        let (to, released) = channel();
        for engine in self.engines.get().into_iter().flatten() {
            engine.release(which, to.clone());
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

    /// Looks at every pair that a relay thread has: each thread folds its own into a copy of
    /// `start` and goes on relaying meanwhile. Nothing comes of a thread that is stuck, so the
    /// caller sets a deadline.
    pub async fn fold<T, F>(&self, start: T, see: F) -> Vec<T>
    where
        T: Clone + Send + 'static,
        F: Fn(&mut T, &Sight<'_>) + Clone + Send + 'static,
    {
        let (to, mut folded) = tokio::sync::mpsc::unbounded_channel();
        for engine in self.engines.get().into_iter().flatten() {
            engine.visit(Visit::new(Fold {
                value: start.clone(),
                see: see.clone(),
                to: to.clone(),
            }));
        }
        drop(to);
        let mut values = Vec::new();
        while let Some(value) = folded.recv().await {
            values.push(value);
        }
        values
    }

    /// The engines, if there has been anything to relay yet.
    fn started(&self) -> &[Engine] {
        self.engines.get().map_or(&[], Vec::as_slice)
    }

    fn engines(&self) -> &[Engine] {
        if let Some(engines) = self.engines.get() {
            return engines;
        }
        let _starting = lock(&self.starting);
        if let Some(engines) = self.engines.get() {
            return engines;
        }
        let started = (0..self.threads).map(Engine::start);
        let started = started.inspect(|engine| {
            if let Err(error) = engine {
                log::error!("a relay thread cannot start: {error}");
            }
        });
        let started: Vec<Engine> = started.filter_map(Result::ok).collect();
        match started.is_empty() {
            // The next connection tries again.
            true => &[],
            false => self.engines.get_or_init(|| started),
        }
    }
}

/// A poisoned lock only means that another task panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
