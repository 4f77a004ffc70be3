//! An epoll loop of its own for pairs of plain sockets.
//!
//! A thread holds all its pairs in one slab, some two hundred bytes each, and reads into one large
//! buffer that they share. Sockets are registered once, edge-triggered; a socket is written to
//! without asking, and only one that does not take everything is watched for writability.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use tokio::net::TcpStream;

use super::Established;
use super::pair::Pair;
use super::thread::State;

/// A relay thread.
pub struct Engine {
    shared: Arc<Shared>,
}

/// What a relay thread shares with those who give it orders.
pub(super) struct Shared {
    /// What it is to do next.
    pub orders: Mutex<Vec<Order>>,
    /// Wakes it.
    pub wake: OwnedFd,
    /// Whether the thread looks at `orders` before it sleeps again.
    pub awake: AtomicBool,
}

/// What the thread is told to do.
pub(super) enum Order {
    /// Relay these from now on.
    Adopt(Vec<Carried>),
    /// Let go of every pair and send them here.
    Release(Sender<Vec<Carried>>),
    /// Let go of this: a sign of life.
    Answer(Question),
}

/// Held by those who have not answered yet.
pub type Question = tokio::sync::mpsc::Sender<()>;

/// A pair that no engine relays at the moment: its sockets and everything that is known about it.
#[derive(Debug)]
pub struct Carried {
    /// The client's socket.
    pub client: OwnedFd,
    /// The broker's socket.
    pub broker: OwnedFd,
    /// Its state.
    pub pair: Pair,
    /// When bytes last moved.
    pub last_activity: Instant,
}

impl TryFrom<Established<TcpStream, TcpStream>> for Carried {
    type Error = io::Error;

    /// Takes the sockets out of the runtime; fails only if it does not know them any more.
    fn try_from(established: Established<TcpStream, TcpStream>) -> io::Result<Self> {
        Ok(Carried {
            client: established.client.into_std()?.into(),
            broker: established.broker.into_std()?.into(),
            pair: Pair::new(
                established.to_broker,
                established.to_client,
                established.idle,
                established.record,
            ),
            last_activity: Instant::now(),
        })
    }
}

impl Engine {
    /// Starts relay thread number `number`.
    ///
    /// # Errors
    /// When the operating system has no descriptor or no thread left.
    pub fn start(number: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            orders: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            awake: AtomicBool::new(false),
        });
        let mut state = State::new(shared.clone())?;
        std::thread::Builder::new()
            .name(format!("relay-{number}"))
            .spawn(move || {
                // A panic is a broken invariant of ours. It costs the pair that it met, and not
                // the thousands beside it.
                while catch_unwind(AssertUnwindSafe(|| state.run())).is_err() {
                    state.recover();
                }
            })?;
        Ok(Engine { shared })
    }

    /// Relays the pairs on this thread from now on.
    pub fn adopt(&self, pairs: Vec<Carried>) {
        self.order(Order::Adopt(pairs));
    }

    /// Stops relaying and gives every pair back, with nothing of it lost: what was read and not
    /// yet written is in the pair, the rest is in the sockets. The pairs come through `to`.
    pub fn release(&self, to: Sender<Vec<Carried>>) {
        self.order(Order::Release(to));
    }

    /// Has the thread drop the question when it looks at its orders next.
    pub fn ask(&self, question: Question) {
        self.order(Order::Answer(question));
    }

    fn order(&self, order: Order) {
        lock(&self.shared.orders).push(order);
        if !self.shared.awake.swap(true, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the thread is awake.
            let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        }
    }
}

/// A poisoned lock only means that another task panicked while it pushed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
