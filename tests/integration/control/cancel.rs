//! Cancel at every state, at random moments, and with the master killed right after the answer.

use super::{alone, closed, made, program, until_state, with};
use crate::gated::{self, Gated};
use crate::support::{Client, Federation};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

async fn cancel(client: &Client, job: &str, reason: &str) {
    let (status, body) = client
        .post(&format!("/api/v1/jobs/{job}:cancel"), &json!({ "reason": reason }))
        .await
        .unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["state"], &body["reason"]), (&json!("cancelled"), &json!(reason)), "{body}");
}

/// Cancel, with the answer once nothing of the job can run any more.
async fn cancel_and_wait(client: &Client, job: &str, reason: &str) -> Value {
    let (status, body) = client
        .post(&format!("/api/v1/jobs/{job}:cancel?wait=60s"), &json!({ "reason": reason }))
        .await
        .unwrap();
    assert_eq!((status, &body["live"]), (200, &json!(false)), "{body}");
    body
}

/// What must hold of a cancelled job from the moment it is closed: nothing of it runs; if it never ran, none of its tasks ever began.
fn check(gated: &Gated, job: &Value, reason: &str) -> usize {
    let id = job["job_id"].as_str().unwrap();
    assert_eq!((&job["state"], &job["reason"]), (&json!("cancelled"), &json!(reason)), "{job}");
    let ran = gated.ran(id);
    let ran_state = job["steps"].as_array().unwrap().iter().any(|step| step["state"] == "running");
    for run in &ran {
        assert!(!gated::alive(&run.pid), "it is closed and {run:?} is alive: {job}");
        assert!(
            ran_state || run.step == "compile",
            "a task began of a job that was cancelled before: {run:?} {job}"
        );
    }
    ran.len()
}

/// Nothing of these jobs has begun since they were closed.
fn quiet(gated: &Gated, jobs: &[(String, usize)]) {
    for (job, begun) in jobs {
        assert_eq!(gated.ran(job).len(), *begun, "something of {job} began after it was closed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cancelled_at_a_random_moment_runs_no_more() {
    let federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    gated.shut("aggregator");
    let client = federation.client(0);
    let jobs = (0..60).map(|n| {
        let (client, gated) = (client.clone(), &gated);
        async move {
            let body = if n % 4 == 3 { alone(1, 60_000) } else { program(1, 1) };
            let id = made(&client, &body).await;
            // The moment is random on purpose.
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..4000))).await;
            let begun = check(gated, &cancel_and_wait(&client, &id, "enough of it").await, "enough of it");
            (id, begun)
        }
    });
    let jobs = join_all(jobs).await;
    quiet(&gated, &jobs);
    // All endpoints of the worker are back: it has 20.
    let all = made(&client, &alone(20, 0)).await;
    assert_eq!(client.ended(&all).await["state"], "success");
    quiet(&gated, &jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cancelled_in_any_state_stays_so_over_a_kill() {
    let mut federation = Federation::planned(1, &[], &[]);
    let gated = Gated::install(&federation);
    let programs = federation.dir.path().join("programs");
    // Slots for all but the one that wants every port.
    gated::replace_worker(&mut federation, 0, 8, 20, &programs);
    federation.start_all().await;
    let client = federation.client(0);
    let later = json!({ "not_before": "2999-01-01T00:00:00Z" });
    gated.shut("trainer");
    gated.shut("aggregator");
    let running = made(&client, &program(1, 1)).await;
    gated.until_runs(&running, "aggregator", 1).await;
    gated.until_runs(&running, "trainer", 1).await;
    gated.shut("compile");
    let preparing = made(&client, &program(1, 1)).await;
    gated.until_runs(&preparing, "compile", 1).await;
    let leasing = made(&client, &alone(20, 0)).await;
    until_state(&client, &leasing, "leasing").await;
    let waiting = made(&client, &with(program(1, 1), &later)).await;
    let held = made(&client, &with(program(1, 1), &later)).await;
    client.post(&format!("/api/v1/jobs/{held}:hold"), &json!({})).await.unwrap();
    // It needs more parties than there are, for which the coordinator waits some seconds: so it comes last.
    let body = json!({ "job_type": "dummy", "job_config": { "worker_num": 2, "proposal_wait_time": 600, "endpoints": 1 } });
    let proposing = made(&client, &body).await;
    until_state(&client, &proposing, "proposing").await;
    let jobs = [
        (waiting, "waiting"),
        (held, "held"),
        (leasing, "leasing"),
        (preparing, "preparing"),
        (proposing, "proposing"),
        (running, "running"),
    ];
    join_all(jobs.iter().map(|(job, state)| cancel(&client, job, state))).await;
    federation.parties[0].master.kill_and_start().await;
    let mut begun = Vec::new();
    for (job, state) in &jobs {
        let ended = closed(&client, job).await;
        let steps = ended["steps"].as_array().unwrap();
        assert_eq!(steps[steps.len() - 2]["state"], *state, "{ended}");
        begun.push((job.clone(), check(&gated, &ended, state)));
    }
    for step in ["compile", "trainer", "aggregator"] {
        gated.open(step);
    }
    let all = made(&client, &alone(20, 0)).await;
    assert_eq!(client.ended(&all).await["state"], "success");
    quiet(&gated, &begun);
}
