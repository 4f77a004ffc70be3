//! Looking at every pair of a relay thread, some of them at a time, so that traffic never waits for
//! whoever looks.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::pair::Pair;
use crate::session::outcome::Record;

/// Pairs that are looked at before traffic has its turn again: about a tenth of a millisecond.
const TURN: usize = 1024;

/// A pair that is relayed at the moment.
#[derive(Debug)]
pub struct Sight<'a> {
    /// Its record.
    pub record: &'a Record,
    /// When bytes last moved.
    pub last_activity: Instant,
    /// The pair itself.
    pub(super) pair: &'a Pair,
    /// Its place in the slab of its thread, and its generation.
    pub(super) place: (u32, u32),
}

/// Who looks at the pairs of one thread.
pub(super) trait Visitor: Send {
    /// Looks at one pair.
    fn see(&mut self, sight: &Sight<'_>);
    /// There are no more.
    fn finish(self: Box<Self>);
}

/// A look at the pairs of one thread, and how far it has come.
pub(super) struct Visit {
    next: usize,
    visitor: Box<dyn Visitor>,
}

impl Visit {
    pub fn new(visitor: impl Visitor + 'static) -> Self {
        Visit {
            next: 0,
            visitor: Box::new(visitor),
        }
    }

    /// Looks at the pairs in the next places, of which there are `places` in all. `None` when that
    /// were the last ones. A pair that comes or goes meanwhile may be missed; all others are seen
    /// once.
    pub fn advance<'a>(
        mut self,
        places: usize,
        pair: impl Fn(usize) -> Option<Sight<'a>>,
    ) -> Option<Self> {
        let end = places.min(self.next + TURN);
        let seen = (self.next..end).filter_map(pair);
        seen.for_each(|sight| self.visitor.see(&sight));
        self.next = end;
        if end < places {
            return Some(self);
        }
        self.visitor.finish();
        None
    }
}

/// Folds what it sees into a value, which is sent when there is no more to see.
pub(super) struct Fold<T, F> {
    pub value: T,
    pub see: F,
    pub to: UnboundedSender<T>,
}

impl<T, F> Visitor for Fold<T, F>
where
    T: Send,
    F: Fn(&mut T, &Sight<'_>) + Send,
{
    fn see(&mut self, sight: &Sight<'_>) {
        (self.see)(&mut self.value, sight);
    }

    fn finish(self: Box<Self>) {
        // Whoever asked may have stopped waiting.
        let _ = self.to.send(self.value);
    }
}
