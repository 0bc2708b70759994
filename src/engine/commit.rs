//! The loop: take all that is ready, decide, commit once, then answer and act.
//!
//! Nothing leaves before the barrier: no reply, no refusal (it may rest on an event that is not durable yet), no effect. A failed commit is
//! final: waiters learn that the outcome is unknown, and the process ends; after a full disk only once there is space again, and until then
//! what is durable can be read.

use super::delivery::Delivery;
use super::projection::Published;
use super::reader::{PAYLOAD, Reader, record_key};
use super::settle::Settler;
use super::turn::{Outcome, Turn, Writes};
use super::{Envelope, Message, Parts, Refusal, counted};
use crate::crash_point::{self, Moment};
use crate::machine::content::PayloadRef;
use crate::machine::ids::Timestamp;
use crate::machine::{Input, Machine, Named, Out};
use crate::metrics::{Depth, Engine as Metrics};
use crate::store::space::{FULL, Level, SLACK};
use crate::store::{Commit, Error, codec};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often a loop that waits for space looks for some, and at who waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Recalled<M> = Vec<(<M as Machine>::Key, <M as Machine>::Record)>;

pub(super) struct Loop<M: Machine> {
    parts: Parts<M>,
    reader: Reader<M>,
    read_only: Arc<AtomicBool>,
    published: Published<M>,
    delivery: Delivery<M>,
    settler: Settler,
    /// How many records refer to each payload; filled as references come and go, the rest is in the store.
    payload_counts: HashMap<PayloadRef, u32>,
    /// The clock's stamp of the second it was asked for last.
    stamp: Option<(u64, String)>,
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
        (delivery, settler): (Delivery<M>, Settler),
        (metrics, depth): (Metrics, Depth),
    ) -> Self {
        Self {
            metrics,
            depth,
            read_only,
            published,
            parts,
            reader,
            delivery,
            settler,
            payload_counts: HashMap::new(),
            stamp: None,
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
            while !turn.is_full(&self.parts.machine) {
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
            Message::Failed(error) => return Err(self.failed(error)),
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
            stamp: self.stamp(now),
            random: self.parts.clock.random(),
            recalled,
        };
        if turn.nothing_new && self.parts.machine.brings_work(&envelope.command, &input) {
            turn.answers.push((envelope.answer, Err(Refusal::DiskFull)));
            turn.pins.extend(envelope.pins);
            return Ok(());
        }
        let mut out = Out::new(turn.next_seq());
        let reply = self.parts.machine.decide(envelope.command, &input, &mut out);
        debug_assert!(reply.is_ok() || out.events.is_empty(), "a rejected command must leave no events");
        turn.add(out);
        turn.answers.push((envelope.answer, reply.map_err(Refusal::Rejected)));
        turn.pins.extend(envelope.pins);
        Ok(())
    }

    fn stamp(&mut self, now: Timestamp) -> String {
        let second = now.0 / 1_000_000;
        if self.stamp.as_ref().is_none_or(|(of, _)| *of != second) {
            self.stamp = Some((second, self.parts.clock.stamp(now)));
        }
        self.stamp.as_ref().map(|(_, stamp)| stamp.clone()).unwrap_or_default()
    }

    /// The ended records a command may depend on. What this turn has changed is in memory, or gone, whatever the disk still says.
    fn recall(&self, command: &M::Command, turn: &mut Turn<M>) -> Result<Recalled<M>, Error> {
        let mut recalled = Vec::new();
        for key in self.parts.machine.recall(command) {
            if self.parts.machine.holds(&key) {
                continue;
            }
            // Before the turn is asked: for a new name it is the sooner to say no.
            if let Some(record) = self.reader.ended(&key)?
                && !turn.has_changed(&key)
            {
                turn.recalled(key.clone());
                recalled.push((key, record));
            }
        }
        Ok(recalled)
    }

    fn finish(&mut self, mut turn: Turn<M>) -> Result<(), Error> {
        if !turn.events.is_empty() || turn.trim_to.is_some() {
            self.commit(&mut turn)?;
        }
        if !turn.pins.is_empty() {
            // What no record has come to refer to (a refused command, a repeated one) is removed now, or a quiet role would keep it.
            drop(std::mem::take(&mut turn.pins));
            self.parts.payloads.settle(&[], &[]);
        }
        for name in &turn.commands {
            crash_point::reach_moment(M::ROLE, name, Moment::Durable);
        }
        let outcomes = turn.answers.iter().map(|(_, reply)| outcome::<M>(reply));
        self.metrics.answered(turn.commands.into_iter().zip(outcomes));
        self.delivery.hand_on(turn.answers, turn.effects);
        for answer in turn.trimmers {
            let _ = answer.send(self.parts.store.head().first_seq);
        }
        self.depth.end();
        if !turn.looks.is_empty() {
            let census = self.parts.machine.census();
            for look in turn.looks {
                let _ = look.send(census.clone());
            }
        }
        Ok(())
    }

    /// Make what the turn has decided durable, and let it be seen.
    fn commit(&mut self, turn: &mut Turn<M>) -> Result<(), Error> {
        let (began, written) = (Instant::now(), turn.events.len());
        let last = turn.next_seq() - 1;
        let (records, mut writes) = turn.conclude(&self.parts.machine);
        self.encode_payload_counts(&turn.held, &turn.released, &mut writes)?;
        let commit = Commit {
            epoch: self.parts.store.head().epoch,
            expected: turn.first_seq,
            events: std::mem::take(&mut turn.events),
            changes: writes,
            trim_to: turn.trim_to,
        };
        if let Err(error) = self.parts.store.commit(&commit) {
            let error = self.failed(error);
            for (answer, _) in turn.answers.drain(..) {
                let _ = answer.send(Err(Refusal::Unknown));
            }
            return Err(error);
        }
        self.settler.wake(&*self.parts.store);
        self.parts.payloads.settle(&turn.held, &turn.released);
        if written > 0 {
            let changed = records.iter().map(|(key, settled)| (key, settled.record.as_ref()));
            self.published.committed(changed, last);
        }
        for (key, settled) in &records {
            if let Some(record) = settled.record.as_ref().filter(|record| !M::is_live(record)) {
                self.parts.machine.forget(key);
                turn.ending(key, record).iter().for_each(|what| self.metrics.ended(what));
            }
        }
        self.metrics.committed(turn.commands.len(), written, began.elapsed());
        Ok(())
    }

    /// Before anybody learns of it.
    fn failed(&self, error: Error) -> Error {
        self.read_only.store(error.is_full(), Ordering::Relaxed);
        self.depth.end();
        if error.is_full() {
            self.metrics.disk_full();
        }
        error
    }

    fn encode_payload_counts(&mut self, held: &[PayloadRef], released: &[PayloadRef], records: &mut Writes) -> Result<(), Error> {
        let mut difference: HashMap<PayloadRef, i64> = HashMap::new();
        for payload in held {
            *difference.entry(*payload).or_default() += 1;
        }
        for payload in released {
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
