//! The one loop that runs a role's machine on its durable log.
//!
//! Doors and executors hold a [`Handle`] and send commands; the loop (`commit`) takes all that is ready, lets the machine decide,
//! makes the result durable in one batch with one barrier, and only then answers and hands on the effects. [`recover`] fills the
//! machine from the store at start. Knows no role and no protocol.

pub mod backup;
pub mod clock;
mod commit;
mod delivery;
pub mod open;
pub mod outgoing;
pub mod projection;
mod prove;
pub mod reader;
pub mod recover;
pub mod replay;
pub mod retention;
mod settle;
mod turn;

use crate::machine::Machine;
use crate::machine::content::PayloadRef;
use crate::metrics::{Depth, Metrics};
use crate::store::payload::{Payloads, Pinned};
use crate::store::space::Space;
use crate::store::{Error as StoreError, Seq, Store};
use crate::supervisor::Supervisor;
use clock::Clock;
use delivery::Delivery;
use projection::{Projection, Published};
use reader::Reader;
use recover::{Found, RecoveryReport};
use settle::Settler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Commands that may wait for the loop. More than one batch, so that the next one fills while a barrier runs; small enough that a
/// flood of requests waits at its doors, not in memory.
const QUEUE: usize = 4096;

/// Why a command has no reply.
#[derive(Debug, thiserror::Error)]
pub enum Refusal<R> {
    /// The rules do not allow it. Nothing has changed.
    #[error("{0}")]
    Rejected(R),
    /// The disk is full, or so nearly that what is left is for finishing what was begun. The command was not taken.
    #[error("the disk of the data directory is full: nothing new is taken until there is space")]
    DiskFull,
    /// The store failed while it was written: whether it is recorded will be known after a restart.
    #[error("the store failed; whether this was recorded is known after a restart")]
    Unknown,
    /// The role is stopping; the command was not taken.
    #[error("stopping; the request was not taken")]
    Stopped,
}

/// How long somebody who looks at the metrics waits for a census: a loop at a barrier is behind by one commit at most.
const CENSUS_LIMIT: Duration = Duration::from_secs(1);

/// What the queue of the loop holds.
enum Message<M: Machine> {
    Command(Envelope<M>),
    /// Somebody wants to know how many live records there are.
    Census(blocking::Sender<Census>),
    /// Events below are to go. The answer is the first event there is then; dropped when that is not known.
    Trim(Seq, oneshot::Sender<Seq>),
    /// The store failed beside the loop.
    Failed(StoreError),
}

/// Live records by kind and state.
type Census = Vec<(&'static str, u64)>;

struct Envelope<M: Machine> {
    command: M::Command,
    /// When it was put into the queue, or began to wait for its place there.
    sent: Instant,
    /// Keep the payload files the command refers to, until its records do.
    pins: Vec<Pinned>,
    answer: oneshot::Sender<Result<M::Reply, Refusal<M::Rejection>>>,
}

/// The door to the loop. Cheap to clone.
pub struct Handle<M: Machine> {
    queue: mpsc::Sender<Message<M>>,
    reader: Reader<M>,
    space: Arc<Space>,
    read_only: Arc<AtomicBool>,
    head: watch::Receiver<Seq>,
    depth: Depth,
}

/// How far the loop is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Commands that wait for the loop.
    pub waiting: usize,
    /// How long the oldest command that the loop is at has been waiting for its answer.
    pub oldest: Duration,
}

/// Whether the role's log can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Yes.
    Working,
    /// A commit found the disk full. What was durable before can be read; the process ends once there is space.
    ReadOnly,
    /// The loop has ended, and the process is about to.
    Ended,
}

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            reader: self.reader.clone(),
            space: self.space.clone(),
            read_only: self.read_only.clone(),
            head: self.head.clone(),
            depth: self.depth.clone(),
        }
    }
}

impl<M: Machine> Handle<M> {
    /// Hand a command to the machine and wait until its outcome is durable. Dropping the future does not take the command back.
    ///
    /// # Errors
    /// [`Refusal`]; see there what each says about the command.
    pub async fn send(&self, command: M::Command) -> Result<M::Reply, Refusal<M::Rejection>> {
        self.send_pinned(command, Vec::new()).await
    }

    /// [`Handle::send`] for a command that refers to payload files. The pins travel with it: a caller that goes away meanwhile must not take
    /// the files with it.
    ///
    /// # Errors
    /// As [`Handle::send`].
    pub async fn send_pinned(&self, command: M::Command, pins: Vec<Pinned>) -> Result<M::Reply, Refusal<M::Rejection>> {
        let (answer, reply) = oneshot::channel();
        let sent = Instant::now();
        let envelope = Envelope {
            command,
            sent,
            pins,
            answer,
        };
        self.queue.send(Message::Command(envelope)).await.map_err(|_| Refusal::Stopped)?;
        reply.await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Let go of events below `to`, the oldest first, and at most [`TRIM_MAX`](crate::store::TRIM_MAX) with one call. Gives the first event there
    /// is once that is durable.
    ///
    /// # Errors
    /// [`Refusal::Stopped`] or [`Refusal::Unknown`].
    pub async fn trim(&self, to: Seq) -> Result<Seq, Refusal<M::Rejection>> {
        let (answer, trimmed) = oneshot::channel();
        let message = Message::Trim(to, answer);
        self.queue.send(message).await.map_err(|_| Refusal::Stopped)?;
        trimmed.await.map_err(|_| Refusal::Unknown)
    }

    /// Durable records, without going through the loop.
    pub fn reader(&self) -> &Reader<M> {
        &self.reader
    }

    /// The sequence of the last durable event, 0 before the first one; told after each commit, before its answers. Closed once the loop has
    /// ended.
    pub fn head(&self) -> watch::Receiver<Seq> {
        self.head.clone()
    }

    /// The room on the disk of the log.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// How far the loop is behind.
    pub fn backlog(&self) -> Backlog {
        Backlog {
            waiting: self.queue.max_capacity() - self.queue.capacity(),
            oldest: self.depth.oldest(),
        }
    }

    /// Let the metrics show the backlog and a census whenever somebody looks. The loop may end all the same once the other handles are gone.
    fn shown_by(&self, metrics: &Metrics) {
        let (queue, depth) = (self.queue.downgrade(), self.depth.clone());
        let engine = metrics.engine().clone();
        metrics.probe(move || {
            let Some(queue) = queue.upgrade() else { return };
            engine.depth(queue.max_capacity() - queue.capacity(), depth.oldest());
            let (asked, census) = blocking::channel();
            // A queue without a place, or a loop that does not come to it, leaves the last census standing.
            if queue.try_send(Message::Census(asked)).is_ok()
                && let Ok(census) = census.recv_timeout(CENSUS_LIMIT)
            {
                engine.census(&census);
            }
        });
    }

    /// Whether commands can be taken.
    pub fn condition(&self) -> Condition {
        if self.queue.is_closed() {
            Condition::Ended
        } else if self.read_only.load(Ordering::Relaxed) {
            Condition::ReadOnly
        } else {
            Condition::Working
        }
    }
}

/// What an engine is made of.
pub struct Parts<M: Machine> {
    /// The machine, empty, with its rules.
    pub machine: M,
    /// The role's log.
    pub store: Arc<dyn Store>,
    /// The role's payload files.
    pub payloads: Arc<Payloads>,
    /// Time and randomness.
    pub clock: Arc<dyn Clock>,
    /// The room on the disk of both.
    pub space: Arc<Space>,
}

/// Where effects go once they are justified. Called on a task of the runtime: must not block.
pub type EffectSink<M> = Box<dyn FnMut(<M as Machine>::Effect) + Send>;

/// A recovered engine that has not begun to work: doors can be given the handle before the first effect leaves.
pub struct Engine<M: Machine> {
    parts: Parts<M>,
    queue: mpsc::Receiver<Message<M>>,
    handle: Handle<M>,
    /// What was found in the store.
    pub report: RecoveryReport,
    head: watch::Sender<Seq>,
    projection: Option<Box<dyn Projection<M>>>,
    unproved: Vec<PayloadRef>,
}

impl<M: Machine> Engine<M> {
    /// Read the live records back from a store that is open. Blocks.
    ///
    /// # Errors
    /// The store or a record in it cannot be read.
    pub fn recover(mut parts: Parts<M>) -> Result<Self, StoreError> {
        let began = Instant::now();
        let found = recover::read(&*parts.store, &mut parts.machine)?;
        Self::recovered(parts, found, began)
    }

    fn recovered(parts: Parts<M>, found: Found, began: Instant) -> Result<Self, StoreError> {
        let (report, unproved) = recover::conclude(&parts, found, began)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let (head, followed) = watch::channel(report.next_seq - 1);
        let handle = Handle {
            queue: sender,
            reader: Reader::new(parts.store.clone()),
            space: parts.space.clone(),
            read_only: Arc::default(),
            head: followed,
            depth: Depth::default(),
        };
        Ok(Self {
            parts,
            queue,
            handle,
            report,
            head,
            projection: None,
            unproved,
        })
    }

    /// The door.
    pub fn handle(&self) -> Handle<M> {
        self.handle.clone()
    }

    /// Let a projection follow every commit from now on. What is durable already it reads itself, before [`Engine::start`].
    pub fn project(&mut self, projection: Box<dyn Projection<M>>) {
        self.projection = Some(projection);
    }

    /// Begin: hand on what the live records justify, then run the loop on a thread of its own. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn start(self, supervisor: &Supervisor, sink: EffectSink<M>) -> std::io::Result<()> {
        let Engine {
            parts,
            queue,
            handle,
            head,
            projection,
            unproved,
            report,
        } = self;
        let published = Published { head, projection };
        let metrics = supervisor.metrics().engine().clone();
        handle.shown_by(supervisor.metrics());
        metrics.payloads(counted(report.payloads), counted(report.payload_bytes));
        let Handle {
            reader, read_only, depth, ..
        } = handle;
        reader.ends(supervisor);
        prove::start(supervisor, parts.store.clone(), parts.payloads.clone(), unproved)?;
        let settler = Settler::start(supervisor, parts.store.clone(), handle.queue.downgrade())?;
        let delivery = Delivery::start(supervisor, sink);
        let role = supervisor.clone();
        supervisor.thread("engine", move || {
            delivery.hand_on(Vec::new(), parts.machine.resume(parts.clock.now()));
            let stopped = || role.is_stopped();
            // Lives until the role knows why: the end of the sink, which goes with it, looks like a failure of the executors.
            let mut engine = commit::Loop::new(parts, reader, read_only, published, (delivery, settler), (metrics, depth));
            if let Err(error) = engine.run(queue, &stopped) {
                let why = if error.is_full() {
                    "the disk was full; a restart goes on from what is durable"
                } else {
                    "the store could not commit"
                };
                role.fatal(anyhow::Error::new(error).context(why));
            }
        })
    }
}

fn counted(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
