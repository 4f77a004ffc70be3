//! The rows of the table: one module for each kind of load.

mod bulk;
mod idle;
mod messages;
mod storm;
mod threads;

use super::Failure;
use super::contender::Contender;
use super::options::Options;
use super::tls::Certificate;

/// A row: one load, one or more figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Memory of idle connections.
    Memory,
    /// A storm of connections.
    Storm,
    /// Small messages, as many as possible.
    Small,
    /// Small messages at a fixed rate.
    Paced,
    /// Large messages.
    Bulk,
    /// Memory after storms.
    Storms,
    /// A storm whose CONNECTs come late.
    Late,
    /// CPU with two workers against one.
    Threads,
    /// Memory of idle TLS connections.
    TlsMemory,
    /// A storm of TLS connections.
    TlsStorm,
    /// Small messages over TLS, as many as possible.
    TlsSmall,
    /// Large messages over TLS.
    TlsBulk,
}

/// One figure of a row.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What is measured, with its unit.
    pub name: &'static str,
    /// What this project wants to reach.
    pub goal: Goal,
    /// What the cheapest relay that user space can be reaches, as a ratio to HAProxy.
    pub floor: Option<f64>,
    /// Which of the rounds counts.
    pub counts: Counts,
}

/// Which of several rounds counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// The one in the middle.
    Median,
    /// The least: where what disturbs a round can only add to it, and by far more than what is
    /// measured.
    Least,
}

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most this many times HAProxy's figure.
    Ratio(f64),
    /// At most this.
    Absolute(f64),
    /// The ratio to HAProxy, for information.
    Compared,
    /// For information.
    None,
}

/// What one run of a row gave: its figures in the order of [`Row::metrics`].
#[derive(Debug, Clone)]
pub struct Run {
    /// The figures.
    pub figures: Vec<f64>,
    /// How it went, for `--verbose`.
    pub note: String,
}

const fn metric(name: &'static str, goal: Goal) -> Metric {
    Metric {
        name,
        goal,
        floor: None,
        counts: Counts::Median,
    }
}

const fn ratio(name: &'static str, goal: f64) -> Metric {
    metric(name, Goal::Ratio(goal))
}

impl Metric {
    const fn floor(self, floor: f64) -> Self {
        Metric {
            floor: Some(floor),
            ..self
        }
    }

    const fn least(self) -> Self {
        Metric {
            counts: Counts::Least,
            ..self
        }
    }
}

/// 1.1 times as many handshakes a second.
const MORE_HANDSHAKES: f64 = 0.91;

impl Row {
    /// Every row, in the order of the table.
    pub const ALL: [Row; 12] = [
        Row::Memory,
        Row::Storm,
        Row::Late,
        Row::Small,
        Row::Paced,
        Row::Bulk,
        Row::Storms,
        Row::Threads,
        Row::TlsMemory,
        Row::TlsStorm,
        Row::TlsSmall,
        Row::TlsBulk,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Row::Memory => "memory",
            Row::Storm => "storm",
            Row::Late => "late",
            Row::Small => "small",
            Row::Paced => "paced",
            Row::Bulk => "bulk",
            Row::Storms => "storms",
            Row::Threads => "threads",
            Row::TlsMemory => "tls-memory",
            Row::TlsStorm => "tls-storm",
            Row::TlsSmall => "tls-small",
            Row::TlsBulk => "tls-bulk",
        }
    }

    /// What it measures.
    pub fn metrics(self) -> Vec<Metric> {
        match self {
            Row::Memory => vec![ratio("KiB per idle connection", 0.30).floor(0.01)],
            Row::Storm => vec![ratio("CPU µs per connection", 0.93).floor(0.80)],
            Row::Late => vec![metric(
                "CPU µs per connection, late CONNECT",
                Goal::Compared,
            )],
            Row::Small => vec![ratio("CPU µs per message, saturated", 0.93).floor(0.87)],
            Row::Paced => vec![
                ratio("CPU µs per message, fixed rate", 0.93).floor(0.89),
                ratio("added latency p50, µs", 1.0),
                ratio("added latency p99 when it is quiet, µs", 1.0).least(),
            ],
            Row::Bulk => vec![
                ratio("CPU ms per GB to brokers", 0.5).floor(0.43),
                ratio("CPU ms per GB to clients", 0.5),
            ],
            Row::Storms => vec![
                metric("memory after a storm / before", Goal::Absolute(1.1)),
                metric(
                    "memory after the last storm / after the first",
                    Goal::Absolute(1.1),
                ),
                metric(
                    "memory after the last storm / after half of them",
                    Goal::None,
                ),
                metric("MiB after the last storm", Goal::None),
            ],
            Row::Threads => vec![
                metric("CPU per connection, two workers / one", Goal::Absolute(1.1)),
                metric("CPU per message, two workers / one", Goal::Absolute(1.1)),
            ],
            Row::TlsMemory => vec![ratio("KiB per idle TLS connection", 0.75)],
            Row::TlsStorm => vec![
                ratio("CPU µs per TLS connection, ECDSA, full", MORE_HANDSHAKES),
                ratio("CPU µs per TLS connection, ECDSA, resumed", MORE_HANDSHAKES),
                ratio("CPU µs per TLS connection, RSA, full", MORE_HANDSHAKES),
                ratio("CPU µs per TLS connection, RSA, resumed", MORE_HANDSHAKES),
            ],
            Row::TlsSmall => vec![ratio("CPU µs per message over TLS, saturated", 0.95)],
            Row::TlsBulk => vec![
                ratio("CPU ms per GB over TLS, to brokers", 0.8),
                ratio("CPU ms per GB over TLS, to clients", 0.8),
            ],
        }
    }

    /// Runs it once.
    pub fn run(self, contender: &Contender, options: &Options) -> Result<Run, Failure> {
        match self {
            Row::Memory => idle::memory(contender, options, None),
            Row::Storm => storm::storm(contender, options, None),
            Row::Late => storm::storm(contender, options, Some(options.late)),
            Row::Small => messages::small(contender, options, None),
            Row::Paced => messages::paced(contender, options),
            Row::Bulk => bulk::bulk(contender, options, None),
            Row::Storms => idle::storms(contender, options),
            Row::Threads => threads::threads(contender, options),
            Row::TlsMemory => idle::memory(contender, options, Some(Certificate::Ecdsa)),
            Row::TlsStorm => storm::tls(contender, options),
            Row::TlsSmall => messages::small(contender, options, Some(Certificate::Ecdsa)),
            Row::TlsBulk => bulk::bulk(contender, options, Some(Certificate::Ecdsa)),
        }
    }
}
