//! The properties of MQTT 5, of CONNECT and of its Will.

use super::*;

fn v5(properties: Vec<Prop>) -> Vec<u8> {
    Spec::minimal(5).with(|s| s.properties = properties).bytes()
}

fn v5_will(properties: Vec<Prop>) -> Vec<u8> {
    let will = Some(Will {
        properties,
        ..will()
    });
    Spec::minimal(5).with(|s| s.will = will).bytes()
}

#[test]
fn every_property_of_connect_is_read() {
    let user = |name: &str, value: &str| Prop::User(name.into(), value.into());
    let bytes = v5(vec![
        user("a", "1"),
        Prop::Four(0x11, u32::MAX),
        Prop::Two(0x21, 20),
        Prop::Four(0x27, 1 << 20),
        Prop::Two(0x22, 0),
        Prop::Byte(0x19, 1),
        Prop::Byte(0x17, 0),
        Prop::Bytes(0x16, vec![0, 0xff]),
        Prop::Bytes(0x15, b"SCRAM-SHA-256".to_vec()),
        user("a", ""),
    ]);
    for mode in [Mode::Strict, Mode::Tolerant] {
        let connect = judge(&bytes, mode, &every_level()).unwrap().unwrap();
        assert_eq!(connect.session_expiry_interval, Some(u32::MAX));
        assert_eq!(connect.receive_maximum, Some(20));
        assert_eq!(connect.maximum_packet_size, Some(1 << 20));
        assert_eq!(connect.topic_alias_maximum, Some(0));
        assert_eq!(connect.authentication_method, Some(&b"SCRAM-SHA-256"[..]));
        let pairs: Vec<_> = connect.user_properties().collect();
        assert_eq!(pairs, [("a", "1"), ("a", "")]);
    }
}

#[test]
fn every_property_of_a_will_is_taken() {
    let bytes = v5_will(vec![
        Prop::Four(0x18, 30),
        Prop::Byte(0x01, 1),
        Prop::Four(0x02, 60),
        Prop::Bytes(0x03, b"text/plain".to_vec()),
        Prop::Bytes(0x08, b"answers".to_vec()),
        Prop::Bytes(0x09, vec![0xff]),
        Prop::User("k".into(), "v".into()),
        Prop::User("k".into(), "v".into()),
    ]);
    let connect = complete(&bytes);
    assert!(connect.has_will);
    assert_eq!(connect.user_properties().count(), 0, "those are the Will's");
}

/// Each property that CONNECT may have, and the section that forbids it twice.
fn connect_properties() -> Vec<(Prop, &'static str)> {
    vec![
        (Prop::Four(0x11, 1), "MQTT 5.0 §3.1.2.11.2"),
        (Prop::Two(0x21, 1), "MQTT 5.0 §3.1.2.11.3"),
        (Prop::Four(0x27, 1), "MQTT 5.0 §3.1.2.11.4"),
        (Prop::Two(0x22, 1), "MQTT 5.0 §3.1.2.11.5"),
        (Prop::Byte(0x19, 1), "MQTT 5.0 §3.1.2.11.6"),
        (Prop::Byte(0x17, 1), "MQTT 5.0 §3.1.2.11.7"),
        (Prop::Bytes(0x15, b"m".to_vec()), "MQTT 5.0 §3.1.2.11.9"),
        (Prop::Bytes(0x16, b"d".to_vec()), "MQTT 5.0 §3.1.2.11.10"),
    ]
}

/// Each property that a Will may have, and the section that forbids it twice.
fn will_properties() -> Vec<(Prop, &'static str)> {
    vec![
        (Prop::Four(0x18, 1), "MQTT 5.0 §3.1.3.2.2"),
        (Prop::Byte(0x01, 1), "MQTT 5.0 §3.1.3.2.3"),
        (Prop::Four(0x02, 1), "MQTT 5.0 §3.1.3.2.4"),
        (Prop::Bytes(0x03, b"c".to_vec()), "MQTT 5.0 §3.1.3.2.5"),
        (Prop::Bytes(0x08, b"r".to_vec()), "MQTT 5.0 §3.1.3.2.6"),
        (Prop::Bytes(0x09, b"d".to_vec()), "MQTT 5.0 §3.1.3.2.7"),
    ]
}

#[test]
fn no_property_but_user_property_stands_twice() {
    for (property, clause) in connect_properties() {
        let twice = v5(vec![property.clone(), property]);
        only_strict_refuses(&twice, "protocol_error", clause, PROTOCOL_ERROR);
    }
    for (property, clause) in will_properties() {
        let twice = v5_will(vec![property.clone(), property]);
        only_strict_refuses(&twice, "protocol_error", clause, PROTOCOL_ERROR);
    }
}

#[test]
fn properties_stand_only_where_they_belong() {
    let clause = "MQTT 5.0 §2.2.2.2";
    for (property, _) in will_properties() {
        only_strict_refuses(&v5(vec![property]), "malformed", clause, MALFORMED);
    }
    for (property, _) in connect_properties() {
        only_strict_refuses(&v5_will(vec![property]), "malformed", clause, MALFORMED);
    }
    for property in [
        Prop::Byte(0x0b, 1),
        Prop::Bytes(0x12, b"x".to_vec()),
        Prop::Two(0x13, 1),
        Prop::Bytes(0x1a, b"x".to_vec()),
        Prop::Bytes(0x1c, b"x".to_vec()),
        Prop::Bytes(0x1f, b"x".to_vec()),
        Prop::Two(0x23, 1),
        Prop::Byte(0x24, 1),
        Prop::Byte(0x25, 1),
        Prop::Byte(0x28, 1),
        Prop::Byte(0x29, 1),
        Prop::Byte(0x2a, 1),
        // Not defined at all.
        Prop::Byte(0x00, 1),
        Prop::Byte(0x04, 1),
        Prop::Byte(0x2b, 1),
        Prop::Byte(0x7f, 1),
    ] {
        only_strict_refuses(&v5(vec![property.clone()]), "malformed", clause, MALFORMED);
        only_strict_refuses(&v5_will(vec![property]), "malformed", clause, MALFORMED);
    }
}

#[test]
fn values_that_a_property_must_not_have() {
    for (property, clause) in [
        (Prop::Two(0x21, 0), "MQTT 5.0 §3.1.2.11.3"),
        (Prop::Four(0x27, 0), "MQTT 5.0 §3.1.2.11.4"),
        (Prop::Byte(0x19, 2), "MQTT 5.0 §3.1.2.11.6"),
        (Prop::Byte(0x17, 0xff), "MQTT 5.0 §3.1.2.11.7"),
        (Prop::Bytes(0x16, b"d".to_vec()), "MQTT 5.0 §3.1.2.11.10"),
    ] {
        only_strict_refuses(
            &v5(vec![property]),
            "protocol_error",
            clause,
            PROTOCOL_ERROR,
        );
    }
    let format = v5_will(vec![Prop::Byte(0x01, 2)]);
    only_strict_refuses(
        &format,
        "protocol_error",
        "MQTT 5.0 §3.1.3.2.3",
        PROTOCOL_ERROR,
    );
    for (topic, clause) in [
        ("a/+", "MQTT-3.3.2-14"),
        ("#", "MQTT-3.3.2-14"),
        ("", "MQTT-4.7.3-1"),
    ] {
        let response = v5_will(vec![Prop::Bytes(0x08, topic.into())]);
        only_strict_refuses(&response, "malformed", clause, MALFORMED);
    }
}

#[test]
fn text_in_properties_is_well_formed_utf_8() {
    // The same bytes through a user property, which the builder takes as text only.
    let raw_pair = |name: &[u8], value: &[u8]| {
        let mut pair = vec![0x26];
        counted(&mut pair, name);
        counted(&mut pair, value);
        with_raw_properties(&pair)
    };
    for bytes in [
        v5(vec![Prop::Bytes(0x15, b"\xff".to_vec())]),
        v5_will(vec![Prop::Bytes(0x03, b"\xed\xa0\x80".to_vec())]),
        raw_pair(b"\xff", b"v"),
        raw_pair(b"k", b"\xff"),
    ] {
        let error = strict(&bytes).unwrap_err();
        assert_eq!(error.connack().unwrap().as_slice(), hex(MALFORMED));
        assert_eq!(
            tolerant(&bytes).unwrap().unwrap().user_properties().count(),
            0
        );
    }
    assert!(strict(&raw_pair(b"k", b"a\0")).is_err());
    assert!(strict(&v5(vec![Prop::Bytes(0x15, b"\0".to_vec())])).is_err());
}

/// A minimal CONNECT of MQTT 5 with these bytes behind its Property Length.
fn with_raw_properties(properties: &[u8]) -> Vec<u8> {
    let mut behind = hex("00 04 4d 51 54 54 05 02 00 3c");
    behind.push(u8::try_from(properties.len()).unwrap());
    behind.extend(properties);
    behind.extend([0, 1, b'c']);
    packet(&behind)
}

#[test]
fn properties_end_where_their_length_says() {
    let clause = "MQTT 5.0 §2.2.2.2";
    for cut in [
        &[0x11][..],
        &[0x11, 0, 0, 0],
        &[0x21, 0],
        &[0x17],
        &[0x15, 0, 2, b'm'],
        &[0x15, 0],
        &[0x26, 0, 1, b'k', 0],
        &[0x26, 0, 1, b'k'],
    ] {
        only_strict_refuses(&with_raw_properties(cut), "malformed", clause, MALFORMED);
    }
    only_strict_refuses(
        &with_raw_properties(&[0x91, 0x00, 0, 0, 0, 1]),
        "malformed",
        "MQTT-1.5.5-1",
        MALFORMED,
    );
    only_strict_refuses(
        &with_raw_properties(&[0x80]),
        "malformed",
        "MQTT-1.5.5-1",
        MALFORMED,
    );
}

#[test]
fn the_property_length_is_held_to_the_packet() {
    let head = "00 04 4d 51 54 54 05 02 00 3c";
    for (rest, clause) in [
        ("", "MQTT 5.0 §3.1.2.11.1"),
        ("80", "MQTT 5.0 §3.1.2.11.1"),
        ("04 00 01 63", "MQTT 5.0 §3.1.2.11.1"),
        ("ff ff ff 7f 00 01 63", "MQTT 5.0 §3.1.2.11.1"),
        ("ff ff ff ff 00 01 63", "MQTT-1.5.5-1"),
    ] {
        let bytes = packet(&hex(&format!("{head} {rest}")));
        refused(&bytes, "malformed", clause, MALFORMED);
        assert!(tolerant(&bytes).is_err());
    }
    // Exactly up to the end: the client id is what is missing then.
    let bytes = packet(&hex(&format!("{head} 03 22 00 01")));
    refused(&bytes, "malformed", "MQTT-3.1.3-3", MALFORMED);
    // APISIX takes any spelling of a length.
    for (rest, id) in [("80 00 00 01 63", "c"), ("80 80 80 80 00 01 63", "c")] {
        let bytes = packet(&hex(&format!("{head} {rest}")));
        only_strict_refuses(&bytes, "malformed", "MQTT-1.5.5-1", MALFORMED);
        assert_eq!(tolerant(&bytes).unwrap().unwrap().client_id, id.as_bytes());
    }
}
