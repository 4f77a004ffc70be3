//! A raw client: sends bytes, expects bytes, and tells the three ways in which a connection can
//! stand: open, ended cleanly (FIN), or reset (RST).

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::mqtt::{ACCEPTED, ACCEPTED_5, Connect};
use super::ports::local;
use super::wait::SOON;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed cleanly: everything it had sent has arrived.
    Fin,
    /// The peer reset the connection.
    Reset,
}

/// A connection to the proxy.
pub struct Client {
    /// The socket, for what the methods here do not cover.
    pub stream: TcpStream,
}

impl Client {
    /// Connects to a port of 127.0.0.1.
    pub fn to(port: u16) -> Self {
        Self::to_addr(local(port))
    }

    /// Connects to an address.
    pub fn to_addr(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, SOON)
            .unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"));
        Self::over(stream)
    }

    /// Connects from a given address of this machine.
    pub fn from(source: &str, addr: SocketAddr) -> Self {
        let source: IpAddr = source.parse().expect("an IP address");
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .expect("bind");
        socket
            .connect_timeout(&addr.into(), SOON)
            .unwrap_or_else(|e| panic!("cannot connect to {addr} from {source}: {e}"));
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { stream }
    }

    /// Connects, sends this CONNECT and expects the CONNACK "accepted" of its level.
    pub fn mqtt(port: u16, connect: &Connect) -> Self {
        let mut client = Self::to(port);
        client.send(&connect.build());
        client.expect(if connect.level == 5 {
            ACCEPTED_5
        } else {
            ACCEPTED
        });
        client
    }

    /// Sends all bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.set_write_timeout(Some(SOON)).expect("timeout");
        self.stream.write_all(bytes).expect("send");
    }

    /// Sends bytes to a peer that may close in between.
    pub fn try_send(&mut self, bytes: &[u8]) {
        self.stream.set_write_timeout(Some(SOON)).expect("timeout");
        let _ = self.stream.write_all(bytes);
    }

    /// Sends each piece as a segment of its own.
    pub fn send_pieces<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) {
        for piece in pieces {
            self.send(piece);
            std::thread::yield_now();
        }
    }

    /// Reads exactly `expected`.
    ///
    /// # Panics
    /// When something else arrives, the connection ends, or the deadline passes.
    pub fn expect(&mut self, expected: &[u8]) {
        let got = self.read_up_to(expected.len(), SOON);
        assert!(
            got.0 == expected,
            "expected {} but got {} ({})",
            show(expected),
            show(&got.0),
            got.1
                .map_or("still open".to_owned(), |end| format!("then {end:?}")),
        );
    }

    /// Reads exactly `len` bytes.
    pub fn read_exactly(&mut self, len: usize) -> Vec<u8> {
        let (bytes, end) = self.read_up_to(len, SOON);
        assert_eq!(
            bytes.len(),
            len,
            "wanted {len} bytes, got {} and {end:?}",
            bytes.len()
        );
        bytes
    }

    /// Reads until `len` bytes are there, the connection ends, or the time is over.
    pub fn read_up_to(&mut self, len: usize, within: Duration) -> (Vec<u8>, Option<End>) {
        let start = Instant::now();
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            let Some(left) = within.checked_sub(start.elapsed()).filter(|d| !d.is_zero()) else {
                bytes.truncate(filled);
                return (bytes, None);
            };
            self.stream.set_read_timeout(Some(left)).expect("timeout");
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => {
                    bytes.truncate(filled);
                    return (bytes, Some(End::Fin));
                }
                Ok(n) => filled += n,
                Err(e) if is_timeout(&e) || e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    assert!(is_reset(&e), "unexpected error on read: {e}");
                    bytes.truncate(filled);
                    return (bytes, Some(End::Reset));
                }
            }
        }
        (bytes, None)
    }

    /// Reads to the end of the connection: everything that arrived, and how it ended.
    ///
    /// # Panics
    /// When it is still open after `within`.
    pub fn read_to_end(&mut self, within: Duration) -> (Vec<u8>, End) {
        let (bytes, end) = self.read_up_to(64 << 20, within);
        let end = end.unwrap_or_else(|| {
            panic!("still open after {within:?}; received {}", show(&bytes));
        });
        (bytes, end)
    }

    /// Expects the other side to end cleanly without sending anything (more).
    pub fn expect_fin(&mut self) {
        let (bytes, end) = self.read_to_end(SOON);
        assert!(
            bytes.is_empty(),
            "expected no bytes before the end, got {}",
            show(&bytes)
        );
        assert_eq!(end, End::Fin, "expected a clean end");
    }

    /// Expects the end of the connection, clean or not, without any byte.
    pub fn expect_closed(&mut self) {
        let (bytes, _) = self.read_to_end(SOON);
        assert!(
            bytes.is_empty(),
            "expected no bytes before the end, got {}",
            show(&bytes)
        );
    }

    /// Expects these bytes and then a clean end.
    pub fn expect_last(&mut self, expected: &[u8]) {
        let (bytes, end) = self.read_to_end(SOON);
        assert_eq!(
            show(&bytes),
            show(expected),
            "the bytes before the end ({end:?})"
        );
        assert_eq!(end, End::Fin, "a reset could have destroyed the last bytes");
    }

    /// Checks that for this long nothing arrives and the connection stays open.
    pub fn expect_silence(&mut self, time: Duration) {
        let (bytes, end) = self.read_up_to(1, time);
        assert!(
            bytes.is_empty() && end.is_none(),
            "expected silence for {time:?}, got {} and {end:?}",
            show(&bytes)
        );
    }

    /// Sends a PINGREQ-like pair of bytes and expects them back from an echoing broker.
    pub fn expect_alive(&mut self) {
        self.send(super::mqtt::PINGREQ);
        self.expect(super::mqtt::PINGREQ);
    }

    /// Ends the sending side (FIN) and keeps the receiving one.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let socket = Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// The client's own address.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("connected")
    }
}

/// Whether a read or write stopped only because its time was over.
pub fn is_timeout(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Whether the peer (or its kernel) reset the connection.
pub fn is_reset(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}

/// Bytes as hexadecimal text, shortened.
pub fn show(bytes: &[u8]) -> String {
    let mut text: String = bytes.iter().take(80).map(|b| format!("{b:02x} ")).collect();
    if bytes.len() > 80 {
        text.push_str(&format!("… ({} bytes)", bytes.len()));
    }
    if text.is_empty() {
        "nothing".to_owned()
    } else {
        text.trim_end().to_owned()
    }
}
