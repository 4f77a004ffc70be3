//! Large messages, from clients to brokers and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Run;
use crate::contender::Contender;
use crate::meter::{Meter, Used};
use crate::net::{Client, Happened, What};
use crate::options::Options;
use crate::stage::{Scene, Stage, Visit, unexpected};
use crate::tls::Certificate;
use crate::{Failure, mqtt};

/// How long one direction may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// CPU per gigabyte of payload, for each direction. Every client keeps a window of messages in
/// flight.
pub fn bulk(
    contender: &Contender,
    options: &Options,
    certificate: Option<Certificate>,
) -> Result<Run, Failure> {
    let scene = Scene::new(options.bulk_clients, certificate);
    let mut stage = Stage::set(contender, options, scene)?;
    let clients = stage.connect(Visit::staying(options.bulk_clients))?;
    let publish = mqtt::publish(1, options.bulk_payload);
    let puback: Arc<[u8]> = mqtt::puback_of(1).into();
    let to_brokers = carry(&mut stage, options, &clients, &publish, mqtt::PUBACK)?;
    stage.net.brokers.publish = Some(publish);
    let to_clients = carry(&mut stage, options, &clients, &puback, mqtt::PUBLISH)?;
    let gigabytes = (messages(options) * options.bulk_payload) as f64 / 1e9;
    let both = [to_brokers, to_clients];
    let note = |used: &Used| format!("{:.2} GB/s, {used}", gigabytes / used.wall.as_secs_f64());
    Ok(Run {
        figures: both
            .map(|used| used.proxy.used.as_secs_f64() * 1e3 / gigabytes)
            .into(),
        note: format!(
            "to brokers: {}; to clients: {}",
            note(&both[0]),
            note(&both[1])
        ),
    })
}

fn messages(options: &Options) -> usize {
    (options.megabytes * 1_000_000 / options.bulk_payload).max(1)
}

/// Lets the clients send `packet` and, for every packet of type `answer`, another one.
fn carry(
    stage: &mut Stage,
    options: &Options,
    clients: &[(u64, Client)],
    packet: &Arc<[u8]>,
    answer: u8,
) -> Result<Used, Failure> {
    let total = messages(options);
    let (mut sent, mut done) = (0, 0);
    let mut happened = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let meter = Meter::start(stage)?;
    for _ in 0..options.window {
        for (_, client) in clients {
            if sent < total {
                stage.net.send(*client, packet)?;
                sent += 1;
            }
        }
    }
    while done < total {
        stage.turn(deadline, &mut happened)?;
        for Happened { client, what, .. } in happened.drain(..) {
            match what {
                What::Packet(kind) if kind == answer => {
                    done += 1;
                    if sent < total {
                        stage.net.send(client, packet)?;
                        sent += 1;
                    }
                }
                what => return Err(unexpected(what)),
            }
        }
    }
    Ok(meter.stop(stage)?)
}
