//! Kill a committing process again and again: the store must hold exactly the batches 1 to k, with confirmed <= k <= begun.

use crate::settler::Settler;
use crate::support::beginning;
use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Commit, Store};
use rand::RngExt;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const CHILD_DIR: &str = "FEDBROKER_TEST_DIR";
const ROUNDS: u32 = 20;
const EVENTS_PER_BATCH: u64 = 3;
type Change = (Vec<u8>, Option<Vec<u8>>);

fn open(dir: &Path) -> SledStore {
    SledStore::open(&Directory::open(dir, "master", [9; 16]).unwrap()).unwrap()
}

fn event(seq: u64) -> Vec<u8> {
    format!("event {seq} ").repeat(1 + seq as usize % 40).into_bytes()
}

/// What batch `k` (from 1) changes: new records, overwritten ones, deleted ones. Some batches are large.
fn changes(k: u64) -> Vec<Change> {
    let new = if k.is_multiple_of(17) { 200 } else { k % 5 };
    let fresh = (0..new).map(|i| (format!("new/{k:08}/{i:03}"), Some(vec![k as u8; 200 + (k as usize * 13) % 1500])));
    let over = (0..6).map(|i| (format!("over/{}", (k * 7 + i) % 64), Some(k.to_be_bytes().to_vec())));
    let gone = (0..5).map(|i| (format!("new/{:08}/{i:03}", k.saturating_sub(4)), None));
    fresh
        .chain(over)
        .chain(gone)
        .map(|(key, value)| (key.into_bytes(), value))
        .collect()
}

fn batch_of(store: &SledStore) -> u64 {
    let appended = store.head().next_seq - 1;
    assert_eq!(appended % EVENTS_PER_BATCH, 0, "a part of a batch is there");
    appended / EVENTS_PER_BATCH
}

#[test]
#[ignore = "the process that is killed by the test below"]
fn child_that_commits() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = Arc::new(open(Path::new(&dir)));
    let _settler = Settler::start(store.clone());
    let mut out = std::io::stdout();
    // The first word of the test harness is on the line already.
    writeln!(out).unwrap();
    for k in batch_of(&store) + 1.. {
        let head = store.head();
        let events = (0..EVENTS_PER_BATCH).map(|i| event(head.next_seq + i)).collect();
        writeln!(out, "begun {k}").and_then(|()| out.flush()).unwrap();
        store
            .commit(&Commit {
                epoch: head.epoch,
                expected: head.next_seq,
                events,
                changes: changes(k),
                trim_to: None,
            })
            .unwrap();
        // Fails once the parent is gone, so the child never outlives it for long.
        writeln!(out, "confirmed {k}").and_then(|()| out.flush()).unwrap();
    }
}

/// Run the child, kill it at a random moment; gives the last batch it confirmed and the last it began.
fn run_and_kill(dir: &Path, confirmed: u64) -> (u64, u64) {
    let mut random = rand::rng();
    let alone = beginning();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["store_kill::child_that_commits", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(alone);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut last = (confirmed, confirmed);
    let mut note = |line: &str| match line.split_once(' ') {
        Some(("begun", k)) => last.1 = k.parse().unwrap(),
        Some(("confirmed", k)) => last.0 = k.parse().unwrap(),
        _ => {}
    };
    // Some die while they open the store, the others after a random number of lines.
    let read = if random.random_ratio(1, 4) {
        0
    } else {
        random.random_range(1..150)
    };
    for line in lines.by_ref().take(read) {
        note(&line);
    }
    // Not to wait for anything: the kill shall fall anywhere between two lines.
    thread::sleep(Duration::from_micros(
        random.random_range(0..if read == 0 { 60_000 } else { 3_000 }),
    ));
    child.kill().unwrap();
    child.wait().unwrap();
    lines.for_each(|line| note(&line));
    last
}

/// The records after batches 1 to `k`, carried on from the last call.
struct Model {
    k: u64,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    fn advance(&mut self, k: u64) {
        for (key, value) in (self.k + 1..=k).flat_map(changes) {
            match value {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        self.k = k;
    }
}

#[test]
fn a_killed_store_holds_what_it_confirmed_and_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model {
        k: 0,
        records: BTreeMap::new(),
    };
    for round in 0..ROUNDS {
        let (confirmed, begun) = run_and_kill(dir.path(), model.k);
        let _alone = beginning();
        let store = open(dir.path());
        let k = batch_of(&store);
        assert!(
            confirmed <= k && k <= begun.max(confirmed),
            "round {round}: {confirmed} <= {k} <= {begun}"
        );
        model.advance(k);
        let expected: Vec<_> = model.records.clone().into_iter().collect();
        assert!(
            store.scan(b"", None, usize::MAX).unwrap() == expected,
            "round {round}: the records are not those of batch {k}"
        );
        let events = store.events(1, usize::MAX).unwrap();
        assert_eq!(events.len() as u64, k * EVENTS_PER_BATCH);
        assert!(
            events.iter().all(|(seq, bytes)| *bytes == event(*seq)),
            "round {round}: the events are not those of batch {k}"
        );
    }
    assert!(model.k > u64::from(ROUNDS), "hardly anything was committed");
}
