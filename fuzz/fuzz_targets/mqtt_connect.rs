//! What must hold for the CONNECT decoder whatever bytes arrive, and however they are segmented.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqtt_proxy::mqtt::{
    BrokerFirst, Connect, DecodeError, DecodeOptions, MAX_CONNACK_SIZE, Mode, Protocol, decode,
    read_connack,
};

/// Small, so that the fuzzer finds the limit too.
const LIMIT: usize = 512;

fn judge<'a>(
    bytes: &'a [u8],
    mode: Mode,
    accepted: &[Protocol<'_>],
) -> Result<Option<Connect<'a>>, DecodeError> {
    let options = DecodeOptions {
        mode,
        max_packet_size: LIMIT,
        accepted,
    };
    decode(bytes, &options)
}

fuzz_target!(|bytes: &[u8]| {
    let accepted = [
        ("MQIsdp", 3),
        ("MQTT", 4),
        ("MQTT", 5),
        ("MQTT", 0x84),
        ("MQTT", 0x85),
    ]
    .map(|(name, level)| Protocol::new(name, level));

    for mode in [Mode::Strict, Mode::Tolerant] {
        let whole = judge(bytes, mode, &accepted);
        match whole {
            Ok(None) => assert!(bytes.len() < LIMIT, "waits beyond the limit"),
            Ok(Some(connect)) => {
                assert!(connect.packet_len <= bytes.len().min(LIMIT));
                let _ = connect.user_properties().count();
                let exact = judge(&bytes[..connect.packet_len], mode, &accepted);
                assert_eq!(exact, Ok(Some(connect)), "looks behind the packet");
                let short = judge(&bytes[..connect.packet_len - 1], mode, &accepted);
                assert_eq!(short, Ok(None), "a beginning asks for more");
            }
            Err(error) => {
                assert!(error.to_string().len() < 400, "prints without bound");
                let _ = error.connack();
            }
        }
        // Every beginning either asks for more or has the verdict already.
        for end in 0..bytes.len().min(64) {
            if let Err(early) = judge(&bytes[..end], mode, &accepted) {
                let late = whole.expect_err("a verdict is final");
                assert_eq!(early.reason(), late.reason());
                break;
            }
        }
    }

    if let Ok(Some(strict)) = judge(bytes, Mode::Strict, &accepted) {
        let tolerant = judge(bytes, Mode::Tolerant, &accepted);
        let tolerant = tolerant.expect("tolerant takes it").expect("it is whole");
        assert_eq!(strict.client_id, tolerant.client_id);
        assert_eq!(strict.packet_len, tolerant.packet_len);
        assert!(std::str::from_utf8(strict.client_id).is_ok());
    }

    for level in [4, 5] {
        if read_connack(bytes, level) == BrokerFirst::NeedMore {
            assert!(bytes.len() < MAX_CONNACK_SIZE);
        }
    }
});
