//! Real mosquitto brokers and the command-line clients that come with them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::ports::{free_port, local};
use super::process::Process;
use super::proxy::Ran;
use super::wait::{SOON, wait_until};

const HINT: &str = "`make test` installs it (Debian: apt-get install mosquitto mosquitto-clients)";

/// A running mosquitto with its own folder.
pub struct Mosquitto {
    addr: SocketAddr,
    // Before the folder: mosquitto must not write into it while it is removed.
    process: Process,
    dir: TempDir,
}

impl Mosquitto {
    /// A broker on a free port of 127.0.0.1 that keeps its sessions on disk.
    pub fn start() -> Self {
        Self::start_at(local(free_port()))
    }

    /// The same with more lines about its listener, such as those of TLS.
    pub fn start_with(listener: &str) -> Self {
        Self::launch(local(free_port()), listener)
    }

    /// The same on this address.
    pub fn start_at(addr: SocketAddr) -> Self {
        Self::launch(addr, "")
    }

    fn launch(addr: SocketAddr, listener: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mosquitto-")
            .tempdir()
            .expect("temp dir");
        let text = format!(
            "listener {} {}\n{listener}allow_anonymous true\nuser root\npersistence true\n\
             persistence_location {}/\nautosave_interval 1\nautosave_on_changes true\n\
             log_dest stderr\nlog_type all\nconnection_messages true\n",
            addr.port(),
            addr.ip(),
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), text).expect("write");
        let process = spawn(dir.path());
        let mut broker = Self { addr, dir, process };
        broker.wait();
        broker
    }

    fn wait(&mut self) {
        wait_until("mosquitto to listen", SOON, || {
            assert!(
                self.process.is_running(),
                "mosquitto ended: {:?}",
                self.process.lines()
            );
            std::net::TcpStream::connect(self.addr).ok().map(drop)
        });
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it and starts it again on the same folder and port.
    pub fn restart(&mut self) {
        self.process.signal(rustix::process::Signal::TERM);
        self.process.wait_for_exit(SOON);
        self.process = spawn(self.dir.path());
        self.wait();
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`Mosquitto::kill`], on the same folder and port.
    pub fn start_again(&mut self) {
        self.process = spawn(self.dir.path());
        self.wait();
    }

    /// Whether a client with this id has connected to it since its last start.
    pub fn has_seen(&self, id: &str) -> bool {
        self.process.count(&format!(" as {id} (")) > 0
    }

    /// Waits until it has said that a client with this id has come.
    pub fn wait_for_client(&self, id: &str) {
        wait_until("the broker to tell of the client", SOON, || {
            self.has_seen(id).then_some(())
        });
    }

    /// Waits until it has confirmed a subscription of the client with this id.
    pub fn wait_for_subscriber(&self, id: &str) {
        wait_until("the broker to confirm the subscription", SOON, || {
            (self.process.count(&format!("Sending SUBACK to {id}")) > 0).then_some(())
        });
    }

    /// How often it has.
    pub fn times_seen(&self, id: &str) -> usize {
        self.process.count(&format!(" as {id} ("))
    }
}

fn spawn(dir: &Path) -> Process {
    let program = [
        "/usr/sbin/mosquitto",
        "/usr/local/sbin/mosquitto",
        "/opt/homebrew/sbin/mosquitto",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
    .unwrap_or("mosquitto");
    let mut command = Command::new(program);
    command.arg("-c").arg(dir.join("mosquitto.conf"));
    Process::spawn("mosquitto", &mut command, HINT)
}

/// Runs `mosquitto_pub` against a port of 127.0.0.1.
pub fn publish(port: u16, args: &[&str]) -> Ran {
    run("mosquitto_pub", port, args)
}

/// Runs `mosquitto_sub` until it has what it was told to wait for (`-C`, `-W`).
pub fn receive(port: u16, args: &[&str]) -> Ran {
    run("mosquitto_sub", port, args)
}

/// Starts a `mosquitto_sub` that runs beside the test and prints each message at once.
/// [`Mosquitto::wait_for_subscriber`] says when it has subscribed.
pub fn subscriber(port: u16, args: &[&str]) -> Process {
    let mut command = Command::new("stdbuf");
    command
        .args([
            "-oL",
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ])
        .args(args);
    Process::spawn("mosquitto_sub", &mut command, HINT)
}

fn run(program: &str, port: u16, args: &[&str]) -> Ran {
    let child = Command::new(program)
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}. {HINT}"));
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(Duration::from_secs(20)) {
        Ok(output) => output.expect("output").into(),
        Err(_) => {
            let pid = i32::try_from(id)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            let _ = rustix::process::kill_process(
                pid.expect("a process id"),
                rustix::process::Signal::KILL,
            );
            panic!("{program} {args:?} had not ended after 20 s");
        }
    }
}
