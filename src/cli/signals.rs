//! Signals. Pingora listens for one signal, once, and dies of those that it does not know.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::background::BackgroundService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use super::drain::{HURRY, Leaving};
use crate::upgrade::control::Report;
use crate::upgrade::old_side::OldSide;

/// Handles the signals of the process from start to end: a Pingora background service.
pub(super) struct Signals {
    received: Mutex<Option<[Signal; 6]>>,
    /// Told on SIGHUP.
    pub reload: Arc<Notify>,
    /// Told on the first SIGTERM.
    pub terminate: Arc<Notify>,
    /// Told on the second.
    pub hurry: Arc<Notify>,
    upgrade: OnceLock<Arc<OldSide>>,
    leaving: OnceLock<Leaving>,
}

impl Signals {
    /// Takes the signals over at once, before anything else is started: the default action of most
    /// of them ends the process. One that arrives before the service runs is handled then.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn take_over() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let _inside = runtime.enter();
        let received = [
            signal(SignalKind::hangup())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::quit())?,
            signal(SignalKind::user_defined1())?,
            signal(SignalKind::user_defined2())?,
        ];
        Ok(Signals {
            received: Mutex::new(Some(received)),
            reload: Arc::default(),
            terminate: Arc::default(),
            hurry: Arc::default(),
            upgrade: OnceLock::new(),
            leaving: OnceLock::new(),
        })
    }

    /// Does the work in a thread of its own and waits for it, unless a signal asks this process to
    /// end: `None` then.
    ///
    /// # Errors
    /// When there is no descriptor or no thread for it.
    pub fn unless_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Option<T>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let Some([_, terminate, interrupt, ..]) = received.as_mut() else {
            return Ok(Some(work()));
        };
        let (done, has_done) = oneshot::channel();
        std::thread::Builder::new().spawn(move || done.send(work()))?;
        Ok(runtime.block_on(async {
            tokio::select! {
                result = has_done => result.ok(),
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
            }
        }))
    }

    /// Makes upgrades possible.
    pub fn set_upgrade(&self, upgrade: Arc<OldSide>) {
        // Set once, by `run`.
        let _ = self.upgrade.set(upgrade);
    }

    /// What is to be done before the process exits.
    pub fn set_leaving(&self, leaving: Leaving) {
        // Set once, by `run`.
        let _ = self.leaving.set(leaving);
    }

    /// Exits, with the last lines of the access log written.
    fn exit(&self) -> ! {
        if let Some(leaving) = self.leaving.get() {
            leaving.last_words();
        }
        std::process::exit(0);
    }

    /// Opens the access log again.
    fn reopen(&self) {
        match self
            .leaving
            .get()
            .and_then(|leaving| leaving.access_log.as_ref())
        {
            Some(log) => {
                log::info!("SIGUSR1: opening the access log again");
                log.reopen();
            }
            None => log::info!("SIGUSR1: there is no access log to open again"),
        }
    }

    /// Hands over to a new process: to the one that `start` starts, or to one that waits already.
    fn hand_over(&self, start: Option<Command>) {
        match self.upgrade.get() {
            Some(upgrade) => upgrade.begin(start, Report::default()),
            None => log::error!("this process cannot be upgraded; see its first log lines"),
        }
    }

    /// The signals; once.
    fn received(&self) -> Option<[Signal; 6]> {
        self.received.lock().ok()?.take()
    }
}

#[async_trait]
impl BackgroundService for Signals {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(signals) = self.received() else {
            return;
        };
        let [
            mut hangup,
            mut terminate,
            mut interrupt,
            mut quit,
            mut user1,
            mut user2,
        ] = signals;
        let mut terminations = 0_u32;
        // Goes on after the shutdown has begun, so that a second signal can cut it short.
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    log::info!("SIGHUP: reading the standalone file again");
                    self.reload.notify_one();
                }
                _ = terminate.recv() => {
                    terminations += 1;
                    match terminations {
                        1 => {
                            if let Some(upgrade) = self.upgrade.get() {
                                upgrade.close_listeners();
                            }
                            self.terminate.notify_one();
                        }
                        2 => {
                            log::warn!(
                                "second SIGTERM: all connections are sent away now; exiting within {HURRY:?}"
                            );
                            self.hurry.notify_one();
                        }
                        _ => {
                            log::warn!("third SIGTERM: exiting now, live connections are cut");
                            self.exit();
                        }
                    }
                }
                _ = interrupt.recv() => {
                    log::warn!("SIGINT: exiting now, live connections are cut");
                    self.exit();
                }
                _ = quit.recv() => {
                    log::info!("SIGQUIT: handing over to the process that waits for it");
                    self.hand_over(None);
                }
                _ = user1.recv() => self.reopen(),
                _ = user2.recv() => {
                    log::info!("SIGUSR2: upgrading to the binary on disk");
                    self.hand_over(Some(same_command_to_upgrade()));
                }
            }
        }
    }
}

/// What is on disk now under the name by which this process was started, with the same arguments.
/// The name and not the file that runs: a link may lead to a newer version since.
pub(super) fn same_command_to_upgrade() -> Command {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "mqtt-proxy".into());
    let mut command = Command::new(name);
    for argument in arguments {
        match argument.as_bytes() {
            b"--upgrade" | b"-u" => {}
            [b'-', b'u', rest @ ..] => {
                command.arg(OsStr::from_bytes(&[b"-", rest].concat()));
            }
            _ => {
                command.arg(argument);
            }
        }
    }
    command.arg("--upgrade");
    // systemd names the process that is to send signs of life; from now on it is the new one.
    command.env_remove("WATCHDOG_PID");
    command
}

/// Tells Pingora when to begin the shutdown.
pub(super) struct Terminate(pub Arc<Notify>);

#[async_trait]
impl ShutdownSignalWatch for Terminate {
    async fn recv(&self) -> ShutdownSignal {
        self.0.notified().await;
        log::info!("SIGTERM: no longer accepting; live connections are sent away");
        ShutdownSignal::GracefulTerminate
    }
}
