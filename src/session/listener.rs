//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::Semaphore;

use crate::socket::set_keepalive;
use crate::telemetry::metrics::ListenerCounts;

/// Connections that the kernel completes before they are accepted. The kernel's own limit
/// (`net.core.somaxconn`, 4096 by default) caps it.
const BACKLOG: i32 = 65_535;

/// What a connection keeps of the listener that accepted it.
#[derive(Debug)]
pub struct Listener {
    /// The address it listens on, as bound.
    pub address: SocketAddr,
    /// What is counted of its connections.
    pub counts: Arc<ListenerCounts>,
    /// What it does with TLS; `None` takes bytes as they are.
    pub tls: Option<TlsListener>,
}

/// What a listener does with TLS.
#[derive(Debug)]
pub struct TlsListener {
    /// Whether TLS ends here.
    pub mode: TlsMode,
    /// One permit for each handshake that may be in flight; shared by all listeners.
    pub handshakes: Arc<Semaphore>,
}

/// Whether TLS ends at a listener (`tls` and `tls_passthrough`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Every connection is decrypted.
    End,
    /// None is: the server name routes it, and the broker gets its bytes as they are.
    Pass,
    /// The route says which.
    RouteDecides,
}

/// Opens a listening socket on `address`. An IPv6 address takes IPv6 only, as nginx has it.
///
/// TCP_NODELAY and TCP keepalive are set here, once: accepted sockets inherit them.
///
/// # Errors
/// What the operating system answers: the address is in use, not ours, or not permitted.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for connections of the process before it to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    set_keepalive(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Gives a socket that somebody else has bound what [`bind`] gives its own.
///
/// # Errors
/// When it is not a listening TCP socket.
pub fn prepare(socket: TcpListener) -> io::Result<TcpListener> {
    let options = SockRef::from(&socket);
    if !options.is_listener()? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "does not listen",
        ));
    }
    options.set_tcp_nodelay(true)?;
    set_keepalive(&socket)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_their_options() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        assert!(SockRef::from(&accepted).keepalive().unwrap());
    }

    #[test]
    fn an_address_in_use_is_an_error() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
