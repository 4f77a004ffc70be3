//! The cheapest relay that user space can be: one edge-triggered epoll loop and one buffer for all,
//! nothing checked, nothing counted, nothing logged, no deadline, no reload. It hashes the client id
//! over the brokers, so that it passes the same check as the others. What it costs is the kernel's.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    self as sys, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use slab::Slab;

const SCRATCH: usize = 1 << 20;
const EVENTS: usize = 512;
/// Connections accepted in one go.
const BATCH: usize = 16;
const LISTENER: u64 = u64::MAX;
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// A client, and its broker once CONNECT is there.
struct Pair {
    sockets: [Option<OwnedFd>; 2],
    generation: u32,
    /// This side has sent its end.
    ended: [bool; 2],
    /// What this side has not taken yet.
    owed: [Vec<u8>; 2],
}

struct Floor {
    epoll: OwnedFd,
    listener: OwnedFd,
    brokers: Vec<SocketAddr>,
    pairs: Slab<Pair>,
    generation: u32,
    scratch: Box<[u8]>,
}

/// Relays for ever; returns only when there is nothing to listen on.
pub fn serve(listen: SocketAddr, brokers: Vec<SocketAddr>) -> io::Result<()> {
    let listener = sys::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    sys::bind(&listener, &listen)?;
    sys::listen(&listener, 65_535)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let data = EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, EventFlags::IN)?;
    let mut floor = Floor {
        epoll,
        listener,
        brokers,
        pairs: Slab::new(),
        generation: 0,
        scratch: vec![0; SCRATCH].into(),
    };
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&floor.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == LISTENER {
                floor.accept();
                continue;
            }
            let (index, side) = (data as u32 as usize >> 1, (data & 1) as usize);
            let known = floor.pairs.get(index);
            if known.is_some_and(|pair| pair.generation == (data >> 32) as u32)
                && floor.advance(index, side, flags).is_err()
            {
                floor.pairs.remove(index);
            }
        }
    }
}

impl Floor {
    fn accept(&mut self) {
        for _ in 0..BATCH {
            let Ok(client) = sys::accept_with(&self.listener, FLAGS) else {
                return;
            };
            self.generation = self.generation.wrapping_add(1);
            let index = self.pairs.insert(Pair {
                sockets: [Some(client), None],
                generation: self.generation,
                ended: [false; 2],
                owed: Default::default(),
            });
            let begun = self.watch(index, 0).and_then(|()| self.begin(index));
            if begun.is_err() {
                self.pairs.remove(index);
            }
        }
    }

    fn token(&self, index: usize, side: usize) -> EventData {
        let place = (index as u64) << 1 | side as u64;
        EventData::new_u64(u64::from(self.pairs[index].generation) << 32 | place)
    }

    fn watch(&self, index: usize, side: usize) -> io::Result<()> {
        match &self.pairs[index].sockets[side] {
            Some(socket) => Ok(epoll::add(
                &self.epoll,
                socket,
                self.token(index, side),
                INPUT,
            )?),
            None => Ok(()),
        }
    }

    /// Reads CONNECT, and once it is whole sends it to its broker.
    fn begin(&mut self, index: usize) -> io::Result<()> {
        let pair = &mut self.pairs[index];
        if let Some(client) = &pair.sockets[0] {
            match sys::recv(client, &mut self.scratch[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((_, count)) => pair.owed[1].extend_from_slice(&self.scratch[..count]),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(hash) = hash(&pair.owed[1]) else {
            return Ok(());
        };
        let broker = sys::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
        sockopt::set_tcp_quickack(&broker, false)?;
        match sys::connect(&broker, &self.brokers[hash % self.brokers.len()]) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        pair.sockets[1] = Some(broker);
        self.watch(index, 1)?;
        self.flush(index, 1).map(|_| ())
    }

    fn advance(&mut self, index: usize, side: usize, flags: EventFlags) -> io::Result<()> {
        if self.pairs[index].sockets[1].is_none() {
            return self.begin(index);
        }
        if flags.contains(EventFlags::OUT) && self.flush(index, side)? {
            self.relay(index, 1 - side, true)?;
        }
        let ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        self.relay(index, side, ending)
    }

    /// Writes what this side is owed. True when it is owed nothing any more.
    fn flush(&mut self, index: usize, side: usize) -> io::Result<bool> {
        let token = self.token(index, side);
        let pair = &mut self.pairs[index];
        let (Some(socket), owed) = (&pair.sockets[side], &mut pair.owed[side]) else {
            return Ok(true);
        };
        while !owed.is_empty() {
            match sys::send(socket, owed, SendFlags::NOSIGNAL) {
                Ok(count) => drop(owed.drain(..count)),
                Err(Errno::AGAIN) => {
                    epoll::modify(&self.epoll, socket, token, INPUT | EventFlags::OUT)?;
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Moves what this side has sent to the other one; an error is also the end of both.
    fn relay(&mut self, index: usize, side: usize, ending: bool) -> io::Result<()> {
        loop {
            let pair = &mut self.pairs[index];
            let [Some(client), Some(broker)] = &pair.sockets else {
                return Ok(());
            };
            let (from, to) = match side {
                0 => (client, broker),
                _ => (broker, client),
            };
            if pair.ended[side] || !pair.owed[1 - side].is_empty() {
                return Ok(());
            }
            let count = match sys::recv(from, &mut self.scratch[..], RecvFlags::empty()) {
                Ok((_, 0)) if pair.ended[1 - side] => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((_, 0)) => {
                    pair.ended[side] = true;
                    return Ok(sys::shutdown(to, Shutdown::Write)?);
                }
                Ok((_, count)) => count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let sent = match sys::send(to, &self.scratch[..count], SendFlags::NOSIGNAL) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => 0,
                Err(error) => return Err(error.into()),
            };
            if sent < count {
                pair.owed[1 - side].extend_from_slice(&self.scratch[sent..count]);
                self.flush(index, 1 - side)?;
            }
            if count < SCRATCH && !ending {
                return Ok(());
            }
        }
    }
}

/// A hash of the client id in a CONNECT of MQTT 3.1.1 as the load sends it, once that is whole.
fn hash(connect: &[u8]) -> Option<usize> {
    let body = usize::from(*connect.get(1)?);
    let packet = connect.get(..2 + body)?;
    let id = packet.get(14..)?;
    let mixed = id.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    Some((mixed >> 7) as usize)
}
