//! The cluster worker with real task processes, against a hand-made manager of either protocol.

mod logs;
mod manager;
mod pieces;

use fedbroker::config::WorkerOptions;
use fedbroker::job_types::exec::Shim;
use fedbroker::job_types::{Options, PrepareInput, Python, Registry};
use fedbroker::supervisor::Supervisor;
use fedbroker::wire::fedbroker::v1::{DummyTask, ProgramTask, TaskAttempt, outcome::State};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::update_status::TaskStatus;
use manager::{DEADLINE, Heard, Manager};
use prost::Message;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_fedbroker");

/// A worker in this process, with directories of its own; ends with the value.
struct Worker {
    dir: TempDir,
    supervisor: Supervisor,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.supervisor.stop();
    }
}

fn options(dir: &Path, manager: &Manager, max_tasks: u32) -> WorkerOptions {
    for name in ["programs", "data", "work"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    WorkerOptions {
        name: "w1".into(),
        worker_ip: "127.0.0.1".into(),
        max_tasks,
        port_start: 12000,
        port_end: 12010,
        manager_address: manager.address.to_string(),
        data_base_dir: Some(dir.join("data")),
        programs_dir: Some(dir.join("programs")),
        python: "python3".into(),
        paddle_timeout: 60,
        work_dir: dir.join("work"),
        metrics_port: None,
        metrics_host: "127.0.0.1".into(),
        keep_work_days: 7,
        keep_work_bytes: None,
    }
}

impl Worker {
    async fn start(manager: &Manager, max_tasks: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new();
        let options = options(dir.path(), manager, max_tasks);
        fedbroker::worker::serve_with(options, supervisor.clone(), Shim::at(BINARY))
            .await
            .unwrap();
        Self { dir, supervisor }
    }

    /// Install a program whose trainer is a shell script.
    fn install(&self, name: &str, script: &str) {
        install(self.dir.path(), name, script);
    }

    fn work(&self, path: &str) -> PathBuf {
        self.dir.path().join("work").join(path)
    }
}

fn install(dir: &Path, name: &str, script: &str) {
    let dir = dir.join("programs").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "[env]\nGREETING = \"hello {{index}}\"\n[aggregator]\nargv = [\"true\"]\n[trainer]\nargv = [\"sh\", \"-c\", '''{script}''', \"{{data_dir}}\"]\n"
    );
    std::fs::write(dir.join("program.toml"), text).unwrap();
}

fn task(job: &str, id: &str, task_type: &str, url: &str, payload: &impl Message) -> Task {
    Task {
        job_id: job.into(),
        task_id: id.into(),
        task_type: task_type.into(),
        task: Some(fedbroker::wire::Any {
            type_url: format!("type.googleapis.com/fedbroker.v1.{url}"),
            value: payload.encode_to_vec().into(),
        }),
        assignee: String::new(),
    }
}

fn dummy(job: &str, id: &str, sleep_ms: u64) -> Task {
    task(
        job,
        id,
        "dummy_trainer",
        "DummyTask",
        &DummyTask {
            sleep_ms,
            ..DummyTask::default()
        },
    )
}

fn program(job: &str, id: &str, name: &str) -> Task {
    let payload = ProgramTask {
        program: name.into(),
        index: 0,
        count: 1,
        endpoints: vec![],
        params: "{}".into(),
        files: vec![],
    };
    task(job, id, "program_trainer", "ProgramTask", &payload)
}

fn attempt(job: &str, id: &str, number: u32) -> TaskAttempt {
    TaskAttempt {
        job_id: job.into(),
        task_id: id.into(),
        attempt: number,
    }
}

/// Look again and again until it is so.
async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The process ids a script has written, one per line.
async fn pids(file: PathBuf, count: usize) -> Vec<String> {
    eventually("the script wrote its pids", || {
        let text = std::fs::read_to_string(&file).ok()?;
        let pids: Vec<_> = text.lines().map(str::to_owned).collect();
        (pids.len() == count && text.ends_with('\n')).then_some(pids)
    })
    .await
}

async fn gone(pids: &[String]) {
    eventually("all processes are gone", || {
        // A zombie that an init process has not reaped yet is gone for our purpose.
        let alive = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
        (!pids.iter().any(alive)).then_some(())
    })
    .await;
}

/// A process, a child in its group, and a child that has left the group; all deaf to SIGHUP.
const FAMILY: &str = r#"trap "" HUP; sleep 1000 & echo $! >> pids; setsid sleep 1000 & echo $! >> pids; echo $$ >> pids; wait"#;

#[tokio::test]
async fn tasks_run_and_are_reported_with_what_they_left() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install("p", r#"echo "$GREETING"; echo "$0=$FEDVISION_DATA_BASE"; echo oops >&2; exit 3"#);
    let attach = manager.attached().await;
    assert_eq!((attach.worker_id.as_str(), attach.max_tasks, attach.known.len()), ("w1", 2, 0));
    manager.run(program("j", "t", "p"), 1).await;
    let (task, outcome) = manager.report().await;
    assert_eq!(task, attempt("j", "t", 1));
    assert_eq!(
        (outcome.state(), outcome.exit_code, outcome.stderr_tail.as_str()),
        (State::Failed, Some(3), "oops")
    );
    assert_eq!(outcome.reason, "program p exited with code 3");
    assert_eq!((outcome.worker_id.as_str(), outcome.attempt), ("w1", 1));
    let data = worker.dir.path().join("data").canonicalize().unwrap();
    let said = std::fs::read_to_string(worker.work("j/t/1/stdout")).unwrap();
    assert_eq!(said, format!("hello 0\n{0}={0}\n", data.display()));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(worker.work("j/t/1/task.json")).unwrap()).unwrap();
    assert_eq!(
        (&record["outcome"]["exit_code"], &record["task_type"]),
        (&json!(3), &json!("program_trainer"))
    );

    let unknown = Task {
        task_type: "x".into(),
        ..dummy("j", "u", 0)
    };
    manager.run(unknown, 1).await;
    assert_eq!(manager.report().await.1.reason, "task type x is not known to this worker");
    manager.run(program("j", "v", "absent"), 1).await;
    assert_eq!(manager.report().await.1.reason, "program absent is not installed at worker w1");
}

#[tokio::test]
async fn an_attempt_runs_once_however_often_it_comes() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 4).await;
    worker.install("count", r#"echo run >> ../../runs; until [ -e ../../go ]; do sleep 0.02; done"#);
    manager.attached().await;
    manager.run(program("j", "t", "count"), 1).await;
    manager.run(program("j", "t", "count"), 1).await;
    // A probe task after the repetition: when it has ended, the repetition has been dealt with.
    manager.run(dummy("j", "probe", 0), 1).await;
    assert_eq!(manager.report().await.0.task_id, "probe");
    eventually("the task runs", || worker.work("j/runs").exists().then_some(())).await;
    std::fs::write(worker.work("j/go"), "").unwrap();
    assert_eq!(manager.report().await.0.task_id, "t");
    manager.run(program("j", "t", "count"), 1).await;
    assert_eq!(manager.report().await.0.task_id, "t", "ended and unacknowledged: reported again");
    manager.acknowledge(attempt("j", "t", 1)).await;
    manager.run(program("j", "t", "count"), 1).await;
    let (again, outcome) = manager.report().await;
    assert_eq!(again, attempt("j", "t", 1), "a manager that has forgotten it waits for an end");
    assert_eq!(
        outcome.reason,
        "this attempt ended before, and the manager acknowledged its outcome"
    );
    manager.acknowledge(attempt("j", "t", 1)).await;
    manager.run(dummy("j", "probe", 0), 2).await;
    assert_eq!(manager.report().await.0, attempt("j", "probe", 2));
    manager.run(program("j", "t", "count"), 2).await;
    assert_eq!(manager.report().await.0, attempt("j", "t", 2));
    assert_eq!(std::fs::read_to_string(worker.work("j/runs")).unwrap(), "run\nrun\n");
}

#[tokio::test]
async fn a_killed_task_ends_with_all_its_descendants() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    worker.install("family", FAMILY);
    manager.attached().await;
    manager.run(program("j", "t", "family"), 1).await;
    let family = pids(worker.work("j/t/1/pids"), 3).await;
    manager.run(dummy("j", "waiting", 0), 1).await;
    manager.kill(attempt("j", "waiting", 1)).await;
    let (task, outcome) = manager.report().await;
    assert_eq!((task.task_id.as_str(), outcome.state()), ("waiting", State::Cancelled));
    manager.kill(attempt("j", "t", 1)).await;
    let (task, outcome) = manager.report().await;
    assert_eq!(
        (task.task_id.as_str(), outcome.state(), outcome.reason.as_str()),
        ("t", State::Cancelled, "enough")
    );
    gone(&family).await;
    manager.kill(attempt("j", "never-seen", 1)).await;
    assert_eq!(manager.report().await.1.state(), State::Cancelled);
}

#[tokio::test]
async fn a_task_deaf_to_sigterm_is_killed() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    worker.install(
        "deaf",
        &FAMILY.replace("HUP", "HUP TERM").replace("wait", "while :; do wait; sleep 1; done"),
    );
    manager.attached().await;
    manager.run(program("j", "t", "deaf"), 1).await;
    let family = pids(worker.work("j/t/1/pids"), 3).await;
    manager.kill(attempt("j", "t", 1)).await;
    let (_, outcome) = manager.report().await;
    assert_eq!((outcome.state(), outcome.exit_code), (State::Cancelled, None));
    gone(&family).await;
}

#[tokio::test]
async fn a_task_that_ends_leaves_no_descendants() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    worker.install("leaver", &FAMILY.replace("; wait", ""));
    manager.attached().await;
    manager.run(program("j", "t", "leaver"), 1).await;
    assert_eq!(manager.report().await.1.state(), State::Succeeded);
    gone(&pids(worker.work("j/t/1/pids"), 3).await).await;
}

#[tokio::test]
async fn a_task_over_its_time_is_ended() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    worker.install("slow", FAMILY);
    let file = worker.dir.path().join("programs/slow/program.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("timeout_seconds = 1\n{text}")).unwrap();
    manager.attached().await;
    manager.run(program("j", "t", "slow"), 1).await;
    let (_, outcome) = manager.report().await;
    assert_eq!(
        (outcome.state(), outcome.reason.as_str()),
        (State::Failed, "program slow did not end within 1 s")
    );
    gone(&pids(worker.work("j/t/1/pids"), 3).await).await;
}

#[tokio::test]
async fn tasks_and_reports_outlive_the_manager() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 4).await;
    worker.install("held", r#"until [ -e ../../go ]; do sleep 0.02; done"#);
    let first = manager.attached().await;
    manager.run(program("j", "held", "held"), 1).await;
    manager.run(dummy("j", "ended", 0), 1).await;
    assert_eq!(manager.report().await.0.task_id, "ended");
    let port = manager.stop().await;
    eventually("the held task runs", || worker.work("j/held/1/task.json").exists().then_some(())).await;
    std::fs::write(worker.work("j/go"), "").unwrap();
    let mut manager = Manager::ours(port).await;
    let again = manager.attached().await;
    assert_eq!(again.instance, first.instance);
    assert_eq!(again.known.len(), 2);
    let mut reported = [manager.report().await.0.task_id, manager.report().await.0.task_id];
    reported.sort();
    assert_eq!(reported, ["ended", "held"]);
    manager.acknowledge(attempt("j", "ended", 1)).await;
    manager.acknowledge(attempt("j", "held", 1)).await;
    manager.run(dummy("j", "probe", 0), 1).await;
    assert_eq!(manager.report().await.0.task_id, "probe");
    manager.drop_worker();
    assert_eq!(manager.attached().await.known, [attempt("j", "probe", 1)]);
    assert_eq!(manager.report().await.0.task_id, "probe");
    assert!(!manager.has_more());
}

#[tokio::test]
async fn hostile_ids_stay_in_the_work_directory() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 4).await;
    worker.install("p", "pwd");
    manager.attached().await;
    let root = worker.work("").canonicalize().unwrap();
    let long = "/".repeat(200);
    for (job, id) in [("../x", "../../y"), ("/etc", ".."), (".", "a/b"), (long.as_str(), long.as_str())] {
        manager.run(program(job, id, "p"), 1).await;
        let (task, outcome) = manager.report().await;
        assert_eq!(
            (task, outcome.state()),
            (attempt(job, id, 1), State::Succeeded),
            "{}",
            outcome.reason
        );
    }
    let mut outputs = 0;
    for job in std::fs::read_dir(&root).unwrap() {
        for task in std::fs::read_dir(job.unwrap().path()).unwrap() {
            let dir = task.unwrap().path().join("1");
            assert_eq!(
                std::fs::read_to_string(dir.join("stdout")).unwrap().trim_end(),
                dir.to_str().unwrap()
            );
            outputs += 1;
        }
    }
    assert_eq!(outputs, 4);
    let mut names: Vec<_> = std::fs::read_dir(worker.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["data", "programs", "work"]);
    manager.run(program("j", "-x", "p"), 1).await;
    assert!(manager.report().await.1.reason.contains("begins with '-'"));
}

#[tokio::test]
async fn no_more_tasks_run_at_once_than_allowed() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install(
        "p",
        "echo x >> ../../started; until [ -e ../../go ]; do sleep 0.02; done; echo x >> ../../ended",
    );
    manager.attached().await;
    for i in 0..5 {
        manager.run(program("j", &format!("t{i}"), "p"), 1).await;
    }
    let lines = |name: &str| {
        std::fs::read_to_string(worker.work("j").join(name))
            .unwrap_or_default()
            .lines()
            .count()
    };
    eventually("two tasks run", || (lines("started") == 2).then_some(())).await;
    // All are unpacked; those without a slot have not begun.
    eventually("all are unpacked", || {
        (0..5).all(|i| worker.work(&format!("j/t{i}/1/params.json")).exists()).then_some(())
    })
    .await;
    assert_eq!(lines("started"), 2);
    std::fs::write(worker.work("j/go"), "").unwrap();
    for _ in 0..5 {
        assert_eq!(manager.report().await.1.state(), State::Succeeded);
    }
    assert_eq!(lines("ended"), 5);
}

#[tokio::test]
async fn thousands_of_dummy_tasks_are_cheap() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 16).await;
    manager.attached().await;
    let begin = tokio::time::Instant::now();
    for i in 0..5000 {
        manager.run(dummy("j", &format!("t{i}"), 0), 1).await;
    }
    for _ in 0..5000 {
        let (task, _) = manager.report().await;
        manager.acknowledge(task).await;
    }
    println!("5000 dummy tasks in {:?}", begin.elapsed());
    assert_eq!(std::fs::read_dir(worker.work("")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_fedvision_manager_is_served_in_its_own_way() {
    let mut manager = Manager::fedvision(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install("bad", "exit 1");
    let Heard::Enrolled(enrolled) = manager.hear().await else {
        panic!()
    };
    assert_eq!(
        (enrolled.worker_id.as_str(), enrolled.port_start, enrolled.port_end),
        ("w1", 12000, 12010)
    );
    manager.submit(dummy("j", "trainer_0", 0)).await;
    let update = manager.updated().await;
    assert_eq!(
        (update.task_id.as_str(), update.task_status()),
        ("trainer_0", TaskStatus::TaskFinish)
    );
    manager.submit(program("j", "trainer_1", "bad")).await;
    let update = manager.updated().await;
    assert_eq!(
        (update.task_status(), update.exception.as_str()),
        (TaskStatus::TaskException, "execute task: trainer_1 failed, return code: 1")
    );
    let Heard::Updated(heartbeat) = manager.hear().await else {
        panic!()
    };
    assert_eq!((heartbeat.worker_id.as_str(), heartbeat.task_id.as_str()), ("w1", ""));
    let port = manager.stop().await;
    let mut manager = Manager::fedvision_refusing(port, 2).await;
    assert!(matches!(manager.hear().await, Heard::Enrolled(_)), "it enrols again");
    manager.submit(dummy("j", "trainer_0", 0)).await;
    assert_eq!(manager.updated().await.task_id, "trainer_0");
}

/// The real binary against a manager, until it says that it is ready.
async fn spawn_binary(dir: &Path, manager: &mut Manager) -> tokio::process::Child {
    let o = options(dir, manager, 4);
    let mut child = tokio::process::Command::new(BINARY)
        .args(["cluster-worker", "--name", "w1", "--worker-ip", "127.0.0.1", "--max-tasks", "4"])
        .args([
            "--port-start",
            "12000",
            "--port-end",
            "12010",
            "--manager-address",
            &o.manager_address,
        ])
        .arg("--programs-dir")
        .arg(o.programs_dir.unwrap())
        .arg("--data-base-dir")
        .arg(o.data_base_dir.unwrap())
        .arg("--work-dir")
        .arg(o.work_dir)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap());
    tokio::time::timeout(DEADLINE, tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(line, format!("cluster-worker ready on {}\n", manager.address));
    manager.attached().await;
    child
}

#[tokio::test]
async fn no_process_outlives_the_worker() {
    for signal in ["-KILL", "-TERM"] {
        let mut manager = Manager::ours(0).await;
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "family", FAMILY);
        let mut child = spawn_binary(dir.path(), &mut manager).await;
        manager.run(program("j", "t", "family"), 1).await;
        let family = pids(dir.path().join("work/j/t/1/pids"), 3).await;
        let pid = child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.success(), signal == "-TERM");
        gone(&family).await;
    }
}

/// A free port; another process could take it in between, which these tests live with.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn the_example_learns() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/programs");
    let mut manager = Manager::ours(0).await;
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new();
    let mut options = options(dir.path(), &manager, 3);
    options.data_base_dir = Some(examples.join("digits_fedavg/data"));
    options.programs_dir = Some(examples.clone());
    fedbroker::worker::serve_with(options, supervisor.clone(), Shim::at(BINARY))
        .await
        .unwrap();
    manager.attached().await;
    let registry = Registry::new(Options {
        enabled: None,
        programs_dir: Some(examples),
        data_dir: None,
        python: Python {
            command: "python3".into(),
            timeout: DEADLINE,
        },
        shim: Shim::at(BINARY),
        who: "master p1".into(),
    })
    .unwrap();
    let input = |params: serde_json::Value| PrepareInput {
        job_id: "p1-20260101000000-1".into(),
        config: json!({"program": "digits_fedavg", "proposal_wait_time": 1, "worker_num": 2, "params": params}),
        algorithm_config: None,
        endpoints: vec![format!("127.0.0.1:{}", free_port())],
        work_dir: dir.path().join("compile"),
        attempt: 1,
        cancel: Default::default(),
    };
    let error = registry.prepare("program", input(json!({"rounds": 0}))).await.unwrap_err();
    assert_eq!(
        (error.reason.as_str(), error.exit_code),
        ("compile step of program digits_fedavg exited with code 1", Some(1))
    );
    assert!(error.stderr_tail.contains("rounds"), "{}", error.stderr_tail);
    let prepared = registry.prepare("program", input(json!({"rounds": 4}))).await.unwrap();
    assert_eq!((prepared.proposal_tasks.len(), prepared.local_tasks.len()), (2, 1));
    for task in prepared.proposal_tasks.into_iter().chain(prepared.local_tasks) {
        manager.run(task, 1).await;
    }
    for _ in 0..3 {
        let (task, outcome) = manager.report().await;
        assert_eq!(outcome.state(), State::Succeeded, "{task:?} {outcome:?}");
    }
    let said = std::fs::read_to_string(dir.path().join("work/p1-20260101000000-1/aggregator/1/stdout")).unwrap();
    let done: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(done["accuracy"].as_f64().unwrap() > 0.9, "{done}");
    supervisor.stop();
}

#[tokio::test]
async fn a_compile_step_ends_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path(), "p", "");
    let file = dir.path().join("programs/p/program.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}[compile]\nargv = [\"sh\", \"-c\", '''{FAMILY}''']\n")).unwrap();
    let registry = Registry::new(Options {
        enabled: None,
        programs_dir: Some(dir.path().join("programs")),
        data_dir: None,
        python: Python {
            command: "python3".into(),
            timeout: DEADLINE,
        },
        shim: Shim::at(BINARY),
        who: "master p1".into(),
    })
    .unwrap();
    let input = PrepareInput {
        job_id: "j".into(),
        config: json!({"program": "p", "proposal_wait_time": 1, "worker_num": 1}),
        algorithm_config: None,
        endpoints: vec![],
        work_dir: dir.path().join("compile"),
        attempt: 1,
        cancel: Default::default(),
    };
    let family = tokio::select! {
        prepared = registry.prepare("program", input) => panic!("{prepared:?}"),
        family = pids(dir.path().join("compile/pids"), 3) => family,
    };
    gone(&family).await;
}
