//! What a peer says to the session itself: alerts, KeyUpdate, tickets of a broker, and attempts to
//! renegotiate [RFC 8446 §4.6, §6; RFC 5246 §7.2, §7.4.1].

use super::cipher::Keyed;
use super::protection::Refused;
use super::suite::Version;
use super::{ALERT, APPLICATION_DATA, Desk, End, HANDSHAKE, MAX_CONTENTS, Peer, Records};

/// What may come in a row without a byte of application data: empty records, warnings and attempts to
/// renegotiate count [`HEAVY`] each, so that there may be 32 of them, as with OpenSSL and rustls.
pub const MAX_QUIET: u16 = 1024;
const HEAVY: u16 = 32;
/// Changes of keys count less: Java's client asks for one with each record that it reads from when it
/// has read enough under a key until it has the next, and bulk on its way is hundreds of records.
const LIGHT: u16 = 1;

/// The body of a KeyUpdate that does not ask for another.
pub const UPDATE_NOT_REQUESTED: u8 = 0;
/// The body of one that does.
pub const UPDATE_REQUESTED: u8 = 1;
/// Kind and length of a KeyUpdate.
pub const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
/// The kind of a ClientHello.
pub const CLIENT_HELLO: u8 = 1;
/// The kind of a HelloRequest, which has no body.
pub const HELLO_REQUEST: u8 = 0;
/// The kind of a NewSessionTicket.
pub const NEW_SESSION_TICKET: u8 = 4;
/// The longest that is passed over, in bytes: nobody's is nearly as long.
pub const MAX_TICKET: usize = u16::MAX as usize;

/// Alerts [RFC 8446 §6].
pub mod alert {
    /// The level of those that a connection survives in TLS 1.2.
    pub const WARNING: u8 = 1;
    /// The level of all others.
    pub const FATAL: u8 = 2;
    /// Nothing more will be written.
    pub const CLOSE_NOTIFY: u8 = 0;
    /// A record or message that cannot come now.
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    /// A record that is not authentic.
    pub const BAD_RECORD_MAC: u8 = 20;
    /// A record that is too long.
    pub const RECORD_OVERFLOW: u8 = 22;
    /// A value that there is none of.
    pub const ILLEGAL_PARAMETER: u8 = 47;
    /// A message of another length than it may have.
    pub const DECODE_ERROR: u8 = 50;
    /// A record of another version.
    pub const PROTOCOL_VERSION: u8 = 70;
    /// No more records can be protected.
    pub const INTERNAL_ERROR: u8 = 80;
    /// A handshake was given up for a reason that is nobody's fault.
    pub const USER_CANCELED: u8 = 90;
    /// The answer to an attempt to renegotiate.
    pub const NO_RENEGOTIATION: u8 = 100;
}

/// The contents of a close_notify.
pub const CLOSE_NOTIFY: [u8; 2] = [alert::WARNING, alert::CLOSE_NOTIFY];

/// The alert that ends a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Fatal(pub u8);

impl From<Refused> for Fatal {
    fn from(_: Refused) -> Self {
        Fatal(alert::INTERNAL_ERROR)
    }
}

/// What has come of a message of the handshake, which may be spread over records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Message {
    /// Its beginning: a KeyUpdate has no more, of others only kind and length count.
    pub(super) bytes: [u8; 4],
    /// How many of them there are.
    pub(super) filled: u8,
    /// How much of one that is passed over is still to come.
    pub(super) left: u16,
}

impl Message {
    /// Whether a part is missing.
    pub fn has_begun(&self) -> bool {
        self.filled > 0 || self.left > 0
    }

    /// Takes as many bytes as its kind and length need; true when they are there.
    fn take(&mut self, contents: &mut &[u8]) -> bool {
        while usize::from(self.filled) < self.bytes.len() {
            let Some((first, rest)) = contents.split_first() else {
                return false;
            };
            self.bytes[usize::from(self.filled)] = *first;
            self.filled += 1;
            *contents = rest;
        }
        true
    }

    /// How many bytes this whole beginning says follow it.
    fn announced(&self) -> u32 {
        let [_, high, middle, low] = self.bytes;
        u32::from_be_bytes([0, high, middle, low])
    }

    /// Has as many bytes behind this beginning passed over: some, and no more than `most`.
    fn pass_over(&mut self, size: u32, most: usize) -> Result<(), Fatal> {
        self.left = match u16::try_from(size) {
            Ok(size @ 1..) if usize::from(size) <= most => size,
            _ => return Err(Fatal(alert::DECODE_ERROR)),
        };
        self.filled = 0;
        Ok(())
    }

    fn skip(&mut self, contents: &mut &[u8]) {
        let passed = contents.len().min(usize::from(self.left));
        *contents = &contents[passed..];
        self.left -= passed as u16;
    }
}

impl Records {
    /// Judges a record that is not application data, or none of it.
    pub(super) fn control(
        &mut self,
        desk: &mut Desk<'_>,
        kind: u8,
        contents: &[u8],
    ) -> Result<(), Fatal> {
        self.count_quiet(match (kind, self.version()) {
            (HANDSHAKE, Version::V1_3) => LIGHT,
            _ => HEAVY,
        })?;
        match (kind, self.version()) {
            // An empty one.
            (APPLICATION_DATA, _) => Ok(()),
            // Neither of them may be empty.
            (ALERT | HANDSHAKE, _) if contents.is_empty() => Err(Fatal(alert::UNEXPECTED_MESSAGE)),
            (ALERT, _) => self.alert(contents),
            (HANDSHAKE, Version::V1_3) => self.after_handshake(desk, contents),
            (HANDSHAKE, Version::V1_2) => self.renegotiation(desk, contents),
            _ => Err(Fatal(alert::UNEXPECTED_MESSAGE)),
        }
    }

    fn count_quiet(&mut self, weight: u16) -> Result<(), Fatal> {
        self.quiet = self.quiet.saturating_add(weight).min(MAX_QUIET + 1);
        match self.quiet > MAX_QUIET {
            true => Err(Fatal(alert::UNEXPECTED_MESSAGE)),
            false => Ok(()),
        }
    }

    fn alert(&mut self, contents: &[u8]) -> Result<(), Fatal> {
        let [level, description] = *contents else {
            return Err(Fatal(alert::DECODE_ERROR));
        };
        let goes_on = match self.version() {
            // Levels are without meaning [RFC 8446 §6].
            Version::V1_3 => description == alert::USER_CANCELED,
            Version::V1_2 if ![alert::WARNING, alert::FATAL].contains(&level) => {
                return Err(Fatal(alert::ILLEGAL_PARAMETER));
            }
            Version::V1_2 => level == alert::WARNING,
        };
        if description == alert::CLOSE_NOTIFY {
            self.end = Some(End::Closed);
        } else if !goes_on {
            // The peer has given up; it is told nothing.
            self.end = Some(End::Broken);
            self.ended = true;
        }
        Ok(())
    }

    /// A KeyUpdate, and before it tickets of a broker, which come too late for anybody to keep.
    fn after_handshake(&mut self, desk: &mut Desk<'_>, mut contents: &[u8]) -> Result<(), Fatal> {
        let tickets = |message: &Message, contents: &[u8]| {
            let kind = match message.filled {
                0 => contents.first(),
                _ => message.bytes.first(),
            };
            message.left > 0 || kind == Some(&NEW_SESSION_TICKET)
        };
        while self.peer == Peer::Server && !contents.is_empty() && tickets(&self.message, contents)
        {
            if self.message.left == 0 {
                if !self.message.take(&mut contents) {
                    return Ok(());
                }
                self.message
                    .pass_over(self.message.announced(), MAX_TICKET)?;
                self.count_quiet(HEAVY)?;
            }
            self.message.skip(&mut contents);
        }
        match contents {
            [] => Ok(()),
            contents => self.key_update(&mut desk.contexts.open, contents),
        }
    }

    fn key_update(&mut self, keyed: &mut Keyed, mut contents: &[u8]) -> Result<(), Fatal> {
        let whole = self.message.take(&mut contents);
        let begun = &self.message.bytes[..usize::from(self.message.filled)];
        match begun {
            [kind, ..] if *kind != KEY_UPDATE[0] => return Err(Fatal(alert::UNEXPECTED_MESSAGE)),
            begun if !KEY_UPDATE.starts_with(begun) => return Err(Fatal(alert::DECODE_ERROR)),
            _ => {}
        }
        // Other keys begin with another record [RFC 8446 §5.1].
        let request = match *contents {
            [request] if whole => request,
            [] => return Ok(()),
            _ => return Err(Fatal(alert::UNEXPECTED_MESSAGE)),
        };
        if request > UPDATE_REQUESTED {
            return Err(Fatal(alert::ILLEGAL_PARAMETER));
        }
        self.message = Message::default();
        self.read.update(keyed);
        self.asked = false;
        self.must_change |= request == UPDATE_REQUESTED;
        Ok(())
    }

    /// A client that wants to renegotiate is told that there is no such thing, and may go on. A
    /// broker is not: OpenSSL's would end the connection, and one that hears nothing goes on
    /// [RFC 5246 §7.4.1.1].
    fn renegotiation(&mut self, desk: &mut Desk<'_>, mut contents: &[u8]) -> Result<(), Fatal> {
        let wanted = match self.peer {
            Peer::Client => CLIENT_HELLO,
            Peer::Server => HELLO_REQUEST,
        };
        while !contents.is_empty() {
            if self.message.left == 0 {
                let whole = self.message.take(&mut contents);
                if self.message.bytes[0] != wanted {
                    return Err(Fatal(alert::UNEXPECTED_MESSAGE));
                }
                if !whole {
                    return Ok(());
                }
                let size = self.message.announced();
                match self.peer {
                    Peer::Client => self.message.pass_over(size, MAX_CONTENTS)?,
                    Peer::Server if size == 0 => self.message = Message::default(),
                    Peer::Server => return Err(Fatal(alert::DECODE_ERROR)),
                }
            }
            self.message.skip(&mut contents);
            if self.message.left == 0 {
                self.count_quiet(HEAVY)?;
                if self.peer == Peer::Client && !self.ended {
                    self.put(desk, ALERT, &[alert::WARNING, alert::NO_RENEGOTIATION])?;
                }
            }
        }
        Ok(())
    }

    /// Answers what the client has asked for: one change of keys for all that came at once.
    pub(super) fn answer(&mut self, desk: &mut Desk<'_>) -> Result<(), Refused> {
        match std::mem::take(&mut self.must_change) && !self.ended {
            true => self.change_keys(desk, UPDATE_NOT_REQUESTED),
            false => Ok(()),
        }
    }

    /// Has the client change its keys, once, when they have protected enough.
    pub(super) fn ask_for_keys(&mut self, desk: &mut Desk<'_>) -> Result<(), Fatal> {
        let can = self.version() == Version::V1_3 && !self.asked && !self.ended;
        if can && self.end.is_none() {
            self.asked = true;
            self.change_keys(desk, UPDATE_REQUESTED)?;
        }
        Ok(())
    }

    /// Goes on with other keys for what is written, and says so.
    pub(super) fn change_keys(&mut self, desk: &mut Desk<'_>, request: u8) -> Result<(), Refused> {
        let [kind, high, middle, low] = KEY_UPDATE;
        self.put(desk, HANDSHAKE, &[kind, high, middle, low, request])?;
        self.write.update(&mut desk.contexts.seal);
        Ok(())
    }

    /// Ends the session with an alert; nothing is read or written any more.
    pub(super) fn fail(&mut self, desk: &mut Desk<'_>, description: u8) {
        self.end = Some(End::Broken);
        // What made it fail is no state that a session can go on from.
        (self.message, self.quiet) = (Message::default(), 0);
        if !std::mem::replace(&mut self.ended, true) {
            // Without memory there is nobody to tell.
            let _ = self.put(desk, ALERT, &[alert::FATAL, description]);
        }
    }
}
