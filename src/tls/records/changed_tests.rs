//! Records that somebody has changed, and the vectors of RFC 8448.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::APPLICATION_DATA;
use super::control::alert;
use super::suite::Version;
use super::testing::forger::{V1_2, V1_3, forged, forged_with, is_refused, is_taken};
use super::testing::{bytes, suites};

/// RFC 8448 §3: what client and server say to each other, each in one record.
#[test]
fn the_records_of_rfc_8448() {
    let (mut server, mut forger) = forged_with(V1_3, |parts| {
        let secret = |hex: &str| bytes(hex)[..].into();
        parts.read.secret =
            secret("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
        parts.write.secret =
            secret("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
        // The server has sent a ticket.
        (parts.read.sequence, parts.write.sequence) = (0, 1);
    });
    let contents: Vec<u8> = (0..50).collect();
    let of_client = bytes(
        "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc
         ab 3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd
         1e 3d ea e6 3a ee bb 21 69 49 15 e4",
    );
    let of_server = bytes(
        "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa
         1b 36 e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2
         ab f3 32 54 0d d0 32 e1 67 c2 95 5d",
    );
    assert_eq!(forger.record(APPLICATION_DATA, &contents), of_client);
    assert_eq!(is_taken(&mut server, &of_client), contents);
    server.write(&contents).unwrap();
    assert_eq!(server.socket.outgoing, of_server);
}

#[test]
fn a_record_with_any_bit_changed_is_refused() {
    for suite in suites() {
        let size = forged(suite).1.record(APPLICATION_DATA, b"message").len();
        for bit in 8 * 5..8 * size {
            let (server, mut forger) = forged(suite);
            let mut record = forger.record(APPLICATION_DATA, b"message");
            record[bit / 8] ^= 1 << (bit % 8);
            is_refused(
                server,
                &mut forger,
                &record,
                alert::BAD_RECORD_MAC,
                &format!("bit {bit}"),
            );
        }
        for (place, value, description) in [
            (0, 20, alert::UNEXPECTED_MESSAGE),
            (0, 24, alert::UNEXPECTED_MESSAGE),
            (0, b'G', alert::UNEXPECTED_MESSAGE),
            (1, 2, alert::PROTOCOL_VERSION),
            (3, 0xff, alert::RECORD_OVERFLOW),
        ] {
            let (server, mut forger) = forged(suite);
            let mut record = forger.record(APPLICATION_DATA, b"message");
            record[place] = value;
            is_refused(
                server,
                &mut forger,
                &record,
                description,
                &format!("{place} = {value}"),
            );
        }
        // The other kinds and versions are authenticated.
        let (server, mut forger) = forged(suite);
        let mut record = forger.record(APPLICATION_DATA, b"message");
        record[2] = 1;
        let description = match suite.version {
            Version::V1_3 => alert::BAD_RECORD_MAC,
            Version::V1_2 => alert::PROTOCOL_VERSION,
        };
        is_refused(server, &mut forger, &record, description, "minor version");
    }
}

#[test]
fn records_again_in_another_order_or_cut_are_refused() {
    for suite in suites() {
        let make = || {
            let (server, mut forger) = forged(suite);
            let one = forger.record(APPLICATION_DATA, b"one");
            let two = forger.record(APPLICATION_DATA, b"two");
            (server, forger, one, two)
        };
        let (server, mut forger, one, _) = make();
        let again = [&one[..], &one].concat();
        is_refused(server, &mut forger, &again, alert::BAD_RECORD_MAC, "again");
        let (server, mut forger, _, two) = make();
        is_refused(
            server,
            &mut forger,
            &two,
            alert::BAD_RECORD_MAC,
            "the second first",
        );
        for cut in 0..make().2.len() - 5 {
            let (server, mut forger, mut one, two) = make();
            one.truncate(one.len() - 1 - cut);
            if let Some(size) = one.get_mut(3..5) {
                let right = u16::from_be_bytes([size[0], size[1]]) - 1 - cut as u16;
                size.copy_from_slice(&right.to_be_bytes());
            }
            let wire = [one, two].concat();
            is_refused(server, &mut forger, &wire, alert::BAD_RECORD_MAC, "cut");
        }
        // An incomplete record at the end of the stream is the end.
        let (mut server, _, one, two) = make();
        server
            .socket
            .incoming
            .extend([&one[..], &two[..two.len() - 1]].concat());
        server.socket.ended = true;
        assert_eq!(server.read_all(), (b"one".to_vec(), None));
        assert_eq!(server.socket.outgoing, b"");
    }
}

#[test]
fn records_that_are_too_long_are_refused() {
    for suite in suites() {
        let (server, mut forger) = forged(suite);
        let long = forger.record(APPLICATION_DATA, &[1; 16_385]);
        is_refused(
            server,
            &mut forger,
            &long,
            alert::RECORD_OVERFLOW,
            "contents",
        );
        let (server, mut forger) = forged_with(suite, |parts| parts.fragment = 512);
        let long = forger.record(APPLICATION_DATA, &[1; 513]);
        is_refused(
            server,
            &mut forger,
            &long,
            alert::RECORD_OVERFLOW,
            "fragment",
        );
        let (server, mut forger) = forged(suite);
        let most = match suite.version {
            Version::V1_3 => 16_384 + 256,
            Version::V1_2 => 16_384 + 2048,
        };
        let [high, low] = u16::to_be_bytes(most + 1);
        // The header alone says so.
        let header = [APPLICATION_DATA, 3, 3, high, low];
        is_refused(
            server,
            &mut forger,
            &header,
            alert::RECORD_OVERFLOW,
            "header",
        );
        let (server, mut forger) = forged(suite);
        let [high, low] = most.to_be_bytes();
        let record = [&[APPLICATION_DATA, 3, 3, high, low][..], &[1; 18_432]].concat();
        is_refused(
            server,
            &mut forger,
            &record,
            alert::BAD_RECORD_MAC,
            "as long as it may be",
        );
    }
    let (mut server, mut forger) = forged(V1_3);
    let padded = [&[1; 16_000][..], &[APPLICATION_DATA], &[0; 383]].concat();
    assert_eq!(
        is_taken(&mut server, &forger.record(0, &padded)),
        [1; 16_000]
    );
    let too_much = [&padded[..], &[0]].concat();
    let record = forger.record(0, &too_much);
    is_refused(
        server,
        &mut forger,
        &record,
        alert::RECORD_OVERFLOW,
        "padding",
    );
}

#[test]
fn sequence_numbers_do_not_come_around() {
    for suite in suites() {
        let (server, mut forger) = forged_with(suite, |parts| {
            parts.read.sequence = u64::MAX - 1;
        });
        let last = forger.record(APPLICATION_DATA, b"last");
        // Another session with the same keys would be at this number.
        let wire = [last.clone(), last].concat();
        is_refused(
            server,
            &mut forger,
            &wire,
            alert::BAD_RECORD_MAC,
            "one too many",
        );
        let (mut server, _) = forged_with(suite, |parts| parts.write.sequence = 1 << 60);
        match suite.version {
            Version::V1_3 => {
                server.write(b"under the next key").unwrap();
                assert_eq!(server.session.to_parts().unwrap().write.sequence, 1);
            }
            Version::V1_2 => {
                server.write(b"no other key").unwrap_err();
                assert_eq!(server.socket.outgoing, b"");
            }
        }
    }
}

#[test]
fn explicit_nonces_go_on_and_come_around() {
    let (mut server, _) = forged_with(V1_2, |parts| parts.write.explicit = u64::MAX);
    server.write(b"one").unwrap();
    server.write(b"two").unwrap();
    let sent = &server.socket.outgoing;
    let size = 5 + 8 + 3 + 16;
    assert_eq!(sent[5..13], [0xff; 8]);
    assert_eq!(sent[size + 5..size + 13], [0; 8]);
}

proptest! {
    #[test]
    fn random_bytes_end_nothing_but_the_session(
        suite in prop::sample::select(suites().collect::<Vec<_>>()),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::option::of(0_u16..300),
        at_once in 1_usize..50,
    ) {
        let (mut server, mut forger) = forged(suite);
        server.socket.at_once = at_once;
        let mut wire = forger.record(APPLICATION_DATA, b"good");
        if let Some(size) = header {
            wire.extend([APPLICATION_DATA, 3, 3]);
            wire.extend(size.to_be_bytes());
        }
        wire.extend(&noise);
        server.socket.incoming.extend(&wire);
        server.socket.ended = true;
        let (got, error) = server.read_all();
        prop_assert_eq!(got, b"good");
        prop_assert!(matches!(error, None | Some(ErrorKind::InvalidData)));
        prop_assert_eq!(error.is_some(), !server.socket.outgoing.is_empty());
    }
}
