//! What a relay thread owns and does.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SendError;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use slab::Slab;

use super::engine::{Carried, Order, Shared, lock};
use super::pair::{Pair, Progress};
use super::socket::{Registered, Socket, token};

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
pub(super) struct State {
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
    /// An empty thread that listens to these orders.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(shared: Arc<Shared>) -> io::Result<Self> {
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

    /// Relays for ever; returns only by a panic.
    pub fn run(&mut self) {
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
    pub fn recover(&mut self) {
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
