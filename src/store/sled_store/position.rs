//! The keys of the log, and the head value that counts what they hold.
//!
//! Used by everything below `sled_store`. A tally must change with each value it counts, or the next start refuses the store.

use super::super::codec;
use super::super::{HISTORY, Head, Seq};
use serde::{Deserialize, Serialize};

pub(crate) const HEAD_KEY: &[u8] = b"h";
pub(crate) const EVENT_PREFIX: u8 = b'e';
pub(crate) const RECORD_PREFIX: u8 = b'r';

/// The body of the head value, changed by every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub epoch: u64,
    pub batch: u64,
    pub first_seq: Seq,
    pub next_seq: Seq,
    pub live: Tally,
    pub history: Tally,
}

impl Position {
    /// With nothing counted yet.
    pub(super) fn new(epoch: u64, batch: u64, next_seq: Seq) -> Position {
        Position {
            epoch,
            batch,
            first_seq: 1,
            next_seq,
            live: Tally::default(),
            history: Tally::default(),
        }
    }

    pub(super) fn head(&self) -> Head {
        Head {
            epoch: self.epoch,
            batch: self.batch,
            first_seq: self.first_seq,
            next_seq: self.next_seq,
        }
    }

    /// Where a key is counted.
    pub(super) fn tally(&mut self, key: &[u8]) -> &mut Tally {
        if is_history(key) { &mut self.history } else { &mut self.live }
    }
}

/// Count and sum of many values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub count: u64,
    pub sum: u64,
}

impl Tally {
    pub(super) fn add(&mut self, key: &[u8], sealed: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(codec::fingerprint(key, sealed));
    }

    pub(super) fn remove(&mut self, key: &[u8], sealed: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(codec::fingerprint(key, sealed));
    }

    /// In words, how what was found differs from what `commit` has left.
    pub(super) fn difference(&self, should: &Tally, which: &str, commit: &str) -> Option<String> {
        let (count, should_be) = (self.count, should.count);
        if count != should_be {
            Some(format!("{count} {which} values are there, not the {should_be} of {commit}"))
        } else if self.sum != should.sum {
            Some(format!("the sum over the {count} {which} values is not that of {commit}"))
        } else {
            None
        }
    }
}

/// Events, and the records that have ended.
pub(super) fn is_history(key: &[u8]) -> bool {
    match key {
        [EVENT_PREFIX, ..] => true,
        [RECORD_PREFIX, record @ ..] => record.first() == Some(&HISTORY),
        _ => false,
    }
}

pub(super) fn record_key(key: &[u8]) -> Vec<u8> {
    [&[RECORD_PREFIX], key].concat()
}

pub(super) fn event_key(seq: Seq) -> Vec<u8> {
    [&[EVENT_PREFIX], &seq.to_be_bytes()[..]].concat()
}

/// The sequence in an event's key; `None` for other keys.
pub(super) fn event_seq(key: &[u8]) -> Option<Seq> {
    let (prefix, seq) = key.split_first()?;
    let seq = seq.try_into().ok()?;
    (*prefix == EVENT_PREFIX).then(|| Seq::from_be_bytes(seq))
}
