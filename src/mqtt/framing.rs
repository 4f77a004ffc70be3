//! Where one direction of a connection stands between its packets.
//!
//! Only the fixed headers are looked at (MQTT 5.0 §2.1, 3.1.1 §2.2): a type and a remaining
//! length. Payloads are jumped over, however large.

use serde::{Deserialize, Serialize};

/// First byte of CONNACK.
const CONNACK: u8 = 0x20;

/// The position of a direction, moved along by the bytes that were passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framing {
    place: Place,
    /// A CONNACK has begun: before it a server must not send DISCONNECT [MQTT-3.14.0-1].
    #[serde(default)]
    accepted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
enum Place {
    /// Between two packets.
    Boundary,
    /// Behind a type and so many bytes of the remaining length, with this value up to here.
    Length { read: u8, value: u32 },
    /// So many bytes before the end of a packet.
    Body { left: u32 },
    /// This is not MQTT, or nobody has followed it from its beginning.
    #[serde(other)]
    Unknown,
}

impl Default for Framing {
    fn default() -> Self {
        Framing {
            place: Place::Unknown,
            accepted: false,
        }
    }
}

impl Framing {
    /// Before the first packet of a stream. The default is a position that is not known.
    pub fn start() -> Self {
        Framing {
            place: Place::Boundary,
            accepted: false,
        }
    }

    /// Moves along. What cannot be MQTT (packet type 0, a remaining length of more than four
    /// bytes) makes the position unknown for good.
    pub fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.place {
                Place::Boundary => {
                    bytes = rest;
                    self.accepted |= byte == CONNACK;
                    self.place = match byte >> 4 {
                        0 => Place::Unknown,
                        _ => Place::Length { read: 0, value: 0 },
                    };
                }
                Place::Length { read, value } => {
                    bytes = rest;
                    let shift = u32::from(read).saturating_mul(7);
                    let value = value | u32::from(byte & 0x7f).wrapping_shl(shift);
                    let read = read.saturating_add(1);
                    self.place = match byte & 0x80 {
                        0 => behind(value),
                        _ if read >= 4 => Place::Unknown,
                        _ => Place::Length { read, value },
                    };
                }
                Place::Body { left } => {
                    let there = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    let jump = left.min(there);
                    bytes = bytes.get(jump as usize..).unwrap_or_default();
                    self.place = behind(left.saturating_sub(jump));
                }
                Place::Unknown => return,
            }
        }
    }

    /// How many bytes are known to come before the next boundary; 0 at one, `None` where the
    /// position is unknown. Inside a fixed header more may turn out to come.
    pub fn to_boundary(&self) -> Option<usize> {
        match self.place {
            Place::Boundary => Some(0),
            Place::Length { .. } => Some(1),
            Place::Body { left } => Some(left as usize),
            Place::Unknown => None,
        }
    }

    /// Whether whole packets and nothing else have passed.
    pub fn is_at_boundary(&self) -> bool {
        self.place == Place::Boundary
    }

    /// Whether a CONNACK has passed, or has begun to.
    pub fn is_accepted(&self) -> bool {
        self.accepted
    }
}

/// With so many bytes left of a packet.
fn behind(left: u32) -> Place {
    match left {
        0 => Place::Boundary,
        _ => Place::Body { left },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(first: u8, body: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        let mut length = body;
        loop {
            let more = if length > 127 { 0x80 } else { 0 };
            bytes.push((length & 0x7f) as u8 | more);
            length >>= 7;
            if length == 0 {
                break;
            }
        }
        bytes.resize(bytes.len() + body, 0xff);
        bytes
    }

    fn after(bytes: &[u8]) -> Framing {
        let mut framing = Framing::start();
        framing.advance(bytes);
        framing
    }

    #[test]
    fn only_between_packets_is_a_boundary() {
        for body in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let bytes = packet(0x30, body);
            for end in [1, 2, bytes.len() / 2, bytes.len() - 1] {
                let end = end.min(bytes.len() - 1);
                assert!(!after(&bytes[..end]).is_at_boundary(), "{body} {end}");
            }
            assert!(after(&bytes).is_at_boundary(), "{body}");
            let header = bytes.len() - body;
            assert_eq!(after(&bytes[..header]).to_boundary(), Some(body));
        }
    }

    #[test]
    fn what_is_not_mqtt_is_unknown_for_good() {
        for bytes in [&[0x00, 0x00][..], &[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            let mut framing = after(bytes);
            assert_eq!(framing.to_boundary(), None);
            framing.advance(&[0xc0, 0x00]);
            assert_eq!(framing, after(bytes));
        }
        assert_eq!(Framing::default().to_boundary(), None);
        assert!(after(&[0x30, 0xff, 0xff, 0xff, 0x7f]).to_boundary() == Some(268_435_455));
    }

    #[test]
    fn connack_is_noticed() {
        assert!(!after(&packet(0x30, 40)).is_accepted());
        assert!(!after(&[0x30, 1, 0x20]).is_accepted());
        assert!(after(&[0xf0, 0, 0x20]).is_accepted());
    }

    #[test]
    fn a_position_of_a_later_version_is_unknown() {
        let framing = after(&packet(0x30, 9)[..4]);
        let text = serde_json::to_string(&framing).unwrap();
        assert_eq!(serde_json::from_str::<Framing>(&text).unwrap(), framing);
        let later = r#"{"place": {"at": "elsewhere", "more": 1}, "new": 2}"#;
        assert_eq!(
            serde_json::from_str::<Framing>(later).unwrap(),
            Framing::default()
        );
    }

    proptest! {
        /// However the stream is cut into pieces, the position is the same, and it is a boundary
        /// exactly where a packet ends.
        #[test]
        fn splits_change_nothing(
            packets in prop::collection::vec((1_u8..16, 0_u8..16, prop_oneof![0_usize..4, 120_usize..140, 16_380_usize..16_390]), 1..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for (kind, flags, body) in packets {
                stream.extend(packet(kind << 4 | flags, body));
                ends.push(stream.len());
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let (mut framing, mut at) = (Framing::start(), 0);
            for cut in cuts {
                framing.advance(&stream[at..cut]);
                at = cut;
                prop_assert_eq!(framing, after(&stream[..at]));
                prop_assert_eq!(framing.is_at_boundary(), ends.contains(&at));
                let next = ends.iter().find(|end| **end >= at).unwrap();
                prop_assert!(framing.to_boundary().unwrap() <= next - at);
            }
        }

        /// Nothing that a peer sends can do more than make the position unknown.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut whole = Framing::start();
            whole.advance(&bytes);
            let mut single = Framing::start();
            bytes.iter().for_each(|byte| single.advance(&[*byte]));
            prop_assert_eq!(whole, single);
        }
    }
}
