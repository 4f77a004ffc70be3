//! Scraping the proxy's metrics with a plain HTTP GET.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The path that APISIX serves its metrics at.
pub const PATH: &str = "/apisix/prometheus/metrics";

/// Status code, head and body of `GET path`.
pub fn get(addr: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("metrics at {addr}: {e}"));
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("timeout");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )
    .expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the whole answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head
        .split_whitespace()
        .nth(1)
        .and_then(|c| c.parse().ok())
        .expect("a status");
    (code, head.to_owned(), body.to_owned())
}

/// The sum of all samples of `name` whose labels contain every one of `labels` (for example
/// `route="1"`); 0 when there is none.
pub fn value(addr: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let (code, _, body) = get(addr, PATH);
    assert_eq!(code, 200, "the metrics endpoint answers 200");
    sum(&body, name, labels)
}

/// The same from a text that was scraped before.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (metric, found) = series.split_once('{').unwrap_or((series, ""));
            (metric == name && labels.iter().all(|label| found.contains(label)))
                .then(|| value.parse::<f64>().ok())?
        })
        .sum()
}
