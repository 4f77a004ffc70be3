//! What systemd hears and passes on: notifications against a socket of the test, socket activation
//! by systemd-socket-activate, and the unit itself under systemd-analyze.

mod support;

use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use support::{
    Broker, Client, Connect, Files, Proxy, SOON, config, config_with, free_port, local, wait_until,
};

const BINARY: &str = env!("CARGO_BIN_EXE_mqtt-proxy");
const UNIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/packaging/systemd/mqtt-proxy.service"
);

fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

/// What the service manager would listen on.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("bind");
        let patience = Some(Duration::from_millis(50));
        socket.set_read_timeout(patience).expect("timeout");
        Manager { socket, folder }
    }

    /// The next message, if one comes soon.
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let size = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..size]).into_owned())
    }

    /// Waits for a message with `text`; the earlier ones are returned as well, it is the last.
    fn wait_for(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + SOON;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            let Some(message) = self.next() else { continue };
            let found = message.contains(text);
            heard.push(message);
            if found {
                return heard;
            }
        }
        panic!("no message with {text:?} came; heard: {heard:#?}");
    }

    /// A proxy as the service manager starts it: with a watchdog, meant for this process alone.
    fn start(&self, files: &Files, port: u16, watchdog: Duration) -> Proxy {
        Proxy::start_with(files, &[local(port)], |command| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh", BINARY])
                .args(command.get_args())
                .current_dir(files.dir())
                .env_remove("RUST_LOG")
                .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
                .env("RUNTIME_DIRECTORY", self.folder.path())
                .env("WATCHDOG_USEC", watchdog.as_micros().to_string());
            *command = shell;
        })
    }
}

/// A process that is no child of the test: ended with it.
struct Ends(Pid);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

fn main_pid(messages: &[String]) -> u32 {
    let mut lines = messages.last().expect("a message").lines();
    let pid = lines.find_map(|line| line.strip_prefix("MAINPID="));
    pid.expect("MAINPID").parse().expect("a process id")
}

#[test]
fn a_start_a_reload_a_refused_reload_and_the_end_are_told() {
    let (broker, port, manager) = (Broker::mqtt(), free_port(), Manager::new());
    let files = Files::new(&config(&[port]), &routes(&broker));
    let mut proxy = manager.start(&files, port, Duration::from_millis(300));
    let heard = manager.wait_for("READY=1");
    assert_eq!(heard.len(), 1, "nothing is told before: {heard:?}");
    assert_eq!(main_pid(&heard), proxy.id());
    manager.wait_for("STATUS=0 connections, 1 routes; loaded 20");

    proxy.signal(Signal::HUP);
    let reloading = manager.wait_for("RELOADING=1\n");
    let mut lines = reloading.last().expect("a message").lines();
    let stamp = lines.find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let stamp: i128 = stamp.expect("a time").parse().expect("microseconds");
    let Ok(NotifyState::MonotonicUsec(now)) = NotifyState::monotonic_usec_now() else {
        panic!("no monotonic clock");
    };
    let age = now - stamp;
    assert!((0..60_000_000).contains(&age), "{age} microseconds ago");
    manager.wait_for("READY=1\n");

    files.replace_routes("stream_routes: [\n#END\n");
    manager.wait_for("RELOADING=1\n");
    // The end of the reload and the status line come from two threads.
    let status = "STATUS=0 connections, 1 routes; reload refused 20";
    let heard = manager.wait_for(status);
    if !heard.iter().any(|message| message == "READY=1\n") {
        manager.wait_for("READY=1\n");
    }

    let client = Client::mqtt(port, &Connect::v311("dev-1"));
    manager.wait_for("STATUS=1 connections, 1 routes");
    proxy.signal(Signal::TERM);
    manager.wait_for("STOPPING=1\n");
    manager.wait_for("EXTEND_TIMEOUT_USEC=");
    drop(client);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn signs_of_life_come_three_times_as_often_as_wanted_with_relay_threads_and_without() {
    let (broker, port, manager) = (Broker::mqtt(), free_port(), Manager::new());
    let files = Files::new(&config(&[port]), &routes(&broker));
    let _proxy = manager.start(&files, port, Duration::from_millis(600));
    manager.wait_for("READY=1");
    let signs = |count: u32| {
        let start = Instant::now();
        for _ in 0..count {
            manager.wait_for("WATCHDOG=1\n");
        }
        start.elapsed() / count
    };
    signs(1);
    assert!(signs(10) < Duration::from_millis(600), "no connection yet");
    let mut client = Client::mqtt(port, &Connect::v5("dev-1"));
    assert!(signs(10) < Duration::from_millis(600), "relaying");
    client.expect_alive();
}

#[test]
fn without_a_watchdog_there_are_no_signs_of_life() {
    let (broker, port, manager) = (Broker::mqtt(), free_port(), Manager::new());
    let files = Files::new(&config(&[port]), &routes(&broker));
    let proxy = manager.start(&files, port, Duration::ZERO);
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=");
    proxy.signal(Signal::HUP);
    let heard = manager.wait_for("RELOADING=1");
    assert!(!heard.iter().any(|message| message.contains("WATCHDOG")));
}

#[test]
fn the_new_process_of_an_upgrade_is_the_main_one_and_gives_the_signs_of_life() {
    let (broker, port, manager) = (Broker::mqtt(), free_port(), Manager::new());
    let files = Files::new(&config(&[port]), &routes(&broker));
    let mut proxy = manager.start(&files, port, Duration::from_millis(600));
    manager.wait_for("READY=1");
    let mut client = Client::mqtt(port, &Connect::v311("dev-1"));
    manager.wait_for("STATUS=1 connections");
    proxy.signal(Signal::USR2);
    let pid = main_pid(&manager.wait_for("MAINPID="));
    assert_ne!(pid, proxy.id());
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    let _end = Ends(pid);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    // What the old one said last is out of the way.
    while manager
        .next()
        .is_some_and(|message| message != "WATCHDOG=1\n")
    {}
    manager.wait_for("WATCHDOG=1\n");
    manager.wait_for("WATCHDOG=1\n");
    client.expect_alive();
    kill_process(pid, Signal::TERM).expect("it runs");
    manager.wait_for("STOPPING=1\n");
}

/// systemd-socket-activate listens, and becomes the proxy at the first connection.
fn activate(files: &Files, listen: &[SocketAddr]) -> Proxy {
    let mut proxy = Proxy::spawn(files, |command| {
        let mut activate = Command::new("systemd-socket-activate");
        for address in listen {
            activate.arg("-l").arg(address.to_string());
        }
        activate
            .args(["-E", "RUST_LOG=info,pingora_core=warn", BINARY])
            .args(command.get_args())
            .current_dir(files.dir());
        *command = activate;
    });
    for address in listen {
        proxy.wait_for_log(&format!("Listening on {address}"));
    }
    proxy
}

#[test]
fn a_socket_of_systemd_is_served_with_the_connection_that_woke_it() {
    let (broker, port, own) = (Broker::mqtt(), free_port(), free_port());
    let files = Files::new(&config(&[port, own]), &routes(&broker));
    let mut proxy = activate(&files, &[local(port)]);
    let mut woke = Client::mqtt(port, &Connect::v311("first"));
    woke.expect_alive();
    let mut beside = Client::mqtt(own, &Connect::v311("bound-by-itself"));
    beside.expect_alive();
    proxy.signal(Signal::TERM);
    wait_until("the passed socket to close", SOON, || {
        TcpStream::connect(local(port)).is_err().then_some(())
    });
    drop((woke, beside));
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn a_socket_that_nobody_would_serve_is_a_wrong_configuration() {
    let (broker, port, other) = (Broker::mqtt(), free_port(), free_port());
    let files = Files::new(&config_with(&[port], ""), &routes(&broker));
    let mut proxy = activate(&files, &[local(other)]);
    let _woke = TcpStream::connect(local(other)).expect("it listens");
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(78));
    proxy.wait_for_log(&format!("LISTEN_FDS has a socket for 127.0.0.1:{other}"));
}

fn analyze(args: &[&str], unit: &Path) -> String {
    let output = Command::new("systemd-analyze")
        .args(args)
        .arg(unit)
        .output();
    let output = output.expect("systemd-analyze (scripts/install-deps.sh test installs it)");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_unit_is_exposed_by_2_0_at_most() {
    analyze(
        &["security", "--offline=true", "--threshold=20", "--no-pager"],
        Path::new(UNIT),
    );
}

#[test]
fn the_unit_is_correct_and_its_commands_are_those_of_the_binary() {
    let text = std::fs::read_to_string(UNIT).expect("the unit");
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("mqtt-proxy.service");
    std::fs::write(&unit, text.replace("/usr/bin/mqtt-proxy", BINARY)).expect("written");
    let said = analyze(&["verify", "--man=no"], &unit);
    assert_eq!(said, "", "warnings do not make systemd-analyze fail");

    let lines: HashSet<&str> = text.lines().collect();
    for needed in [
        "Type=notify",
        "NotifyAccess=all",
        "LimitNOFILE=1048576",
        "RestartPreventExitStatus=78",
        "RuntimeDirectoryMode=0700",
    ] {
        assert!(lines.contains(needed), "{needed}");
    }
    let commands = text.lines().filter_map(|line| {
        let (key, command) = line.split_once('=')?;
        key.starts_with("Exec")
            .then(|| command.trim_start_matches('-'))
    });
    let own = commands.filter_map(|command| command.strip_prefix("/usr/bin/mqtt-proxy "));
    let mut count = 0;
    for command in own {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        assert_eq!(support::cli(&args).code, 0, "{command}");
        count += 1;
    }
    assert_eq!(count, 3, "start, before it, and reload");
}
