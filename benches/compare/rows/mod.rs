//! The rows of the table: one module for each kind of load.

mod bulk;
mod idle;
mod messages;
mod storm;

use super::Failure;
use super::contender::Contender;
use super::options::Options;

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
}

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most this many times HAProxy's figure.
    Ratio(f64),
    /// At most this.
    Absolute(f64),
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

const fn ratio(name: &'static str, goal: f64, floor: Option<f64>) -> Metric {
    Metric {
        name,
        goal: Goal::Ratio(goal),
        floor,
    }
}

impl Row {
    /// Every row, in the order of the table.
    pub const ALL: [Row; 6] = [
        Row::Memory,
        Row::Storm,
        Row::Small,
        Row::Paced,
        Row::Bulk,
        Row::Storms,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Row::Memory => "memory",
            Row::Storm => "storm",
            Row::Small => "small",
            Row::Paced => "paced",
            Row::Bulk => "bulk",
            Row::Storms => "storms",
        }
    }

    /// What it measures.
    pub fn metrics(self) -> Vec<Metric> {
        match self {
            Row::Memory => vec![ratio("KiB per idle connection", 0.30, Some(0.01))],
            Row::Storm => vec![ratio("CPU µs per connection", 0.93, Some(0.80))],
            Row::Small => vec![ratio("CPU µs per message, saturated", 0.93, Some(0.87))],
            Row::Paced => vec![
                ratio("CPU µs per message, fixed rate", 0.93, Some(0.89)),
                ratio("added latency p50, µs", 1.0, None),
                ratio("added latency p99, µs", 1.0, None),
            ],
            Row::Bulk => vec![ratio("CPU ms per GB", 0.5, Some(0.43))],
            Row::Storms => vec![
                Metric {
                    name: "memory after a storm / before",
                    goal: Goal::Absolute(1.1),
                    floor: None,
                },
                Metric {
                    name: "memory after the last storm / after the first",
                    goal: Goal::Absolute(1.1),
                    floor: None,
                },
                Metric {
                    name: "memory after the last storm / after half of them",
                    goal: Goal::None,
                    floor: None,
                },
                Metric {
                    name: "MiB after the last storm",
                    goal: Goal::None,
                    floor: None,
                },
            ],
        }
    }

    /// Runs it once.
    pub fn run(self, contender: &Contender, options: &Options) -> Result<Run, Failure> {
        match self {
            Row::Memory => idle::memory(contender, options),
            Row::Storm => storm::storm(contender, options),
            Row::Small => messages::small(contender, options),
            Row::Paced => messages::paced(contender, options),
            Row::Bulk => bulk::bulk(contender, options),
            Row::Storms => idle::storms(contender, options),
        }
    }
}
