//! The epoll engine between real sockets on loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::super::IdleTimeout;
use super::super::testing::{self, Counts, DEADLINE, connected};
use super::{Engine, Which};
use crate::tls::link::Link;

/// A relayed pair: what the client and the broker hold.
struct Stage {
    client: StdStream,
    broker: StdStream,
    counts: Counts,
    engine: Engine,
    _runtime: Runtime,
}

fn stage(to_broker: &[u8], to_client: &[u8], idle: IdleTimeout, buffer: Option<usize>) -> Stage {
    let runtime = testing::runtime();
    let counts = Counts::default();
    let (client, client_side) = connected(buffer);
    let (broker, broker_side) = connected(buffer);
    for stream in [&client, &broker] {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    let links = {
        let _inside = runtime.enter();
        [client_side, broker_side].map(|side| Link::Plain(TcpStream::from_std(side).unwrap()))
    };
    let engine = testing::relayed(&runtime, links, [to_broker, to_client], idle, &counts);
    Stage {
        client,
        broker,
        counts,
        engine,
        _runtime: runtime,
    }
}

fn read_all(stream: &mut StdStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_owed_comes_first_and_half_close_is_passed_on() {
    let mut stage = stage(b"CONNECT", b"CONNACK", IdleTimeout::default(), None);
    stage.client.write_all(b", PUBLISH").unwrap();
    stage.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stage.broker), b"CONNECT, PUBLISH");
    stage.broker.write_all(b", PUBACK").unwrap();
    stage.broker.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut stage.client), b"CONNACK, PUBACK");
    assert_eq!(stage.counts.wait_for_end(), "client_closed");
    assert_eq!(stage.counts.bytes(), (16, 15));
    assert_eq!(stage.counts.connections.live(), 0);
}

#[test]
fn the_last_words_of_a_broker_reach_a_client_that_goes_on_sending() {
    let mut stage = stage(b"", b"", IdleTimeout::default(), None);
    stage.broker.write_all(b"DISCONNECT").unwrap();
    drop(stage.broker);
    // The broker's socket answers these with a reset; the client must still be able to read.
    let mut word = [0; 10];
    stage.client.read_exact(&mut word).unwrap();
    for _ in 0..50 {
        stage.client.write_all(b"PUBLISH").unwrap();
    }
    assert_eq!(
        stage.client.read(&mut [0; 8]).unwrap(),
        0,
        "an end, not a reset"
    );
    stage.client.shutdown(Shutdown::Write).unwrap();
    let end = stage.counts.end();
    drop(stage.client);
    assert!(end.is_none_or(|end| end.starts_with("broker_")));
}

#[test]
fn a_reset_of_the_client_ends_the_broker_side() {
    let mut stage = stage(b"", b"", IdleTimeout::default(), None);
    SockRef::from(&stage.client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    stage.client.write_all(b"x").unwrap();
    assert_eq!(stage.broker.read(&mut [0; 8]).unwrap(), 1);
    drop(std::mem::replace(&mut stage.client, connected(None).0));
    let read = stage.broker.read(&mut [0; 8]);
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(stage.counts.wait_for_end(), "client_error");
}

#[test]
fn a_reader_that_stops_stops_its_sender_and_gets_every_byte_later() {
    let mut stage = stage(b"", b"", IdleTimeout::default(), Some(8 * 1024));
    stage
        .client
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let chunk: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
    let mut sent = 0;
    while let Ok(count) = stage.client.write(&chunk[sent % 256..]) {
        sent += count;
        assert!(sent < 64 << 20, "nothing stops the sender");
    }
    stage.client.shutdown(Shutdown::Write).unwrap();
    let received = read_all(&mut stage.broker);
    assert_eq!(received.len(), sent);
    let expected = (0..=255_u8).cycle().take(sent);
    assert!(
        received.into_iter().eq(expected),
        "bytes are lost or reordered"
    );
}

#[test]
fn a_pair_goes_from_engine_to_engine_with_every_byte() {
    let mut stage = stage(b"", b"", IdleTimeout::default(), Some(8 * 1024));
    let sent: Vec<u8> = (0..=255).cycle().take(2 << 20).collect();
    let mut writer = stage.client.try_clone().unwrap();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut received = vec![0; 1000];
    stage.broker.read_exact(&mut received).unwrap();
    for _ in 0..20 {
        let (to, released) = std::sync::mpsc::channel();
        stage.engine.release(Which::All, to);
        let pairs = released.recv().unwrap();
        assert_eq!(pairs.len(), 1);
        let next = Engine::start(1).unwrap();
        next.adopt(pairs);
        stage.engine = next;
        let start = received.len();
        received.resize(start + 50_000, 0);
        stage.broker.read_exact(&mut received[start..]).unwrap();
    }
    received.extend(read_all(&mut stage.broker));
    writing.join().unwrap();
    assert!(received == sent, "bytes are lost or reordered");
}

#[test]
fn silence_ends_the_connection() {
    let idle = IdleTimeout {
        open: Some(Duration::from_millis(200)),
        after_broker_end: None,
    };
    let started = Instant::now();
    let mut stage = stage(b"", b"", idle, None);
    assert_eq!(stage.client.read(&mut [0; 8]).unwrap(), 0);
    let lived = started.elapsed();
    assert!(lived >= Duration::from_millis(200), "{lived:?}");
    assert_eq!(stage.counts.wait_for_end(), "idle_timeout");
}

/// Writes `data` in pieces of these sizes and reads to the end, both at once.
fn play(stream: &StdStream, data: &[u8], sizes: &[usize]) -> Vec<u8> {
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut stream = stream;
            let mut rest = data;
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, next) = rest.split_at((*size).clamp(1, rest.len()));
                stream.write_all(piece).unwrap();
                rest = next;
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut bytes = Vec::new();
        (&mut &*stream).read_to_end(&mut bytes).unwrap();
        writer.join().unwrap();
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        up in prop::collection::vec(any::<u8>(), 0..300_000),
        down in prop::collection::vec(any::<u8>(), 0..300_000),
        owed in prop::collection::vec(any::<u8>(), 0..2000),
        sizes in prop::collection::vec(1_usize..60_000, 1..6),
        buffer in prop::option::of(2048_usize..20_000),
    ) {
        let stage = stage(&owed, b"", IdleTimeout::default(), buffer);
        let (at_client, at_broker) = std::thread::scope(|scope| {
            let client = scope.spawn(|| play(&stage.client, &up, &sizes));
            let broker = scope.spawn(|| play(&stage.broker, &down, &sizes));
            (client.join().unwrap(), broker.join().unwrap())
        });
        prop_assert!(at_client == down, "down: {} of {}", at_client.len(), down.len());
        prop_assert!(at_broker == [owed, up].concat(), "up: {} bytes", at_broker.len());
    }
}

#[test]
fn a_relay_thread_answers_when_it_looks_at_its_orders() {
    let engine = Engine::start(0).unwrap();
    let (question, mut answers) = tokio::sync::mpsc::channel(1);
    {
        // It cannot look while its orders are locked.
        let mut orders = super::lock(&engine.shared.orders);
        orders.push(super::Order::Answer(question));
        let waker = &mut std::task::Context::from_waker(std::task::Waker::noop());
        assert!(answers.poll_recv(waker).is_pending());
    }
    engine.adopt(Vec::new());
    assert_eq!(answers.blocking_recv(), None);
}
