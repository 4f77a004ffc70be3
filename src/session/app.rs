//! The connection path, as Pingora's `ServerApp`.
//!
//! A relay thread waits for what a client sends first, TLS and CONNECT ([`beginning`](super::beginning)).
//! Most connections then need nothing but what can be done at once ([`at_once`](super::at_once)). The
//! others, and what is left of one that got stuck, take the same way with the runtime
//! ([`admit`](super::admit)).

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::beginning::Beginning;
use super::client_stream::ClientStream;
use super::handshake::{Handshake, Opened, TlsPolicy};
use super::outcome::{Access, Record};
use super::refusal::Refusal;
use super::relay::Relays;
use crate::config::settings::{ConnectMode, Idle, Limits, RefusalMode};
use crate::table::CurrentTable;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::throttle::Throttle;

/// What the connection path does with every connection, read once at start.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How strictly CONNECT is judged.
    pub connect: ConnectMode,
    /// Whether a refused MQTT client is told why.
    pub refusal: RefusalMode,
    /// Deadlines and sizes before the relay.
    pub limits: Limits,
    /// Idle timeout from the keep alive.
    pub idle: Idle,
    /// The beginning of TLS connections.
    pub tls: TlsPolicy,
}

/// Serves client connections from the current table.
pub struct ProxyApp {
    /// Where routes and upstreams come from; each connection takes the one that is current when
    /// it is accepted.
    pub table: Arc<CurrentTable>,
    /// Settings of the connection path.
    pub policy: Policy,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Where established pairs go.
    pub relays: Arc<Relays>,
    /// Where every connection is logged.
    pub access_log: Option<Arc<AccessLog>>,
    /// Keeps refusals from flooding the log.
    pub throttle: Throttle,
}

/// A connection that could not be served at once.
pub(super) struct Unfinished {
    /// Its socket.
    pub socket: OwnedFd,
    /// How far it has come.
    pub opened: Opened,
    /// Its record.
    pub record: Record,
}

#[async_trait]
impl ServerApp for ProxyApp {
    async fn process_new(
        self: &Arc<Self>,
        session: Stream,
        _shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let accepted = session.into_any().downcast::<ClientStream>().ok();
        let Some(accepted) = accepted else {
            log::error!("a connection did not come from this program's own listener");
            return None;
        };
        if let Some(unfinished) = self.begin(*accepted) {
            // Boxed: the many that end before this need no room for it.
            Box::pin(self.serve(unfinished)).await;
        }
        None
    }
}

impl ProxyApp {
    /// Opens the record, and serves the connection at once if that can be done.
    fn begin(self: &Arc<Self>, accepted: ClientStream) -> Option<Unfinished> {
        let ClientStream {
            socket,
            client,
            listener,
            permit,
            live,
            handshake,
        } = accepted;
        let metrics = self.metrics.clone();
        let mut record = Record::open(client, listener, metrics, Some(permit), live);
        let since = Instant::from_std(record.started());
        record.access = self.access_log.as_ref().map(Access::new);
        let socket = match socket.into_bare() {
            Ok(socket) => socket,
            Err(error) => {
                log::error!("a connection is cut: {error}");
                return None;
            }
        };
        let Some(tls) = &record.listener.tls else {
            return self.serve_at_once(socket, Opened::plain(since), record);
        };
        let until = since + self.policy.tls.handshake_timeout;
        let handshake = Handshake::new(tls.mode, until, handshake);
        Beginning::with_tls(self, record, handshake).wait(socket);
        None
    }

    /// Serves a connection with the runtime.
    pub(super) async fn serve(self: &Arc<Self>, unfinished: Unfinished) {
        let Unfinished {
            socket,
            opened,
            record,
        } = unfinished;
        match TcpStream::from_std(socket.into()) {
            Ok(socket) => self.serve_opened(socket, opened, record).await,
            Err(error) => log::error!("a connection is cut: {error}"),
        }
    }

    /// Logs a refusal.
    pub(super) fn report(&self, refusal: &Refusal, record: &Record) {
        let reason = refusal.reason();
        if let Some(more) = self.throttle.admit(reason) {
            log::warn!(
                "refused client {} on {}: {reason}: {refusal}{more}",
                record.client,
                record.listener.address
            );
        }
    }
}

/// The address on which the connection arrived; the kernel is asked only where the listener's
/// own address does not say.
pub(super) fn local_address(socket: &impl AsFd, record: &Record) -> std::io::Result<SocketAddr> {
    let listening = record.listener.address;
    match listening.ip().is_unspecified() {
        true => Ok(rustix::net::getsockname(socket)?.try_into()?),
        false => Ok(listening),
    }
}
