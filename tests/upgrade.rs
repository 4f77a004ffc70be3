//! Upgrades of the running binary: listeners and live connections move to a new process, and
//! nobody notices.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::generations::{Generations, belongs_to, runs, send_signal};
use support::handover::socket_in;
use support::mqtt::{ACCEPTED, PINGREQ};
use support::ports::BlackHole;
use support::random::Random;
use support::wait::wait_until_still;
use support::{
    Broker, Client, Connect, End, Files, Proxy, SOON, config, config_with, free_port, free_ports,
    wait_until,
};

/// One MQTT route `fleet` over this upstream (YAML flow form, without braces).
fn routes(upstream: &str) -> String {
    format!(
        "stream_routes:\n  - id: fleet\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{{upstream}}}\n#END\n"
    )
}

fn to(broker: &Broker) -> String {
    routes(&format!("nodes: {{\"{}\": 1}}", broker.addr()))
}

/// A proxy of one port in front of `broker`.
fn start(broker: &Broker, more: &str) -> (Generations, Files, u16) {
    let port = free_port();
    let files = Files::new(&config_with(&[port], more), &to(broker));
    (Generations::start(&files, &[port]), files, port)
}

fn client(port: u16, id: &str) -> Client {
    Client::mqtt(port, &Connect::v311(id))
}

#[test]
fn pingoras_way_a_second_process_with_upgrade_and_sigquit_to_the_first() {
    let broker = Broker::mqtt();
    let (mut proxy, files, port) = start(&broker, "");
    let mut live: Vec<Client> = (0..20).map(|n| client(port, &format!("c{n}"))).collect();
    let socket = socket_in(&files.path("run"), &files);
    let mut second = Proxy::spawn(&files, |command| {
        command.arg("--upgrade");
        command.env("RUNTIME_DIRECTORY", files.path("run"));
        belongs_to(&files, command);
    });
    wait_until("the second process to wait", SOON, || {
        socket.exists().then_some(())
    });
    // Nothing has changed yet.
    live.iter_mut().for_each(Client::expect_alive);
    client(port, "before").expect_alive();
    let (first, mark) = (proxy.current(), proxy.mark());
    send_signal(first, Signal::QUIT);
    let moved = proxy.handed_over(mark);
    assert_eq!(moved.pid, second.id());
    assert!(moved.connections >= 20, "{moved:?}");
    proxy.wait_until_gone(first);
    second.wait_for_log("upgrade: complete, ");
    live.iter_mut().for_each(Client::expect_alive);
    client(port, "after").expect_alive();
    assert!(!socket.exists(), "the socket is gone");
    // And the next one by SIGUSR2.
    proxy.set_current(second.id());
    let mark = second.mark();
    proxy.signal_current(Signal::USR2);
    second.wait_for_output_after(mark, "connections handed over to process", SOON);
    live.iter_mut().for_each(Client::expect_alive);
}

#[test]
fn sigquit_without_a_process_that_waits_changes_nothing() {
    let broker = Broker::mqtt();
    let (mut proxy, _files, port) = start(&broker, "");
    let mut live = client(port, "a");
    let mark = proxy.mark();
    proxy.signal_current(Signal::QUIT);
    let line = proxy.wait_for_log_after(mark, "upgrade failed");
    assert!(line.contains("no new process listens on"), "{line}");
    live.expect_alive();
    client(port, "b").expect_alive();
}

#[test]
fn half_closed_pairs_move() {
    let (told, tell) = mpsc::channel::<()>();
    let tell = Mutex::new(tell);
    // By the first byte behind CONNECT: the client ends first, or the broker does.
    let broker = Broker::scripted(move |mut conn| {
        if !conn.accept_mqtt() {
            return;
        }
        let mut first = [0];
        conn.read(&mut first);
        if first[0] == b'B' {
            conn.send(b"last words");
            conn.finish_sending();
            return conn.drain();
        }
        conn.drain();
        let _ = tell.lock().expect("tell").recv();
        conn.send(&vec![7; 300_000]);
    });
    let (mut proxy, _files, port) = start(&broker, "");
    let mut ended = client(port, "client-ends");
    ended.send(b"C and some more");
    ended.finish_sending();
    assert_eq!(broker.connection(0).wait_for_end(), End::Fin);
    let mut left = client(port, "broker-ends");
    left.send(b"B");
    left.expect(b"last words");
    left.expect_fin();
    let seen = broker.connection(1);
    for n in 0..3 {
        assert_eq!(proxy.upgrade().connections, 2, "upgrade {n}");
        left.send(PINGREQ);
        wait_until("bytes in the direction that is open", SOON, || {
            seen.received()
                .ends_with(&PINGREQ.repeat(n + 1))
                .then_some(())
        });
        assert_eq!(seen.end(), None);
    }
    told.send(()).expect("the broker waits");
    let (answer, end) = ended.read_to_end(SOON);
    assert_eq!((answer.len(), end), (300_000, End::Fin));
    assert!(answer.iter().all(|byte| *byte == 7));
    drop(left);
    assert_eq!(seen.wait_for_end(), End::Fin);
}

#[test]
fn pairs_that_owe_bytes_in_both_directions_move() {
    const SIZE: usize = 24 << 20;
    const PAIRS: usize = 3;
    let go = Arc::new(AtomicBool::new(false));
    let (written, opened) = (Arc::new(AtomicU64::new(0)), Arc::clone(&go));
    let by_brokers = Arc::clone(&written);
    let (up, down) = (Arc::new(numbered(1, SIZE)), Arc::new(numbered(2, SIZE)));
    let answer = Arc::clone(&down);
    // Nobody reads before `go`, both write as much as goes.
    let broker = Broker::scripted(move |mut conn| {
        if !conn.accept_mqtt() {
            return;
        }
        let mut writer = conn.stream.try_clone().expect("a socket");
        let (count, bytes) = (Arc::clone(&by_brokers), Arc::clone(&answer));
        let writing = std::thread::spawn(move || write_counted(&mut writer, &bytes, &count));
        wait_until(
            "the test to open the gates",
            Duration::from_secs(60),
            || opened.load(Ordering::SeqCst).then_some(()),
        );
        conn.drain();
        writing.join().expect("writing");
    });
    let (mut proxy, _files, port) = start(&broker, "");
    let mut writers = Vec::new();
    let mut clients = Vec::new();
    for n in 0..PAIRS {
        let client = client(port, &format!("c{n}"));
        let mut writer = client.stream.try_clone().expect("a socket");
        let (count, bytes) = (Arc::clone(&written), Arc::clone(&up));
        writers.push(std::thread::spawn(move || {
            write_counted(&mut writer, &bytes, &count);
            writer
                .shutdown(std::net::Shutdown::Write)
                .expect("shutdown");
        }));
        clients.push(client);
    }
    for _ in 0..3 {
        // Everything stands still when no writer has got on for a while.
        let before = wait_until_still("the buffers to be full", || {
            written.load(Ordering::SeqCst) as usize
        });
        assert!(before < 2 * PAIRS * SIZE, "the buffers are full");
        let moved = proxy.upgrade();
        assert_eq!(moved.connections, PAIRS, "{moved:?}");
    }
    go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        let (got, end) = client.read_up_to(SIZE, Duration::from_secs(60));
        assert_eq!((got.len(), end), (SIZE, None));
        assert!(got == *down, "the bytes to the client");
    }
    for writer in writers {
        writer.join().expect("writing");
    }
    for n in 0..PAIRS {
        let seen = broker.connection(n);
        seen.wait_for_end();
        let connect = Connect::v311(&format!("c{n}")).build();
        let received = seen.received();
        let found =
            (0..PAIRS).any(|n| received.starts_with(&Connect::v311(&format!("c{n}")).build()));
        assert!(found, "a CONNECT first");
        assert!(received[connect.len()..] == **up, "the bytes to the broker");
    }
}

/// `size` bytes of which every 4 KiB begin with their number, so that any disorder shows.
fn numbered(seed: u64, size: usize) -> Vec<u8> {
    let block = Random::new(seed).bytes(4096 - 8);
    let blocks =
        (0..size.div_ceil(4096) as u64).flat_map(|n| [n.to_be_bytes().to_vec(), block.clone()]);
    let mut bytes = blocks.collect::<Vec<_>>().concat();
    bytes.truncate(size);
    bytes
}

/// Writes these bytes in small pieces, counting them.
fn write_counted(stream: &mut std::net::TcpStream, bytes: &[u8], count: &AtomicU64) {
    use std::io::Write;
    for piece in bytes.chunks(16 << 10) {
        if stream.write_all(piece).is_err() {
            return;
        }
        count.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
}

#[test]
fn the_idle_timeout_carries_on() {
    let broker = Broker::mqtt();
    let port = free_port();
    let upstream = format!(
        "timeout: {{connect: 2, send: 7, read: 7}}, nodes: {{\"{}\": 1}}",
        broker.addr()
    );
    let files = Files::new(&config(&[port]), &routes(&upstream));
    let mut proxy = Generations::start(&files, &[port]);
    let mut silent = client(port, "silent");
    let since = Instant::now();
    silent.expect_alive();
    silent.expect_silence(Duration::from_secs(2));
    proxy.upgrade();
    silent.expect_silence(Duration::from_secs(2));
    proxy.upgrade();
    silent.expect_closed();
    // One that began anew with either upgrade would end after nine seconds, or eleven.
    let lasted = since.elapsed();
    assert!(
        (Duration::from_millis(6_800)..Duration::from_millis(8_900)).contains(&lasted),
        "{lasted:?}"
    );
}

#[test]
fn connections_on_their_way_finish_in_the_old_process_and_follow() {
    let hole = BlackHole::new();
    let broker = Broker::mqtt();
    let [port, past_the_hole] = free_ports();
    let route = "plugins: {mqtt-proxy: {protocol_level: 4}}";
    let text = format!(
        "stream_routes:\n  \
         - {{id: 1, server_port: {port}, {route}, upstream: {{nodes: {{\"{near}\": 1}}}}}}\n  \
         - {{id: 2, {route}, upstream: {{type: roundrobin, retries: 1, \
         timeout: {{connect: 8, send: 60, read: 60}}, nodes: \
         [{{host: 127.0.0.1, port: {}, weight: 1, priority: 1}}, \
         {{host: 127.0.0.1, port: {}, weight: 1, priority: 0}}]}}}}\n#END\n",
        hole.addr().port(),
        broker.port(),
        near = broker.addr(),
    );
    let files = Files::new(&config(&[port, past_the_hole]), &text);
    let mut proxy = Generations::start(&files, &[port, past_the_hole]);
    let mut settled = client(port, "settled");
    let connect = Connect::v311("in-the-middle-of-connect").build();
    let mut slow = Client::to(port);
    slow.send(&connect[..7]);
    let mut dialling = Client::to(past_the_hole);
    dialling.send(&Connect::v311("dialling").build());
    let seen = broker.accepted();
    wait_until("the old process to read the first half", SOON, || {
        (all_read(port) && all_read(past_the_hole)).then_some(())
    });
    let old = proxy.current();
    let moved = proxy.begin_upgrade();
    assert_eq!(moved.connections, 1);
    settled.expect_alive();
    assert!(runs(old), "the old process waits for two connections");
    assert_eq!(
        broker.accepted(),
        seen,
        "one client is still being connected"
    );
    dialling.expect(ACCEPTED);
    dialling.expect_alive();
    assert!(runs(old), "the old process waits for one connection");
    slow.send(&connect[7..]);
    slow.expect(ACCEPTED);
    slow.expect_alive();
    proxy.wait_until_gone(old);
    let moved = proxy.upgrade();
    assert_eq!(moved.connections, 3);
    for client in [&mut settled, &mut slow, &mut dialling] {
        client.expect_alive();
    }
}

/// Whether every byte that clients have sent to `port` has been read from the sockets of this
/// listener, and none waits to be accepted.
fn all_read(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let here = format!(":{port:04X}");
    // Most lines of a busy machine are of other ports, and there may be a hundred thousand.
    let mut lines = table.lines().filter(|line| line.contains(&here));
    lines.all(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1).is_some_and(|addr| addr.ends_with(&here));
        // The queue that the kernel holds for the process; of a listener, what is not accepted.
        !local
            || fields
                .get(4)
                .is_some_and(|queues| queues.ends_with(":00000000"))
    })
}

#[test]
fn a_client_that_was_accepted_and_waits_for_a_place_is_not_cut() {
    let broker = Broker::mqtt();
    let (mut proxy, _files, port) =
        start(&broker, "mqtt_proxy:\n  limits:\n    max_connections: 2\n");
    let mut live = [client(port, "one"), client(port, "two")];
    let mut waiting = Client::to(port);
    waiting.send(&Connect::v311("three").build());
    waiting.expect_silence(Duration::from_millis(200));
    let old = proxy.current();
    proxy.begin_upgrade();
    live.iter_mut().for_each(Client::expect_alive);
    drop(live);
    waiting.expect(ACCEPTED);
    waiting.expect_alive();
    proxy.wait_until_gone(old);
    waiting.expect_alive();
}

#[test]
fn a_second_upgrade_while_the_first_old_process_still_waits_loses_nobody() {
    let broker = Broker::mqtt();
    let (mut proxy, _files, port) = start(&broker, "");
    let mut settled = client(port, "settled");
    let connect = Connect::v311("slow").build();
    let mut slow = Client::to(port);
    slow.send(&connect[..7]);
    wait_until("the old process to read the first half", SOON, || {
        all_read(port).then_some(())
    });
    let (first, start) = (proxy.current(), proxy.mark());
    proxy.begin_upgrade();
    let second = proxy.current();
    // Refused or put off, both is well.
    let mark = proxy.mark();
    proxy.signal_current(Signal::USR2);
    wait_until("the second process to react", SOON, || {
        let lines = proxy.lines();
        let said = |text: &str| lines[mark..].iter().any(|line| line.contains(text));
        (said("ERROR") || said("handed over") || said("under way")).then_some(())
    });
    slow.send(&connect[7..]);
    slow.expect(ACCEPTED);
    slow.expect_alive();
    settled.expect_alive();
    proxy.wait_until_gone(first);
    proxy.wait_until_taken_over(start);
    if runs(second) {
        proxy.upgrade();
    }
    slow.expect_alive();
    settled.expect_alive();
    client(port, "new").expect_alive();
    assert_eq!(proxy.processes().len(), 1);
}

/// A service manager that listens on `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Manager {
    fn new(files: &Files) -> Self {
        let path = files.path("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(SOON)).expect("timeout");
        Self { socket, path }
    }

    /// Waits for a message with this line, and returns the message.
    fn wait_for(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let count = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("no message says {line}: {e}"));
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if message.lines().any(|found| found == line) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_follows_the_main_process() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &to(&broker));
    let manager = Manager::new(&files);
    let mut proxy = Generations::start_with(&files, &[port], |command| {
        command.env("NOTIFY_SOCKET", &manager.path);
    });
    manager.wait_for("READY=1");
    let mut live = client(port, "a");
    for _ in 0..2 {
        let moved = proxy.upgrade();
        let message = manager.wait_for(&format!("MAINPID={}", moved.pid));
        assert!(message.lines().any(|line| line == "READY=1"), "{message}");
    }
    live.expect_alive();
    proxy.signal_current(Signal::TERM);
    manager.wait_for("STOPPING=1");
    live.expect_alive();
    drop(live);
    let last = proxy.current();
    proxy.wait_until_gone(last);
}

#[test]
fn the_upgrade_socket_is_private_and_goes_away() {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &to(&broker));
    // Without a runtime directory from systemd.
    let plain = |command: &mut std::process::Command| {
        command.env_remove("RUNTIME_DIRECTORY");
        command.env("TMPDIR", files.dir());
        belongs_to(&files, command);
    };
    let mut proxy = Generations::start_with(&files, &[port], plain);
    let mut live = client(port, "a");
    let mut second = Proxy::spawn(&files, |command| {
        command.arg("--upgrade");
        plain(command);
    });
    let name = socket_in(Path::new(""), &files);
    let user = rustix::process::geteuid().as_raw();
    let folders = [
        std::path::PathBuf::from("/run/mqtt-proxy"),
        files.path(&format!("mqtt-proxy-{user}")),
    ];
    let socket = wait_until("the socket", SOON, || {
        let mut places = folders.iter().map(|folder| folder.join(&name));
        places.find(|place| place.exists())
    });
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    wait_until("the mode of the socket", SOON, || {
        (mode(&socket) == 0o600).then_some(())
    });
    assert_eq!(mode(socket.parent().expect("a folder")), 0o700);
    let (first, mark) = (proxy.current(), proxy.mark());
    proxy.signal_current(Signal::QUIT);
    assert_eq!(proxy.handed_over(mark).pid, second.id());
    proxy.wait_until_gone(first);
    assert!(!socket.exists(), "it is gone");
    live.expect_alive();
    second.signal(Signal::INT);
    second.wait_for_exit(SOON);
    assert!(!socket.exists(), "and stays away");
}

#[test]
fn a_process_of_another_configuration_is_not_met() {
    let broker = Broker::mqtt();
    let (mut proxy, _files, port) = start(&broker, "");
    let other = free_port();
    let others = Files::new(&config(&[other]), &to(&broker));
    let runtime = proxy.runtime();
    let waiting = Proxy::spawn(&others, |command| {
        command.arg("--upgrade").env("RUNTIME_DIRECTORY", &runtime);
    });
    let socket = socket_in(&runtime, &others);
    wait_until("the other process to wait", SOON, || {
        socket.exists().then_some(())
    });
    let mark = proxy.mark();
    proxy.signal_current(Signal::QUIT);
    proxy.wait_for_log_after(mark, "no new process listens on");
    client(port, "a").expect_alive();
    drop(waiting);
}
