//! An upgrade of the running binary cuts no TLS connection, and does not send those that come later
//! back to full handshakes.

mod support;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use openssl::ssl::{SslStream, SslVersion};
use rustix::process::Signal;
use socket2::SockRef;
use support::generations::{Generations, send_signal};
use support::handover::{Waiting, socket_in, take_nothing};
use support::mqtt::publish;
use support::s_client::{Visitor, is_resumed};
use support::tls::{
    Authority, TlsClient, TlsTalk, before_a_broker, one_node, ssl, tls_config, tls_routes,
};
use support::*;

/// Every version and cipher whose sessions can move.
fn kinds(port: u16) -> Vec<TlsClient> {
    let client = TlsClient::to(port).name("a.test");
    let of_1_2 = [
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "CHACHA20-POLY1305",
    ];
    let of_1_3 = [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    ];
    let of_1_2 = of_1_2.map(|name| client.clone().ciphers(&format!("ECDHE-ECDSA-{name}")));
    let of_1_3 = of_1_3.map(|name| client.clone().suites(name));
    of_1_2.into_iter().chain(of_1_3).collect()
}

fn connected(client: &TlsClient, id: &str) -> TlsTalk {
    client.mqtt(&Connect::v311(id)).expect("a connection")
}

#[test]
fn tls_connections_move_and_publish_all_the_while() {
    let root = Authority::new("root");
    let (broker, port, files) = before_a_broker(&root, "");
    let mut proxy = Generations::start(&files, &[port]);
    let mut idle: Vec<TlsTalk> = kinds(port)
        .iter()
        .enumerate()
        .flat_map(|(kind, client)| (0..5).map(move |n| connected(client, &format!("i{kind}-{n}"))))
        .collect();
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (kind, client) in kinds(port).into_iter().enumerate() {
            let (over, rounds) = (&over, &rounds);
            scope.spawn(move || {
                let clients = (0..5).map(|n| connected(&client, &format!("p{kind}-{n}")));
                let mut clients: Vec<TlsTalk> = clients.collect();
                let mut size = 1;
                while !over.load(Ordering::SeqCst) {
                    // From one byte to several records.
                    size = (size * 7) % 60_000 + 1;
                    let packet = publish("t", &vec![size as u8; size]);
                    for client in &mut clients {
                        client.send(&packet).expect("send");
                    }
                    for client in &mut clients {
                        client.expect(&packet);
                    }
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..5 {
            let before = rounds.load(Ordering::SeqCst);
            wait_until("traffic", SOON, || {
                (rounds.load(Ordering::SeqCst) > before + 12).then_some(())
            });
            // Returns when the old process is gone: nobody is left there.
            let moved = proxy.upgrade();
            assert!(moved.connections >= 30, "{moved:?}");
            idle.iter_mut().for_each(TlsTalk::expect_alive);
        }
        over.store(true, Ordering::SeqCst);
    });
    assert_eq!(broker.accepted(), 60, "nobody had to connect again");
    let sent: u64 = proxy.count("tls_handshake") as u64;
    assert_eq!(sent, 0, "a handshake failed");
}

/// A socket on which what is written can be held back.
#[derive(Debug)]
struct Held {
    socket: TcpStream,
    held: Rc<RefCell<Option<Vec<u8>>>>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.held.borrow_mut() {
            Some(held) => held.extend_from_slice(bytes),
            None => self.socket.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn half_a_record_moves_as_well() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let mut proxy = Generations::start(&files, &[port]);
    let mut clients: Vec<_> = kinds(port)
        .iter()
        .map(|client| {
            let socket = TcpStream::connect(local(port)).unwrap();
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            let held = Rc::new(RefCell::new(None));
            let raw = socket.try_clone().unwrap();
            let stream = Held {
                socket,
                held: held.clone(),
            };
            let mut stream: SslStream<Held> = client.ssl().connect(stream).expect("a handshake");
            stream.write_all(&Connect::v311("half").build()).unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, mqtt::ACCEPTED);
            (stream, held, raw)
        })
        .collect();
    let packet = publish("t", &[7; 3000]);
    // In the header, behind it, and in the middle.
    for part in [3, 5, 1000] {
        let mut rests = Vec::new();
        for (stream, held, raw) in &mut clients {
            *held.borrow_mut() = Some(Vec::new());
            stream.write_all(&packet).unwrap();
            let record = held.borrow_mut().take().unwrap();
            raw.write_all(&record[..part]).unwrap();
            rests.push(record[part..].to_vec());
        }
        proxy.upgrade();
        for ((stream, _, raw), rest) in clients.iter_mut().zip(rests) {
            raw.write_all(&rest).unwrap();
            let mut echoed = vec![0; packet.len()];
            stream.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, packet);
        }
    }
}

#[test]
fn what_a_slow_client_is_owed_moves_as_well() {
    const MUCH: usize = 8 << 20;
    let root = Authority::new("root");
    let broker = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        let packet = publish("t", &pattern(MUCH));
        conn.send(&packet);
        conn.echo();
    });
    let port = free_port();
    let ssls = [ssl("1", "a.test", &root.issue(&["a.test"]), "")];
    let routes = tls_routes(&one_node(broker.addr()), &ssls);
    let files = Files::new(&tls_config(&[port], "", ""), &routes);
    let mut proxy = Generations::start(&files, &[port]);
    let mut clients: Vec<TlsTalk> = kinds(port)
        .iter()
        .map(|client| {
            let socket = TcpStream::connect(local(port)).unwrap();
            SockRef::from(&socket)
                .set_recv_buffer_size(128 << 10)
                .unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            let mut talk = client.over(socket).expect("a handshake");
            talk.send(&Connect::v311("slow").build()).unwrap();
            talk.expect(mqtt::ACCEPTED);
            talk
        })
        .collect();
    let expected = publish("t", &pattern(MUCH));
    let mut read = 0;
    for part in [100_000, 500_000] {
        for client in &mut clients {
            client.expect(&expected[read..read + part]);
        }
        read += part;
        proxy.upgrade();
    }
    for client in &mut clients {
        client.expect(&expected[read..]);
        client.expect_alive();
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 251 + n) as u8).collect()
}

#[test]
fn sessions_that_openssl_holds_stay_in_the_old_process_and_live() {
    let root = Authority::new("root");
    let own = "mqtt_proxy: {tls: {ciphers: \"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA256\"}}\n";
    let (_broker, port, files) = before_a_broker(&root, own);
    let mut proxy = Generations::start(&files, &[port]);
    let client = TlsClient::to(port).name("a.test");
    let mut stays = connected(
        &client.clone().ciphers("ECDHE-ECDSA-AES128-SHA256"),
        "stays",
    );
    let mut moves = connected(&client.version(SslVersion::TLS1_2), "moves");
    let old = proxy.current();
    let moved = proxy.begin_upgrade();
    assert_eq!(moved.connections, 1);
    stays.expect_alive();
    moves.expect_alive();
    send_signal(old, Signal::TERM);
    moves.expect_alive();
    drop(stays);
    proxy.wait_until_gone(old);
    moves.expect_alive();
}

#[test]
fn a_version_that_would_take_them_for_plain_ones_gets_no_tls_connections() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let proxy = Generations::start(&files, &[port]);
    let mut client = connected(&TlsClient::to(port).name("a.test"), "live");
    let waiting = Waiting::at(socket_in(&proxy.runtime(), &files));
    let mark = proxy.mark();
    proxy.signal_current(Signal::QUIT);
    let old = waiting.accept();
    let ready = format!(
        r#"{{"protocol":1,"version":"0.1.0","pid":{}}}"#,
        std::process::id()
    );
    take_nothing(&old, &ready);
    proxy.wait_for_output_after(mark, "0 connections handed over", SOON);
    client.expect_alive();
    // It is not sent late, either.
    old.set_limit(Duration::from_millis(700)).expect("a limit");
    assert!(old.receive().is_err(), "nothing comes");
    client.expect_alive();
}

#[test]
fn sessions_of_the_old_process_are_resumed_by_the_new_one() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let mut proxy = Generations::start(&files, &[port]);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let visitors: Vec<_> = ["-tls1_2", "-tls1_3"]
        .into_iter()
        .zip(&folders)
        .map(|(version, folder)| Visitor {
            port,
            folder: folder.path(),
            version,
        })
        .collect();
    for visitor in &visitors {
        visitor.get_session("a.test", &[]);
    }
    let mut live = TlsClient::to(port)
        .name("a.test")
        .mqtt(&Connect::v311("live"))
        .unwrap();
    let mark = proxy.mark();
    proxy.begin_upgrade();
    for visitor in &visitors {
        let said = visitor.use_session("a.test");
        assert!(is_resumed(&said), "{}: {said}", visitor.version);
    }
    live.expect_alive();
    drop(live);
    // Sessions made before two upgrades.
    proxy.wait_until_taken_over(mark);
    for visitor in &visitors {
        visitor.get_session("a.test", &[]);
    }
    proxy.upgrade();
    proxy.upgrade();
    for visitor in &visitors {
        let said = visitor.use_session("a.test");
        assert!(is_resumed(&said), "{}: {said}", visitor.version);
    }
    assert_eq!(proxy.count("not resumed"), 0);
}

#[test]
fn a_process_that_starts_anew_knows_no_sessions() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let visitor = Visitor {
        port,
        folder: files.dir(),
        version: "-tls1_3",
    };
    let first = Proxy::start(&files, &[port]);
    visitor.get_session("a.test", &[]);
    first.stop();
    let _second = Proxy::start(&files, &[port]);
    let said = visitor.use_session("a.test");
    // Served with a full handshake: old sessions are no reason to fail.
    assert!(
        !is_resumed(&said) && said.contains("New, TLSv1.3"),
        "{said}"
    );
}
