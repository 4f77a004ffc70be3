//! A socket in the epoll set of a relay thread, with TLS or without.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::engine::End;
use super::pair::Side;
use crate::tls::session::{Session, Transport};
use crate::tls::staging::Shelf;

/// The side of a pair that is the client's.
pub(super) const CLIENT: usize = 0;
/// The side that is the broker's.
pub(super) const BROKER: usize = 1;
/// Marks the place of a parked client and not of a pair.
pub(super) const PARKED: u32 = 1 << 31;
/// What surely fits one segment of TCP on any path (IPv6's least MTU less its headers).
const SEGMENT: usize = 1220;

/// Socket options that a connection which ends at once does not need, and which are set when it
/// turns out to live: each costs a system call in a storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// It has all of them.
    Nothing,
    /// TCP keepalive.
    Keepalive,
    /// TCP_NODELAY as well, which its second write needs.
    NoDelay {
        /// The first write has been taken.
        written: bool,
    },
}

/// One socket and what is known about it.
pub(super) struct Socket {
    /// The socket itself.
    pub fd: OwnedFd,
    /// An event said so, and no read since then has shown that it is drained.
    pub readable: bool,
    /// The last write was taken.
    pub writable: bool,
    /// The peer has ended or broken the connection: read until that shows.
    pub hung_up: bool,
    /// It is in the epoll set.
    pub watched: bool,
    /// Options that are still to be set.
    pub lacks: Lacks,
    /// TLS over it.
    pub tls: Option<Box<Session>>,
}

impl Socket {
    /// One that nothing is known about yet.
    pub fn new(end: End, lacks: Lacks) -> Self {
        Socket {
            fd: end.socket,
            tls: end.tls,
            readable: false,
            writable: true,
            hung_up: false,
            watched: false,
            lacks,
        }
    }

    /// Sets what it lacks.
    pub fn complete(&mut self) {
        self.no_delay();
        if self.lacks == Lacks::Keepalive {
            self.lacks = Lacks::Nothing;
            // Refused only for a socket that is broken, which shows elsewhere.
            let _ = crate::socket::set_keepalive(&self.fd);
        }
    }

    /// True once after a write of TLS had to wait for input and there has been some since.
    pub fn take_retry(&mut self) -> bool {
        self.tls
            .as_mut()
            .is_some_and(|session| session.take_retry())
    }

    fn no_delay(&mut self) {
        if let Lacks::NoDelay { .. } = self.lacks {
            self.lacks = Lacks::Keepalive;
            // As above.
            let _ = sockopt::set_tcp_nodelay(&self.fd, true);
        }
    }
}

/// What an event of one socket carries: the place of its pair, its side, its generation.
pub(super) fn token(index: usize, side: usize, generation: u32, mark: u32) -> EventData {
    let place = u64::from((index as u32) << 1 | side as u32 | mark);
    EventData::new_u64(u64::from(generation) << 32 | place)
}

/// A socket within the epoll set.
pub(super) struct Registered<'a> {
    /// The socket.
    pub socket: &'a mut Socket,
    /// The set that it is in.
    pub epoll: &'a OwnedFd,
    /// What its events carry; `None` before it is in the set.
    pub token: Option<EventData>,
    /// What the thread lends to TLS sessions.
    pub shelf: &'a Shelf,
    /// The end of the stream comes right behind what is sent: both go in one packet.
    pub ending: bool,
}

impl Registered<'_> {
    /// Has the session do its work over the bare socket; `None` if there is no session.
    fn over_tls<T>(
        &mut self,
        work: impl FnOnce(&mut Session, &Shelf, &mut Self) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let mut session = self.socket.tls.take()?;
        let result = work(&mut session, self.shelf, self);
        self.socket.tls = Some(session);
        Some(result)
    }

    fn end_tls(&mut self) -> io::Result<()> {
        self.ending = true;
        let tls = self.over_tls(|session, shelf, socket| session.end(shelf, socket));
        self.ending = false;
        tls.unwrap_or(Ok(()))
    }
}

impl Transport for Registered<'_> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.socket.readable {
            return Err(ErrorKind::WouldBlock.into());
        }
        let size = buffer.len();
        let received = recv(&self.socket.fd, buffer, RecvFlags::empty());
        let count = received.map(|(count, _)| count);
        // A short read has drained the socket, and more makes a new event; not so the end that
        // was announced already.
        let drained = match count {
            Ok(count) => count < size && !self.socket.hung_up,
            Err(error) => error == rustix::io::Errno::AGAIN,
        };
        self.socket.readable = !drained;
        Ok(count?)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.socket.writable {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.socket.lacks != Lacks::Nothing {
            // Without it the second small write would wait for the answer to the first [RFC 896];
            // so would the last piece of a first one that takes several segments.
            match self.socket.lacks {
                Lacks::NoDelay { written: false } if bytes.len() < SEGMENT => {}
                _ => self.socket.no_delay(),
            }
        }
        let more = match self.ending {
            true => SendFlags::MORE,
            false => SendFlags::empty(),
        };
        let sent = send(&self.socket.fd, bytes, SendFlags::NOSIGNAL | more);
        match (sent, self.token) {
            (Err(rustix::io::Errno::AGAIN), Some(token)) => {
                self.socket.writable = false;
                // Reports at once if it has become writable since.
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                epoll::modify(self.epoll, self.socket.fd.as_fd(), token, flags)?;
            }
            (Ok(_), _) if self.socket.lacks == (Lacks::NoDelay { written: false }) => {
                self.socket.lacks = Lacks::NoDelay { written: true };
            }
            _ => {}
        }
        Ok(sent?)
    }
}

impl Side for Registered<'_> {
    fn is_quiet(&self) -> bool {
        !self.socket.readable && self.socket.tls.is_none()
    }

    fn is_flushed(&self) -> bool {
        self.socket.tls.is_none()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tls = self.over_tls(|session, shelf, socket| session.read(shelf, socket, buffer));
        match tls {
            Some(read) => read,
            None => self.receive(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let tls = self.over_tls(|session, shelf, socket| session.write(shelf, socket, bytes));
        match tls {
            Some(written) => written,
            None => self.send(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let tls = self.over_tls(|session, _, socket| session.flush(socket));
        tls.unwrap_or(Ok(()))
    }

    fn end(&mut self) -> io::Result<()> {
        self.end_tls()?;
        Ok(shutdown(&self.socket.fd, Shutdown::Write)?)
    }

    fn end_last(&mut self) -> io::Result<()> {
        // The pair is over, and closing the socket sends the same packet.
        self.end_tls()
    }
}
