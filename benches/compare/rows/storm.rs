//! Connect, CONNECT, CONNACK, close.

use std::time::Duration;

use super::Run;
use crate::Failure;
use crate::contender::Contender;
use crate::meter::{Meter, Used};
use crate::options::Options;
use crate::stage::{Scene, Stage, Visit};
use crate::tls::Certificate;

/// Sessions that the clients of a storm of resumed handshakes take turns with.
const SESSIONS: usize = 512;

/// CPU per connection, from the first connect until the brokers have seen the last one end.
/// CONNECT comes at once, or `late` after the connection has begun.
pub fn storm(
    contender: &Contender,
    options: &Options,
    late: Option<Duration>,
) -> Result<Run, Failure> {
    // Those who wait for their time are no load.
    let concurrency = match late {
        Some(_) => LATE_CONCURRENCY * options.concurrency,
        None => options.concurrency,
    };
    let scene = Scene::plain(concurrency.max(1000));
    let mut stage = Stage::set(contender, options, scene)?;
    let visit = Visit {
        late,
        ..Visit::passing(options.storm, concurrency)
    };
    let used = measure(&mut stage, visit)?;
    Ok(Run {
        figures: vec![used.micros_per(options.storm as u64)],
        note: note(&used, visit.count),
    })
}

/// So many times as many connections are open at a time when CONNECT comes late: enough to keep
/// the proxy busy while most of them wait.
const LATE_CONCURRENCY: usize = 4;

/// CPU per TLS connection: full and resumed handshakes with a certificate of each kind.
pub fn tls(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut figures = Vec::new();
    let mut notes = Vec::new();
    for certificate in [Certificate::Ecdsa, Certificate::Rsa] {
        let scene = Scene::new(options.concurrency.max(1000), Some(certificate));
        let mut stage = Stage::set(contender, options, scene)?;
        let visit = Visit::passing(options.tls_storm, options.concurrency);
        for resume in [false, true] {
            if resume {
                stage.sessions = Some(Vec::new());
                stage.connect(Visit::passing(SESSIONS, options.concurrency))?;
                stage.wait_until_all_left()?;
                stage.resume()?;
            }
            let before = stage.handshakes();
            let used = measure(&mut stage, visit)?;
            let after = stage.handshakes();
            let [all, resumed, tickets] = [0, 1, 2].map(|of| after[of] - before[of]);
            if resumed != if resume { all } else { 0 } {
                return Err(Failure(format!(
                    "{resumed} of {all} handshakes resumed a session"
                )));
            }
            figures.push(used.micros_per(visit.count as u64));
            let kind = if resume { "resumed" } else { "full" };
            let tickets = 100 * tickets / all.max(1);
            notes.push(format!(
                "{certificate:?} {kind}: a new ticket for {tickets} %, {}",
                note(&used, visit.count)
            ));
        }
    }
    Ok(Run {
        figures,
        note: notes.join("; "),
    })
}

/// Measures one storm after a small one, when allocators, caches and tables have their size.
pub fn measure(stage: &mut Stage, visit: Visit) -> Result<Used, Failure> {
    stage.connect(Visit {
        count: visit.count.div_ceil(10),
        ..visit
    })?;
    stage.wait_until_all_left()?;
    stage.wait_for_ports(visit.count)?;
    let meter = Meter::start(stage)?;
    stage.connect(visit)?;
    stage.wait_until_all_left()?;
    Ok(meter.stop(stage)?)
}

fn note(used: &Used, count: usize) -> String {
    let rate = count as f64 / used.wall.as_secs_f64();
    format!("{rate:.0} connections/s, {used}")
}
