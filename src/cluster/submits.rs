//! Tasks come in: what both doors make of one, and the stream of `fedbroker.v1` that brings many.
//!
//! A stream is one task of the runtime, whatever it carries. It must never answer a task twice, and never before it is durable.

use super::convert;
use super::parts::Shared;
use crate::engine::Refusal;
use crate::machine::cluster::{Command, Rejection, Submission};
use crate::machine::content::Content;
use crate::machine::ids::{TypeName, WorkerId};
use crate::store::payload::Pinned;
use crate::supervisor::Supervisor;
use crate::wire::fedbroker::v1::{SubmitTask, TaskSubmitted};
use crate::wire::fedvision::framework::Task;
use crate::wire::pieces;
use crate::wire::task_stream::TASK_MAX;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

/// Tasks of one stream that wait for a commit; more wait at the caller.
const WAITING_MAX: usize = 512;
/// Tasks taken from a stream at once.
const CHUNK: usize = 64;

type Answers = mpsc::Sender<Result<TaskSubmitted, Status>>;

/// Check a task and hand it to the machine. Within: whether the rules allow it.
pub(super) async fn submit(shared: &Shared, task: Task) -> Result<Result<(), Rejection>, Status> {
    let pieces = pieces::of_task(&task);
    // What may be hundreds of megabytes is among the pieces only, and gone once it is kept.
    drop(task.task);
    let key = convert::key(task.job_id, task.task_id)?;
    let task_type = TypeName::parse(task.task_type).map_err(|error| convert::bad("task_type", &error.why))?;
    let assignee = match task.assignee.as_str() {
        "" => None,
        name => Some(WorkerId::parse(name).map_err(|error| convert::bad("assignee", &error.why))?),
    };
    let (content, fingerprint, pinned) = content(shared, pieces).await?;
    let command = Command::Submit(Submission {
        key: key.clone(),
        task_type,
        content,
        fingerprint,
        assignee,
    });
    match shared.handle.send_pinned(command, pinned.into_iter().collect()).await {
        Ok(_) => Ok(Ok(())),
        Err(Refusal::Rejected(rejection)) => {
            tracing::info!(task = %key, reason = %rejection, "task refused");
            Ok(Err(rejection))
        }
        Err(error) => Err(convert::refused(error)),
    }
}

/// The content as a record holds it, durable if it is a file; the pin goes with the command.
async fn content(shared: &Shared, pieces: Vec<Bytes>) -> Result<(Content, [u8; 32], Option<Pinned>), Status> {
    let payloads = shared.payloads.clone();
    let is_small = Content::fits(pieces::len(&pieces));
    let keep = move || payloads.keep(&pieces);
    let kept = if is_small {
        // No disk, no thread.
        keep()
    } else {
        Supervisor::blocking(keep).await.map_err(convert::unavailable)?
    };
    let (content, pinned) = kept.map_err(convert::unavailable)?;
    let fingerprint = match &content {
        Content::Inline(bytes) => Sha256::digest(bytes).into(),
        // The same of the same bytes, taken on their way to the disk.
        Content::Stored(payload) => payload.hash,
    };
    Ok((content, fingerprint, pinned))
}

/// The door of `Cluster/SubmitTasks`: until all is answered and no more comes, or the caller is gone.
pub(super) async fn run(shared: Shared, inbound: tonic::Streaming<SubmitTask>, out: Answers) {
    if let Err(status) = serve(&shared, inbound, &out).await {
        let _ = out.send(Err(status)).await;
    }
}

async fn serve(shared: &Shared, inbound: tonic::Streaming<SubmitTask>, out: &Answers) -> Result<(), Status> {
    let mut requests = inbound.ready_chunks(CHUNK);
    let mut waiting = FuturesUnordered::new();
    let (mut asking, mut failed) = (true, None);
    while asking || !waiting.is_empty() {
        tokio::select! {
            chunk = requests.next(), if asking && waiting.len() < WAITING_MAX => match chunk {
                Some(chunk) => {
                    for request in chunk {
                        waiting.push(answer(shared, request?));
                    }
                }
                None => asking = false,
            },
            Some(answer) = waiting.next() => {
                match answer {
                    Ok(answer) => if out.send(Ok(answer)).await.is_err() {
                        return Ok(());
                    },
                    // Others may have been taken all the same, and are answered first.
                    Err(status) => {
                        asking = false;
                        failed.get_or_insert(status);
                    }
                }
            }
            () = out.closed() => return Ok(()),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What is wrong with one task is said of that one; only what may pass, or is no fault of a task, ends the stream.
async fn answer(shared: &Shared, request: SubmitTask) -> Result<TaskSubmitted, Status> {
    let submitted = match request.task {
        Some(task) if task.encoded_len() > TASK_MAX => Err(convert::bad(
            "task",
            &format!("must be of at most {TASK_MAX} bytes in a stream; use TaskSubmit"),
        )),
        Some(task) => submit(shared, task).await,
        None => Err(convert::bad("task", "must be set")),
    };
    let reason = match submitted {
        Ok(Ok(())) => None,
        Ok(Err(rejection)) => Some(rejection.to_string()),
        Err(status) if status.code() == tonic::Code::InvalidArgument => Some(status.message().to_owned()),
        Err(status) => return Err(status),
    };
    Ok(TaskSubmitted {
        number: request.number,
        taken: reason.is_none(),
        reason: reason.unwrap_or_default(),
    })
}
