//! A thousand connections under traffic through a hundred reloads: none is dropped, no byte is lost
//! or reordered. And a reload of ten thousand routes does not stall anybody.

mod support;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use support::process::more_open_files;
use support::traffic::{Device, under_traffic};
use support::{Client, Connect, Files, Proxy, config, free_ports, local};

/// One test at a time: they measure what a reload does to traffic.
static ALONE: Mutex<()> = Mutex::new(());

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
    let outcome = under_traffic(&brokers, devices, move |view| {
        let start = Instant::now();
        for n in 1..=100 {
            let before = view.answers();
            if n % 10 == 9 {
                // Every tenth edit is one that cannot be read.
                let mark = proxy.mark();
                files.replace_routes("stream_routes: [\n#END\n");
                proxy.signal(rustix::process::Signal::HUP);
                proxy.wait_for_log_after(mark, "not applied");
            }
            proxy.reload(|| files.replace_routes(variant(n, &ports, &targets)));
            // Traffic flows between any two reloads.
            view.wait_for_answers(before, 400);
        }
        eprintln!(
            "100 reloads in {:?}, {} round trips, the slowest {} ms",
            start.elapsed(),
            view.answers(),
            view.take_slowest().as_millis()
        );
        // New connections are served by the last file.
        proxy.reload(|| files.replace_routes(variant(0, &ports, &targets)));
        Client::mqtt(ports[0], &Connect::v311("after-all"));
        assert!(proxy.is_running());
        proxy
    });
    outcome.expect_flawless(1_000);
}

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
    let outcome = under_traffic(&brokers, devices, move |view| {
        for edit in 0..4 {
            let text = large(edit, ports[0], &targets);
            view.take_slowest();
            view.take_own_delay();
            let (cpu, start, mark) = (proxy.cpu_time(), Instant::now(), proxy.mark());
            files.replace_routes(text);
            proxy.signal(rustix::process::Signal::HUP);
            proxy.wait_for_line_after(mark, " reloaded", Duration::from_secs(60));
            let took = start.elapsed();
            let (slowest, own) = (view.take_slowest(), view.take_own_delay());
            eprintln!(
                "reload {edit}: {took:?}, {:?} of CPU with its traffic, slowest round trip {slowest:?}",
                proxy.cpu_time() - cpu
            );
            assert!(
                slowest < Duration::from_secs(2) + 2 * own,
                "traffic stood still for {slowest:?}"
            );
            assert!(took < Duration::from_secs(20), "the reload took {took:?}");
            Client::mqtt(ports[0], &Connect::v311("by-the-last-route"));
        }
        proxy
    });
    outcome.expect_flawless(50);
}
