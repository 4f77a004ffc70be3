//! The process leaves: SIGTERM at a pace, what the second one changes, and what becomes of
//! connections that an upgrade leaves behind.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::crowd::ids;
use support::generations::{Generations, send_signal, stop};
use support::process::more_open_files;
use support::served::is_accepted;
use support::tls::{Authority, TlsClient, TlsTalk, one_node, ssl, tls_config, tls_routes};
use support::{
    Broker, Client, Connect, Crowd, End, Files, Proxy, SOON, config_with, expect_pace, free_port,
    local, mqtt, wait_until,
};

/// DISCONNECT "server shutting down".
const SHUTTING_DOWN: &[u8] = &[0xe0, 2, 0x8b, 0];

fn routes(broker: &Broker) -> String {
    format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    )
}

/// A proxy in front of this broker; `shutdown` is inside `mqtt_proxy.shutdown`.
fn start(broker: &Broker, shutdown: &str) -> (u16, Proxy) {
    let port = free_port();
    let own = format!("mqtt_proxy: {{shutdown: {{{shutdown}}}}}\n");
    let files = Files::new(&config_with(&[port], &own), &routes(broker));
    (port, Proxy::start(&files, &[port]))
}

fn expect_told(crowd: &Crowd) {
    for ended in crowd.ended() {
        let told = if ended.client % 2 == 0 {
            SHUTTING_DOWN
        } else {
            &[]
        };
        assert_eq!((&*ended.got, ended.end), (told, End::Fin));
    }
}

#[test]
fn sigterm_sends_everybody_away_at_the_rate_and_ends_with_the_last() {
    more_open_files();
    let broker = Broker::mqtt();
    let (port, mut proxy) = start(&broker, "timeout: 120, rate: 150");
    let crowd = Crowd::connect(port, &ids(900));
    // Traffic goes on for those who have not been told yet.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let round_trips = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&round_trips);
    let mut busy = Client::mqtt(port, &Connect::v5("busy"));
    let busy = std::thread::spawn(move || {
        let ping = mqtt::PINGREQ;
        while !stopped.load(Ordering::SeqCst) {
            busy.try_send(ping);
            match busy.read_up_to(2, SOON).0 {
                got if got == ping => _ = counted.fetch_add(1, Ordering::SeqCst),
                got => {
                    assert_eq!(got, SHUTTING_DOWN[..2]);
                    return busy.expect_last(&SHUTTING_DOWN[2..]);
                }
            }
        }
    });
    wait_until("traffic", SOON, || {
        (round_trips.load(Ordering::SeqCst) > 0).then_some(())
    });
    let begin = Instant::now();
    proxy.signal(Signal::TERM);
    let ended = crowd.wait_for(900, Duration::from_secs(60));
    expect_pace(&ended, begin, 150.0, 16);
    expect_told(&crowd);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    stop.store(true, Ordering::SeqCst);
    busy.join().expect("the busy one");
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "not the whole timeout"
    );
}

#[test]
fn without_a_rate_they_are_spread_over_the_timeout() {
    let broker = Broker::mqtt();
    let (port, mut proxy) = start(&broker, "timeout: 4");
    let crowd = Crowd::connect(port, &ids(200));
    let begin = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    let ended = crowd.wait_for(200, SOON);
    expect_told(&crowd);
    let half = ended[99].at - begin;
    assert!(half > Duration::from_secs(1), "{half:?}");
}

#[test]
fn those_whose_turn_a_machine_slept_through_are_told_when_it_wakes_up() {
    let broker = Broker::mqtt();
    let (port, mut proxy) = start(&broker, "timeout: 6");
    let crowd = Crowd::connect(port, &ids(100));
    let begin = Instant::now();
    proxy.signal(Signal::TERM);
    crowd.wait_for(1, SOON);
    stop(proxy.id());
    let asleep = crowd.ended().len();
    wait_until("the time to be over", SOON, || {
        (begin.elapsed() > Duration::from_secs(7)).then_some(())
    });
    proxy.signal(Signal::CONT);
    crowd.wait_for(100, SOON);
    assert!(asleep < 90, "{asleep} were told before");
    expect_told(&crowd);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn a_client_that_is_being_served_at_sigterm_is_told_as_well() {
    let broker = Broker::mqtt();
    let (port, mut proxy) = start(&broker, "rate: 100");
    let connect = Connect::v5("late").build();
    let mut client = Client::to(port);
    client.send(&connect[..9]);
    wait_until("it to be accepted", SOON, || {
        is_accepted(port, client.local_addr().port()).then_some(())
    });
    proxy.signal(Signal::TERM);
    wait_until("the listener to close", SOON, || {
        TcpStream::connect(local(port)).is_err().then_some(())
    });
    client.send(&connect[9..]);
    client.expect(mqtt::ACCEPTED_5);
    client.expect_last(SHUTTING_DOWN);
    drop(client);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn the_second_sigterm_sends_everybody_away_now_and_the_third_does_not_wait() {
    let broker = Broker::mqtt();
    let (port, mut proxy) = start(&broker, "timeout: 3600");
    let crowd = Crowd::connect(port, &ids(100));
    proxy.signal(Signal::TERM);
    wait_until("the listener to close", SOON, || {
        TcpStream::connect(local(port)).is_err().then_some(())
    });
    crowd.expect_nobody_leaves(Duration::from_millis(500));
    proxy.signal(Signal::TERM);
    crowd.wait_for(100, SOON);
    expect_told(&crowd);
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));

    // A broker and a client that never come to a boundary.
    let broker = Broker::scripted(|mut conn| {
        conn.accept_mqtt();
        conn.send(&[0x30, 100, b'x']);
        conn.drain();
    });
    let (port, mut proxy) = start(&broker, "timeout: 3600");
    let mut client = Client::mqtt(port, &Connect::v5("stuck"));
    client.expect(&[0x30, 100, b'x']);
    proxy.signal(Signal::TERM);
    proxy.wait_for_log("live; they are sent away");
    let mark = proxy.mark();
    proxy.signal(Signal::TERM);
    proxy.wait_for_log_after(mark, "second SIGTERM");
    let hurry = Instant::now();
    proxy.signal(Signal::TERM);
    proxy.wait_for_log_after(mark, "third SIGTERM");
    assert_eq!(proxy.wait_for_exit(SOON).code(), Some(0));
    assert!(
        hurry.elapsed() < Duration::from_millis(4_500),
        "the second alone takes five seconds: {:?}",
        hurry.elapsed()
    );
    client.expect_closed();
}

#[test]
fn where_a_packet_has_come_to_survives_an_upgrade() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().expect("gate");
    let waits = Arc::clone(&gate);
    let packet = mqtt::publish("t", &[7; 5000]);
    let (first, rest) = (packet[..3000].to_vec(), packet[3000..].to_vec());
    let broker = Broker::scripted(move |mut conn| {
        conn.accept_mqtt();
        conn.send(&first);
        let (waits, rest) = (Arc::clone(&waits), rest.clone());
        let mut writer = conn.stream.try_clone().expect("clone");
        std::thread::spawn(move || {
            drop(waits.lock());
            writer.write_all(&rest)
        });
        conn.drain();
    });
    let port = free_port();
    let own = "mqtt_proxy: {shutdown: {rate: 1000, will: suppress}}\n";
    let files = Files::new(&config_with(&[port], own), &routes(&broker));
    let mut proxy = Generations::start(&files, &[port]);
    let mut client = Client::mqtt(port, &Connect::v5("a"));
    client.expect(&packet[..3000]);
    // The client's own packet is cut as well: its rest comes after the upgrade.
    client.send(&packet[..10]);
    let seen = broker.connection(0);
    let connect = Connect::v5("a").build().len();
    wait_until("the beginning at the broker", SOON, || {
        (seen.received().len() >= connect + 10).then_some(())
    });
    proxy.upgrade();
    proxy.signal_current(Signal::TERM);
    proxy.wait_for_output_after(0, "live; they are sent away", SOON);
    client.expect_silence(Duration::from_millis(300));
    drop(closed);
    client.send(&packet[10..]);
    client.expect_last(&[&packet[3000..], SHUTTING_DOWN].concat());
    drop(client);
    assert_eq!(seen.wait_for_end(), End::Fin);
    let expected = [&Connect::v5("a").build()[..], &packet, &mqtt::disconnect()].concat();
    assert_eq!(seen.received(), expected);
    let last = proxy.current();
    proxy.wait_until_gone(last);
}

/// TLS clients behind a proxy with these settings.
fn tls(broker: &Broker, count: usize, own: &str) -> (Generations, Vec<TlsTalk>) {
    let port = free_port();
    let ca = Authority::new("root");
    let ssls = [ssl("1", "'*'", &ca.issue(&["localhost"]), "")];
    let apisix = tls_routes(&one_node(broker.addr()), &ssls);
    let apisix = apisix.replace("protocol_level: 4", "protocol_level: [4, 5]");
    let config = tls_config(&[port], "  ssl: {fallback_sni: localhost}\n", own);
    let proxy = Generations::start(&Files::new(&config, &apisix), &[port]);
    let clients = (0..count).map(|n| {
        let connect = Connect::v5(&format!("c{n}"));
        let mut client = TlsClient::to(port).connect().expect("a connection");
        client.send(&connect.build()).expect("CONNECT");
        client.expect(mqtt::ACCEPTED_5);
        client
    });
    (proxy, clients.collect())
}

#[test]
fn sigterm_tells_tls_clients_as_well() {
    let broker = Broker::mqtt();
    let (mut proxy, mut clients) = tls(&broker, 20, "mqtt_proxy: {shutdown: {rate: 100}}\n");
    proxy.signal_current(Signal::TERM);
    clients
        .iter_mut()
        .for_each(|client| client.expect(SHUTTING_DOWN));
    drop(clients);
    let last = proxy.current();
    proxy.wait_until_gone(last);
}

#[test]
fn sessions_that_openssl_holds_linger_in_the_old_process_and_are_sent_away_at_a_pace() {
    let broker = Broker::mqtt();
    let own = "mqtt_proxy: {tls: {record_layer: openssl}, upgrade: {linger: 6, rate: 20}}\n";
    let (mut proxy, mut clients) = tls(&broker, 40, own);
    let old = proxy.current();
    let begin = Instant::now();
    proxy.begin_upgrade();
    clients.iter_mut().for_each(TlsTalk::expect_alive);
    clients
        .iter_mut()
        .for_each(|client| client.expect(SHUTTING_DOWN));
    let took = begin.elapsed();
    assert!(
        took > Duration::from_secs(7),
        "6 s and 40 at 20 a second: {took:?}"
    );
    drop(clients);
    proxy.wait_until_gone(old);
    send_signal(proxy.current(), Signal::TERM);
    let last = proxy.current();
    proxy.wait_until_gone(last);
}
