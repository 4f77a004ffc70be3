//! What other versions of the program say in an upgrade: the first one, which knew fewer words, and
//! one to come, which knows more.

use mqtt_proxy::upgrade::channel::Frame;
use mqtt_proxy::upgrade::message::kind;
use serde_json::{Map, Value, json};

/// Another version than the one under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The words of the first version that could be upgraded, and no others.
    First,
    /// Words that nobody knows yet, in every place.
    Later,
}

/// The fields of the first version, by message.
const HELLO: [&str; 3] = ["protocol", "version", "pid"];
const STATE: [&str; 1] = ["metrics"];
const PAIR: [&str; 14] = [
    "client",
    "listener",
    "route",
    "node",
    "to_broker",
    "to_client",
    "age_ms",
    "silent_ms",
    "idle_ms",
    "idle_after_broker_end_ms",
    "end",
    "access",
    "up",
    "down",
];
const FLOW: [&str; 2] = ["state", "owed"];

impl Version {
    /// The frame as this version would have sent it, or would have understood it.
    pub fn translate(self, mut frame: Frame) -> Frame {
        match frame.kind {
            kind::HELLO | kind::READY => self.whole(&mut frame, &HELLO),
            kind::STATE | kind::LAST => self.whole(&mut frame, &STATE),
            kind::LISTENERS => self.whole(&mut frame, &["addresses"]),
            kind::LISTENING if self == Version::First => frame.payload = b"null".to_vec(),
            kind::LISTENING => self.whole(&mut frame, &[]),
            kind::PAIRS => self.pairs(&mut frame),
            _ => {}
        }
        frame
    }

    fn whole(self, frame: &mut Frame, known: &[&str]) {
        let mut message = serde_json::from_slice(&frame.payload).expect("JSON");
        self.object(&mut message, known);
        if let Some(version) = message.get_mut("version") {
            *version = match self {
                Version::First => json!("0.1.0"),
                Version::Later => json!("9.0.0-rc.1"),
            };
        }
        frame.payload = serde_json::to_vec(&message).expect("JSON");
    }

    fn object(self, value: &mut Value, known: &[&str]) {
        let fields: &mut Map<String, Value> = value.as_object_mut().expect("an object");
        match self {
            Version::First => fields.retain(|name, _| known.contains(&name.as_str())),
            Version::Later => {
                fields.insert("later".to_owned(), json!({"a": [1, null, "x"], "b": {}}));
            }
        }
    }

    fn pairs(self, frame: &mut Frame) {
        let (length, rest) = frame.payload.split_first_chunk::<4>().expect("a length");
        let (records, owed) = rest.split_at(u32::from_le_bytes(*length) as usize);
        let mut records: Value = serde_json::from_slice(records).expect("JSON");
        for record in records.as_array_mut().expect("a list") {
            self.object(record, &PAIR);
            for flow in ["up", "down"] {
                self.object(&mut record[flow], &FLOW);
            }
            if self == Version::Later && record["access"].is_object() {
                self.object(&mut record["access"], &[]);
            }
        }
        frame.payload = payload(&records, owed);
    }
}

/// The payload of a PAIRS message.
pub fn payload(records: &Value, owed: &[u8]) -> Vec<u8> {
    let records = serde_json::to_vec(records).expect("JSON");
    let length = (records.len() as u32).to_le_bytes();
    [&length[..], &records, owed].concat()
}
