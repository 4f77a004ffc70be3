//! The broker's first packet on an MQTT 5 connection.
//!
//! A broker may overrule the client's keep alive in CONNACK (Server Keep Alive, MQTT 5.0
//! §3.2.2.3.14). An idle timeout taken from CONNECT alone would then cut healthy clients that
//! rightly send less often.

use std::io;
use std::time::Duration;

use super::pair::Side;
use crate::config::settings::Idle;
use crate::mqtt::{BrokerFirst, read_connack};

/// The idle timeout of a connection whose broker may still overrule its keep alive, unseen or not
/// seen yet: at least this.
const UNKNOWN: Duration = Duration::from_secs(600);

/// One and a half keep alives [MQTT-3.1.2-24] and a margin, so that the broker, which knows
/// better, is always first to end a silent connection. Keep alive 0 promises nothing: `None`.
pub fn idle_from_keep_alive(policy: Idle, seconds: u16) -> Option<Duration> {
    let promised = Duration::from_secs(seconds.into());
    (seconds > 0).then(|| promised.mul_f64(policy.keep_alive_factor) + policy.keep_alive_margin)
}

/// What CONNACK will decide.
#[derive(Debug, Clone)]
pub struct AwaitedConnack {
    /// Protocol level of the client's CONNECT.
    pub level: u8,
    /// The client's keep alive in seconds.
    pub keep_alive: u16,
    /// How an idle timeout comes from a keep alive.
    pub policy: Idle,
}

impl AwaitedConnack {
    /// The idle timeout before CONNACK, and for good when it is not seen whole in one read.
    pub fn until_then(&self) -> Option<Duration> {
        idle_from_keep_alive(self.policy, self.keep_alive).map(|idle| idle.max(UNKNOWN))
    }

    fn decide(&self, received: &[u8]) -> Option<Duration> {
        match read_connack(received, self.level) {
            BrokerFirst::Connack {
                server_keep_alive, ..
            } => idle_from_keep_alive(self.policy, server_keep_alive.unwrap_or(self.keep_alive)),
            BrokerFirst::NeedMore | BrokerFirst::Other => self.until_then(),
        }
    }
}

/// The broker's side until its first words.
pub(super) struct FirstRead<'a, S> {
    side: &'a mut S,
    awaited: &'a AwaitedConnack,
    idle: Option<Option<Duration>>,
}

impl<'a, S: Side> FirstRead<'a, S> {
    /// Looks at what comes from `side`.
    pub fn of(side: &'a mut S, awaited: &'a AwaitedConnack) -> Self {
        FirstRead {
            side,
            awaited,
            idle: None,
        }
    }

    /// The idle timeout that its first words decided on; `None` when it has said nothing yet.
    pub fn idle(self) -> Option<Option<Duration>> {
        self.idle
    }
}

impl<S: Side> Side for FirstRead<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.side.read(buffer)?;
        if self.idle.is_none() && count > 0 {
            self.idle = Some(self.awaited.decide(&buffer[..count]));
        }
        Ok(count)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.side.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.side.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        self.side.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broker(&'static [u8]);

    impl Side for Broker {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (now, rest) = self.0.split_at(self.0.len().min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = rest;
            match now.len() {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn end(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn decided(keep_alive: u16, words: &'static [u8]) -> Option<Option<Duration>> {
        let policy = Idle {
            keep_alive_factor: 1.5,
            keep_alive_margin: Duration::from_secs(10),
        };
        let awaited = AwaitedConnack {
            level: 5,
            keep_alive,
            policy,
        };
        let mut broker = Broker(words);
        let mut first = FirstRead::of(&mut broker, &awaited);
        while first.read(&mut [0; 64]).is_ok() {}
        first.idle()
    }

    fn seconds(seconds: u64) -> Option<Option<Duration>> {
        Some(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn the_broker_may_overrule_the_keep_alive() {
        let server_keep_alive = b"\x20\x06\0\0\x03\x13\0\x14";
        assert_eq!(decided(60, server_keep_alive), seconds(40));
        assert_eq!(decided(0, server_keep_alive), seconds(40));
        assert_eq!(decided(60, b"\x20\x06\0\0\x03\x13\0\0"), Some(None));
    }

    #[test]
    fn without_a_word_of_the_broker_the_clients_own_counts() {
        assert_eq!(decided(60, b"\x20\x03\0\0\0"), seconds(100));
        assert_eq!(decided(0, b"\x20\x03\0\0\0"), Some(None));
        assert_eq!(decided(60, b""), None);
    }

    #[test]
    fn what_is_not_seen_whole_may_have_overruled_it() {
        assert_eq!(decided(60, b"\x20\x06\0\0\x03\x13"), seconds(600));
        assert_eq!(decided(60, b"\xd0\0"), seconds(600));
    }
}
