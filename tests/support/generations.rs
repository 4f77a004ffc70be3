//! A proxy that is upgraded: the process that was started, and those that came after it.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::files::Files;
use super::ports::local;
use super::proxy::{BINARY, Proxy, Ran, cli_with};
use super::wait::{SOON, wait_until};

/// What the log says when live connections have moved.
pub const HANDED_OVER: &str = "connections handed over to process";
/// What the log says when an upgrade did not come about.
pub const FAILED: &str = "upgrade failed, this process goes on serving";

/// A variable in the environment of every process of a proxy: the folder of its files.
const MARK: &str = "MQTT_PROXY_TEST_FOLDER";

/// The processes of one proxy. All of them end with this value, also those that no log line names.
pub struct Generations {
    proxy: Proxy,
    files: Files,
    current: u32,
}

/// One upgrade, as the log tells it.
#[derive(Debug, Clone, Copy)]
pub struct HandOver {
    /// The process that serves now.
    pub pid: u32,
    /// How many connections moved at once.
    pub connections: usize,
    /// How long that took, in milliseconds.
    pub millis: u64,
}

impl Generations {
    /// Starts the binary on these files and waits until it listens on these ports. Its runtime
    /// directory is a folder beside the files.
    pub fn start(files: &Files, ports: &[u16]) -> Self {
        Self::start_with(files, ports, |_| {})
    }

    /// The same with a changed command line or environment.
    pub fn start_with(files: &Files, ports: &[u16], change: impl FnOnce(&mut Command)) -> Self {
        Self::start_binary(BINARY.as_ref(), files, ports, change)
    }

    /// Starts a copy of the binary, which [`install`](Self::install) replaces.
    pub fn start_copy(files: &Files, ports: &[u16]) -> Self {
        let copy = files.path("mqtt-proxy");
        install(BINARY.as_ref(), &copy);
        Self::start_binary(&copy, files, ports, |_| {})
    }

    fn start_binary(
        binary: &Path,
        files: &Files,
        ports: &[u16],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let runtime = runtime_directory(files, "run");
        let proxy = Proxy::spawn_binary(binary, files, |command| {
            command.env("RUNTIME_DIRECTORY", &runtime);
            belongs_to(files, command);
            change(command);
        });
        let current = proxy.id();
        let generations = Self {
            proxy,
            files: files.clone(),
            current,
        };
        for port in ports {
            let line = format!("listening on {}", local(*port));
            generations.wait_for_output_after(0, &line, SOON);
        }
        generations
    }

    /// Puts this file where the copy of the binary is, as a package manager does.
    pub fn install(&self, binary: &Path) {
        install(binary, &self.files.path("mqtt-proxy"));
    }

    /// Puts this shell script there.
    pub fn install_script(&self, script: &str) {
        let text = self.files.path("script");
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).expect("write");
        self.install(&text);
    }

    /// Puts a script there that starts the real binary under the same name, with this runtime
    /// directory: the upgrade after the next one starts what is there, too.
    pub fn install_real_in(&self, runtime: &Path) {
        self.install_script(&format!(
            "export RUNTIME_DIRECTORY='{}'\n\
             exec bash -c 'exec -a \"$0\" \"{BINARY}\" \"$@\"' \"$0\" \"$@\"",
            runtime.display()
        ));
    }

    /// Puts the real binary there again.
    pub fn install_real(&self) {
        self.install(BINARY.as_ref());
    }

    /// The process that serves.
    pub fn current(&self) -> u32 {
        self.current
    }

    /// Says that another process serves now.
    pub fn set_current(&mut self, pid: u32) {
        self.current = pid;
    }

    /// Sends a signal to the process that serves.
    pub fn signal_current(&self, signal: Signal) {
        send_signal(self.current, signal);
    }

    /// Upgrades (SIGUSR2) and waits until the connections have moved, the old process has left and
    /// the new one has heard of it: the next upgrade may begin.
    pub fn upgrade(&mut self) -> HandOver {
        let (old, mark) = (self.current, self.mark());
        let moved = self.begin_upgrade();
        self.wait_until_gone(old);
        self.wait_until_taken_over(mark);
        moved
    }

    /// Waits for the line behind `mark` in which the new process says that the old one has left.
    pub fn wait_until_taken_over(&self, mark: usize) {
        self.wait_for_output_after(mark, "connections taken over", SOON);
    }

    /// Upgrades (SIGUSR2) and waits until the connections have moved.
    pub fn begin_upgrade(&mut self) -> HandOver {
        let mark = self.mark();
        self.signal_current(Signal::USR2);
        self.handed_over(mark)
    }

    /// Waits for the line behind `mark` that says that the connections have moved.
    pub fn handed_over(&mut self, mark: usize) -> HandOver {
        let line = self.wait_for_output_after(mark, HANDED_OVER, Duration::from_secs(60));
        let numbers: Vec<u64> = line
            .split_once("upgrade: ")
            .map_or(line.as_str(), |(_, said)| said)
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [connections, pid, millis] = numbers[..] else {
            panic!("not as expected: {line}");
        };
        self.current = pid as u32;
        HandOver {
            pid: self.current,
            connections: connections as usize,
            millis,
        }
    }

    /// Tries an upgrade that must fail; gives the line that says why.
    pub fn upgrade_in_vain(&self) -> String {
        let mark = self.mark();
        self.signal_current(Signal::USR2);
        self.wait_for_output_after(mark, FAILED, Duration::from_secs(60))
    }

    /// Runs `mqtt-proxy upgrade` on the process that serves, and says what it printed.
    pub fn ask_to_upgrade(&self) -> Ran {
        ask_to_upgrade(&self.files, &self.runtime())
    }

    /// The same, and the new process serves.
    pub fn upgrade_by_command(&mut self) -> Ran {
        let ran = self.ask_to_upgrade();
        assert_eq!(ran.code, 0, "{}", ran.all());
        let said = ran.stdout.split_once("upgraded: process ");
        let pid = said.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        self.current = pid.unwrap_or_else(|| panic!("{}", ran.all()));
        ran
    }

    /// Waits for the end of a process.
    pub fn wait_until_gone(&mut self, pid: u32) {
        wait_until(&format!("process {pid} to leave"), SOON, || {
            // The first process is a child of this one: it must be reaped.
            (!self.proxy.is_running() || pid != self.proxy.id()).then_some(())?;
            (!runs(pid)).then_some(())
        });
    }

    /// How many descriptors the process that serves has.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.current)).map_or(0, Iterator::count)
    }

    /// CPU time that the process which serves has used since it started, on all its threads.
    pub fn cpu(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.current));
        let used = threads
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|thread| {
                let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
                text.split(' ').next()?.parse::<u64>().ok()
            });
        Duration::from_nanos(used.sum::<u64>())
    }

    /// The runtime directory of the process that serves.
    pub fn runtime(&self) -> PathBuf {
        let environment = fs::read(format!("/proc/{}/environ", self.current)).unwrap_or_default();
        let own = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(b"RUNTIME_DIRECTORY="))
            .and_then(|folder| String::from_utf8(folder.to_vec()).ok());
        own.map_or_else(|| self.files.path("run"), PathBuf::from)
    }

    /// Waits until `mqtt-proxy upgrade` finds the process that serves.
    pub fn wait_until_found(&self) {
        let runtime = self.runtime();
        let runtime = runtime.strip_prefix("/").unwrap_or(&runtime);
        // As the process sees it: it may have mounts of its own.
        let folder = Path::new(&format!("/proc/{}/root", self.current)).join(runtime);
        wait_until("the socket of the process that serves", SOON, || {
            let names = fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names
                .any(|name| name.starts_with("control-") && name.ends_with(".sock"))
                .then_some(())
        });
    }

    /// Another one, for a process that the one that serves is not to meet by itself.
    pub fn other_runtime(&self) -> PathBuf {
        let names = ["run", "apart"].map(|name| runtime_directory(&self.files, name));
        let own = self.runtime();
        names
            .into_iter()
            .find(|folder| *folder != own)
            .expect("two")
    }

    /// Every process of this proxy that runs now.
    pub fn processes(&self) -> Vec<u32> {
        processes_of(&self.files)
    }
}

impl Deref for Generations {
    type Target = Proxy;
    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl DerefMut for Generations {
    fn deref_mut(&mut self) -> &mut Proxy {
        &mut self.proxy
    }
}

impl Drop for Generations {
    fn drop(&mut self) {
        end_all(&self.files);
    }
}

/// Runs `mqtt-proxy upgrade` on the proxy with these files and this runtime directory.
pub fn ask_to_upgrade(files: &Files, runtime: &Path) -> Ran {
    let config = files.config_path();
    let arguments = ["upgrade".as_ref(), "-c".as_ref(), config.as_os_str()];
    cli_with(&arguments, |command| {
        command.env("RUNTIME_DIRECTORY", runtime);
    })
}

/// Marks a process and all that come from it, so that [`end_all`] finds them.
pub fn belongs_to(files: &Files, command: &mut Command) {
    command.env(MARK, files.dir());
}

/// A folder beside the files, for `RUNTIME_DIRECTORY`.
pub fn runtime_directory(files: &Files, name: &str) -> PathBuf {
    let folder = files.path(name);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Kills every process that belongs to these files.
pub fn end_all(files: &Files) {
    // A process that dies may have started one more meanwhile.
    for _ in 0..50 {
        let found = processes_of(files);
        if found.is_empty() {
            return;
        }
        for pid in found {
            send_signal(pid, Signal::KILL);
        }
        std::thread::yield_now();
    }
}

/// Sends a signal to one process, which may be gone.
pub fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process id"), signal);
}

/// Stops a process (SIGSTOP), and waits until all its threads stand still.
pub fn stop(pid: u32) {
    send_signal(pid, Signal::STOP);
    wait_until("every thread to stop", SOON, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        let mut states = threads.flatten().map(|thread| state(&thread.path()));
        states.all(|state| state == Some('T')).then_some(())
    });
}

/// Whether the process runs: a zombie does not.
pub fn runs(pid: u32) -> bool {
    let state = state(format!("/proc/{pid}").as_ref());
    state.is_some_and(|state| !['Z', 'X'].contains(&state))
}

/// The state of a process or thread by its folder in /proc; `None` when it is gone.
fn state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn processes_of(files: &Files) -> Vec<u32> {
    let mark = format!("{MARK}={}\0", files.dir().display());
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let found = environment
                .windows(mark.len())
                .any(|part| part == mark.as_bytes());
            found && runs(*pid)
        })
        .collect()
}

/// Puts an executable file in place by rename. Another process writes it: a descriptor that this
/// one has open for writing could be inherited by any child that is just being started, and Linux
/// does not execute a file that somebody can write to.
fn install(from: &Path, to: &Path) {
    let fresh = to.with_extension("fresh");
    let installed = Command::new("install")
        .args(["-m", "755"])
        .args([from, &fresh])
        .status();
    assert!(installed.is_ok_and(|status| status.success()), "install");
    fs::rename(fresh, to).expect("rename");
}
