//! Who is refused, and how it is told: the right CONNACK for the protocol version, then a clean end
//! that cannot destroy it; nothing at all for what is not MQTT. The log names the broken clause.

mod support;

use std::time::{Duration, Instant};

use support::mqtt::{ACCEPTED, field, hex, publish, subscribe};
use support::{
    Broker, Client, Connect, DeadPort, Files, Proxy, config_with, door, free_port, free_ports,
    local, metrics, send,
};

const MALFORMED_5: &[u8] = &[0x20, 0x03, 0x00, 0x81, 0x00];
const PROTOCOL_ERROR_5: &[u8] = &[0x20, 0x03, 0x00, 0x82, 0x00];
const LEVEL_5: &[u8] = &[0x20, 0x03, 0x00, 0x84, 0x00];
const UNAVAILABLE_5: &[u8] = &[0x20, 0x03, 0x00, 0x88, 0x00];
const TOO_LARGE_5: &[u8] = &[0x20, 0x03, 0x00, 0x95, 0x00];
const LEVEL: &[u8] = &[0x20, 0x02, 0x00, 0x01];
const UNAVAILABLE: &[u8] = &[0x20, 0x02, 0x00, 0x03];
const NOTHING: &[u8] = &[];

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
        (
            "reserved flag",
            v5().flags(0x03).build(),
            MALFORMED_5,
            "MQTT-3.1.2-3",
        ),
        (
            "will QoS 3",
            v5().flags(0x1e).rest(&hex("00 0001 74 0000")).build(),
            MALFORMED_5,
            "MQTT-3.1.2-12",
        ),
        ("unknown property", properties("7f 00"), MALFORMED_5, ""),
        (
            "a property of another packet",
            properties("24 01"),
            MALFORMED_5,
            "",
        ),
        (
            "properties past the end",
            v5().properties(&[0; 0]).build_with_property_length(99),
            MALFORMED_5,
            "",
        ),
        (
            "session expiry twice",
            properties("11 00000001 11 00000002"),
            PROTOCOL_ERROR_5,
            "",
        ),
        (
            "receive maximum 0",
            properties("21 0000"),
            PROTOCOL_ERROR_5,
            "",
        ),
        (
            "maximum packet size 0",
            properties("27 00000000"),
            PROTOCOL_ERROR_5,
            "",
        ),
        (
            "request response information 2",
            properties("19 02"),
            PROTOCOL_ERROR_5,
            "",
        ),
        (
            "authentication data alone",
            properties("16 0001 61"),
            PROTOCOL_ERROR_5,
            "",
        ),
        (
            "client id is not UTF-8",
            v5().client_id_bytes(&[0xc3, 0x28]).build(),
            MALFORMED_5,
            "MQTT-1.5.4-1",
        ),
        (
            "NUL in the client id",
            v5().client_id_bytes(b"a\0b").build(),
            MALFORMED_5,
            "MQTT-1.5.4-2",
        ),
        (
            "a surrogate",
            v5().client_id_bytes(&[0xed, 0xa0, 0x80]).build(),
            MALFORMED_5,
            "MQTT-1.5.4-1",
        ),
        (
            "bytes behind the payload",
            v5().rest(b"xyz").build(),
            MALFORMED_5,
            "",
        ),
        (
            "client id past the end",
            hex("10 0e 0004 4d515454 05 02 003c 00 0009 66"),
            MALFORMED_5,
            "",
        ),
        (
            "user name announced and missing",
            v5().flags(0x82).build(),
            MALFORMED_5,
            "",
        ),
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
    let properties = hex(
        "11 00000e10 21 0064 27 00010000 22 000a 19 01 17 00 26 0001 61 0001 62 26 0001 61 0001 63 15 0001 6d 16 0001 64",
    );
    let whole = Connect::v5("dev-1")
        .properties(&properties)
        .will("gone", b"x")
        .username("alice")
        .password(b"\0\xff");
    Client::mqtt(door.port, &whole).expect_alive();
    Client::mqtt(
        door.port,
        &Connect::v5("a").flags(0x42).rest(&field(b"password only")),
    );
}

/// Broken MQTT 3.1.1 CONNECT packets, each with its clause.
fn broken_4() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let v4 = || Connect::v311("dev-1");
    vec![
        ("reserved flag", v4().flags(0x03).build(), "MQTT-3.1.2-3"),
        (
            "will QoS 3",
            v4().flags(0x1e).rest(&hex("0001 74 0000")).build(),
            "MQTT-3.1.2-14",
        ),
        (
            "will QoS without will",
            v4().flags(0x0a).build(),
            "MQTT-3.1.2-13",
        ),
        (
            "will retain without will",
            v4().flags(0x22).build(),
            "MQTT-3.1.2-15",
        ),
        (
            "password without user name",
            v4().flags(0x42).rest(&field(b"x")).build(),
            "MQTT-3.1.2-22",
        ),
        (
            "client id is not UTF-8",
            v4().client_id_bytes(&[0xff]).build(),
            "MQTT-1.5.3-1",
        ),
        (
            "NUL in the client id",
            v4().client_id_bytes(b"\0").build(),
            "MQTT-1.5.3-2",
        ),
        ("bytes behind the payload", v4().rest(b"x").build(), ""),
        (
            "client id past the end",
            hex("10 0f 0004 4d515454 04 02 003c 0009 666f6f"),
            "",
        ),
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
    let five = broken_5()
        .into_iter()
        .map(|(what, packet, _, clause)| (what, packet, clause));
    let named = five
        .chain(broken_4())
        .filter(|(_, _, clause)| !clause.is_empty());
    for (what, packet, clause) in named {
        // A proxy for each: the log holds back repetitions of one reason within a second.
        let mut door = door("[4, 5]", "");
        let client = send(door.port, &packet);
        let line = door.proxy.wait_for_log("refused client");
        assert!(line.contains(clause), "{what}: {clause} is not in {line:?}");
        assert!(
            line.contains(&client.local_addr().to_string()),
            "the client's address: {line}"
        );
        assert!(
            line.contains(&format!("127.0.0.1:{}", door.port)),
            "the listener: {line}"
        );
        assert!(line.contains("WARN"), "{line}");
        assert!(
            line.bytes().all(|b| b >= 0x20 && b != 0x7f),
            "nothing unescaped: {line:?}"
        );
    }
}

#[test]
fn bytes_of_a_client_cannot_forge_lines_or_colours_in_the_log() {
    let mut door = door("4", "");
    let mut connect = Connect::v311("dev-1");
    connect.name = b"\x1b[31mMQ\nERROR forged".to_vec();
    send(door.port, &connect.build()).expect_last(NOTHING);
    let line = door.proxy.wait_for_log("refused client");
    assert!(!line.contains('\x1b'), "{line:?}");
    assert!(
        !door
            .proxy
            .lines()
            .iter()
            .any(|line| line.starts_with("ERROR forged"))
    );
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
    assert!(
        door.proxy.count("refused client") <= allowed,
        "at most one line a second"
    );
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
        assert!(
            start.elapsed() < Duration::from_millis(4_500),
            "judged at once: {bytes:?}"
        );
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
        let grown = Connect::level(level, "dev-1")
            .username(&"u".repeat(size - empty - 1))
            .build();
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
    assert!(
        start.elapsed() < Duration::from_secs(9),
        "refused without the rest of the packet"
    );
    assert!(
        door.proxy.resident_kib() < before + 10_000,
        "no memory for announced bytes"
    );
}

#[test]
fn the_default_limit_is_16384_bytes_as_in_apisix() {
    let door = door("4", "");
    let sized = |size: usize| {
        let large = Connect::v311("dev-1")
            .username(&"u".repeat(10_000))
            .build()
            .len();
        let packet = Connect::v311("dev-1")
            .username(&"u".repeat(10_000 + size - large))
            .build();
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
    let mut clients: Vec<Client> = (0..10)
        .map(|_| send(door.port, &Connect::v5("a").build()))
        .collect();
    for client in &mut clients {
        client.expect(LEVEL_5);
    }
    // The clients stay; their connections must still go away in the proxy.
    door.proxy.wait_until_idle(door.port);
}

#[test]
fn with_refusal_close_nobody_is_told_anything() {
    let door = door(
        "4",
        "  refusal: close\n  limits:\n    max_connect_size: 1024\n",
    );
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
    let series = text
        .lines()
        .filter(|line| line.starts_with("mqtt_proxy_refused_total{"))
        .count();
    assert!(series >= 4, "four different reasons:\n{text}");
}
