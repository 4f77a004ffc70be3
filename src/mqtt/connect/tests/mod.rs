//! Byte examples for every rule, in both modes.

mod apisix;
mod early;
mod flags;
mod payload;
mod properties;

use super::super::testing::{Prop, Spec, Will, counted, hex, packet};
use super::*;

const LIMIT: usize = 16 * 1024;

/// What a route with `protocol_level: [3, 4, 5]` accepts, and their bridges.
fn every_level() -> Vec<Protocol<'static>> {
    vec![
        Protocol::new("MQIsdp", 3),
        Protocol::new("MQTT", 4),
        Protocol::new("MQTT", 5),
        Protocol::new("MQIsdp", 0x83),
        Protocol::new("MQTT", 0x84),
    ]
}

fn judge<'a>(
    bytes: &'a [u8],
    mode: Mode,
    accepted: &[Protocol<'_>],
) -> Result<Option<Connect<'a>>, DecodeError> {
    let options = DecodeOptions {
        mode,
        max_packet_size: LIMIT,
        accepted,
    };
    decode(bytes, &options)
}

fn strict(bytes: &[u8]) -> Result<Option<Connect<'_>>, DecodeError> {
    judge(bytes, Mode::Strict, &every_level())
}

fn tolerant(bytes: &[u8]) -> Result<Option<Connect<'_>>, DecodeError> {
    judge(bytes, Mode::Tolerant, &every_level())
}

fn complete(bytes: &[u8]) -> Connect<'_> {
    strict(bytes).expect("fine").expect("complete")
}

fn will() -> Will {
    Will {
        topic: b"t".to_vec(),
        payload: b"gone".to_vec(),
        ..Will::default()
    }
}

/// Strict refuses for this clause, with this class and CONNACK; tolerant takes the packet.
#[track_caller]
fn only_strict_refuses(bytes: &[u8], reason: &str, clause: &str, connack: &str) {
    refused(bytes, reason, clause, connack);
    let taken = tolerant(bytes).expect("tolerant takes it");
    assert!(taken.is_some_and(|connect| connect.packet_len == bytes.len()));
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str, clause: &str, connack: &str) {
    let error = strict(bytes).expect_err(clause);
    let text = error.to_string();
    assert!(text.contains(&format!("[{clause}]")), "{text}");
    assert_eq!(error.reason(), reason, "{text}");
    let told = error.connack().map(|p| p.as_slice().to_vec());
    assert_eq!(told.unwrap_or_default(), hex(connack), "{text}");
}

const MALFORMED: &str = "20 03 00 81 00";
const PROTOCOL_ERROR: &str = "20 03 00 82 00";
const SILENT: &str = "";
