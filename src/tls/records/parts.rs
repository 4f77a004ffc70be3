//! An established session as values that another process goes on with.
//!
//! They hold its keys. They travel over the local socket between the two processes of an upgrade
//! and are stored nowhere.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::control::{
    CLIENT_HELLO, HELLO_REQUEST, KEY_UPDATE, MAX_TICKET, Message, NEW_SESSION_TICKET,
};
use super::protection::Protection;
use super::suite::{Suite, Version};
use super::{End, MAX_CONTENTS, MIN_CONTENTS, Peer, Pending, Records};
use crate::ffi::openssl::cleanse;
use crate::tls::staging::LARGEST;

/// Most bytes that are pending in one direction: several times what a thread receives or sends at a
/// time, so that no session that there can be is refused.
const MAX_PENDING: usize = 4 * LARGEST;

/// Bytes in hexadecimal digits: JSON knows none, and a list of numbers is twice as long. They are
/// overwritten when dropped, and Debug output has only how many there are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

/// A settled session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionParts {
    /// Whose the other side is; a version that did not say so had those of clients only.
    #[serde(default)]
    pub peer: Peer,
    /// Version and cipher.
    pub suite: Suite,
    /// What protects the records that come.
    pub read: DirectionParts,
    /// What protects those that go.
    pub write: DirectionParts,
    /// Most bytes in a record, 512 to 16384.
    pub fragment: u16,
    /// Received and not opened.
    pub received: Bytes,
    /// Opened and not read.
    pub contents: Bytes,
    /// Written and not sent.
    pub owed: Bytes,
    /// The beginning of a message that has come in part, at most four bytes.
    pub message: Bytes,
    /// Bytes of such a message that have yet to come and count for nothing.
    pub message_left: u16,
    /// What has come in a row without application data, at most 1024.
    pub quiet: u16,
    /// Whether the peer has been asked for other keys.
    pub asked: bool,
    /// How reading has ended, if it has.
    pub end: Option<End>,
    /// Whether no more is written.
    pub ended: bool,
    /// How many of the bytes owed are answers.
    pub answers: u32,
}

/// Keys of one direction, and how often they have been used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionParts {
    /// The application traffic secret, in TLS 1.3; key and IV come from it.
    pub secret: Bytes,
    /// The key, in TLS 1.2.
    pub key: Bytes,
    /// The initialisation vector, in TLS 1.2.
    pub iv: Bytes,
    /// Number of the next record.
    pub sequence: u64,
    /// Explicit nonce of the next record, in TLS 1.2 with AES-GCM.
    pub explicit: u64,
    /// Blocks that the key may still protect.
    pub blocks_left: u64,
}

/// Why a session cannot go on from these parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// A secret, key or initialisation vector of another length than the suite's.
    #[error("keys of another length than the suite has")]
    Keys,
    /// A count that no session gets to.
    #[error("a count is out of range")]
    Count,
    /// More bytes than a session has pending.
    #[error("more pending bytes than a session has")]
    Pending,
    /// A part of a message that no session waits in.
    #[error("no beginning of a message")]
    Message,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        cleanse(&mut self.0);
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.to_vec())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Bytes({} hidden)", self.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
        let mut text = String::with_capacity(2 * self.len());
        for byte in self.iter() {
            text.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        let serialized = to.serialize_str(&text);
        cleanse(&mut text.into_bytes());
        serialized
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut text = String::deserialize(from)?.into_bytes();
        let mut bytes = Bytes(Vec::with_capacity(text.len() / 2));
        let (pairs, odd) = text.as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut whole = odd.is_empty();
        for [high, low] in pairs {
            match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => bytes.0.push((high << 4 | low) as u8),
                _ => whole = false,
            }
        }
        cleanse(&mut text);
        match whole {
            true => Ok(bytes),
            false => Err(serde::de::Error::custom("no hexadecimal digits")),
        }
    }
}

impl DirectionParts {
    fn of(protection: &Protection) -> Self {
        let suite = protection.suite();
        let (secret, key, iv) = match suite.version {
            Version::V1_3 => (suite.hash().size(), 0, 0),
            Version::V1_2 => (0, suite.aead.key_size(), suite.iv_size()),
        };
        DirectionParts {
            secret: protection.secret[..secret].into(),
            key: protection.key[..key].into(),
            iv: protection.iv[..iv].into(),
            sequence: protection.sequence,
            explicit: protection.explicit,
            blocks_left: protection.blocks_left,
        }
    }

    fn protection(&self, suite: Suite) -> Result<Protection, PartsError> {
        let others = match suite.version {
            Version::V1_3 => [&self.key, &self.iv],
            Version::V1_2 => [&self.secret; 2],
        };
        if others.iter().any(|other| !other.is_empty()) {
            return Err(PartsError::Keys);
        }
        let protection = match suite.version {
            Version::V1_3 => Protection::from_secret(suite, &self.secret, self.sequence),
            Version::V1_2 => {
                Protection::from_key(suite, &self.key, &self.iv, self.sequence, self.explicit)
            }
        };
        let mut protection = protection.ok_or(PartsError::Keys)?;
        // A new key has as many as it may have.
        if self.blocks_left > protection.blocks_left {
            return Err(PartsError::Count);
        }
        protection.blocks_left = self.blocks_left;
        Ok(protection)
    }
}

impl Records {
    /// See [`crate::tls::session::Session::to_parts`].
    pub fn to_parts(&self) -> SessionParts {
        let nothing = Pending::default();
        let pending = self.pending.as_deref().unwrap_or(&nothing);
        let filled = usize::from(self.message.filled);
        SessionParts {
            peer: self.peer,
            suite: self.write.suite(),
            read: DirectionParts::of(&self.read),
            write: DirectionParts::of(&self.write),
            fragment: self.fragment,
            received: pending.received[..].into(),
            contents: pending.contents[pending.contents_read..].into(),
            owed: pending.owed[pending.sent..].into(),
            message: self.message.bytes[..filled].into(),
            message_left: self.message.left,
            quiet: self.quiet,
            asked: self.asked,
            end: self.end,
            ended: self.ended,
            // As many as the socket has not taken.
            answers: self.answers.min((pending.owed.len() - pending.sent) as u32),
        }
    }

    /// See [`crate::tls::session::Session::from_parts`].
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn from_parts(parts: &SessionParts) -> Result<Self, PartsError> {
        let read = parts.read.protection(parts.suite)?;
        let write = parts.write.protection(parts.suite)?;
        let fragment = usize::from(parts.fragment);
        let counts = (MIN_CONTENTS..=MAX_CONTENTS).contains(&fragment)
            && parts.quiet <= super::control::MAX_QUIET
            && parts.answers as usize <= parts.owed.len();
        if !counts {
            return Err(PartsError::Count);
        }
        let sizes = parts.received.len() <= MAX_PENDING
            && parts.contents.len() <= MAX_CONTENTS
            && parts.owed.len() <= MAX_PENDING;
        if !sizes {
            return Err(PartsError::Pending);
        }
        let pending = Pending {
            received: parts.received.to_vec(),
            contents: parts.contents.to_vec(),
            owed: parts.owed.to_vec(),
            ..Pending::default()
        };
        Ok(Records {
            peer: parts.peer,
            read,
            write,
            pending: Pending::kept(Box::new(pending)),
            fragment: parts.fragment,
            message: Message::from_parts(parts).ok_or(PartsError::Message)?,
            quiet: parts.quiet,
            must_change: false,
            asked: parts.asked,
            end: parts.end,
            ended: parts.ended,
            answers: parts.answers,
            held: false,
        })
    }
}

impl Message {
    fn from_parts(parts: &SessionParts) -> Option<Self> {
        let mut message = Message {
            left: parts.message_left,
            filled: parts.message.len() as u8,
            ..Message::default()
        };
        let place = message.bytes.get_mut(..parts.message.len())?;
        place.copy_from_slice(&parts.message);
        let most = match parts.peer {
            Peer::Client => MAX_CONTENTS,
            Peer::Server => MAX_TICKET,
        };
        let passed_over = |kind: u8| match &parts.message[..] {
            [] => usize::from(message.left) <= most,
            [first, ..] => message.left == 0 && message.filled < 4 && *first == kind,
        };
        let key_update = message.left == 0 && KEY_UPDATE.starts_with(&parts.message);
        let possible = match (parts.suite.version, parts.peer) {
            (Version::V1_3, Peer::Client) => key_update,
            (Version::V1_3, Peer::Server) => key_update || passed_over(NEW_SESSION_TICKET),
            (Version::V1_2, Peer::Client) => passed_over(CLIENT_HELLO),
            (Version::V1_2, Peer::Server) => message.left == 0 && passed_over(HELLO_REQUEST),
        };
        possible.then_some(message)
    }
}
