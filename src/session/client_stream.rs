//! An accepted connection as Pingora's `ServerApp` wants it.
//!
//! Pingora's own L4 stream carries buffers and digests (376 bytes and more) and cannot be taken
//! apart again without duplicating the descriptor. This one is the bare socket, its address and
//! the listener it came from, and comes out as it went in.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::connections::Live;
use super::listener::Listener;

/// An accepted socket, which the runtime need not know yet: to register it costs system calls that
/// most connections can do without.
#[derive(Debug)]
pub enum ClientSocket {
    /// Known to nobody.
    Bare(OwnedFd),
    /// Registered with the runtime.
    Registered(TcpStream),
}

impl ClientSocket {
    /// The socket without the runtime.
    ///
    /// # Errors
    /// When the runtime does not know it any more.
    pub fn into_bare(self) -> io::Result<OwnedFd> {
        match self {
            ClientSocket::Bare(socket) => Ok(socket),
            ClientSocket::Registered(stream) => Ok(stream.into_std()?.into()),
        }
    }
}

impl AsRawFd for ClientSocket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            ClientSocket::Bare(socket) => socket.as_raw_fd(),
            ClientSocket::Registered(stream) => stream.as_raw_fd(),
        }
    }
}

/// A connection that has been accepted and nothing else.
#[derive(Debug)]
pub struct ClientStream {
    /// The socket.
    pub socket: ClientSocket,
    /// The client's address.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// Its place among the connections that the process may hold.
    pub permit: OwnedSemaphorePermit,
    /// Counts it from the moment when it was accepted.
    pub live: Live,
    /// Its place among the handshakes that may be in flight; none on a listener without TLS.
    pub handshake: Option<OwnedSemaphorePermit>,
}

impl ClientStream {
    /// The socket as the runtime knows it, from the first use as a stream on.
    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let ClientSocket::Bare(socket) = &self.socket {
            // A second descriptor, since the first one cannot be moved out if this fails.
            let socket = socket.try_clone()?;
            self.socket = ClientSocket::Registered(TcpStream::from_std(socket.into())?);
        }
        match &mut self.socket {
            ClientSocket::Registered(stream) => Ok(Pin::new(stream)),
            ClientSocket::Bare(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The peer may be gone already; there is nobody to tell.
        if let Ok(mut stream) = self.stream() {
            let _ = stream.shutdown().await;
        }
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.socket.as_raw_fd()
    }
}

impl Ssl for ClientStream {}
impl Peek for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}
