//! Why a CONNECT is not taken.

use super::excerpt::Excerpt;
use super::packet::{Packet, Refusal, connack};

/// What is wrong with the bytes that a client sent.
///
/// It displays as one sentence that names the clause of the standard. Bytes of the client are
/// escaped and cut in it. `at` counts the bytes of the packet from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// This is no MQTT: to be closed without an answer, because nobody there would read it.
    #[error("{what} [{clause}]: received {seen}")]
    NotMqtt {
        /// The clause that says what should have been there.
        clause: &'static str,
        /// What is wrong.
        what: &'static str,
        /// How the client began.
        seen: Excerpt,
    },
    /// MQTT, but no protocol name and level that [`super::DecodeOptions::accepted`] lists.
    #[error("protocol {name} level {level} is not accepted here [MQTT-3.1.2-2]")]
    UnsupportedVersion {
        /// The protocol name of the client.
        name: Excerpt,
        /// The protocol level of the client.
        level: u8,
    },
    /// The packet cannot be read as the standard says (MQTT 5.0 §4.13).
    #[error("{what} [{clause}] (byte {at} of the packet)")]
    Malformed {
        /// The clause that is broken.
        clause: &'static str,
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start of the packet.
        at: usize,
        /// The protocol level of the client, once it is known.
        level: Option<u8>,
    },
    /// The packet can be read, and says what it must not say (MQTT 5.0 §4.13).
    #[error("{what} [{clause}] (byte {at} of the packet)")]
    ProtocolError {
        /// The clause that is broken.
        clause: &'static str,
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start of the packet.
        at: usize,
        /// The protocol level of the client, once it is known.
        level: Option<u8>,
    },
    /// The packet declares more bytes than [`super::DecodeOptions::max_packet_size`].
    #[error("a CONNECT of {declared} bytes exceeds the limit of {limit} bytes [MQTT 5.0 §3.2.2.2]")]
    TooLarge {
        /// The size of the whole packet, in bytes.
        declared: usize,
        /// The limit, in bytes.
        limit: usize,
        /// The protocol level of the client, unless the limit leaves no room for it.
        level: Option<u8>,
    },
}

impl DecodeError {
    /// A stable word for metric labels and logs: one of `not_mqtt`, `unsupported_version`,
    /// `malformed`, `protocol_error` and `too_large`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotMqtt { .. } => "not_mqtt",
            Self::UnsupportedVersion { .. } => "unsupported_version",
            Self::Malformed { .. } => "malformed",
            Self::ProtocolError { .. } => "protocol_error",
            Self::TooLarge { .. } => "too_large",
        }
    }

    /// The protocol level byte of the client, if it was received before the verdict.
    pub fn level(&self) -> Option<u8> {
        match *self {
            Self::NotMqtt { .. } => None,
            Self::UnsupportedVersion { level, .. } => Some(level),
            Self::Malformed { level, .. }
            | Self::ProtocolError { level, .. }
            | Self::TooLarge { level, .. } => level,
        }
    }

    /// What the client may be told; `None` where it is no MQTT client.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::NotMqtt { .. } => None,
            Self::UnsupportedVersion { .. } => Some(Refusal::UnsupportedVersion),
            Self::Malformed { .. } => Some(Refusal::Malformed),
            Self::ProtocolError { .. } => Some(Refusal::ProtocolError),
            Self::TooLarge { .. } => Some(Refusal::PacketTooLarge),
        }
    }

    /// The CONNACK that tells the client, or `None` where it is to be closed without one: it is no
    /// MQTT client, its level is not known yet, or its level has no code for this.
    pub fn connack(&self) -> Option<Packet> {
        connack(self.level()?, self.refusal()?)
    }
}
