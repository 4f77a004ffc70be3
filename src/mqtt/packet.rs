//! The packets a proxy writes itself: CONNACK to a client it refuses, DISCONNECT to one it sends
//! away.

/// A short packet, ready to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    bytes: [u8; 5],
    len: u8,
}

impl Packet {
    fn new(packet: &[u8]) -> Self {
        let mut bytes = [0; 5];
        let mut len = 0;
        for (slot, &byte) in bytes.iter_mut().zip(packet) {
            *slot = byte;
            len = u8::saturating_add(len, 1);
        }
        Self { bytes, len }
    }

    /// The bytes to send, 4 or 5 of them.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes)
    }
}

impl AsRef<[u8]> for Packet {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Whether a client of this protocol level reads packets in the form of MQTT 5.
///
/// Bit 7 marks a bridge and says nothing about the form. Levels above 5 do not exist yet; their
/// clients are told 0x84 in the newest form there is.
pub(super) fn is_v5_form(level: u8) -> bool {
    level & 0x7f >= 5
}

/// Why a client is refused, as far as CONNACK can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The protocol level is not accepted here: 0x84, before MQTT 5 0x01 [MQTT-3.1.2-2].
    UnsupportedVersion,
    /// CONNECT could not be read: 0x81. No code before MQTT 5.
    Malformed,
    /// CONNECT could be read and breaks a rule: 0x82. No code before MQTT 5.
    ProtocolError,
    /// CONNECT is longer than allowed: 0x95. No code before MQTT 5.
    PacketTooLarge,
    /// No broker takes the connection: 0x88, before MQTT 5 0x03.
    ServerUnavailable,
    /// Try again later: 0x89, before MQTT 5 0x03.
    ServerBusy,
    /// The client may not connect here: 0x87, before MQTT 5 0x05.
    NotAuthorized,
    /// A limit on what is held open is reached: 0x97, before MQTT 5 0x03.
    QuotaExceeded,
    /// Connections arrive faster than allowed: 0x9F, before MQTT 5 0x03.
    ConnectionRateExceeded,
    /// Another server, for now: 0x9C. No code before MQTT 5.
    UseAnotherServer,
    /// Another server, for good: 0x9D. No code before MQTT 5.
    ServerMoved,
}

impl Refusal {
    /// The Connect Reason Code of MQTT 5.0 §3.2.2.2.
    pub fn reason_code(self) -> u8 {
        match self {
            Self::Malformed => 0x81,
            Self::ProtocolError => 0x82,
            Self::UnsupportedVersion => 0x84,
            Self::NotAuthorized => 0x87,
            Self::ServerUnavailable => 0x88,
            Self::ServerBusy => 0x89,
            Self::PacketTooLarge => 0x95,
            Self::QuotaExceeded => 0x97,
            Self::UseAnotherServer => 0x9c,
            Self::ServerMoved => 0x9d,
            Self::ConnectionRateExceeded => 0x9f,
        }
    }

    /// The Connect Return code of MQTT 3.1.1 §3.2.2.3, where there is one. A client that has none
    /// is closed without a CONNACK [MQTT-3.2.2-6].
    pub fn return_code(self) -> Option<u8> {
        match self {
            Self::UnsupportedVersion => Some(0x01),
            Self::ServerUnavailable
            | Self::ServerBusy
            | Self::QuotaExceeded
            | Self::ConnectionRateExceeded => Some(0x03),
            Self::NotAuthorized => Some(0x05),
            Self::Malformed
            | Self::ProtocolError
            | Self::PacketTooLarge
            | Self::UseAnotherServer
            | Self::ServerMoved => None,
        }
    }
}

/// The CONNACK that tells a client of protocol `level` why it is refused, or `None` where that
/// level has no code for it and the standard wants the connection closed without an answer.
///
/// `level` is the byte of the client's CONNECT, bridge bit 0x80 included.
pub fn connack(level: u8, refusal: Refusal) -> Option<Packet> {
    if is_v5_form(level) {
        return Some(Packet::new(&[0x20, 3, 0, refusal.reason_code(), 0]));
    }
    let code = refusal.return_code()?;
    Some(Packet::new(&[0x20, 2, 0, code]))
}

/// Why a connected client is sent away (MQTT 5.0 §3.14.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisconnectReason {
    /// 0x8B: the server shuts down.
    ServerShuttingDown,
    /// 0x98: an administrator ended the connection.
    AdministrativeAction,
    /// 0x9C: use another server, for now.
    UseAnotherServer,
    /// 0x9D: use another server, for good.
    ServerMoved,
}

/// The DISCONNECT for a client of protocol `level`; `None` before MQTT 5, where a server has no
/// such packet and only closes (MQTT 3.1.1 §3.14).
pub fn disconnect(level: u8, reason: DisconnectReason) -> Option<Packet> {
    let code = match reason {
        DisconnectReason::ServerShuttingDown => 0x8b,
        DisconnectReason::AdministrativeAction => 0x98,
        DisconnectReason::UseAnotherServer => 0x9c,
        DisconnectReason::ServerMoved => 0x9d,
    };
    is_v5_form(level).then(|| Packet::new(&[0xe0, 2, code, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(level: u8, refusal: Refusal) -> Option<Vec<u8>> {
        connack(level, refusal).map(|p| p.as_slice().to_vec())
    }

    #[test]
    fn old_levels_get_the_form_of_3_1_1() {
        for level in [0, 1, 2, 3, 4, 0x83, 0x84] {
            let got = bytes(level, Refusal::UnsupportedVersion);
            assert_eq!(got, Some(vec![0x20, 2, 0, 1]));
            let got = bytes(level, Refusal::ServerUnavailable);
            assert_eq!(got, Some(vec![0x20, 2, 0, 3]));
            let got = bytes(level, Refusal::NotAuthorized);
            assert_eq!(got, Some(vec![0x20, 2, 0, 5]));
            for silent in [
                Refusal::Malformed,
                Refusal::ProtocolError,
                Refusal::PacketTooLarge,
                Refusal::UseAnotherServer,
                Refusal::ServerMoved,
            ] {
                assert_eq!(bytes(level, silent), None);
            }
        }
    }

    #[test]
    fn level_5_and_above_get_the_form_of_5() {
        for (refusal, code) in [
            (Refusal::Malformed, 0x81),
            (Refusal::ProtocolError, 0x82),
            (Refusal::UnsupportedVersion, 0x84),
            (Refusal::NotAuthorized, 0x87),
            (Refusal::ServerUnavailable, 0x88),
            (Refusal::ServerBusy, 0x89),
            (Refusal::PacketTooLarge, 0x95),
            (Refusal::QuotaExceeded, 0x97),
            (Refusal::UseAnotherServer, 0x9c),
            (Refusal::ServerMoved, 0x9d),
            (Refusal::ConnectionRateExceeded, 0x9f),
        ] {
            for level in [5, 6, 0x7f, 0x85] {
                assert_eq!(bytes(level, refusal), Some(vec![0x20, 3, 0, code, 0]));
            }
        }
    }

    #[test]
    fn only_level_5_has_a_disconnect_of_the_server() {
        let bytes = |level, reason| disconnect(level, reason).map(|p| p.as_slice().to_vec());
        for (reason, code) in [
            (DisconnectReason::ServerShuttingDown, 0x8b),
            (DisconnectReason::AdministrativeAction, 0x98),
            (DisconnectReason::UseAnotherServer, 0x9c),
            (DisconnectReason::ServerMoved, 0x9d),
        ] {
            assert_eq!(bytes(5, reason), Some(vec![0xe0, 2, code, 0]));
            assert_eq!(bytes(4, reason), None);
            assert_eq!(bytes(0x84, reason), None);
        }
    }
}
