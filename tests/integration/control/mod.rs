//! Job control against real processes: what is cancelled stays so and runs no more, what was promised survives a kill of the master.

mod cancel;
mod purge;
mod size;
mod times;

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

/// RFC 3339, so far from now.
fn in_ms(ms: i64) -> String {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = i64::try_from(at.as_millis()).unwrap() + ms;
    let (days, ms) = (at.div_euclid(86_400_000), at.rem_euclid(86_400_000));
    // Days to a date, as by Hinnant.
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (s, ms) = (ms / 1000, ms % 1000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        s / 3600,
        s / 60 % 60,
        s % 60
    )
}

/// Add a configuration file to a party's master that does not run.
fn configure(federation: &mut Federation, text: &str) {
    let path = federation.dir.path().join("master.toml");
    std::fs::write(&path, text).unwrap();
    federation.parties[0].master.set_flag("--config", &path.to_string_lossy());
}
