//! Who is refused, and how it is told: the right CONNACK for the protocol version, then a clean end
//! that cannot destroy it; nothing at all for what is not MQTT. The log names the broken clause.

mod support;

use std::time::{Duration, Instant};

use support::random::Random;
use support::mqtt::{ACCEPTED, field, hex, packet, publish, subscribe};
use support::{
    Broker, Brokers, Client, Connect, DeadPort, Files, Proxy, Ring, config_with, free_port,
    free_ports, local, metrics,
};

const MALFORMED_5: &[u8] = &[0x20, 0x03, 0x00, 0x81, 0x00];
const PROTOCOL_ERROR_5: &[u8] = &[0x20, 0x03, 0x00, 0x82, 0x00];
const LEVEL_5: &[u8] = &[0x20, 0x03, 0x00, 0x84, 0x00];
const UNAVAILABLE_5: &[u8] = &[0x20, 0x03, 0x00, 0x88, 0x00];
const TOO_LARGE_5: &[u8] = &[0x20, 0x03, 0x00, 0x95, 0x00];
const LEVEL: &[u8] = &[0x20, 0x02, 0x00, 0x01];
const UNAVAILABLE: &[u8] = &[0x20, 0x02, 0x00, 0x03];
const NOTHING: &[u8] = &[];

struct Door {
    port: u16,
    broker: Broker,
    proxy: Proxy,
}

/// A proxy with one MQTT route of these levels; `more` goes under `mqtt_proxy:`.
fn door(levels: &str, more: &str) -> Door {
    door_to(Broker::mqtt(), levels, more)
}

fn door_to(broker: Broker, levels: &str, more: &str) -> Door {
    let port = free_port();
    let block = if more.is_empty() { String::new() } else { format!("mqtt_proxy:\n{more}") };
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: {levels}}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    );
    let files = Files::new(&config_with(&[port], &block), &routes);
    let proxy = Proxy::start(&files, &[port]);
    Door { port, broker, proxy }
}

fn send(port: u16, bytes: &[u8]) -> Client {
    let mut client = Client::to(port);
    client.send(bytes);
    client
}

#[test]
fn an_unwanted_level_is_refused_with_the_code_of_its_own_version() {
    let only_4 = door("4", "");
    let level = |level: u8| {
        let mut connect = Connect::v311("dev-1");
        connect.level = level;
        connect.build()
    };
    for (packet, answer) in [
        (Connect::v5("dev-1").build(), LEVEL_5),
        (Connect::v31("dev-1").build(), LEVEL),
        (level(3), LEVEL),
        (level(0), LEVEL),
        (level(2), LEVEL),
        (level(0x84), LEVEL), // the bridge bit of a 3.1.1 client
        (level(6), LEVEL_5),
        (level(255), LEVEL_5),
    ] {
        send(only_4.port, &packet).expect_last(answer);
    }
    assert_eq!(only_4.broker.accepted(), 0, "no broker was bothered");

    let only_5 = door("5", "");
    send(only_5.port, &Connect::v311("dev-1").build()).expect_last(LEVEL);
    send(only_5.port, &Connect::v31("dev-1").build()).expect_last(LEVEL);
    assert_eq!(only_5.broker.accepted(), 0);
}

/// Broken MQTT 5 CONNECT packets: what is wrong, the packet, the answer, the clause in the log.
fn broken_5() -> Vec<(&'static str, Vec<u8>, &'static [u8], &'static str)> {
    let v5 = || Connect::v5("dev-1");
    let properties = |text| v5().properties(&hex(text)).build();
    vec![
        ("reserved flag", v5().flags(0x03).build(), MALFORMED_5, "MQTT-3.1.2-3"),
        ("will QoS 3", v5().flags(0x1e).rest(&hex("00 0001 74 0000")).build(), MALFORMED_5, "MQTT-3.1.2-12"),
        ("unknown property", properties("7f 00"), MALFORMED_5, ""),
        ("a property of another packet", properties("24 01"), MALFORMED_5, ""),
        ("properties past the end", v5().properties(&[0; 0]).build_with_property_length(99), MALFORMED_5, ""),
        ("session expiry twice", properties("11 00000001 11 00000002"), PROTOCOL_ERROR_5, ""),
        ("receive maximum 0", properties("21 0000"), PROTOCOL_ERROR_5, ""),
        ("maximum packet size 0", properties("27 00000000"), PROTOCOL_ERROR_5, ""),
        ("request response information 2", properties("19 02"), PROTOCOL_ERROR_5, ""),
        ("authentication data alone", properties("16 0001 61"), PROTOCOL_ERROR_5, ""),
        ("client id is not UTF-8", v5().client_id_bytes(&[0xc3, 0x28]).build(), MALFORMED_5, "MQTT-1.5.4-1"),
        ("NUL in the client id", v5().client_id_bytes(b"a\0b").build(), MALFORMED_5, "MQTT-1.5.4-2"),
        ("a surrogate", v5().client_id_bytes(&[0xed, 0xa0, 0x80]).build(), MALFORMED_5, "MQTT-1.5.4-1"),
        ("bytes behind the payload", v5().rest(b"xyz").build(), MALFORMED_5, ""),
        ("client id past the end", hex("10 0e 0004 4d515454 05 02 003c 00 0009 66"), MALFORMED_5, ""),
        ("user name announced and missing", v5().flags(0x82).build(), MALFORMED_5, ""),
    ]
}

trait BuildWith {
    fn build_with_property_length(&self, length: u8) -> Vec<u8>;
}

impl BuildWith for Connect {
    fn build_with_property_length(&self, length: u8) -> Vec<u8> {
        let mut connect = self.clone();
        connect.properties[0] = length;
        connect.build()
    }
}

#[test]
fn broken_mqtt_5_gets_malformed_or_protocol_error_and_a_clean_end() {
    let door = door("5", "");
    for (what, packet, answer, _) in broken_5() {
        eprintln!("{what}");
        send(door.port, &packet).expect_last(answer);
    }
    assert_eq!(door.broker.accepted(), 0, "no broker was bothered");
    // A packet with everything that is allowed passes the same door.
    let properties = hex("11 00000e10 21 0064 27 00010000 22 000a 19 01 17 00 26 0001 61 0001 62 26 0001 61 0001 63 15 0001 6d 16 0001 64");
    let whole = Connect::v5("dev-1")
        .properties(&properties)
        .will("gone", b"x")
        .username("alice")
        .password(b"\0\xff");
    Client::mqtt(door.port, &whole).expect_alive();
    Client::mqtt(door.port, &Connect::v5("a").flags(0x42).rest(&field(b"password only")));
}

/// Broken MQTT 3.1.1 CONNECT packets, each with its clause.
fn broken_4() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let v4 = || Connect::v311("dev-1");
    vec![
        ("reserved flag", v4().flags(0x03).build(), "MQTT-3.1.2-3"),
        ("will QoS 3", v4().flags(0x1e).rest(&hex("0001 74 0000")).build(), "MQTT-3.1.2-14"),
        ("will QoS without will", v4().flags(0x0a).build(), "MQTT-3.1.2-13"),
        ("will retain without will", v4().flags(0x22).build(), "MQTT-3.1.2-15"),
        ("password without user name", v4().flags(0x42).rest(&field(b"x")).build(), "MQTT-3.1.2-22"),
        ("client id is not UTF-8", v4().client_id_bytes(&[0xff]).build(), "MQTT-1.5.3-1"),
        ("NUL in the client id", v4().client_id_bytes(b"\0").build(), "MQTT-1.5.3-2"),
        ("bytes behind the payload", v4().rest(b"x").build(), ""),
        ("client id past the end", hex("10 0f 0004 4d515454 04 02 003c 0009 666f6f"), ""),
        ("nothing behind the fixed header", hex("10 00"), ""),
        ("cut inside the name", hex("10 03 0004 4d"), ""),
    ]
}

#[test]
fn broken_mqtt_3_1_1_is_closed_cleanly_without_connack_for_the_standard_has_no_code() {
    let door = door("[3, 4]", "");
    for (what, packet, _) in broken_4() {
        eprintln!("{what}");
        send(door.port, &packet).expect_last(NOTHING);
    }
    assert_eq!(door.broker.accepted(), 0, "no broker was bothered");
}

#[test]
fn the_log_names_the_clause_that_strict_found_broken() {
    let five = broken_5().into_iter().map(|(what, packet, _, clause)| (what, packet, clause));
    let named = five.chain(broken_4()).filter(|(_, _, clause)| !clause.is_empty());
    for (what, packet, clause) in named {
        // A proxy for each: the log holds back repetitions of one reason within a second.
        let mut door = door("[4, 5]", "");
        let client = send(door.port, &packet);
        let line = door.proxy.wait_for_log("refused client");
        assert!(line.contains(clause), "{what}: {clause} is not in {line:?}");
        assert!(line.contains(&client.local_addr().to_string()), "the client's address: {line}");
        assert!(line.contains(&format!("127.0.0.1:{}", door.port)), "the listener: {line}");
        assert!(line.contains("WARN"), "{line}");
        assert!(line.bytes().all(|b| b >= 0x20 && b != 0x7f), "nothing unescaped: {line:?}");
    }
}

#[test]
fn repeated_refusals_do_not_flood_the_log() {
    let mut door = door("4", "");
    let start = Instant::now();
    for _ in 0..200 {
        send(door.port, &Connect::v5("x").build()).expect_last(LEVEL_5);
    }
    door.proxy.wait_for_log("refused client");
    let allowed = 2 + start.elapsed().as_secs() as usize;
    assert!(door.proxy.count("refused client") <= allowed, "at most one line a second");
}

#[test]
fn what_is_not_mqtt_is_closed_silently_and_at_the_first_byte() {
    let door = door("[3, 4, 5]", "");
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00",
        b"\x30\x05\x00\x01ahi",
        b"\x82",
        b"\x20",
        b"\xc0\x00",
    ] {
        let start = Instant::now();
        let mut client = send(door.port, bytes);
        client.expect_closed();
        assert!(start.elapsed() < Duration::from_secs(2), "judged at once: {bytes:?}");
    }
    send(door.port, b"G").expect_fin();
    for name in [&b"AMQP"[..], b"mqtt", b"MQTT5", b"", b"MQIsdpp"] {
        let mut connect = Connect::v311("dev-1");
        connect.name = name.to_vec();
        send(door.port, &connect.build()).expect_last(NOTHING);
    }
    assert_eq!(door.broker.accepted(), 0, "no broker was bothered");
}

#[test]
fn a_connect_that_is_too_large_is_refused_by_its_announced_length() {
    let door = door("[3, 4, 5]", "  limits:\n    max_connect_size: 1024\n");
    let sized = |level: u8, size: usize| {
        let empty = Connect::level(level, "dev-1").username("").build().len();
        let grown = Connect::level(level, "dev-1").username(&"u".repeat(size - empty - 1)).build();
        assert_eq!(grown.len(), size);
        grown
    };
    send(door.port, &sized(4, 1024)).expect(ACCEPTED);
    send(door.port, &sized(4, 1025)).expect_closed();
    send(door.port, &sized(3, 1025)).expect_closed();
    send(door.port, &sized(5, 1025)).expect_last(TOO_LARGE_5);
    send(door.port, &sized(5, 16_000)).expect_last(TOO_LARGE_5);

    // Nobody waits for, or makes room for, bytes that were only announced.
    let before = door.proxy.resident_kib();
    let announced = hex("10 ff ff ff 7f 0004 4d515454 05 02 003c");
    let mut waiting: Vec<Client> = (0..50).map(|_| send(door.port, &announced)).collect();
    let start = Instant::now();
    for client in &mut waiting {
        client.expect_last(TOO_LARGE_5);
    }
    assert!(start.elapsed() < Duration::from_secs(4), "refused without the rest of the packet");
    assert!(door.proxy.resident_kib() < before + 10_000, "no memory for announced bytes");
}

#[test]
fn the_default_limit_is_16384_bytes_as_in_apisix() {
    let door = door("4", "");
    let sized = |size: usize| {
        let large = Connect::v311("dev-1").username(&"u".repeat(10_000)).build().len();
        let packet = Connect::v311("dev-1").username(&"u".repeat(10_000 + size - large)).build();
        assert_eq!(packet.len(), size);
        packet
    };
    let mut client = send(door.port, &sized(16_384));
    client.expect(ACCEPTED);
    send(door.port, &sized(16_385)).expect_closed();
}

#[test]
fn when_no_broker_can_be_reached_the_client_is_told_so() {
    let dead = DeadPort::new();
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [3, 4, 5]}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        dead.addr()
    );
    let _proxy = Proxy::start(&Files::new(&config_with(&[port], ""), &routes), &[port]);
    send(port, &Connect::v31("a").build()).expect_last(UNAVAILABLE);
    send(port, &Connect::v311("a").build()).expect_last(UNAVAILABLE);
    send(port, &Connect::v5("a").build()).expect_last(UNAVAILABLE_5);
}

#[test]
fn an_mqtt_route_without_upstream_or_node_tells_so_as_well() {
    let [none, empty, gone] = free_ports();
    let plugin = "plugins: {mqtt-proxy: {protocol_level: [4, 5]}}";
    let routes = format!(
        "stream_routes:\n  - {{id: 1, server_port: {none}, {plugin}}}\n  \
         - {{id: 2, server_port: {empty}, {plugin}, upstream: {{nodes: []}}}}\n  \
         - {{id: 3, server_port: {gone}, {plugin}, upstream_id: 99}}\n#END\n"
    );
    let ports = [none, empty, gone];
    let _proxy = Proxy::start(&Files::new(&config_with(&ports, ""), &routes), &ports);
    for port in ports {
        send(port, &Connect::v311("a").build()).expect_last(UNAVAILABLE);
        send(port, &Connect::v5("a").build()).expect_last(UNAVAILABLE_5);
    }
}

#[test]
fn bytes_pipelined_behind_a_refused_connect_do_not_destroy_the_connack() {
    let door = door("4", "");
    for pipelined in [100, 5_000, 200_000] {
        let mut bytes = Connect::v5("a").build();
        bytes.extend(subscribe(1, "a/b"));
        bytes.extend(publish("a/b", &vec![7; pipelined]));
        let mut client = Client::to(door.port);
        client.try_send(&bytes);
        client.expect_last(LEVEL_5);
    }
}

#[test]
fn a_client_that_never_ends_its_side_does_not_hold_a_refused_connection_for_ever() {
    let door = door("4", "");
    let mut clients: Vec<Client> =
        (0..10).map(|_| send(door.port, &Connect::v5("a").build())).collect();
    for client in &mut clients {
        client.expect(LEVEL_5);
    }
    // The clients stay; their connections must still go away in the proxy.
    door.proxy.wait_until_idle(door.port);
}

#[test]
fn with_refusal_close_nobody_is_told_anything() {
    let door = door("4", "  refusal: close\n  limits:\n    max_connect_size: 1024\n");
    let mut large = Connect::v5("a");
    large.rest = vec![0; 2000];
    for packet in [
        Connect::v5("a").build(),
        Connect::v31("a").build(),
        Connect::v311("a").flags(0x03).build(),
        large.build(),
    ] {
        send(door.port, &packet).expect_closed();
    }
    Client::mqtt(door.port, &Connect::v311("a")).expect_alive();
}

#[test]
fn with_refusal_close_an_unreachable_broker_is_not_announced_either() {
    let mut door = door("[4, 5]", "  refusal: close\n");
    door.broker.stop_listening();
    send(door.port, &Connect::v311("a").build()).expect_last(NOTHING);
    send(door.port, &Connect::v5("a").build()).expect_last(NOTHING);
}

#[test]
fn a_client_that_says_nothing_is_closed_at_the_first_byte_deadline() {
    let door =
        door("4", "  limits:\n    first_byte_timeout: 1\n    connect_timeout: 30\n");
    let start = Instant::now();
    let mut silent = Client::to(door.port);
    let mut slow = Client::to(door.port);
    slow.send(&[0x10]);
    silent.expect_fin();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(900), "not before the deadline: {waited:?}");
    assert!(waited < Duration::from_secs(4), "soon after it: {waited:?}");
    // The first byte was in time: this client has until connect_timeout.
    slow.expect_silence(Duration::from_millis(300));
    slow.send(&Connect::v311("a").build()[1..]);
    slow.expect(ACCEPTED);
}

#[test]
fn the_deadline_for_the_whole_connect_is_not_moved_by_dribbling_bytes() {
    let door = door("4", "  limits:\n    first_byte_timeout: 1\n    connect_timeout: 2\n");
    let packet = Connect::v311("a-client-that-dribbles").build();
    let start = Instant::now();
    let mut client = Client::to(door.port);
    let mut end = None;
    for byte in &packet[..packet.len() - 1] {
        client.try_send(&[*byte]);
        let (bytes, ended) = client.read_up_to(1, Duration::from_millis(150));
        assert!(bytes.is_empty(), "nothing is sent to a slow client");
        if ended.is_some() {
            end = ended;
            break;
        }
    }
    let waited = start.elapsed();
    assert!(end.is_some(), "still open after {waited:?}");
    assert!(waited >= Duration::from_millis(1_800), "not before the deadline: {waited:?}");
    assert!(waited < Duration::from_millis(3_900), "the deadline is total: {waited:?}");
    assert_eq!(door.broker.accepted(), 0);
}

#[test]
fn refusals_are_counted_by_reason() {
    let [port, scrape] = free_ports();
    let broker = Broker::mqtt();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 5}}}}\n    \
         upstream: {{nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    );
    let more = format!("mqtt_proxy:\n  metrics:\n    addr: \"127.0.0.1:{scrape}\"\n");
    let _proxy = Proxy::start(&Files::new(&config_with(&[port], &more), &routes), &[port]);
    let refused = || metrics::value(local(scrape), "mqtt_proxy_refused_total", &[]);
    for (step, bytes) in [
        Connect::v311("a").build(),
        b"GET /".to_vec(),
        Connect::v5("a").flags(3).build(),
        Connect::v5("a").properties(&hex("21 0000")).build(),
    ]
    .into_iter()
    .enumerate()
    {
        send(port, &bytes).read_to_end(support::SOON);
        support::wait_until("the counter to move", support::SOON, || {
            (refused() == (step + 1) as f64).then_some(())
        });
    }
    let (_, _, text) = metrics::get(local(scrape), metrics::PATH);
    let series = text.lines().filter(|line| line.starts_with("mqtt_proxy_refused_total{")).count();
    assert!(series >= 4, "four different reasons:\n{text}");
}

#[test]
fn a_thousand_mutilated_packets_hurt_nobody_else() {
    for mode in ["strict", "tolerant"] {
        let mut door = door("[3, 4, 5]", &format!("  connect: {mode}\n"));
        let mut witness = Client::mqtt(door.port, &Connect::v311("witness"));
        let whole = [
            Connect::v31("victim").will("a", b"b").build(),
            Connect::v311("victim").username("u").password(b"p").build(),
            Connect::v5("victim").properties(&hex("11 00000e10 26 0001 61 0001 62")).will("a", b"b").build(),
        ];
        let mut open = Vec::new();
        for seed in 0..500 {
            let mut random = Random::new(seed);
            let mut bytes = whole[random.below(3)].clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] = random.next() as u8,
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.next() as u8),
                }
            }
            let mut client = Client::to(door.port);
            client.try_send(&bytes);
            open.push(client);
            if seed % 50 == 0 {
                witness.expect_alive();
                open.clear();
            }
        }
        witness.expect_alive();
        Client::mqtt(door.port, &Connect::v5("afterwards")).expect_alive();
        assert!(door.proxy.is_running());
        assert_eq!(door.proxy.count("panicked"), 0, "{:#?}", door.proxy.lines());
    }
}

/// What APISIX takes and the standard forbids.
fn odd_but_readable() -> Vec<(&'static str, Vec<u8>)> {
    let v4 = || Connect::v311("dev-1");
    let v5 = || Connect::v5("dev-1");
    vec![
        ("type flags set", v4().first(0x11).build()),
        ("all type flags set", v4().first(0x1f).build()),
        ("CONNACK's type", v4().first(0x20).build()),
        ("reserved flag", v4().flags(0x03).build()),
        ("will QoS 3", v4().flags(0x1e).build()),
        ("flags without their fields", v4().flags(0xc2).build()),
        ("client id is not UTF-8", v4().client_id_bytes(&[0xff, 0xfe, 0x00]).build()),
        ("bytes behind the payload", v4().rest(b"whatever").build()),
        ("a longer remaining length than needed", {
            let body = v4().body();
            let mut bytes = vec![0x10, body.len() as u8 | 0x80, 0x00];
            bytes.extend(body);
            bytes
        }),
        ("property twice", v5().properties(&hex("11 00000001 11 00000002")).build()),
        ("properties that are none", v5().properties(&[0xff; 40]).build()),
        ("v5 reserved flag", v5().flags(0x03).build()),
        ("empty id without clean session", Connect::v311("").flags(0).build()),
    ]
}

#[test]
fn tolerant_takes_what_apisix_takes_and_forwards_it_unchanged() {
    let door = door_to(Broker::silent(), "[4, 5]", "  connect: tolerant\n");
    let mut clients = Vec::new();
    for (number, (what, packet)) in odd_but_readable().into_iter().enumerate() {
        eprintln!("{what}");
        clients.push(send(door.port, &packet));
        door.broker.connection(number).wait_for(&packet);
    }
    // Without a readable client id there is nothing to balance by.
    let accepted = door.broker.accepted();
    send(door.port, &hex("10 0f 0004 4d515454 04 02 003c 0009 666f6f")).expect_last(NOTHING);
    send(door.port, &packet(0x10, &hex("0004 4d515454 04 02"))).expect_last(NOTHING);
    send(door.port, b"GET / HTTP/1.1\r\n\r\n").expect_closed();
    assert_eq!(door.broker.accepted(), accepted);
}

#[test]
fn strict_refuses_what_tolerant_takes() {
    let door = door_to(Broker::silent(), "[4, 5]", "  connect: strict\n");
    // Two are left out: a zero-length id without clean session is the broker's to refuse, and
    // 3.1.1 does not forbid a remaining length that is longer than needed.
    let forbidden = odd_but_readable()
        .into_iter()
        .filter(|(what, _)| !what.starts_with("empty") && !what.starts_with("a longer"));
    for (what, packet) in forbidden {
        let (bytes, _) = send(door.port, &packet).read_to_end(support::SOON);
        assert!(bytes.is_empty() || bytes[0] == 0x20, "{what}: {bytes:?}");
    }
    assert_eq!(door.broker.accepted(), 0, "strict lets none of them through");
}

#[test]
fn tolerant_balances_by_the_raw_bytes_of_the_client_id() {
    let brokers = Brokers::mqtt(3);
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: 4}}}}\n    \
         upstream: {{type: chash, key: mqtt_client_id, nodes: {}}}\n#END\n",
        brokers.equal()
    );
    let files = Files::new(&config_with(&[port], "mqtt_proxy:\n  connect: tolerant\n"), &routes);
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    for n in 0..30_u8 {
        let id = [0xff, n, 0x00, 0xc3, 0x28];
        let (broker, _client) = brokers.visit(port, &Connect::v311("").client_id_bytes(&id));
        assert_eq!(broker, ring.pick(id), "{id:02x?}");
    }
}
