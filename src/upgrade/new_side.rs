//! The process that takes over.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use socket2::SockRef;
use tokio::sync::Semaphore;

use super::channel::Channel;
use super::control::Control;
use super::message::{Hello, Listeners, Listening, State, hear, kind, read, say};
use super::record::{PairRecord, decode};
use super::{PROTOCOL, START_LIMIT, STEP_LIMIT, SUCCEEDED, UpgradeError, socket_path};
use crate::session::connections::Connections;
use crate::session::listener::Listener;
use crate::session::outcome::{Access, Phase, Record};
use crate::session::relay::Relays;
use crate::session::relay::engine::Carried;
use crate::table::{CurrentTable, Route};
use crate::telemetry::access_log::AccessLog;
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
    let (listener, _) = socket_path::listen(socket).map_err(&failed)?;
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
    if let Err(why) = enough_descriptors(&hello) {
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

/// Whether what the old process has can be taken: said before anything of it stands still.
fn enough_descriptors(hello: &Hello) -> Result<(), String> {
    let Hello {
        connections,
        listeners,
        ..
    } = *hello;
    // Each listener has a second one, for the upgrade after this one.
    let needed = OTHER_DESCRIPTORS + 2 * (connections as u64).saturating_add(listeners as u64);
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < needed => Err(format!(
            "{connections} connections and {listeners} listeners take {needed} open files, the \
             limit of process {} is {limit}",
            std::process::id()
        )),
        _ => Ok(()),
    }
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

impl Inherited {
    /// Tells the old process that this one cannot take over, and why.
    pub fn refuse(&self, why: &str) {
        // It goes on in any case; that it hears why is a courtesy.
        let _ = say(&self.channel, "refusing", kind::REFUSED, &why);
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
    /// True until the old process has left.
    pub taking_over: Arc<AtomicBool>,
    /// Whether this process serves already.
    pub succeeded: AtomicBool,
    /// Where their end is logged.
    pub access_log: Option<Arc<AccessLog>>,
    /// Where this process is found from then on.
    pub control: Arc<Control>,
    /// Listeners of the old process that this configuration does not have.
    pub without: Vec<SocketAddr>,
}

/// Routes of this process by id.
type Routes<'a> = HashMap<&'a str, &'a Arc<Route>>;

/// Descriptors that are not connections: files, epoll, resolver sockets, the log.
pub const OTHER_DESCRIPTORS: u64 = 64;

/// How long the old process may take to be gone once its end of the channel is closed.
const END_LIMIT: Duration = Duration::from_secs(2);

impl Arrivals {
    /// Takes the live connections, from the moment when this process accepts (`accepting` says
    /// so) until the old one has no more. When the old one stays, this process exits.
    pub fn take(self, inherited: &Inherited, accepting: &Receiver<()>) {
        let started = accepting.recv_timeout(START_LIMIT + STEP_LIMIT);
        let mut taken = 0;
        let result = match started {
            Ok(()) => self.take_all(inherited, &mut taken),
            Err(_) => Err(UpgradeError::Unexpected {
                step: "starting to accept",
            }),
        };
        self.taking_over.store(false, Ordering::SeqCst);
        match result {
            Ok(()) => log::info!("upgrade: complete, {taken} connections taken over"),
            Err(error) => {
                // The old process would wait for an answer, and the connections with it.
                inherited.refuse(&error.to_string());
                if taken > 0 {
                    log::error!("upgrade: the last connections stay in the old process: {error}");
                } else {
                    log::error!("upgrade: not taken over, the old process goes on: {error}");
                    std::process::exit(1);
                }
            }
        }
    }

    fn take_all(&self, inherited: &Inherited, taken: &mut usize) -> Result<(), UpgradeError> {
        let mut held = Vec::new();
        let result = self.take_into(&mut held, inherited, taken);
        // What was not committed lives on in the old process.
        held.into_iter()
            .for_each(|carried| carried.pair.handed_over());
        result
    }

    fn take_into(
        &self,
        held: &mut Vec<Carried>,
        inherited: &Inherited,
        taken: &mut usize,
    ) -> Result<(), UpgradeError> {
        let step = "taking over connections";
        let channel = &inherited.channel;
        let listening = Listening {
            without: self.without.clone(),
            pid: Some(std::process::id()),
        };
        say(channel, step, kind::LISTENING, &listening)?;
        // From here on the old process decides when the next message comes.
        channel
            .set_limit(Duration::from_secs(7 * 24 * 3600))
            .map_err(UpgradeError::at(step))?;
        // Looked up once: the connections stand still while their frames are read.
        let table = self.table.load_full();
        let routes: Routes<'_> = table
            .routes()
            .iter()
            .map(|route| (route.id.as_str(), route))
            .collect();
        loop {
            let frame = match channel.receive() {
                Ok(Some(frame)) => frame,
                // The old process is there, and what it sends cannot be used.
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return Err(UpgradeError::at(step)(error));
                }
                closed => return self.closed(channel, closed.err(), held, taken),
            };
            match frame.kind {
                kind::PAIRS => {
                    let pairs = decode(frame, |record| self.open(record, &routes));
                    held.extend(pairs.ok_or(UpgradeError::Unexpected { step })?);
                }
                kind::COMMIT => {
                    // Whoever asks for an upgrade after this one is to find this process.
                    self.control.publish();
                    // Said before the first byte is relayed: if it cannot be said, the old process
                    // keeps them, unless it is gone.
                    if let Err(error) = say(channel, step, kind::COMMITTED, &held.len()) {
                        if !channel.peer_has_ended(END_LIMIT) {
                            return Err(error);
                        }
                        cut_uncertain(held);
                    }
                    self.serve(held, taken);
                }
                kind::LAST => {
                    let State { metrics, .. } = read(step, &frame)?;
                    self.metrics.carry_on(&metrics, &inherited.state.metrics);
                    return Ok(());
                }
                _ => return Err(UpgradeError::Unexpected { step }),
            }
        }
    }

    /// Relays what is held from now on; this process is the one that serves.
    fn serve(&self, held: &mut Vec<Carried>, taken: &mut usize) {
        self.serves(held.len(), taken);
        self.relays.adopt(std::mem::take(held));
        crate::systemd::ready();
        self.control.publish();
        self.control.sweep();
    }

    /// The channel is closed. What came whole belongs to this process if the old one is gone;
    /// otherwise the old one still has it.
    fn closed(
        &self,
        channel: &Channel,
        error: Option<std::io::Error>,
        held: &mut Vec<Carried>,
        taken: &mut usize,
    ) -> Result<(), UpgradeError> {
        if channel.peer_has_ended(END_LIMIT) {
            cut_uncertain(held);
            self.serve(held, taken);
            return Ok(());
        }
        let error = error.unwrap_or_else(|| ErrorKind::UnexpectedEof.into());
        Err(UpgradeError::at("taking over connections")(error))
    }

    /// Counts connections that this process has taken over. The first time means that the upgrade
    /// has succeeded, however many there are.
    fn serves(&self, connections: usize, taken: &mut usize) {
        if !self.succeeded.swap(true, Ordering::SeqCst) {
            self.metrics.upgraded(SUCCEEDED);
        }
        self.metrics.taken_over(connections);
        *taken += connections;
    }

    /// The record that counts a connection here.
    fn open(&self, arrived: &PairRecord, routes: &Routes<'_>) -> Record {
        let listener = self.listeners.get(&arrived.listener).cloned();
        let listener = listener.unwrap_or_else(|| {
            Arc::new(Listener {
                address: arrived.listener,
                counts: self.metrics.listener(arrived.listener),
                tls: None,
            })
        });
        let mut record = Record::take_over(
            arrived.client,
            listener,
            self.metrics.clone(),
            self.places.clone().try_acquire_owned().ok(),
            self.connections.enter(),
        );
        record.route = arrived
            .route
            .as_ref()
            .map(|id| match routes.get(id.as_str()) {
                Some(route) if arrived.is_of(route) => Arc::clone(route),
                _ => Arc::new(Route::gone(id)),
            });
        record.broker = arrived.node.as_ref().and_then(|label| {
            let upstream = record
                .route
                .as_ref()
                .and_then(|route| route.upstream.as_ref().ok());
            let known = upstream
                .and_then(|upstream| upstream.nodes().find(|node| node.label() == label).cloned());
            // A node that is not in the configuration any more still has its name in the log.
            let node = known.or_else(|| Some(Arc::new(Node::fixed(label.parse().ok()?))))?;
            Some(InFlight::on(node))
        });
        record.phase = Phase::Relay;
        record.client_id_hash = arrived.client_id_hash;
        record.key = arrived.key.clone();
        (record.level, record.sent_us) = (arrived.level, arrived.sent_us);
        record.access = self.access_log.as_ref().map(|log| match &arrived.access {
            Some(details) => Access::of(log, details.clone()),
            None => Access::new(log),
        });
        record.set_age(Duration::from_millis(arrived.age_ms));
        (record.to_broker, record.to_client) = (arrived.to_broker, arrived.to_client);
        record
    }
}

/// The old process is gone and has not heard that its pairs are taken. It may have given up waiting and
/// relayed them before it ended: bytes of a plain connection show that at worst, but records of TLS
/// that are numbered a second time would give the keys away. So those connections are cut.
fn cut_uncertain(held: &mut Vec<Carried>) {
    let before = held.len();
    held.retain(|carried| carried.client.tls.is_none() && carried.broker.tls.is_none());
    let cut = before - held.len();
    if cut > 0 {
        log::error!(
            "upgrade: {cut} TLS connections are cut: the old process ended while it handed them over"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relay::IdleTimeout;
    use crate::session::relay::engine::End;
    use crate::session::relay::pair::Pair;
    use crate::session::relay::testing::{Counts, connected};
    use crate::tls::records::testing::{forger, suites};
    use crate::tls::session::Session;

    #[test]
    fn tls_that_the_old_process_may_have_gone_on_with_is_cut_and_nothing_else() {
        let counts = Counts::default();
        let carried = |of_client, of_broker| {
            let [client, broker] = [of_client, of_broker].map(|tls| End {
                socket: connected(None).1.into(),
                tls,
            });
            let idle = IdleTimeout::default();
            let pair = Pair::new(Vec::new(), Vec::new(), idle, counts.record());
            Carried::new(client, broker, pair)
        };
        let tls = suites().flat_map(|suite| {
            let session = || {
                let session = Session::from_parts(&forger::parts(suite)).unwrap();
                Some(Box::new(session))
            };
            [carried(session(), None), carried(None, session())]
        });
        let mut held: Vec<Carried> = tls.chain([carried(None, None)]).collect();
        assert_eq!(held.len(), 13);
        cut_uncertain(&mut held);
        assert_eq!(held.len(), 1);
        assert!(held[0].client.tls.is_none());
        assert_eq!(counts.connections.live(), 1);
    }
}
