//! What the disk must hold: the machine alone, fed with what the engine was fed, one command at a time.
//!
//! It knows no batches: an engine that decides several commands before one commit must come to the same.

use crate::harness::World;
use fedbroker::engine::reader::{ENDED, LIVE, PAYLOAD, Reader, record_key};
use fedbroker::machine::content::PayloadRef;
use fedbroker::machine::ids::Timestamp;
use fedbroker::machine::{Changes, Input, Machine, Out};
use fedbroker::store::codec;
use fedbroker::store::sim_store::SimDisk;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type KeyOf<W> = <<W as World>::Machine as Machine>::Key;
type RecordOf<W> = <<W as World>::Machine as Machine>::Record;
pub type Records<W> = BTreeMap<KeyOf<W>, RecordOf<W>>;

/// The answer to a command, and the effects it asks for.
type Decision<W> = (
    Result<<<W as World>::Machine as Machine>::Reply, <<W as World>::Machine as Machine>::Rejection>,
    Vec<<<W as World>::Machine as Machine>::Effect>,
);

/// What a reply said for good, to be found in the record of a key ever after.
type Promise<W> = (String, KeyOf<W>, fn(&str, &RecordOf<W>) -> bool);

pub struct Shadow<W: World> {
    pub machine: W::Machine,
    pub live: Records<W>,
    pub ended: Records<W>,
    pub events: Vec<<W::Machine as Machine>::Event>,
    /// Numbers of events at which a command is whole.
    boundaries: BTreeSet<usize>,
    /// The events that answered commands rest on: they must never be missing again.
    answered: usize,
    promises: Vec<Promise<W>>,
    /// Events below may be gone.
    trim_asked: u64,
    /// Events below are gone for good.
    trimmed: u64,
}

impl<W: World> Shadow<W> {
    pub fn new() -> Self {
        Self {
            machine: W::machine(),
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
            events: Vec::new(),
            boundaries: BTreeSet::from([0]),
            answered: 0,
            promises: Vec::new(),
            trim_asked: 1,
            trimmed: 1,
        }
    }

    /// Decide a command like the engine, at the same time.
    pub fn take(&mut self, command: <W::Machine as Machine>::Command, now: u64) -> Decision<W> {
        let asked = self.machine.recall(&command).into_iter();
        let asked = asked.filter(|key| self.machine.record(key).is_none());
        let input = Input {
            now: Timestamp(now),
            stamp: "20261122212634".to_owned(),
            random: crate::process::random_at(now),
            recalled: asked.filter_map(|key| Some((key.clone(), self.ended.get(&key)?.clone()))).collect(),
        };
        let mut out = Out::new(self.events.len() as u64 + 1);
        let reply = self.machine.decide(command, &input, &mut out);
        for key in out.changes.keys {
            match self.machine.record(&key) {
                Some(record) if W::Machine::is_live(&record) => {
                    self.ended.remove(&key);
                    self.live.insert(key, record);
                }
                Some(record) => {
                    self.live.remove(&key);
                    self.machine.forget(&key);
                    self.ended.insert(key, record);
                }
                None => {
                    self.live.remove(&key);
                    self.ended.remove(&key);
                }
            }
        }
        self.events.extend(out.events.into_iter().map(|logged| logged.event));
        self.boundaries.insert(self.events.len());
        W::check(&self.machine).unwrap();
        (reply, out.effects)
    }

    /// Events below `to` were to go, before the commands of the same turn; `first` is the answer.
    pub fn trim(&mut self, to: u64, first: Option<u64>) {
        self.trim_asked = self.trim_asked.max(to.min(self.events.len() as u64 + 1));
        if let Some(first) = first {
            assert_eq!(first, self.trim_asked.max(self.trimmed), "asked for {to}");
            self.trimmed = first;
        }
    }

    /// All commands taken so far are answered.
    pub fn answered(&mut self) {
        self.answered = self.events.len();
    }

    pub fn promise(&mut self, promise: Promise<W>) {
        self.promises.push(promise);
    }

    /// Hold the disk against this after a start, and go on from what is there.
    pub fn recovered(&mut self, reader: &Reader<W::Machine>, disk: &SimDisk, payload_dir: &Path) {
        let first = reader.first_seq();
        assert!((self.trimmed..=self.trim_asked).contains(&first), "the first event is {first}");
        (self.trimmed, self.trim_asked) = (first, first);
        let found = reader.events(1, usize::MAX / 2).unwrap();
        assert!(found.iter().map(|(seq, _)| *seq).eq((first..).take(found.len())));
        assert_eq!(reader.gap(1, &found), (first > 1).then_some(first));
        let gone = first as usize - 1;
        let count = gone + found.len();
        assert!(
            count >= self.answered,
            "{} events were answered for, {count} are there",
            self.answered
        );
        assert!(self.boundaries.contains(&count), "a command is there in part: {count} events");
        assert!(
            count <= self.events.len() && found.iter().map(|(_, event)| event).eq(&self.events[gone..count]),
            "other events are there than were decided"
        );
        self.events.truncate(count);
        self.boundaries.split_off(&(count + 1));

        let (live, ended) = replay::<W>(&self.events);
        self.compare_records(&live, &ended, reader, disk);
        check_stories::<W>(&self.events, live.values().chain(ended.values()), reader);
        count_payloads::<W>(live.values().chain(ended.values()), disk, payload_dir);
        self.machine = W::machine();
        for (key, record) in &live {
            self.machine.restore(key, record.clone());
        }
        (self.live, self.ended) = (live, ended);
        W::check(&self.machine).unwrap();
        for (said, key, holds) in &self.promises {
            let record = reader.get(key).unwrap();
            assert!(
                record.as_ref().is_some_and(|record| holds(said, record)),
                "{said} was answered, {key:?} is {record:?}"
            );
        }
    }

    fn compare_records(&self, live: &Records<W>, ended: &Records<W>, reader: &Reader<W::Machine>, disk: &SimDisk) {
        let mut wanted = BTreeMap::new();
        for (kind, records) in [(LIVE, live), (ENDED, ended)] {
            for (key, record) in records {
                let bytes = W::Machine::key_bytes(key);
                assert_eq!(W::Machine::key_from_bytes(&bytes).as_ref(), Some(key));
                wanted.insert(record_key(kind, &bytes), record.clone());
                assert_eq!(reader.get(key).unwrap().as_ref(), Some(record));
            }
        }
        let stored = disk.durable_records().into_iter().filter(|(key, _)| key[0] != PAYLOAD);
        let stored: BTreeMap<Vec<u8>, RecordOf<W>> = stored.map(|(key, value)| (key, codec::decode(&value).unwrap())).collect();
        for (key, record) in &stored {
            assert_eq!(Some(record), wanted.get(key), "stored, replayed: {}", key.escape_ascii());
        }
        assert_eq!(
            stored.len(),
            wanted.len(),
            "a record is missing: stored {stored:?}, replayed {wanted:?}"
        );
    }
}

/// The records that the events alone make.
fn replay<W: World>(events: &[<W::Machine as Machine>::Event]) -> (Records<W>, Records<W>) {
    let mut machine = W::machine();
    let mut changes = Changes::default();
    for event in events {
        changes.seq += 1;
        machine.apply(event, &mut changes);
    }
    let records = changes
        .keys
        .into_iter()
        .filter_map(|key| machine.record(&key).map(|record| (key, record)));
    records.partition(|(_, record)| W::Machine::is_live(record))
}

/// The story of a record, read backwards from its last event, is the events that changed it; before them may come those of a record it came from.
fn check_stories<'a, W: World>(
    events: &[<W::Machine as Machine>::Event],
    records: impl Iterator<Item = &'a RecordOf<W>>,
    reader: &Reader<W::Machine>,
) where
    W::Machine: 'a,
{
    let mut machine = W::machine();
    let mut changed: BTreeMap<KeyOf<W>, Vec<u64>> = BTreeMap::new();
    for (seq, event) in (1..).zip(events) {
        let mut changes = Changes { seq, ..Changes::default() };
        machine.apply(event, &mut changes);
        for key in changes.keys {
            changed.entry(key).or_default().push(seq);
        }
    }
    let (mut stories, first): (BTreeMap<u64, Vec<Vec<u64>>>, _) = (BTreeMap::new(), reader.first_seq());
    for seqs in changed.values() {
        let left = seqs.iter().copied().filter(|seq| *seq >= first).collect();
        stories.entry(seqs[seqs.len() - 1]).or_default().push(left);
    }
    for last in records.filter_map(W::last_event) {
        let story: Vec<u64> = reader
            .thread([last], usize::MAX)
            .unwrap()
            .iter()
            .rev()
            .map(|(seq, _)| *seq)
            .collect();
        let before = |seqs: &Vec<u64>| story[..story.len() - seqs.len()].iter().all(|seq| *seq < seqs[0]);
        let own = |seqs: &Vec<u64>| story == *seqs || story.ends_with(seqs) && !seqs.is_empty() && before(seqs);
        let changes = &stories[&last];
        assert!(changes.iter().any(own), "the story {story:?} is none of {changes:?}");
        assert_eq!(reader.thread([last], 1).unwrap().len(), usize::from(last >= first));
    }
}

/// The counts beside the records, and the files, are what the records refer to.
fn count_payloads<'a, W: World>(records: impl Iterator<Item = &'a RecordOf<W>>, disk: &SimDisk, dir: &Path) {
    let mut wanted: BTreeMap<PayloadRef, u32> = BTreeMap::new();
    for payload in records.flat_map(W::Machine::payloads) {
        *wanted.entry(payload).or_default() += 1;
    }
    let stored = disk.durable_records().into_iter().filter(|(key, _)| key[0] == PAYLOAD);
    let stored: BTreeMap<PayloadRef, u32> = stored
        .map(|(_, value)| codec::decode::<(PayloadRef, u32)>(&value).unwrap())
        .collect();
    assert_eq!(stored, wanted, "counted in the store, in the records");
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let files = files.flat_map(|sub| std::fs::read_dir(sub).unwrap().map(|entry| entry.unwrap().file_name()));
    let names: BTreeSet<String> = files.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(names, wanted.keys().map(PayloadRef::hex).collect(), "files, referred to");
}
