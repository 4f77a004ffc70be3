//! The relay with TLS on either side or both, between real sockets on loopback.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use openssl::ssl::{ErrorCode, Ssl, SslContextBuilder, SslStream, SslVersion};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::IdleTimeout;
use super::engine::{Engine, Takes, Which};
use super::testing::{self, Counts, DEADLINE, connected};
use crate::tls::link::{Link, TlsStream};
use crate::tls::records::keylog;
use crate::tls::testing as tls;

/// What the other end of one side of the pair is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Tls(SslVersion),
}

const KINDS: [Kind; 3] = [
    Kind::Plain,
    Kind::Tls(SslVersion::TLS1_2),
    Kind::Tls(SslVersion::TLS1_3),
];

/// The other end itself. Its socket does not block.
#[derive(Debug)]
enum Peer {
    Plain(StdStream),
    Tls(SslStream<StdStream>),
}

/// What an attempt came to.
#[derive(Debug, PartialEq)]
enum Tried {
    Done(usize),
    Later,
    Broken,
}

impl Peer {
    fn socket(&self) -> &StdStream {
        match self {
            Peer::Plain(socket) => socket,
            Peer::Tls(tls) => tls.get_ref(),
        }
    }

    fn tried(result: std::io::Result<usize>) -> Tried {
        match result {
            Ok(count) => Tried::Done(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Tried::Later,
            Err(_) => Tried::Broken,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Tried {
        Self::tried(match self {
            Peer::Plain(socket) => socket.write(bytes),
            Peer::Tls(tls) => tls.write(bytes),
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> Tried {
        Self::tried(match self {
            Peer::Plain(socket) => socket.read(buffer),
            Peer::Tls(tls) => tls.read(buffer),
        })
    }

    /// Ends its sending side: close_notify and the end of the stream.
    fn end(&mut self) -> bool {
        if let Peer::Tls(tls) = self
            && let Err(error) = tls.shutdown()
            && error.code() == ErrorCode::WANT_WRITE
        {
            return false;
        }
        let _ = self.socket().shutdown(Shutdown::Write);
        true
    }

    fn wait(&self, write: bool) {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, write);
        let mut set = [PollFd::from_borrowed_fd(self.socket().as_fd(), flags)];
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let _ = poll(&mut set, Some(&limit));
    }

    fn read_exact(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let mut filled = 0;
        let deadline = Instant::now() + DEADLINE;
        while filled < size {
            assert!(Instant::now() < deadline, "{filled} of {size} bytes");
            match self.read(&mut bytes[filled..]) {
                Tried::Done(0) => panic!("the end after {filled} of {size} bytes"),
                Tried::Done(count) => filled += count,
                Tried::Later => self.wait(false),
                Tried::Broken => panic!("broken after {filled} of {size} bytes"),
            }
        }
        bytes
    }

    fn write_all(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.write(rest) {
                Tried::Done(count) => rest = &rest[count..],
                Tried::Later => self.wait(true),
                Tried::Broken => panic!("broken"),
            }
        }
    }

    /// Reads to the end, however it comes.
    fn read_all(&mut self) -> Vec<u8> {
        self.play(&[], &[1], false, usize::MAX)
    }

    /// Writes `data` in pieces of these sizes, then ends its side if `ends`; at the same time reads
    /// at most `at_once` bytes a time until the other side has ended.
    fn play(&mut self, data: &[u8], sizes: &[usize], ends: bool, at_once: usize) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        let mut sizes = sizes.iter().cycle();
        let mut rest = data;
        let mut piece: &[u8] = &[];
        let mut ended = !ends;
        let mut got = Vec::new();
        let mut buffer = vec![0; at_once.min(70_000)];
        loop {
            assert!(
                Instant::now() < deadline,
                "no end after {} bytes",
                got.len()
            );
            let mut idle = true;
            if piece.is_empty() && !rest.is_empty() {
                let size = (*sizes.next().unwrap()).clamp(1, rest.len());
                (piece, rest) = rest.split_at(size);
            }
            if !piece.is_empty() {
                match self.write(piece) {
                    Tried::Done(count) => {
                        piece = &piece[count..];
                        idle = false;
                    }
                    Tried::Later => {}
                    Tried::Broken => (piece, rest) = (&[], &[]),
                }
            } else if !ended {
                ended = self.end();
            }
            match self.read(&mut buffer) {
                Tried::Done(0) | Tried::Broken => {
                    if rest.is_empty() && piece.is_empty() && ended {
                        return got;
                    }
                }
                Tried::Done(count) => {
                    got.extend_from_slice(&buffer[..count]);
                    idle = false;
                }
                Tried::Later => {}
            }
            if idle {
                self.wait(!piece.is_empty() || !ended);
            }
        }
    }
}

struct Stage {
    client: Peer,
    broker: Peer,
    counts: Counts,
    engine: Engine,
    _runtime: Runtime,
}

/// A peer of this kind, and what the relay gets of the connection; `serves` says that the relay is
/// the server of the handshake.
fn side(runtime: &Runtime, kind: Kind, serves: bool, buffer: Option<usize>) -> (Peer, Link) {
    let (near, far) = connected(buffer);
    let inside = runtime.enter();
    let far = TcpStream::from_std(far).unwrap();
    drop(inside);
    let Kind::Tls(version) = kind else {
        near.set_nonblocking(true).unwrap();
        return (Peer::Plain(near), Link::Plain(far));
    };
    let own = |builder: &mut SslContextBuilder| keylog::use_own_records(builder).unwrap();
    let server = Ssl::new(&tls::server(version, own)).unwrap();
    let client = Ssl::new(&tls::client(version, own)).unwrap();
    let (mut link, ssl) = match serves {
        true => (
            TlsStream::accepting(far, server, Vec::new()).unwrap(),
            client,
        ),
        false => (TlsStream::connecting(far, client).unwrap(), server),
    };
    let shaking = std::thread::spawn(move || {
        let mut peer = SslStream::new(ssl, near).unwrap();
        match serves {
            true => peer.connect().unwrap(),
            false => peer.accept().unwrap(),
        }
        peer.get_ref().set_nonblocking(true).unwrap();
        peer
    });
    runtime.block_on(link.handshake()).unwrap();
    link.settle();
    assert_eq!(link.ssl().is_none(), serves);
    (Peer::Tls(shaking.join().unwrap()), Link::Tls(link))
}

fn stage(kinds: [Kind; 2], owed: [&[u8]; 2], idle: IdleTimeout, buffer: Option<usize>) -> Stage {
    let runtime = testing::runtime();
    let counts = Counts::default();
    let (client, client_side) = side(&runtime, kinds[0], true, buffer);
    let (broker, broker_side) = side(&runtime, kinds[1], false, buffer);
    let links = [client_side, broker_side];
    Stage {
        client,
        broker,
        engine: testing::relayed(&runtime, links, owed, idle, &counts),
        counts,
        _runtime: runtime,
    }
}

/// Every combination of which at least one side has TLS.
fn combinations() -> impl Iterator<Item = [Kind; 2]> {
    let pairs = KINDS.iter().flat_map(|one| KINDS.map(|two| [*one, two]));
    pairs.filter(|pair| *pair != [Kind::Plain; 2])
}

#[test]
fn what_is_owed_comes_first_and_half_close_is_passed_on() {
    for kinds in combinations() {
        let idle = IdleTimeout::default();
        let mut stage = stage(kinds, [b"CONNECT", b"CONNACK"], idle, None);
        stage.client.write_all(b", PUBLISH");
        assert!(stage.client.end());
        assert_eq!(stage.broker.read_all(), b"CONNECT, PUBLISH", "{kinds:?}");
        stage.broker.write_all(b", PUBACK");
        assert!(stage.broker.end());
        assert_eq!(stage.client.read_all(), b"CONNACK, PUBACK", "{kinds:?}");
        assert_eq!(stage.counts.wait_for_end(), "client_closed");
        assert_eq!(stage.counts.bytes(), (16, 15));
        assert_eq!(stage.counts.connections.live(), 0);
    }
}

#[test]
fn a_close_notify_alone_ends_its_direction_and_the_other_goes_on() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let kinds = [Kind::Tls(version), Kind::Plain];
        let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), None);
        stage.client.write_all(b"DISCONNECT");
        let Peer::Tls(tls) = &mut stage.client else {
            unreachable!()
        };
        // The socket stays open both ways.
        tls.shutdown().unwrap();
        assert_eq!(stage.broker.read_all(), b"DISCONNECT");
        stage.broker.write_all(b"the rest");
        assert_eq!(stage.client.read_exact(8), b"the rest");
        assert!(stage.broker.end());
        assert_eq!(stage.client.read_all(), b"");
        let Peer::Tls(tls) = &mut stage.client else {
            unreachable!()
        };
        let received = openssl::ssl::ShutdownState::RECEIVED;
        assert!(tls.get_shutdown().contains(received), "no close_notify");
        assert_eq!(stage.counts.wait_for_end(), "client_closed");
    }
}

#[test]
fn an_end_without_close_notify_is_an_end_of_the_stream() {
    for kinds in combinations() {
        let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), None);
        stage.client.write_all(b"bye");
        stage.client.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(stage.broker.read_all(), b"bye", "{kinds:?}");
        stage.broker.write_all(b"good bye");
        stage.broker.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(stage.client.read_all(), b"good bye", "{kinds:?}");
        assert_eq!(stage.counts.wait_for_end(), "client_closed");
    }
}

#[test]
fn a_reset_ends_the_other_side_as_well() {
    for kinds in combinations() {
        let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), None);
        stage.client.write_all(b"x");
        assert_eq!(stage.broker.read_exact(1), b"x");
        let linger = SockRef::from(stage.client.socket());
        linger.set_linger(Some(Duration::ZERO)).unwrap();
        drop(std::mem::replace(
            &mut stage.client,
            Peer::Plain(connected(None).0),
        ));
        stage.broker.read_all();
        assert_eq!(stage.counts.wait_for_end(), "client_error", "{kinds:?}");
    }
}

#[test]
fn garbage_ends_the_connection_and_what_came_before_it_arrives() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let header = [23, 3, 3, 0, 40];
        let forged: &[u8] = &[&header[..], &[0x55; 40]].concat();
        let too_long: &[u8] = &[23, 3, 3, 0xff, 0xff];
        for garbage in [b"GET / HTTP/1.1\r\n\r\n", forged, too_long] {
            let kinds = [Kind::Tls(version), Kind::Plain];
            let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), None);
            stage.client.write_all(b"good");
            let mut socket = stage.client.socket();
            socket.write_all(garbage).unwrap();
            assert_eq!(stage.broker.read_all(), b"good");
            assert_eq!(
                stage.counts.wait_for_end(),
                "client_error",
                "{version:?} {garbage:?}"
            );
        }
    }
}

#[test]
fn a_reader_that_stops_stops_its_sender_and_gets_every_byte_later() {
    for kinds in combinations() {
        let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), Some(8 * 1024));
        let chunk: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
        let mut sent = 0;
        let mut stopped = Instant::now();
        while stopped.elapsed() < Duration::from_millis(300) {
            match stage.client.write(&chunk[sent % 256..]) {
                Tried::Done(count) => {
                    sent += count;
                    stopped = Instant::now();
                }
                Tried::Later => stage.client.wait(true),
                Tried::Broken => panic!("broken"),
            }
            // One scratch, as much again in TLS of either side, and the sockets.
            assert!(sent < 16 << 20, "nothing stops the sender");
        }
        // OpenSSL wants the write repeated that it could not finish.
        let last = &chunk[sent % 256..];
        let Stage { client, broker, .. } = &mut stage;
        let received = std::thread::scope(|scope| {
            scope.spawn(|| client.play(last, &[last.len()], true, 1000));
            broker.play(&[], &[1], true, 70_000)
        });
        sent += last.len();
        assert_eq!(received.len(), sent, "{kinds:?}");
        let expected = (0..=255_u8).cycle().take(sent);
        assert!(received.into_iter().eq(expected), "{kinds:?}");
    }
}

#[test]
fn tls_moves_only_to_a_process_that_takes_it() {
    let kinds = [Kind::Tls(SslVersion::TLS1_3), Kind::Plain];
    let mut stage = stage(kinds, [b"", b""], IdleTimeout::default(), None);
    let (to, released) = std::sync::mpsc::channel();
    stage.engine.release(Which::Movable(Takes::Plain), to);
    assert!(released.recv().unwrap().is_empty());
    stage.client.write_all(b"still here");
    assert_eq!(stage.broker.read_exact(10), b"still here");
    let (to, released) = std::sync::mpsc::channel();
    stage.engine.release(Which::Movable(Takes::All), to);
    let pairs = released.recv().unwrap();
    assert_eq!(pairs.len(), 1);
    stage.engine.adopt(pairs);
    stage.broker.write_all(b"and here");
    assert_eq!(stage.client.read_exact(8), b"and here");
}

#[test]
fn tls_toward_a_broker_moves_once_both_sides_have_spoken() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for client in [Kind::Plain, Kind::Tls(version)] {
            let kinds = [client, Kind::Tls(version)];
            let mut stage = stage(kinds, [b"CONNECT", b""], IdleTimeout::default(), None);
            assert_eq!(stage.broker.read_exact(7), b"CONNECT");
            let release = |engine: &Engine, takes| {
                let (to, released) = std::sync::mpsc::channel();
                engine.release(Which::Movable(takes), to);
                released.recv().unwrap()
            };
            assert!(release(&stage.engine, Takes::All).is_empty(), "{kinds:?}");
            stage.broker.write_all(b"CONNACK");
            assert_eq!(stage.client.read_exact(7), b"CONNACK");
            assert!(release(&stage.engine, Takes::OfClients).is_empty());
            for n in 0..3 {
                let pairs = release(&stage.engine, Takes::All);
                assert_eq!(pairs.len(), 1, "{kinds:?}");
                stage.engine = Engine::start(n).unwrap();
                stage.engine.adopt(pairs);
                stage.client.write_all(b"PUBLISH");
                assert_eq!(stage.broker.read_exact(7), b"PUBLISH");
                stage.broker.write_all(b"PUBACK");
                assert_eq!(stage.client.read_exact(6), b"PUBACK");
            }
            assert!(stage.broker.end());
            assert_eq!(stage.client.read_all(), b"");
        }
    }
}

#[test]
fn silence_ends_the_connection() {
    let idle = IdleTimeout {
        open: Some(Duration::from_millis(200)),
        after_broker_end: None,
    };
    let mut stage = stage([KINDS[2], KINDS[2]], [b"", b""], idle, None);
    assert_eq!(stage.client.read_all(), b"");
    assert_eq!(stage.counts.wait_for_end(), "idle_timeout");
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(KINDS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        kinds in [kind(), kind()],
        up in prop::collection::vec(any::<u8>(), 0..300_000),
        down in prop::collection::vec(any::<u8>(), 0..300_000),
        owed in prop::collection::vec(any::<u8>(), 0..2000),
        sizes in prop::collection::vec(1_usize..60_000, 1..6),
        at_once in 1000_usize..60_000,
        buffer in prop::option::of(2048_usize..20_000),
    ) {
        let mut stage = stage(kinds, [&owed, b""], IdleTimeout::default(), buffer);
        let Stage { client, broker, .. } = &mut stage;
        let (at_client, at_broker) = std::thread::scope(|scope| {
            let client = scope.spawn(|| client.play(&up, &sizes, true, at_once));
            let broker = scope.spawn(|| broker.play(&down, &sizes, true, at_once));
            (client.join().unwrap(), broker.join().unwrap())
        });
        prop_assert!(at_client == down, "down: {} of {}", at_client.len(), down.len());
        prop_assert!(at_broker == [owed, up].concat(), "up: {} bytes", at_broker.len());
    }

    #[test]
    fn a_reset_at_any_point_ends_the_pair(
        kinds in [kind(), kind()],
        bytes in 0_usize..100_000,
        cut in 0_usize..100_000,
        of_broker in any::<bool>(),
    ) {
        let Stage { mut client, mut broker, counts, engine, _runtime } =
            stage(kinds, [b"", b""], IdleTimeout::default(), Some(8 * 1024));
        let (mut breaks, mut stays) = match of_broker {
            true => (broker, client),
            false => { std::mem::swap(&mut client, &mut broker); (broker, client) }
        };
        let data = vec![7_u8; bytes];
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut read = 0;
                let mut rest = &data[..];
                let mut buffer = [0; 3000];
                // Until `cut` bytes have moved through it, or nothing moves any more.
                for _ in 0..10_000 {
                    if read + data.len() - rest.len() >= cut {
                        break;
                    }
                    if let Tried::Done(count) = breaks.write(&rest[..rest.len().min(5000)]) {
                        rest = &rest[count..];
                    }
                    if let Tried::Done(count) = breaks.read(&mut buffer) {
                        read += count;
                    }
                }
                SockRef::from(breaks.socket()).set_linger(Some(Duration::ZERO)).unwrap();
            });
            scope.spawn(move || { stays.play(&vec![9; bytes], &[4000], true, 5000); });
        });
        counts.wait_for_end();
        drop(engine);
    }
}
