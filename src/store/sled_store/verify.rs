//! The proof that a store is whole.
//!
//! Called by `open`, before anything is served or written, by the builder of a log, and by `SledStore` for the part that is proved
//! while it serves. The engine opens damaged files without complaint often enough (one flipped bit: in a quarter of the trials values
//! are missing or old afterwards), so its word counts for nothing here.
//!
//! What is live is proved as one piece, the history page by page: [`HistoryCheck`] counts what lies behind its cursor, and commits made
//! meanwhile tell it what they change there.

use super::disk::Disk;
use super::past::Past;
use super::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, Tally, block, damaged, damaged_key, event_key, is_history};
use crate::store::{Error, HISTORY, Seq, codec};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

/// Read the head value.
pub(super) fn head(disk: &Disk) -> Result<Position, Error> {
    let Some(sealed) = disk.get(HEAD_KEY)? else {
        return Err(damaged_key(disk.file(), HEAD_KEY, "it is missing, and every store has it"));
    };
    let position: Position = codec::unseal(HEAD_KEY, &sealed)
        .and_then(|(_, body)| codec::decode(body))
        .map_err(|e| damaged(disk, HEAD_KEY, &e))?;
    Ok(position)
}

/// Sees a key and what belongs to it.
pub(super) type Each<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// Prove that every value that is not history is exactly what the last commit left, and that there is none of another kind. `each` gets
/// the key and the body of each record; what it got counts only if all is proved.
///
/// [`Error::Damaged`] names the first bad key; that is the head's when each value is good and they are not all there.
pub(super) fn live(disk: &Disk, position: &Position, each: &mut Each<'_>) -> Result<(), Error> {
    let mut found = Tally::default();
    for (from, until) in LIVE_SPANS {
        disk.range(Bound::Included(from), &mut |key, sealed| {
            if until.is_some_and(|until| key >= until) {
                return Ok(ControlFlow::Break(()));
            }
            let body = check(disk, position, key, sealed)?;
            match key.first() {
                Some(&RECORD_PREFIX) => {
                    found.add(key, sealed);
                    each(key, body);
                }
                _ if key == HEAD_KEY => {}
                _ => return Err(damaged_key(disk.file(), key, "no such key is ever written")),
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    compare(disk, "live", &found, &position.live)
}

/// Prove everything at once.
pub(super) fn everything(disk: &Disk) -> Result<Position, Error> {
    let position = head(disk)?;
    live(disk, &position, &mut |_, _| {})?;
    let mut history = HistoryCheck::new(&position);
    while !history.page(disk, &position, usize::MAX)? {}
    Ok(position)
}

const AFTER_EVENTS: &[u8] = &[EVENT_PREFIX + 1];
const ENDED: &[u8] = &[RECORD_PREFIX, HISTORY];
const AFTER_ENDED: &[u8] = &[RECORD_PREFIX, HISTORY + 1];
/// All keys but events and history records; each span ends before its second key.
const LIVE_SPANS: [(&[u8], Option<&[u8]>); 3] = [(b"", Some(&[EVENT_PREFIX])), (AFTER_EVENTS, Some(ENDED)), (AFTER_ENDED, None)];

/// The proof of the history as far as it has come.
pub(super) struct HistoryCheck {
    /// Everything up to here was seen; `None` at the beginning.
    cursor: Option<Vec<u8>>,
    /// What is behind the cursor.
    found: Tally,
    /// The event that must come next.
    next_event: Seq,
    done: bool,
    /// The records that were seen, and those of commits.
    past: Arc<Past>,
}

impl HistoryCheck {
    pub(super) fn new(position: &Position) -> HistoryCheck {
        HistoryCheck {
            cursor: None,
            found: Tally::default(),
            next_event: position.first_seq,
            done: false,
            past: Arc::new(Past::new()),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// The records of the history, as far as they were seen.
    pub(super) fn past(&self) -> Arc<Past> {
        Arc::clone(&self.past)
    }

    /// Values seen so far.
    pub(super) fn checked(&self) -> u64 {
        self.found.count
    }

    /// Look at the next values, at most `limit`. Says whether that was all, proved against `position`. No commit may be under way.
    pub(super) fn page(&mut self, disk: &Disk, position: &Position, limit: usize) -> Result<bool, Error> {
        if self.done {
            return Ok(true);
        }
        // What was let go of meanwhile does not come any more.
        self.next_event = self.next_event.max(position.first_seq);
        let mut left = limit;
        let mut from = match &self.cursor {
            Some(cursor) => Bound::Excluded(cursor.clone()),
            None => Bound::Included(vec![EVENT_PREFIX]),
        };
        while left > 0 && !self.done {
            let mut jump = None;
            let mut ended = true;
            disk.range(from.as_ref().map(Vec::as_slice), &mut |key, sealed| {
                if !is_history(key) {
                    jump = (key < ENDED).then(|| Bound::Included(ENDED.to_vec()));
                    return Ok(ControlFlow::Break(()));
                }
                check(disk, position, key, sealed)?;
                self.add(disk, key, sealed)?;
                self.cursor = Some(key.to_vec());
                left -= 1;
                ended = left > 0;
                Ok(if ended { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            match jump {
                Some(ended_records) => from = ended_records,
                None => self.done = ended,
            }
        }
        if self.done {
            self.conclude(disk, position)?;
        }
        Ok(self.done)
    }

    /// A commit replaces `old` by `new`.
    pub(super) fn changed(&mut self, disk: &Disk, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) -> Result<(), Error> {
        if new.is_some() && is_history_record(key) {
            self.past.add(key);
        }
        let is_behind = self.cursor.as_deref().is_some_and(|cursor| key <= cursor);
        if self.done || !is_behind || !is_history(key) {
            return Ok(());
        }
        if let Some(old) = old {
            self.found.remove(key, old);
        }
        match new {
            // What is left of a block: its last event was seen.
            Some(new) if old.is_some() => self.found.add(key, new),
            Some(new) => self.add(disk, key, new)?,
            None => {}
        }
        Ok(())
    }

    fn add(&mut self, disk: &Disk, key: &[u8], sealed: &[u8]) -> Result<(), Error> {
        self.found.add(key, sealed);
        if is_history_record(key) {
            self.past.add(key);
            return Ok(());
        }
        let events = block::open(disk, key, sealed.get(codec::ENVELOPE_LEN..).unwrap_or_default())?;
        block::begins_with(disk, key, &events, self.next_event)?;
        self.next_event += events.len() as Seq;
        Ok(())
    }

    fn conclude(&self, disk: &Disk, position: &Position) -> Result<(), Error> {
        if self.next_event != position.next_seq {
            let what = format!("it is missing, and the next one will be {}", position.next_seq);
            return Err(damaged_key(disk.file(), &event_key(self.next_event), &what));
        }
        compare(disk, "history", &self.found, &position.history)?;
        self.past.complete();
        Ok(())
    }
}

fn is_history_record(key: &[u8]) -> bool {
    key.starts_with(ENDED)
}

/// One value by itself: its checksum, and that it is not of a commit after the last. Gives its body.
fn check<'a>(disk: &Disk, position: &Position, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], Error> {
    let (batch, body) = codec::unseal(key, sealed).map_err(|e| damaged(disk, key, &e))?;
    if batch > position.batch {
        let what = format!("it is of commit {batch}, and the head is at {}", position.batch);
        return Err(damaged_key(disk.file(), key, &what));
    }
    Ok(body)
}

fn compare(disk: &Disk, which: &str, found: &Tally, should: &Tally) -> Result<(), Error> {
    match found.difference(should, which, "the last commit") {
        Some(what) => Err(damaged_key(disk.file(), HEAD_KEY, &what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled_store::record_key;

    type Write = (Vec<u8>, Option<Vec<u8>>);

    /// Of a record, or a block of one event.
    const BODY: &[u8] = b"\x02\0ab";

    /// A good store of two events, two live and two ended records, changed by `spoil`.
    fn store(dir: &std::path::Path, spoil: impl FnOnce(&mut Vec<Write>, &mut Position)) -> Disk {
        let disk = Disk::open(dir).unwrap();
        let mut position = Position::new(1, 3, 3);
        let mut writes = Vec::new();
        let keys = [
            event_key(1),
            event_key(2),
            record_key(b"a"),
            record_key(b"da"),
            record_key(b"db"),
            record_key(b"la"),
        ];
        for key in keys {
            let sealed = codec::seal(&key, 2, BODY);
            position.tally(&key).add(&key, &sealed);
            writes.push((key, Some(sealed)));
        }
        spoil(&mut writes, &mut position);
        let head = codec::seal(HEAD_KEY, position.batch, &codec::encode(&position));
        writes.push((HEAD_KEY.to_vec(), Some(head)));
        disk.commit(writes).unwrap();
        disk
    }

    fn verdict(spoil: impl FnOnce(&mut Vec<Write>, &mut Position)) -> Result<Position, String> {
        let dir = tempfile::tempdir().unwrap();
        let disk = store(dir.path(), spoil);
        everything(&disk).map_err(|error| match error {
            Error::Damaged { file, what } if file == dir.path().join("db") => what,
            other => panic!("{other}"),
        })
    }

    fn again(key: &[u8], batch: u64) -> Write {
        (key.to_vec(), Some(codec::seal(key, batch, BODY)))
    }

    #[test]
    fn a_good_store_passes() {
        let position = verdict(|_, _| {}).unwrap();
        assert_eq!((position.live.count, position.history.count), (2, 4));
    }

    #[test]
    fn missing_extra_and_old_values_are_found() {
        let missing = verdict(|writes, _| drop(writes.pop()));
        assert_eq!(missing.unwrap_err(), "key h: 1 live values are there, not the 2 of the last commit");
        let missing = verdict(|writes, _| drop(writes.remove(4)));
        assert_eq!(
            missing.unwrap_err(),
            "key h: 3 history values are there, not the 4 of the last commit"
        );
        let extra = verdict(|writes, _| writes.push(again(b"rlc", 3)));
        assert_eq!(extra.unwrap_err(), "key h: 3 live values are there, not the 2 of the last commit");
        let old = verdict(|writes, _| writes[2] = again(b"ra", 1));
        assert!(old.unwrap_err().starts_with("key h: the sum over the 2 live values"));
        let old = verdict(|writes, _| writes[3] = again(b"rda", 1));
        assert!(old.unwrap_err().starts_with("key h: the sum over the 4 history values"));
        let newer = verdict(|writes, _| writes[2] = again(b"ra", 4));
        assert_eq!(newer.unwrap_err(), "key ra: it is of commit 4, and the head is at 3");
    }

    #[test]
    fn the_first_bad_key_is_named() {
        let bad = verdict(|writes, _| writes[2].1 = Some(codec::seal(b"rb", 3, BODY)));
        assert_eq!(bad.unwrap_err(), "key ra: the checksum does not fit");
        for key in [&b"a"[..], b"f", b"i\n", b"s"] {
            let unknown = verdict(|writes, _| writes.push(again(key, 3)));
            assert!(unknown.unwrap_err().ends_with(": no such key is ever written"));
        }
        let gap = verdict(|writes, _| writes[1] = again(&event_key(3), 3));
        assert_eq!(
            gap.unwrap_err(),
            "key e\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x03: event 2 should come here"
        );
        let no_block = verdict(|writes, _| writes[1].1 = Some(codec::seal(&event_key(2), 3, b"body")));
        assert!(no_block.unwrap_err().ends_with("\\x02: it is no block of events"));
        let short = verdict(|_, position| position.next_seq = 4);
        assert!(short.unwrap_err().ends_with("\\x03: it is missing, and the next one will be 4"));
        let first = verdict(|_, position| position.first_seq = 2);
        assert!(first.unwrap_err().ends_with("\\x01: event 2 should come here"));
    }

    #[test]
    fn a_check_in_pages_follows_the_commits_between_them() {
        for stop in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let disk = store(dir.path(), |_, _| {});
            let mut position = head(&disk).unwrap();
            let mut check = HistoryCheck::new(&position);
            for _ in 0..stop {
                check.page(&disk, &position, 1).unwrap();
            }
            // One changed, one gone, one new of each kind: behind the cursor or before it.
            let mut change = |key: &[u8], new: Option<&[u8]>| {
                let old = disk.get(key).unwrap().map(|old| old.to_vec());
                let new = new.map(|body| codec::seal(key, 3, body));
                check.changed(&disk, key, old.as_deref(), new.as_deref()).unwrap();
                if let Some(old) = &old {
                    position.tally(key).remove(key, old);
                }
                if let Some(new) = &new {
                    position.tally(key).add(key, new);
                }
                disk.commit(vec![(key.to_vec(), new)]).unwrap();
            };
            change(b"rda", Some(b"other"));
            change(b"rdb", None);
            change(b"rdab", Some(b"new"));
            change(&event_key(3), Some(BODY));
            change(&event_key(1), None);
            (position.first_seq, position.next_seq) = (2, 4);
            while !check.page(&disk, &position, 1).unwrap() {}
            assert_eq!(check.checked(), 4, "after {stop} pages");
        }
    }

    #[test]
    fn a_check_in_pages_goes_on_behind_what_was_let_go_of() {
        for stop in 0..5 {
            for until in 2..=3 {
                let dir = tempfile::tempdir().unwrap();
                let disk = store(dir.path(), |_, _| {});
                let mut position = head(&disk).unwrap();
                let mut check = HistoryCheck::new(&position);
                for _ in 0..stop {
                    check.page(&disk, &position, 1).unwrap();
                }
                for seq in 1..until {
                    let key = event_key(seq);
                    let old = disk.get(&key).unwrap().unwrap().to_vec();
                    check.changed(&disk, &key, Some(&old), None).unwrap();
                    position.history.remove(&key, &old);
                    disk.commit(vec![(key, None)]).unwrap();
                }
                position.first_seq = until;
                while !check.page(&disk, &position, 1).unwrap() {}
                assert_eq!(check.checked(), 5 - until, "after {stop} pages");
            }
        }
    }
}
