//! The one record of a connection, written exactly once however it ends.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openssl::sha::Sha256;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::Live;
use super::handshake::Opened;
use super::listener::Listener;
use super::refusal::Refusal;
use crate::table::Route;
use crate::telemetry::access_log::{AccessLog, Details, Ending, Line, TlsDetails};
use crate::telemetry::metrics::{Metrics, Origin, Traffic};
use crate::tls::accept::{Failed, TlsError};
use crate::upstream::Upstream;
use crate::upstream::node::InFlight;
use crate::upstream::variables::MqttVariables;

pub use super::end::{End, Phase};

/// What the access log needs besides the record; only there while there is an access log.
#[derive(Debug)]
pub struct Access {
    /// What its lines show.
    pub details: Details,
    log: Arc<AccessLog>,
}

impl Access {
    /// For a connection that has just been accepted.
    pub fn new(log: &Arc<AccessLog>) -> Box<Self> {
        let id = log.next_id();
        Access::of(
            log,
            Details {
                id,
                ..Details::default()
            },
        )
    }

    /// For a connection about which this is known.
    pub fn of(log: &Arc<AccessLog>, details: Details) -> Box<Self> {
        Box::new(Access {
            details,
            log: log.clone(),
        })
    }

    fn note_connect(&mut self, mqtt: &MqttVariables, after: Duration) {
        let details = &mut self.details;
        details.level = Some(mqtt.level);
        details.client_id = self.log.shown(&mqtt.client_id);
        details.username = mqtt.username.as_ref().and_then(|name| self.log.shown(name));
        details.keep_alive = Some(mqtt.keep_alive);
        details.clean_start = Some(mqtt.clean_start);
        details.session_expiry = mqtt.session_expiry;
        details.connect_us = Some(micros(after));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a connection keeps of its client id, so that it can be found by it: the first 64 bits of the
/// SHA-256, which are the digits that the access log shows with `client_id: hash`. Half a million
/// live ids have one chance in a hundred million that two of them share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientIdHash(NonZeroU64);

impl ClientIdHash {
    /// The key of a client id; none for an empty one, which names nobody.
    pub fn of(client_id: &[u8]) -> Option<Self> {
        if client_id.is_empty() {
            return None;
        }
        // The one-shot function looks its algorithm up and allocates, each time.
        let mut hash = Sha256::new();
        hash.update(client_id);
        let digest = hash.finish();
        let (first, _) = digest.split_first_chunk()?;
        NonZeroU64::new(u64::from_be_bytes(*first)).map(ClientIdHash)
    }

    /// The key that the access log shows as 16 hexadecimal digits.
    pub fn from_digits(digits: &str) -> Option<Self> {
        let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let key = plain.then(|| u64::from_str_radix(digits, 16).ok())??;
        NonZeroU64::new(key).map(ClientIdHash)
    }
}

/// What is known about one connection. All counters and the log line of its end come from here,
/// when it is dropped.
#[derive(Debug)]
pub struct Record {
    /// The client's address.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// The route that took it.
    pub route: Option<Arc<Route>>,
    /// Its client id, as far as it is kept.
    pub client_id_hash: Option<ClientIdHash>,
    /// Its broker.
    pub broker: Option<InFlight>,
    /// Bytes that reached the broker.
    pub to_broker: u64,
    /// Bytes that reached the client.
    pub to_client: u64,
    /// What ended it.
    pub end: End,
    /// How far it has come.
    pub phase: Phase,
    /// Its hash key, kept where its upstream has `rebalance`.
    pub key: Option<Box<[u8]>>,
    /// MQTT protocol level as sent, once CONNECT was read.
    pub level: Option<u8>,
    /// Microseconds from accept until the broker could be sent CONNECT; 71 minutes at most.
    pub sent_us: u32,
    /// What the access log needs, if there is one.
    pub access: Option<Box<Access>>,
    started: Instant,
    metrics: Arc<Metrics>,
    _permit: Option<OwnedSemaphorePermit>,
    _live: Live,
}

impl Record {
    /// Opens the record of a connection that has just been accepted.
    pub fn open(
        client: SocketAddr,
        listener: Arc<Listener>,
        metrics: Arc<Metrics>,
        permit: Option<OwnedSemaphorePermit>,
        live: Live,
    ) -> Self {
        listener.counts.accepted();
        Record::take_over(client, listener, metrics, permit, live)
    }

    /// Opens the record of a connection that another process has accepted. Only such a one may be
    /// without a place among those that the process may hold.
    pub fn take_over(
        client: SocketAddr,
        listener: Arc<Listener>,
        metrics: Arc<Metrics>,
        permit: Option<OwnedSemaphorePermit>,
        live: Live,
    ) -> Self {
        listener.counts.opened();
        let phase = match listener.tls {
            Some(_) => Phase::Handshake,
            None => Phase::Accept,
        };
        Record {
            client,
            listener,
            route: None,
            client_id_hash: None,
            broker: None,
            to_broker: 0,
            to_client: 0,
            end: End::Aborted,
            phase,
            key: None,
            level: None,
            sent_us: 0,
            access: None,
            started: Instant::now(),
            metrics,
            _permit: permit,
            _live: live,
        }
    }

    /// The upstream that its route leads to.
    pub fn upstream(&self) -> Option<&Arc<Upstream>> {
        let route = self.route.as_ref()?;
        route.upstream.as_ref().ok()
    }

    /// Notes the broker that answered, at its `tries`th address and after this time, and that the
    /// connection is relayed from now on.
    pub fn connected(&mut self, address: SocketAddr, tries: usize, took: Duration) {
        self.phase = Phase::Relay;
        if let Some(access) = &mut self.access {
            let details = &mut access.details;
            details.node_addr = Some(address);
            details.tries = u32::try_from(tries).ok();
            details.dial_us = Some(micros(took));
        }
        self.admitted();
    }

    /// How long the connection has lived.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes what came of the beginning of a connection of a listener with TLS.
    pub fn begun(&mut self, opened: Result<&Opened, &Failed>) {
        let took = self.age();
        let (result, took) = match opened {
            Ok(opened) => {
                self.phase = Phase::Accept;
                let reused = opened.tls.as_ref().is_some_and(|tls| tls.reused);
                match (&opened.session, reused) {
                    (None, _) => ("passed_through", None),
                    (Some(_), false) => ("ok", Some(took)),
                    (Some(_), true) => ("resumed", Some(took)),
                }
            }
            Err(Failed::ClientLeft) => ("client_left", None),
            Err(Failed::Refused(error)) => (error.reason(), None),
        };
        self.metrics.handshake(result, took);
        let Some(access) = &mut self.access else {
            return;
        };
        access.details.handshake_us = took.map(micros);
        let shown = |bytes: &[u8]| access.log.shown(bytes);
        access.details.tls = match opened {
            Ok(opened) => opened.tls.as_ref().map(|tls| TlsDetails::of(tls, shown)),
            Err(Failed::Refused(TlsError::UnknownName(name))) => Some(TlsDetails::named(name)),
            Err(_) => None,
        };
    }

    /// CONNECT was read whole, so long after the client could begin to send it.
    pub fn connect_read(&mut self, mqtt: &MqttVariables, took: Duration) {
        self.level = Some(mqtt.level);
        self.client_id_hash = ClientIdHash::of(&mqtt.client_id);
        self.metrics.connect_read(took);
        if let Some(access) = &mut self.access {
            access.note_connect(mqtt, took);
        }
    }

    /// When the connection was accepted, here or in the process before this one.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// A broker has answered and the connection is let through: writes the line of its admission,
    /// if there is an access log.
    fn admitted(&mut self) {
        self.sent_us = u32::try_from(micros(self.age())).unwrap_or(u32::MAX);
        self.write(None);
    }

    /// The broker has sent its first bytes, a CONNACK with this code among them perhaps.
    pub fn answered(&mut self, connack: Option<u8>) {
        let sent = Duration::from_micros(self.sent_us.into());
        let after = self.age().saturating_sub(sent);
        let connack = connack.filter(|_| self.level.is_some());
        if let Some(code) = connack {
            self.metrics.connack(Origin::Broker, code);
            self.metrics.connack_after(after);
        }
        if let Some(access) = &mut self.access {
            access.details.connack = connack;
            access.details.first_byte_us = Some(micros(after));
        }
    }

    /// Bytes were relayed.
    pub fn relayed(&self, traffic: Traffic) {
        self.listener.counts.relayed(traffic);
    }

    /// The connection is not let through.
    pub fn refused(&mut self, refusal: &Refusal) {
        let reason = refusal.reason();
        self.end = End::Refused;
        self.metrics.refused(reason);
        let (tries, address) = refusal.tried().unzip();
        if let Some(access) = &mut self.access {
            access.details.refusal = Some(reason);
            access.details.node_addr = address;
            access.details.tries = tries.and_then(|tries| u32::try_from(tries).ok());
        }
        if let Some(route) = &self.route {
            let node = address.and_then(|address| route.upstream.as_ref().ok()?.node_at(address));
            let code = self.end.apisix_code(Some(reason));
            self.listener.counts.session(code, node.unwrap_or_default());
        }
    }

    fn write(&self, ending: Option<Ending>) {
        let Some(access) = &self.access else {
            return;
        };
        let route = self.route.as_deref();
        let upstream = route.and_then(|route| route.upstream.as_ref().ok());
        access.log.write(&Line {
            client: self.client,
            listener: self.listener.address,
            route: route.map(|route| route.id.as_str()),
            route_name: route.and_then(|route| route.name.as_deref()),
            service: route.and_then(|route| route.service_id.as_deref()),
            service_name: route.and_then(|route| route.service_name.as_deref()),
            upstream: upstream.map(|upstream| upstream.label()),
            node: self.broker.as_ref().map(|broker| broker.node().label()),
            details: &access.details,
            ending,
        });
    }

    /// The end in the access log's words: who, how far, why.
    fn ending(&self, access: &Access) -> Ending {
        let refusal = access.details.refusal;
        Ending {
            side: self.end.side(refusal),
            phase: self.phase.label(),
            reason: match self.end {
                End::Refused => refusal.unwrap_or(self.end.reason()),
                end => end.reason(),
            },
            status: self.end.status(refusal),
            duration: self.age(),
            to_broker: self.to_broker,
            to_client: self.to_client,
        }
    }

    /// Makes the connection as old as it is: it lived in another process before.
    pub fn set_age(&mut self, age: Duration) {
        let now = Instant::now();
        self.started = now.checked_sub(age).unwrap_or(now);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.listener.counts.closed();
        if self.end == End::HandedOver {
            // It has not ended: the process that relays it now counts and logs it.
            return;
        }
        let reason = self.end.reason();
        self.metrics.ended(reason);
        // That of a refused one was counted when it was refused.
        if self.route.is_some() && self.end != End::Refused {
            let node = self.broker.as_ref().map(|broker| broker.node().label());
            let code = self.end.apisix_code(None);
            self.listener.counts.session(code, node.unwrap_or_default());
        }
        if let Some(access) = &self.access {
            self.write(Some(self.ending(access)));
        }
        log::debug!(
            target: "mqtt_proxy::access",
            "client={} listener={} route={} node={} duration={:.3} to_broker={} to_client={} end={reason}",
            self.client,
            self.listener.address,
            self.route.as_ref().map_or("-", |route| &route.id),
            self.broker.as_ref().map_or("-", |broker| broker.node().label()),
            self.started.elapsed().as_secs_f64(),
            self.to_broker,
            self.to_client,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_hash_is_what_the_access_log_shows() {
        let key = ClientIdHash::of(b"dev-42").unwrap();
        let digest = openssl::sha::sha256(b"dev-42");
        let digits: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(ClientIdHash::from_digits(&digits), Some(key));
        assert_eq!(ClientIdHash::from_digits(&digits.to_uppercase()), Some(key));
        assert_ne!(ClientIdHash::of(b"dev-43"), Some(key));
        assert_eq!(ClientIdHash::of(b""), None);
        for wrong in [
            "",
            "+123456789abcdef",
            "0000000000000000",
            "12345",
            "zzzzzzzzzzzzzzzz",
        ] {
            assert_eq!(ClientIdHash::from_digits(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_client_id_hash_costs_one_word() {
        assert_eq!(size_of::<Option<ClientIdHash>>(), 8);
    }
}
