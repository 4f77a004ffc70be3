//! The listening sockets of the process, bound here or inherited from the process before it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

use super::Failure;
use crate::config::settings::{self, Settings};
use crate::control::service::Door;
use crate::session::listener::{Listener, TlsListener, TlsMode, bind, prepare};
use crate::telemetry::metrics::Metrics;
use crate::upgrade::new_side::OTHER_DESCRIPTORS;

/// A listener and its socket.
type Bound = (Arc<Listener>, TcpListener);

/// Sockets that systemd opened and passes on (socket activation, sd_listen_fds(3)), by address.
/// To be called before any thread is started: it clears the environment variables.
pub(super) fn activated() -> Result<HashMap<SocketAddr, TcpListener>, Failure> {
    // Passed to this process, and not to one that started it.
    if std::env::var("LISTEN_PID").ok() != Some(std::process::id().to_string()) {
        return Ok(HashMap::new());
    }
    let mut passed = ListenFd::from_env();
    let mut sockets = HashMap::new();
    for index in 0..passed.len() {
        let failed = |error: io::Error| {
            Failure::Running(format!("LISTEN_FDS: socket number {index}: {error}"))
        };
        let socket = passed.take_tcp_listener(index).map_err(failed)?;
        if let Some(socket) = socket {
            let socket = prepare(socket).map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            sockets.insert(address, socket);
        }
    }
    Ok(sockets)
}

/// A socket that systemd holds open and nobody accepts from would keep its clients waiting.
pub(super) fn none_to_spare(
    activated: &HashMap<SocketAddr, TcpListener>,
    settings: &Settings,
) -> Result<(), Failure> {
    let listeners = settings.listeners.iter().map(|listener| listener.addr);
    let metrics = settings.metrics.iter().map(|metrics| metrics.addr);
    let control = settings.control.iter().map(|control| control.addr);
    let others = metrics.chain(control).chain(settings.status);
    let known: HashSet<SocketAddr> = listeners.chain(others).collect();
    match activated.keys().find(|address| !known.contains(address)) {
        None => Ok(()),
        Some(address) => {
            log::error!(
                "LISTEN_FDS has a socket for {address}, on which config.yaml does not listen"
            );
            Err(Failure::Configuration)
        }
    }
}

/// All listening sockets.
pub(super) struct Sockets {
    /// Those of clients.
    pub clients: Vec<Bound>,
    /// The one of the metrics endpoint, if there is one.
    pub metrics: Option<Bound>,
    /// The one of the control API, if there is to be one.
    pub control: Option<Door>,
    /// The one of the status server, if there is to be one.
    pub status: Option<Door>,
    /// Those of the process before this one that this configuration does not have.
    pub without: Vec<SocketAddr>,
}

impl Sockets {
    /// Takes each listener that is among `inherited` and binds the others. What is left of
    /// `inherited` closes: this configuration does not have it any more.
    pub fn open(
        settings: &Settings,
        metrics: &Metrics,
        mut inherited: HashMap<SocketAddr, TcpListener>,
    ) -> Result<Self, Failure> {
        let mut take = |address: SocketAddr| match inherited.remove(&address) {
            Some(socket) => Ok(socket),
            None => bind(address),
        };
        let mut open = |address: SocketAddr, written: &str| {
            take(address)
                .map_err(|error| Failure::Running(format!("cannot listen on {written}: {error}")))
        };
        let places = settings.tls.max_handshakes.min(Semaphore::MAX_PERMITS);
        let handshakes = Arc::new(Semaphore::new(places));
        metrics.handshake_places(handshakes.clone(), places);
        let mut clients = Vec::with_capacity(settings.listeners.len());
        for configured in &settings.listeners {
            let socket = open(configured.addr, &configured.written)?;
            let listener = Listener {
                address: configured.addr,
                counts: metrics.listener(configured.addr),
                tls: tls_mode(configured).map(|mode| TlsListener {
                    mode,
                    handshakes: handshakes.clone(),
                }),
            };
            clients.push((Arc::new(listener), socket));
        }
        let metrics = match &settings.metrics {
            None => None,
            Some(configured) => match open(configured.addr, &configured.addr.to_string()) {
                Ok(socket) => Some((not_for_clients(configured.addr), socket)),
                Err(failure) if configured.required => return Err(failure),
                // Nobody asked for it: another proxy on this machine may have it.
                Err(Failure::Running(why)) => {
                    log::warn!("no metrics are served: {why}; mqtt_proxy.metrics says where else");
                    None
                }
                Err(failure) => return Err(failure),
            },
        };
        let control = settings.control.map(|control| Door {
            listener: not_for_clients(control.addr),
            socket: take(control.addr),
            wanted: control.written,
        });
        let status = settings.status.map(|address| Door {
            listener: not_for_clients(address),
            socket: take(address),
            wanted: true,
        });
        Ok(Sockets {
            clients,
            metrics,
            control,
            status,
            without: inherited.into_keys().collect(),
        })
    }

    /// The listeners of clients by address.
    pub fn listeners(&self) -> HashMap<SocketAddr, Arc<Listener>> {
        let listeners = self.clients.iter().map(|(listener, _)| listener);
        listeners
            .map(|listener| (listener.address, listener.clone()))
            .collect()
    }

    /// The listeners of clients in file order.
    pub fn in_order(&self) -> Vec<Arc<Listener>> {
        let listeners = self.clients.iter();
        listeners.map(|(listener, _)| listener.clone()).collect()
    }

    /// A second descriptor of every socket, to be handed over in an upgrade.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn clones(&self) -> io::Result<Vec<(SocketAddr, OwnedFd)>> {
        let bound = self.clients.iter().chain(&self.metrics);
        let bound = bound.map(|(listener, socket)| (listener.address, socket));
        let doors = self.control.iter().chain(&self.status);
        let doors =
            doors.filter_map(|door| Some((door.listener.address, door.socket.as_ref().ok()?)));
        bound
            .chain(doors)
            .map(|(address, socket)| Ok((address, socket.try_clone()?.into())))
            .collect()
    }
}

/// Requests and scrapes are no client connections: counts that nobody reads.
fn not_for_clients(address: SocketAddr) -> Arc<Listener> {
    Arc::new(Listener {
        address,
        counts: Metrics::default().listener(address),
        tls: None,
    })
}

/// What a listener does with TLS, by its two switches.
fn tls_mode(listener: &settings::Listener) -> Option<TlsMode> {
    match (listener.tls, listener.tls_passthrough) {
        (false, false) => None,
        (true, false) => Some(TlsMode::End),
        (false, true) => Some(TlsMode::Pass),
        (true, true) => Some(TlsMode::RouteDecides),
    }
}

/// Raises the soft limit of open files to the hard one; gives the limit, `None` for none.
pub(super) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// How many client connections may live at a time with so many open files: each takes two.
pub(super) fn max_connections(
    settings: &Settings,
    listeners: usize,
    open_files: Option<u64>,
) -> usize {
    // A listener has a second descriptor for an upgrade.
    let reserved = OTHER_DESCRIPTORS + 2 * listeners as u64;
    let possible = open_files.map_or(u64::MAX, |files| files.saturating_sub(reserved) / 2);
    let possible = usize::try_from(possible).unwrap_or(usize::MAX).max(1);
    match settings.limits.max_connections {
        0 => possible,
        wanted if wanted > possible => {
            log::warn!(
                "max_connections is {wanted}, but the limit of open files allows {possible}; raise LimitNOFILE"
            );
            possible
        }
        wanted => wanted,
    }
}
