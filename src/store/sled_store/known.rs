//! Which live keys can have a value: a commit reads the old value of a key it writes, and most keys are new.
//!
//! Filled by the proof of what is live, carried on by the committer. It may say that a key has a value which has none (the hashes of two keys
//! are the same), never the other way round: the tally of the live values would be wrong from then on.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Room that is made before it is known that there is so much: a head that is damaged may say anything.
const ROOM_MAX: usize = 1 << 20;

/// Hashes of the live keys, each with the number of keys that have it.
pub(super) struct Known {
    hasher: RandomState,
    counts: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
}

/// A hash is not hashed again.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        unreachable!("only numbers are keys here, not {bytes:?}");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Known {
    /// None yet, with room for about so many.
    pub(super) fn with_room(count: u64) -> Self {
        let room = usize::try_from(count).unwrap_or(usize::MAX).min(ROOM_MAX);
        Self {
            hasher: RandomState::new(),
            counts: HashMap::with_capacity_and_hasher(room, BuildHasherDefault::default()),
        }
    }

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
