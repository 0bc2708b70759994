//! Configs, packing and unpacking, hostile payloads. Runs no process (see `tests/compat/paddle_fl.rs` for those).

use super::super::child::Child;
use super::super::exec::Shim;
use super::super::{Options, Python, Registry, task, unpack};
use super::*;
use crate::wire::Any;
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::paddle_fl::{PaddleFlAggregatorTask, PaddleFlWorkerTask};
use prost::Message;
use std::path::Path;
use std::time::Duration;

const YAML: &str = "batch_size: 32\n";

fn options(command: &str) -> Options {
    Options {
        enabled: None,
        programs_dir: None,
        data_dir: Some("/data".into()),
        python: Python {
            command: command.into(),
            timeout: Duration::from_secs(60),
        },
        shim: Shim::at("/nonexistent"),
        who: "worker w1".into(),
    }
}

fn place() -> std::sync::Arc<Place> {
    Registry::new(options("python3")).unwrap().place
}

fn config() -> Value {
    json!({"worker_num": 2, "program": "paddle_mnist", "proposal_wait_time": 5, "max_iter": 10, "inner_step": 10, "device": "cpu"})
}

fn refusal(key: &str, value: Value) -> String {
    let mut config = config();
    config[key] = value;
    Registry::new(options("python3"))
        .unwrap()
        .plan("paddle_fl", &config, Some(YAML))
        .unwrap_err()
        .to_string()
}

#[test]
fn what_goes_wrong_later_is_refused_at_once() {
    let cases = [
        ("proposal_wait_time", json!(0), "0 is less than the minimum of 1"),
        ("proposal_wait_time", json!(-1), "-1 is less than the minimum of 1"),
        ("proposal_wait_time", json!(86401), "86401 is greater than the maximum of 86400"),
        ("proposal_wait_time", json!(1.5), "1.5 is not of type 'integer'"),
        ("proposal_wait_time", json!(true), "True is not of type 'integer'"),
        ("worker_num", json!(0), "0 is less than the minimum of 1"),
        ("worker_num", json!(-1), "-1 is less than the minimum of 1"),
        ("worker_num", json!(257), "257 is greater than the maximum of 256"),
        ("worker_num", json!(1u64 << 32), "4294967296 is greater than the maximum of 256"),
        ("max_iter", json!(-1), "-1 is less than the minimum of 0"),
        (
            "max_iter",
            json!(1u64 << 32),
            "4294967296 is greater than the maximum of 4294967295",
        ),
        ("inner_step", json!(0), "0 is less than the minimum of 1"),
        ("inner_step", json!("10"), "'10' is not of type 'integer'"),
        ("program", json!(1), "1 is not of type 'string'"),
    ];
    for (key, value, why) in cases {
        assert_eq!(refusal(key, value), format!("job_config.{key}: {why}"));
    }
    for name in ["", "a;b", "../x", "a.b", "a b", "-m", "1a", "a\n", "é", "$(id)", &"a".repeat(129)] {
        let why = refusal("program", json!(name));
        assert!(
            why.starts_with("job_config.program: \"") && why.contains("is not a plain module name"),
            "{why}"
        );
    }
    for key in ["proposal_wait_time", "worker_num", "program", "max_iter", "inner_step"] {
        let mut config = config();
        config.as_object_mut().unwrap().remove(key);
        let refused = Registry::new(options("python3")).unwrap().plan("paddle_fl", &config, Some(YAML));
        assert_eq!(refused.unwrap_err().to_string(), format!("'{key}' is a required property"));
    }
    let without = Registry::new(options("python3")).unwrap().plan("paddle_fl", &config(), None);
    assert!(without.unwrap_err().to_string().starts_with("algorithm_config: is required"));
}

#[test]
fn whole_numbers_count_as_integers_and_other_keys_stay() {
    let text =
        r#"{"worker_num": 2.0, "proposal_wait_time": 1.0, "program": "_x1", "max_iter": 3e0, "inner_step": 1, "lr": 1e-05, "é": [1.0]}"#;
    let config: Value = serde_json::from_str(text).unwrap();
    let planned = Registry::new(options("python3")).unwrap().plan("paddle_fl", &config, Some(""));
    assert_eq!(
        planned.unwrap(),
        Plan {
            endpoints: 2,
            workers: 2,
            wait_s: 1
        }
    );
    assert_eq!(
        config_text(&config),
        r#"{"worker_num": 2, "proposal_wait_time": 1, "program": "_x1", "max_iter": 3, "inner_step": 1, "lr": 1e-05, "\u00e9": [1.0]}"#
    );
}

#[test]
fn a_relative_python_is_made_absolute() {
    let command = |given: &str| Registry::new(options(given)).unwrap().place.python.command.clone();
    assert_eq!(command("python3.8"), "python3.8");
    assert_eq!(command("/opt/venv/bin/python"), "/opt/venv/bin/python");
    assert!(command("venv/bin/python").starts_with('/') && command("venv/bin/python").ends_with("/venv/bin/python"));
    assert!(Registry::new(options("")).is_err());
}

/// What a compile step leaves for two trainers, each file named in its content; trainer 1 alone has feeds.
fn compile(dir: &Path) {
    for trainer in ["trainer0", "trainer1"] {
        std::fs::create_dir_all(dir.join(trainer)).unwrap();
        for file in ["main.program", "startup.program", "send.program", "recv.program"] {
            std::fs::write(dir.join(trainer).join(format!("trainer.{file}")), format!("{trainer} {file}")).unwrap();
        }
        for file in ["feed_names", "target_names", "strategy.pkl"] {
            std::fs::write(dir.join(trainer).join(file), format!("{trainer} {file}")).unwrap();
        }
    }
    std::fs::write(dir.join("trainer1/feeds.pkl"), "feeds of 1").unwrap();
    std::fs::create_dir(dir.join("server0")).unwrap();
    std::fs::write(dir.join("server0/server.main.program"), "main").unwrap();
    std::fs::write(dir.join("server0/server.startup.program"), "startup").unwrap();
}

async fn pack(dir: &Path, workers: u32) -> Result<Prepared, String> {
    let parts = compiled::Parts {
        job_id: "p1-1",
        program: "mnist",
        scheduler: "10.0.0.1:12001",
        config: "{}".into(),
        algorithm_config: YAML,
    };
    compiled::pack(dir, workers, &parts).await
}

fn trainer_of(task: &Task) -> PaddleFlWorkerTask {
    unpack(task.task.clone(), TRAINER_URL).unwrap()
}

#[tokio::test]
async fn tasks_are_packed_as_by_fedvision() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path());
    let prepared = pack(dir.path(), 2).await.unwrap();
    let trainer = &prepared.proposal_tasks[0];
    assert_eq!(
        (
            trainer.job_id.as_str(),
            trainer.task_id.as_str(),
            trainer.task_type.as_str(),
            trainer.assignee.as_str()
        ),
        ("p1-1", "trainer_0", "fl_trainer", "")
    );
    assert_eq!(
        trainer_of(trainer),
        PaddleFlWorkerTask {
            scheduler_ep: "10.0.0.1:12001".into(),
            trainer_id: 0,
            trainer_ep: "trainer_0".into(),
            entrypoint: "fedvision.ml.paddle.mnist.fl_trainer".into(),
            main_program: "trainer0 main.program".into(),
            startup_program: "trainer0 startup.program".into(),
            send_program: "trainer0 send.program".into(),
            recv_program: "trainer0 recv.program".into(),
            feed_names: "trainer0 feed_names".into(),
            target_names: "trainer0 target_names".into(),
            strategy: "trainer0 strategy.pkl".into(),
            feeds: "feeds of 1".into(),
            config_string: "{}".into(),
            algorithm_config_string: YAML.into(),
        }
    );
    let second = trainer_of(&prepared.proposal_tasks[1]);
    assert_eq!(
        (second.trainer_id, second.trainer_ep.as_str(), &second.main_program[..]),
        (1, "trainer_1", b"trainer1 main.program".as_slice())
    );
    let [aggregator] = prepared.local_tasks.as_slice() else {
        panic!("{prepared:?}")
    };
    assert_eq!(
        (aggregator.task_id.as_str(), aggregator.task_type.as_str()),
        ("aggregator", "fl_aggregator")
    );
    assert_eq!(
        unpack::<PaddleFlAggregatorTask>(aggregator.task.clone(), AGGREGATOR_URL).unwrap(),
        PaddleFlAggregatorTask {
            scheduler_ep: "10.0.0.1:12001".into(),
            main_program: "main".into(),
            startup_program: "startup".into(),
            config_string: "{}".into(),
        }
    );
}

#[tokio::test]
async fn a_trainer_gets_its_own_feeds_if_it_has_any() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path());
    std::fs::write(dir.path().join("trainer0/feeds.pkl"), "feeds of 0").unwrap();
    let feeds = |prepared: &Prepared, i: usize| trainer_of(&prepared.proposal_tasks[i]).feeds;
    let both = pack(dir.path(), 2).await.unwrap();
    assert_eq!((feeds(&both, 0), feeds(&both, 1)), ("feeds of 0".into(), "feeds of 1".into()));
    // FedVision 0.1 could not run a job with one trainer.
    std::fs::remove_dir_all(dir.path().join("trainer1")).unwrap();
    assert_eq!(feeds(&pack(dir.path(), 1).await.unwrap(), 0), "feeds of 0");
    std::fs::remove_file(dir.path().join("trainer0/feeds.pkl")).unwrap();
    let error = pack(dir.path(), 1).await.unwrap_err();
    assert_eq!(error, "the compile step did not write compile/trainer0/feeds.pkl");
}

#[tokio::test]
async fn what_cannot_be_packed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    compile(dir.path());
    let main = dir.path().join("trainer0/trainer.main.program");
    std::fs::remove_file(&main).unwrap();
    let error = pack(dir.path(), 2).await.unwrap_err();
    assert_eq!(error, "the compile step did not write compile/trainer0/trainer.main.program");
    std::os::unix::fs::symlink("/etc/hostname", &main).unwrap();
    let error = pack(dir.path(), 2).await.unwrap_err();
    assert_eq!(
        error,
        "the compile step wrote compile/trainer0/trainer.main.program, which is not a plain file"
    );
    let (trainer, elsewhere) = (dir.path().join("trainer0"), dir.path().join("elsewhere"));
    std::fs::rename(&trainer, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &trainer).unwrap();
    let error = pack(dir.path(), 2).await.unwrap_err();
    assert_eq!(error, "the compile step wrote compile/trainer0, which is not a plain directory");
    std::fs::remove_file(&trainer).unwrap();
    std::fs::rename(&elsewhere, &trainer).unwrap();
    // A file with a hole in it: told by its length, which is all that is looked at.
    std::fs::remove_file(&main).unwrap();
    std::fs::File::create(&main).unwrap().set_len(512 * 1024 * 1024).unwrap();
    let error = pack(dir.path(), 2).await.unwrap_err();
    assert!(
        error.starts_with("the proposal of 2 trainers would be a message of 53687") && error.contains("at most 536870912 can be sent"),
        "{error}"
    );
}

fn trainer_payload() -> PaddleFlWorkerTask {
    PaddleFlWorkerTask {
        scheduler_ep: "10.0.0.1:12001".into(),
        trainer_id: 7,
        trainer_ep: "trainer_7".into(),
        entrypoint: "fedvision.ml.paddle.mnist.fl_trainer".into(),
        main_program: "m".into(),
        startup_program: "s".into(),
        send_program: "se".into(),
        recv_program: "re".into(),
        feed_names: "fn".into(),
        target_names: "tn".into(),
        strategy: "st".into(),
        feeds: "fe".into(),
        config_string: "{\"é\": 1}".into(),
        algorithm_config_string: YAML.into(),
    }
}

fn any(url: &str, payload: &impl Message) -> Any {
    Any {
        type_url: url.to_owned(),
        value: payload.encode_to_vec().into(),
    }
}

async fn staged(task_type: &str, payload: Any, dir: &Path) -> Result<Child, String> {
    stage(&place(), task("j", "t".into(), task_type, payload), dir.join("w")).await
}

fn files_in(dir: &Path) -> Vec<(String, String)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (
            entry.file_name().into_string().unwrap(),
            std::fs::read_to_string(entry.path()).unwrap(),
        )
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(entry).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_trainer_finds_what_fedvision_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let child = staged(TRAINER, any(TRAINER_URL, &trainer_payload()), dir.path()).await.unwrap();
    let argv = "python3 -m fedvision.ml.paddle.mnist.fl_trainer --scheduler-ep=10.0.0.1:12001 --trainer-id=7 --trainer-ep=trainer_7 \
                --startup-program=startup_program --main-program=main_program --send-program=send_program --recv-program=recv_program \
                --feed-names=feed_names --target-names=target_names --feeds=feeds --strategy=strategy --config config.json \
                --algorithm-config algorithm_config.yaml";
    assert_eq!(child.run.argv.join(" "), argv);
    assert_eq!(child.run.env, [("FEDVISION_DATA_BASE".to_owned(), "/data".into())]);
    let files = [
        ("algorithm_config.yaml", YAML),
        ("config.json", "{\"é\": 1}"),
        ("feed_names", "fn"),
        ("feeds", "fe"),
        ("main_program", "m"),
        ("recv_program", "re"),
        ("send_program", "se"),
        ("startup_program", "s"),
        ("strategy", "st"),
        ("target_names", "tn"),
    ];
    assert_eq!(
        files_in(&child.run.dir),
        files.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[tokio::test]
async fn an_aggregator_finds_what_fedvision_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let payload = PaddleFlAggregatorTask {
        scheduler_ep: "10.0.0.1:12001".into(),
        main_program: "m".into(),
        startup_program: "s".into(),
        config_string: "{}".into(),
    };
    let child = staged(AGGREGATOR, any(AGGREGATOR_URL, &payload), dir.path()).await.unwrap();
    assert_eq!(
        child.run.argv.join(" "),
        "python3 -m fedvision.paddle_fl.tasks.cli.fl_scheduler --scheduler-ep=10.0.0.1:12001 --startup-program=startup_program \
         --main-program=main_program --config=config.json"
    );
    let files = [("config.json", "{}"), ("main_program", "m"), ("startup_program", "s")];
    assert_eq!(
        files_in(&child.run.dir),
        files.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[tokio::test]
async fn hostile_payloads_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let entrypoints = [
        "os",
        "fedvision.ml.paddle.fl_trainer",
        "fedvision.ml.paddle..fl_trainer",
        "fedvision.ml.paddle.a.b.fl_trainer",
        "fedvision.ml.paddle.x;id.fl_trainer",
        "fedvision.ml.paddle.x.fl_master",
        "fedvision.ml.paddlex.fl_trainer",
        "xfedvision.ml.paddle.x.fl_trainer",
        "fedvision.ml.paddle.x.fl_trainer ",
        "-c",
        "",
    ];
    for entrypoint in entrypoints {
        let payload = PaddleFlWorkerTask {
            entrypoint: entrypoint.into(),
            ..trainer_payload()
        };
        let error = staged(TRAINER, any(TRAINER_URL, &payload), dir.path()).await.unwrap_err();
        assert!(error.contains("is not fedvision.ml.paddle.<program>.fl_trainer"), "{error}");
    }
    for endpoint in ["", "--help:1", "a b:1", "host", "host:0", "host:65536", "$(id):1"] {
        let payload = PaddleFlWorkerTask {
            scheduler_ep: endpoint.into(),
            ..trainer_payload()
        };
        let error = staged(TRAINER, any(TRAINER_URL, &payload), dir.path()).await.unwrap_err();
        assert!(error.contains("is not host:port"), "{error}");
        let payload = PaddleFlAggregatorTask {
            scheduler_ep: endpoint.into(),
            ..Default::default()
        };
        let error = staged(AGGREGATOR, any(AGGREGATOR_URL, &payload), dir.path()).await.unwrap_err();
        assert!(error.contains("is not host:port"), "{error}");
    }
    for name in ["a b", "a\0", "a\n", &"x".repeat(301)] {
        let payload = PaddleFlWorkerTask {
            trainer_ep: name.into(),
            ..trainer_payload()
        };
        let error = staged(TRAINER, any(TRAINER_URL, &payload), dir.path()).await.unwrap_err();
        assert!(error.contains("is not the name of a trainer"), "{error}");
    }
    let error = staged(AGGREGATOR, any(TRAINER_URL, &trainer_payload()), dir.path())
        .await
        .unwrap_err();
    assert!(error.contains("PaddleFLAggregatorTask"), "{error}");
    assert!(!dir.path().join("w").exists(), "nothing was written for a refused task");
}
