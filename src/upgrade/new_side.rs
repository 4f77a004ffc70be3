//! The process that takes over.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::Semaphore;

use super::channel::{Channel, Frame};
use super::message::{Hello, Listeners, State, hear, kind, read, say};
use super::record::{PairRecord, decode};
use super::{PROTOCOL, START_LIMIT, STEP_LIMIT, UpgradeError};
use crate::session::connections::Connections;
use crate::session::listener::Listener;
use crate::session::outcome::Record;
use crate::session::relay::Relays;
use crate::session::relay::engine::Carried;
use crate::table::{CurrentTable, Route};
use crate::telemetry::metrics::Metrics;
use crate::upstream::node::{InFlight, Node};

/// What the old process has sent so far.
pub struct Inherited {
    /// Its listening sockets, by address.
    pub listeners: HashMap<SocketAddr, TcpListener>,
    /// Its counters.
    pub state: State,
    channel: Channel,
}

/// Waits for the old process on `socket` and takes its listening sockets.
///
/// # Errors
/// When nobody comes within a minute, or what comes is no upgrade.
pub fn receive(socket: &Path) -> Result<Inherited, UpgradeError> {
    let step = "waiting for the old process";
    let failed = UpgradeError::at(step);
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(&failed)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(&failed)?;
    // accept(2) heeds the receive timeout.
    SockRef::from(&listener)
        .set_read_timeout(Some(START_LIMIT))
        .map_err(&failed)?;
    let accepted = listener.accept();
    // Whether or not somebody came: nobody else may.
    let _ = fs::remove_file(socket);
    let channel = Channel::new(accepted.map_err(&failed)?.0).map_err(&failed)?;
    channel.set_limit(STEP_LIMIT).map_err(&failed)?;

    let hello: Hello = read(step, &hear(&channel, step, kind::HELLO)?)?;
    if hello.protocol != PROTOCOL {
        let why = format!(
            "it speaks version {} of the upgrade protocol, this one {PROTOCOL}",
            hello.protocol
        );
        // The old process goes on; that it hears why is a courtesy.
        let _ = say(&channel, step, kind::REFUSED, &why);
        return Err(UpgradeError::Refused(why));
    }
    log::info!(
        "upgrade: taking over from process {} (version {})",
        hello.pid,
        hello.version
    );
    say(&channel, step, kind::READY, &Hello::own())?;
    receive_listeners(channel)
}

fn receive_listeners(channel: Channel) -> Result<Inherited, UpgradeError> {
    let step = "receiving the listeners";
    let mut listeners = HashMap::new();
    loop {
        let gone = || std::io::Error::from(ErrorKind::UnexpectedEof);
        let frame = channel.receive().and_then(|frame| frame.ok_or_else(gone));
        let frame = frame.map_err(UpgradeError::at(step))?;
        match frame.kind {
            kind::LISTENERS => {
                let Listeners { addresses } = read(step, &frame)?;
                let sockets = frame.descriptors.into_iter().map(TcpListener::from);
                listeners.extend(addresses.into_iter().zip(sockets));
            }
            kind::STATE => {
                let state = read(step, &frame)?;
                return Ok(Inherited {
                    listeners,
                    state,
                    channel,
                });
            }
            _ => return Err(UpgradeError::Unexpected { step }),
        }
    }
}

/// Where live connections arrive.
pub struct Arrivals {
    /// Relays them.
    pub relays: Arc<Relays>,
    /// Counts them.
    pub connections: Arc<Connections>,
    /// The places that they take.
    pub places: Arc<Semaphore>,
    /// Their routes and nodes, as far as this process still has them.
    pub table: Arc<CurrentTable>,
    /// The listeners of this process.
    pub listeners: HashMap<SocketAddr, Arc<Listener>>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

impl Arrivals {
    /// Takes the live connections in a thread of its own, from the moment when this process
    /// accepts (`accepting` says so) until the old one has no more.
    pub fn take(self, inherited: Inherited, accepting: Receiver<()>) {
        std::thread::spawn(move || {
            let started = accepting.recv_timeout(START_LIMIT + Duration::from_secs(10));
            if started.is_err() {
                log::error!("upgrade: this process did not come to accept connections");
                return;
            }
            match self.take_all(&inherited.channel) {
                Ok(count) => log::info!("upgrade: complete, {count} connections taken over"),
                Err(error) => log::error!("upgrade: {error}"),
            }
        });
    }

    fn take_all(&self, channel: &Channel) -> Result<usize, UpgradeError> {
        let step = "taking over connections";
        say(channel, step, kind::LISTENING, &())?;
        super::systemd::ready();
        // From here on the old process decides when the next message comes.
        channel
            .set_limit(Duration::from_secs(7 * 24 * 3600))
            .map_err(UpgradeError::at(step))?;
        let (mut held, mut taken) = (Vec::new(), 0);
        loop {
            let frame = match channel.receive() {
                Ok(Some(frame)) => frame,
                // The old process is gone, finished or not: what came whole is ours.
                Ok(None) | Err(_) => {
                    taken += held.len();
                    self.relays.adopt(held);
                    return Ok(taken);
                }
            };
            match frame.kind {
                kind::PAIRS => held.extend(self.decode(frame, step)?),
                kind::COMMIT => {
                    // Said before the first byte is relayed: if it cannot be said, the old process
                    // keeps them.
                    say(channel, step, kind::COMMITTED, &held.len())?;
                    taken += held.len();
                    self.relays.adopt(std::mem::take(&mut held));
                }
                _ => return Err(UpgradeError::Unexpected { step }),
            }
        }
    }

    fn decode(&self, frame: Frame, step: &'static str) -> Result<Vec<Carried>, UpgradeError> {
        let table = self.table.load();
        let routes: HashMap<&str, &Arc<Route>> = table
            .routes()
            .iter()
            .map(|route| (route.id.as_str(), route))
            .collect();
        let pairs = decode(frame, |record| self.open(record, &routes));
        pairs.ok_or(UpgradeError::Unexpected { step })
    }

    /// The record that counts a connection here.
    fn open(&self, arrived: &PairRecord, routes: &HashMap<&str, &Arc<Route>>) -> Record {
        let listener = self.listeners.get(&arrived.listener).cloned();
        let listener = listener.unwrap_or_else(|| {
            Arc::new(Listener {
                address: arrived.listener,
                active: self
                    .metrics
                    .active_connections(arrived.listener.to_string()),
            })
        });
        let mut record = Record::open(
            arrived.client,
            listener,
            self.metrics.clone(),
            self.places.clone().try_acquire_owned().ok(),
            self.connections.enter(),
        );
        record.route = arrived
            .route
            .as_ref()
            .and_then(|id| routes.get(id.as_str()))
            .map(|route| Arc::clone(route));
        record.broker = arrived.node.as_ref().and_then(|label| {
            let upstream = record.route.as_ref()?.upstream.as_ref().ok()?;
            let known = upstream.nodes().find(|node| node.label() == label).cloned();
            // A node that is not in the configuration any more still has its name in the log.
            let node = known.or_else(|| Some(Arc::new(Node::fixed(label.parse().ok()?))))?;
            Some(InFlight::on(node))
        });
        record.set_age(Duration::from_millis(arrived.age_ms));
        (record.to_broker, record.to_client) = (arrived.to_broker, arrived.to_client);
        record
    }
}
