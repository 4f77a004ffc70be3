//! Thousands of TLS handshakes at once: plain traffic goes on, and no more are in flight than may
//! be.

mod support;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use support::mqtt::PINGREQ;
use support::process::more_open_files;
use support::tls::{Authority, TlsClient, one_node, ssl, tls_config, tls_routes};
use support::wait::wait_until_still;
use support::*;

const THREADS: usize = 25;
/// Connections that each thread opens before its first handshake.
const WAITING: usize = 120;
/// And afterwards, one after the other.
const LATER: usize = 80;
/// `max_handshakes`.
const IN_FLIGHT: usize = 200;
/// Longer than a machine that does much else needs for all of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long messages took, in ascending order.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    fn at(&self, share: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * share) as usize]
    }

    fn tell(&self, what: &str) {
        eprintln!(
            "{what}: {} times, median {:?}, 99 % {:?}, longest {:?}",
            self.0.len(),
            self.at(0.5),
            self.at(0.99),
            self.at(1.0)
        );
    }
}

/// Plain MQTT clients: messages on live connections, and new connections, at least once and until `stop`.
fn plain_traffic(port: u16, stop: &AtomicBool) -> (Latencies, Latencies) {
    let timed = |action: &mut dyn FnMut()| {
        let started = Instant::now();
        action();
        started.elapsed()
    };
    let mut live: Vec<Client> = (0..20)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("plain-{n}"))))
        .collect();
    let (mut messages, mut connections) = (Vec::new(), Vec::new());
    loop {
        for client in &mut live {
            messages.push(timed(&mut || {
                client.send(PINGREQ);
                client.expect(PINGREQ);
            }));
        }
        connections.push(timed(&mut || {
            drop(Client::mqtt(port, &Connect::v311("plain-new")));
        }));
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    (Latencies::of(messages), Latencies::of(connections))
}

fn descriptors(proxy: &Proxy) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.id()))
        .expect("the proxy runs")
        .count()
}

#[test]
fn a_storm_of_handshakes_leaves_plain_traffic_alone() {
    more_open_files();
    let ca = Authority::new("root");
    let broker = Broker::mqtt();
    let [tls, plain] = free_ports();
    let listens = format!("      - \"127.0.0.1:{plain}\"\n");
    let more = format!(
        "mqtt_proxy: {{tls: {{handshake_timeout: {}, max_handshakes: {IN_FLIGHT}}}}}\n",
        PATIENCE.as_secs()
    );
    let ssls = [ssl("1", "a.test", &ca.issue(&["a.test"]), "")];
    let files = Files::new(
        &tls_config(&[tls], &listens, &more),
        &tls_routes(&one_node(broker.addr()), &ssls),
    );
    let proxy = Proxy::start(&files, &[tls, plain]);
    let quiet = AtomicBool::new(false);
    let (before, new_before) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| plain_traffic(plain, &quiet));
        std::thread::sleep(Duration::from_millis(300));
        quiet.store(true, Ordering::SeqCst);
        traffic.join().unwrap()
    });
    proxy.wait_until_idle(plain);
    let idle = wait_until_still("the brokers' sides to close", || descriptors(&proxy));
    let (waiting, go) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let (done, over) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let client = TlsClient::to(tls).name("a.test");
    let open = || {
        let socket = TcpStream::connect_timeout(&local(tls), PATIENCE).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        socket.set_write_timeout(Some(PATIENCE)).expect("timeout");
        socket
    };
    let shake = |socket, id: Option<String>| {
        let mut talk = client.over(socket).expect("a handshake");
        if let Some(id) = id {
            talk.send(&Connect::v311(&id).build()).expect("send");
            talk.expect(mqtt::ACCEPTED);
            talk.expect_alive();
        }
        done.fetch_add(1, Ordering::SeqCst);
    };
    let (accepted, started, during, new_during) = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (waiting, go, open, shake) = (&waiting, &go, &open, &shake);
            scope.spawn(move || {
                let sockets: Vec<TcpStream> = (0..WAITING).map(|_| open()).collect();
                waiting.wait();
                go.wait();
                // One in a hundred goes all the way to the broker.
                let id = |n| (n % 100 == 7).then(|| format!("tls-{thread}-{n}"));
                for (n, socket) in sockets.into_iter().enumerate() {
                    shake(socket, id(n));
                }
                for n in WAITING..WAITING + LATER {
                    shake(open(), id(n));
                }
            });
        }
        waiting.wait();
        // 3,000 clients are there. Those that may shake hands are accepted, all others wait in the
        // kernel's queue. Nothing panics here: the threads wait for `go`.
        let patience = Instant::now() + SOON;
        let accepted = || descriptors(&proxy).saturating_sub(idle);
        while accepted() < IN_FLIGHT && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(3));
        }
        let accepted = accepted();
        let traffic = {
            let over = over.clone();
            std::thread::spawn(move || plain_traffic(plain, &over))
        };
        let started = Instant::now();
        go.wait();
        wait_until("all handshakes", PATIENCE * 2, || {
            let all = done.load(Ordering::SeqCst) == THREADS * (WAITING + LATER);
            (all || traffic.is_finished()).then_some(())
        });
        over.store(true, Ordering::SeqCst);
        let (during, new_during) = traffic.join().expect("plain traffic went on");
        (accepted, started, during, new_during)
    });
    eprintln!(
        "{} handshakes in {:?}",
        done.load(Ordering::SeqCst),
        started.elapsed()
    );
    before.tell("plain messages without a storm");
    during.tell("plain messages in the storm");
    new_before.tell("plain connections without a storm");
    new_during.tell("plain connections in the storm");
    assert_eq!(done.load(Ordering::SeqCst), THREADS * (WAITING + LATER));
    // One more may have been accepted by each listener, and waits for its turn there.
    assert!(
        (IN_FLIGHT..IN_FLIGHT + 20).contains(&accepted),
        "{accepted}"
    );
    // The bounds are those of a machine with much else to do; `tell` says what it is like.
    assert!(during.at(0.99) < Duration::from_secs(2));
    assert!(during.at(1.0) < Duration::from_secs(8));
    assert!(new_during.at(1.0) < Duration::from_secs(12));
    assert_eq!(proxy.count("tls_timeout"), 0);
    proxy.wait_until_idle(tls);
}
