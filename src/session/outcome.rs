//! The one record of a connection, written exactly once however it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::Live;
use super::listener::Listener;
use crate::table::Route;
use crate::telemetry::metrics::Metrics;
use crate::upstream::node::InFlight;

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
            End::HandedOver => "handed_over",
            End::Aborted => "aborted",
        }
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
            started: Instant::now(),
            metrics,
            _permit: permit,
            _live: live,
        }
    }

    /// How long the connection has lived.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
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
