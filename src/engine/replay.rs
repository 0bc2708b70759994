//! The events once more, from an empty machine: do they make the records that are stored?
//!
//! Called by `fedbroker store check` on a store nobody writes to. Everything is read, nothing is written, and nothing is repaired: a
//! difference says that the log and the records cannot both be true.
//!
//! Memory holds what it holds live: an ended record is compared and dropped some time after it ended, and leaves eight bytes. That is
//! right because [`Machine::apply`] never reads a record that has ended: an event that brings one back to life carries all of it. It may
//! still be changed by a later event of the commit that ended it (the loop forgets after the commit), so it stays for as many events as
//! a commit can hold.

use super::reader::{ENDED, LIVE, PAYLOAD, decode, decode_event, pages, record_key};
use crate::machine::content::PayloadRef;
use crate::machine::{Changes, Logged, Machine};
use crate::store::{COST_MAX, Error, Seq, Store, codec};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// For how many events a record that has ended stays in memory: more than one commit can hold, since each costs a KiB at least.
pub const LINGER: Seq = (COST_MAX / 1024) as Seq + 1;
/// Events read at once.
const PAGE: usize = 512;
/// The most differences named; the rest is counted.
const NAMED_MAX: usize = 100;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Events replayed.
    pub events: u64,
    /// The first event there is, when it is not the very first: then nothing can be replayed.
    pub trimmed: Option<Seq>,
    /// Stored live records.
    pub live: u64,
    /// Stored ended records.
    pub ended: u64,
    /// What does not agree.
    pub differences: Differences,
}

/// What does not agree: record or event, and words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first ones, as `record <key>: what` or `event <number>: what`.
    pub named: Vec<String>,
    /// All of them.
    pub count: u64,
}

impl Differences {
    fn add(&mut self, key: &[u8], what: &str) {
        self.name(|| format!("record {}: {what}", key.escape_ascii()));
    }

    fn add_event(&mut self, seq: Seq, stored: Option<Seq>, replayed: Option<Seq>) {
        let event = |seq: Option<Seq>| seq.map_or("no event".to_owned(), |seq| format!("event {seq}"));
        self.name(|| {
            format!(
                "event {seq}: it follows {}, says the log, and should follow {}",
                event(stored),
                event(replayed)
            )
        });
    }

    fn name(&mut self, line: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(line());
        }
    }
}

/// Replay all events into `machine`, which is empty, and compare with the stored records. `linger` is [`LINGER`], or less where commits are
/// known to be small; `progress` hears of each page's last event.
///
/// # Errors
/// The store cannot be read, or a value in it does not decode.
pub fn compare<M: Machine>(machine: M, store: &dyn Store, linger: Seq, progress: &mut dyn FnMut(Seq)) -> Result<Comparison, Error> {
    let first = store.events(1, 1)?.first().map_or(store.head().next_seq, |(seq, _)| *seq);
    if first > 1 {
        return Ok(Comparison {
            trimmed: Some(first),
            ..Comparison::default()
        });
    }
    let mut replay = Replay {
        machine,
        store,
        linger,
        live: BTreeSet::new(),
        lingering: BTreeMap::new(),
        queue: VecDeque::new(),
        made: HashSet::new(),
        unlike: BTreeMap::new(),
    };
    let mut found = Comparison::default();
    loop {
        let page = store.events(found.events + 1, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        let last = *last;
        for (seq, bytes) in page {
            let logged: Logged<M::Event> = decode_event(seq, &bytes)?;
            let next = Logged::next(&replay.machine, logged.event);
            if next.prev != logged.prev {
                found.differences.add_event(seq, logged.prev, next.prev);
            }
            replay.take(seq, &next.event)?;
        }
        found.events = last;
        progress(last);
    }
    replay.drop_until(Seq::MAX)?;
    replay.conclude(&mut found)?;
    Ok(found)
}

struct Replay<'a, M: Machine> {
    machine: M,
    store: &'a dyn Store,
    linger: Seq,
    live: BTreeSet<M::Key>,
    /// Ended and still in memory, with the event that changed them last.
    lingering: BTreeMap<M::Key, Seq>,
    queue: VecDeque<(Seq, M::Key)>,
    /// Hashes of the keys of all records that have ended and left.
    made: HashSet<u64>,
    /// Those among them that are not what is stored. They may come back to life, and end like it.
    unlike: BTreeMap<M::Key, &'static str>,
}

impl<M: Machine> Replay<'_, M> {
    fn take(&mut self, seq: Seq, event: &M::Event) -> Result<(), Error> {
        let mut changes = Changes { seq, ..Changes::default() };
        self.machine.apply(event, &mut changes);
        for key in changes.keys {
            let record = self.machine.record(&key);
            let ended = record.as_ref().is_some_and(|record| !M::is_live(record));
            if record.is_some() && !ended {
                self.live.insert(key.clone());
            } else {
                self.live.remove(&key);
            }
            self.made.remove(&hash(&M::key_bytes(&key)));
            self.unlike.remove(&key);
            if ended {
                self.lingering.insert(key.clone(), seq);
                self.queue.push_back((seq, key));
            } else {
                self.lingering.remove(&key);
            }
        }
        self.drop_until(seq.saturating_sub(self.linger))
    }

    /// Compare and drop the records that ended with event `until` or before.
    fn drop_until(&mut self, until: Seq) -> Result<(), Error> {
        while self.queue.front().is_some_and(|(seq, _)| *seq <= until) {
            let Some((seq, key)) = self.queue.pop_front() else { break };
            if self.lingering.get(&key) != Some(&seq) {
                continue;
            }
            self.lingering.remove(&key);
            let bytes = M::key_bytes(&key);
            let stored = self.store.get(&record_key(ENDED, &bytes))?;
            let replayed = self.machine.record(&key).map(|record| codec::encode(&record));
            self.machine.forget(&key);
            self.made.insert(hash(&bytes));
            if stored.is_none() {
                self.unlike.insert(key, "it has ended, say the events, and is not stored so");
            } else if stored != replayed {
                self.unlike.insert(key, "what is stored is not what the events make of it");
            }
        }
        Ok(())
    }

    fn conclude(self, found: &mut Comparison) -> Result<(), Error> {
        for (key, what) in &self.unlike {
            found.differences.add(&record_key(ENDED, &M::key_bytes(key)), what);
        }
        pages(self.store, &[ENDED], |stored, _| {
            found.ended += 1;
            if !self.made.contains(&hash(&stored[1..])) {
                found.differences.add(stored, "it is stored as ended, and no event says so");
            }
            Ok(true)
        })?;
        let mut left = self.live;
        pages(self.store, &[LIVE], |stored, value| {
            found.live += 1;
            let key = M::key_from_bytes(&stored[1..]).filter(|key| left.remove(key));
            match key.and_then(|key| self.machine.record(&key)) {
                None => found.differences.add(stored, "it is stored as live, and no event says so"),
                Some(record) if codec::encode(&record) != value => {
                    found.differences.add(stored, "what is stored is not what the events make of it");
                }
                Some(_) => {}
            }
            Ok(true)
        })?;
        for key in left {
            let key = record_key(LIVE, &M::key_bytes(&key));
            found.differences.add(&key, "it lives, say the events, and is not stored so");
        }
        Ok(())
    }
}

/// Sixty-four bits of a key: two of ten million ended records meet with a probability of 3 in a million.
fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The payload files that records refer to, counted from the records, and held against the counts that are stored.
///
/// # Errors
/// As [`compare`].
pub fn count_payloads<M: Machine>(store: &dyn Store) -> Result<(BTreeMap<PayloadRef, u32>, Differences), Error> {
    let mut counted: HashMap<PayloadRef, u32> = HashMap::new();
    for kind in [LIVE, ENDED] {
        pages(store, &[kind], |key, value| {
            for payload in M::payloads(&decode::<M::Record>(key, value)?) {
                *counted.entry(payload).or_default() += 1;
            }
            Ok(true)
        })?;
    }
    let mut differences = Differences::default();
    let mut left: BTreeMap<PayloadRef, u32> = counted.iter().map(|(payload, count)| (*payload, *count)).collect();
    pages(store, &[PAYLOAD], |key, value| {
        let (payload, stored): (PayloadRef, u32) = decode(key, value)?;
        let records = left.remove(&payload).unwrap_or(0);
        if key[1..] != payload.hash || records != stored {
            differences.add(key, &format!("{stored} references are stored, {records} are in records"));
        }
        Ok(true)
    })?;
    for (payload, records) in left {
        let key = record_key(PAYLOAD, &payload.hash);
        differences.add(&key, &format!("no references are stored, {records} are in records"));
    }
    Ok((counted.into_iter().collect(), differences))
}
