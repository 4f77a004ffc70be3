//! Connections in their beginnings, watched by an engine over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::super::IdleTimeout;
use super::super::engine::Engine;
use super::super::testing::{self, Counts, DEADLINE, connected};
use super::*;
use crate::tls::link::Link;

/// Opened by the test.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicBool>);

impl Gate {
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Waits until it is open, though not as long as the test itself waits for anything.
    fn wait(&self) {
        let end = Instant::now() + DEADLINE / 2;
        while !self.0.load(Ordering::SeqCst) && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// Waits for `wanted` bytes, after having sent what it owes.
struct Reader {
    wanted: usize,
    received: Vec<u8>,
    owes: usize,
    until: Instant,
    costs: Option<Duration>,
    /// Costly as well, and waited for in the first step.
    gate: Option<Gate>,
    steps: usize,
    over: Sender<(Vec<u8>, usize, OwnedFd)>,
}

impl Reader {
    fn of(wanted: usize) -> (Self, Receiver<(Vec<u8>, usize, OwnedFd)>) {
        let (over, heard) = channel();
        let reader = Reader {
            wanted,
            received: Vec::new(),
            owes: 0,
            until: Instant::now() + DEADLINE,
            costs: None,
            gate: None,
            steps: 0,
            over,
        };
        (reader, heard)
    }

    fn parked(self, socket: TcpStream) -> Parked {
        Parked {
            socket: socket.into(),
            waiting: Box::new(self),
        }
    }
}

impl Waiting for Reader {
    fn until(&self) -> Instant {
        self.until
    }

    fn is_costly(&self) -> bool {
        self.costs.is_some() || self.gate.is_some()
    }

    fn step(&mut self, socket: BorrowedFd<'_>) -> Step {
        self.steps += 1;
        if let Some(gate) = &self.gate {
            gate.wait();
        }
        if let Some(costs) = self.costs {
            let end = Instant::now() + costs;
            while Instant::now() < end {}
        }
        while self.owes > 0 {
            let bytes = vec![0; self.owes.min(64 * 1024)];
            match send(socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.owes -= count,
                Err(_) => return Step::Owe,
            }
        }
        let mut buffer = [0; 16];
        while let Ok((count @ 1.., _)) = recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        match self.received.len() >= self.wanted {
            true => Step::Over,
            false => Step::Wait,
        }
    }

    fn go_on(self: Box<Self>, socket: OwnedFd) {
        let _ = self.over.send((self.received, self.steps, socket));
    }
}

#[test]
fn it_steps_whenever_something_comes_and_gives_the_socket_back() {
    let engine = Engine::start(0).unwrap();
    let (mut near, far) = connected(None);
    let (reader, heard) = Reader::of(3);
    engine.park(reader.parked(far));
    for byte in [b"a", b"b", b"c"] {
        near.write_all(byte).unwrap();
    }
    let (received, steps, socket) = heard.recv_timeout(DEADLINE).unwrap();
    assert_eq!(received, b"abc");
    assert!((1..=3).contains(&steps), "{steps}");
    // It is whole: nobody else reads from it.
    near.write_all(b"d").unwrap();
    let mut socket = TcpStream::from(socket);
    socket.set_nonblocking(false).unwrap();
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"d");
}

#[test]
fn its_time_comes_even_if_nothing_does() {
    let engine = Engine::start(0).unwrap();
    let (_near, far) = connected(None);
    let (mut reader, heard) = Reader::of(1);
    reader.until = Instant::now() + Duration::from_millis(100);
    engine.park(reader.parked(far));
    let (received, _, _) = heard.recv_timeout(DEADLINE).unwrap();
    assert!(received.is_empty());
}

#[test]
fn whoever_owes_goes_on_when_there_is_room() {
    const OWED: usize = 8 * 1024 * 1024;
    let engine = Engine::start(0).unwrap();
    let (mut near, far) = connected(Some(16 * 1024));
    let (mut reader, heard) = Reader::of(1);
    reader.owes = OWED;
    engine.park(reader.parked(far));
    // It does nothing until something comes.
    near.write_all(b"a").unwrap();
    let mut bytes = vec![0; OWED];
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    near.read_exact(&mut bytes).unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap().0, b"a");
}

/// Forty costly steps, each longer than a signature with RSA, are due at once; a message that comes
/// during the second passes before the last.
#[test]
fn costly_steps_let_messages_pass() {
    const COSTLY: usize = 40;
    const COSTS: Duration = Duration::from_millis(2);
    let runtime = testing::runtime();
    let counts = Counts::default();
    let (mut client, client_side) = connected(None);
    let (mut broker, broker_side) = connected(None);
    let links = {
        let _inside = runtime.enter();
        [client_side, broker_side]
            .map(|side| Link::Plain(tokio::net::TcpStream::from_std(side).unwrap()))
    };
    let idle = IdleTimeout::default();
    let engine = testing::relayed(&runtime, links, [b"", b""], idle, &counts);
    let mut hanging = Vec::new();
    let [parked, written, passed] = [(); 3].map(|()| Gate::default());
    for n in 0..COSTLY {
        let (mut near, far) = connected(None);
        let (mut reader, heard) = Reader::of(1);
        reader.costs = Some(COSTS);
        reader.gate = match n {
            0 => Some(parked.clone()),
            1 => Some(written.clone()),
            n if n == COSTLY - 1 => Some(passed.clone()),
            _ => None,
        };
        near.write_all(b"a").unwrap();
        engine.park(reader.parked(far));
        hanging.push((near, heard));
    }
    parked.open();
    client.write_all(b"ping").unwrap();
    written.open();
    let mut word = [0; 4];
    broker.set_read_timeout(Some(DEADLINE)).unwrap();
    broker.read_exact(&mut word).unwrap();
    let last = &hanging[COSTLY - 1].1;
    assert!(last.try_recv().is_err(), "the message came after all steps");
    passed.open();
    for (_, heard) in &hanging {
        let (_, steps, _) = heard.recv_timeout(DEADLINE).unwrap();
        assert_eq!(steps, 1);
    }
}

#[test]
fn a_step_that_panics_costs_its_own_connection_only() {
    struct Panics;
    impl Waiting for Panics {
        fn until(&self) -> Instant {
            Instant::now() + DEADLINE
        }
        fn is_costly(&self) -> bool {
            false
        }
        fn step(&mut self, _: BorrowedFd<'_>) -> Step {
            panic!("a broken invariant");
        }
        fn go_on(self: Box<Self>, _: OwnedFd) {}
    }
    let engine = Engine::start(0).unwrap();
    let (mut near, far) = connected(None);
    let (mut other, other_far) = connected(None);
    let (reader, heard) = Reader::of(1);
    engine.park(reader.parked(other_far));
    engine.park(Parked {
        socket: far.into(),
        waiting: Box::new(Panics),
    });
    near.write_all(b"a").unwrap();
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    // The end of the stream, or a reset because of the byte that nobody has read.
    assert!(near.read(&mut [0]).map_or(true, |count| count == 0));
    other.write_all(b"b").unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap().0, b"b");
}
