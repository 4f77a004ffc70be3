//! What the tests of records need: a socket in memory, OpenSSL as the client, and a client that
//! forges what it likes under the right keys.

pub mod forger;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslStream, SslVersion};

use super::keylog;
use super::parts::SessionParts;
use super::suite::{Aead, Suite, Version};
use crate::tls::session::{Session, Transport};
use crate::tls::staging::Shelf;
use crate::tls::testing;

/// Every suite that is done here, by OpenSSL's name.
pub const SUITES: [(SslVersion, &str); 6] = [
    (SslVersion::TLS1_3, "TLS_AES_128_GCM_SHA256"),
    (SslVersion::TLS1_3, "TLS_AES_256_GCM_SHA384"),
    (SslVersion::TLS1_3, "TLS_CHACHA20_POLY1305_SHA256"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-CHACHA20-POLY1305"),
];

/// The same as this program has them.
pub fn suites() -> impl Iterator<Item = Suite> {
    [Version::V1_2, Version::V1_3]
        .into_iter()
        .flat_map(|version| {
            [Aead::Aes128Gcm, Aead::Aes256Gcm, Aead::ChaCha20Poly1305]
                .map(|aead| Suite { version, aead })
        })
}

/// Bytes from hexadecimal digits, whatever is between them.
pub fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|char| char.to_digit(16)).collect();
    let pairs = digits.chunks_exact(2);
    pairs.map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A socket in memory.
#[derive(Debug)]
pub struct Socket {
    /// What is still to be received.
    pub incoming: VecDeque<u8>,
    /// What has been sent.
    pub outgoing: Vec<u8>,
    /// Most bytes that are received at a time.
    pub at_once: usize,
    /// How many bytes are taken before there is no room.
    pub room: usize,
    /// No more will come.
    pub ended: bool,
}

impl Default for Socket {
    fn default() -> Self {
        Socket {
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            at_once: usize::MAX,
            room: usize::MAX,
            ended: false,
        }
    }
}

impl Transport for Socket {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "no room to receive into");
        let size = buffer.len().min(self.at_once);
        match self.incoming.read(&mut buffer[..size])? {
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match bytes.len().min(self.room) {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => {
                self.room -= count;
                self.outgoing.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
        }
    }
}

/// What OpenSSL has in place of a socket.
#[derive(Debug, Default)]
pub struct Memory {
    /// To be read by it.
    pub input: VecDeque<u8>,
    /// Written by it.
    pub output: Vec<u8>,
    /// No more will come.
    pub ended: bool,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer)? {
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A session, and whatever its other end is.
pub struct Server {
    /// The session.
    pub session: Session,
    /// Its socket.
    pub socket: Socket,
    /// What its thread lends.
    pub shelf: Shelf,
}

impl Server {
    /// One read into so much room.
    pub fn read(&mut self, room: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0xee; room];
        let count = self
            .session
            .read(&self.shelf, &mut self.socket, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// Reads until nothing comes; an error that is not that.
    pub fn read_all(&mut self) -> (Vec<u8>, Option<ErrorKind>) {
        let mut all = Vec::new();
        loop {
            match self.read(4000) {
                Ok(bytes) if bytes.is_empty() => return (all, None),
                Ok(bytes) => all.extend(bytes),
                Err(error) => return (all, Some(error.kind())),
            }
        }
    }

    /// One write.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.session.write(&self.shelf, &mut self.socket, bytes)
    }

    /// Says close_notify.
    pub fn end(&mut self) {
        self.session.end(&self.shelf, &mut self.socket).unwrap();
    }

    /// Goes on as another process would.
    pub fn move_on(&mut self) {
        let text = serde_json::to_string(&self.session.to_parts().unwrap()).unwrap();
        let parts: SessionParts = serde_json::from_str(&text).unwrap();
        assert_eq!(Some(&parts), self.session.to_parts().as_ref());
        self.session = Session::from_parts(&parts).unwrap();
        assert_eq!(Some(parts), self.session.to_parts());
    }
}

/// A client of OpenSSL before a server of ours.
pub struct Pair {
    /// The server.
    pub server: Server,
    /// The client.
    pub client: SslStream<Memory>,
    /// What the server has said during the handshake.
    pub said: Vec<u8>,
}

/// Leaves a context this suite only.
pub fn only(builder: &mut SslContextBuilder, (version, suite): (SslVersion, &str)) {
    match version {
        SslVersion::TLS1_3 => builder.set_ciphersuites(suite).unwrap(),
        _ => builder.set_cipher_list(suite).unwrap(),
    }
}

/// Contexts that agree on a suite.
pub fn contexts(
    suite: (SslVersion, &str),
    of_server: impl FnOnce(&mut SslContextBuilder),
    of_client: impl FnOnce(&mut SslContextBuilder),
) -> (SslContext, SslContext) {
    let (version, _) = suite;
    let builder = keylog::server_context().unwrap();
    let server = testing::server_from(builder, version, |builder| {
        only(builder, suite);
        of_server(builder);
    });
    (server, testing::client(version, of_client))
}

impl Pair {
    /// An established connection, which is settled if it can be.
    pub fn new(suite: (SslVersion, &str)) -> Self {
        let (server, client) = contexts(suite, |_| {}, |_| {});
        Self::between(Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap(), b"")
    }

    /// The same of these, with bytes that the client sends together with its Finished.
    pub fn between(server: Ssl, client: Ssl, early: &[u8]) -> Self {
        Self::in_parts_of(usize::MAX, server, client, early)
    }

    /// The same over a network that brings so many bytes at a time.
    pub fn in_parts_of(size: usize, server: Ssl, mut client: Ssl, early: &[u8]) -> Self {
        let socket = Socket {
            at_once: size,
            ..Socket::default()
        };
        let mut server = Server {
            session: Session::accept(server, Vec::new()).unwrap(),
            socket,
            shelf: Shelf::default(),
        };
        client.set_connect_state();
        let mut client = SslStream::new(client, Memory::default()).unwrap();
        let mut said = Vec::new();
        let (mut done, mut shaken) = (false, false);
        while !(done && shaken) {
            if !done {
                done = client.do_handshake().is_ok();
                if done {
                    client.write_all(early).unwrap();
                }
            }
            server
                .socket
                .incoming
                .extend(client.get_mut().output.drain(..));
            if !shaken {
                let Server {
                    session,
                    socket,
                    shelf,
                } = &mut server;
                shaken = session.handshake(shelf, socket).unwrap();
            }
            said.extend_from_slice(&server.socket.outgoing);
            let input = &mut client.get_mut().input;
            input.extend(server.socket.outgoing.drain(..));
        }
        server.session.settle();
        Pair {
            server,
            client,
            said,
        }
    }

    /// Everything on the way arrives.
    pub fn carry(&mut self) {
        let (socket, memory) = (&mut self.server.socket, self.client.get_mut());
        socket.incoming.extend(memory.output.drain(..));
        memory.input.extend(socket.outgoing.drain(..));
    }

    /// What the client reads now; `None` at the end.
    pub fn client_reads(&mut self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 20_000];
        loop {
            match self.client.read(&mut buffer) {
                Ok(0) => return (!all.is_empty()).then_some(all),
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(all),
                Err(error) => panic!("after {} bytes: {error}", all.len()),
            }
        }
    }

    /// The client says this, and the server reads it.
    pub fn up(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap();
        self.carry();
        let (got, error) = self.server.read_all();
        assert_eq!(error, Some(ErrorKind::WouldBlock));
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    }

    /// The server says this, and the client reads it.
    pub fn down(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = self.server.write(rest).unwrap();
            rest = &rest[count..];
        }
        self.carry();
        let got = self.client_reads().unwrap();
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    }
}

/// Kinds and bodies of these records.
pub fn records(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut records = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<5>() {
        let size = u16::from_be_bytes([header[3], header[4]]);
        let (body, rest) = rest.split_at(usize::from(size));
        records.push((header[0], body));
        bytes = rest;
    }
    records
}

/// Bytes of which no two stretches are the same.
pub fn data(size: usize) -> Vec<u8> {
    (0..size)
        .map(|index| (index * 7 + index / 256) as u8)
        .collect()
}
