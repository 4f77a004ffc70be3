//! Peers that have the keys and keep to no rules.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::control::{MAX_QUIET, alert};
use super::suite::Version;
use super::testing::forger::{ASKS, Forger, V1_2, V1_3, forged, is_refused, is_taken};
use super::testing::suites;
use super::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE};

const CLIENT_HELLO: &[u8] = &[1, 0, 0, 3, 9, 9, 9];

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

proptest! {
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
