//! What is judged before the packet is whole: first byte, name, level, declared size.

use super::*;

#[test]
fn the_first_byte_is_judged_alone() {
    for first in 0..=255u8 {
        let strict_says = strict(std::slice::from_ref(&first)).map_err(|e| e.reason());
        let tolerant_says = tolerant(std::slice::from_ref(&first)).map_err(|e| e.reason());
        match first {
            0x10 => assert_eq!((strict_says, tolerant_says), (Ok(None), Ok(None))),
            0x11..=0x1f => {
                assert_eq!((strict_says, tolerant_says), (Err("malformed"), Ok(None)));
            }
            0x20 => assert_eq!((strict_says, tolerant_says), (Err("not_mqtt"), Ok(None))),
            _ => {
                let no = Err("not_mqtt");
                assert_eq!((strict_says, tolerant_says), (no, no));
            }
        }
    }
    refused(&[0x12], "malformed", "MQTT-2.2.2-2", SILENT);
    refused(b"GET / HTTP/1.1\r\n", "not_mqtt", "MQTT-3.1.0-1", SILENT);
    refused(&[0x16, 3, 1], "malformed", "MQTT-2.2.2-2", SILENT);
}

#[test]
fn a_foreign_protocol_name_is_seen_as_soon_as_it_differs() {
    for (line, known) in [
        ("10 20 01", false),
        ("10 20 00", true),
        ("10 20 00 05", false),
        ("10 20 00 04", true),
        ("10 20 00 04 4d 51", true),
        ("10 20 00 04 4d 51 49", false),
        ("10 20 00 06 4d 51 49 73 64 70", true),
        ("10 20 00 04 6d", false),
    ] {
        let bytes = hex(line);
        let verdict = strict(&bytes).map_err(|e| e.reason());
        let expected = if known { Ok(None) } else { Err("not_mqtt") };
        assert_eq!(verdict, expected, "{line}");
    }
    refused(
        &hex("10 20 00 04 4d 51 54 58"),
        "not_mqtt",
        "MQTT-3.1.2-1",
        SILENT,
    );
}

#[test]
fn a_packet_too_short_for_its_name_has_one_verdict() {
    // Found by fuzzing: the second byte alone said malformed, the third no MQTT.
    for line in [
        "10 01 f9",
        "10 03 00 04 58",
        "10 02 01 04",
        "10 05 00 04 4d 51 58",
    ] {
        let bytes = hex(line);
        let early = &bytes[..bytes.len() - 1];
        if let Err(error) = strict(early) {
            assert_eq!(error.reason(), "not_mqtt", "{line}");
        }
        assert_eq!(strict(&bytes).unwrap_err().reason(), "not_mqtt", "{line}");
    }
    for line in ["10 00", "10 01 00", "10 02 00 04", "10 05 00 04 4d 51 54"] {
        let bytes = hex(line);
        assert_eq!(strict(&bytes[..bytes.len() - 1]), Ok(None), "{line}");
        refused(&bytes, "malformed", "MQTT 3.1.1 §3.1.2", SILENT);
    }
}

#[test]
fn a_name_of_the_routes_own_is_known() {
    let own = [Protocol::new(String::from("my-mqtt"), 4)];
    let mut bytes = Vec::new();
    counted(&mut bytes, b"my-mqtt");
    bytes.extend([4, 2, 0, 60, 0, 1, b'x']);
    let bytes = packet(&bytes);
    let connect = judge(&bytes, Mode::Strict, &own).unwrap().unwrap();
    assert_eq!(
        (connect.protocol_name, connect.client_id),
        (&b"my-mqtt"[..], &b"x"[..])
    );
    assert_eq!(strict(&bytes).unwrap_err().reason(), "not_mqtt");
    // An empty name is a name too, as for APISIX.
    let nameless = packet(&[0, 0, 4, 2, 0, 60, 0, 0]);
    assert!(
        judge(&nameless, Mode::Tolerant, &[Protocol::new("", 4)])
            .unwrap()
            .is_some()
    );
    // One that no packet can carry never matches, and does no harm.
    let endless = [Protocol::new("x".repeat(65_536), 4)];
    assert!(judge(&bytes, Mode::Strict, &endless).is_err());
}

#[test]
fn a_level_that_is_not_accepted_is_told_at_the_level_byte() {
    let only_4 = [
        Protocol::new("MQTT", 4),
        Protocol::new("MQTT", 300),
        Protocol::new("MQTT", -1),
    ];
    for (head, told) in [
        ("10 20 00 06 4d 51 49 73 64 70 03", "20 02 00 01"),
        ("10 20 00 04 4d 51 54 54 03", "20 02 00 01"),
        ("10 20 00 04 4d 51 54 54 00", "20 02 00 01"),
        ("10 20 00 04 4d 51 54 54 84", "20 02 00 01"),
        ("10 20 00 04 4d 51 54 54 05", "20 03 00 84 00"),
        ("10 20 00 04 4d 51 54 54 06", "20 03 00 84 00"),
        ("10 20 00 04 4d 51 54 54 ff", "20 03 00 84 00"),
        ("10 20 00 04 4d 51 54 54 2c", "20 03 00 84 00"),
    ] {
        let bytes = hex(head);
        for mode in [Mode::Strict, Mode::Tolerant] {
            let error = judge(&bytes, mode, &only_4).unwrap_err();
            assert_eq!(error.reason(), "unsupported_version");
            assert_eq!(error.connack().unwrap().as_slice(), hex(told), "{head}");
            assert_eq!(judge(&bytes[..bytes.len() - 1], mode, &only_4), Ok(None));
        }
    }
    let error = judge(&hex("10 20 00 04 4d 51 54 54 05"), Mode::Strict, &only_4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "protocol \"MQTT\" level 5 is not accepted here [MQTT-3.1.2-2]"
    );
}

#[test]
fn the_declared_size_is_judged_at_the_level_byte() {
    let large = |len: usize| {
        Spec::minimal(5)
            .with(|s| s.client_id = vec![b'x'; len])
            .bytes()
    };
    let exact = large(LIMIT - 16);
    assert_eq!(exact.len(), LIMIT);
    assert!(strict(&exact).unwrap().is_some());
    let over = large(LIMIT - 15);
    for mode in [Mode::Strict, Mode::Tolerant] {
        assert_eq!(judge(&over[..9], mode, &every_level()), Ok(None));
        let error = judge(&over[..10], mode, &every_level()).unwrap_err();
        assert_eq!(error.reason(), "too_large");
        assert_eq!(error.connack().unwrap().as_slice(), hex("20 03 00 95 00"));
        assert_eq!(
            error.to_string(),
            "a CONNECT of 16385 bytes exceeds the limit of 16384 bytes [MQTT 5.0 §3.2.2.2]"
        );
    }
    // The largest packet there is, to a client that has no code for it.
    let error = strict(&hex("10 ff ff ff 7f 00 04 4d 51 54 54 04")).unwrap_err();
    assert_eq!((error.reason(), error.connack()), ("too_large", None));
}

#[test]
fn a_limit_below_the_header_is_judged_when_it_is_reached() {
    let options = DecodeOptions {
        mode: Mode::Strict,
        max_packet_size: 6,
        accepted: &every_level(),
    };
    let bytes = Spec::minimal(4).bytes();
    assert_eq!(decode(&bytes[..5], &options), Ok(None));
    let error = decode(&bytes[..6], &options).unwrap_err();
    assert_eq!((error.reason(), error.level()), ("too_large", None));
}

#[test]
fn what_follows_the_packet_is_not_looked_at() {
    let mut bytes = Spec::minimal(4).bytes();
    let len = bytes.len();
    bytes.extend([0x30, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(complete(&bytes).packet_len, len);
    assert_eq!(tolerant(&bytes).unwrap().unwrap().packet_len, len);
}

#[test]
fn the_remaining_length_has_four_bytes_at_most() {
    refused(
        &hex("10 ff ff ff ff 01"),
        "malformed",
        "MQTT 3.1.1 §2.2.3",
        SILENT,
    );
    // APISIX stops at the fourth byte, whatever it says.
    let lenient = hex("10 8d 80 80 80 00 04 4d 51 54 54 04 02 00 3c 00 01 66");
    assert_eq!(tolerant(&lenient).unwrap().unwrap().client_id, b"f");
}

#[test]
fn only_mqtt_5_demands_the_minimal_remaining_length() {
    let v5 = hex("10 8e 00 00 04 4d 51 54 54 05 02 00 3c 00 00 01 66");
    only_strict_refuses(&v5, "malformed", "MQTT-1.5.5-1", MALFORMED);
    let v4 = hex("10 8d 00 00 04 4d 51 54 54 04 02 00 3c 00 01 66");
    assert_eq!(complete(&v4).client_id, b"f");
}
