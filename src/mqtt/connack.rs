//! The broker's first packet, read for what a proxy must know about the connection.

use super::cursor::{Cursor, VarInt};
use super::packet::is_v5_form;
use super::properties::{Properties, SERVER_KEEP_ALIVE, Value};

/// The longest CONNACK that [`read_connack`] waits for, in bytes of the whole packet. A broker
/// that sends a longer one is relayed all the same; only its keep alive is not known.
pub const MAX_CONNACK_SIZE: usize = 4096;

/// What the broker's first packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerFirst {
    /// More bytes are needed. Never once [`MAX_CONNACK_SIZE`] bytes are there.
    NeedMore,
    /// A CONNACK.
    Connack {
        /// The return code (3.1.1) or reason code (5.0); 0 is an accepted connection.
        code: u8,
        /// Whether the broker goes on with an earlier session of the client.
        session_present: bool,
        /// Server Keep Alive: the seconds that count instead of the client's keep alive
        /// [MQTT-3.1.2-21]. MQTT 5 only.
        server_keep_alive: Option<u16>,
    },
    /// Something else, AUTH for instance, or nothing that can be read.
    Other,
}

/// Looks at everything a broker has sent so far to a client of protocol `level`.
///
/// It only looks: no answer is a reason to end a connection, because what a broker sends is
/// between it and the client. It waits for the whole packet and costs nothing until that is there.
pub fn read_connack(received: &[u8], level: u8) -> BrokerFirst {
    let Some((&first, behind)) = received.split_first() else {
        return BrokerFirst::NeedMore;
    };
    if first != 0x20 {
        return BrokerFirst::Other;
    }
    let Some(remaining) = VarInt::read(behind) else {
        return BrokerFirst::NeedMore;
    };
    let len = usize::try_from(remaining.value).unwrap_or(usize::MAX);
    if remaining.unterminated || len > MAX_CONNACK_SIZE.saturating_sub(5) {
        return BrokerFirst::Other;
    }
    let mut body = Cursor::new(behind, 1);
    if body.take(remaining.len).is_none() {
        return BrokerFirst::NeedMore;
    }
    match body.take(len) {
        Some(body) => read_body(Cursor::new(body, 0), level).unwrap_or(BrokerFirst::Other),
        None => BrokerFirst::NeedMore,
    }
}

/// The return or reason code of a CONNACK that begins `received`, of which the rest may be missing.
pub fn connack_code(received: &[u8]) -> Option<u8> {
    let (&first, behind) = received.split_first()?;
    let remaining = VarInt::read(behind)?;
    if first != 0x20 || remaining.unterminated || remaining.value < 2 {
        return None;
    }
    let [_flags, code, ..] = behind.get(remaining.len..)? else {
        return None;
    };
    Some(*code)
}

fn read_body(mut body: Cursor<'_>, level: u8) -> Option<BrokerFirst> {
    let session_present = body.byte()? & 0x01 != 0;
    let code = body.byte()?;
    let mut server_keep_alive = None;
    // A broker that refuses a client of MQTT 5 in the form of 3.1.1 sends no properties at all.
    if is_v5_form(level) && !body.is_empty() {
        let len = usize::try_from(body.varint()?.value).ok()?;
        for item in Properties::new(body.take(len)?, 0) {
            let item = item.ok()?;
            if let (SERVER_KEEP_ALIVE, Value::Two(seconds)) = (item.property.id, item.value) {
                server_keep_alive = Some(seconds);
            }
        }
    }
    Some(BrokerFirst::Connack {
        code,
        session_present,
        server_keep_alive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(server_keep_alive: Option<u16>) -> BrokerFirst {
        BrokerFirst::Connack {
            code: 0,
            session_present: false,
            server_keep_alive,
        }
    }

    #[test]
    fn a_connack_of_3_1_1() {
        assert_eq!(read_connack(&[0x20, 2, 0, 0], 4), accepted(None));
        let refused = BrokerFirst::Connack {
            code: 5,
            session_present: false,
            server_keep_alive: None,
        };
        assert_eq!(read_connack(&[0x20, 2, 0, 5], 3), refused);
        let resumed = read_connack(&[0x20, 2, 1, 0, 0xd0, 0], 0x84);
        let BrokerFirst::Connack {
            session_present: true,
            ..
        } = resumed
        else {
            panic!("{resumed:?}");
        };
    }

    #[test]
    fn the_code_alone_needs_no_more_than_its_byte() {
        assert_eq!(connack_code(&[0x20, 2, 0, 5]), Some(5));
        assert_eq!(connack_code(&[0x20, 19, 0, 0x87]), Some(0x87));
        assert_eq!(connack_code(&[0x20, 0x93, 0x01, 0, 0x87]), Some(0x87));
        for other in [
            &[][..],
            &[0x20],
            &[0x20, 2, 0],
            &[0x20, 1, 0, 9],
            &[0xf0, 2, 0x18, 0],
            &[0x20, 0xff, 0xff, 0xff, 0xff, 0, 0],
        ] {
            assert_eq!(connack_code(other), None, "{other:x?}");
        }
    }

    #[test]
    fn server_keep_alive_wherever_it_stands() {
        // Topic Alias Maximum, User Property, Server Keep Alive 20, Receive Maximum.
        let packet = [
            0x20, 19, 0, 0, 16, 0x22, 0, 10, 0x26, 0, 1, b'k', 0, 1, b'v', 0x13, 0, 20, 0x21, 0, 20,
        ];
        assert_eq!(read_connack(&packet, 5), accepted(Some(20)));
        for end in 0..packet.len() {
            assert_eq!(read_connack(&packet[..end], 5), BrokerFirst::NeedMore);
        }
        assert_eq!(read_connack(&[0x20, 3, 0, 0, 0], 5), accepted(None));
        assert_eq!(read_connack(&[0x20, 2, 0, 0], 5), accepted(None));
    }

    #[test]
    fn what_cannot_be_read_is_other_and_never_waited_for() {
        for packet in [
            &[0xf0, 2, 0x18, 0][..],
            &[0x30],
            &[0x20, 0],
            &[0x20, 1, 0],
            &[0x20, 4, 0, 0, 1, 0x7f],
            &[0x20, 4, 0, 0, 2, 0x13],
            &[0x20, 5, 0, 0, 2, 0x13, 0],
            &[0x20, 0xff, 0xff, 0xff, 0xff],
            &[0x20, 0xff, 0xff, 0xff, 0x7f],
        ] {
            assert_eq!(read_connack(packet, 5), BrokerFirst::Other, "{packet:x?}");
        }
        let mut endless = vec![0x20, 0xfc, 0x1f];
        assert_eq!(read_connack(&endless, 5), BrokerFirst::Other);
        endless = vec![0x20, 0xfb, 0x1f];
        assert_eq!(read_connack(&endless, 5), BrokerFirst::NeedMore);
        endless.resize(MAX_CONNACK_SIZE, 0);
        assert_ne!(read_connack(&endless, 5), BrokerFirst::NeedMore);
    }
}
