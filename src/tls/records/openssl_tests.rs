//! Against OpenSSL as the client: every suite, every way to begin, go on and end.

use std::io::{ErrorKind, Write};
use std::sync::{Arc, Mutex};

use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::ssl::{
    ShutdownState, Ssl, SslSession, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use proptest::prelude::*;

use super::CHANGE_CIPHER_SPEC;
use super::testing::{Pair, SUITES, contexts, data, records};
use crate::ffi::openssl as ffi;
use crate::tls::testing;

#[test]
fn every_suite_carries_every_size_both_ways() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        assert!(
            pair.server.session.ssl().is_none(),
            "{suite:?} is not settled"
        );
        for size in [
            1,
            15,
            16,
            17,
            1000,
            16_383,
            16_384,
            16_385,
            100_000,
            3 << 20,
        ] {
            pair.down(&data(size));
            pair.up(&data(size));
        }
        let parts = pair.server.session.to_parts().unwrap();
        let pending = [&parts.received, &parts.contents, &parts.owed];
        assert!(
            pending.iter().all(|bytes| bytes.is_empty()),
            "idle and not empty"
        );
    }
}

#[test]
fn what_came_with_finished_is_read() {
    for suite in SUITES {
        let (server, client) = contexts(suite, |_| {}, |_| {});
        let early = data(40_000);
        let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
        let mut pair = Pair::between(server, client, &early);
        assert!(pair.server.session.ssl().is_none());
        assert!(pair.server.session.has_input() || suite.0 == SslVersion::TLS1_2);
        let (got, _) = pair.server.read_all();
        assert!(got == early, "{suite:?}: {}", got.len());
        assert!(!pair.server.session.has_input());
        pair.down(b"and back");
    }
}

#[test]
fn other_suites_and_versions_stay_with_openssl() {
    for (version, suite) in [
        (SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-SHA256"),
        (SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-CCM"),
        (SslVersion::TLS1_3, "TLS_AES_128_CCM_SHA256"),
        (SslVersion::TLS1_1, "ALL:@SECLEVEL=0"),
    ] {
        let (server, client) = contexts(
            (version, suite),
            |builder| builder.set_security_level(0),
            |builder| match version {
                SslVersion::TLS1_3 => builder.set_ciphersuites(suite).unwrap(),
                _ => builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap(),
            },
        );
        let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
        let mut pair = Pair::between(server, client, b"");
        assert!(pair.server.session.ssl().is_some(), "{suite}");
        assert!(pair.server.session.to_parts().is_none());
        pair.up(&data(20_000));
        pair.down(&data(20_000));
    }
}

#[test]
fn a_context_that_is_not_marked_stays_with_openssl_and_so_does_a_session_that_was_used() {
    let context = testing::server(SslVersion::TLS1_3, |_| {});
    let client = testing::client(SslVersion::TLS1_3, |_| {});
    let server = Ssl::new(&context).unwrap();
    let mut pair = Pair::between(server, Ssl::new(&client).unwrap(), b"");
    assert!(pair.server.session.ssl().is_some());
    pair.down(b"openssl");

    let (server, client) = contexts(SUITES[0], |_| {}, |_| {});
    let mut session =
        crate::tls::session::Session::accept(Ssl::new(&server).unwrap(), Vec::new()).unwrap();
    session.settle();
    assert!(session.ssl().is_some(), "before the handshake");
    let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
    let mut pair = Pair::between(server, client, b"");
    pair.server.session.settle();
    assert!(
        pair.server.session.ssl().is_none(),
        "settling twice is nothing"
    );
}

#[test]
fn all_key_exchanges_of_tls_1_2_end_in_the_same_records() {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    for suite in [
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ] {
        let (server, client) = contexts(
            (SslVersion::TLS1_2, suite),
            |builder| {
                builder.set_certificate(&testing::certify(&key)).unwrap();
                builder.set_private_key(&key).unwrap();
            },
            |_| {},
        );
        let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
        let mut pair = Pair::between(server, client, b"");
        assert!(pair.server.session.ssl().is_none(), "{suite}");
        pair.up(&data(20_000));
        pair.down(&data(20_000));
    }
}

/// With AES-GCM in TLS 1.2, the next nonces are those behind that of OpenSSL's Finished.
fn nonces_go_on(pair: &mut Pair) {
    let parts = pair.server.session.to_parts().unwrap();
    if !parts.suite.has_explicit_nonce() {
        return;
    }
    let said = records(&pair.said);
    let changed = said
        .iter()
        .position(|(kind, _)| *kind == CHANGE_CIPHER_SPEC);
    let nonce = |body: &[u8]| u64::from_be_bytes(*body.first_chunk().unwrap());
    let of_finished = nonce(said[changed.unwrap() + 1].1);
    pair.server.write(&data(20_000)).unwrap();
    let sent = records(&pair.server.socket.outgoing);
    let nonces: Vec<u64> = sent.iter().map(|(_, body)| nonce(body)).collect();
    assert_eq!(nonces, [1, 2].map(|more| of_finished.wrapping_add(more)));
    pair.carry();
    assert_eq!(pair.client_reads().unwrap(), data(20_000));
}

#[test]
fn sessions_are_resumed_and_tickets_that_arrive_late_are_taken() {
    for suite in SUITES {
        let kept: Arc<Mutex<Option<SslSession>>> = Arc::default();
        let keep = kept.clone();
        let (server, client) = contexts(
            suite,
            |builder| {
                builder.set_session_cache_mode(SslSessionCacheMode::OFF);
                builder.set_num_tickets(2).unwrap();
            },
            |builder| {
                builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
                builder.set_new_session_callback(move |_, session| {
                    *keep.lock().unwrap() = Some(session);
                });
            },
        );
        for turn in 0..4 {
            let server = Ssl::new(&server).unwrap();
            let mut client = Ssl::new(&client).unwrap();
            if let Some(session) = kept.lock().unwrap().take() {
                ffi::offer_session(&mut client, &session).unwrap();
            }
            let mut pair = Pair::between(server, client, b"early");
            assert_eq!(pair.client.ssl().session_reused(), turn > 0, "{suite:?}");
            assert!(pair.server.session.ssl().is_none());
            assert_eq!(pair.server.read(100).unwrap(), b"early");
            nonces_go_on(&mut pair);
            // Tickets of 1.3 come before this.
            pair.down(&data(20_000));
            pair.up(&data(20_000));
            if suite.0 == SslVersion::TLS1_2 && turn > 0 {
                *kept.lock().unwrap() = pair
                    .client
                    .ssl()
                    .session()
                    .map(|session| session.to_owned());
            }
            assert!(kept.lock().unwrap().is_some(), "{suite:?}: no ticket");
            // OpenSSL does not resume what has not been closed.
            pair.client.shutdown().unwrap();
        }
    }
}

#[test]
fn clients_with_certificates() {
    for suite in SUITES {
        let (certificate, key) = testing::certificate();
        let (server, client) = contexts(
            suite,
            |builder| {
                let mode = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
                builder.set_verify_callback(mode, |_, _| true);
                builder.set_session_id_context(b"these").unwrap();
            },
            |builder| {
                builder.set_certificate(&certificate).unwrap();
                builder.set_private_key(&key).unwrap();
            },
        );
        // What a client with a certificate says last is several records, which a network cuts
        // anywhere.
        for size in (1..1_200).step_by(13).chain([usize::MAX]) {
            let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
            let mut pair = Pair::in_parts_of(size, server, client, b"early");
            assert!(pair.server.session.ssl().is_none(), "{suite:?}, {size}");
            assert_eq!(pair.server.read_all().0, b"early");
            pair.up(&data(20_000));
            pair.down(&data(20_000));
        }
    }
}

#[test]
fn a_client_that_wants_short_records_gets_no_longer_ones() {
    for suite in SUITES {
        for (code, most) in [(1, 512), (2, 1024), (3, 2048), (4, 4096)] {
            let ask = |builder: &mut openssl::ssl::SslContextBuilder| {
                ffi::ask_for_fragments(builder, code);
            };
            let (server, client) = contexts(suite, |_| {}, ask);
            let (server, client) = (Ssl::new(&server).unwrap(), Ssl::new(&client).unwrap());
            let mut pair = Pair::between(server, client, b"");
            assert_eq!(pair.server.session.to_parts().unwrap().fragment, most);
            // Tickets come first.
            pair.server.session.let_go();
            pair.server.session.flush(&mut pair.server.socket).unwrap();
            pair.carry();
            pair.server.write(&data(10_000)).unwrap();
            let sent = records(&pair.server.socket.outgoing);
            let longest = sent.iter().map(|(_, body)| body.len()).max();
            assert!(
                longest <= Some(usize::from(most) + 24),
                "{suite:?}: {longest:?}"
            );
            assert_eq!(sent.len(), 10_000_usize.div_ceil(usize::from(most)));
            pair.carry();
            assert_eq!(pair.client_reads().unwrap(), data(10_000));
            pair.up(&data(10_000));
        }
    }
}

#[test]
fn close_notify_ends_a_direction_and_the_other_goes_on() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.client.write_all(b"DISCONNECT").unwrap();
        pair.client.shutdown().unwrap();
        pair.carry();
        assert_eq!(pair.server.read_all(), (b"DISCONNECT".to_vec(), None));
        assert!(!pair.server.session.has_input());
        assert_eq!(pair.server.read(10).unwrap(), b"", "it stays the end");
        pair.server.write(b"the rest").unwrap();
        pair.server.end();
        pair.carry();
        assert_eq!(pair.client_reads().unwrap(), b"the rest");
        assert_eq!(pair.client_reads(), None);
        assert!(pair.client.get_shutdown().contains(ShutdownState::RECEIVED));
        pair.server.end();
        assert_eq!(pair.server.socket.outgoing, b"", "once is enough");
        let error = pair.server.write(b"more").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn an_end_without_close_notify_is_an_end() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.client.write_all(b"bye").unwrap();
        pair.carry();
        pair.server.socket.ended = true;
        assert_eq!(pair.server.read_all(), (b"bye".to_vec(), None));
        pair.down(b"good bye");
    }
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Up(usize),
    Down(usize),
    Keys(bool),
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..60_000).prop_map(Step::Up),
        3 => (0_usize..60_000).prop_map(Step::Down),
        1 => any::<bool>().prop_map(Step::Keys),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_byte_arrives_however_it_is_cut(
        suite in prop::sample::select(SUITES.to_vec()),
        steps in prop::collection::vec(step(), 1..12),
        at_once in prop::collection::vec(1_usize..20_000, 1..4),
        rooms in prop::collection::vec(0_usize..30_000, 1..4),
        buffers in prop::collection::vec(1_usize..40_000, 1..4),
    ) {
        let mut pair = Pair::new(suite);
        let (mut at_once, mut rooms) = (at_once.iter().cycle(), rooms.iter().cycle());
        let mut buffers = buffers.iter().cycle();
        for step in steps {
            match step {
                Step::Keys(ask) if suite.0 == SslVersion::TLS1_3 => {
                    ffi::key_update(pair.client.ssl(), ask);
                    pair.server.socket.at_once = usize::MAX;
                    pair.up(b"under new keys");
                }
                Step::Keys(_) => {}
                Step::Move => pair.server.move_on(),
                Step::Up(size) => {
                    let sent = data(size);
                    pair.client.write_all(&sent).unwrap();
                    pair.carry();
                    let mut got = Vec::new();
                    while got.len() < size {
                        pair.server.socket.at_once = *at_once.next().unwrap();
                        match pair.server.read(*buffers.next().unwrap()) {
                            Ok(bytes) => got.extend(bytes),
                            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::WouldBlock),
                        }
                        if got.len() % 5 == 0 {
                            pair.server.move_on();
                        }
                    }
                    prop_assert!(got == sent);
                }
                Step::Down(size) => {
                    let sent = data(size);
                    let (mut written, mut got) = (0, Vec::new());
                    while got.len() < size {
                        pair.server.socket.room = *rooms.next().unwrap();
                        let _ = pair.server.session.flush(&mut pair.server.socket);
                        if written < size && !pair.server.session.owes() {
                            written += pair.server.write(&sent[written..]).unwrap_or(0);
                        }
                        if got.len() % 5 == 0 {
                            pair.server.move_on();
                        }
                        pair.server.socket.room += 1;
                        let _ = pair.server.session.flush(&mut pair.server.socket);
                        pair.carry();
                        got.extend(pair.client_reads().unwrap());
                    }
                    prop_assert!(got == sent);
                    pair.server.socket.room = usize::MAX;
                }
            }
        }
    }
}
