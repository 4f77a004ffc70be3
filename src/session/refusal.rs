//! A client that is not let through: why, and how it is told.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::mqtt::{self, DecodeError, Packet};
use crate::table::NoUpstream;
use crate::tls::accept::TlsError;
use crate::upstream::connect::ConnectError;

/// How long a refused client may take to end its side, and how much it may still send, before the
/// socket is closed over its head. Closing with unread bytes makes the kernel send a reset, which
/// destroys a CONNACK that the client has not read yet.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 256 * 1024;

/// Why a connection goes no further. Each has one label and, where MQTT has one, one code.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No stream route takes the connection.
    #[error("not hit any route")]
    NoRoute,
    /// Not one byte came in time.
    #[error("no byte of CONNECT within {0:?}")]
    FirstByteTimeout(Duration),
    /// CONNECT was not complete in time.
    #[error("CONNECT not complete within {0:?}")]
    ConnectTimeout(Duration),
    /// The TLS connection did not come about.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What came is no CONNECT that the route accepts.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The route leads nowhere.
    #[error(transparent)]
    NoUpstream(#[from] NoUpstream),
    /// No broker could be reached.
    #[error(transparent)]
    Unreachable(#[from] ConnectError),
}

impl Refusal {
    /// Every label there is.
    pub const REASONS: [&str; 18] = [
        "no_route",
        "first_byte_timeout",
        "connect_timeout",
        "tls_client_hello",
        "tls_no_name",
        "tls_unknown_name",
        "tls_timeout",
        "tls_client_certificate",
        "tls_handshake",
        "not_mqtt",
        "unsupported_version",
        "malformed",
        "protocol_error",
        "too_large",
        "no_upstream",
        "no_node",
        "connect_failed",
        "retry_timeout",
    ];

    /// How many addresses were dialled in vain, and the last one.
    pub fn tried(&self) -> Option<(usize, SocketAddr)> {
        match self {
            Refusal::Unreachable(
                ConnectError::AllFailed { tries, address, .. }
                | ConnectError::RetryTimeout { tries, address, .. },
            ) => Some((*tries, *address)),
            _ => None,
        }
    }

    /// The label in logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NoRoute => "no_route",
            Refusal::FirstByteTimeout(_) => "first_byte_timeout",
            Refusal::ConnectTimeout(_) => "connect_timeout",
            Refusal::Tls(error) => error.reason(),
            Refusal::Decode(error) => error.reason(),
            Refusal::NoUpstream(_) => "no_upstream",
            Refusal::Unreachable(error) => error.reason(),
        }
    }

    /// The CONNACK for it. `level` is that of the client's CONNECT where one was read whole; a
    /// CONNECT that was refused knows its own. `None` closes without an answer.
    pub fn connack(&self, level: Option<u8>) -> Option<Packet> {
        let (refusal, level) = match self {
            Refusal::NoRoute
            | Refusal::FirstByteTimeout(_)
            | Refusal::ConnectTimeout(_)
            | Refusal::Tls(_) => None,
            Refusal::Decode(error) => error.refusal().zip(error.level()),
            Refusal::NoUpstream(_) | Refusal::Unreachable(_) => {
                Some(mqtt::Refusal::ServerUnavailable).zip(level)
            }
        }?;
        mqtt::connack(level, refusal)
    }
}

/// Tells the client and closes so that it can read what it was told: the answer, the end of the
/// stream, then a bounded wait for the client's own end.
pub async fn tell_and_close<C>(mut client: C, answer: &[u8])
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        client.write_all(answer).await?;
        client.shutdown().await?;
        let mut scratch = [0_u8; 1024];
        let mut read = 0;
        while read < LINGER_BYTES {
            match client.read(&mut scratch).await? {
                0 => break,
                count => read += count,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Whatever happens here, the client is gone or about to be.
    let _ = tokio::time::timeout(LINGER, told).await;
}
