//! Stored-format version 2: what is live can be proved without reading the history, and a directory knows its owner.
//!
//! What changed since version 1, and why:
//!
//! - The head counts and sums live values and history separately, and names the first event that is kept. A start proves the live part
//!   before it serves and the history while it serves; in version 1 it had to read all.
//! - Store and high-water file have a number, and `FORMAT` says which one counts, so that a whole log is exchanged with one rename. The
//!   high-water file is made with its log, so a log without it is damaged.
//! - `FORMAT` names the oldest release that reads the directory, and the party it belongs to.
//!
//! No release wrote this version, and no crash leaves it: a directory of 0.1.0 goes from version 1 to the newest one with one rename, by this step and the
//! next. So there are no directories of it to test with; what this step does shows in the test of those of 0.1.0 (`tests/compat`). An operator sees one line in the log of the first start, which takes as long as copying the store and needs
//! room for a second one; `fedbroker store migrate --dry-run` tells beforehand.
//!
//! | file | layout |
//! | --- | --- |
//! | `FORMAT` | see `src/store/directory/format.rs` |
//! | `log-<n>/store` | sled 0.34, 8 MiB segments, the default tree; keys and values as in version 1 but for the head |
//! | `high-water-<n>` | two slots as in version 1; which one is written does not matter |
//! | `payloads` | as in version 1 |
//!
//! | key | body |
//! | --- | --- |
//! | `h` | epoch, batch, first sequence kept, next sequence, live count, live sum, history count, history sum: eight unsigned varints |
//! | `e` + 8 bytes sequence, big endian | an event; history |
//! | `rd` + key | a record that has ended; history |
//! | `r` + any other key | a record; live |

use super::m0001_initial;
use crate::store::codec;

/// This version.
pub const VERSION: u32 = 2;

pub use m0001_initial::Head as HeadV1;

/// Carries a version 1 log over: takes its values in key order, proves it as version 1 did, and sums up what version 2 wants to know.
#[derive(Default)]
pub struct Upgrade {
    head: Option<HeadV1>,
    newest: u64,
    events: u64,
    live: (u64, u64),
    history: (u64, u64),
}

impl Upgrade {
    /// Take one value. Says whether it was the head, which is not carried over; an error says what is wrong with the value.
    pub fn take(&mut self, key: &[u8], sealed: &[u8]) -> Result<bool, String> {
        let (batch, body) = codec::unseal(key, sealed).map_err(|e| e.to_string())?;
        self.newest = self.newest.max(batch);
        let is_history = match key {
            b"h" => {
                self.head = Some(m0001_initial::Head::read(body)?);
                return Ok(true);
            }
            [b'e', seq @ ..] => {
                self.events += 1;
                if *seq != self.events.to_be_bytes() {
                    return Err(format!("event {} should come here", self.events));
                }
                true
            }
            [b'r', record @ ..] => record.first() == Some(&b'd'),
            _ => return Err("no such key is ever written".to_owned()),
        };
        let (count, sum) = if is_history { &mut self.history } else { &mut self.live };
        *count += 1;
        *sum = sum.wrapping_add(codec::fingerprint(key, sealed));
        Ok(false)
    }

    /// After the last value: the head as it was, and count and sum of the live values and of the history.
    #[expect(clippy::type_complexity, reason = "two pairs that are used once")]
    pub fn finish(self) -> Result<(HeadV1, (u64, u64), (u64, u64)), String> {
        let head = self.head.ok_or("it is missing, and every store has it")?;
        let count = self.live.0 + self.history.0;
        if self.newest > head.batch {
            return Err(format!("it says commit {}, a value says {}", head.batch, self.newest));
        }
        if self.events + 1 != head.next_seq {
            return Err(format!("the next event should be {}, {} are there", head.next_seq, self.events));
        }
        if count != head.count {
            return Err(format!("{count} values are there, not the {} of the last commit", head.count));
        }
        if self.live.1.wrapping_add(self.history.1) != head.sum {
            return Err(format!("the sum over the {count} values is not that of the last commit"));
        }
        Ok((head, self.live, self.history))
    }
}

#[cfg(test)]
mod tests {
    use crate::store::codec;
    use crate::store::directory::Directory;
    use crate::store::sled_store::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, SledStore, Tally};
    use crate::store::{Commit, HISTORY, Store};
    use std::fs;

    #[test]
    fn the_head_value_has_the_bytes_of_version_2() {
        let position = Position {
            epoch: 1,
            batch: 2,
            first_seq: 3,
            next_seq: 300,
            live: Tally { count: 4, sum: u64::MAX },
            history: Tally { count: 5, sum: 6 },
        };
        let body = codec::encode(&position);
        assert_eq!(body, b"\x01\x02\x03\xfb\x2c\x01\x04\xfd\xff\xff\xff\xff\xff\xff\xff\xff\x05\x06");
        assert_eq!(codec::decode(&body), Ok(position));
        assert_eq!((HEAD_KEY, EVENT_PREFIX, RECORD_PREFIX, HISTORY), (&b"h"[..], b'e', b'r', b'd'));
    }

    #[test]
    fn the_high_water_file_has_the_bytes_of_version_2() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [0; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        let commit = Commit {
            epoch: 1,
            expected: 1,
            events: vec![b"event".to_vec()],
            changes: vec![(b"key".to_vec(), Some(b"value".to_vec()))],
            trim_to: None,
        };
        store.commit(&commit).unwrap();
        let event = b"\x01\x02\0\0\0\0\0\0\0";
        // The store that writes it has events in blocks.
        let event_crc = crc32fast::hash(&[b"e\0\0\0\0\0\0\0\x01", &event[..], b"\x05\0event"].concat());
        let record_crc = crc32fast::hash(&[b"rkey", &event[..], b"value"].concat());
        let event_sum = codec::fingerprint(b"e\0\0\0\0\0\0\0\x01", &[&event[..], &event_crc.to_le_bytes()].concat());
        let record_sum = codec::fingerprint(b"rkey", &[&event[..], &record_crc.to_le_bytes()].concat());
        let sum = event_sum.wrapping_add(record_sum).to_le_bytes();
        let crc = crc32fast::hash(&[b"high-water", &event[..], &sum].concat()).to_le_bytes();
        let file = fs::read(directory.high_water_path()).unwrap();
        assert_eq!(file.len(), 8192);
        let slot = [&event[..], &crc, &sum].concat();
        assert!(
            [0, 4096]
                .iter()
                .any(|at| file[*at..at + 21] == slot && file[at + 21..at + 512] == [0; 491])
        );
    }
}
