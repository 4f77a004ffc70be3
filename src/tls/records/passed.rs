//! From OpenSSL's session with a broker to records of our own.
//!
//! A broker of TLS 1.3 sends tickets behind its handshake, which OpenSSL has to see, or no later
//! connection could resume the session. So OpenSSL stays until the broker has said something: by
//! then the tickets have come. Meanwhile the records of both directions are counted, and the last
//! of each is kept. Whether count and keys are right is not concluded but shown: they open those
//! two records, or OpenSSL's session stays where it is, which can do everything.

use openssl::ssl::SslRef;

use super::cipher::with_contexts;
use super::protection::{EXPLICIT, Protection};
use super::settle::{self, Established};
use super::suite::Version;
use super::{MAX_CONTENTS, Peer, keylog};
use crate::ffi::openssl as ffi;
use crate::tls::staging::{MAX_RECORD, RECORD_HEADER};

/// What has passed since the handshake, in both directions.
#[derive(Debug, Default)]
pub struct Passed {
    read: Direction,
    written: Direction,
}

#[derive(Debug, Default)]
struct Direction {
    records: u64,
    /// The last record, header included.
    last: Vec<u8>,
    /// Something else than whole records has passed.
    unclear: bool,
}

impl Direction {
    fn note(&mut self, mut bytes: &[u8]) {
        while let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() {
            let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let size = RECORD_HEADER + body;
            if rest.len() < body || size > MAX_RECORD {
                break;
            }
            self.records += 1;
            self.last.clear();
            self.last.extend_from_slice(&bytes[..size]);
            bytes = &bytes[size..];
        }
        self.unclear |= !bytes.is_empty();
    }

    /// Whether these keys open the last record, with the number that it must have had. They stand
    /// behind it then.
    fn opens_with(&self, protection: &mut Protection, before: u64) -> bool {
        let Some((header, body)) = self.last.split_first_chunk::<RECORD_HEADER>() else {
            return false;
        };
        protection.sequence = before + self.records - 1;
        with_contexts(protection.suite().aead, |contexts, _| {
            let mut contents = vec![0; body.len()];
            let opened = protection.open(&mut contexts.open, *header, body, &mut contents);
            // The next to work with the context has other keys.
            contexts.open.keyed = false;
            ffi::cleanse(&mut contents);
            opened.is_ok()
        })
        .unwrap_or(false)
    }

    /// The explicit nonce of the last record.
    fn explicit(&self) -> Option<u64> {
        let body = self.last.get(RECORD_HEADER..)?;
        body.first_chunk::<EXPLICIT>()
            .copied()
            .map(u64::from_be_bytes)
    }
}

impl Passed {
    /// Takes note of what OpenSSL has read in one call.
    pub fn note_read(&mut self, bytes: &[u8]) {
        self.read.note(bytes);
    }

    /// Takes note of what it has written in one call.
    pub fn note_written(&mut self, bytes: &[u8]) {
        self.written.note(bytes);
    }

    /// Whether each side has said something that the keys can be tried on.
    pub fn is_enough(&self) -> bool {
        self.read.records > 0 && self.written.records > 0
    }

    /// What is to be known of the session of which this has passed and nothing waits to be read.
    /// `None` when its records are none of ours, or something does not add up.
    pub fn established(&self, ssl: &SslRef) -> Option<Established> {
        let secrets = keylog::take(ssl)?;
        let clear = !self.read.unclear && !self.written.unclear && !ffi::has_pending(ssl);
        if !clear || !ssl.is_init_finished() || ssl.is_server() {
            return None;
        }
        let suite = settle::suite(ssl)?;
        // Finished was the first record that the keys of TLS 1.2 have protected.
        let ([mut read, mut write], before) = match suite.version {
            Version::V1_3 => {
                let read = Protection::from_secret(suite, secrets.server?.bytes(), 0)?;
                let write = Protection::from_secret(suite, secrets.client?.bytes(), 0)?;
                ([read, write], 0)
            }
            Version::V1_2 => {
                let [write, read] = settle::from_master(ssl, suite, 0)?;
                ([read, write], 1)
            }
        };
        let right =
            self.read.opens_with(&mut read, before) && self.written.opens_with(&mut write, before);
        if !right {
            return None;
        }
        if suite.has_explicit_nonce() {
            write.explicit = self.written.explicit()?.wrapping_add(1);
        }
        Some(Established {
            peer: Peer::Server,
            read,
            write,
            fragment: MAX_CONTENTS as u16,
        })
    }
}
