//! A connection from accept until CONNECT is there, as one who waits for it in a relay thread.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant as StdInstant;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::app::{ProxyApp, Unfinished, local_address};
use super::at_once::FirstRead;
use super::handshake::{Handshake, Opened, Terms};
use super::outcome::{End, Record};
use super::refusal::tell_and_close;
use super::relay::parked::{Parked, Step, Waiting};
use crate::tls::accept::{Failed, TlsError};

/// A connection in its beginning.
pub(super) struct Beginning {
    app: Arc<ProxyApp>,
    runtime: Handle,
    record: Record,
    stage: Stage,
}

/// How far it has come.
enum Stage {
    /// TLS, or what is taken for it, is on its way.
    Handshake(Handshake),
    /// It goes no further.
    Failed(Failed),
    /// CONNECT is on its way.
    Open(Opened),
    /// It has been read, or something else has come of it.
    Read(Opened, FirstRead),
}

impl Beginning {
    /// A connection of a listener with TLS. Must be called within the runtime that is to go on.
    pub fn with_tls(app: &Arc<ProxyApp>, record: Record, handshake: Handshake) -> Self {
        Beginning::new(app, record, Stage::Handshake(handshake))
    }

    /// A connection whose CONNECT is awaited. As above.
    pub fn open(app: &Arc<ProxyApp>, record: Record, opened: Opened) -> Self {
        Beginning::new(app, record, Stage::Open(opened))
    }

    fn new(app: &Arc<ProxyApp>, record: Record, stage: Stage) -> Self {
        Beginning {
            app: app.clone(),
            runtime: Handle::current(),
            record,
            stage,
        }
    }

    /// Has a relay thread wait for the connection.
    pub fn wait(self, socket: OwnedFd) {
        let app = self.app.clone();
        app.relays.park(Parked {
            socket,
            waiting: Box::new(self),
        });
    }

    /// Takes a step of the handshake; true once it is over, one way or the other.
    fn shake(&mut self, socket: BorrowedFd<'_>) -> bool {
        let Stage::Handshake(handshake) = &mut self.stage else {
            return true;
        };
        let record = &self.record;
        let terms = Terms {
            policy: &self.app.policy.tls,
            table: &self.app.table,
            client: record.client,
            server: &|| local_address(&socket, record),
        };
        let Some(opened) = handshake.step(socket, &terms) else {
            return false;
        };
        self.record.begun(opened.as_ref());
        self.stage = match opened {
            Ok(opened) => Stage::Open(opened),
            Err(failed) => Stage::Failed(failed),
        };
        true
    }
}

/// Ends a connection whose handshake has failed.
fn end(app: &ProxyApp, runtime: &Handle, socket: OwnedFd, mut record: Record, failed: Failed) {
    let error = match failed {
        Failed::ClientLeft => {
            record.end = End::ClientLeftEarly;
            return;
        }
        Failed::Refused(error) => error,
    };
    let alert = error.alert();
    let late = matches!(error, TlsError::Timeout(_));
    let refusal = error.into();
    record.refused(&refusal);
    app.report(&refusal, &record);
    if late {
        return;
    }
    runtime.spawn(async move {
        // Where there is no alert, OpenSSL has sent its own; a reset must not overtake it.
        if let Ok(socket) = TcpStream::from_std(socket.into()) {
            tell_and_close(socket, alert.as_ref().map_or(&[], |alert| alert)).await;
        }
        drop(record);
    });
}

impl Waiting for Beginning {
    fn until(&self) -> StdInstant {
        let limits = &self.app.policy.limits;
        let until = match &self.stage {
            Stage::Handshake(handshake) => handshake.until(),
            Stage::Open(opened) => {
                opened.since + limits.first_byte_timeout.min(limits.connect_timeout)
            }
            Stage::Failed(_) | Stage::Read(..) => Instant::now(),
        };
        until.into_std()
    }

    fn is_costly(&self) -> bool {
        matches!(self.stage, Stage::Handshake(_))
    }

    fn step(&mut self, socket: BorrowedFd<'_>) -> Step {
        if !self.shake(socket) {
            return match &self.stage {
                Stage::Handshake(handshake) if handshake.owes() => Step::Owe,
                _ => Step::Wait,
            };
        }
        let Stage::Open(opened) = &mut self.stage else {
            return Step::Over;
        };
        let read = self.app.first_read(socket, opened, &self.record);
        if !read.is_connect() {
            // A ticket goes with CONNACK, but not if that is not the next that the client gets.
            opened.let_go(socket);
        }
        match read {
            FirstRead::Nothing if opened.owes() => Step::Owe,
            FirstRead::Nothing => Step::Wait,
            read => {
                let opened = std::mem::replace(opened, Opened::plain(opened.since));
                self.stage = Stage::Read(opened, read);
                Step::Over
            }
        }
    }

    fn go_on(self: Box<Self>, socket: OwnedFd) {
        let Beginning {
            app,
            runtime,
            mut record,
            stage,
        } = *self;
        let serve = |unfinished| {
            let app = app.clone();
            runtime.spawn(async move { app.serve(unfinished).await });
        };
        match stage {
            // Its time is over.
            Stage::Handshake(_) => {
                let limit = app.policy.tls.handshake_timeout;
                let late = Failed::Refused(TlsError::Timeout(limit));
                record.begun(Err(&late));
                end(&app, &runtime, socket, record, late);
            }
            Stage::Failed(failed) => end(&app, &runtime, socket, record, failed),
            // The runtime tells a client that sends nothing in time.
            Stage::Open(opened) => serve(Unfinished {
                socket,
                opened,
                record,
            }),
            Stage::Read(opened, read) => {
                let _inside = runtime.enter();
                if let Some(unfinished) = app.go_on(socket, opened, read, record) {
                    serve(unfinished);
                }
            }
        }
    }
}
