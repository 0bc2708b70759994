//! The proof that a store is whole.
//!
//! Called by `open`, before anything is served or written. The engine opens damaged files without complaint often enough (one flipped
//! bit: in a quarter of the trials values are missing or old afterwards), so its word counts for nothing here.

use super::disk::Disk;
use super::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, damaged, damaged_key, event_seq};
use crate::store::{Error, Seq, codec};
use std::ops::{Bound, ControlFlow};

/// Read everything; gives the position if it is exactly what the last commit left.
///
/// [`Error::Damaged`] names the first bad key; that is the head's when each value is good and they are not all there.
pub(super) fn verify(disk: &Disk) -> Result<Position, Error> {
    let mut scan = Scan {
        disk,
        head: None,
        newest: 0,
        events: 0,
        found: Position {
            epoch: 0,
            batch: 0,
            next_seq: 1,
            count: 0,
            sum: 0,
        },
    };
    disk.range(Bound::Unbounded, &mut |key, sealed| {
        scan.visit(key, sealed).map(ControlFlow::Continue)
    })?;
    scan.conclude()
}

struct Scan<'a> {
    disk: &'a Disk,
    head: Option<Position>,
    newest: u64,
    events: Seq,
    found: Position,
}

impl Scan<'_> {
    fn visit(&mut self, key: &[u8], sealed: &[u8]) -> Result<(), Error> {
        let (batch, body) = codec::unseal(key, sealed).map_err(|e| damaged(self.disk, key, &e))?;
        self.newest = self.newest.max(batch);
        if key == HEAD_KEY {
            let position: Position = codec::decode(body).map_err(|e| damaged(self.disk, key, &e))?;
            self.head = Some(position);
            return Ok(());
        }
        self.found.add(key, sealed);
        match key.first() {
            Some(&RECORD_PREFIX) => Ok(()),
            Some(&EVENT_PREFIX) => {
                self.events += 1;
                if event_seq(key) == Some(self.events) {
                    return Ok(());
                }
                Err(damaged_key(
                    self.disk.file(),
                    key,
                    &format!("event {} should come here", self.events),
                ))
            }
            _ => Err(damaged_key(self.disk.file(), key, "no such key is ever written")),
        }
    }

    fn conclude(self) -> Result<Position, Error> {
        let file = self.disk.file();
        let Some(head) = self.head else {
            return Err(damaged_key(file, HEAD_KEY, "it is missing, and every store has it"));
        };
        if self.newest > head.batch {
            return Err(damaged_key(
                file,
                HEAD_KEY,
                &format!("it says commit {}, a value says {}", head.batch, self.newest),
            ));
        }
        if self.events + 1 != head.next_seq {
            return Err(damaged_key(
                file,
                HEAD_KEY,
                &format!("the next event should be {}, {} are there", head.next_seq, self.events),
            ));
        }
        let (there, should) = (self.found.count, head.count);
        if there != should {
            return Err(damaged_key(
                file,
                HEAD_KEY,
                &format!("{there} values are there, not the {should} of the last commit"),
            ));
        }
        if self.found.sum != head.sum {
            return Err(damaged_key(
                file,
                HEAD_KEY,
                &format!("the sum over the {there} values is not that of the last commit"),
            ));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled_store::{event_key, record_key};

    type Write = (Vec<u8>, Option<Vec<u8>>);

    /// A good store of one event and two records, changed by `spoil`, and what `verify` says to it.
    fn verdict(spoil: impl FnOnce(&mut Vec<Write>, &mut Position)) -> Result<Position, String> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let mut position = Position {
            epoch: 1,
            batch: 3,
            next_seq: 2,
            count: 0,
            sum: 0,
        };
        let mut writes = Vec::new();
        for (key, batch) in [(event_key(1), 2), (record_key(b"a"), 3), (record_key(b"b"), 3)] {
            let sealed = codec::seal(&key, batch, b"body");
            position.add(&key, &sealed);
            writes.push((key, Some(sealed)));
        }
        spoil(&mut writes, &mut position);
        writes.push((
            HEAD_KEY.to_vec(),
            Some(codec::seal(HEAD_KEY, position.batch, &codec::encode(&position))),
        ));
        disk.commit(writes).unwrap();
        verify(&disk).map_err(|error| match error {
            Error::Damaged { file, what } if file == dir.path().join("db") => what,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn a_good_store_passes() {
        assert_eq!(verdict(|_, _| {}).unwrap().count, 3);
    }

    #[test]
    fn missing_extra_and_old_values_are_found() {
        let missing = verdict(|writes, _| drop(writes.pop()));
        assert_eq!(missing.unwrap_err(), "key h: 2 values are there, not the 3 of the last commit");
        let extra = verdict(|writes, _| writes.push((record_key(b"c"), Some(codec::seal(b"rc", 3, b"")))));
        assert_eq!(extra.unwrap_err(), "key h: 4 values are there, not the 3 of the last commit");
        let old = verdict(|writes, _| writes[2].1 = Some(codec::seal(b"rb", 2, b"body")));
        assert!(old.unwrap_err().starts_with("key h: the sum over the 3 values"));
        let newer = verdict(|writes, _| writes[2].1 = Some(codec::seal(b"rb", 4, b"body")));
        assert_eq!(newer.unwrap_err(), "key h: it says commit 3, a value says 4");
    }

    #[test]
    fn the_first_bad_key_is_named() {
        let bad = verdict(|writes, _| writes[1].1 = Some(codec::seal(b"rb", 3, b"body")));
        assert_eq!(bad.unwrap_err(), "key ra: the checksum does not fit");
        let unknown = verdict(|writes, _| writes.push((b"x\n".to_vec(), Some(codec::seal(b"x\n", 3, b"")))));
        assert_eq!(unknown.unwrap_err(), "key x\\n: no such key is ever written");
        let gap = verdict(|writes, _| writes.push((event_key(3), Some(codec::seal(&event_key(3), 3, b"")))));
        assert_eq!(
            gap.unwrap_err(),
            "key e\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x03: event 2 should come here"
        );
        let short = verdict(|_, position| position.next_seq = 3);
        assert_eq!(short.unwrap_err(), "key h: the next event should be 3, 1 are there");
    }
}
