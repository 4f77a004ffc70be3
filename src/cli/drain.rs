//! Leaving as soon as the last connection is gone. Pingora sleeps through its whole grace period.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;

use crate::session::connections::Connections;
use crate::session::relay::Relays;
use crate::systemd;
use crate::telemetry::access_log::AccessLog;
use crate::upgrade::control::Control;

/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Ends the process when it is shutting down and no connection lives any more.
pub(super) struct Drain {
    /// The live connections.
    pub connections: Arc<Connections>,
    /// What to do before leaving.
    pub leaving: Leaving,
}

/// What is done before the process exits.
#[derive(Clone)]
pub(super) struct Leaving {
    /// The live connections.
    pub relays: Arc<Relays>,
    /// The access log, if there is one.
    pub access_log: Option<Arc<AccessLog>>,
    /// Where this process is found.
    pub control: Option<Arc<Control>>,
}

impl Leaving {
    /// Ends the connections that are left and writes the last lines of the access log.
    pub fn last_words(&self) {
        if let Some(control) = &self.control {
            control.withdraw();
        }
        for carried in self.relays.release() {
            carried.pair.shut_down();
        }
        if let Some(log) = &self.access_log {
            log.flush(LAST_LINES);
        }
    }
}

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|&stop| stop).await.is_err() {
            return;
        }
        let live = self.connections.live();
        systemd::stopping(live);
        if live > 0 {
            log::info!("{live} connections live");
        }
        self.connections.none_left().await;
        log::info!("the last connection has ended; exiting");
        self.leaving.last_words();
        std::process::exit(0);
    }
}
