//! Small messages there and back: PUBLISH of quality of service 1 and its PUBACK.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Run;
use crate::contender::Contender;
use crate::meter::{Meter, Used};
use crate::net::{Happened, What};
use crate::options::Options;
use crate::stage::{Scene, Stage, Visit, unexpected};
use crate::tls::Certificate;
use crate::{Failure, mqtt};

/// What runs before the measurement begins.
const WARM_UP: Duration = Duration::from_millis(200);
/// What may come after its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Slices of the paced row, each measured with and without the proxy.
const SLICES: u32 = 5;

/// Every client sends the next message when the last one is acknowledged.
pub fn small(
    contender: &Contender,
    options: &Options,
    certificate: Option<Certificate>,
) -> Result<Run, Failure> {
    let scene = Scene::new(options.clients, certificate);
    let mut stage = Stage::set(contender, options, scene)?;
    let (messages, used) = saturate(&mut stage, options, options.duration)?;
    let rate = messages as f64 / used.wall.as_secs_f64();
    Ok(Run {
        figures: vec![used.micros_per(messages)],
        note: format!("{rate:.0} messages/s, {used}"),
    })
}

/// As many small messages as go through in `duration`.
pub fn saturate(
    stage: &mut Stage,
    options: &Options,
    duration: Duration,
) -> Result<(u64, Used), Failure> {
    let clients = stage.connect(Visit::staying(options.clients))?;
    let publish = mqtt::publish(1, options.payload);
    for (_, client) in clients {
        stage.net.send(client, &publish)?;
    }
    exchange(stage, &publish, WARM_UP)?;
    let meter = Meter::start(stage)?;
    let messages = exchange(stage, &publish, duration)?;
    Ok((messages, meter.stop(stage)?))
}

fn exchange(
    stage: &mut Stage,
    publish: &std::sync::Arc<[u8]>,
    duration: Duration,
) -> Result<u64, Failure> {
    let until = Instant::now() + duration;
    let mut happened = Vec::new();
    let mut messages = 0;
    while Instant::now() < until {
        stage.turn(until + PATIENCE, &mut happened)?;
        for Happened { client, what, .. } in happened.drain(..) {
            match what {
                What::Packet(mqtt::PUBACK) => {
                    messages += 1;
                    stage.net.send(client, publish)?;
                }
                what => return Err(unexpected(what)),
            }
        }
    }
    match messages {
        0 => Err(Failure("no message came through".into())),
        messages => Ok(messages),
    }
}

/// A fixed number of messages a second; latency is that through the proxy less that without it,
/// both measured in this run, in turns.
pub fn paced(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut stage = Stage::set(contender, options, Scene::plain(options.clients))?;
    let proxy = stage.target;
    let direct_target = stage.net.brokers.addresses[0];
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        direct.push(pace(&mut stage, options, direct_target)?);
        through.push(pace(&mut stage, options, proxy)?);
    }
    // The median is that of all messages. The 99th percentile of a slice is made by whatever else
    // the machine did in it, so only the quietest slice of each says something.
    let [direct_median, median] = [&direct, &through].map(|slices| {
        let all = slices.iter().flat_map(|slice| &slice.latencies);
        let mut all: Vec<Duration> = all.copied().collect();
        all.sort_unstable();
        micros(&all, 0.50)
    });
    let [direct_quiet, quiet] = [&direct, &through].map(|slices| {
        let each = slices.iter().map(|slice| micros(&slice.latencies, 0.99));
        each.fold(f64::INFINITY, f64::min)
    });
    let messages = through.iter().map(|slice| slice.latencies.len() as u64);
    let messages: u64 = messages.sum();
    let used = through.iter().map(|slice| slice.used).sum::<Used>();
    Ok(Run {
        figures: vec![
            used.micros_per(messages),
            (median - direct_median).max(0.0),
            (quiet - direct_quiet).max(0.0),
        ],
        note: format!(
            "{messages} messages, p50 {median:.0} (direct {direct_median:.0}), \
             quiet p99 {quiet:.0} (direct {direct_quiet:.0}) µs, {used}"
        ),
    })
}

struct Paced {
    /// From PUBLISH to PUBACK, sorted.
    latencies: Vec<Duration>,
    used: Used,
}

/// A percentile of sorted latencies, of which there is at least one.
fn micros(latencies: &[Duration], share: f64) -> f64 {
    let last = latencies.len() - 1;
    let at = (last as f64 * share).round() as usize;
    latencies[at.min(last)].as_secs_f64() * 1e6
}

fn pace(stage: &mut Stage, options: &Options, target: SocketAddr) -> Result<Paced, Failure> {
    stage.target = target;
    let clients = stage.connect(Visit::staying(options.clients))?;
    let publish = mqtt::publish(1, options.payload);
    let mut sent: Vec<VecDeque<Instant>> = vec![VecDeque::new(); clients.len()];
    let first = clients.first().map_or(0, |(number, _)| *number);
    let step = Duration::from_secs(1) / options.rate as u32;
    let begun = Instant::now();
    let measured = begun + WARM_UP;
    let until = measured + options.duration / SLICES;
    let mut meter: Option<Meter> = None;
    let mut used = None;
    let mut latencies = Vec::new();
    let mut happened = Vec::new();
    let (mut next, mut turn, mut open) = (begun, 0, 0_usize);
    while used.is_none() || open > 0 {
        let now = Instant::now();
        if now > until + PATIENCE {
            return Err(Failure("messages got lost".into()));
        }
        if meter.is_none() && now >= measured {
            meter = Some(Meter::start(stage)?);
        }
        if now >= until && used.is_none() {
            let meter = meter
                .take()
                .ok_or_else(|| Failure("too slow to measure".into()))?;
            used = Some(meter.stop(stage)?);
        }
        while next <= now && next < until {
            stage.net.send(clients[turn].1, &publish)?;
            sent[turn].push_back(Instant::now());
            turn = (turn + 1) % clients.len();
            next += step;
            open += 1;
        }
        let pause = match options.spin {
            true => Duration::ZERO,
            false => next.saturating_duration_since(Instant::now()).min(WARM_UP),
        };
        stage.net.turn(pause, &mut happened)?;
        for Happened { number, what, .. } in happened.drain(..) {
            let queue = sent.get_mut((number - first) as usize);
            match (what, queue.and_then(VecDeque::pop_front)) {
                (What::Packet(mqtt::PUBACK), Some(at)) => {
                    open -= 1;
                    if at >= measured {
                        latencies.push(at.elapsed());
                    }
                }
                (what, _) => return Err(unexpected(what)),
            }
        }
    }
    for (_, client) in clients {
        stage.net.close(client);
    }
    stage.wait_until_all_left()?;
    latencies.sort_unstable();
    match used {
        Some(used) if !latencies.is_empty() => Ok(Paced { latencies, used }),
        _ => Err(Failure("no message came through".into())),
    }
}
