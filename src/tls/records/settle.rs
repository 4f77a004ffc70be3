//! From OpenSSL's session to records of our own: what has to be known, and when it is not to be
//! done.
//!
//! Nothing is guessed: whatever does not look exactly as expected leaves OpenSSL's session where it
//! is, which can do everything.

use openssl::nid::Nid;
use openssl::ssl::{SslRef, SslVersion};

use super::protection::{EXPLICIT, MASTER, Protection, Randoms};
use super::schedule::Hash;
use super::suite::{Aead, Suite, Version};
use super::{APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, MAX_CONTENTS, Peer, keylog};
use crate::ffi::openssl as ffi;
use crate::tls::staging::RECORD_HEADER;

/// What OpenSSL has written during a handshake, as far as it matters afterwards.
#[derive(Debug, Default)]
pub struct Flights {
    /// Kinds of the records of the last call, as far as they are all the same.
    last: Option<(u8, u64)>,
    /// A ChangeCipherSpec was among the records of TLS 1.2.
    changed: bool,
    /// Records after it, and the beginning of the body of the last one.
    protected: u64,
    explicit: Option<[u8; EXPLICIT]>,
    /// The client has sent ChangeCipherSpec, and so many records after it.
    client_changed: bool,
    client_protected: u64,
    /// The handshake has ended.
    finished: bool,
    /// Something else than whole records was written, or something after the end.
    unclear: bool,
}

/// Keys of an established session, and the most that a record may hold.
#[derive(Debug)]
pub struct Established {
    /// Whose the other side is.
    pub peer: Peer,
    /// Protects what comes.
    pub read: Protection,
    /// Protects what goes.
    pub write: Protection,
    /// Bytes of the contents of a record.
    pub fragment: u16,
}

impl Flights {
    /// Takes note of what one call of the handshake has written.
    pub fn note(&mut self, mut written: &[u8]) {
        self.unclear |= self.finished;
        self.last = Some((0, 0));
        while let Some((header, rest)) = written.split_first_chunk::<RECORD_HEADER>() {
            let [kind, 3, _, high, low] = *header else {
                break;
            };
            let size = usize::from(u16::from_be_bytes([high, low]));
            let Some((body, rest)) = rest.split_at_checked(size) else {
                break;
            };
            written = rest;
            self.last = match self.last {
                Some((0, 0)) => Some((kind, 1)),
                Some((same, count)) if same == kind => Some((kind, count + 1)),
                _ => None,
            };
            if kind == CHANGE_CIPHER_SPEC {
                self.changed = true;
            } else if self.changed {
                self.protected += 1;
                self.unclear |= kind != HANDSHAKE && kind != APPLICATION_DATA;
                self.explicit = body.first_chunk().copied();
            }
        }
        self.unclear |= !written.is_empty();
    }

    /// Takes note of what that call has read: whole records.
    pub fn note_read(&mut self, mut read: &[u8]) {
        while let Some((header, rest)) = read.split_first_chunk::<RECORD_HEADER>() {
            let size = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let Some(rest) = rest.get(size..) else { break };
            read = rest;
            match header[0] {
                CHANGE_CIPHER_SPEC => self.client_changed = true,
                _ => self.client_protected += u64::from(self.client_changed),
            }
        }
        self.unclear |= !read.is_empty();
    }

    /// The call that was noted last has ended the handshake.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether the handshake has ended with tickets of TLS 1.3, for which no client waits.
    pub fn end_in_tickets(&self) -> bool {
        self.finished && !self.unclear && matches!(self.last, Some((APPLICATION_DATA, _)))
    }

    /// How many records of TLS 1.3 the last call has protected with the keys of the application:
    /// those of the tickets, which follow the client's Finished.
    fn tickets(&self) -> Option<u64> {
        match self.last? {
            (0, 0) => Some(0),
            (APPLICATION_DATA, count) => Some(count),
            _ => None,
        }
    }

    /// The explicit nonce of Finished in TLS 1.2, the one protected record, if the client has sent
    /// one as well: both have counted one record then.
    fn of_finished(&self) -> Option<[u8; EXPLICIT]> {
        match (self.protected, self.client_protected) {
            (1, 1) => self.explicit,
            _ => None,
        }
    }
}

/// Version and cipher of a session, if its records can be done here.
pub(super) fn suite(ssl: &SslRef) -> Option<Suite> {
    let version = match ssl.version2()? {
        SslVersion::TLS1_2 => Version::V1_2,
        SslVersion::TLS1_3 => Version::V1_3,
        _ => return None,
    };
    let cipher = ssl.current_cipher()?;
    let aead = match cipher.cipher_nid()? {
        Nid::AES_128_GCM => Aead::Aes128Gcm,
        Nid::AES_256_GCM => Aead::Aes256Gcm,
        Nid::CHACHA20_POLY1305 => Aead::ChaCha20Poly1305,
        _ => return None,
    };
    let hash = match cipher.handshake_digest()?.type_() {
        Nid::SHA256 => Hash::Sha256,
        Nid::SHA384 => Hash::Sha384,
        _ => return None,
    };
    let suite = Suite { version, aead };
    (suite.hash() == hash).then_some(suite)
}

/// What is to be known of a session of the server's side whose handshake has just ended and has
/// written this. `None` when its records are none of ours, or something does not add up.
pub fn established(ssl: &SslRef, flights: &Flights) -> Option<Established> {
    let secrets = keylog::take(ssl)?;
    let clear = flights.finished && !flights.unclear && !ffi::has_pending(ssl);
    if !clear || !ssl.is_init_finished() || !ssl.is_server() {
        return None;
    }
    let suite = suite(ssl)?;
    let session = ssl.session()?;
    let fragment = match ffi::max_fragment_length(session) {
        0 => MAX_CONTENTS,
        code @ 1..=4 => 1 << (8 + code),
        _ => return None,
    };
    let [read, write] = match suite.version {
        Version::V1_3 => [
            Protection::from_secret(suite, secrets.client?.bytes(), 0)?,
            Protection::from_secret(suite, secrets.server?.bytes(), flights.tickets()?)?,
        ],
        Version::V1_2 => {
            // OpenSSL counts from a random nonce; so does what follows.
            let explicit = u64::from_be_bytes(flights.of_finished()?).wrapping_add(1);
            from_master(ssl, suite, explicit)?
        }
    };
    Some(Established {
        peer: Peer::Client,
        read,
        write,
        fragment: fragment as u16,
    })
}

/// Those of client and server in TLS 1.2, see [`Protection::from_master`].
pub(super) fn from_master(ssl: &SslRef, suite: Suite, explicit: u64) -> Option<[Protection; 2]> {
    let session = ssl.session()?;
    let mut master = [0; MASTER];
    let mut randoms = Randoms {
        client: [0; 32],
        server: [0; 32],
    };
    let whole = session.master_key_len() == MASTER
        && session.master_key(&mut master) == MASTER
        && ssl.client_random(&mut randoms.client) == 32
        && ssl.server_random(&mut randoms.server) == 32;
    let protections = Protection::from_master(suite, &master, &randoms, explicit);
    ffi::cleanse(&mut master);
    protections.filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3, 0, body.len() as u8], body].concat()
    }

    #[test]
    fn what_a_handshake_wrote_is_counted() {
        let mut flights = Flights::default();
        flights.note(&[record(22, b"hello"), record(20, &[1]), record(23, b"rest")].concat());
        assert_eq!(flights.tickets(), None);
        flights.note(&[record(23, b"ticket"), record(23, b"ticket")].concat());
        assert_eq!((flights.tickets(), flights.unclear), (Some(2), false));
        flights.note(&[]);
        assert_eq!(flights.tickets(), Some(0));
        flights.finish();
        assert!(!flights.unclear);
        flights.note(&[]);
        assert!(flights.unclear, "what is said now belongs to no handshake");

        let mut flights = Flights::default();
        flights.note(&record(22, b"hello"));
        assert_eq!(flights.of_finished(), None);
        let finished = record(22, b"12345678 finished");
        flights.note(&[record(22, b"ticket"), record(20, &[1]), finished.clone()].concat());
        assert_eq!(flights.of_finished(), None, "the client has not finished");
        flights.note_read(&[record(22, b"key"), record(20, &[1]), record(22, b"")].concat());
        assert_eq!(flights.of_finished(), Some(*b"12345678"));
        assert_eq!(flights.tickets(), None);
        flights.note_read(&record(21, b"warning"));
        assert_eq!(flights.of_finished(), None, "the client has counted two");
        flights.client_protected = 1;
        flights.note(&finished);
        assert_eq!(flights.of_finished(), None, "two are one too many");
    }

    #[test]
    fn what_is_no_whole_record_is_unclear() {
        for written in [
            &b"\x16\x03\x03\x00\x05hell"[..],
            b"\x16\x03",
            b"GET / HTTP/1.1",
        ] {
            let mut flights = Flights::default();
            flights.note(written);
            assert!(flights.unclear, "{written:?}");
        }
    }
}
