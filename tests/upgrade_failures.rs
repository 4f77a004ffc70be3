//! Upgrades that go wrong, at every step and on either side: nothing is ever worse than before.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use mqtt_proxy::upgrade::channel::Channel;
use rustix::process::Signal;
use support::generations::{send_signal, stop};
use support::handover::Waiting;
use support::handover::{expect, kind, socket_in};
use support::mqtt::ACCEPTED;
use support::random::Random;
use support::served::Served;
use support::{Connect, SOON, config, free_port, local, wait_until};

/// Says something as a new process; the old one may be gone.
fn say(old: &Channel, kind: u8, json: &str) {
    let _ = old.send(kind, json.as_bytes(), &[]);
}

/// A new side up to READY, in this version of the protocol.
fn say_ready(old: &Channel, protocol: u32) {
    expect(old, kind::HELLO);
    let hello = format!("{{\"protocol\":{protocol},\"version\":\"9\",\"pid\":1}}");
    say(old, kind::READY, &hello);
}

/// A new side that has the listeners.
fn take_listeners(old: &Channel) {
    say_ready(old, 1);
    expect(old, kind::LISTENERS);
    expect(old, kind::STATE);
}

/// A new side that has the pairs and has not said so. Gives the number of their descriptors.
fn take_pairs(old: &Channel) -> usize {
    take_listeners(old);
    say(old, kind::LISTENING, "null");
    let pairs = expect(old, kind::PAIRS);
    expect(old, kind::COMMIT);
    pairs.descriptors.len()
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
    served
        .files
        .replace("config.yaml", good.replace("127.0.0.1:", "127.0.0.1:7"));
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
    let taken = free_port();
    let holder = std::net::TcpListener::bind(local(taken)).expect("bind");
    served
        .files
        .replace("config.yaml", config(&[served.port, taken]));
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
    type Step = fn(&Channel);
    let steps: [(&str, Step, &str); 12] = [
        ("before HELLO", |_| {}, "greeting"),
        (
            "after HELLO",
            |old| drop(expect(old, kind::HELLO)),
            "greeting",
        ),
        (
            "refuses",
            |old| {
                expect(old, kind::HELLO);
                say(old, kind::REFUSED, "\"not today\"");
            },
            "not today",
        ),
        (
            "another version of the protocol",
            |old| say_ready(old, 99),
            "99",
        ),
        (
            "garbage after HELLO",
            |old| {
                expect(old, kind::HELLO);
                say(old, kind::READY, "{\"protocol\":");
            },
            "greeting",
        ),
        (
            "a wrong message after HELLO",
            |old| {
                expect(old, kind::HELLO);
                say(old, kind::COMMITTED, "0");
            },
            "unexpected message",
        ),
        ("after READY", |old| say_ready(old, 1), ""),
        (
            "after the listeners",
            take_listeners,
            "until the new process accepts",
        ),
        (
            "refuses after the listeners",
            |old| {
                take_listeners(old);
                say(old, kind::REFUSED, "\"port taken\"");
            },
            "port taken",
        ),
        (
            "after LISTENING",
            |old| {
                take_listeners(old);
                say(old, kind::LISTENING, "null");
            },
            "",
        ),
        (
            "after the pairs",
            |old| assert_eq!(take_pairs(old), 100),
            "to take them",
        ),
        (
            "refuses the pairs",
            |old| {
                take_pairs(old);
                say(old, kind::REFUSED, "\"too many\"");
            },
            "too many",
        ),
    ];
    for (name, step, why) in steps {
        eprintln!("a new side that stops: {name}");
        let mark = served.proxy.mark();
        let old = served.as_new_process();
        step(&old);
        drop(old);
        let line = served.failed(mark);
        assert!(
            line.contains("ERROR") && line.contains(why),
            "{name}: {line}"
        );
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
        let waiting = Waiting::at(path);
        let mark = served.proxy.mark();
        served.proxy.signal_current(Signal::QUIT);
        let mut stream = waiting.accept_stream();
        stream.write_all(bytes).expect("write");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("shutdown");
        served.failed(mark);
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
    take_pairs(&old);
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
    say(&old, kind::COMMITTED, "20");
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
        take_pairs(&old);
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
fn a_commit_that_was_given_up_cannot_be_taken_up_later() {
    let mut served = Served::with(5);
    let (mut slow, rest) = served.slow();
    let first = served.proxy.current();
    let moved = served.proxy.begin_upgrade();
    stop(moved.pid);
    let mark = served.proxy.mark();
    slow.send(&rest);
    // The process that serves does not answer, and is not dead.
    let said = "the last connections stay in this process";
    served
        .proxy
        .wait_for_output_after(mark, said, Duration::from_secs(60));
    slow.expect(ACCEPTED);
    send_signal(moved.pid, Signal::CONT);
    let said = "the last connections stay in the old process";
    served.proxy.wait_for_output_after(mark, said, SOON);
    // Two relays on the same sockets would bring this into disorder.
    let bytes = Random::new(7).bytes(8 << 20);
    let mut writer = slow.stream.try_clone().expect("a socket");
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &sent));
    let (got, end) = slow.read_up_to(bytes.len(), Duration::from_secs(30));
    writing.join().expect("writing").expect("all of it");
    assert!(got == bytes, "{} bytes came back, {end:?}", got.len());
    served.expect_all_well();
    drop(slow);
    served.proxy.wait_until_gone(first);
    served.expect_as_before();
}
