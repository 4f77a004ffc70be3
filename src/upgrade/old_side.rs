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
use super::message::{Hello, Listeners, State, hear, kind, say};
use super::record::{BATCH, encode};
use super::{START_LIMIT, STEP_LIMIT, UpgradeError};
use crate::session::connections::Connections;
use crate::session::relay::Relays;
use crate::session::relay::engine::Carried;
use crate::telemetry::metrics::Metrics;

/// How often the start of the new process is looked at, and, afterwards, whether anything is left
/// that belongs to it.
const LOOK: Duration = Duration::from_millis(20);

/// What this process has to hand over.
pub struct OldSide {
    /// The relay threads.
    pub relays: Arc<Relays>,
    /// The live connections.
    pub connections: Arc<Connections>,
    /// The listening sockets.
    listeners: Mutex<Vec<(SocketAddr, OwnedFd)>>,
    /// Whether this process accepts.
    pub accepting: watch::Sender<bool>,
    /// Counters to carry on.
    pub metrics: Arc<Metrics>,
    /// Where the new process listens.
    pub socket: PathBuf,
    busy: AtomicBool,
}

impl OldSide {
    /// Puts together what would be handed over.
    pub fn new(
        relays: Arc<Relays>,
        connections: Arc<Connections>,
        listeners: Vec<(SocketAddr, OwnedFd)>,
        accepting: watch::Sender<bool>,
        metrics: Arc<Metrics>,
        socket: PathBuf,
    ) -> Self {
        OldSide {
            relays,
            connections,
            listeners: Mutex::new(listeners),
            accepting,
            metrics,
            socket,
            busy: AtomicBool::new(false),
        }
    }

    /// Upgrades in a thread of its own. `start` starts the new process; without it one has been
    /// started by somebody else and listens already. When all is handed over and the last
    /// connection has left, this process exits; when anything fails, it goes on as before.
    pub fn begin(self: &Arc<Self>, start: Option<Command>) {
        if self.busy.swap(true, Ordering::SeqCst) {
            log::error!("upgrade: {}", UpgradeError::Busy);
            return;
        }
        let own = self.clone();
        std::thread::spawn(move || {
            if let Err(error) = own.upgrade(start) {
                own.relays.redirect(None);
                own.accepting.send_replace(true);
                log::error!("upgrade failed, this process goes on serving: {error}");
            }
            own.busy.store(false, Ordering::SeqCst);
        });
    }

    /// Closes the listening sockets, as far as they are held here: this process is leaving and no
    /// other takes over.
    pub fn close_listeners(&self) {
        self.listeners().clear();
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(SocketAddr, OwnedFd)>> {
        // A poisoned lock only means that an upgrade panicked.
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn upgrade(&self, start: Option<Command>) -> Result<(), UpgradeError> {
        let mut child = match start {
            Some(mut command) => Some(command.spawn().map_err(UpgradeError::Start)?),
            None => None,
        };
        let result = self
            .connect(&mut child)
            .and_then(|channel| self.hand_over(&channel));
        if let (Err(_), Some(child)) = (&result, &mut child) {
            // Half an upgrade must not linger beside the process that goes on.
            let _ = child.kill();
            let _ = child.wait();
        }
        result
    }

    /// Connects once the new process listens.
    fn connect(&self, child: &mut Option<Child>) -> Result<Channel, UpgradeError> {
        let step = "connecting to the new process";
        let deadline = Instant::now() + START_LIMIT;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Err(UpgradeError::at(step)(error));
                }
                Err(_) => {}
            }
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

    fn hand_over(&self, channel: &Channel) -> Result<(), UpgradeError> {
        say(channel, "greeting", kind::HELLO, &Hello::own())?;
        let hello: Hello =
            super::message::read("greeting", &hear(channel, "greeting", kind::READY)?)?;
        log::info!(
            "upgrade: process {} (version {}) is ready",
            hello.pid,
            hello.version
        );
        self.send_listeners(channel)?;
        hear(
            channel,
            "waiting until the new process accepts",
            kind::LISTENING,
        )?;
        self.accepting.send_replace(false);

        let started = Instant::now();
        let (to, late) = mpsc::channel();
        self.relays.redirect(Some(to));
        let moved = self.commit(channel, self.relays.release())?;
        log::info!(
            "upgrade: {moved} connections handed over to process {} in {} ms",
            hello.pid,
            started.elapsed().as_millis()
        );
        self.follow(channel, &late)?;
        log::info!("upgrade: complete, leaving");
        std::process::exit(0);
    }

    fn send_listeners(&self, channel: &Channel) -> Result<(), UpgradeError> {
        let step = "sending the listeners";
        let listeners = self.listeners();
        for batch in listeners.chunks(MAX_DESCRIPTORS) {
            let addresses = batch.iter().map(|(address, _)| *address).collect();
            let payload = serde_json::to_vec(&Listeners { addresses }).map_err(Into::into);
            let descriptors: Vec<_> = batch.iter().map(|(_, socket)| socket.as_fd()).collect();
            payload
                .and_then(|payload| channel.send(kind::LISTENERS, &payload, &descriptors))
                .map_err(UpgradeError::at(step))?;
        }
        let metrics = self.metrics.encode();
        say(channel, step, kind::STATE, &State { metrics })
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

    /// Stays until the connections that were still on their way have followed or ended.
    fn follow(&self, channel: &Channel, late: &Receiver<Carried>) -> Result<(), UpgradeError> {
        while self.connections.live() > 0 {
            match late.recv_timeout(LOOK) {
                Ok(pair) => {
                    self.commit(
                        channel,
                        std::iter::once(pair).chain(late.try_iter()).collect(),
                    )?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    // One that was on its way into a relay thread when the others left it.
                    let missed = self.relays.release();
                    if !missed.is_empty() {
                        self.commit(channel, missed)?;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Sends the pairs and waits until the new process says that it has them. When it does not, it
/// does not relay them either: it says so before it begins, and what it said can be read even
/// after it is gone.
fn send_pairs(channel: &Channel, pairs: &[Carried]) -> Result<(), UpgradeError> {
    let step = "sending connections";
    for batch in pairs.chunks(BATCH) {
        let (payload, descriptors) = encode(batch).map_err(UpgradeError::at(step))?;
        channel
            .send(kind::PAIRS, &payload, &descriptors)
            .map_err(UpgradeError::at(step))?;
    }
    say(channel, step, kind::COMMIT, &pairs.len())?;
    match hear(
        channel,
        "waiting for the new process to take them",
        kind::COMMITTED,
    ) {
        Ok(_) => Ok(()),
        Err(error) => {
            // Too late now: the new process must not begin after this one has given up on it.
            channel.end();
            match hear(channel, "giving up", kind::COMMITTED) {
                Ok(_) => Ok(()),
                Err(_) => Err(error),
            }
        }
    }
}
