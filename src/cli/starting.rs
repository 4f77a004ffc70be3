//! What is done in a thread of its own once the process runs: not before, because a process that
//! becomes a daemon forks, and threads do not survive that.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

type Work = Box<dyn FnOnce() + Send>;

/// Work for one thread: a Pingora background service.
pub(super) struct Starting(Mutex<Option<Work>>);

impl Starting {
    /// A service that does this, once.
    pub fn with(work: impl FnOnce() + Send + 'static) -> Self {
        Starting(Mutex::new(Some(Box::new(work))))
    }
}

#[async_trait]
impl BackgroundService for Starting {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(work) = work {
            std::thread::spawn(work);
        }
    }
}
