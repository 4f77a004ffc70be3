//! Ports that nothing else uses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use socket2::{Domain, Socket, Type};

use super::wait::{SOON, wait_until};

/// 127.0.0.1 with this port.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A loopback address written as text, with this port.
pub fn on(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an IP address"), port)
}

/// A port on which nothing listens and which no other call of this process returns again.
///
/// It lies below the range of ports of outgoing connections: a client of a test beside this one
/// cannot take it between this call and the bind.
pub fn free_port() -> u16 {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let (lowest, highest) = own_ports();
    let mut next = NEXT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let span = u32::from(highest - lowest);
    let mut candidate =
        next.unwrap_or_else(|| lowest + (std::process::id().wrapping_mul(7_919) % span) as u16);
    for _ in 0..span {
        candidate = if candidate + 1 >= highest {
            lowest
        } else {
            candidate + 1
        };
        if bound(local(candidate)).is_ok() {
            *next = Some(candidate);
            return candidate;
        }
    }
    panic!("no free port between {lowest} and {highest}");
}

/// The ports of this process: from the first to before the second. Where the runner of the tests
/// says which of the places for tests that run at a time this one has, it has a share of its own:
/// nothing else could keep two processes from the same port between the probe and the bind.
fn own_ports() -> (u16, u16) {
    const LOWEST: u16 = 10_240;
    const SHARES: u16 = 16;
    let highest = lowest_ephemeral_port().max(LOWEST + 4096);
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok();
    match slot.and_then(|slot| slot.parse::<u16>().ok()) {
        Some(slot) => {
            let share = (highest - LOWEST) / SHARES;
            let lowest = LOWEST + slot % SHARES * share;
            (lowest, lowest + share)
        }
        None => (LOWEST, highest),
    }
}

/// Several free ports at once.
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}

/// A socket that is bound and does not listen. Such sockets do not stand in each other's way, so
/// this is also how a port is probed.
fn bound(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// The same for an address that is known to be free. A child process that another thread is just
/// starting may hold a copy of a listener there for some milliseconds, between fork and exec.
pub fn bound_patiently(addr: SocketAddr) -> Socket {
    wait_until(&format!("{addr} to be free"), SOON, || bound(addr).ok())
}

fn lowest_ephemeral_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

/// A port that refuses every connection for as long as this value lives: bound, never listened on.
pub struct DeadPort {
    addr: SocketAddr,
    _socket: Socket,
}

impl DeadPort {
    /// A dead port on 127.0.0.1.
    pub fn new() -> Self {
        Self::at(local(free_port()))
    }

    /// Keeps this address dead.
    pub fn at(addr: SocketAddr) -> Self {
        Self {
            addr,
            _socket: bound_patiently(addr),
        }
    }

    /// The address that refuses.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }
}

/// An address that neither accepts nor refuses: its accept queue is full, so the kernel drops each
/// SYN and a connect hangs until its own timeout.
pub struct BlackHole {
    addr: SocketAddr,
    _socket: Socket,
    _fillers: Vec<Socket>,
}

impl BlackHole {
    /// A black hole on 127.0.0.1.
    pub fn new() -> Self {
        let addr = local(free_port());
        let socket = bound_patiently(addr);
        socket.listen(0).expect("listen");
        let mut fillers = Vec::new();
        loop {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let full = filler
                .connect_timeout(&addr.into(), std::time::Duration::from_millis(150))
                .is_err();
            fillers.push(filler);
            if full {
                break;
            }
            assert!(fillers.len() < 64, "the accept queue of {addr} never fills");
        }
        Self {
            addr,
            _socket: socket,
            _fillers: fillers,
        }
    }

    /// The address on which a connect hangs.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
