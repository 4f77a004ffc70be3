//! What `mqtt-proxy upgrade` and the process that serves say to each other.
//!
//! The process that serves listens on a UNIX socket beside the one for upgrades, mode 0600, and
//! each side checks the user of the other. So the socket also says which process it is, and no
//! file with a process id can be stale. The command sends one line of JSON, [`Request`], and gets
//! a line for each [`Event`]. After an upgrade the new process puts its own socket in place of the
//! old one's by rename; a connection that the old one has lives until it leaves.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt::socket_peercred};
use serde::{Deserialize, Serialize};

use super::channel::trusted_peer;
use super::socket_path::{FileId, file, listen};
use super::{START_LIMIT, STEP_LIMIT};

/// The longest line of either side.
const MAX_LINE: u64 = 64 * 1024;
/// So many sockets are looked at, at most, when those of killed processes are removed.
const MAX_SWEPT: usize = 256;
/// How long the request may take to arrive, or one event to be taken.
const LINE_LIMIT: Duration = Duration::from_secs(2);
/// How long the command waits for the next event: no step of an upgrade takes longer.
const EVENT_LIMIT: Duration = Duration::from_secs(START_LIMIT.as_secs() + 4 * STEP_LIMIT.as_secs());

/// What the command asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Upgrade to the binary on disk, as on SIGUSR2.
    Upgrade,
}

/// How the upgrade goes. Fields may be added; an event that is not known is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The new process has been started.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// It has read its configuration and is ready to take over.
    Ready {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
    },
    /// It serves. The last event of an upgrade that succeeded.
    Moved {
        /// Its process id.
        pid: u32,
        /// Its version.
        version: String,
        /// How many connections it has taken.
        connections: usize,
        /// For how many milliseconds nobody relayed them.
        milliseconds: u64,
        /// How many are with the old process still, to follow or to end there.
        left: usize,
    },
    /// The old process goes on serving. The last event of an upgrade that failed.
    Failed {
        /// Why.
        why: String,
        /// The new process refuses its configuration.
        #[serde(default)]
        configuration: bool,
    },
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Where somebody hears how an upgrade goes, if anybody does.
#[derive(Debug, Default)]
pub struct Report(Option<UnixStream>);

impl Report {
    /// Tells the event. Nobody is waited for who does not listen.
    pub fn tell(&self, event: &Event) {
        if let Some(mut stream) = self.0.as_ref()
            && let Ok(line) = line(event)
            && let Err(error) = stream.write_all(&line)
        {
            log::debug!("nobody hears how the upgrade goes: {error}");
        }
    }
}

fn line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

type Upgrade = Box<dyn Fn(Report) + Send + Sync>;

/// The socket of the process that serves.
pub struct Control {
    path: PathBuf,
    bound: Mutex<Option<Bound>>,
    /// It is not to be found any more.
    withdrawn: AtomicBool,
    upgrade: OnceLock<Upgrade>,
}

struct Bound {
    listener: UnixListener,
    /// Device and number of its file: another process may have put its own there since.
    file: FileId,
}

impl Control {
    /// A socket that is not there yet.
    pub fn at(path: PathBuf) -> Self {
        Control {
            path,
            bound: Mutex::default(),
            withdrawn: AtomicBool::new(false),
            upgrade: OnceLock::new(),
        }
    }

    /// What is done when somebody asks for an upgrade.
    pub fn on_upgrade(&self, upgrade: impl Fn(Report) + Send + Sync + 'static) {
        // Set once, by `run`.
        let _ = self.upgrade.set(Box::new(upgrade));
    }

    /// Makes this process the one that is found. Without the socket everything works but
    /// `mqtt-proxy upgrade`.
    pub fn publish(self: &Arc<Self>) {
        let mut bound = self.bound();
        // Looked at under the lock, like the socket itself.
        if self.withdrawn.load(Ordering::Relaxed) {
            return;
        }
        if bound
            .as_ref()
            .is_some_and(|bound| file(&self.path) == Some(bound.file))
        {
            return;
        }
        if let Some(before) = bound.take() {
            // Ends its thread.
            let _ = shutdown(&before.listener, Shutdown::Both);
        }
        match self.bind() {
            Ok(made) => *bound = Some(made),
            Err(error) => {
                let path = self.path.display();
                log::warn!("{path}: {error}; `mqtt-proxy upgrade` does not find this process");
            }
        }
    }

    fn bind(self: &Arc<Self>) -> io::Result<Bound> {
        let (listener, file) = listen(&self.path)?;
        let (accepting, own) = (listener.try_clone()?, self.clone());
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || own.serve(&accepting))?;
        Ok(Bound { listener, file })
    }

    /// Removes the sockets of processes that were killed, of whatever configuration.
    pub fn sweep(&self) {
        let folder = self.path.parent().map(fs::read_dir);
        let entries = folder.into_iter().flatten().flatten().flatten();
        let controls = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("control-") && name.ends_with(".sock")
        });
        for path in controls.take(MAX_SWEPT).map(|entry| entry.path()) {
            let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
            // It has its name only since it listens.
            if UnixStream::connect(&path).err().is_some_and(refused) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Takes the socket away, as far as it is this process's: it leaves, and nobody follows.
    pub fn withdraw(&self) {
        let mut bound = self.bound();
        self.withdrawn.store(true, Ordering::Relaxed);
        if let Some(bound) = bound.take() {
            let _ = shutdown(&bound.listener, Shutdown::Both);
            if file(&self.path) == Some(bound.file) {
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn bound(&self) -> MutexGuard<'_, Option<Bound>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One after the other: whoever may ask is this user or root.
    fn serve(&self, listener: &UnixListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.answer(stream) {
                        log::warn!("{}: {error}", self.path.display());
                    }
                }
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                Err(error) => {
                    log::warn!("{}: {error}", self.path.display());
                    std::thread::sleep(LINE_LIMIT);
                }
            }
        }
    }

    fn answer(&self, stream: UnixStream) -> io::Result<()> {
        let pid = trusted_peer(&stream)?;
        stream.set_read_timeout(Some(LINE_LIMIT))?;
        stream.set_write_timeout(Some(LINE_LIMIT))?;
        let mut text = String::new();
        let mut reader = BufReader::new(stream.try_clone()?).take(MAX_LINE);
        if reader.read_line(&mut text)? == 0 {
            return Ok(());
        }
        let report = Report(Some(stream));
        match (serde_json::from_str(&text), self.upgrade.get()) {
            (Ok(Request::Upgrade), Some(upgrade)) => {
                log::info!("process {pid} asks for an upgrade to the binary on disk");
                upgrade(report);
            }
            (Err(error), _) => report.tell(&Event::Failed {
                why: format!(
                    "process {} does not know the request: {error}",
                    std::process::id()
                ),
                configuration: false,
            }),
            (_, None) => report.tell(&Event::Failed {
                why: "this process cannot be upgraded; see its first log lines".to_owned(),
                configuration: false,
            }),
        }
        Ok(())
    }
}

/// A process that has been found, on the side of the command.
pub struct Running {
    stream: UnixStream,
    /// Its process id.
    pub pid: u32,
}

impl Running {
    /// Connects to the process that listens there; it must be one of this user, unless this one
    /// is root's.
    ///
    /// # Errors
    /// When nobody listens, or somebody else does.
    pub fn at(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        let peer = socket_peercred(&stream)?;
        let own = rustix::process::geteuid();
        if peer.uid != own && !own.is_root() {
            let what = format!("a process of user {} listens there", peer.uid.as_raw());
            return Err(io::Error::new(ErrorKind::PermissionDenied, what));
        }
        stream.set_read_timeout(Some(EVENT_LIMIT))?;
        stream.set_write_timeout(Some(LINE_LIMIT))?;
        Ok(Running {
            stream,
            pid: peer.pid.as_raw_nonzero().get() as u32,
        })
    }

    /// Asks for an upgrade; gives each event as it comes, until the process closes the connection.
    ///
    /// # Errors
    /// When the request cannot be sent. Of the events: when one does not come in time, or is none.
    pub fn upgrade(mut self) -> io::Result<impl Iterator<Item = io::Result<Event>>> {
        self.stream.write_all(&line(&Request::Upgrade)?)?;
        let mut reader = BufReader::new(self.stream);
        Ok(std::iter::from_fn(move || {
            let mut text = String::new();
            match (&mut reader).take(MAX_LINE).read_line(&mut text) {
                Ok(0) => None,
                Ok(_) => Some(serde_json::from_str(&text).map_err(Into::into)),
                Err(error) => Some(Err(error)),
            }
        }))
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
