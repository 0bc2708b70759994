//! Which live keys can have a value: a commit reads the old value of a key it writes, and most keys are new.
//!
//! Filled by the proof of what is live, carried on by the committer. It may say that a key has a value which has none (the hashes of two keys
//! are the same), never the other way round: the tally of the live values would be wrong from then on.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Hashes of the live keys, each with the number of keys that have it.
#[derive(Default)]
pub(super) struct Known {
    hasher: RandomState,
    counts: HashMap<u64, u32>,
}

impl Known {
    /// A key has a value now, and had none.
    pub(super) fn add(&mut self, key: &[u8]) {
        *self.counts.entry(self.hasher.hash_one(key)).or_default() += 1;
    }

    /// A key has no value any more.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        if let Some(count) = self.counts.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&hash);
            }
        }
    }

    /// False only if the key has no value.
    pub(super) fn may_have(&self, key: &[u8]) -> bool {
        self.counts.contains_key(&self.hasher.hash_one(key))
    }
}
