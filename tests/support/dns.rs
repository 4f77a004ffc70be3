//! A tiny DNS server on 127.0.0.1 whose answers can be changed while it runs.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ports::local;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// An SRV record.
#[derive(Debug, Clone)]
pub struct Srv {
    /// The lowest is to be used first.
    pub priority: u16,
    /// Share among those of the same priority.
    pub weight: u16,
    /// Port.
    pub port: u16,
    /// The name of the server.
    pub target: String,
}

/// What a name has; one of the two, usually.
#[derive(Default)]
struct Records {
    addrs: Vec<IpAddr>,
    services: Vec<Srv>,
    ttl: u32,
}

impl Records {
    /// Type and data of every record.
    fn all(&self) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
        let addrs = self.addrs.iter().map(|addr| match addr {
            IpAddr::V4(v4) => (A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
        });
        let services = self.services.iter().map(|srv| {
            let numbers = [srv.priority, srv.weight, srv.port];
            let mut data = numbers.map(u16::to_be_bytes).concat();
            for label in srv.target.split('.').filter(|label| !label.is_empty()) {
                data.push(label.len() as u8);
                data.extend(label.as_bytes());
            }
            data.push(0);
            (SRV, data)
        });
        addrs.chain(services)
    }
}

#[derive(Default)]
struct Zone {
    records: HashMap<String, Records>,
    queries: HashMap<String, usize>,
    mute: bool,
}

/// The server; it ends with this value.
pub struct Dns {
    port: u16,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
}

impl Dns {
    /// A server that knows no name yet (every query gets NXDOMAIN).
    pub fn start() -> Self {
        let socket = UdpSocket::bind(local(0)).expect("a UDP port");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("timeout");
        let port = socket.local_addr().expect("bound").port();
        let zone: Arc<Mutex<Zone>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&zone), Arc::clone(&stop));
        std::thread::spawn(move || serve(&socket, &shared, &stopped));
        Self { port, zone, stop }
    }

    /// Its address as `apisix.dns_resolver` takes it.
    pub fn addr(&self) -> String {
        local(self.port).to_string()
    }

    /// What a name stands for from now on, and for how many seconds resolvers may remember it.
    pub fn set(&self, name: &str, addrs: &[&str], ttl: u32) {
        let addrs = addrs
            .iter()
            .map(|addr| addr.parse().expect("an IP address"))
            .collect();
        let records = Records {
            addrs,
            ttl,
            ..Records::default()
        };
        let mut zone = self.zone.lock().expect("zone");
        zone.records.insert(name.to_owned(), records);
    }

    /// The SRV records of a name from now on, instead of any others.
    pub fn set_srv(&self, name: &str, services: &[Srv], ttl: u32) {
        let records = Records {
            services: services.to_vec(),
            ttl,
            ..Records::default()
        };
        let mut zone = self.zone.lock().expect("zone");
        zone.records.insert(name.to_owned(), records);
    }

    /// The name does not exist any more.
    pub fn remove(&self, name: &str) {
        self.zone.lock().expect("zone").records.remove(name);
    }

    /// While `mute`, queries are counted and not answered.
    pub fn set_mute(&self, mute: bool) {
        self.zone.lock().expect("zone").mute = mute;
    }

    /// How often a name was asked for (all types together).
    pub fn queries(&self, name: &str) -> usize {
        self.zone
            .lock()
            .expect("zone")
            .queries
            .get(name)
            .copied()
            .unwrap_or(0)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn serve(socket: &UdpSocket, zone: &Mutex<Zone>, stop: &AtomicBool) {
    let mut buffer = [0_u8; 2048];
    while !stop.load(Ordering::SeqCst) {
        let Ok((len, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(answer) = answer(&buffer[..len], zone) {
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// The answer to one query (RFC 1035); `None` for what cannot be parsed and while mute.
fn answer(query: &[u8], zone: &Mutex<Zone>) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let len = usize::from(*query.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + len)?).to_lowercase());
        at += len;
    }
    let name = labels.join(".");
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;

    let mut zone = zone.lock().expect("zone");
    *zone.queries.entry(name.clone()).or_default() += 1;
    if zone.mute {
        return None;
    }
    let known = zone.records.get(&name);
    let mut records = Vec::new();
    let mut count = 0_u16;
    if let Some(known) = known {
        for (of, data) in known.all().filter(|(of, _)| *of == kind) {
            count += 1;
            records.extend([0xC0, 0x0C]);
            records.extend(of.to_be_bytes());
            records.extend(1_u16.to_be_bytes());
            records.extend(known.ttl.to_be_bytes());
            records.extend((data.len() as u16).to_be_bytes());
            records.extend(data);
        }
    }
    let code = if known.is_some() { 0 } else { 3 };
    let mut reply = query.get(..2)?.to_vec();
    reply.extend([0x85, 0x80 | code]);
    reply.extend([0, 1]);
    reply.extend(count.to_be_bytes());
    reply.extend([0, 0, 0, 0]);
    reply.extend_from_slice(question);
    reply.extend(records);
    Some(reply)
}
