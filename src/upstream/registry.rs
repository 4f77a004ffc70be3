//! Things that are looked up in the background, each once however many use it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The first pause after a look-up that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries of something that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Entries by key that live as long as somebody holds them, and the queue of those that are new.
pub(super) struct Registry<T> {
    known: Mutex<HashMap<String, Weak<T>>>,
    added: mpsc::UnboundedSender<Weak<T>>,
    queue: Mutex<Option<mpsc::UnboundedReceiver<Weak<T>>>>,
}

impl<T> Registry<T> {
    pub fn new() -> Self {
        let (added, queue) = mpsc::unbounded_channel();
        Registry {
            known: Mutex::default(),
            added,
            queue: Mutex::new(Some(queue)),
        }
    }

    /// The entry at `key`, made and queued where there is none.
    pub fn get(&self, key: String, make: impl FnOnce() -> T) -> Arc<T> {
        let mut known = lock(&self.known);
        if let Some(entry) = known.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        known.retain(|_, entry| entry.strong_count() > 0);
        let entry = Arc::new(make());
        known.insert(key, Arc::downgrade(&entry));
        // The receiver lives as long as the service; without it (offline commands) nothing is
        // looked up, which is what `check` and `explain` want.
        let _ = self.added.send(Arc::downgrade(&entry));
        entry
    }

    /// All entries in use.
    pub fn all(&self) -> Vec<Arc<T>> {
        let known = lock(&self.known);
        known.values().filter_map(Weak::upgrade).collect()
    }

    /// The queue of new entries, for the one who looks them up.
    pub fn queue(&self) -> Option<mpsc::UnboundedReceiver<Weak<T>>> {
        lock(&self.queue).take()
    }
}

/// Whether something has been looked up once, with or without success.
#[derive(Debug)]
pub(super) struct Answered(watch::Sender<bool>);

impl Answered {
    pub fn new(answered: bool) -> Self {
        Answered(watch::Sender::new(answered))
    }

    pub fn tell(&self) {
        self.0
            .send_if_modified(|answered| !std::mem::replace(answered, true));
    }

    /// Waits until then at most; says whether it has been answered.
    pub async fn wait_until(&self, deadline: Instant) -> bool {
        let mut answered = self.0.subscribe();
        let told = answered.wait_for(|answered| *answered);
        tokio::time::timeout_at(deadline, told).await.is_ok()
    }
}

/// The pauses between tries that fail, each twice as long as the one before.
pub(super) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Pauses(FIRST_PAUSE)
    }
}

impl Pauses {
    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        let next = (self.0 * 2).min(LONGEST_PAUSE);
        std::mem::replace(&mut self.0, next)
    }
}

/// A poisoned lock only means that another task panicked; what is behind one here is replaced as a
/// whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_shared_queued_once_and_forgotten_with_its_last_user() {
        let registry = Registry::new();
        let mut queue = registry.queue().expect("nobody has it yet");
        let one = registry.get("a".to_owned(), || 1);
        assert!(Arc::ptr_eq(&one, &registry.get("a".to_owned(), || 2)));
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_err());
        drop(one);
        let two = registry.get("b".to_owned(), || 3);
        assert_eq!(registry.all(), [two]);
        assert_eq!(lock(&registry.known).len(), 1);
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut pauses = Pauses::default();
        let seconds: Vec<u64> = (0..7).map(|_| pauses.next().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }
}
