//! An epoll loop of its own for established pairs.
//!
//! A thread holds all its pairs in one slab, some two hundred bytes each, and reads into one large
//! buffer that they share. Sockets are registered once, edge-triggered; a socket is written to
//! without asking, and only one that does not take everything is watched for writability. A side
//! with TLS has its session beside the socket, in a box; the buffers that sessions need while they
//! work are the thread's as well.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::Established;
use super::dialling::Dialled;
use super::listening::Door;
use super::orders::Departure;
use super::pair::Pair;
use super::parked::Parked;
pub use super::socket::Lacks;
use super::thread::State;
use super::visit::Visit;
use crate::tls::link::Link;
use crate::tls::session::Session;

thread_local! {
    /// The relay thread that this thread is, by its number.
    static HERE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the relay thread that calls, if one does.
pub(super) fn here() -> Option<usize> {
    HERE.get()
}

/// A relay thread.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
}

/// What a relay thread shares with those who give it orders.
pub(super) struct Shared {
    /// What it is to do next.
    pub orders: Mutex<Vec<Order>>,
    /// Wakes it.
    pub wake: OwnedFd,
    /// Whether the thread looks at `orders` before it sleeps again.
    pub awake: AtomicBool,
    /// How many connections it holds, more or less.
    pub held: AtomicUsize,
}

/// What the thread is told to do.
pub(super) enum Order {
    /// Relay these from now on.
    Adopt(Vec<Carried>),
    /// Let go of these pairs and send them there.
    Release(Which, Sender<Vec<Carried>>),
    /// Let go of this: a sign of life.
    Answer(Question),
    /// Have these pairs leave.
    Leave(Departure),
    /// Keep this client until it has sent something.
    Park(Parked),
    /// Accept here, too.
    Listen(Arc<dyn Door>),
    /// Accept nothing until told otherwise, and let go of this.
    PauseListening(Question),
    /// While nothing is accepted: let go of the listeners with these addresses, and of this.
    GiveUp(Arc<[SocketAddr]>, Question),
    /// Accept again.
    ResumeListening,
    /// Let go of every listening socket.
    StopListening,
    /// This door can be accepted at again.
    OpenDoor(usize),
    /// Show every pair to a visitor.
    Visit(Visit),
}

/// Held by those who have not answered yet.
pub type Question = tokio::sync::mpsc::Sender<()>;

/// What another process can relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Plain connections only: a version from before TLS sessions could move.
    Plain,
    /// Also those with a TLS session of the client that is settled, which is keys and counters and
    /// nothing of OpenSSL's.
    OfClients,
    /// Also those with such a session toward the broker.
    All,
}

/// Which pairs an engine lets go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that such a process could relay.
    Movable(Takes),
    /// All.
    All,
}

/// A pair that no engine relays at the moment: its sides and everything that is known about it.
#[derive(Debug)]
pub struct Carried {
    /// The client's side.
    pub client: End,
    /// The broker's side.
    pub broker: End,
    /// Its state.
    pub pair: Pair,
    /// When bytes last moved.
    pub last_activity: Instant,
    /// Until its broker has answered.
    pub dial: Option<Box<dyn Dialled>>,
    /// What the broker's socket lacks.
    pub lacks: Lacks,
}

impl Carried {
    /// An established pair that has just moved something.
    pub fn new(client: impl Into<End>, broker: impl Into<End>, pair: Pair) -> Self {
        Carried {
            client: client.into(),
            broker: broker.into(),
            pair,
            last_activity: Instant::now(),
            dial: None,
            lacks: Lacks::Nothing,
        }
    }

    /// Whether such a process could relay it.
    pub fn can_move(&self, takes: Takes) -> bool {
        can_move([&self.client.tls, &self.broker.tls], takes)
    }
}

/// Whether such a process could go on with the TLS sessions of client and broker, as far as there
/// are any.
pub(super) fn can_move([client, broker]: [&Option<Box<Session>>; 2], takes: Takes) -> bool {
    let could = |tls: &Option<Box<Session>>, taken: bool| {
        tls.as_ref()
            .is_none_or(|session| taken && session.is_settled())
    };
    could(client, takes != Takes::Plain) && could(broker, takes == Takes::All)
}

/// One side of a pair: its socket, and its TLS session if it has one.
#[derive(Debug)]
pub struct End {
    /// The socket.
    pub socket: OwnedFd,
    /// TLS over it; `None` for a plain connection.
    pub tls: Option<Box<Session>>,
}

impl From<OwnedFd> for End {
    /// A plain connection.
    fn from(socket: OwnedFd) -> Self {
        End { socket, tls: None }
    }
}

impl TryFrom<Link> for End {
    type Error = io::Error;

    /// Takes the socket out of the runtime; fails only if that does not know it any more.
    fn try_from(link: Link) -> io::Result<Self> {
        let (socket, tls) = link.into_parts();
        let socket = socket.into_std()?.into();
        Ok(End { socket, tls })
    }
}

impl TryFrom<Established> for Carried {
    type Error = io::Error;

    /// Takes the sockets out of the runtime; fails only if it does not know them any more.
    fn try_from(established: Established) -> io::Result<Self> {
        let client = End::try_from(established.client)?;
        let broker = End::try_from(established.broker)?;
        Ok(Carried::new(client, broker, established.pair))
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
            held: AtomicUsize::new(0),
        });
        let engine = Engine { shared };
        let mut state = State::new(engine.clone())?;
        std::thread::Builder::new()
            .name(format!("relay-{number}"))
            .spawn(move || {
                HERE.set(Some(number));
                // A panic is a broken invariant of ours. It costs the pair that it met, and not
                // the thousands beside it.
                while catch_unwind(AssertUnwindSafe(|| state.run())).is_err() {
                    state.recover();
                }
            })?;
        Ok(engine)
    }

    /// Relays the pairs on this thread from now on.
    pub fn adopt(&self, pairs: Vec<Carried>) {
        self.order(Order::Adopt(pairs));
    }

    /// Stops relaying these pairs and gives them back, with nothing of them lost: what was read
    /// and not yet written is in the pair, the rest is in the sockets. They come through `to`.
    pub fn release(&self, which: Which, to: Sender<Vec<Carried>>) {
        self.order(Order::Release(which, to));
    }

    /// Has the thread drop the question when it looks at its orders next.
    pub fn ask(&self, question: Question) {
        self.order(Order::Answer(question));
    }

    /// Keeps this client until it has sent something.
    pub fn park(&self, parked: Parked) {
        self.order(Order::Park(parked));
    }

    /// Accepts here, too.
    pub fn listen(&self, door: Arc<dyn Door>) {
        self.order(Order::Listen(door));
    }

    /// Accepts nothing until [`Engine::resume_listening`]; the question is dropped when it has
    /// been heard.
    pub fn pause_listening(&self, heard: Question) {
        self.order(Order::PauseListening(heard));
    }

    /// Accepts again.
    pub fn resume_listening(&self) {
        self.order(Order::ResumeListening);
    }

    /// Lets go of the listeners with these addresses once nobody waits there; the question is
    /// dropped when those that waited are being served.
    pub fn give_up(&self, addresses: Arc<[SocketAddr]>, heard: Question) {
        self.order(Order::GiveUp(addresses, heard));
    }

    /// Lets go of every listening socket.
    pub fn stop_listening(&self) {
        self.order(Order::StopListening);
    }

    pub(super) fn open(&self, door: usize) {
        self.order(Order::OpenDoor(door));
    }

    /// How many connections it holds, as of its last turn.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Has every pair of the thread looked at, between its other work.
    pub(super) fn visit(&self, visit: Visit) {
        self.order(Order::Visit(visit));
    }

    /// Has pairs leave.
    pub(super) fn leave(&self, departure: Departure) {
        self.order(Order::Leave(departure));
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
