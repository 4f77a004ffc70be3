//! Many connected clients that do nothing but note when and how their connections end, and what a
//! pace is measured by.

use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use super::client::{Client, End, is_reset};
use super::mqtt::Connect;
use super::wait::{wait_until, wait_until_still};

/// Client ids.
pub fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("device-{n}")).collect()
}

/// How one of them ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its place in the list of ids.
    pub client: usize,
    /// When its stream ended.
    pub at: Instant,
    /// Everything that it got behind CONNACK.
    pub got: Vec<u8>,
    /// How.
    pub end: End,
}

/// The clients. Dropping them ends the connections that are left.
pub struct Crowd {
    ended: Arc<Mutex<Vec<Ended>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Connects a client for each id: MQTT 5 where its place is even, 3.1.1 where it is odd.
    pub fn connect(port: u16, ids: &[String]) -> Self {
        let clients = ids.iter().enumerate().map(|(place, id)| {
            let level = if place % 2 == 0 { 5 } else { 4 };
            Client::mqtt(port, &Connect::level(level, id).keep_alive(0)).stream
        });
        Self::of(clients.collect())
    }

    /// Watches these connections.
    pub fn of(clients: Vec<TcpStream>) -> Self {
        let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let noted = Arc::clone(&ended);
        let thread = std::thread::spawn(move || watch(clients, &noted, stopped));
        Self {
            ended,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Those that have ended so far, in the order of their ends.
    pub fn ended(&self) -> Vec<Ended> {
        self.ended.lock().expect("ended").clone()
    }

    /// Waits until so many have ended.
    pub fn wait_for(&self, count: usize, within: Duration) -> Vec<Ended> {
        wait_until(&format!("{count} clients to end"), within, || {
            (self.ended.lock().expect("ended").len() >= count).then_some(())
        });
        self.ended()
    }

    /// Waits until those have ended who had been told already when a pace of at least ten a second
    /// was stopped; gives how many have ended.
    pub fn wait_until_still(&self) -> usize {
        wait_until_still("the last one who was told", || self.ended().len())
    }

    /// Nobody ends for a while.
    pub fn expect_nobody_leaves(&self, during: Duration) {
        let before = self.ended().len();
        std::thread::sleep(during);
        assert_eq!(self.ended().len(), before, "somebody was sent away");
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(
    clients: Vec<TcpStream>,
    noted: &Arc<Mutex<Vec<Ended>>>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for (client, stream) in clients.into_iter().enumerate() {
            stream.set_nonblocking(true).expect("non-blocking");
            let mut stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
            let noted = Arc::clone(noted);
            tokio::spawn(async move {
                let mut got = Vec::new();
                let end = match stream.read_to_end(&mut got).await {
                    Ok(_) => End::Fin,
                    Err(e) if is_reset(&e) => End::Reset,
                    Err(e) => panic!("unexpected error on read: {e}"),
                };
                let at = Instant::now();
                noted.lock().expect("ended").push(Ended {
                    client,
                    at,
                    got,
                    end,
                });
            });
        }
        let _ = stopped.await;
    });
}

/// Checks ends that began with `start` against a pace of `rate` a second: none is early, and the
/// rate is right within ten percent. A busy machine makes ends late, so the rate is the median of
/// those of `windows` equal parts, the first and the last left out.
///
/// # Panics
/// When it is not so.
pub fn expect_pace(ended: &[Ended], start: Instant, rate: f64, windows: usize) {
    let times: Vec<f64> = ended
        .iter()
        .map(|ended| ended.at.saturating_duration_since(start).as_secs_f64())
        .collect();
    for (place, time) in times.iter().enumerate() {
        // Gaps are drawn from half to one and a half times the mean; sums of them stay close.
        let earliest = place as f64 / rate - 6.0 * 0.29 * (place as f64).sqrt() / rate;
        assert!(*time >= earliest, "end {place} after {time} s, rate {rate}");
    }
    let size = times.len() / windows;
    let mut rates: Vec<f64> = times
        .chunks_exact(size)
        .skip(1)
        .take(windows - 2)
        .map(|part| (size - 1) as f64 / (part[size - 1] - part[0]))
        .collect();
    rates.sort_by(f64::total_cmp);
    // Of two in the middle the lower: the one behind a standstill is far too high.
    let median = rates[(rates.len() - 1) / 2];
    assert!(
        (0.9..1.1).contains(&(median / rate)),
        "rate {median} instead of {rate}: {rates:.1?}"
    );
}
