//! Traffic whose every byte is accounted for: devices that send numbered frames with checksums, and
//! brokers that answer each frame with its payload turned around. One thread drives all of them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::mqtt::{self, Connect};
use super::ports::{bound_patiently, local};
use super::random::Random;
use super::ring::crc32;

/// How many devices may be on their way into the proxy at a time: more would only wait in the
/// queue of its listener.
const CONNECTING: usize = 256;

/// A frame: length, sequence number, payload, checksum over all before it.
fn frame(sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
    bytes.extend(sequence.to_be_bytes());
    bytes.extend_from_slice(payload);
    let sum = crc32(&bytes);
    bytes.extend(sum.to_be_bytes());
    bytes
}

/// Reads a frame and checks it: `Ok(None)` at a clean end, `Err` when it is not the one expected.
async fn read_frame(stream: &mut TcpStream, sequence: u64) -> Result<Option<Vec<u8>>, String> {
    let mut head = [0; 12];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(format!("before frame {sequence}: {e}")),
    }
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let mut number = [0; 8];
    number.copy_from_slice(&head[4..]);
    let number = u64::from_be_bytes(number);
    if number != sequence || len > 1 << 20 {
        return Err(format!(
            "frame {number} of {len} bytes where {sequence} was due"
        ));
    }
    let mut rest = vec![0; len + 4];
    stream
        .read_exact(&mut rest)
        .await
        .map_err(|e| format!("in frame {sequence}: {e}"))?;
    let mut sum = [0; 4];
    sum.copy_from_slice(&rest[len..]);
    rest.truncate(len);
    let whole = [&head[..], &rest].concat();
    if crc32(&whole) != u32::from_be_bytes(sum) {
        return Err(format!("frame {sequence} has a wrong checksum"));
    }
    Ok(Some(rest))
}

/// A broker that accepts MQTT clients and answers every frame with the same number and the payload
/// turned around. What goes wrong is kept in `faults`.
async fn broker(listener: TcpListener, faults: Rc<RefCell<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let faults = Rc::clone(&faults);
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let mut head = [0; 2];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut connect = vec![0; usize::from(head[1])];
            if stream.read_exact(&mut connect).await.is_err() {
                return;
            }
            let _ = stream.write_all(mqtt::ACCEPTED).await;
            for sequence in 0.. {
                match read_frame(&mut stream, sequence).await {
                    Ok(Some(mut payload)) => {
                        payload.reverse();
                        if let Err(e) = stream.write_all(&frame(sequence, &payload)).await {
                            faults
                                .borrow_mut()
                                .push(format!("broker, answer {sequence}: {e}"));
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(fault) => {
                        faults.borrow_mut().push(format!("broker: {fault}"));
                        return;
                    }
                }
            }
        });
    }
}

/// A client that sends frames and checks the answers until `stop`. `ahead` frames are on their way
/// at a time.
pub struct Device {
    /// Client id.
    pub id: String,
    /// Port of 127.0.0.1 where the proxy listens.
    pub port: u16,
    /// Mean pause after an answer.
    pub pause: Duration,
    /// Frames on their way at a time.
    pub ahead: u64,
    /// The longest payload in bytes.
    pub payload: usize,
}

impl Device {
    async fn live(self, shared: Rc<Shared>) -> Result<u64, String> {
        let place = shared.places.acquire().await.map_err(|e| e.to_string())?;
        let mut stream = TcpStream::connect(local(self.port))
            .await
            .map_err(|e| format!("{}: connect: {e}", self.id))?;
        let _ = stream.set_nodelay(true);
        let told = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", self.id);
        let connect = Connect::v311(&self.id).keep_alive(600).build();
        stream
            .write_all(&connect)
            .await
            .map_err(|e| told("CONNECT", &e))?;
        let mut answer = [0; 4];
        stream
            .read_exact(&mut answer)
            .await
            .map_err(|e| told("CONNACK", &e))?;
        if answer != mqtt::ACCEPTED {
            return Err(told("CONNACK", &format!("{answer:02x?}")));
        }
        drop(place);
        shared.connected.set(shared.connected.get() + 1);
        let mut random = Random::new(u64::from(crc32(self.id.as_bytes())));
        let (mut sent, mut answered) = (0_u64, 0_u64);
        let mut waiting = std::collections::VecDeque::new();
        while !shared.stop.load(Ordering::SeqCst) || sent > answered {
            while sent < answered + self.ahead && !shared.stop.load(Ordering::SeqCst) {
                let len = 1 + random.below(self.payload);
                let payload = random.bytes(len);
                let bytes = frame(sent, &payload);
                stream
                    .write_all(&bytes)
                    .await
                    .map_err(|e| told("send", &e))?;
                waiting.push_back((payload, Instant::now()));
                sent += 1;
            }
            if sent == answered {
                break;
            }
            let (mut payload, since) = waiting.pop_front().expect("one is on its way");
            let got = read_frame(&mut stream, answered)
                .await
                .map_err(|fault| told("answer", &fault))?
                .ok_or_else(|| told("answer", &format!("the connection ended at {answered}")))?;
            payload.reverse();
            if got != payload {
                return Err(told("answer", &format!("{answered} is not what was sent")));
            }
            let took = since.elapsed().as_micros() as u64;
            shared.slowest.fetch_max(took, Ordering::SeqCst);
            answered += 1;
            shared.answers.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(self.pause.mul_f64(0.5 + random.below(1000) as f64 / 1000.0)).await;
        }
        Ok(answered)
    }
}

struct Shared {
    places: tokio::sync::Semaphore,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// Microseconds of the slowest round trip since somebody looked.
    slowest: Arc<AtomicU64>,
    latest: Arc<AtomicU64>,
    connected: Cell<usize>,
}

/// Notes how late a timer of this thread is at most.
async fn clock(shared: Rc<Shared>) {
    const TICK: Duration = Duration::from_millis(5);
    loop {
        let start = Instant::now();
        tokio::time::sleep(TICK).await;
        let late = start.elapsed().saturating_sub(TICK).as_micros() as u64;
        shared.latest.fetch_max(late, Ordering::SeqCst);
    }
}

/// What the thread that changes the proxy knows of the traffic.
#[derive(Clone)]
pub struct View {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
    latest: Arc<AtomicU64>,
}

impl View {
    /// How many answers have come so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    /// Waits until `more` answers have come since there were `before`.
    ///
    /// # Panics
    /// When they have not come after 20 seconds.
    pub fn wait_for_answers(&self, before: u64, more: u64) {
        let within = Duration::from_secs(20);
        super::wait_until("traffic that flows", within, || {
            (self.answers() >= before + more).then_some(())
        });
    }

    /// The slowest round trip since this was called last. One that has not ended yet is not in it.
    pub fn take_slowest(&self) -> Duration {
        Duration::from_micros(self.slowest.swap(0, Ordering::SeqCst))
    }

    /// How long, at most, the thread of the devices itself had no turn since this was called last:
    /// what a busy machine adds to every round trip.
    pub fn take_own_delay(&self) -> Duration {
        Duration::from_micros(self.latest.swap(0, Ordering::SeqCst))
    }
}

/// Runs brokers and devices, and `changes` in a thread of its own once every device is connected.
/// What `changes` returns (the proxy) is kept until the traffic has ended. Says how many round
/// trips each device had and what went wrong.
///
/// # Panics
/// When a device does not get its connection within a minute, or `changes` panics.
pub fn under_traffic<K: Send + 'static>(
    brokers: &[SocketAddr],
    devices: Vec<Device>,
    changes: impl FnOnce(&View) -> K + Send + 'static,
) -> Outcome {
    let view = View {
        stop: Arc::default(),
        answers: Arc::default(),
        slowest: Arc::default(),
        latest: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let faults: Rc<RefCell<Vec<String>>> = Rc::default();
    let shared = Rc::new(Shared {
        places: tokio::sync::Semaphore::new(CONNECTING),
        stop: Arc::clone(&view.stop),
        answers: Arc::clone(&view.answers),
        slowest: Arc::clone(&view.slowest),
        latest: Arc::clone(&view.latest),
        connected: Cell::new(0),
    });
    let results = LocalSet::new().block_on(&runtime, async {
        for addr in brokers {
            let socket = bound_patiently(*addr);
            socket.listen(4096).expect("listen");
            socket.set_nonblocking(true).expect("non-blocking");
            let listener = TcpListener::from_std(socket.into()).expect("a broker's port");
            tokio::task::spawn_local(broker(listener, Rc::clone(&faults)));
        }
        tokio::task::spawn_local(clock(Rc::clone(&shared)));
        let count = devices.len();
        let mut living = Vec::new();
        for device in devices {
            living.push(tokio::task::spawn_local(device.live(Rc::clone(&shared))));
            tokio::task::yield_now().await;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while shared.connected.get() < count && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(shared.connected.get(), count, "every device is connected");
        let (done, mut ended) = tokio::sync::oneshot::channel::<()>();
        let for_thread = view.clone();
        let driver = std::thread::spawn(move || {
            // Dropped at the end of the changes, also by a panic: it ends the traffic.
            let _done = done;
            changes(&for_thread)
        });
        let _ = (&mut ended).await;
        view.stop.store(true, Ordering::SeqCst);
        let mut results = Vec::new();
        for device in living {
            results.push(device.await.unwrap_or_else(|e| Err(e.to_string())));
        }
        // Dropped here: the proxy must outlive the devices, which end after that thread.
        let _kept = driver.join().expect("the changes went well");
        results
    });
    let faults = faults.borrow().clone();
    Outcome { results, faults }
}

/// How the traffic went.
pub struct Outcome {
    /// Round trips of each device, or what went wrong.
    pub results: Vec<Result<u64, String>>,
    /// What went wrong at the brokers.
    pub faults: Vec<String>,
}

impl Outcome {
    /// # Panics
    /// When a connection was cut, or a byte was lost, changed or out of order, or a device had no
    /// traffic at all.
    pub fn expect_flawless(&self, devices: usize) {
        assert_eq!(self.results.len(), devices);
        let failed: Vec<&String> = self
            .results
            .iter()
            .filter_map(|r| r.as_ref().err())
            .collect();
        assert!(
            failed.is_empty() && self.faults.is_empty(),
            "{} connections failed: {:#?}, at the brokers: {:#?}",
            failed.len(),
            &failed[..failed.len().min(10)],
            &self.faults[..self.faults.len().min(10)]
        );
        assert!(
            self.results.iter().flatten().all(|answers| *answers > 0),
            "every connection had traffic"
        );
    }
}
