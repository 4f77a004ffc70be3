//! Upgrades that go wrong, at every step and on either side: nothing is ever worse than before.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mqtt_proxy::upgrade::channel::Channel;
use rustix::process::Signal;
use support::generations::{FAILED, Generations, runs, runtime_directory, send_signal};
use support::handover::{
    Waiting, connect, expect, forward, forward_listeners, forward_pairs, forward_to_listening, kind,
    pass, socket_in,
};
use support::mqtt::ACCEPTED;
use support::proxy::BINARY;
use support::{
    Broker, Client, Connect, Files, SOON, config, free_port, free_ports, local, wait_until,
};

/// A proxy started from a copy of the binary, with live connections.
struct Served {
    broker: Broker,
    proxy: Generations,
    files: Files,
    port: u16,
    live: Vec<Client>,
}

fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

impl Served {
    fn with(live: usize) -> Self {
        let broker = Broker::mqtt();
        let port = free_port();
        let files = Files::new(&config(&[port]), &routes(&broker));
        let proxy = Generations::start_copy(&files, &[port]);
        let live = (0..live)
            .map(|n| Client::mqtt(port, &Connect::v311(&format!("c{n}"))))
            .collect();
        Self {
            broker,
            proxy,
            files,
            port,
            live,
        }
    }

    /// Every connection lives, and new ones are served.
    fn expect_all_well(&mut self) {
        self.live.iter_mut().for_each(Client::expect_alive);
        // More than once: no second process may take any of them from the queue.
        for _ in 0..8 {
            Client::mqtt(self.port, &Connect::v311("new")).expect_alive();
        }
    }

    /// The process of before serves alone, and an upgrade works now.
    fn expect_as_before(&mut self) {
        let before = self.proxy.current();
        wait_until("no process but the old one", SOON, || {
            (self.proxy.processes() == [before]).then_some(())
        });
        self.expect_all_well();
        self.proxy.install_real();
        self.proxy.upgrade();
        self.expect_all_well();
        let now = self.proxy.current();
        wait_until("no process but the new one", SOON, || {
            (self.proxy.processes() == [now]).then_some(())
        });
    }

    /// A client in the middle of CONNECT, and the rest of its CONNECT.
    fn slow(&self) -> (Client, Vec<u8>) {
        let connect = Connect::v311("slow").build();
        let mut client = Client::to(self.port);
        client.send(&connect[..7]);
        (client, connect[7..].to_vec())
    }

    /// Waits as a new process would, and has the old one come.
    fn as_new_process(&self) -> Channel {
        let waiting = Waiting::at(socket_in(&self.proxy.runtime(), &self.files));
        self.proxy.signal_current(Signal::QUIT);
        waiting.accept()
    }

    /// Has the old process start a real new one, with the test between the two: the channels to
    /// the old and the new one.
    fn in_the_middle(&self) -> (Channel, Channel) {
        let apart = runtime_directory(&self.files, "apart");
        self.proxy.install_script(&format!(
            "RUNTIME_DIRECTORY='{}' exec '{BINARY}' \"$@\"",
            apart.display()
        ));
        let waiting = Waiting::at(socket_in(&self.proxy.runtime(), &self.files));
        self.proxy.signal_current(Signal::USR2);
        let old = waiting.accept();
        (old, connect(&socket_in(&apart, &self.files)))
    }

    /// Waits for the line behind `mark` that says that the upgrade failed.
    fn failed(&self, mark: usize) -> String {
        let within = Duration::from_secs(60);
        self.proxy.wait_for_output_after(mark, FAILED, within)
    }

    /// The other process than the one that serves.
    fn other_process(&self) -> u32 {
        let own = self.proxy.current();
        let all = self.proxy.processes();
        let others: Vec<u32> = all.into_iter().filter(|pid| *pid != own).collect();
        assert_eq!(others.len(), 1, "one other process");
        others[0]
    }
}

#[test]
fn a_new_binary_that_cannot_run_changes_nothing() {
    let mut served = Served::with(20);
    let copy = served.files.path("mqtt-proxy");
    std::fs::remove_file(&copy).expect("remove");
    let line = served.proxy.upgrade_in_vain();
    assert!(line.contains("No such file or directory"), "{line}");
    served.expect_all_well();

    served.proxy.install_real();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let line = served.proxy.upgrade_in_vain();
    assert!(line.contains("Permission denied"), "{line}");
    served.expect_all_well();

    for (script, why) in [
        ("exit 3", "exit status: 3"),
        ("exit 0", "exit status: 0"),
        ("kill -SEGV $$", "signal: 11"),
    ] {
        served.proxy.install_script(script);
        let line = served.proxy.upgrade_in_vain();
        assert!(line.contains(why), "{line}");
        served.expect_all_well();
    }
    served.expect_as_before();
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let mut served = Served::with(20);
    let good = config(&[served.port]);
    let routes = served.files.routes_text();
    let said = |served: &Served, text: &str| {
        let mark = served.proxy.mark();
        let line = served.proxy.upgrade_in_vain();
        assert!(line.contains("exit status: 78"), "{line}");
        served.proxy.wait_for_output_after(mark, text, SOON);
    };
    served.files.replace("config.yaml", "apisix: [\n");
    said(&served, "config.yaml:");
    served.expect_all_well();
    served.files.replace("config.yaml", good.replace("127.0.0.1:", "127.0.0.1:7"));
    said(&served, "config.yaml:");
    served.expect_all_well();
    served.files.replace("config.yaml", &good);

    // The old process goes on with the file that it has.
    served.files.replace_routes("stream_routes: [\n#END\n");
    said(&served, "apisix.yaml");
    served.expect_all_well();
    served.files.replace_routes(routes.replace("#END\n", ""));
    said(&served, "apisix.yaml");
    served.expect_all_well();
    std::fs::remove_file(served.files.routes_path()).expect("remove");
    said(&served, "apisix.yaml");
    served.expect_all_well();
    served.files.replace_routes(&routes);
    served.expect_as_before();
}

#[test]
fn a_listener_that_cannot_be_bound_changes_nothing() {
    let mut served = Served::with(20);
    let [taken] = free_ports();
    let holder = std::net::TcpListener::bind(local(taken)).expect("bind");
    served.files.replace("config.yaml", config(&[served.port, taken]));
    let line = served.proxy.upgrade_in_vain();
    assert!(line.contains(&taken.to_string()), "says which: {line}");
    served.expect_all_well();
    drop(holder);
    served.expect_as_before();
}

#[test]
fn a_new_side_that_goes_away_at_any_step_changes_nothing() {
    let mut served = Served::with(50);
    let descriptors = served.proxy.descriptors();
    let hello = |protocol: u32| format!("{{\"protocol\":{protocol},\"version\":\"9\",\"pid\":1}}");
    type Step = fn(&Channel, &dyn Fn(u32) -> String);
    let ready: Step = |old, hello| {
        expect(old, kind::HELLO);
        old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
    };
    let steps: [(&str, Step, &str); 12] = [
        ("before HELLO", |_, _| {}, "greeting"),
        (
            "after HELLO",
            |old, _| drop(expect(old, kind::HELLO)),
            "greeting",
        ),
        (
            "refuses",
            |old, _| {
                expect(old, kind::HELLO);
                old.send(kind::REFUSED, b"\"not today\"", &[]).expect("send");
            },
            "not today",
        ),
        (
            "another protocol version",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(99).as_bytes(), &[]).expect("send");
            },
            "99",
        ),
        (
            "garbage after HELLO",
            |old, _| {
                expect(old, kind::HELLO);
                let _ = old.send(kind::READY, &[0xFF; 100], &[]);
            },
            "greeting",
        ),
        (
            "a wrong message after HELLO",
            |old, _| {
                expect(old, kind::HELLO);
                let _ = old.send(kind::COMMITTED, b"0", &[]);
            },
            "unexpected message",
        ),
        (
            "after READY",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
            },
            "",
        ),
        (
            "after the listeners",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
                expect(old, kind::LISTENERS);
                expect(old, kind::STATE);
            },
            "until the new process accepts",
        ),
        (
            "refuses after the listeners",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
                expect(old, kind::LISTENERS);
                expect(old, kind::STATE);
                old.send(kind::REFUSED, b"\"port taken\"", &[]).expect("send");
            },
            "port taken",
        ),
        (
            "after LISTENING",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
                expect(old, kind::LISTENERS);
                expect(old, kind::STATE);
                old.send(kind::LISTENING, b"null", &[]).expect("send");
            },
            "",
        ),
        (
            "after the pairs",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
                expect(old, kind::LISTENERS);
                expect(old, kind::STATE);
                old.send(kind::LISTENING, b"null", &[]).expect("send");
                assert_eq!(expect(old, kind::PAIRS).descriptors.len(), 100);
                expect(old, kind::COMMIT);
            },
            "to take them",
        ),
        (
            "refuses the pairs",
            |old, hello| {
                expect(old, kind::HELLO);
                old.send(kind::READY, hello(1).as_bytes(), &[]).expect("send");
                expect(old, kind::LISTENERS);
                expect(old, kind::STATE);
                old.send(kind::LISTENING, b"null", &[]).expect("send");
                expect(old, kind::PAIRS);
                expect(old, kind::COMMIT);
                old.send(kind::REFUSED, b"\"too many\"", &[]).expect("send");
            },
            "too many",
        ),
    ];
    let _ = ready;
    for (name, step, why) in steps {
        eprintln!("a new side that stops: {name}");
        let mark = served.proxy.mark();
        let old = served.as_new_process();
        step(&old, &hello);
        drop(old);
        let line = served.failed(mark);
        assert!(line.contains("ERROR") && line.contains(why), "{name}: {line}");
        served.expect_all_well();
    }
    wait_until("the descriptors to be as many as before", SOON, || {
        (served.proxy.descriptors() <= descriptors + 2).then_some(())
    });
    served.expect_as_before();
}

#[test]
fn bytes_that_are_no_protocol_change_nothing() {
    use std::io::Write;
    let mut served = Served::with(20);
    for bytes in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"MQPU\x02\x00\x00\x00\xff\xff\xff\xff",
        b"MQPU\x02\x09\x00\x00\x00\x00\x00\x00",
        b"MQ",
    ] {
        let path = socket_in(&served.proxy.runtime(), &served.files);
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let mark = served.proxy.mark();
        served.proxy.signal_current(Signal::QUIT);
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(bytes).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        served.failed(mark);
        let _ = std::fs::remove_file(&path);
        served.expect_all_well();
    }
    served.expect_as_before();
}

#[test]
fn a_new_side_that_hangs_is_given_up_and_latecomers_are_not_lost() {
    let mut served = Served::with(20);
    let (mut slow, rest) = served.slow();
    let mark = served.proxy.mark();
    let old = served.as_new_process();
    expect(&old, kind::HELLO);
    let hello = b"{\"protocol\":1,\"version\":\"9\",\"pid\":1}";
    old.send(kind::READY, hello, &[]).expect("send");
    expect(&old, kind::LISTENERS);
    expect(&old, kind::STATE);
    old.send(kind::LISTENING, b"null", &[]).expect("send");
    expect(&old, kind::PAIRS);
    expect(&old, kind::COMMIT);
    // Nothing is said. A client gets through to its broker meanwhile.
    let accepted = served.broker.accepted();
    slow.send(&rest);
    wait_until("the broker to get it", SOON, || {
        (served.broker.accepted() > accepted).then_some(())
    });
    let line = served.failed(mark);
    assert!(line.contains("to take them"), "{line}");
    slow.expect(ACCEPTED);
    served.live.push(slow);
    // What a new side says too late is not heard by anybody.
    let _ = old.send(kind::COMMITTED, b"20", &[]);
    drop(old);
    served.expect_as_before();
}

#[test]
fn latecomers_during_a_commit_that_fails_are_not_lost() {
    let mut served = Served::with(5);
    for _ in 0..5 {
        let (mut slow, rest) = served.slow();
        let mark = served.proxy.mark();
        let old = served.as_new_process();
        expect(&old, kind::HELLO);
        let hello = b"{\"protocol\":1,\"version\":\"9\",\"pid\":1}";
        old.send(kind::READY, hello, &[]).expect("send");
        expect(&old, kind::LISTENERS);
        expect(&old, kind::STATE);
        old.send(kind::LISTENING, b"null", &[]).expect("send");
        expect(&old, kind::PAIRS);
        expect(&old, kind::COMMIT);
        let accepted = served.broker.accepted();
        slow.send(&rest);
        let seen = served.broker.connection(accepted);
        seen.wait_for(&Connect::v311("slow").build());
        drop(old);
        served.failed(mark);
        slow.expect(ACCEPTED);
        served.live.push(slow);
        served.expect_all_well();
    }
    served.expect_as_before();
}

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
        let line = served.proxy.wait_for_output_after(second, "under way", SOON);
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
        wait_until("its end", SOON, || (!runs_or_waits(pid)).then_some(()));
        drop((old, new));
        served.failed(mark);
        served.expect_all_well();
    }
    served.expect_as_before();
}

/// Whether the process still runs; a zombie that its parent has not seen yet does not.
fn runs_or_waits(pid: u32) -> bool {
    runs(pid)
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
    wait_until("the new process to leave", SOON, || (!runs(pid)).then_some(()));
    drop(old);
    served.failed(mark);
    served.expect_as_before();
}

#[test]
fn a_new_process_short_of_descriptors_changes_nothing() {
    let mut served = Served::with(150);
    served.proxy.install_script(&format!(
        "ulimit -n 200; exec '{BINARY}' \"$@\""
    ));
    let since = Instant::now();
    let line = served.proxy.upgrade_in_vain();
    eprintln!("given up after {:?}: {line}", since.elapsed());
    served.expect_as_before();
}

#[test]
fn a_stopped_and_continued_new_process_loses_nobody() {
    let mut served = Served::with(20);
    let (mut slow, rest) = served.slow();
    let old = served.proxy.current();
    let moved = served.proxy.begin_upgrade();
    for _ in 0..3 {
        send_signal(moved.pid, Signal::STOP);
        wait_until("it to stop", SOON, || state(moved.pid).starts_with('T').then_some(()));
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

fn state(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default();
    state.trim_start().to_owned()
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
    drop((old, new));
    slow.expect(ACCEPTED);
    slow.expect_alive();
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
        served.proxy.wait_for_output_after(mark, "no longer accepting", SOON);
        // The rest of the protocol, as far as the two still want it.
        let rest = std::thread::spawn(move || carry_all(old, new));
        served.live.iter_mut().for_each(Client::expect_alive);
        served.live.clear();
        wait_until("every process to end", SOON, || {
            served.proxy.is_running();
            served.proxy.processes().is_empty().then_some(())
        });
        rest.join().expect("the middle");
    }
}

/// Carries messages both ways until one side is gone.
fn carry_all(old: Channel, new: Channel) {
    let (old, new) = (std::sync::Arc::new(old), std::sync::Arc::new(new));
    let one_way = |from: std::sync::Arc<Channel>, to: std::sync::Arc<Channel>| {
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = from.receive() {
                if pass(&frame, &to).is_err() {
                    break;
                }
            }
            to.end();
        })
    };
    let there = one_way(old.clone(), new.clone());
    let back = one_way(new, old);
    there.join().expect("there");
    back.join().expect("back");
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
        .args(["--exact", "role_between_two_processes", "--ignored", "--nocapture"])
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
    served.proxy.wait_for_output_after(mark, "upgrade: complete, 30", SOON);
    drop(slow);
    served.expect_as_before();
}

/// Not a test: the process between the two that [`old_process_dies`] starts.
#[test]
#[ignore = "a helper of other tests"]
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
        send_signal(second, Signal::STOP);
        wait_until("it to stop", SOON, || state(second).starts_with('T').then_some(()));
        pass(&commit, &new).expect("room in the channel");
    }
    let first: u32 = first.parse().expect("a process id");
    send_signal(first, Signal::KILL);
    wait_until("its end", SOON, || (!runs(first)).then_some(()));
}
