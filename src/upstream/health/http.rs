//! The HTTP probe: one request, of whose answer only the status counts.

use std::time::Duration;

use async_trait::async_trait;
use pingora_core::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::probe::{Dialler, NEITHER, STATUS, broken};
use crate::config::resource::checks::HttpProbe;

/// A longer status line is none.
const MAX_STATUS_LINE: usize = 1024;
/// What is read of an answer behind the status, and for how long, so that the server can finish
/// and does not see a reset.
const REST: u64 = 64 * 1024;
const REST_TIME: Duration = Duration::from_millis(100);

pub(super) struct HttpCheck {
    pub dialler: Dialler,
    pub probe: HttpProbe,
}

impl HttpCheck {
    /// The request; the host is bracketed where it is an IPv6 address.
    fn request(&self, host: &str) -> Vec<u8> {
        let probe = &self.probe;
        let has = |name: &str| {
            let is_it = |header: &String| {
                let found = header.split_once(':').map_or("", |(name, _)| name);
                found.eq_ignore_ascii_case(name)
            };
            probe.headers.iter().any(is_it)
        };
        let mut request = format!("{} {} HTTP/1.1\r\n", probe.method, probe.path);
        let mut line = |name: &str, value: &str| {
            if !has(name) {
                request.push_str(&format!("{name}: {value}\r\n"));
            }
        };
        match host.contains(':') && !host.starts_with('[') {
            true => line("Host", &format!("[{host}]")),
            false => line("Host", host),
        }
        line(
            "User-Agent",
            concat!("mqtt-proxy/", env!("CARGO_PKG_VERSION")),
        );
        line("Connection", "close");
        if !probe.body.is_empty() {
            line("Content-Length", &probe.body.len().to_string());
        }
        for header in &probe.headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(&probe.body);
        request.into_bytes()
    }

    fn judge(&self, status: u16) -> pingora_core::Result<()> {
        if self.probe.healthy.contains(&status) {
            return Ok(());
        }
        let kind = match self.probe.unhealthy.contains(&status) {
            true => STATUS,
            false => NEITHER,
        };
        Err(Error::new(ErrorType::CustomCode(kind, status)))
    }
}

#[async_trait]
impl HealthCheck for HttpCheck {
    async fn check(&self, target: &Backend) -> pingora_core::Result<()> {
        let mut stream = self.dialler.dial(target).await?;
        let request = self.request(&self.dialler.host_of(target));
        stream.write_all(&request).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let status = read_status(&mut stream).await?;
        let mut rest = stream.take(REST);
        let mut nowhere = tokio::io::sink();
        let drain = tokio::io::copy(&mut rest, &mut nowhere);
        let _ = tokio::time::timeout(REST_TIME, drain).await;
        self.judge(status)
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

async fn read_status(stream: &mut (impl AsyncRead + Unpin)) -> pingora_core::Result<u16> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut chunk = [0; 256];
        let count = stream.read(&mut chunk).await.map_err(broken)?;
        if count == 0 {
            return Err(broken("the connection ended before the status"));
        }
        let end = chunk[..count].iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&chunk[..end.map_or(count, |end| end + 1)]);
        if line.len() > MAX_STATUS_LINE {
            return Err(broken("the status line is too long"));
        }
    }
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split_whitespace();
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    words
        .next()
        .filter(|_| is_http)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| broken("the answer is not HTTP/1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::health::probe::tests::dialler;

    fn check(body: &str, headers: &[&str]) -> HttpCheck {
        HttpCheck {
            dialler: dialler(),
            probe: HttpProbe {
                tls: None,
                method: "POST".to_owned(),
                path: "/status".to_owned(),
                body: body.to_owned(),
                headers: headers.iter().map(|&header| header.to_owned()).collect(),
                healthy: vec![200],
                unhealthy: vec![503],
            },
        }
    }

    #[test]
    fn a_request_is_whole_and_configured_headers_win() {
        let request = |check: HttpCheck, host| String::from_utf8(check.request(host)).unwrap();
        let plain = request(check("", &[]), "::1");
        assert!(plain.starts_with("POST /status HTTP/1.1\r\nHost: [::1]\r\n"));
        assert!(plain.ends_with("Connection: close\r\n\r\n"), "{plain}");
        let own = request(check("{}", &["host: x.test", "X-A: b"]), "broker.test");
        assert_eq!(own.to_lowercase().matches("host:").count(), 1);
        assert!(own.contains("Content-Length: 2\r\n"));
        assert!(own.ends_with("host: x.test\r\nX-A: b\r\n\r\n{}"), "{own}");
    }

    #[tokio::test]
    async fn only_the_status_counts() {
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(204)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("SSH-2.0-x\r\n", None),
            ("HTTP/1.1 200", None),
        ] {
            let status = read_status(&mut answer.as_bytes()).await;
            assert_eq!(status.ok(), expected, "{answer}");
        }
        let endless = "x".repeat(5000);
        assert!(read_status(&mut endless.as_bytes()).await.is_err());
    }

    #[test]
    fn a_status_in_neither_list_says_nothing() {
        let check = check("", &[]);
        assert!(check.judge(200).is_ok());
        let kind = |status| check.judge(status).unwrap_err().etype().clone();
        assert_eq!(kind(503), ErrorType::CustomCode(STATUS, 503));
        assert_eq!(kind(418), ErrorType::CustomCode(NEITHER, 418));
    }
}
