//! Telling systemd (`Type=notify`, see sd_notify(3)). Without `NOTIFY_SOCKET` all of it does nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// Whether this process has said that it is ready. Until then it says nothing else: another
/// process may be the main one of the unit, or systemd would take the end of a reload for the end
/// of the start.
static READY: AtomicBool = AtomicBool::new(false);

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("systemd was not notified: {error}");
    }
}

/// Whether somebody wants to be told.
pub fn is_listening() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// How long systemd waits for a sign of life, if it does (`WatchdogSec=`).
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

/// This process serves; it is the main one of the unit from now on.
pub fn ready() {
    notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
    READY.store(true, Ordering::Relaxed);
}

/// Whether this process has said that it is ready.
pub fn is_ready() -> bool {
    READY.load(Ordering::Relaxed)
}

/// A reload begins. [`reloaded`] must follow, whatever comes of it.
pub fn reloading() {
    if is_ready() {
        match NotifyState::monotonic_usec_now() {
            // In one message, as `Type=notify-reload` wants it.
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => log::debug!("systemd was not told of a reload: {error}"),
        }
    }
}

/// A reload has ended, applied or not.
pub fn reloaded() {
    if is_ready() {
        notify(&[NotifyState::Ready]);
    }
}

/// The event loops make progress.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// This process is leaving.
pub fn stopping(live: usize) {
    let status = format!("waiting for {live} connections to end");
    notify(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

/// This process leaves later than `TimeoutStopSec=` may say: it wants so much more time from now.
pub fn more_time_to_stop(time: Duration) {
    let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
}
