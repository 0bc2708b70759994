//! The loop: take all that is ready, decide, commit once, then answer and act.
//!
//! Nothing leaves before the barrier: no reply, no refusal (it may rest on an event that is not durable yet), no effect. A failed commit is
//! final: waiters learn that the outcome is unknown, and the process ends; after a full disk only once there is space again, and until then
//! what is durable can be read.

use super::projection::Published;
use super::reader::{ENDED, LIVE, PAYLOAD, Reader, record_key};
use super::{Census, EffectSink, Envelope, Message, Parts, Refusal, counted};
use crate::crash_point::{self, Moment};
use crate::machine::content::PayloadRef;
use crate::machine::{Changes, Input, Machine, Named, Out};
use crate::metrics::{Depth, Engine as Metrics};
use crate::store::payload::Pinned;
use crate::store::space::{FULL, Level, SLACK};
use crate::store::{COST_MAX, Commit, Error, Seq, TRIM_COST, VALUE_MAX, codec, write_cost};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// No more commands are taken once a batch costs this much at worst: the largest single command (a proposal with all its tasks, half the limit;
/// `tests/integration/coordinator_limits.rs` does the sum) must still fit.
const FULL_COST: usize = COST_MAX * 7 / 16;
/// What a changed record costs at worst: its value under one key, and the other key it may leave. Records are only encoded once all commands of
/// the batch have changed them, so their real size is not known before.
const RECORD_COST: usize = write_cost(VALUE_MAX) + write_cost(0);
/// What a payload reference costs at worst: its count is a record of 80 bytes.
const REFERENCE_COST: usize = write_cost(80);
/// The most commands of one batch, so that the first waiter's answer is not held up by the last one's.
const COMMANDS_MAX: usize = 1024;

/// How often a loop that waits for space looks for some, and at who waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Outcome<M> = Result<<M as Machine>::Reply, Refusal<<M as Machine>::Rejection>>;
type Recalled<M> = Vec<(<M as Machine>::Key, <M as Machine>::Record)>;
type Answer<M> = (oneshot::Sender<Outcome<M>>, Outcome<M>);

/// What one turn of the loop has gathered.
struct Turn<M: Machine> {
    /// The number of its first event.
    first_seq: Seq,
    events: Vec<Vec<u8>>,
    event_cost: usize,
    changes: Changes<M::Key>,
    /// Ended records on disk that a command was shown: one that lives again must not stay there as history.
    recalled: BTreeSet<M::Key>,
    effects: Vec<M::Effect>,
    answers: Vec<Answer<M>>,
    /// Names of the commands, for the crash points.
    commands: Vec<&'static str>,
    /// No command that begins something is taken.
    nothing_new: bool,
    /// Payload files of the commands, let go once the records count them or the commands are refused.
    pins: Vec<Pinned>,
    /// Who wants to know how many live records there are.
    looks: Vec<blocking::Sender<Census>>,
    /// Events below are let go of.
    trim_to: Option<Seq>,
    trimmers: Vec<oneshot::Sender<Seq>>,
}

impl<M: Machine> Turn<M> {
    fn new(first_seq: Seq, nothing_new: bool) -> Self {
        Self {
            first_seq,
            nothing_new,
            events: Vec::new(),
            event_cost: 0,
            changes: Changes::default(),
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

    fn is_full(&self) -> bool {
        let references = self.changes.held.len() + self.changes.released.len();
        let trim = self.trim_to.map_or(0, |_| TRIM_COST);
        let cost = trim + self.event_cost + self.changes.keys.len() * RECORD_COST + references * REFERENCE_COST;
        cost >= FULL_COST || self.answers.len() >= COMMANDS_MAX
    }
}

/// Give a justified effect to its executor; the only way there.
pub(super) fn hand_on<M: Machine>(sink: &mut EffectSink<M>, effect: M::Effect) {
    crash_point::reach_moment(M::ROLE, effect.name(), Moment::Leaving);
    sink(effect);
}

pub(super) struct Loop<M: Machine> {
    parts: Parts<M>,
    reader: Reader<M>,
    read_only: Arc<AtomicBool>,
    published: Published<M>,
    sink: EffectSink<M>,
    /// How many records refer to each payload; filled as references come and go, the rest is in the store.
    payload_counts: HashMap<PayloadRef, u32>,
    metrics: Metrics,
    depth: Depth,
}

impl<M: Machine> Loop<M> {
    /// `read_only` is set before anybody learns of a commit that found the disk full.
    pub(super) fn new(
        parts: Parts<M>,
        reader: Reader<M>,
        read_only: Arc<AtomicBool>,
        published: Published<M>,
        sink: EffectSink<M>,
        (metrics, depth): (Metrics, Depth),
    ) -> Self {
        Self {
            metrics,
            depth,
            read_only,
            published,
            parts,
            reader,
            sink,
            payload_counts: HashMap::new(),
        }
    }

    /// Until every handle is gone, or the store fails. After a full disk it stays until there is space or the role has `stopped`.
    pub(super) fn run(&mut self, mut queue: mpsc::Receiver<Message<M>>, stopped: &dyn Fn() -> bool) -> Result<(), Error> {
        let failed = self.serve(&mut queue);
        if failed.as_ref().is_err_and(Error::is_full) {
            self.wait_for_space(&mut queue, stopped);
        }
        failed
    }

    fn serve(&mut self, queue: &mut mpsc::Receiver<Message<M>>) -> Result<(), Error> {
        while let Some(first) = queue.blocking_recv() {
            let nothing_new = self.parts.space.look().level == Level::Full;
            let mut turn = Turn::new(self.parts.store.head().next_seq, nothing_new);
            self.receive(first, &mut turn)?;
            while !turn.is_full() {
                match queue.try_recv() {
                    Ok(message) => self.receive(message, &mut turn)?,
                    Err(_) => break,
                }
            }
            self.finish(turn)?;
        }
        Ok(())
    }

    /// Refuse what comes. The machine is ahead of what is durable, so it is not asked any more.
    fn wait_for_space(&self, queue: &mut mpsc::Receiver<Message<M>>, stopped: &dyn Fn() -> bool) {
        tracing::error!("a commit found the disk full: read only until there is space, then this process ends and a restart goes on");
        while !stopped() && self.parts.space.look_now().free < FULL + SLACK {
            std::thread::sleep(LOOK_EVERY);
            while let Ok(message) = queue.try_recv() {
                if let Message::Command(envelope) = message {
                    let _ = envelope.answer.send(Err(Refusal::DiskFull));
                }
            }
        }
    }

    fn receive(&mut self, message: Message<M>, turn: &mut Turn<M>) -> Result<(), Error> {
        match message {
            Message::Command(envelope) => self.take(envelope, turn)?,
            Message::Census(asked) => turn.looks.push(asked),
            Message::Trim(to, answer) => {
                let goes = to > self.parts.store.head().first_seq;
                turn.trim_to = turn.trim_to.max(goes.then_some(to));
                turn.trimmers.push(answer);
            }
        }
        Ok(())
    }

    fn take(&mut self, envelope: Envelope<M>, turn: &mut Turn<M>) -> Result<(), Error> {
        if turn.commands.is_empty() {
            self.depth.begin(envelope.sent);
        }
        let name = envelope.command.name();
        crash_point::reach_moment(M::ROLE, name, Moment::Taken);
        turn.commands.push(name);
        let recalled = self.recall(&envelope.command, turn)?;
        let now = self.parts.clock.now();
        let input = Input {
            now,
            stamp: self.parts.clock.stamp(now),
            random: self.parts.clock.random(),
            recalled,
        };
        if turn.nothing_new && self.parts.machine.brings_work(&envelope.command, &input) {
            turn.answers.push((envelope.answer, Err(Refusal::DiskFull)));
            turn.pins.extend(envelope.pins);
            return Ok(());
        }
        let mut out = Out::new(turn.first_seq + turn.events.len() as Seq);
        let reply = self.parts.machine.decide(envelope.command, &input, &mut out);
        debug_assert!(reply.is_ok() || out.events.is_empty(), "a rejected command must leave no events");
        for event in &out.events {
            let bytes = codec::encode(event);
            turn.event_cost += write_cost(bytes.len());
            turn.events.push(bytes);
        }
        turn.changes.keys.append(&mut out.changes.keys);
        turn.changes.held.append(&mut out.changes.held);
        turn.changes.released.append(&mut out.changes.released);
        turn.effects.append(&mut out.effects);
        turn.answers.push((envelope.answer, reply.map_err(Refusal::Rejected)));
        turn.pins.extend(envelope.pins);
        Ok(())
    }

    /// The ended records a command may depend on. What this turn has changed is in memory, or gone, whatever the disk still says.
    fn recall(&self, command: &M::Command, turn: &mut Turn<M>) -> Result<Recalled<M>, Error> {
        let mut recalled = Vec::new();
        for key in self.parts.machine.recall(command) {
            if turn.changes.keys.contains(&key) || self.parts.machine.record(&key).is_some() {
                continue;
            }
            if let Some(record) = self.reader.ended(&key)? {
                turn.recalled.insert(key.clone());
                recalled.push((key, record));
            }
        }
        Ok(recalled)
    }

    fn finish(&mut self, turn: Turn<M>) -> Result<(), Error> {
        let Turn {
            first_seq,
            events,
            changes,
            recalled,
            effects,
            answers,
            commands,
            pins,
            looks,
            trim_to,
            trimmers,
            ..
        } = turn;
        if !events.is_empty() || trim_to.is_some() {
            let (began, written) = (Instant::now(), events.len());
            let (records, ended) = self.encode_records(&changes, &recalled)?;
            let last = first_seq + events.len() as Seq - 1;
            let commit = Commit {
                epoch: self.parts.store.head().epoch,
                expected: first_seq,
                events,
                changes: records,
                trim_to,
            };
            if let Err(error) = self.parts.store.commit(&commit) {
                self.read_only.store(error.is_full(), Ordering::Relaxed);
                self.depth.end();
                if error.is_full() {
                    self.metrics.disk_full();
                }
                for (answer, _) in answers {
                    let _ = answer.send(Err(Refusal::Unknown));
                }
                return Err(error);
            }
            self.parts.payloads.settle(&changes.held, &changes.released);
            if written > 0 {
                self.published.committed(&self.parts.machine, changes.keys.iter(), last);
            }
            for (key, what) in &ended {
                self.parts.machine.forget(key);
                what.iter().for_each(|what| self.metrics.ended(what));
            }
            self.metrics.committed(commands.len(), written, began.elapsed());
        }
        if !pins.is_empty() {
            // What no record has come to refer to (a refused command, a repeated one) is removed now, or a quiet role would keep it.
            drop(pins);
            self.parts.payloads.settle(&[], &[]);
        }
        for name in &commands {
            crash_point::reach_moment(M::ROLE, name, Moment::Durable);
        }
        let outcomes = answers.iter().map(|(_, reply)| outcome::<M>(reply));
        self.metrics.answered(commands.into_iter().zip(outcomes));
        for (answer, reply) in answers {
            let _ = answer.send(reply);
        }
        for answer in trimmers {
            let _ = answer.send(self.parts.store.head().first_seq);
        }
        self.depth.end();
        for effect in effects {
            hand_on::<M>(&mut self.sink, effect);
        }
        if !looks.is_empty() {
            let census = self.parts.machine.census();
            for look in looks {
                let _ = look.send(census.clone());
            }
        }
        Ok(())
    }

    /// The changed records as store changes, and the keys of those that have ended; with what it was, if it was live until now.
    #[expect(clippy::type_complexity, reason = "a pair used once, by the caller above")]
    fn encode_records(
        &mut self,
        changes: &Changes<M::Key>,
        recalled: &BTreeSet<M::Key>,
    ) -> Result<(Vec<(Vec<u8>, Option<Vec<u8>>)>, Vec<(M::Key, Option<&'static str>)>), Error> {
        let mut records = Vec::with_capacity(changes.keys.len() * 2);
        let mut ended = Vec::new();
        for key in &changes.keys {
            let bytes = M::key_bytes(key);
            let (live, past) = (record_key(LIVE, &bytes), record_key(ENDED, &bytes));
            match self.parts.machine.record(key) {
                Some(record) if M::is_live(&record) => {
                    records.push((live, Some(codec::encode(&record))));
                    if recalled.contains(key) {
                        records.push((past, None));
                    }
                }
                Some(record) => {
                    records.push((live, None));
                    records.push((past, Some(codec::encode(&record))));
                    ended.push((key.clone(), (!recalled.contains(key)).then(|| M::ending(&record))));
                }
                None => {
                    records.push((live, None));
                    records.push((past, None));
                }
            }
        }
        self.encode_payload_counts(changes, &mut records)?;
        Ok((records, ended))
    }

    fn encode_payload_counts(&mut self, changes: &Changes<M::Key>, records: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), Error> {
        let mut difference: HashMap<PayloadRef, i64> = HashMap::new();
        for payload in &changes.held {
            *difference.entry(*payload).or_default() += 1;
        }
        for payload in &changes.released {
            *difference.entry(*payload).or_default() -= 1;
        }
        for (payload, change) in difference.into_iter().filter(|(_, change)| *change != 0) {
            let key = record_key(PAYLOAD, &payload.hash);
            let before = match self.payload_counts.get(&payload) {
                Some(count) => *count,
                None => match self.parts.store.get(&key)? {
                    Some(value) => super::reader::decode::<(PayloadRef, u32)>(&key, &value)?.1,
                    None => 0,
                },
            };
            let after = u32::try_from((i64::from(before) + change).max(0)).unwrap_or(u32::MAX);
            match (before, after) {
                (0, 1..) => self.metrics.payloads(1, counted(payload.len)),
                (1.., 0) => self.metrics.payloads(-1, -counted(payload.len)),
                (0, 0) | (1.., 1..) => {}
            }
            if after == 0 {
                self.payload_counts.remove(&payload);
                records.push((key, None));
            } else {
                self.payload_counts.insert(payload, after);
                records.push((key, Some(codec::encode(&(payload, after)))));
            }
        }
        Ok(())
    }
}

/// What became of a command, for the metrics.
fn outcome<M: Machine>(outcome: &Outcome<M>) -> &'static str {
    match outcome {
        Ok(_) => "accepted",
        Err(Refusal::Rejected(_)) => "rejected",
        Err(Refusal::DiskFull) => "disk_full",
        Err(Refusal::Unknown | Refusal::Stopped) => "unknown",
    }
}
