//! The relay between two scripted peers.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::super::IdleTimeout;
use super::super::testing::Counts;
use super::*;

/// A relay that runs, its two peers, and where its end is counted.
struct Stage {
    client: DuplexStream,
    broker: DuplexStream,
    relay: JoinHandle<()>,
    counts: Counts,
}

#[derive(Default)]
struct Setup {
    to_broker: Vec<u8>,
    to_client: Vec<u8>,
    idle: IdleTimeout,
}

fn stage(pipe: usize, setup: Setup) -> Stage {
    let (client, client_side) = duplex(pipe);
    let (broker, broker_side) = duplex(pipe);
    let counts = Counts::default();
    let established = Established {
        client: client_side,
        broker: broker_side,
        pair: Pair::new(
            setup.to_broker,
            setup.to_client,
            setup.idle,
            counts.record(),
        ),
    };
    let relay = tokio::spawn(Relay::new(established, Arc::default()));
    Stage {
        client,
        broker,
        relay,
        counts,
    }
}

/// Waits for the end of the relay and answers with what it was put down to.
async fn end_of(relay: JoinHandle<()>, counts: &Counts) -> String {
    relay.await.unwrap();
    counts.end().expect("no end was counted")
}

async fn read_all(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn what_is_owed_comes_before_what_follows() {
    let mut stage = stage(
        16,
        Setup {
            to_broker: b"CONNECT and more than the pipe holds".to_vec(),
            to_client: b"CONNACK".to_vec(),
            ..Setup::default()
        },
    );
    stage.client.write_all(b", then more").await.unwrap();
    stage.client.shutdown().await.unwrap();
    assert_eq!(
        read_all(&mut stage.broker).await,
        b"CONNECT and more than the pipe holds, then more"
    );
    stage.broker.write_all(b", PUBLISH").await.unwrap();
    drop(stage.broker);
    assert_eq!(read_all(&mut stage.client).await, b"CONNACK, PUBLISH");
    assert_eq!(end_of(stage.relay, &stage.counts).await, "client_closed");
    assert_eq!(stage.counts.connections.live(), 0);
    assert_eq!(stage.counts.bytes(), (47, 16));
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_the_answer() {
    let mut stage = stage(64, Setup::default());
    stage.client.write_all(b"question").await.unwrap();
    stage.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stage.broker).await, b"question");
    stage.broker.write_all(b"answer").await.unwrap();
    stage.broker.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stage.client).await, b"answer");
    assert_eq!(end_of(stage.relay, &stage.counts).await, "client_closed");
}

#[tokio::test]
async fn a_broker_that_ends_first_is_named() {
    let mut stage = stage(64, Setup::default());
    stage.broker.write_all(b"DISCONNECT").await.unwrap();
    stage.broker.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stage.client).await, b"DISCONNECT");
    drop(stage.client);
    assert_eq!(end_of(stage.relay, &stage.counts).await, "broker_closed");
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_sender() {
    let mut stage = stage(1024, Setup::default());
    let chunk = [7_u8; 4096];
    let mut taken = 0;
    // Nobody reads at the broker: what the proxy takes is bounded by the pipes and one scratch.
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(200), stage.client.write(&chunk)).await
    {
        taken += result.unwrap();
        assert!(taken <= SCRATCH + 4 * 1024, "{taken} bytes are held");
    }
    stage.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stage.broker).await.len(), taken);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_connection_and_traffic_does_not() {
    let idle = Duration::from_secs(100);
    let mut stage = stage(
        64,
        Setup {
            idle: IdleTimeout {
                open: Some(idle),
                after_broker_end: None,
            },
            ..Setup::default()
        },
    );
    let started = Instant::now();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(90)).await;
        stage.broker.write_all(b"x").await.unwrap();
        stage.client.read_u8().await.unwrap();
    }
    assert_eq!(end_of(stage.relay, &stage.counts).await, "idle_timeout");
    let lived = started.elapsed();
    assert!(
        lived >= Duration::from_secs(550) && lived < Duration::from_secs(552),
        "{lived:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_an_idle_timeout_silence_is_fine_until_the_broker_has_gone() {
    let mut stage = stage(
        64,
        Setup {
            idle: IdleTimeout {
                open: None,
                after_broker_end: Some(Duration::from_secs(60)),
            },
            ..Setup::default()
        },
    );
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    stage.client.write_all(b"x").await.unwrap();
    stage.broker.read_u8().await.unwrap();
    stage.broker.shutdown().await.unwrap();
    let started = Instant::now();
    assert_eq!(end_of(stage.relay, &stage.counts).await, "broker_closed");
    assert!(started.elapsed() <= Duration::from_secs(61));
}

/// One side's script: how many bytes it writes at a time, and reads at a time.
async fn play(
    mut stream: DuplexStream,
    data: Vec<u8>,
    writes: Vec<usize>,
    reads: usize,
) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        let mut rest = data.as_slice();
        let mut sizes = writes.iter().cycle();
        while !rest.is_empty() {
            let size = (*sizes.next().unwrap()).clamp(1, rest.len());
            writer.write_all(&rest[..size]).await.unwrap();
            tokio::task::yield_now().await;
            rest = &rest[size..];
        }
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut got = Vec::new();
        let mut buffer = vec![0; reads];
        loop {
            match reader.read(&mut buffer).await.unwrap() {
                0 => return got,
                count => got.extend_from_slice(&buffer[..count]),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(write, read).1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_byte_arrives_once_and_in_order(
        up in prop::collection::vec(any::<u8>(), 0..20_000),
        down in prop::collection::vec(any::<u8>(), 0..20_000),
        owed in prop::collection::vec(any::<u8>(), 0..200),
        writes in prop::collection::vec(1_usize..5000, 1..8),
        reads in 1_usize..3000,
        pipe in 1_usize..4000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let setup = Setup { to_broker: owed.clone(), ..Setup::default() };
            let stage = stage(pipe, setup);
            let client = tokio::spawn(play(stage.client, up.clone(), writes.clone(), reads));
            let broker = tokio::spawn(play(stage.broker, down.clone(), writes, reads));
            let (at_client, at_broker) = (client.await.unwrap(), broker.await.unwrap());
            stage.relay.await.unwrap();
            prop_assert!(at_client == down, "down: {} of {}", at_client.len(), down.len());
            prop_assert!(at_broker == [owed, up].concat(), "up: {} bytes", at_broker.len());
            Ok(())
        })?;
    }
}
