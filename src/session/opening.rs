//! The beginning of a connection: TLS, or not, by what its listener says.

use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::listener::TlsMode;
use super::refusal::tell_and_close;
use crate::table::Table;
use crate::tls::accept::{Failed, TlsError, handshake, read_hello};
use crate::tls::client_hello::{ClientHello, HelloError, normal};
use crate::tls::identity::TlsVariables;
use crate::tls::link::Link;

/// What the beginning needs of the settings.
#[derive(Debug, Clone)]
pub struct TlsPolicy {
    /// `apisix.ssl.fallback_sni`, in lower case without a trailing dot.
    pub fallback_sni: Option<String>,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
}

impl TlsPolicy {
    /// The policy of these settings.
    pub fn new(fallback_sni: Option<&str>, handshake_timeout: Duration) -> Self {
        TlsPolicy {
            fallback_sni: fallback_sni.map(normal),
            handshake_timeout,
        }
    }

    /// The name, or `fallback_sni` in place of an address for which there is no certificate. An
    /// address is no server name [RFC 6066 §3], but mosquitto's clients send one all the same.
    fn without_addresses(&self, name: Option<String>, table: &Table) -> Option<String> {
        let is_address = name
            .as_deref()
            .is_some_and(|name| name.parse::<IpAddr>().is_ok());
        match (&self.fallback_sni, &name) {
            (Some(fallback), Some(sent))
                if is_address && table.certificates().find(sent).is_none() =>
            {
                Some(fallback.clone())
            }
            _ => name,
        }
    }
}

/// A connection on which the client's own bytes can be read.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub link: Link,
    /// Bytes of the client that were read already: a ClientHello that is passed through.
    pub received: Vec<u8>,
    /// What TLS says about the client; `None` where it speaks none.
    pub tls: Option<TlsVariables>,
    /// From when the deadlines of what follows count.
    pub since: Instant,
}

impl Opened {
    /// A connection of a listener without TLS.
    pub fn plain(socket: TcpStream, since: Instant) -> Self {
        Opened {
            link: Link::Plain(socket),
            received: Vec::new(),
            tls: None,
            since,
        }
    }

    fn passed(socket: TcpStream, received: Vec<u8>, name: Option<String>) -> Self {
        Opened {
            received,
            tls: name.map(|name| TlsVariables {
                server_name: Some(name),
                ..TlsVariables::default()
            }),
            ..Opened::plain(socket, Instant::now())
        }
    }
}

/// Whether the route that a connection with this server name takes has TLS passed through.
pub type PassesThrough<'a> = &'a (dyn Fn(&Table, &TcpStream, Option<&str>) -> bool + Sync);

/// Begins a connection of a listener with TLS: reads the ClientHello and, unless it is passed
/// through, shakes hands in the context of its name, all within the handshake timeout. A client
/// that is refused has been told by an alert.
///
/// # Errors
/// Why the connection goes no further.
pub async fn open(
    mut socket: TcpStream,
    mode: TlsMode,
    policy: &TlsPolicy,
    table: &Table,
    passes_through: PassesThrough<'_>,
    in_flight: Option<OwnedSemaphorePermit>,
) -> Result<Opened, Failed> {
    let until = Instant::now() + policy.handshake_timeout;
    let late = || Failed::Refused(TlsError::Timeout(policy.handshake_timeout));
    let mut received = Vec::new();
    let hello = timeout_at(until, read_hello(&mut socket, &mut received)).await;
    let hello = match hello.map_err(|_| late())? {
        // Whoever speaks no TLS has no name; nginx's ssl_preread lets him pass as well.
        Err(Failed::Refused(TlsError::Hello(HelloError::NotTls(_))))
            if passes(mode, || passes_through(table, &socket, None)) =>
        {
            return Ok(Opened::passed(socket, received, None));
        }
        Err(failed) => return refuse(socket, failed, in_flight).await,
        Ok(hello) => hello,
    };
    let ClientHello { server_name } = hello;
    let name = server_name.or_else(|| policy.fallback_sni.clone());
    if passes(mode, || passes_through(table, &socket, name.as_deref())) {
        return Ok(Opened::passed(socket, received, name));
    }
    let name = policy.without_addresses(name, table);
    let served = match &name {
        None => Err(TlsError::NoName),
        Some(name) => table
            .certificates()
            .find(name)
            .ok_or_else(|| TlsError::UnknownName(name.clone())),
    };
    let served = match served {
        Ok(served) => served,
        Err(error) => return refuse(socket, Failed::Refused(error), in_flight).await,
    };
    let shaken = timeout_at(until, handshake(socket, received, served.context())).await;
    match shaken.map_err(|_| late())? {
        Ok(stream) => Ok(Opened {
            tls: Some(TlsVariables::of(stream.ssl(), name)),
            link: Link::Tls(stream),
            received: Vec::new(),
            since: Instant::now(),
        }),
        Err((stream, failed)) => {
            drop(in_flight);
            if let (Some(mut stream), Failed::Refused(_)) = (stream, &failed) {
                // OpenSSL has sent its alert; a reset must not overtake it.
                tell_and_close(stream.socket_mut(), &[]).await;
            }
            Err(failed)
        }
    }
}

fn passes(mode: TlsMode, route_says: impl FnOnce() -> bool) -> bool {
    match mode {
        TlsMode::End => false,
        TlsMode::Pass => true,
        TlsMode::RouteDecides => route_says(),
    }
}

async fn refuse(
    socket: TcpStream,
    failed: Failed,
    in_flight: Option<OwnedSemaphorePermit>,
) -> Result<Opened, Failed> {
    // Telling takes no part in the handshakes in flight.
    drop(in_flight);
    if let Failed::Refused(error) = &failed
        && let Some(alert) = error.alert()
    {
        tell_and_close(socket, &alert).await;
    }
    Err(failed)
}
