//! The store on disk: what a restart, another process, another release and damage do to it.

use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Commit, Error, Page, Seq, Store};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const ID: [u8; 16] = [5; 16];
/// Where the first log of a directory lives.
const STORE: &str = "log-1/store";
const LOG: &str = "log-1/store/db";
const CHILD_DIR: &str = "FEDBROKER_TEST_DIR";

fn open(root: &Path) -> Result<SledStore, Error> {
    SledStore::open(&Directory::open(root, "master", ID)?)
}

fn commit(store: &SledStore, events: Vec<Vec<u8>>, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
    let head = store.head();
    store
        .commit(&Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            events,
            changes,
            trim_to: None,
        })
        .unwrap();
}

/// Some batches with new, changed and deleted records of different sizes; the log takes more than one segment.
fn fill(root: &Path) {
    let store = open(root).unwrap();
    for round in 0..60u32 {
        let record = |i: u32| {
            (
                format!("record/{i:05}").into_bytes(),
                Some(vec![round as u8; 1000 + (i as usize * 37) % 3000]),
            )
        };
        let mut changes: Vec<_> = (round * 24..round * 24 + 24).map(record).collect();
        changes.extend((0..4).map(|i| (format!("index/{i}").into_bytes(), Some(round.to_be_bytes().to_vec()))));
        changes.push((format!("record/{:05}", round * 12).into_bytes(), None));
        commit(&store, vec![vec![round as u8; 200]; 3], changes);
    }
}

type Everything = (Page, Vec<(Seq, Vec<u8>)>);

fn everything(store: &SledStore) -> Result<Everything, Error> {
    Ok((store.scan(b"", None, usize::MAX)?, store.events(1, usize::MAX)?))
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Numbers that look random and are the same in each run.
fn scatter(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn flipped_bits_never_give_a_wrong_answer() {
    let root = tempfile::tempdir().unwrap();
    let good = root.path().join("good");
    fill(&good);
    let truth = everything(&open(&good).unwrap()).unwrap();
    let log_len = fs::metadata(good.join(LOG)).unwrap().len();
    let (mut seed, mut refused) = (1, 0);
    for trial in 0..60 {
        let dir = root.path().join(format!("trial{trial}"));
        copy_dir(&good, &dir);
        let log = OpenOptions::new().read(true).write(true).open(dir.join(LOG)).unwrap();
        for _ in 0..if trial % 5 == 4 { 16 } else { 1 } {
            let (at, bit) = (scatter(&mut seed) % log_len, scatter(&mut seed) % 8);
            let mut byte = [0];
            log.read_exact_at(&mut byte, at).unwrap();
            log.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        }
        match open(&dir).and_then(|store| everything(&store)) {
            Ok(found) => assert!(found == truth, "trial {trial}: a wrong answer"),
            Err(Error::Damaged { .. } | Error::Io { .. } | Error::Engine(_)) => refused += 1,
            Err(other) => panic!("trial {trial}: {other}"),
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    assert!(refused > 0, "no flip hit anything");
}

#[test]
fn a_store_that_went_back_in_time_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    fill(&live);
    copy_dir(&live.join("log-1"), &root.path().join("old-log"));
    copy_dir(&live.join(STORE), &root.path().join("old"));
    commit(&open(&live).unwrap(), vec![b"newer".to_vec()], Vec::new());
    fs::remove_dir_all(live.join(STORE)).unwrap();
    let refusal = |what: &str| match open(&live) {
        Err(Error::Damaged { what: found, .. }) => assert!(found.contains(what), "{found}"),
        other => panic!("opened: {:?}", other.map(|store| store.head())),
    };
    refusal("it is missing");
    let inspected = Directory::inspect(&live).unwrap();
    assert!(SledStore::rebuild_high_water(&inspected).is_err());
    drop(inspected);
    fs::remove_dir_all(live.join("log-1")).unwrap();
    copy_dir(&root.path().join("old-log"), &live.join("log-1"));
    refusal("was confirmed");
    // What is written anew must not be what tells of a loss.
    let inspected = Directory::inspect(&live).unwrap();
    let refused = SledStore::rebuild_high_water(&inspected);
    assert!(
        matches!(&refused, Err(Error::Damaged { what, .. }) if what.contains("was confirmed")),
        "{refused:?}"
    );
    drop(inspected);
    fs::remove_dir_all(live.join(STORE)).unwrap();
    copy_dir(&root.path().join("old"), &live.join(STORE));
    refusal("was confirmed");
    refusal("was confirmed");
    fs::remove_dir_all(live.join(STORE)).unwrap();
    fs::create_dir(live.join(STORE)).unwrap();
    refusal("snap.*, is missing");
}

#[test]
fn leftovers_of_a_crash_are_cleared_and_what_must_not_be_there_is_refused() {
    let root = tempfile::tempdir().unwrap();
    // A crash in the middle of making the store.
    drop(Directory::open(root.path(), "master", ID).unwrap());
    fs::create_dir_all(root.path().join("log-1.new/store")).unwrap();
    fs::write(root.path().join("log-1.new/store/conf"), "half").unwrap();
    fill(root.path());
    let truth = everything(&open(root.path()).unwrap()).unwrap();
    // A crash, or a full disk, while the engine was opening.
    let store = root.path().join(STORE);
    fs::write(store.join("snap.FFFFFFFFFFFFFFFF.generating"), "half").unwrap();
    assert!(everything(&open(root.path()).unwrap()).unwrap() == truth);
    let blob = store.join("blobs/12345");
    fs::write(&blob, "x").unwrap();
    assert!(matches!(open(root.path()), Err(Error::Damaged { file, .. }) if file == blob));
    fs::remove_file(&blob).unwrap();
    assert!(everything(&open(root.path()).unwrap()).unwrap() == truth);
    let index = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("snap."));
    let (index, log) = (index.unwrap(), fs::read(store.join("db")).unwrap());
    fs::rename(&index, root.path().join("work/kept")).unwrap();
    assert!(
        matches!(open(root.path()), Err(Error::Damaged { .. })),
        "the engine would empty the log"
    );
    assert!(fs::read(store.join("db")).unwrap() == log);
    fs::rename(root.path().join("work/kept"), &index).unwrap();
    // A restore or a migration that was not finished, or not tidied up after.
    for name in ["log-2.new", "log-7", "store"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    assert!(everything(&open(root.path()).unwrap()).unwrap() == truth);
    let left = fs::read_dir(root.path()).unwrap().count();
    assert_eq!(left, ["FORMAT", "LOCK", "high-water-1", "log-1", "payloads", "work"].len());
}

#[test]
fn a_store_without_its_witness_is_refused_until_the_operator_says_so() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let truth = everything(&open(root.path()).unwrap()).unwrap();
    let high_water = root.path().join("high-water-1");
    let log = fs::read(root.path().join(LOG)).unwrap();
    for spoil in [
        &|| fs::remove_file(&high_water).unwrap() as (),
        &|| fs::write(&high_water, "").unwrap(),
        &|| fs::write(&high_water, [0; 8192]).unwrap(),
    ] as [&dyn Fn(); 3]
    {
        spoil();
        assert!(matches!(open(root.path()), Err(Error::Damaged { file, .. }) if file == high_water));
        assert!(fs::read(root.path().join(LOG)).unwrap() == log, "the look has changed the log");
    }
    let directory = Directory::inspect(root.path()).unwrap();
    SledStore::rebuild_high_water(&directory).unwrap();
    drop(directory);
    assert!(everything(&open(root.path()).unwrap()).unwrap() == truth);
}

#[test]
fn the_engines_own_files_are_named_when_they_are_damaged() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    let store = root.path().join(STORE);
    let index = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("snap."));
    for file in [index.unwrap(), store.join("conf")] {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        for spoilt in [&bad[..], &good[..good.len() / 2], b""] {
            fs::write(&file, spoilt).unwrap();
            assert!(matches!(open(root.path()), Err(Error::Damaged { file: named, .. }) if named == file));
        }
        fs::write(&file, good).unwrap();
    }
    open(root.path()).unwrap();
}

#[test]
fn a_store_whose_first_log_segment_is_all_dead_opens_again() {
    let root = tempfile::tempdir().unwrap();
    // Few live bytes and many changes. In between the second segment is the newest, the first one is dropped at an open, and the
    // second still refers to it.
    for round in 0..12u32 {
        let store = open(root.path()).unwrap();
        let records = store.scan(b"", None, usize::MAX).unwrap();
        assert!(records.iter().all(|(_, value)| *value == [round as u8; 3000]));
        assert_eq!(records.len(), if round == 0 { 0 } else { 300 });
        let change = |i: u32| (format!("key/{i}").into_bytes(), Some(vec![round as u8 + 1; 3000]));
        commit(&store, Vec::new(), (0..300).map(change).collect());
    }
    assert!(
        fs::metadata(root.path().join(LOG)).unwrap().len() > 8 * 1024 * 1024,
        "the second segment was not reached"
    );
}

#[test]
fn other_roles_and_newer_formats_are_refused_before_the_store_is_touched() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let before = fs::metadata(root.path().join(LOG)).unwrap().modified().unwrap();
    assert!(matches!(
        Directory::open(root.path(), "coordinator", ID),
        Err(Error::WrongDirectory { .. })
    ));
    fs::write(root.path().join("FORMAT"), "fedbroker data directory\nformat 7\nrole master\n").unwrap();
    let error = open(root.path()).err().unwrap();
    assert!(matches!(error, Error::NewerFormat { found: 7, known: 3, .. }));
    assert!(error.to_string().contains("run the release that wrote it"));
    assert_eq!(fs::metadata(root.path().join(LOG)).unwrap().modified().unwrap(), before);
}

#[test]
fn the_lock_lives_as_long_as_the_store() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Held { .. })));
    drop(store);
    for _ in 0..5 {
        open(root.path()).unwrap();
    }
}

/// A process that is killed when the test ends, however it ends.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_process_keeps_its_lock_and_a_killed_one_frees_it() {
    let root = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["store_sled::child_that_holds_a_directory", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, root.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut holder = Holder(child);
    let mut lines = BufReader::new(holder.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "holding"), "the child ended early");
    let pid = holder.0.id();
    let held = || match open(root.path()) {
        Err(Error::Held { holder, .. }) => assert!(holder.starts_with(&format!("process {pid} (master)")), "{holder}"),
        other => panic!("not held: {:?}", other.map(|store| store.head())),
    };
    held();
    kill_process(Pid::from_child(&holder.0), Signal::STOP).unwrap();
    held();
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    assert_eq!(open(root.path()).unwrap().events(1, 9).unwrap(), [(1, b"from the child".to_vec())]);
}

#[test]
#[ignore = "the other process of the test above"]
fn child_that_holds_a_directory() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = open(Path::new(&dir)).unwrap();
    commit(&store, vec![b"from the child".to_vec()], Vec::new());
    let mut out = std::io::stdout();
    out.write_all(b"\nholding\n").and_then(|()| out.flush()).unwrap();
    // Until it is killed, or the parent is gone and the pipe ends.
    let _ = std::io::stdin().read_line(&mut String::new());
}
