//! Upgrades in which a process is killed, stopped or told to leave: at every step, on either side.

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use mqtt_proxy::upgrade::channel::Channel;
use rustix::process::Signal;
use support::generations::{
    FAILED, Generations, HANDED_OVER, belongs_to, runs, runtime_directory, send_signal, stop,
};
use support::handover::{
    Waiting, carry_all, connect, expect, forward, forward_listeners, forward_pairs,
    forward_to_listening, kind, pass, socket_in,
};
use support::mqtt::ACCEPTED;
use support::served::{Served, routes};
use support::{Broker, Client, Connect, Files, Proxy, SOON, config, free_port, wait_until};

#[test]
fn a_new_process_that_is_killed_while_it_starts_changes_nothing() {
    let mut served = Served::with(20);
    served.proxy.install_script("exec sleep 120");
    for signal in [Signal::KILL, Signal::TERM] {
        let mark = served.proxy.mark();
        served.proxy.signal_current(Signal::USR2);
        wait_until("the new process", SOON, || {
            (served.proxy.processes().len() == 2).then_some(())
        });
        // A second request while the first one is under way is refused, and no process more.
        let second = served.proxy.mark();
        served.proxy.signal_current(Signal::USR2);
        let line = served
            .proxy
            .wait_for_output_after(second, "under way", SOON);
        assert!(line.contains("ERROR"), "{line}");
        served.expect_all_well();
        send_signal(served.other_process(), signal);
        let line = served.failed(mark);
        assert!(line.contains("the new process ended: signal"), "{line}");
        served.expect_all_well();
    }
    served.expect_as_before();
}

/// A step of the protocol between two real processes.
type Upto = fn(&Channel, &Channel);

#[test]
fn a_process_that_waits_to_take_over_ends_as_soon_as_it_is_asked_to() {
    let mut served = Served::with(5);
    let socket = socket_in(&served.proxy.runtime(), &served.files);
    for signal in [Signal::TERM, Signal::INT] {
        let mut second = Proxy::spawn(&served.files, |command| {
            command.arg("--upgrade");
            command.env("RUNTIME_DIRECTORY", served.proxy.runtime());
            belongs_to(&served.files, command);
        });
        wait_until("the second process to wait", SOON, || {
            socket.exists().then_some(())
        });
        second.signal(signal);
        // It would wait for a minute.
        assert_eq!(second.wait_for_exit(SOON).code(), Some(0), "{signal:?}");
        assert!(!socket.exists(), "nobody is to come to it");
        served.expect_all_well();
    }
    served.expect_as_before();
}

#[test]
fn sigterm_while_the_new_process_starts_ends_both() {
    let served = Served::with(0);
    served.proxy.install_script("exec sleep 120");
    served.proxy.signal_current(Signal::USR2);
    wait_until("the new process", SOON, || {
        (served.proxy.processes().len() == 2).then_some(())
    });
    // A client that stays for a moment: the old process still has something to wait for.
    let client = Client::mqtt(served.port, &Connect::v311("last"));
    let mark = served.proxy.mark();
    served.proxy.signal_current(Signal::TERM);
    let line = served.failed(mark);
    assert!(line.contains("this process is leaving"), "{line}");
    drop(client);
    wait_until("both to end", SOON, || {
        served.proxy.processes().is_empty().then_some(())
    });
}

#[test]
fn a_new_process_that_is_killed_at_any_step_changes_nothing() {
    let mut served = Served::with(20);
    let steps: [(&str, Upto); 5] = [
        ("waiting", |_, _| {}),
        ("after READY", |old, new| {
            forward(old, new, kind::HELLO);
            forward(new, old, kind::READY);
        }),
        ("after the listeners", |old, new| {
            forward(old, new, kind::HELLO);
            forward(new, old, kind::READY);
            forward_listeners(old, new);
        }),
        ("after LISTENING", forward_to_listening),
        ("after the pairs", |old, new| {
            forward_to_listening(old, new);
            forward_pairs(old, new);
        }),
    ];
    for (name, upto) in steps {
        eprintln!("a new process that is killed: {name}");
        let mark = served.proxy.mark();
        let (old, new) = served.in_the_middle();
        upto(&old, &new);
        let pid = served.other_process();
        send_signal(pid, Signal::KILL);
        wait_until("its end", SOON, || (!runs(pid)).then_some(()));
        drop((old, new));
        served.failed(mark);
        served.expect_all_well();
    }
    served.expect_as_before();
}

#[test]
fn what_an_old_process_does_not_commit_stays_its_own() {
    let mut served = Served::with(20);
    let mark = served.proxy.mark();
    let (old, new) = served.in_the_middle();
    forward_to_listening(&old, &new);
    forward_pairs(&old, &new);
    let pid = served.other_process();
    // To the new process it looks as if the old one had given up; it is alive.
    drop(new);
    wait_until("the new process to leave", SOON, || {
        (!runs(pid)).then_some(())
    });
    drop(old);
    served.failed(mark);
    served.expect_as_before();
}

#[test]
fn a_stopped_and_continued_new_process_loses_nobody() {
    let mut served = Served::with(20);
    let (mut slow, rest) = served.slow();
    let old = served.proxy.current();
    let moved = served.proxy.begin_upgrade();
    for _ in 0..3 {
        stop(moved.pid);
        send_signal(moved.pid, Signal::CONT);
        served.live.iter_mut().for_each(Client::expect_alive);
    }
    assert!(runs(old), "it waits for a client");
    slow.send(&rest);
    slow.expect(ACCEPTED);
    served.live.push(slow);
    served.proxy.wait_until_gone(old);
    served.expect_as_before();
}

#[test]
fn a_late_commit_that_fails_costs_nobody_his_connection() {
    let mut served = Served::with(20);
    let (mut slow, rest) = served.slow();
    let first = served.proxy.current();
    let (old, new) = served.in_the_middle();
    forward_to_listening(&old, &new);
    let commit = forward_pairs(&old, &new);
    pass(&commit, &new).expect("the new process takes it");
    forward(&new, &old, kind::COMMITTED);
    let pid = served.other_process();
    served.live.iter_mut().for_each(Client::expect_alive);
    // The latecomer arrives and the channel breaks.
    slow.send(&rest);
    expect(&old, kind::PAIRS);
    let mark = served.proxy.mark();
    drop((old, new));
    slow.expect(ACCEPTED);
    slow.expect_alive();
    let said = "upgrade: the last connections stay in the old process";
    served.proxy.wait_for_output_after(mark, said, SOON);
    assert!(runs(pid), "the process with all connections is not ended");
    served.live.iter_mut().for_each(Client::expect_alive);
    for _ in 0..8 {
        Client::mqtt(served.port, &Connect::v311("new")).expect_alive();
    }
    // The old one leaves with its last connection.
    drop(slow);
    served.proxy.wait_until_gone(first);
    served.proxy.set_current(pid);
    served.expect_as_before();
}

#[test]
fn a_new_process_that_dies_before_the_old_one_has_left_is_replaced_by_it() {
    let mut served = Served::with(3);
    let (mut slow, rest) = served.slow();
    let first = served.proxy.current();
    let mark = served.proxy.mark();
    let moved = served.proxy.begin_upgrade();
    send_signal(moved.pid, Signal::KILL);
    served.failed(mark);
    // Those that had moved are gone with their process; everybody else is served.
    for mut client in served.live.drain(..) {
        client.expect_closed();
    }
    slow.send(&rest);
    slow.expect(ACCEPTED);
    served.live.push(slow);
    served.proxy.set_current(first);
    served.expect_as_before();
}

#[test]
fn sigterm_during_an_upgrade_ends_the_proxy_when_its_connections_have_ended() {
    let steps: [(&str, Upto); 3] = [
        ("before HELLO", |_, _| {}),
        ("after READY", |old, new| {
            forward(old, new, kind::HELLO);
            forward(new, old, kind::READY);
        }),
        ("after the listeners", |old, new| {
            forward(old, new, kind::HELLO);
            forward(new, old, kind::READY);
            forward_listeners(old, new);
        }),
    ];
    for (name, upto) in steps {
        eprintln!("SIGTERM: {name}");
        let mut served = Served::with(5);
        let (old, new) = served.in_the_middle();
        upto(&old, &new);
        let mark = served.proxy.mark();
        served.proxy.signal_current(Signal::TERM);
        served
            .proxy
            .wait_for_output_after(mark, "no longer accepting", SOON);
        // The rest of the protocol, as far as the two still want it.
        let rest = std::thread::spawn(move || carry_all(old, new, |frame| frame));
        let before = served.proxy.current();
        wait_until("the upgrade to be over, one way or the other", SOON, || {
            let lines = served.proxy.lines();
            let moved = lines[mark..].iter().any(|line| line.contains(HANDED_OVER));
            (moved || served.proxy.processes() == [before]).then_some(())
        });
        served.live.iter_mut().for_each(Client::expect_alive);
        served.live.clear();
        wait_until("every process to end", SOON, || {
            served.proxy.is_running();
            served.proxy.processes().is_empty().then_some(())
        });
        rest.join().expect("the middle");
    }
}

#[test]
fn the_service_manager_is_told_who_is_the_main_process_after_a_failure() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &routes(&broker));
    let path = files.path("notify.sock");
    let manager = UnixDatagram::bind(&path).expect("bind");
    manager.set_nonblocking(true).expect("non-blocking");
    let proxy = Generations::start_with(&files, &[port], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut main = None;
    let follow = |who: &mut Option<u32>| {
        let mut buffer = [0; 4096];
        while let Ok(count) = manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            let pid = text.lines().find_map(|line| line.strip_prefix("MAINPID="));
            *who = pid.and_then(|pid| pid.parse().ok()).or(*who);
        }
    };
    wait_until("the first READY", SOON, || {
        follow(&mut main);
        main
    });
    let apart = runtime_directory(&files, "apart");
    let mut second = support::Proxy::spawn(&files, |command| {
        command.arg("--upgrade").env("RUNTIME_DIRECTORY", &apart);
        command.env("NOTIFY_SOCKET", &path);
        support::generations::belongs_to(&files, command);
    });
    let new = connect(&socket_in(&apart, &files));
    let waiting = Waiting::at(socket_in(&proxy.runtime(), &files));
    let mark = proxy.mark();
    proxy.signal_current(Signal::QUIT);
    let old = waiting.accept();
    forward_to_listening(&old, &new);
    forward_pairs(&old, &new);
    second.kill();
    drop((old, new));
    proxy.wait_for_output_after(mark, FAILED, SOON);
    follow(&mut main);
    assert_eq!(main, Some(proxy.current()), "the process that serves");
    Client::mqtt(port, &Connect::v311("a")).expect_alive();
}

/// Where the helper process stands.
const ROLE: &str = "MQTT_PROXY_TEST_ROLE";

/// The old process is killed; whoever speaks for it on the channel (a process of its own, as the
/// new one looks whether that still lives) dies with it.
fn old_process_dies(step: &str) {
    let mut served = Served::with(30);
    let apart = runtime_directory(&served.files, "apart");
    let near = socket_in(&served.proxy.runtime(), &served.files);
    let mut second = support::Proxy::spawn(&served.files, |command| {
        command.arg("--upgrade").env("RUNTIME_DIRECTORY", &apart);
        support::generations::belongs_to(&served.files, command);
    });
    let first = served.proxy.current();
    let role = format!(
        "{step}\n{}\n{}\n{first}\n{}",
        near.display(),
        socket_in(&apart, &served.files).display(),
        second.id()
    );
    let mut helper = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "role_between_two_processes", "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .spawn()
        .expect("the helper starts");
    wait_until("the helper to listen", SOON, || near.exists().then_some(()));
    send_signal(first, Signal::QUIT);
    let status = helper.wait().expect("the helper ends");
    assert!(status.success(), "{status}");
    served.proxy.wait_until_gone(first);
    send_signal(second.id(), Signal::CONT);
    second.wait_for_log("upgrade: complete, 30 connections");
    served.proxy.set_current(second.id());
    served.live.iter_mut().for_each(Client::expect_alive);
    for _ in 0..8 {
        Client::mqtt(served.port, &Connect::v311("new")).expect_alive();
    }
}

#[test]
fn an_old_process_killed_after_the_pairs_takes_nobody_with_it() {
    old_process_dies("pairs");
}

#[test]
fn an_old_process_killed_before_it_hears_committed_takes_nobody_with_it() {
    old_process_dies("commit");
}

#[test]
fn an_old_process_killed_after_it_handed_over_takes_nobody_with_it() {
    let mut served = Served::with(30);
    // A latecomer keeps the old process; it is lost with it, and nobody else.
    let (slow, _) = served.slow();
    let old = served.proxy.current();
    let mark = served.proxy.mark();
    served.proxy.begin_upgrade();
    send_signal(old, Signal::KILL);
    served.proxy.wait_until_gone(old);
    served
        .proxy
        .wait_for_output_after(mark, "upgrade: complete, 30", SOON);
    drop(slow);
    served.expect_as_before();
}

/// Not a test of its own, and nothing without its variable: the process between the two that
/// [`old_process_dies`] starts.
#[test]
fn role_between_two_processes() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let [step, near, far, first, second] = role.lines().collect::<Vec<_>>()[..] else {
        panic!("{role}");
    };
    let old = Waiting::at(near.into()).accept();
    let new = connect(far.as_ref());
    forward_to_listening(&old, &new);
    let second: u32 = second.parse().expect("a process id");
    let commit = forward_pairs(&old, &new);
    if step == "commit" {
        // It finds the COMMIT when everybody else is gone already.
        stop(second);
        pass(&commit, &new).expect("room in the channel");
    }
    let first: u32 = first.parse().expect("a process id");
    send_signal(first, Signal::KILL);
    wait_until("its end", SOON, || (!runs(first)).then_some(()));
    // The channels end with the process and not before.
    std::process::exit(0);
}
