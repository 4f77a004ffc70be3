//! The connect flags.

use super::*;

#[test]
fn the_reserved_flag_is_0() {
    for (level, told) in [(4, SILENT), (5, MALFORMED), (0x84, SILENT)] {
        let bytes = Spec::minimal(level).bytes_with_flags(0x03);
        only_strict_refuses(&bytes, "malformed", "MQTT-3.1.2-3", told);
    }
    // MQTT 3.1 does not say what it is.
    complete(&Spec::minimal(3).bytes_with_flags(0x03));
    assert_eq!(
        strict(&Spec::minimal(4).bytes_with_flags(0x03))
            .unwrap_err()
            .to_string(),
        "reserved bit 0 of the connect flags is set [MQTT-3.1.2-3] (byte 9 of the packet)"
    );
}

#[test]
fn the_will_qos_is_0_1_or_2() {
    for (level, clause, told) in [
        (3, "MQTT 3.1 §3.1", SILENT),
        (4, "MQTT-3.1.2-14", SILENT),
        (5, "MQTT-3.1.2-12", MALFORMED),
    ] {
        let with_will = |qos| {
            let will = Some(Will { qos, ..will() });
            Spec::minimal(level).with(|s| s.will = will).bytes()
        };
        only_strict_refuses(&with_will(3), "malformed", clause, told);
        for qos in 0..=2 {
            let bytes = with_will(qos);
            assert!(complete(&bytes).has_will);
        }
    }
}

#[test]
fn without_a_will_its_flags_are_0() {
    for (flags, v311, v5) in [
        (0x08, "MQTT-3.1.2-13", "MQTT-3.1.2-11"),
        (0x10, "MQTT-3.1.2-13", "MQTT-3.1.2-11"),
        (0x18, "MQTT-3.1.2-13", "MQTT-3.1.2-11"),
        (0x20, "MQTT-3.1.2-15", "MQTT-3.1.2-13"),
    ] {
        let bytes = Spec::minimal(4).bytes_with_flags(flags);
        only_strict_refuses(&bytes, "malformed", v311, SILENT);
        let bytes = Spec::minimal(5).bytes_with_flags(flags);
        only_strict_refuses(&bytes, "malformed", v5, MALFORMED);
        // MQTT 3.1 disregards them.
        complete(&Spec::minimal(3).bytes_with_flags(flags));
    }
}

#[test]
fn a_password_without_a_user_name_is_for_mqtt_5_only() {
    let lone = |level| {
        Spec::minimal(level)
            .with(|s| s.password = Some(b"p".to_vec()))
            .bytes()
    };
    only_strict_refuses(&lone(4), "malformed", "MQTT-3.1.2-22", SILENT);
    only_strict_refuses(&lone(3), "malformed", "MQTT 3.1 §3.1", SILENT);
    let bytes = lone(5);
    let connect = complete(&bytes);
    assert_eq!((connect.has_password, connect.username), (true, None));
}

#[test]
fn mqtt_3_1_lets_user_name_and_password_be_missing() {
    let bytes = Spec::minimal(3).bytes_with_flags(0xc2);
    let connect = complete(&bytes);
    assert_eq!((connect.has_password, connect.username), (false, None));
    let named = Spec::minimal(3).with(|s| s.username = Some(b"u".to_vec()));
    let bytes = named.bytes_with_flags(0xc2);
    let connect = complete(&bytes);
    assert_eq!(
        (connect.has_password, connect.username),
        (false, Some(&b"u"[..]))
    );
    // Missing is not the same as cut short.
    let mut cut = Spec::minimal(3).behind_flags();
    cut.push(0);
    let mut behind = hex("00 06 4d 51 49 73 64 70 03 82");
    behind.extend(cut);
    refused(&packet(&behind), "malformed", "MQTT 3.1 §3.1", SILENT);
}
