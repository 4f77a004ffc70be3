//! The access log: one line when a connection is admitted, which may live for weeks, and one when
//! it ends.
//!
//! Traffic never waits for it. Lines go through a bounded queue to a thread of their own; those
//! that find the queue full are dropped and counted.

mod details;
mod format;
mod nginx;
mod output;
mod writer;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use crate::config::settings::{AccessLogFormat, AccessLogSettings, ClientIdPolicy};
use output::Output;
use writer::{Message, Writer};

pub use details::{Details, TlsDetails};

/// The most bytes of a client id or user name that are shown.
const SHOWN: usize = 128;
/// Pause between two tries to get a flush into a full queue.
const RETRY: Duration = Duration::from_millis(2);

/// How a connection ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Who ended it: `client`, `broker` or `proxy`.
    pub side: &'static str,
    /// How far it had come: `accept`, `handshake`, `connect`, `dial` or `relay`.
    pub phase: &'static str,
    /// Why.
    pub reason: &'static str,
    /// nginx's `$status`.
    pub status: &'static str,
    /// How long it lived.
    pub duration: Duration,
    /// Bytes that reached the broker.
    pub to_broker: u64,
    /// Bytes that reached the client.
    pub to_client: u64,
}

/// What a line is made from.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// The client's address.
    pub client: SocketAddr,
    /// The listener's address.
    pub listener: SocketAddr,
    /// Route id.
    pub route: Option<&'a str>,
    /// Route name.
    pub route_name: Option<&'a str>,
    /// Service id.
    pub service: Option<&'a str>,
    /// Service name.
    pub service_name: Option<&'a str>,
    /// The upstream's label.
    pub upstream: Option<&'a str>,
    /// The node's label.
    pub node: Option<&'a str>,
    /// Everything that was learnt on the way.
    pub details: &'a Details,
    /// How it ended; `None` on the line of its admission.
    pub ending: Option<Ending>,
}

/// The access log of the process.
#[derive(Debug)]
pub struct AccessLog {
    format: AccessLogFormat,
    policy: ClientIdPolicy,
    queue_size: usize,
    queue: OnceLock<SyncSender<Message>>,
    /// Until the first line: a process that becomes a daemon forks before that, and threads do not
    /// survive a fork.
    writer: Mutex<Option<Writer>>,
    reopen: Arc<AtomicBool>,
    dropped: Counter,
    /// The upper half of every id.
    process: u64,
    next: AtomicU32,
}

impl AccessLog {
    /// Opens the log. `config` is the path of `config.yaml`, to whose folder files are relative;
    /// `dropped` counts lines that were not written.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(
        settings: &AccessLogSettings,
        config: &Path,
        dropped: Counter,
    ) -> io::Result<Arc<Self>> {
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            output: Output::open(settings, config)?,
            reopen: reopen.clone(),
            dropped: dropped.clone(),
        };
        Ok(Arc::new(AccessLog {
            format: settings.format.clone(),
            policy: settings.client_id,
            queue_size: settings.queue,
            queue: OnceLock::new(),
            writer: Mutex::new(Some(writer)),
            reopen,
            dropped,
            process: RandomState::new().build_hasher().finish() & !u64::from(u32::MAX),
            next: AtomicU32::new(0),
        }))
    }

    /// An id for a new connection.
    pub fn next_id(&self) -> u64 {
        self.process | u64::from(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A client id or user name as it may be logged.
    pub fn shown(&self, bytes: &[u8]) -> Option<Box<str>> {
        match self.policy {
            ClientIdPolicy::Plain => Some(printable(bytes).into()),
            ClientIdPolicy::Hash => {
                let digest = openssl::sha::sha256(bytes);
                let hex = digest[..8].iter().map(|byte| format!("{byte:02x}"));
                Some(hex.collect::<String>().into())
            }
            ClientIdPolicy::Omit => None,
        }
    }

    /// Writes a line, or drops it when too many wait already.
    pub fn write(&self, line: &Line<'_>) {
        let bytes = match &self.format {
            AccessLogFormat::Json => format::json(line),
            AccessLogFormat::Logfmt => format::logfmt(line),
            AccessLogFormat::Nginx { .. } if line.ending.is_none() => return,
            AccessLogFormat::Nginx { parts, escape } => nginx::line(line, parts, *escape),
        };
        let sent = self
            .queue()
            .is_some_and(|queue| queue.try_send(Message::Line(bytes)).is_ok());
        if !sent {
            self.dropped.inc();
        }
    }

    /// Opens the file again under its name, after something else has renamed it.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::SeqCst);
        if let Some(queue) = self.queue() {
            // A full queue has the writer awake.
            let _ = queue.try_send(Message::Wake);
        }
    }

    /// Waits until everything so far is written, but no longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let Some(queue) = self.queue.get() else {
            return;
        };
        let until = Instant::now() + limit;
        let (done, written) = mpsc::channel();
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = queue.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            message = back;
            std::thread::sleep(RETRY);
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    fn queue(&self) -> Option<&SyncSender<Message>> {
        if self.queue.get().is_none() {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(writer) = writer.take() {
                let (to, queue) = mpsc::sync_channel(self.queue_size);
                let thread = std::thread::Builder::new().name("access-log".to_owned());
                match thread.spawn(move || writer.run(&queue)) {
                    Ok(_) => _ = self.queue.set(to),
                    Err(error) => log::error!("the access log has no thread: {error}"),
                }
            }
        }
        self.queue.get()
    }
}

/// Bytes as text: what is no UTF-8 as `\xHH`, cut after [`SHOWN`] bytes with `…`. Control
/// characters are left to the format.
fn printable(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let mut text = String::with_capacity(shown.len());
    for chunk in shown.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
