//! Upgrades between versions: what the first version said, recorded word by word, is understood by
//! either side, and so is what a later one may add.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use mqtt_proxy::upgrade::channel::Channel;
use serde_json::{Value, json};
use support::generations::{belongs_to, runtime_directory};
use support::handover::{carry_all, connect, expect, kind, socket_in};
use support::mqtt::ACCEPTED;
use support::served::{Served, routes};
use support::versions::{Version, payload};
use support::{Broker, Client, Connect, Files, Proxy, SOON, config, free_port, local, wait_until};

/// Two ends of a TCP connection.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let one = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (two, _) = listener.accept().expect("accept");
    one.set_read_timeout(Some(SOON)).expect("a limit");
    two.set_nonblocking(true).expect("as the proxy has it");
    (one, two)
}

/// What came in the next so many bytes.
fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("they come");
    bytes
}

/// The new side, as a process of its own that takes over from a test.
fn new_side(files: &Files) -> (Proxy, Channel) {
    let runtime = runtime_directory(files, "run");
    let proxy = Proxy::spawn(files, |command| {
        command.arg("--upgrade").env("RUNTIME_DIRECTORY", &runtime);
        belongs_to(files, command);
    });
    let channel = connect(&socket_in(&runtime, files));
    (proxy, channel)
}

/// An old process of the first version, word by word, with one listener and one connection of which
/// this is known. Everything is understood, and the connection is relayed.
fn hand_over_to_the_version_under_test(
    hello: &str,
    state: &str,
    record: impl Fn(u16, u16) -> Value,
) {
    let broker = Broker::mqtt();
    let port = free_port();
    let files = Files::new(&config(&[port]), &routes(&broker));
    let (mut proxy, new) = new_side(&files);
    new.send(kind::HELLO, hello.as_bytes(), &[]).expect("HELLO");
    let ready: Value = serde_json::from_slice(&expect(&new, kind::READY).payload).expect("JSON");
    // What the first version cannot do without.
    assert_eq!(ready["protocol"], 1, "{ready}");
    assert_eq!(ready["pid"], proxy.id(), "{ready}");
    assert!(ready["version"].is_string(), "{ready}");

    let listener = TcpListener::bind(local(port)).expect("bind");
    listener.set_nonblocking(true).expect("non-blocking");
    let listeners = format!(r#"{{"addresses":["127.0.0.1:{port}"]}}"#);
    new.send(kind::LISTENERS, listeners.as_bytes(), &[listener.as_fd()])
        .expect("LISTENERS");
    new.send(kind::STATE, state.as_bytes(), &[]).expect("STATE");
    expect(&new, kind::LISTENING);
    // It accepts on the socket that it got.
    Client::mqtt(port, &Connect::v311("before")).expect_alive();

    let ((mut client, client_side), (mut node, node_side)) = (tcp_pair(), tcp_pair());
    let records = json!([record(port, broker.addr().port())]);
    let descriptors = [client_side.as_fd(), node_side.as_fd()];
    new.send(kind::PAIRS, &payload(&records, b"updown!"), &descriptors)
        .expect("PAIRS");
    new.send(kind::COMMIT, b"1", &[]).expect("COMMIT");
    let committed = expect(&new, kind::COMMITTED);
    assert_eq!(committed.payload, b"1");
    drop((client_side, node_side, listener));
    assert_eq!(read(&mut node, 2), b"up", "owed to the broker");
    assert_eq!(read(&mut client, 5), b"down!", "owed to the client");
    client.write_all(b"question").expect("write");
    assert_eq!(read(&mut node, 8), b"question");
    node.write_all(b"answer").expect("write");
    assert_eq!(read(&mut client, 6), b"answer");
    new.send(kind::LAST, state.as_bytes(), &[]).expect("LAST");
    proxy.wait_for_log("upgrade: complete, 1 connections taken over");
    Client::mqtt(port, &Connect::v311("after")).expect_alive();
}

#[test]
fn the_first_version_is_taken_over_from() {
    hand_over_to_the_version_under_test(
        r#"{"protocol":1,"version":"0.1.0","pid":4711}"#,
        r##"{"metrics":"# TYPE mqtt_proxy_to_broker_bytes counter\nmqtt_proxy_to_broker_bytes_total 9\n# EOF\n"}"##,
        |port, node| {
            json!({
                "client": "127.0.0.1:40000", "listener": format!("127.0.0.1:{port}"), "route": "1",
                "node": format!("127.0.0.1:{node}"), "to_broker": 14, "to_client": 4,
                "age_ms": 3600000, "silent_ms": 20, "idle_ms": 90000,
                "idle_after_broker_end_ms": 5000, "end": null, "access": null,
                "up": {"state": "open", "owed": 2}, "down": {"state": "open", "owed": 5},
            })
        },
    );
}

#[test]
fn a_version_that_says_as_little_as_possible_is_taken_over_from() {
    hand_over_to_the_version_under_test(
        r#"{"protocol":1,"version":"","pid":4711}"#,
        "{}",
        |port, _| {
            json!({
                "client": "[::1]:1", "listener": format!("127.0.0.1:{port}"),
                "up": {"state": "open", "owed": 2}, "down": {"state": "open", "owed": 5},
            })
        },
    );
}

#[test]
fn a_later_version_is_taken_over_from() {
    hand_over_to_the_version_under_test(
        r#"{"protocol":1,"version":"9.0.0","pid":4711,"connections":1,"mood":{"good":true}}"#,
        r#"{"metrics":"","nodes":[{"upstream":"x","node":"y","health":{"phase":7},"luck":1}],"more":[]}"#,
        |port, node| {
            json!({
                "client": "127.0.0.1:40000", "listener": format!("127.0.0.1:{port}"), "route": "new",
                "node": format!("127.0.0.1:{node}"), "end": "eaten_by_a_grue",
                "access": {"later": 1, "words": "unknown"}, "kernel_tls": [1, 2],
                "up": {"state": "open", "owed": 2, "x": 1}, "down": {"state": "open", "owed": 5},
            })
        },
    );
}

#[test]
fn the_first_version_takes_over() {
    let mut served = Served::with(3);
    let first = served.proxy.current();
    let mark = served.proxy.mark();
    let old = served.as_new_process();
    let hello: Value = serde_json::from_slice(&expect(&old, kind::HELLO).payload).expect("JSON");
    assert_eq!(
        (&hello["protocol"], &hello["pid"]),
        (&json!(1), &json!(first))
    );
    assert!(hello["version"].is_string(), "{hello}");
    // Its process id is that of this test, which goes on after the old process has left.
    let ready = format!(
        r#"{{"protocol":1,"version":"0.1.0","pid":{}}}"#,
        std::process::id()
    );
    old.send(kind::READY, ready.as_bytes(), &[]).expect("READY");
    let listeners = expect(&old, kind::LISTENERS);
    let text: Value = serde_json::from_slice(&listeners.payload).expect("JSON");
    let addresses = text["addresses"].as_array().expect("addresses");
    assert_eq!(listeners.descriptors.len(), addresses.len());
    // Metrics are served as well unless another proxy of this machine has their address.
    let metrics = json!("127.0.0.1:9091");
    let clients: Vec<&Value> = addresses.iter().filter(|a| **a != metrics).collect();
    assert_eq!(clients, [&json!(format!("127.0.0.1:{}", served.port))]);
    let state: Value = serde_json::from_slice(&expect(&old, kind::STATE).payload).expect("JSON");
    assert!(state["metrics"].is_string());
    old.send(kind::LISTENING, b"null", &[]).expect("LISTENING");
    let pairs = expect(&old, kind::PAIRS);
    expect(&old, kind::COMMIT);
    old.send(kind::COMMITTED, b"3", &[]).expect("COMMITTED");
    served
        .proxy
        .wait_for_output_after(mark, "3 connections handed over", SOON);

    let (length, rest) = pairs.payload.split_first_chunk::<4>().expect("a length");
    let records = &rest[..u32::from_le_bytes(*length) as usize];
    let records: Vec<Value> = serde_json::from_slice(records).expect("JSON");
    assert_eq!((records.len(), pairs.descriptors.len()), (3, 6));
    let mut sockets = pairs.descriptors.into_iter().map(TcpStream::from);
    for record in &records {
        // Without these the first version understands nothing.
        for field in ["client", "listener", "up", "down"] {
            assert!(!record[field].is_null(), "{field}: {record}");
        }
        for flow in ["up", "down"] {
            assert_eq!(record[flow]["state"], "open", "{record}");
            assert_eq!(record[flow]["owed"], 0, "{record}");
        }
        let (mut client, node) = (sockets.next().expect("two"), sockets.next().expect("two"));
        assert_eq!(
            record["client"],
            json!(client.peer_addr().expect("connected"))
        );
        assert_eq!(record["node"], json!(node.peer_addr().expect("connected")));
        client.write_all(b"relayed by the test").expect("write");
    }
    for client in &mut served.live {
        client.expect(b"relayed by the test");
    }
    expect(&old, kind::LAST);
    served.proxy.wait_until_gone(first);
}

#[test]
fn an_upgrade_between_versions_carries_everything_on() {
    let mut served = Served::with(30);
    for (n, version) in [Version::First, Version::Later]
        .iter()
        .cycle()
        .take(6)
        .enumerate()
    {
        let (mut slow, rest) = served.slow();
        let old = served.proxy.current();
        let mark = served.proxy.mark();
        let (from, to) = served.in_the_middle();
        let next = served.other_process();
        let version = *version;
        let carrying =
            std::thread::spawn(move || carry_all(from, to, move |frame| version.translate(frame)));
        let said = "connections handed over to process";
        let line = served
            .proxy
            .wait_for_output_after(mark, said, Duration::from_secs(60));
        assert!(line.contains(&format!("process {next}")), "{n}: {line}");
        slow.send(&rest);
        slow.expect(ACCEPTED);
        served.proxy.wait_until_gone(old);
        carrying.join().expect("the middle");
        served.proxy.set_current(next);
        served.live.push(slow);
        served.expect_all_well();
    }
    wait_until("no process but the last one", SOON, || {
        (served.proxy.processes() == [served.proxy.current()]).then_some(())
    });
    served.expect_as_before();
}
