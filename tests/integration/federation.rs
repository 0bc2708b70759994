//! Jobs from REST to their end through real processes of all roles.

use crate::gated::{self, Gated, replace_worker};
use crate::support::{Client, Federation};
use serde_json::{Value, json};

/// A `job_config` of the test program.
fn program(workers: u32, params: &Value) -> Value {
    json!({ "program": gated::NAME, "proposal_wait_time": 1, "worker_num": workers, "params": params })
}

async fn succeeds(client: &Client, job: &str) -> Value {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}");
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn dummy_jobs_of_every_size_run_from_rest_to_success() {
    let federation = Federation::start(2).await;
    let client = federation.client(0);
    for workers in 0..=2 {
        let job = client
            .submit("dummy", &json!({ "worker_num": workers, "proposal_wait_time": 1, "sleep_ms": 10 }))
            .await;
        let ended = succeeds(&client, &job).await;
        assert_eq!((&ended["reason"], &ended["live"]), (&Value::Null, &json!(false)), "{ended}");
        let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
        assert_eq!(answer, json!({ "job_id": job, "status": "_JobStatus.SUCCESS" }));
    }
    let job = client.submit("dummy", &json!({ "worker_num": 0, "fail": true })).await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "failed");
    assert_eq!(ended["reason"], "task aggregator failed: asked to fail");
    let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer["status"], "_JobStatus.FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_job_compiles_and_runs_at_every_party() {
    let federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let mut config = program(2, &json!({ "text": "grün \u{1f980} \"quoted\"", "list": [1, 2.5, null] }));
    config["endpoints"] = json!(3);
    let job = client.submit("program", &config).await;
    let ended = succeeds(&client, &job).await;
    assert_eq!(ended["tasks"][0]["exit_code"], 0, "{ended}");
    // The initiator does not wait for the trainers of others.
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.runs(&job, "compile").len(), 1);
    assert_eq!(gated.runs(&job, "aggregator").len(), 1);
    let mut places: Vec<_> = gated.runs(&job, "trainer").iter().map(|ran| ran.place.clone()).collect();
    places.sort();
    assert_eq!(places, ["0/2", "1/2"]);
    let endpoints: Vec<_> = gated.ran(&job).into_iter().map(|ran| ran.endpoints).collect();
    assert!(endpoints.iter().all(|same| same == &endpoints[0]), "{endpoints:?}");
    assert_eq!(
        endpoints[0].split(',').filter(|one| one.starts_with("127.0.0.1:")).count(),
        3,
        "{endpoints:?}"
    );
}

/// FedVision 0.1 was used up after three jobs. Here the cluster has ports for one job and room for one lease at a time.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_give_everything_back() {
    let mut federation = Federation::planned(1, &[], &[]);
    let programs = federation.dir.path().join("programs");
    replace_worker(&mut federation, 0, 2, 2, &programs);
    federation.start_all().await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let failures = [
        ("compile", "compile step of program gated exited with code 7"),
        ("trainer", "task trainer_0 failed: program gated exited with code 7"),
        ("aggregator", "task aggregator failed: program gated exited with code 7"),
    ];
    for (step, reason) in failures {
        let mut config = program(1, &json!({ "fail": step }));
        config["endpoints"] = json!(2);
        let job = client.submit("program", &config).await;
        let ended = client.ended(&job).await;
        assert_eq!(ended["state"], "failed", "{ended}");
        assert_eq!(ended["reason"], reason, "{ended}");
        assert_eq!(ended["exit_code"], 7, "{ended}");
        assert_eq!(
            ended["stderr_tail"],
            format!("a line before\nthe {step} was told to fail"),
            "{ended}"
        );
        let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
        assert_eq!(answer["status"], "_JobStatus.FAILED");
    }
    // More at once than there are ports: they wait for each other, and say so.
    gated.shut("compile");
    let mut config = program(1, &json!({}));
    config["endpoints"] = json!(2);
    let first = client.submit("program", &config).await;
    gated.until_runs(&first, "compile", 1).await;
    let second = client.submit("program", &config).await;
    let waiting = client
        .until(&format!("/api/v1/jobs/{second}"), |job| job["reason"].is_string())
        .await;
    assert_eq!(waiting["state"], "leasing", "{waiting}");
    assert_eq!(waiting["reason"], "no worker has a free slot for a lease");
    gated.open("compile");
    succeeds(&client, &first).await;
    succeeds(&client, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_at_a_party_fails_the_job_with_its_name() {
    let mut federation = Federation::planned(1, &[], &[]);
    let nothing = federation.dir.path().join("nothing-installed");
    replace_worker(&mut federation, 0, 4, 4, &nothing);
    federation.start_all().await;
    Gated::install(&federation);
    let client = federation.client(0);
    let job = client.submit("program", &program(1, &json!({}))).await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "failed");
    let reason = ended["reason"].as_str().unwrap();
    assert!(
        reason.ends_with("failed: program gated is not installed at worker p1-worker"),
        "{reason}"
    );
    // Nobody has it: the master does not compile, the worker says it.
    let job = client
        .submit(
            "program",
            &json!({ "program": "nowhere", "proposal_wait_time": 1, "worker_num": 1 }),
        )
        .await;
    let ended = client.ended(&job).await;
    let reason = ended["reason"].as_str().unwrap();
    assert!(
        reason.ends_with("failed: program nowhere is not installed at worker p1-worker"),
        "{reason}"
    );
    // More parties than there are. Right after the start of the coordinator they could still come, so it takes a while.
    let job = client.submit("dummy", &json!({ "worker_num": 5, "proposal_wait_time": 1 })).await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "failed");
    assert_eq!(
        ended["reason"],
        "too few parties are subscribed to job type dummy: 1 of the 5 needed"
    );
    let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer["status"], "_JobStatus.FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_all_parties_run_at_the_same_time() {
    let federation = Federation::start(3).await;
    let gated = Gated::install(&federation);
    let mut jobs = Vec::new();
    for party in 0..3 {
        let client = federation.client(party);
        for workers in [0, 2, 3] {
            let config = json!({ "worker_num": workers, "proposal_wait_time": 2, "sleep_ms": 20 });
            jobs.push((client.clone(), client.submit("dummy", &config).await));
        }
        let job = client.submit("program", &program(3, &json!({ "of": party }))).await;
        jobs.push((client, job));
    }
    for (client, job) in &jobs {
        succeeds(client, job).await;
    }
    for (_, job) in jobs.iter().skip(3).step_by(4) {
        gated.until_runs(job, "trainer", 3).await;
        assert_eq!(gated.ran(job).len(), 5, "{:?}", gated.ran(job));
    }
}
