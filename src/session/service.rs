//! Accepting, as a Pingora service.
//!
//! Pingora's own listening service retries a failed bind for half a minute and then stays up
//! without a listener, gives every connection buffers, and splits new connections between two
//! processes during an upgrade. This one drives the same `ServerApp` interface over sockets that
//! were bound before the server started: on the relay threads ([`door`](super::door)), or in tasks of
//! the runtime where there are none.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::client_stream::{ClientSocket, ClientStream};
use super::connections::{Connections, Live};
use super::door::AppDoor;
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
    /// Listeners on which that process does not accept: they are closed.
    pub given_up: watch::Receiver<Vec<SocketAddr>>,
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
    have_given_up: AtomicUsize,
}

impl AcceptLoops {
    /// Whether every loop has heard it.
    pub fn are_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst) >= self.all.load(Ordering::SeqCst)
    }

    /// Called before listeners are given up.
    pub fn about_to_give_up(&self) {
        self.have_given_up.store(0, Ordering::SeqCst);
    }

    /// Whether every loop has given up those of its listeners that were to be given up, and has
    /// counted who was in their queues.
    pub fn have_given_up(&self) -> bool {
        self.have_given_up.load(Ordering::SeqCst) >= self.all.load(Ordering::SeqCst)
    }
}

impl<A> ListenService<A> {
    /// A service over `sockets` (non-blocking, listening). `threads` is the number of threads
    /// that serve them; `None` takes Pingora's setting. With `relays`, connections are accepted
    /// on the relay threads.
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
        let mut turn = None;
        for (listener, socket) in self.sockets.drain(..) {
            if let Some(relays) = &self.relays
                && relays.can_relay()
            {
                log::info!("listening on {}", listener.address);
                let app = self.app.clone();
                let admission = &self.admission;
                // Counted before anything is accepted: an upgrade waits for those that are counted.
                turn.get_or_insert_with(|| Turn::new(admission, &shutdown));
                let door = AppDoor::new(app, listener, socket, admission, shutdown.clone());
                relays.listen(&(Arc::new(door) as Arc<dyn Door>));
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
        if let (Some(relays), Some(turn)) = (&self.relays, turn) {
            accepting.spawn(follow(relays.clone(), turn, shutdown.clone()));
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
    given_up: watch::Receiver<Vec<SocketAddr>>,
    stopped: ShutdownWatch,
    loops: Arc<AcceptLoops>,
    paused: bool,
}

/// What a loop that has paused hears.
enum Heard {
    /// It is to accept again.
    Accept,
    /// The process is leaving.
    Stop,
    /// Another process serves, and nobody accepts on these any more.
    GiveUp(Vec<SocketAddr>),
}

impl Turn {
    fn new(admission: &Admission, shutdown: &ShutdownWatch) -> Self {
        let loops = admission.loops.clone();
        loops.all.fetch_add(1, Ordering::SeqCst);
        Turn {
            accepting: admission.accepting.clone(),
            given_up: admission.given_up.clone(),
            stopped: shutdown.clone(),
            loops,
            paused: false,
        }
    }

    /// Resolves when this loop is to accept no more for now.
    async fn is_over(&mut self) {
        until(&mut self.accepting, false).await;
    }

    /// Another process accepts now; waits for what this one is to do next. After
    /// [`Heard::GiveUp`], the loop says what it did and is still paused.
    async fn hears(&mut self) -> Heard {
        if !std::mem::replace(&mut self.paused, true) {
            self.loops.paused.fetch_add(1, Ordering::SeqCst);
        }
        let heard = tokio::select! {
            () = until(&mut self.stopped, true) => Heard::Stop,
            () = until(&mut self.accepting, true) => Heard::Accept,
            Ok(()) = self.given_up.changed() => {
                return Heard::GiveUp(self.given_up.borrow_and_update().clone());
            }
        };
        self.paused = false;
        self.loops.paused.fetch_sub(1, Ordering::SeqCst);
        heard
    }

    /// The listeners are given up, and this loop has others.
    fn has_given_up(&self) {
        self.loops.have_given_up.fetch_add(1, Ordering::SeqCst);
    }

    /// The only listener of this paused loop is given up.
    fn leaves(self) {
        self.loops.all.fetch_sub(1, Ordering::SeqCst);
        self.loops.paused.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Has the relay threads accept, or not, as it is told, until the shutdown begins.
async fn follow(relays: Arc<Relays>, mut turn: Turn, mut stopped: ShutdownWatch) {
    loop {
        tokio::select! {
            () = until(&mut stopped, true) => return relays.stop_listening(),
            () = turn.is_over() => {}
        }
        relays.pause_listening().await;
        loop {
            match turn.hears().await {
                Heard::Accept => break relays.resume_listening(),
                Heard::Stop => return relays.stop_listening(),
                Heard::GiveUp(addresses) => {
                    relays.give_up(addresses.into()).await;
                    turn.has_given_up();
                }
            }
        }
    }
}

/// Accepts until the shutdown begins, or another process serves that does not have this listener;
/// then the socket closes.
pub(crate) async fn accept<A: ServerApp + Send + Sync + 'static>(
    app: Arc<A>,
    listener: Arc<Listener>,
    socket: TcpListener,
    admission: Admission,
    mut shutdown: ShutdownWatch,
) {
    let mut turn = Turn::new(&admission, &shutdown);
    let throttle = Throttle::default();
    let mut stopped = shutdown.clone();
    let stop = until(&mut stopped, true);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => return,
            () = turn.is_over() => {
                let gives_up = loop {
                    match turn.hears().await {
                        Heard::Accept => break false,
                        Heard::Stop => return,
                        Heard::GiveUp(addresses) if addresses.contains(&listener.address) => {
                            break true;
                        }
                        Heard::GiveUp(_) => turn.has_given_up(),
                    }
                };
                if !gives_up {
                    continue;
                }
                // Whoever came before it was known that nobody accepts any more is served. The
                // runtime may not have heard of all of them yet, the socket itself has.
                let queued = socket.into_std().and_then(take_queued).unwrap_or_default();
                let queued: Vec<_> = queued
                    .into_iter()
                    .map(|(stream, client)| (stream, client, admission.connections.enter()))
                    .collect();
                turn.leaves();
                for accepted in queued {
                    admit(&app, &listener, &admission, &shutdown, accepted).await;
                }
                return;
            }
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let accepted = (stream, client, admission.connections.enter());
                tokio::select! {
                    () = &mut stop => return,
                    () = admit(&app, &listener, &admission, &shutdown, accepted) => {}
                }
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

/// Gives the connection to `app` once there is a place for it.
async fn admit<A: ServerApp + Send + Sync + 'static>(
    app: &Arc<A>,
    listener: &Arc<Listener>,
    admission: &Admission,
    shutdown: &ShutdownWatch,
    (stream, client, live): (TcpStream, SocketAddr, Live),
) {
    // The semaphores are never closed.
    let handshake = match &listener.tls {
        Some(tls) => match tls.handshakes.clone().acquire_owned().await {
            Ok(handshake) => Some(handshake),
            Err(_) => return,
        },
        None => None,
    };
    let Ok(permit) = admission.places.clone().acquire_owned().await else {
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

/// Every connection that the kernel has completed on this socket. The socket is closed.
fn take_queued(socket: StdListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let mut queued = Vec::new();
    loop {
        match socket.accept() {
            Ok((stream, client)) => {
                stream.set_nonblocking(true)?;
                queued.push((TcpStream::from_std(stream)?, client));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(queued),
            // The client was gone before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return Ok(queued),
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
