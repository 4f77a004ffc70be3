//! From OpenSSL's session with a broker to records of our own.
//!
//! A broker of TLS 1.3 sends tickets behind its handshake, which OpenSSL has to see, or no later
//! connection could resume the session. So OpenSSL stays until the broker has said something: by
//! then the tickets have come. Meanwhile the records of both directions are counted, and the last
//! of each is kept. Whether count and keys are right is not concluded but shown: they open those
//! two records, and both are application data, or OpenSSL's session stays where it is, which can do
//! everything.

use openssl::ssl::SslRef;

use super::cipher::with_contexts;
use super::keylog::{self, Secret, TrafficSecrets};
use super::protection::{EXPLICIT, Protection};
use super::settle::{self, Established};
use super::suite::Version;
use super::{APPLICATION_DATA, MAX_CONTENTS, Peer};
use crate::ffi::openssl as ffi;
use crate::tls::staging::{MAX_RECORD, RECORD_HEADER};

/// What has passed since the handshake, in both directions.
#[derive(Default)]
pub struct Passed {
    read: Direction,
    written: Direction,
    secrets: Option<TrafficSecrets>,
}

/// What is to become of a session.
#[expect(clippy::large_enum_variant, reason = "it lives for a moment")]
pub enum Verdict {
    /// Its records can be done here.
    Ours(Established),
    /// That cannot be said yet.
    Later,
    /// They are none of ours, or something does not add up.
    OpenSsl,
}

#[derive(Debug, Default)]
struct Direction {
    records: u64,
    bytes: u64,
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
            self.bytes += size as u64;
            self.last.clear();
            self.last.extend_from_slice(&bytes[..size]);
            bytes = &bytes[size..];
        }
        self.unclear |= !bytes.is_empty();
    }

    /// The kind of what the last record has in it, if these keys open it with the number that it must
    /// have had. They stand behind it then.
    fn opened_with(&self, protection: &mut Protection, before: u64) -> Option<u8> {
        let (header, body) = self.last.split_first_chunk::<RECORD_HEADER>()?;
        protection.sequence = before + self.records - 1;
        let opened = with_contexts(protection.suite().aead, |contexts, _| {
            let mut contents = vec![0; body.len()];
            let opened = protection.open(&mut contexts.open, *header, body, &mut contents);
            // The next to work with the context has other keys.
            contexts.open.keyed = false;
            ffi::cleanse(&mut contents);
            opened
        });
        let (kind, _) = opened.ok()?.ok()?;
        // What the others have cost the key.
        let blocks = self.bytes / 16 + self.records;
        protection.blocks_left = protection.blocks_left.saturating_sub(blocks);
        Some(kind)
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

    /// What is to become of the session of which this has passed.
    pub fn verdict(&mut self, ssl: &SslRef) -> Verdict {
        if self.read.unclear || self.written.unclear {
            return Verdict::OpenSsl;
        }
        // A message of the handshake that has come in part, and what nobody has read yet, are
        // OpenSSL's to go on with.
        let quiet = ssl.is_init_finished() && !ffi::has_pending(ssl);
        if !quiet || self.read.records == 0 || self.written.records == 0 {
            return Verdict::Later;
        }
        self.proven(ssl).unwrap_or(Verdict::OpenSsl)
    }

    fn proven(&mut self, ssl: &SslRef) -> Option<Verdict> {
        let suite = settle::suite(ssl)?;
        if self.secrets.is_none() {
            self.secrets = keylog::take(ssl);
        }
        let secrets = self.secrets.as_ref()?;
        // Finished was the first record that the keys of TLS 1.2 have protected.
        let (mut read, mut write, before) = match suite.version {
            Version::V1_3 => {
                let [server, client] = [&secrets.server, &secrets.client];
                let from = |secret: &Option<Secret>| {
                    Protection::from_secret(suite, secret.as_ref()?.bytes(), 0)
                };
                (from(server)?, from(client)?, 0)
            }
            Version::V1_2 => {
                let [client, server] = settle::from_master(ssl, suite, 0)?;
                (server, client, 1)
            }
        };
        let kinds = [
            self.read.opened_with(&mut read, before)?,
            self.written.opened_with(&mut write, before)?,
        ];
        if kinds != [APPLICATION_DATA; 2] {
            // Behind the last one there may be other keys, or the rest of a message.
            return Some(Verdict::Later);
        }
        if suite.has_explicit_nonce() {
            write.explicit = self.written.explicit()?.wrapping_add(1);
        }
        Some(Verdict::Ours(Established {
            peer: Peer::Server,
            read,
            write,
            fragment: MAX_CONTENTS as u16,
        }))
    }
}
