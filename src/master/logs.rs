//! What a task of this party has written, from its cluster manager (`fedbroker.v1`), which has it from the worker.
//!
//! Called by the REST service. It holds one chunk at a time: what the reader does not take stays at the worker, and dropping the stream
//! ends the reading there.

use crate::machine::ids::TaskKey;
use crate::wire::connect::{PeerKind, Probe};
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedbroker::v1::{self, LogChunk, TaskLogsRequest};
use crate::wire::metadata;
use crate::wire::metered::Channel;
use bytes::Bytes;
use std::time::Duration;
use tonic::{Code, Status, Streaming};

/// How long the manager may take to begin: it waits 10 s for its worker, for each worker when an earlier attempt is asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// One of the two streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// What it printed.
    Stdout,
    /// What it complained about.
    Stderr,
}

/// What is to be read.
#[derive(Clone, Debug)]
pub struct Query {
    /// The task, as it was submitted to the cluster manager of this party.
    pub task: TaskKey,
    /// From 1; `None` is the latest.
    pub attempt: Option<u32>,
    /// Which stream.
    pub output: Output,
    /// Only the last lines; `None` is all that is kept.
    pub tail_lines: Option<u32>,
    /// Go on with what is written later, until the task has ended.
    pub follow: bool,
}

/// A piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Place of the first byte in all that was written. A gap to the piece before is what was not kept.
    pub offset: u64,
    /// At most 32 KiB, not empty.
    pub data: Bytes,
}

/// Why there is nothing, or nothing more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cluster manager does not know the task.
    #[error("{0}")]
    Unknown(String),
    /// The files are not there any more, or the task left none.
    #[error("{0}")]
    Gone(String),
    /// The task, or this attempt of it, has not been started.
    #[error("{0}")]
    NotStarted(String),
    /// The worker that has them is not connected, or went away. Ask again later.
    #[error("{0}")]
    WorkerAway(String),
    /// Too much is being read from that worker. Ask again later.
    #[error("{0}")]
    Busy(String),
    /// The cluster manager or the worker is of a release that knows no logs.
    #[error("{0}")]
    Unsupported(String),
    /// The cluster manager does not answer. Ask again later.
    #[error("the cluster manager cannot be reached: {0}")]
    Unreachable(String),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let word = status.metadata().get(metadata::LOGS).and_then(|word| word.to_str().ok());
        let text = status.message().to_owned();
        match (word, status.code()) {
            (Some("unknown"), _) => Error::Unknown(text),
            (Some("gone"), _) => Error::Gone(text),
            (Some("not-started"), _) => Error::NotStarted(text),
            (Some("worker-away"), _) => Error::WorkerAway(text),
            (Some("busy"), _) => Error::Busy(text),
            (Some("unsupported"), _) => Error::Unsupported(text),
            (_, Code::Unimplemented) => Error::Unsupported("the cluster manager is of a release that knows no logs".to_owned()),
            (_, Code::InvalidArgument) => Error::Unknown(text),
            _ => Error::Unreachable(text),
        }
    }
}

/// A log that is being read.
#[derive(Debug)]
pub struct Log {
    /// Which attempt it is of.
    pub attempt: u32,
    /// Where it begins: past 0 with `tail_lines`.
    pub offset: u64,
    chunks: Option<Streaming<LogChunk>>,
}

/// Reads logs of one cluster manager. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    channel: Channel,
    probe: Probe,
}

impl Logs {
    /// Of the manager behind a channel.
    pub fn new(channel: Channel) -> Self {
        let probe = Probe::new(channel.clone(), "master");
        Self { channel, probe }
    }

    /// Begin to read. Returns once the worker has the file open.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open(&self, query: Query) -> Result<Log, Error> {
        let kind = self.probe.kind().await;
        if kind.map_err(|status| Error::Unreachable(status.message().to_owned()))? == PeerKind::FedVision {
            return Err(Error::Unsupported(
                "the cluster manager is one of FedVision 0.1, which knows no logs".to_owned(),
            ));
        }
        let stream = match query.output {
            Output::Stdout => v1::LogStream::Stdout,
            Output::Stderr => v1::LogStream::Stderr,
        };
        let request = TaskLogsRequest {
            job_id: query.task.job.as_str().to_owned(),
            task_id: query.task.task.as_str().to_owned(),
            attempt: query.attempt.unwrap_or(0),
            stream: stream.into(),
            tail_lines: query.tail_lines.unwrap_or(0),
            follow: query.follow,
        };
        let mut client = ClusterClient::new(self.channel.clone());
        let opening = async {
            let mut chunks = client.task_logs(request).await?.into_inner();
            let first = chunks.message().await?;
            first
                .map(|first| (chunks, first))
                .ok_or_else(|| Status::unavailable("it ended without an answer"))
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, opening).await;
        let (chunks, first) = answer
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
            .inspect_err(|_| self.probe.forget())?;
        Ok(Log {
            attempt: first.attempt,
            offset: first.offset,
            chunks: (!first.end).then_some(chunks),
        })
    }
}

impl Log {
    /// The next piece; `None` at the end. With `follow` it waits for what is written.
    ///
    /// # Errors
    /// See [`Error`]; nothing follows.
    pub async fn next(&mut self) -> Result<Option<Piece>, Error> {
        while let Some(chunks) = &mut self.chunks {
            match chunks.message().await {
                Ok(Some(chunk)) if chunk.end => self.chunks = None,
                Ok(Some(chunk)) if chunk.data.is_empty() => {}
                Ok(Some(LogChunk { data, offset, .. })) => return Ok(Some(Piece { offset, data: data.into() })),
                Ok(None) => {
                    self.chunks = None;
                    return Err(Error::Unreachable("it ended before the end of the log".to_owned()));
                }
                Err(status) => {
                    self.chunks = None;
                    return Err(status.into());
                }
            }
        }
        Ok(None)
    }
}
