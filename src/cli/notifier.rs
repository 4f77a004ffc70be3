//! Keeping systemd informed: the watchdog, and the status line of `systemctl status`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::sync::watch;

use crate::session::connections::Connections;
use crate::session::heartbeat::Heartbeat;
use crate::source::Load;
use crate::systemd;
use crate::table::CurrentTable;

/// How often the status line is brought up to date, at least.
const INTERVAL: Duration = Duration::from_secs(5);
/// The shortest interval that a watchdog can ask for.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Tells systemd how this process is, while it is the one that serves.
pub(super) struct Notifier {
    /// Whether the event loops make progress.
    pub heartbeat: Heartbeat,
    /// The live connections.
    pub connections: Arc<Connections>,
    /// The routes.
    pub table: Arc<CurrentTable>,
    /// The last load of the routes.
    pub loads: watch::Receiver<Option<Load>>,
    /// False while another process serves (an upgrade), which then notifies itself.
    pub accepting: watch::Receiver<bool>,
}

impl Notifier {
    fn status(&self, stopping: bool) -> String {
        let live = self.connections.live();
        if stopping {
            return format!("waiting for {live} connections to end");
        }
        let routes = self.table.load().routes().len();
        let load = match &*self.loads.borrow() {
            None => "nothing loaded yet".to_owned(),
            Some(load) if load.applied => format!("loaded {}", load.at),
            Some(load) => format!("reload refused {}, see the log", load.at),
        };
        format!("{live} connections, {routes} routes; {load}")
    }
}

#[async_trait]
impl BackgroundService for Notifier {
    /// Goes on while connections are waited for: a process that hangs then is cut short as well.
    async fn start(&self, shutdown: ShutdownWatch) {
        let watchdog = systemd::watchdog();
        // Three signs of life for each that is wanted: a busy machine may delay one.
        let interval = watchdog.map_or(INTERVAL, |limit| (limit / 3).min(INTERVAL));
        let interval = interval.max(SHORTEST_INTERVAL);
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut loads = self.loads.clone();
        let mut said = String::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // Never fails: the sender lives as long as this process.
                Ok(()) = loads.changed() => {}
            }
            if !*self.accepting.borrow() || !systemd::is_ready() {
                said.clear();
                continue;
            }
            if watchdog.is_some() {
                self.heartbeat.answered().await;
                systemd::alive();
            }
            let stopping = *shutdown.borrow();
            if stopping {
                systemd::more_time_to_stop(interval * 6);
            }
            let status = self.status(stopping);
            if status != said {
                systemd::status(&status);
                said = status;
            }
        }
    }
}
