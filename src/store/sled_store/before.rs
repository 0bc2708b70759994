//! What stood under the keys of a commit before it, so that one that failed on a full disk can be read around.
//!
//! Filled by the committer with each commit, used by readers once the disk was full. The engine's memory may show such a commit whole, in
//! part or not at all; nothing of it must ever reach a reader.

use super::disk::{Disk, Each};
use crate::store::Error;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

/// Keys and their sealed values; `None` where there was no value.
#[derive(Default)]
pub(super) struct Before(BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Before {
    /// What stood under a key that the commit is about to write.
    pub(super) fn keep(&mut self, key: &[u8], sealed: Option<&[u8]>) {
        self.0.insert(key.to_vec(), sealed.map(<[u8]>::to_vec));
    }

    /// `None` for a key that the commit does not touch.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.0.get(key).map(Option::as_deref)
    }

    /// [`Disk::range`] as it was before the commit.
    pub(super) fn range(&self, disk: &Disk, from: Bound<&[u8]>, each: &mut Each<'_>) -> Result<(), Error> {
        let mut older = self.0.range::<[u8], _>((from, Bound::Unbounded)).peekable();
        let mut ended = false;
        disk.range(from, &mut |key, sealed| {
            let mut flow = ControlFlow::Continue(());
            while let Some((gone, old)) = older.next_if(|(older, _)| older.as_slice() < key) {
                if let (Some(old), true) = (old, flow.is_continue()) {
                    flow = each(gone, old)?;
                }
            }
            if flow.is_continue() {
                flow = match older.next_if(|(older, _)| *older == key) {
                    Some((_, Some(old))) => each(key, old)?,
                    Some((_, None)) => flow,
                    None => each(key, sealed)?,
                };
            }
            ended = flow.is_break();
            Ok(flow)
        })?;
        for (key, old) in older.filter_map(|(key, old)| Some((key, old.as_ref()?))) {
            if ended || each(key, old)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::store::directory::Directory;
    use crate::store::sled_store::SledStore;
    use crate::store::sled_store::disk::Fault;
    use crate::store::{Commit, Store};

    fn commit(store: &SledStore, events: &[&str], changes: &[(&str, Option<&str>)]) -> Commit {
        let head = store.head();
        Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            events: events.iter().map(|event| event.as_bytes().to_vec()).collect(),
            changes: changes
                .iter()
                .map(|(k, v)| (k.as_bytes().to_vec(), v.map(|v| v.as_bytes().to_vec())))
                .collect(),
            trim_to: None,
        }
    }

    /// At the barrier is the worst: the engine has the whole batch in memory.
    #[test]
    fn a_commit_that_finds_the_disk_full_is_never_seen() {
        for fault in [Fault::Reserve, Fault::Barrier, Fault::Apply] {
            let dir = tempfile::tempdir().unwrap();
            let store = SledStore::open(&Directory::open(dir.path(), "master", [1; 16]).unwrap()).unwrap();
            let kept = [("b", Some("1")), ("d", Some("1")), ("e", Some("1")), ("h", Some("1"))];
            store.commit(&commit(&store, &["one", "two"], &kept)).unwrap();
            let head = store.head();
            let before = all(&store);
            *store.disk.fault.lock().unwrap() = Some(fault);
            let failed = [
                ("a", Some("2")),
                ("b", Some("2")),
                ("c", Some("2")),
                ("d", None),
                ("h", None),
                ("z", Some("2")),
            ];
            let failed = Commit {
                trim_to: Some(2),
                ..commit(&store, &["three"], &failed)
            };
            assert!(store.commit(&failed).unwrap_err().is_full());
            let shown = store.disk.get(b"ra").unwrap().is_some();
            assert_eq!(shown, fault == Fault::Apply, "whether the engine shows it");
            assert_eq!(store.head(), head);
            assert!(all(&store) == before);
            *store.disk.fault.lock().unwrap() = None;
            let error = store.commit(&commit(&store, &["three"], &[])).unwrap_err();
            assert!(error.is_full(), "only a restart may write again");
            assert!(all(&store) == before);
        }
    }

    #[test]
    fn space_is_reserved_ahead_of_the_log() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(&Directory::open(dir.path(), "master", [1; 16]).unwrap()).unwrap();
        let (log, until) = (std::fs::metadata(store.disk.file()).unwrap(), store.disk.lock_reserve().until);
        if until == 0 {
            eprintln!("SKIPPED: the file system cannot reserve space");
            return;
        }
        assert!(until >= log.len() + (16 << 20));
        assert!(log.blocks() * 512 >= 16 << 20, "{} blocks for {} bytes", log.blocks(), log.len());
    }

    /// Everything, read in every way.
    fn all(store: &SledStore) -> impl PartialEq + use<> {
        let pages = [
            ("", None, 99),
            ("", None, 2),
            ("", Some("b"), 2),
            ("", Some("c"), 9),
            ("e", None, 9),
            ("c", None, 9),
        ];
        let pages = pages.map(|(prefix, after, limit)| store.scan(prefix.as_bytes(), after.map(str::as_bytes), limit).unwrap());
        let values = ["a", "b", "c", "d", "e", "h", "z"].map(|key| store.get(key.as_bytes()).unwrap());
        (pages, values, store.events(1, 99).unwrap(), store.events(3, 99).unwrap())
    }
}
