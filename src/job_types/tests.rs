//! Configs, plans and packing; hostile payloads. Runs no process (see `tests/integration/worker.rs` for those).

use super::*;
use crate::wire::fedbroker::v1::{InputFile, ProgramTask};
use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn python() -> Python {
    Python {
        command: "python3".into(),
        timeout: Duration::from_secs(60),
    }
}

fn registry(programs_dir: Option<PathBuf>) -> Registry {
    Registry::new(Options {
        enabled: None,
        programs_dir,
        data_dir: None,
        python: python(),
        shim: Shim::at("/nonexistent"),
        who: "worker w1".into(),
    })
    .unwrap()
}

fn refusal(job_type: &str, config: Value) -> String {
    registry(None).plan(job_type, &config, None).unwrap_err().to_string()
}

#[test]
fn errors_name_the_field() {
    let program = |key: &str, value: Value| {
        let mut config = json!({"program": "p", "proposal_wait_time": 1, "worker_num": 1});
        config[key] = value;
        refusal("program", config)
    };
    assert_eq!(refusal("foo", json!({})), "job type foo not supported");
    assert_eq!(refusal("program", json!(null)), "job_config: None is not of type 'object'");
    assert_eq!(
        refusal("program", json!({"program": "p", "worker_num": 1})),
        "'proposal_wait_time' is a required property"
    );
    assert_eq!(
        program("worker_num", json!(0)),
        "job_config.worker_num: 0 is less than the minimum of 1"
    );
    assert_eq!(
        program("worker_num", json!(257)),
        "job_config.worker_num: 257 is greater than the maximum of 256"
    );
    assert_eq!(
        program("worker_num", json!(true)),
        "job_config.worker_num: True is not of type 'integer'"
    );
    assert_eq!(
        program("proposal_wait_time", json!("x")),
        "job_config.proposal_wait_time: 'x' is not of type 'integer'"
    );
    assert_eq!(
        program("parms", json!(1)),
        "Additional properties are not allowed ('parms' was unexpected)"
    );
    assert!(program("program", json!("../x")).starts_with("job_config.program: program name \"../x\" is not allowed"));
    assert_eq!(
        refusal("dummy", json!({"worker_num": 1})),
        "'proposal_wait_time' is a required property"
    );
    assert_eq!(refusal("dummy", json!({})), "'worker_num' is a required property");
}

#[test]
fn plans_say_what_a_job_needs() {
    let plan = |job_type: &str, config: Value| registry(None).plan(job_type, &config, None).unwrap();
    let program = json!({"program": "p", "proposal_wait_time": 2.0, "worker_num": 3, "params": [1]});
    assert_eq!(
        plan("program", program),
        Plan {
            endpoints: 1,
            workers: 3,
            wait_s: 2
        }
    );
    assert_eq!(
        plan("dummy", json!({"worker_num": 0})),
        Plan {
            endpoints: 0,
            workers: 0,
            wait_s: 0
        }
    );
    let two = json!({"worker_num": 2, "proposal_wait_time": 7, "sleep_ms": 5, "fail": true, "endpoints": 3});
    assert_eq!(
        plan("dummy", two),
        Plan {
            endpoints: 3,
            workers: 2,
            wait_s: 7
        }
    );
}

#[test]
fn a_party_can_restrict_its_job_types() {
    let make = |names: &[&str]| {
        Registry::new(Options {
            enabled: Some(names.iter().map(|&n| n.to_owned()).collect()),
            programs_dir: None,
            data_dir: None,
            python: python(),
            shim: Shim::at("/nonexistent"),
            who: "master p1".into(),
        })
    };
    let only = make(&["dummy", "paddle_fl"]).unwrap();
    assert_eq!(only.enabled().collect::<Vec<_>>(), ["dummy", "paddle_fl"]);
    assert_eq!(
        only.plan("program", &json!({}), None).unwrap_err().to_string(),
        "job type program not supported"
    );
    assert!(only.runner("program_trainer").is_none());
    assert!(make(&["foo"]).unwrap_err().to_string().contains("job type foo is not built in"));
}

fn prepare_input(config: Value) -> PrepareInput {
    PrepareInput {
        job_id: "j1".into(),
        config,
        algorithm_config: None,
        endpoints: vec!["127.0.0.1:7000".into()],
        work_dir: "/nonexistent".into(),
        attempt: 1,
        cancel: CancellationToken::new(),
    }
}

#[tokio::test]
async fn dummy_jobs_are_packed_and_run_in_process() {
    let registry = registry(None);
    let config = json!({"worker_num": 2, "proposal_wait_time": 1, "fail": true});
    let prepared = registry.prepare("dummy", prepare_input(config)).await.unwrap();
    let ids: Vec<_> = prepared
        .proposal_tasks
        .iter()
        .map(|t| (t.task_id.as_str(), t.task_type.as_str(), t.assignee.as_str()))
        .collect();
    assert_eq!(ids, [("trainer_0", "dummy_trainer", ""), ("trainer_1", "dummy_trainer", "")]);
    let task = prepared.local_tasks[0].clone();
    assert_eq!((task.task_id.as_str(), task.task_type.as_str()), ("aggregator", "dummy_aggregator"));
    let runner = registry.runner(&task.task_type).unwrap();
    let staged = runner.stage(task, 1, "/nonexistent".into()).await.unwrap();
    let outcome = staged.run(CancellationToken::new()).await;
    assert_eq!((outcome.end, outcome.reason.as_str()), (End::Failed, "asked to fail"));
}

#[tokio::test]
async fn a_dummy_job_has_as_many_local_tasks_as_it_asks_for() {
    let registry = registry(None);
    let config = json!({"worker_num": 0, "local_tasks": 3});
    let prepared = registry.prepare("dummy", prepare_input(config)).await.unwrap();
    let ids: Vec<_> = prepared.local_tasks.iter().map(|task| task.task_id.as_str()).collect();
    assert_eq!(ids, ["aggregator", "local_1", "local_2"]);
    assert_eq!(
        refusal("dummy", json!({"worker_num": 0, "local_tasks": 17})),
        "job_config.local_tasks: 17 is greater than the maximum of 16"
    );
    assert_eq!(
        refusal("dummy", json!({"worker_num": 0, "local_tasks": 2, "endpoints": 1})),
        "job_config.local_tasks: more than 1 does not go with endpoints"
    );
}

#[tokio::test]
async fn a_dummy_task_can_be_cancelled() {
    let registry = registry(None);
    let config = json!({"worker_num": 0, "sleep_ms": 3_600_000});
    let task = registry
        .prepare("dummy", prepare_input(config))
        .await
        .unwrap()
        .local_tasks
        .remove(0);
    let staged = registry
        .runner("dummy_aggregator")
        .unwrap()
        .stage(task, 1, "/nonexistent".into())
        .await
        .unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(staged.run(cancel).await.end, End::Cancelled);
}

#[tokio::test]
async fn without_a_programs_directory_there_is_no_compile_step() {
    let config = json!({"program": "p", "proposal_wait_time": 1, "worker_num": 2, "params": {"a": 1}});
    let prepared = registry(None).prepare("program", prepare_input(config)).await.unwrap();
    let payload: ProgramTask = unpack(
        prepared.proposal_tasks[1].task.clone(),
        "type.googleapis.com/fedbroker.v1.ProgramTask",
    )
    .unwrap();
    assert_eq!((payload.index, payload.count, payload.params.as_str()), (1, 2, "{\"a\":1}"));
    assert_eq!(payload.endpoints, ["127.0.0.1:7000"]);
}

#[tokio::test]
async fn hostile_payloads_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(Some(dir.path().to_owned()));
    let runner = registry.runner("program_trainer").unwrap();
    let good = || ProgramTask {
        program: "p".into(),
        index: 0,
        count: 1,
        endpoints: vec![],
        params: "{}".into(),
        files: vec![],
    };
    let file = |name: &str| InputFile {
        name: name.into(),
        content: vec![],
    };
    let cases: Vec<(&str, ProgramTask)> = vec![
        ("program p is not installed at worker w1", good()),
        (
            "program name \"../p\" is not allowed",
            ProgramTask {
                program: "../p".into(),
                ..good()
            },
        ),
        ("count 0 is not 1 to", ProgramTask { count: 0, ..good() }),
        ("index 1 does not fit", ProgramTask { index: 1, ..good() }),
        (
            "is not host:port",
            ProgramTask {
                endpoints: vec!["--help:1".into()],
                ..good()
            },
        ),
        (
            "is not host:port",
            ProgramTask {
                endpoints: vec!["a b:1".into()],
                ..good()
            },
        ),
        (
            "params is not JSON",
            ProgramTask {
                params: "{".into(),
                ..good()
            },
        ),
        (
            "not a plain file name",
            ProgramTask {
                files: vec![file("../x")],
                ..good()
            },
        ),
        (
            "not a plain file name",
            ProgramTask {
                files: vec![file("..")],
                ..good()
            },
        ),
        (
            "two files named \"a\"",
            ProgramTask {
                files: vec![file("a"), file("a")],
                ..good()
            },
        ),
        (
            "1001 files",
            ProgramTask {
                files: (0..1001).map(|i| file(&i.to_string())).collect(),
                ..good()
            },
        ),
    ];
    for (part, payload) in cases {
        let any = pack(&payload, "type.googleapis.com/fedbroker.v1.ProgramTask");
        let outcome = runner
            .stage(task("j", "t".into(), "program_trainer", any), 1, dir.path().join("w"))
            .await
            .unwrap_err();
        assert_eq!(outcome.end, End::Failed);
        assert!(outcome.reason.contains(part), "{}", outcome.reason);
    }
    let wrong = Any {
        type_url: "x".into(),
        value: Bytes::new(),
    };
    let outcome = runner
        .stage(task("j", "t".into(), "program_trainer", wrong), 1, dir.path().join("w"))
        .await
        .unwrap_err();
    assert!(outcome.reason.contains("the payload is \"x\", wanted"), "{}", outcome.reason);
}

#[tokio::test]
async fn compile_output_is_plain_files_only() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b"), "2").unwrap();
    std::fs::write(dir.path().join("a"), "1").unwrap();
    let files = files::collect(dir.path()).await.unwrap();
    assert_eq!(files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("c")).unwrap();
    assert!(files::collect(dir.path()).await.unwrap_err().contains("not a plain file"));
}
