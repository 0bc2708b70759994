//! The cluster manager, killed at the crash points that a master and a worker of ours do not bring it to, or not at a known moment: the test is the
//! master, the worker is a real one.

use super::cluster::{Scenario, every_point, open_of_manager};
use super::paper::row_of;
use super::{at_rest, check_payload_files, died, dies_again, past, skipped, start_again, start_doomed};
use crate::support::{DEADLINE, Role, free_ports};
use fedbroker::machine::cluster::records::{Ports, Profile};
use fedbroker::machine::cluster::{self, Attach, Cluster, Command};
use fedbroker::machine::ids::WorkerId;
use fedbroker::wire::connect::channel;
use fedbroker::wire::fedbroker::v1::cluster_client::ClusterClient;
use fedbroker::wire::fedbroker::v1::outcome::State;
use fedbroker::wire::fedbroker::v1::{self as ours, DummyTask, from_worker, to_worker};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::{task_resource_require, task_submit};
use prost::Message;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// More than one command places.
const MANY: usize = 70;

/// A manager, and a worker for it.
struct Pair {
    dir: tempfile::TempDir,
    manager: Role,
    worker: Role,
}

impl Pair {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let mut manager = Role::new(
            "manager",
            dir.path(),
            &["cluster-manager", "--port", "0", "--worker-grace", "8", "--data-dir", &text("data")],
        );
        let address = manager.reserve_port();
        manager.start().await;
        let first = free_ports(20);
        let (first, end) = (first.to_string(), (first + 20).to_string());
        let mut args = vec!["cluster-worker", "--name", "w", "--worker-ip", "127.0.0.1", "--max-tasks", "200"];
        let work = text("work");
        args.extend([
            "--port-start",
            &first,
            "--port-end",
            &end,
            "--manager-address",
            &address,
            "--work-dir",
            &work,
        ]);
        let mut worker = Role::new("worker", dir.path(), &args);
        worker.start().await;
        Self { dir, manager, worker }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn channel(&self) -> Channel {
        channel(&self.manager.address).unwrap()
    }

    fn ours(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    fn theirs(&self) -> ClusterManagerClient<Channel> {
        ClusterManagerClient::new(self.channel())
    }

    async fn submit(&self, task: Task) -> Result<(), Status> {
        let reply = soon(self.theirs().task_submit(task_submit::Req { task: Some(task) })).await?;
        assert_eq!(reply.into_inner().status(), task_submit::Status::Success);
        Ok(())
    }

    async fn cancel(&self, job: &str) -> Result<bool, Status> {
        let request = ours::CancelTaskRequest {
            job_id: job.into(),
            task_id: "t".into(),
            reason: "not wanted".into(),
        };
        Ok(soon(self.ours().cancel_task(request)).await?.into_inner().known)
    }

    async fn forget(&self, job: &str) -> Result<u32, Status> {
        let request = ours::ForgetJobRequest { job_id: job.into() };
        Ok(soon(self.ours().forget_job(request)).await?.into_inner().tasks)
    }

    /// How each of a job's tasks ends, in the order of the ends.
    async fn ends(&self, job: &str, tasks: &[String]) -> Vec<State> {
        let requests: Vec<ours::WatchRequest> = tasks
            .iter()
            .map(|task| ours::WatchRequest {
                job_id: job.into(),
                task_id: task.clone(),
            })
            .collect();
        let mut stream = soon(self.ours().watch(tokio_stream::iter(requests))).await.unwrap().into_inner();
        let mut ends = Vec::new();
        while let Some(end) = soon(stream.message()).await.unwrap() {
            ends.push(end.outcome.unwrap().state());
        }
        ends
    }

    fn runs(&self, job: &str, task: &str) -> usize {
        self.worker.log().matches(&format!("task started task={job}/{task} ")).count()
    }

    /// Wait until the worker is attached to the manager that runs now.
    async fn attached(&self) {
        let here = |pair: &Self| {
            pair.manager
                .log()
                .rsplit(" recovered ")
                .next()
                .unwrap()
                .contains("worker attached worker=w ")
        };
        self.until("the worker is attached", here).await;
    }

    async fn until(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !fits(self) {
            assert!(Instant::now() < deadline, "never came: {what}\n{}", self.manager.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A worker of ours, played by the test; the stream and what keeps it open, or the failure before an answer.
    async fn attach(&self, name: &str) -> Result<(mpsc::Sender<ours::FromWorker>, Streaming<ours::ToWorker>), Status> {
        let (line, receiver) = mpsc::channel(4);
        let attach = ours::WorkerAttach {
            worker_id: name.into(),
            worker_ip: "127.0.0.1".into(),
            max_tasks: 1,
            port_start: 9000,
            port_end: 9001,
            instance: "the same".into(),
            known: Vec::new(),
            logs: false,
            pieces: false,
        };
        let message = Some(from_worker::Message::Attach(attach));
        line.send(ours::FromWorker { message }).await.unwrap();
        let mut orders = soon(self.ours().attach(ReceiverStream::new(receiver))).await?.into_inner();
        match soon(orders.message()).await?.and_then(|first| first.message) {
            Some(to_worker::Message::Attached(_)) => Ok((line, orders)),
            other => Err(Status::unavailable(format!("{other:?}"))),
        }
    }
}

async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, call).await.expect("in time")
}

/// A dummy task; `filling` bytes more than it needs, in a field that nobody knows.
fn task(job: &str, task: &str, assignee: &str, sleep_ms: u64, filling: usize) -> Task {
    let mut value = DummyTask {
        sleep_ms,
        ..DummyTask::default()
    }
    .encode_to_vec();
    if filling > 0 {
        prost::encoding::bytes::encode(99, &vec![b'x'; filling], &mut value);
    }
    let type_url = "type.googleapis.com/fedbroker.v1.DummyTask".into();
    Task {
        job_id: job.into(),
        task_id: task.into(),
        task_type: "dummy_trainer".into(),
        task: Some(fedbroker::wire::Any {
            type_url,
            value: value.into(),
        }),
        assignee: assignee.into(),
    }
}

/// The manager dies while a running task is being stopped; it is stopped all the same.
async fn cancelled(pair: &mut Pair, point: &str, job: &str) {
    pair.submit(task(job, "t", "", 600_000, 0)).await.unwrap();
    pair.until("the task runs", |pair| pair.runs(job, "t") == 1).await;
    // The kill is due once the manager knows; until then a call that fails says nothing.
    let _ = pair.cancel(job).await;
    died(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    if point.ends_with(".taken") {
        assert!(pair.cancel(job).await.unwrap(), "the task is known");
    }
    assert_eq!(pair.ends(job, &["t".to_owned()]).await, [State::Cancelled], "after {point}");
    assert_eq!(pair.runs(job, "t"), 1, "after {point}");
}

/// The manager dies between two connections of one worker.
async fn second_connection(pair: &mut Pair) {
    let _first = pair.attach("twin").await.unwrap();
    let _ = pair.attach("twin").await;
    died(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    pair.attach("twin").await.expect("the same process is let in again");
}

/// The manager dies in the middle of placing what waits for a worker.
async fn many_tasks(pair: &mut Pair, point: &str, job: &str) {
    let tasks: Vec<String> = (0..MANY).map(|n| format!("t{n}")).collect();
    // A manager that has just started has no worker attached.
    pair.worker.kill().await;
    pair.manager.kill().await;
    start_again(&mut pair.manager).await;
    let submissions = tasks.iter().map(|name| pair.submit(task(job, name, "", 0, 0)));
    for done in futures_util::future::join_all(submissions).await {
        done.unwrap();
    }
    assert!(tasks.iter().all(|name| pair.runs(job, name) == 0), "there is a worker still");
    pair.manager.kill().await;
    assert!(
        start_doomed(&mut pair.manager, point).await,
        "{point} is passed when a worker comes"
    );
    pair.worker.start_unready();
    died(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    assert_eq!(pair.ends(job, &tasks).await, vec![State::Succeeded; MANY], "after {point}");
    assert!(tasks.iter().all(|name| pair.runs(job, name) == 1), "after {point} a task ran twice");
}

/// The manager dies when it has lent endpoints to a master that does not say for which job, and did not answer.
async fn anonymous(pair: &mut Pair, point: &str, job: &str) {
    pair.attached().await;
    let ask = task_resource_require::Req { num_endpoints: 1 };
    let _ = soon(pair.theirs().task_resource_require(ask)).await;
    died(&mut pair.manager).await;
    dies_again(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    pair.attached().await;
    // The lease that was not answered is there; the task of any job takes it.
    pair.submit(task(job, "t", "w", 0, 0)).await.unwrap();
    assert_eq!(pair.ends(job, &["t".to_owned()]).await, [State::Succeeded], "after {point}");
}

/// The manager dies while a task's content becomes a payload file.
async fn large(pair: &mut Pair, point: &str, job: &str) {
    let large = task(job, "t", "", 0, 2000);
    assert!(pair.submit(large.clone()).await.is_err(), "it was answered before {point}");
    died(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    check_payload_files(&pair.manager, &pair.data());
    assert_eq!(pair.ends(job, &["t".to_owned()]).await, [State::NotFound], "after {point}");
    pair.submit(large).await.unwrap();
    assert_eq!(pair.ends(job, &["t".to_owned()]).await, [State::Succeeded], "after {point}");
}

/// The manager dies while a job is forgotten.
async fn forgotten(pair: &mut Pair, point: &str, job: &str) {
    let tasks = ["t".to_owned(), "u".to_owned()];
    for name in &tasks {
        pair.submit(task(job, name, "", 0, 0)).await.unwrap();
    }
    assert_eq!(pair.ends(job, &tasks).await, [State::Succeeded; 2]);
    assert!(pair.forget(job).await.is_err(), "it was answered before {point}");
    died(&mut pair.manager).await;
    start_again(&mut pair.manager).await;
    let (left, again) = if point.ends_with(".taken") {
        (State::Succeeded, 2)
    } else {
        (State::NotFound, 0)
    };
    assert_eq!(pair.ends(job, &tasks).await, [left; 2], "after {point}: whole or not at all");
    assert_eq!(pair.forget(job).await.unwrap(), again, "after {point}");
    assert_eq!(pair.ends(job, &tasks).await, [State::NotFound; 2], "after {point}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_manager_with_other_callers() {
    if skipped() {
        return;
    }
    let mut pair = Pair::start().await;
    let here = [
        Scenario::Cancelled,
        Scenario::SecondConnection,
        Scenario::ManyTasks,
        Scenario::Anonymous,
        Scenario::Large,
        Scenario::Forgotten,
    ];
    for (number, (point, scenario)) in (0..).zip(every_point().into_iter().filter(|(_, scenario)| here.contains(scenario))) {
        let job = format!("job-{number}");
        let point = point.as_str();
        if scenario != Scenario::ManyTasks {
            pair.manager.kill().await;
            assert!(start_doomed(&mut pair.manager, point).await, "{point} is passed with a caller only");
        }
        match scenario {
            Scenario::Cancelled => cancelled(&mut pair, point, &job).await,
            Scenario::SecondConnection => second_connection(&mut pair).await,
            Scenario::ManyTasks => many_tasks(&mut pair, point, &job).await,
            Scenario::Anonymous => anonymous(&mut pair, point, &job).await,
            Scenario::Forgotten => forgotten(&mut pair, point, &job).await,
            _ => large(&mut pair, point, &job).await,
        }
    }
    let data = pair.data();
    let left = at_rest(&mut pair.manager, &data, "cluster-manager", open_of_manager).await;
    left.check_replay("manager", Cluster::new(cluster::Rules::default()));
    start_again(&mut pair.manager).await;
    check_payload_files(&pair.manager, &data);
}

/// Nobody waits ten minutes for this: the lease was granted long ago.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_manager_with_an_old_lease() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (point, _) in every_point().into_iter().filter(|(_, scenario)| *scenario == Scenario::Aged) {
        assert!(row_of(&point).starts_with("the cluster manager, with a lease"), "{point}");
        let data = dir.path().join(&point);
        let attach = Attach {
            worker: WorkerId::parse("w").unwrap(),
            profile: Profile {
                ip: "127.0.0.1".into(),
                max_tasks: 4,
                ports: Ports { start: 9000, end: 9010 },
                instance: "long gone".into(),
                legacy: false,
            },
            known: Vec::new(),
        };
        let lease = Command::AcquireLease { job: None, endpoints: 2 };
        let machine = Cluster::new(cluster::Rules::default());
        let commands = vec![Command::Started, Command::Attach(attach), lease];
        past::make(&data, "cluster-manager", machine, Duration::from_secs(3600), commands).await;
        let args = ["cluster-manager", "--port", "0", "--data-dir", data.to_str().unwrap()];
        let mut manager = Role::new("manager", dir.path(), &args);
        if start_doomed(&mut manager, &point).await {
            died(&mut manager).await;
        }
        start_again(&mut manager).await;
        let left = at_rest(&mut manager, &data, "cluster-manager", open_of_manager).await;
        let released = left
            .events
            .iter()
            .filter(|event| matches!(event, cluster::Event::LeaseReleased { .. }));
        assert_eq!(released.count(), 1, "after {point}: {:?}", left.events);
        left.check_replay("manager", Cluster::new(cluster::Rules::default()));
    }
}
