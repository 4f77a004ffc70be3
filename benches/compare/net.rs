//! Load generator and stub brokers in one edge-triggered epoll loop.
//!
//! Both share a thread on purpose: they have one core to themselves, and one loop takes a whole
//! batch of events from both sides of the proxy with one system call, so that the load costs less
//! than what it measures.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use openssl::ssl::SslSession;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{self as sys, AddressFamily, RecvFlags, SocketFlags, SocketType};
use slab::Slab;

use super::mqtt::{self, Framer};
use super::peer::{Peer, Role, feed};
use super::tls::{Connector, Tls};

/// Plain text of one turn of a TLS client, at most.
const SCRATCH: usize = 64 * 1024;
const EVENTS: usize = 1024;
/// Payloads with at least this much to come may be dropped in the kernel instead of being copied.
const WORTH_SKIPPING: usize = 16 * 1024;
/// Clients use source addresses 127.0.0.2 … so that ephemeral ports last through a storm.
const SOURCES: u64 = 60;

/// The clients, the brokers, and everything that happened to them.
pub struct Net {
    epoll: OwnedFd,
    events: Vec<Event>,
    peers: Slab<Peer>,
    generation: u32,
    scratch: Box<[u8]>,
    plain: Box<[u8]>,
    happened: Vec<Happened>,
    /// Payloads are dropped in the kernel: brokers that cost as little as possible.
    pub skip: bool,
    /// Clients speak TLS with the proxy.
    pub tls: Option<Connector>,
    /// Clients end their connections with a reset instead of FIN.
    pub reset: bool,
    /// What the brokers saw.
    pub brokers: Brokers,
}

/// What the brokers saw.
#[derive(Debug, Default)]
pub struct Brokers {
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    /// Connections that are open.
    pub open: usize,
    /// Whole CONNECTs, for each broker.
    pub connects: Vec<u64>,
    /// Connections that ended in anything else but FIN, or sent what no client here sends.
    pub broken: u64,
    /// Where each client id went; kept while it is there.
    pub seen: Option<HashMap<Vec<u8>, usize>>,
    /// Client ids that reached another broker than before.
    pub moved: u64,
    /// What a broker publishes for every PUBACK that it gets.
    pub publish: Option<Arc<[u8]>>,
}

/// A client connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    index: usize,
    generation: u32,
}

/// Something that happened to a client.
#[derive(Debug, Clone, Copy)]
pub struct Happened {
    /// To which connection.
    pub client: Client,
    /// The number that it was opened with.
    pub number: u64,
    /// What.
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A whole packet of this type came.
    Packet(u8),
    /// The connection ended, or never began. It is closed already.
    Ended,
}

impl Net {
    /// A loop with `brokers` brokers, each on a port of its own of 127.0.0.1. Everybody reads
    /// `reads` bytes at a time.
    pub fn new(brokers: usize, reads: usize) -> io::Result<Self> {
        let mut net = Net {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            peers: Slab::new(),
            generation: 0,
            scratch: vec![0; reads].into(),
            plain: vec![0; SCRATCH].into(),
            happened: Vec::new(),
            skip: false,
            tls: None,
            reset: false,
            brokers: Brokers::default(),
        };
        for broker in 0..brokers {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            // Accepted sockets inherit it.
            set_tcp_nodelay(&listener, true)?;
            // The standard library listens with a queue of 128, which a storm fills.
            sys::listen(&listener, 4096)?;
            net.brokers.addresses.push(listener.local_addr()?);
            net.brokers.connects.push(0);
            net.add(listener.into(), Role::Listener(broker), None)?;
        }
        Ok(net)
    }

    /// Opens a client connection to `proxy` and sends `first` as soon as it is open, if there is
    /// one. `number` comes back with everything that happens to it.
    pub fn open(
        &mut self,
        proxy: SocketAddr,
        number: u64,
        first: Option<&Arc<[u8]>>,
    ) -> io::Result<Client> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = sys::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        let source = Ipv4Addr::new(127, 0, 0, (2 + number % SOURCES) as u8);
        sys::bind(&fd, &SocketAddrV4::new(source, 0))?;
        set_tcp_nodelay(&fd, true)?;
        if self.reset {
            set_socket_linger(&fd, Some(Duration::ZERO))?;
        }
        match sys::connect(&fd, &proxy) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let tls = match &mut self.tls {
            Some(connector) => Some(Box::new(connector.client()?)),
            None => None,
        };
        let index = self.add(fd, Role::Client(number), tls)?;
        let client = Client {
            index,
            generation: self.generation,
        };
        if let Some(first) = first {
            self.send(client, first)?;
        }
        Ok(client)
    }

    /// Sends `bytes`, later if the socket does not take them now.
    pub fn send(&mut self, client: Client, bytes: &Arc<[u8]>) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(client.index) else {
            return Ok(());
        };
        if peer.generation != client.generation {
            return Ok(());
        }
        peer.owed.push_back(bytes.clone());
        if peer.owed.len() == 1 {
            peer.flush()?;
        }
        Ok(())
    }

    /// Ends a client connection; nothing happens if it has ended.
    pub fn close(&mut self, client: Client) {
        let known = self.peers.get(client.index);
        if known.is_some_and(|peer| peer.generation == client.generation) {
            let mut peer = self.peers.remove(client.index);
            if let (Some(tls), Some(connector)) = (&peer.tls, &mut self.tls) {
                connector.count_ticket(tls);
            }
            if let Some(tls) = &mut peer.tls
                && !self.reset
            {
                tls.end();
                // As with FIN, nobody waits for what comes of it.
                let _ = peer.flush();
            }
        }
    }

    /// The TLS session of a client, to resume it later.
    pub fn session(&self, client: Client) -> Option<SslSession> {
        let peer = self.peers.get(client.index)?;
        peer.tls.as_ref()?.session()
    }

    /// Waits for events, at most for `timeout`, lets the brokers answer, and says what happened to
    /// the clients.
    pub fn turn(&mut self, timeout: Duration, happened: &mut Vec<Happened>) -> io::Result<()> {
        happened.clear();
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            self.handle(event.data.u64(), event.flags)?;
        }
        self.events = events;
        std::mem::swap(happened, &mut self.happened);
        Ok(())
    }

    fn add(&mut self, fd: OwnedFd, role: Role, tls: Option<Box<Tls>>) -> io::Result<usize> {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.peers.vacant_entry();
        let index = entry.key();
        let data = EventData::new_u64(u64::from(self.generation) << 32 | index as u64);
        let flags = match role {
            Role::Listener(_) => EventFlags::IN | EventFlags::ET,
            Role::Client(_) | Role::Broker(_) => {
                EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
            }
        };
        epoll::add(&self.epoll, &fd, data, flags)?;
        entry.insert(Peer {
            fd,
            generation: self.generation,
            role,
            framer: Framer::default(),
            owed: VecDeque::new(),
            written: 0,
            tls,
        });
        Ok(index)
    }

    fn handle(&mut self, data: u64, flags: EventFlags) -> io::Result<()> {
        let (index, generation) = (data as u32 as usize, (data >> 32) as u32);
        let Some(peer) = self.peers.get_mut(index) else {
            return Ok(());
        };
        if peer.generation != generation {
            return Ok(());
        }
        if let Role::Listener(broker) = peer.role {
            return self.accept(index, broker);
        }
        let ending = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let ending = flags.intersects(ending);
        let mut alive = Ok(true);
        if flags.contains(EventFlags::OUT) && (peer.tls.is_some() || !peer.owed.is_empty()) {
            alive = peer.shake_hands().and_then(|_| peer.flush()).map(|()| true);
        }
        if let Ok(true) = alive
            && (ending || flags.contains(EventFlags::IN))
        {
            alive = self.read(index, ending);
        }
        match alive {
            Ok(true) => {}
            ended => self.ended(index, ended.is_ok()),
        }
        Ok(())
    }

    fn ended(&mut self, index: usize, cleanly: bool) {
        let peer = self.peers.remove(index);
        match peer.role {
            Role::Client(number) => self.happened.push(Happened {
                client: Client {
                    index,
                    generation: peer.generation,
                },
                number,
                what: What::Ended,
            }),
            Role::Broker(_) => {
                self.brokers.open -= 1;
                self.brokers.broken += u64::from(!cleanly && !self.reset);
            }
            Role::Listener(_) => {}
        }
    }

    fn accept(&mut self, listener: usize, broker: usize) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match sys::accept_with(&self.peers[listener].fd, flags) {
                Ok(fd) => {
                    self.brokers.open += 1;
                    self.add(fd, Role::Broker(broker), None)?;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what there is. Ok(false) is the end of the stream.
    fn read(&mut self, index: usize, ending: bool) -> io::Result<bool> {
        let peer = &mut self.peers[index];
        let (mut answer, mut more) = (Vec::new(), Vec::new());
        let mut broken = false;
        let open = loop {
            let payload = peer.framer.rest_of_payload();
            let skip = self.skip && peer.tls.is_none() && payload >= WORTH_SKIPPING;
            let all = self.scratch.len();
            let (asked, flags) = match skip {
                true => (payload.min(all), RecvFlags::TRUNC),
                false => (all, RecvFlags::empty()),
            };
            let count = match sys::recv(&peer.fd, &mut self.scratch[..asked], flags) {
                Ok((_, 0)) => break false,
                Ok((_, count)) => count,
                Err(Errno::AGAIN) => break true,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let (role, generation) = (peer.role, peer.generation);
            let mut whole = |kind: u8, body: &[u8]| match role {
                Role::Client(number) => self.happened.push(Happened {
                    client: Client { index, generation },
                    number,
                    what: What::Packet(kind),
                }),
                Role::Broker(broker) => {
                    let (brokers, owed) = (&mut self.brokers, &mut more);
                    broken |= !brokers.answer(broker, kind, body, &mut answer, owed)
                }
                Role::Listener(_) => {}
            };
            if skip {
                peer.framer.skip(count, whole);
            } else if let Some(tls) = &mut peer.tls {
                tls.receive(&self.scratch[..count]);
                if peer.shake_hands()?
                    && let Some(connector) = &mut self.tls
                    && let Some(tls) = &peer.tls
                {
                    connector.count(tls);
                }
                peer.flush()?;
                if !peer.read_records(&mut self.plain, &mut whole)? {
                    break false;
                }
            } else {
                feed(&mut peer.framer, &self.scratch[..count], whole)?;
            }
            if count < asked && !ending {
                break true;
            }
        };
        if broken {
            return Err(ErrorKind::InvalidData.into());
        }
        if !answer.is_empty() {
            more.push(answer.into());
        }
        if !more.is_empty() {
            peer.owed.extend(more);
            peer.flush()?;
        }
        Ok(open)
    }
}

impl Brokers {
    /// Adds the answer to a whole packet to `answer`, or to `more` when it is a large one; false
    /// when no client here sends such a packet.
    fn answer(
        &mut self,
        broker: usize,
        kind: u8,
        body: &[u8],
        answer: &mut Vec<u8>,
        more: &mut Vec<Arc<[u8]>>,
    ) -> bool {
        match kind {
            mqtt::CONNECT => {
                self.connects[broker] += 1;
                if let (Some(seen), Some(id)) = (&mut self.seen, mqtt::client_id(body)) {
                    let before = seen.insert(id.to_vec(), broker);
                    self.moved += u64::from(before.is_some_and(|before| before != broker));
                }
                answer.extend(mqtt::ACCEPTED);
                true
            }
            mqtt::PUBLISH => match mqtt::puback(body) {
                Some(puback) => {
                    answer.extend(puback);
                    true
                }
                None => false,
            },
            mqtt::PUBACK => match &self.publish {
                Some(publish) => {
                    more.push(publish.clone());
                    true
                }
                None => false,
            },
            _ => false,
        }
    }
}
