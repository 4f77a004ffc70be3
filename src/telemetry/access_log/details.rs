//! What the lines of a connection are made from, once it is known.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::printable;
use crate::tls::identity::TlsVariables;

/// What is known about a connection once it is admitted and its lines show. Kept only while there
/// is an access log, and handed over with the connection in an upgrade: hence the defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Tells the lines of one connection from those of all others.
    pub id: u64,
    /// The address on which it arrived.
    pub server: Option<SocketAddr>,
    /// What TLS says about the client.
    pub tls: Option<Box<TlsDetails>>,
    /// MQTT protocol level as sent.
    pub level: Option<u8>,
    /// Client id as the policy shows it.
    pub client_id: Option<Box<str>>,
    /// User name as the policy shows it.
    pub username: Option<Box<str>>,
    /// Keep alive in seconds.
    pub keep_alive: Option<u16>,
    /// Clean start, or clean session.
    pub clean_start: Option<bool>,
    /// Session Expiry Interval in seconds.
    pub session_expiry: Option<u32>,
    /// Whether the client's address was hashed for want of a hash key.
    pub hashed_by_address: Option<bool>,
    /// The broker's address, or the last one that was tried in vain.
    pub node_addr: Option<SocketAddr>,
    /// Addresses that were tried, the last one included.
    pub tries: Option<u32>,
    /// From accept to the end of the TLS handshake, in microseconds.
    pub handshake_us: Option<u64>,
    /// From accept, or from the end of the TLS handshake, to the whole CONNECT, in microseconds.
    pub connect_us: Option<u64>,
    /// From the first dial to the broker's answer, in microseconds.
    pub dial_us: Option<u64>,
    /// From then to the broker's first byte, in microseconds.
    pub first_byte_us: Option<u64>,
    /// The code of the broker's CONNACK.
    pub connack: Option<u8>,
    /// Why the client was refused.
    #[serde(skip)]
    pub refusal: Option<&'static str>,
}

/// What the lines show of TLS. Values have nginx's form.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsDetails {
    /// `ssl_server_name`.
    pub server_name: Option<Box<str>>,
    /// `ssl_protocol`; `None` where TLS is passed through, and so for all that follows.
    pub protocol: Option<Box<str>>,
    /// `ssl_cipher`.
    pub cipher: Option<Box<str>>,
    /// `ssl_session_reused`.
    pub reused: bool,
    /// `ssl_client_serial`; `None` without a client certificate, and so for all that follows.
    pub serial: Option<Box<str>>,
    /// `ssl_client_fingerprint`.
    pub fingerprint: Option<Box<str>>,
    /// `ssl_client_s_dn`, as the policy shows it.
    pub subject: Option<Box<str>>,
    /// `ssl_client_cn`, as the policy shows it.
    pub common_name: Option<Box<str>>,
}

impl TlsDetails {
    /// What is shown of a connection; `shown` is the policy for what names a client.
    pub fn of(tls: &TlsVariables, shown: impl Fn(&[u8]) -> Option<Box<str>>) -> Box<Self> {
        let name = |name: &str| tls.get(name).and_then(|value| shown(value.as_bytes()));
        let text = |name: &str| {
            tls.get(name)
                .map(|value| printable(value.as_bytes()).into())
        };
        Box::new(TlsDetails {
            server_name: text("ssl_server_name"),
            protocol: text("ssl_protocol"),
            cipher: text("ssl_cipher"),
            reused: tls.reused,
            serial: text("ssl_client_serial"),
            fingerprint: text("ssl_client_fingerprint"),
            subject: name("ssl_client_s_dn"),
            common_name: name("ssl_client_cn"),
        })
    }

    /// Of a client that asked for a name and was refused.
    pub fn named(name: &str) -> Box<Self> {
        Box::new(TlsDetails {
            server_name: Some(printable(name.as_bytes()).into()),
            ..TlsDetails::default()
        })
    }

    /// The value of a variable of nginx.
    pub fn get(&self, name: &str) -> Option<&str> {
        let ended_here = self.protocol.is_some();
        match name {
            "ssl_server_name" => self.server_name.as_deref(),
            "ssl_protocol" => self.protocol.as_deref(),
            "ssl_cipher" => self.cipher.as_deref(),
            "ssl_session_reused" if ended_here => Some(if self.reused { "r" } else { "." }),
            "ssl_client_serial" => self.serial.as_deref(),
            "ssl_client_fingerprint" => self.fingerprint.as_deref(),
            "ssl_client_s_dn" => self.subject.as_deref(),
            "ssl_client_cn" => self.common_name.as_deref(),
            // One that does not verify ends in the handshake.
            "ssl_client_verify" if ended_here => match self.serial {
                Some(_) => Some("SUCCESS"),
                None => Some("NONE"),
            },
            _ => None,
        }
    }
}
