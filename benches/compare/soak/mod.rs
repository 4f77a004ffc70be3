//! The proxy for half an hour under storms, reloads, slow readers, resets and half-closed
//! connections, with every byte checked, and a look at its memory and descriptors before and
//! after.
//!
//! Clients and brokers are tasks of this process. What happens on a connection follows from its
//! client id, so that both ends know every byte that the other one sends.

mod files;
mod greet;
mod plan;
mod shared;
mod talk;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Failure;
use crate::contender::{self, Contender, Kind as Proxy};
use crate::options::Options;
use crate::random::Random;
use crate::tls::{Certificate, Connector};
use files::{Files, Version};
use plan::{Kind, Plan};
use shared::{Counts, Soak};
use watch::{Held, Meter, QUIET, Watched};

/// Worker threads of the proxy.
const WORKERS: usize = 2;
/// Connections of each kind that there are at a time.
const STEADY: u64 = 24;
const SLOW: u64 = 12;
const CROWD: u64 = 400;
/// Connections of a storm, and the time from one to the next.
const STORM: u64 = 800;
const STORM_EVERY: Duration = Duration::from_secs(30);
/// What memory may have grown by.
const GROWTH: f64 = 1.1;

/// Runs it; false when a byte was wrong, a connection did not end as it should, or the proxy did
/// not get back to where it began.
pub fn soak(options: &Options) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(good) => good,
        Err(failure) => {
            println!("soak: {failure}");
            false
        }
    }
}

async fn run(options: &Options) -> Result<bool, Failure> {
    let ours = |known: &&Contender| matches!(known.kind, Proxy::Ours(_));
    let contender = options.contenders.iter().find(ours);
    let contender = contender.ok_or_else(|| Failure("soak: no build of mqtt-proxy".into()))?;
    let Proxy::Ours(binary) = &contender.kind else {
        return Err(Failure("soak: no build of mqtt-proxy".into()));
    };
    let folder = tempfile::Builder::new().prefix("soak-").tempdir()?;
    let mut listeners = Vec::new();
    let mut brokers = Vec::new();
    for _ in 0..2 {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        brokers.push(listener.local_addr()?);
        listeners.push(listener);
    }
    let files = Arc::new(Files {
        folder: folder.path().to_owned(),
        plain: contender::free_port()?,
        tls: contender::free_port()?,
        brokers,
        identities: vec![
            Certificate::Ecdsa.make(1)?,
            Certificate::Ecdsa.make(2)?,
            Certificate::Rsa.make(3)?,
        ],
    });
    let config = files.config(WORKERS)?.display().to_string();
    files.routes(Version::FIRST, true)?;
    let line = [&binary.display().to_string(), "run", "-c", &config].map(String::from);
    let running = contender::launch(&contender.name, folder, &line, files.plain, &[])?;
    let watched = Watched { running };

    let soak = Arc::new(Soak {
        plain: files.plain,
        tls: files.tls,
        full: Mutex::new(Connector::new()?),
        resuming: Mutex::new(Connector::new()?),
        stop: tokio::sync::watch::Sender::new(false),
        brokers: Mutex::new((Instant::now(), Version::FIRST.brokers)),
        counts: Counts::default(),
        delay: AtomicU64::new(100),
        at_brokers: AtomicU64::new(0),
        faults: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    for (index, listener) in listeners.into_iter().enumerate() {
        tokio::spawn(greet::serve(soak.clone(), listener, index));
    }
    println!("soak: at start {}", watched.held()?);
    // What is kept for good has its size after this: pools, caches, tables.
    let warm_up = (options.soak / 6).clamp(Duration::from_secs(40), Duration::from_secs(180));
    phase(&soak, &files, &watched, warm_up, options, 1).await?;
    let before = rest(&soak, &watched).await?;
    println!("soak: after a warm-up of {} s: {before}", warm_up.as_secs());
    phase(&soak, &files, &watched, options.soak, options, 2).await?;
    let after = rest(&soak, &watched).await?;

    println!("soak: before {before}");
    println!("soak: after  {after}");
    let mut good = true;
    if after.descriptors != before.descriptors {
        good = false;
        println!("soak: FAILED: descriptors are not back where they began");
    }
    if after.memory as f64 > before.memory as f64 * GROWTH {
        good = false;
        println!("soak: FAILED: memory is not back where it began");
    }
    if soak.faults() > 0 {
        good = false;
        println!("soak: FAILED: {} faults", soak.faults());
    }
    let log = watched.running.log();
    if log.contains("panicked") {
        good = false;
        println!("soak: FAILED: the proxy panicked:\n{log}");
    }
    if good {
        println!("soak: good");
    }
    Ok(good)
}

/// Waits until every connection is over and the proxy does nothing any more.
async fn rest(soak: &Soak, watched: &Watched) -> Result<Held, Failure> {
    let begun = Instant::now();
    while soak.at_brokers.load(Ordering::Relaxed) > 0 {
        if begun.elapsed() > 2 * QUIET {
            let left = soak.at_brokers.load(Ordering::Relaxed);
            soak.fault(format!(
                "{left} connections to brokers outlive their clients"
            ));
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(watched.at_rest().await?)
}

/// Everything at once for `duration`, until its last connection is over.
async fn phase(
    soak: &Arc<Soak>,
    files: &Arc<Files>,
    watched: &Watched,
    duration: Duration,
    options: &Options,
    number: u64,
) -> Result<(), Failure> {
    soak.stop.send_replace(false);
    soak.over.store(false, Ordering::Relaxed);
    let until = Instant::now() + duration;
    // No number twice: a client id is one connection.
    let first = number << 40;
    let mut tasks = JoinSet::new();
    for index in 0..STEADY {
        tasks.spawn(again(soak.clone(), Kind::Steady, first + (index << 32)));
    }
    for index in 0..SLOW {
        tasks.spawn(again(soak.clone(), Kind::Slow, first + (index << 32)));
    }
    for index in 0..CROWD {
        tasks.spawn(greet::visit(
            soak.clone(),
            Plan::new(Kind::Crowd, first + index),
        ));
    }
    tasks.spawn(storms(soak.clone(), first));
    let random = Random::new(number);
    tasks.spawn(files::reload(soak.clone(), files.clone(), random));

    let mut meter = Meter::new(watched)?;
    let mut printed = Instant::now();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let busy = meter.turn(watched)?;
        let delay = soak.delay.load(Ordering::Relaxed);
        let delay = match busy > options.budget as f64 / 100.0 {
            true => (delay + delay / 3 + 5).min(3000),
            false => delay - delay / 10,
        };
        soak.delay.store(delay, Ordering::Relaxed);
        if printed.elapsed() >= Duration::from_secs(60) {
            printed = Instant::now();
            report(soak, watched, &mut meter)?;
        }
    }
    soak.over.store(true, Ordering::Relaxed);
    soak.stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
    report(soak, watched, &mut meter)
}

/// One connection after the other.
async fn again(soak: Arc<Soak>, kind: Kind, first: u64) {
    let mut number = first;
    while !soak.over.load(Ordering::Relaxed) {
        greet::visit(soak.clone(), Plan::new(kind, number)).await;
        number += 1;
        let delay = soak.delay.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
}

/// One storm after the other; the first one soon.
async fn storms(soak: Arc<Soak>, first: u64) {
    let mut stopped = soak.stopped();
    let mut number = first;
    let mut pause = Duration::from_secs(5);
    while tokio::time::timeout(pause, stopped.wait_for(|stop| *stop))
        .await
        .is_err()
    {
        let mut clients = JoinSet::new();
        for _ in 0..STORM {
            clients.spawn(greet::visit(soak.clone(), Plan::new(Kind::Storm, number)));
            number += 1;
        }
        while clients.join_next().await.is_some() {}
        pause = STORM_EVERY;
    }
}

fn report(soak: &Soak, watched: &Watched, meter: &mut Meter) -> Result<(), Failure> {
    let [proxy, load] = meter.percent(watched)?;
    let counts = &soak.counts;
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "soak: {} connections ({} reset, {} half-closed, {} TLS, {} of them resumed), {:.2} GB, \
         {} reloads, {} open, {} faults; proxy {}, CPU proxy {proxy:.0} % load {load:.0} %",
        count(&counts.connections),
        count(&counts.resets),
        count(&counts.halves),
        count(&counts.tls),
        count(&counts.resumed),
        count(&counts.bytes) as f64 / 1e9,
        count(&counts.reloads),
        count(&soak.at_brokers),
        soak.faults(),
        watched.held()?,
    );
    Ok(())
}
