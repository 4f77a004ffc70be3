//! A live pair as bytes: a JSON record of each, and what it owes.
//!
//! Records are read leniently: a field that this version does not know is left out, one that is
//! missing has its default. So one version more or less on the other side does no harm.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::channel::Frame;
use crate::ffi::openssl::cleanse;
use crate::mqtt::Framing;
use crate::session::outcome::{ClientIdHash, End, Record};
use crate::session::relay::engine::Carried;
use crate::session::relay::pair::{FlowParts, Mqtt, Pair, State};
use crate::session::relay::{self, IdleTimeout};
use crate::table::Route;
use crate::telemetry::access_log::Details;
use crate::tls::records::parts::SessionParts;
use crate::tls::session::Session;

/// Bytes that the text of one record surely fits, besides its hash key and what is pending in its TLS
/// sessions.
const ROOM: usize = 8192;
/// Pairs in one frame.
pub const BATCH: usize = super::channel::MAX_DESCRIPTORS / 2;

/// One pair without its sockets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairRecord {
    /// The client's address.
    pub client: SocketAddr,
    /// Address of the listener that accepted it.
    pub listener: SocketAddr,
    /// Id of its route.
    #[serde(default)]
    pub route: Option<String>,
    /// Label of its upstream.
    #[serde(default)]
    pub upstream: Option<String>,
    /// Label of its node.
    #[serde(default)]
    pub node: Option<String>,
    /// Its client id, as far as it is kept.
    #[serde(default)]
    pub client_id_hash: Option<ClientIdHash>,
    /// Bytes that reached the broker.
    #[serde(default)]
    pub to_broker: u64,
    /// Bytes that reached the client.
    #[serde(default)]
    pub to_client: u64,
    /// How long it has lived, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
    /// How long it has been silent, in milliseconds.
    #[serde(default)]
    pub silent_ms: u64,
    /// Idle timeout in milliseconds, if it has one.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// The same for the time after the broker's end.
    #[serde(default)]
    pub idle_after_broker_end_ms: Option<u64>,
    /// Protocol level of its CONNECT, on a route with MQTT.
    #[serde(default)]
    pub level: Option<u8>,
    /// Its hash key, where it is kept.
    #[serde(default)]
    pub key: Option<Box<[u8]>>,
    /// What has ended it, if one side has ended already.
    #[serde(default, deserialize_with = "if_understood")]
    pub end: Option<End>,
    /// See [`Record::sent_us`].
    #[serde(default)]
    pub sent_us: u32,
    /// Whether what was read of CONNECT has been counted among the bytes.
    #[serde(default = "yes")]
    pub counts_bytes: bool,
    /// Whether the broker has yet to send its first byte.
    #[serde(default)]
    pub awaits_answer: bool,
    /// What the access log shows of it, if the old process had one.
    #[serde(default, deserialize_with = "if_understood")]
    pub access: Option<Details>,
    /// The client's TLS session, if it has one. It holds keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_tls: Option<SessionParts>,
    /// The one toward the broker, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_tls: Option<SessionParts>,
    /// Client to broker.
    pub up: FlowRecord,
    /// Broker to client.
    pub down: FlowRecord,
}

fn yes() -> bool {
    true
}

/// What a later version may have words for that this one does not know.
fn if_understood<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl PairRecord {
    /// Whether a route of this process still leads to the upstream that took the connection. A
    /// version that did not say which it was is believed.
    pub fn is_of(&self, route: &Route) -> bool {
        let upstream = route.upstream.as_ref().ok();
        let label = upstream.map(|upstream| upstream.label());
        self.upstream.is_none() || label == self.upstream.as_deref()
    }
}

/// One direction of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Its state.
    pub state: State,
    /// How many bytes it owes; they follow the records, in order.
    pub owed: usize,
    /// Where its receiver stands between two packets; unknown from a version that did not follow
    /// it.
    #[serde(default)]
    pub framing: Framing,
}

/// A payload for these pairs and the descriptors that go with it. It holds the keys of TLS sessions;
/// whoever has sent it overwrites it.
///
/// # Errors
/// Never in practice: JSON of plain data.
pub fn encode(pairs: &[Carried]) -> std::io::Result<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    let mut records = Vec::with_capacity(pairs.len());
    let mut owed = Vec::new();
    let mut descriptors = Vec::with_capacity(2 * pairs.len());
    let mut room = 2;
    for carried in pairs {
        let parts = carried.pair.parts();
        let flow = |flow: &FlowParts<'_>| FlowRecord {
            state: flow.state,
            owed: flow.owed.len(),
            framing: flow.framing,
        };
        let sessions = [&carried.client, &carried.broker].map(|side| side.tls.as_ref());
        let pending = sessions.iter().flatten().map(|session| session.pending());
        let key = parts.record.key.as_ref().map_or(0, |key| key.len());
        // Numbers of up to three digits, and pairs of digits.
        room += ROOM + 4 * key + 2 * pending.sum::<usize>();
        let [client_tls, broker_tls] = sessions.map(|session| session?.to_parts());
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        records.push(PairRecord {
            client: parts.record.client,
            listener: parts.record.listener.address,
            route: parts.record.route.as_ref().map(|route| route.id.clone()),
            upstream: parts
                .record
                .upstream()
                .map(|upstream| upstream.label().to_owned()),
            node: parts
                .record
                .broker
                .as_ref()
                .map(|broker| broker.node().label().to_owned()),
            client_id_hash: parts.record.client_id_hash,
            to_broker: parts.record.to_broker,
            to_client: parts.record.to_client,
            age_ms: milliseconds(parts.record.age()),
            silent_ms: milliseconds(carried.last_activity.elapsed()),
            idle_ms: parts.idle.open.map(milliseconds),
            idle_after_broker_end_ms: parts.idle.after_broker_end.map(milliseconds),
            sent_us: parts.record.sent_us,
            counts_bytes: parts.counts_bytes,
            awaits_answer: parts.awaits_answer,
            access: parts
                .record
                .access
                .as_ref()
                .map(|access| access.details.clone()),
            level: parts.level,
            key: parts.record.key.clone(),
            end: parts.ended.then_some(parts.record.end),
            client_tls,
            broker_tls,
            up: flow(&parts.up),
            down: flow(&parts.down),
        });
        owed.extend_from_slice(parts.up.owed);
        owed.extend_from_slice(parts.down.owed);
        descriptors.extend([&carried.client, &carried.broker].map(|side| side.socket.as_fd()));
    }
    // Never grown: memory that it left would keep keys.
    let mut text = Vec::with_capacity(room);
    serde_json::to_writer(&mut text, &records)?;
    let mut records = text;
    let mut payload = Vec::with_capacity(4 + records.len() + owed.len());
    payload.extend((records.len() as u32).to_le_bytes());
    payload.extend_from_slice(&records);
    cleanse(&mut records);
    payload.extend(owed);
    Ok((payload, descriptors))
}

/// The pairs of a frame. `open` makes the record that counts each of them in this process.
/// `None` when the frame is not what it says.
pub fn decode(
    mut frame: Frame,
    mut open: impl FnMut(&PairRecord) -> Record,
) -> Option<Vec<Carried>> {
    let (length, rest) = frame.payload.split_first_chunk_mut::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (text, owed) = rest.split_at_mut_checked(length)?;
    let records: Option<Vec<PairRecord>> = serde_json::from_slice(text).ok();
    cleanse(text);
    let (records, mut owed) = (records?, &*owed);
    if frame.descriptors.len() != 2 * records.len() {
        return None;
    }
    let mut descriptors = frame.descriptors.into_iter();
    let mut pairs: Vec<Carried> = Vec::with_capacity(records.len());
    for record in &records {
        match one(record, &mut owed, &mut descriptors, &mut open) {
            Some(pair) => pairs.push(pair),
            None => break,
        }
    }
    if pairs.len() == records.len() && owed.is_empty() {
        return Some(pairs);
    }
    // They live on in the old process.
    pairs
        .into_iter()
        .for_each(|carried| carried.pair.handed_over());
    None
}

/// One pair, as its record, the bytes that are left and the descriptors that are left tell it.
fn one(
    record: &PairRecord,
    owed: &mut &[u8],
    descriptors: &mut impl Iterator<Item = OwnedFd>,
    open: &mut impl FnMut(&PairRecord) -> Record,
) -> Option<Carried> {
    let mut take = |flow: FlowRecord| {
        let (bytes, rest) = owed.split_at_checked(flow.owed)?;
        *owed = rest;
        Some((flow.state, bytes.to_vec()))
    };
    let (up, down) = (take(record.up)?, take(record.down)?);
    let mut side = |tls: &Option<SessionParts>| {
        let session = tls.as_ref().map(Session::from_parts);
        Some(relay::engine::End {
            tls: session.transpose().ok()?.map(Box::new),
            socket: descriptors.next()?,
        })
    };
    let (client, broker) = (side(&record.client_tls)?, side(&record.broker_tls)?);
    let now = Instant::now();
    let idle = IdleTimeout {
        open: record.idle_ms.map(Duration::from_millis),
        after_broker_end: record.idle_after_broker_end_ms.map(Duration::from_millis),
    };
    let silent = Duration::from_millis(record.silent_ms);
    let mqtt = record.level.map(|level| Mqtt {
        level,
        to_broker: record.up.framing,
        to_client: record.down.framing,
    });
    let awaits = (record.counts_bytes, record.awaits_answer);
    let state = open(record);
    let pair = Pair::from_parts(up, down, idle, record.end, awaits, state).speaking(mqtt);
    Some(Carried {
        // The clock of a machine that started a moment ago cannot look back that far.
        last_activity: now.checked_sub(silent).unwrap_or(now),
        ..Carried::new(client, broker, pair)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_version_that_did_not_follow_packets_stands_is_unknown() {
        let flow: FlowRecord = serde_json::from_str(r#"{"state": "open", "owed": 3}"#).unwrap();
        assert_eq!(flow.framing.to_boundary(), None);
        let text = serde_json::to_string(&flow).unwrap();
        assert_eq!(serde_json::from_str::<FlowRecord>(&text).unwrap(), flow);
    }
}
