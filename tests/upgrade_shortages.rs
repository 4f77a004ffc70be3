//! Upgrades of a proxy that is short of something: descriptors, disk, a folder to write to.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mqtt_proxy::upgrade::channel::Channel;
use rustix::process::Signal;
use support::generations::{FAILED, Generations, runtime_directory};
use support::handover::{
    carry_all, expect, forward, forward_listeners, forward_to_listening, kind, pass,
};
use support::proxy::{BINARY, Ran, cli_with};
use support::served::{Served, routes};
use support::wait::wait_until_still;
use support::{Broker, Client, Connect, Files, SOON, config, config_with, free_port};

/// It failed and says why, on the terminal and in the log.
fn failed(ran: &Ran, why: &str) {
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(
        ran.stderr.contains("goes on serving") && ran.stderr.contains(why),
        "{why}: {}",
        ran.all()
    );
}

#[test]
fn a_new_process_that_may_not_open_enough_files_says_so_before_anything_stands_still() {
    let mut served = Served::with(150);
    served
        .proxy
        .install_script(&format!("ulimit -n 200; exec '{BINARY}' \"$@\""));
    let mark = served.proxy.mark();
    let ran = served.proxy.ask_to_upgrade();
    failed(&ran, "150 connections and 1 listeners take 366 open files");
    let line = served.failed(mark);
    assert!(line.contains("the limit of process"), "{line}");
    served.expect_as_before();
}

/// Everything up to the answer to COMMIT, with a HELLO that does not say how much there is to take:
/// that of the first version.
fn forward_unannounced(old: &Channel, new: &Channel) {
    let mut hello = expect(old, kind::HELLO);
    let mut text: serde_json::Value = serde_json::from_slice(&hello.payload).expect("JSON");
    let fields = text.as_object_mut().expect("an object");
    fields.retain(|name, _| ["protocol", "version", "pid"].contains(&name.as_str()));
    hello.payload = serde_json::to_vec(&text).expect("JSON");
    pass(&hello, new).expect("the new process takes it");
    forward(new, old, kind::READY);
    forward_listeners(old, new);
    forward(new, old, kind::LISTENING);
}

#[test]
fn a_new_process_that_runs_out_of_descriptors_refuses_at_once() {
    let mut served = Served::with(150);
    let (old, new, command) = served.in_the_middle_of_a_command();
    let new_process = served.other_process();
    forward_unannounced(&old, &new);
    // As many as it has, and a few more.
    let limit = rustix::process::Rlimit {
        current: Some(120),
        maximum: Some(120),
    };
    let pid = rustix::process::Pid::from_raw(new_process as i32);
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).expect("prlimit");
    // It may be gone before it has got everything.
    loop {
        let frame = old.receive().expect("a message").expect("a message");
        let last = frame.kind == kind::COMMIT;
        let _ = pass(&frame, &new);
        if last {
            break;
        }
    }
    let refused = expect(&new, kind::REFUSED);
    let why = String::from_utf8_lossy(&refused.payload).into_owned();
    assert!(why.contains("limit of open files"), "{why}");
    pass(&refused, &old).expect("the old process takes it");
    let ran = command.join().expect("the command");
    failed(&ran, "limit of open files");
    drop((old, new));
    served.expect_as_before();
}

#[test]
fn what_a_refused_old_process_was_still_sending_does_not_hide_the_reason() {
    let mut served = Served::with(400);
    let mark = served.proxy.mark();
    let old = served.as_new_process();
    expect(&old, kind::HELLO);
    let hello = "{\"protocol\":1,\"version\":\"9\",\"pid\":1}";
    old.send(kind::READY, hello.as_bytes(), &[]).expect("READY");
    expect(&old, kind::LISTENERS);
    expect(&old, kind::STATE);
    old.send(kind::LISTENING, b"null", &[]).expect("LISTENING");
    expect(&old, kind::PAIRS);
    // The rest is never read.
    old.send(kind::REFUSED, b"\"no more\"", &[])
        .expect("REFUSED");
    drop(old);
    let line = served.failed(mark);
    assert!(line.contains("refuses: no more"), "{line}");
    served.expect_as_before();
}

/// A proxy in a mount namespace of its own, where its runtime directory and `full` (a folder
/// beside its files) are small file systems.
struct Apart {
    broker: Broker,
    proxy: Generations,
    files: Files,
    port: u16,
    live: Vec<Client>,
}

impl Apart {
    /// `None`, with the reason printed, where namespaces cannot be had.
    fn start(more: &str) -> Option<Self> {
        let probe = Command::new("unshare")
            .args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .output();
        let possible = match &probe {
            Ok(output) => output.status.success(),
            Err(_) => false,
        };
        if !possible {
            eprintln!("skipped: no mount namespace can be had here: {probe:?}");
            return None;
        }
        let (broker, port) = (Broker::mqtt(), free_port());
        let files = Files::new(&config_with(&[port], more), &routes(&broker));
        let (run, full) = (
            runtime_directory(&files, "run"),
            runtime_directory(&files, "full"),
        );
        let proxy = Generations::start_with(&files, &[port], |command| {
            let mut unshare = Command::new("unshare");
            let mounts = format!(
                "mount -t tmpfs -o size=64k,nr_inodes=16 tmpfs '{}' && \
                 mount -t tmpfs -o size=64k,nr_inodes=16 tmpfs '{}' && exec \"$@\"",
                run.display(),
                full.display()
            );
            unshare.args(["--mount", "sh", "-c", &mounts, "sh", BINARY]);
            unshare.args(command.get_args()).current_dir(files.dir());
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => unshare.env(name, value),
                    None => unshare.env_remove(name),
                };
            }
            *command = unshare;
        });
        proxy.wait_until_found();
        let live = (0..10)
            .map(|n| Client::mqtt(port, &Connect::v311(&format!("c{n}"))))
            .collect();
        Some(Self {
            broker,
            proxy,
            files,
            port,
            live,
        })
    }

    /// A path as the proxy sees it.
    fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.proxy.current()));
        root.join(path.strip_prefix("/").expect("absolute"))
    }

    /// Runs a command where the proxy runs.
    fn inside(&self, command: &[&str]) -> bool {
        let pid = self.proxy.current().to_string();
        let status = Command::new("nsenter")
            .args(["-t", &pid, "-m", "--"])
            .args(command)
            .status();
        status.is_ok_and(|status| status.success())
    }

    /// Fills the file system below this folder, files and bytes.
    fn fill(&self, folder: &Path) {
        let folder = self.seen(folder);
        for n in 0.. {
            let written = std::fs::write(folder.join(format!("filler-{n}")), [0; 8192]);
            if written.is_err() && n >= 16 {
                return;
            }
        }
    }

    fn make_room(&self, folder: &Path) {
        let entries = std::fs::read_dir(self.seen(folder)).expect("the folder");
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                std::fs::remove_file(entry.path()).expect("remove");
            }
        }
    }

    fn ask_to_upgrade(&self) -> Ran {
        let config = self.files.config_path();
        let arguments = ["upgrade".as_ref(), "-c".as_ref(), config.as_os_str()];
        let runtime = self.seen(&self.proxy.runtime());
        cli_with(&arguments, |command| {
            command.env("RUNTIME_DIRECTORY", runtime);
        })
    }

    /// An upgrade fails with this in the log, and nothing has changed.
    fn fails(&mut self, why: &str) {
        let mark = self.proxy.mark();
        let ran = self.ask_to_upgrade();
        failed(&ran, "exit status: 1");
        self.proxy.wait_for_output_after(mark, FAILED, SOON);
        self.proxy.wait_for_output_after(mark, why, SOON);
        self.all_well();
    }

    fn all_well(&mut self) {
        self.live.iter_mut().for_each(Client::expect_alive);
        for _ in 0..4 {
            Client::mqtt(self.port, &Connect::v311("new")).expect_alive();
        }
    }

    /// And now it works.
    fn succeeds(&mut self) {
        let old = self.proxy.current();
        let ran = self.ask_to_upgrade();
        assert_eq!(ran.code, 0, "{}", ran.all());
        let said = ran.stdout.split_once("upgraded: process ");
        let pid = said.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        self.proxy.set_current(pid.expect("a process id"));
        self.proxy.wait_until_gone(old);
        self.all_well();
        assert!(self.broker.accepted() >= self.live.len());
    }
}

#[test]
fn a_runtime_directory_without_room_changes_nothing() {
    let Some(mut apart) = Apart::start("") else {
        return;
    };
    let run = apart.proxy.runtime();
    apart.fill(&run);
    apart.fails("No space left on device");
    apart.make_room(&run);
    apart.succeeds();
}

#[test]
fn a_runtime_directory_that_cannot_be_written_to_changes_nothing() {
    let Some(mut apart) = Apart::start("") else {
        return;
    };
    let run = apart.proxy.runtime();
    let run = run.to_str().expect("a path");
    assert!(apart.inside(&["mount", "-o", "remount,ro", run]));
    apart.fails("Read-only file system");
    assert!(apart.inside(&["mount", "-o", "remount,rw", run]));
    apart.succeeds();
}

#[test]
fn a_full_disk_below_the_access_log_changes_nothing() {
    let Some(mut apart) = Apart::start("mqtt_proxy:\n  access_log: {path: full/access.log}\n")
    else {
        return;
    };
    let full = apart.files.path("full");
    apart.fill(&full);
    // The file is there: its lines are lost and nothing else.
    apart.succeeds();
    // It cannot be made, and the operator wants it.
    std::fs::remove_file(apart.seen(&full.join("access.log"))).expect("remove");
    apart.fill(&full);
    apart.fails("No space left on device");
    apart.make_room(&full);
    apart.succeeds();
}

#[test]
fn a_standard_error_that_takes_nothing_changes_nothing() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    let mut served = Served::with(10);
    // The new process cannot say anything; its exit code does.
    served
        .proxy
        .install_script(&format!("exec '{BINARY}' \"$@\" 2>/dev/full"));
    served.files.replace("config.yaml", "apisix: [\n");
    let ran = served.proxy.ask_to_upgrade();
    assert_eq!(ran.code, 78, "{}", ran.all());
    let taken = free_port();
    let holder = std::net::TcpListener::bind(support::local(taken)).expect("bind");
    served
        .files
        .replace("config.yaml", config(&[served.port, taken]));
    let ran = served.proxy.ask_to_upgrade();
    failed(&ran, &taken.to_string());
    served.expect_all_well();
    drop(holder);
    served.files.replace("config.yaml", config(&[served.port]));
    let old = served.proxy.current();
    served.proxy.upgrade_by_command();
    served.proxy.wait_until_gone(old);
    served.expect_all_well();
    served.proxy.signal_current(Signal::TERM);
}

#[test]
fn what_slow_receivers_are_owed_moves_in_rounds_of_a_bounded_size() {
    let mut served = Served::with(0);
    // It sends more than all buffers on the way take.
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let broker = Broker::scripted(move |mut conn| {
        if conn.accept_mqtt() {
            while conn.send(&[7; 65_536]) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let text = routes(&broker);
    served.proxy.reload(|| served.files.replace_routes(text));
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| Client::mqtt(served.port, &Connect::v311(&format!("slow-{n}"))))
        .collect();
    const CLIENTS: usize = 48;
    // Bytes of each message of a round, the rounds one behind the other.
    let rounds = Arc::new(Mutex::new(vec![Vec::new()]));
    for _ in 0..2 {
        wait_until_still("the buffers to be full", || written.load(Ordering::SeqCst));
        let old = served.proxy.current();
        let (middle, new) = served.in_the_middle();
        let seen = rounds.clone();
        forward_to_listening(&middle, &new);
        let next = served.other_process();
        carry_all(middle, new, move |frame| {
            let mut rounds = seen.lock().expect("rounds");
            match frame.kind {
                kind::COMMIT => rounds.push(Vec::new()),
                kind::PAIRS => rounds.last_mut().expect("one").push(frame.payload.len()),
                _ => {}
            }
            drop(rounds);
            frame
        });
        served.proxy.wait_until_gone(old);
        served.proxy.set_current(next);
    }
    // How much is owed, and so how many rounds there are, depends on the buffers of the moment.
    let rounds = rounds.lock().expect("rounds");
    let sizes: Vec<usize> = rounds.iter().map(|round| round.iter().sum()).collect();
    assert!(sizes.iter().sum::<usize>() > 1 << 20, "owed: {sizes:?}");
    assert!(sizes.iter().all(|size| *size < 17 << 20), "{sizes:?}");
    let mut messages = rounds.iter().flatten();
    assert!(messages.all(|size| *size < 5 << 20), "{rounds:?}");
    for client in &mut clients {
        let got = client.read_exactly(8 << 20);
        assert!(got.iter().all(|byte| *byte == 7));
    }
}
