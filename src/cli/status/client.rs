//! One HTTP request to a control API, bounded in size and time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long the whole exchange may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Longest answer; 10,000 routes make about 2 MB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens, or nobody can be reached.
    #[error(
        "nothing answers at {address} ({error}): is the proxy running, with its control API there?"
    )]
    Nobody {
        /// Where.
        address: SocketAddr,
        /// What the operating system says.
        error: io::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("{address} gives no answer: {error}")]
    Broken {
        /// Where.
        address: SocketAddr,
        /// What the operating system says.
        error: io::Error,
    },
    /// Something else listens there, such as APISIX or Prometheus.
    #[error("what answers at {0} is no mqtt-proxy")]
    Foreign(SocketAddr),
}

/// An answer.
pub(super) struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Gets `target` of a mqtt-proxy.
///
/// # Errors
/// See [`ClientError`].
pub(super) fn get(address: SocketAddr, target: &str) -> Result<Answer, ClientError> {
    let started = Instant::now();
    let broken = |error| ClientError::Broken { address, error };
    let stream = TcpStream::connect_timeout(&address, LIMIT);
    let mut stream = stream.map_err(|error| ClientError::Nobody { address, error })?;
    stream.set_write_timeout(Some(LIMIT)).map_err(broken)?;
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = LIMIT.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(broken(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(broken)?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) if bytes.len() + count > MAX_ANSWER => {
                return Err(broken(io::ErrorKind::FileTooLarge.into()));
            }
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(broken(io::ErrorKind::TimedOut.into()));
            }
            Err(error) => return Err(broken(error)),
        }
    }
    parse(&bytes).ok_or(ClientError::Foreign(address))
}

/// The answer of a mqtt-proxy, which says who it is.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.lines();
    let code = lines
        .next()?
        .strip_prefix("HTTP/1.1 ")?
        .get(..3)?
        .parse()
        .ok()?;
    let ours = lines.any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("server") && value.starts_with("mqtt-proxy/")
        })
    });
    ours.then(|| Answer {
        code,
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mqtt_proxy_is_understood() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nserver: mqtt-proxy/1.0\r\n\r\n{}\n").unwrap();
        assert_eq!((answer.code, &answer.body[..]), (200, &b"{}\n"[..]));
        for other in [
            &b"HTTP/1.1 200 OK\r\nServer: APISIX/3.18.0\r\n\r\n{}"[..],
            b"HTTP/1.1 404 Not Found\r\n\r\n404 page not found",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"",
            b"HTTP/1.1 \xff\r\n\r\n",
        ] {
            assert!(parse(other).is_none(), "{}", other.escape_ascii());
        }
    }
}
