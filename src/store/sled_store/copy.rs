//! Reads a whole store as of one commit, while commits go on.
//!
//! Called by `SledStore::copy`, for backups. It goes through the keys page by page; what commits change behind it is remembered and
//! handed on again, until nothing is left to catch up with. It must never hold up commits for longer than a page takes, and never
//! remember more than keys.

use super::{HEAD_KEY, SledStore, codec};
use crate::store::{Error, Head};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

/// Gets a key and its value, or `None` where it is gone by now.
pub type Each<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), Error> + 'a;

/// Keys read while commits wait, at once.
const PAGE: usize = 256;

/// The copies under way, each with the keys that commits have changed behind it.
#[derive(Default)]
pub(super) struct Copies {
    behind: BTreeMap<u64, Behind>,
    next: u64,
}

#[derive(Default)]
struct Behind {
    /// Everything up to here was read; `None` at the beginning.
    cursor: Option<Vec<u8>>,
    /// The end was reached.
    all: bool,
    changed: BTreeSet<Vec<u8>>,
}

impl Copies {
    /// A commit changes these keys.
    pub(super) fn changed<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]> + Clone) {
        for copy in self.behind.values_mut() {
            let cursor = copy.cursor.as_deref();
            let seen = keys.clone().filter(|key| copy.all || cursor.is_some_and(|cursor| *key <= cursor));
            copy.changed.extend(seen.map(<[u8]>::to_vec));
        }
    }
}

/// Ends the bookkeeping, however the copy ends.
struct Registered<'a> {
    store: &'a SledStore,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.store.lock_writer().copies.behind.remove(&self.id);
    }
}

type Values = Vec<(Vec<u8>, Option<Vec<u8>>)>;

pub(super) fn copy(store: &SledStore, each: &mut Each<'_>) -> Result<Head, Error> {
    let registered = {
        let copies = &mut store.lock_writer().copies;
        copies.next += 1;
        copies.behind.insert(copies.next, Behind::default());
        Registered { store, id: copies.next }
    };
    loop {
        let (values, head) = next(store, registered.id)?;
        for (key, sealed) in &values {
            if let Some(sealed) = sealed {
                codec::unseal(key, sealed).map_err(|e| super::damaged(&store.disk, key, &e))?;
            }
            each(key, sealed.as_deref())?;
        }
        if let Some(head) = head {
            return Ok(head);
        }
    }
}

/// The next page: of what was not read yet, then of what has changed since, then the head, with which the copy is complete.
fn next(store: &SledStore, id: u64) -> Result<(Values, Option<Head>), Error> {
    let writer = &mut *store.lock_writer();
    store.barrier.check()?;
    let copy = writer.copies.behind.get_mut(&id).expect("a copy is registered as long as it runs");
    let mut values = Values::new();
    if !copy.all {
        let from = copy.cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        store.disk.range(from, &mut |key, sealed| {
            values.push((key.to_vec(), Some(sealed.to_vec())));
            let full = values.len() == PAGE;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        copy.all = values.len() < PAGE;
        copy.cursor = values.last().map(|(key, _)| key.clone()).or(copy.cursor.take());
        // It is handed on at the end.
        values.retain(|(key, _)| key != HEAD_KEY);
        return Ok((values, None));
    }
    copy.changed.remove(HEAD_KEY);
    while values.len() < PAGE
        && let Some(key) = copy.changed.pop_first()
    {
        let sealed = store.disk.get(&key)?.map(|sealed| sealed.to_vec());
        values.push((key, sealed));
    }
    if !copy.changed.is_empty() {
        return Ok((values, None));
    }
    let head = store.disk.get(HEAD_KEY)?.map(|sealed| sealed.to_vec());
    values.push((HEAD_KEY.to_vec(), head));
    Ok((values, Some(writer.position.head())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::directory::Directory;
    use crate::store::sled_store::Builder;
    use crate::store::{Commit, Store};

    fn commit(store: &SledStore, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>, trim_to: Option<u64>) {
        let head = store.head();
        store
            .commit(&Commit {
                epoch: head.epoch,
                expected: head.next_seq,
                events: vec![b"event".to_vec()],
                changes,
                trim_to,
            })
            .unwrap();
    }

    /// Live and ended records, some of them changed in each round.
    fn changes(round: u32) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let key = |kind: char, i: u32| format!("{kind}{i:04}").into_bytes();
        let new = (0..40).map(|i| (key('l', round * 13 + i), Some(vec![round as u8; 20])));
        let ended = (0..20).map(|i| (key('d', round * 7 + i), Some(vec![round as u8; 20])));
        let gone = (0..10).flat_map(|i| [(key('l', round * 11 + i), None), (key('d', round * 5 + i), None)]);
        new.chain(ended).chain(gone).collect()
    }

    #[test]
    fn a_copy_made_while_commits_go_on_is_the_store_at_its_head() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(&root.path().join("live"), "master", [1; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        for round in 0..200 {
            commit(&store, changes(round), None);
        }
        let other = Directory::open(&root.path().join("copy"), "master", [2; 16]).unwrap();
        let mut builder = Builder::new(&other).unwrap();
        let all = |store: &SledStore| (store.scan(b"", None, usize::MAX).unwrap(), store.events(1, usize::MAX).unwrap());
        let mut states = BTreeMap::from([(store.head().batch, all(&store))]);
        let (mut values, mut round) = (0, 0_u32);
        let head = store
            .copy(&mut |key, sealed| {
                values += 1;
                // Commits fall between any two pages, and before and behind what was read.
                if values % 100 == 0 && round < 60 {
                    let trim_to = round.is_multiple_of(3).then_some(u64::from(round) * 2);
                    commit(&store, changes(round * 17 % 200), trim_to);
                    round += 1;
                    states.insert(store.head().batch, all(&store));
                }
                builder.put(key, sealed)
            })
            .unwrap();
        assert!(round > 5, "too few commits fell into the copy");
        builder.finish().unwrap();
        other.switch_to_next_log().unwrap();
        let copied = SledStore::inspect(&other).unwrap();
        assert_eq!(copied.head(), head);
        assert!(head.first_seq > 5, "no event went while the copy was made");
        assert!(all(&copied) == states[&head.batch]);
        assert!(store.lock_writer().copies.behind.is_empty());
    }

    #[test]
    fn a_copy_that_is_given_up_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [1; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        let failed = store.copy(&mut |_, _| Err(Error::Poisoned));
        assert!(matches!(failed, Err(Error::Poisoned)));
        assert!(store.lock_writer().copies.behind.is_empty());
    }
}
