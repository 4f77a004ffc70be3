//! Edits of `apisix.yaml` reach new connections within a second, whatever tool made them, and touch
//! no connection that exists.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{
    Broker, Brokers, Client, Connect, Files, Proxy, SOON, config, config_with, free_port,
    free_ports, local, metrics, wait_until,
};

/// One catch-all MQTT route to this broker.
fn to(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

/// Connects again and again until a connection reaches the broker `wanted`; says how long after
/// `since` that was.
fn until_served(brokers: &Brokers, port: u16, wanted: usize, since: Instant) -> Duration {
    wait_until("new connections to reach the other broker", SOON, || {
        (brokers.visit(port, &Connect::v311("probe")).0 == wanted).then(|| since.elapsed())
    })
}

/// Edits back and forth between two brokers with `write`; every edit must take effect, typically
/// within one second (a loaded test machine is given some slack for single ones).
fn edits_apply_within_a_second(files: &Files, port: u16, brokers: &Brokers, write: impl Fn(&str)) {
    let mut times = Vec::new();
    for wanted in [1, 0, 1] {
        let text = to(&brokers.0[wanted]);
        write(&text);
        times.push(until_served(brokers, port, wanted, Instant::now()));
    }
    times.sort();
    // The others may have met a machine with much else to do.
    assert!(
        times[0] <= Duration::from_millis(1_100),
        "edit to effect took {times:?}"
    );
    assert!(files.routes_path().exists());
}

fn two() -> (Brokers, u16, Files, Proxy) {
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let files = Files::new(&config(&[port]), &to(&brokers.0[0]));
    let proxy = Proxy::start(&files, &[port]);
    (brokers, port, files, proxy)
}

#[test]
fn an_edit_by_rename_applies_within_a_second() {
    let (brokers, port, files, _proxy) = two();
    edits_apply_within_a_second(&files, port, &brokers, |text| files.replace_routes(text));
}

#[test]
fn an_edit_in_place_applies_within_a_second() {
    let (brokers, port, files, _proxy) = two();
    edits_apply_within_a_second(&files, port, &brokers, |text| files.overwrite_routes(text));
}

#[test]
fn a_swap_of_a_configmaps_symlink_applies_within_a_second() {
    // Kubernetes: apisix.yaml -> ..data/apisix.yaml, ..data -> ..2026_01, and only ..data changes.
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let files = Files::empty("apisix.yaml");
    let publish = |version: &str, text: &str| {
        let dir = files.path(&format!("..{version}"));
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("config.yaml"), config(&[port])).expect("write");
        fs::write(dir.join("apisix.yaml"), text).expect("write");
        symlink(format!("..{version}"), files.path("..data_tmp")).expect("symlink");
        fs::rename(files.path("..data_tmp"), files.path("..data")).expect("rename");
    };
    publish("1", &to(&brokers.0[0]));
    symlink("..data/config.yaml", files.config_path()).expect("symlink");
    symlink("..data/apisix.yaml", files.routes_path()).expect("symlink");
    let _proxy = Proxy::start(&files, &[port]);
    let version = std::cell::Cell::new(1);
    edits_apply_within_a_second(&files, port, &brokers, |text| {
        version.set(version.get() + 1);
        publish(&version.get().to_string(), text);
        let old = files.path(&format!("..{}", version.get() - 1));
        fs::remove_dir_all(old).expect("Kubernetes removes the old folder");
    });
}

#[test]
fn sighup_rereads_at_once_even_what_looks_unchanged() {
    let (brokers, port, files, mut proxy) = two();
    let old = fs::metadata(files.routes_path()).expect("metadata");
    let text = to(&brokers.0[1]);
    assert_eq!(text.len() as u64, old.len(), "same size");
    let mark = proxy.mark();
    files.overwrite_routes(&text);
    fs::File::options()
        .write(true)
        .open(files.routes_path())
        .and_then(|file| file.set_modified(old.modified()?))
        .expect("the old time");
    let start = Instant::now();
    proxy.signal(Signal::HUP);
    proxy.wait_for_log_after(mark, " reloaded");
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 1);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(proxy.is_running(), "SIGHUP does not kill");
}

#[test]
fn two_writes_within_one_second_are_both_seen() {
    let (brokers, port, files, mut proxy) = two();
    for round in 0..4 {
        let mark = proxy.mark();
        files.overwrite_routes(to(&brokers.0[1]));
        until_served(&brokers, port, 1, Instant::now());
        // The first write is loaded; this one may well fall into the same second.
        files.overwrite_routes(to(&brokers.0[0]));
        until_served(&brokers, port, 0, Instant::now());
        proxy.wait_for_log_after(mark, " reloaded");
        assert!(proxy.is_running(), "round {round}");
    }
}

#[test]
fn an_older_modification_time_is_a_change_too() {
    let (brokers, port, files, _proxy) = two();
    let fresh = files.path("backup.yaml");
    fs::write(&fresh, to(&brokers.0[1])).expect("write");
    fs::File::options()
        .write(true)
        .open(&fresh)
        .and_then(|f| f.set_modified(std::time::SystemTime::now() - Duration::from_secs(86_400)))
        .expect("an old time");
    fs::rename(&fresh, files.routes_path()).expect("restore the backup");
    until_served(&brokers, port, 1, Instant::now());
}

#[test]
fn connections_outlive_the_removal_of_their_route_and_of_everything_else() {
    let brokers = Brokers::mqtt(2);
    let [port, other] = free_ports();
    let full = format!(
        "stream_routes:\n  - {{id: 1, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 1}}\n  \
         - {{id: 2, server_port: {other}, upstream: {{nodes: {{\"{}\": 1}}}}}}\n\
         upstreams:\n  - {{id: 1, nodes: {{\"{}\": 1}}}}\n#END\n",
        brokers.0[1].addr(),
        brokers.0[0].addr()
    );
    let files = Files::new(&config(&[port, other]), &full);
    let mut proxy = Proxy::start(&files, &[port, other]);
    let mut on_route = Client::mqtt(port, &Connect::v311("a"));
    let mut plain = Client::to(other);
    plain.send(&Connect::v311("b").build());
    plain.expect(support::mqtt::ACCEPTED);
    let mut half_read = Client::to(port);
    let connect = Connect::v311("half").build();
    half_read.send(&connect[..5]);
    // The first bytes decide by which table it is served.
    half_read.expect_silence(Duration::from_millis(200));

    let without = format!(
        "stream_routes:\n  - {{id: 9, remote_addr: 10.9.9.9, upstream: {{nodes: {{\"{}\": 1}}}}}}\n#END\n",
        brokers.0[0].addr()
    );
    proxy.reload(|| files.replace_routes(&without));
    Client::to(port).expect_fin();
    Client::to(other).expect_fin();
    on_route.expect_alive();
    plain.expect_alive();

    proxy.reload(|| files.replace_routes("stream_routes: []\n#END\n"));
    on_route.expect_alive();
    plain.expect_alive();
    half_read.send(&connect[5..]);
    half_read.expect(support::mqtt::ACCEPTED);
}

#[test]
fn new_routes_and_upstreams_are_served() {
    let brokers = Brokers::mqtt(2);
    let ports: [u16; 3] = free_ports();
    let files = Files::new(&config(&ports), "stream_routes: []\n#END\n");
    let mut proxy = Proxy::start(&files, &ports);
    let mut text = String::from("stream_routes:\n");
    let mut upstreams = String::from("upstreams:\n");
    for (n, port) in ports.into_iter().enumerate() {
        Client::to(port).expect_fin();
        text.push_str(&format!(
            "  - {{id: {}, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: u{n}}}\n",
            n + 1
        ));
        upstreams.push_str(&format!(
            "  - {{id: u{n}, nodes: {{\"{}\": 1}}}}\n",
            brokers.0[n % 2].addr()
        ));
        proxy.reload(|| files.replace_routes(format!("{text}{upstreams}#END\n")));
        let (broker, mut client) = brokers.visit(port, &Connect::v311("a"));
        assert_eq!(broker, n % 2);
        client.expect_alive();
    }
}

#[test]
fn a_file_is_applied_as_a_whole() {
    // Route and upstream change together, again and again: a connection must never see the new
    // route with the old upstreams, where its upstream_id would dangle.
    let broker = Broker::mqtt();
    let port = free_port();
    let text = |n: usize| {
        format!(
            "stream_routes:\n  - {{id: 1, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: u{n}}}\n\
             upstreams:\n  - {{id: u{n}, nodes: {{\"{}\": 1}}}}\n#END\n",
            broker.addr()
        )
    };
    let files = Files::new(&config(&[port]), &text(0));
    let mut proxy = Proxy::start(&files, &[port]);
    let stop = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                Client::mqtt(port, &Connect::v311("knock"));
                served.fetch_add(1, SeqCst);
            }
        });
        for n in 1..=25 {
            let before = served.load(SeqCst);
            proxy.reload(|| files.replace_routes(text(n)));
            wait_until("more connections to be served", SOON, || {
                (served.load(SeqCst) > before + 2).then_some(())
            });
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_bad_object_keeps_its_last_good_version_while_the_good_ones_apply() {
    let brokers = Brokers::mqtt(3);
    let ports: [u16; 3] = free_ports();
    let text = |first: &str, second: usize, third: &str| {
        format!(
            "stream_routes:\n  - {{id: 1, server_port: {}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 1}}\n  \
             - {{id: 2, server_port: {}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 2}}\n{third}\
             upstreams:\n  - {{id: 1, {first}}}\n  - {{id: 2, nodes: {{\"{}\": 1}}}}\n#END\n",
            ports[0],
            ports[1],
            brokers.0[second].addr()
        )
    };
    let good = format!("nodes: {{\"{}\": 1}}", brokers.0[0].addr());
    let files = Files::new(&config(&ports), &text(&good, 1, ""));
    let mut proxy = Proxy::start(&files, &ports);

    let mark = proxy.mark();
    let bad = "nodes: {\"127.0.0.1:1\": -1}";
    let third = format!("  - {{id: 3, server_port: {}, upstrem_id: 2}}\n", ports[2]);
    proxy.reload(|| files.replace_routes(text(bad, 2, &third)));
    let line = proxy.wait_for_log_after(mark, "upstreams[0]");
    assert!(line.contains("apisix.yaml:6:"), "file and line: {line}");
    assert!(line.contains("WARN"), "{line}");
    let line = proxy.wait_for_log_after(mark, "stream_routes[2].upstrem_id");
    assert!(
        line.contains("apisix.yaml:4:") && line.contains("upstream_id"),
        "{line}"
    );

    assert_eq!(
        brokers.visit(ports[0], &Connect::v311("a")).0,
        0,
        "the last good version serves"
    );
    assert_eq!(
        brokers.visit(ports[1], &Connect::v311("a")).0,
        2,
        "the good change applies"
    );
    Client::to(ports[2]).expect_fin();

    // Once more with the same bad object: the kept version is not forgotten by a second reload.
    proxy.reload(|| files.replace_routes(text(bad, 1, "")));
    assert_eq!(brokers.visit(ports[0], &Connect::v311("a")).0, 0);
    assert_eq!(brokers.visit(ports[1], &Connect::v311("a")).0, 1);

    let mended = format!("nodes: {{\"{}\": 1}}", brokers.0[2].addr());
    proxy.reload(|| files.replace_routes(text(&mended, 1, "")));
    assert_eq!(
        brokers.visit(ports[0], &Connect::v311("a")).0,
        2,
        "the mended object applies"
    );
}

#[test]
fn an_object_that_is_removed_is_gone_though_it_once_was_good() {
    let brokers = Brokers::mqtt(1);
    let port = free_port();
    let files = Files::new(&config(&[port]), &to(&brokers.0[0]));
    let mut proxy = Proxy::start(&files, &[port]);
    Client::mqtt(port, &Connect::v311("a"));
    proxy.reload(|| files.replace_routes("stream_routes: []\n#END\n"));
    Client::to(port).expect_fin();
    // A bad object whose good version was removed in between has nothing to fall back to.
    proxy.reload(|| {
        files.replace_routes("stream_routes:\n  - {id: 1, server_port: 99999}\n#END\n");
    });
    Client::to(port).expect_fin();
}

#[test]
fn an_unchanged_upstream_keeps_its_place_in_the_round() {
    let brokers = Brokers::mqtt(3);
    let [port, other] = free_ports();
    let text = |n: usize| {
        format!(
            "stream_routes:\n  - {{id: 1, server_port: {port}, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: 1}}\n  \
             - {{id: 2, server_port: {other}, desc: \"edit {n}\", upstream_id: 1}}\n\
             upstreams:\n  - {{id: 1, nodes: {}}}\n#END\n",
            brokers.equal()
        )
    };
    let more = "nginx_config:\n  worker_processes: 1\n";
    let files = Files::new(&config_with(&[port, other], more), &text(0));
    let mut proxy = Proxy::start(&files, &[port, other]);
    for n in 1..=9 {
        brokers.visit(port, &Connect::v311("a"));
        proxy.reload(|| files.replace_routes(text(n)));
    }
    assert_eq!(
        brokers.accepted(),
        [3, 3, 3],
        "the round goes on across reloads"
    );
}

#[test]
fn an_edit_of_weights_that_changes_their_common_divisor_is_warned_of() {
    let brokers = Brokers::mqtt(3);
    let port = free_port();
    let text = |weights: [u32; 3]| {
        format!(
            "stream_routes:\n  - {{id: 1, plugins: {{mqtt-proxy: {{protocol_level: 4}}}}, upstream_id: fleet}}\n\
             upstreams:\n  - {{id: fleet, type: chash, key: mqtt_client_id, nodes: {}}}\n#END\n",
            brokers.weighted(&weights)
        )
    };
    let files = Files::new(&config(&[port]), &text([100, 100, 100]));
    let mut proxy = Proxy::start(&files, &[port]);
    let mark = proxy.mark();
    for weights in [[200, 100, 100], [2, 1, 1], [200, 100, 100]] {
        proxy.reload(|| files.replace_routes(text(weights)));
    }
    let told = |proxy: &Proxy| proxy.lines().split_off(mark).join("\n").contains("divisor");
    assert!(
        !told(&proxy),
        "the same ring, or one that only grew: {:#?}",
        proxy.lines()
    );
    proxy.reload(|| files.replace_routes(text([201, 100, 100])));
    let line = proxy.wait_for_log_after(mark, "divisor");
    assert!(line.contains("WARN") && line.contains("fleet"), "{line}");
}

#[test]
fn a_removed_file_changes_nothing_and_its_return_is_seen() {
    let (brokers, port, files, mut proxy) = two();
    let mark = proxy.mark();
    fs::remove_file(files.routes_path()).expect("remove");
    proxy.signal(Signal::HUP);
    proxy.wait_for_log_after(mark, "not applied");
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);
    files.replace_routes(to(&brokers.0[1]));
    until_served(&brokers, port, 1, Instant::now());
}

#[test]
fn a_proxy_that_starts_without_a_usable_file_serves_it_as_soon_as_it_is_there() {
    let broker = Broker::mqtt();
    let port = free_port();
    for before in [None, Some("stream_routes: []\n")] {
        let files = Files::empty("apisix.yaml");
        files.replace("config.yaml", config(&[port]));
        if let Some(text) = before {
            files.replace_routes(text);
        }
        let mut proxy = Proxy::start(&files, &[port]);
        proxy.wait_for_log("not applied");
        Client::to(port).expect_fin();
        files.replace_routes(to(&broker));
        wait_until("the file to be served", SOON, || {
            let mut client = Client::to(port);
            client.try_send(&Connect::v311("a").build());
            (client.read_up_to(4, SOON).0 == support::mqtt::ACCEPTED).then_some(())
        });
    }
}

#[test]
fn the_json_provider_reads_and_follows_apisix_json() {
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let config = config(&[port]).replace("config_provider: yaml", "config_provider: json");
    let text = |broker: &Broker| {
        format!(
            "{{\"stream_routes\": [{{\"id\": 1, \"plugins\": {{\"mqtt-proxy\": {{\"protocol_level\": 4}}}}, \
             \"upstream\": {{\"nodes\": {{\"{}\": 1}}}}}}]}}",
            broker.addr()
        )
    };
    let files = Files::json(&config, &text(&brokers.0[0]));
    let mut proxy = Proxy::start(&files, &[port]);
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);
    files.replace_routes(text(&brokers.0[1]));
    until_served(&brokers, port, 1, Instant::now());

    let mark = proxy.mark();
    files.replace_routes(&text(&brokers.0[0])[..40]);
    proxy.signal(Signal::HUP);
    let line = proxy.wait_for_log_after(mark, "not applied");
    assert!(line.contains("apisix.json"), "{line}");
    assert_eq!(
        brokers.visit(port, &Connect::v311("a")).0,
        1,
        "the good version serves on"
    );
}

#[test]
fn another_place_for_the_file_can_be_given_in_config_yaml_or_on_the_command_line() {
    let brokers = Brokers::mqtt(2);
    let [port, other] = free_ports();
    let more = "mqtt_proxy:\n  standalone_file: routes/live.yaml\n";
    let files = Files::new(&config_with(&[port], more), "stream_routes: []\n#END\n");
    fs::create_dir(files.path("routes")).expect("mkdir");
    fs::write(files.path("routes/live.yaml"), to(&brokers.0[0])).expect("write");
    let _proxy = Proxy::start(&files, &[port]);
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);
    fs::write(files.path("routes/live.yaml"), to(&brokers.0[1])).expect("write");
    until_served(&brokers, port, 1, Instant::now());

    let files = Files::new(&config(&[other]), "stream_routes: []\n#END\n");
    fs::write(files.path("elsewhere.yaml"), to(&brokers.0[0])).expect("write");
    let elsewhere = files.path("elsewhere.yaml");
    let _proxy = Proxy::start_with(&files, &[local(other)], |command| {
        command.arg("--routes").arg(&elsewhere);
    });
    assert_eq!(brokers.visit(other, &Connect::v311("a")).0, 0);
}

#[test]
fn variables_of_the_environment_are_substituted_in_both_files_at_start_and_at_reload() {
    let brokers = Brokers::mqtt(2);
    let port = free_port();
    let config = config(&[port]).replace(
        &format!("127.0.0.1:{port}"),
        "${{LISTEN_HOST:=127.0.0.1}}:${{LISTEN_PORT}}",
    );
    let routes = "stream_routes:\n  - id: 1\n    plugins:\n      mqtt-proxy:\n        \
                  protocol_level: ${{LEVEL:=4}}\n    upstream:\n      nodes:\n        \
                  \"${{ BROKER }}:${{BROKER_PORT}}\": ${{WEIGHT:= 1}}\n#END\n";
    let files = Files::new(&config, routes);
    let mut proxy = Proxy::start_with(&files, &[local(port)], |command| {
        command
            .env("LISTEN_PORT", port.to_string())
            .env("BROKER", "127.0.0.1")
            .env("BROKER_PORT", brokers.0[0].port().to_string())
            .env("OTHER_PORT", brokers.0[1].port().to_string());
    });
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 0);

    proxy.reload(|| files.replace_routes(routes.replace("BROKER_PORT", "OTHER_PORT")));
    assert_eq!(brokers.visit(port, &Connect::v311("a")).0, 1);

    let mark = proxy.mark();
    files.replace_routes(routes.replace("BROKER_PORT", "NO_SUCH_VARIABLE"));
    let line = proxy.wait_for_log_after(mark, "not applied");
    assert!(
        line.contains("NO_SUCH_VARIABLE"),
        "it names the variable: {line}"
    );
    assert_eq!(
        brokers.visit(port, &Connect::v311("a")).0,
        1,
        "the old state serves on"
    );
}

#[test]
fn reloads_are_counted() {
    let brokers = Brokers::mqtt(1);
    let [port, scrape] = free_ports();
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let files = Files::new(&config_with(&[port], &more), &to(&brokers.0[0]));
    let mut proxy = Proxy::start(&files, &[port]);
    let count = |result: &str| {
        let label = format!("result=\"{result}\"");
        metrics::value(local(scrape), "mqtt_proxy_config_reload_total", &[&label])
    };
    let (applied, rejected) = (count("applied"), count("rejected"));
    for n in 0..3 {
        proxy.reload(|| files.replace_routes(format!("# {n}\n{}", to(&brokers.0[0]))));
    }
    let mark = proxy.mark();
    files.replace_routes("stream_routes: [\n#END\n");
    proxy.wait_for_log_after(mark, "not applied");
    wait_until("the counters to move", SOON, || {
        (count("applied") >= applied + 3.0 && count("rejected") > rejected).then_some(())
    });
}
