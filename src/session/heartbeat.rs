//! Whether the event loops make progress: what a watchdog wants to know.

use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::relay::Relays;

/// Asks the loops that carry connections for a sign of life.
pub struct Heartbeat {
    /// The relay threads: each is asked.
    pub relays: Arc<Relays>,
    /// The runtime that accepts and connects, once it runs.
    pub runtime: Arc<OnceLock<Handle>>,
}

impl Heartbeat {
    /// Returns when each relay thread and a task of the runtime have run since it was called;
    /// never, when one of them hangs.
    pub async fn answered(&self) {
        let (question, mut answers) = mpsc::channel::<()>(1);
        self.relays.ask(&question);
        if let Some(runtime) = self.runtime.get() {
            runtime.spawn(async move {
                // Once through the scheduler's queue, and not only into it.
                tokio::task::yield_now().await;
                drop(question);
            });
        } else {
            drop(question);
        }
        // Nobody says a word: whoever was asked answers by letting go of the question.
        answers.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_runtime_that_stands_still_does_not_answer() {
        let stuck = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let heartbeat = Heartbeat {
            relays: Arc::new(Relays::new(1)),
            runtime: Arc::new(OnceLock::from(stuck.handle().clone())),
        };
        let mut answered = pin!(heartbeat.answered());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(answered.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(answered.as_mut().poll(&mut context), Poll::Pending);
        stuck.block_on(answered);
    }
}
