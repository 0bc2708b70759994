//! What a large payload costs in memory: once in each role at the most, however many parties there are.

use crate::support::{Federation, Role};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const PAYLOAD: u64 = 16_000_000;
/// Beside the payload: windows, pieces, what an allocator keeps. Two copies are beyond it.
const MOST: u64 = PAYLOAD * 14 / 10 + 6_000_000;

fn memory(role: &Role, field: &str) -> u64 {
    let path = format!("/proc/{}/status", role.pid().unwrap());
    let status = fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_is_nowhere_twice() {
    let mut federation = Federation::start(2).await;
    let client = federation.client(0);
    let before: Vec<_> = federation.roles().into_iter().map(|role| memory(role, "VmRSS:")).collect();
    let config = json!({ "worker_num": 2, "proposal_wait_time": 1, "payload_bytes": PAYLOAD });
    let job = client.submit("dummy", &config).await;
    client.ended(&job).await;
    let ended = client.until(&format!("/api/v1/jobs/{job}"), closed).await;
    assert_eq!(ended["state"], "success", "{ended}");
    for (role, before) in federation.roles().into_iter().zip(before) {
        let grown = memory(role, "VmHWM:").saturating_sub(before);
        assert!(grown < MOST, "{} took {grown} bytes for a payload of {PAYLOAD}", role.name);
    }
}

/// Every party's task has ended too.
fn closed(job: &Value) -> bool {
    let parties = job["parties"].as_array().map_or(0, Vec::len);
    let ended = |party: &Value| matches!(party["state"].as_str(), Some("success" | "failed" | "cancelled"));
    job["live"] == false && parties == 2 && job["parties"].as_array().unwrap().iter().all(ended)
}

/// All payload files of a role.
fn payloads(data: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for fan_out in fs::read_dir(data.join("payloads")).unwrap() {
        files.extend(fs::read_dir(fan_out.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_file_is_damaged_fails_its_job_and_reaches_nobody() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    let job = client
        .submit("dummy", &json!({ "worker_num": 0, "payload_bytes": 3_000_000 }))
        .await;
    client.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == "running").await;
    let files = payloads(&federation.dir.path().join("p1-master"));
    assert_eq!(files.len(), 1);
    let mut content = fs::read(&files[0]).unwrap();
    content[1_500_000] ^= 1;
    fs::write(&files[0], &content).unwrap();
    federation.parties[0].manager.start().await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    let reason = ended["reason"].as_str().unwrap();
    assert!(
        reason.contains("the stored task cannot be read") && reason.contains("hash"),
        "{reason}"
    );
    assert_eq!(
        payloads(&federation.dir.path().join("p1-manager")),
        Vec::<std::path::PathBuf>::new()
    );
}
