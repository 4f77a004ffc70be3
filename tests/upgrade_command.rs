//! `mqtt-proxy upgrade`: what it says and ends with, whatever comes of the upgrade.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;
use support::generations::{Generations, ask_to_upgrade, send_signal};
use support::handover::{expect, forward, forward_listeners, forward_to_listening, kind, pass};
use support::mqtt::ACCEPTED;
use support::proxy::{Ran, cli_with};
use support::served::{Served, routes};
use support::{Broker, Client, Connect, Files, SOON, config, free_port, wait_until};

/// It failed with this code and says why, and the old process goes on serving.
fn failed(served: &mut Served, ran: &Ran, code: i32, why: &str) {
    assert_eq!(ran.code, code, "{}", ran.all());
    let says = format!("process {} goes on serving: ", served.proxy.current());
    assert!(
        ran.stderr.contains(&says) && ran.stderr.contains(why),
        "{why}: {}",
        ran.all()
    );
    assert!(!ran.stdout.contains("upgraded"), "{}", ran.all());
    served.expect_all_well();
}

/// The sockets by which processes are found.
fn controls(served: &Served) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(served.proxy.runtime()).expect("the runtime directory");
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| {
            let path = path.to_string_lossy();
            path.contains("control-") && path.ends_with(".sock")
        })
        .collect()
}

#[test]
fn it_says_what_happened_and_finds_the_new_process_the_next_time() {
    let mut served = Served::with(20);
    for _ in 0..3 {
        let old = served.proxy.current();
        let ran = served.proxy.upgrade_by_command();
        let new = served.proxy.current();
        for said in [
            format!("process {old} has started process {new}"),
            format!(
                "process {new} (version {}) is ready",
                env!("CARGO_PKG_VERSION")
            ),
            format!("upgraded: process {new} serves; 20 connections moved in "),
        ] {
            assert!(ran.stdout.contains(&said), "{said}: {}", ran.all());
        }
        assert_eq!(ran.stderr, "");
        served.proxy.wait_until_gone(old);
        served.expect_all_well();
        let [socket] = &controls(&served)[..] else {
            panic!("one socket: {:?}", controls(&served));
        };
        let mode = std::fs::metadata(socket).expect("it exists").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
    // By signal in between: it is found all the same.
    served.proxy.upgrade();
    served.proxy.upgrade_by_command();
    let last = served.proxy.current();
    served.live.clear();
    served.proxy.signal_current(Signal::TERM);
    served.proxy.wait_until_gone(last);
    assert!(controls(&served).is_empty(), "taken away at the end");
    let ran = served.proxy.ask_to_upgrade();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("no process is found"), "{}", ran.all());
}

#[test]
fn those_that_are_still_on_their_way_are_told() {
    let mut served = Served::with(3);
    let (mut slow, rest) = served.slow();
    let old = served.proxy.current();
    let ran = served.proxy.upgrade_by_command();
    let said = format!("1 connections are still with process {old}");
    assert!(ran.stdout.contains(&said), "{}", ran.all());
    // The new process is found, and says that it is not its turn yet.
    let again = served.proxy.ask_to_upgrade();
    failed(&mut served, &again, 1, "has not left yet");
    slow.send(&rest);
    served.proxy.wait_until_gone(old);
    slow.expect(ACCEPTED);
    served.live.push(slow);
    served.expect_as_before();
}

#[test]
fn one_that_is_asked_for_as_the_old_process_leaves_waits_for_its_end() {
    let mut served = Served::with(3);
    let (mut slow, rest) = served.slow();
    served.proxy.begin_upgrade();
    let mark = served.proxy.mark();
    served.proxy.signal_current(Signal::USR2);
    served
        .proxy
        .wait_for_output_after(mark, "SIGUSR2: upgrading", SOON);
    slow.send(&rest);
    slow.expect(ACCEPTED);
    served.live.push(slow);
    assert_eq!(served.proxy.handed_over(mark).connections, 4);
    served.expect_as_before();
}

#[test]
fn one_of_several_processes_is_named_by_its_configuration_or_its_id() {
    let broker = Broker::mqtt();
    let ports = [free_port(), free_port()];
    let all: Vec<Files> = ports
        .iter()
        .map(|port| Files::new(&config(&[*port]), &routes(&broker)))
        .collect();
    let shared = support::generations::runtime_directory(&all[0], "run");
    let mut proxies: Vec<Generations> = all
        .iter()
        .zip(ports)
        .map(|(files, port)| {
            Generations::start_with(files, &[port], |command| {
                command.env("RUNTIME_DIRECTORY", &shared);
            })
        })
        .collect();
    let upgrade = |arguments: &[&str]| {
        let all = [&["upgrade"], arguments].concat();
        cli_with(&all, |command| {
            command.env("RUNTIME_DIRECTORY", &shared);
        })
    };
    // They may still be about to publish themselves, and one alone would upgrade.
    wait_until("both to be found", SOON, || -> Option<()> {
        let names = std::fs::read_dir(&shared).expect("the runtime directory");
        let names = names.flatten().map(|entry| entry.file_name());
        let published = names.filter(|name| name.to_string_lossy().starts_with("control-"));
        (published.count() == 2).then_some(())
    });
    let ran = upgrade(&[]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.stderr.contains("several processes"), "{}", ran.all());
    for proxy in &proxies {
        let pid = proxy.current().to_string();
        assert!(ran.stderr.contains(&pid), "{}", ran.all());
    }
    let ran = upgrade(&["--pid", "1"]);
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.stderr.contains("has the id 1"), "{}", ran.all());
    let ran = upgrade(&["-c", "/nowhere/config.yaml"]);
    assert_eq!(ran.code, 1, "{}", ran.all());

    let old = proxies[1].current();
    let ran = upgrade(&["--quiet", "--pid", &old.to_string()]);
    assert_eq!((ran.code, ran.all().contains("upgraded")), (0, false));
    proxies[1].wait_until_gone(old);
    Client::mqtt(ports[1], &Connect::v311("a")).expect_alive();
    let config = all[0].config_path();
    let ran = upgrade(&["-c", config.to_str().expect("a path")]);
    assert_eq!(ran.code, 0, "{}", ran.all());
    let old = proxies[0].current();
    proxies[0].wait_until_gone(old);
    Client::mqtt(ports[0], &Connect::v311("a")).expect_alive();
}

#[test]
fn a_binary_that_cannot_run_is_told_with_exit_code_1() {
    let mut served = Served::with(10);
    let copy = served.files.path("mqtt-proxy");
    std::fs::remove_file(&copy).expect("remove");
    let ran = served.proxy.ask_to_upgrade();
    failed(&mut served, &ran, 1, "No such file or directory");
    served.proxy.install_real();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let ran = served.proxy.ask_to_upgrade();
    failed(&mut served, &ran, 1, "Permission denied");
    for (script, why) in [
        ("exit 3", "exit status: 3"),
        ("kill -SEGV $$", "signal: 11"),
    ] {
        served.proxy.install_script(script);
        let ran = served.proxy.ask_to_upgrade();
        failed(&mut served, &ran, 1, why);
    }
    served.expect_as_before();
}

#[test]
fn a_configuration_that_is_refused_is_told_with_exit_code_78() {
    let mut served = Served::with(10);
    let good = config(&[served.port]);
    let routes = served.files.routes_text();
    served.files.replace("config.yaml", "apisix: [\n");
    let ran = served.proxy.ask_to_upgrade();
    failed(&mut served, &ran, 78, "exit status: 78");
    assert!(ran.stderr.contains("mqtt-proxy check"), "{}", ran.all());
    served.files.replace("config.yaml", &good);
    served.files.replace_routes("stream_routes: [\n#END\n");
    let ran = served.proxy.ask_to_upgrade();
    failed(&mut served, &ran, 78, "exit status: 78");
    served.files.replace_routes(&routes);
    served.expect_as_before();
}

#[test]
fn a_new_process_that_dies_in_the_middle_is_told_with_exit_code_1() {
    let mut served = Served::with(10);
    for step in ["after READY", "after it accepts"] {
        let (old, new, command) = served.in_the_middle_of_a_command();
        match step {
            "after READY" => {
                forward(&old, &new, kind::HELLO);
                forward(&new, &old, kind::READY);
                forward_listeners(&old, &new);
            }
            _ => forward_to_listening(&old, &new),
        }
        send_signal(served.other_process(), Signal::KILL);
        drop((old, new));
        let ran = command.join().expect("the command");
        failed(&mut served, &ran, 1, "upgrade failed");
    }
    served.expect_as_before();
}

#[test]
fn a_version_of_the_protocol_that_is_not_known_is_told_with_exit_code_1() {
    let mut served = Served::with(10);
    let from_the_future = |frame: &mut mqtt_proxy::upgrade::channel::Frame| {
        let mut hello: serde_json::Value = serde_json::from_slice(&frame.payload).expect("JSON");
        hello["protocol"] = 99.into();
        frame.payload = serde_json::to_vec(&hello).expect("JSON");
    };
    // The new process does not understand the old one.
    let (old, new, command) = served.in_the_middle_of_a_command();
    let mut hello = expect(&old, kind::HELLO);
    from_the_future(&mut hello);
    pass(&hello, &new).expect("the new process takes it");
    forward(&new, &old, kind::REFUSED);
    drop((old, new));
    let ran = command.join().expect("the command");
    failed(
        &mut served,
        &ran,
        1,
        "version 99 of the upgrade protocol, this one 1",
    );

    // And the other way round.
    let (old, new, command) = served.in_the_middle_of_a_command();
    forward(&old, &new, kind::HELLO);
    let mut ready = expect(&new, kind::READY);
    from_the_future(&mut ready);
    pass(&ready, &old).expect("the old process takes it");
    let ran = command.join().expect("the command");
    drop((old, new));
    failed(&mut served, &ran, 1, "it speaks version 99 of the protocol");
    served.expect_as_before();
}

#[test]
fn a_second_command_while_one_is_under_way_is_refused_and_both_hear_of_the_end() {
    let mut served = Served::with(10);
    served.proxy.install_script("exec sleep 120");
    let (files, runtime) = (served.files.clone(), served.proxy.runtime());
    let first = std::thread::spawn(move || ask_to_upgrade(&files, &runtime));
    wait_until("the new process", SOON, || {
        (served.proxy.processes().len() == 2).then_some(())
    });
    let second = served.proxy.ask_to_upgrade();
    failed(&mut served, &second, 1, "under way already");
    send_signal(served.other_process(), Signal::KILL);
    let ran = first.join().expect("the command");
    failed(&mut served, &ran, 1, "signal: 9");
    served.expect_as_before();
}

#[test]
fn an_old_process_that_dies_in_the_middle_is_told_with_exit_code_1() {
    let served = Served::with(1);
    let (old, new, command) = served.in_the_middle_of_a_command();
    forward(&old, &new, kind::HELLO);
    served.proxy.signal_current(Signal::KILL);
    let ran = command.join().expect("the command");
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.stderr.contains("has ended"), "{}", ran.all());
}
