//! What only a look inside the store can test: holes in the history, a disk that is full on order, and what is not with the engine yet.

use super::disk::Fault;
use super::journal::PARTS;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

fn commit(store: &SledStore) -> Result<Head, Error> {
    let head = store.head();
    store.commit(&Commit {
        epoch: head.epoch,
        expected: head.next_seq,
        // Three to a block.
        events: vec![vec![7; 1000]; 200],
        changes: vec![(b"dold".to_vec(), Some(head.batch.to_be_bytes().to_vec()))],
        trim_to: None,
    })
}

/// A store of many events of which nothing is proved yet.
fn unproved(root: &std::path::Path) -> SledStore {
    let directory = Directory::open(root, "master", [1; 16]).unwrap();
    let mut store = SledStore::open(&directory).unwrap();
    for _ in 0..20 {
        commit(&store).unwrap();
    }
    let check = HistoryCheck::new(&store.lock_writer().position);
    store.past = check.past();
    store.lock_writer().check = check;
    store
}

#[test]
fn ended_records_are_found_however_far_the_proof_has_come() {
    let root = tempfile::tempdir().unwrap();
    let store = unproved(root.path());
    // Some before the old one in the order of keys, some behind it.
    let name = |n: u64| format!("d{}{n}", ["a", "z"][usize::from(n % 2 == 1)]).into_bytes();
    let put = |n: u64, body: Option<&[u8]>| {
        let head = store.head();
        store.commit(&Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            events: vec![vec![1; 3000]],
            changes: vec![(name(n), body.map(<[u8]>::to_vec))],
            trim_to: None,
        })
    };
    let mut count = 0;
    while !store.prove_history().unwrap().done {
        put(count, Some(b"first")).unwrap();
        count += 1;
    }
    assert!(count > 3, "all was proved at once");
    for n in 0..count {
        assert_eq!(store.get(&name(n)).unwrap().as_deref(), Some(&b"first"[..]));
        assert_eq!(store.get(&name(n + 2 * count)).unwrap(), None);
        put(n, (n % 3 != 0).then_some(&b"second"[..])).unwrap();
    }
    assert!(store.get(b"dold").unwrap().is_some());
    let of = store.history().of;
    drop(store);
    let store = SledStore::inspect(&Directory::inspect(root.path()).unwrap()).unwrap();
    assert_eq!(store.history().of, of, "what was written over was counted once");
    for n in 0..count {
        assert_eq!(store.get(&name(n)).unwrap().is_some(), n % 3 != 0);
    }
}

#[test]
fn the_history_is_proved_while_commits_go_on() {
    let root = tempfile::tempdir().unwrap();
    let store = unproved(root.path());
    let mut pages = 0;
    while !store.prove_history().unwrap().done {
        pages += 1;
        commit(&store).unwrap();
    }
    assert!(pages > 3, "all was proved at once");
    let proof = store.history();
    assert_eq!(proof.checked, proof.of);
}

#[test]
fn the_history_is_proved_while_events_are_let_go_of() {
    for (step, every) in [(150, 1), (300, 1), (1000, 2)] {
        let root = tempfile::tempdir().unwrap();
        let store = unproved(root.path());
        let mut pages = 0;
        while !store.prove_history().unwrap().done {
            pages += 1;
            let head = store.head();
            let trim = Commit {
                epoch: head.epoch,
                expected: head.next_seq,
                trim_to: (pages % every == 0).then_some(head.first_seq + step),
                ..Commit::default()
            };
            store.commit(&trim).unwrap();
        }
        assert!(store.head().first_seq > 150 && pages >= 2, "nothing was let go of meanwhile");
        let proof = store.history();
        assert_eq!(proof.checked, proof.of);
        drop(store);
        let directory = Directory::open(root.path(), "master", [1; 16]).unwrap();
        assert!(SledStore::open(&directory).unwrap().history().done);
    }
}

#[test]
fn a_hole_where_events_are_let_go_of_stops_the_store() {
    let root = tempfile::tempdir().unwrap();
    let store = unproved(root.path());
    store.disk.put(store.head().batch, disk::values(vec![(event_key(3), None)]));
    let head = store.head();
    let trim = Commit {
        epoch: head.epoch,
        expected: head.next_seq,
        trim_to: Some(9),
        ..Commit::default()
    };
    let error = store.commit(&trim).unwrap_err().to_string();
    assert!(error.contains("event 1 should come here"), "{error}");
    assert!(matches!(commit(&store), Err(Error::Poisoned)));
}

#[test]
fn a_hole_in_the_history_stops_the_store() {
    let root = tempfile::tempdir().unwrap();
    let store = unproved(root.path());
    store.disk.put(store.head().batch, disk::values(vec![(event_key(702), None)]));
    commit(&store).unwrap();
    let found = loop {
        match store.prove_history() {
            Ok(proof) => assert!(!proof.done, "the hole was not found"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(found.contains("event 700 should come here"), "{found}");
    assert!(matches!(commit(&store), Err(Error::Poisoned)));
}

/// A commit of a few events and records.
fn small(store: &SledStore, events: &[&str], changes: &[(&str, Option<&str>)]) -> Commit {
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

fn open(root: &std::path::Path) -> SledStore {
    SledStore::open(&Directory::open(root, "master", [1; 16]).unwrap()).unwrap()
}

#[test]
fn a_commit_that_finds_the_disk_full_is_never_seen() {
    for fault in [Fault::Reserve, Fault::Barrier] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let kept = [("b", Some("1")), ("d", Some("1")), ("e", Some("1")), ("h", Some("1"))];
        store.commit(&small(&store, &["one", "two"], &kept)).unwrap();
        let (head, before) = (store.head(), all(&store));
        *store.disk.fault.lock().unwrap() = Some(fault);
        let failed = [("a", Some("2")), ("b", Some("2")), ("d", None), ("h", None), ("z", Some("2"))];
        let failed = Commit {
            trim_to: Some(2),
            ..small(&store, &["three"], &failed)
        };
        assert!(store.commit(&failed).unwrap_err().is_full());
        assert_eq!(store.head(), head);
        assert!(all(&store) == before);
        *store.disk.fault.lock().unwrap() = None;
        let error = store.commit(&small(&store, &["three"], &[])).unwrap_err();
        assert!(error.is_full(), "only a restart may write again");
        assert!(all(&store) == before);
    }
}

/// The engine may have a part of what was confirmed. All of it is shown, nothing is confirmed any more, and a restart has it.
#[test]
fn a_disk_that_is_full_for_the_engine_takes_nothing_back() {
    for by_the_committer in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let kept = [("b", Some("1")), ("d", Some("1")), ("e", Some("1")), ("h", Some("1"))];
        store.commit(&small(&store, &["one", "two"], &kept)).unwrap();
        store.turn_over(&mut store.lock_writer()).unwrap();
        let changed = [("a", Some("2")), ("b", Some("2")), ("d", None), ("z", Some("2"))];
        store.commit(&small(&store, &["three"], &changed)).unwrap();
        let (head, before) = (store.head(), all(&store));
        *store.disk.fault.lock().unwrap() = Some(Fault::Apply);
        let failed = if by_the_committer {
            for _ in 2..PARTS {
                store.turn_over(&mut store.lock_writer()).unwrap();
            }
            store.turn_over(&mut store.lock_writer())
        } else {
            assert!(store.is_behind());
            store.settle()
        };
        assert!(failed.unwrap_err().is_full());
        *store.disk.fault.lock().unwrap() = None;
        assert!(store.commit(&small(&store, &["four"], &[])).unwrap_err().is_full());
        store.settle().unwrap();
        assert_eq!(store.head(), head);
        assert!(all(&store) == before);
        drop(store);
        // The engine is not closed after a failure, and its own lock stays with it: only another process can open it again. A copy stands for that.
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        assert!(all(&open(copy.path())) == before);
    }
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// While the engine is given one part of the journal, commits and reads go on; a commit that needs that part waits for it.
#[test]
fn commits_go_on_while_the_engine_is_given_what_was_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let text = |n: u32| format!("{n} ").repeat(700);
    /// A test that fails ends too.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        let _done = Done(done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                store.settle().unwrap();
                std::thread::yield_now();
            }
        });
        let mut turns = 0;
        for n in 0..1500 {
            let (key, value) = (format!("l{}", n % 700), text(n));
            store.commit(&small(store, &["event"], &[(&key, Some(&value))])).unwrap();
            if n % 37 == 0 {
                store.turn_over(&mut store.lock_writer()).unwrap();
                turns += 1;
            }
            assert_eq!(store.get(key.as_bytes()).unwrap().unwrap(), value.as_bytes());
        }
        assert!(turns > 30);
    });
    let before = store.scan(b"l", None, 9999).unwrap();
    assert_eq!(before.len(), 700);
    drop(store);
    let store = open(dir.path());
    assert!(store.scan(b"l", None, 9999).unwrap() == before);
    assert_eq!(store.events(1, 9999).unwrap().len(), 1500);
}

/// Who misses an event looks at the head before that is called damage.
#[test]
fn an_event_that_is_let_go_of_is_below_the_head_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.commit(&small(&store, &["one"], &[])).unwrap();
    store.commit(&small(&store, &["two"], &[])).unwrap();
    *store.disk.fault.lock().unwrap() = Some(Fault::Slow);
    let trim = Commit {
        trim_to: Some(2),
        ..small(&store, &[], &[])
    };
    std::thread::scope(|scope| {
        scope.spawn(|| store.commit(&trim).unwrap());
        while store.events(1, 1).unwrap()[0].0 == 1 {}
        assert_eq!(store.head().first_seq, 2);
    });
}

#[test]
fn space_is_reserved_ahead_of_the_log() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(&Directory::open(dir.path(), "master", [1; 16]).unwrap()).unwrap();
    let (log, until) = (std::fs::metadata(store.disk.file()).unwrap(), store.disk.reserve.until());
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever a value is, with the engine, on its way there or in memory, the last word on its key is read.
    #[test]
    fn what_is_where_does_not_show(
        steps in prop::collection::vec((prop::collection::vec((0..400u16, any::<Option<u8>>()), 0..60), 0..5u8, 0..400u16), 1..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let mut model = BTreeMap::new();
        let mut frozen = false;
        for (writes, then, from) in steps {
            let key = |n: u16| format!("{n:03}").into_bytes();
            let body = |byte: u8| [vec![codec::ENVELOPE_FORMAT], vec![byte; 29]].concat();
            for (n, value) in &writes {
                match value {
                    Some(value) => model.insert(key(*n), body(*value)),
                    None => model.remove(&key(*n)),
                };
            }
            disk.put(1, disk::values(writes.iter().map(|(n, value)| (key(*n), value.map(body))).collect()));
            match then {
                0 if !frozen => {
                    disk.freeze();
                    frozen = true;
                }
                1 => {
                    disk.settle().unwrap();
                    frozen = false;
                }
                _ => {}
            }
            let from = key(from);
            prop_assert_eq!(disk.get(&from).unwrap().map(|value| value.to_vec()), model.get(&from).cloned());
            for start in [Bound::Included(&from[..]), Bound::Excluded(&from[..]), Bound::Unbounded] {
                let mut expected = model.range::<[u8], _>((start, Bound::Unbounded));
                let mut limit = 300;
                disk.range(start, &mut |key, value| {
                    assert_eq!(expected.next(), Some((&key.to_vec(), &value.to_vec())));
                    limit -= 1;
                    Ok(if limit == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                }).unwrap();
                prop_assert!(limit == 0 || expected.next().is_none());
            }
        }
    }
}
