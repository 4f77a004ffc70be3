//! Sessions that go on elsewhere.

use std::io::Write;

use serde_json::{Value, json};

use super::Records;
use super::parts::{PartsError, SessionParts};
use super::suite::{Aead, Suite, Version};
use super::testing::forger::{established, parts};
use super::testing::{Pair, SUITES, suites};
use crate::tls::session::Session;
use crate::tls::staging::{LARGEST, Staging};

/// What is wrong, how it comes to be, and what is said of it.
type Change = (&'static str, fn(&mut SessionParts), PartsError);

fn refusal(parts: &SessionParts) -> Option<PartsError> {
    Session::from_parts(parts).err()
}

#[test]
fn every_wrong_length_and_count_is_an_error() {
    for suite in suites() {
        assert_eq!(refusal(&parts(suite)), None);
        let changes: [Change; 12] = [
            (
                "secret",
                |parts| parts.read.secret = longer(&parts.read.secret),
                PartsError::Keys,
            ),
            (
                "key",
                |parts| parts.read.key = longer(&parts.read.key),
                PartsError::Keys,
            ),
            (
                "iv",
                |parts| parts.write.iv = longer(&parts.write.iv),
                PartsError::Keys,
            ),
            (
                "none",
                |parts| {
                    parts.write.iv = Default::default();
                    parts.write.secret = Default::default();
                },
                PartsError::Keys,
            ),
            ("fragment", |parts| parts.fragment = 511, PartsError::Count),
            (
                "fragment",
                |parts| parts.fragment = 16_385,
                PartsError::Count,
            ),
            ("quiet", |parts| parts.quiet = 1025, PartsError::Count),
            ("answers", |parts| parts.answers = 1, PartsError::Count),
            (
                "contents",
                |parts| parts.contents = [0; 16_385][..].into(),
                PartsError::Pending,
            ),
            (
                "received",
                |parts| parts.received = vec![0; 1 << 23][..].into(),
                PartsError::Pending,
            ),
            (
                "owed",
                |parts| parts.owed = vec![0; 1 << 23][..].into(),
                PartsError::Pending,
            ),
            (
                "message",
                |parts| parts.message = [1, 0, 0, 0, 0][..].into(),
                PartsError::Message,
            ),
        ];
        for (what, change, error) in changes {
            let mut parts = parts(suite);
            change(&mut parts);
            assert_eq!(refusal(&parts), Some(error), "{suite:?}: {what}");
        }
    }
}

fn longer(bytes: &[u8]) -> super::parts::Bytes {
    [bytes, &[0]].concat()[..].into()
}

#[test]
fn a_key_has_no_more_left_than_a_new_one() {
    let suite = Suite {
        version: Version::V1_3,
        aead: Aead::Aes256Gcm,
    };
    let mut parts = parts(suite);
    parts.read.blocks_left = (1 << 34) + 1;
    assert_eq!(refusal(&parts), Some(PartsError::Count));
}

#[test]
fn only_beginnings_of_messages_are_waited_in() {
    for (version, message, left, fits) in [
        (Version::V1_3, &[24, 0, 0, 1][..], 0, true),
        (Version::V1_3, &[24, 0, 1], 0, false),
        (Version::V1_3, &[1], 0, false),
        (Version::V1_3, &[], 1, false),
        (Version::V1_2, &[1, 0, 0], 0, true),
        (Version::V1_2, &[1, 0, 0, 0], 0, false),
        (Version::V1_2, &[2], 0, false),
        (Version::V1_2, &[], 16_384, true),
        (Version::V1_2, &[], 16_385, false),
        (Version::V1_2, &[1], 1, false),
    ] {
        let mut parts = parts(Suite {
            version,
            aead: Aead::Aes128Gcm,
        });
        (parts.message, parts.message_left) = (message.into(), left);
        let error = (!fits).then_some(PartsError::Message);
        assert_eq!(refusal(&parts), error, "{version:?} {message:?} {left}");
    }
}

#[test]
fn wrong_values_are_no_parts() {
    let good = serde_json::to_value(parts(suites().next().unwrap())).unwrap();
    assert!(serde_json::from_value::<SessionParts>(good.clone()).is_ok());
    let changes: [(&[&str], Value); 8] = [
        (&["suite", "version"], json!("1.1")),
        (&["suite", "aead"], json!("rc4")),
        (&["read", "key"], json!("0")),
        (&["read", "key"], json!("zz")),
        (&["read", "sequence"], json!(-1)),
        (&["fragment"], json!(70_000)),
        (&["quiet"], json!(65_536)),
        (&["end"], json!("over")),
    ];
    for (path, value) in changes {
        let mut wrong = good.clone();
        let mut place = &mut wrong;
        for name in path {
            place = &mut place[*name];
        }
        *place = value.clone();
        assert!(
            serde_json::from_value::<SessionParts>(wrong).is_err(),
            "{path:?} {value}"
        );
    }
}

#[test]
fn nothing_secret_is_printed() {
    for suite in suites() {
        let parts = parts(suite);
        let session = Session::from_parts(&parts).unwrap();
        let text = format!("{parts:?} {session:?}");
        for secret in ["1, 1", "2, 2", "0101", "0202"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn tickets_wait_for_company_and_finished_does_not() {
    for suite in suites() {
        let mut records = Records::new(established(suite), Vec::new(), b"owed".to_vec());
        assert_eq!(records.owes(), suite.version == Version::V1_2);
        records.let_go();
        assert!(records.owes());
        let records = Records::new(established(suite), Vec::new(), Vec::new());
        assert!(!records.owes());
    }
}

#[test]
fn a_settled_session_is_small() {
    assert!(size_of::<Session>() <= 350, "{}", size_of::<Session>());
}

#[test]
fn as_much_as_a_relay_thread_can_leave_in_a_session_moves() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.server.session.let_go();
        pair.server.session.flush(&mut pair.server.socket).unwrap();
        pair.server.shelf.set(Some(Staging::new(LARGEST)));
        pair.server.socket.room = 0;
        // More than fits a staging, because the last record goes beyond its end.
        let much = vec![7; LARGEST];
        assert_eq!(pair.server.write(&much).unwrap(), LARGEST);
        assert!(pair.server.session.pending() > LARGEST);
        pair.server.move_on();
        pair.server.socket.room = usize::MAX;
        pair.server.session.flush(&mut pair.server.socket).unwrap();
        pair.carry();
        assert_eq!(pair.client_reads().unwrap(), much);
    }
}

#[test]
fn what_follows_the_end_is_not_kept() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.client.write_all(b"DISCONNECT").unwrap();
        pair.client.shutdown().unwrap();
        pair.carry();
        pair.server.socket.incoming.extend([7; 50_000]);
        let (got, error) = pair.server.read_all();
        assert_eq!((&got[..], error), (&b"DISCONNECT"[..], None));
        pair.server.session.let_go();
        pair.server.session.flush(&mut pair.server.socket).unwrap();
        assert_eq!(pair.server.session.pending(), 0);
    }
}
