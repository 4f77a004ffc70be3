//! A thousand connections under traffic through a hundred reloads: none is dropped, no byte is lost
//! or reordered. And a reload of ten thousand routes does not stall anybody.

mod support;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::process::more_open_files;
use support::random::Random;
use support::ring::crc32;
use support::{Client, Connect, Files, Proxy, config, free_ports, local, mqtt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// One test at a time: they measure what a reload does to traffic.
static ALONE: Mutex<()> = Mutex::new(());

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
struct Device {
    id: String,
    port: u16,
    pause: Duration,
    ahead: u64,
    payload: usize,
}

impl Device {
    async fn live(self, shared: Rc<Shared>) -> Result<u64, String> {
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
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// Microseconds of the slowest round trip since somebody looked.
    slowest: Arc<AtomicU64>,
    connected: Cell<usize>,
}

/// What the thread that reloads knows of the traffic.
#[derive(Clone)]
struct View {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
}

/// Runs brokers and devices, and `reloads` in a thread of its own once every device is connected.
/// Says how many round trips each device had and what went wrong.
fn under_traffic(
    brokers: &[SocketAddr],
    devices: Vec<Device>,
    reloads: impl FnOnce(View) + Send + 'static,
) -> (Vec<Result<u64, String>>, Vec<String>) {
    let view = View {
        stop: Arc::default(),
        answers: Arc::default(),
        slowest: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let faults: Rc<RefCell<Vec<String>>> = Rc::default();
    let shared = Rc::new(Shared {
        stop: Arc::clone(&view.stop),
        answers: Arc::clone(&view.answers),
        slowest: Arc::clone(&view.slowest),
        connected: Cell::new(0),
    });
    let results = LocalSet::new().block_on(&runtime, async {
        for addr in brokers {
            let listener = TcpListener::bind(addr).await.expect("a broker's port");
            tokio::task::spawn_local(broker(listener, Rc::clone(&faults)));
        }
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
            // Dropped at the end of the reloads, also by a panic: it ends the traffic.
            let _done = done;
            reloads(for_thread);
        });
        let _ = (&mut ended).await;
        view.stop.store(true, Ordering::SeqCst);
        let mut results = Vec::new();
        for device in living {
            results.push(device.await.unwrap_or_else(|e| Err(e.to_string())));
        }
        driver.join().expect("the reloads went well");
        results
    });
    let faults = faults.borrow().clone();
    (results, faults)
}

/// One of the variants that the file goes through; the devices' route and upstream are among what
/// changes.
fn variant(n: usize, ports: &[u16], brokers: &[SocketAddr]) -> String {
    let route = |id: &str, more: &str| {
        format!(
            "  - {{id: {id}, {more}plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: u{}}}\n",
            n % 3
        )
    };
    let mut text = String::from("stream_routes:\n");
    match n % 7 {
        0 => text.push_str(&route("all", "")),
        1 => text.push_str(&route("one", &format!("server_port: {}, ", ports[0]))),
        2 => text.push_str(
            "  - {id: nobody, remote_addr: 10.1.2.3, upstream: {nodes: {\"127.0.0.1:1\": 1}}}\n",
        ),
        3 => text.push_str(&(route("a", "remote_addr: 127.0.0.0/8, ") + &route("b", ""))),
        4 => text.push_str(&(route("bad", "server_prot: 1, ") + &route("all", ""))),
        5 => return String::from("stream_routes: []\n#END\n"),
        _ => text.push_str(&(route(&format!("r{n}"), "") + &route("all", ""))),
    }
    text.push_str("upstreams:\n");
    for upstream in 0..3 {
        let nodes: Vec<String> = brokers
            .iter()
            .enumerate()
            .map(|(i, addr)| format!("\"{addr}\": {}", (i + n + upstream) % 4))
            .collect();
        text.push_str(&format!(
            "  - {{id: u{upstream}, type: chash, key: mqtt_client_id, nodes: {{{}}}}}\n",
            nodes.join(", ")
        ));
    }
    text.push_str("#END\n");
    text
}

#[test]
fn a_thousand_connections_live_through_a_hundred_reloads_without_a_lost_byte() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    more_open_files();
    let ports: [u16; 1] = free_ports();
    let broker_ports: [u16; 3] = free_ports();
    let brokers: Vec<SocketAddr> = broker_ports.into_iter().map(local).collect();
    let files = Files::new(&config(&ports), &variant(0, &ports, &brokers));
    let mut proxy = Proxy::start(&files, &ports);

    let mut devices: Vec<Device> = (0..980)
        .map(|n| Device {
            id: format!("device-{n}"),
            port: ports[0],
            pause: Duration::from_millis(150),
            ahead: 1,
            payload: 120,
        })
        .collect();
    devices.extend((0..20).map(|n| Device {
        id: format!("camera-{n}"),
        port: ports[0],
        pause: Duration::from_millis(20),
        ahead: 6,
        payload: 3_000,
    }));

    let targets = brokers.clone();
    let (results, faults) = under_traffic(&brokers, devices, move |view| {
        let start = Instant::now();
        for n in 1..=100 {
            let before = view.answers.load(Ordering::SeqCst);
            if n % 10 == 9 {
                // Every tenth edit is one that cannot be read.
                let mark = proxy.mark();
                files.replace_routes("stream_routes: [\n#END\n");
                proxy.signal(rustix::process::Signal::HUP);
                proxy.wait_for_log_after(mark, "not applied");
            }
            proxy.reload(|| files.replace_routes(variant(n, &ports, &targets)));
            // Traffic flows between any two reloads.
            let deadline = Instant::now() + Duration::from_secs(20);
            while view.answers.load(Ordering::SeqCst) < before + 400 {
                assert!(
                    Instant::now() < deadline,
                    "traffic stands still at reload {n}"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        eprintln!(
            "100 reloads in {:?}, {} round trips, the slowest {} ms",
            start.elapsed(),
            view.answers.load(Ordering::SeqCst),
            view.slowest.load(Ordering::SeqCst) / 1000
        );
        // New connections are served by the last file.
        proxy.reload(|| files.replace_routes(variant(0, &ports, &targets)));
        Client::mqtt(ports[0], &Connect::v311("after-all"));
        assert!(proxy.is_running());
        view.stop.store(true, Ordering::SeqCst);
        // The proxy must outlive the devices, which end after this thread.
        KEPT.lock().expect("kept").push(proxy);
    });
    KEPT.lock().expect("kept").clear();

    assert_eq!(results.len(), 1_000);
    let failed: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} connections failed: {:#?}",
        failed.len(),
        &failed[..failed.len().min(10)]
    );
    assert!(faults.is_empty(), "{:#?}", &faults[..faults.len().min(10)]);
    assert!(
        results.iter().flatten().all(|answers| *answers > 0),
        "every connection had traffic"
    );
}

/// Proxies that must live until the traffic has ended.
static KEPT: Mutex<Vec<Proxy>> = Mutex::new(Vec::new());

/// A file of 10,000 routes and 1,000 upstreams, of which the last route is the one in use.
fn large(edit: usize, port: u16, brokers: &[SocketAddr]) -> String {
    let mut text = String::from("stream_routes:\n");
    for n in 0..9_999 {
        text.push_str(&format!(
            "  - id: r{n}\n    server_port: {}\n    remote_addr: 10.{}.{}.0/24\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    upstream_id: u{}\n",
            1 + n % 60_000,
            n / 256 % 256,
            n % 256,
            n % 1_000
        ));
    }
    text.push_str(&format!(
        "  - id: last\n    server_port: {port}\n    desc: edit {edit}\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    upstream_id: u0\n"
    ));
    text.push_str("upstreams:\n");
    for n in 0..1_000 {
        let nodes: Vec<String> = brokers
            .iter()
            .map(|addr| format!("\"{addr}\": {}", 1 + (n + edit) % 2))
            .collect();
        text.push_str(&format!(
            "  - id: u{n}\n    type: chash\n    key: mqtt_client_id\n    nodes: {{{}, \"127.0.0.1:{}\": 1}}\n",
            nodes.join(", "),
            1 + n
        ));
    }
    text.push_str("#END\n");
    text
}

#[test]
fn a_reload_of_ten_thousand_routes_and_a_thousand_upstreams_stalls_nobody() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    more_open_files();
    let ports: [u16; 1] = free_ports();
    let broker_ports: [u16; 2] = free_ports();
    let brokers: Vec<SocketAddr> = broker_ports.into_iter().map(local).collect();
    let small = variant(0, &ports, &brokers);
    let files = Files::new(&config(&ports), &small);
    let mut proxy = Proxy::start(&files, &ports);

    let devices = (0..50)
        .map(|n| Device {
            id: format!("device-{n}"),
            port: ports[0],
            pause: Duration::from_millis(10),
            ahead: 1,
            payload: 100,
        })
        .collect();
    let targets = brokers.clone();
    let (results, faults) = under_traffic(&brokers, devices, move |view| {
        for edit in 0..4 {
            let text = large(edit, ports[0], &targets);
            view.slowest.store(0, Ordering::SeqCst);
            let (cpu, start, mark) = (proxy.cpu_time(), Instant::now(), proxy.mark());
            files.replace_routes(text);
            proxy.signal(rustix::process::Signal::HUP);
            proxy.wait_for_line_after(mark, " reloaded", Duration::from_secs(60));
            let took = start.elapsed();
            let slowest = Duration::from_micros(view.slowest.load(Ordering::SeqCst));
            eprintln!(
                "reload {edit}: {took:?}, {:?} of CPU with its traffic, slowest round trip {slowest:?}",
                proxy.cpu_time() - cpu
            );
            assert!(
                slowest < Duration::from_millis(1_000),
                "traffic stood still for {slowest:?}"
            );
            assert!(took < Duration::from_secs(20), "the reload took {took:?}");
            Client::mqtt(ports[0], &Connect::v311("by-the-last-route"));
        }
        view.stop.store(true, Ordering::SeqCst);
        KEPT.lock().expect("kept").push(proxy);
    });
    KEPT.lock().expect("kept").clear();
    let failed: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(
        failed.is_empty() && faults.is_empty(),
        "{failed:#?} {faults:#?}"
    );
}
