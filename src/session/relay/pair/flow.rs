//! One direction of a pair: bytes from a sender to a receiver, and the end of the stream after them.

use std::io::{self, ErrorKind};

use serde::{Deserialize, Serialize};

use super::leaving::Reach;
use super::{Progress, Side};
use crate::mqtt::Framing;

/// Scratch fulls that one call moves before it lets other connections have their turn.
const TURN: usize = 4;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) state: State,
    /// Read, not yet written, and how much of it is written already.
    pub(super) owed: Option<Box<Owed>>,
    /// Where the receiver stands between two packets: by what was written, not by what was read.
    pub(super) framing: Framing,
}

#[derive(Debug)]
pub(super) struct Owed {
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
}

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The sender may send more.
    Open,
    /// The sender has ended; the receiver is to be told when it has got everything.
    Ended,
    /// The receiver is gone; what the sender still sends is thrown away.
    Discarding,
    /// Over.
    Closed,
}

/// Which end of a flow failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Sender,
    Receiver,
}

/// One direction, to be looked at.
#[derive(Debug)]
pub struct FlowParts<'a> {
    /// How far it has come.
    pub state: State,
    /// Read and not yet written.
    pub owed: &'a [u8],
    /// Where its receiver stands between two packets.
    pub framing: Framing,
}

impl Flow {
    pub(super) fn owing(bytes: Vec<u8>) -> Self {
        let owed = (!bytes.is_empty()).then(|| Box::new(Owed { bytes, written: 0 }));
        Flow {
            state: State::Open,
            owed,
            framing: Framing::default(),
        }
    }

    /// Its receiver is gone.
    pub(super) fn discard(&mut self) {
        (self.state, self.owed) = (State::Discarding, None);
    }

    pub(super) fn parts(&self) -> FlowParts<'_> {
        FlowParts {
            state: self.state,
            owed: match &self.owed {
                Some(owed) => &owed.bytes[owed.written..],
                None => &[],
            },
            framing: self.framing,
        }
    }

    /// Moves bytes until the sender has no more, the receiver takes no more, or the turn is over.
    /// Adds what the receiver took to `moved`, and shows `seen` what the sender sent. `other` is how
    /// far the other direction has come.
    pub(super) fn advance(
        &mut self,
        sender: &mut impl Side,
        receiver: &mut impl Side,
        scratch: &mut [u8],
        (reach, other): (Reach, State),
        moved: &mut u64,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Progress, Failure> {
        for _ in 0..TURN {
            if let Some(owed) = &mut self.owed {
                let rest = &owed.bytes[owed.written..];
                match write(receiver, rest)? {
                    0 => return Ok(Progress::Wait),
                    count => {
                        *moved += count as u64;
                        self.framing.advance(&rest[..count]);
                        owed.written += count;
                    }
                }
                if owed.written == owed.bytes.len() {
                    self.owed = None;
                }
                continue;
            }
            match self.state {
                State::Open if sender.is_quiet() && receiver.is_flushed() => {
                    return Ok(Progress::Wait);
                }
                State::Open => {
                    match receiver.flush() {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            return Ok(Progress::Wait);
                        }
                        Err(_) => return Err(Failure::Receiver),
                    }
                    let read = match reach.limit(self).min(scratch.len()) {
                        0 => None,
                        limit => read(sender, &mut scratch[..limit])?,
                    };
                    match read {
                        None => return Ok(Progress::Wait),
                        Some(0) => self.state = State::Ended,
                        Some(count) => {
                            seen(&scratch[..count]);
                            self.pass_on(receiver, &scratch[..count], moved)?;
                        }
                    }
                }
                State::Ended => match end(receiver, reach, other) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Ok(Progress::Wait);
                    }
                    ended => {
                        self.state = match reach {
                            Reach::Void => State::Discarding,
                            Reach::On | Reach::Boundary { .. } => State::Closed,
                        };
                        ended.map_err(|_| Failure::Receiver)?;
                    }
                },
                State::Discarding => match read(sender, scratch)? {
                    None => return Ok(Progress::Wait),
                    Some(0) => self.state = State::Closed,
                    Some(_) => {}
                },
                State::Closed => return Ok(Progress::Done),
            }
        }
        Ok(Progress::More)
    }

    /// Writes what the receiver takes at once and keeps the rest.
    fn pass_on(
        &mut self,
        receiver: &mut impl Side,
        bytes: &[u8],
        moved: &mut u64,
    ) -> Result<(), Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match write(receiver, rest)? {
                0 => {
                    self.owed = Some(Box::new(Owed {
                        bytes: rest.to_vec(),
                        written: 0,
                    }));
                    return Ok(());
                }
                count => {
                    *moved += count as u64;
                    self.framing.advance(&rest[..count]);
                    rest = &rest[count..];
                }
            }
        }
        Ok(())
    }
}

/// Ends a receiver, which has ended its own sending side if the other direction is closed: then
/// nothing is left but to close it, unless its sender is still to be read into the void.
fn end(receiver: &mut impl Side, reach: Reach, other: State) -> io::Result<()> {
    match other {
        State::Closed if reach != Reach::Void => receiver.end_last(),
        _ => receiver.end(),
    }
}

/// Reads; `None` when there is nothing now.
fn read(sender: &mut impl Side, scratch: &mut [u8]) -> Result<Option<usize>, Failure> {
    loop {
        return match sender.read(scratch) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => Err(Failure::Sender),
        };
    }
}

/// Writes; 0 when nothing is taken now.
fn write(receiver: &mut impl Side, bytes: &[u8]) -> Result<usize, Failure> {
    loop {
        return match receiver.write(bytes) {
            Ok(0) => Err(Failure::Receiver),
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => Err(Failure::Receiver),
        };
    }
}
