//! Looking at the pairs of all relay threads, and telling some of them to leave.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Instant;

use super::Relays;
use super::pair::{BOUNDARY_LIMIT, Farewell, Pair};
use super::thread::State;
use super::visit::{Sight, Visit, Visitor};

/// A pair of the engines, for as long as it stays in its relay thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairId {
    engine: u32,
    index: u32,
    generation: u32,
}

/// Whether a pair is still to leave, asked at the moment when it would.
pub type Condition = Arc<dyn Fn(&Pair) -> bool + Send + Sync>;

/// Pairs of a thread that are to leave.
pub(super) struct Departure {
    pairs: Vec<(u32, u32)>,
    farewell: Farewell,
    condition: Option<Condition>,
}

/// What a search finds, as it comes in.
pub struct Search<T> {
    found: Receiver<Vec<(PairId, T)>>,
}

impl<T> Search<T> {
    /// Takes what has been found so far; `true` when that is all.
    pub fn take(&self, into: &mut impl Extend<(PairId, T)>) -> bool {
        loop {
            match self.found.try_recv() {
                Ok(found) => into.extend(found),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }
}

/// Collects what is wanted of one thread.
struct Collect<T, F> {
    engine: u32,
    wanted: Arc<F>,
    found: Vec<(PairId, T)>,
    to: Sender<Vec<(PairId, T)>>,
}

impl<T, F> Visitor for Collect<T, F>
where
    T: Send,
    F: Fn(&Pair) -> Option<T> + Send + Sync,
{
    fn see(&mut self, sight: &Sight<'_>) {
        if let Some(value) = (self.wanted)(sight.pair) {
            let (index, generation) = sight.place;
            let id = PairId {
                engine: self.engine,
                index,
                generation,
            };
            self.found.push((id, value));
        }
    }

    fn finish(self: Box<Self>) {
        // Nobody may be there any more to hear it.
        let _ = self.to.send(self.found);
    }
}

impl Relays {
    /// Looks for pairs in all relay threads, some at a time, so that traffic goes on. Pairs that
    /// arrive meanwhile may be missed.
    pub fn search<T, F>(&self, wanted: F) -> Search<T>
    where
        T: Send + 'static,
        F: Fn(&Pair) -> Option<T> + Send + Sync + 'static,
    {
        let (to, found) = channel();
        let wanted = Arc::new(wanted);
        for (engine, relay) in (0..).zip(self.started()) {
            relay.visit(Visit::new(Collect {
                engine,
                wanted: wanted.clone(),
                found: Vec::new(),
                to: to.clone(),
            }));
        }
        Search { found }
    }

    /// Has these pairs leave, as far as they are still there and the condition holds for them.
    pub fn leave(&self, ids: &[PairId], farewell: Farewell, condition: Option<&Condition>) {
        for (engine, relay) in (0..).zip(self.started()) {
            let pairs: Vec<(u32, u32)> = ids
                .iter()
                .filter(|id| id.engine == engine)
                .map(|id| (id.index, id.generation))
                .collect();
            if !pairs.is_empty() {
                relay.leave(Departure {
                    pairs,
                    farewell,
                    condition: condition.cloned(),
                });
            }
        }
    }
}

impl State {
    /// Tells the pairs that are still there.
    pub(super) fn send_away(&mut self, departure: &Departure) {
        let now = Instant::now();
        for &(index, generation) in &departure.pairs {
            let index = index as usize;
            let Some(relayed) = self.pairs.get_mut(index) else {
                continue;
            };
            let condition = departure.condition.as_ref();
            if relayed.generation != generation
                || condition.is_some_and(|condition| !condition(&relayed.pair))
            {
                continue;
            }
            relayed.pair.leave(departure.farewell, now);
            self.expect_idle(Some(BOUNDARY_LIMIT));
            self.advance(index);
        }
    }

    /// Has these pairs end, which have looked for a boundary for too long.
    pub(super) fn end_of_patience(&mut self, late: Vec<usize>) {
        let now = self.now;
        for index in late {
            if let Some(relayed) = self.pairs.get_mut(index) {
                relayed.pair.boundary_limit_passed();
                relayed.last_activity = now;
                self.advance(index);
            }
        }
    }
}
