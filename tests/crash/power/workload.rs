//! What the recorded process does, and what a store must hold after it.
//!
//! Called by `power` and by the process itself. Batches follow from seed and number alone, so that both sides know them.

use fedbroker::machine::content::PayloadRef;
use fedbroker::store::directory::Directory;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Commit, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// One whose values are no more than bytes to the store and to a migration.
pub const ROLE: &str = "coordinator";
const EVENTS_PER_BATCH: u64 = 3;
/// Fewer than those of the batches between two that let go of old ones, so that these are from any of them.
const EVENTS_KEPT: u64 = 10;
const PAYLOAD_MAX: u64 = 1 << 20;
const PAYLOAD_SLOTS: u64 = 12;
const PAYLOAD_PREFIX: &[u8] = b"payload/";
/// Records that the large batches overwrite again and again, so that segments of the engine's log become free.
const BULK_RECORDS: u64 = 500;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// One batch: what happens to the records, and to the contents behind some of them.
pub struct Batch {
    events: Vec<Vec<u8>>,
    /// `None` deletes.
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A series of batches.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub seed: u64,
    /// Every third batch is large, and every fifth lets go of old events.
    pub bulk: bool,
}

impl Workload {
    fn trims(self, k: u64) -> Option<u64> {
        (self.bulk && k.is_multiple_of(5)).then(|| (k * EVENTS_PER_BATCH).saturating_sub(EVENTS_KEPT))
    }

    /// The first event after batch `k`.
    fn first(self, k: u64) -> u64 {
        (1..=k).filter_map(|k| self.trims(k)).max().unwrap_or(1).max(1)
    }

    fn random(self, batch: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(batch))
    }

    fn batch(self, k: u64) -> Batch {
        let mut random = self.random(k);
        let mut changes = BTreeMap::new();
        for i in 0..random.random_range(0..8) {
            changes.insert(format!("new/{k:06}/{i}"), Some(text(&mut random, 20..1500)));
        }
        for _ in 0..6 {
            changes.insert(format!("over/{}", random.random_range(0..40)), Some(text(&mut random, 1..200)));
        }
        for i in 0..5 {
            changes.insert(format!("new/{:06}/{i}", k.saturating_sub(4)), None);
        }
        if self.bulk && k.is_multiple_of(3) {
            for i in 0..BULK_RECORDS {
                changes.insert(format!("bulk/{i}"), Some(text(&mut random, 800..3900)));
            }
        }
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = changes.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
        let mut contents = BTreeMap::new();
        for _ in 0..random.random_range(0..3) {
            let key = [PAYLOAD_PREFIX, format!("{}", random.random_range(0..PAYLOAD_SLOTS)).as_bytes()].concat();
            if random.random_ratio(1, 4) {
                changes.insert(key.clone(), None);
                contents.remove(&key);
            } else {
                // Two records may come to hold the same content.
                let version = random.random_range(k.saturating_sub(3)..=k);
                let content = text(&mut self.random(version << 32), 600..30_000);
                changes.insert(key.clone(), Some(encode(&reference(&content))));
                contents.insert(key, content);
            }
        }
        // They begin like those of a role without threads, so that they can be carried over from a version that had none.
        let event = |i| [b"\0", format!("event {i} of {k}").repeat(random.random_range(1..60)).as_bytes()].concat();
        Batch {
            events: (0..EVENTS_PER_BATCH).map(event).collect(),
            changes,
            contents,
        }
    }
}

/// Letters, each one character in a recording.
fn text(random: &mut StdRng, length: std::ops::Range<usize>) -> Vec<u8> {
    let length = random.random_range(length);
    let word: Vec<u8> = (0..24).map(|_| random.random_range(b'a'..=b'z')).collect();
    word.into_iter().cycle().take(length).collect()
}

fn reference(content: &[u8]) -> PayloadRef {
    use sha2::{Digest, Sha256};
    PayloadRef {
        hash: Sha256::digest(content).into(),
        len: content.len() as u64,
    }
}

fn encode(payload: &PayloadRef) -> Vec<u8> {
    [&payload.hash[..], &payload.len.to_be_bytes()].concat()
}

fn decode(record: &[u8]) -> PayloadRef {
    let (hash, len) = record.split_first_chunk().unwrap();
    PayloadRef {
        hash: *hash,
        len: u64::from_be_bytes(len.try_into().unwrap()),
    }
}

/// A directory that is open the way a role opens it.
pub struct Opened {
    pub store: Arc<SledStore>,
    payloads: Payloads,
    /// Batches in it.
    pub batches: u64,
}

impl Opened {
    pub fn open(dir: &Path) -> Result<Opened, String> {
        let directory = Directory::open(dir, ROLE, [9; 16]).map_err(|error| format!("directory: {error}"))?;
        let store = Arc::new(SledStore::open(&directory).map_err(|error| format!("store: {error}"))?);
        let appended = store.head().next_seq - 1;
        if appended % EVENTS_PER_BATCH != 0 {
            return Err(format!("a part of a batch is there: {appended} events"));
        }
        let records = store
            .scan(PAYLOAD_PREFIX, None, usize::MAX)
            .map_err(|error| format!("scan: {error}"))?;
        let payloads = Payloads::open(&directory.payload_dir(), PAYLOAD_MAX).map_err(|error| format!("payloads: {error}"))?;
        let seeded = payloads.seed(records.iter().map(|(_, record)| decode(record)));
        let seeded = seeded.map_err(|error| format!("payloads: {error}"))?;
        if !seeded.missing.is_empty() {
            return Err(format!("payloads are missing: {:?}", seeded.missing));
        }
        let batches = appended / EVENTS_PER_BATCH;
        Ok(Opened { store, payloads, batches })
    }

    /// Commit the next batch the way the engine does: contents first, then the batch, then the counts. `committed` comes between the
    /// last two.
    pub fn commit(&mut self, workload: Workload, committed: impl FnOnce()) -> Result<(), String> {
        let Batch { events, changes, contents } = workload.batch(self.batches + 1);
        let head = self.store.head();
        let pins: Result<Vec<_>, _> = contents.values().map(|content| self.payloads.put(content)).collect();
        let pins = pins.map_err(|error| format!("put: {error}"))?;
        let touched = changes.iter().filter(|(key, _)| key.starts_with(PAYLOAD_PREFIX));
        let (mut held, mut released) = (Vec::new(), Vec::new());
        for (key, value) in touched {
            held.extend(value.as_deref().map(decode));
            released.extend(self.store.get(key).map_err(|error| format!("get: {error}"))?.as_deref().map(decode));
        }
        let trim_to = workload.trims(self.batches + 1);
        let commit = Commit {
            epoch: head.epoch,
            expected: head.next_seq,
            events,
            changes: changes.into_iter().collect(),
            trim_to,
        };
        self.store.commit(&commit).map_err(|error| format!("commit: {error}"))?;
        self.batches += 1;
        committed();
        self.payloads.settle(&held, &released);
        drop(pins);
        Ok(())
    }

    /// Read everything; `Err` says what is other than it should be.
    fn compare(&self, oracle: &Oracle) -> Result<(), String> {
        let k = self.batches;
        let expected = oracle
            .after
            .get(k as usize)
            .ok_or_else(|| format!("batch {k} was never thought of"))?;
        let records = self.store.scan(b"", None, usize::MAX).map_err(|error| format!("scan: {error}"))?;
        if !records.iter().map(|(key, value)| (key, value)).eq(expected.iter()) {
            return Err(format!("the records are not those of batch {k}"));
        }
        let events = self.store.events(1, usize::MAX).map_err(|error| format!("events: {error}"))?;
        let first = oracle.workload.first(k);
        let expected_events = &oracle.events[first as usize - 1..(k * EVENTS_PER_BATCH) as usize];
        if self.store.head().first_seq != first || !events.iter().map(|(_, event)| event).eq(expected_events) {
            return Err(format!("the events are not those of batch {k}"));
        }
        let mut held = expected.iter().filter(|(key, _)| key.starts_with(PAYLOAD_PREFIX));
        held.try_for_each(|(key, record)| self.read_payload(key, record))
    }

    /// Read what the last batch has changed.
    fn compare_last(&self, oracle: &Oracle) -> Result<(), String> {
        let k = self.batches;
        let Batch { events, changes, .. } = oracle.workload.batch(k);
        for (key, value) in changes {
            let found = self.store.get(&key).map_err(|error| format!("get: {error}"))?;
            if found != value {
                return Err(format!("{} is not that of batch {k}", key.escape_ascii()));
            }
            if let Some(record) = value.filter(|_| key.starts_with(PAYLOAD_PREFIX)) {
                self.read_payload(&key, &record)?;
            }
        }
        let first = (k - 1) * EVENTS_PER_BATCH + 1;
        let found = self.store.events(first, usize::MAX).map_err(|error| format!("events: {error}"))?;
        if !found.into_iter().eq((first..).zip(events)) {
            return Err(format!("the last events are not those of batch {k}"));
        }
        Ok(())
    }

    /// Whole: the reader checks the hash, which is in the record.
    fn read_payload(&self, key: &[u8], record: &[u8]) -> Result<(), String> {
        let read = self.payloads.get(&decode(record));
        read.map(drop).map_err(|error| format!("{}: {error}", key.escape_ascii()))
    }
}

/// What is there after each batch.
pub struct Oracle {
    workload: Workload,
    after: Vec<Records>,
    events: Vec<Vec<u8>>,
}

impl Oracle {
    pub fn new(workload: Workload, batches: u64) -> Oracle {
        let mut oracle = Oracle {
            workload,
            after: vec![Records::new()],
            events: Vec::new(),
        };
        for k in 1..=batches {
            let Batch { events, changes, .. } = workload.batch(k);
            let mut records = oracle.after[k as usize - 1].clone();
            for (key, value) in changes {
                match value {
                    Some(value) => records.insert(key, value),
                    None => records.remove(&key),
                };
            }
            oracle.after.push(records);
            oracle.events.extend(events);
        }
        oracle
    }

    /// Whether the directory holds exactly the batches 1 to k with `least` <= k <= `most`, and goes on from there. With `reopen`, what was
    /// added is looked at by another open as well.
    pub fn check(&self, dir: &Path, least: u64, most: u64, reopen: bool) -> Result<(), String> {
        let mut opened = Opened::open(dir)?;
        let k = opened.batches;
        if k < least || k > most {
            return Err(format!("{k} batches are there, {least} were confirmed and {most} begun"));
        }
        opened.compare(self)?;
        opened.commit(self.workload, || {})?;
        opened.compare_last(self).map_err(|what| format!("after one more batch: {what}"))?;
        if reopen {
            drop(opened);
            let again = Opened::open(dir).map_err(|what| format!("opened again: {what}"))?;
            if again.batches != k + 1 {
                return Err(format!("opened again: {} batches, not {}", again.batches, k + 1));
            }
            again.compare(self).map_err(|what| format!("opened again: {what}"))?;
        }
        Ok(())
    }
}
