//! What happens on one connection: both ends work it out from the client id.

use std::time::Duration;

use crate::random::Random;

/// The two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Broker,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Side::Client => Side::Broker,
            Side::Broker => Side::Client,
        }
    }
}

/// What kind of connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Up to two megabytes each way.
    Steady,
    /// One to four megabytes to somebody who reads slowly.
    Slow,
    /// One of many that come at once, with little to say.
    Storm,
    /// Idle but for a few bytes now and then.
    Crowd,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This side closes when everything has been said.
    Close(Side),
    /// This side ends its own direction first; the other one answers only then.
    Half(Side),
    /// This side resets the connection when it has sent so much.
    Reset(Side, u64),
    /// The client closes when it is told to; until then the broker repeats what it hears.
    Echo,
}

/// How somebody reads.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// At most so much at a time.
    pub size: usize,
    /// And then so long not at all.
    pub pause: Duration,
}

/// One connection.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub kind: Kind,
    pub number: u64,
    pub end: End,
    /// The client speaks TLS, and resumes a session if it can.
    pub tls: bool,
    pub resume: bool,
    /// CONNECT comes in so many pieces.
    pub pieces: u64,
    to_broker: u64,
    to_client: u64,
    broker_reads: Pace,
    client_reads: Pace,
}

impl Plan {
    /// The plan of a number.
    pub fn new(kind: Kind, number: u64) -> Self {
        let mut random = Random::new(number << 2 | kind as u64);
        let most = match kind {
            Kind::Steady => 2 << 20,
            Kind::Slow => 4 << 20,
            Kind::Storm | Kind::Crowd => 2 << 10,
        };
        // A slow reader must have more to read than sockets and proxy hold for it.
        let mut size = || match kind {
            Kind::Slow => most / 4 + random.below(most * 3 / 4),
            _ => random.size(most),
        };
        let (to_broker, to_client) = (size(), size());
        let side = match random.percent(50) {
            true => Side::Client,
            false => Side::Broker,
        };
        let sent = match side {
            Side::Client => to_broker,
            Side::Broker => to_client,
        };
        let end = match random.below(10) {
            _ if kind == Kind::Crowd => End::Echo,
            0..4 => End::Close(side),
            4..7 => End::Half(side),
            _ => End::Reset(side, random.below(sent + 1)),
        };
        let mut pace = |slow| match slow {
            true => Pace {
                size: 8 * 1024 + random.below(32 * 1024) as usize,
                pause: Duration::from_millis(5 + random.below(30)),
            },
            false => Pace {
                size: 64 * 1024,
                pause: Duration::ZERO,
            },
        };
        // Of slow ones, one or the other side or both.
        let slow = kind == Kind::Slow;
        let (broker_reads, client_reads) = (
            pace(slow && !number.is_multiple_of(3)),
            pace(slow && number % 3 != 1),
        );
        Plan {
            kind,
            number,
            end,
            tls: random.percent(40),
            resume: random.percent(50),
            pieces: 1 + random.below(3),
            to_broker,
            to_client,
            broker_reads,
            client_reads,
        }
    }

    /// The client id.
    pub fn id(&self) -> String {
        let kind = match self.kind {
            Kind::Steady => 'a',
            Kind::Slow => 'b',
            Kind::Storm => 'c',
            Kind::Crowd => 'd',
        };
        format!("soak-{kind}{:x}", self.number)
    }

    /// The plan that belongs to a client id.
    pub fn of(id: &[u8]) -> Option<Self> {
        let id = std::str::from_utf8(id).ok()?.strip_prefix("soak-")?;
        let number = u64::from_str_radix(id.get(1..)?, 16).ok()?;
        let kind = match id.as_bytes()[0] {
            b'a' => Kind::Steady,
            b'b' => Kind::Slow,
            b'c' => Kind::Storm,
            b'd' => Kind::Crowd,
            _ => return None,
        };
        Some(Plan::new(kind, number))
    }

    /// What a side sends: how much, and the seed of the bytes.
    pub fn sends(&self, side: Side) -> (u64, u64) {
        let seed = (self.number << 3) | ((self.kind as u64) << 1);
        match side {
            Side::Client => (self.to_broker, seed),
            Side::Broker => (self.to_client, seed | 1),
        }
    }

    /// How a side reads.
    pub fn reads(&self, side: Side) -> Pace {
        match side {
            Side::Client => self.client_reads,
            Side::Broker => self.broker_reads,
        }
    }
}
