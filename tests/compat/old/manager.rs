//! A cluster manager as FedVision 0.1 has it.

use super::{Process, listen, lock};
use fedbroker::wire::connect::MESSAGE_MAX;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_server::{ClusterManager, ClusterManagerServer};
use fedbroker::wire::fedvision::framework::cluster::{enroll, task_resource_require, task_submit, update_status};
use futures_util::stream::{BoxStream, StreamExt, once, unfold};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A worker that was silent for longer when it is looked at, which is as often, is dropped: 5 to 10 s after its death.
const SILENCE: Duration = Duration::from_secs(5);

/// The running cluster manager.
pub struct OldManager {
    process: Process,
    /// `host:port`.
    pub address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// In the order of enrolment, which is the order of choice.
    workers: Mutex<Vec<Arc<Worker>>>,
    /// By task id alone; the job plays no part.
    statuses: Mutex<HashMap<String, update_status::TaskStatus>>,
    submitted: Mutex<Vec<Task>>,
    refused: Mutex<Vec<Task>>,
    updates: Mutex<Vec<(update_status::Req, update_status::Status)>>,
    leases: Mutex<Vec<task_resource_require::Rep>>,
}

/// A worker with a slot taken, and endpoints on it.
type Granted = (Arc<Worker>, Vec<String>);

struct Worker {
    profile: enroll::Req,
    slots_left: Mutex<i32>,
    port_at: Mutex<i32>,
    seen: Mutex<Instant>,
    queue: Mutex<VecDeque<Task>>,
    put: Notify,
}

impl OldManager {
    /// Empty, at this address (port 0 takes a free one).
    pub async fn start(address: &str) -> Self {
        let (process, state) = (Process::new(), Arc::new(State::default()));
        let at = address.to_owned();
        let (listener, address) = process.spawn(async move { listen(&at).await }).await.unwrap();
        let manager = ClusterManagerServer::new(Service(state.clone()))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        process.spawn(async move {
            let router = Server::builder().add_service(manager);
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let address = address.to_string();
        Self { process, address, state }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Tasks put into its memory, in order, repetitions included.
    pub fn submitted(&self) -> Vec<Task> {
        lock(&self.state.submitted).clone()
    }

    pub fn times(&self, job: &str, task: &str) -> usize {
        let same = |known: &&Task| known.job_id == job && known.task_id == task;
        lock(&self.state.submitted).iter().filter(same).count()
    }

    /// Submissions answered with FAILED.
    pub fn refused(&self) -> usize {
        lock(&self.state.refused).len()
    }

    /// Status updates and what they were answered with.
    pub fn updates(&self) -> Vec<(update_status::Req, update_status::Status)> {
        lock(&self.state.updates).clone()
    }

    /// Answers to requests for resources.
    pub fn leases(&self) -> Vec<task_resource_require::Rep> {
        lock(&self.state.leases).clone()
    }

    pub fn has_worker(&self, name: &str) -> bool {
        self.state.worker(name).is_some()
    }
}

impl State {
    fn worker(&self, name: &str) -> Option<Arc<Worker>> {
        let workers = lock(&self.workers);
        workers.iter().find(|worker| worker.profile.worker_id == name).cloned()
    }

    fn is_enrolled(&self, worker: &Arc<Worker>) -> bool {
        self.worker(&worker.profile.worker_id).is_some()
    }

    /// Takes a slot for ever: nothing gives one back but another enrolment of the worker.
    fn dispatch(&self, endpoints: Option<i32>) -> Result<Option<Granted>, Status> {
        for worker in lock(&self.workers).iter() {
            let mut slots = lock(&worker.slots_left);
            // It compares slots, not ports.
            if *slots > 0 && endpoints.is_none_or(|endpoints| *slots >= endpoints) {
                *slots -= 1;
                let ports = (0..endpoints.unwrap_or_default()).map(|_| worker.next_port());
                return Ok(Some((worker.clone(), ports.collect::<Result<_, _>>()?)));
            }
        }
        Ok(None)
    }
}

impl Worker {
    /// In a circle, never marked as used.
    fn next_port(&self) -> Result<String, Status> {
        let (start, end) = (self.profile.port_start, self.profile.port_end);
        if end <= start {
            return Err(Status::unknown("Unexpected <class 'Exception'>: no endpoint left"));
        }
        let mut at = lock(&self.port_at);
        let index = *at % (end - start);
        *at = index + 1;
        Ok(format!("{}:{}", self.profile.worker_ip, start + index))
    }

    fn put(&self, task: Task) {
        lock(&self.queue).push_back(task);
        self.put.notify_one();
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

impl Service {
    /// Ends the stream, at the next look, of a worker that was dropped.
    async fn next(&self, worker: &Arc<Worker>) -> Option<enroll::Rep> {
        while self.0.is_enrolled(worker) {
            if let Some(task) = lock(&worker.queue).pop_front() {
                let status = enroll::Status::TaskReady.into();
                return Some(enroll::Rep { status, task: Some(task) });
            }
            let _ = tokio::time::timeout(SILENCE, worker.put.notified()).await;
        }
        None
    }

    fn watch(&self, worker: Arc<Worker>) {
        let state = self.0.clone();
        tokio::runtime::Handle::current().spawn(async move {
            loop {
                tokio::time::sleep(SILENCE).await;
                if lock(&worker.seen).elapsed() > SILENCE {
                    let name = &worker.profile.worker_id;
                    return lock(&state.workers).retain(|other| other.profile.worker_id != *name);
                }
            }
        });
    }
}

#[tonic::async_trait]
impl ClusterManager for Service {
    type EnrollStream = BoxStream<'static, Result<enroll::Rep, Status>>;

    async fn enroll(&self, request: Request<enroll::Req>) -> Result<Response<Self::EnrollStream>, Status> {
        let profile = request.into_inner();
        let answer = |status: enroll::Status| {
            let status = status.into();
            once(async move { Ok(enroll::Rep { status, task: None }) })
        };
        if self.0.worker(&profile.worker_id).is_some() {
            return Ok(Response::new(answer(enroll::Status::AlreadyEnroll).boxed()));
        }
        let worker = Arc::new(Worker {
            slots_left: Mutex::new(profile.max_tasks),
            port_at: Mutex::new(0),
            seen: Mutex::new(Instant::now()),
            queue: Mutex::default(),
            put: Notify::new(),
            profile,
        });
        lock(&self.0.workers).push(worker.clone());
        self.watch(worker.clone());
        let service = self.clone();
        let tasks = unfold((service, worker), |(service, worker)| async move {
            let task = service.next(&worker).await?;
            Some((Ok(task), (service, worker)))
        });
        Ok(Response::new(answer(enroll::Status::EnrollSuccess).chain(tasks).boxed()))
    }

    async fn update_task_status(&self, request: Request<update_status::Req>) -> Result<Response<update_status::Rep>, Status> {
        let request = request.into_inner();
        let status = match self.0.worker(&request.worker_id) {
            None => update_status::Status::Failed,
            Some(worker) => {
                *lock(&worker.seen) = Instant::now();
                let mut statuses = lock(&self.0.statuses);
                if request.task_id.is_empty() {
                    update_status::Status::Success
                } else if statuses.contains_key(&request.task_id) {
                    // `trainer_0` of an earlier job was reported already.
                    update_status::Status::Failed
                } else {
                    statuses.insert(request.task_id.clone(), request.task_status());
                    update_status::Status::Success
                }
            }
        };
        lock(&self.0.updates).push((request, status));
        Ok(Response::new(update_status::Rep { status: status.into() }))
    }

    /// SUCCESS says that it is in memory, no more; the same task again is put there again.
    async fn task_submit(&self, request: Request<task_submit::Req>) -> Result<Response<task_submit::Rep>, Status> {
        let task = request.into_inner().task.unwrap_or_default();
        let worker = match task.assignee.as_str() {
            "" => self.0.dispatch(None)?.map(|(worker, _)| worker),
            // Without a slot, whatever the limit.
            assignee => self.0.worker(assignee),
        };
        let (list, status) = match &worker {
            Some(_) => (&self.0.submitted, task_submit::Status::Success),
            None => (&self.0.refused, task_submit::Status::Failed),
        };
        lock(list).push(task.clone());
        if let Some(worker) = worker {
            worker.put(task);
        }
        Ok(Response::new(task_submit::Rep { status: status.into() }))
    }

    async fn task_resource_require(
        &self,
        request: Request<task_resource_require::Req>,
    ) -> Result<Response<task_resource_require::Rep>, Status> {
        let granted = self.0.dispatch(Some(request.into_inner().num_endpoints))?;
        let reply = match granted {
            Some((worker, endpoints)) => task_resource_require::Rep {
                status: task_resource_require::Status::Success.into(),
                worker_id: worker.profile.worker_id.clone(),
                endpoints,
            },
            None => task_resource_require::Rep {
                status: task_resource_require::Status::Failed.into(),
                ..Default::default()
            },
        };
        lock(&self.0.leases).push(reply.clone());
        Ok(Response::new(reply))
    }
}
