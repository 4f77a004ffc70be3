//! A proxy with live connections that is about to be upgraded.

use std::thread::JoinHandle;
use std::time::Duration;

use mqtt_proxy::upgrade::channel::Channel;
use rustix::process::Signal;

use super::broker::Broker;
use super::client::Client;
use super::files::{Files, config};
use super::generations::{FAILED, Generations, ask_to_upgrade};
use super::handover::{Waiting, connect, socket_in};
use super::mqtt::Connect;
use super::ports::free_port;
use super::proxy::{BINARY, Ran};
use super::wait::{SOON, wait_until};

/// A proxy started from a copy of the binary, with live connections.
pub struct Served {
    /// Its only broker.
    pub broker: Broker,
    /// Its processes.
    pub proxy: Generations,
    /// Its files.
    pub files: Files,
    /// Where it listens.
    pub port: u16,
    /// The connections that must live.
    pub live: Vec<Client>,
}

/// Whether the connection to this port of 127.0.0.1 from that one has been accepted: it has an inode
/// from then on.
pub fn is_accepted(port: u16, from: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let ends = format!("0100007F:{port:04X} 0100007F:{from:04X} ");
    let line = table.lines().find(|line| line.contains(&ends));
    let inode = line.and_then(|line| line.split_whitespace().nth(9));
    inode.is_some_and(|inode| inode != "0")
}

/// One MQTT route to this broker.
pub fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

impl Served {
    /// A proxy with this many live connections.
    pub fn with(live: usize) -> Self {
        let broker = Broker::mqtt();
        let port = free_port();
        let files = Files::new(&config(&[port]), &routes(&broker));
        let proxy = Generations::start_copy(&files, &[port]);
        proxy.wait_until_found();
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
    pub fn expect_all_well(&mut self) {
        self.live.iter_mut().for_each(Client::expect_alive);
        // More than once: no second process may take any of them from the queue.
        for _ in 0..8 {
            let mut new = Client::mqtt(self.port, &Connect::v311("new"));
            new.expect_alive();
            // The pair is gone before the next step, in which it would be counted.
            new.finish_sending();
            new.expect_fin();
        }
    }

    /// The process of before serves alone, and an upgrade works now.
    pub fn expect_as_before(&mut self) {
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

    /// A client in the middle of CONNECT, which the process that serves has accepted, and the rest
    /// of its CONNECT.
    pub fn slow(&self) -> (Client, Vec<u8>) {
        let connect = Connect::v311("slow").build();
        let mut client = Client::to(self.port);
        client.send(&connect[..7]);
        let (far, near) = (self.port, client.local_addr().port());
        wait_until("the slow client to be accepted", SOON, || {
            is_accepted(far, near).then_some(())
        });
        (client, connect[7..].to_vec())
    }

    /// Waits as a new process would, and has the old one come.
    pub fn as_new_process(&self) -> Channel {
        let waiting = Waiting::at(socket_in(&self.proxy.runtime(), &self.files));
        self.proxy.signal_current(Signal::QUIT);
        waiting.accept()
    }

    /// Has the old process start a real new one, with the test between the two: the channels to
    /// the old and the new one.
    pub fn in_the_middle(&self) -> (Channel, Channel) {
        self.in_the_middle_of(|| self.proxy.signal_current(Signal::USR2))
    }

    /// The same when `mqtt-proxy upgrade` asks for it; what that prints comes later.
    pub fn in_the_middle_of_a_command(&self) -> (Channel, Channel, JoinHandle<Ran>) {
        let (files, runtime) = (self.files.clone(), self.proxy.runtime());
        let mut command = None;
        let start = || command = Some(std::thread::spawn(move || ask_to_upgrade(&files, &runtime)));
        let (old, new) = self.in_the_middle_of(start);
        (old, new, command.expect("it was started"))
    }

    fn in_the_middle_of(&self, start: impl FnOnce()) -> (Channel, Channel) {
        let apart = self.proxy.other_runtime();
        self.proxy.install_real_in(&apart);
        let waiting = Waiting::at(socket_in(&self.proxy.runtime(), &self.files));
        start();
        let old = waiting.accept();
        (old, connect(&socket_in(&apart, &self.files)))
    }

    /// Waits for the line behind `mark` that says that the upgrade failed.
    pub fn failed(&self, mark: usize) -> String {
        let within = Duration::from_secs(60);
        self.proxy.wait_for_output_after(mark, FAILED, within)
    }

    /// The other process than the one that serves.
    pub fn other_process(&self) -> u32 {
        let own = self.proxy.current();
        let all = self.proxy.processes();
        let others: Vec<u32> = all.into_iter().filter(|pid| *pid != own).collect();
        assert_eq!(others.len(), 1, "one other process");
        others[0]
    }
}
