//! What is observed of single connections on their way: durations and CONNACKs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::Semaphore;

use super::family::{counters, sole_gauge, sole_histogram};
use crate::histogram::Histogram;

/// Who sends a CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This program, to a client that it refuses.
    Proxy,
    /// The broker.
    Broker,
}

/// CONNACKs by origin and code; every code there can be, so that nothing is ever looked up.
#[derive(Debug)]
pub(super) struct Connacks([[AtomicU64; 256]; 2]);

/// Labels of [`Connacks`].
const ORIGINS: [&str; 2] = ["proxy", "broker"];

impl Default for Connacks {
    fn default() -> Self {
        let none = || std::array::from_fn(|_| AtomicU64::new(0));
        Connacks([none(), none()])
    }
}

impl Connacks {
    /// One more.
    pub fn count(&self, origin: Origin, code: u8) {
        self.0[origin as usize][usize::from(code)].fetch_add(1, Ordering::Relaxed);
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, String, u64)> {
        let each = ORIGINS.iter().zip(&self.0);
        each.flat_map(|(origin, codes)| {
            let codes = codes.iter().enumerate();
            codes.filter_map(|(code, count)| {
                let count = count.load(Ordering::Relaxed);
                (count > 0).then(|| (*origin, format!("0x{code:02x}"), count))
            })
        })
    }

    /// Adds what another process counted.
    pub fn carry_on(&self, origin: &str, code: &str, more: u64) {
        let origin = ORIGINS.iter().position(|known| *known == origin);
        let code = code.strip_prefix("0x");
        let code = code.and_then(|code| usize::from_str_radix(code, 16).ok());
        if let (Some(origin), Some(code @ ..256)) = (origin, code) {
            self.0[origin][code].fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What is observed of single connections.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// See [`Metrics::connect_read`](super::Metrics::connect_read).
    pub connect_read: Histogram,
    /// See [`Metrics::connack_after`](super::Metrics::connack_after).
    pub connack: Histogram,
    /// How long TLS handshakes took.
    pub handshake: Histogram,
    /// CONNACKs.
    pub connacks: Connacks,
    /// Places for TLS handshakes, and how many there are in all.
    pub handshakes: OnceLock<(Arc<Semaphore>, usize)>,
}

/// Writes [`Observed`] at each scrape.
#[derive(Debug)]
pub(super) struct ObservedMetrics(pub Arc<Observed>);

impl Collector for ObservedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let observed = &self.0;
        sole_histogram(
            &mut encoder,
            "mqtt_proxy_connect_parse_seconds",
            "From accept, or from the end of the TLS handshake, to the whole CONNECT",
            &observed.connect_read,
        )?;
        sole_histogram(
            &mut encoder,
            "mqtt_proxy_connack_seconds",
            "From the sending of CONNECT to the broker's CONNACK",
            &observed.connack,
        )?;
        sole_histogram(
            &mut encoder,
            "mqtt_proxy_tls_handshake_seconds",
            "From accept to the end of a client's TLS handshake",
            &observed.handshake,
        )?;
        let connacks: Vec<_> = observed.connacks.all().collect();
        counters(
            &mut encoder,
            "mqtt_proxy_connack",
            "CONNACKs sent to clients, by who sent them and their code",
            connacks.iter().map(|(origin, code, count)| {
                let labels = [("origin", *origin), ("code", code.as_str())];
                (labels, *count)
            }),
        )?;
        if let Some((places, limit)) = observed.handshakes.get() {
            let in_flight = limit.saturating_sub(places.available_permits());
            sole_gauge(
                &mut encoder,
                "mqtt_proxy_tls_handshakes_in_flight",
                "TLS handshakes of clients that have begun and not ended",
                in_flight as f64,
            )?;
            sole_gauge(
                &mut encoder,
                "mqtt_proxy_tls_handshakes_limit",
                "How many may be in flight",
                *limit as f64,
            )?;
        }
        Ok(())
    }
}
