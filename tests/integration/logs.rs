//! Logs from a worker through its cluster manager to a master, and what the manager lets go of: each a real process, or played by the test where it
//! has to misbehave.

use crate::support::{DEADLINE, Role, free_ports};
use fedbroker::machine::ids::TaskKey;
use fedbroker::master::logs::{Error, Log, Logs, Output, Query};
use fedbroker::supervisor::Supervisor;
use fedbroker::wire::connect::{MESSAGE_MAX, channel};
use fedbroker::wire::fedbroker::v1::cluster_client::ClusterClient;
use fedbroker::wire::fedbroker::v1::peer_server::PeerServer;
use fedbroker::wire::fedbroker::v1::{self as ours, ProgramTask, from_worker, outcome::State, to_worker};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::{enroll, task_submit};
use fedbroker::wire::{metered, serve};
use prost::Message;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Streaming};

async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, call).await.expect("in time")
}

fn logs_of(address: &str) -> Logs {
    let metrics = Supervisor::new().metrics().clone();
    Logs::new(metered::channel(address, "cluster-manager", &metrics).unwrap())
}

/// A manager, and a worker that is not started.
struct Cluster {
    dir: tempfile::TempDir,
    manager: Role,
    worker: Role,
}

impl Cluster {
    async fn start(grace: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let data = text("data");
        let args = [
            "cluster-manager",
            "--port",
            "0",
            "--task-attempts",
            "3",
            "--worker-grace",
            grace,
            "--data-dir",
            &data,
        ];
        let mut manager = Role::new("manager", dir.path(), &args);
        let address = manager.reserve_port();
        manager.start().await;
        std::fs::create_dir(dir.path().join("programs")).unwrap();
        let first = free_ports(5);
        let (first, end) = (first.to_string(), (first + 5).to_string());
        let (work, programs) = (text("work"), text("programs"));
        let mut args = vec!["cluster-worker", "--name", "w", "--worker-ip", "127.0.0.1", "--max-tasks", "4"];
        args.extend(["--port-start", &first, "--port-end", &end, "--manager-address", &address]);
        args.extend(["--work-dir", &work, "--programs-dir", &programs]);
        let worker = Role::new("worker", dir.path(), &args);
        Self { dir, manager, worker }
    }

    async fn with_worker(grace: &str) -> Self {
        let mut cluster = Self::start(grace).await;
        cluster.worker.start().await;
        cluster
    }

    fn install(&self, name: &str, script: &str) {
        let dir = self.dir.path().join("programs").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let text = format!("[aggregator]\nargv = [\"true\"]\n[trainer]\nargv = [\"sh\", \"-c\", '''{script}''', \"{{attempt}}\"]\n");
        std::fs::write(dir.join("program.toml"), text).unwrap();
    }

    fn ours(&self) -> ClusterClient<tonic::transport::Channel> {
        ClusterClient::new(channel(&self.manager.address).unwrap())
    }

    async fn submit(&self, job: &str, task: &str, program: &str) {
        let payload = ProgramTask {
            program: program.into(),
            count: 1,
            params: "{}".into(),
            ..ProgramTask::default()
        };
        let task = Task {
            job_id: job.into(),
            task_id: task.into(),
            task_type: "program_trainer".into(),
            task: Some(fedbroker::wire::Any {
                type_url: "type.googleapis.com/fedbroker.v1.ProgramTask".into(),
                value: payload.encode_to_vec().into(),
            }),
            assignee: String::new(),
        };
        let mut client = ClusterManagerClient::new(channel(&self.manager.address).unwrap()).max_encoding_message_size(MESSAGE_MAX);
        let reply = soon(client.task_submit(task_submit::Req { task: Some(task) })).await.unwrap();
        assert_eq!(reply.into_inner().status(), task_submit::Status::Success);
    }

    async fn ended(&self, job: &str, task: &str) -> State {
        let request = ours::WatchRequest {
            job_id: job.into(),
            task_id: task.into(),
        };
        let mut ends = soon(self.ours().watch(tokio_stream::iter([request]))).await.unwrap().into_inner();
        soon(ends.message()).await.unwrap().unwrap().outcome.unwrap().state()
    }

    async fn open(&self, query: Query) -> Result<Log, Error> {
        soon(logs_of(&self.manager.address).open(query)).await
    }

    async fn read(&self, query: Query) -> Result<String, Error> {
        let mut log = self.open(query).await?;
        let mut text = String::new();
        while let Some(piece) = soon(log.next()).await? {
            text += &String::from_utf8_lossy(&piece.data);
        }
        Ok(text)
    }

    async fn forget(&self, job: &str) -> Result<u32, tonic::Status> {
        let job_id = job.into();
        let reply = soon(self.ours().forget_job(ours::ForgetJobRequest { job_id })).await?;
        Ok(reply.into_inner().tasks)
    }

    async fn eventually(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        soon(async {
            while !fits(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(fits(self), "{what}");
    }

    /// A worker played by the test.
    async fn play(&self, name: &str, logs: bool) -> (mpsc::Sender<ours::FromWorker>, Streaming<ours::ToWorker>) {
        let (line, receiver) = mpsc::channel(4);
        let attach = ours::WorkerAttach {
            worker_id: name.into(),
            worker_ip: "127.0.0.1".into(),
            max_tasks: 1,
            port_start: 9000,
            port_end: 9001,
            instance: "one".into(),
            known: Vec::new(),
            logs,
            pieces: false,
        };
        line.send(from(from_worker::Message::Attach(attach))).await.unwrap();
        let mut orders = soon(self.ours().attach(ReceiverStream::new(receiver))).await.unwrap().into_inner();
        assert!(matches!(order(&mut orders).await, to_worker::Message::Attached(_)));
        (line, orders)
    }
}

fn from(message: from_worker::Message) -> ours::FromWorker {
    ours::FromWorker { message: Some(message) }
}

async fn order(orders: &mut Streaming<ours::ToWorker>) -> to_worker::Message {
    soon(orders.message()).await.unwrap().unwrap().message.unwrap()
}

fn query(task: &str) -> Query {
    Query {
        task: TaskKey::parse("j", task).unwrap(),
        attempt: None,
        output: Output::Stdout,
        tail_lines: None,
        follow: false,
    }
}

fn follow(task: &str) -> Query {
    Query {
        follow: true,
        ..query(task)
    }
}

const HELD: &str = r#"echo one $0; echo aside >&2; until [ -e ../../go ]; do sleep 0.02; done; echo two"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_master_reads_running_and_ended_tasks_and_hears_why_it_cannot() {
    let mut cluster = Cluster::start("8").await;
    cluster.install("held", HELD);
    assert!(matches!(cluster.read(query("t")).await, Err(Error::Unknown(why)) if why.contains("j/t")));
    cluster.submit("j", "t", "held").await;
    assert!(matches!(cluster.read(query("t")).await, Err(Error::NotStarted(why)) if why.contains("waits for a worker")));
    cluster.worker.start().await;
    let mut log = soon(async {
        loop {
            match cluster.open(follow("t")).await {
                // Gone: the worker has the task, and not yet its files.
                Err(Error::NotStarted(_) | Error::Gone(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                opened => return opened.unwrap(),
            }
        }
    })
    .await;
    assert_eq!((log.attempt, log.offset), (1, 0));
    assert_eq!(soon(log.next()).await.unwrap().unwrap().data.as_ref(), b"one 1\n");
    assert_eq!(cluster.read(query("t")).await.unwrap(), "one 1\n");
    let stderr = Query {
        output: Output::Stderr,
        ..query("t")
    };
    assert_eq!(cluster.read(stderr).await.unwrap(), "aside\n");
    let second = Query {
        attempt: Some(2),
        ..query("t")
    };
    assert!(matches!(cluster.read(second).await, Err(Error::NotStarted(why)) if why.contains("1 times")));
    assert_eq!(cluster.forget("j").await.unwrap_err().code(), Code::FailedPrecondition);
    std::fs::write(cluster.dir.path().join("work/j/go"), "").unwrap();
    assert_eq!(soon(log.next()).await.unwrap().unwrap().data.as_ref(), b"two\n");
    assert!(soon(log.next()).await.unwrap().is_none(), "it ends with its task");
    assert_eq!(cluster.ended("j", "t").await, State::Succeeded);
    let last = Query {
        tail_lines: Some(1),
        ..query("t")
    };
    assert_eq!(cluster.read(last).await.unwrap(), "two\n");
    assert_eq!(cluster.read(follow("t")).await.unwrap(), "one 1\ntwo\n");

    // The manager may die and come back: the files are at the worker.
    cluster.manager.kill().await;
    assert!(matches!(cluster.read(query("t")).await, Err(Error::Unreachable(_))));
    cluster.manager.start().await;
    soon(async {
        while let Err(Error::WorkerAway(_)) = cluster.read(query("t")).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(cluster.read(query("t")).await.unwrap(), "one 1\ntwo\n");

    // Forgotten, here and at the worker; once more is fine.
    assert_eq!(cluster.forget("j").await.unwrap(), 1);
    cluster
        .eventually("the directory is gone", |cluster| !cluster.dir.path().join("work/j").exists())
        .await;
    assert_eq!(cluster.forget("j").await.unwrap(), 0);
    assert_eq!(cluster.ended("j", "t").await, State::NotFound);
    assert!(matches!(cluster.read(query("t")).await, Err(Error::Unknown(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_has_its_log_and_a_worker_that_dies_ends_the_reading() {
    let mut cluster = Cluster::with_worker("1").await;
    cluster.install("held", HELD);
    cluster.submit("j", "t", "held").await;
    for attempt in 1..=2 {
        let mut log = soon(async {
            loop {
                match cluster.open(follow("t")).await {
                    Ok(log) if log.attempt == attempt => return log,
                    Ok(_) | Err(Error::NotStarted(_) | Error::WorkerAway(_) | Error::Gone(_)) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        })
        .await;
        assert_eq!(
            soon(log.next()).await.unwrap().unwrap().data,
            format!("one {attempt}\n").into_bytes()
        );
        cluster.worker.kill().await;
        assert!(matches!(soon(log.next()).await, Err(Error::WorkerAway(_))));
        assert!(soon(log.next()).await.unwrap().is_none(), "nothing follows an error");
        let away = cluster.read(query("t")).await.unwrap_err();
        assert!(matches!(away, Error::WorkerAway(_) | Error::Gone(_)), "{away:?}");
        cluster.worker.start().await;
    }
    std::fs::write(cluster.dir.path().join("work/j/go"), "").unwrap();
    assert_eq!(cluster.ended("j", "t").await, State::Succeeded);
    for (attempt, text) in [(1, "one 1\n"), (2, "one 2\n"), (3, "one 3\ntwo\n")] {
        let query = Query {
            attempt: Some(attempt),
            ..query("t")
        };
        assert_eq!(cluster.read(query).await.unwrap(), text);
    }
    std::fs::remove_dir_all(cluster.dir.path().join("work/j/t/2")).unwrap();
    let second = Query {
        attempt: Some(2),
        ..query("t")
    };
    assert!(matches!(cluster.read(second).await, Err(Error::Gone(why)) if why.contains("attempt 2")));
    std::fs::remove_dir_all(cluster.dir.path().join("work/j")).unwrap();
    assert!(matches!(cluster.read(query("t")).await, Err(Error::Gone(why)) if why.contains("no such file")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_slow_or_gone_stops_its_reading_at_the_worker() {
    let cluster = Cluster::start("8").await;
    let (line, mut orders) = cluster.play("played", true).await;
    cluster.submit("j", "t", "x").await;
    assert!(matches!(order(&mut orders).await, to_worker::Message::Run(_)));
    let (log, (fetch, line)) = tokio::join!(cluster.open(follow("t")), async {
        let to_worker::Message::FetchLogs(fetch) = order(&mut orders).await else {
            panic!("no request")
        };
        let part = ours::LogPart {
            request_id: fetch.request_id,
            ..Default::default()
        };
        line.send(from(from_worker::Message::Logs(part))).await.unwrap();
        (fetch, line)
    });
    let log = log.unwrap();
    assert_eq!((fetch.task.as_ref().unwrap().attempt, fetch.follow), (1, true));
    // A log without an end, sent as fast as it is allowed, to a client that never reads: what fits into the network on the way, and no more.
    let (mut allowed, mut sent) = (fetch.window, 0_usize);
    loop {
        for _ in 0..allowed {
            let part = ours::LogPart {
                request_id: fetch.request_id,
                data: vec![b'x'; 32 * 1024],
                offset: sent as u64,
                ..Default::default()
            };
            sent += part.data.len();
            line.send(from(from_worker::Message::Logs(part))).await.unwrap();
        }
        match tokio::time::timeout(Duration::from_secs(1), order(&mut orders)).await {
            Ok(to_worker::Message::MoreLogs(more)) => allowed = more.parts,
            Ok(other) => panic!("{other:?}"),
            Err(_) => break,
        }
        assert!(sent < 16 << 20, "nobody reads, and {sent} bytes were taken");
    }
    // The stream of the worker is not held up.
    let outcome = ours::Outcome {
        state: State::Succeeded.into(),
        ..Default::default()
    };
    let report = ours::TaskReport {
        task: fetch.task.clone(),
        outcome: Some(outcome),
    };
    line.send(from(from_worker::Message::Report(report))).await.unwrap();
    assert!(matches!(order(&mut orders).await, to_worker::Message::Acknowledged(_)));
    drop(log);
    let stop = soon(async {
        loop {
            match order(&mut orders).await {
                to_worker::Message::StopLogs(stop) => return stop,
                to_worker::Message::MoreLogs(_) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert_eq!(stop.request_id, fetch.request_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_sends_too_much_or_is_too_old_harms_its_logs_only() {
    let cluster = Cluster::start("8").await;
    let (line, mut orders) = cluster.play("played", true).await;
    cluster.submit("j", "t", "x").await;
    assert!(matches!(order(&mut orders).await, to_worker::Message::Run(_)));
    let flood = async {
        let to_worker::Message::FetchLogs(fetch) = order(&mut orders).await else {
            panic!("no request")
        };
        for n in 0..200 {
            let part = ours::LogPart {
                request_id: fetch.request_id,
                data: vec![b'x'; usize::from(n > 0) * 32 * 1024],
                ..Default::default()
            };
            line.send(from(from_worker::Message::Logs(part))).await.unwrap();
        }
        line
    };
    let (read, line) = tokio::join!(cluster.read(follow("t")), flood);
    assert!(matches!(read, Err(Error::WorkerAway(_))), "{read:?}");
    line.send(from(from_worker::Message::Heartbeat(ours::Heartbeat {}))).await.unwrap();
    assert!(!line.is_closed());
    drop((line, orders));

    let (_line, mut orders) = cluster.play("old-fedbroker", false).await;
    cluster.submit("j", "u", "x").await;
    assert!(matches!(order(&mut orders).await, to_worker::Message::Run(_)));
    assert!(matches!(cluster.read(query("u")).await, Err(Error::Unsupported(why)) if why.contains("old-fedbroker")));
    let mut theirs = ClusterManagerClient::new(channel(&cluster.manager.address).unwrap());
    let request = enroll::Req {
        worker_id: "old".into(),
        worker_ip: "127.0.0.1".into(),
        max_tasks: 1,
        port_start: 9000,
        port_end: 9001,
    };
    let mut tasks = soon(theirs.enroll(request)).await.unwrap().into_inner();
    soon(tasks.message()).await.unwrap();
    cluster.submit("j", "v", "x").await;
    soon(tasks.message()).await.unwrap();
    assert!(matches!(cluster.read(query("v")).await, Err(Error::Unsupported(why)) if why.contains("worker old ")));
}

/// One of FedVision 0.1 does not even know Hello, one of Fedbroker 0.1 knows nothing of logs.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "a test's own server")]
async fn a_manager_that_knows_no_logs_is_said_to_be_one() {
    for (fedvision, says) in [(true, "one of FedVision 0.1"), (false, "of a release that knows no logs")] {
        let (listener, address) = serve::bind("127.0.0.1", 0).await.unwrap();
        let (role, instance) = ("cluster-manager", "test".into());
        let peer = PeerServer::new(serve::PeerService { role, instance });
        let peer = (!fedvision).then_some(peer);
        let router = serve::server().add_optional_service(peer);
        let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let refused = soon(logs_of(&address.to_string()).open(query("t"))).await;
        assert!(
            matches!(&refused, Err(Error::Unsupported(why)) if why.contains(says)),
            "{refused:?}"
        );
        serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_tasks_are_let_go_by_count_and_the_oldest_first() {
    let mut cluster = Cluster::with_worker("8").await;
    let tasks: Vec<String> = (0..150).map(|n| format!("t{n:03}")).collect();
    for name in &tasks {
        // The program is not installed: each fails at once.
        cluster.submit("j", name, "none").await;
        assert_eq!(cluster.ended("j", name).await, State::Failed);
    }
    cluster.manager.kill().await;
    cluster.manager.set_flag("--keep-ended", "20");
    cluster.manager.start().await;
    cluster
        .eventually("they go", |cluster| {
            cluster.manager.log().contains("ended records were kept long enough removed=130")
        })
        .await;
    for (n, name) in tasks.iter().enumerate() {
        let expected = if n < 130 { State::NotFound } else { State::Failed };
        assert_eq!(cluster.ended("j", name).await, expected, "{name}");
    }
    assert_eq!(cluster.forget("j").await.unwrap(), 20);
    cluster.manager.kill().await;
    let data = cluster.dir.path().join("data");
    let check = std::process::Command::new(crate::support::BINARY)
        .args(["store", "check", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success() && said.contains(" 1 live and 0 ended records"), "{said}");
}
