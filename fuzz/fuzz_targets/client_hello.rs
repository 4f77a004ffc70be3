//! What must hold for the ClientHello parser whatever bytes arrive, and however they are segmented
//! and cut into records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mqtt_proxy::tls::client_hello::{ClientHello, HelloError, MAX_WIRE, normal, parse};

/// The longest record: one may be waited for although a part of it is all that is needed.
const RECORD: usize = 5 + 16 * 1024;

fn judge(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    let verdict = parse(bytes);
    match &verdict {
        Ok(None) => assert!(bytes.len() < MAX_WIRE + RECORD, "waits beyond the limit"),
        Ok(Some(ClientHello { server_name: Some(name) })) => {
            assert!((1..=255).contains(&name.len()));
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
            assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
        }
        Ok(Some(ClientHello { server_name: None })) => {}
        Err(error) => assert!(error.to_string().len() < 100, "prints without bound"),
    }
    verdict
}

/// The bytes as one handshake message, in records of this size.
fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for fragment in message.chunks(size) {
        wire.extend([22, 3, 1]);
        wire.extend((fragment.len() as u16).to_be_bytes());
        wire.extend(fragment);
    }
    wire
}

fuzz_target!(|bytes: &[u8]| {
    let whole = judge(bytes);
    // Every beginning either asks for more or has the verdict already.
    for end in 0..bytes.len().min(600) {
        match judge(&bytes[..end]) {
            Ok(None) => {}
            verdict => {
                assert_eq!(verdict, whole, "a verdict is final");
                break;
            }
        }
    }
    // The same bytes as the body of a ClientHello: what it says does not depend on the records.
    let body = &bytes[..bytes.len().min(4096)];
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1, length[1], length[2], length[3]], body].concat();
    let one = judge(&in_records(&message, 16 * 1024));
    assert!(!matches!(one, Ok(None)), "it is whole");
    let size = usize::from(bytes.first().copied().unwrap_or(0)) + message.len() / 30 + 1;
    assert_eq!(judge(&in_records(&message, size)), one);
    if let Ok(Some(ClientHello { server_name: Some(name) })) = one {
        assert!(normal(&name) == name || name.ends_with('.'));
    }
});
