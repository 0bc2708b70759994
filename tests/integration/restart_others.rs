//! SIGKILL and a start with the same arguments: coordinator, cluster manager and worker. And how every role ends when it is asked to.

use crate::gated::{self, Gated, alive, command, until};
use crate::support::{Client, Federation};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn program(workers: u32, wait_s: u32) -> Value {
    json!({ "program": gated::NAME, "proposal_wait_time": wait_s, "worker_num": workers })
}

async fn succeeds(client: &Client, job: &str) {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_while_a_window_is_open() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let job = client.submit("program", &program(2, 2)).await;
    let offered = format!("{job}-coo_1");
    for party in &federation.parties {
        until("every party is offered the job", || party.master.log().contains(&offered)).await;
    }
    federation.coordinator.kill_and_start().await;
    succeeds(&client, &job).await;
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.ran(&job).len(), 4, "{:?}", gated.ran(&job));
    assert!(!federation.parties[1].master.log().contains("-coo_2"), "it was proposed twice");
    // Away for a while: what is submitted meanwhile waits, even with a window much shorter than the parties' way back.
    federation.coordinator.kill().await;
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    client
        .until(&format!("/api/v1/jobs/{job}"), |job| {
            job["reason"]
                .as_str()
                .is_some_and(|why| why.contains("coordinator cannot be reached"))
        })
        .await;
    federation.coordinator.start().await;
    succeeds(&client, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_manager_while_a_task_runs() {
    let mut federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    gated.shut("aggregator");
    let client = federation.client(0);
    let job = client.submit("program", &program(1, 1)).await;
    gated.until_runs(&job, "trainer", 1).await;
    gated.until_runs(&job, "aggregator", 1).await;
    let worker = federation.parties[0].worker.pid();
    federation.parties[0].manager.kill_and_start().await;
    gated.open("trainer");
    // The other one ends while the manager is away, and its worker keeps the outcome.
    federation.parties[0].manager.kill().await;
    gated.open("aggregator");
    let pids: Vec<_> = gated.ran(&job).into_iter().map(|ran| ran.pid).collect();
    until("all tasks have ended", || pids.iter().all(|pid| !alive(pid))).await;
    federation.parties[0].manager.start().await;
    succeeds(&client, &job).await;
    assert_eq!(gated.ran(&job).len(), 3, "{:?}", gated.ran(&job));
    assert!(federation.parties[0].worker.runs());
    assert_eq!(federation.parties[0].worker.pid(), worker, "the same worker process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_while_a_task_runs() {
    let mut federation = Federation::planned(1, &["--worker-grace", "1"], &[]);
    federation.start_all().await;
    let gated = Gated::install(&federation);
    gated.shut("aggregator");
    let client = federation.client(0);
    for restarted in [false, true] {
        let job = client.submit("program", &program(1, 1)).await;
        gated.until_runs(&job, "aggregator", 1).await;
        // Only this one is to be cut off.
        let path = format!("/api/v1/jobs/{job}/tasks/trainer_0");
        client.until(&path, |task| task["state"] == "success").await;
        federation.parties[0].worker.kill().await;
        if restarted {
            federation.parties[0].worker.start().await;
        }
        let ended = client.ended(&job).await;
        assert_eq!(ended["state"], "failed", "{ended}");
        let reason = ended["reason"].as_str().unwrap();
        assert!(reason.starts_with("task aggregator failed: worker p1-worker was "), "{reason}");
        let pid = gated.runs(&job, "aggregator")[0].pid.clone();
        until("the task's process ends with its worker", || !alive(&pid)).await;
        if !restarted {
            federation.parties[0].worker.start().await;
        }
    }
    gated.open("aggregator");
    let job = client.submit("program", &program(1, 1)).await;
    succeeds(&client, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_process_on_a_data_directory_is_told_who_has_it() {
    let mut federation = Federation::start(1).await;
    let dir = federation.dir.path().to_owned();
    let roles: [(&str, &str, &[&str]); 3] = [
        (
            "master",
            "p1-master",
            &[
                "master",
                "--party-id=p1",
                "--submitter-port=0",
                "--cluster-address=127.0.0.1:1",
                "--coordinator-address=127.0.0.1:1",
            ],
        ),
        ("cluster manager", "p1-manager", &["cluster-manager", "--port=0"]),
        ("coordinator", "coordinator", &["coordinator", "--port=0"]),
    ];
    for (what, data, args) in roles {
        let data = dir.join(data);
        let holder = match what {
            "master" => &federation.parties[0].master,
            "coordinator" => &federation.coordinator,
            _ => &federation.parties[0].manager,
        };
        // One that stands still has not gone: nobody may take its place before it has ended.
        for stopped in [false, true] {
            if stopped {
                holder.signal(Signal::STOP);
            }
            let output = command(args).arg("--data-dir").arg(&data).output();
            let output = tokio::time::timeout(Duration::from_secs(30), output).await.unwrap().unwrap();
            assert_eq!(output.status.code(), Some(75), "{what}");
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().last().unwrap_or_default();
            assert!(last.contains(&data.display().to_string()), "{what}: {text}");
            assert!(last.contains(&format!("process {} (", holder.pid().unwrap())), "{what}: {text}");
        }
        holder.signal(Signal::CONT);
    }
    for role in federation.roles() {
        assert!(role.runs(), "{} is not disturbed", role.name);
    }
}

/// As with `fedbroker coordinator | head -1`.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_whose_output_nobody_reads_serves_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut child = command(&["coordinator", "--port=0", "--data-dir"])
        .arg(dir.path().join("data"))
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    until("it has recovered", || std::fs::read_to_string(&log).unwrap().contains("recovered")).await;
    // It would end within moments; a second is long enough to see it, and the test does not fail when it is not.
    assert!(
        tokio::time::timeout(Duration::from_secs(1), child.wait()).await.is_err(),
        "it ended"
    );
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_ends_at_once_when_asked() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    gated.shut("aggregator");
    let client = federation.client(0);
    let job = client.submit("program", &program(2, 1)).await;
    gated.until_runs(&job, "trainer", 2).await;
    gated.until_runs(&job, "aggregator", 1).await;
    // In the worst order: each has streams open to one that still runs.
    for role in federation.roles() {
        let began = Instant::now();
        role.signal(Signal::TERM);
        let status = role.ended().await;
        assert_eq!(status.code(), Some(0), "{}:\n{}", role.name, role.log());
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{} took {took:?}", role.name);
    }
    for ran in gated.ran(&job) {
        until("no process of a task is left", || !alive(&ran.pid)).await;
    }
}
