//! What the two processes say to each other.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::UpgradeError;
use super::channel::{Channel, Frame};
use super::nodes::NodeRecord;
use crate::tls::tickets::ExportedKeys;

/// Kinds of frames. A number is never used for anything else later.
pub mod kind {
    /// Old to new, [`Hello`](super::Hello).
    pub const HELLO: u8 = 1;
    /// New to old, [`Hello`](super::Hello): the configuration is good, go on.
    pub const READY: u8 = 2;
    /// Either way, a JSON string: no, and why.
    pub const REFUSED: u8 = 3;
    /// Old to new, [`Listeners`](super::Listeners) with a descriptor for each.
    pub const LISTENERS: u8 = 4;
    /// Old to new, [`State`](super::State): all listeners are sent.
    pub const STATE: u8 = 5;
    /// New to old, [`Listening`](super::Listening): it accepts on every listener.
    pub const LISTENING: u8 = 6;
    /// Old to new, pairs as in [`record`](super::super::record), two descriptors for each.
    pub const PAIRS: u8 = 7;
    /// Old to new: the pairs sent since the last commit are all there are now.
    pub const COMMIT: u8 = 8;
    /// New to old: they are taken, and relayed from now on.
    pub const COMMITTED: u8 = 9;
    /// Old to new, [`State`](super::State): the last counters; the old process leaves.
    pub const LAST: u8 = 10;
}

/// Who speaks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`](super::PROTOCOL) of the speaker.
    pub protocol: u32,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Old side: how many live connections it has, so that the new one knows what it takes.
    #[serde(default)]
    pub connections: usize,
    /// Old side: how many listening sockets it has.
    #[serde(default)]
    pub listeners: usize,
    /// New side: whether it goes on with TLS sessions. A version that does not say so would take
    /// their connections for plain ones.
    #[serde(default)]
    pub takes_tls: bool,
    /// New side: whether it goes on with those toward brokers as well.
    #[serde(default)]
    pub takes_tls_to_brokers: bool,
}

impl Hello {
    /// This process.
    pub fn own() -> Self {
        Hello {
            protocol: super::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            connections: 0,
            listeners: 0,
            takes_tls: true,
            takes_tls_to_brokers: true,
        }
    }
}

/// The addresses of the descriptors in the same frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listeners {
    /// In the order of the descriptors.
    pub addresses: Vec<SocketAddr>,
}

/// What carries on besides sockets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The metrics, as a scrape shows them.
    #[serde(default)]
    pub metrics: String,
    /// Keys of session tickets, where no file says what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tickets: Option<ExportedKeys>,
    /// What is known about nodes.
    #[serde(default)]
    pub nodes: Vec<NodeRecord>,
}

/// The new process accepts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Listening {
    /// Listeners of the old process that the new configuration does not have: nobody accepts on
    /// them from now on.
    #[serde(default)]
    pub without: Vec<SocketAddr>,
    /// Its process id, which is not that of its [`Hello`] once it has become a daemon.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// Sends a message without descriptors.
///
/// # Errors
/// As [`Channel::send`].
pub fn say(
    channel: &Channel,
    step: &'static str,
    kind: u8,
    message: &impl Serialize,
) -> Result<(), UpgradeError> {
    let payload = serde_json::to_vec(message).map_err(std::io::Error::from);
    payload
        .and_then(|payload| channel.send(kind, &payload, &[]))
        .map_err(UpgradeError::at(step))
}

/// Waits for a message of this kind.
///
/// # Errors
/// When the peer is gone, refuses, or says something else.
pub fn hear(channel: &Channel, step: &'static str, kind: u8) -> Result<Frame, UpgradeError> {
    let gone = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let frame = channel.receive().and_then(|frame| frame.ok_or_else(gone));
    let frame = frame.map_err(UpgradeError::at(step))?;
    match frame.kind {
        heard if heard == kind => Ok(frame),
        kind::REFUSED => Err(UpgradeError::Refused(read(step, &frame)?)),
        _ => Err(UpgradeError::Unexpected { step }),
    }
}

/// The content of a message.
///
/// # Errors
/// When it is not what its kind promises.
pub fn read<T: DeserializeOwned>(step: &'static str, frame: &Frame) -> Result<T, UpgradeError> {
    serde_json::from_slice(&frame.payload).map_err(|error| UpgradeError::Channel {
        step,
        error: error.into(),
    })
}
