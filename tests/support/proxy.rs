//! The proxy under test: the real binary, as a child process.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::files::Files;
use super::ports::local;
use super::process::Process;
use super::wait::{SOON, wait_until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_mqtt-proxy");

/// A running `mqtt-proxy run`.
pub struct Proxy {
    process: Process,
    /// The files that it was started on live as long as it does.
    _files: Files,
}

impl Proxy {
    /// Starts it on `files` and waits until it listens on these ports of 127.0.0.1.
    pub fn start(files: &Files, ports: &[u16]) -> Self {
        let addrs: Vec<SocketAddr> = ports.iter().map(|port| local(*port)).collect();
        Self::start_at(files, &addrs)
    }

    /// Starts it and waits until it listens on these addresses.
    pub fn start_at(files: &Files, addrs: &[SocketAddr]) -> Self {
        Self::start_with(files, addrs, |_| {})
    }

    /// The same with a changed command line or environment.
    pub fn start_with(
        files: &Files,
        addrs: &[SocketAddr],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let mut proxy = Self::spawn(files, change);
        for addr in addrs {
            proxy.wait_for_log(&format!("listening on {addr}"));
        }
        proxy
    }

    /// Starts it and waits for nothing.
    pub fn spawn(files: &Files, change: impl FnOnce(&mut Command)) -> Self {
        Self::spawn_binary(BINARY.as_ref(), files, change)
    }

    /// Starts a copy of the binary and waits for nothing.
    pub fn spawn_binary(binary: &Path, files: &Files, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(binary);
        command
            .arg("run")
            .arg("-c")
            .arg(files.config_path())
            .current_dir(files.dir());
        clean_environment(&mut command);
        change(&mut command);
        let process = Process::spawn("mqtt-proxy", &mut command, "cargo builds it");
        Self {
            process,
            _files: files.clone(),
        }
    }

    /// Waits for a line of the log that contains `text`.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        self.wait_for_line_after(0, text, SOON)
    }

    /// Waits for such a line behind `mark` (see [`Process::mark`]).
    pub fn wait_for_log_after(&mut self, mark: usize, text: &str) -> String {
        self.wait_for_line_after(mark, text, SOON)
    }

    /// Runs `change` (which edits the files) and waits until the proxy says that it applied a
    /// reload. SIGHUP makes it look at once.
    pub fn reload(&mut self, change: impl FnOnce()) {
        let mark = self.mark();
        change();
        self.signal(Signal::HUP);
        // The proxy may have seen the change by itself, and says so twice then.
        let heard = self.wait_for_log_after(mark, "SIGHUP: ");
        let lines = self.lines();
        let behind = lines.iter().skip(mark).position(|line| *line == heard);
        self.wait_for_log_after(mark + behind.unwrap_or(0), " reloaded");
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit(SOON)
    }

    /// Resident memory of the process in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the proxy runs");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("VmRSS")
    }

    /// CPU time that the process has used so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("stat");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split_whitespace()
            .collect();
        let ticks = |i: usize| {
            fields
                .get(i)
                .and_then(|t| t.parse::<u64>().ok())
                .expect("ticks")
        };
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// Waits until the proxy holds no accepted socket of the listener `port` any more, whatever
    /// its state: an orphan that only the kernel still knows has no inode.
    pub fn wait_until_idle(&self, port: u16) {
        wait_until("the proxy to close its accepted sockets", SOON, || {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
            let local = format!(":{port:04X}");
            let busy = table.lines().skip(1).any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let here = fields.get(1).is_some_and(|addr| addr.ends_with(&local));
                let listening = fields.get(3) == Some(&"0A");
                let orphan = fields.get(9) == Some(&"0");
                here && !listening && !orphan
            });
            (!busy).then_some(())
        });
    }
}

impl Deref for Proxy {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Proxy {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// What a command of the binary printed, and its exit code.
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code; -1 after a signal.
    pub code: i32,
}

impl Ran {
    /// Both outputs, for messages.
    pub fn all(&self) -> String {
        format!(
            "exit {}\nstdout:\n{}stderr:\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

/// Runs a command of the binary that ends by itself (`check`, `explain`, …).
///
/// # Panics
/// When it has not ended after 30 seconds: it is killed.
pub fn cli<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Ran {
    cli_with(args, |_| {})
}

/// The same with a changed environment or folder.
pub fn cli_with<S: AsRef<std::ffi::OsStr>>(args: &[S], change: impl FnOnce(&mut Command)) -> Ran {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    clean_environment(&mut command);
    change(&mut command);
    let child = command.spawn().expect("the binary starts");
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(Duration::from_secs(30)) {
        Ok(output) => output.expect("output").into(),
        Err(_) => {
            let pid = i32::try_from(id)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            let _ = rustix::process::kill_process(pid.expect("a process id"), Signal::KILL);
            panic!("the command had not ended after 30 s");
        }
    }
}

/// Nothing of the caller's environment may steer the proxy under test.
fn clean_environment(command: &mut Command) {
    command
        .env_remove("RUST_LOG")
        .env_remove("APISIX_PROFILE")
        .env_remove("NO_COLOR");
}
