//! Roles in any order of start: what is not there yet is waited for, by name, and nobody gives up.

use crate::gated::{self, Gated};
use crate::support::{Client, Federation};
use serde_json::{Value, json};

/// Wait until a job says that it waits for something.
async fn waits_for(client: &Client, job: &str, what: &str) -> Value {
    client
        .until(&format!("/api/v1/jobs/{job}"), |job| {
            job["reason"].as_str().is_some_and(|reason| reason.contains(what))
        })
        .await
}

async fn succeeds(client: &Client, job: &str) {
    let ended = client.ended(job).await;
    assert_eq!((&ended["state"], &ended["reason"]), (&json!("success"), &Value::Null), "{ended}");
}

async fn status(client: &Client, job: &str) -> Value {
    client.post("/query", &json!({ "job_id": job })).await.unwrap().1["status"].clone()
}

fn all_run(federation: &mut Federation) {
    for role in federation.roles() {
        assert!(role.runs(), "{} has ended:\n{}", role.name, role.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_last() {
    let mut federation = Federation::planned(2, &[], &[]);
    for party in &mut federation.parties {
        party.manager.start().await;
        party.worker.start().await;
        party.master.start().await;
    }
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    let waiting = waits_for(&client, &job, "the coordinator cannot be reached").await;
    assert_eq!(waiting["state"], "proposing");
    assert_eq!(status(&client, &job).await, "_JobStatus.PROPOSAL");
    let (_, own) = client.get("/api/v1/status").await.unwrap();
    assert_eq!(own["coordinator"]["subscribed"], false, "{own}");
    assert!(own["coordinator"]["trouble"].is_string(), "{own}");
    federation.coordinator.start().await;
    succeeds(&client, &job).await;
    all_run(&mut federation);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_manager_last() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    let gated = Gated::install(&federation);
    let party = &mut federation.parties[0];
    party.worker.start_unready();
    party.master.start().await;
    let client = federation.client(0);
    federation.subscribed().await;
    // One job needs endpoints first, the other only has a task to send.
    let config = json!({ "program": gated::NAME, "proposal_wait_time": 1, "worker_num": 1 });
    let jobs = [
        (client.submit("program", &config).await, "leasing", "_JobStatus.WAITING"),
        (
            client.submit("dummy", &json!({ "worker_num": 0 })).await,
            "running",
            "_JobStatus.RUNNING",
        ),
    ];
    for (job, state, word) in &jobs {
        let waiting = waits_for(&client, job, "the cluster manager at 127.0.0.1:").await;
        assert_eq!(waiting["state"], *state, "{waiting}");
        assert_eq!(status(&client, job).await, *word);
    }
    gated.shut("aggregator");
    federation.parties[0].manager.start().await;
    gated.until_runs(&jobs[0].0, "aggregator", 1).await;
    // What it waited for is there: it must not say so any more.
    client
        .until(&format!("/api/v1/jobs/{}", jobs[0].0), |job| {
            job["state"] == "running" && job["reason"].is_null()
        })
        .await;
    gated.open("aggregator");
    for (job, ..) in &jobs {
        succeeds(&client, job).await;
    }
    all_run(&mut federation);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_last() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    Gated::install(&federation);
    let party = &mut federation.parties[0];
    party.manager.start().await;
    party.master.start().await;
    let client = federation.client(0);
    let config = json!({ "program": gated::NAME, "proposal_wait_time": 1, "worker_num": 1 });
    let leasing = client.submit("program", &config).await;
    let queued = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    assert_eq!(waits_for(&client, &leasing, "no worker is attached").await["state"], "leasing");
    federation.parties[0].worker.start().await;
    succeeds(&client, &leasing).await;
    succeeds(&client, &queued).await;
    all_run(&mut federation);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_of_another_party_last() {
    let mut federation = Federation::planned(2, &[], &[]);
    for party in &mut federation.parties {
        party.manager.start().await;
        party.worker.start().await;
    }
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    federation.coordinator.start().await;
    federation.parties[1].master.start().await;
    succeeds(&client, &job).await;
    all_run(&mut federation);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_wrong_order() {
    let mut federation = Federation::planned(2, &[], &[]);
    Gated::install(&federation);
    for party in &mut federation.parties {
        party.master.start().await;
        party.worker.start_unready();
    }
    let config = json!({ "program": gated::NAME, "proposal_wait_time": 1, "worker_num": 2 });
    let mut jobs = Vec::new();
    for party in 0..2 {
        let client = federation.client(party);
        jobs.push((client.clone(), client.submit("program", &config).await));
    }
    for party in &mut federation.parties {
        party.manager.start().await;
    }
    federation.coordinator.start().await;
    for (client, job) in &jobs {
        succeeds(client, job).await;
    }
    all_run(&mut federation);
}
