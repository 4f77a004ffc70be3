//! Noticing that the file changed.
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
use pingora_core::services::background::BackgroundService;

use super::Source;

/// How often the file is looked at. A change is loaded once it has stood still for one interval,
/// so that a file is not read while it is being written.
const INTERVAL: Duration = Duration::from_millis(200);

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

#[async_trait]
impl BackgroundService for Source {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let path = &self.file.path;
        let mut seen = Identity::of(path);
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
                }
                () = self.reload.notified() => self.reload_now().await,
                _ = shutdown.changed() => return,
            }
        }
    }
}
