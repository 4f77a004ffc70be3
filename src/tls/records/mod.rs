//! The records of established sessions, without OpenSSL's session around them.
//!
//! OpenSSL keeps some 14 KiB for each connection, of which an established one needs keys and two
//! counters. So the handshake is OpenSSL's, and afterwards its session is let go of: what stays is
//! [`Records`], some three hundred bytes. Ciphers are OpenSSL's as well ([`cipher`]). Only what is
//! in daily use is done here: AES-GCM and ChaCha20-Poly1305 in TLS 1.2 and 1.3. Everything else stays
//! with OpenSSL's session.
//!
//! [`keylog`] has the secrets, [`settle`] takes a session of a client over and [`passed`] one with a
//! broker, [`schedule`] and [`protection`] are
//! keys and single records, `reading` and `control` what a peer may say, and [`parts`] a session
//! that goes to another process.

pub mod cipher;
mod control;
pub mod keylog;
pub mod parts;
pub mod passed;
pub mod protection;
mod reading;
pub mod schedule;
pub mod settle;
pub mod suite;
#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod broker_tests;
#[cfg(test)]
mod changed_tests;
#[cfg(test)]
mod forged_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod openssl_tests;
#[cfg(test)]
mod parts_tests;

use std::io::{self, ErrorKind};

use openssl::error::ErrorStack;

use super::session::{MAX_ANSWERS, Transport};
use super::staging::{Staging, send_all};
use cipher::{Contexts, with_contexts};
use protection::{Protection, Refused};
use settle::Established;
use suite::{Aead, Version};

/// Kinds of records [RFC 8446 §5.1].
pub const CHANGE_CIPHER_SPEC: u8 = 20;
/// See [`CHANGE_CIPHER_SPEC`].
pub const ALERT: u8 = 21;
/// See [`CHANGE_CIPHER_SPEC`].
pub const HANDSHAKE: u8 = 22;
/// See [`CHANGE_CIPHER_SPEC`].
pub const APPLICATION_DATA: u8 = 23;

/// Bytes of the contents of a record, unless the client has asked for less.
pub const MAX_CONTENTS: usize = 16 * 1024;
/// The least that it can ask for [RFC 6066 §4].
pub const MIN_CONTENTS: usize = 512;

/// Whose the other side of a session is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A client's.
    #[default]
    Client,
    /// A server's: a broker.
    Server,
}

/// An established session.
#[derive(Debug)]
pub struct Records {
    peer: Peer,
    read: Protection,
    write: Protection,
    /// Bytes between calls; an idle session has none.
    pending: Option<Box<Pending>>,
    /// Most bytes in a record.
    fragment: u16,
    /// What has come of a message of the handshake.
    message: control::Message,
    /// What has come in a row without application data, see [`control::MAX_QUIET`].
    quiet: u16,
    /// The peer has asked for other keys, during this call.
    must_change: bool,
    /// The peer has been asked for other keys and has not changed them yet.
    asked: bool,
    /// What ended the reading.
    end: Option<End>,
    /// No more is written.
    ended: bool,
    /// Bytes that reading has written since nothing was owed.
    answers: u32,
    /// What is owed goes with what is written next, and not before.
    held: bool,
}

/// Bytes between calls.
#[derive(Default)]
struct Pending {
    /// Received and not opened: less than a record, or what nobody has asked for yet.
    received: Vec<u8>,
    /// Contents of a record that were more than the reader had room for, and how much of them has
    /// been read.
    contents: Vec<u8>,
    contents_read: usize,
    /// Written, and not taken by the socket, but for the bytes that were sent.
    owed: Vec<u8>,
    sent: usize,
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By a close_notify, or by the end of the stream below.
    Closed,
    /// By something that is no record, or by an alert.
    Broken,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// What works on a session during one call: memory of the thread.
struct Desk<'a> {
    staging: &'a mut Staging,
    contexts: &'a mut Contexts,
    /// Room for one record.
    spare: &'a mut Vec<u8>,
}

impl From<Refused> for io::Error {
    fn from(_: Refused) -> Self {
        io::Error::other("no record can be written")
    }
}

impl Records {
    /// A session with these protections. Of it `received` has come already, and `owed` is still to
    /// be sent; tickets of TLS 1.3 with what is written first, but in TLS 1.2 it is Finished, for
    /// which the client waits.
    pub fn new(established: Established, received: Vec<u8>, owed: Vec<u8>) -> Self {
        let held = !owed.is_empty()
            && established.peer == Peer::Client
            && established.write.suite().version == Version::V1_3;
        let pending = Box::new(Pending {
            received,
            owed,
            ..Pending::default()
        });
        Records {
            peer: established.peer,
            read: established.read,
            write: established.write,
            pending: Pending::kept(pending),
            fragment: established.fragment,
            message: control::Message::default(),
            quiet: 0,
            must_change: false,
            asked: false,
            end: None,
            ended: false,
            answers: 0,
            held,
        }
    }

    /// See [`super::session::Session::let_go`].
    pub fn let_go(&mut self) {
        self.held = false;
    }

    fn aead(&self) -> Aead {
        self.write.suite().aead
    }

    fn version(&self) -> Version {
        self.write.suite().version
    }

    /// Whether something is written that the socket has not taken.
    pub fn owes(&self) -> bool {
        !self.held && self.pending.as_ref().is_some_and(|pending| pending.owes())
    }

    /// How many bytes it holds between calls.
    pub fn pending(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| {
            let contents = pending.contents.len() - pending.contents_read;
            pending.received.len() + contents + pending.owed.len() - pending.sent
        })
    }

    /// Whether nothing is read until what is owed has been sent.
    pub fn is_congested(&self) -> bool {
        self.answers as usize > MAX_ANSWERS
    }

    /// Has `work` done with what the thread lends.
    fn at_desk<T>(
        &mut self,
        staging: &mut Staging,
        work: impl FnOnce(&mut Self, &mut Desk<'_>) -> T,
    ) -> Result<T, ErrorStack> {
        if let Some(pending) = &mut self.pending {
            staging.refill(&pending.received);
            pending.received = Vec::new();
        }
        let result = with_contexts(self.aead(), |contexts, spare| {
            let mut desk = Desk {
                staging: &mut *staging,
                contexts,
                spare,
            };
            work(self, &mut desk)
        });
        let mut pending = self.pending.take();
        // Behind the end nothing is read any more.
        let received = match self.end {
            None => staging.received(),
            Some(_) => &[],
        };
        if received.is_empty() && staging.output.is_empty() {
            staging.clear();
        } else {
            let pending = pending.get_or_insert_default();
            pending.received = received.to_vec();
            pending.owed.extend_from_slice(&staging.output);
            staging.clear();
        }
        self.pending = pending.and_then(Pending::kept);
        result
    }

    /// See [`super::session::Session::write`].
    ///
    /// # Errors
    /// `WouldBlock`, or those of the transport.
    pub fn write(
        &mut self,
        staging: &mut Staging,
        transport: &mut impl Transport,
        bytes: &[u8],
    ) -> io::Result<usize> {
        self.flush(transport)?;
        if self.ended || self.end == Some(End::Broken) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.at_desk(staging, |records, desk| {
            let mut taken = 0;
            let mut result = Ok(());
            while taken < bytes.len() && desk.staging.output.len() < desk.staging.output_limit {
                let rest = &bytes[taken..];
                let part = &rest[..rest.len().min(usize::from(records.fragment))];
                result = records.put_data(desk, part);
                match result {
                    Ok(()) => taken += part.len(),
                    Err(_) => break,
                }
            }
            match records.send_staged(desk, transport) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
                _ if taken > 0 => Ok(taken),
                _ => Ok(result.map(|()| 0)?),
            }
        })?
    }

    /// See [`super::session::Session::flush`].
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn flush(&mut self, transport: &mut impl Transport) -> io::Result<()> {
        if self.owes()
            && let Some(pending) = &mut self.pending
        {
            pending.send(transport)?;
            self.answers = 0;
            self.pending = self.pending.take().and_then(Pending::kept);
        }
        Ok(())
    }

    /// See [`super::session::Session::end`].
    ///
    /// # Errors
    /// `WouldBlock` while something is left, or those of the transport.
    pub fn end(&mut self, staging: &mut Staging, transport: &mut impl Transport) -> io::Result<()> {
        // A session that is broken has said so in an alert.
        if !std::mem::replace(&mut self.ended, true) && self.end != Some(End::Broken) {
            self.at_desk(staging, |records, desk| {
                records.put(desk, ALERT, &control::CLOSE_NOTIFY)
            })??;
        }
        self.flush(transport)
    }

    /// Sends what is owed and what this call has written.
    fn send_staged(
        &mut self,
        desk: &mut Desk<'_>,
        transport: &mut impl Transport,
    ) -> io::Result<()> {
        self.flush(transport)?;
        let output = &mut desk.staging.output;
        if !output.is_empty() {
            let (sent, result) = send_all(output, |bytes| transport.send(bytes));
            output.drain(..sent);
            result?;
            self.answers = 0;
        }
        Ok(())
    }

    /// Writes application data as one record, with other keys if it is time.
    fn put_data(&mut self, desk: &mut Desk<'_>, data: &[u8]) -> Result<(), Refused> {
        if self.write.is_used_up() {
            match self.version() {
                Version::V1_3 => self.change_keys(desk, control::UPDATE_NOT_REQUESTED)?,
                Version::V1_2 => return Err(Refused),
            }
        }
        self.put(desk, APPLICATION_DATA, data)
    }

    fn put(&mut self, desk: &mut Desk<'_>, kind: u8, contents: &[u8]) -> Result<(), Refused> {
        let output = &mut desk.staging.output;
        if std::mem::take(&mut self.held)
            && let Some(pending) = &mut self.pending
        {
            output.extend_from_slice(&pending.owed);
            pending.owed = Vec::new();
        }
        let before = output.len();
        output.resize(before + self.write.overhead() + contents.len(), 0);
        let keyed = &mut desk.contexts.seal;
        let sealed = self
            .write
            .seal(keyed, kind, contents, &mut output[before..]);
        if sealed.is_err() {
            output.truncate(before);
        }
        sealed
    }
}

impl Pending {
    fn owes(&self) -> bool {
        self.sent < self.owed.len()
    }

    fn send(&mut self, transport: &mut impl Transport) -> io::Result<()> {
        let (sent, result) = send_all(&self.owed[self.sent..], |bytes| transport.send(bytes));
        self.sent += sent;
        result?;
        (self.owed, self.sent) = (Vec::new(), 0);
        Ok(())
    }

    /// Itself, unless there is nothing in it.
    fn kept(pending: Box<Self>) -> Option<Box<Self>> {
        let nothing = pending.received.is_empty() && pending.contents.is_empty() && !pending.owes();
        (!nothing).then_some(pending)
    }
}
