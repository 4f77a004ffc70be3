//! A scripted broker: records every byte of every connection and does what its script says.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use super::client::{Client, End, is_reset};
use super::mqtt::{ACCEPTED, ACCEPTED_5, Connect};
use super::ports::{DeadPort, bound_patiently, free_port, local, on};
use super::wait::{SOON, wait_until};

/// Counts accepts over all brokers of the process, so that their order is known.
static ACCEPTS: AtomicU64 = AtomicU64::new(0);

type Script = dyn Fn(Conn) + Send + Sync;

/// What a broker saw of one connection.
#[derive(Debug)]
pub struct Seen {
    /// Place in the order of accepts over all brokers of this process.
    pub order: u64,
    /// The proxy's address on this connection.
    pub peer: SocketAddr,
    received: Mutex<Vec<u8>>,
    end: Mutex<Option<End>>,
}

impl Seen {
    /// Everything received so far.
    pub fn received(&self) -> Vec<u8> {
        self.received.lock().expect("received").clone()
    }

    /// Waits until exactly these bytes have arrived.
    pub fn wait_for(&self, expected: &[u8]) {
        wait_until("the bytes to reach the broker", SOON, || {
            (self.received.lock().expect("received").len() >= expected.len()).then_some(())
        });
        assert!(
            self.received() == expected,
            "the broker received other bytes than were sent"
        );
    }

    /// How the proxy ended its sending side, once it has.
    pub fn end(&self) -> Option<End> {
        *self.end.lock().expect("end")
    }

    /// Waits for that end.
    pub fn wait_for_end(&self) -> End {
        wait_until(
            "the proxy to end the connection to the broker",
            SOON,
            || self.end(),
        )
    }
}

/// The broker's side of one connection, as its script sees it.
pub struct Conn {
    /// The socket.
    pub stream: TcpStream,
    /// What is recorded of it.
    pub seen: Arc<Seen>,
}

impl Conn {
    /// Reads what is there, at most `buffer`, and records it. 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    self.ended(End::Fin);
                    return 0;
                }
                Ok(n) => {
                    self.seen
                        .received
                        .lock()
                        .expect("received")
                        .extend_from_slice(&buffer[..n]);
                    return n;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.ended(if is_reset(&e) { End::Reset } else { End::Fin });
                    return 0;
                }
            }
        }
    }

    /// Reads one MQTT packet; `None` when the connection ends before it is whole.
    pub fn read_packet(&mut self) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        let mut length = 0_usize;
        let mut byte = [0_u8];
        for index in 0..5 {
            if self.read(&mut byte) == 0 {
                return None;
            }
            packet.push(byte[0]);
            if index > 0 {
                length |= usize::from(byte[0] & 0x7f) << (7 * (index - 1));
                if byte[0] & 0x80 == 0 {
                    break;
                }
            }
        }
        let mut rest = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.read(&mut rest[filled..]) {
                0 => return None,
                n => filled += n,
            }
        }
        packet.extend(rest);
        Some(packet)
    }

    /// Reads everything up to the end.
    pub fn drain(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while self.read(&mut buffer) > 0 {}
    }

    /// Sends back everything that arrives, up to the end, and ends its own side then.
    pub fn echo(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                0 => break,
                n if !self.send(&buffer[..n]) => break,
                _ => {}
            }
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads the CONNECT and accepts it; `false` when none comes.
    pub fn accept_mqtt(&mut self) -> bool {
        let Some(packet) = self.read_packet() else {
            return false;
        };
        let body = packet
            .iter()
            .skip(1)
            .position(|b| b & 0x80 == 0)
            .map_or(2, |at| at + 2);
        let name = packet.get(body + 1).map_or(0, |len| usize::from(*len));
        let five = packet.get(body + 2 + name) == Some(&5);
        self.send(if five { ACCEPTED_5 } else { ACCEPTED })
    }

    /// Sends; `false` when the connection does not take it any more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Ends the sending side only.
    pub fn finish_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let socket = Socket::from(self.stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    fn ended(&self, end: End) {
        self.seen.end.lock().expect("end").get_or_insert(end);
    }
}

struct Listening {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A broker that follows a script on every connection, each in a thread of its own.
pub struct Broker {
    addr: SocketAddr,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Arc<Seen>>>>,
    listening: Option<Listening>,
    dead: Option<DeadPort>,
}

impl Broker {
    /// A broker on a free port of 127.0.0.1.
    pub fn scripted(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::scripted_at(local(free_port()), script)
    }

    /// A broker on this address.
    pub fn scripted_at(addr: SocketAddr, script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        let mut broker = Self {
            addr,
            script: Arc::new(script),
            seen: Arc::default(),
            listening: None,
            dead: None,
        };
        broker.listen();
        broker
    }

    /// Accepts MQTT clients and echoes everything behind CONNECT.
    pub fn mqtt() -> Self {
        Self::mqtt_at(local(free_port()))
    }

    /// The same on this address.
    pub fn mqtt_at(addr: SocketAddr) -> Self {
        Self::scripted_at(addr, |mut conn| {
            if conn.accept_mqtt() {
                conn.echo();
            }
        })
    }

    /// Echoes everything from the first byte on.
    pub fn echo() -> Self {
        Self::scripted(|mut conn| conn.echo())
    }

    /// Speaks first, then echoes.
    pub fn greeting(addr: SocketAddr, greeting: &'static [u8]) -> Self {
        Self::scripted_at(addr, move |mut conn| {
            conn.send(greeting);
            conn.echo();
        })
    }

    /// Records everything and answers nothing.
    pub fn silent() -> Self {
        Self::scripted(|mut conn| conn.drain())
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.seen.lock().expect("seen").len()
    }

    /// The connection with this number, in the order of accepts.
    pub fn connection(&self, index: usize) -> Arc<Seen> {
        wait_until("a connection to reach the broker", SOON, || {
            self.seen.lock().expect("seen").get(index).cloned()
        })
    }

    /// From now on its port refuses connections; those it has go on.
    pub fn stop_listening(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.stop.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.addr);
            listening.thread.join().expect("the accept thread");
            self.dead = Some(DeadPort::at(self.addr));
        }
    }

    /// Listens again after [`Broker::stop_listening`].
    pub fn listen(&mut self) {
        self.dead = None;
        let listener = bind(self.addr);
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, script, stopped) = (
            Arc::clone(&self.seen),
            Arc::clone(&self.script),
            Arc::clone(&stop),
        );
        let thread = std::thread::spawn(move || accept(&listener, &seen, &script, &stopped));
        self.listening = Some(Listening { stop, thread });
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.stop.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.addr);
            let _ = listening.thread.join();
        }
    }
}

fn bind(addr: SocketAddr) -> TcpListener {
    let socket = bound_patiently(addr);
    socket.listen(1024).expect("listen");
    socket.into()
}

fn accept(
    listener: &TcpListener,
    seen: &Mutex<Vec<Arc<Seen>>>,
    script: &Arc<Script>,
    stopped: &AtomicBool,
) {
    while let Ok((stream, peer)) = listener.accept() {
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        let _ = stream.set_nodelay(true);
        let record = Arc::new(Seen {
            order: ACCEPTS.fetch_add(1, Ordering::SeqCst),
            peer,
            received: Mutex::default(),
            end: Mutex::default(),
        });
        seen.lock().expect("seen").push(Arc::clone(&record));
        let script = Arc::clone(script);
        std::thread::spawn(move || {
            script(Conn {
                stream,
                seen: record,
            })
        });
    }
}

/// Several brokers of one upstream.
pub struct Brokers(pub Vec<Broker>);

impl Brokers {
    /// `count` MQTT brokers on free ports.
    pub fn mqtt(count: usize) -> Self {
        Self((0..count).map(|_| Broker::mqtt()).collect())
    }

    /// MQTT brokers on one free port of each of these loopback addresses, and that port.
    pub fn on_hosts(hosts: &[&str]) -> (Self, u16) {
        let port = free_port();
        let brokers = hosts.iter().map(|host| Broker::mqtt_at(on(host, port)));
        (Self(brokers.collect()), port)
    }

    /// Their addresses as a node is written.
    pub fn nodes(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|broker| broker.addr().to_string())
            .collect()
    }

    /// The map form of `nodes` with these weights, in one line.
    pub fn weighted(&self, weights: &[u32]) -> String {
        let nodes: Vec<String> = self
            .0
            .iter()
            .zip(weights)
            .map(|(broker, weight)| format!("\"{}\": {weight}", broker.addr()))
            .collect();
        format!("{{{}}}", nodes.join(", "))
    }

    /// The map form with weight 1 each.
    pub fn equal(&self) -> String {
        self.weighted(&vec![1; self.0.len()])
    }

    /// How many connections each has accepted.
    pub fn accepted(&self) -> Vec<usize> {
        self.0.iter().map(Broker::accepted).collect()
    }

    /// Connects a client and tells which broker accepted it. The client is accepted with CONNACK
    /// and stays connected.
    pub fn visit(&self, port: u16, connect: &Connect) -> (usize, Client) {
        self.watch(|| Client::mqtt(port, connect))
    }

    /// Runs `connect` and tells which broker got the one connection that it made.
    pub fn watch(&self, connect: impl FnOnce() -> Client) -> (usize, Client) {
        let before = self.accepted();
        let client = connect();
        let index = wait_until("one of the brokers to accept", SOON, || {
            self.accepted()
                .iter()
                .zip(&before)
                .position(|(now, then)| now > then)
        });
        (index, client)
    }

    /// Which broker each of these ids is sent to.
    pub fn map(&self, port: u16, ids: &[String]) -> BTreeMap<String, usize> {
        ids.iter()
            .map(|id| (id.clone(), self.visit(port, &Connect::v311(id)).0))
            .collect()
    }
}
