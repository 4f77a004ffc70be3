use openssl::ssl::{Ssl, SslContext, SslMethod, SslVersion};
use proptest::prelude::*;

use super::*;

/// A ClientHello as OpenSSL sends it.
fn openssl_hello(name: Option<&str>, version: SslVersion) -> Vec<u8> {
    let mut builder = SslContext::builder(SslMethod::tls_client()).unwrap();
    builder.set_max_proto_version(Some(version)).unwrap();
    let mut ssl = Ssl::new(&builder.build()).unwrap();
    if let Some(name) = name {
        ssl.set_hostname(name).unwrap();
    }
    let sent = match ssl.connect(Recorded::default()) {
        Err(openssl::ssl::HandshakeError::WouldBlock(middle)) => middle.get_ref().0.clone(),
        _ => panic!("the handshake cannot be over"),
    };
    assert!(!sent.is_empty());
    sent
}

/// Keeps what is written and has nothing to read.
#[derive(Debug, Default)]
struct Recorded(Vec<u8>);

impl std::io::Read for Recorded {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::WouldBlock.into())
    }
}

impl std::io::Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The same message in records of at most `size` bytes.
fn spread(hello: &[u8], size: usize) -> Vec<u8> {
    let fragments = hello[RECORD_HEADER..].chunks(size);
    fragments
        .flat_map(|fragment| {
            let length = u16::try_from(fragment.len()).unwrap().to_be_bytes();
            [&[22, 3, 1, length[0], length[1]], fragment].concat()
        })
        .collect()
}

fn name(hello: &[u8]) -> Option<String> {
    parse(hello).unwrap().expect("it is whole").server_name
}

#[test]
fn the_name_that_openssl_sends() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let hello = openssl_hello(Some("Device.Example.Test"), version);
        assert_eq!(name(&hello).as_deref(), Some("device.example.test"));
        assert_eq!(name(&openssl_hello(None, version)), None);
    }
    let dotted = openssl_hello(Some("a.test."), SslVersion::TLS1_3);
    assert_eq!(name(&dotted).as_deref(), Some("a.test"));
}

#[test]
fn every_beginning_needs_more_and_never_fails() {
    let hello = openssl_hello(Some("a.test"), SslVersion::TLS1_3);
    for wire in [hello.clone(), spread(&hello, 29)] {
        for end in 0..wire.len() {
            assert_eq!(parse(&wire[..end]), Ok(None), "{end}");
        }
        assert_eq!(name(&wire).as_deref(), Some("a.test"));
    }
}

#[test]
fn bytes_behind_it_do_not_matter() {
    let mut hello = openssl_hello(Some("a.test"), SslVersion::TLS1_2);
    hello.extend([20, 3, 3, 0, 1, 1]);
    assert_eq!(name(&hello).as_deref(), Some("a.test"));
}

#[test]
fn other_protocols_are_told_at_the_first_bytes() {
    assert_eq!(parse(b"\x10\x0c"), Err(HelloError::NotTls(0x10)));
    assert_eq!(parse(b"GET / HTTP/1.1"), Err(HelloError::NotTls(b'G')));
    assert_eq!(parse(b"\x16\x02"), Err(HelloError::NotTls(0x16)));
    // The ClientHello of SSL 2.
    assert_eq!(
        parse(b"\x80\x2e\x01\x03\x01"),
        Err(HelloError::NotTls(0x80))
    );
}

#[test]
fn sizes_are_bounded() {
    let header = |length: u32| {
        let length = length.to_be_bytes();
        [22, 3, 1, 0, 4, 1, length[1], length[2], length[3]]
    };
    let longest = u32::try_from(MAX_MESSAGE).unwrap();
    assert_eq!(parse(&header(longest)), Ok(None));
    assert_eq!(parse(&header(longest + 1)), Err(HelloError::TooLarge));
    let hello = openssl_hello(Some("a.test"), SslVersion::TLS1_3);
    assert_eq!(parse(&spread(&hello, 1)), Err(HelloError::TooLarge));
    assert!(matches!(
        parse(&[22, 3, 1, 0, 0]),
        Err(HelloError::Malformed(_))
    ));
    assert!(matches!(
        parse(&[22, 3, 1, 64, 1]),
        Err(HelloError::Malformed(_))
    ));
}

/// A ClientHello with these extensions.
fn hello_with(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let message = [&[1, 0][..], &length.to_be_bytes(), &body].concat();
    let record = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[22, 3, 1, record[0], record[1]], &message[..]].concat()
}

fn server_name_extension(name: &[u8]) -> Vec<u8> {
    let length = |extra: usize| u16::try_from(name.len() + extra).unwrap().to_be_bytes();
    [&[0, 0], &length(5)[..], &length(3), &[0], &length(0), name].concat()
}

#[test]
fn names_that_no_host_has_are_malformed() {
    assert_eq!(
        name(&hello_with(&server_name_extension(b"a.test"))).as_deref(),
        Some("a.test")
    );
    let long = [b'a'; 256];
    for bad in [
        &b""[..],
        b"a\0b",
        b"a b",
        b"\xc3\xa4.test",
        b"\xff",
        b".",
        &long,
    ] {
        let hello = hello_with(&server_name_extension(bad));
        assert_eq!(
            parse(&hello),
            Err(HelloError::Malformed("server name")),
            "{bad:?}"
        );
    }
    let twice = [
        server_name_extension(b"a.test"),
        server_name_extension(b"b.test"),
    ]
    .concat();
    let error = Err(HelloError::Malformed("two server_name extensions"));
    assert_eq!(parse(&hello_with(&twice)), error);
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(&bytes);
        let _ = parse(&hello_with(&bytes));
        let _ = parse(&hello_with(&server_name_extension(&bytes)));
    }

    #[test]
    fn a_changed_byte_never_panics_and_names_stay_clean(at in 0_usize..200, byte in any::<u8>()) {
        let mut hello = openssl_hello(Some("device.example.test"), SslVersion::TLS1_2);
        let at = at % hello.len();
        hello[at] = byte;
        if let Ok(Some(ClientHello { server_name: Some(name) })) = parse(&hello) {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!name.ends_with("..") || name.len() > 1);
        }
    }

    #[test]
    fn records_of_any_size_say_the_same(size in 16_usize..600) {
        let hello = openssl_hello(Some("a.test"), SslVersion::TLS1_2);
        prop_assert_eq!(parse(&spread(&hello, size)), parse(&hello));
    }

    #[test]
    fn every_name_comes_back(written in "[a-zA-Z0-9_-]{1,20}(\\.[a-zA-Z0-9-]{1,20}){0,4}\\.?") {
        let hello = hello_with(&server_name_extension(written.as_bytes()));
        let expected = written.trim_end_matches('.').to_lowercase();
        prop_assert_eq!(name(&hello), Some(expected));
    }
}
