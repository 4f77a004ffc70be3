//! Upgrades that change the configuration, and what carries on from one process to the next.

mod support;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::generations::Generations;
use support::handover::{carry_all, forward, forward_pairs, forward_to_listening, kind, pass};
use support::mqtt::ACCEPTED;
use support::served::{Served, routes as to};
use support::{
    Broker, Brokers, Client, Connect, DeadPort, End, Files, SOON, config, config_with, free_port,
    free_ports, local, metrics, wait_until,
};

/// One MQTT route `fleet` over this upstream (YAML flow form, without braces).
fn routes(upstream: &str) -> String {
    format!(
        "stream_routes:\n  - id: fleet\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{{upstream}}}\n#END\n"
    )
}

fn client(port: u16, id: &str) -> Client {
    Client::mqtt(port, &Connect::v311(id))
}

#[test]
fn the_configuration_may_change_with_the_upgrade() {
    let broker = Broker::mqtt();
    let [kept, removed, added] = free_ports();
    let two = format!(
        "stream_routes:\n  \
         - {{id: stays, server_port: {kept}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 1}}\n  \
         - {{id: goes, server_port: {removed}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 2}}\n\
         upstreams:\n  - {{id: 1, nodes: {{\"{0}\": 1}}}}\n  - {{id: 2, nodes: {{\"{0}\": 1}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config(&[kept, removed]), &two);
    let mut proxy = Generations::start(&files, &[kept, removed]);
    let mut stays = client(kept, "stays");
    let mut goes = client(removed, "goes");
    files.replace("config.yaml", config(&[kept, added]));
    files.replace_routes(to(&broker));
    let mark = proxy.mark();
    let moved = proxy.upgrade();
    assert_eq!(moved.connections, 2);
    proxy.wait_for_output_after(mark, &format!("listening on 127.0.0.1:{added}"), SOON);
    stays.expect_alive();
    goes.expect_alive();
    client(kept, "k").expect_alive();
    client(added, "a").expect_alive();
    assert!(
        std::net::TcpStream::connect(local(removed)).is_err(),
        "the removed listener is closed"
    );
    proxy.upgrade();
    goes.expect_alive();
    stays.expect_alive();
    drop(goes);
    assert_eq!(broker.connection(1).wait_for_end(), End::Fin);
}

#[test]
fn counts_of_nodes_carry_on_for_least_conn() {
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let text = routes(&format!("type: least_conn, nodes: {}", brokers.equal()));
    let files = Files::new(&config(&[port]), &text);
    let mut proxy = Generations::start(&files, &[port]);
    let visits: Vec<(usize, Client)> = (0..8)
        .map(|n| brokers.visit(port, &Connect::v311(&format!("c{n}"))))
        .collect();
    let (full, left) = visits
        .into_iter()
        .partition::<Vec<_>, _>(|(node, _)| *node == 0);
    assert_eq!((full.len(), left.len()), (4, 4));
    drop(left);
    for n in 0..4 {
        assert_eq!(brokers.0[1].connection(n).wait_for_end(), End::Fin);
    }
    let moved = proxy.upgrade();
    assert_eq!(moved.connections, 4);
    let later: Vec<(usize, Client)> = (0..4)
        .map(|n| brokers.visit(port, &Connect::v311(&format!("later-{n}"))))
        .collect();
    let nodes: Vec<usize> = later.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, [1; 4], "the node with four connections gets no more");
}

#[test]
fn a_listener_that_the_new_configuration_has_not_closes_and_whoever_was_in_its_queue_is_served() {
    let mut served = Served::with(5);
    let removed = free_port();
    served
        .files
        .replace("config.yaml", config(&[served.port, removed]));
    served.proxy.upgrade();
    served.live.push(client(removed, "before"));

    served.files.replace("config.yaml", config(&[served.port]));
    let (mut slow, rest) = served.slow();
    let old_process = served.proxy.current();
    let (old, new) = served.in_the_middle();
    forward_to_listening(&old, &new);
    let commit = forward_pairs(&old, &new);
    // Neither process accepts there now; the kernel does.
    let connect = Connect::v311("queued").build();
    let mut queued = Client::to(removed);
    queued.send(&connect);
    pass(&commit, &new).expect("the new process takes it");
    forward(&new, &old, kind::COMMITTED);
    let carrying = std::thread::spawn(move || carry_all(old, new, |frame| frame));
    queued.expect(ACCEPTED);
    wait_until("the removed listener to be closed", SOON, || {
        TcpStream::connect(local(removed)).is_err().then_some(())
    });
    let next = served.other_process();
    assert_eq!(served.proxy.processes().len(), 2, "both processes run");
    slow.send(&rest);
    slow.expect(ACCEPTED);
    served.proxy.wait_until_gone(old_process);
    carrying.join().expect("the middle");
    served.proxy.set_current(next);
    served.live.extend([slow, queued]);
    served.expect_as_before();
}

#[test]
fn scrapes_that_hang_do_not_delay_an_upgrade() {
    let broker = Broker::mqtt();
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let files = Files::new(&config_with(&[port], &more), &to(&broker));
    let mut proxy = Generations::start(&files, &[port]);
    let mut live = client(port, "live");
    let upgrade = || {
        // One more than are served at a time: it waits for a place.
        let hanging: Vec<TcpStream> = (0..17)
            .map(|_| TcpStream::connect(local(scrape)).expect("the endpoint accepts"))
            .collect();
        let start = Instant::now();
        proxy.upgrade();
        drop(hanging);
        start.elapsed()
    };
    // A busy machine may delay one, not each of ten.
    let fastest = std::iter::repeat_with(upgrade)
        .take(10)
        .find(|took| *took < Duration::from_secs(1));
    assert!(fastest.is_some(), "each upgrade took more than a second");
    live.expect_alive();
}

/// What is scraped of one node.
fn of_node(scrape: u16, name: &str, labels: &[&str]) -> f64 {
    metrics::value(local(scrape), name, labels)
}

#[test]
fn an_unhealthy_node_is_unhealthy_in_the_new_process_and_gets_its_chance_in_time() {
    let (brokers, dead) = (Brokers::mqtt(1), DeadPort::new());
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let upstream = |recovery: u32| {
        let nodes = format!("{{\"{}\": 1, \"{}\": 1}}", brokers.0[0].addr(), dead.addr());
        routes(&format!(
            "nodes: {nodes}, checks: {{passive: {{unhealthy: {{tcp_failures: 2}}, recovery_time: {recovery}}}}}"
        ))
    };
    let files = Files::new(&config_with(&[port], &more), &upstream(600));
    let mut proxy = Generations::start(&files, &[port]);
    let node = format!("node=\"{}\"", dead.addr());
    let healthy = || of_node(scrape, "mqtt_proxy_upstream_healthy", &[&node]);
    let failures = || of_node(scrape, "mqtt_proxy_upstream_connect_failures_total", &[]);
    let transitions = || {
        let labels = [node.as_str(), "to=\"unhealthy\""];
        of_node(
            scrape,
            "mqtt_proxy_upstream_health_transitions_total",
            &labels,
        )
    };
    let mut live = Vec::new();
    // One failure counts nothing yet, and is remembered by the next process.
    wait_until("a first connect that fails", SOON, || {
        live.push(client(port, "c"));
        (failures() == 1.0).then_some(())
    });
    proxy.upgrade();
    assert_eq!(healthy(), 1.0);
    wait_until("the node to be unhealthy", SOON, || {
        live.push(client(port, "c"));
        (healthy() == 0.0).then_some(())
    });
    assert_eq!(failures(), 2.0, "the one before the upgrade counts");
    for _ in 0..3 {
        proxy.upgrade();
        assert_eq!((healthy(), transitions()), (0.0, 1.0));
        live.extend((0..4).map(|_| client(port, "c")));
        assert_eq!(failures(), 2.0, "nobody is sent there");
    }
    // Unhealthy for longer than this already: due at once.
    files.replace_routes(upstream(1));
    proxy.upgrade();
    wait_until("the node to get another chance", SOON, || {
        (healthy() == 1.0).then_some(())
    });
    live.iter_mut().for_each(Client::expect_alive);
}

#[test]
fn a_node_whose_checks_are_gone_is_not_left_unhealthy_for_ever() {
    let mut brokers = Brokers::mqtt(2);
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let checks =
        "active: {type: tcp, healthy: {successes: 1, interval: 1}, unhealthy: {tcp_failures: 1}}";
    let checked = routes(&format!("nodes: {}, checks: {{{checks}}}", brokers.equal()));
    let files = Files::new(&config_with(&[port], &more), &checked);
    let mut proxy = Generations::start(&files, &[port]);
    let node = format!("node=\"{}\"", brokers.0[1].addr());
    let healthy = || of_node(scrape, "mqtt_proxy_upstream_healthy", &[&node]);
    brokers.0[1].stop_listening();
    wait_until("the node to be unhealthy", SOON, || {
        (healthy() == 0.0).then_some(())
    });
    proxy.upgrade();
    assert_eq!(
        healthy(),
        0.0,
        "before it has been probed by the new process"
    );
    files.replace_routes(routes(&format!("nodes: {}", brokers.equal())));
    proxy.upgrade();
    assert_eq!(healthy(), 1.0);
}
