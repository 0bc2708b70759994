//! Proposals on their way in: large tasks go to their payload files as they come, so that a proposal of many costs no memory.
//!
//! In front of `service`, which gets the request without them and the files beside it ([`Kept`]). It decides nothing: what is wrong with a request is for
//! tonic and `service` to say. It must never take a message for whole whose call broke off.

use super::convert::store_failed;
use crate::machine::coordinator::TASKS_MAX;
use crate::store::payload::{Payloads, Pinned, Writer};
use crate::supervisor::Supervisor;
use crate::wire::body::{self, FRAME};
use crate::wire::connect::MESSAGE_MAX;
use crate::wire::fedvision::framework::Task;
use crate::wire::pieces;
use crate::wire::unpacking::{Event, LARGE, Unpacking};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

/// The call that brings large messages.
const PROPOSAL: &str = "/fedvision.framework.coordinator.Coordinator/Proposal";
/// Written to a file at once, bytes: a turn in the pool costs as much as some dozen kilobytes.
const BLOCK: usize = 256 * 1024;

/// How long a caller may be silent in the middle of its message: what has come of it takes space.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The most bytes of a message that are not in large tasks, each of which may be nearly one.
const LEAN_MAX: usize = (TASKS_MAX + 1) * (LARGE as usize + 1024);

/// Among the extensions of a request: its tasks that are in files, by their place among all, which have no payload in the message.
#[derive(Clone, Default)]
pub(super) struct Kept(Option<Arc<Spool>>);

impl Kept {
    /// The file of the task at this place.
    pub(super) fn file(&self, place: usize) -> Option<&Pinned> {
        let files = &self.0.as_ref()?.files;
        files.iter().find(|(kept, _)| *kept == place).map(|(_, pin)| pin)
    }
}

/// Files of one proposal. What no command has come to hold when this ends is removed then, or a quiet coordinator would keep it.
struct Spool {
    payloads: Arc<Payloads>,
    files: Vec<(usize, Pinned)>,
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.files.clear();
        self.payloads.settle(&[], &[]);
    }
}

/// The service, with files for its large requests.
#[derive(Clone)]
pub(super) struct Intake<S> {
    pub(super) inner: S,
    pub(super) payloads: Arc<Payloads>,
}

impl<S: NamedService> NamedService for Intake<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Intake<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != PROPOSAL {
            return Box::pin(self.inner.call(request));
        }
        // The one that said it was ready.
        let next = self.inner.clone();
        let (mut inner, payloads) = (std::mem::replace(&mut self.inner, next), self.payloads.clone());
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let body = match taken(&payloads, body, SILENCE_MAX).await {
                Ok((body, kept)) => {
                    parts.extensions.insert(kept);
                    body
                }
                // tonic finds it where it would read the message, and answers it.
                Err(status) => Body::new(StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(status)]))),
            };
            inner.call(Request::from_parts(parts, body)).await
        })
    }
}

/// A body without the large tasks of its message, and those.
async fn taken(payloads: &Arc<Payloads>, mut body: Body, silence: Duration) -> Result<(Body, Kept), Status> {
    let mut begun = BytesMut::new();
    while begun.len() < FRAME {
        match body.frame().await {
            Some(frame) => begun.extend_from_slice(&frame?.into_data().unwrap_or_default()),
            None => break,
        }
    }
    let len = match begun.first_chunk::<FRAME>() {
        Some([0, len @ ..]) => u64::from(u32::from_be_bytes(*len)),
        _ => 0,
    };
    if len <= LARGE || len > MESSAGE_MAX as u64 {
        let begun = stream::iter([Ok(Frame::data(begun.freeze()))]);
        return Ok((Body::new(StreamBody::new(begun.chain(BodyStream::new(body)))), Kept::default()));
    }
    let mut unpacking = Unpacking::new(len);
    let mut files = Files::new(payloads.clone());
    unpacking.push(&begun.split_off(FRAME));
    files.take(&mut unpacking).await?;
    // To its end, not only that of the message: a call that is broken off is none.
    let silent = |_| Status::deadline_exceeded(format!("nothing of the message came for {silence:?}"));
    while let Some(frame) = tokio::time::timeout(silence, body.frame()).await.map_err(silent)? {
        if let Ok(data) = frame?.into_data() {
            if unpacking.is_whole() && !data.is_empty() {
                return Err(Status::invalid_argument("there are bytes behind the message"));
            }
            unpacking.push(&data);
            files.take(&mut unpacking).await?;
        }
        if unpacking.lean() > LEAN_MAX {
            let why = format!("more than {LEAN_MAX} bytes of the proposal are not in tasks, or in more than {TASKS_MAX} of them");
            return Err(Status::invalid_argument(why));
        }
    }
    if !unpacking.is_whole() {
        return Err(Status::internal("Unexpected EOF decoding stream."));
    }
    let message = unpacking.finish();
    let body = body::call(&message, 0, stream::empty::<Result<Bytes, Status>>())?;
    Ok((body, Kept(Some(Arc::new(files.spool)))))
}

/// Where the large tasks of one proposal go.
struct Files {
    spool: Spool,
    /// The task that is coming, by its place; no file if there are too many tasks for any of them to be taken.
    place: usize,
    writer: Option<Writer>,
    /// Not written yet.
    block: Vec<Bytes>,
    bytes: usize,
}

impl Files {
    fn new(payloads: Arc<Payloads>) -> Self {
        Self {
            spool: Spool {
                payloads,
                files: Vec::new(),
            },
            place: 0,
            writer: None,
            block: Vec::new(),
            bytes: 0,
        }
    }

    /// All that has come.
    async fn take(&mut self, unpacking: &mut Unpacking) -> Result<(), Status> {
        while let Some(event) = unpacking.event() {
            match event {
                Event::Begins(place) => {
                    self.place = place;
                    if place < TASKS_MAX {
                        let payloads = self.spool.payloads.clone();
                        self.writer = Some(blocking(move || payloads.writer()).await?);
                    }
                }
                Event::Bytes(bytes) => {
                    self.bytes += bytes.len();
                    self.block.push(bytes);
                    if self.bytes >= BLOCK {
                        self.write().await?;
                    }
                }
                Event::Ends(task) => {
                    self.write().await?;
                    unpacking.put(&self.ended(task).await?);
                }
            }
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Status> {
        self.bytes = 0;
        let block = std::mem::take(&mut self.block);
        if let Some(mut writer) = self.writer.take() {
            let written = blocking(move || {
                block.iter().try_for_each(|bytes| writer.write(bytes))?;
                Ok(writer)
            });
            self.writer = Some(written.await?);
        }
        Ok(())
    }

    /// The task without its payload.
    async fn ended(&mut self, task: Option<Task>) -> Result<Task, Status> {
        let Some(writer) = self.writer.take() else {
            return Ok(task.unwrap_or_default());
        };
        let pin = blocking(move || writer.finish()).await?;
        let (task, pin) = match task {
            Some(task) => (task, pin),
            None => self.rewritten(pin).await?,
        };
        self.spool.files.push((self.place, pin));
        Ok(task)
    }

    /// Of a task that was not written as we would: as if it had been.
    async fn rewritten(&self, pin: Pinned) -> Result<(Task, Pinned), Status> {
        let payloads = self.spool.payloads.clone();
        let bytes = Bytes::from(blocking(move || payloads.get(&pin)).await?);
        let task = Task::decode(bytes).map_err(|error| Status::internal(format!("failed to decode Protobuf message: {error}")))?;
        let (payloads, pieces) = (self.spool.payloads.clone(), pieces::of_task(&task));
        let pin = blocking(move || payloads.put_pieces(&pieces)).await?;
        Ok((Task { task: None, ..task }, pin))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static) -> Result<T, Status> {
    let done = Supervisor::blocking(work)
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| store_failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Any;
    use crate::wire::fedvision::framework::coordinator::proposal;

    /// A body of these frames, the first of them with what goes before a message of `len` bytes.
    fn body(len: usize, message: &[u8], end: Option<Status>) -> Body {
        let mut begun = vec![0];
        begun.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        let bytes = [&begun, message].concat();
        let frames: Vec<_> = bytes
            .chunks(10_000)
            .map(|bytes| Ok(Frame::data(Bytes::copy_from_slice(bytes))))
            .collect();
        Body::new(StreamBody::new(stream::iter(frames.into_iter().chain(end.map(Err)))))
    }

    #[tokio::test]
    async fn only_a_body_that_has_ended_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = Arc::new(Payloads::open(dir.path(), MESSAGE_MAX as u64).unwrap());
        let task = Task {
            job_id: "j".into(),
            task: Some(Any {
                type_url: "x".into(),
                value: vec![7; 300_000].into(),
            }),
            ..Task::default()
        };
        let request = proposal::Req {
            tasks: vec![task.clone()],
            ..Default::default()
        };
        let message = request.encode_to_vec();
        let (lean, kept) = taken(&payloads, body(message.len(), &message, None), SILENCE_MAX).await.unwrap();
        assert_eq!(payloads.get(kept.file(0).unwrap()).unwrap(), task.encode_to_vec());
        assert!(kept.file(1).is_none());
        assert!(lean.collect().await.unwrap().to_bytes().len() < 100);

        // All of the message has come, but not the end of the call.
        let broken = taken(
            &payloads,
            body(message.len(), &message, Some(Status::data_loss("broken off"))),
            SILENCE_MAX,
        )
        .await;
        assert_eq!(broken.err().unwrap().message(), "broken off");
        let short = taken(&payloads, body(message.len() + 1, &message, None), SILENCE_MAX).await;
        assert_eq!(short.err().unwrap().code(), tonic::Code::Internal);
        drop(kept);
        assert_eq!(files(dir.path()), 0);
    }

    fn files(dir: &std::path::Path) -> usize {
        let entries = |dir: &std::path::Path| {
            std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect::<Vec<_>>()
        };
        let files = |entry: std::path::PathBuf| if entry.is_dir() { entries(&entry).len() } else { 1 };
        entries(dir).into_iter().map(files).sum()
    }

    #[tokio::test]
    async fn a_caller_is_not_waited_for_and_not_listened_to_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = Arc::new(Payloads::open(dir.path(), MESSAGE_MAX as u64).unwrap());
        let whole = proposal::Req {
            job_type: "x".repeat(100_000),
            tasks: vec![Task {
                task_type: "y".repeat(100_000),
                ..Task::default()
            }],
            ..Default::default()
        };
        let whole = whole.encode_to_vec();
        let begun = body(whole.len() + 1, &whole, None);
        let silent = Body::new(StreamBody::new(BodyStream::new(begun).chain(stream::pending())));
        let silent = taken(&payloads, silent, Duration::from_millis(10)).await;
        assert_eq!(silent.err().unwrap().code(), tonic::Code::DeadlineExceeded);
        let more = taken(&payloads, body(whole.len(), &[&whole[..], &whole].concat(), None), SILENCE_MAX).await;
        assert_eq!(more.err().unwrap().message(), "there are bytes behind the message");
        let fat = proposal::Req {
            job_type: "x".repeat(LEAN_MAX + 1),
            ..Default::default()
        };
        let fat = fat.encode_to_vec();
        let fat = taken(&payloads, body(fat.len(), &fat, None), SILENCE_MAX).await;
        assert_eq!(fat.err().unwrap().code(), tonic::Code::InvalidArgument);
        assert_eq!(files(dir.path()), 0);
    }
}
