//! Accepting, as a Pingora service.
//!
//! Pingora's own listening service retries a failed bind for half a minute and then stays up
//! without a listener, gives every connection buffers, and splits new connections between two
//! processes during an upgrade. This one drives the same `ServerApp` interface over sockets that
//! were bound before the server started.

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

use super::client_stream::ClientStream;
use super::connections::Connections;
use super::listener::Listener;
use crate::telemetry::throttle::Throttle;

/// Pause after an accept that failed for want of descriptors or memory: the connection stays in
/// the kernel's queue and would fail again at once.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts on a set of sockets and gives each connection to `app`.
pub struct ListenService<A> {
    name: String,
    app: Arc<A>,
    sockets: Vec<(Arc<Listener>, StdListener)>,
    threads: Option<usize>,
    admission: Admission,
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
    /// How many listeners have heard that they do not accept.
    pub paused: Arc<AtomicUsize>,
    /// Told once all listeners accept.
    pub started: mpsc::Sender<()>,
    /// Where the runtime that serves them is put, for whoever watches its progress.
    pub runtime: Arc<OnceLock<Handle>>,
}

impl<A> ListenService<A> {
    /// A service over `sockets` (non-blocking, listening). `threads` is the number of threads
    /// that serve them; `None` takes Pingora's setting.
    pub fn new(
        name: &str,
        app: Arc<A>,
        sockets: Vec<(Arc<Listener>, StdListener)>,
        threads: Option<usize>,
        admission: Admission,
    ) -> Self {
        ListenService {
            name: name.to_owned(),
            app,
            sockets,
            threads,
            admission,
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
        for (listener, socket) in self.sockets.drain(..) {
            match TcpListener::from_std(socket) {
                Ok(socket) => {
                    log::info!("listening on {}", listener.address);
                    let (app, admission) = (self.app.clone(), self.admission.clone());
                    accepting.spawn(accept(app, listener, socket, admission, shutdown.clone()));
                }
                Err(error) => log::error!("cannot listen on {}: {error}", listener.address),
            }
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

/// Accepts until the shutdown begins; then the socket closes.
async fn accept<A: ServerApp + Send + Sync + 'static>(
    app: Arc<A>,
    listener: Arc<Listener>,
    socket: TcpListener,
    admission: Admission,
    mut shutdown: ShutdownWatch,
) {
    let Admission {
        places,
        connections,
        mut accepting,
        paused,
        ..
    } = admission;
    let throttle = Throttle::default();
    let mut stopped = shutdown.clone();
    let stop = until(&mut stopped, true);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => return,
            () = until(&mut accepting, false) => {
                // Another process accepts now; this one waits in case it has to go on.
                paused.fetch_add(1, Ordering::SeqCst);
                let again = tokio::select! {
                    () = &mut stop => false,
                    () = until(&mut accepting, true) => true,
                };
                paused.fetch_sub(1, Ordering::SeqCst);
                match again {
                    true => continue,
                    false => return,
                }
            }
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
                    stream,
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
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    exhausted
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
