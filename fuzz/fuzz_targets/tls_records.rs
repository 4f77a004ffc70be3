//! What must hold for an established TLS session whatever its peer says: bytes that are no records,
//! and records under the right keys with whatever in them.
#![no_main]

use std::io::{self, ErrorKind};

use libfuzzer_sys::fuzz_target;
use mqtt_proxy::tls::records::{Peer, Records};
use mqtt_proxy::tls::records::cipher::with_contexts;
use mqtt_proxy::tls::records::parts::SessionParts;
use mqtt_proxy::tls::records::protection::Protection;
use mqtt_proxy::tls::records::settle::Established;
use mqtt_proxy::tls::records::suite::{Aead, Suite, Version};
use mqtt_proxy::tls::session::{Session, Transport};
use mqtt_proxy::tls::staging::Shelf;

/// What may be owed to a peer that does not read: the bound of answers, and one more.
const MAX_OWED: usize = 4096 + 256;

/// Receives these bytes in pieces, and then their end; takes so much.
struct Socket<'a> {
    incoming: &'a [u8],
    at_once: usize,
    room: usize,
    sent: usize,
}

impl Transport for Socket<'_> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty());
        let count = buffer.len().min(self.at_once).min(self.incoming.len());
        let (now, later) = self.incoming.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.incoming = later;
        Ok(count)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(self.room) {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => {
                self.room -= count;
                self.sent += count;
                Ok(count)
            }
        }
    }
}

fn suite(byte: u8) -> Suite {
    let aeads = [Aead::Aes128Gcm, Aead::Aes256Gcm, Aead::ChaCha20Poly1305];
    Suite {
        version: if byte & 1 == 0 { Version::V1_2 } else { Version::V1_3 },
        aead: aeads[usize::from(byte >> 1) % 3],
    }
}

fn protection(suite: Suite) -> Protection {
    let protection = match suite.version {
        Version::V1_3 => Protection::from_secret(suite, &vec![1; suite.hash().size()], 0),
        Version::V1_2 => {
            let (key, iv) = (vec![1; suite.aead.key_size()], vec![1; suite.iv_size()]);
            Protection::from_key(suite, &key, &iv, 0, 0)
        }
    };
    protection.expect("lengths of the suite")
}

/// Everything is read; gives what was, and the end.
fn judge(parts: &SessionParts, wire: &[u8], at_once: usize, room: usize) -> (Vec<u8>, bool) {
    let mut session = Session::from_parts(parts).expect("good parts");
    let mut socket = Socket {
        incoming: wire,
        at_once,
        room: usize::MAX,
        sent: 0,
    };
    let shelf = Shelf::default();
    let mut buffer = vec![0; room];
    let mut got = Vec::new();
    let failed = loop {
        match session.read(&shelf, &mut socket, &mut buffer) {
            Ok(0) => break false,
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidData);
                break true;
            }
        }
    };
    let again = session.read(&shelf, &mut socket, &mut buffer);
    assert_eq!(again.is_err(), failed, "a verdict is final");
    let parts = session.to_parts().expect("it is settled");
    Session::from_parts(&parts).expect("what a session says of itself is right");
    (got, failed)
}

/// What a peer that never reads is owed.
fn owed(parts: &SessionParts, wire: &[u8]) -> usize {
    let mut session = Session::from_parts(parts).expect("good parts");
    let mut socket = Socket {
        incoming: wire,
        at_once: usize::MAX,
        room: 0,
        sent: 0,
    };
    let shelf = Shelf::default();
    let mut buffer = vec![0; 4096];
    while matches!(session.read(&shelf, &mut socket, &mut buffer), Ok(1..)) {}
    session.to_parts().expect("it is settled").owed.len()
}

fuzz_target!(|bytes: &[u8]| {
    let [kind, at_once, room, said @ ..] = bytes else {
        return;
    };
    let suite = suite(*kind & 127);
    let mut client = protection(suite);
    let peer = if *kind & 128 == 0 { Peer::Client } else { Peer::Server };
    let established = Established {
        peer,
        read: protection(suite),
        write: protection(suite),
        fragment: 16 * 1024,
    };
    let parts = Records::new(established, Vec::new(), Vec::new()).to_parts();
    // Records as the bytes say: kind, size, contents. After a KeyUpdate the keys change, as they
    // would with a peer that means it. What is left over is sent as it is.
    let mut wire = Vec::new();
    let mut rest = said;
    while let [kind @ 0..=127, size, more @ ..] = rest {
        let (contents, behind) = more.split_at(usize::from(*size).min(more.len()));
        rest = behind;
        let mut record = vec![0; client.overhead() + contents.len()];
        with_contexts(suite.aead, |contexts, _| {
            let seal = &mut contexts.seal;
            client.seal(seal, *kind, contents, &mut record).expect("few records");
            if matches!((suite.version, kind, contents), (Version::V1_3, 22, [24, 0, 0, 1, 0 | 1])) {
                client.update(seal);
            }
        })
        .expect("OpenSSL has the cipher");
        wire.extend(record);
    }
    wire.extend(rest);
    let (at_once, room) = (usize::from(*at_once) + 1, usize::from(*room) + 1);
    let verdict = judge(&parts, &wire, at_once, room);
    assert_eq!(verdict, judge(&parts, &wire, usize::MAX, 20_000), "segments do not matter");
    assert!(owed(&parts, &wire) <= MAX_OWED);
});
