//! Accepting, as a Pingora service.
//!
//! Pingora's own listening service retries a failed bind for half a minute and then stays up
//! without a listener, gives every connection buffers, and splits new connections between two
//! processes during an upgrade. This one drives the same `ServerApp` interface over sockets that
//! were bound before the server started.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client_stream::ClientStream;
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
    places: Arc<Semaphore>,
    threads: Option<usize>,
}

impl<A> ListenService<A> {
    /// A service over `sockets` (non-blocking, listening). `max_connections` bounds how many
    /// connections it serves at a time; beyond it, one more waits at each listener and all others
    /// in the kernel's queue.
    /// `threads` is the number of threads that serve them; `None` takes Pingora's setting.
    pub fn new(
        name: &str,
        app: Arc<A>,
        sockets: Vec<(Arc<Listener>, StdListener)>,
        max_connections: usize,
        threads: Option<usize>,
    ) -> Self {
        ListenService {
            name: name.to_owned(),
            app,
            sockets,
            places: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            threads,
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
                    let (app, places) = (self.app.clone(), self.places.clone());
                    accepting.spawn(accept(app, listener, socket, places, shutdown.clone()));
                }
                Err(error) => log::error!("cannot listen on {}: {error}", listener.address),
            }
        }
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
    places: Arc<Semaphore>,
    mut shutdown: ShutdownWatch,
) {
    let throttle = Throttle::default();
    let mut stopped = shutdown.clone();
    let stop = stopped.wait_for(|&stop| stop);
    tokio::pin!(stop);
    loop {
        let next = async {
            let (stream, client) = socket.accept().await?;
            // The semaphore is never closed.
            let permit = places.clone().acquire_owned().await;
            permit
                .map(|permit| (stream, client, permit))
                .map_err(io::Error::other)
        };
        let accepted = tokio::select! {
            _ = &mut stop => return,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, client, permit)) => {
                let connection = Box::new(ClientStream {
                    stream,
                    client,
                    listener: listener.clone(),
                    permit,
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

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: waiting helps, retrying at once does not.
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    exhausted
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
