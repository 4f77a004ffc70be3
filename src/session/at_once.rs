//! What can be done with a connection at once, on a relay thread: read CONNECT, find the route, pick
//! the node, begin to connect, hand the pair to the relay. Nothing here waits, and the runtime knows
//! of none of it.
//!
//! Whatever is out of the ordinary (a refusal, half a CONNECT, TLS to the broker, a broker that does
//! not answer) is left to the runtime, which begins anew with what has been read.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::app::{ProxyApp, Unfinished, local_address};
use super::beginning::Beginning;
use super::handshake::Opened;
use super::outcome::{End, Phase, Record};
use super::preread::Preread;
use super::relay::dialling::Dialled;
use super::relay::engine::{self, Carried, Lacks};
use super::relay::pair::Pair;
use crate::route::Request;
use crate::table::Route;
use crate::upstream::connect::{FirstTry, begin_connect, timeout_of};
use crate::upstream::hash_key::Key;
use crate::upstream::targets::Target;
use crate::upstream::variables::MqttVariables;

/// A first read asks for this much; a CONNECT that is longer takes the other way.
const FIRST_READ: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; FIRST_READ].into());
}

/// What there is to read of a connection.
pub(super) enum FirstRead {
    /// CONNECT, or nothing where the route reads none.
    Whole(Whole),
    /// Not enough to go on with here: these bytes.
    Part(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The client has ended or broken the connection, which this route would have taken.
    Left(Option<Arc<Route>>),
}

impl FirstRead {
    /// Whether CONNECT is there.
    pub fn is_connect(&self) -> bool {
        matches!(self, FirstRead::Whole(whole) if whole.preread.mqtt.is_some())
    }
}

/// All that has to be read of a connection before it is routed.
pub(super) struct Whole {
    route: Arc<Route>,
    server: SocketAddr,
    preread: Preread,
}

impl ProxyApp {
    /// Serves a connection as far as it goes; what comes back is for the runtime.
    pub(super) fn serve_at_once(
        self: &Arc<Self>,
        socket: OwnedFd,
        mut opened: Opened,
        record: Record,
    ) -> Option<Unfinished> {
        match self.first_read(socket.as_fd(), &mut opened, &record) {
            FirstRead::Nothing => {
                Beginning::open(self, record, opened).wait(socket);
                None
            }
            read => self.go_on(socket, opened, read, record),
        }
    }

    /// Reads CONNECT, if the route that takes the connection reads it and it is there.
    pub(super) fn first_read(
        &self,
        socket: BorrowedFd<'_>,
        opened: &mut Opened,
        record: &Record,
    ) -> FirstRead {
        let Ok(server) = local_address(&socket, record) else {
            return FirstRead::Left(None);
        };
        let table = self.table.load();
        let request = Request {
            client: record.client.ip(),
            server,
            sni: opened.server_name(),
        };
        let route = table.route(&request);
        let received = std::mem::take(&mut opened.received);
        let Some(route) = route else {
            return FirstRead::Part(received);
        };
        let whole = |preread| {
            FirstRead::Whole(Whole {
                route: route.clone(),
                server,
                preread,
            })
        };
        let Some(plugin) = &route.mqtt_proxy else {
            return whole(Preread {
                received,
                mqtt: None,
            });
        };
        if !received.is_empty() {
            return FirstRead::Part(received);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let count = match opened.read(socket, buffer) {
                Ok(0) => return FirstRead::Left(Some(route.clone())),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return FirstRead::Nothing,
                Err(_) => return FirstRead::Left(Some(route.clone())),
            };
            let received = &buffer[..count];
            let limit = self.policy.limits.max_connect_size;
            match plugin.judge(received, self.mode(), limit) {
                Ok(Some(connect)) => whole(Preread {
                    mqtt: Some(MqttVariables::of(&connect)),
                    received: received.to_vec(),
                }),
                _ => FirstRead::Part(received.to_vec()),
            }
        })
    }

    /// Goes on with what was read; what comes back is for the runtime. Must be called within that.
    pub(super) fn go_on(
        self: &Arc<Self>,
        socket: OwnedFd,
        mut opened: Opened,
        read: FirstRead,
        mut record: Record,
    ) -> Option<Unfinished> {
        let whole = match read {
            FirstRead::Whole(whole) => whole,
            FirstRead::Part(received) => {
                opened.received = received;
                return Some(Unfinished {
                    socket,
                    opened,
                    record,
                });
            }
            FirstRead::Nothing => {
                return self.go_on(socket, opened, FirstRead::Part(Vec::new()), record);
            }
            FirstRead::Left(route) => {
                if let Some(route) = route {
                    route.count_connection();
                    record.route = Some(route);
                    record.phase = Phase::Connect;
                }
                record.end = End::ClientLeftEarly;
                return None;
            }
        };
        let Whole {
            route,
            server,
            preread,
        } = whole;
        let begun = match &route.upstream {
            Ok(upstream) if upstream.tls().is_none() => {
                let tls = opened.tls.as_deref();
                let variables =
                    super::admit::variables(&route, record.client, server, tls, &preread);
                let key = upstream.key(&variables);
                let target = upstream.targets(&key.bytes).next();
                target.and_then(|target| {
                    let owes = !preread.received.is_empty();
                    let sources = upstream.source_addresses();
                    let broker = begin_connect(target.address, owes, sources).ok()?;
                    Some((broker, target, key))
                })
            }
            _ => None,
        };
        let Some((broker, target, key)) = begun else {
            opened.received = preread.received;
            return Some(Unfinished {
                socket,
                opened,
                record,
            });
        };
        record.route = Some(route);
        self.admitted_by_route(&mut record, server, &preread, &key, opened.since);
        record.phase = Phase::Dial;
        record.broker = Some(crate::upstream::node::InFlight::on(target.node.clone()));
        let Preread { received, mqtt } = preread;
        let pair = self.pair(mqtt.as_ref(), &[], received, record);
        let dial = FirstDial::new(self, &pair, target, key, mqtt);
        let last_activity = dial.started;
        let client = engine::End {
            socket,
            tls: opened.session.take(),
        };
        let carried = Carried {
            client,
            broker: broker.into(),
            pair,
            last_activity,
            dial: Some(Box::new(dial)),
            lacks: Lacks::NoDelay { written: false },
        };
        match self.relays.dial(carried) {
            Ok(()) => None,
            // No relay thread: the runtime does it all, and counts the route once more.
            Err(carried) => {
                let Carried { client, pair, .. } = *carried;
                let (received, record) = pair.into_unsent();
                opened.received = received;
                opened.session = client.tls;
                Some(Unfinished {
                    socket: client.socket,
                    opened,
                    record,
                })
            }
        }
    }
}

/// The first try to connect to a broker.
struct FirstDial {
    app: Arc<ProxyApp>,
    runtime: Handle,
    target: Target,
    key: Key,
    mqtt: Option<MqttVariables>,
    started: Instant,
    limit: Duration,
}

impl std::fmt::Debug for FirstDial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "dialling {:?}", self.target)
    }
}

impl FirstDial {
    fn new(
        app: &Arc<ProxyApp>,
        pair: &Pair,
        target: Target,
        key: Key,
        mqtt: Option<MqttVariables>,
    ) -> Self {
        let upstream = pair.parts().record.upstream();
        FirstDial {
            app: app.clone(),
            runtime: Handle::current(),
            target,
            key,
            mqtt,
            started: Instant::now(),
            limit: timeout_of(upstream.map(|upstream| upstream.config())),
        }
    }
}

impl Dialled for FirstDial {
    fn deadline(&self) -> Instant {
        self.started + self.limit
    }

    fn connected(&mut self, pair: &mut Pair) {
        let took = self.started.elapsed();
        let record = pair.record_mut();
        if let Some(upstream) = record.upstream() {
            upstream.connected(&self.target.node, took);
        }
        record.connected(self.target.address, 1, took);
    }

    fn failed(self: Box<Self>, client: engine::End, pair: Pair, error: io::Error) {
        let late = error.kind() == ErrorKind::TimedOut && error.raw_os_error().is_none();
        let error = match late {
            true => io::Error::new(
                ErrorKind::TimedOut,
                format!("no answer within {:?}", self.limit),
            ),
            false => error,
        };
        let FirstDial {
            app,
            runtime,
            target,
            key,
            mqtt,
            started,
            ..
        } = *self;
        let (received, record) = pair.into_unsent();
        let preread = Preread { received, mqtt };
        let first = FirstTry {
            target,
            error,
            started,
        };
        runtime.spawn(async move {
            app.dial_again(client, record, preread, key, first).await;
        });
    }
}
