//! One proxy between clients and two brokers: what every row begins with and measures by.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use openssl::ssl::SslSession;

use super::Failure;
use super::contender::{Contender, Place, Running};
use super::mqtt;
use super::net::{Client, Happened, Net, What};
use super::options::Options;
use super::tls::{Certificate, Connector};
use super::usage::{self, Cpu};

/// How long a phase without a duration of its own may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest wait for events.
const TURN: Duration = Duration::from_millis(20);
/// Client ids of the check that the same id reaches the same broker.
const CHECKED_IDS: u64 = 64;
/// Connections in TIME_WAIT that a storm may leave; the kernel keeps 131,072 at most by default
/// and treats those beyond it in another way.
const TIME_WAITS: u64 = 110_000;

/// A running proxy with its brokers and clients.
pub struct Stage {
    /// Clients and brokers.
    pub net: Net,
    /// Where clients connect.
    pub target: SocketAddr,
    proxy: Running,
    ksoftirqd: Option<u32>,
    numbers: u64,
    turn: Duration,
    /// TLS sessions of the clients, kept while it is there.
    pub sessions: Option<Vec<SslSession>>,
}

/// How a proxy is set up.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    /// Client connections that it must be able to hold.
    pub connections: usize,
    /// Clients speak TLS, and this is the proxy's certificate.
    pub certificate: Option<Certificate>,
    /// Worker threads. With more than one, proxy and load have all processors that either has.
    pub workers: Workers,
}

/// Threads of the proxy, and where they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One, on the processor of the proxies.
    Alone,
    /// So many, on the processors of the proxies and of the load.
    Sharing(usize),
}

impl Scene {
    /// One worker; TLS if there is a certificate.
    pub fn new(connections: usize, certificate: Option<Certificate>) -> Self {
        Scene {
            connections,
            certificate,
            workers: Workers::Alone,
        }
    }

    /// One worker, plain connections.
    pub fn plain(connections: usize) -> Self {
        Scene::new(connections, None)
    }
}

/// What the clients of [`Stage::connect`] do.
#[derive(Debug, Clone, Copy)]
pub struct Visit {
    /// How many there are.
    pub count: usize,
    /// How many may be between connect and their last answer.
    pub concurrency: usize,
    /// Publish once after CONNACK and wait for PUBACK.
    pub publish: bool,
    /// Stay instead of closing.
    pub stay: bool,
    /// Send CONNECT in two pieces, the second one after the proxy may have seen the first.
    pub split: bool,
    /// Send CONNECT so long after the connection began.
    pub late: Option<Duration>,
}

impl Visit {
    /// Connects, gets CONNACK and leaves.
    pub fn passing(count: usize, concurrency: usize) -> Self {
        Visit {
            count,
            concurrency,
            publish: false,
            stay: false,
            split: false,
            late: None,
        }
    }

    /// Connects, gets CONNACK and stays.
    pub fn staying(count: usize) -> Self {
        Visit {
            stay: true,
            ..Visit::passing(count, 64)
        }
    }
}

impl Stage {
    /// Starts `contender`, warms it up, and checks that a client id always reaches the same
    /// broker.
    pub fn set(contender: &Contender, options: &Options, scene: Scene) -> Result<Self, Failure> {
        let mut net = Net::new(2, options.reads)?;
        net.reset = options.reset;
        net.skip = options.skip;
        let (proxy_core, load_core) = (options.proxy_core, options.load_core);
        let cores = match scene.workers {
            Workers::Alone => proxy_core.to_string(),
            Workers::Sharing(_) => format!("{proxy_core},{load_core}"),
        };
        let place = Place {
            cores: &cores,
            workers: match scene.workers {
                Workers::Alone => 1,
                Workers::Sharing(workers) => workers,
            },
            identity: match scene.certificate {
                Some(certificate) => {
                    net.tls = Some(Connector::new()?);
                    Some(certificate.identity()?)
                }
                None => None,
            },
            connections: scene.connections,
        };
        let load_cores = match scene.workers {
            Workers::Alone => load_core.to_string(),
            Workers::Sharing(_) => cores.clone(),
        };
        usage::pin(&load_cores)?;
        let proxy = contender.start(&place, &net.brokers.addresses)?;
        let mut stage = Stage {
            net,
            target: proxy.listen,
            proxy,
            ksoftirqd: usage::ksoftirqd(options.proxy_core),
            numbers: 0,
            turn: match options.spin {
                true => Duration::ZERO,
                false => TURN,
            },
            sessions: None,
        };
        stage.check(contender)?;
        // nginx listens before its worker is there.
        stage.proxy.look_for_family();
        Ok(stage)
    }

    fn check(&mut self, contender: &Contender) -> Result<(), Failure> {
        self.net.brokers.seen = Some(HashMap::new());
        for split in [false, true, false] {
            self.numbers = 0;
            self.connect(Visit {
                publish: true,
                split,
                ..Visit::passing(CHECKED_IDS as usize, 16)
            })?;
            self.wait_until_all_left()?;
        }
        self.net.brokers.seen = None;
        let name = &contender.name;
        let Net { brokers, .. } = &self.net;
        if contender.reads_client_id() && brokers.moved > 0 {
            let moved = brokers.moved;
            return Err(Failure(format!(
                "{name} sent {moved} of {CHECKED_IDS} client ids to another broker than before"
            )));
        }
        if contender.reads_client_id() && brokers.connects.contains(&0) {
            return Err(Failure(format!("{name} uses one broker only")));
        }
        Ok(())
    }

    /// Lets clients connect; those that stay come back in the order of their numbers, which follow
    /// each other.
    pub fn connect(&mut self, visit: Visit) -> Result<Vec<(u64, Client)>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let publish = mqtt::publish(1, 64);
        let wanted = if visit.publish {
            mqtt::PUBACK
        } else {
            mqtt::CONNACK
        };
        let (mut opened, mut done) = (0, 0);
        let mut staying = Vec::new();
        let mut later = VecDeque::new();
        let mut happened = Vec::new();
        while done < visit.count {
            while opened < visit.count && opened - done < visit.concurrency {
                let number = self.numbers;
                self.numbers += 1;
                opened += 1;
                let connect = mqtt::connect(&format!("bench-client-{number:08}"));
                let now = Instant::now();
                if let Some(late) = visit.late {
                    let client = self.net.open(self.target, number, None)?;
                    later.push_back((now + late, client, connect));
                } else if visit.split {
                    let (first, second) = connect.split_at(connect.len() / 2);
                    let client = self.net.open(self.target, number, Some(&first.into()))?;
                    later.push_back((now, client, second.into()));
                } else {
                    self.net.open(self.target, number, Some(&connect))?;
                }
            }
            let pause = match later.front() {
                Some((due, ..)) => self.turn.min(due.saturating_duration_since(Instant::now())),
                None => self.turn,
            };
            self.turn_for(pause, deadline, &mut happened)?;
            let now = Instant::now();
            while let Some((due, client, bytes)) = later.pop_front() {
                if due > now {
                    later.push_front((due, client, bytes));
                    break;
                }
                self.net.send(client, &bytes)?;
            }
            for Happened {
                client,
                number,
                what,
            } in happened.drain(..)
            {
                match what {
                    What::Packet(mqtt::CONNACK) if visit.publish => {
                        self.net.send(client, &publish)?
                    }
                    What::Packet(kind) if kind == wanted => {
                        done += 1;
                        if let Some(kept) = &mut self.sessions {
                            kept.extend(self.net.session(client));
                        }
                        match visit.stay {
                            true => staying.push((number, client)),
                            false => self.net.close(client),
                        }
                    }
                    what => return Err(unexpected(what)),
                }
            }
        }
        staying.sort_unstable_by_key(|(number, _)| *number);
        Ok(staying)
    }

    /// Waits until the brokers have seen the end of every connection.
    pub fn wait_until_all_left(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut happened = Vec::new();
        while self.net.brokers.open > 0 {
            self.turn(deadline, &mut happened)?;
        }
        match self.net.brokers.broken {
            0 => Ok(()),
            broken => Err(Failure(format!(
                "{broken} connections reached a broker broken"
            ))),
        }
    }

    /// One turn of the event loop, no later than `deadline`.
    pub fn turn(&mut self, deadline: Instant, happened: &mut Vec<Happened>) -> Result<(), Failure> {
        self.turn_for(self.turn, deadline, happened)
    }

    fn turn_for(
        &mut self,
        pause: Duration,
        deadline: Instant,
        happened: &mut Vec<Happened>,
    ) -> Result<(), Failure> {
        if Instant::now() > deadline {
            return Err(Failure("did not end in time".into()));
        }
        Ok(self.net.turn(pause, happened)?)
    }

    /// Lets the clients to come resume the sessions of those whose sessions were kept.
    pub fn resume(&mut self) -> Result<(), Failure> {
        let kept = self.sessions.take().unwrap_or_default();
        match &mut self.net.tls {
            Some(connector) if !kept.is_empty() => {
                connector.sessions = kept;
                Ok(())
            }
            _ => Err(Failure("no session to resume".into())),
        }
    }

    /// Handshakes until now, those of them that resumed a session, and tickets for new ones.
    pub fn handshakes(&self) -> [u64; 3] {
        let connector = self.net.tls.as_ref();
        connector.map_or([0; 3], |known| {
            [known.handshakes, known.resumed, known.tickets]
        })
    }

    /// Memory of the proxy, once it stays the same for a while.
    pub fn memory(&mut self) -> Result<u64, Failure> {
        let deadline = Instant::now() + Duration::from_secs(4);
        let mut happened = Vec::new();
        let mut last = (usage::pss(&self.proxy.family)?, Instant::now());
        // Longer than the second in which a proxy may look after its memory.
        while last.1.elapsed() < Duration::from_millis(1500) && Instant::now() < deadline {
            self.net.turn(Duration::from_millis(100), &mut happened)?;
            if let Some(Happened { what, .. }) = happened.first() {
                return Err(unexpected(*what));
            }
            let now = usage::pss(&self.proxy.family)?;
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        Ok(last.0)
    }

    /// Waits until the ports of earlier storms are free again, a minute at most.
    pub fn wait_for_ports(&mut self, connections: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut happened = Vec::new();
        while usage::time_wait() + 2 * connections as u64 > TIME_WAITS && Instant::now() < deadline
        {
            self.net.turn(Duration::from_millis(200), &mut happened)?;
        }
        Ok(())
    }

    /// CPU of the proxy, of the load, and of the kernel thread that helps the proxy's core out.
    pub fn usage(&self) -> io::Result<[Cpu; 3]> {
        let softirq = self.ksoftirqd.as_slice();
        Ok([
            usage::cpu(&self.proxy.family)?,
            usage::cpu(&[std::process::id()])?,
            usage::cpu(softirq)?,
        ])
    }
}

/// What can only be a failure of the proxy.
pub fn unexpected(what: What) -> Failure {
    Failure(match what {
        What::Ended => "a connection failed or was ended by the proxy".into(),
        What::Packet(kind) => format!("a packet of type {kind} came out of turn"),
    })
}
