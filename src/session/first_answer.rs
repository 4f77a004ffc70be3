//! The broker's first packet on an MQTT 5 connection.
//!
//! A broker may overrule the client's keep alive in CONNACK (Server Keep Alive, MQTT 5.0
//! §3.2.2.3.14). An idle timeout taken from CONNECT alone would then cut healthy clients that
//! rightly send less often.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::mqtt::{BrokerFirst, MAX_CONNACK_SIZE, read_connack};
use crate::tls::link::Link;

/// How long to wait for the broker before the connection is relayed all the same.
const PATIENCE: Duration = Duration::from_secs(10);
const READ: usize = 512;

/// What the broker said before the relay takes over.
#[derive(Debug, Default)]
pub struct FirstAnswer {
    /// What was read from the broker and is still owed to the client.
    pub bytes: Vec<u8>,
    /// What CONNACK says about the keep alive; `None` when no CONNACK was seen in time.
    pub connack: Option<Connack>,
}

/// A CONNACK that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connack {
    /// Server Keep Alive in seconds, if the broker set one.
    pub server_keep_alive: Option<u16>,
}

/// Waits for CONNACK. Gives up without harm when the client speaks first (enhanced
/// authentication, pipelining), when either side ends, or after ten seconds: then the relay goes
/// on with what there is.
pub async fn first_answer(client: &Link, broker: &mut Link, level: u8) -> FirstAnswer {
    let mut answer = FirstAnswer::default();
    let read = async {
        while answer.bytes.len() < MAX_CONNACK_SIZE {
            answer.bytes.reserve(READ);
            let more = tokio::select! {
                biased;
                more = broker.read_buf(&mut answer.bytes) => more,
                () = client.has_input() => return None,
            };
            match more {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            match read_connack(&answer.bytes, level) {
                BrokerFirst::NeedMore => {}
                BrokerFirst::Connack {
                    server_keep_alive, ..
                } => return Some(Connack { server_keep_alive }),
                BrokerFirst::Other => return None,
            }
        }
        None
    };
    let connack = tokio::time::timeout(PATIENCE, read).await.ok().flatten();
    answer.connack = connack;
    answer
}
