//! `mqtt_proxy.connect`: strict refuses what the standard forbids, tolerant takes what APISIX takes;
//! and neither can be hurt by what a client sends.

mod support;

use support::mqtt::{hex, packet};
use support::random::Random;
use support::{
    Broker, Brokers, Client, Connect, Files, Proxy, Ring, config_with, door, door_to, free_port,
    send,
};

const NOTHING: &[u8] = &[];

#[test]
fn a_thousand_mutilated_packets_hurt_nobody_else() {
    for mode in ["strict", "tolerant"] {
        let mut door = door("[3, 4, 5]", &format!("  connect: {mode}\n"));
        let mut witness = Client::mqtt(door.port, &Connect::v311("witness"));
        let whole = [
            Connect::v31("victim").will("a", b"b").build(),
            Connect::v311("victim").username("u").password(b"p").build(),
            Connect::v5("victim")
                .properties(&hex("11 00000e10 26 0001 61 0001 62"))
                .will("a", b"b")
                .build(),
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
        (
            "client id is not UTF-8",
            v4().client_id_bytes(&[0xff, 0xfe, 0x00]).build(),
        ),
        ("bytes behind the payload", v4().rest(b"whatever").build()),
        ("a longer remaining length than needed", {
            let body = v4().body();
            let mut bytes = vec![0x10, body.len() as u8 | 0x80, 0x00];
            bytes.extend(body);
            bytes
        }),
        (
            "property twice",
            v5().properties(&hex("11 00000001 11 00000002")).build(),
        ),
        (
            "properties that are none",
            v5().properties(&[0xff; 40]).build(),
        ),
        ("v5 reserved flag", v5().flags(0x03).build()),
        (
            "empty id without clean session",
            Connect::v311("").flags(0).build(),
        ),
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
    send(
        door.port,
        &hex("10 0f 0004 4d515454 04 02 003c 0009 666f6f"),
    )
    .expect_last(NOTHING);
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
    assert_eq!(
        door.broker.accepted(),
        0,
        "strict lets none of them through"
    );
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
    let files = Files::new(
        &config_with(&[port], "mqtt_proxy:\n  connect: tolerant\n"),
        &routes,
    );
    let _proxy = Proxy::start(&files, &[port]);
    let ring = Ring::equal(&brokers.nodes());
    for n in 0..30_u8 {
        let id = [0xff, n, 0x00, 0xc3, 0x28];
        let (broker, _client) = brokers.visit(port, &Connect::v311("").client_id_bytes(&id));
        assert_eq!(broker, ring.pick(id), "{id:02x?}");
    }
}
