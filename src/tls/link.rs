//! A connection, plain or TLS, in its beginning: as a stream of the runtime.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslRef};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::session::{HandshakeError, Session, Transport};
use super::staging::{Shelf, with_shelf};

/// One side of a connection.
#[derive(Debug)]
pub enum Link {
    /// The bare socket.
    Plain(TcpStream),
    /// TLS around it.
    Tls(TlsStream),
}

/// TLS over a socket of the runtime.
#[derive(Debug)]
pub struct TlsStream {
    socket: TcpStream,
    session: Box<Session>,
}

impl Link {
    /// The socket with this session over it.
    pub fn new(socket: TcpStream, session: Option<Box<Session>>) -> Self {
        match session {
            None => Link::Plain(socket),
            Some(session) => Link::Tls(TlsStream { socket, session }),
        }
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Link::Plain(socket) => socket,
            Link::Tls(tls) => &tls.socket,
        }
    }

    /// The socket and the session, apart from each other.
    pub fn into_parts(self) -> (TcpStream, Option<Box<Session>>) {
        match self {
            Link::Plain(socket) => (socket, None),
            Link::Tls(tls) => (tls.socket, Some(tls.session)),
        }
    }
}

impl Transport for &TcpStream {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }
}

impl TlsStream {
    /// The server's side, for a client of which `received` was read.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn accepting(socket: TcpStream, ssl: Ssl, received: Vec<u8>) -> Result<Self, ErrorStack> {
        let session = Box::new(Session::accept(ssl, received)?);
        Ok(TlsStream { socket, session })
    }

    /// The client's side.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn connecting(socket: TcpStream, ssl: Ssl) -> Result<Self, ErrorStack> {
        let session = Box::new(Session::connect(ssl)?);
        Ok(TlsStream { socket, session })
    }

    /// OpenSSL's view of it; `None` once it is settled.
    pub fn ssl(&self) -> Option<&SslRef> {
        self.session.ssl()
    }

    /// See [`Session::settle`].
    pub fn settle(&mut self) {
        self.session.settle();
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// Why not; an alert has been sent where there is one.
    pub async fn handshake(&mut self) -> Result<(), HandshakeError> {
        loop {
            let socket = &mut &self.socket;
            if with_shelf(|shelf| self.session.handshake(shelf, socket))? {
                return Ok(());
            }
            let interest = match self.session.owes() {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            // The next try tells what is wrong.
            let _ = self.socket.ready(interest).await;
        }
    }

    /// Does what a session can do now, or waits for the socket.
    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        reads: bool,
        mut work: impl FnMut(&mut Session, &Shelf, &mut &TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let socket = &mut &self.socket;
            match with_shelf(|shelf| work(&mut self.session, shelf, socket)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            let readable = match reads && !self.session.is_congested() {
                true => self.socket.poll_read_ready(context)?,
                false => Poll::Pending,
            };
            let writable = match self.session.owes() {
                true => self.socket.poll_write_ready(context)?,
                false => Poll::Pending,
            };
            if readable.is_pending() && writable.is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unfilled = buffer.initialize_unfilled();
        let read = self.poll(context, true, |session, shelf, socket| {
            session.read(shelf, socket, unfilled)
        });
        let count = ready!(read)?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(context, false, |session, shelf, socket| {
            session.write(shelf, socket, bytes)
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(context, false, |session, _, socket| session.flush(socket))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.poll(context, false, |session, shelf, socket| {
            session.end(shelf, socket)
        });
        ready!(ended)?;
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
