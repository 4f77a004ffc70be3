//! What APISIX takes and refuses: the packets of its own test suite, and the tolerant mode.

use super::*;

#[test]
fn sample_packets_of_apisix() {
    for (line, level, id) in [
        (
            "10 0f 00 04 4d 51 54 54 04 02 00 3c 00 03 66 6f 6f",
            4,
            "foo",
        ),
        ("10 0c 00 04 4d 51 54 54 04 02 00 3c 00 00", 4, ""),
        ("10 0d 00 04 4d 51 54 54 05 02 00 3c 00 00 00", 5, ""),
        (
            "10 1b 00 04 4d 51 54 54 05 02 00 3c 05 11 00 00 0e 10 00 09 63 6c 69 6e 74 2d 31 31 31",
            5,
            "clint-111",
        ),
        ("10 0e 00 04 4d 51 54 54 05 02 00 3c 00 00 01 66", 5, "f"),
        ("10 0e 00 04 4d 51 54 54 05 02 00 3c 00 00 01 67", 5, "g"),
    ] {
        let bytes = hex(line);
        for mode in [Mode::Strict, Mode::Tolerant] {
            let connect = judge(&bytes, mode, &every_level()).unwrap().unwrap();
            assert_eq!(connect.client_id, id.as_bytes());
            assert_eq!((connect.level, connect.keep_alive), (level, 60));
            assert_eq!(connect.protocol_name, b"MQTT");
            assert!(connect.clean_start && !connect.has_will && !connect.has_password);
            assert_eq!(connect.username, None);
            assert_eq!(connect.packet_len, bytes.len());
            let expiry = (id == "clint-111").then_some(3600);
            assert_eq!(connect.session_expiry_interval, expiry);
        }
    }
}

#[test]
fn the_text_of_apisix_invalid_header_test_is_no_mqtt() {
    // What its test really sends, and what it means to send.
    for text in ["Bareword \"mmm\" not allowed", "mmm"] {
        for end in 1..text.len() {
            let error = tolerant(&text.as_bytes()[..end]).unwrap_err();
            assert_eq!(error.reason(), "not_mqtt");
            assert_eq!(error.connack(), None);
        }
    }
}

#[test]
fn packets_too_short_for_their_header() {
    // APISIX ends these with an uncaught error; the client sees the same.
    for line in [
        "10 00",
        "10 01 00",
        "10 02 00 04",
        "10 03 00 00 04",
        "10 04 00 04 4d 51",
        "10 06 00 04 4d 51 54 54",
        "10 07 00 04 4d 51 54 54 04",
        "10 08 00 04 4d 51 54 54 04 02",
        "10 09 00 04 4d 51 54 54 04 02 00",
        "10 0a 00 04 4d 51 54 54 04 02 00 3c",
        "10 0b 00 04 4d 51 54 54 04 02 00 3c 00",
        "10 0c 00 04 4d 51 54 54 04 02 00 3c 00 01",
        "10 0a 00 04 4d 51 54 54 05 02 00 3c",
        "10 0b 00 04 4d 51 54 54 05 02 00 3c 00",
        "10 0c 00 04 4d 51 54 54 05 02 00 3c 02 00",
    ] {
        let bytes = hex(line);
        assert!(strict(&bytes).is_err(), "{line}");
        assert!(tolerant(&bytes).is_err(), "{line}");
    }
}

#[test]
fn the_bridge_bit_leaves_the_layout_alone() {
    for level in [0x83, 0x84] {
        let bytes = Spec::minimal(level).bytes();
        let connect = complete(&bytes);
        assert!(connect.is_bridge());
        assert_eq!((connect.level, connect.client_id), (level, &b"c"[..]));
    }
    let bytes = Spec::minimal(0x85)
        .with(|s| s.properties = vec![Prop::Two(0x21, 7)])
        .bytes();
    let accepted = [Protocol::new("MQTT", 0x85)];
    for mode in [Mode::Strict, Mode::Tolerant] {
        let connect = judge(&bytes, mode, &accepted).unwrap().unwrap();
        assert_eq!(
            (connect.client_id, connect.receive_maximum),
            (&b"c"[..], Some(7))
        );
    }
}

#[test]
fn an_odd_level_is_laid_out_as_3_1_1() {
    let bytes = Spec::minimal(9).bytes();
    let accepted = [Protocol::new("MQTT", 9)];
    let connect = judge(&bytes, Mode::Strict, &accepted).unwrap().unwrap();
    assert_eq!((connect.level, connect.client_id), (9, &b"c"[..]));
}

#[test]
fn tolerant_reads_what_it_can() {
    let mut bytes = Spec::minimal(5)
        .with(|s| {
            s.properties = vec![Prop::Four(0x11, 7), Prop::Byte(0x7f, 0), Prop::Two(0x21, 9)];
            s.client_id = b"\xff\0".to_vec();
            s.will = Some(will());
            s.username = Some(b"u\xff".to_vec());
        })
        .bytes();
    bytes[0] = 0x1f;
    let connect = tolerant(&bytes).unwrap().unwrap();
    assert_eq!(connect.client_id, b"\xff\0");
    assert_eq!(connect.username, Some(&b"u\xff"[..]));
    assert_eq!(connect.session_expiry_interval, Some(7));
    assert_eq!(
        connect.receive_maximum, None,
        "it stands behind an unknown property"
    );
    assert!(connect.has_will && !connect.has_password);
    // Whatever follows the client id may be missing.
    let bytes = Spec::minimal(4).bytes_with_flags(0xff);
    let connect = tolerant(&bytes).unwrap().unwrap();
    assert_eq!((connect.client_id, connect.username), (&b"c"[..], None));
    assert_eq!(connect.keep_alive, 60);
}

#[test]
fn tolerant_takes_the_first_byte_of_connack_as_apisix_does() {
    let mut bytes = Spec::minimal(4).bytes();
    bytes[0] = 0x20;
    assert!(tolerant(&bytes).unwrap().is_some());
    bytes[0] = 0x21;
    assert_eq!(tolerant(&bytes).unwrap_err().reason(), "not_mqtt");
    bytes[0] = 0x0f;
    assert_eq!(tolerant(&bytes).unwrap_err().reason(), "not_mqtt");
}
