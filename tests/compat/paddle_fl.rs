//! Jobs of type `paddle_fl` through real processes of all roles, with stand-ins for the Python packages (`python/`): they take 0.1's files
//! and arguments and no others, and speak the Scheduler service over gRPC. Faults are asked for with the key `stand_in` of the config.

mod scheduler;

use crate::support::{Client, DEADLINE, Federation, Role};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const YAML: &str = "batch_size: 32\nname: \u{e9}\n";

/// A federation whose first party lends two ports, which is what one job needs: a second job shows that the first gave them back.
fn planned(parties: usize, master_args: &[&str]) -> Federation {
    let mut federation = Federation::planned(parties, &[], master_args);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/python");
    for party in &mut federation.parties {
        let data = federation.dir.path().join(format!("{}-data", party.id));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("data.txt"), format!("data of {}", party.id)).unwrap();
        party.worker.set_flag("--data-base-dir", data.to_str().unwrap());
        for role in [&mut party.worker, &mut party.master] {
            role.env = vec![
                ("PYTHONPATH".into(), python.to_str().unwrap().into()),
                // Nothing is written into the sources.
                ("PYTHONDONTWRITEBYTECODE".into(), "1".into()),
                ("FEDBROKER_TEST_PEER".into(), scheduler::command()),
            ];
        }
    }
    let worker = &mut federation.parties[0].worker;
    let first: u16 = worker.flag("--port-start").unwrap().parse().unwrap();
    worker.set_flag("--port-end", &(first + 2).to_string());
    federation
}

async fn started(parties: usize) -> Federation {
    let mut federation = planned(parties, &[]);
    federation.start_all().await;
    federation
}

fn config(workers: u32, stand_in: &Value) -> Value {
    json!({
        "worker_num": workers, "program": "stand_in", "proposal_wait_time": 1, "max_iter": 2, "inner_step": 1, "device": "cpu", "stand_in": stand_in
    })
}

async fn submit(client: &Client, job_config: &Value) -> String {
    let body = json!({ "job_type": "paddle_fl", "job_config": job_config, "algorithm_config": YAML });
    let (status, answer) = client.post("/submit", &body).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer["job_id"].as_str().unwrap().to_owned()
}

async fn succeeds(federation: &mut Federation, job: &str) -> Value {
    let ended = federation.client(0).ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}\n{}", federation.logs());
    ended
}

async fn fails(federation: &Federation, job_config: &Value) -> Value {
    let client = federation.client(0);
    let job = submit(&client, job_config).await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    ended
}

/// What `look` finds, as soon as it finds something.
async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read(file: PathBuf) -> String {
    eventually(&file.display().to_string(), || std::fs::read_to_string(&file).ok()).await
}

/// Wait until the process that a step has left behind is gone.
async fn left_nothing(dir: &Path) {
    let pid = read(dir.join("left.pid")).await;
    // A zombie that an init process has not reaped yet is gone for our purpose.
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("the process that was left is gone", || (!alive()).then_some(())).await;
}

/// Where the first party compiled its n-th job.
fn compile_dir(federation: &Federation, n: u32) -> PathBuf {
    federation.dir.path().join(format!("p1-master/work/compile/{n}"))
}

/// The directory of a task, at whichever party it ran, and the party.
async fn task_dir(federation: &Federation, job: &str, task: &str) -> (PathBuf, String) {
    eventually(&format!("{task} of {job} has ended"), || {
        federation.parties.iter().find_map(|party| {
            let dir = federation.dir.path().join(format!("{}-work/{job}/{task}/1", party.id));
            let record: Value = serde_json::from_slice(&std::fs::read(dir.join("task.json")).ok()?).ok()?;
            record["outcome"].is_object().then(|| {
                assert_eq!(record["outcome"]["end"], "Succeeded", "{record}");
                (dir, party.id.clone())
            })
        })
    })
    .await
}

async fn seen(dir: &Path) -> Value {
    serde_json::from_str(&read(dir.join("seen.json")).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_compiles_trains_at_two_parties_and_succeeds() {
    let mut federation = started(3).await;
    let mut wanted = config(2, &json!({ "feeds": [1] }));
    // A whole number counts as an integer, and becomes one for the programs.
    wanted["max_iter"] = json!(2.0);
    wanted["text"] = json!("gr\u{fc}n");
    let job = submit(&federation.client(0), &wanted).await;
    let ended = succeeds(&mut federation, &job).await;
    assert_eq!(ended["tasks"][0]["exit_code"], 0, "{ended}");
    let (_, answer) = federation.client(0).post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer["status"], "_JobStatus.SUCCESS");

    let compiled = compile_dir(&federation, 1);
    let argv: Value = serde_json::from_str(&read(compiled.join("argv.json")).await).unwrap();
    let server = argv[1].as_str().unwrap();
    let options = [
        "--ps-endpoint",
        server,
        "--algorithm-config",
        "algorithm_config.yaml",
        "--config",
        "config.json",
    ];
    assert_eq!(argv, json!(options));
    assert_eq!(read(compiled.join("algorithm_config.yaml")).await, YAML);
    assert_eq!(read(compiled.join("stdout")).await, format!("compiling for {server}\n"));
    let text = r#"{"worker_num": 2, "program": "stand_in", "proposal_wait_time": 1, "max_iter": 2, "inner_step": 1, "device": "cpu", "stand_in": {"feeds": [1]}, "text": "gr\u00fcn"}"#;
    assert_eq!(read(compiled.join("config.json")).await, text);

    wanted["max_iter"] = json!(2);
    let (dir, at) = task_dir(&federation, &job, "aggregator").await;
    assert_eq!(at, "p1");
    let aggregator = seen(&dir).await;
    let scheduler = aggregator["argv"][0]
        .as_str()
        .unwrap()
        .strip_prefix("--scheduler-ep=")
        .unwrap()
        .to_owned();
    // The first endpoint is the parameter server's, the second the scheduler's.
    let first: u16 = federation.parties[0].worker.flag("--port-start").unwrap().parse().unwrap();
    assert_eq!(
        (server, scheduler.as_str()),
        (format!("127.0.0.1:{first}").as_str(), format!("127.0.0.1:{}", first + 1).as_str())
    );
    assert_eq!(aggregator["config"], wanted);
    left_nothing(&dir).await;

    let mut parties = Vec::new();
    for i in 0..2 {
        let (dir, at) = task_dir(&federation, &job, &format!("trainer_{i}")).await;
        let trainer = seen(&dir).await;
        let argv = trainer["argv"].as_array().unwrap();
        let named = [
            format!("--scheduler-ep={scheduler}"),
            format!("--trainer-id={i}"),
            format!("--trainer-ep=trainer_{i}"),
        ];
        assert_eq!(argv[..3], named.map(Value::from));
        let files = json!({
            "startup-program": format!("startup of trainer {i}"),
            "main-program": format!("main of trainer {i}"),
            "send-program": format!("send of trainer {i}"),
            "recv-program": format!("recv of trainer {i}"),
            "feed-names": format!("feed_names of trainer {i}"),
            "target-names": format!("target_names of trainer {i}"),
            // Trainer 0 has none of its own.
            "feeds": "feeds of trainer 1",
            "strategy": format!("strategy.pkl of trainer {i}"),
        });
        assert_eq!(trainer["files"], files);
        assert_eq!((&trainer["config"], &trainer["algorithm_config"]), (&wanted, &json!(YAML)));
        assert_eq!(trainer["data"], format!("data of {at}"));
        let statuses = ["INIT", "REJECT", "REJECT", "ACCEPT", "DONE", "ACCEPT", "DONE", "ACCEPT", "DONE"];
        assert_eq!(trainer["statuses"], json!(statuses));
        left_nothing(&dir).await;
        parties.push(at);
    }
    assert_ne!(parties[0], parties[1], "each trainer runs at a party of its own");
}

/// The size of each main program; measurements set it to hundreds of megabytes.
fn large() -> usize {
    std::env::var("FEDBROKER_PADDLE_BYTES").map_or(3 << 20, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_programs_arrive_whole_with_the_feeds_of_each_trainer() {
    let mut federation = started(2).await;
    let job = submit(&federation.client(0), &config(2, &json!({ "bytes": large() }))).await;
    succeeds(&mut federation, &job).await;
    for i in 0..2 {
        let (dir, _) = task_dir(&federation, &job, &format!("trainer_{i}")).await;
        let compiled = compile_dir(&federation, 1).join(format!("compile/trainer{i}/trainer.main.program"));
        let (sent, got) = (std::fs::read(compiled).unwrap(), std::fs::read(dir.join("main_program")).unwrap());
        assert!(
            sent.len() >= large() && sent == got,
            "{} bytes sent, {} came",
            sent.len(),
            got.len()
        );
        assert_eq!(seen(&dir).await["files"]["feeds"], format!("feeds of trainer {i}"));
    }
    for role in federation.roles() {
        println!("{}: {}", role.name, peak(role));
    }
}

/// The most memory a role ever held.
fn peak(role: &Role) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", role.pid().unwrap())).unwrap();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_compiles_tell_why_end_their_processes_and_give_the_endpoints_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    std::fs::write(&settings, "[paddle_fl]\ncompile_timeout = 5\n").unwrap();
    let mut federation = planned(1, &["--config", settings.to_str().unwrap()]);
    federation.start_all().await;

    let failed = fails(&federation, &config(1, &json!({ "compile": "fail" }))).await;
    assert_eq!(failed["reason"], "compile step of program stand_in exited with code 3");
    assert_eq!(failed["exit_code"], 3, "{failed}");
    assert_eq!(failed["stderr_tail"], "a line before\nthe compile step was told to fail");
    left_nothing(&compile_dir(&federation, 1)).await;

    let failed = fails(&federation, &config(1, &json!({ "compile": "hang" }))).await;
    assert_eq!(failed["reason"], "compile step of program stand_in did not end within 5 s");
    left_nothing(&compile_dir(&federation, 2)).await;

    let failed = fails(&federation, &config(1, &json!({ "leave_out": "trainer.send.program" }))).await;
    let reason = "program stand_in: the compile step did not write compile/trainer0/trainer.send.program";
    assert_eq!(failed["reason"], reason);

    let mut unknown = config(1, &json!({}));
    unknown["program"] = json!("no_such_program");
    let failed = fails(&federation, &unknown).await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("compile step of program no_such_program exited with code 1: python3 at master p1 says:")
            && reason.contains("No module named 'fedvision.ml.paddle.no_such_program'"),
        "{reason}"
    );

    // Each of them had both ports that there are. FedVision 0.1 could not run a job with one trainer.
    let job = submit(&federation.client(0), &config(1, &json!({}))).await;
    succeeds(&mut federation, &job).await;
    let job = submit(&federation.client(0), &config(1, &json!({}))).await;
    succeeds(&mut federation, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_at_the_door() {
    let mut federation = planned(1, &[]);
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    let refused = async |body: Value| {
        let (status, answer) = client.post("/submit", &body).await.unwrap();
        assert_eq!(status, 400, "{answer}");
        answer["exception"].as_str().unwrap().to_owned()
    };
    let with = |key: &str, value: Value| {
        let mut job_config = config(1, &json!({}));
        job_config[key] = value;
        json!({ "job_type": "paddle_fl", "job_config": job_config, "algorithm_config": YAML })
    };
    for name in ["a;b", "../x", "a.b", "a b", "$(touch x)", "-c", ""] {
        let why = refused(with("program", json!(name))).await;
        assert!(why.contains("is not a plain module name"), "{why}");
    }
    let cases = [
        ("worker_num", json!(0), "0 is less than the minimum of 1"),
        ("worker_num", json!(257), "257 is greater than the maximum of 256"),
        ("proposal_wait_time", json!(-1), "-1 is less than the minimum of 1"),
        (
            "proposal_wait_time",
            json!(4_294_967_296_u64),
            "4294967296 is greater than the maximum of 86400",
        ),
        ("max_iter", json!(-1), "-1 is less than the minimum of 0"),
        ("inner_step", json!(1.5), "1.5 is not of type 'integer'"),
    ];
    for (key, value, why) in cases {
        assert_eq!(refused(with(key, value)).await, format!("job_config.{key}: {why}"));
    }
    for algorithm_config in [None, Some(json!(null)), Some(json!({ "batch_size": 32 }))] {
        let mut body = with("device", json!("cpu"));
        match algorithm_config {
            None => drop(body.as_object_mut().unwrap().remove("algorithm_config")),
            Some(other) => body["algorithm_config"] = other,
        }
        let why = refused(body).await;
        assert!(why.starts_with("algorithm_config: "), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_python_or_the_package_says_so() {
    let mut federation = planned(1, &[]);
    federation.parties[0].worker.set_flag("--python", "/no/such/python");
    federation.start_all().await;
    let failed = fails(&federation, &config(1, &json!({}))).await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("cannot start /no/such/python") && reason.ends_with("; --python names the one that has the packages"),
        "{reason}"
    );

    let worker = &mut federation.parties[0].worker;
    worker.stop().await;
    worker.set_flag("--python", "python3");
    worker.env.retain(|(name, _)| name != "PYTHONPATH");
    worker.start().await;
    let failed = fails(&federation, &config(1, &json!({}))).await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(
        reason.contains("exited with code 1: python3 at worker p1-worker says:") && reason.contains("No module named 'fedvision'"),
        "{reason}"
    );
}
