//! Peers that have the keys and keep to no rules, and records that somebody has changed.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::control::{MAX_QUIET, alert};
use super::protection::{Aead, Suite, Version};
use super::testing::{Forger, Server, bytes, forged, forged_with, suites};
use super::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE};

const V1_3: Suite = Suite {
    version: Version::V1_3,
    aead: Aead::Aes128Gcm,
};
const V1_2: Suite = Suite {
    version: Version::V1_2,
    aead: Aead::Aes128Gcm,
};
const CLIENT_HELLO: &[u8] = &[1, 0, 0, 3, 9, 9, 9];
const ASKS: &[u8] = &[24, 0, 0, 1, 1];

/// The session reads `wire` and answers with one fatal alert, and then neither reads nor writes.
#[track_caller]
fn is_refused(mut server: Server, forger: &mut Forger, wire: &[u8], description: u8, what: &str) {
    server.socket.incoming.extend(wire);
    let (_, error) = server.read_all();
    assert_eq!(error, Some(ErrorKind::InvalidData), "{what}");
    let sent = forger.open(&server.socket.outgoing);
    let alert = (ALERT, vec![alert::FATAL, description]);
    assert_eq!(sent.last(), Some(&alert), "{what}: {sent:?}");
    let fatal = sent
        .iter()
        .filter(|(kind, text)| *kind == ALERT && text[0] == alert::FATAL);
    assert_eq!(fatal.count(), 1, "{what}");
    assert!(server.session.has_input(), "the error shows again");
    server.socket.outgoing.clear();
    server.socket.incoming.extend(wire);
    assert_eq!(server.read_all(), (vec![], Some(ErrorKind::InvalidData)));
    assert_eq!(
        server.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    server.end();
    assert_eq!(server.socket.outgoing, b"", "{what}: nothing more is said");
}

/// The session reads `wire` and goes on; gives what it read.
#[track_caller]
fn is_taken(server: &mut Server, wire: &[u8]) -> Vec<u8> {
    server.socket.incoming.extend(wire);
    let (got, error) = server.read_all();
    assert_eq!(error, Some(ErrorKind::WouldBlock));
    got
}

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
fn what_cannot_come_now_is_refused() {
    for suite in suites() {
        for (kind, contents) in [
            (CHANGE_CIPHER_SPEC, &[1][..]),
            (24, b"heartbeat"),
            (99, b"?"),
            (HANDSHAKE, b""),
            (ALERT, b""),
            // Finished.
            (HANDSHAKE, &[20, 0, 0, 12]),
            // NewSessionTicket.
            (HANDSHAKE, &[4]),
        ] {
            let (server, mut forger) = forged(suite);
            let record = forger.record(kind, contents);
            let what = format!("{suite:?} {kind} {contents:?}");
            is_refused(
                server,
                &mut forger,
                &record,
                alert::UNEXPECTED_MESSAGE,
                &what,
            );
        }
        for (contents, description) in [
            (&[1][..], alert::DECODE_ERROR),
            (&[1, 0, 1], alert::DECODE_ERROR),
            (&[1, 0, 1, 0], alert::DECODE_ERROR),
        ] {
            let (server, mut forger) = forged(suite);
            let record = forger.record(ALERT, contents);
            is_refused(server, &mut forger, &record, description, "an alert");
        }
    }
    let (server, mut forger) = forged(V1_3);
    // In clear, as a middlebox would send it in the handshake.
    let clear = [CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1];
    is_refused(
        server,
        &mut forger,
        &clear,
        alert::UNEXPECTED_MESSAGE,
        "ChangeCipherSpec",
    );
    for padding in [0, 1, 300] {
        let (server, mut forger) = forged(V1_3);
        let record = forger.record(0, &vec![0; padding]);
        is_refused(
            server,
            &mut forger,
            &record,
            alert::UNEXPECTED_MESSAGE,
            "no kind at all",
        );
    }
    let (server, mut forger) = forged(V1_2);
    let record = forger.record(ALERT, &[3, 0]);
    is_refused(
        server,
        &mut forger,
        &record,
        alert::ILLEGAL_PARAMETER,
        "level",
    );
}

#[test]
fn messages_are_put_together_and_not_interleaved() {
    let (mut server, mut forger) = forged(V1_3);
    for byte in ASKS {
        let record = forger.record(HANDSHAKE, &[*byte]);
        assert_eq!(is_taken(&mut server, &record), b"");
        server.move_on();
    }
    forger.change_keys();
    assert_eq!(
        is_taken(&mut server, &forger.record(APPLICATION_DATA, b"new")),
        b"new"
    );
    let answer = vec![24, 0, 0, 1, 0];
    assert_eq!(forger.open(&server.socket.outgoing), [(HANDSHAKE, answer)]);
    server.socket.outgoing.clear();
    server.write(b"new as well").unwrap();
    let data = (APPLICATION_DATA, b"new as well".to_vec());
    assert_eq!(forger.open(&server.socket.outgoing), [data]);

    for (contents, description) in [
        (&[24, 0, 0, 2][..], alert::DECODE_ERROR),
        (&[24, 1], alert::DECODE_ERROR),
        (&[24, 0, 0, 1, 2], alert::ILLEGAL_PARAMETER),
        // Something behind it, before the keys have changed.
        (&[24, 0, 0, 1, 0, 24], alert::UNEXPECTED_MESSAGE),
        (&[24, 0, 0, 1, 0, 0], alert::UNEXPECTED_MESSAGE),
        (&[1, 0, 0, 3], alert::UNEXPECTED_MESSAGE),
    ] {
        let (server, mut forger) = forged(V1_3);
        let record = forger.record(HANDSHAKE, contents);
        is_refused(
            server,
            &mut forger,
            &record,
            description,
            &format!("{contents:?}"),
        );
    }
    for (kind, contents) in [
        (APPLICATION_DATA, &b"x"[..]),
        (APPLICATION_DATA, b""),
        (ALERT, &[1, 0]),
    ] {
        for (suite, begun) in [(V1_3, &ASKS[..2]), (V1_2, &CLIENT_HELLO[..6])] {
            let (server, mut forger) = forged(suite);
            let wire = [
                forger.record(HANDSHAKE, begun),
                forger.record(kind, contents),
            ]
            .concat();
            is_refused(
                server,
                &mut forger,
                &wire,
                alert::UNEXPECTED_MESSAGE,
                "interleaved",
            );
        }
    }
}

#[test]
fn many_wishes_for_other_keys_get_one_answer() {
    let (mut server, mut forger) = forged(V1_3);
    let mut wire = Vec::new();
    for _ in 0..300 {
        wire.extend(forger.record(HANDSHAKE, ASKS));
        forger.change_keys();
    }
    assert_eq!(is_taken(&mut server, &wire), b"");
    let answer = vec![24, 0, 0, 1, 0];
    assert_eq!(forger.open(&server.socket.outgoing), [(HANDSHAKE, answer)]);
}

#[test]
fn old_keys_are_not_taken_after_a_key_update() {
    let (server, mut forger) = forged(V1_3);
    let update = forger.record(HANDSHAKE, &[24, 0, 0, 1, 0]);
    let old = forger.record(APPLICATION_DATA, b"old");
    is_refused(
        server,
        &mut forger,
        &[update, old].concat(),
        alert::BAD_RECORD_MAC,
        "old keys",
    );
}

#[test]
fn floods_are_bounded() {
    let most = |kind: u8| usize::from(MAX_QUIET) / if kind == HANDSHAKE { 1 } else { 32 };
    for suite in suites() {
        let quiet: &[(u8, &[u8])] = match suite.version {
            Version::V1_3 => &[
                (APPLICATION_DATA, b""),
                (ALERT, &[1, 90]),
                (HANDSHAKE, ASKS),
            ],
            Version::V1_2 => &[(APPLICATION_DATA, b""), (ALERT, &[1, 90])],
        };
        for (kind, contents) in quiet {
            let (mut server, mut forger) = forged(suite);
            let more = |forger: &mut Forger, count: usize| {
                let mut wire = Vec::new();
                for _ in 0..count {
                    wire.extend(forger.record(*kind, contents));
                    if *kind == HANDSHAKE {
                        forger.change_keys();
                    }
                }
                wire
            };
            for _ in 0..3 {
                let wire = more(&mut forger, most(*kind));
                assert_eq!(is_taken(&mut server, &wire), b"");
                let data = forger.record(APPLICATION_DATA, b"x");
                assert_eq!(is_taken(&mut server, &data), b"x");
            }
            let wire = more(&mut forger, most(*kind) + 1);
            is_refused(
                server,
                &mut forger,
                &wire,
                alert::UNEXPECTED_MESSAGE,
                "flood",
            );
        }
    }
    // A renegotiation counts as record and as message.
    let (mut server, mut forger) = forged(V1_2);
    let half: Vec<u8> = (0..16)
        .flat_map(|_| forger.record(HANDSHAKE, CLIENT_HELLO))
        .collect();
    assert_eq!(is_taken(&mut server, &half), b"");
    let answers = forger.open(&server.socket.outgoing);
    let refusal = (ALERT, vec![alert::WARNING, alert::NO_RENEGOTIATION]);
    assert_eq!(answers, vec![refusal; 16]);
    server.socket.outgoing.clear();
    let last = forger.record(HANDSHAKE, CLIENT_HELLO);
    is_refused(
        server,
        &mut forger,
        &last,
        alert::UNEXPECTED_MESSAGE,
        "again and again",
    );
    let (server, mut forger) = forged(V1_2);
    let many = forger.record(HANDSHAKE, &CLIENT_HELLO.repeat(2000));
    is_refused(
        server,
        &mut forger,
        &many,
        alert::UNEXPECTED_MESSAGE,
        "all in one record",
    );
}

#[test]
fn answers_wait_for_who_reads_them() {
    let (mut server, mut forger) = forged(V1_2);
    server.socket.room = 0;
    let mut wire = Vec::new();
    for _ in 0..10_000 {
        wire.extend(forger.record(HANDSHAKE, CLIENT_HELLO));
        wire.extend(forger.record(APPLICATION_DATA, b"x"));
    }
    server.socket.incoming.extend(&wire);
    let (got, error) = server.read_all();
    assert_eq!(error, Some(ErrorKind::WouldBlock));
    assert!(server.session.is_congested() && server.session.owes());
    let owed = server.session.to_parts().unwrap().owed.len();
    assert!((4096..6000).contains(&owed), "{owed}");
    server.socket.room = 3000;
    assert!(server.session.flush(&mut server.socket).is_err());
    server.move_on();
    // All the rest comes once they are taken.
    server.socket.room = usize::MAX;
    let (rest, _) = server.read_all();
    assert_eq!(got.len() + rest.len(), 10_000);
    assert_eq!(forger.open(&server.socket.outgoing).len(), 10_000);
    assert!(!server.session.is_congested());
}

#[test]
fn alerts_of_the_peer() {
    for suite in suites() {
        let (mut server, mut forger) = forged(suite);
        let record = forger.record(ALERT, &[alert::FATAL, 40]);
        server.socket.incoming.extend(record);
        assert_eq!(server.read_all(), (vec![], Some(ErrorKind::InvalidData)));
        assert!(server.write(b"x").is_err());
        server.end();
        assert_eq!(
            server.socket.outgoing, b"",
            "who has given up is told nothing"
        );
        let (mut server, mut forger) = forged(suite);
        let closing = [
            forger.record(ALERT, &[1, 0]),
            forger.record(APPLICATION_DATA, b"x"),
        ];
        server.socket.incoming.extend(closing.concat());
        assert_eq!(
            server.read_all(),
            (vec![], None),
            "nothing counts behind a close_notify"
        );
    }
    // In TLS 1.3 levels are without meaning.
    let (mut server, mut forger) = forged(V1_3);
    server
        .socket
        .incoming
        .extend(forger.record(ALERT, &[alert::WARNING, 40]));
    assert_eq!(server.read_all(), (vec![], Some(ErrorKind::InvalidData)));
    let (mut server, mut forger) = forged(V1_2);
    assert_eq!(
        is_taken(&mut server, &forger.record(ALERT, &[alert::WARNING, 40])),
        b""
    );
}

#[test]
fn who_has_closed_answers_nothing() {
    let (mut server, mut forger) = forged(V1_3);
    server.end();
    let update = forger.record(HANDSHAKE, ASKS);
    forger.change_keys();
    let data = forger.record(APPLICATION_DATA, b"still heard");
    assert_eq!(
        is_taken(&mut server, &[update, data].concat()),
        b"still heard"
    );
    server.socket.incoming.extend([0; 5]);
    server.read_all();
    assert_eq!(forger.open(&server.socket.outgoing), [(ALERT, vec![1, 0])]);
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

    #[test]
    fn whatever_a_peer_says_is_judged_the_same_however_it_is_cut(
        suite in prop::sample::select(suites().collect::<Vec<_>>()),
        said in prop::collection::vec(
            (prop::sample::select(vec![0_u8, 20, 21, 22, 23, 23, 24]),
             prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 24, 90, 100, 255]), 0..8)),
            0..12),
        at_once in 1_usize..50,
        room in 1_usize..20,
    ) {
        let judge = |at_once: usize, room: usize| {
            let (mut server, mut forger) = forged(suite);
            for (kind, contents) in &said {
                server.socket.incoming.extend(forger.record(*kind, contents));
            }
            server.socket.ended = true;
            server.socket.at_once = at_once;
            let mut got = Vec::new();
            let error = loop {
                match server.read(room) {
                    Ok(bytes) if bytes.is_empty() => break None,
                    Ok(bytes) => got.extend(bytes),
                    Err(error) => break Some(error.kind()),
                }
            };
            (got, error, forger.open(&server.socket.outgoing))
        };
        prop_assert_eq!(judge(at_once, room), judge(usize::MAX, 20_000));
    }
}
