//! What is confirmed and not yet with the storage engine: two sorted tables in memory, whose values stand before the engine's.
//!
//! Used by `Disk`, the only one who reads the engine. Commits go into the active table; it is frozen when somebody has the time to give it to
//! the engine, in key order, and let go of once that is durable. What is written over or
//! removed before that never reaches the engine. It must never hold a value that is not durable: whatever is here may be shown.

use super::disk::Value;
use crate::store::write_cost;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Keys with their sealed values; `None` where the key goes.
pub(super) type Table = BTreeMap<Vec<u8>, Option<Value>>;

/// See the module.
#[derive(Default)]
pub(super) struct Recent(RwLock<Tables>);

#[derive(Default)]
struct Tables {
    active: Table,
    /// What the active table will cost the engine.
    cost: usize,
    /// The last commit that is shown.
    last: u64,
    /// Empty when the engine has all of it durably.
    frozen: Arc<Table>,
}

impl Recent {
    /// Show the writes of a commit, all at once.
    pub(super) fn put(&self, batch: u64, writes: impl Iterator<Item = (Vec<u8>, Option<Value>)>) {
        let tables = &mut *self.write();
        tables.last = batch;
        for (key, value) in writes {
            let len = key.len();
            tables.cost += cost(len, value.as_deref());
            if let Some(before) = tables.active.insert(key, value) {
                tables.cost -= cost(len, before.as_deref());
            }
        }
    }

    /// What the active table will cost the engine.
    pub(super) fn cost(&self) -> usize {
        self.read().cost
    }

    /// `None` where the engine has the last word on a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Value>> {
        let tables = self.read();
        tables.active.get(key).or_else(|| tables.frozen.get(key)).cloned()
    }

    /// The first keys of a range, at most `limit`, with the last word on each.
    pub(super) fn page(&self, from: Bound<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Option<Value>)> {
        let tables = self.read();
        let range = (from, Bound::Unbounded);
        let mut newer = tables.active.range::<[u8], _>(range).peekable();
        let mut older = tables.frozen.range::<[u8], _>(range).peekable();
        let mut page = Vec::new();
        while page.len() < limit {
            let next = match (newer.peek(), older.peek()) {
                (Some((new, _)), Some((old, _))) if old < new => older.next(),
                (Some((new, _)), Some((old, _))) if old == new => {
                    older.next();
                    newer.next()
                }
                (Some(_), _) => newer.next(),
                (None, _) => older.next(),
            };
            let Some((key, value)) = next else { break };
            page.push((key.clone(), value.clone()));
        }
        page
    }

    /// Begin a new active table. The frozen one before must have been let go of. Gives the last commit that the frozen one has.
    pub(super) fn freeze(&self) -> u64 {
        let tables = &mut *self.write();
        debug_assert!(tables.frozen.is_empty(), "the engine has not taken it");
        tables.frozen = Arc::new(std::mem::take(&mut tables.active));
        tables.cost = 0;
        tables.last
    }

    /// What the engine must be given.
    pub(super) fn frozen(&self) -> Arc<Table> {
        Arc::clone(&self.read().frozen)
    }

    /// The engine has what was frozen, durably.
    pub(super) fn thaw(&self) {
        let gone = std::mem::take(&mut self.write().frozen);
        // Not while readers wait.
        drop(gone);
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(key: usize, value: Option<&[u8]>) -> usize {
    write_cost(key + value.map_or(0, <[u8]>::len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(writes: &[(&str, Option<&str>)]) -> impl Iterator<Item = (Vec<u8>, Option<Value>)> {
        writes.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.map(|v| v.as_bytes().into())))
    }

    fn page(recent: &Recent, from: &str, limit: usize) -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let page = recent.page(Bound::Included(from.as_bytes()), limit);
        page.iter().map(|(k, v)| (text(k), v.as_deref().map(text))).collect()
    }

    #[test]
    fn the_last_word_counts_in_both_tables() {
        let recent = Recent::default();
        recent.put(7, writes(&[("a", Some("1")), ("b", Some("1")), ("d", Some("1"))]));
        assert_eq!(recent.freeze(), 7);
        recent.put(8, writes(&[("b", None), ("c", Some("2"))]));
        recent.put(9, writes(&[("c", Some("3"))]));
        let some = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        let all = [some("a", "1"), ("b".to_owned(), None), some("c", "3"), some("d", "1")];
        assert_eq!(page(&recent, "", 9), all);
        assert_eq!(page(&recent, "b", 2), all[1..3]);
        assert_eq!(recent.get(b"b"), Some(None));
        assert_eq!(recent.get(b"d").unwrap().unwrap(), b"1");
        assert_eq!(recent.get(b"e"), None);
        assert_eq!(recent.frozen().len(), 3);
        recent.thaw();
        assert_eq!(page(&recent, "", 9), all[1..3]);
    }

    #[test]
    fn a_key_costs_once() {
        let recent = Recent::default();
        for _ in 0..3 {
            recent.put(1, writes(&[("key", Some("value"))]));
            assert_eq!(recent.cost(), write_cost(8));
        }
        recent.put(1, writes(&[("key", None)]));
        assert_eq!(recent.cost(), write_cost(3));
        recent.freeze();
        assert_eq!(recent.cost(), 0);
    }
}
