//! A party master as FedVision 0.1 has it: subscribes once, fetches every offer at once, hands what it gets to its cluster unchanged, one task
//! after the other. It never leaves, and never subscribes again.
//!
//! The job it proposes is a dummy one: 0.1 has no such loader, but the calls are those of its paddle_fl jobs.

use super::{Process, lock};
use fedbroker::wire::connect::{MESSAGE_MAX, channel};
use fedbroker::wire::fedbroker::v1::DummyTask;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::{task_resource_require, task_submit};
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, proposal, subscribe};
use prost::Message;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

/// What a job of it has come to, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// For ever, if there were no resources.
    Waiting,
    /// For ever, if the call failed.
    Proposal,
    Failed,
    /// For ever.
    Running,
}

/// The running master.
pub struct OldMaster {
    process: Process,
    party: String,
    coordinator: CoordinatorClient<Channel>,
    manager: ClusterManagerClient<Channel>,
    queue: mpsc::UnboundedSender<Task>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Offers of its one subscription.
    offers: Mutex<Vec<String>>,
    /// What fetches came to.
    fetched: Mutex<Vec<fetch_task::Status>>,
    /// The answer to its one Subscribe was not an offer, or it ended: nobody notices.
    deaf: Mutex<bool>,
    /// One failed call ends the sending of tasks for the life of the process.
    mute: Mutex<bool>,
}

impl OldMaster {
    /// Subscribe, and that is all the effort it makes.
    pub fn start(party: &str, coordinator: &str, manager: &str) -> Self {
        let (process, state) = (Process::new(), Arc::new(State::default()));
        // Channels belong to the runtime in which they are made.
        let (coordinator, manager) = process.inside(|| clients(coordinator, manager));
        let (queue, tasks) = mpsc::unbounded_channel();
        process.spawn(subscribe(party.to_owned(), coordinator.clone(), queue.clone(), state.clone()));
        process.spawn(send(manager.clone(), tasks, state.clone()));
        let party = party.to_owned();
        Self {
            process,
            party,
            coordinator,
            manager,
            queue,
            state,
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn offers(&self) -> Vec<String> {
        lock(&self.state.offers).clone()
    }

    pub fn fetched(&self) -> Vec<fetch_task::Status> {
        lock(&self.state.fetched).clone()
    }

    pub fn is_deaf(&self) -> bool {
        *lock(&self.state.deaf)
    }

    pub fn is_mute(&self) -> bool {
        *lock(&self.state.mute)
    }

    /// Endpoints, a proposal of `workers` trainers, and then the aggregator where the endpoints are.
    pub fn submit(&self, job: &str, workers: u32, wait_s: u32) -> Arc<Mutex<JobStatus>> {
        let status = Arc::new(Mutex::new(JobStatus::Waiting));
        let life = Job {
            job: job.to_owned(),
            coordinator: self.coordinator.clone(),
            manager: self.manager.clone(),
            queue: self.queue.clone(),
            status: status.clone(),
        };
        self.process.spawn(async move {
            // Any failure leaves the job in the state it has.
            let _ = life.run(workers, wait_s).await;
        });
        status
    }

    /// The party id it was given.
    pub fn party(&self) -> &str {
        &self.party
    }
}

fn clients(coordinator: &str, manager: &str) -> (CoordinatorClient<Channel>, ClusterManagerClient<Channel>) {
    let coordinator = CoordinatorClient::new(channel(coordinator).unwrap())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let manager = ClusterManagerClient::new(channel(manager).unwrap())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    (coordinator, manager)
}

async fn subscribe(party: String, mut coordinator: CoordinatorClient<Channel>, queue: mpsc::UnboundedSender<Task>, state: Arc<State>) {
    let request = subscribe::Req {
        party_id: party.clone(),
        job_types: vec!["paddle_fl".to_owned(), "dummy".to_owned()],
        credential: String::new(),
    };
    if let Ok(response) = coordinator.subscribe(request).await {
        let mut offers = response.into_inner();
        while let Ok(Some(offer)) = offers.message().await {
            if offer.status() != subscribe::Status::Success {
                break;
            }
            lock(&state.offers).push(offer.proposal_id.clone());
            let (mut coordinator, queue, state) = (coordinator.clone(), queue.clone(), state.clone());
            let request = fetch_task::Req {
                party_id: party.clone(),
                proposal_id: offer.proposal_id,
            };
            tokio::runtime::Handle::current().spawn(async move {
                let Ok(reply) = coordinator.fetch_task(request).await else { return };
                let reply = reply.into_inner();
                lock(&state.fetched).push(reply.status());
                if reply.status() == fetch_task::Status::Ready {
                    let _ = queue.send(reply.task.unwrap_or_default());
                }
            });
        }
    }
    *lock(&state.deaf) = true;
}

/// A FAILED answer is not looked at.
async fn send(mut manager: ClusterManagerClient<Channel>, mut tasks: mpsc::UnboundedReceiver<Task>, state: Arc<State>) {
    while let Some(task) = tasks.recv().await {
        if manager.task_submit(task_submit::Req { task: Some(task) }).await.is_err() {
            *lock(&state.mute) = true;
            return;
        }
    }
}

struct Job {
    job: String,
    coordinator: CoordinatorClient<Channel>,
    manager: ClusterManagerClient<Channel>,
    queue: mpsc::UnboundedSender<Task>,
    status: Arc<Mutex<JobStatus>>,
}

impl Job {
    async fn run(mut self, workers: u32, wait_s: u32) -> Result<(), Status> {
        let request = task_resource_require::Req { num_endpoints: 2 };
        let lease = self.manager.task_resource_require(request).await?.into_inner();
        if lease.status() != task_resource_require::Status::Success {
            return Ok(());
        }
        *lock(&self.status) = JobStatus::Proposal;
        let tasks = (0..workers).map(|i| task(&self.job, &format!("trainer_{i}"), "dummy_trainer", ""));
        let request = proposal::Req {
            job_id: self.job.clone(),
            job_type: "dummy".to_owned(),
            tasks: tasks.collect(),
            proposal_wait_time: wait_s,
            minimum_acceptance: workers,
            maximum_acceptance: workers,
        };
        let reply = self.coordinator.proposal(request).await?.into_inner();
        if reply.status() != proposal::Status::Success {
            *lock(&self.status) = JobStatus::Failed;
            return Ok(());
        }
        *lock(&self.status) = JobStatus::Running;
        let _ = self.queue.send(task(&self.job, "aggregator", "dummy_aggregator", &lease.worker_id));
        Ok(())
    }
}

/// A dummy task whose payload is large enough to become a file where it is kept.
fn task(job: &str, id: &str, task_type: &str, assignee: &str) -> Task {
    let mut value = DummyTask {
        sleep_ms: 1,
        ..DummyTask::default()
    }
    .encode_to_vec();
    // A field nobody knows: bytes of 4 KiB.
    value.extend([0x7a, 0x80, 0x20]);
    value.extend([7; 4096]);
    let payload = fedbroker::wire::Any {
        type_url: "type.googleapis.com/fedbroker.v1.DummyTask".to_owned(),
        value: value.into(),
    };
    Task {
        job_id: job.to_owned(),
        task_id: id.to_owned(),
        task_type: task_type.to_owned(),
        task: Some(payload),
        assignee: assignee.to_owned(),
    }
}
