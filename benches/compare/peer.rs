//! One socket of the load, plain or with TLS.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{self as sys, SendFlags};

use super::mqtt::Framer;
use super::tls::Tls;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A broker listens.
    Listener(usize),
    /// A connection of a broker.
    Broker(usize),
    /// A client.
    Client(u64),
}

/// A socket with what is under way on it.
pub struct Peer {
    pub fd: OwnedFd,
    /// Tells it from those that had its place before.
    pub generation: u32,
    pub role: Role,
    pub framer: Framer,
    /// What the socket did not take yet, and how much of the first one it took.
    pub owed: VecDeque<Arc<[u8]>>,
    pub written: usize,
    pub tls: Option<Box<Tls>>,
}

impl Peer {
    /// Goes on with the handshake, if there is one; true when that completed it.
    pub fn shake_hands(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(tls) if !tls.is_open() => tls.handshake(),
            _ => Ok(false),
        }
    }

    /// Reads all records that have come whole; false at the end of the stream.
    pub fn read_records(
        &mut self,
        plain: &mut [u8],
        whole: &mut impl FnMut(u8, &[u8]),
    ) -> io::Result<bool> {
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_open()) else {
            return Ok(true);
        };
        loop {
            match tls.read(plain)? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(count) => feed(&mut self.framer, &plain[..count], &mut *whole)?,
            }
        }
    }

    /// Sends what the socket takes of what it is owed.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => self.flush_plain(),
            Some(_) => self.flush_records(),
        }
    }

    fn flush_records(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        loop {
            while tls.is_open()
                && tls.has_room()
                && let Some(first) = self.owed.front()
            {
                self.written += tls.write(&first[self.written..])?;
                if self.written == first.len() {
                    self.owed.pop_front();
                    self.written = 0;
                }
            }
            if tls.waiting().is_empty() {
                return Ok(());
            }
            match sys::send(&self.fd, tls.waiting(), SendFlags::NOSIGNAL) {
                Ok(count) => tls.sent(count),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush_plain(&mut self) -> io::Result<()> {
        while let Some(first) = self.owed.front() {
            match sys::send(&self.fd, &first[self.written..], SendFlags::NOSIGNAL) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.written == first.len() {
                self.owed.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }
}

/// Feeds a framer.
pub fn feed(framer: &mut Framer, bytes: &[u8], whole: impl FnMut(u8, &[u8])) -> io::Result<()> {
    let fed = framer.feed(bytes, whole);
    fed.map_err(|_| ErrorKind::InvalidData.into())
}
