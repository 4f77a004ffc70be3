//! A client that has the keys and keeps to no rules.

use std::io::ErrorKind;

use super::{Server, Socket};
use crate::tls::records::cipher::with_contexts;
use crate::tls::records::control::alert;
use crate::tls::records::parts::SessionParts;
use crate::tls::records::protection::Protection;
use crate::tls::records::settle::Established;
use crate::tls::records::suite::{Aead, Suite, Version};
use crate::tls::records::{ALERT, HANDSHAKE, Peer, Records};
use crate::tls::session::Session;
use crate::tls::staging::{RECORD_HEADER, Shelf};

/// One of TLS 1.3.
pub const V1_3: Suite = Suite {
    version: Version::V1_3,
    aead: Aead::Aes128Gcm,
};
/// One of TLS 1.2.
pub const V1_2: Suite = Suite {
    version: Version::V1_2,
    aead: Aead::Aes128Gcm,
};
/// A KeyUpdate that asks for one.
pub const ASKS: &[u8] = &[24, 0, 0, 1, 1];

/// A client that has the keys and keeps to no rules.
pub struct Forger {
    write: Protection,
    read: Protection,
}

/// A session that was never shaken hands for, and who forges its client.
pub fn forged(suite: Suite) -> (Server, Forger) {
    forged_with(suite, |_| {})
}

/// The same, with something changed at its beginning.
pub fn forged_with(suite: Suite, change: impl FnOnce(&mut SessionParts)) -> (Server, Forger) {
    let mut parts = parts(suite);
    change(&mut parts);
    let forger = Forger::of(&parts);
    let server = Server {
        session: Session::from_parts(&parts).unwrap(),
        socket: Socket::default(),
        shelf: Shelf::default(),
    };
    (server, forger)
}

/// What protects one direction; one record of it has passed.
fn protection(suite: Suite, seed: u8) -> Protection {
    let of_size = |size: usize| vec![seed; size];
    let protection = match suite.version {
        Version::V1_3 => Protection::from_secret(suite, &of_size(suite.hash().size()), 1),
        Version::V1_2 => {
            let (key, iv) = (of_size(suite.aead.key_size()), of_size(suite.iv_size()));
            Protection::from_key(suite, &key, &iv, 1, 1)
        }
    };
    protection.unwrap()
}

/// Keys of a session that is to be settled.
pub fn established(suite: Suite) -> Established {
    Established {
        peer: Peer::Client,
        read: protection(suite, 1),
        write: protection(suite, 2),
        fragment: 16 * 1024,
    }
}

/// A session that has just been settled.
pub fn parts(suite: Suite) -> SessionParts {
    Records::new(established(suite), Vec::new(), Vec::new()).to_parts()
}

impl Forger {
    /// The client of a session.
    pub fn of(parts: &SessionParts) -> Self {
        let session = Records::from_parts(parts).unwrap();
        Forger {
            write: session.read.clone(),
            read: session.write.clone(),
        }
    }

    /// The next record, with these contents; in TLS 1.3 `kind` is the one inside.
    pub fn record(&mut self, kind: u8, contents: &[u8]) -> Vec<u8> {
        let mut record = vec![0; self.write.overhead() + contents.len()];
        with_contexts(self.write.suite().aead, |contexts, _| {
            self.write
                .seal(&mut contexts.seal, kind, contents, &mut record)
                .unwrap();
        })
        .unwrap();
        record
    }

    /// Takes the next keys for what it writes.
    pub fn change_keys(&mut self) {
        with_contexts(self.write.suite().aead, |contexts, _| {
            self.write.update(&mut contexts.seal);
        })
        .unwrap();
    }

    /// What the server has sent: kinds and contents. Follows its changes of keys.
    pub fn open(&mut self, sent: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut records = Vec::new();
        let mut rest = sent;
        while let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER>() {
            let size = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let (body, behind) = behind.split_at(size);
            rest = behind;
            let mut contents = vec![0; size];
            let (kind, count) = with_contexts(self.read.suite().aead, |contexts, _| {
                let open = &mut contexts.open;
                let opened = self.read.open(open, *header, body, &mut contents).unwrap();
                if (opened.0, self.read.suite().version) == (HANDSHAKE, Version::V1_3) {
                    self.read.update(open);
                }
                opened
            })
            .unwrap();
            contents.truncate(count);
            records.push((kind, contents));
        }
        assert!(rest.is_empty(), "not a whole record: {rest:?}");
        records
    }
}

/// The session reads `wire` and answers with one fatal alert, and then neither reads nor writes.
#[track_caller]
pub fn is_refused(
    mut server: Server,
    forger: &mut Forger,
    wire: &[u8],
    description: u8,
    what: &str,
) {
    server.socket.incoming.extend(wire);
    let (_, error) = server.read_all();
    assert_eq!(error, Some(ErrorKind::InvalidData), "{what}");
    let sent = forger.open(&server.socket.outgoing);
    let alert = (ALERT, vec![alert::FATAL, description]);
    assert_eq!(sent.last(), Some(&alert), "{what}: {sent:?}");
    let fatal = sent
        .iter()
        .filter(|(kind, text)| *kind == ALERT && text[0] == alert::FATAL);
    assert_eq!(fatal.count(), 1, "{what}");
    assert!(server.session.has_input(), "the error shows again");
    server.move_on();
    server.socket.outgoing.clear();
    server.socket.incoming.extend(wire);
    assert_eq!(server.read_all(), (vec![], Some(ErrorKind::InvalidData)));
    assert_eq!(
        server.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    server.end();
    assert_eq!(server.socket.outgoing, b"", "{what}: nothing more is said");
}

/// The session reads `wire` and goes on; gives what it read.
#[track_caller]
pub fn is_taken(server: &mut Server, wire: &[u8]) -> Vec<u8> {
    server.socket.incoming.extend(wire);
    let (got, error) = server.read_all();
    assert_eq!(error, Some(ErrorKind::WouldBlock));
    got
}
