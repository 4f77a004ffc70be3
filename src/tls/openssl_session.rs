//! A session whose records OpenSSL does: until it is established, or for good if its records are
//! none of ours.

use std::io::{self, ErrorKind};

use openssl::error::ErrorStack;
use openssl::ssl::{Error, ErrorCode, ShutdownState, Ssl, SslRef, SslStream};

use super::records::passed::{Passed, Verdict};
use super::records::settle::{Established, Flights};
use super::records::{Records, keylog, settle};
use super::session::{HandshakeError, MAX_ANSWERS, Transport, from_shelf};
use super::staging::Shelf;
use super::wire::Wire;

/// A session that OpenSSL does all of.
pub struct OpenSslSession {
    stream: SslStream<Wire>,
    /// No record can be read any more.
    failed: bool,
    /// close_notify is written.
    ended: bool,
    /// A write has to wait until something has been read (renegotiation, by a broker).
    starved: bool,
    /// Something has been read since.
    fed: bool,
    /// Bytes that reading has written since nothing was owed.
    answers: usize,
    /// Of a session of the server's side: what the handshake has written, from its end until
    /// something else is read or written.
    flights: Option<Flights>,
    /// Of one of the client's side: what has passed since the handshake, as long as its records may
    /// become ours.
    passed: Option<Box<Passed>>,
}

impl OpenSslSession {
    /// A session that waits for a client of which `received` has come already.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn accept(mut ssl: Ssl, received: Vec<u8>) -> Result<Self, ErrorStack> {
        ssl.set_accept_state();
        keylog::attach(&mut ssl);
        let mut session = Self::new(ssl, received)?;
        session.flights = Some(Flights::default());
        Ok(session)
    }

    /// A session that begins.
    ///
    /// # Errors
    /// When OpenSSL has no memory.
    pub fn connect(mut ssl: Ssl) -> Result<Self, ErrorStack> {
        ssl.set_connect_state();
        let ours = keylog::attach(&mut ssl);
        let mut session = Self::new(ssl, Vec::new())?;
        session.passed = ours.then(Box::default);
        Ok(session)
    }

    fn new(ssl: Ssl, received: Vec<u8>) -> Result<Self, ErrorStack> {
        Ok(OpenSslSession {
            stream: SslStream::new(ssl, Wire::new(received))?,
            failed: false,
            ended: false,
            starved: false,
            fed: false,
            answers: 0,
            flights: None,
            passed: None,
        })
    }

    /// OpenSSL's view of it.
    pub fn ssl(&self) -> &SslRef {
        self.stream.ssl()
    }

    /// Keys and pending bytes of a session of the server's side whose handshake has just ended, if
    /// its records can be done without OpenSSL's session; then nothing more is to be done with this
    /// one.
    pub fn give_up(&mut self) -> Option<Records> {
        let flights = self.flights.take()?;
        let established = settle::established(self.stream.ssl(), &flights)?;
        Some(self.records(established))
    }

    /// The same of a session of the client's side, of which something has been read.
    pub fn give_up_toward_broker(&mut self) -> Option<Records> {
        let passed = self.passed.as_mut()?;
        // A write that has begun with OpenSSL is ended with it.
        let busy = self.starved || self.fed || self.stream.get_ref().ended;
        if busy || self.ended || self.failed {
            return None;
        }
        match passed.verdict(self.stream.ssl()) {
            Verdict::Later => None,
            Verdict::OpenSsl => {
                self.passed = None;
                None
            }
            Verdict::Ours(established) => {
                self.passed = None;
                Some(self.records(established))
            }
        }
    }

    fn records(&mut self, established: Established) -> Records {
        // OpenSSL looks for a session that ended otherwise in a cache, under a lock.
        let both = ShutdownState::SENT | ShutdownState::RECEIVED;
        self.stream.set_shutdown(both);
        let (received, owed) = self.stream.get_mut().take();
        Records::new(established, received, owed)
    }

    /// Takes note of what one call into OpenSSL has read and written since then.
    fn note(&mut self, (place, written): (usize, usize)) {
        if let Some(passed) = &mut self.passed {
            let wire = self.stream.get_ref();
            passed.note_read(wire.read_since(place));
            passed.note_written(wire.written_since(written));
        }
    }

    /// Where a call begins, for [`OpenSslSession::note`].
    fn now(&self) -> (usize, usize) {
        (self.stream.get_ref().place(), self.written())
    }

    /// Whether there is something to read without asking the socket.
    pub fn has_input(&self) -> bool {
        let wire = self.stream.get_ref();
        self.failed || (!wire.ended && wire.has_record()) || self.stream.ssl().pending() > 0
    }

    /// Whether something is written that the socket has not taken.
    pub fn owes(&self) -> bool {
        self.stream.get_ref().owed() > 0
    }

    /// Whether nothing is read until what is owed has been sent.
    pub fn is_congested(&self) -> bool {
        self.answers > MAX_ANSWERS
    }

    /// True once after a write had to wait for input and something has been read since.
    pub fn take_retry(&mut self) -> bool {
        std::mem::take(&mut self.fed)
    }

    /// See [`Session::handshake`](super::session::Session::handshake).
    ///
    /// # Errors
    /// See [`HandshakeError`].
    pub fn handshake(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
    ) -> Result<bool, HandshakeError> {
        self.with_staging(shelf, |session| {
            loop {
                let (before, place) = (session.written(), session.stream.get_ref().place());
                keylog::listen();
                let shaken = session.stream.do_handshake();
                keylog::keep(session.ssl());
                if let Some(flights) = &mut session.flights {
                    flights.note(session.stream.get_ref().written_since(before));
                    flights.note_read(session.stream.get_ref().read_since(place));
                    if shaken.is_ok() {
                        flights.finish();
                    }
                }
                // Tickets are in nobody's way, see `Session::settle`.
                let in_tickets = session
                    .flights
                    .as_ref()
                    .is_some_and(Flights::end_in_tickets);
                if shaken.is_err() || !in_tickets || !session.ssl().is_server() {
                    // A broken connection shows when more is to be received.
                    let _ = session.flush(transport);
                }
                match shaken {
                    Ok(()) => return Ok(true),
                    Err(error) if waits(&error) => {}
                    Err(error) => {
                        return Err(match error.ssl_error() {
                            Some(stack) => HandshakeError::OpenSsl(stack.clone()),
                            None => HandshakeError::Left,
                        });
                    }
                }
                while !session.stream.get_ref().has_record() {
                    match session.receive(transport) {
                        Ok(true) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Ok(false) | Err(_) => return Err(HandshakeError::Left),
                    }
                }
            }
        })
    }

    /// See [`Session::read`](super::session::Session::read).
    ///
    /// # Errors
    /// `WouldBlock`, those of the transport, or a record that is none.
    pub fn read(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        if self.is_congested() {
            self.flush(transport)?;
        }
        self.with_staging(shelf, |session| {
            let read = session.read_staged(transport, buffer);
            session.answers += session.written();
            // A broken connection shows when more is to be received.
            let _ = session.flush(transport);
            read
        })
    }

    fn read_staged(
        &mut self,
        transport: &mut impl Transport,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        self.flights = None;
        let mut filled = 0;
        loop {
            while filled < buffer.len() && self.has_input() {
                if self.failed {
                    return count_or(filled, || Err(ErrorKind::InvalidData.into()));
                }
                self.fed |= std::mem::take(&mut self.starved);
                let before = self.stream.get_ref().received();
                let now = self.now();
                let read = self.stream.ssl_read(&mut buffer[filled..]);
                self.note(now);
                match read {
                    Ok(count) => filled += count,
                    Err(error) if error.code() == ErrorCode::ZERO_RETURN => {
                        self.stream.get_mut().ended = true;
                        return Ok(filled);
                    }
                    // A record that is not the application's.
                    Err(error) if waits(&error) && self.stream.get_ref().received() != before => {}
                    Err(error) => {
                        self.failed = true;
                        let error = error.into_io_error().unwrap_or_else(io::Error::other);
                        return count_or(filled, || Err(broken(error)));
                    }
                }
            }
            if filled > 0 || self.stream.get_ref().ended {
                return Ok(filled);
            }
            self.receive(transport)?;
        }
    }

    /// See [`Session::write`](super::session::Session::write).
    ///
    /// # Errors
    /// `WouldBlock`, or those of the transport.
    pub fn write(
        &mut self,
        shelf: &Shelf,
        transport: &mut impl Transport,
        bytes: &[u8],
    ) -> io::Result<usize> {
        self.flush(transport)?;
        self.flights = None;
        self.with_staging(shelf, |session| {
            let mut taken = 0;
            let mut result = Ok(());
            while taken < bytes.len() && !session.stream.get_ref().is_full() {
                let now = session.now();
                let written = session.stream.ssl_write(&bytes[taken..]);
                session.note(now);
                match written {
                    Ok(count) => taken += count,
                    Err(error) if waits(&error) => {
                        session.starved = true;
                        result = Err(ErrorKind::WouldBlock.into());
                        break;
                    }
                    Err(error) => {
                        let error = error.into_io_error().unwrap_or_else(io::Error::other);
                        result = Err(broken(error));
                        break;
                    }
                }
            }
            match session.flush(transport) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
                _ => count_or(taken, || result.map(|()| 0)),
            }
        })
    }

    /// Sends what is owed.
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn flush(&mut self, transport: &mut impl Transport) -> io::Result<()> {
        let wire = self.stream.get_mut();
        if wire.owed() > 0 {
            wire.send(|bytes| transport.send(bytes))?;
            self.answers = 0;
        }
        Ok(())
    }

    /// Says close_notify and sends all that is owed. The other direction goes on.
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn end(&mut self, shelf: &Shelf, transport: &mut impl Transport) -> io::Result<()> {
        if !std::mem::replace(&mut self.ended, true) {
            self.flights = None;
            self.with_staging(shelf, |session| {
                // A session that has failed has said so in an alert.
                let _ = session.stream.shutdown();
            });
        }
        self.flush(transport)
    }

    fn receive(&mut self, transport: &mut impl Transport) -> io::Result<bool> {
        let wire = self.stream.get_mut();
        wire.receive(|buffer| transport.receive(buffer))
    }

    /// What this call has written and not sent.
    fn written(&self) -> usize {
        let staging = self.stream.get_ref().staging.as_ref();
        staging.map_or(0, |staging| staging.output.len())
    }

    /// Lends the session what the shelf has for as long as `work` lasts.
    fn with_staging<T>(&mut self, shelf: &Shelf, work: impl FnOnce(&mut Self) -> T) -> T {
        self.stream.get_mut().lend(from_shelf(shelf));
        let result = work(self);
        shelf.set(self.stream.get_mut().give_back());
        result
    }
}

/// Whether OpenSSL needs more input. It never waits for room: the wire takes everything.
fn waits(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

/// `WouldBlock` as a reason why no record can be read would be waited for.
fn broken(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::InvalidData.into(),
        _ => error,
    }
}

/// What was done already goes before the error, which shows again.
fn count_or(done: usize, otherwise: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    match done {
        0 => otherwise(),
        count => Ok(count),
    }
}
