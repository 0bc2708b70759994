//! What is written to a worker's stream: orders as they come, and the contents of tasks, large ones in pieces.
//!
//! Run by `worker_stream` for each connection. It must never have more of a content in memory than the worker makes it, and never send the last of one
//! that is damaged.

use super::hub::Order;
use super::parts::Shared;
use super::worker_stream::{Dialect, Stream, report_one};
use crate::engine::outgoing;
use crate::machine::cluster::records::TaskState;
use crate::machine::cluster::{Key, Record};
use crate::machine::content::Content;
use crate::machine::ids::{TaskKey, WorkerId};
use crate::machine::outcome::{End, Outcome};
use crate::store::payload::pieces::{PIECE_MAX, Pieces};
use crate::supervisor::Supervisor;
use crate::wire::fedvision::framework::Task;
use bytes::Bytes;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

/// A message of a task that goes in pieces.
pub(super) enum Part {
    /// Run this attempt of the task whose encoding follows.
    Announced { attempt: u32, bytes: u64 },
    /// Some of it.
    Piece(Bytes),
    /// What was announced does not come.
    Void,
}

/// The orders of one connection.
pub(super) struct Orders<D> {
    shared: Shared,
    worker: WorkerId,
    orders: mpsc::Receiver<Order>,
    /// Tasks that wait for one that is on its way in pieces.
    later: VecDeque<Order>,
    out: Stream<D>,
    /// The worker takes pieces.
    pieces: bool,
}

/// The stream takes nothing any more.
struct Gone;

/// A content, ready to be sent.
enum Ready {
    Whole(Task),
    Pieces(Pieces),
}

impl<D: Dialect> Orders<D> {
    pub(super) fn new(shared: &Shared, worker: &WorkerId, orders: mpsc::Receiver<Order>, out: Stream<D>, pieces: bool) -> Self {
        Self {
            shared: shared.clone(),
            worker: worker.clone(),
            orders,
            later: VecDeque::new(),
            out,
            pieces,
        }
    }

    /// Write orders until the stream ends, one task at a time: of those that go whole no more than two are in memory, one read, one on its way.
    pub(super) async fn write(mut self) {
        while let Some(order) = self.next().await {
            let written = match order {
                Order::Run { key, attempt } => {
                    let span = span_of(&self.worker, &key, attempt);
                    self.run(key, attempt).instrument(span).await
                }
                order => self.brief(order).await,
            };
            if written.is_err() {
                return;
            }
        }
    }

    async fn next(&mut self) -> Option<Order> {
        match self.later.pop_front() {
            Some(order) => Some(order),
            None => self.orders.recv().await,
        }
    }

    /// Any order but a task.
    async fn brief(&self, order: Order) -> Result<(), Gone> {
        self.send(match order {
            Order::Kill { key, attempt, reason } => D::kill(key, attempt, reason),
            Order::Acknowledge { key, attempt } => D::acknowledge(key, attempt),
            order => D::other(order),
        })
        .await
    }

    /// A message, if the worker understands it.
    async fn send(&self, message: Option<D>) -> Result<(), Gone> {
        match message {
            Some(message) => self.out.send(Ok(message)).await.map_err(|_| Gone),
            None => Ok(()),
        }
    }

    async fn run(&mut self, key: TaskKey, attempt: u32) -> Result<(), Gone> {
        match self.read(&key, attempt).await {
            Ok(None) => Ok(()),
            Ok(Some(Ready::Whole(task))) => self.send(Some(D::run(task, attempt))).await,
            Ok(Some(Ready::Pieces(pieces))) => self.give_pieces(key, attempt, pieces).await,
            Err(unreadable) => self.fail(key, attempt, &unreadable).await,
        }
    }

    /// A content in pieces. What else there is to say goes in between, other tasks afterwards.
    async fn give_pieces(&mut self, key: TaskKey, attempt: u32, mut pieces: Pieces) -> Result<(), Gone> {
        let bytes = pieces.content_len();
        self.send(D::part(Part::Announced { attempt, bytes })).await?;
        loop {
            while let Ok(order) = self.orders.try_recv() {
                let run = match &order {
                    Order::Run { .. } => {
                        self.later.push_back(order);
                        continue;
                    }
                    Order::Kill { key, attempt, .. } => Some(Order::run(key, *attempt)),
                    _ => None,
                };
                self.brief(order).await?;
                if run == Some(Order::run(&key, attempt)) {
                    return self.send(D::part(Part::Void)).await;
                }
                // It would not start: the worker has its end already.
                self.later.retain(|later| run.as_ref() != Some(later));
            }
            match outgoing::next(pieces).await {
                Ok(Some((piece, left))) => {
                    self.send(D::part(Part::Piece(piece))).await?;
                    pieces = left;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.send(D::part(Part::Void)).await?;
                    return self.fail(key, attempt, &error.into()).await;
                }
            }
        }
    }

    /// The task ends here: nobody can run it.
    async fn fail(&self, key: TaskKey, attempt: u32, why: &Unreadable) -> Result<(), Gone> {
        tracing::error!(task = %key, error = %why, "task content cannot be read");
        let outcome = Outcome::without_process(End::Failed, format!("its content cannot be read: {why}"));
        let reported = report_one(&self.shared, &self.worker, key, attempt, outcome).await;
        reported.map(drop).map_err(|_| Gone)
    }

    /// The content, if this is still its task's current attempt on this worker.
    async fn read(&self, key: &TaskKey, attempt: u32) -> Result<Option<Ready>, Unreadable> {
        let reader = self.shared.handle.reader();
        let record = match reader.fetch(Key::Task(key.clone())).await.map_err(Unreadable::Pool)?? {
            Some(Record::Task(record)) => record,
            _ => return Ok(None),
        };
        let worker = self.worker.clone();
        if record.state != (TaskState::Assigned { worker, attempt }) {
            return Ok(None);
        }
        let payload = match Arc::unwrap_or_clone(record).content {
            Content::Inline(bytes) => return Ok(Some(Ready::Whole(Task::decode(bytes.as_slice())?))),
            Content::Stored(payload) => payload,
        };
        let (payloads, in_pieces) = (self.shared.payloads.clone(), self.pieces && payload.len > PIECE_MAX as u64);
        let read = Supervisor::blocking(move || match in_pieces {
            true => Ok(payloads.pieces(&payload)?.map(Ready::Pieces)),
            // From the buffer, not a slice: the payload stays a part of it.
            false => match payloads.load_stored(&payload)? {
                Some(bytes) => Ok(Some(Ready::Whole(Task::decode(Bytes::from(bytes))?))),
                None => Ok(None),
            },
        });
        // None: released since the record was read: the task has ended.
        read.await.map_err(Unreadable::Pool)?
    }
}

fn span_of(worker: &WorkerId, key: &TaskKey, attempt: u32) -> Span {
    tracing::info_span!("dispatch", job = %key.job, task = %key.task, attempt, %worker)
}

/// Why a task cannot be sent.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Store(#[from] crate::store::Error),
    #[error("it is not an encoded task: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("{0}")]
    Pool(anyhow::Error),
}
