//! A TLS session without a socket: it is given one for each call.
//!
//! Nothing here waits or belongs to a runtime, so that a session begins in a task that shakes
//! hands and goes on in a relay thread. Many records are decrypted from one receive and many are
//! encrypted for one send; see [`super::staging`].
//!
//! A client's session [settles](Session::settle) after its handshake: OpenSSL's part of it, which
//! is large, is let go of, and [`super::records`] go on with its keys. One with a broker does so by
//! itself once the broker has said something.

use std::io;

use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslRef};

use super::openssl_session::OpenSslSession;
use super::records::Records;
use super::records::parts::{PartsError, SessionParts};
use super::staging::{Shelf, Staging};

/// Staging of a thread of the runtime, where connections begin: CONNECT and a ClientHello fit.
const STAGED_AT_FIRST: usize = 32 * 1024;
/// What may be owed of answers that reading made (alerts, KeyUpdate) before no more is read: a
/// peer that asks for answers and does not read them gets no memory for it.
pub(super) const MAX_ANSWERS: usize = 4096;

/// The socket below a session. It does not wait: what cannot be done now is `WouldBlock`.
pub trait Transport {
    /// Receives some bytes; 0 is the end.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Sends some of `bytes`, which are not empty.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// A session of either side.
pub struct Session(Layer);

/// Who does its records.
#[expect(
    clippy::large_enum_variant,
    reason = "most sessions are settled, and a session is boxed: one allocation is enough"
)]
enum Layer {
    OpenSsl(Box<OpenSslSession>),
    Own(Records),
}

/// How a handshake can end short.
#[derive(Debug)]
pub enum HandshakeError {
    /// The peer has ended or broken the connection.
    Left,
    /// OpenSSL refuses the peer, or the peer has refused with an alert.
    OpenSsl(ErrorStack),
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// A session that waits for a client of which `received` has come already.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn accept(ssl: Ssl, received: Vec<u8>) -> Result<Self, ErrorStack> {
        let session = OpenSslSession::accept(ssl, received)?;
        Ok(Session(Layer::OpenSsl(Box::new(session))))
    }

    /// A session that begins.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn connect(ssl: Ssl) -> Result<Self, ErrorStack> {
        let session = OpenSslSession::connect(ssl)?;
        Ok(Session(Layer::OpenSsl(Box::new(session))))
    }

    /// OpenSSL's view of it; `None` of one that is settled.
    pub fn ssl(&self) -> Option<&SslRef> {
        match &self.0 {
            Layer::OpenSsl(session) => Some(session.ssl()),
            Layer::Own(_) => None,
        }
    }

    /// Lets go of OpenSSL's part of a client's session, when its context was built for that
    /// ([`server_context`](super::records::keylog::server_context)), its handshake has just
    /// ended, nothing has been read or written since, and its version and cipher are among
    /// those that [`super::records`] do. Everything else stays as it is. What is wanted of
    /// [`Session::ssl`] has to be read before.
    ///
    /// Tickets with which the handshake has ended are held back from then on, so that they go with
    /// what is written first, in one packet; [`Session::let_go`] sends them by themselves.
    pub fn settle(&mut self) {
        if let Layer::OpenSsl(session) = &mut self.0
            && let Some(records) = session.give_up()
        {
            self.0 = Layer::Own(records);
        }
    }

    /// Holds nothing back any more; a [`Session::flush`] sends it.
    pub fn let_go(&mut self) {
        if let Layer::Own(records) = &mut self.0 {
            records.let_go();
        }
    }

    /// Whether it is settled.
    pub fn is_settled(&self) -> bool {
        matches!(self.0, Layer::Own(_))
    }

    /// How many bytes it holds between calls, if it is settled.
    pub fn pending(&self) -> usize {
        match &self.0 {
            Layer::OpenSsl(_) => 0,
            Layer::Own(records) => records.pending(),
        }
    }

    /// A settled session for another process; `None` of others. Only one of the two may go on: both
    /// would protect different records with the same nonces, which gives their keys away. So this
    /// one must not be used any more unless the other has surely not begun.
    pub fn to_parts(&self) -> Option<SessionParts> {
        match &self.0 {
            Layer::OpenSsl(_) => None,
            Layer::Own(records) => Some(records.to_parts()),
        }
    }

    /// Goes on with a session of another process.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn from_parts(parts: &SessionParts) -> Result<Self, PartsError> {
        Ok(Session(Layer::Own(Records::from_parts(parts)?)))
    }

    /// Whether there is something to read without asking the socket.
    pub fn has_input(&self) -> bool {
        match &self.0 {
            Layer::OpenSsl(session) => session.has_input(),
            Layer::Own(records) => records.has_input(),
        }
    }

    /// Whether something is written that the socket has not taken.
    pub fn owes(&self) -> bool {
        match &self.0 {
            Layer::OpenSsl(session) => session.owes(),
            Layer::Own(records) => records.owes(),
        }
    }

    /// Whether nothing is read until what is owed has been sent.
    pub fn is_congested(&self) -> bool {
        match &self.0 {
            Layer::OpenSsl(session) => session.is_congested(),
            Layer::Own(records) => records.is_congested(),
        }
    }

    /// True once after a write had to wait for input and something has been read since.
    pub fn take_retry(&mut self) -> bool {
        match &mut self.0 {
            Layer::OpenSsl(session) => session.take_retry(),
            // Nothing that is written waits for input.
            Layer::Own(_) => false,
        }
    }

    /// Goes on with the handshake. `Ok(false)` needs the socket: its input, or room in it if
    /// something is owed. Whatever the outcome, an alert may be owed to the peer.
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub fn handshake(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
    ) -> Result<bool, HandshakeError> {
        match &mut self.0 {
            Layer::OpenSsl(session) => session.handshake(shelf, transport),
            Layer::Own(_) => Ok(true),
        }
    }

    /// Reads what the peer says; 0 is the end, by a close_notify or by the end of the stream
    /// below: devices close without the one, and MQTT knows its own packets' ends.
    ///
    /// # Errors
    /// `WouldBlock`, those of the transport, or a record that is none.
    pub fn read(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        match &mut self.0 {
            Layer::OpenSsl(session) => {
                let read = session.read(shelf, transport, buffer);
                if let Ok(1..) = read
                    && let Some(records) = session.give_up_toward_broker()
                {
                    self.0 = Layer::Own(records);
                }
                read
            }
            Layer::Own(records) => {
                with_staging(shelf, |staging| records.read(staging, transport, buffer))
            }
        }
    }

    /// Writes some of `bytes`. What is written and not taken by the socket is owed; while it is,
    /// nothing more is taken.
    ///
    /// # Errors
    /// `WouldBlock`, or those of the transport.
    pub fn write(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
        bytes: &[u8],
    ) -> io::Result<usize> {
        match &mut self.0 {
            Layer::OpenSsl(session) => session.write(shelf, transport, bytes),
            Layer::Own(records) => {
                with_staging(shelf, |staging| records.write(staging, transport, bytes))
            }
        }
    }

    /// Sends what is owed.
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn flush(&mut self, transport: &mut impl Transport) -> io::Result<()> {
        match &mut self.0 {
            Layer::OpenSsl(session) => session.flush(transport),
            Layer::Own(records) => records.flush(transport),
        }
    }

    /// Says close_notify and sends all that is owed. The other direction goes on.
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn end(&mut self, shelf: &Shelf, transport: &mut impl Transport) -> io::Result<()> {
        match &mut self.0 {
            Layer::OpenSsl(session) => session.end(shelf, transport),
            Layer::Own(records) => with_staging(shelf, |staging| records.end(staging, transport)),
        }
    }
}

/// What the shelf has, or new memory.
pub(super) fn from_shelf(shelf: &Shelf) -> Box<Staging> {
    let staging = shelf.take();
    staging.unwrap_or_else(|| Staging::new(STAGED_AT_FIRST))
}

/// Lends what the shelf has for as long as `work` lasts.
fn with_staging<T>(shelf: &Shelf, work: impl FnOnce(&mut Staging) -> T) -> T {
    let mut staging = from_shelf(shelf);
    let result = work(&mut staging);
    shelf.set(Some(staging));
    result
}
