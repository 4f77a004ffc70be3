//! Memory: of connections that do nothing, and after they have gone.

use super::Run;
use crate::Failure;
use crate::contender::Contender;
use crate::options::Options;
use crate::stage::{Scene, Stage, Visit};
use crate::tls::Certificate;

/// Growth of the memory per connection that stays after CONNECT and one PUBLISH.
pub fn memory(
    contender: &Contender,
    options: &Options,
    certificate: Option<Certificate>,
) -> Result<Run, Failure> {
    let scene = Scene::new(options.connections, certificate);
    let mut stage = Stage::set(contender, options, scene)?;
    let before = stage.memory()?;
    stage.connect(Visit {
        publish: true,
        ..Visit::staying(options.connections)
    })?;
    let after = stage.memory()?;
    let grown = after.saturating_sub(before) as f64;
    Ok(Run {
        figures: vec![grown / 1024.0 / options.connections as f64],
        note: format!(
            "{} connections: {:.1} -> {:.1} MiB",
            options.connections,
            mebibytes(before),
            mebibytes(after)
        ),
    })
}

/// Memory after one storm against before it, and after many against after one.
pub fn storms(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut stage = Stage::set(contender, options, Scene::plain(options.storm_size))?;
    let before = stage.memory()?;
    let mut after = Vec::new();
    for number in 0..options.storm_count {
        let clients = stage.connect(Visit {
            publish: true,
            ..Visit::staying(options.storm_size)
        })?;
        for (_, client) in clients {
            stage.net.close(client);
        }
        stage.wait_until_all_left()?;
        let looked_at = [0, options.storm_count / 2, options.storm_count - 1];
        if looked_at.contains(&number) {
            after.push(stage.memory()?);
        }
    }
    let (first, last) = (after[0], after[after.len() - 1]);
    let half = after[after.len() / 2];
    let ratio = |now: u64, then: u64| now as f64 / then as f64;
    Ok(Run {
        figures: vec![
            ratio(first, before),
            ratio(last, first),
            ratio(last, half),
            mebibytes(last),
        ],
        note: format!(
            "before {:.1}, after one {:.1}, after half {:.1}, after {} {:.1} MiB",
            mebibytes(before),
            mebibytes(first),
            mebibytes(half),
            options.storm_count,
            mebibytes(last)
        ),
    })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
