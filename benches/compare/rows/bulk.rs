//! Large messages from clients to brokers.

use std::time::Instant;

use super::Run;
use crate::contender::Contender;
use crate::net::{Happened, What};
use crate::options::Options;
use crate::stage::{Stage, Visit, unexpected};
use crate::{Failure, mqtt};

/// CPU per gigabyte of payload. Every client keeps a window of messages in flight.
pub fn bulk(contender: &Contender, options: &Options) -> Result<Run, Failure> {
    let mut stage = Stage::set(contender, options, options.bulk_clients)?;
    let clients = stage.connect(Visit {
        count: options.bulk_clients,
        concurrency: 64,
        publish: false,
        stay: true,
        split: false,
    })?;
    let total = (options.megabytes * 1_000_000 / options.bulk_payload).max(1);
    let publish = mqtt::publish(1, options.bulk_payload);
    let (mut sent, mut done) = (0, 0);
    let mut happened = Vec::new();
    let deadline = Instant::now() + options.duration.max(std::time::Duration::from_secs(60));
    let meter = stage.meter()?;
    for _ in 0..options.window {
        for (_, client) in &clients {
            if sent < total {
                stage.net.send(*client, &publish)?;
                sent += 1;
            }
        }
    }
    while done < total {
        stage.turn(deadline, &mut happened)?;
        for Happened { client, what, .. } in happened.drain(..) {
            match what {
                What::Packet(mqtt::PUBACK) => {
                    done += 1;
                    if sent < total {
                        stage.net.send(client, &publish)?;
                        sent += 1;
                    }
                }
                what => return Err(unexpected(what)),
            }
        }
    }
    let used = meter.stop(&stage)?;
    let gigabytes = (total * options.bulk_payload) as f64 / 1e9;
    let rate = gigabytes / used.wall.as_secs_f64();
    Ok(Run {
        figures: vec![used.proxy.used.as_secs_f64() * 1e3 / gigabytes],
        note: format!("{rate:.2} GB/s, {used}"),
    })
}
