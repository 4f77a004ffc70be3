//! Sending pairs: in frames of a bounded size, and so many at a time that neither memory nor the
//! time for which they stand still grows with what slow receivers are owed.

use super::UpgradeError;
use super::channel::Channel;
use super::message::{hear, kind, say};
use super::record::{BATCH, encode};
use crate::ffi::openssl::cleanse;
use crate::session::relay::engine::Carried;

/// What the pairs of one frame owe, where it is more than one pair.
const FRAME_OWED: usize = 2 * 1024 * 1024;
/// What the pairs of one round owe, where it is more than one pair. Both processes hold it in
/// memory for a moment.
const ROUND_OWED: usize = 16 * 1024 * 1024;

/// Bytes that have been read from one side and not been written to the other; what a TLS session
/// holds travels as two digits each.
fn owed(carried: &Carried) -> usize {
    let parts = carried.pair.parts();
    let sessions = [&carried.client, &carried.broker].map(|side| side.tls.as_ref());
    let pending = sessions.iter().flatten().map(|session| session.pending());
    parts.up.owed.len() + parts.down.owed.len() + 2 * pending.sum::<usize>()
}

/// The pairs that move now, and those that are to be relayed here until their turn comes. At
/// least one moves; all those that owe nothing do.
pub(super) fn next_round(pairs: Vec<Carried>) -> (Vec<Carried>, Vec<Carried>) {
    split(pairs, owed, ROUND_OWED)
}

fn split<T>(items: Vec<T>, size: impl Fn(&T) -> usize, limit: usize) -> (Vec<T>, Vec<T>) {
    let (mut total, mut first) = (0, true);
    items.into_iter().partition(|item| {
        let size = size(item);
        let fits = size == 0 || std::mem::take(&mut first) || total + size <= limit;
        total += if fits { size } else { 0 };
        fits
    })
}

/// Cuts the pairs into the contents of frames.
fn frames<T>(mut items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut total = 0;
        let within = items.iter().take(BATCH).take_while(|item| {
            total += size(item);
            total <= FRAME_OWED
        });
        let count = within.count().max(1).min(items.len());
        let (frame, rest) = items.split_at(count);
        items = rest;
        (!frame.is_empty()).then_some(frame)
    })
}

/// Sends the pairs and waits until the new process says that it has them. When it does not, it
/// does not relay them either: it says so before it begins, and what it said can be read even
/// after it is gone.
pub(super) fn send_pairs(channel: &Channel, pairs: &[Carried]) -> Result<(), UpgradeError> {
    let error = match exchange(channel, pairs) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    // Too late now: the new process must not begin after this one has given up on it.
    channel.end();
    match hear(channel, "giving up", kind::COMMITTED) {
        Ok(_) => Ok(()),
        Err(why @ UpgradeError::Refused(_)) => Err(why),
        Err(_) => Err(error),
    }
}

fn exchange(channel: &Channel, pairs: &[Carried]) -> Result<(), UpgradeError> {
    let step = "sending connections";
    for frame in frames(pairs, owed) {
        let (mut payload, descriptors) = encode(frame).map_err(UpgradeError::at(step))?;
        let sent = channel.send(kind::PAIRS, &payload, &descriptors);
        cleanse(&mut payload);
        sent.map_err(UpgradeError::at(step))?;
    }
    say(channel, step, kind::COMMIT, &pairs.len())?;
    hear(
        channel,
        "waiting for the new process to take them",
        kind::COMMITTED,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_what_owes_nothing_and_as_much_of_the_rest_as_fits() {
        let owed = |owed: &usize| *owed;
        assert_eq!(
            split(vec![0, 5, 7, 0, 4, 1], owed, 10),
            (vec![0, 5, 0, 4, 1], vec![7])
        );
        assert_eq!(split(vec![30, 20, 0], owed, 10), (vec![30, 0], vec![20]));
        assert_eq!(split(vec![], owed, 10), (vec![], vec![]));
    }

    #[test]
    fn frames_are_bounded_by_pairs_and_by_what_they_owe() {
        let sizes = |owed: &[usize]| -> Vec<usize> {
            frames(owed, |owed| *owed).map(<[usize]>::len).collect()
        };
        assert_eq!(sizes(&[0; 2 * BATCH + 1]), [BATCH, BATCH, 1]);
        let half = FRAME_OWED / 2;
        assert_eq!(sizes(&[half, half, 1, 2 * half + 9, 3]), [2, 1, 1, 1]);
        assert!(sizes(&[]).is_empty());
    }
}
