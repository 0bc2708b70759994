//! Our own door: `fedbroker.v1.Cluster`.
//!
//! Called by our masters and workers. Checks and converts, sends commands, answers when they are durable.

use super::convert;
use super::parts::Shared;
use super::{forget, logs, submits, watch, worker_stream};
use crate::engine::Refusal;
use crate::machine::cluster::{Command, Rejection, Reply};
use crate::machine::ids::JobId;
use crate::supervisor::Policy;
use crate::wire::fedbroker::v1 as ours;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers of a watch stream on their way; a caller that reads slowly is asked slowly.
const ANSWERS: usize = 64;

/// The service.
#[derive(Clone)]
pub(super) struct Fedbroker(pub(super) Shared);

#[tonic::async_trait]
impl ours::cluster_server::Cluster for Fedbroker {
    async fn acquire_lease(&self, request: Request<ours::AcquireLeaseRequest>) -> Result<Response<ours::AcquireLeaseReply>, Status> {
        let request = request.into_inner();
        let job = JobId::parse(request.job_id).map_err(convert::bad_id)?;
        let endpoints = convert::endpoints(i64::from(request.endpoints), "endpoints")?;
        let reply = match self.0.acquire(Some(job), endpoints).await {
            Ok(Reply::Lease { worker, endpoints }) => ours::AcquireLeaseReply {
                granted: true,
                reason: String::new(),
                worker_id: worker.as_str().to_owned(),
                endpoints,
                busy: false,
            },
            Err(Refusal::Rejected(rejection)) => ours::AcquireLeaseReply {
                busy: matches!(rejection, Rejection::Busy(_)),
                reason: rejection.to_string(),
                ..Default::default()
            },
            Ok(other) => return Err(Status::internal(format!("unexpected reply {other:?}"))),
            Err(error) => return Err(convert::refused(error)),
        };
        Ok(Response::new(reply))
    }

    async fn release_lease(&self, request: Request<ours::ReleaseLeaseRequest>) -> Result<Response<ours::ReleaseLeaseReply>, Status> {
        let job = JobId::parse(request.into_inner().job_id).map_err(convert::bad_id)?;
        self.0.handle.send(Command::ReleaseLease { job }).await.map_err(convert::refused)?;
        Ok(Response::new(ours::ReleaseLeaseReply {}))
    }

    async fn cancel_task(&self, request: Request<ours::CancelTaskRequest>) -> Result<Response<ours::CancelTaskReply>, Status> {
        let request = request.into_inner();
        let key = convert::key(request.job_id, request.task_id)?;
        let command = Command::Cancel {
            key,
            reason: request.reason,
        };
        let reply = self.0.handle.send(command).await.map_err(convert::refused)?;
        let known = reply == Reply::Cancelled { known: true };
        Ok(Response::new(ours::CancelTaskReply { known }))
    }

    type SubmitTasksStream = ReceiverStream<Result<ours::TaskSubmitted, Status>>;

    async fn submit_tasks(&self, request: Request<Streaming<ours::SubmitTask>>) -> Result<Response<Self::SubmitTasksStream>, Status> {
        let (out, stream) = mpsc::channel(ANSWERS);
        let life = submits::run(self.0.clone(), request.into_inner(), out);
        self.0.supervisor.spawn("submit stream", Policy::Ordinary, life);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type WatchStream = ReceiverStream<Result<ours::TaskEnd, Status>>;

    async fn watch(&self, request: Request<Streaming<ours::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (out, stream) = mpsc::channel(ANSWERS);
        let life = watch::run(self.0.clone(), request.into_inner(), out);
        self.0.supervisor.spawn("watch stream", Policy::Ordinary, life);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type TaskLogsStream = ReceiverStream<Result<ours::LogChunk, Status>>;

    async fn task_logs(&self, request: Request<ours::TaskLogsRequest>) -> Result<Response<Self::TaskLogsStream>, Status> {
        // One chunk on its way: what a caller does not read stays at the worker.
        let (out, stream) = mpsc::channel(1);
        logs::open(&self.0, request.into_inner(), out).await?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn forget_job(&self, request: Request<ours::ForgetJobRequest>) -> Result<Response<ours::ForgetJobReply>, Status> {
        let job = JobId::parse(request.into_inner().job_id).map_err(convert::bad_id)?;
        let tasks = forget::job(&self.0, job).await?;
        Ok(Response::new(ours::ForgetJobReply { tasks }))
    }

    type AttachStream = ReceiverStream<Result<ours::ToWorker, Status>>;

    async fn attach(&self, request: Request<Streaming<ours::FromWorker>>) -> Result<Response<Self::AttachStream>, Status> {
        let (out, stream) = mpsc::channel(worker_stream::MESSAGES);
        worker_stream::spawn(&self.0, worker_stream::run_ours(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
