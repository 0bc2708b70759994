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

/// Collects what [`Machine::apply`] changed.
#[derive(Clone, Debug)]
pub struct Changes<K> {
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
            keys: BTreeSet::new(),
            held: Vec::new(),
            released: Vec::new(),
        }
    }
}

/// What a decision brought about: filled by [`Machine::decide`] through [`Out::emit`].
#[derive(Clone, Debug)]
pub struct Out<M: Machine> {
    /// Events in order, each already applied.
    pub events: Vec<M::Event>,
    /// What they changed.
    pub changes: Changes<M::Key>,
    /// Effects that may leave once the events are durable.
    pub effects: Vec<M::Effect>,
}

impl<M: Machine> Default for Out<M> {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            changes: Changes::default(),
            effects: Vec::new(),
        }
    }
}

impl<M: Machine> Out<M> {
    /// Record that something happened: apply it to the machine, and keep it for the log.
    pub fn emit(&mut self, machine: &mut M, event: M::Event) {
        machine.apply(&event, &mut self.changes);
        self.events.push(event);
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

    /// Change the state by one event. Total: an event that was once emitted always applies.
    fn apply(&mut self, event: &Self::Event, changes: &mut Changes<Self::Key>);

    /// The record of this name as it stands in memory; `None` when there is none.
    fn record(&self, key: &Self::Key) -> Option<Self::Record>;

    /// True when the record must be in memory after a restart.
    fn is_live(record: &Self::Record) -> bool;

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
