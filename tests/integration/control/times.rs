//! What comes first, what comes when, and what comes again: keys, priority, `not_before`, `deadline`, `max_attempts`; over kills of the master.

use super::{alone, closed, made, program, until_state, with};
use crate::gated::{self, Gated};
use crate::support::{Client, Federation, in_ms};
use serde_json::{Value, json};

async fn with_key(client: &Client, body: &Value) -> (u16, Value) {
    let request = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = request.post(format!("http://{}/api/v1/jobs", client.address())).json(body);
    let answer = request.header("idempotency-key", "the-same").send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_after_a_kill() {
    let mut federation = Federation::planned(1, &[], &[]);
    let master = &mut federation.parties[0].master;
    master.start().await;
    let client = Client::new(&master.address);
    let body = with(alone(1, 0), &json!({ "labels": { "n": "1" } }));
    let (status, first) = with_key(&client, &body).await;
    assert_eq!(status, 201, "{first}");
    for _ in 0..2 {
        master.kill_and_start().await;
        let (status, again) = with_key(&client, &body).await;
        assert_eq!((status, &again["job_id"]), (200, &first["job_id"]), "{again}");
        let other = with(alone(1, 0), &json!({ "labels": { "n": "2" } }));
        let (status, other) = with_key(&client, &other).await;
        assert_eq!(
            (status, &other["code"], &other["job_id"]),
            (409, &json!("key_conflict"), &first["job_id"])
        );
    }
    // The index may still be built after the start.
    let all = client.until("/api/v1/jobs", |all| all["items"].is_array()).await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_high_one_gets_the_only_slot_first() {
    let mut federation = Federation::planned(1, &[], &[]);
    let programs = federation.dir.path().join("programs");
    gated::replace_worker(&mut federation, 0, 1, 20, &programs);
    federation.start_all().await;
    let client = federation.client(0);
    let busy = made(&client, &alone(1, 3_600_000)).await;
    until_state(&client, &busy, "running").await;
    let mut jobs = Vec::new();
    for priority in [-1, -1, 5] {
        jobs.push(made(&client, &with(alone(1, 0), &json!({ "priority": priority }))).await);
    }
    for job in &jobs {
        until_state(&client, job, "leasing").await;
    }
    client.post(&format!("/api/v1/jobs/{busy}:cancel"), &json!({})).await.unwrap();
    let mut began = Vec::new();
    for job in &jobs {
        let ended = client.ended(job).await;
        assert_eq!(ended["state"], "success", "{ended}");
        let steps = ended["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["state"] == "preparing").unwrap();
        began.push((step["at"].as_str().unwrap().to_owned(), job.clone()));
    }
    began.sort();
    let order: Vec<&String> = began.iter().map(|(_, job)| job).collect();
    assert_eq!(order, [&jobs[2], &jobs[0], &jobs[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_the_master_is_down_counts() {
    let mut federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("aggregator");
    gated.shut("trainer");
    let client = federation.client(0);
    let (until, begin) = (in_ms(8_000), in_ms(6_000));
    let job = made(&client, &with(program(1, 1), &json!({ "deadline": until }))).await;
    let early = made(&client, &with(alone(1, 0), &json!({ "not_before": begin }))).await;
    gated.until_runs(&job, "aggregator", 1).await;
    federation.parties[0].master.kill().await;
    let runs = gated.ran(&job);
    let running = || runs.iter().filter(|run| run.step != "compile");
    assert!(
        running().all(|run| gated::alive(&run.pid)),
        "nobody stops them while the master is down"
    );
    gated::until("the deadline passes", || in_ms(0) > until).await;
    federation.parties[0].master.start().await;
    let ended = closed(&client, &job).await;
    assert_eq!(
        (&ended["state"], &ended["reason"]),
        (&json!("failed"), &json!("the deadline passed while the job was running"))
    );
    gated::until("its tasks are stopped", || {
        gated.ran(&job).iter().all(|run| !gated::alive(&run.pid))
    })
    .await;
    let ended = client.ended(&early).await;
    assert_eq!(ended["state"], "success", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_begin_before_its_time_whatever_happens_to_the_master() {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let begin = in_ms(3_000);
    let job = made(&client, &with(alone(1, 0), &json!({ "not_before": begin }))).await;
    federation.parties[0].master.kill_and_start().await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "success", "{ended}");
    let steps = ended["steps"].as_array().unwrap();
    assert_eq!(steps[0]["state"], "waiting", "{ended}");
    assert!(
        steps[1]["at"].as_str().unwrap() >= begin.trim_end_matches('Z'),
        "not before {begin}: {ended}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_is_tried_as_often_as_was_asked() {
    let federation = Federation::start(1).await;
    let client = federation.client(0);
    let fails = json!({ "job_type": "dummy", "job_config": { "worker_num": 0, "fail": true }, "max_attempts": 3, "labels": { "a": "b" } });
    let mut chain = vec![made(&client, &fails).await];
    for attempt in 1..=3 {
        let job = client.ended(chain.last().unwrap()).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!("failed"), &json!(attempt)), "{job}");
        assert_eq!(job["labels"], fails["labels"]);
        let parent = chain.len().checked_sub(2).map(|at| chain[at].clone());
        assert_eq!(job["parent"], json!(parent), "{job}");
        match job["successor"].as_str() {
            Some(next) => chain.push(next.to_owned()),
            None => assert_eq!(attempt, 3, "{job}"),
        }
    }
    assert_eq!(chain.len(), 3);
    let (status, again) = client.post(&format!("/api/v1/jobs/{}:rerun", chain[2]), &json!({})).await.unwrap();
    assert_eq!(
        (status, &again["parent"], &again["attempt"]),
        (201, &json!(chain[2]), &json!(1)),
        "{again}"
    );
}
