//! Events as they are stored: those of one commit together, in blocks, since each value costs the engine time and memory of its own.
//!
//! Called by the committer (pack, trim), by readers, by the proof and by `salvage`. A block must never hold events of two commits, nor be
//! larger than a value may be.
//!
//! ```text
//! key    e + number of its last event, 8 bytes, big endian: the first key at or after that of an event is that of its block
//! body   for each event  2 bytes its length, little endian, the event; one after the other, without a gap
//! ```

use super::disk::Disk;
use super::{Position, damaged, damaged_key, event_key, event_seq};
use crate::store::{BODY_MAX, EVENT_MAX, Error, Seq, codec};
use std::ops::{Bound, ControlFlow};

/// What an event takes beside its own bytes.
const FRAME: usize = BODY_MAX - EVENT_MAX;
/// A body that reaches this length is full; a larger event has one of its own.
const FULL: usize = 3 * 1024;
const _: () = assert!(FULL <= BODY_MAX && EVENT_MAX <= u16::MAX as usize);

/// Blocks of these events, of which the first has this number; each with the number of its last event.
pub(super) fn pack<E: AsRef<[u8]>>(first: Seq, events: &[E]) -> Vec<(Seq, Vec<u8>)> {
    let mut blocks: Vec<(Seq, Vec<u8>)> = Vec::new();
    for (seq, event) in (first..).zip(events) {
        let event = event.as_ref();
        if blocks.last().is_none_or(|(_, body)| body.len() + FRAME + event.len() > FULL) {
            blocks.push((seq, Vec::with_capacity(FULL.max(FRAME + event.len()))));
        }
        let (last, body) = blocks.last_mut().expect("one was made above");
        *last = seq;
        let len = u16::try_from(event.len()).expect("a commit with a longer event was refused");
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(event);
    }
    blocks
}

/// The event that the bytes begin with, and what follows it.
pub(super) fn next(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = body.split_first_chunk::<FRAME>()?;
    rest.split_at_checked(u16::from_le_bytes(*len).into())
}

/// The events of a block whose last one has this number, with their numbers; `None` if it is none.
pub(super) fn unpack(last: Seq, body: &[u8]) -> Option<Vec<(Seq, &[u8])>> {
    let (mut events, mut left) = (Vec::new(), body);
    while !left.is_empty() {
        let (event, rest) = next(left)?;
        events.push(event);
        left = rest;
    }
    let first = last.checked_sub(events.len().checked_sub(1)? as Seq).filter(|first| *first > 0)?;
    Some((first..=last).zip(events).collect())
}

/// The events in the body under this key, at least one.
///
/// [`Error::Damaged`] if it is no block.
pub(super) fn open<'a>(disk: &Disk, key: &[u8], body: &'a [u8]) -> Result<Vec<(Seq, &'a [u8])>, Error> {
    let events = event_seq(key).and_then(|last| unpack(last, body));
    events.ok_or_else(|| damaged_key(disk.file(), key, "it is no block of events"))
}

/// Key and sealed value of the block that should have this event: the first at or after it.
///
/// [`Error::Damaged`] if there is none.
pub(super) fn holding(disk: &Disk, seq: Seq) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (wanted, mut found) = (event_key(seq), None);
    disk.range(Bound::Included(&wanted), &mut |key, sealed| {
        found = event_seq(key).map(|_| (key.to_vec(), sealed.to_vec()));
        Ok(ControlFlow::Break(()))
    })?;
    found.ok_or_else(|| damaged_key(disk.file(), &wanted, "it is missing"))
}

/// What is left of the first block when events before `until` go; `None` for nothing. Carries the first event on.
///
/// [`Error::Damaged`] if it does not begin with the first event.
pub(super) fn let_go(disk: &Disk, block: (&[u8], &[u8]), until: Seq, position: &mut Position) -> Result<Option<Vec<u8>>, Error> {
    let (key, sealed) = block;
    let (_, body) = codec::unseal(key, sealed).map_err(|e| damaged(disk, key, &e))?;
    let events = open(disk, key, body)?;
    begins_with(disk, key, &events, position.first_seq)?;
    let left: Vec<&[u8]> = events.iter().filter(|(seq, _)| *seq >= until).map(|(_, event)| *event).collect();
    position.first_seq += (events.len() - left.len()) as Seq;
    let block = pack(position.first_seq, &left).pop();
    Ok(block.map(|(_, body)| body))
}

/// No event is missing before this block.
///
/// [`Error::Damaged`] if one is.
pub(super) fn begins_with(disk: &Disk, key: &[u8], events: &[(Seq, &[u8])], next: Seq) -> Result<(), Error> {
    match events.first() {
        Some((first, _)) if *first == next => Ok(()),
        _ => Err(damaged_key(disk.file(), key, &format!("event {next} should come here"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_have_the_golden_bytes() {
        assert_eq!(pack(7, &[b"ab".as_slice(), b"", b"c"]), [(9, b"\x02\0ab\0\0\x01\0c".to_vec())]);
        assert_eq!(pack::<&[u8]>(7, &[]), []);
    }

    #[test]
    fn what_is_no_block_is_told() {
        for bytes in [&b""[..], b"\x01", b"\x02\0a", b"\x01\0ab"] {
            assert_eq!(unpack(9, bytes), None, "{bytes:?}");
        }
        assert_eq!(unpack(1, b"\0\0\0\0"), None, "there is no event 0");
        assert_eq!(unpack(2, b"\0\0\0\0"), Some(vec![(1, &b""[..]), (2, b"")]));
    }

    proptest! {
        #[test]
        fn events_come_back(first in 1u64..1000, sizes in prop::collection::vec(prop_oneof![0..300usize, EVENT_MAX - 9..=EVENT_MAX], 0..60)) {
            let events: Vec<Vec<u8>> = sizes.iter().zip(0u8..).map(|(size, byte)| vec![byte; *size]).collect();
            let blocks = pack(first, &events);
            prop_assert!(blocks.iter().all(|(_, body)| body.len() <= BODY_MAX));
            let found: Vec<(Seq, &[u8])> = blocks.iter().flat_map(|(last, body)| unpack(*last, body).unwrap()).collect();
            let wanted: Vec<(Seq, &[u8])> = (first..).zip(events.iter().map(Vec::as_slice)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn hostile_bytes_never_panic(last: u64, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(last, &bytes);
        }
    }
}
