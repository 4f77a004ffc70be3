//! Upgrades under traffic: thousands of connections move and no device notices.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::files::config_listening;
use support::generations::Generations;
use support::mqtt::PINGREQ;
use support::newcomers::Newcomers;
use support::process::more_open_files;
use support::traffic::{Device, under_traffic};
use support::{
    Broker, Client, Connect, Files, SOON, config, config_with, free_port, free_ports, local,
    metrics, wait_until,
};

/// The tests that measure run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// One MQTT route `fleet` that balances over these brokers by client id.
fn routes(brokers: &[SocketAddr]) -> String {
    let nodes: Vec<String> = brokers
        .iter()
        .map(|addr| format!("\"{addr}\": 1"))
        .collect();
    format!(
        "stream_routes:\n  - id: fleet\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{type: chash, key: mqtt_client_id, nodes: {{{}}}}}\n#END\n",
        nodes.join(", ")
    )
}

fn devices(count: usize, port: u16, pause: Duration) -> Vec<Device> {
    let device = |n| Device {
        id: format!("device-{n}"),
        port,
        pause,
        ahead: 1,
        payload: 120,
    };
    (0..count).map(device).collect()
}

#[test]
fn two_thousand_connections_live_through_twenty_upgrades_without_a_lost_byte() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    more_open_files();
    const DEVICES: usize = 2_000;
    const CAMERAS: usize = 20;
    const LIVE: usize = DEVICES + CAMERAS;
    let [port, scrape] = free_ports();
    let brokers: Vec<SocketAddr> = free_ports::<3>().into_iter().map(local).collect();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let files = Files::new(&config_with(&[port], &more), &routes(&brokers));
    let mut proxy = Generations::start(&files, &[port]);
    let mut all = devices(DEVICES, port, Duration::from_millis(400));
    all.extend((0..CAMERAS).map(|n| Device {
        id: format!("camera-{n}"),
        port,
        pause: Duration::from_millis(20),
        ahead: 6,
        payload: 3_000,
    }));
    let outcome = under_traffic(&brokers, all, move |view| {
        view.take_slowest();
        let newcomers = Newcomers::to(port);
        let mut longest = Duration::ZERO;
        let mut before = view.take_own_delay();
        for n in 1..=20 {
            let (answers, served) = (view.answers(), newcomers.served());
            let moved = proxy.upgrade();
            assert!(moved.connections >= LIVE, "upgrade {n}: {moved:?}");
            view.wait_for_answers(answers, LIVE as u64);
            wait_until("newcomers after the upgrade", SOON, || {
                (newcomers.served() > served || newcomers.have_ended()).then_some(())
            });
            let (slowest, own) = (view.take_slowest(), view.take_own_delay());
            eprintln!("upgrade {n}: {moved:?}, slowest round trip {slowest:?}, own delay {own:?}");
            longest = longest.max(slowest);
            // On the way there and back some eight threads must get their turn, each as late as
            // that of the devices itself when the machine is busy with other things, now or when
            // the frame was sent.
            let limit = Duration::from_secs(5) + 8 * own.max(before);
            before = own;
            assert!(slowest < limit, "a round trip of {slowest:?}");
        }
        let served = newcomers.finish();
        eprintln!("the slowest round trip of all took {longest:?}; {served} newcomers");
        let listen = format!("listen_addr=\"127.0.0.1:{port}\"");
        wait_until("the newcomers to be gone", SOON, || {
            let active = metrics::value(
                local(scrape),
                "apisix_stream_active_connections",
                &[&listen],
            );
            (active == LIVE as f64).then_some(())
        });
        let descriptors = proxy.descriptors();
        assert!(
            descriptors < 2 * LIVE + 100,
            "{descriptors} descriptors for {LIVE} connections"
        );
        let total = metrics::value(
            local(scrape),
            "apisix_stream_connection_total",
            &["route=\"fleet\""],
        );
        assert_eq!(
            total,
            (LIVE as u64 + served) as f64,
            "{LIVE} devices and {served} newcomers were counted, each once"
        );
        assert_eq!(
            proxy.processes(),
            [proxy.current()],
            "no process is left over"
        );
        proxy
    });
    outcome.expect_flawless(LIVE);
}

#[test]
fn a_port_range_of_five_hundred_listeners_moves() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    more_open_files();
    const COUNT: u16 = 500;
    let broker = Broker::mqtt();
    let first = ports_in_a_row(COUNT);
    let listens = [format!("127.0.0.1:{first}-{}", first + COUNT - 1)];
    let files = Files::new(&config_listening(&listens, ""), &routes(&[broker.addr()]));
    let ports: Vec<u16> = (first..first + COUNT).collect();
    let mut proxy = Generations::start(&files, &ports);
    let one_each = || {
        let connect = |port: &u16| Client::mqtt(*port, &Connect::v311(&format!("on-{port}")));
        ports.iter().map(connect).collect::<Vec<Client>>()
    };
    let mut live = one_each();
    for _ in 0..2 {
        let moved = proxy.upgrade();
        assert!(moved.connections >= live.len(), "{moved:?}");
        live.iter_mut().for_each(Client::expect_alive);
        live.extend(one_each());
    }
    live.iter_mut().for_each(Client::expect_alive);
}

/// The first of `count` ports in a row that are all free.
fn ports_in_a_row(count: u16) -> u16 {
    let mut first = free_port();
    let mut last = first;
    while last - first + 1 < count {
        let next = free_port();
        if next != last + 1 {
            first = next;
        }
        last = next;
    }
    first
}

#[test]
fn what_arrives_during_the_hand_over_is_relayed_without_another_push() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    more_open_files();
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &routes(&[broker.addr()]));
    let mut proxy = Generations::start(&files, &[port]);
    let mut clients: Vec<Client> = (0..300)
        .map(|n| Client::mqtt(port, &Connect::v311(&format!("c{n}"))))
        .collect();
    for round in 0..20 {
        let sockets: Vec<_> = clients
            .iter()
            .map(|client| client.stream.try_clone().expect("a socket"))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let pushing = std::thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::SeqCst) && sent < 2_000 {
                for mut socket in &sockets {
                    std::io::Write::write_all(&mut socket, PINGREQ).expect("send");
                }
                sent += 1;
            }
            sent
        });
        proxy.upgrade();
        stop.store(true, Ordering::SeqCst);
        let sent = pushing.join().expect("the sender");
        // From here on nobody sends and nothing is upgraded: an event that was lost stays lost.
        for (n, client) in clients.iter_mut().enumerate() {
            let (got, end) = client.read_up_to(2 * sent, SOON);
            assert_eq!(
                (got.len(), end),
                (2 * sent, None),
                "round {round}, client {n}"
            );
        }
    }
}

/// What an upgrade costs. `MQTT_PROXY_HAND_OVER=1000,5000,9000` measures other numbers of
/// connections; each takes two open files of this process.
#[test]
fn a_thousand_connections_move_at_once() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("open files");
    let counts = std::env::var("MQTT_PROXY_HAND_OVER").unwrap_or_else(|_| "1000".to_owned());
    for count in counts.split(',') {
        let count: usize = count.trim().parse().expect("numbers of connections");
        let port = free_port();
        let brokers = [local(free_port())];
        let files = Files::new(&config(&[port]), &routes(&brokers));
        let mut proxy = Generations::start(&files, &[port]);
        let pause = Duration::from_millis(count as u64 / 2);
        let outcome = under_traffic(&brokers, devices(count, port, pause), move |view| {
            view.wait_for_answers(view.answers(), count as u64);
            for n in 0..3 {
                view.take_slowest();
                view.take_own_delay();
                let quiet = view.answers();
                view.wait_for_answers(quiet, count as u64 / 4);
                let usual = view.take_slowest();
                let (answers, start) = (view.answers(), Instant::now());
                let moved = proxy.upgrade();
                let (whole, cpu) = (start.elapsed(), proxy.cpu());
                view.wait_for_answers(answers, count as u64 / 2);
                let (slowest, own) = (view.take_slowest(), view.take_own_delay());
                eprintln!(
                    "{count} connections, upgrade {n}: handed over in {} ms, whole upgrade {whole:?}, \
                     CPU of the new process with its start {cpu:?}, \
                     slowest round trip {slowest:?} (without upgrade {usual:?}, own delay {own:?}), \
                     {} descriptors",
                    moved.millis,
                    proxy.descriptors()
                );
                assert!(slowest < Duration::from_secs(5) + 8 * own, "{slowest:?}");
                assert!(moved.connections >= count, "{moved:?}");
            }
            proxy
        });
        outcome.expect_flawless(count);
    }
}
