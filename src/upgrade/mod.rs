//! Handing listeners and live connections over to a new process.
//!
//! The new process checks its configuration, then listens on a UNIX socket; the old one connects
//! and sends its listening sockets. When the new one accepts on them, the old one stops, takes
//! every pair out of its relay threads, but for those with a TLS session that OpenSSL holds, and
//! sends the sockets with a record of each, TLS keys and counters included. Nobody relays them until the new process has said that it has all of them; from then on they are its
//! own. Whatever fails before that, on either side, leaves the old process serving as before.
//! Connections that are still on their way to a broker finish it in the old process and follow.

pub mod channel;
pub mod control;
pub mod message;
pub mod new_side;
pub mod nodes;
pub mod old_side;
pub mod record;
mod sending;
pub mod socket_path;

use std::io;
use std::time::Duration;

/// The version of the messages; both sides must speak the same.
pub const PROTOCOL: u32 = 1;
/// How long the new process may take until it listens on the UNIX socket: it reads its
/// configuration first.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// How long either side waits for one message of the other.
pub const STEP_LIMIT: Duration = Duration::from_secs(20);

/// Why an upgrade did not come about. The old process goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The socket between the processes failed.
    #[error("{step}: {error}")]
    Channel {
        /// What was being done.
        step: &'static str,
        /// What the operating system answers.
        error: io::Error,
    },
    /// The other side says no.
    #[error("the other process refuses: {0}")]
    Refused(String),
    /// The other side sent something else than it should have.
    #[error("{step}: unexpected message")]
    Unexpected {
        /// What was being done.
        step: &'static str,
    },
    /// The new process ended before it was ready.
    #[error("the new process ended: {0}")]
    Ended(std::process::ExitStatus),
    /// The new process could not be started.
    #[error("the new process cannot be started: {0}")]
    Start(io::Error),
    /// Nobody listens on the socket.
    #[error("no new process listens on {0}")]
    Nobody(String),
    /// One upgrade at a time.
    #[error("{0}")]
    Busy(&'static str),
    /// The new process died after it had taken over.
    #[error("the new process has died")]
    Died,
}

/// The label of an upgrade that succeeded, in metrics.
pub const SUCCEEDED: &str = "succeeded";

impl UpgradeError {
    /// Every label there is, that of success included.
    pub const RESULTS: [&str; 6] = [
        SUCCEEDED,
        "not_started",
        "refused",
        "busy",
        "broken",
        "died",
    ];

    /// The label of this error in metrics.
    pub fn result(&self) -> &'static str {
        match self {
            UpgradeError::Start(_) | UpgradeError::Ended(_) | UpgradeError::Nobody(_) => {
                "not_started"
            }
            UpgradeError::Refused(_) => "refused",
            UpgradeError::Busy(_) => "busy",
            UpgradeError::Channel { .. } | UpgradeError::Unexpected { .. } => "broken",
            UpgradeError::Died => "died",
        }
    }

    /// Whether the new process refused its configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, UpgradeError::Ended(status) if status.code() == Some(78))
    }

    /// Puts an error of the socket down to a step.
    fn at(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| UpgradeError::Channel { step, error }
    }
}
