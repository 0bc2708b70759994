//! Job control against real processes: what is cancelled stays so and runs no more, what was promised survives a kill of the master.

mod cancel;
mod hold;
mod purge;
mod size;
mod times;
mod unwanted;

use crate::gated;
use crate::support::{Client, Federation};
use serde_json::{Value, json};

/// A job of the gated program.
fn program(workers: u32, wait_s: u32) -> Value {
    json!({ "job_type": "program", "job_config": { "program": gated::NAME, "worker_num": workers, "proposal_wait_time": wait_s } })
}

/// A job with only an aggregator, which holds so many endpoints.
fn alone(endpoints: u32, sleep_ms: u64) -> Value {
    json!({ "job_type": "dummy", "job_config": { "worker_num": 0, "endpoints": endpoints, "sleep_ms": sleep_ms } })
}

/// With more fields.
fn with(mut body: Value, more: &Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

/// Submit a job that must be accepted; its id.
async fn made(client: &Client, body: &Value) -> String {
    let (status, job) = client.post("/api/v1/jobs", body).await.unwrap();
    assert_eq!(status, 201, "{job}");
    job["job_id"].as_str().unwrap().to_owned()
}

/// Wait until a job is in a state and says what is expected.
async fn until_state(client: &Client, job: &str, state: &str) -> Value {
    client.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == state).await
}

/// Wait until nothing more can happen to a job.
async fn closed(client: &Client, job: &str) -> Value {
    client.until(&format!("/api/v1/jobs/{job}"), |job| job["live"] == false).await
}

/// Add a configuration file to a party's master that does not run.
fn configure(federation: &mut Federation, text: &str) {
    let path = federation.dir.path().join("master.toml");
    std::fs::write(&path, text).unwrap();
    federation.parties[0].master.set_flag("--config", &path.to_string_lossy());
}
