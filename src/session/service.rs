//! Accepting, as a Pingora service.
//!
//! Pingora's own listening service retries a failed bind for half a minute and then stays up
//! without a listener, gives every connection buffers, and splits new connections between two
//! processes during an upgrade. This one drives the same `ServerApp` interface over sockets that
//! were bound before the server started: plain ones on the relay threads ([`door`](super::door)),
//! all others in tasks of the runtime.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::client_stream::{ClientSocket, ClientStream};
use super::connections::Connections;
use super::door::PlainDoor;
use super::listener::Listener;
use super::relay::Relays;
use super::relay::listening::Door;
use crate::telemetry::throttle::Throttle;

/// Pause after an accept that failed for want of descriptors or memory: the connection stays in
/// the kernel's queue and would fail again at once.
pub(super) const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts on a set of sockets and gives each connection to `app`.
pub struct ListenService<A> {
    name: String,
    app: Arc<A>,
    sockets: Vec<(Arc<Listener>, StdListener)>,
    threads: Option<usize>,
    admission: Admission,
    relays: Option<Arc<Relays>>,
}

/// When connections are accepted.
#[derive(Clone)]
pub struct Admission {
    /// How many connections may be served at a time; beyond it, one more waits at each listener
    /// and all others in the kernel's queue.
    pub places: Arc<Semaphore>,
    /// Where connections are counted.
    pub connections: Arc<Connections>,
    /// False while another process accepts on the same sockets (an upgrade).
    pub accepting: watch::Receiver<bool>,
    /// Which accept loops there are and which have heard that they do not accept.
    pub loops: Arc<AcceptLoops>,
    /// Told once all listeners accept.
    pub started: mpsc::Sender<()>,
    /// Where the runtime that serves them is put, for whoever watches its progress.
    pub runtime: Arc<OnceLock<Handle>>,
}

/// How many loops accept, and how many of them have heard that they do not.
#[derive(Debug, Default)]
pub struct AcceptLoops {
    all: AtomicUsize,
    paused: AtomicUsize,
}

impl AcceptLoops {
    /// Whether every loop has heard it.
    pub fn are_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst) >= self.all.load(Ordering::SeqCst)
    }
}

impl<A> ListenService<A> {
    /// A service over `sockets` (non-blocking, listening). `threads` is the number of threads
    /// that serve them; `None` takes Pingora's setting. With `relays`, connections without TLS are
    /// accepted on the relay threads.
    pub fn new(
        name: &str,
        app: Arc<A>,
        sockets: Vec<(Arc<Listener>, StdListener)>,
        threads: Option<usize>,
        admission: Admission,
        relays: Option<Arc<Relays>>,
    ) -> Self {
        ListenService {
            name: name.to_owned(),
            app,
            sockets,
            threads,
            admission,
            relays,
        }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for ListenService<A> {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let mut accepting = JoinSet::new();
        let mut doors = false;
        for (listener, socket) in self.sockets.drain(..) {
            if let (None, Some(relays)) = (&listener.tls, &self.relays)
                && relays.can_relay()
            {
                log::info!("listening on {}", listener.address);
                let app = self.app.clone();
                let admission = &self.admission;
                let door = PlainDoor::new(app, listener, socket, admission, shutdown.clone());
                relays.listen(&(Arc::new(door) as Arc<dyn Door>));
                doors = true;
                continue;
            }
            match TcpListener::from_std(socket) {
                Ok(socket) => {
                    log::info!("listening on {}", listener.address);
                    let (app, admission) = (self.app.clone(), self.admission.clone());
                    accepting.spawn(accept(app, listener, socket, admission, shutdown.clone()));
                }
                Err(error) => log::error!("cannot listen on {}: {error}", listener.address),
            }
        }
        if let Some(relays) = self.relays.clone().filter(|_| doors) {
            let admission = self.admission.clone();
            accepting.spawn(follow(relays, admission, shutdown.clone()));
        }
        let _ = self.admission.runtime.set(Handle::current());
        // Nobody listens unless this process takes over from another one.
        let _ = self.admission.started.send(());
        accepting.join_all().await;
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// One accept loop: what it does when it is told to accept or not to.
struct Turn {
    accepting: watch::Receiver<bool>,
    stopped: ShutdownWatch,
    loops: Arc<AcceptLoops>,
}

impl Turn {
    fn new(admission: &Admission, shutdown: &ShutdownWatch) -> Self {
        let loops = admission.loops.clone();
        loops.all.fetch_add(1, Ordering::SeqCst);
        Turn {
            accepting: admission.accepting.clone(),
            stopped: shutdown.clone(),
            loops,
        }
    }

    /// Resolves when this loop is to accept no more for now.
    async fn is_over(&mut self) {
        until(&mut self.accepting, false).await;
    }

    /// Another process accepts now; waits in case this one has to go on, and says whether it has.
    async fn comes_again(&mut self) -> bool {
        self.loops.paused.fetch_add(1, Ordering::SeqCst);
        let again = tokio::select! {
            () = until(&mut self.stopped, true) => false,
            () = until(&mut self.accepting, true) => true,
        };
        self.loops.paused.fetch_sub(1, Ordering::SeqCst);
        again
    }
}

/// Has the relay threads accept, or not, as it is told, until the shutdown begins.
async fn follow(relays: Arc<Relays>, admission: Admission, shutdown: ShutdownWatch) {
    let mut turn = Turn::new(&admission, &shutdown);
    let mut stopped = shutdown;
    loop {
        tokio::select! {
            () = until(&mut stopped, true) => break,
            () = turn.is_over() => {}
        }
        relays.pause_listening().await;
        match turn.comes_again().await {
            true => relays.resume_listening(),
            false => break,
        }
    }
    relays.stop_listening();
}

/// Accepts until the shutdown begins; then the socket closes.
pub(crate) async fn accept<A: ServerApp + Send + Sync + 'static>(
    app: Arc<A>,
    listener: Arc<Listener>,
    socket: TcpListener,
    admission: Admission,
    mut shutdown: ShutdownWatch,
) {
    let mut turn = Turn::new(&admission, &shutdown);
    let Admission {
        places,
        connections,
        ..
    } = admission;
    let throttle = Throttle::default();
    let mut stopped = shutdown.clone();
    let stop = until(&mut stopped, true);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => return,
            () = turn.is_over() => match turn.comes_again().await {
                true => continue,
                false => return,
            },
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let live = connections.enter();
                let admitted = async {
                    // The semaphores are never closed.
                    let handshake = match &listener.tls {
                        Some(tls) => Some(tls.handshakes.clone().acquire_owned().await.ok()?),
                        None => None,
                    };
                    let permit = places.clone().acquire_owned().await.ok()?;
                    Some((permit, handshake))
                };
                let admitted = tokio::select! {
                    () = &mut stop => return,
                    admitted = admitted => admitted,
                };
                let Some((permit, handshake)) = admitted else {
                    return;
                };
                let connection = Box::new(ClientStream {
                    socket: ClientSocket::Registered(stream),
                    client,
                    listener: listener.clone(),
                    permit,
                    live,
                    handshake,
                });
                let (app, shutdown) = (app.clone(), shutdown.clone());
                tokio::spawn(async move { app.process_new(connection, &shutdown).await });
            }
            Err(error) if is_exhausted(&error) => {
                if let Some(more) = throttle.admit("accept") {
                    let address = listener.address;
                    log::error!("cannot accept on {address}: {error}; clients wait{more}");
                }
                tokio::select! {
                    _ = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                    _ = shutdown.changed() => return,
                }
            }
            // The client was gone before it was accepted.
            Err(error) => log::debug!("accept on {}: {error}", listener.address),
        }
    }
}

/// Waits until the value is the wanted one; for ever when nobody can change it any more.
async fn until(value: &mut watch::Receiver<bool>, wanted: bool) {
    let gone = value.wait_for(|&value| value == wanted).await.is_err();
    if gone {
        std::future::pending().await
    }
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: waiting helps, retrying at once does not.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    exhausted
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
