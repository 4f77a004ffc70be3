//! A connection, plain or TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// TLS over a socket.
pub type TlsStream = tokio_openssl::SslStream<Replay>;

/// One side of a relayed connection.
#[derive(Debug)]
pub enum Link {
    /// The bare socket.
    Plain(TcpStream),
    /// TLS around it.
    Tls(TlsStream),
}

impl Link {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Link::Plain(socket) => socket,
            Link::Tls(tls) => tls.get_ref().socket(),
        }
    }

    /// Resolves when the other side has sent something that was not read, or has ended.
    pub async fn has_input(&self) {
        if let Link::Tls(tls) = self
            && tls.ssl().pending() > 0
        {
            return;
        }
        // `readable` may be left over from a read that took everything; looking is certain.
        let _ = self.socket().peek(&mut [0]).await;
    }
}

/// A socket of which some bytes were read already: they are read again first.
#[derive(Debug)]
pub struct Replay {
    socket: TcpStream,
    /// What is left of them; no memory once they are read.
    first: Option<Box<(Vec<u8>, usize)>>,
}

impl Replay {
    /// A socket from which `read` came.
    pub fn new(socket: TcpStream, read: Vec<u8>) -> Self {
        let first = (!read.is_empty()).then(|| Box::new((read, 0)));
        Replay { socket, first }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(first) = &mut self.first else {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        };
        let (bytes, read) = &mut **first;
        let rest = &bytes[*read..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        *read += count;
        if *read == bytes.len() {
            self.first = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Link::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Link::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(socket) => Pin::new(socket).poll_flush(context),
            Link::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Link::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
