//! The fields behind the header: strings, ends, order.

use super::*;

#[test]
fn every_field_that_a_flag_announces_is_there() {
    for (flags, v311, v5) in [
        (0x82, "MQTT-3.1.2-19", "MQTT-3.1.2-17"),
        (0x06, "MQTT-3.1.2-9", "MQTT-3.1.2-9"),
        (0xc2, "MQTT-3.1.2-19", "MQTT-3.1.2-17"),
    ] {
        let bytes = Spec::minimal(4).bytes_with_flags(flags);
        only_strict_refuses(&bytes, "malformed", v311, SILENT);
        let bytes = Spec::minimal(5).bytes_with_flags(flags);
        // A Will of MQTT 5 begins with its properties.
        let v5 = if flags == 0x06 {
            "MQTT 5.0 §3.1.3.2.1"
        } else {
            v5
        };
        only_strict_refuses(&bytes, "malformed", v5, MALFORMED);
    }
    let named = Spec::minimal(4).with(|s| s.username = Some(b"u".to_vec()));
    only_strict_refuses(
        &named.bytes_with_flags(0xc2),
        "malformed",
        "MQTT-3.1.2-21",
        SILENT,
    );
}

#[test]
fn every_field_ends_inside_the_packet() {
    for level in [3, 4, 5] {
        let full = Spec::minimal(level).with(|s| {
            s.will = Some(will());
            s.username = Some(b"user".to_vec());
            s.password = Some(b"pass".to_vec());
        });
        let bytes = full.bytes();
        complete(&bytes);
        // Each shorter Remaining Length cuts some field; where MQTT 3.1 may leave one out, it may.
        let header = 2 + 2 + full.name.len() + 1;
        for len in header..bytes.len() {
            let mut cut = bytes[..len].to_vec();
            cut[1] = (len - 2) as u8;
            let ends_before_a_field = len == bytes.len() - 6 || len == bytes.len() - 12;
            if level == 3 && ends_before_a_field {
                complete(&cut);
            } else {
                assert_eq!(strict(&cut).unwrap_err().reason(), "malformed", "{cut:x?}");
            }
        }
    }
}

#[test]
fn nothing_stands_behind_the_payload() {
    for (level, clause, told) in [
        (3, "MQTT 3.1 §3.1", SILENT),
        (4, "MQTT 3.1.1 §3.1.3", SILENT),
        (5, "MQTT 5.0 §3.1.3", MALFORMED),
    ] {
        let named = Spec::minimal(level).with(|s| s.username = Some(b"u".to_vec()));
        // The user name is there, its flag is not.
        only_strict_refuses(&named.bytes_with_flags(0x02), "malformed", clause, told);
    }
}

#[test]
fn an_empty_client_id_is_for_the_broker_to_judge() {
    for level in [3, 4, 5] {
        for flags in [0x00, 0x02] {
            let bytes = Spec::minimal(level)
                .with(|s| s.client_id.clear())
                .bytes_with_flags(flags);
            assert_eq!(complete(&bytes).client_id, b"");
        }
    }
}

#[test]
fn a_long_client_id_is_taken() {
    // HAProxy once read the second byte of the length only; MQTT 3.1 says 23 characters, and no
    // broker holds its clients to that.
    for len in [24, 127, 128, 255, 256, 16_000] {
        for level in [3, 4, 5] {
            let id = vec![b'i'; len];
            let bytes = Spec::minimal(level)
                .with(|s| s.client_id.clone_from(&id))
                .bytes();
            assert_eq!(complete(&bytes).client_id, id);
        }
    }
}

#[test]
fn strings_are_well_formed_utf_8() {
    let spoil: [fn(&mut Spec, Vec<u8>); 3] = [
        |s, text| s.client_id = text,
        |s, text| s.username = Some(text),
        |s, text| {
            s.will = Some(Will {
                topic: text,
                ..will()
            })
        },
    ];
    for set in spoil {
        for text in [
            &b"\xff"[..],
            b"\xc3\x28",
            b"\xc0\x80",
            b"\xe0\x80\xaf",
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
            b"\xf4\x90\x80\x80",
            b"abc\xe2\x82",
        ] {
            let with = |level| Spec::minimal(level).with(|s| set(s, text.to_vec())).bytes();
            only_strict_refuses(&with(3), "malformed", "MQTT 3.1 §2.5", SILENT);
            only_strict_refuses(&with(4), "malformed", "MQTT-1.5.3-1", SILENT);
            only_strict_refuses(&with(5), "malformed", "MQTT-1.5.4-1", MALFORMED);
        }
        let with = |level| {
            Spec::minimal(level)
                .with(|s| set(s, b"a\0b".to_vec()))
                .bytes()
        };
        only_strict_refuses(&with(4), "malformed", "MQTT-1.5.3-2", SILENT);
        only_strict_refuses(&with(5), "malformed", "MQTT-1.5.4-2", MALFORMED);
        // Control characters, U+FEFF and the last code point there is: SHOULD NOT, or nothing.
        let odd = "\u{1}\u{7f}\u{feff}\u{10ffff}é";
        for level in [3, 4, 5] {
            complete(&Spec::minimal(level).with(|s| set(s, odd.into())).bytes());
        }
    }
    // Passwords and Will Payloads are bytes.
    let bytes = Spec::minimal(4).with(|s| {
        s.will = Some(Will {
            payload: vec![0, 0xff],
            ..will()
        });
        s.username = Some(Vec::new());
        s.password = Some(vec![0, 0xff]);
    });
    assert_eq!(complete(&bytes.bytes()).username, Some(&b""[..]));
}

#[test]
fn the_will_topic_is_a_topic_name() {
    let with = |level, topic: &str| {
        let will = Some(Will {
            topic: topic.into(),
            ..will()
        });
        Spec::minimal(level).with(|s| s.will = will).bytes()
    };
    only_strict_refuses(&with(4, ""), "malformed", "MQTT-4.7.3-1", SILENT);
    only_strict_refuses(&with(5, ""), "malformed", "MQTT-4.7.3-1", MALFORMED);
    for topic in ["a/#", "+/b", "a+"] {
        only_strict_refuses(&with(3, topic), "malformed", "MQTT 3.1 §3.3", SILENT);
        only_strict_refuses(&with(4, topic), "malformed", "MQTT-4.7.1-1", SILENT);
        only_strict_refuses(&with(5, topic), "malformed", "MQTT-4.7.0-1", MALFORMED);
    }
}
