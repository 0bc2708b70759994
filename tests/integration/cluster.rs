//! The cluster manager in this process, with tonic clients that play masters and workers of both kinds.

mod pieces;
mod submits;

use fedbroker::cluster::{Settings, start};
use fedbroker::engine::retention::Keep;
use fedbroker::machine::cluster::Rules;
use fedbroker::supervisor::Supervisor;
use fedbroker::wire::connect::{MESSAGE_MAX, PeerKind, channel, hello};
use fedbroker::wire::fedbroker::v1 as ours;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::{self as theirs, enroll, task_resource_require, task_submit, update_status};
use futures_util::StreamExt;
use ours::cluster_client::ClusterClient;
use ours::outcome::State;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use theirs::cluster_manager_client::ClusterManagerClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const DEADLINE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Try until it holds; each try asks over the network.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    soon(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

struct Manager {
    supervisor: Supervisor,
    channel: Channel,
    address: String,
}

impl Manager {
    async fn start(dir: &Path, grace: Duration) -> Manager {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap();
        let settings = Settings {
            data_dir: dir.to_owned(),
            rules: Rules {
                grace_ms,
                ..Rules::default()
            },
            silence: grace,
            keep: Keep::new(30, 1_000_000),
        };
        // After a crash in this process the directory is free once the last thread of the old engine is gone.
        soon("start", async {
            loop {
                let (supervisor, listener) = (Supervisor::new(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
                match start(settings.clone(), listener, &supervisor).await {
                    Ok(address) => {
                        let address = address.to_string();
                        let channel = channel(&address).unwrap();
                        return Manager {
                            supervisor,
                            channel,
                            address,
                        };
                    }
                    Err(error) if format!("{error:#}").contains("in use") => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error:#}"),
                }
            }
        })
        .await
    }

    async fn patient(dir: &Path) -> Manager {
        Manager::start(dir, DEADLINE).await
    }

    /// Every task is dropped where it stands; nobody is told and nothing more is recorded.
    fn abort(self) {
        self.supervisor.stop();
    }

    fn theirs(&self) -> ClusterManagerClient<Channel> {
        ClusterManagerClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    fn ours(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    async fn submit(&self, task: Task) -> Result<task_submit::Status, Status> {
        let request = theirs::task_submit::Req { task: Some(task) };
        let reply = soon("submit", self.theirs().task_submit(request)).await?;
        Ok(reply.into_inner().status())
    }

    async fn submitted(&self, task: Task) {
        assert_eq!(self.submit(task).await.unwrap(), task_submit::Status::Success);
    }

    async fn require(&self, num_endpoints: i32) -> Result<task_resource_require::Rep, Status> {
        let request = task_resource_require::Req { num_endpoints };
        Ok(soon("require", self.theirs().task_resource_require(request)).await?.into_inner())
    }

    async fn status(&self, worker: &str, task: Option<(&str, &str)>, status: update_status::TaskStatus) -> update_status::Status {
        let (job_id, task_id) = task.unwrap_or_default();
        let exception = if status == update_status::TaskStatus::TaskException {
            "return code: 1"
        } else {
            ""
        };
        let request = update_status::Req {
            worker_id: worker.into(),
            job_id: job_id.into(),
            task_id: task_id.into(),
            task_status: status.into(),
            exception: exception.into(),
            ..Default::default()
        };
        soon("status", self.theirs().update_task_status(request))
            .await
            .unwrap()
            .into_inner()
            .status()
    }

    async fn finish(&self, worker: &str, job: &str, task: &str) -> update_status::Status {
        self.status(worker, Some((job, task)), update_status::TaskStatus::TaskFinish).await
    }

    async fn enroll(&self, worker: &str, max_tasks: i32) -> Streaming<enroll::Rep> {
        let request = enroll::Req {
            worker_id: worker.into(),
            worker_ip: "10.1.1.1".into(),
            max_tasks,
            port_start: 13_400,
            port_end: 13_405,
        };
        soon("enroll", self.theirs().enroll(request)).await.unwrap().into_inner()
    }

    async fn watch(&self, keys: &[(&str, &str)]) -> Streaming<ours::TaskEnd> {
        let requests: Vec<ours::WatchRequest> = keys
            .iter()
            .map(|(job, task)| ours::WatchRequest {
                job_id: (*job).into(),
                task_id: (*task).into(),
            })
            .collect();
        soon("watch", self.ours().watch(tokio_stream::iter(requests)))
            .await
            .unwrap()
            .into_inner()
    }
}

fn task(job: &str, task: &str, assignee: &str, size: usize) -> Task {
    let value = vec![7; size];
    let any = fedbroker::wire::Any {
        type_url: "t".into(),
        value: value.into(),
    };
    Task {
        job_id: job.into(),
        task_id: task.into(),
        task_type: "dummy_trainer".into(),
        task: Some(any),
        assignee: assignee.into(),
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Option<T> {
    soon("message", stream.message()).await.unwrap()
}

async fn ready(stream: &mut Streaming<enroll::Rep>) -> Task {
    let message = next(stream).await.unwrap();
    assert_eq!(message.status(), enroll::Status::TaskReady);
    message.task.unwrap()
}

async fn end(stream: &mut Streaming<ours::TaskEnd>) -> (String, State, String) {
    let end = next(stream).await.unwrap();
    let outcome = end.outcome.unwrap();
    (end.task_id, outcome.state(), outcome.reason)
}

/// One of our workers.
struct Worker {
    line: mpsc::Sender<ours::FromWorker>,
    orders: Streaming<ours::ToWorker>,
    /// Orders that came before an acknowledgement that was waited for.
    early: VecDeque<ours::to_worker::Message>,
}

fn attempt(job: &str, task: &str, attempt: u32) -> ours::TaskAttempt {
    ours::TaskAttempt {
        job_id: job.into(),
        task_id: task.into(),
        attempt,
    }
}

fn introduction(instance: &str, known: Vec<ours::TaskAttempt>) -> ours::WorkerAttach {
    ours::WorkerAttach {
        worker_id: "w".into(),
        worker_ip: "10.1.1.1".into(),
        max_tasks: 1,
        port_start: 13_400,
        port_end: 13_405,
        instance: instance.into(),
        known,
        logs: false,
        pieces: false,
    }
}

impl Worker {
    async fn open(manager: &Manager, first: ours::from_worker::Message) -> Worker {
        let (line, requests) = mpsc::channel(16);
        line.send(ours::FromWorker { message: Some(first) }).await.unwrap();
        // On a connection of its own: what it does not read must not fill that of other calls.
        let mut client = ClusterClient::new(channel(&manager.address).unwrap()).max_decoding_message_size(MESSAGE_MAX);
        let orders = soon("attach", client.attach(ReceiverStream::new(requests)))
            .await
            .unwrap()
            .into_inner();
        let early = VecDeque::new();
        Worker { line, orders, early }
    }

    async fn attach(manager: &Manager, instance: &str, known: Vec<ours::TaskAttempt>) -> Worker {
        let mut worker = Worker::open(manager, ours::from_worker::Message::Attach(introduction(instance, known))).await;
        match worker.order().await {
            ours::to_worker::Message::Attached(attached) => assert!(attached.heartbeat_seconds > 0),
            other => panic!("{other:?}"),
        }
        worker
    }

    async fn order(&mut self) -> ours::to_worker::Message {
        match self.early.pop_front() {
            Some(order) => order,
            None => next(&mut self.orders).await.unwrap().message.unwrap(),
        }
    }

    async fn run(&mut self) -> (Task, u32) {
        match self.order().await {
            ours::to_worker::Message::Run(run) => (run.task.unwrap(), run.attempt),
            other => panic!("{other:?}"),
        }
    }

    async fn report(&mut self, job: &str, task: &str, attempt_number: u32, state: State) {
        let outcome = ours::Outcome {
            state: state.into(),
            exit_code: Some(0),
            ..Default::default()
        };
        let attempt = attempt(job, task, attempt_number);
        let (task, outcome) = (Some(attempt.clone()), Some(outcome));
        let message = Some(ours::from_worker::Message::Report(ours::TaskReport { task, outcome }));
        self.line.send(ours::FromWorker { message }).await.unwrap();
        // The slot it frees may be used before the acknowledgement is written.
        loop {
            match next(&mut self.orders).await.unwrap().message.unwrap() {
                ours::to_worker::Message::Acknowledged(acknowledged) => return assert_eq!(acknowledged, attempt),
                early => self.early.push_back(early),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fedvision_workers_and_masters_are_served() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    assert!(matches!(
        hello(manager.channel.clone(), "master").await,
        Ok(PeerKind::Fedbroker { .. })
    ));
    assert_eq!(manager.submit(task("j", "t", "w", 1)).await.unwrap(), task_submit::Status::Failed);
    assert_eq!(
        manager.status("w", None, update_status::TaskStatus::TaskUnknown).await,
        update_status::Status::Failed
    );
    assert_eq!(manager.finish("w", "j", "t").await, update_status::Status::Failed);

    let mut worker = manager.enroll("w", 1).await;
    assert_eq!(next(&mut worker).await.unwrap().status(), enroll::Status::EnrollSuccess);
    let mut again = manager.enroll("w", 1).await;
    assert_eq!(next(&mut again).await.unwrap().status(), enroll::Status::AlreadyEnroll);
    assert!(next(&mut again).await.is_none());
    assert_eq!(
        manager.status("w", None, update_status::TaskStatus::TaskUnknown).await,
        update_status::Status::Success
    );

    // Changed: no free slot is no failure, the same task runs once, and a slot comes back.
    manager.submitted(task("j", "a", "", 1)).await;
    manager.submitted(task("j", "a", "", 1)).await;
    manager.submitted(task("j", "b", "w", 5_000_000)).await;
    assert_eq!(manager.submit(task("j", "a", "", 2)).await.unwrap(), task_submit::Status::Failed);
    assert_eq!(ready(&mut worker).await, task("j", "a", "", 1));
    assert_eq!(manager.finish("w", "j", "a").await, update_status::Status::Success);
    assert_eq!(ready(&mut worker).await, task("j", "b", "w", 5_000_000));
    // Changed: a repeated report is no failure.
    assert_eq!(manager.finish("w", "j", "a").await, update_status::Status::Success);
    let failed = update_status::TaskStatus::TaskException;
    assert_eq!(manager.status("w", Some(("j", "b")), failed).await, update_status::Status::Success);
    let mut ends = manager.watch(&[("j", "a"), ("j", "b"), ("j", "never")]).await;
    assert_eq!(end(&mut ends).await, ("a".into(), State::Succeeded, String::new()));
    assert_eq!(end(&mut ends).await, ("b".into(), State::Failed, "return code: 1".into()));
    assert_eq!(end(&mut ends).await, ("never".into(), State::NotFound, String::new()));
    assert!(next(&mut ends).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_come_back_after_each_job() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    assert_eq!(manager.require(1).await.unwrap().status(), task_resource_require::Status::Failed);
    let mut worker = manager.enroll("w", 10).await;
    next(&mut worker).await.unwrap();
    for n in 0..8 {
        let job = format!("job-{n}");
        let resources = manager.require(2).await.unwrap();
        assert_eq!(resources.status(), task_resource_require::Status::Success);
        let port = |k: i32| 13_400 + (2 * n + k) % 5;
        let endpoints = [format!("10.1.1.1:{}", port(0)), format!("10.1.1.1:{}", port(1))];
        assert_eq!(
            (resources.worker_id.as_str(), resources.endpoints.as_slice()),
            ("w", endpoints.as_slice())
        );
        manager.submitted(task(&job, "aggregator", "w", 1)).await;
        for name in ["trainer_0", "trainer_1"] {
            manager.submitted(task(&job, name, "", 1)).await;
        }
        for _ in 0..3 {
            let ready = ready(&mut worker).await;
            assert_eq!(ready.job_id, job);
            assert_eq!(manager.finish("w", &job, &ready.task_id).await, update_status::Status::Success);
        }
    }
    assert!(manager.require(0).await.unwrap().endpoints.is_empty());
    let refused = manager.require(6).await.unwrap();
    assert_eq!(
        (refused.status(), refused.worker_id.as_str()),
        (task_resource_require::Status::Failed, "")
    );
    for bad in [-1, 257] {
        assert_eq!(manager.require(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_and_queued_tasks_survive_the_manager() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    manager.submitted(task("j", "runs", "", 3_000)).await;
    manager.submitted(task("j", "waits", "", 3_000_000)).await;
    assert_eq!(worker.run().await, (task("j", "runs", "", 3_000), 1));
    drop(worker);
    manager.abort();

    let manager = Manager::patient(dir.path()).await;
    manager.submitted(task("j", "runs", "", 3_000)).await;
    let mut ends = manager.watch(&[("j", "runs"), ("j", "waits")]).await;
    let mut worker = Worker::attach(&manager, "i", vec![attempt("j", "runs", 1)]).await;
    worker.report("j", "runs", 1, State::Succeeded).await;
    assert_eq!(end(&mut ends).await, ("runs".into(), State::Succeeded, String::new()));
    assert_eq!(worker.run().await, (task("j", "waits", "", 3_000_000), 1));
    drop((worker, ends));
    manager.abort();

    // The worker has not kept the second task: it is sent again, as the same attempt, and what ended stays ended.
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    assert_eq!(worker.run().await, (task("j", "waits", "", 3_000_000), 1));
    worker.report("j", "runs", 1, State::Failed).await;
    worker.report("j", "waits", 1, State::Failed).await;
    let mut ends = manager.watch(&[("j", "runs"), ("j", "waits")]).await;
    assert_eq!(end(&mut ends).await.1, State::Succeeded);
    assert_eq!(end(&mut ends).await.1, State::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_noticed_and_its_task_fails() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::start(dir.path(), Duration::from_millis(500)).await;
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    manager.submitted(task("j", "t", "w", 1)).await;
    worker.run().await;
    // It falls silent: the manager ends the stream, then gives it up.
    let mut ends = manager.watch(&[("j", "t")]).await;
    assert_eq!(end(&mut ends).await, ("t".into(), State::Failed, "worker w was lost".into()));
    until("the worker is unknown", || async {
        manager.submit(task("j", "u", "w", 1)).await.unwrap() == task_submit::Status::Failed
    })
    .await;
    // It comes back and hears that its task is not its own any more.
    let mut worker = Worker::attach(&manager, "i", vec![attempt("j", "t", 1)]).await;
    assert!(matches!(worker.order().await, ours::to_worker::Message::Kill(kill) if kill.task == Some(attempt("j", "t", 1))));
    drop(worker);

    let mut legacy = manager.enroll("old", 1).await;
    assert_eq!(next(&mut legacy).await.unwrap().status(), enroll::Status::EnrollSuccess);
    assert!(next(&mut legacy).await.is_none());
    let heartbeat = || manager.status("old", None, update_status::TaskStatus::TaskUnknown);
    until("the old worker is unknown", || async {
        heartbeat().await == update_status::Status::Failed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_manager_gives_up_workers_that_stay_away() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    manager.submitted(task("j", "t", "", 1)).await;
    worker.run().await;
    drop(worker);
    manager.abort();
    let manager = Manager::start(dir.path(), Duration::from_millis(200)).await;
    let mut ends = manager.watch(&[("j", "t")]).await;
    assert_eq!(end(&mut ends).await, ("t".into(), State::Failed, "worker w was lost".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_one_worker() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut first = Worker::attach(&manager, "i", vec![]).await;
    let mut other = Worker::open(&manager, ours::from_worker::Message::Attach(introduction("other", vec![]))).await;
    assert!(matches!(other.order().await, ours::to_worker::Message::Refused(refused) if refused.reason.contains("attached already")));
    let mut second = Worker::attach(&manager, "i", vec![]).await;
    assert!(next(&mut first.orders).await.is_none());
    manager.submitted(task("j", "t", "", 1)).await;
    assert_eq!(second.run().await.1, 1);
    drop(second);
    // The connection is gone, so another process may take the name; the task is lost with the first.
    soon("another process", async {
        loop {
            let mut third = Worker::open(&manager, ours::from_worker::Message::Attach(introduction("other", vec![]))).await;
            if let ours::to_worker::Message::Attached(_) = third.order().await {
                break;
            }
        }
    })
    .await;
    let mut ends = manager.watch(&[("j", "t")]).await;
    assert_eq!(end(&mut ends).await, ("t".into(), State::Failed, "worker w was restarted".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_cancellation() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut client = manager.ours();
    let acquire = |job: &str| ours::AcquireLeaseRequest {
        job_id: job.into(),
        endpoints: 2,
    };
    let refused = client.acquire_lease(acquire("a")).await.unwrap().into_inner();
    assert_eq!((refused.granted, refused.reason.as_str()), (false, "no worker is attached"));
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    let granted = client.acquire_lease(acquire("a")).await.unwrap().into_inner();
    assert_eq!(
        (granted.granted, granted.worker_id.as_str(), granted.endpoints.len()),
        (true, "w", 2)
    );
    assert_eq!(client.acquire_lease(acquire("a")).await.unwrap().into_inner(), granted);
    assert!(!client.acquire_lease(acquire("b")).await.unwrap().into_inner().granted);
    manager.submitted(task("a", "aggregator", "w", 1)).await;
    worker.run().await;
    let cancel = |task: &str| ours::CancelTaskRequest {
        job_id: "a".into(),
        task_id: task.into(),
        reason: "enough".into(),
    };
    assert!(!client.cancel_task(cancel("none")).await.unwrap().into_inner().known);
    let mut ends = manager.watch(&[("a", "aggregator")]).await;
    assert!(client.cancel_task(cancel("aggregator")).await.unwrap().into_inner().known);
    assert!(matches!(worker.order().await, ours::to_worker::Message::Kill(kill) if kill.reason == "enough"));
    worker.report("a", "aggregator", 1, State::Cancelled).await;
    assert_eq!(end(&mut ends).await.1, State::Cancelled);
    for _ in 0..2 {
        client
            .release_lease(ours::ReleaseLeaseRequest { job_id: "a".into() })
            .await
            .unwrap();
    }
    assert!(client.acquire_lease(acquire("b")).await.unwrap().into_inner().granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_hurts_nobody() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let empty = theirs::task_submit::Req { task: None };
    let status = manager.theirs().task_submit(empty).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "task: must be set"));
    for bad in [
        task("", "t", "", 1),
        task("j", "", "", 1),
        task("j", &"x".repeat(201), "", 1),
        task("j", "t", "a\nb", 1),
    ] {
        assert_eq!(manager.submit(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut unknown = introduction("i", vec![]);
    let change: [fn(&mut ours::WorkerAttach); 6] = [
        |a| a.max_tasks = 0,
        |a| a.max_tasks = 513,
        |a| a.worker_ip = "x".repeat(65),
        |a| a.port_end = 65_537,
        |a| a.instance = String::new(),
        |a| a.known = vec![attempt("", "", 0)],
    ];
    for change in change {
        let before = unknown.clone();
        change(&mut unknown);
        let mut worker = Worker::open(&manager, ours::from_worker::Message::Attach(unknown)).await;
        assert_eq!(
            soon("refusal", worker.orders.message()).await.unwrap_err().code(),
            Code::InvalidArgument
        );
        unknown = before;
    }
    let mut impolite = Worker::open(&manager, ours::from_worker::Message::Heartbeat(ours::Heartbeat {})).await;
    assert_eq!(
        soon("refusal", impolite.orders.message()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut worker = Worker::attach(&manager, "i", vec![]).await;
    let report = ours::TaskReport { task: None, outcome: None };
    let message = Some(ours::from_worker::Message::Report(report));
    worker.line.send(ours::FromWorker { message }).await.unwrap();
    assert_eq!(
        soon("refusal", worker.orders.message()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut ends = manager.watch(&[("", "t")]).await;
    assert_eq!(soon("refusal", ends.message()).await.unwrap_err().code(), Code::InvalidArgument);
    Worker::attach(&manager, "i", vec![]).await;
}

async fn many(count: usize) {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let began = tokio::time::Instant::now();
    let names: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let submits = names.iter().map(|name| manager.submitted(task("j", name, "", 1)));
    tokio_stream::iter(submits)
        .map(Box::pin)
        .buffer_unordered(512)
        .collect::<Vec<()>>()
        .await;
    let submitted = began.elapsed();
    let keys: Vec<(&str, &str)> = names.iter().map(|name| ("j", name.as_str())).collect();
    let mut ends = manager.watch(&keys).await;
    let cancels = names.iter().map(|name| {
        let (job_id, task_id) = ("j".to_owned(), name.clone());
        let reason = String::new();
        let mut client = manager.ours();
        async move {
            client
                .cancel_task(ours::CancelTaskRequest { job_id, task_id, reason })
                .await
                .unwrap()
        }
    });
    let cancelled = tokio_stream::iter(cancels).map(Box::pin).buffer_unordered(512).collect::<Vec<_>>();
    let answered = async {
        let mut names: Vec<String> = Vec::new();
        while let Some(end) = ends.message().await.unwrap() {
            names.push(end.task_id);
        }
        names
    };
    let (_, mut answered) = tokio::join!(cancelled, answered);
    println!(
        "{count} tasks: submitted in {submitted:?}, all cancelled and answered after {:?}",
        began.elapsed()
    );
    let mut names = names;
    names.sort();
    answered.sort();
    assert_eq!(answered, names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_stream_answers_each_task_once() {
    many(2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: some minutes in a debug build"]
async fn a_watch_stream_carries_a_hundred_thousand_tasks() {
    many(100_000).await;
}
