//! The one record of a connection, written exactly once however it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::Live;
use super::listener::Listener;
use crate::table::Route;
use crate::telemetry::access_log::{AccessLog, Details, Ending, Line};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;
use crate::upstream::node::InFlight;
use crate::upstream::variables::MqttVariables;

/// Who or what ended a connection, and in which phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The client went away before it could be let through.
    ClientLeftEarly,
    /// It was refused; the reason is counted apart.
    Refused,
    /// The client ended the relayed connection first.
    ClientClosed,
    /// The broker ended it first.
    BrokerClosed,
    /// The client's side broke: reset, or no answer to keepalive probes.
    ClientError,
    /// The broker's side broke.
    BrokerError,
    /// Nothing was sent either way for the idle timeout.
    IdleTimeout,
    /// This process left: the time that it gives connections was over.
    Shutdown,
    /// Another process relays it now (an upgrade).
    HandedOver,
    /// The process ended, or a task died: nobody said why.
    #[serde(other)]
    Aborted,
}

impl End {
    /// The label in logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            End::ClientLeftEarly => "client_left_early",
            End::Refused => "refused",
            End::ClientClosed => "client_closed",
            End::BrokerClosed => "broker_closed",
            End::ClientError => "client_error",
            End::BrokerError => "broker_error",
            End::IdleTimeout => "idle_timeout",
            End::Shutdown => "shutdown",
            End::HandedOver => "handed_over",
            End::Aborted => "aborted",
        }
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing but accepted.
    Accept,
    /// CONNECT is being read.
    Connect,
    /// A broker is being dialled.
    Dial,
    /// Relayed.
    Relay,
}

impl Phase {
    /// The label in the access log.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Accept => "accept",
            Phase::Connect => "connect",
            Phase::Dial => "dial",
            Phase::Relay => "relay",
        }
    }
}

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

    /// Takes what CONNECT said, `after` it was accepted.
    pub fn note_connect(&mut self, mqtt: &MqttVariables, after: Duration) {
        let details = &mut self.details;
        details.level = Some(mqtt.level);
        details.client_id = self.log.shown(&mqtt.client_id);
        details.username = mqtt.username.as_ref().and_then(|name| self.log.shown(name));
        details.keep_alive = Some(mqtt.keep_alive);
        details.clean_start = Some(mqtt.clean_start);
        details.connect_us = u64::try_from(after.as_micros()).ok();
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
    /// What the access log needs, if there is one.
    pub access: Option<Box<Access>>,
    started: Instant,
    metrics: Arc<Metrics>,
    _permit: Option<OwnedSemaphorePermit>,
    _live: Live,
}

impl Record {
    /// Opens the record of a connection that has just been accepted. Only one that was handed
    /// over by another process may be without a place among those that the process may hold.
    pub fn open(
        client: SocketAddr,
        listener: Arc<Listener>,
        metrics: Arc<Metrics>,
        permit: Option<OwnedSemaphorePermit>,
        live: Live,
    ) -> Self {
        listener.active.inc();
        Record {
            client,
            listener,
            route: None,
            broker: None,
            to_broker: 0,
            to_client: 0,
            end: End::Aborted,
            phase: Phase::Accept,
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
            details.dial_us = u64::try_from(took.as_micros()).ok();
        }
        self.admitted();
    }

    /// How long the connection has lived.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes the line of its admission, if there is an access log.
    fn admitted(&self) {
        self.write(None);
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

    /// The end in the access log's words: who, how far, why. This is the one place where they are
    /// derived.
    fn ending(&self, access: &Access) -> Ending {
        let refusal = access.details.refusal;
        // A broker that does not answer is what refuses; all else is this program's decision.
        let unreachable = matches!(refusal, Some("connect_failed" | "retry_timeout"));
        let side = match self.end {
            End::ClientLeftEarly | End::ClientClosed | End::ClientError => "client",
            End::BrokerClosed | End::BrokerError => "broker",
            End::Refused if unreachable => "broker",
            End::Refused | End::IdleTimeout | End::Shutdown | End::HandedOver | End::Aborted => {
                "proxy"
            }
        };
        // As APISIX: 001 is its universal refusal, a preread timeout ends as well as it began.
        let status = match (self.end, refusal) {
            (End::Refused, Some("first_byte_timeout" | "connect_timeout")) => "200",
            (End::Refused, Some("connect_failed" | "retry_timeout" | "no_node")) => "502",
            (End::Refused, Some("too_large")) => "400",
            (End::Refused, _) => "001",
            (End::Aborted, _) => "500",
            _ => "200",
        };
        Ending {
            side,
            phase: self.phase.label(),
            reason: match self.end {
                End::Refused => refusal.unwrap_or(self.end.reason()),
                end => end.reason(),
            },
            status,
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
        self.listener.active.dec();
        let reason = self.end.reason();
        if self.end == End::HandedOver {
            // It has not ended: the process that relays it now counts and logs it.
            return;
        }
        self.metrics.ended(reason, self.to_broker, self.to_client);
        // One that was handed over lives on, and its end is told where it ends.
        if self.end != End::HandedOver
            && let Some(access) = &self.access
        {
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
