//! How many connections live, and waiting for the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the client connections of the process.
#[derive(Debug, Default)]
pub struct Connections {
    live: AtomicUsize,
    ended: Notify,
}

/// One live connection.
#[derive(Debug)]
pub struct Live(Arc<Connections>);

impl Connections {
    /// Counts a connection for as long as the value lives.
    pub fn enter(self: &Arc<Self>) -> Live {
        self.live.fetch_add(1, Ordering::Relaxed);
        Live(self.clone())
    }

    /// How many connections live now.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Waits until no connection lives.
    pub async fn none_left(&self) {
        loop {
            let ended = self.ended.notified();
            if self.live() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_ends_with_the_last_connection() {
        let connections = Arc::new(Connections::default());
        let (one, two) = (connections.enter(), connections.enter());
        let waiter = {
            let connections = connections.clone();
            tokio::spawn(async move { connections.none_left().await })
        };
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(two);
        waiter.await.unwrap();
    }
}
