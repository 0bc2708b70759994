//! What one turn of the loop has gathered: the events and records of one commit, and what follows once it is durable.
//!
//! Filled and emptied by `commit`. Knows what the commit will cost, so that the loop stops taking commands before it costs too much; must
//! never drop an answer or an effect that it was given.

use super::reader::{ENDED, LIVE, record_key};
use super::{Census, Refusal};
use crate::machine::content::PayloadRef;
use crate::machine::{Machine, Out};
use crate::store::payload::Pinned;
use crate::store::{COST_MAX, KEY_MAX, Seq, TRIM_COST, VALUE_MAX, codec, write_cost};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc as blocking;
use tokio::sync::oneshot;

/// No more commands are taken once a batch costs this much: the largest single command (a proposal with all its tasks, half the limit;
/// `tests/integration/coordinator_limits.rs` does the sum) must still fit.
const FULL_COST: usize = COST_MAX * 7 / 16;
/// What a changed record costs at worst: its value under one key, and the other key it may leave. What it does cost is known once it is
/// settled.
const RECORD_COST: usize = write_cost(VALUE_MAX) + write_cost(KEY_MAX);
/// What a payload reference costs at worst: its count is a record of 80 bytes.
const REFERENCE_COST: usize = write_cost(80);
/// The most commands of one batch, so that the first waiter's answer is not held up by the last one's.
const COMMANDS_MAX: usize = 1024;

pub(super) type Outcome<M> = Result<<M as Machine>::Reply, Refusal<<M as Machine>::Rejection>>;
pub(super) type Answer<M> = (oneshot::Sender<Outcome<M>>, Outcome<M>);
/// Keys of the store, with their new values; `None` deletes.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A changed record as it is stored.
pub(super) struct Settled<M: Machine> {
    /// `None` where it is gone.
    pub(super) record: Option<M::Record>,
    writes: Writes,
    cost: usize,
}

/// See the module.
pub(super) struct Turn<M: Machine> {
    /// The number of its first event.
    pub(super) first_seq: Seq,
    pub(super) events: Vec<Vec<u8>>,
    event_cost: usize,
    /// Records that were changed since they were last settled.
    changed: BTreeSet<M::Key>,
    settled: BTreeMap<M::Key, Settled<M>>,
    settled_cost: usize,
    /// Payload references that came into records, and those that left them.
    pub(super) held: Vec<PayloadRef>,
    pub(super) released: Vec<PayloadRef>,
    /// Ended records on disk that a command was shown: one that lives again must not stay there as history.
    recalled: BTreeSet<M::Key>,
    pub(super) effects: Vec<M::Effect>,
    pub(super) answers: Vec<Answer<M>>,
    /// Names of the commands, for the crash points.
    pub(super) commands: Vec<&'static str>,
    /// No command that begins something is taken.
    pub(super) nothing_new: bool,
    /// Payload files of the commands, let go once the records count them or the commands are refused.
    pub(super) pins: Vec<Pinned>,
    /// Who wants to know how many live records there are.
    pub(super) looks: Vec<blocking::Sender<Census>>,
    /// Events below are let go of.
    pub(super) trim_to: Option<Seq>,
    pub(super) trimmers: Vec<oneshot::Sender<Seq>>,
}

impl<M: Machine> Turn<M> {
    pub(super) fn new(first_seq: Seq, nothing_new: bool) -> Self {
        Self {
            first_seq,
            nothing_new,
            events: Vec::new(),
            event_cost: 0,
            changed: BTreeSet::new(),
            settled: BTreeMap::new(),
            settled_cost: 0,
            held: Vec::new(),
            released: Vec::new(),
            recalled: BTreeSet::new(),
            effects: Vec::new(),
            answers: Vec::new(),
            commands: Vec::new(),
            pins: Vec::new(),
            looks: Vec::new(),
            trim_to: None,
            trimmers: Vec::new(),
        }
    }

    /// The number of its next event.
    pub(super) fn next_seq(&self) -> Seq {
        self.first_seq + self.events.len() as Seq
    }

    /// What a decision brought about.
    pub(super) fn add(&mut self, mut out: Out<M>) {
        for event in &out.events {
            let bytes = codec::encode(event);
            self.event_cost += write_cost(bytes.len());
            self.events.push(bytes);
        }
        for key in out.changes.keys {
            if let Some(before) = self.settled.remove(&key) {
                self.settled_cost -= before.cost;
            }
            self.changed.insert(key);
        }
        self.held.append(&mut out.changes.held);
        self.released.append(&mut out.changes.released);
        self.effects.append(&mut out.effects);
    }

    /// Whether memory has a newer word on this record than the disk.
    pub(super) fn has_changed(&self, key: &M::Key) -> bool {
        self.changed.contains(key) || self.settled.contains_key(key)
    }

    /// A command was shown this ended record of the disk.
    pub(super) fn recalled(&mut self, key: M::Key) {
        self.recalled.insert(key);
    }

    /// Whether no further command fits, whatever it brings.
    pub(super) fn is_full(&mut self, machine: &M) -> bool {
        if self.cost() >= FULL_COST {
            self.settle(machine);
        }
        self.cost() >= FULL_COST || self.answers.len() >= COMMANDS_MAX
    }

    fn cost(&self) -> usize {
        let references = self.held.len() + self.released.len();
        let trim = self.trim_to.map_or(0, |_| TRIM_COST);
        let records = self.settled_cost + self.changed.len() * RECORD_COST;
        trim + self.event_cost + records + references * REFERENCE_COST
    }

    /// Encode what has changed, as it stands now.
    fn settle(&mut self, machine: &M) {
        for key in std::mem::take(&mut self.changed) {
            let settled = Settled::new(machine, &key, self.recalled.contains(&key));
            self.settled_cost += settled.cost;
            self.settled.insert(key, settled);
        }
    }

    /// Every changed record as it stands now, and what is to be written for them. No command is added any more.
    pub(super) fn conclude(&mut self, machine: &M) -> (BTreeMap<M::Key, Settled<M>>, Writes) {
        self.settle(machine);
        let mut settled = std::mem::take(&mut self.settled);
        let writes = settled
            .values_mut()
            .flat_map(|settled| std::mem::take(&mut settled.writes))
            .collect();
        (settled, writes)
    }

    /// What a record that has ended was, if it was live until this turn.
    pub(super) fn ending(&self, key: &M::Key, record: &M::Record) -> Option<&'static str> {
        (!self.recalled.contains(key)).then(|| M::ending(record))
    }
}

impl<M: Machine> Settled<M> {
    /// A record is in one place: with the live ones, with those that have ended, or in none.
    fn new(machine: &M, key: &M::Key, recalled: bool) -> Self {
        let bytes = M::key_bytes(key);
        let (live, past) = (|| record_key(LIVE, &bytes), || record_key(ENDED, &bytes));
        let record = machine.record(key);
        let writes = match &record {
            Some(record) if M::is_live(record) => {
                let mut writes = vec![(live(), Some(codec::encode(record)))];
                writes.extend(recalled.then(|| (past(), None)));
                writes
            }
            Some(record) => vec![(live(), None), (past(), Some(codec::encode(record)))],
            None => vec![(live(), None), (past(), None)],
        };
        let cost = writes
            .iter()
            .map(|(key, body)| write_cost(key.len() + body.as_ref().map_or(0, Vec::len)))
            .sum();
        Self { record, writes, cost }
    }
}
