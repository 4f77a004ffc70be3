//! What a relay thread owns and does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SendError;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use slab::Slab;

use super::dialling::Dialled;
use super::engine::{Engine, Order, Takes, can_move, lock};
use super::listening::{LISTENERS, Listening};
use super::pace::Pace;
use super::pair::{Pair, Progress};
use super::parked::{Costly, Watched};
use super::socket::{PARKED, Registered, Socket, token};
use super::visit::{Sight, Visit};
use crate::tls::staging::{LARGEST, Shelf};

/// The buffer that all pairs of a thread read into. Large reads make large writes, and those let
/// a receiver sleep longer: with 64 KiB a gigabyte costs more than twice the CPU.
pub(super) const SCRATCH: usize = LARGEST;
/// Events taken from the kernel at a time.
const EVENTS: usize = 512;
/// How often idle timeouts are looked at: a quarter of the shortest, within these bounds.
pub(super) const SHORTEST_TICK: Duration = Duration::from_millis(50);
pub(super) const LONGEST_TICK: Duration = Duration::from_secs(1);
/// What an event carries when it is the wake-up call and no socket.
const WAKE: u64 = u64::MAX;

/// A relayed pair in the slab.
pub(super) struct Relayed {
    /// The client's and the broker's.
    pub sockets: [Socket; 2],
    /// What is relayed.
    pub pair: Pair,
    /// Tells events for this pair from late ones for an earlier pair in the same place.
    pub generation: u32,
    /// In [`State::queue`].
    pub queued: bool,
    /// When bytes last moved.
    pub last_activity: Instant,
    /// Until its broker has answered.
    pub dial: Option<Box<dyn Dialled>>,
    /// Counted in [`State::movable`].
    pub movable: bool,
}

impl Relayed {
    /// Whether such a process could relay it.
    pub fn can_move(&self, takes: Takes) -> bool {
        can_move(self.sockets.each_ref().map(|socket| &socket.tls), takes)
    }
}

/// Everything that a relay thread owns.
pub(super) struct State {
    /// The handle of this thread.
    pub engine: Engine,
    /// Orders that are being followed.
    pub orders: VecDeque<Order>,
    /// Every socket of this thread is in it.
    pub epoll: OwnedFd,
    /// The pairs.
    pub pairs: Slab<Relayed>,
    /// Connections in their beginnings.
    pub parked: Slab<Watched>,
    /// Those of them that are to take a costly step.
    pub costly: Costly,
    /// Where connections are accepted.
    pub listening: Vec<Listening>,
    /// Nothing is accepted at the moment.
    pub paused: bool,
    generation: u32,
    /// Pairs with more to do at once.
    queue: Vec<usize>,
    /// Looks at all pairs that are under way.
    visits: Vec<Visit>,
    /// The pair that is being advanced.
    pub current: Option<usize>,
    scratch: Box<[u8]>,
    /// What TLS sessions borrow; made with the first of them.
    pub shelf: Shelf,
    /// Pairs that another process could relay.
    pub movable: usize,
    /// How often [`State::look_at_all`] is called, while there is a reason to.
    pub tick: Option<Duration>,
    pub next_tick: Instant,
    /// When the events that are being handled came.
    pub now: Instant,
    pace: Pace,
    /// Most connections since memory was given back.
    pub most_held: usize,
}

impl State {
    /// An empty thread that listens to these orders.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(engine: Engine) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = EventFlags::IN | EventFlags::ET;
        let wake = &engine.shared.wake;
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), flags)?;
        let now = Instant::now();
        Ok(State {
            engine,
            orders: VecDeque::new(),
            epoll,
            pairs: Slab::new(),
            parked: Slab::new(),
            costly: Costly::new(),
            listening: Vec::new(),
            paused: false,
            generation: 0,
            queue: Vec::new(),
            visits: Vec::new(),
            current: None,
            scratch: vec![0; SCRATCH].into(),
            shelf: Shelf::default(),
            movable: 0,
            tick: None,
            next_tick: now,
            now,
            pace: Pace::from(now),
            most_held: 0,
        })
    }

    /// Relays for ever; returns only by a panic.
    pub fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.take_orders();
            self.show_some_pairs();
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
            self.take_costly_steps();
            let held = self.pairs.len() + self.parked.len();
            self.engine.shared.held.store(held, Ordering::Relaxed);
            self.most_held = self.most_held.max(held);
            if self.tick.is_some() && self.now >= self.next_tick {
                self.look_at_all();
            }
        }
    }

    /// After a panic: drops the pair that met it and looks at every other one again.
    pub fn recover(&mut self) {
        log::error!("a relay thread panicked; one connection is cut");
        if let Some(index) = self.current.take() {
            self.pairs.try_remove(index);
        }
        let movable = self.pairs.iter().filter(|(_, pair)| pair.movable);
        self.movable = movable.count();
        self.look_at_beginnings_again();
        self.queue.clear();
        for (index, relayed) in &mut self.pairs {
            // Events that had come are lost; what there is shows when it is tried.
            for socket in &mut relayed.sockets {
                (socket.readable, socket.writable) = (true, true);
            }
            relayed.queued = true;
            self.queue.push(index);
        }
        self.tick = None;
        self.expect_idle(Some(SHORTEST_TICK));
    }

    fn wait(&mut self, events: &mut Vec<Event>) {
        self.engine.shared.awake.store(false, Ordering::SeqCst);
        let more = !self.queue.is_empty() || !self.visits.is_empty() || !self.costly.is_empty();
        let busy = more || !lock(&self.engine.shared.orders).is_empty();
        let timeout = match (busy, self.tick) {
            (true, _) => Some(Duration::ZERO),
            (false, Some(_)) => Some(self.next_tick.saturating_duration_since(Instant::now())),
            (false, None) => None,
        };
        if timeout != Some(Duration::ZERO) && self.pace.is_hot(self.now) {
            std::thread::yield_now();
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let waited = epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref());
        self.engine.shared.awake.store(true, Ordering::SeqCst);
        // EINTR is the only error that can happen, and the loop comes back here.
        let _ = waited;
    }

    fn take_orders(&mut self) {
        // Kept outside of this call: a panic costs one of them and not all that follow.
        self.orders
            .extend(lock(&self.engine.shared.orders).drain(..));
        while let Some(order) = self.orders.pop_front() {
            match order {
                Order::Adopt(mut pairs) => {
                    let pair = pairs.pop();
                    if !pairs.is_empty() {
                        self.orders.push_front(Order::Adopt(pairs));
                    }
                    pair.into_iter().for_each(|pair| self.adopt(pair));
                }
                Order::Answer(question) => drop(question),
                Order::Leave(departure) => self.send_away(&departure),
                Order::Park(parked) => self.park(parked),
                Order::Listen(door) => self.listen(door),
                Order::PauseListening(heard) => self.pause_listening(heard),
                Order::GiveUp(addresses, heard) => self.give_up(&addresses, heard),
                Order::ResumeListening => self.resume_listening(),
                Order::StopListening => self.stop_listening(),
                Order::OpenDoor(door) => self.open_door(door),
                Order::Visit(visit) => self.visits.push(visit),
                Order::Release(which, to) => {
                    // Nobody to take them: they stay here.
                    if let Err(SendError(pairs)) = to.send(self.release(which)) {
                        pairs.into_iter().for_each(|pair| self.adopt(pair));
                    }
                }
            }
        }
    }

    /// One turn of each look at the pairs that is under way.
    fn show_some_pairs(&mut self) {
        if self.visits.is_empty() {
            return;
        }
        // No pair is to blame for what a visitor does.
        self.current = None;
        let pairs = &self.pairs;
        let pair = |index| {
            let relayed: &Relayed = pairs.get(index)?;
            relayed.dial.is_none().then(|| Sight {
                record: relayed.pair.record(),
                pair: &relayed.pair,
                place: (index as u32, relayed.generation),
                last_activity: relayed.last_activity,
            })
        };
        // Taken out first: a visitor that panics must not come again.
        let visits = std::mem::take(&mut self.visits).into_iter();
        let visits = visits.filter_map(|visit| visit.advance(pairs.capacity(), pair));
        self.visits = visits.collect();
    }

    /// A number that tells what stands in a place of a slab from what stood there before.
    pub fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    fn handle(&mut self, data: u64, flags: EventFlags) {
        self.current = None;
        if data == WAKE {
            return;
        }
        if data >= LISTENERS {
            return self.accept((data - LISTENERS) as usize);
        }
        let (generation, place) = ((data >> 32) as u32, data as u32);
        if place & PARKED != 0 {
            return self.unpark(((place & !PARKED) >> 1) as usize, generation);
        }
        let (index, side) = ((place >> 1) as usize, (place & 1) as usize);
        let Some(relayed) = self.pairs.get_mut(index) else {
            return;
        };
        if relayed.generation != generation {
            return;
        }
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let socket = &mut relayed.sockets[side];
        if flags.contains(EventFlags::OUT) && !socket.writable {
            // The peer has taken what it was sent earlier; of TLS the pair does not hear that.
            relayed.last_activity = self.now;
        }
        socket.hung_up |= broken || flags.contains(EventFlags::RDHUP);
        socket.readable |= socket.hung_up || flags.contains(EventFlags::IN);
        socket.writable |= broken || flags.contains(EventFlags::OUT);
        match relayed.dial {
            Some(_) => self.dial_event(index, side, flags),
            None => self.advance(index),
        }
    }

    /// Moves what can be moved.
    pub fn advance(&mut self, index: usize) {
        let Some(relayed) = self.pairs.get_mut(index) else {
            return;
        };
        self.current = Some(index);
        let [client, broker] = &mut relayed.sockets;
        let generation = relayed.generation;
        let on = |side, socket| Registered {
            socket,
            epoll: &self.epoll,
            token: Some(token(index, side, generation, 0)),
            shelf: &self.shelf,
            ending: false,
        };
        let (mut progress, moved) =
            relayed
                .pair
                .advance(&mut on(0, client), &mut on(1, broker), &mut self.scratch);
        if moved {
            relayed.last_activity = self.now;
        }
        if !relayed.movable && relayed.can_move(Takes::All) {
            // Its session toward the broker has settled.
            relayed.movable = true;
            self.movable += 1;
        }
        if progress == Progress::Wait && relayed.sockets.iter_mut().any(Socket::take_retry) {
            progress = Progress::More;
        }
        match progress {
            Progress::Wait => {}
            Progress::More if relayed.queued => {}
            Progress::More => {
                relayed.queued = true;
                self.queue.push(index);
            }
            Progress::Done => {
                self.remove(index);
                return;
            }
        }
        // A pair whose broker has ended has less patience than before.
        let idle = self.pairs[index].pair.idle_timeout();
        self.expect_idle(idle);
    }
}
