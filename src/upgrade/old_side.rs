//! The process that hands over.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::channel::{Channel, MAX_DESCRIPTORS};
use super::control::{Control, Event, Report};
use super::message::{Hello, Listeners, Listening, State, hear, kind, read, say};
use super::sending::{next_round, send_pairs};
use super::{PROTOCOL, START_LIMIT, STEP_LIMIT, UpgradeError, nodes};
use crate::config::settings::UpgradeSettings;
use crate::drain::exodus::Exodus;
use crate::session::connections::Connections;
use crate::session::relay::Relays;
use crate::session::relay::engine::{Carried, Takes, Which};
use crate::session::service::AcceptLoops;
use crate::systemd;
use crate::table::CurrentTable;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::tls::tickets::TicketKeys;

/// How often the start of the new process is looked at, and, afterwards, whether anything is left
/// that belongs to it.
const LOOK: Duration = Duration::from_millis(20);

/// How long the accept loops may take to hear that they do not accept any more. One that waits for
/// a place cannot hear it before there is one; its connection is counted.
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// How long an upgrade that is asked for waits for the end of the one before it.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(5);

/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What this process has to hand over.
pub struct OldSide {
    /// The relay threads.
    pub relays: Arc<Relays>,
    /// The live connections.
    pub connections: Arc<Connections>,
    /// The routes and nodes.
    pub table: Arc<CurrentTable>,
    /// Whether this process accepts.
    pub accepting: watch::Sender<bool>,
    /// Whether the accept loops have heard that they do not.
    pub loops: Arc<AcceptLoops>,
    /// Listeners on which nobody is to accept any more: the new configuration has them no longer.
    pub given_up: watch::Sender<Vec<SocketAddr>>,
    /// Counters to carry on.
    pub metrics: Arc<Metrics>,
    /// Keys of session tickets to go on with.
    pub tickets: Arc<TicketKeys>,
    /// Written to the end before this process leaves.
    pub access_log: Option<Arc<AccessLog>>,
    /// What becomes of connections that stay.
    pub lingering: UpgradeSettings,
    /// Where the new process listens.
    pub socket: PathBuf,
    /// Where this process is found by `mqtt-proxy upgrade`.
    pub control: Arc<Control>,
    /// True while the process before this one has not left yet.
    pub taking_over: Arc<AtomicBool>,
    /// The listening sockets.
    pub listeners: Mutex<Vec<(SocketAddr, OwnedFd)>>,
    /// True while an upgrade is under way.
    pub busy: AtomicBool,
    /// True once this process is to end: nobody takes over from it then.
    pub leaving: AtomicBool,
}

/// The new process after the first commit: it serves.
struct Successor {
    channel: Channel,
    late: Receiver<Carried>,
    takes: Takes,
}

impl OldSide {
    /// Upgrades in a thread of its own. `start` starts the new process; without it one has been
    /// started by somebody else and listens already. When all is handed over and the last
    /// connection has left, this process exits; when anything fails, it goes on as before.
    pub fn begin(self: &Arc<Self>, start: Option<Command>, report: Report) {
        let busy = if self.leaving.load(Ordering::SeqCst) {
            Some("this process is leaving")
        } else if self.busy.swap(true, Ordering::SeqCst) {
            Some("an upgrade is under way already")
        } else {
            None
        };
        if let Some(why) = busy {
            let error = UpgradeError::Busy(why);
            self.metrics.upgraded(error.result());
            log::error!("upgrade failed: {error}");
            return report.tell(&failure(&error));
        }
        let own = self.clone();
        std::thread::spawn(move || {
            if let Err(error) = own.upgrade(start, &report) {
                own.metrics.upgraded(error.result());
                own.control.publish();
                // Whoever hears that it failed may try again.
                own.busy.store(false, Ordering::SeqCst);
                log::error!("upgrade failed, this process goes on serving: {error}");
                report.tell(&failure(&error));
            }
        });
    }

    /// Closes the listening sockets, as far as they are held here: this process is leaving and no
    /// other takes over.
    pub fn close_listeners(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.listeners().clear();
    }

    /// Hands this listening socket over as well from now on.
    pub fn add_listener(&self, address: SocketAddr, socket: OwnedFd) {
        let mut listeners = self.listeners();
        // Looked at under the lock: `close_listeners` must not miss it.
        if !self.leaving.load(Ordering::SeqCst) {
            listeners.push((address, socket));
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(SocketAddr, OwnedFd)>> {
        // A poisoned lock only means that an upgrade panicked.
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the process before this one has left. Whoever saw its end may be here before
    /// this process has.
    fn wait_for_predecessor(&self) -> Result<(), UpgradeError> {
        let deadline = Instant::now() + PREDECESSOR_LIMIT;
        while self.taking_over.load(Ordering::SeqCst) {
            self.stays()?;
            if Instant::now() >= deadline {
                let why = "the process before this one has not left yet";
                return Err(UpgradeError::Busy(why));
            }
            std::thread::park_timeout(LOOK / 10);
        }
        Ok(())
    }

    fn upgrade(&self, start: Option<Command>, report: &Report) -> Result<(), UpgradeError> {
        self.wait_for_predecessor()?;
        let mut child = match start {
            Some(mut command) => Some(command.spawn().map_err(UpgradeError::Start)?),
            None => None,
        };
        if let Some(child) = &child {
            report.tell(&Event::Started { pid: child.id() });
        }
        let connected = self.connect(&mut child);
        match connected.and_then(|channel| self.hand_over(channel, report)) {
            Ok(successor) => self.follow(successor),
            Err(error) => {
                systemd::ready();
                if let Some(child) = &mut child {
                    // Half an upgrade must not linger beside the process that goes on.
                    let _ = child.kill();
                    let _ = child.wait();
                }
                Err(error)
            }
        }
    }

    /// Connects once the new process listens.
    fn connect(&self, child: &mut Option<Child>) -> Result<Channel, UpgradeError> {
        let step = "connecting to the new process";
        let deadline = Instant::now() + START_LIMIT;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) => match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => {}
                    _ => return Err(UpgradeError::at(step)(error)),
                },
            }
            self.stays()?;
            match child {
                None => return Err(UpgradeError::Nobody(self.socket.display().to_string())),
                Some(child) => {
                    if let Ok(Some(status)) = child.try_wait() {
                        return Err(UpgradeError::Ended(status));
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(UpgradeError::at(step)(ErrorKind::TimedOut.into()));
            }
            std::thread::park_timeout(LOOK);
        };
        let channel = Channel::new(stream).map_err(UpgradeError::at(step))?;
        channel
            .set_limit(STEP_LIMIT)
            .map_err(UpgradeError::at(step))?;
        Ok(channel)
    }

    /// Everything up to the moment when the new process has the connections. On an error all of
    /// it is undone.
    fn hand_over(&self, mut channel: Channel, report: &Report) -> Result<Successor, UpgradeError> {
        let own = Hello {
            connections: self.connections.live(),
            listeners: self.listeners().len(),
            ..Hello::own()
        };
        say(&channel, "greeting", kind::HELLO, &own)?;
        let hello: Hello = read("greeting", &hear(&channel, "greeting", kind::READY)?)?;
        if hello.protocol != PROTOCOL {
            let why = format!("it speaks version {} of the protocol", hello.protocol);
            return Err(UpgradeError::Refused(why));
        }
        let takes = match (hello.takes_tls, hello.takes_tls_to_brokers) {
            (true, true) => Takes::All,
            (true, false) => Takes::OfClients,
            (false, _) => Takes::Plain,
        };
        let Hello { pid, version, .. } = hello;
        log::info!("upgrade: process {pid} (version {version}) is ready");
        report.tell(&Event::Ready {
            pid,
            version: version.clone(),
        });
        self.send_listeners(&channel)?;
        let step = "waiting until the new process accepts";
        // The first version says nothing here.
        let listening: Option<Listening> = read(step, &hear(&channel, step, kind::LISTENING)?)?;
        let Listening { without, pid: now } = listening.unwrap_or_default();
        let pid = now.unwrap_or(pid);
        channel.peer_is_now(pid).map_err(UpgradeError::at(step))?;
        self.stays()?;
        self.pause();

        let started = Instant::now();
        let (to, late) = mpsc::channel();
        self.relays.redirect(Some((to, takes)));
        let (now, later) = next_round(self.relays.release(Which::Movable(takes)));
        self.relays.adopt(later);
        match self.commit(&channel, now) {
            Ok(connections) => {
                let milliseconds = started.elapsed().as_millis() as u64;
                log::info!(
                    "upgrade: {connections} connections handed over to process {pid} in {milliseconds} ms"
                );
                report.tell(&Event::Moved {
                    pid,
                    version,
                    connections,
                    milliseconds,
                    left: self.connections.live(),
                });
                self.give_up(without);
                Ok(Successor {
                    channel,
                    late,
                    takes,
                })
            }
            Err(error) => {
                self.take_back(&late);
                self.accepting.send_replace(true);
                Err(error)
            }
        }
    }

    /// Has nobody accept on these listeners any more. As long as one process had them open, the
    /// kernel would go on completing handshakes there, for nobody.
    fn give_up(&self, addresses: Vec<SocketAddr>) {
        if addresses.is_empty() {
            return;
        }
        self.listeners()
            .retain(|(address, _)| !addresses.contains(address));
        for address in &addresses {
            log::info!("no longer listening on {address}: the new configuration does not have it");
        }
        self.loops.about_to_give_up();
        self.given_up.send_replace(addresses);
        // Whoever was in their queues is counted then, and this process stays for them.
        let deadline = Instant::now() + PAUSE_LIMIT;
        while !self.loops.have_given_up() && Instant::now() < deadline {
            std::thread::park_timeout(LOOK / 10);
        }
    }

    /// Fails once this process is to end: nothing is handed over then.
    fn stays(&self) -> Result<(), UpgradeError> {
        match self.leaving.load(Ordering::SeqCst) {
            true => Err(UpgradeError::Busy("this process is leaving")),
            false => Ok(()),
        }
    }

    /// Stops accepting and waits until every accept loop has heard it.
    fn pause(&self) {
        self.accepting.send_replace(false);
        let deadline = Instant::now() + PAUSE_LIMIT;
        while !self.is_paused() && Instant::now() < deadline {
            std::thread::park_timeout(LOOK / 10);
        }
    }

    fn is_paused(&self) -> bool {
        self.loops.are_paused()
    }

    /// Relays here what was on its way to the new process.
    fn take_back(&self, late: &Receiver<Carried>) {
        self.relays.redirect(None);
        self.relays.adopt(late.try_iter().collect());
    }

    fn send_listeners(&self, channel: &Channel) -> Result<(), UpgradeError> {
        let step = "sending the listeners";
        let listeners = self.listeners();
        self.stays()?;
        for batch in listeners.chunks(MAX_DESCRIPTORS) {
            let addresses = batch.iter().map(|(address, _)| *address).collect();
            let payload = serde_json::to_vec(&Listeners { addresses }).map_err(Into::into);
            let descriptors: Vec<_> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
            payload
                .and_then(|payload| channel.send(kind::LISTENERS, &payload, &descriptors))
                .map_err(UpgradeError::at(step))?;
        }
        let state = State {
            metrics: self.metrics.encode(),
            tickets: self.tickets.export(),
            nodes: nodes::of(&self.table.load()),
        };
        say(channel, step, kind::STATE, &state)
    }

    /// Hands these pairs over, all or none: they are back in the relay threads on an error.
    fn commit(&self, channel: &Channel, pairs: Vec<Carried>) -> Result<usize, UpgradeError> {
        let count = pairs.len();
        match send_pairs(channel, &pairs) {
            Ok(()) => {
                pairs
                    .into_iter()
                    .for_each(|carried| carried.pair.handed_over());
                Ok(count)
            }
            Err(error) => {
                self.relays.adopt(pairs);
                Err(error)
            }
        }
    }

    /// Sends those away that have stayed here for too long.
    fn exodus(&self) -> Exodus {
        let live = self.connections.live();
        log::info!("upgrade: {live} connections could not be handed over; they are sent away");
        let UpgradeSettings { rate, will, .. } = self.lingering;
        let (relays, connections) = (self.relays.clone(), self.connections.clone());
        Exodus::begin(relays, connections, Some(rate), None, will)
    }

    /// Stays until the connections that were still on their way have followed or ended. Returns
    /// only when the new process has died and this one serves again.
    fn follow(&self, successor: Successor) -> Result<(), UpgradeError> {
        let Successor {
            channel,
            late,
            takes,
        } = successor;
        let mut following = true;
        let linger_end = Instant::now() + self.lingering.linger;
        let mut exodus = None;
        while self.connections.live() > 0 || !self.is_paused() {
            if channel.peer_has_ended(Duration::ZERO) {
                self.take_back(&late);
                self.accepting.send_replace(true);
                systemd::ready();
                return Err(UpgradeError::Died);
            }
            let now = Instant::now();
            if now >= linger_end {
                exodus.get_or_insert_with(|| self.exodus()).step(now);
            }
            let pairs: Vec<Carried> = match late.recv_timeout(LOOK) {
                Ok(pair) => std::iter::once(pair).chain(late.try_iter()).collect(),
                // One that was on its way into a relay thread when the others left it.
                Err(_) if following => self.relays.release(Which::Movable(takes)),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::park_timeout(LOOK);
                    Vec::new()
                }
            };
            let (pairs, later) = next_round(pairs);
            self.relays.adopt(later);
            if pairs.is_empty() {
                continue;
            }
            if let Err(error) = self.commit(&channel, pairs) {
                // The new process serves, so this one must not; its last connections stay here.
                log::error!("upgrade: the last connections stay in this process: {error}");
                following = false;
                self.take_back(&late);
            }
        }
        let state = State {
            metrics: self.metrics.encode(),
            ..State::default()
        };
        if let Err(error) = say(&channel, "leaving", kind::LAST, &state) {
            log::warn!("upgrade: the last counts are lost: {error}");
        }
        if let Some(log) = &self.access_log {
            log.flush(LAST_LINES);
        }
        log::info!("upgrade: complete, leaving");
        std::process::exit(0);
    }
}

fn failure(error: &UpgradeError) -> Event {
    Event::Failed {
        why: error.to_string(),
        configuration: error.is_configuration(),
    }
}
