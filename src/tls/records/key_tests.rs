//! Keys that change in the middle of a connection, in TLS 1.3.

use super::control::alert;
use super::testing::forger::{ASKS, V1_3, forged, is_refused, is_taken};
use super::testing::{Pair, SUITES, data};
use super::{APPLICATION_DATA, HANDSHAKE};
use crate::ffi::openssl as ffi;

#[test]
fn keys_change_when_the_client_wants_it() {
    for suite in &SUITES[..3] {
        for ask in [false, true] {
            let mut pair = Pair::new(*suite);
            for _ in 0..40 {
                ffi::key_update(pair.client.ssl(), ask);
                pair.up(b"under new keys");
                pair.down(&data(20_000));
            }
            assert_eq!(pair.server.session.to_parts().unwrap().read.sequence, 1);
        }
    }
}

#[test]
fn keys_change_when_they_have_protected_enough() {
    for suite in &SUITES[..2] {
        let mut pair = Pair::new(*suite);
        let mut parts = pair.server.session.to_parts().unwrap();
        (parts.write.blocks_left, parts.read.blocks_left) = (1, 1);
        let sequence = parts.write.sequence;
        pair.server.session = crate::tls::session::Session::from_parts(&parts).unwrap();
        pair.down(b"the last under this key");
        assert_eq!(
            pair.server.session.to_parts().unwrap().write.sequence,
            sequence + 1
        );
        pair.down(b"the first under the next");
        let parts = pair.server.session.to_parts().unwrap();
        assert_eq!(parts.write.sequence, 1);
        assert!(!parts.asked);
        // The client's key is used up by this; it is asked for another, which comes before the
        // next that it says.
        pair.up(b"used up");
        assert!(pair.server.session.to_parts().unwrap().asked);
        pair.carry();
        assert_eq!(pair.client_reads().unwrap(), b"");
        pair.up(b"under new keys");
        let parts = pair.server.session.to_parts().unwrap();
        assert!(!parts.asked);
        assert_eq!(
            (parts.read.sequence, parts.read.blocks_left),
            (1, (1 << 34) - 1)
        );
        pair.down(&data(100_000));
        pair.up(&data(100_000));
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
