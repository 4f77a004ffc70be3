//! Telling systemd (`Type=notify`). Without `NOTIFY_SOCKET` all of it does nothing.

use sd_notify::NotifyState;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("systemd was not notified: {error}");
    }
}

/// This process serves; it is the main one of the unit from now on.
pub fn ready() {
    notify(&[
        NotifyState::MainPid(std::process::id()),
        NotifyState::Status("serving"),
        NotifyState::Ready,
    ]);
}

/// This process is leaving.
pub fn stopping(live: usize) {
    let status = format!("waiting for {live} connections to end");
    notify(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}
