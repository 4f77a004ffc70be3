//! Leaving, against peers in memory that send in any pieces and take as little as they like.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Instant;

use proptest::prelude::*;

use super::super::super::testing::Counts;
use super::super::{Mqtt, Pair, Progress, Side};
use super::*;
use crate::session::relay::IdleTimeout;

/// A peer: what it sends, piece by piece, and what it has got.
#[derive(Default)]
struct Peer {
    sends: VecDeque<Vec<u8>>,
    has_ended: bool,
    room: usize,
    got: Vec<u8>,
    got_end: bool,
}

impl Peer {
    fn sends(bytes: &[u8]) -> Self {
        Peer {
            sends: [bytes.to_vec()].into(),
            room: usize::MAX,
            ..Peer::default()
        }
    }
}

impl Side for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty());
        let Some(piece) = self.sends.front_mut() else {
            return match self.has_ended {
                true => Ok(0),
                false => Err(ErrorKind::WouldBlock.into()),
            };
        };
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            self.sends.pop_front();
        }
        Ok(count)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.got_end);
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= count;
        self.got.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.got_end = true;
        Ok(())
    }
}

const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
const PING: [u8; 2] = [0xc0, 0];
const MOVED: [u8; 4] = [0xe0, 2, 0x9d, 0];

fn farewell(will: Will) -> Farewell {
    Farewell {
        end: End::Drained,
        reason: DisconnectReason::ServerMoved,
        will,
    }
}

fn pair(counts: &Counts, level: Option<u8>) -> Pair {
    let pair = Pair::new(
        Vec::new(),
        Vec::new(),
        IdleTimeout::default(),
        counts.record(),
    );
    pair.speaking(level.map(|level| Mqtt::begun(level, &[0x10, 0])))
}

/// Advances until nothing moves.
fn settle(pair: &mut Pair, client: &mut Peer, broker: &mut Peer) -> Progress {
    let mut scratch = [0; 4096];
    loop {
        match pair.advance(client, broker, &mut scratch).0 {
            Progress::More => {}
            progress => return progress,
        }
    }
}

#[test]
fn at_a_boundary_both_sides_are_told_at_once_the_broker_as_chosen() {
    for (level, will, to_client, to_broker) in [
        (Some(5), Will::Suppress, &MOVED[..], &[0xe0, 0][..]),
        (Some(5), Will::Publish, &MOVED[..], &[]),
        (Some(4), Will::Suppress, &[], &[0xe0, 0]),
        (Some(4), Will::Publish, &[], &[]),
        (Some(0x83), Will::Suppress, &[], &[0xe0, 0]),
        (None, Will::Suppress, &[], &[]),
    ] {
        let counts = Counts::default();
        let mut pair = pair(&counts, level);
        let (mut client, mut broker) = (Peer::sends(&PING), Peer::sends(&CONNACK));
        settle(&mut pair, &mut client, &mut broker);
        pair.leave(farewell(will), Instant::now());
        assert_eq!(settle(&mut pair, &mut client, &mut broker), Progress::Wait);
        assert_eq!(client.got, [&CONNACK[..], to_client].concat(), "{level:?}");
        assert_eq!(broker.got, [&PING[..], to_broker].concat(), "{level:?}");
        assert!(client.got_end && broker.got_end);
        // What comes now reaches nobody, and keeps nothing from ending.
        client.sends.push_back(PING.to_vec());
        broker.sends.push_back(PING.to_vec());
        assert_eq!(settle(&mut pair, &mut client, &mut broker), Progress::Wait);
        (client.has_ended, broker.has_ended) = (true, true);
        assert_eq!(settle(&mut pair, &mut client, &mut broker), Progress::Done);
        drop(pair);
        assert_eq!(counts.end().as_deref(), Some("drained"));
    }
}

#[test]
fn nobody_is_told_before_connack() {
    let counts = Counts::default();
    let mut pair = pair(&counts, Some(5));
    let (mut client, mut broker) = (Peer::sends(&[]), Peer::sends(&CONNACK[..2]));
    client.sends.clear();
    pair.leave(farewell(Will::Publish), Instant::now());
    settle(&mut pair, &mut client, &mut broker);
    assert!(!client.got_end && !broker.got_end);
    broker.sends.push_back([&CONNACK[2..], &PING].concat());
    settle(&mut pair, &mut client, &mut broker);
    assert_eq!(client.got, [&CONNACK[..], &MOVED].concat());
    assert!(broker.got_end);
}

#[test]
fn a_boundary_that_never_comes_is_not_waited_for_and_no_packet_is_put_in() {
    let counts = Counts::default();
    let mut pair = pair(&counts, Some(5));
    let half = [0x30, 100, b'x'];
    let mut client = Peer::sends(&half);
    let mut broker = Peer::sends(&[&CONNACK[..], &half].concat());
    settle(&mut pair, &mut client, &mut broker);
    let now = Instant::now();
    pair.leave(farewell(Will::Suppress), now);
    settle(&mut pair, &mut client, &mut broker);
    assert!(!client.got_end && !broker.got_end);
    assert_eq!(pair.boundary_limit(), Some(now + BOUNDARY_LIMIT));
    pair.boundary_limit_passed();
    settle(&mut pair, &mut client, &mut broker);
    assert_eq!(client.got, [&CONNACK[..], &half].concat());
    assert_eq!(broker.got, half);
    assert!(client.got_end && broker.got_end);
    assert_eq!(pair.boundary_limit(), None);
    assert_eq!(pair.idle_timeout(), Some(DISCARD_LIMIT));
}

#[test]
fn a_stream_that_is_no_mqtt_just_ends() {
    let counts = Counts::default();
    let mut pair = pair(&counts, Some(5));
    let mut client = Peer::sends(&PING);
    let mut broker = Peer::sends(&[&CONNACK[..], &[0, 1, 2]].concat());
    settle(&mut pair, &mut client, &mut broker);
    pair.leave(farewell(Will::Publish), Instant::now());
    settle(&mut pair, &mut client, &mut broker);
    assert_eq!(client.got, [0x20, 2, 0, 0, 0, 1, 2]);
    assert!(client.got_end && broker.got_end);
}

#[test]
fn a_client_that_has_ended_already_gets_no_second_end() {
    let counts = Counts::default();
    let mut pair = pair(&counts, Some(5));
    let (mut client, mut broker) = (Peer::sends(&PING), Peer::sends(&CONNACK));
    client.has_ended = true;
    settle(&mut pair, &mut client, &mut broker);
    pair.leave(farewell(Will::Suppress), Instant::now());
    settle(&mut pair, &mut client, &mut broker);
    assert_eq!(broker.got, PING, "the client did not say goodbye");
    assert_eq!(client.got, [&CONNACK[..], &MOVED].concat());
    broker.has_ended = true;
    assert_eq!(settle(&mut pair, &mut client, &mut broker), Progress::Done);
    drop(pair);
    assert_eq!(counts.end().as_deref(), Some("client_closed"));
}

/// Whole packets, and where each of them ends.
fn stream(bodies: &[usize], first: u8) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), vec![0]);
    for body in bodies {
        bytes.push(first);
        match body {
            0..=127 => bytes.push(*body as u8),
            _ => bytes.extend([(*body as u8 & 0x7f) | 0x80, (*body >> 7) as u8]),
        }
        bytes.resize(bytes.len() + body, 0xe0);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn pieces(bytes: &[u8], size: usize) -> VecDeque<Vec<u8>> {
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

proptest! {
    /// Whatever the packets, their pieces, the receivers' patience and the moment: both sides have
    /// got whole packets, in order, nothing that was read is lost, and the last words come behind.
    #[test]
    fn packets_stay_whole(
        up in prop::collection::vec(0_usize..400, 0..12),
        down in prop::collection::vec(0_usize..400, 0..12),
        sizes in (1_usize..300, 1_usize..300),
        rooms in prop::collection::vec(0_usize..200, 0..30),
        moment in 0_usize..30,
        suppress in any::<bool>(),
    ) {
        let counts = Counts::default();
        let mut pair = pair(&counts, Some(5));
        let (up, up_ends) = stream(&up, 0x32);
        let (down, down_ends) = stream(&down, 0x34);
        let down = [&CONNACK[..], &down].concat();
        let mut client = Peer { sends: pieces(&up, sizes.0), ..Peer::default() };
        let mut broker = Peer { sends: pieces(&down, sizes.1), ..Peer::default() };
        let will = if suppress { Will::Suppress } else { Will::Publish };
        for (turn, room) in rooms.iter().enumerate() {
            if turn == moment {
                pair.leave(farewell(will), Instant::now());
            }
            (client.room, broker.room) = (*room, 200 - *room);
            settle(&mut pair, &mut client, &mut broker);
        }
        pair.leave(farewell(will), Instant::now());
        (client.room, broker.room) = (usize::MAX, usize::MAX);
        settle(&mut pair, &mut client, &mut broker);
        let last = if suppress { &CLIENT_DISCONNECT[..] } else { &[] };
        let to_client = client.got.strip_suffix(&MOVED).expect("DISCONNECT is last");
        let to_broker = broker.got.strip_suffix(last).expect("DISCONNECT is last");
        prop_assert!(down.starts_with(to_client) && up.starts_with(to_broker));
        prop_assert!(down_ends.contains(&(to_client.len() - CONNACK.len())));
        prop_assert!(up_ends.contains(&to_broker.len()));
        prop_assert!(client.got_end && broker.got_end);
    }
}
