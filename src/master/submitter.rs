//! The cluster submitter: everything this party asks of its cluster manager, in order for each job, many jobs at once.
//!
//! A call that fails is made again with backoff until it is answered; no error ends a lane. How tasks end is learnt by [`super::watch`].

use super::Shared;
use super::settings::Patience;
use super::watch::Watcher;
use crate::engine::Refusal;
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::master::records::{Lease, TaskState};
use crate::machine::master::{Command, Effect, Key, Record, SubmitAnswer};
use crate::machine::outcome::{End, Outcome};
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, MESSAGE_MAX, PeerKind, Probe};
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedbroker::v1::{AcquireLeaseRequest, CancelTaskRequest, ReleaseLeaseRequest};
use crate::wire::fedvision::framework::Task as WireTask;
use crate::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use crate::wire::fedvision::framework::cluster::{task_resource_require, task_submit};
use crate::wire::metered::Channel;
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::{Instrument, Span};

/// Calls in flight at once: enough to fill the manager's commit batches, few enough that large payloads do not pile up in memory.
const IN_FLIGHT: usize = 64;
/// The role of the peer, in metrics.
pub(super) const PEER: &str = "cluster-manager";
/// Runs lanes of effects, one lane for each job. Cheap to clone.
#[derive(Clone)]
pub(super) struct Submitter {
    shared: Shared,
    channel: Channel,
    address: String,
    probe: Probe,
    watcher: Watcher,
    lanes: Arc<Mutex<HashMap<JobId, VecDeque<Effect>>>>,
    in_flight: Arc<Semaphore>,
    /// How long one call may take.
    call_limit: Duration,
}

/// Why a call was not answered.
enum Failed {
    /// The call failed; ask again.
    Passing(String),
    /// Not now; ask again.
    Waiting(String),
    /// The peer said that it will never do this.
    Refused(String),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        use tonic::Code::{FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted};
        match status.code() {
            InvalidArgument | FailedPrecondition | OutOfRange | ResourceExhausted => Failed::Refused(status.message().to_owned()),
            _ => Failed::Passing(status.message().to_owned()),
        }
    }
}

impl Submitter {
    pub(super) fn new(shared: Shared, channel: Channel, address: String, patience: &Patience) -> Self {
        let probe = Probe::new(channel.clone(), "master");
        let watcher = Watcher::start(&shared, channel.clone(), probe.clone());
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        Self {
            shared,
            channel,
            address,
            probe,
            watcher,
            lanes: Arc::default(),
            in_flight,
            call_limit: Duration::from_secs(patience.cluster_s),
        }
    }

    /// Put an effect into the lane of its job; the lane runs by itself.
    pub(super) fn take(&self, effect: Effect) {
        let job = match &effect {
            Effect::Watch { key } => return self.watcher.watch(key.clone()),
            Effect::AcquireLease { job, .. } | Effect::ReleaseLease { job } => job.clone(),
            Effect::Submit { key, .. } | Effect::Cancel { key, .. } => key.job.clone(),
            Effect::Prepare { .. } | Effect::Propose { .. } | Effect::Fetch { .. } => return,
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(&job) {
            lane.push_back(effect);
            return;
        }
        lanes.insert(job.clone(), VecDeque::from([effect]));
        drop(lanes);
        let submitter = self.clone();
        self.shared.supervisor.spawn("submitter", Policy::Passing, async move {
            while let Some(effect) = submitter.next(&job) {
                let span = span_of(&effect);
                submitter.perform(effect).instrument(span).await;
            }
        });
    }

    fn next(&self, job: &JobId) -> Option<Effect> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let effect = lanes.get_mut(job).and_then(VecDeque::pop_front);
        if effect.is_none() {
            lanes.remove(job);
        }
        effect
    }

    async fn perform(&self, effect: Effect) {
        match effect {
            Effect::AcquireLease { job, step, endpoints } => {
                let result = self.until_answered(Some(&job), || self.acquire(&job, endpoints)).await;
                self.tell(Command::Leased { job, step, result }).await;
            }
            Effect::ReleaseLease { job } => {
                let _ = self.until_answered(None, || self.release(&job)).await;
                self.tell(Command::LeaseReleased { job }).await;
            }
            Effect::Submit { key, tries } => {
                pause(tries).await;
                let Some(task) = self.task(&key).await else { return };
                let own = Some(&key.job);
                let answer = self.until_answered(own, || self.submit(task.clone())).await;
                self.tell(Command::Submitted {
                    key,
                    tries,
                    answer: answer.unwrap_or(SubmitAnswer::Refused),
                })
                .await;
            }
            Effect::Cancel { key, reason } => {
                let answer = self.until_answered(None, || self.cancel(&key, &reason)).await;
                match answer {
                    Ok(true) => self.watcher.watch(key),
                    Ok(false) | Err(_) => {
                        let why = match answer {
                            Ok(_) => "it never reached the cluster",
                            Err(_) => "the cluster manager cannot stop a task",
                        };
                        let outcome = Outcome::without_process(End::Cancelled, format!("{reason}; {why}"));
                        self.tell(Command::TaskEnded { key, outcome }).await;
                    }
                }
            }
            Effect::Watch { .. } | Effect::Prepare { .. } | Effect::Propose { .. } | Effect::Fetch { .. } => {}
        }
    }

    /// Make a call until it is answered. `Err` is a refusal that asking again would not change.
    async fn until_answered<T, F>(&self, job: Option<&JobId>, call: impl Fn() -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut backoff = Backoff::new();
        let metrics = self.shared.supervisor.metrics().peers();
        loop {
            let permit = self.in_flight.acquire().await;
            let answer = tokio::time::timeout(self.call_limit, call()).await;
            drop(permit);
            let why = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Refused(why))) => return Err(why),
                Ok(Err(Failed::Waiting(why))) => {
                    metrics.not_now(PEER);
                    why
                }
                Ok(Err(Failed::Passing(why))) => self.unreachable(&why),
                Err(_) => self.unreachable("no answer in time"),
            };
            tracing::debug!(?job, why, "trying again");
            if let Some(job) = job {
                let _ = self
                    .shared
                    .handle
                    .send(Command::Note {
                        job: job.clone(),
                        note: why,
                    })
                    .await;
            }
            backoff.wait().await;
        }
    }

    /// A call failed: what is known of the peer may be wrong by now.
    fn unreachable(&self, why: &str) -> String {
        self.probe.forget();
        self.shared.supervisor.metrics().peers().unanswered(PEER);
        format!("the cluster manager at {} cannot be reached: {why}", self.address)
    }

    async fn acquire(&self, job: &JobId, endpoints: u16) -> Result<Lease, Failed> {
        let (worker, addresses) = match self.probe.kind().await? {
            PeerKind::Fedbroker { .. } => {
                let request = AcquireLeaseRequest {
                    job_id: job.as_str().to_owned(),
                    endpoints: u32::from(endpoints),
                };
                let reply = ClusterClient::new(self.channel.clone()).acquire_lease(request).await?.into_inner();
                if !reply.granted {
                    return Err(Failed::Waiting(reply.reason));
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

    async fn release(&self, job: &JobId) -> Result<(), Failed> {
        if let PeerKind::Fedbroker { .. } = self.probe.kind().await? {
            let request = ReleaseLeaseRequest {
                job_id: job.as_str().to_owned(),
            };
            ClusterClient::new(self.channel.clone()).release_lease(request).await?;
        }
        Ok(())
    }

    async fn submit(&self, task: WireTask) -> Result<SubmitAnswer, Failed> {
        let kind = self.probe.kind().await?;
        let reply = self
            .fedvision()
            .task_submit(task_submit::Req { task: Some(task) })
            .await?
            .into_inner();
        Ok(match (reply.status(), kind) {
            (task_submit::Status::Success, PeerKind::Fedbroker { .. }) => SubmitAnswer::Taken,
            (task_submit::Status::Success, PeerKind::FedVision) => SubmitAnswer::TakenUnwatched,
            (task_submit::Status::Failed | task_submit::Status::Unknown, _) => SubmitAnswer::Refused,
        })
    }

    /// Whether the manager knows the task; its end comes by the watch.
    async fn cancel(&self, key: &TaskKey, reason: &str) -> Result<bool, Failed> {
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

    fn fedvision(&self) -> ClusterManagerClient<Channel> {
        ClusterManagerClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// The task to send, if it still waits to be sent.
    async fn task(&self, key: &TaskKey) -> Option<WireTask> {
        let content = match self.shared.record(Key::Task(key.clone())).await {
            Some(Record::Task(task)) if task.state == TaskState::Queued => task.content?,
            _ => return None,
        };
        let bytes = self.shared.load(&content).await;
        match bytes.and_then(|bytes| Ok(WireTask::decode(bytes::Bytes::from(bytes))?)) {
            Ok(task) => Some(task),
            Err(error) => {
                let outcome = Outcome::without_process(End::Failed, format!("the stored task cannot be read: {error:#}"));
                self.tell(Command::TaskEnded { key: key.clone(), outcome }).await;
                None
            }
        }
    }

    async fn tell(&self, command: Command) {
        if let Err(Refusal::Rejected(late)) = self.shared.handle.send(command).await {
            tracing::debug!(%late, "a late outcome");
        }
    }
}

/// What is done for an effect, by its job and task.
fn span_of(effect: &Effect) -> Span {
    match effect {
        Effect::Submit { key, .. } | Effect::Cancel { key, .. } => {
            tracing::info_span!("submitter", job = %key.job, task = %key.task)
        }
        Effect::AcquireLease { job, .. } | Effect::ReleaseLease { job } => tracing::info_span!("submitter", job = %job),
        _ => Span::none(),
    }
}

/// A pause that grows with the number of refusals, up to 5 s.
pub(super) async fn pause(tries: u32) {
    if tries > 0 {
        let mut backoff = Backoff::new();
        let delay = (0..tries.min(8)).map(|_| backoff.delay()).last().unwrap_or_default();
        tokio::time::sleep(delay).await;
    }
}
