//! Connecting to a broker: one address after the other until one answers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use tokio::net::{TcpSocket, TcpStream};

use super::Upstream;
use super::node::InFlight;
use super::source_address::SourceAddresses;
use super::targets::Target;
use crate::config::resource::upstream as resource;
use crate::tls::link::Link;

/// How long one connect may take where the upstream sets no `timeout.connect` (APISIX: 60 s).
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// A broker that answered.
#[derive(Debug)]
pub struct Connected {
    /// The open connection, TCP_NODELAY and TCP keepalive set.
    pub stream: Link,
    /// Its address.
    pub address: SocketAddr,
    /// Counts the connection on its node.
    pub in_flight: InFlight,
    /// How many addresses were tried, this one included.
    pub tries: usize,
}

/// A first try that failed before [`connect`] was called.
#[derive(Debug)]
pub struct FirstTry {
    /// What was tried: the first of [`Upstream::targets`].
    pub target: Target,
    /// What it answered.
    pub error: io::Error,
    /// When it began.
    pub started: Instant,
}

/// How long one connect may take.
pub fn timeout_of(config: Option<&resource::Upstream>) -> Duration {
    let timeout = config.and_then(|config| config.timeout.as_ref());
    timeout.map_or(DEFAULT_CONNECT_TIMEOUT, |timeout| timeout.connect)
}

/// Begins to connect, and does not wait. TCP_NODELAY and TCP keepalive are not set. With `owes`,
/// something will be sent as soon as the broker has answered, and takes the last packet of the
/// handshake with it.
///
/// # Errors
/// When the operating system refuses at once.
pub fn begin_connect(
    address: SocketAddr,
    owes: bool,
    sources: &SourceAddresses,
) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if owes {
        // That it cannot be had costs a packet and nothing else.
        let _ = sockopt::set_tcp_quickack(&socket, false);
    }
    sources.bind(&socket, address.ip())?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Why no broker could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No node has an address and a weight.
    #[error("no valid upstream node")]
    NoNode,
    /// Every address that may be tried was tried.
    #[error("all {tries} tries failed, last {address}: {error}")]
    AllFailed {
        /// How many addresses were tried.
        tries: usize,
        /// The last one.
        address: SocketAddr,
        /// What it answered.
        error: io::Error,
    },
    /// `retry_timeout` had passed when the next try was due.
    #[error("retry_timeout passed after {tries} tries, last {address}: {error}")]
    RetryTimeout {
        /// How many addresses were tried.
        tries: usize,
        /// The last one.
        address: SocketAddr,
        /// What it answered.
        error: io::Error,
    },
}

impl ConnectError {
    /// The label of this error in logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            ConnectError::NoNode => "no_node",
            ConnectError::AllFailed { .. } => "connect_failed",
            ConnectError::RetryTimeout { .. } => "retry_timeout",
        }
    }
}

/// Connects to the first node of `upstream` that answers a connection with this hash key.
/// `sni` is the server name that the client asked for; `first`, a try that was made already. `failed` hears of each address that does not.
///
/// # Errors
/// When no address is left, or `retries` or `retry_timeout` ends the search.
pub async fn connect(
    upstream: &Upstream,
    key: &[u8],
    sni: Option<&str>,
    first: Option<FirstTry>,
    mut failed: impl FnMut(&Target, &io::Error),
) -> Result<Connected, ConnectError> {
    let config = upstream.config();
    let timeout = timeout_of(Some(config));
    let begun = first
        .as_ref()
        .map_or_else(Instant::now, |first| first.started);
    let retry_until = config.retry_timeout.map(|limit| begun + limit);
    let mut targets = upstream.targets(key);
    let mut tries = 0;
    let mut last = None;
    if let Some(FirstTry { target, error, .. }) = first {
        tries = 1;
        targets = targets.after_first(target.address);
        failed(&target, &error);
        upstream.connect_failed(&target.node, &error);
        last = Some((target.address, error));
    }
    for target in targets {
        if let Some((address, error)) = last.take() {
            // APISIX looks at the clock only before a retry, never during one.
            if retry_until.is_some_and(|until| Instant::now() >= until) {
                return Err(ConnectError::RetryTimeout {
                    tries,
                    address,
                    error,
                });
            }
        }
        tries += 1;
        let in_flight = InFlight::on(target.node.clone());
        let started = Instant::now();
        let connected = async {
            let socket = connect_to(target.address, timeout, upstream.source_addresses()).await?;
            with_tls(upstream, socket, &target, sni, timeout).await
        };
        match connected.await {
            Ok(stream) => {
                upstream.connected(&target.node, started.elapsed());
                return Ok(Connected {
                    stream,
                    address: target.address,
                    in_flight,
                    tries,
                });
            }
            Err(error) => {
                failed(&target, &error);
                upstream.connect_failed(&target.node, &error);
                last = Some((target.address, error));
            }
        }
    }
    Err(match last {
        Some((address, error)) => ConnectError::AllFailed {
            tries,
            address,
            error,
        },
        None => ConnectError::NoNode,
    })
}

/// Shakes hands where the upstream has `scheme: tls`.
async fn with_tls(
    upstream: &Upstream,
    socket: TcpStream,
    target: &Target,
    sni: Option<&str>,
    timeout: Duration,
) -> io::Result<Link> {
    let tls = match upstream.tls() {
        None => return Ok(Link::Plain(socket)),
        Some(Err(error)) => return Err(io::Error::other(error.clone())),
        Some(Ok(tls)) => tls,
    };
    let handshake = tls.handshake(socket, target.address, target.node.host(), sni);
    match tokio::time::timeout(timeout, handshake).await {
        Ok(shaken) => shaken.map(Link::Tls),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no TLS handshake within {timeout:?}"),
        )),
    }
}

/// Opens one connection, of a client or of a probe.
pub(super) async fn connect_to(
    address: SocketAddr,
    timeout: Duration,
    sources: &SourceAddresses,
) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    crate::socket::set_keepalive(&socket)?;
    sources.bind(&socket, address.ip())?;
    match tokio::time::timeout(timeout, socket.connect(address)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {timeout:?}"),
        )),
    }
}
