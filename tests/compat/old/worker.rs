//! A cluster worker as FedVision 0.1 has it: knows only Enroll and UpdateTaskStatus, and ends with its stream.
//!
//! It runs the two dummy task types, as an extension that its operator has installed. Everything else it drops without a word.

use super::{Process, lock};
use fedbroker::wire::connect::{MESSAGE_MAX, channel};
use fedbroker::wire::fedbroker::v1::DummyTask;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::{enroll, update_status};
use prost::Message;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tonic::transport::Channel;

/// A heartbeat follows so long after the last report.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The running worker.
pub struct OldWorker {
    process: Process,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Tasks begun, in order.
    ran: Mutex<Vec<(String, String)>>,
    /// Reports that were answered, whatever the answer.
    reported: Mutex<Vec<update_status::Req>>,
    /// Tasks dropped, since their type is not known here.
    dropped: Mutex<Vec<Task>>,
    /// Why the process has ended.
    ended: Mutex<Option<String>>,
    enrolled: Mutex<bool>,
}

impl OldWorker {
    /// Enroll; ports are `port_start` and the nine after it.
    pub fn start(name: &str, manager: &str, max_tasks: i32, port_start: i32) -> Self {
        let (process, state) = (Process::new(), Arc::new(State::default()));
        let request = enroll::Req {
            worker_id: name.to_owned(),
            worker_ip: "127.0.0.1".to_owned(),
            max_tasks,
            port_start,
            port_end: port_start + 10,
        };
        let (manager, living) = (manager.to_owned(), state.clone());
        process.spawn(async move {
            let why = live(&manager, request, &living).await;
            *lock(&living.ended) = Some(why);
        });
        Self { process, state }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn is_enrolled(&self) -> bool {
        *lock(&self.state.enrolled)
    }

    /// `(job, task)` in the order in which they began, repetitions included.
    pub fn ran(&self) -> Vec<(String, String)> {
        lock(&self.state.ran).clone()
    }

    pub fn times(&self, job: &str, task: &str) -> usize {
        self.ran().iter().filter(|(of, id)| of == job && id == task).count()
    }

    /// Reports of tasks of this job that the manager has answered.
    pub fn reported(&self, job: &str) -> usize {
        lock(&self.state.reported).iter().filter(|report| report.job_id == job).count()
    }

    /// Tasks whose type it does not know.
    pub fn dropped(&self) -> usize {
        lock(&self.state.dropped).len()
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<String> {
        lock(&self.state.ended).clone()
    }
}

async fn live(manager: &str, request: enroll::Req, state: &Arc<State>) -> String {
    let name = request.worker_id.clone();
    let slots = Arc::new(Semaphore::new(usize::try_from(request.max_tasks).unwrap()));
    let mut client = ClusterManagerClient::new(channel(manager).unwrap())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let mut orders = match client.enroll(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    match orders.message().await {
        Ok(Some(first)) if first.status() == enroll::Status::EnrollSuccess => {}
        other => return format!("not enrolled: {other:?}"),
    }
    *lock(&state.enrolled) = true;
    let (reports, queue) = mpsc::unbounded_channel();
    let beats = beat(name.clone(), client, queue, state);
    let take = async {
        loop {
            match orders.message().await {
                Ok(Some(order)) if order.status() == enroll::Status::TaskReady => {
                    let task = run(
                        name.clone(),
                        order.task.unwrap_or_default(),
                        state.clone(),
                        slots.clone(),
                        reports.clone(),
                    );
                    tokio::runtime::Handle::current().spawn(task);
                }
                Ok(Some(other)) => return format!("expected a task, got {other:?}"),
                // Its process stays up doing nothing but failing heartbeats; for others that is the same as gone.
                Ok(None) => return "the stream ended".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    };
    tokio::select! {
        why = take => why,
        why = beats => why,
    }
}

/// Reports as they come, else a heartbeat; the first call that fails ends the process.
async fn beat(
    name: String,
    mut client: ClusterManagerClient<Channel>,
    mut queue: mpsc::UnboundedReceiver<update_status::Req>,
    state: &State,
) -> String {
    loop {
        let heartbeat = update_status::Req {
            worker_id: name.clone(),
            ..Default::default()
        };
        let request = match tokio::time::timeout(HEARTBEAT, queue.recv()).await {
            Ok(Some(report)) => report,
            Ok(None) | Err(_) => heartbeat,
        };
        // A refused one is only logged.
        if let Err(status) = client.update_task_status(request.clone()).await {
            return status.message().to_owned();
        }
        if !request.task_id.is_empty() {
            lock(&state.reported).push(request);
        }
    }
}

async fn run(worker_id: String, task: Task, state: Arc<State>, slots: Arc<Semaphore>, reports: mpsc::UnboundedSender<update_status::Req>) {
    if !matches!(task.task_type.as_str(), "dummy_trainer" | "dummy_aggregator") {
        return lock(&state.dropped).push(task);
    }
    let _slot = slots.acquire().await.unwrap();
    lock(&state.ran).push((task.job_id.clone(), task.task_id.clone()));
    let payload = task.task.unwrap_or_default();
    let dummy = DummyTask::decode(payload.value.as_ref()).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(dummy.sleep_ms)).await;
    let (status, exception) = if dummy.fail {
        let why = format!("execute task: {} failed, return code: 1", task.task_id);
        (update_status::TaskStatus::TaskException, why)
    } else {
        (update_status::TaskStatus::TaskFinish, String::new())
    };
    let _ = reports.send(update_status::Req {
        worker_id,
        job_id: task.job_id,
        task_id: task.task_id,
        task_status: status.into(),
        exception,
        ..Default::default()
    });
}
