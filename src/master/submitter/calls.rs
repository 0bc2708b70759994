//! What is said to the cluster manager, one call each: in the words of `fedbroker.v1` to one of ours, in those of FedVision 0.1 to another.
//!
//! Called by the submitter's lanes, which make a call again until it is answered. It must never take a failed call for an answer.

use super::Submitter;
use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::master::SubmitAnswer;
use crate::machine::master::records::Lease;
use crate::master::call::Failed;
use crate::master::sending;
use crate::wire::connect::{MESSAGE_MAX, PeerKind};
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedbroker::v1::{AcquireLeaseRequest, CancelTaskRequest, ForgetJobRequest, ReleaseLeaseRequest};
use crate::wire::fedvision::framework::Task as WireTask;
use crate::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use crate::wire::fedvision::framework::cluster::{task_resource_require, task_submit};
use crate::wire::metered::Channel;
use prost::Message;

impl Submitter {
    pub(super) async fn acquire(&self, job: &JobId, endpoints: u16) -> Result<Lease, Failed> {
        let (worker, addresses) = match self.probe.kind().await? {
            PeerKind::Fedbroker { .. } => {
                let request = AcquireLeaseRequest {
                    job_id: job.as_str().to_owned(),
                    endpoints: u32::from(endpoints),
                };
                let reply = ClusterClient::new(self.channel.clone()).acquire_lease(request).await?.into_inner();
                if !reply.granted {
                    let refused = if reply.busy { Failed::Busy } else { Failed::Waiting };
                    return Err(refused(reply.reason));
                }
                (reply.worker_id, reply.endpoints)
            }
            PeerKind::FedVision => {
                let request = task_resource_require::Req {
                    num_endpoints: i32::from(endpoints),
                };
                let reply = self.fedvision().task_resource_require(request).await?.into_inner();
                if reply.status() != task_resource_require::Status::Success {
                    let why = "the cluster manager has no slots left; a FedVision 0.1 manager never gives them back";
                    return Err(Failed::Waiting(why.to_owned()));
                }
                (reply.worker_id, reply.endpoints)
            }
        };
        if addresses.len() != usize::from(endpoints) {
            let why = format!(
                "the cluster manager gave {} endpoints where {endpoints} were asked for",
                addresses.len()
            );
            return Err(Failed::Refused(why));
        }
        Lease::parse(&worker, &addresses).map_err(|error| Failed::Refused(format!("the cluster manager's lease is not right: {error}")))
    }

    pub(super) async fn release(&self, job: &JobId) -> Result<(), Failed> {
        if let PeerKind::Fedbroker { .. } = self.probe.kind().await? {
            let request = ReleaseLeaseRequest {
                job_id: job.as_str().to_owned(),
            };
            ClusterClient::new(self.channel.clone()).release_lease(request).await?;
        }
        Ok(())
    }

    /// Submit a task once. Its content is the encoded task.
    pub(super) async fn submit(&self, content: &Content) -> Result<SubmitAnswer, Failed> {
        let kind = self.probe.kind().await?;
        let unreadable = |error: anyhow::Error| Failed::Unreadable(format!("{error:#}"));
        let reply = match content {
            Content::Inline(bytes) => {
                let mut task = WireTask::decode(bytes.as_slice()).map_err(|error| unreadable(error.into()))?;
                if let PeerKind::Fedbroker { .. } = kind {
                    match self.small_tasks.submit(task).await {
                        Ok(answer) => return answer,
                        Err(back) => task = back,
                    }
                }
                self.fedvision().task_submit(task_submit::Req { task: Some(task) }).await?
            }
            Content::Stored(payload) => {
                let pieces = Box::pin(self.shared.open(*payload)).await.map_err(unreadable)?;
                Box::pin(sending::submit(self.channel.clone(), pieces)).await?
            }
        };
        let reply = reply.into_inner();
        Ok(match (reply.status(), kind) {
            (task_submit::Status::Success, PeerKind::Fedbroker { .. }) => SubmitAnswer::Taken,
            (task_submit::Status::Success, PeerKind::FedVision) => SubmitAnswer::TakenUnwatched,
            (task_submit::Status::Failed | task_submit::Status::Unknown, _) => SubmitAnswer::Refused,
        })
    }

    /// Whether the manager knows the task; its end comes by the watch.
    pub(super) async fn cancel(&self, key: &TaskKey, reason: &str) -> Result<bool, Failed> {
        if self.probe.kind().await? == PeerKind::FedVision {
            return Err(Failed::Refused("a FedVision 0.1 cluster manager cannot stop a task".to_owned()));
        }
        let (job_id, task_id) = (key.job.as_str().to_owned(), key.task.as_str().to_owned());
        let request = CancelTaskRequest {
            job_id,
            task_id,
            reason: reason.to_owned(),
        };
        Ok(ClusterClient::new(self.channel.clone())
            .cancel_task(request)
            .await?
            .into_inner()
            .known)
    }

    /// A FedVision 0.1 manager keeps nothing that could be asked for.
    pub(super) async fn forget_job(&self, job: &JobId) -> Result<(), Failed> {
        if let PeerKind::Fedbroker { .. } = self.probe.kind().await? {
            let request = ForgetJobRequest {
                job_id: job.as_str().to_owned(),
            };
            ClusterClient::new(self.channel.clone()).forget_job(request).await?;
        }
        Ok(())
    }

    fn fedvision(&self) -> ClusterManagerClient<Channel> {
        ClusterManagerClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }
}
