//! An upgrade of the running binary does not send its TLS clients back to full handshakes.

mod support;

use support::generations::Generations;
use support::s_client::{Visitor, is_resumed};
use support::tls::{Authority, TlsClient, before_a_broker};
use support::*;

#[test]
fn sessions_of_the_old_process_are_resumed_by_the_new_one() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let mut proxy = Generations::start(&files, &[port]);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let visitors: Vec<_> = ["-tls1_2", "-tls1_3"]
        .into_iter()
        .zip(&folders)
        .map(|(version, folder)| Visitor {
            port,
            folder: folder.path(),
            version,
        })
        .collect();
    for visitor in &visitors {
        visitor.get_session("a.test", &[]);
    }
    // A connection that lives on in the old process does not keep the new one from serving.
    let mut live = TlsClient::to(port)
        .name("a.test")
        .mqtt(&Connect::v311("live"))
        .unwrap();
    let mark = proxy.mark();
    proxy.begin_upgrade();
    for visitor in &visitors {
        let said = visitor.use_session("a.test");
        assert!(is_resumed(&said), "{}: {said}", visitor.version);
    }
    live.expect_alive();
    drop(live);
    // Sessions made before two upgrades.
    proxy.wait_until_taken_over(mark);
    for visitor in &visitors {
        visitor.get_session("a.test", &[]);
    }
    proxy.upgrade();
    proxy.upgrade();
    for visitor in &visitors {
        let said = visitor.use_session("a.test");
        assert!(is_resumed(&said), "{}: {said}", visitor.version);
    }
    assert_eq!(proxy.count("not resumed"), 0);
}

#[test]
fn a_process_that_starts_anew_knows_no_sessions() {
    let root = Authority::new("root");
    let (_broker, port, files) = before_a_broker(&root, "");
    let visitor = Visitor {
        port,
        folder: files.dir(),
        version: "-tls1_3",
    };
    let first = Proxy::start(&files, &[port]);
    visitor.get_session("a.test", &[]);
    first.stop();
    let _second = Proxy::start(&files, &[port]);
    let said = visitor.use_session("a.test");
    // Served with a full handshake: old sessions are no reason to fail.
    assert!(
        !is_resumed(&said) && said.contains("New, TLSv1.3"),
        "{said}"
    );
}
