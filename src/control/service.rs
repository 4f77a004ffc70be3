//! The service behind the control API: it binds late where it must, goes on while the process
//! leaves, and gives every request a deadline.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::api::{Api, Scope};
use crate::session::listener::{Listener, bind};
use crate::session::service::{Admission, accept};

/// From accept to the end of the answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How often an address is tried again that somebody else has.
const RETRY: Duration = Duration::from_secs(1);

/// Where requests come in.
pub struct Door {
    /// The address, as a listener.
    pub listener: Arc<Listener>,
    /// The socket, or why there is none yet.
    pub socket: io::Result<StdListener>,
    /// Whether somebody asked for this address. One that nobody asked for is left to whoever has
    /// it, and is not tried again: to take it the moment it becomes free would keep its owner from
    /// coming back.
    pub wanted: bool,
}

/// Hands a socket over in upgrades from now on.
pub type Announce = Box<dyn Fn(SocketAddr, OwnedFd) + Send + Sync>;

/// Serves the control API, or a part of it.
pub struct ControlService {
    api: Arc<Bounded<Api>>,
    door: Option<Door>,
    admission: Admission,
    announce: Announce,
}

impl ControlService {
    /// A service for this door. `announce` is told of a socket that could be bound later only.
    pub fn new(api: Api, door: Door, admission: Admission, announce: Announce) -> Self {
        ControlService {
            api: Arc::new(Bounded(Arc::new(api))),
            door: Some(door),
            admission,
            announce,
        }
    }

    fn what(&self) -> &'static str {
        match self.api.0.scope {
            Scope::Whole => "control API",
            Scope::Status => "status server",
        }
    }

    /// The socket, as soon as it can be had; `None` when it never will be.
    async fn socket(
        &self,
        door: Door,
        mut shutdown: ShutdownWatch,
    ) -> Option<(Arc<Listener>, StdListener)> {
        let (what, listener) = (self.what(), door.listener);
        let address = listener.address;
        let error = match door.socket {
            Ok(socket) => return Some((listener, socket)),
            Err(error) => error,
        };
        if !door.wanted {
            log::warn!(
                "{what}: not served, {address} is not free ({error}); \
                 apisix.control chooses another address, enable_control: false needs none"
            );
            return None;
        }
        log::error!("{what}: cannot listen on {address}: {error}; trying again until it is free");
        loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = shutdown.changed() => return None,
            }
            // Bound while another process serves, it would be a socket that nobody accepts from.
            if !*self.admission.accepting.borrow() {
                continue;
            }
            if let Ok(socket) = bind(address) {
                match socket.try_clone() {
                    Ok(copy) => (self.announce)(address, copy.into()),
                    Err(error) => log::warn!("{what}: it will not move in an upgrade: {error}"),
                }
                return Some((listener, socket));
            }
        }
    }
}

#[async_trait]
impl Service for ControlService {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        // Set by whichever of the services is first.
        let _ = self.api.0.control.leaving.set(shutdown.clone());
        let Some(door) = self.door.take() else { return };
        let Some((listener, socket)) = self.socket(door, shutdown).await else {
            return;
        };
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                log::error!("{}: {error}", self.what());
                return;
            }
        };
        log::info!("{} at http://{}", self.what(), listener.address);
        // Whoever waits for the last connections to end wants to see them: this goes on until the
        // process exits.
        let (_until_then, never) = watch::channel(false);
        accept(
            self.api.clone(),
            listener,
            socket,
            self.admission.clone(),
            never,
        )
        .await;
    }

    fn name(&self) -> &str {
        self.what()
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// An application whose connections have a deadline: Pingora waits a minute for each read.
struct Bounded<A>(Arc<A>);

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Bounded<A> {
    async fn process_new(
        self: &Arc<Self>,
        session: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let served = self.0.process_new(session, shutdown);
        tokio::time::timeout(REQUEST_LIMIT, served).await.ok()?
    }
}
