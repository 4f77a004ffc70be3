//! What clients, brokers and the one who changes the files share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslSession};
use tokio::sync::watch;

use super::plan::{End, Plan, Side};
use super::talk::Fault;
use crate::tls::Connector;

/// How long a change of the file may take until no new connection follows the old one.
const SETTLED: Duration = Duration::from_secs(5);
/// Faults that are printed.
const PRINTED: u64 = 20;

/// What clients and brokers share.
pub struct Soak {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub full: Mutex<Connector>,
    pub resuming: Mutex<Connector>,
    pub stop: watch::Sender<bool>,
    /// The brokers that are in use, and since when.
    pub brokers: Mutex<(Instant, u8)>,
    pub counts: Counts,
    /// How long whoever has ended a connection waits before the next one: keeps the load low.
    pub delay: AtomicU64,
    pub at_brokers: AtomicU64,
    pub faults: AtomicU64,
    pub over: AtomicBool,
}

/// What has happened.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub resets: AtomicU64,
    pub halves: AtomicU64,
    pub tls: AtomicU64,
    pub resumed: AtomicU64,
    pub reloads: AtomicU64,
    pub bytes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Soak {
    pub fn target(&self, tls: bool) -> SocketAddr {
        if tls { self.tls } else { self.plain }
    }

    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub fn ssl(&self, resume: bool) -> Result<Ssl, Fault> {
        let connector = if resume { &self.resuming } else { &self.full };
        let ssl: Result<Ssl, ErrorStack> = lock(connector).ssl();
        ssl.map_err(|error| Fault::Other(error.to_string()))
    }

    pub fn shaken(&self, resumed: bool) {
        self.counts.tls.fetch_add(1, Ordering::Relaxed);
        let resumed = u64::from(resumed);
        self.counts.resumed.fetch_add(resumed, Ordering::Relaxed);
    }

    pub fn keep_session(&self, session: SslSession, most: usize) {
        let mut connector = lock(&self.resuming);
        // A connection that is cut spoils the session that it had resumed, so new ones take the
        // place of old ones.
        match connector.sessions.len() {
            count if count < most => connector.sessions.push(session),
            _ => {
                let turn = self.counts.tls.load(Ordering::Relaxed) as usize % most;
                connector.sessions[turn] = session;
            }
        }
    }

    pub fn opened(&self) {
        self.at_brokers.fetch_add(1, Ordering::Relaxed);
    }

    pub fn closed(&self) {
        self.at_brokers.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn reloaded(&self, brokers: u8) {
        self.counts.reloads.fetch_add(1, Ordering::Relaxed);
        let mut known = lock(&self.brokers);
        if known.1 != brokers {
            *known = (Instant::now(), brokers);
        }
    }

    /// A CONNECT has reached a broker.
    pub fn arrived(&self, broker: usize, plan: &Plan) {
        let (since, brokers) = *lock(&self.brokers);
        if brokers & (1 << broker) == 0 && since.elapsed() > SETTLED {
            self.fault(format!(
                "{}: reached broker {broker}, which is not in the file",
                plan.id()
            ));
        }
    }

    pub fn ended(&self, side: Side, plan: &Plan, received: Result<u64, Fault>) {
        match received {
            Ok(bytes) => {
                self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(fault) => self.fault(format!(
                "{} ({:?}, {}), {side:?}: {fault}",
                plan.id(),
                plan.end,
                if plan.tls { "TLS" } else { "plain" },
            )),
        }
        if side == Side::Client {
            let counts = &self.counts;
            counts.connections.fetch_add(1, Ordering::Relaxed);
            match plan.end {
                End::Reset(..) => counts.resets.fetch_add(1, Ordering::Relaxed),
                End::Half(..) => counts.halves.fetch_add(1, Ordering::Relaxed),
                End::Close(..) | End::Echo => 0,
            };
        }
    }

    pub fn fault(&self, what: String) {
        if self.faults.fetch_add(1, Ordering::Relaxed) < PRINTED {
            println!("soak: FAULT: {what}");
        }
    }

    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}
