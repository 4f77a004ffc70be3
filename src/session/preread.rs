//! Reading CONNECT before anything is dialled.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::refusal::Refusal;
use crate::config::settings::Limits;
use crate::mqtt::Mode;
use crate::plugin::mqtt_proxy::MqttProxy;
use crate::upstream::variables::MqttVariables;

/// The first read asks for this much; most CONNECTs fit.
const FIRST_READ: usize = 1024;
/// Later reads ask for this much at a time, so that memory follows what really arrives and never
/// a length that a client declares.
const NEXT_READ: usize = 4096;

/// What was read before the broker is dialled.
#[derive(Debug, Default)]
pub struct Preread {
    /// Every byte received so far: CONNECT and whatever the client sent right behind it.
    pub received: Vec<u8>,
    /// What CONNECT says; `None` on a plain TCP route.
    pub mqtt: Option<MqttVariables>,
}

/// How reading CONNECT can fail.
#[derive(Debug)]
pub enum PrereadError {
    /// The client is to be refused.
    Refused(Refusal),
    /// The client ended or reset the connection before CONNECT was complete: a port probe, most
    /// often, and nobody is left to be told.
    ClientLeft,
}

/// Reads CONNECT whole, of which `received` has been read already, within the two deadlines that count from `accepted` and not from each
/// read, so that a client which sends a byte now and then gains nothing.
///
/// # Errors
/// See [`PrereadError`].
pub async fn read_connect(
    client: &mut (impl AsyncRead + Unpin),
    mut received: Vec<u8>,
    plugin: &MqttProxy,
    mode: Mode,
    limits: &Limits,
    accepted: Instant,
) -> Result<Preread, PrereadError> {
    received.reserve(FIRST_READ);
    loop {
        if !received.is_empty() {
            match plugin.judge(&received, mode, limits.max_connect_size) {
                Err(error) => return Err(PrereadError::Refused(error.into())),
                Ok(None) => {}
                Ok(Some(connect)) => {
                    let mqtt = MqttVariables::of(&connect);
                    return Ok(Preread {
                        received,
                        mqtt: Some(mqtt),
                    });
                }
            }
            received.reserve(NEXT_READ);
        }
        let (limit, late): (Duration, fn(Duration) -> Refusal) = match received.is_empty() {
            true => (
                limits.first_byte_timeout.min(limits.connect_timeout),
                Refusal::FirstByteTimeout,
            ),
            false => (limits.connect_timeout, Refusal::ConnectTimeout),
        };
        match timeout_at(accepted + limit, client.read_buf(&mut received)).await {
            Err(_) => return Err(PrereadError::Refused(late(limit))),
            Ok(Err(_) | Ok(0)) => return Err(PrereadError::ClientLeft),
            Ok(Ok(_)) => {}
        }
    }
}
