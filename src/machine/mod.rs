//! Layer 0, pure: what may happen to jobs, tasks, proposals, parties and workers.
//!
//! [`Machine`] is the contract between a role's state machine and the one loop that runs it (`engine`). A machine reads no clock,
//! draws no randomness, does no I/O: all that comes in as [`Input`]. Its state changes only in [`Machine::apply`], so that
//! applying the recorded events again gives the same records.

pub mod cluster;
pub mod content;
pub mod coordinator;
pub mod ids;
pub mod master;
pub mod outcome;
pub mod plan;

use content::PayloadRef;
use ids::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// What a decision may depend on besides the state.
#[derive(Clone, Debug)]
pub struct Input<K, R> {
    /// The wall clock.
    pub now: Timestamp,
    /// Local time at `now` as `YYYYmmddHHMMSS`, the stamp of job ids.
    pub stamp: String,
    /// A fresh random number.
    pub random: u64,
    /// The ended records that [`Machine::recall`] asked for, as far as there are any that memory does not hold.
    pub recalled: Vec<(K, R)>,
}

impl<K: PartialEq, R> Input<K, R> {
    /// The ended record of this name, if it was asked for and is there.
    pub fn recalled(&self, key: &K) -> Option<&R> {
        self.recalled.iter().find(|(found, _)| found == key).map(|(_, record)| record)
    }
}

/// Number of an event in a role's log; the first one has 1.
pub type Seq = u64;

/// Collects what [`Machine::apply`] changed.
#[derive(Clone, Debug)]
pub struct Changes<K> {
    /// The number of the event that is applied.
    pub seq: Seq,
    /// Keys of the records that are new, different or gone.
    pub keys: BTreeSet<K>,
    /// Payload references that came into records, one entry per reference.
    pub held: Vec<PayloadRef>,
    /// Payload references that left records, one entry per reference.
    pub released: Vec<PayloadRef>,
}

impl<K> Default for Changes<K> {
    fn default() -> Self {
        Self {
            seq: 0,
            keys: BTreeSet::new(),
            held: Vec::new(),
            released: Vec::new(),
        }
    }
}

/// An event as the log holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logged<E> {
    /// The event before it of the same [`Machine::thread`], so that the story of a record can be read backwards.
    pub prev: Option<Seq>,
    /// What happened.
    pub event: E,
}

impl<E> Logged<E> {
    /// The event with its place in its thread; asked before it is applied.
    pub fn next<M: Machine<Event = E>>(machine: &M, event: E) -> Self {
        let prev = M::thread(&event).and_then(|key| machine.last_event(&key));
        Self { prev, event }
    }
}

/// What a decision brought about: filled by [`Machine::decide`] through [`Out::emit`].
#[derive(Clone, Debug)]
pub struct Out<M: Machine> {
    /// The number the next event will have.
    next_seq: Seq,
    /// Events in order, each already applied.
    pub events: Vec<Logged<M::Event>>,
    /// What they changed.
    pub changes: Changes<M::Key>,
    /// Effects that may leave once the events are durable.
    pub effects: Vec<M::Effect>,
}

impl<M: Machine> Out<M> {
    /// Of a decision whose first event will have this number.
    pub fn new(next_seq: Seq) -> Self {
        Self {
            next_seq,
            events: Vec::new(),
            changes: Changes::default(),
            effects: Vec::new(),
        }
    }

    /// Record that something happened: apply it to the machine, and keep it for the log.
    pub fn emit(&mut self, machine: &mut M, event: M::Event) {
        let logged = Logged::next(machine, event);
        self.changes.seq = self.next_seq;
        machine.apply(&logged.event, &mut self.changes);
        self.events.push(logged);
        self.next_seq += 1;
    }

    /// Ask for something to be done once all events so far are durable.
    pub fn effect(&mut self, effect: M::Effect) {
        self.effects.push(effect);
    }
}

/// Variants that have names, for the crash points (`crate::crash_point`): each is a boundary at which a process may die.
pub trait Named: 'static {
    /// All names, each once.
    const NAMES: &'static [&'static str];

    /// The name of this one.
    fn name(&self) -> &'static str;
}

/// Gives the variants of an enum their names; the match is exhaustive, so a new variant cannot be forgotten.
macro_rules! named {
    ($enum:ident: $($variant:ident = $name:literal),+ $(,)?) => {
        impl crate::machine::Named for $enum {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn name(&self) -> &'static str {
                match self {
                    $($enum::$variant { .. } => $name),+
                }
            }
        }
    };
}
pub(crate) use named;

/// A role's state machine.
///
/// Records are either *live* (in memory, read at start) or *ended* (history, on disk only). A record that has ended stays in memory
/// until its commit is durable, then [`Machine::forget`] drops it.
pub trait Machine: Send + Sized + 'static {
    /// The first part of the names of its crash points.
    const ROLE: &'static str;

    /// A request or an outcome that comes through a door.
    type Command: Debug + Named + Send + 'static;
    /// Something that happened; the log holds these.
    type Event: Clone + Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned + Send + 'static;
    /// Something to be done outside, justified by a durable record. At-least-once: after a crash [`Machine::resume`] asks again.
    type Effect: Clone + Debug + Named + PartialEq + Send + 'static;
    /// The answer to an accepted command.
    type Reply: Debug + Send + 'static;
    /// Why the rules do not allow a command. Nothing has changed.
    type Rejection: std::error::Error + Send + Sync + 'static;
    /// Name of a record.
    type Key: Clone + Debug + Ord + Send + 'static;
    /// A stored record.
    type Record: Clone + Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned + Send + 'static;

    /// The ended records this command may depend on, if the answer is not in the live state. Each costs a read of the disk: a handful.
    fn recall(&self, command: &Self::Command) -> Vec<Self::Key>;

    /// True for a command that begins something new: one that is refused while the disk is nearly full, so that there is room to finish what
    /// was begun. A command that only asks again for what is live, or for what has ended (see [`Input::recalled`]), brings none.
    fn brings_work(&self, command: &Self::Command, input: &Input<Self::Key, Self::Record>) -> bool;

    /// Take a command: check it, then emit events and effects. Every change of state goes through [`Out::emit`].
    ///
    /// # Errors
    /// A rejection; it is returned before the first event is emitted.
    fn decide(
        &mut self,
        command: Self::Command,
        input: &Input<Self::Key, Self::Record>,
        out: &mut Out<Self>,
    ) -> Result<Self::Reply, Self::Rejection>;

    /// Change the state by one event, whose number is in `changes`. Total: an event that was once emitted always applies.
    fn apply(&mut self, event: &Self::Event, changes: &mut Changes<Self::Key>);

    /// The record of this name as it stands in memory; `None` when there is none.
    fn record(&self, key: &Self::Key) -> Option<Self::Record>;

    /// Whether there is a [`Machine::record`] of this name.
    fn holds(&self, key: &Self::Key) -> bool;

    /// True when the record must be in memory after a restart.
    fn is_live(record: &Self::Record) -> bool;

    /// The record whose story an event goes on with; `None` for one that begins a story, and where nobody asks for stories.
    fn thread(_event: &Self::Event) -> Option<Self::Key> {
        None
    }

    /// The number of the last event of a record in memory, for records that have a [`Machine::thread`].
    fn last_event(&self, _key: &Self::Key) -> Option<Seq> {
        None
    }

    /// Payload files the record refers to, one entry per reference.
    fn payloads(record: &Self::Record) -> Vec<PayloadRef>;

    /// Take a live record back into memory, at start. Records come in key order, before the first command.
    fn restore(&mut self, key: &Self::Key, record: Self::Record);

    /// Drop an ended record from memory; called once the commit that ended it is durable.
    fn forget(&mut self, key: &Self::Key);

    /// Every effect that the live records justify now: at start, all that may have been lost in the crash.
    fn resume(&self, now: Timestamp) -> Vec<Self::Effect>;

    /// The key in bytes, ordered like the key, unique, at most 500 bytes. The first byte tells the kind of record.
    fn key_bytes(key: &Self::Key) -> Vec<u8>;

    /// The inverse of [`Machine::key_bytes`]; `None` for bytes that are no key.
    fn key_from_bytes(bytes: &[u8]) -> Option<Self::Key>;

    /// Live records by kind and state, for the recovery report and the metrics, e.g. `("job running", 3)`.
    fn census(&self) -> Vec<(&'static str, u64)>;

    /// Kind and state of a record that has ended, for the metrics, e.g. `job failed`.
    fn ending(record: &Self::Record) -> &'static str;
}

/// Join ids to key bytes: a kind byte, then the parts with a zero byte between them (no id contains one).
pub fn join_key(kind: u8, parts: &[&str]) -> Vec<u8> {
    let mut key = vec![kind];
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            key.push(0);
        }
        key.extend_from_slice(part.as_bytes());
    }
    key
}

/// Split what [`join_key`] joined; `None` if it is not UTF-8 or empty.
pub fn split_key(bytes: &[u8]) -> Option<(u8, Vec<&str>)> {
    let (kind, rest) = bytes.split_first()?;
    let text = std::str::from_utf8(rest).ok()?;
    Some((*kind, text.split('\0').collect()))
}
