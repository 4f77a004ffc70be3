//! A plain socket in the epoll set of a relay thread.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::pair::Side;

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
}

/// What an event of one socket carries: the place of its pair, its side, its generation.
pub(super) fn token(index: usize, side: usize, generation: u32) -> EventData {
    let place = (index as u64) << 1 | side as u64;
    EventData::new_u64(u64::from(generation) << 32 | place)
}

/// A socket within the epoll set.
pub(super) struct Registered<'a> {
    /// The socket.
    pub socket: &'a mut Socket,
    /// The set that it is in.
    pub epoll: &'a OwnedFd,
    /// What its events carry.
    pub token: EventData,
}

impl Side for Registered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.socket.writable {
            return Err(ErrorKind::WouldBlock.into());
        }
        let sent = send(&self.socket.fd, bytes, SendFlags::NOSIGNAL);
        if sent == Err(rustix::io::Errno::AGAIN) {
            self.socket.writable = false;
            // Reports at once if it has become writable since.
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::modify(self.epoll, self.socket.fd.as_fd(), self.token, flags)?;
        }
        Ok(sent?)
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(shutdown(&self.socket.fd, Shutdown::Write)?)
    }
}
