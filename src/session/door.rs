//! Accepting on the relay threads.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use pingora_core::apps::ServerApp;
use pingora_core::server::ShutdownWatch;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client_stream::{ClientSocket, ClientStream};
use super::connections::Connections;
use super::listener::Listener;
use super::relay::listening::{Accepted, Again, Door};
use super::service::{Admission, EXHAUSTED_PAUSE, is_exhausted};
use crate::telemetry::throttle::Throttle;

/// A listening socket whose connections go to a `ServerApp` on the thread that accepts them. What
/// the app cannot do without waiting goes on in the runtime.
pub(super) struct AppDoor<A> {
    app: Arc<A>,
    listener: Arc<Listener>,
    socket: TcpListener,
    places: Arc<Semaphore>,
    connections: Arc<Connections>,
    shutdown: ShutdownWatch,
    runtime: Handle,
    throttle: Throttle,
}

/// What a connection takes of what there is a limited number of.
struct Places {
    connection: OwnedSemaphorePermit,
    handshake: Option<OwnedSemaphorePermit>,
}

impl<A: ServerApp + Send + Sync + 'static> AppDoor<A> {
    /// Must be called within the runtime that is to go on.
    pub fn new(
        app: Arc<A>,
        listener: Arc<Listener>,
        socket: TcpListener,
        admission: &Admission,
        shutdown: ShutdownWatch,
    ) -> Self {
        AppDoor {
            app,
            listener,
            socket,
            places: admission.places.clone(),
            connections: admission.connections.clone(),
            shutdown,
            runtime: Handle::current(),
            throttle: Throttle::default(),
        }
    }

    /// Begins to serve a connection here and now.
    fn serve(&self, socket: OwnedFd, client: SocketAddr, places: Places) {
        let connection = Box::new(ClientStream {
            socket: ClientSocket::Bare(socket),
            client,
            listener: self.listener.clone(),
            permit: places.connection,
            live: self.connections.enter(),
            handshake: places.handshake,
        });
        let (app, shutdown) = (self.app.clone(), self.shutdown.clone());
        let mut served: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            app.process_new(connection, &shutdown).await;
        });
        let _inside = self.runtime.enter();
        // Nobody needs to be woken: what is not ready now is polled again, by the runtime.
        let mut context = Context::from_waker(Waker::noop());
        if served.as_mut().poll(&mut context).is_pending() {
            self.runtime.spawn(served);
        }
    }

    /// Takes the places that a connection needs, or gives the semaphore that has none.
    fn take_places(&self) -> Result<Places, &Arc<Semaphore>> {
        let take = |places: &Arc<Semaphore>| places.clone().try_acquire_owned();
        let handshakes = self.listener.tls.as_ref().map(|tls| &tls.handshakes);
        Ok(Places {
            handshake: match handshakes {
                Some(handshakes) => Some(take(handshakes).map_err(|_| handshakes)?),
                None => None,
            },
            connection: take(&self.places).map_err(|_| &self.places)?,
        })
    }

    fn failed(&self, error: io::Error, again: Again) -> Accepted {
        let address = self.listener.address;
        if !is_exhausted(&error) {
            // The client was gone before it was accepted.
            log::debug!("accept on {address}: {error}");
            return Accepted::One;
        }
        if let Some(more) = self.throttle.admit("accept") {
            log::error!("cannot accept on {address}: {error}; clients wait{more}");
        }
        self.runtime.spawn(async move {
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
            again.open();
        });
        Accepted::Shut
    }
}

impl<A: ServerApp + Send + Sync + 'static> Door for AppDoor<A> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn address(&self) -> SocketAddr {
        self.listener.address
    }

    fn accept(&self, again: Again) -> Accepted {
        let places = match self.take_places() {
            Ok(places) => places,
            Err(full) => {
                let full = full.clone();
                self.runtime.spawn(async move {
                    // The semaphores are never closed.
                    let _ = full.acquire().await;
                    again.open();
                });
                return Accepted::Shut;
            }
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match acceptfrom_with(&self.socket, flags) {
            Ok((socket, client)) => {
                let client = client.map(SocketAddr::try_from);
                if let Some(Ok(client)) = client {
                    self.serve(socket, client, places);
                }
                Accepted::One
            }
            Err(Errno::AGAIN) => Accepted::None,
            Err(error) => self.failed(error.into(), again),
        }
    }
}
