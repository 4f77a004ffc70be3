//! The way of a connection with the runtime: read CONNECT, find the route, connect to a broker, with
//! all the waiting that this may take.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::app::{ProxyApp, local_address};
use super::handshake::Opened;
use super::outcome::{End, Phase, Record};
use super::preread::{Preread, PrereadError, read_connect};
use super::refusal::{Refusal, tell_and_close};
use super::relay;
use super::relay::first_answer::{AwaitedConnack, idle_from_keep_alive};
use super::relay::pair::{Mqtt, Pair};
use super::relay::{Established, IdleTimeout};
use crate::config::resource::upstream as config;
use crate::config::settings::{ConnectMode, RefusalMode};
use crate::mqtt::{Mode, connack_code};
use crate::route::Request;
use crate::table::Route;
use crate::telemetry::metrics::Origin;
use crate::tls::identity::TlsVariables;
use crate::tls::link::Link;
use crate::upstream::Upstream;
use crate::upstream::connect::{ConnectError, Connected, FirstTry, connect};
use crate::upstream::hash_key::{Key, Source};
use crate::upstream::variables::{MqttVariables, Variables};

/// Silence that ends a connection without MQTT whose upstream sets no timeout (nginx's and so
/// APISIX's `proxy_timeout`).
const PLAIN_IDLE: Duration = Duration::from_secs(600);
/// Silence that ends an MQTT connection whose broker has ended its side already.
const MQTT_IDLE_AFTER_BROKER_END: Duration = Duration::from_secs(60);

impl ProxyApp {
    /// Serves a connection on which the client's own bytes can be read.
    pub(super) async fn serve_opened(&self, socket: TcpStream, opened: Opened, mut record: Record) {
        let Opened {
            session,
            received,
            tls,
            since,
        } = opened;
        let mut link = Link::new(socket, session);
        let mut preread = Preread {
            received,
            mqtt: None,
        };
        let tls = tls.as_deref();
        let admitted = self.admit(&mut link, tls, &mut record, &mut preread, since);
        match admitted.await {
            Ok(key) => {
                let sni = tls.and_then(|tls| tls.server_name.as_deref());
                self.connect_and_relay(link, record, preread, &key, sni, None)
                    .await;
            }
            Err(error) => self.end_early(link, record, preread, error).await,
        }
    }

    /// Goes on with the other nodes for a connection whose first one does not answer.
    pub(super) async fn dial_again(
        &self,
        client: relay::engine::End,
        record: Record,
        preread: Preread,
        key: Key,
        first: FirstTry,
    ) {
        match TcpStream::from_std(client.socket.into()) {
            Ok(socket) => {
                let link = Link::new(socket, client.tls);
                self.connect_and_relay(link, record, preread, &key, None, Some(first))
                    .await;
            }
            Err(error) => log::error!("a connection is cut: {error}"),
        }
    }

    async fn end_early(
        &self,
        client: Link,
        mut record: Record,
        preread: Preread,
        error: PrereadError,
    ) {
        let refusal = match error {
            PrereadError::ClientLeft => {
                record.end = End::ClientLeftEarly;
                return;
            }
            PrereadError::Refused(refusal) => refusal,
        };
        record.refused(&refusal);
        self.report(&refusal, &record);
        let level = preread.mqtt.map(|mqtt| mqtt.level);
        let answer = match self.policy.refusal {
            RefusalMode::Connack => refusal.connack(level),
            RefusalMode::Close => None,
        };
        if let Some(answer) = answer {
            if let Some(code) = connack_code(answer.as_slice()) {
                self.metrics.connack(Origin::Proxy, code);
            }
            tell_and_close(client, answer.as_slice()).await;
        }
    }

    /// How strictly CONNECT is judged.
    pub(super) fn mode(&self) -> Mode {
        match self.policy.connect {
            ConnectMode::Strict => Mode::Strict,
            ConnectMode::Tolerant => Mode::Tolerant,
        }
    }

    /// From an open connection to a hash key.
    async fn admit(
        &self,
        client: &mut Link,
        tls: Option<&TlsVariables>,
        record: &mut Record,
        preread: &mut Preread,
        since: Instant,
    ) -> Result<Key, PrereadError> {
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
        if let Some(plugin) = &route.mqtt_proxy {
            record.phase = Phase::Connect;
            let received = std::mem::take(&mut preread.received);
            let limits = &self.policy.limits;
            let read = read_connect(client, received, plugin, self.mode(), limits, since).await;
            *preread = read.inspect_err(|_| route.count_connection())?;
        }
        let upstream = route.upstream.as_ref();
        let upstream = upstream.map_err(|error| {
            route.count_connection();
            refuse(error.clone().into())
        })?;
        let key = upstream.key(&variables(&route, record.client, server, tls, preread));
        self.admitted_by_route(record, server, preread, &key, since);
        Ok(key)
    }

    /// Counts and notes what is known once the route and the hash key are.
    pub(super) fn admitted_by_route(
        &self,
        record: &mut Record,
        server: SocketAddr,
        preread: &Preread,
        key: &Key,
        since: Instant,
    ) {
        let by_address = key.source == Source::AddressFallback;
        if let Some(route) = &record.route {
            route.count_connection();
            if by_address {
                route.count_missing_key();
            }
        }
        let upstream = record.upstream();
        if upstream.is_some_and(|upstream| upstream.config().rebalance.is_some()) {
            record.key = Some(key.bytes.as_slice().into());
        }
        if let Some(access) = &mut record.access {
            access.details.server = Some(server);
            access.details.hashed_by_address = Some(by_address);
        }
        if let Some(mqtt) = &preread.mqtt {
            record.connect_read(mqtt, since.elapsed());
        }
    }

    /// Connects to a broker, sends what was read and hands the pair to the relay.
    async fn connect_and_relay(
        &self,
        client: Link,
        mut record: Record,
        preread: Preread,
        key: &Key,
        sni: Option<&str>,
        first: Option<FirstTry>,
    ) {
        record.phase = Phase::Dial;
        record.broker = None;
        let dialled = first.as_ref().map(|first| first.started);
        let dialled = dialled.unwrap_or_else(std::time::Instant::now);
        let route = record.route.clone();
        let upstream = route
            .as_ref()
            .and_then(|route| route.upstream.as_ref().ok());
        let Some(upstream) = upstream else {
            // `admit` has refused it before.
            return;
        };
        let broker = tokio::select! {
            broker = self.connect(upstream, &key.bytes, sni, first) => {
                broker.map_err(|error| PrereadError::Refused(error.into()))
            }
            // A client that resets while its broker is being dialled wants nothing any more.
            _ = client.socket().ready(Interest::ERROR) => Err(PrereadError::ClientLeft),
        };
        let Connected {
            stream: mut broker,
            address,
            in_flight,
            tries,
        } = match broker {
            Ok(connected) => connected,
            Err(error) => return self.end_early(client, record, preread, error).await,
        };
        record.broker = Some(in_flight);
        record.connected(address, tries, dialled.elapsed());
        let Preread {
            received: mut to_broker,
            mqtt,
        } = preread;
        let written = write_now(&mut broker, &to_broker).await;
        record.to_broker += written as u64;
        let owed = to_broker.split_off(written);
        let pair = self.pair(mqtt.as_ref(), &to_broker, owed, record);
        self.relays.hand_over(Established {
            client,
            broker,
            pair,
        });
    }

    async fn connect(
        &self,
        upstream: &Upstream,
        key: &[u8],
        sni: Option<&str>,
        first: Option<FirstTry>,
    ) -> Result<Connected, ConnectError> {
        connect(upstream, key, sni, first, |target, error| {
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

    /// A pair whose broker has got some bytes and is owed others, CONNECT first, and what silence
    /// means to it.
    pub(super) fn pair(
        &self,
        mqtt: Option<&MqttVariables>,
        written: &[u8],
        to_broker: Vec<u8>,
        record: Record,
    ) -> Pair {
        let timeout = record
            .upstream()
            .and_then(|upstream| upstream.config().timeout);
        let policy = self.policy.idle;
        let open = match (timeout, mqtt) {
            (Some(config::Timeouts { send, read, .. }), _) => Some(send.max(read)),
            (None, None) => Some(PLAIN_IDLE),
            (None, Some(mqtt)) => idle_from_keep_alive(policy, mqtt.keep_alive),
        };
        let idle = IdleTimeout {
            open,
            after_broker_end: mqtt.map(|_| MQTT_IDLE_AFTER_BROKER_END),
        };
        let spoken = mqtt.map(|mqtt| Mqtt::begun(mqtt.level, written));
        let mut pair = Pair::new(to_broker, Vec::new(), idle, record).speaking(spoken);
        if let (None, Some(mqtt)) = (timeout, mqtt)
            && mqtt.level == 5
        {
            pair.await_connack(AwaitedConnack {
                level: mqtt.level,
                keep_alive: mqtt.keep_alive,
                policy,
            });
        }
        pair
    }
}

/// What a hash key may name.
pub(super) fn variables<'a>(
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
