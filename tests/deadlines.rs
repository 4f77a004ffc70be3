//! How long a client may take for its first byte and for its whole CONNECT.

mod support;

use std::time::{Duration, Instant};

use support::mqtt::ACCEPTED;
use support::{Client, Connect, door};

#[test]
fn a_client_that_says_nothing_is_closed_at_the_first_byte_deadline() {
    let door = door(
        "4",
        "  limits:\n    first_byte_timeout: 3\n    connect_timeout: 30\n",
    );
    let start = Instant::now();
    let mut silent = Client::to(door.port);
    let mut slow = Client::to(door.port);
    slow.send(&[0x10]);
    silent.expect_fin();
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_millis(2_900),
        "not before the deadline: {waited:?}"
    );
    assert!(
        waited < Duration::from_secs(12),
        "soon after it: {waited:?}"
    );
    // The first byte was in time: this client has until connect_timeout.
    slow.expect_silence(Duration::from_millis(300));
    slow.send(&Connect::v311("a").build()[1..]);
    slow.expect(ACCEPTED);
}

#[test]
fn the_deadline_for_the_whole_connect_is_not_moved_by_dribbling_bytes() {
    let door = door(
        "4",
        "  limits:\n    first_byte_timeout: 3\n    connect_timeout: 4\n",
    );
    let packet = Connect::v311("a-client-that-dribbles").build();
    let start = Instant::now();
    let mut client = Client::to(door.port);
    let mut end = None;
    for byte in &packet[..packet.len() - 1] {
        client.try_send(&[*byte]);
        let (bytes, ended) = client.read_up_to(1, Duration::from_millis(200));
        assert!(bytes.is_empty(), "nothing is sent to a slow client");
        if ended.is_some() {
            end = ended;
            break;
        }
    }
    let waited = start.elapsed();
    assert!(end.is_some(), "still open after {waited:?}");
    assert!(
        waited >= Duration::from_millis(3_800),
        "not before the deadline: {waited:?}"
    );
    assert_eq!(door.broker.accepted(), 0);
}
