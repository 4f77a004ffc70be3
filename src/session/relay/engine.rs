//! An epoll loop of its own for pairs of plain sockets.
//!
//! A thread holds all its pairs in one slab, some two hundred bytes each, and reads into one large
//! buffer that they share. Sockets are registered once, edge-triggered; a socket is written to
//! without asking, and only one that does not take everything is watched for writability.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SendError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use slab::Slab;
use tokio::net::TcpStream;

use super::Established;
use super::pair::{Pair, Progress, Side};

/// The buffer that all pairs of a thread read into. Large reads make large writes, and those let
/// a receiver sleep longer: with 64 KiB a gigabyte costs more than twice the CPU.
const SCRATCH: usize = 1024 * 1024;
/// Events taken from the kernel at a time.
const EVENTS: usize = 512;
/// How often idle timeouts are looked at: a quarter of the shortest, within these bounds.
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const LONGEST_TICK: Duration = Duration::from_secs(1);
/// What an event carries when it is the wake-up call and no socket.
const WAKE: u64 = u64::MAX;

/// A relay thread.
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    orders: Mutex<Vec<Order>>,
    wake: OwnedFd,
    /// Whether the thread looks at `orders` before it sleeps again.
    awake: AtomicBool,
}

/// What the thread is told to do.
enum Order {
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

/// One socket and what is known about it.
struct Socket {
    fd: OwnedFd,
    /// An event said so, and no read since then has shown that it is drained.
    readable: bool,
    /// The last write was taken.
    writable: bool,
    /// The peer has ended or broken the connection: read until that shows.
    hung_up: bool,
}

/// A relayed pair in the slab.
struct Relayed {
    sockets: [Socket; 2],
    pair: Pair,
    /// Tells events for this pair from late ones for an earlier pair in the same place.
    generation: u32,
    /// In [`State::queue`].
    queued: bool,
    last_activity: Instant,
}

/// Everything that a relay thread owns.
struct State {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    pairs: Slab<Relayed>,
    generation: u32,
    /// Pairs with more to do at once.
    queue: Vec<usize>,
    /// The pair that is being advanced.
    current: Option<usize>,
    scratch: Box<[u8]>,
    tick: Option<Duration>,
    next_tick: Instant,
    now: Instant,
}

impl State {
    fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), flags)?;
        let now = Instant::now();
        Ok(State {
            shared,
            epoll,
            pairs: Slab::new(),
            generation: 0,
            queue: Vec::new(),
            current: None,
            scratch: vec![0; SCRATCH].into(),
            tick: None,
            next_tick: now,
            now,
        })
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.take_orders();
            for index in std::mem::take(&mut self.queue) {
                if let Some(relayed) = self.pairs.get_mut(index) {
                    relayed.queued = false;
                    self.advance(index);
                }
            }
            events.clear();
            self.wait(&mut events);
            self.now = Instant::now();
            for event in &events {
                self.handle(event.data.u64(), event.flags);
            }
            if self.tick.is_some() && self.now >= self.next_tick {
                self.look_for_idle_pairs();
            }
        }
    }

    /// After a panic: drops the pair that met it and looks at every other one again.
    fn recover(&mut self) {
        log::error!("a relay thread panicked; one connection is cut");
        if let Some(index) = self.current.take() {
            self.pairs.try_remove(index);
        }
        self.queue.clear();
        for (index, relayed) in &mut self.pairs {
            relayed.queued = true;
            self.queue.push(index);
        }
    }

    fn wait(&mut self, events: &mut Vec<Event>) {
        self.shared.awake.store(false, Ordering::SeqCst);
        let busy = !self.queue.is_empty() || !lock(&self.shared.orders).is_empty();
        let timeout = match (busy, self.tick) {
            (true, _) => Some(Duration::ZERO),
            (false, Some(_)) => Some(self.next_tick.saturating_duration_since(Instant::now())),
            (false, None) => None,
        };
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let waited = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref());
        self.shared.awake.store(true, Ordering::SeqCst);
        // EINTR is the only error that can happen, and the loop comes back here.
        let _ = waited;
    }

    fn take_orders(&mut self) {
        let orders = std::mem::take(&mut *lock(&self.shared.orders));
        for order in orders {
            match order {
                Order::Adopt(pairs) => pairs.into_iter().for_each(|pair| self.adopt(pair)),
                Order::Answer(question) => drop(question),
                Order::Release(to) => {
                    // Nobody to take them: they stay here.
                    if let Err(SendError(pairs)) = to.send(self.release_all()) {
                        pairs.into_iter().for_each(|pair| self.adopt(pair));
                    }
                }
            }
        }
    }

    fn adopt(&mut self, carried: Carried) {
        self.generation = self.generation.wrapping_add(1);
        let index = self.pairs.insert(Relayed {
            sockets: [carried.client, carried.broker].map(|fd| Socket {
                fd,
                readable: false,
                writable: true,
                hung_up: false,
            }),
            pair: carried.pair,
            generation: self.generation,
            queued: false,
            last_activity: carried.last_activity,
        });
        let relayed = &self.pairs[index];
        let registered = (0..2).try_for_each(|side| {
            let data = token(index, side, relayed.generation);
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.epoll, &relayed.sockets[side].fd, data, flags)
        });
        if let Err(error) = registered {
            log::error!("a connection is cut, epoll refuses it: {error}");
            self.pairs.remove(index);
            return;
        }
        self.expect_idle(relayed.pair.idle_timeout());
        // Only what is owed already: what the sockets have shows in their first events.
        self.advance(index);
    }

    fn release_all(&mut self) -> Vec<Carried> {
        let epoll = &self.epoll;
        let pairs = self.pairs.drain().map(|relayed| {
            let [client, broker] = relayed.sockets.map(|socket| socket.fd);
            for socket in [&client, &broker] {
                // The set holds a socket by its open file, which outlives this descriptor when
                // another process has it too.
                let _ = epoll::delete(epoll, socket);
            }
            Carried {
                client,
                broker,
                pair: relayed.pair,
                last_activity: relayed.last_activity,
            }
        });
        let pairs = pairs.collect();
        self.queue.clear();
        self.tick = None;
        pairs
    }

    fn handle(&mut self, data: u64, flags: EventFlags) {
        if data == WAKE {
            return;
        }
        let (index, side) = ((data as u32 >> 1) as usize, (data & 1) as usize);
        let Some(relayed) = self.pairs.get_mut(index) else {
            return;
        };
        if relayed.generation != (data >> 32) as u32 {
            return;
        }
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let socket = &mut relayed.sockets[side];
        socket.hung_up |= broken || flags.contains(EventFlags::RDHUP);
        socket.readable |= socket.hung_up || flags.contains(EventFlags::IN);
        socket.writable |= broken || flags.contains(EventFlags::OUT);
        self.advance(index);
    }

    fn advance(&mut self, index: usize) {
        let Some(relayed) = self.pairs.get_mut(index) else {
            return;
        };
        self.current = Some(index);
        let [client, broker] = &mut relayed.sockets;
        let generation = relayed.generation;
        let on = |side, socket| Registered {
            socket,
            epoll: &self.epoll,
            token: token(index, side, generation),
        };
        let (progress, moved) =
            relayed
                .pair
                .advance(&mut on(0, client), &mut on(1, broker), &mut self.scratch);
        if moved {
            relayed.last_activity = self.now;
        }
        match progress {
            Progress::Wait => {}
            Progress::More if relayed.queued => {}
            Progress::More => {
                relayed.queued = true;
                self.queue.push(index);
            }
            Progress::Done => {
                self.pairs.remove(index);
                return;
            }
        }
        // A pair whose broker has ended has less patience than before.
        let idle = self.pairs[index].pair.idle_timeout();
        self.expect_idle(idle);
    }

    /// Makes sure that the ticks are close enough for this idle timeout.
    fn expect_idle(&mut self, idle: Option<Duration>) {
        let Some(idle) = idle else {
            return;
        };
        let tick = (idle / 4).clamp(SHORTEST_TICK, LONGEST_TICK);
        if self.tick.is_none_or(|current| tick < current) {
            self.tick = Some(tick);
            self.next_tick = self.now + tick;
        }
    }

    fn look_for_idle_pairs(&mut self) {
        self.tick = None;
        let mut shortest: Option<Duration> = None;
        let now = self.now;
        self.pairs.retain(|_, relayed| {
            let Some(idle) = relayed.pair.idle_timeout() else {
                return true;
            };
            let passed = now.saturating_duration_since(relayed.last_activity) >= idle;
            if passed {
                relayed.pair.idle_timeout_passed();
            } else {
                shortest = Some(shortest.map_or(idle, |shortest| shortest.min(idle)));
            }
            !passed
        });
        self.expect_idle(shortest);
        // After a storm the memory goes back.
        if self.pairs.capacity() > 64 && self.pairs.len() < self.pairs.capacity() / 4 {
            self.pairs.shrink_to_fit();
        }
    }
}

/// What an event of one socket carries: the place of its pair, its side, its generation.
fn token(index: usize, side: usize, generation: u32) -> EventData {
    let place = (index as u64) << 1 | side as u64;
    EventData::new_u64(u64::from(generation) << 32 | place)
}

/// A socket within the epoll set.
struct Registered<'a> {
    socket: &'a mut Socket,
    epoll: &'a OwnedFd,
    token: EventData,
}

impl Side for Registered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.socket.readable {
            return Err(ErrorKind::WouldBlock.into());
        }
        let size = buffer.len();
        let received = recv(&self.socket.fd, buffer, RecvFlags::empty());
        let count = received.map(|(count, _)| count);
        // A short read has drained the socket, and more makes a new event; not so the end that
        // was announced already.
        let drained = match count {
            Ok(count) => count < size && !self.socket.hung_up,
            Err(error) => error == rustix::io::Errno::AGAIN,
        };
        self.socket.readable = !drained;
        Ok(count?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.socket.writable {
            return Err(ErrorKind::WouldBlock.into());
        }
        let sent = send(&self.socket.fd, bytes, SendFlags::NOSIGNAL);
        if sent == Err(rustix::io::Errno::AGAIN) {
            self.socket.writable = false;
            // Reports at once if it has become writable since.
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::modify(self.epoll, self.socket.fd.as_fd(), self.token, flags)?;
        }
        Ok(sent?)
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(shutdown(&self.socket.fd, Shutdown::Write)?)
    }
}

/// A poisoned lock only means that another task panicked while it pushed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
