//! Power cuts between and within what the engine is given, and readers beside it.

use super::super::group;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const RECORDS: u64 = 6000;

fn key(n: u64) -> Vec<u8> {
    format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

/// What a power cut may leave of the file when it was synced as `before` and is now `after`: all of it but one segment.
fn torn(before: &[u8], after: &[u8]) -> Vec<Vec<u8>> {
    let segments = 0..after.len().div_ceil(SEGMENT);
    let span = |n: usize, of: &[u8]| (n * SEGMENT).min(of.len())..((n + 1) * SEGMENT).min(of.len());
    let changed = segments.filter(|n| before[span(*n, before)] != after[span(*n, after)]);
    let without = changed.map(|n| {
        let mut left = after.to_vec();
        left[span(n, after)].fill(0);
        left[span(n, before)].copy_from_slice(&before[span(n, before)]);
        left
    });
    without.collect()
}

fn missing(dir: &Path, db: &[u8]) -> Result<u64, Error> {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|file| file.path().is_file()) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    fs::write(copy.path().join("db"), db).unwrap();
    let disk = Disk::open(copy.path())?;
    let mut missing = 0;
    for n in 0..RECORDS {
        missing += u64::from(disk.get(&key(n))?.is_none());
    }
    Ok(missing)
}

/// A small value in each page costs little by our estimate, and then the engine splits the pages, or writes all of them anew at once.
#[test]
fn a_power_cut_while_many_pages_are_written_anew_takes_nothing_older() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    for n in 0..RECORDS / 400 {
        let records = n * 400..n * 400 + 400;
        disk.commit(records.map(|n| (key(n), Some(vec![1; 4000]))).collect()).unwrap();
    }
    let keys: BTreeSet<_> = (0..RECORDS).map(key).collect();
    let (file, cuts) = (dir.path().join("db"), Arc::new(Mutex::new(Vec::new())));
    let (seen, mut before) = (cuts.clone(), fs::read(&file).unwrap());
    let of = dir.path().to_owned();
    *disk.cut.lock().unwrap() = Some(Box::new(move || {
        let after = fs::read(&file).unwrap();
        for left in torn(&before, &after) {
            seen.lock().unwrap().push(missing(&of, &left).map_err(|error| error.to_string()));
        }
        before = after;
    }));
    let small = keys.iter().step_by(8).map(|key| ([key, &b"x"[..]].concat(), Some(vec![1; 9])));
    disk.put(1, values(small.collect()));
    assert!(disk.recent.cost() < COST_MAX / 4);
    disk.freeze();
    disk.settle().unwrap();
    assert_eq!(disk.synced.load(Ordering::Relaxed), disk.written());
    let cuts = cuts.lock().unwrap();
    assert!(cuts.len() >= 3, "{cuts:?}");
    assert!(cuts.iter().all(|cut| *cut == Ok(0)), "{cuts:?}");
}

/// What the engine has, by a walk and key by key.
fn engine_has(disk: &Disk) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = Vec::new();
    disk.engine_range((Bound::Unbounded, None), &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert!(found.is_sorted_by(|(a, _), (b, _)| a < b), "a key comes twice, or not in order");
    for (key, value) in &found {
        assert_eq!(disk.look(key).unwrap().as_deref(), Some(value.as_slice()), "{}", key.escape_ascii());
    }
    found.into_iter().collect()
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![Just("rd"), Just("rd"), Just("rl"), Just("e"), Just("h")];
    (kinds, 0..150u32).prop_map(|(kind, n)| {
        if kind == "h" {
            b"h".to_vec()
        } else {
            format!("{kind}{n}").into_bytes()
        }
    })
}

/// Some of the keys, or all of a span but for the changes to others.
fn writes() -> impl Strategy<Value = Writes> {
    let span = (prop_oneof![Just("rd"), Just("rl"), Just("e")], 0..150u32, 1..150u32);
    let span = prop::option::of(span).prop_map(|span| {
        let keys = |(kind, from, len)| (from..from + len).map(move |n| format!("{kind}{n:03}").into_bytes());
        span.into_iter().flat_map(keys).map(|key| (key, None)).collect::<Writes>()
    });
    (span, some_writes()).prop_map(|(span, some)| span.into_iter().chain(some).collect::<BTreeMap<_, _>>().into_iter().collect())
}

fn some_writes() -> impl Strategy<Value = Writes> {
    let value = prop_oneof![1..40usize, 400..900usize, 4096..=4096usize].prop_map(|len| vec![1; len]);
    // Few of them may leave a group as it is that gave keys away.
    let len = prop_oneof![Just(0..3usize), Just(0..80)];
    len.prop_flat_map(move |len| prop::collection::vec((keys(), prop::option::weighted(0.8, value.clone())), len))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The journal has what is being given, and nothing else: what is not in it must be there at every moment, also where neighbours move.
    #[test]
    fn a_table_that_is_given_in_part_takes_nothing_else(rounds in prop::collection::vec((writes(), 0..30usize, 0..30usize), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (nth, (mut writes, first, second)) in rounds.into_iter().enumerate() {
            // Values of one length with other bytes.
            writes.iter_mut().filter_map(|(_, value)| value.as_mut()).for_each(|value| value.iter_mut().skip(1).for_each(|byte| *byte = nth as u8));
            disk.put(nth as u64, values(writes.clone()));
            disk.freeze();
            let table = disk.recent.frozen();
            for cut in [first, second] {
                *disk.writes_left.lock().unwrap() = Some(cut);
                disk.apply(&table).unwrap();
                let mut found = engine_has(&disk);
                found.retain(|key, _| !table.contains_key(key));
                let others: BTreeMap<_, _> = all.iter().filter(|(key, _)| !table.contains_key(*key)).map(|(k, v)| (k.clone(), v.clone())).collect();
                prop_assert_eq!(found, others);
            }
            *disk.writes_left.lock().unwrap() = None;
            disk.settle().unwrap();
            for (key, value) in writes {
                match value {
                    Some(value) => drop(all.insert(key, value)),
                    None => drop(all.remove(&key)),
                }
            }
            prop_assert_eq!(&engine_has(&disk), &all);
            for from in all.keys().step_by(7) {
                let mut next = None;
                disk.range(Bound::Excluded(from), &mut |key, _| {
                    next = Some(key.to_vec());
                    Ok(ControlFlow::Break(()))
                }).unwrap();
                let wanted = all.range::<[u8], _>((Bound::Excluded(from.as_slice()), Bound::Unbounded)).next();
                prop_assert_eq!(next.as_ref(), wanted.map(|(key, _)| key));
            }
        }
    }
}

/// The round that is given again does not come to the group that had given a key away.
#[test]
fn what_a_group_gave_away_stays_gone_with_who_got_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    let some = |key: &str| (key.as_bytes().to_vec(), Some(vec![1; 500]));
    disk.commit(["rd0", "rd1", "rd8", "rd9"].map(some).into()).unwrap();
    disk.put(2, values(vec![some("rd85")]));
    disk.freeze();
    *disk.writes_left.lock().unwrap() = Some(1);
    disk.apply(&disk.recent.frozen()).unwrap();
    *disk.writes_left.lock().unwrap() = None;
    disk.settle().unwrap();
    let (_, first) = disk.group(b"rd0").unwrap().unwrap();
    assert_eq!(group::last(b"rd0", &first), Ok(Some(b"rd9".to_vec())));
    assert_eq!(engine_has(&disk).len(), 5);
    disk.commit(vec![(b"rd9".to_vec(), None)]).unwrap();
    disk.put(4, values(vec![(b"rd85".to_vec(), None)]));
    disk.freeze();
    for writes in [Some(1), None] {
        *disk.writes_left.lock().unwrap() = writes;
        disk.apply(&disk.recent.frozen()).unwrap();
        let found = engine_has(&disk);
        assert!(
            ["rd0", "rd1", "rd8"].iter().all(|key| found.contains_key(key.as_bytes())),
            "{found:?}"
        );
        assert!(!found.contains_key(&b"rd9"[..]), "{writes:?}");
    }
    assert_eq!(engine_has(&disk).len(), 3);
}

#[test]
fn a_walk_goes_on_while_groups_before_it_go() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    let key = |n: u32| format!("rd{n:03}").into_bytes();
    disk.commit((0..400).map(|n| (key(n), Some(vec![1; 500]))).collect()).unwrap();
    let mut seen = Vec::new();
    disk.engine_range((Bound::Unbounded, None), &mut |key_seen, _| {
        if let 3 | 50 | 210 = seen.len() {
            let from = u32::try_from(seen.len()).unwrap();
            let gone = (from + 100..from + 120).chain(0..from - 1);
            disk.commit(gone.map(|n| (key(n), None)).collect()).unwrap();
        }
        seen.push(key_seen.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert!(seen.is_sorted_by(|a, b| a < b), "a key comes twice, or not in order");
    assert!(engine_has(&disk).keys().all(|key| seen.binary_search(key).is_ok()));
    assert!(disk.removed.load(Ordering::SeqCst) > 3);
}

/// Keys that stay as they are move to other groups all the time.
#[test]
fn a_key_is_found_while_it_moves() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    let key = |n: u32| format!("rd{n:06}").into_bytes();
    let stay: Vec<_> = (0..40).map(|n| key(n * 1000)).collect();
    disk.commit(stay.iter().map(|key| (key.clone(), Some(vec![1; 300]))).collect())
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                for key in &stay {
                    assert!(disk.look(key).unwrap().is_some(), "{}", key.escape_ascii());
                    looks += 1;
                }
            }
            looks
        });
        for n in 1..400 {
            disk.commit((0..40).map(|of| (key(of * 1000 + (n * 7) % 999), Some(vec![1; 300]))).collect())
                .unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}
