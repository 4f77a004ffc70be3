//! Socket options that both sides of a connection get.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// TCP keepalive: the first probe after this much silence, then at the interval; a peer that
/// answers none of them is gone. Finds dead peers of clients that promise no MQTT keep alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 4;

/// Turns TCP keepalive on. Accepted sockets inherit it, with TCP_NODELAY, from their listener,
/// which saves four system calls a connection.
///
/// # Errors
/// What setsockopt(2) answers.
pub fn set_keepalive<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.into().set_tcp_keepalive(&keepalive)
}
