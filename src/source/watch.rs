//! Noticing that the file, or what it refers to, changed.
//!
//! The file's identity is looked at five times a second through whatever symbolic links lead to
//! it. That sees every way in which files are changed - written in place, replaced by rename, a
//! Kubernetes ConfigMap whose `..data` link swaps - on every file system, which inotify does not,
//! and costs five system calls a second.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::ServiceReadyNotifier;
use pingora_core::services::background::BackgroundService;

use super::discovered::{FIRST_ANSWERS, GATHER};
use super::{References, Source};

/// How often the file is looked at. A change is loaded once it has stood still for one interval,
/// so that a file is not read while it is being written.
const INTERVAL: Duration = Duration::from_millis(200);

/// Files that the standalone file refers to are looked at every so many intervals: there may be
/// tens of thousands.
const REFERENCES_EVERY: u64 = 3;

/// What tells one version of a file from another; `None` while there is no file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity(Option<[i64; 7]>);

impl Identity {
    pub(super) fn of(path: &Path) -> Self {
        let identity = std::fs::metadata(path).map(|file| {
            [
                file.dev() as i64,
                file.ino() as i64,
                file.size() as i64,
                file.mtime(),
                file.mtime_nsec(),
                file.ctime(),
                file.ctime_nsec(),
            ]
        });
        Identity(identity.ok())
    }
}

fn as_they_are(references: &References) -> References {
    let paths = references.keys();
    paths
        .map(|path| (path.clone(), Identity::of(path)))
        .collect()
}

impl Source {
    fn ticket_file(&self) -> Identity {
        let file = self.tls.ticket_file.as_deref();
        file.map(Identity::of).unwrap_or_default()
    }

    fn reread_tickets(&self) {
        let Some(path) = &self.tls.ticket_file else {
            return;
        };
        match self.tls.tickets.reread(path) {
            Ok(()) => log::info!("ticket keys {} reloaded", path.display()),
            Err(error) => log::error!(
                "ticket keys {} not applied: {error}; those of before stay in use",
                path.display()
            ),
        }
    }
}

#[async_trait]
impl BackgroundService for Source {
    /// Ready when the names and services of the first table have been looked up, so that no
    /// connection is accepted before it can be served, and after [`FIRST_ANSWERS`] in any case.
    async fn start_with_ready_notifier(
        &self,
        mut shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let mut changes = self.upstreams.services.changes();
        tokio::select! {
            () = self.upstreams.settled(FIRST_ANSWERS) => {}
            _ = shutdown.changed() => return,
        }
        self.rediscover();
        ready.notify_ready();
        let path = &self.file.path;
        let mut seen = Identity::of(path);
        let mut references = self.references_loaded();
        let mut ticket_file = self.ticket_file();
        let mut tickets_loaded = ticket_file.clone();
        let mut tick = 0_u64;
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let now = Identity::of(path);
                    let settled = now == seen;
                    seen = now;
                    if settled && seen != self.identity_loaded() {
                        self.reload_now().await;
                    }
                    tick = tick.wrapping_add(1);
                    if !tick.is_multiple_of(REFERENCES_EVERY) {
                        continue;
                    }
                    let loaded = self.references_loaded();
                    let now = as_they_are(&loaded);
                    let settled = now == references;
                    references = now;
                    if settled && references != loaded {
                        log::info!("a certificate file changed");
                        self.reload_now().await;
                    }
                    let now = self.ticket_file();
                    let settled = now == ticket_file;
                    ticket_file = now;
                    if settled && ticket_file != tickets_loaded {
                        tickets_loaded = ticket_file.clone();
                        self.reread_tickets();
                    }
                }
                () = self.reload.notified() => self.reload_now().await,
                Ok(()) = changes.changed() => {
                    tokio::time::sleep(GATHER).await;
                    self.rediscover();
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}
