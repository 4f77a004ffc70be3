//! The connection path, as Pingora's `ServerApp`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::client_stream::ClientStream;
use super::first_answer::first_answer;
use super::listener::TlsMode;
use super::opening::{Opened, TlsPolicy, open};
use super::outcome::{Access, End, Phase, Record};
use super::preread::{Preread, PrereadError, read_connect};
use super::refusal::{Refusal, tell_and_close};
use super::relay::{self, Established, IdleTimeout, Relays};
use crate::config::resource::upstream as config;
use crate::config::settings::{ConnectMode, Idle, Limits, RefusalMode};
use crate::mqtt::Mode;
use crate::route::Request;
use crate::table::{CurrentTable, Route, Table};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::throttle::Throttle;
use crate::tls::accept::Failed;
use crate::tls::identity::TlsVariables;
use crate::tls::link::Link;
use crate::upstream::Upstream;
use crate::upstream::connect::{ConnectError, Connected, connect};
use crate::upstream::hash_key::Source;
use crate::upstream::variables::Variables;

/// Silence that ends a connection without MQTT whose upstream sets no timeout (nginx's and so
/// APISIX's `proxy_timeout`).
const PLAIN_IDLE: Duration = Duration::from_secs(600);
/// Silence that ends an MQTT connection whose broker has ended its side already.
const MQTT_IDLE_AFTER_BROKER_END: Duration = Duration::from_secs(60);

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

#[async_trait]
impl ServerApp for ProxyApp {
    async fn process_new(
        self: &Arc<Self>,
        session: Stream,
        _shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let accepted = session.into_any().downcast::<ClientStream>().ok();
        match accepted {
            Some(accepted) => self.serve(*accepted).await,
            None => log::error!("a connection did not come from this program's own listener"),
        }
        None
    }
}

impl ProxyApp {
    async fn serve(&self, accepted: ClientStream) {
        let ClientStream {
            stream,
            client,
            listener,
            permit,
            live,
            handshake,
        } = accepted;
        let started = Instant::now();
        let metrics = self.metrics.clone();
        let mut record = Record::open(client, listener, metrics, Some(permit), live);
        record.access = self.access_log.as_ref().map(Access::new);
        let opened = match &record.listener.tls {
            None => Ok(Opened::plain(stream, started)),
            // Boxed: the future of a plain connection need not have room for a handshake.
            Some(tls) => Box::pin(self.open(stream, tls.mode, &record, handshake)).await,
        };
        match opened {
            Ok(opened) => self.serve_opened(opened, record).await,
            Err(Failed::ClientLeft) => record.end = End::ClientLeftEarly,
            Err(Failed::Refused(error)) => {
                record.end = End::Refused;
                self.report(&error.into(), &record);
            }
        }
    }

    async fn open(
        &self,
        socket: TcpStream,
        mode: TlsMode,
        record: &Record,
        in_flight: Option<OwnedSemaphorePermit>,
    ) -> Result<Opened, Failed> {
        let passes_through = |table: &Table, socket: &TcpStream, sni: Option<&str>| {
            let request = local_address(socket, record).map(|server| Request {
                client: record.client.ip(),
                server,
                sni,
            });
            let route = request.ok().and_then(|request| table.route(&request));
            route.is_some_and(|route| route.tls_passthrough)
        };
        let table = self.table.load_full();
        let policy = &self.policy.tls;
        open(socket, mode, policy, &table, &passes_through, in_flight).await
    }

    async fn serve_opened(&self, opened: Opened, mut record: Record) {
        let Opened {
            mut link,
            received,
            tls,
            since,
        } = opened;
        let mut preread = Preread {
            received,
            mqtt: None,
        };
        let tls = tls.as_ref();
        match self
            .admit(&mut link, tls, &mut record, &mut preread, since)
            .await
        {
            Ok(broker) => self.relay(link, broker, preread, record).await,
            Err(PrereadError::ClientLeft) => record.end = End::ClientLeftEarly,
            Err(PrereadError::Refused(refusal)) => {
                record.end = End::Refused;
                if let Some(access) = &mut record.access {
                    access.details.refusal = Some(refusal.reason());
                }
                self.report(&refusal, &record);
                let level = preread.mqtt.map(|mqtt| mqtt.level);
                let answer = match self.policy.refusal {
                    RefusalMode::Connack => refusal.connack(level),
                    RefusalMode::Close => None,
                };
                if let Some(answer) = answer {
                    tell_and_close(link, answer.as_slice()).await;
                }
            }
        }
    }

    /// From an open connection to a connected broker.
    async fn admit(
        &self,
        client: &mut Link,
        tls: Option<&TlsVariables>,
        record: &mut Record,
        preread: &mut Preread,
        since: Instant,
    ) -> Result<Link, PrereadError> {
        let refuse = PrereadError::Refused;
        let server =
            local_address(client.socket(), record).map_err(|_| PrereadError::ClientLeft)?;
        if let Some(access) = &mut record.access {
            access.details.server = Some(server);
        }
        let table = self.table.load();
        let route = table
            .route(&Request {
                client: record.client.ip(),
                server,
                sni: tls.and_then(|tls| tls.server_name.as_deref()),
            })
            .ok_or(refuse(Refusal::NoRoute))?
            .clone();
        drop(table);
        record.route = Some(route.clone());
        self.metrics.connection_on_route(&route.id);
        if let Some(plugin) = &route.mqtt_proxy {
            let mode = match self.policy.connect {
                ConnectMode::Strict => Mode::Strict,
                ConnectMode::Tolerant => Mode::Tolerant,
            };
            record.phase = Phase::Connect;
            let received = std::mem::take(&mut preread.received);
            let limits = &self.policy.limits;
            *preread = read_connect(client, received, plugin, mode, limits, since).await?;
            if let Some(access) = &mut record.access
                && let Some(mqtt) = &preread.mqtt
            {
                access.note_connect(mqtt, since.elapsed());
            }
        }
        let upstream = route
            .upstream
            .as_ref()
            .map_err(|error| refuse(error.clone().into()))?;
        let key = upstream.key(&variables(&route, record.client, server, tls, preread));
        if key.source == Source::AddressFallback {
            self.metrics.hash_key_missing(&route.id);
        }
        record.phase = Phase::Dial;
        let dialled = Instant::now();
        let sni = tls.and_then(|tls| tls.server_name.as_deref());
        let broker = tokio::select! {
            broker = self.connect(upstream, &key.bytes, sni) => broker.map_err(|error| refuse(error.into()))?,
            // A client that resets while its broker is being dialled wants nothing any more.
            _ = client.socket().ready(Interest::ERROR) => return Err(PrereadError::ClientLeft),
        };
        record.phase = Phase::Relay;
        if let Some(access) = &mut record.access {
            let details = &mut access.details;
            details.node_addr = Some(broker.address);
            details.tries = u32::try_from(broker.tries).ok();
            details.dial_us = u64::try_from(dialled.elapsed().as_micros()).ok();
            details.hashed_by_address = Some(key.source == Source::AddressFallback);
        }
        record.broker = Some(broker.in_flight);
        record.admitted();
        Ok(broker.stream)
    }

    async fn connect(
        &self,
        upstream: &Upstream,
        key: &[u8],
        sni: Option<&str>,
    ) -> Result<Connected, ConnectError> {
        connect(upstream, key, sni, |target, error| {
            self.metrics.connect_failed(upstream.label());
            if let Some(more) = self.throttle.admit(target.node.label()) {
                log::warn!(
                    "upstream {}: node {} ({}) does not answer: {error}{more}",
                    upstream.label(),
                    target.node.label(),
                    target.address
                );
            }
        })
        .await
    }

    /// Sends what was read and hands the pair to the relay.
    async fn relay(&self, client: Link, mut broker: Link, preread: Preread, mut record: Record) {
        let mut to_broker = preread.received;
        let written = write_now(&mut broker, &to_broker).await;
        record.to_broker += written as u64;
        to_broker.drain(..written);
        // An upstream that came with the route's table and is served until the connection ends.
        let timeout = record
            .route
            .as_ref()
            .and_then(|route| route.upstream.as_ref().ok())
            .and_then(|upstream| upstream.config().timeout);
        let mut to_client = Vec::new();
        let open = match (timeout, &preread.mqtt) {
            (Some(config::Timeouts { send, read, .. }), _) => Some(send.max(read)),
            (None, None) => Some(PLAIN_IDLE),
            (None, Some(mqtt)) if mqtt.level == 5 && to_broker.is_empty() => {
                let answer = first_answer(&client, &mut broker, mqtt.level).await;
                to_client = answer.bytes;
                let promised = self.idle_from_keep_alive(mqtt.keep_alive);
                match answer.connack {
                    Some(connack) => match connack.server_keep_alive {
                        Some(seconds) => self.idle_from_keep_alive(seconds),
                        None => promised,
                    },
                    // The broker may still overrule the keep alive, unseen.
                    None => promised.map(|idle| idle.max(PLAIN_IDLE)),
                }
            }
            (None, Some(mqtt)) => self.idle_from_keep_alive(mqtt.keep_alive),
        };
        let idle = IdleTimeout {
            open,
            after_broker_end: preread.mqtt.map(|_| MQTT_IDLE_AFTER_BROKER_END),
        };
        match (client, broker) {
            (Link::Plain(client), Link::Plain(broker)) => self.relays.hand_over(Established {
                client,
                broker,
                to_broker,
                to_client,
                idle,
                record,
            }),
            (client, broker) => relay::task::spawn(Established {
                client,
                broker,
                to_broker,
                to_client,
                idle,
                record,
            }),
        }
    }

    /// One and a half keep alives [MQTT-3.1.2-24] and a margin, so that the broker, which knows
    /// better, is always first to end a silent connection. Keep alive 0 promises nothing.
    fn idle_from_keep_alive(&self, seconds: u16) -> Option<Duration> {
        let Idle {
            keep_alive_factor,
            keep_alive_margin,
        } = self.policy.idle;
        let promised = Duration::from_secs(seconds.into());
        (seconds > 0).then(|| promised.mul_f64(keep_alive_factor) + keep_alive_margin)
    }

    fn report(&self, refusal: &Refusal, record: &Record) {
        let reason = refusal.reason();
        self.metrics.refused(reason);
        if let Some(more) = self.throttle.admit(reason) {
            log::warn!(
                "refused client {} on {}: {reason}: {refusal}{more}",
                record.client,
                record.listener.address
            );
        }
    }
}

fn variables<'a>(
    route: &'a Route,
    client: SocketAddr,
    server: SocketAddr,
    tls: Option<&'a TlsVariables>,
    preread: &'a Preread,
) -> Variables<'a> {
    Variables {
        client,
        server,
        route_id: &route.id,
        route_name: route.name.as_deref(),
        service_id: route.service_id.as_deref(),
        service_name: route.service_name.as_deref(),
        mqtt: preread.mqtt.as_ref(),
        tls,
    }
}

/// Writes what the broker's side takes without waiting, and says how much that was. An error
/// shows when the relay writes the rest.
async fn write_now(broker: &mut Link, bytes: &[u8]) -> usize {
    let mut written = 0;
    std::future::poll_fn(|context| {
        while written < bytes.len() {
            match Pin::new(&mut *broker).poll_write(context, &bytes[written..]) {
                Poll::Ready(Ok(count @ 1..)) => written += count,
                _ => break,
            }
        }
        Poll::Ready(written)
    })
    .await
}

/// The address on which the connection arrived; the kernel is asked only where the listener's
/// own address does not say.
fn local_address(stream: &TcpStream, record: &Record) -> std::io::Result<SocketAddr> {
    let listening = record.listener.address;
    match listening.ip().is_unspecified() {
        true => stream.local_addr(),
        false => Ok(listening),
    }
}
