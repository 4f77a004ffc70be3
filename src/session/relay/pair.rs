//! What a relay does, without I/O: two flows of bytes, one each way, until both have ended.
//!
//! Each flow reads what its sender has and writes it to its receiver at once. Only what the
//! receiver does not take is kept, and while it is kept nothing more is read: back-pressure
//! reaches the sender through the kernel, and an idle flow holds no memory. The end of a sender is
//! passed on once everything before it is written, and the other flow goes on (half-close).
//!
//! Of MQTT it knows where each receiver stands between two packets, so that a pair can be told to
//! [leave](Pair::leave) without a packet being cut.

mod flow;
mod leaving;

use std::io;
use std::time::Duration;

use super::IdleTimeout;
use super::first_answer::{AwaitedConnack, FirstRead};
use crate::mqtt::{Framing, connack_code};
use crate::session::outcome::{End, Record};
use crate::telemetry::metrics::Traffic;
use flow::{Failure, Flow};
pub use flow::{FlowParts, State};
use leaving::Leaving;
pub use leaving::{BOUNDARY_LIMIT, Farewell};

/// How long a client whose broker is gone may still send into the void. Closing its socket with
/// unread bytes would make the kernel send a reset, which may overtake the broker's last words
/// (an MQTT 5 DISCONNECT with its reason) on their way to the client's application.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

/// One end of a pair. Nothing here waits: what cannot be done now is `WouldBlock`, and the engine
/// calls [`Pair::advance`] again when it may be possible.
pub trait Side {
    /// Whether a read would find nothing now, as far as that is known without one.
    fn is_quiet(&self) -> bool {
        false
    }
    /// Whether a flush would find nothing to send, as far as that is known without one.
    fn is_flushed(&self) -> bool {
        false
    }
    /// Reads some bytes; 0 is the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes some of `bytes`, which are not empty.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Sends what was written and has not been sent yet; `WouldBlock` while something is left.
    fn flush(&mut self) -> io::Result<()>;
    /// Ends the sending side.
    fn end(&mut self) -> io::Result<()>;
    /// The same when the receiving side has ended as well: nothing is left but to close it.
    fn end_last(&mut self) -> io::Result<()> {
        self.end()
    }
}

/// What [`Pair::advance`] leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing before a side can be read or written again.
    Wait,
    /// More right away; others may have their turn first.
    More,
    /// Both flows have ended: drop the pair.
    Done,
}

/// What is known of the MQTT that a pair carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mqtt {
    /// The protocol level of CONNECT, bridge bit included.
    pub level: u8,
    /// Where the broker stands between two packets.
    pub to_broker: Framing,
    /// Where the client stands.
    pub to_client: Framing,
}

impl Mqtt {
    /// A connection of which the broker has got these bytes, from CONNECT on, and the client none.
    pub fn begun(level: u8, written: &[u8]) -> Self {
        let mut to_broker = Framing::start();
        to_broker.advance(written);
        Mqtt {
            level,
            to_broker,
            to_client: Framing::start(),
        }
    }
}

/// Everything of a pair, to be looked at.
#[derive(Debug)]
pub struct PairParts<'a> {
    /// Client to broker.
    pub up: FlowParts<'a>,
    /// Broker to client.
    pub down: FlowParts<'a>,
    /// When silence ends it.
    pub idle: IdleTimeout,
    /// Whether `record.end` says what ended it.
    pub ended: bool,
    /// Whether what it owed at first has been counted among the bytes.
    pub counts_bytes: bool,
    /// Whether the broker has yet to send its first byte.
    pub awaits_answer: bool,
    /// Its protocol level; `None` where it is no MQTT.
    pub level: Option<u8>,
    /// Its record.
    pub record: &'a Record,
}

/// The two flows of a connection, its idle timeout and its record.
#[derive(Debug)]
pub struct Pair {
    up: Flow,
    down: Flow,
    idle: IdleTimeout,
    /// Until the broker has said something.
    awaited: Option<Box<AwaitedConnack>>,
    ended: bool,
    /// What it owed at first has been counted among the bytes.
    counts_bytes: bool,
    /// The broker has yet to send its first byte.
    awaits_answer: bool,
    /// Of MQTT; `None` on a plain TCP route.
    level: Option<u8>,
    leaving: Option<Box<Leaving>>,
    record: Record,
}

impl Pair {
    /// A pair that owes these bytes already.
    pub fn new(to_broker: Vec<u8>, to_client: Vec<u8>, idle: IdleTimeout, record: Record) -> Self {
        Pair {
            awaits_answer: to_client.is_empty(),
            up: Flow::owing(to_broker),
            down: Flow::owing(to_client),
            idle,
            awaited: None,
            ended: false,
            counts_bytes: false,
            level: None,
            leaving: None,
            record,
        }
    }

    /// The same, of which this much of MQTT is known; `None` changes nothing.
    pub fn speaking(mut self, mqtt: Option<Mqtt>) -> Self {
        if let Some(mqtt) = mqtt {
            self.level = Some(mqtt.level);
            (self.up.framing, self.down.framing) = (mqtt.to_broker, mqtt.to_client);
        }
        self
    }

    /// Has the broker's first words decide on the idle timeout.
    pub fn await_connack(&mut self, awaited: AwaitedConnack) {
        self.idle.open = awaited.until_then();
        self.awaited = Some(Box::new(awaited));
    }

    /// A pair as it was in another process: state and owed bytes of each flow, what ended it if
    /// one side has ended already, and as in [`PairParts`] `counts_bytes` and `awaits_answer`.
    pub fn from_parts(
        up: (State, Vec<u8>),
        down: (State, Vec<u8>),
        idle: IdleTimeout,
        end: Option<End>,
        (counts_bytes, awaits_answer): (bool, bool),
        record: Record,
    ) -> Self {
        let mut pair = Pair::new(up.1, down.1, idle, record);
        (pair.up.state, pair.down.state) = (up.0, down.0);
        (pair.counts_bytes, pair.awaits_answer) = (counts_bytes, awaits_answer);
        if let Some(end) = end {
            pair.note(end);
        }
        pair
    }

    /// Everything of it.
    pub fn parts(&self) -> PairParts<'_> {
        PairParts {
            up: self.up.parts(),
            down: self.down.parts(),
            idle: self.idle,
            ended: self.ended,
            counts_bytes: self.counts_bytes,
            awaits_answer: self.awaits_answer,
            level: self.level,
            record: &self.record,
        }
    }

    /// What is known about it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Ends it here because another process relays it now.
    pub fn handed_over(mut self) {
        self.ended = false;
        self.note(End::HandedOver);
    }

    /// Ends it because this process leaves.
    pub fn shut_down(mut self) {
        self.note(End::Shutdown);
    }

    /// Writes once of what is owed to the broker, and says how much it took.
    ///
    /// # Errors
    /// What the broker's side answers, `WouldBlock` included.
    pub fn send_owed(&mut self, broker: &mut impl Side) -> io::Result<usize> {
        let Some(owed) = &mut self.up.owed else {
            return Ok(0);
        };
        let rest = &owed.bytes[owed.written..];
        let count = broker.write(rest)?;
        self.up.framing.advance(&rest[..count]);
        owed.written += count;
        self.record.to_broker += count as u64;
        if owed.written == owed.bytes.len() {
            self.up.owed = None;
        }
        Ok(count)
    }

    /// The record, for what is learnt while the pair lives.
    pub fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Takes it apart before anything was relayed: what the broker has not got, and the record.
    pub fn into_unsent(self) -> (Vec<u8>, Record) {
        (
            self.up.owed.map_or_else(Vec::new, |owed| owed.bytes),
            self.record,
        )
    }

    /// Ends it because of this.
    pub fn abandon(mut self, end: End) {
        self.note(end);
    }

    /// Moves what can be moved now, both ways. The second value says whether anything moved.
    pub fn advance(
        &mut self,
        client: &mut impl Side,
        broker: &mut impl Side,
        scratch: &mut [u8],
    ) -> (Progress, bool) {
        let (to_broker, to_client) = (self.record.to_broker, self.record.to_client);
        let mut traffic = match self.counts_bytes {
            true => Traffic::default(),
            false => self.first_bytes(),
        };
        let progress = self.advance_both(client, broker, scratch, &mut traffic);
        let up = self.record.to_broker - to_broker;
        let down = self.record.to_client - to_client;
        traffic.to_broker += up;
        traffic.to_client += down;
        if traffic != Traffic::default() {
            self.record.relayed(traffic);
        }
        let told = progress != Progress::Done && self.tell_at_boundary();
        let progress = if told { Progress::More } else { progress };
        (progress, told || up + down > 0)
    }

    /// What was read and written before anything was relayed: CONNECT. It counts only now, because
    /// a pair whose broker does not answer is taken apart again.
    fn first_bytes(&mut self) -> Traffic {
        self.counts_bytes = true;
        let (to_broker, to_client) = (self.record.to_broker, self.record.to_client);
        Traffic {
            from_client: to_broker + self.up.parts().owed.len() as u64,
            to_broker,
            from_broker: to_client + self.down.parts().owed.len() as u64,
            to_client,
        }
    }

    /// Moves what can be moved now; adds what was received to `traffic`.
    fn advance_both(
        &mut self,
        client: &mut impl Side,
        broker: &mut impl Side,
        scratch: &mut [u8],
        traffic: &mut Traffic,
    ) -> Progress {
        let (up_reach, down_reach) = self.reach();
        let (moved, on) = (&mut self.record.to_broker, (up_reach, self.down.state));
        let seen = |bytes: &[u8]| traffic.from_client += bytes.len() as u64;
        let up = self.up.advance(client, broker, scratch, on, moved, seen);
        let up = match up {
            Ok(progress) => progress,
            Err(Failure::Sender) => return self.over(End::ClientError),
            Err(Failure::Receiver) => {
                self.note(End::BrokerError);
                self.up.discard();
                let limit = self
                    .idle
                    .open
                    .map_or(DISCARD_LIMIT, |idle| idle.min(DISCARD_LIMIT));
                self.idle.open = Some(limit);
                Progress::More
            }
        };
        if self.up.state == State::Ended || up == Progress::Done {
            self.note(End::ClientClosed);
        }
        let (moved, on) = (&mut self.record.to_client, (down_reach, self.up.state));
        let mut answer = None;
        let seen = |bytes: &[u8]| {
            traffic.from_broker += bytes.len() as u64;
            if self.awaits_answer {
                self.awaits_answer = false;
                answer = Some(connack_code(bytes));
            }
        };
        let down = match self.awaited.take() {
            None => self.down.advance(broker, client, scratch, on, moved, seen),
            Some(awaited) => {
                let mut first = FirstRead::of(broker, &awaited);
                let down = self
                    .down
                    .advance(&mut first, client, scratch, on, moved, seen);
                match first.idle() {
                    Some(idle) => self.idle.open = idle,
                    None => self.awaited = Some(awaited),
                }
                down
            }
        };
        if let Some(connack) = answer {
            self.record.answered(connack);
        }
        let down = match down {
            Ok(progress) => progress,
            Err(Failure::Sender) => {
                self.note(End::BrokerError);
                // The client is told by the end of the stream, as by a broker that closes.
                self.down.state = match self.down.state {
                    State::Discarding => State::Closed,
                    _ => State::Ended,
                };
                self.up.state = match self.up.state {
                    State::Closed => State::Closed,
                    _ => State::Discarding,
                };
                self.up.owed = None;
                self.idle.open = Some(DISCARD_LIMIT);
                Progress::More
            }
            Err(Failure::Receiver) => return self.over(End::ClientError),
        };
        if self.down.state != State::Open {
            self.note(End::BrokerClosed);
            if let Some(limit) = self.idle.after_broker_end.take() {
                self.idle.open = Some(self.idle.open.map_or(limit, |idle| idle.min(limit)));
            }
        }
        match (up, down) {
            (Progress::Done, Progress::Done) => Progress::Done,
            (Progress::More, _) | (_, Progress::More) => Progress::More,
            _ => Progress::Wait,
        }
    }

    /// How long silence may last now; `None` for ever.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle.open
    }

    /// The idle timeout has passed: drop the pair after this.
    pub fn idle_timeout_passed(&mut self) {
        self.note(End::IdleTimeout);
    }

    fn over(&mut self, end: End) -> Progress {
        self.note(end);
        Progress::Done
    }

    /// Notes what ended the connection; the first word counts.
    fn note(&mut self, end: End) {
        if !self.ended {
            (self.ended, self.record.end) = (true, end);
        }
    }
}
