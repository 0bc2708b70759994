//! The FedVision 0.1 door: `fedvision.framework.cluster.ClusterManager`.
//!
//! Called by masters and workers of 0.1, and by our own for TaskSubmit. Checks and converts, sends commands, answers when they are durable.

use super::convert;
use super::parts::Shared;
use super::{submits, worker_stream};
use crate::engine::Refusal;
use crate::engine::clock::new_instance;
use crate::machine::cluster::{Attach, Command, Key, Record, Reply};
use crate::machine::ids::WorkerId;
use crate::wire::fedvision::framework::cluster::{cluster_manager_server, enroll, task_resource_require, task_submit, update_status};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub(super) struct FedVision(pub(super) Shared);

fn status_reply(taken: bool) -> Response<update_status::Rep> {
    let status = if taken {
        update_status::Status::Success
    } else {
        update_status::Status::Failed
    };
    Response::new(update_status::Rep { status: status.into() })
}

impl FedVision {
    /// True when the worker has a stream or is within its grace time.
    async fn is_known(&self, worker: WorkerId) -> Result<bool, Status> {
        if self.0.hub.seen(&worker) {
            return Ok(true);
        }
        let record = self.0.record(Key::Worker(worker)).await?;
        Ok(matches!(record, Some(Record::Worker(worker)) if !worker.is_lost()))
    }
}

#[tonic::async_trait]
impl cluster_manager_server::ClusterManager for FedVision {
    type EnrollStream = ReceiverStream<Result<enroll::Rep, Status>>;

    async fn enroll(&self, request: Request<enroll::Req>) -> Result<Response<Self::EnrollStream>, Status> {
        let request = request.into_inner();
        let instance: String = new_instance().iter().map(|byte| format!("{byte:02x}")).collect();
        let profile = convert::legacy_profile(&request, instance)?;
        if i32::from(profile.max_tasks) < request.max_tasks {
            tracing::warn!(worker = %request.worker_id, offered = request.max_tasks, used = profile.max_tasks, "worker offers more slots than are used");
        }
        let worker = WorkerId::parse(request.worker_id).map_err(convert::bad_id)?;
        let (out, stream) = mpsc::channel(worker_stream::MESSAGES);
        let known = Vec::new();
        worker_stream::spawn(
            &self.0,
            worker_stream::run_legacy(self.0.clone(), Attach { worker, profile, known }, out),
        );
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn update_task_status(&self, request: Request<update_status::Req>) -> Result<Response<update_status::Rep>, Status> {
        let mut request = request.into_inner();
        let worker = WorkerId::parse(std::mem::take(&mut request.worker_id)).map_err(convert::bad_id)?;
        if request.task_id.is_empty() {
            return self.is_known(worker).await.map(status_reply);
        }
        self.0.hub.seen(&worker);
        let outcome = convert::legacy_outcome(&request)?;
        let key = convert::key(request.job_id, request.task_id)?;
        let command = Command::Report {
            worker,
            key,
            attempt: None,
            outcome,
        };
        match self.0.handle.send(command).await {
            Ok(_) => Ok(status_reply(true)),
            Err(Refusal::Rejected(_)) => Ok(status_reply(false)),
            Err(error) => Err(convert::refused(error)),
        }
    }

    async fn task_submit(&self, request: Request<task_submit::Req>) -> Result<Response<task_submit::Rep>, Status> {
        let task = request.into_inner().task.ok_or_else(|| convert::bad("task", "must be set"))?;
        let status = match submits::submit(&self.0, task).await? {
            Ok(()) => task_submit::Status::Success,
            Err(_) => task_submit::Status::Failed,
        };
        Ok(Response::new(task_submit::Rep { status: status.into() }))
    }

    async fn task_resource_require(
        &self,
        request: Request<task_resource_require::Req>,
    ) -> Result<Response<task_resource_require::Rep>, Status> {
        let endpoints = convert::endpoints(i64::from(request.into_inner().num_endpoints), "num_endpoints")?;
        let reply = match self.0.acquire(None, endpoints).await {
            Ok(Reply::Lease { worker, endpoints }) => task_resource_require::Rep {
                status: task_resource_require::Status::Success.into(),
                worker_id: worker.as_str().to_owned(),
                endpoints,
            },
            Err(Refusal::Rejected(rejection)) => {
                tracing::info!(endpoints, reason = %rejection, "resources refused");
                let status = task_resource_require::Status::Failed.into();
                task_resource_require::Rep {
                    status,
                    ..Default::default()
                }
            }
            Ok(other) => return Err(Status::internal(format!("unexpected reply {other:?}"))),
            Err(error) => return Err(convert::refused(error)),
        };
        Ok(Response::new(reply))
    }
}
