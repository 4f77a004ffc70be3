//! The first bytes: fixed header, protocol name, protocol level. Judged as they arrive.

use super::connect::{Connect, DecodeOptions, Mode};
use super::cursor::{Cursor, VarInt};
use super::error::DecodeError;
use super::excerpt::Excerpt;
use super::rules::{self, Judged, Version};

/// The names that a client of any published version sends. A route that does not accept them
/// still answers such a client in its own language.
const STANDARD_NAMES: [&str; 2] = ["MQTT", "MQIsdp"];

const CONNECT: u8 = 0x10;

/// A packet that is wholly there and whose protocol is accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub(super) packet_len: usize,
    pub(super) name: &'a [u8],
    pub(super) judged: Judged,
    /// Begins at the connect flags, ends with the packet.
    pub(super) body: Cursor<'a>,
}

impl<'a> Header<'a> {
    /// A CONNECT of which nothing more is known.
    pub(super) fn connect(&self) -> Connect<'a> {
        Connect {
            packet_len: self.packet_len,
            protocol_name: self.name,
            level: self.judged.level,
            client_id: &[],
            username: None,
            has_password: false,
            keep_alive: 0,
            clean_start: false,
            has_will: false,
            session_expiry_interval: None,
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: None,
            authentication_method: None,
            properties: &[],
        }
    }
}

/// Reads the header of what has been received so far. `Ok(None)`: more bytes are needed.
pub(super) fn read<'a>(
    received: &'a [u8],
    options: &DecodeOptions<'_>,
) -> Result<Option<Header<'a>>, DecodeError> {
    let Some((&first, behind)) = received.split_first() else {
        return Ok(None);
    };
    judge_first_byte(first, received, options.mode)?;

    let Some(remaining) = VarInt::read(behind) else {
        return Ok(None);
    };
    if remaining.unterminated && options.mode == Mode::Strict {
        return Err(rules::REMAINING_LENGTH.broken_early(1));
    }
    let fixed_len = remaining.len.saturating_add(1);
    let remaining_len = usize::try_from(remaining.value).unwrap_or(usize::MAX);
    let packet_len = fixed_len.saturating_add(remaining_len);
    let limit = options.max_packet_size;
    let packet = received.get(..packet_len).unwrap_or(received);
    let mut body = Cursor::new(packet.get(fixed_len..).unwrap_or(&[]), fixed_len);

    judge_name_so_far(body, received, options)?;
    let (Some(name), Some(level)) = (body.counted(), body.byte()) else {
        if received.len() >= packet_len {
            return Err(rules::VARIABLE_HEADER.broken_early(packet_len));
        }
        // A limit so small that the level lies beyond it: nothing more is worth waiting for.
        if packet_len > limit && received.len() >= limit {
            return Err(DecodeError::TooLarge {
                declared: packet_len,
                limit,
                level: None,
            });
        }
        return Ok(None);
    };

    let taken = |p: &super::Protocol<'_>| p.level == i64::from(level) && p.name.as_bytes() == name;
    if !options.accepted.iter().any(taken) {
        let name = Excerpt::new(name);
        return Err(DecodeError::UnsupportedVersion { name, level });
    }
    if packet_len > limit {
        return Err(DecodeError::TooLarge {
            declared: packet_len,
            limit,
            level: Some(level),
        });
    }
    let judged = Judged {
        version: Version::of(level),
        level,
    };
    let minimal = &rules::REMAINING_LENGTH_MINIMAL;
    if options.mode == Mode::Strict && minimal.holds_in(judged.version) && !remaining.is_minimal() {
        return Err(minimal.broken(judged, 1));
    }
    Ok((received.len() >= packet_len).then_some(Header {
        packet_len,
        name,
        judged,
        body,
    }))
}

fn judge_first_byte(first: u8, received: &[u8], mode: Mode) -> Result<(), DecodeError> {
    match (mode, first) {
        (_, CONNECT) => Ok(()),
        // What APISIX lets pass: any flags, and CONNACK's 0x20.
        (Mode::Tolerant, 0x11..=0x20) => Ok(()),
        (Mode::Strict, 0x11..=0x1f) => Err(rules::FIXED_HEADER_FLAGS.broken_early(0)),
        _ => Err(DecodeError::NotMqtt {
            clause: "MQTT-3.1.0-1",
            what: "the first byte is not that of CONNECT",
            seen: Excerpt::new(received),
        }),
    }
}

/// Fails as soon as the bytes of the protocol name that are there fit no name that is accepted or
/// that a standard defines.
fn judge_name_so_far(
    body: Cursor<'_>,
    received: &[u8],
    options: &DecodeOptions<'_>,
) -> Result<(), DecodeError> {
    let accepted = options.accepted.iter().map(|p| &*p.name);
    let mut names = STANDARD_NAMES.into_iter().chain(accepted);
    if names.any(|name| may_become(body.rest(), name)) {
        return Ok(());
    }
    Err(DecodeError::NotMqtt {
        clause: "MQTT-3.1.2-1",
        what: "the protocol name is unknown",
        seen: Excerpt::new(received),
    })
}

/// Whether `seen` begins with `name` as a counted string, or is the beginning of it.
fn may_become(seen: &[u8], name: &str) -> bool {
    let Ok(len) = u16::try_from(name.len()) else {
        return false;
    };
    let encoded = len.to_be_bytes().into_iter().chain(name.bytes());
    seen.iter().copied().zip(encoded).all(|(a, b)| a == b)
}
