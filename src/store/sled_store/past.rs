//! Which records of the history can be there: a new name is looked for among those that have ended, and hardly ever is there.
//!
//! Filled by the proof of the history as it comes by (`HistoryCheck`) and with what commits add meanwhile; asked by `SledStore` before the engine.
//! It may say that a record is there which is not, never the other way round: until the whole history was seen everything may be there.

use fastbloom::AtomicBloomFilter;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Keys of the first filter; each further one is for as many as there are in all before it, so that few are asked.
const FIRST: u64 = 1 << 14;
/// With so many bits for a key and so many of them set, a filter that is full says one time in a hundred that a key is there which is not.
const BITS: u64 = 10;
/// Names that are noted at most, 10 MB of them: those of retention's doing are noted too, for a filter forgets nothing. With more, everything may be
/// there again until a restart.
const MOST: u64 = FIRST << 9;
const SET: u32 = 7;

/// See the module.
pub(super) struct Past {
    hasher: RandomState,
    filters: RwLock<Filters>,
    complete: AtomicBool,
    most: u64,
}

struct Filters {
    /// None once there were too many names.
    all: Vec<AtomicBloomFilter>,
    /// Keys that the last one has still room for.
    room: AtomicU64,
}

impl Past {
    /// Of a history that nothing was seen of.
    pub(super) fn new() -> Self {
        Self::of_at_most(MOST)
    }

    fn of_at_most(most: u64) -> Self {
        Self {
            most,
            hasher: RandomState::new(),
            filters: RwLock::new(Filters {
                all: vec![filter(FIRST)],
                room: AtomicU64::new(FIRST),
            }),
            complete: AtomicBool::new(false),
        }
    }

    /// A record is in the history, or is about to be. Called by one thread at a time.
    pub(super) fn add(&self, key: &[u8]) {
        let hash = self.hasher.hash_one(key);
        let filters = self.filters();
        if filters.may_have(hash) {
            return;
        }
        if let Some(last) = filters.all.last() {
            last.insert_hash(hash);
        }
        if filters.room.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let keys = FIRST << (filters.all.len() - 1);
        drop(filters);
        if keys >= self.most {
            return self.give_up();
        }
        // Made before anybody has to wait for it.
        let next = filter(keys);
        let mut filters = self.filters.write().unwrap_or_else(PoisonError::into_inner);
        filters.all.push(next);
        filters.room = AtomicU64::new(keys);
    }

    fn give_up(&self) {
        self.filters.write().unwrap_or_else(PoisonError::into_inner).all.clear();
        tracing::info!(
            names = self.most,
            "too many ended records to note their names: new ones are looked for in the history"
        );
    }

    /// All that is in the history was added.
    pub(super) fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// False only if the record is not in the history.
    pub(super) fn may_have(&self, key: &[u8]) -> bool {
        !self.complete.load(Ordering::Acquire) || self.filters().may_have(self.hasher.hash_one(key))
    }

    fn filters(&self) -> RwLockReadGuard<'_, Filters> {
        self.filters.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filters {
    fn may_have(&self, hash: u64) -> bool {
        self.all.is_empty() || self.all.iter().rev().any(|filter| filter.contains_hash(hash))
    }
}

fn filter(keys: u64) -> AtomicBloomFilter {
    let bits = usize::try_from(keys * BITS).expect("a filter of memory's size is not reached");
    AtomicBloomFilter::with_num_bits(bits).hashes(SET)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(from: u64, count: u64) -> impl Iterator<Item = [u8; 8]> {
        (from..from + count).map(u64::to_be_bytes)
    }

    #[test]
    fn nothing_is_ruled_out_before_all_was_seen() {
        let past = Past::new();
        past.add(b"a");
        assert!(past.may_have(b"a") && past.may_have(b"b"));
        past.complete();
        assert!(past.may_have(b"a") && !past.may_have(b"b"));
    }

    #[test]
    fn with_too_many_everything_may_be_there_again() {
        let past = Past::of_at_most(2 * FIRST);
        past.complete();
        for key in keys(0, 2 * FIRST + 2000) {
            past.add(&key);
            assert!(past.may_have(&key));
        }
        assert!(keys(0, 9 * FIRST).all(|key| past.may_have(&key)));
        assert!(past.filters().all.is_empty(), "what says nothing takes no memory");
    }

    #[test]
    fn what_was_added_may_be_there_and_hardly_anything_else() {
        let past = Past::new();
        past.complete();
        let count = 5 * FIRST;
        for key in keys(0, count).chain(keys(0, FIRST)) {
            past.add(&key);
        }
        assert!(keys(0, count).all(|key| past.may_have(&key)));
        let wrong = keys(count, count).filter(|key| past.may_have(key)).count() as u64;
        assert!(wrong < count / 25, "{wrong} of {count}");
        assert_eq!(
            past.filters().all.len(),
            4,
            "for 1, 1, 2 and 4 times the first ones; a key counts once"
        );
    }
}
