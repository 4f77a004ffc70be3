//! Whatever a client has sent up to the moment its broker is reached arrives there unchanged and in
//! order, in whatever pieces it came; and no broker is dialled before the CONNECT is complete.

mod support;

use std::time::Duration;

use support::mqtt::{self, ACCEPTED, ACCEPTED_5, hex, publish, publish_qos1, subscribe};
use support::random::Random;
use support::{Broker, Client, Connect, End, Files, Proxy, config, free_port};

fn proxy_to(broker: &Broker) -> (Proxy, u16) {
    let port = free_port();
    let routes = format!(
        "stream_routes:\n  - id: 1\n    plugins: {{mqtt-proxy: {{protocol_level: [3, 4, 5]}}}}\n    \
         upstream: {{type: chash, key: mqtt_client_id, nodes: {{\"{}\": 1}}}}\n#END\n",
        broker.addr()
    );
    (
        Proxy::start(&Files::new(&config(&[port]), &routes), &[port]),
        port,
    )
}

/// CONNECT packets of every version, plain and with everything in them.
fn connects() -> Vec<Vec<u8>> {
    let properties = hex("11 00000e10 21 0064 26 0003 6b6579 0005 76616c7565");
    vec![
        Connect::v31("client-31").build(),
        Connect::v311("client-311").build(),
        Connect::v311("").build(),
        Connect::v5("client-5").build(),
        Connect::v311("full")
            .will("last/will", b"\x00\x01\x02")
            .username("user")
            .password(b"\xff\x00secret")
            .build(),
        Connect::v5("full-5")
            .properties(&properties)
            .will("last/will", b"bye")
            .username("user")
            .password(b"secret")
            .build(),
        Connect::v311("long").will("w", &vec![b'x'; 9_000]).build(),
    ]
}

/// A CONNECT with packets pipelined behind it, as clients that trust the broker send them.
fn pipelined(connect: &[u8]) -> Vec<u8> {
    let mut bytes = connect.to_vec();
    bytes.extend(subscribe(1, "a/#"));
    bytes.extend(publish_qos1(2, "a/b", b"first"));
    bytes.extend(publish("a/c", &Random::new(5).bytes(3_000)));
    bytes.extend_from_slice(mqtt::PINGREQ);
    bytes
}

#[test]
fn connect_and_pipelined_packets_arrive_unchanged_when_sent_at_once() {
    let broker = Broker::silent();
    let (_proxy, port) = proxy_to(&broker);
    for (number, connect) in connects().into_iter().enumerate() {
        let bytes = pipelined(&connect);
        let mut client = Client::to(port);
        client.send(&bytes);
        broker.connection(number).wait_for(&bytes);
    }
}

#[test]
fn they_arrive_unchanged_byte_by_byte() {
    let broker = Broker::silent();
    let (_proxy, port) = proxy_to(&broker);
    for (number, connect) in connects().into_iter().take(6).enumerate() {
        let bytes = pipelined(&connect);
        let mut client = Client::to(port);
        client.send_pieces(bytes.chunks(1));
        broker.connection(number).wait_for(&bytes);
    }
}

#[test]
fn they_arrive_unchanged_however_they_are_cut() {
    let broker = Broker::silent();
    let (_proxy, port) = proxy_to(&broker);
    let connects = connects();
    for round in 0..60 {
        let mut random = Random::new(round);
        let bytes = pipelined(&connects[round as usize % connects.len()]);
        let longest = [2, 7, 30, 300, 4_000][random.below(5)];
        let mut client = Client::to(port);
        client.send_pieces(random.pieces(&bytes, longest));
        broker.connection(round as usize).wait_for(&bytes);
    }
}

#[test]
fn a_flood_behind_connect_arrives_whole() {
    let broker = Broker::silent();
    let (_proxy, port) = proxy_to(&broker);
    let mut bytes = Connect::v311("flood").build();
    bytes.extend(Random::new(1).bytes(3_000_000));
    let mut client = Client::to(port);
    client.send(&bytes);
    broker.connection(0).wait_for(&bytes);
}

#[test]
fn no_broker_is_dialled_before_the_connect_is_complete() {
    let broker = Broker::mqtt();
    let (_proxy, port) = proxy_to(&broker);
    for connect in connects() {
        let before = broker.accepted();
        let (last, all_but_one) = connect.split_last().expect("not empty");
        let mut client = Client::to(port);
        client.send(all_but_one);
        client.expect_silence(Duration::from_millis(60));
        assert_eq!(
            broker.accepted(),
            before,
            "nothing is dialled while a byte is missing"
        );
        client.send(&[*last]);
        let five = connect.windows(5).any(|w| w == b"MQTT\x05");
        client.expect(if five { ACCEPTED_5 } else { ACCEPTED });
        assert_eq!(broker.accepted(), before + 1);
    }
}

#[test]
fn a_client_that_leaves_before_its_connect_is_complete_bothers_no_broker() {
    let broker = Broker::mqtt();
    let (mut proxy, port) = proxy_to(&broker);
    let connect = Connect::v311("gone").build();
    for len in 0..connect.len() {
        let mut client = Client::to(port);
        client.send(&connect[..len]);
        if len % 2 == 0 {
            drop(client);
        } else {
            client.reset();
        }
    }
    proxy.wait_until_idle(port);
    Client::mqtt(port, &Connect::v311("stays")).expect_alive();
    assert_eq!(broker.accepted(), 1);
    assert!(proxy.is_running());
}

#[test]
fn a_client_that_ends_its_sending_side_behind_connect_still_gets_its_answer() {
    let broker = Broker::scripted(|mut conn| {
        // Answers only once the client's end has been passed on.
        conn.drain();
        conn.send(ACCEPTED);
        conn.send(b"and the rest");
    });
    let (_proxy, port) = proxy_to(&broker);
    for number in 0..3 {
        let mut bytes = Connect::v311("short").build();
        bytes.extend(publish("a", b"one message"));
        bytes.extend(mqtt::disconnect());
        let mut client = Client::to(port);
        client.send(&bytes);
        client.finish_sending();
        client.expect_last(&[ACCEPTED, b"and the rest"].concat());
        let seen = broker.connection(number);
        seen.wait_for(&bytes);
        assert_eq!(seen.wait_for_end(), End::Fin);
    }
}

#[test]
fn a_client_that_ends_its_side_in_the_middle_of_connect_is_closed() {
    let broker = Broker::mqtt();
    let (_proxy, port) = proxy_to(&broker);
    let connect = Connect::v5("half").build();
    for len in [0, 1, 2, 9, connect.len() - 1] {
        let mut client = Client::to(port);
        client.send(&connect[..len]);
        client.finish_sending();
        client.expect_fin();
    }
    assert_eq!(broker.accepted(), 0);
}
