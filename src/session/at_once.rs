//! What can be done with a connection at once, on the relay thread that accepted it: read CONNECT,
//! find the route, pick the node, begin to connect, hand the pair to the relay. Nothing here waits,
//! and the runtime knows of none of it.
//!
//! Whatever is out of the ordinary (a refusal, half a CONNECT, TLS to the broker, a broker that does
//! not answer) is left to the runtime, which begins anew with what has been read.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::app::{ProxyApp, Unfinished, local_address};
use super::client_stream::ClientSocket;
use super::outcome::{End, Phase, Record};
use super::preread::Preread;
use super::relay::dialling::Dialled;
use super::relay::engine::{Carried, Lacks};
use super::relay::pair::Pair;
use super::relay::parked::Parked;
use crate::route::Request;
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
enum FirstRead {
    /// CONNECT, or nothing where the route reads none.
    Whole(Preread),
    /// Not enough to go on with.
    Part(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// The client has ended or broken the connection.
    Left,
}

impl ProxyApp {
    /// Serves a plain connection as far as it goes; what comes back is for the runtime.
    pub(super) fn serve_at_once(
        self: &Arc<Self>,
        socket: OwnedFd,
        mut record: Record,
        since: Instant,
    ) -> Option<Unfinished> {
        let unfinished = |socket: OwnedFd, record: Record, received: Vec<u8>| {
            Some(Unfinished {
                socket: ClientSocket::Bare(socket),
                received,
                record,
                since,
                handshake: None,
            })
        };
        let Ok(server) = local_address(&socket, &record) else {
            record.end = End::ClientLeftEarly;
            return None;
        };
        let table = self.table.load();
        let request = Request {
            client: record.client.ip(),
            server,
            sni: None,
        };
        let Some(route) = table.route(&request) else {
            return unfinished(socket, record, Vec::new());
        };
        let first = match &route.mqtt_proxy {
            None => FirstRead::Whole(Preread::default()),
            Some(plugin) => self.first_read(&socket, plugin),
        };
        let preread = match first {
            FirstRead::Whole(preread) => preread,
            FirstRead::Part(received) => return unfinished(socket, record, received),
            FirstRead::Nothing => return self.park(socket, record, since),
            FirstRead::Left => {
                route.count_connection();
                record.route = Some(route.clone());
                record.phase = Phase::Connect;
                record.end = End::ClientLeftEarly;
                return None;
            }
        };
        let upstream = match &route.upstream {
            Ok(upstream) if upstream.tls().is_none() => upstream,
            _ => return unfinished(socket, record, preread.received),
        };
        let key = upstream.key(&super::admit::variables(
            route,
            record.client,
            server,
            None,
            &preread,
        ));
        let target = upstream.targets(&key.bytes).next();
        let begun = target.and_then(|target| {
            let owes = !preread.received.is_empty();
            let sources = upstream.source_addresses();
            let broker = begin_connect(target.address, owes, sources).ok()?;
            Some((broker, target))
        });
        let Some((broker, target)) = begun else {
            return unfinished(socket, record, preread.received);
        };
        record.route = Some(route.clone());
        drop(table);
        self.admitted_by_route(&mut record, server, &preread, &key, since);
        record.phase = Phase::Dial;
        record.broker = Some(crate::upstream::node::InFlight::on(target.node.clone()));
        let Preread { received, mqtt } = preread;
        let pair = self.pair(mqtt.as_ref(), &[], received, record);
        let dial = FirstDial::new(self, &pair, target, key, mqtt);
        let carried = Carried {
            dial: Some(Box::new(dial)),
            lacks: Lacks::NoDelay { written: false },
            ..Carried::new(socket, broker, pair)
        };
        match self.relays.dial(carried) {
            Ok(()) => None,
            // No relay thread: the runtime does it all, and counts the route once more.
            Err(carried) => {
                let Carried { client, pair, .. } = *carried;
                let (received, record) = pair.into_unsent();
                unfinished(client.socket, record, received)
            }
        }
    }

    fn first_read(
        &self,
        socket: &OwnedFd,
        plugin: &crate::plugin::mqtt_proxy::MqttProxy,
    ) -> FirstRead {
        BUFFER.with_borrow_mut(|buffer| {
            let count = match recv(socket, &mut **buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return FirstRead::Left,
                Ok((count, _)) => count,
                Err(Errno::AGAIN | Errno::INTR) => return FirstRead::Nothing,
                Err(_) => return FirstRead::Left,
            };
            let received = &buffer[..count];
            let limit = self.policy.limits.max_connect_size;
            match plugin.judge(received, self.mode(), limit) {
                Ok(Some(connect)) => FirstRead::Whole(Preread {
                    mqtt: Some(MqttVariables::of(&connect)),
                    received: received.to_vec(),
                }),
                _ => FirstRead::Part(received.to_vec()),
            }
        })
    }

    /// Keeps the connection until its first bytes come; the runtime tells a client that sends
    /// none in time.
    fn park(
        self: &Arc<Self>,
        socket: OwnedFd,
        record: Record,
        since: Instant,
    ) -> Option<Unfinished> {
        if !self.relays.can_relay() {
            // The runtime waits for the first bytes.
            return Some(Unfinished {
                socket: ClientSocket::Bare(socket),
                received: Vec::new(),
                record,
                since,
                handshake: None,
            });
        }
        let limits = &self.policy.limits;
        let until = since + limits.first_byte_timeout.min(limits.connect_timeout);
        let (app, runtime) = (self.clone(), Handle::current());
        let resume = move |socket: OwnedFd| {
            let unfinished = match Instant::now() >= until {
                true => Some(Unfinished {
                    socket: ClientSocket::Bare(socket),
                    received: Vec::new(),
                    record,
                    since,
                    handshake: None,
                }),
                false => {
                    let _inside = runtime.enter();
                    app.serve_at_once(socket, record, since)
                }
            };
            if let Some(unfinished) = unfinished {
                runtime.spawn(async move { app.serve(unfinished).await });
            }
        };
        let parked = Parked {
            socket,
            until: until.into_std(),
            resume: Box::new(resume),
        };
        self.relays.park(parked);
        None
    }
}

/// The first try to connect to a broker.
struct FirstDial {
    app: Arc<ProxyApp>,
    runtime: Handle,
    target: Target,
    key: Key,
    mqtt: Option<MqttVariables>,
    started: StdInstant,
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
            started: StdInstant::now(),
            limit: timeout_of(upstream.map(|upstream| upstream.config())),
        }
    }
}

impl Dialled for FirstDial {
    fn deadline(&self) -> StdInstant {
        self.started + self.limit
    }

    fn connected(&mut self, pair: &mut Pair) {
        let record = pair.record_mut();
        if let Some(upstream) = record.upstream() {
            upstream.connected(&self.target.node, self.started.elapsed());
        }
        record.connected(self.target.address, 1, self.started.elapsed());
    }

    fn failed(self: Box<Self>, client: OwnedFd, pair: Pair, error: io::Error) {
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
