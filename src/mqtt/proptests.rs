//! What must hold for any packet, over random ones.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::testing::{Prop, Spec, Will};
use super::*;

const TEXT: &str = "[^\\x00]{0,40}";
const TOPIC: &str = "[^\\x00+#]{1,40}";

fn accepted() -> Vec<Protocol<'static>> {
    [("MQIsdp", 3), ("MQTT", 4), ("MQTT", 5)]
        .map(|(name, level)| Protocol::new(name, level))
        .to_vec()
}

fn judge(bytes: &[u8], mode: Mode) -> Result<Option<Connect<'_>>, DecodeError> {
    let accepted = accepted();
    let options = DecodeOptions {
        mode,
        max_packet_size: 16 * 1024,
        accepted: &accepted,
    };
    decode(bytes, &options)
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    TEXT.prop_map(String::into_bytes)
}

fn user_property() -> impl Strategy<Value = Prop> {
    (TEXT, TEXT).prop_map(|(name, value)| Prop::User(name, value))
}

/// Some of these, in any order, with User Properties among them.
fn properties(
    singles: impl Strategy<Value = Vec<Option<Prop>>>,
) -> impl Strategy<Value = Vec<Prop>> {
    (singles, vec(user_property(), 0..4))
        .prop_map(|(singles, users)| {
            singles
                .into_iter()
                .flatten()
                .chain(users)
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
}

fn connect_properties() -> impl Strategy<Value = Vec<Prop>> {
    let four = |id, least: u32| option::of((least..).prop_map(move |v: u32| Prop::Four(id, v)));
    let two = |id, least: u16| option::of((least..).prop_map(move |v: u16| Prop::Two(id, v)));
    let flag = |id| option::of((0..=1_u8).prop_map(move |v| Prop::Byte(id, v)));
    let authentication = option::of((text(), option::of(vec(any::<u8>(), 0..40))));
    let singles = (
        (four(0x11, 0), four(0x27, 1)),
        (two(0x21, 1), two(0x22, 0)),
        (flag(0x17), flag(0x19)),
        authentication,
    );
    properties(
        singles.prop_map(|((a, b), (c, d), (e, f), authentication)| {
            let (method, data) = authentication.unzip();
            let method = method.map(|m| Prop::Bytes(0x15, m));
            let data = data.flatten().map(|d| Prop::Bytes(0x16, d));
            vec![a, b, c, d, e, f, method, data]
        }),
    )
}

fn will_properties() -> impl Strategy<Value = Vec<Prop>> {
    let four = |id| option::of(any::<u32>().prop_map(move |v| Prop::Four(id, v)));
    let singles = (
        four(0x18),
        four(0x02),
        option::of((0..=1_u8).prop_map(|v| Prop::Byte(0x01, v))),
        option::of(text().prop_map(|v| Prop::Bytes(0x03, v))),
        option::of(TOPIC.prop_map(|v| Prop::Bytes(0x08, v.into_bytes()))),
        option::of(vec(any::<u8>(), 0..40).prop_map(|v| Prop::Bytes(0x09, v))),
    );
    properties(singles.prop_map(|(a, b, c, d, e, f)| vec![a, b, c, d, e, f]))
}

fn will() -> impl Strategy<Value = Will> {
    let payload = vec(any::<u8>(), 0..300);
    (0..=2_u8, any::<bool>(), will_properties(), TOPIC, payload).prop_map(
        |(qos, retain, properties, topic, payload)| Will {
            qos,
            retain,
            properties,
            topic: topic.into_bytes(),
            payload,
        },
    )
}

/// Any CONNECT that the standards allow, up to a few kilobytes.
fn valid() -> impl Strategy<Value = Spec> {
    let client_id = prop_oneof![
        4 => text(),
        1 => vec(Just(b'i'), 120..140),
        1 => vec(Just(b'i'), 250..400),
    ];
    let password = option::of(vec(any::<u8>(), 0..40));
    (
        prop_oneof![Just(3_u8), Just(4), Just(5)],
        any::<bool>(),
        any::<u16>(),
        connect_properties(),
        client_id,
        option::of(will()),
        option::of(text()),
        password,
    )
        .prop_map(
            |(level, clean_start, keep_alive, properties, client_id, will, username, password)| {
                let password = password.filter(|_| level == 5 || username.is_some());
                Spec::minimal(level).with(|s| {
                    s.clean_start = clean_start;
                    s.keep_alive = keep_alive;
                    s.properties = properties;
                    s.client_id = client_id;
                    s.will = will;
                    s.username = username;
                    s.password = password;
                })
            },
        )
}

fn find<T>(spec: &Spec, pick: impl Fn(&Prop) -> Option<T>) -> Option<T> {
    spec.properties
        .iter()
        .find_map(pick)
        .filter(|_| spec.is_v5())
}

proptest! {
    #[test]
    fn a_valid_packet_is_read_back(spec in valid(), behind in vec(any::<u8>(), 0..20)) {
        let mut bytes = spec.bytes();
        let packet_len = bytes.len();
        bytes.extend(behind);
        for mode in [Mode::Strict, Mode::Tolerant] {
            let connect = judge(&bytes, mode).unwrap().unwrap();
            prop_assert_eq!(connect.packet_len, packet_len);
            prop_assert_eq!(connect.protocol_name, spec.name.as_bytes());
            prop_assert_eq!(connect.level, spec.level);
            prop_assert_eq!(connect.client_id, &spec.client_id);
            prop_assert_eq!(connect.username, spec.username.as_deref());
            prop_assert_eq!(connect.has_password, spec.password.is_some());
            prop_assert_eq!(connect.keep_alive, spec.keep_alive);
            prop_assert_eq!(connect.clean_start, spec.clean_start);
            prop_assert_eq!(connect.has_will, spec.will.is_some());
            let four = |id| find(&spec, |p| match p { Prop::Four(i, v) if *i == id => Some(*v), _ => None });
            let two = |id| find(&spec, |p| match p { Prop::Two(i, v) if *i == id => Some(*v), _ => None });
            prop_assert_eq!(connect.session_expiry_interval, four(0x11));
            prop_assert_eq!(connect.maximum_packet_size, four(0x27));
            prop_assert_eq!(connect.receive_maximum, two(0x21));
            prop_assert_eq!(connect.topic_alias_maximum, two(0x22));
            let users = connect.user_properties().map(|(n, v)| (n.to_owned(), v.to_owned()));
            let sent = spec.properties.iter().filter(|_| spec.is_v5()).filter_map(|p| match p {
                Prop::User(name, value) => Some((name.clone(), value.clone())),
                _ => None,
            });
            prop_assert_eq!(users.collect::<Vec<_>>(), sent.collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_beginning_of_a_valid_packet_asks_for_more(spec in valid()) {
        let bytes = spec.bytes();
        for end in 0..bytes.len() {
            prop_assert_eq!(judge(&bytes[..end], Mode::Strict), Ok(None));
            prop_assert_eq!(judge(&bytes[..end], Mode::Tolerant), Ok(None));
        }
    }

    #[test]
    fn a_verdict_does_not_depend_on_segments(bytes in connect_like()) {
        for mode in [Mode::Strict, Mode::Tolerant] {
            let first = (0..=bytes.len()).find_map(|end| judge(&bytes[..end], mode).transpose());
            let last = judge(&bytes, mode).transpose();
            // NotMqtt quotes what was there, which is the one thing that may grow.
            let kind = |v: Option<Result<Connect<'_>, DecodeError>>| v.map(|v| match v {
                Ok(connect) => Ok(connect.client_id.to_vec()),
                Err(DecodeError::NotMqtt { what, .. }) => Err(what.to_owned()),
                Err(error) => Err(error.to_string()),
            });
            prop_assert_eq!(kind(first), kind(last));
        }
    }

    #[test]
    fn what_strict_takes_tolerant_takes_for_the_same_client(bytes in connect_like()) {
        if let Ok(Some(connect)) = judge(&bytes, Mode::Strict) {
            let same = judge(&bytes, Mode::Tolerant).unwrap().unwrap();
            prop_assert_eq!(connect.client_id, same.client_id);
            prop_assert_eq!(connect.username, same.username);
            prop_assert_eq!(connect.packet_len, same.packet_len);
        }
    }

    #[test]
    fn any_bytes_have_a_verdict(bytes in vec(any::<u8>(), 0..600), level in any::<u8>()) {
        for mode in [Mode::Strict, Mode::Tolerant] {
            if let Err(error) = judge(&bytes, mode) {
                prop_assert!(error.to_string().len() < 400);
                let _ = error.connack();
            }
        }
        let _ = read_connack(&bytes, level);
    }

    #[test]
    fn a_broken_byte_anywhere_has_a_verdict(
        spec in valid(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = spec.bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for mode in [Mode::Strict, Mode::Tolerant] {
            for end in [at, at + 1, bytes.len()] {
                let _ = judge(&bytes[..end], mode);
            }
        }
    }
}

/// Valid packets with a few bytes changed, cut or added, which get deep into the decoder.
fn connect_like() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (
        valid(),
        vec(change, 0..3),
        option::of(any::<prop::sample::Index>()),
    )
        .prop_map(|(spec, changes, end)| {
            let mut bytes = spec.bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(end) = end {
                bytes.truncate(end.index(bytes.len() + 1));
            }
            bytes
        })
}
