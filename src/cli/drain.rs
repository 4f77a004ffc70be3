//! Leaving as soon as the last connection is gone. Pingora sleeps through its whole grace period.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use crate::session::connections::Connections;
use crate::upgrade::systemd;

/// Ends the process when it is shutting down and no connection lives any more.
pub(super) struct Drain {
    /// The live connections.
    pub connections: Arc<Connections>,
}

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|&stop| stop).await.is_err() {
            return;
        }
        // A connection that was accepted just before is counted when its task first runs.
        tokio::task::yield_now().await;
        let live = self.connections.live();
        systemd::stopping(live);
        if live > 0 {
            log::info!("{live} connections live");
        }
        self.connections.none_left().await;
        log::info!("the last connection has ended; exiting");
        std::process::exit(0);
    }
}
