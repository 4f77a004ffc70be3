//! Connect, CONNECT, CONNACK, close.

use super::Run;
use crate::Failure;
use crate::contender::Contender;
use crate::options::Options;
use crate::stage::{Stage, Visit};

/// CPU per connection, from the first connect until the brokers have seen the last one end.
pub fn storm(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut stage = Stage::set(contender, options, options.concurrency.max(1000))?;
    let visit = Visit {
        count: options.storm,
        concurrency: options.concurrency,
        publish: false,
        stay: false,
        split: false,
    };
    // Allocators, caches and tables have their size after this.
    stage.connect(Visit {
        count: options.storm / 10,
        ..visit
    })?;
    stage.wait_until_all_left()?;
    stage.wait_for_ports(options.storm)?;
    let meter = stage.meter()?;
    stage.connect(visit)?;
    stage.wait_until_all_left()?;
    let used = meter.stop(&stage)?;
    let rate = options.storm as f64 / used.wall.as_secs_f64();
    Ok(Run {
        figures: vec![used.micros_per(options.storm as u64)],
        note: format!("{rate:.0} connections/s, {used}"),
    })
}
