//! Toward brokers: against OpenSSL as the server, and against one that has the keys and keeps to no
//! rules.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};

use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslSession, SslSessionCacheMode, SslStream,
    SslVerifyMode, SslVersion,
};

use super::control::alert;
use super::testing::forger::{ASKS, Forger, V1_2, V1_3, forged_with, is_refused, is_taken};
use super::testing::{Memory, SUITES, Server, Socket, data, only};
use super::{APPLICATION_DATA, HANDSHAKE, Peer, keylog};
use crate::ffi::openssl as ffi;
use crate::tls::session::Session;
use crate::tls::staging::Shelf;
use crate::tls::testing;

/// A session toward a broker of OpenSSL.
struct ToBroker {
    own: Server,
    broker: SslStream<Memory>,
}

/// A broker's context with one suite.
fn broker(suite: (SslVersion, &str), more: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
    testing::server(suite.0, |builder| {
        only(builder, suite);
        more(builder);
    })
}

fn own(version: SslVersion, more: impl FnOnce(&mut SslContextBuilder)) -> SslContext {
    testing::client_from(keylog::client_context().unwrap(), version, more)
}

impl ToBroker {
    /// Established, over a network that brings so many bytes at a time.
    fn new(own: Ssl, broker: Ssl, at_once: usize) -> Self {
        let socket = Socket {
            at_once,
            ..Socket::default()
        };
        let own = Server {
            session: Session::connect(own).unwrap(),
            socket,
            shelf: Shelf::default(),
        };
        let mut broker_side = broker;
        broker_side.set_accept_state();
        let broker = SslStream::new(broker_side, Memory::default()).unwrap();
        let mut pair = ToBroker { own, broker };
        let (mut shaken, mut accepted) = (false, false);
        while !(shaken && accepted) {
            let Server {
                session,
                socket,
                shelf,
            } = &mut pair.own;
            shaken = shaken || session.handshake(shelf, socket).unwrap();
            pair.carry();
            accepted = accepted || pair.broker.do_handshake().is_ok();
            pair.carry();
        }
        pair
    }

    fn of(suite: (SslVersion, &str)) -> Self {
        let (own, broker) = (own(suite.0, |_| {}), broker(suite, |_| {}));
        Self::new(
            Ssl::new(&own).unwrap(),
            Ssl::new(&broker).unwrap(),
            usize::MAX,
        )
    }

    fn carry(&mut self) {
        let (socket, memory) = (&mut self.own.socket, self.broker.get_mut());
        socket.incoming.extend(memory.output.drain(..));
        memory.input.extend(socket.outgoing.drain(..));
    }

    /// The proxy says this, and the broker reads it.
    fn up(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = &rest[self.own.write(rest).unwrap()..];
        }
        self.carry();
        let mut got = vec![0; bytes.len()];
        self.broker.read_exact(&mut got).unwrap();
        assert!(got == bytes);
    }

    /// The broker says this, and the proxy reads it.
    fn down(&mut self, bytes: &[u8]) {
        self.broker.write_all(bytes).unwrap();
        self.carry();
        let (got, error) = self.own.read_all();
        assert_eq!(error, Some(ErrorKind::WouldBlock));
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    }

    fn is_settled(&self) -> bool {
        self.own.session.is_settled()
    }
}

#[test]
fn a_session_settles_when_the_broker_has_said_something_and_goes_on() {
    for suite in SUITES {
        let mut pair = ToBroker::of(suite);
        assert!(!pair.is_settled());
        pair.up(b"CONNECT");
        assert!(!pair.is_settled(), "{suite:?}: tickets may still come");
        pair.down(b"CONNACK");
        assert!(pair.is_settled(), "{suite:?}");
        for size in [1, 16_384, 16_385, 300_000] {
            pair.up(&data(size));
            pair.down(&data(size));
            pair.own.move_on();
        }
        // Both ends say close_notify.
        pair.own.end();
        pair.carry();
        assert_eq!(pair.broker.read(&mut [0]).unwrap(), 0);
        pair.broker.shutdown().unwrap();
        pair.carry();
        assert_eq!(pair.own.read_all(), (Vec::new(), None));
    }
}

#[test]
fn it_does_so_however_much_was_said_and_however_the_network_cuts_it() {
    for suite in SUITES {
        for at_once in (1..1_500).step_by(37) {
            let (own, broker) = (own(suite.0, |_| {}), broker(suite, |_| {}));
            let (own, broker) = (Ssl::new(&own).unwrap(), Ssl::new(&broker).unwrap());
            let mut pair = ToBroker::new(own, broker, at_once);
            pair.up(b"CONNECT");
            pair.up(&data(40_000));
            pair.down(&data(at_once));
            assert!(pair.is_settled(), "{suite:?}, {at_once}");
            pair.down(&data(20_000));
            pair.up(&data(20_000));
        }
    }
}

#[test]
fn tickets_are_kept_first_and_the_session_is_resumed() {
    for suite in SUITES {
        let kept: Arc<Mutex<Option<SslSession>>> = Arc::default();
        let keeps = kept.clone();
        let own = own(suite.0, |builder| {
            builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
            builder.set_new_session_callback(move |_, session| {
                *keeps.lock().unwrap() = Some(session);
            });
        });
        let broker = broker(suite, |_| {});
        for resumes in [false, true] {
            let mut ssl = Ssl::new(&own).unwrap();
            if let Some(session) = &*kept.lock().unwrap() {
                ffi::offer_session(&mut ssl, session).unwrap();
            }
            let mut pair = ToBroker::new(ssl, Ssl::new(&broker).unwrap(), usize::MAX);
            assert_eq!(pair.broker.ssl().session_reused(), resumes, "{suite:?}");
            pair.up(b"CONNECT");
            pair.down(b"CONNACK");
            assert!(pair.is_settled(), "{suite:?}, {resumes}");
            pair.up(&data(20_000));
            pair.down(&data(20_000));
        }
    }
}

#[test]
fn a_certificate_of_the_proxy_makes_no_difference() {
    let (certificate, key) = testing::certificate();
    for suite in SUITES {
        let own = own(suite.0, |builder| {
            builder.set_certificate(&certificate).unwrap();
            builder.set_private_key(&key).unwrap();
        });
        let broker = broker(suite, |builder| {
            let mode = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
            builder.set_verify_callback(mode, |_, _| true);
            builder.set_session_id_context(b"these").unwrap();
        });
        let (own, broker) = (Ssl::new(&own).unwrap(), Ssl::new(&broker).unwrap());
        let mut pair = ToBroker::new(own, broker, usize::MAX);
        pair.up(b"CONNECT");
        pair.down(b"CONNACK");
        assert!(pair.is_settled());
        pair.up(&data(20_000));
        pair.down(&data(20_000));
    }
}

#[test]
fn a_broker_that_speaks_first_is_answered_first() {
    for suite in SUITES {
        let mut pair = ToBroker::of(suite);
        pair.down(b"hello");
        assert!(!pair.is_settled(), "no key has written anything");
        pair.up(b"hello");
        pair.down(b"go on");
        assert!(pair.is_settled());
    }
}

#[test]
fn what_does_not_add_up_stays_with_openssl() {
    // Other keys than the first.
    for changed in [true, false] {
        let mut pair = ToBroker::of(SUITES[0]);
        pair.up(b"CONNECT");
        if changed {
            ffi::key_update(pair.broker.ssl(), true);
        }
        pair.down(b"CONNACK");
        assert_eq!(pair.is_settled(), !changed);
        pair.up(b"PUBLISH");
        pair.down(&data(40_000));
        assert_eq!(pair.is_settled(), !changed, "it is not tried again");
    }
    // A cipher that is none of ours, and a context that is not marked.
    let ccm = (SslVersion::TLS1_3, "TLS_AES_128_CCM_SHA256");
    let with_ccm = own(ccm.0, |builder| builder.set_ciphersuites(ccm.1).unwrap());
    let unmarked = SslContext::builder(SslMethod::tls_client()).unwrap();
    let unmarked = testing::client_from(unmarked, SslVersion::TLS1_3, |_| {});
    for (own, suite) in [(with_ccm, ccm), (unmarked, SUITES[0])] {
        let (own, broker) = (
            Ssl::new(&own).unwrap(),
            Ssl::new(&broker(suite, |_| {})).unwrap(),
        );
        let mut pair = ToBroker::new(own, broker, usize::MAX);
        pair.up(b"CONNECT");
        pair.down(b"CONNACK");
        assert!(!pair.is_settled());
        pair.up(&data(20_000));
        pair.down(&data(20_000));
    }
}

#[test]
fn brokers_may_change_their_keys_and_ask_for_others() {
    let mut pair = ToBroker::of(SUITES[0]);
    pair.up(b"CONNECT");
    pair.down(b"CONNACK");
    for ask in [false, true, true] {
        ffi::key_update(pair.broker.ssl(), ask);
        pair.down(&data(1000));
        pair.up(&data(1000));
        pair.down(&data(1000));
    }
    assert!(pair.is_settled());
}

/// OpenSSL has other keys already, and an answer to give.
#[test]
fn keys_that_change_behind_the_first_words_stay_with_openssl() {
    for ask in [false, true] {
        let mut pair = ToBroker::of(SUITES[0]);
        pair.up(b"CONNECT");
        pair.broker.write_all(b"CONNACK").unwrap();
        ffi::key_update(pair.broker.ssl(), ask);
        pair.broker.do_handshake().unwrap();
        pair.carry();
        assert_eq!(pair.own.read_all().0, b"CONNACK");
        for _ in 0..2 {
            assert!(!pair.is_settled(), "{ask}");
            pair.up(b"PUBLISH");
            pair.down(b"PUBACK");
        }
        pair.down(&data(40_000));
        pair.up(&data(40_000));
    }
}

/// A settled session, and who forges its broker.
fn forged(suite: super::suite::Suite) -> (Server, Forger) {
    forged_with(suite, |parts| parts.peer = Peer::Server)
}

fn ticket(size: usize) -> Vec<u8> {
    let [_, high, middle, low] = (size as u32).to_be_bytes();
    let mut message = vec![4, high, middle, low];
    message.resize(4 + size, 9);
    message
}

#[test]
fn late_tickets_are_passed_over_wherever_they_are_cut() {
    let tickets = [ticket(200), ticket(1), ticket(16_000), ticket(40)].concat();
    for size in [1, 3, 4, 5, 100, 4_000, 16_384] {
        let (mut own, mut broker) = forged(V1_3);
        let mut wire = Vec::new();
        // No more than a broker may say without a word for the other side.
        for part in tickets.chunks(size.max(tickets.len() / 800)) {
            wire.extend(broker.record(HANDSHAKE, part));
        }
        wire.extend(broker.record(APPLICATION_DATA, b"data"));
        assert_eq!(is_taken(&mut own, &wire), b"data", "{size}");
    }
    // And between two of them the session moves on.
    let (mut own, mut broker) = forged(V1_3);
    for part in ticket(300).chunks(3) {
        let record = broker.record(HANDSHAKE, part);
        own.socket.incoming.extend(record);
        assert!(own.read_all().0.is_empty());
        own.move_on();
    }
    let last = [ticket(7), ASKS.to_vec()].concat();
    let record = broker.record(HANDSHAKE, &last);
    own.socket.incoming.extend(record);
    assert!(own.read_all().0.is_empty());
    broker.change_keys();
    let wire = broker.record(APPLICATION_DATA, b"new keys");
    assert_eq!(is_taken(&mut own, &wire), b"new keys");
}

#[test]
fn what_no_broker_may_say_ends_the_session() {
    let too_long = &[4, 1, 0, 0][..];
    let certificate_request = &[13, 0, 0, 3, 0, 0, 0][..];
    for (contents, description) in [
        (too_long, alert::DECODE_ERROR),
        (&[4, 0, 0, 0], alert::DECODE_ERROR),
        (certificate_request, alert::UNEXPECTED_MESSAGE),
        (&[1, 0, 0, 1, 0], alert::UNEXPECTED_MESSAGE),
        (&[], alert::UNEXPECTED_MESSAGE),
    ] {
        let (own, mut broker) = forged(V1_3);
        let wire = broker.record(HANDSHAKE, contents);
        let what = format!("{contents:?}");
        is_refused(own, &mut broker, &wire, description, &what);
    }
    let unexpected = alert::UNEXPECTED_MESSAGE;
    let (own, mut broker) = forged(V1_3);
    let mut wire = broker.record(HANDSHAKE, &ticket(9)[..8]);
    wire.extend(broker.record(APPLICATION_DATA, b"data"));
    is_refused(own, &mut broker, &wire, unexpected, "interrupted");
    let (own, mut broker) = forged(V1_3);
    let flood = (0..33).flat_map(|_| broker.record(HANDSHAKE, &ticket(9)));
    let flood: Vec<u8> = flood.collect();
    is_refused(own, &mut broker, &flood, unexpected, "a flood");
    // Clients have no tickets to give.
    let (own, mut client) = forged_with(V1_3, |_| {});
    let wire = client.record(HANDSHAKE, &ticket(9));
    is_refused(own, &mut client, &wire, unexpected, "a client's");
}

#[test]
fn a_broker_that_wants_to_renegotiate_is_not_heard_and_goes_on() {
    let (mut own, mut broker) = forged(V1_2);
    for part in [&[0, 0, 0, 0][..], &[0], &[0, 0, 0], &[0; 8]] {
        let record = broker.record(HANDSHAKE, part);
        own.socket.incoming.extend(record);
        assert!(own.read_all().0.is_empty());
        own.move_on();
    }
    assert!(own.socket.outgoing.is_empty(), "nothing is said");
    let wire = broker.record(APPLICATION_DATA, b"goes on");
    assert_eq!(is_taken(&mut own, &wire), b"goes on");
    for (contents, description) in [
        (&[0, 0, 0, 1, 0][..], alert::DECODE_ERROR),
        (&[1, 0, 0, 1, 0], alert::UNEXPECTED_MESSAGE),
        (&[0; 4 * 33], alert::UNEXPECTED_MESSAGE),
    ] {
        let (own, mut broker) = forged(V1_2);
        let wire = broker.record(HANDSHAKE, contents);
        let what = format!("{contents:?}");
        is_refused(own, &mut broker, &wire, description, &what);
    }
}
