//! Leaving: every connection is sent away at a pace, and the process exits with the last one.
//! Pingora sleeps through its whole grace period.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::Notify;

use crate::config::settings::ShutdownSettings;
use crate::drain::exodus::Exodus;
use crate::session::connections::Connections;
use crate::session::relay::Relays;
use crate::session::relay::engine::Which;
use crate::systemd;
use crate::telemetry::access_log::AccessLog;
use crate::upgrade::control::Control;

/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The end of the time is kept free for those who are told last to hear it: at most this much.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long the process stays, at most, once it is told to make haste.
pub(super) const HURRY: Duration = Duration::from_secs(5);
/// The process stays at least so long, if anybody is connected: a word takes a moment to be sent.
const MOMENT: Duration = Duration::from_secs(1);

/// Has every connection leave when the process is shutting down, and ends it when no connection
/// lives any more or the time is over.
pub(super) struct Drain {
    /// The live connections.
    pub connections: Arc<Connections>,
    /// What to do before leaving.
    pub leaving: Leaving,
    /// In which time and how.
    pub settings: ShutdownSettings,
    /// Told to make haste: the second SIGTERM.
    pub hurry: Arc<Notify>,
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
        for carried in self.relays.release(Which::All) {
            carried.pair.shut_down();
        }
        if let Some(log) = &self.access_log {
            log.flush(LAST_LINES);
        }
    }
}

impl Drain {
    /// Until when connections are told, and when the process exits whatever they do.
    fn times(&self, now: Instant) -> (Instant, Instant) {
        let timeout = self.settings.timeout;
        let told = timeout - LAST_WORDS.min(timeout / 10);
        (now + told, now + timeout.max(MOMENT))
    }

    /// Returns when the time is over.
    async fn send_away(&self) {
        let now = Instant::now();
        let ShutdownSettings { rate, will, .. } = self.settings;
        let (told, mut end) = self.times(now);
        let (relays, connections) = (self.leaving.relays.clone(), self.connections.clone());
        let mut exodus = Exodus::begin(relays, connections, rate, Some(told), will);
        let (mut due, mut extended) = (end, false);
        loop {
            let now = Instant::now();
            if now >= end {
                if due >= end || extended {
                    return;
                }
                // The machine stood still when it was time to tell the last ones.
                exodus.hurry();
                (end, extended) = (now + MOMENT, true);
            }
            due = exodus.step(now);
            tokio::select! {
                () = tokio::time::sleep_until(due.min(end).into()) => {}
                () = self.hurry.notified() => {
                    exodus.hurry();
                    end = end.min(Instant::now() + HURRY);
                }
            }
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
            log::info!(
                "{live} connections live; they are sent away within {:?}",
                self.settings.timeout
            );
        }
        tokio::select! {
            () = self.connections.none_left() => {
                log::info!("the last connection has ended; exiting");
            }
            () = self.send_away() => {
                let cut = self.connections.live();
                log::warn!("the time for leaving is over: {cut} connections are cut");
            }
        }
        self.leaving.last_words();
        std::process::exit(0);
    }
}
