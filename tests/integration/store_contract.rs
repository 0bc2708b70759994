//! The contract of `Store`, run by every implementation, and the faults only the simulated one can have on order.

use fedbroker::store::directory::Directory;
use fedbroker::store::sim_store::{Fate, SimDisk};
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{BODY_MAX, COST_MAX, Commit, Error, Head, KEY_MAX, Store, TRIM_MAX};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

/// A place where a store can be opened again and again; the one before must be dropped first.
type Open<'a> = dyn Fn() -> Box<dyn Store> + 'a;

fn each_implementation(suite: impl Fn(&Open<'_>)) {
    let root = tempfile::tempdir().unwrap();
    suite(&|| {
        let directory = Directory::open(root.path(), "master", [1; 16]).unwrap();
        Box::new(SledStore::open(&directory).unwrap())
    });
    let disk = SimDisk::new();
    suite(&|| Box::new(disk.open().unwrap()));
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A commit that fits where the store is now.
fn commit(head: Head, events: &[&str], changes: &[(&str, Option<&str>)]) -> Commit {
    Commit {
        epoch: head.epoch,
        expected: head.next_seq,
        events: events.iter().map(|e| bytes(e)).collect(),
        changes: changes.iter().map(|(k, v)| (bytes(k), v.map(bytes))).collect(),
        trim_to: None,
    }
}

fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let page = store.scan(prefix.as_bytes(), after.map(str::as_bytes), limit).unwrap();
    page.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

#[test]
fn a_new_store_is_empty() {
    each_implementation(|open| {
        let store = open();
        assert_eq!(
            store.head(),
            Head {
                epoch: 1,
                batch: 1,
                first_seq: 1,
                next_seq: 1
            }
        );
        assert_eq!(store.get(b"").unwrap(), None);
        assert_eq!(store.scan(b"", None, 10).unwrap(), []);
        assert_eq!(store.events(1, 10).unwrap(), []);
    });
}

#[test]
fn a_commit_appends_and_changes_and_survives_a_restart() {
    each_implementation(|open| {
        let store = open();
        let head = store
            .commit(&commit(store.head(), &["one", "two"], &[("a", Some("1")), ("b", Some("2"))]))
            .unwrap();
        assert_eq!(
            head,
            Head {
                epoch: 1,
                batch: 2,
                first_seq: 1,
                next_seq: 3
            }
        );
        let head = store
            .commit(&commit(head, &["three"], &[("a", None), ("b", Some("3")), ("absent", None)]))
            .unwrap();
        assert_eq!(store.head(), head);
        let check = |store: &dyn Store| {
            assert_eq!(store.get(b"a").unwrap(), None);
            assert_eq!(store.get(b"b").unwrap(), Some(bytes("3")));
            let all = [(1, bytes("one")), (2, bytes("two")), (3, bytes("three"))];
            assert_eq!(store.events(0, 10).unwrap(), all);
            assert_eq!(store.events(2, 1).unwrap(), all[1..2]);
            assert_eq!(store.events(4, 10).unwrap(), []);
            assert_eq!(store.events(1, 0).unwrap(), []);
        };
        check(&*store);
        drop(store);
        let store = open();
        assert_eq!(
            store.head(),
            Head {
                epoch: 2,
                batch: head.batch + 1,
                first_seq: 1,
                next_seq: 4
            }
        );
        check(&*store);
    });
}

#[test]
fn scans_are_ordered_pages_of_one_prefix() {
    each_implementation(|open| {
        let store = open();
        let names = ["job/2", "job/1", "joc", "jo", "job/", "job/3", "\u{7f}"];
        let changes: Vec<_> = names.iter().map(|name| (*name, Some("x"))).collect();
        store.commit(&commit(store.head(), &["event"], &changes)).unwrap();
        assert_eq!(keys(&*store, "job/", None, 10), ["job/", "job/1", "job/2", "job/3"]);
        assert_eq!(keys(&*store, "job/", None, 2), ["job/", "job/1"]);
        assert_eq!(keys(&*store, "job/", Some("job/1"), 2), ["job/2", "job/3"]);
        assert_eq!(keys(&*store, "job/", Some("job/15"), 9), ["job/2", "job/3"]);
        assert_eq!(
            keys(&*store, "job/", Some("a"), 1),
            ["job/"],
            "a position before the prefix is its start"
        );
        assert_eq!(keys(&*store, "job/", Some("z"), 9), [""; 0]);
        assert_eq!(keys(&*store, "", None, 9).len(), names.len(), "events and the head are not records");
        assert_eq!(keys(&*store, "", None, 0), [""; 0]);
    });
}

#[test]
fn refused_commits_change_nothing() {
    each_implementation(|open| {
        let store = open();
        let head = store.commit(&commit(store.head(), &["one"], &[("a", Some("1"))])).unwrap();
        let good = commit(head, &["two"], &[("a", Some("2"))]);
        let refused = |bad: Commit| {
            let error = store.commit(&bad).unwrap_err();
            assert_eq!(store.head(), head);
            assert_eq!(store.get(b"a").unwrap(), Some(bytes("1")));
            assert_eq!(store.events(1, 9).unwrap().len(), 1);
            error
        };
        let too_large = |bad| assert!(matches!(refused(bad), Error::TooLarge(_)));
        assert!(matches!(
            refused(Commit { epoch: 0, ..good.clone() }),
            Error::Fenced { given: 0, actual: 1 }
        ));
        assert!(matches!(
            refused(Commit {
                expected: 1,
                ..good.clone()
            }),
            Error::Conflict { expected: 1, actual: 2 }
        ));
        too_large(Commit {
            events: vec![vec![0; BODY_MAX + 1]],
            ..good.clone()
        });
        too_large(Commit {
            changes: vec![(bytes("a"), Some(vec![0; BODY_MAX + 1]))],
            ..good.clone()
        });
        too_large(Commit {
            changes: vec![(vec![0; KEY_MAX + 1], None)],
            ..good.clone()
        });
        too_large(Commit {
            events: vec![Vec::new(); COST_MAX / 1024 + 1],
            ..good.clone()
        });
        store.commit(&good).unwrap();
    });
}

#[test]
fn the_largest_commit_is_taken() {
    each_implementation(|open| {
        let store = open();
        let count = COST_MAX / (3 * (BODY_MAX + KEY_MAX) + 1024);
        let key = |i: usize| {
            let mut key = vec![b'k'; KEY_MAX];
            key[..8].copy_from_slice(&i.to_be_bytes());
            key
        };
        for round in 0..3 {
            let changes = (0..count).map(|i| (key(i), Some(vec![round; BODY_MAX]))).collect();
            let Head { epoch, next_seq, .. } = store.head();
            store
                .commit(&Commit {
                    epoch,
                    expected: next_seq,
                    events: Vec::new(),
                    changes,
                    trim_to: None,
                })
                .unwrap();
        }
        drop(store);
        let store = open();
        let page = store.scan(b"", None, usize::MAX).unwrap();
        assert_eq!(page.len(), count);
        assert!(page.iter().all(|(_, value)| *value == [2; BODY_MAX]));
    });
}

#[test]
fn of_two_changes_to_a_key_the_last_counts() {
    each_implementation(|open| {
        let store = open();
        store
            .commit(&commit(
                store.head(),
                &[],
                &[("a", Some("1")), ("b", Some("1")), ("a", Some("2")), ("b", None)],
            ))
            .unwrap();
        drop(store);
        let store = open();
        assert_eq!(store.get(b"a").unwrap(), Some(bytes("2")));
        assert_eq!(store.get(b"b").unwrap(), None);
    });
}

#[test]
fn each_open_raises_the_epoch() {
    each_implementation(|open| {
        for epoch in 1..=3 {
            let store = open();
            assert_eq!(store.head().epoch, epoch);
            let late = Commit {
                epoch: epoch - 1,
                ..commit(store.head(), &["late"], &[])
            };
            assert!(matches!(store.commit(&late), Err(Error::Fenced { .. })));
            store.commit(&commit(store.head(), &["event"], &[])).unwrap();
        }
    });
}

#[test]
fn readers_meanwhile_see_only_whole_durable_values() {
    each_implementation(|open| {
        let store: Arc<dyn Store> = open().into();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..=200u64 {
                    let value = round.to_string();
                    let other = (round % 2 == 0).then_some(value.as_str());
                    store
                        .commit(&commit(store.head(), &[&value], &[("a", Some(&value)), ("b", other)]))
                        .unwrap();
                }
            });
            let mut seen = 0;
            while !writer.is_finished() {
                let value = store
                    .get(b"a")
                    .unwrap()
                    .map_or(0, |v| String::from_utf8(v).unwrap().parse().unwrap());
                // Each round is one commit after the one of the open.
                assert!(store.head().batch > value, "a value was shown before its commit was durable");
                assert!(value >= seen);
                seen = value;
                let before = store.head().batch;
                let there = store.get(b"b").unwrap().is_some();
                if store.head().batch == before {
                    assert_eq!(
                        there,
                        before % 2 == 1 && before > 1,
                        "an absence or presence was shown before it was durable"
                    );
                }
                let events = store.events(seen, 9).unwrap();
                assert!(events.iter().all(|(seq, event)| *event == seq.to_string().into_bytes()));
            }
            writer.join().unwrap();
        });
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Random histories with restarts in between give what a plain map gives.
    #[test]
    fn random_histories_agree_with_a_map(
        rounds in prop::collection::vec(
            (prop::collection::vec((0u8..12, prop::option::of(any::<u16>())), 0..8), 0u8..5, prop::option::of(0u64..80), 0u64..6, 1usize..1500),
            1..25,
        ),
    ) {
        each_implementation(|open| {
            let (mut records, mut events) = (BTreeMap::new(), Vec::new());
            let mut first = 1;
            let mut store = open();
            for (changes, restart, trim_to, count, size) in &rounds {
                let Head { epoch, next_seq, .. } = store.head();
                let changes: Vec<_> = changes.iter().map(|(k, v)| (vec![*k], v.map(|v| v.to_be_bytes().to_vec()))).collect();
                for (key, value) in &changes {
                    match value {
                        Some(value) => records.insert(key.clone(), value.clone()),
                        None => records.remove(key),
                    };
                }
                first = first.max(trim_to.unwrap_or(0).min(next_seq));
                let new = (next_seq..next_seq + count).map(|seq| (seq, seq.to_string().repeat(*size).into_bytes()));
                let new: Vec<_> = new.map(|(seq, mut event)| { event.truncate(*size); (seq, event) }).collect();
                let bodies = new.iter().map(|(_, event)| event.clone()).collect();
                events.extend(new);
                let head = store.commit(&Commit { epoch, expected: next_seq, events: bodies, changes, trim_to: *trim_to }).unwrap();
                assert_eq!((head.first_seq, store.head().first_seq), (first, first));
                if *restart == 0 {
                    drop(store);
                    store = open();
                }
                assert_eq!(store.scan(b"", None, usize::MAX).unwrap(), records.clone().into_iter().collect::<Vec<_>>());
                assert_eq!(store.head().first_seq, first);
                for from in [0, 1, first, first + 1, next_seq] {
                    let expected: Vec<_> = events.iter().filter(|(seq, _)| *seq >= first.max(from)).cloned().collect();
                    assert_eq!(store.events(from, usize::MAX).unwrap(), expected);
                    assert_eq!(store.events(from, 2).unwrap(), expected[..expected.len().min(2)]);
                }
            }
        });
    }
}

#[test]
fn events_are_let_go_of_in_steps_and_never_those_of_the_commit_itself() {
    each_implementation(|open| {
        let store = open();
        let trim = |store: &dyn Store, events: usize, to: u64| {
            let Head { epoch, next_seq, .. } = store.head();
            let events = vec![bytes("event"); events];
            let commit = Commit {
                epoch,
                expected: next_seq,
                events,
                changes: Vec::new(),
                trim_to: Some(to),
            };
            store.commit(&commit).unwrap().first_seq
        };
        assert_eq!(trim(&*store, 1200, 5), 1, "there was nothing yet");
        assert_eq!(trim(&*store, 0, 5), 5);
        assert_eq!(trim(&*store, 0, 3), 5, "it does not come back");
        assert_eq!(trim(&*store, 10, u64::MAX), 5 + TRIM_MAX);
        drop(store);
        let store = open();
        assert_eq!(store.head().first_seq, 5 + TRIM_MAX);
        assert_eq!(store.events(1, 1).unwrap()[0].0, 5 + TRIM_MAX);
        assert_eq!(trim(&*store, 3, u64::MAX), 1211);
        let left: Vec<u64> = store.events(0, 9).unwrap().into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(left, [1211, 1212, 1213]);
        assert_eq!(trim(&*store, 0, u64::MAX), 1214);
        assert_eq!(store.events(0, 9).unwrap(), []);
        drop(store);
        let store = open();
        assert_eq!((store.head().first_seq, store.head().next_seq), (1214, 1214));
        assert_eq!(trim(&*store, 1, u64::MAX), 1214);
        assert_eq!(store.events(0, 9).unwrap().len(), 1);
    });
}

#[test]
fn sim_a_failed_barrier_poisons_and_its_fate_shows_at_the_next_open() {
    for (fate, expected) in [(Fate::Lost, None), (Fate::Kept, Some(bytes("2")))] {
        let disk = SimDisk::new();
        let store = disk.open().unwrap();
        disk.fail_next_barrier(fate);
        assert!(matches!(
            store.commit(&commit(store.head(), &["event"], &[("a", Some("2"))])),
            Err(Error::Io { .. })
        ));
        assert!(matches!(store.get(b"a"), Err(Error::Poisoned)));
        assert!(matches!(store.commit(&commit(store.head(), &[], &[])), Err(Error::Poisoned)));
        let store = disk.open().unwrap();
        assert_eq!(store.get(b"a").unwrap(), expected);
        assert_eq!(store.head().next_seq, 1 + u64::from(expected.is_some()));
    }
}

#[test]
fn sim_a_crash_loses_or_keeps_the_commit_at_its_barrier() {
    for kept in [false, true] {
        let disk = SimDisk::new();
        let store = disk.open().unwrap();
        store.commit(&commit(store.head(), &["one"], &[("a", Some("1"))])).unwrap();
        disk.hold_next_barrier();
        thread::scope(|scope| {
            let held = scope.spawn(|| store.commit(&commit(store.head(), &["two"], &[("a", Some("2"))])));
            disk.wait_for_held();
            let reader = scope.spawn(|| store.get(b"a"));
            assert!(store.get(b"b").unwrap().is_none(), "other keys need not wait");
            if kept {
                disk.keep()
            } else {
                disk.lose()
            }
            assert!(matches!(held.join().unwrap(), Err(Error::Poisoned)));
            assert!(matches!(reader.join().unwrap(), Err(Error::Poisoned)));
        });
        let store = disk.open().unwrap();
        assert_eq!(store.get(b"a").unwrap(), Some(bytes(if kept { "2" } else { "1" })));
        assert_eq!(store.events(1, 9).unwrap().len(), 1 + usize::from(kept));
    }
}

#[test]
fn sim_a_held_commit_is_waited_for() {
    let disk = SimDisk::new();
    let store = disk.open().unwrap();
    disk.hold_next_barrier();
    thread::scope(|scope| {
        let held = scope.spawn(|| store.commit(&commit(store.head(), &["one"], &[("a", Some("1"))])));
        disk.wait_for_held();
        let readers = [
            scope.spawn(|| store.get(b"a").unwrap().is_some()),
            scope.spawn(|| !store.events(1, 1).unwrap().is_empty()),
        ];
        disk.release();
        assert_eq!(held.join().unwrap().unwrap(), store.head());
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    });
}

#[test]
fn sim_a_full_disk_is_told_apart() {
    let disk = SimDisk::new();
    let store = disk.open().unwrap();
    disk.set_full(true);
    assert!(store.commit(&commit(store.head(), &["one"], &[])).unwrap_err().is_full());
    assert!(disk.open().err().unwrap().is_full());
    disk.set_full(false);
    assert!(
        store.commit(&commit(store.head(), &["one"], &[])).unwrap_err().is_full(),
        "only a restart may write again"
    );
    assert_eq!(disk.open().unwrap().head().next_seq, 1);
}

/// `src/store/sled_store.rs` has the same test for the store on disk, `tests/crash/full.rs` one with a disk that is really full.
#[test]
fn sim_a_full_disk_leaves_what_was_durable_readable() {
    for (fate, found) in [(Fate::Lost, "1"), (Fate::Kept, "2")] {
        let disk = SimDisk::new();
        let store = disk.open().unwrap();
        let head = store
            .commit(&commit(store.head(), &["one"], &[("a", Some("1")), ("b", Some("1"))]))
            .unwrap();
        disk.fill_at_next_barrier(fate);
        let failed = commit(head, &["two"], &[("a", Some("2")), ("b", None), ("c", Some("2"))]);
        assert!(store.commit(&failed).unwrap_err().is_full());
        assert_eq!(store.head(), head);
        assert_eq!(store.get(b"a").unwrap(), Some(bytes("1")));
        assert_eq!(keys(&store, "", None, 9), ["a", "b"]);
        assert_eq!(store.events(1, 9).unwrap(), [(1, bytes("one"))]);
        assert!(store.commit(&failed).unwrap_err().is_full());
        assert_eq!(disk.open().unwrap().get(b"a").unwrap(), Some(bytes(found)), "a restart finds out");
    }
}

#[test]
fn sim_a_second_writer_fences_the_first() {
    let disk = SimDisk::new();
    let first = disk.open().unwrap();
    let second = disk.open().unwrap();
    assert!(matches!(
        first.commit(&commit(first.head(), &["late"], &[])),
        Err(Error::Fenced { given: 1, actual: 2 })
    ));
    second.commit(&commit(second.head(), &["one"], &[])).unwrap();
    assert_eq!(first.events(1, 9).unwrap().len(), 1);
}
