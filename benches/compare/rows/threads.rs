//! What a second worker costs.

use super::{Run, messages, storm};
use crate::Failure;
use crate::contender::Contender;
use crate::options::Options;
use crate::stage::{Scene, Stage, Visit, Workers};

/// CPU per connection of a storm and per small message with two workers against one. Proxy and
/// load share all of their processors in either case, so that only the number of workers differs.
pub fn threads(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut storms = Vec::new();
    let mut smalls = Vec::new();
    let mut notes = Vec::new();
    // As A B B A: what drifts meanwhile is in both.
    for workers in [1, 2, 2, 1] {
        let scene = Scene {
            workers: Workers::Sharing(workers),
            ..Scene::plain(options.concurrency.max(options.clients).max(1000))
        };
        let mut stage = Stage::set(contender, options, scene)?;
        let visit = Visit::passing(options.storm / 2, options.concurrency);
        let used = storm::measure(&mut stage, visit)?;
        let connection = used.micros_per(visit.count as u64);
        let (messages, used) = messages::saturate(&mut stage, options, options.duration / 2)?;
        let message = used.micros_per(messages);
        notes.push(format!(
            "{workers}: {connection:.1} µs per connection, {message:.2} per message ({used})"
        ));
        storms.push(connection);
        smalls.push(message);
    }
    let ratio = |of: Vec<f64>| (of[1] + of[2]) / (of[0] + of[3]);
    Ok(Run {
        figures: vec![ratio(storms), ratio(smalls)],
        note: notes.join("; "),
    })
}
