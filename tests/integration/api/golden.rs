//! The shape of every answer, as files beside this one: what clients rely on changes only where a review shows it.
//!
//! Values that differ from run to run are masked. `FEDBROKER_GOLDEN=write` writes the files.

use super::{Http, master};
use crate::support::{Client, Federation};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/integration/api/golden")
        .join(format!("{name}.json"))
}

/// Times, ids and addresses of this run become words.
fn masked(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mask = |(name, value): (&String, &Value)| {
                let value = match (name.as_str(), value) {
                    ("free_bytes" | "bytes" | "seconds" | "oldest_seconds" | "seq" | "next_cursor" | "trouble" | "what", value)
                        if !value.is_null() =>
                    {
                        json!("<varies>")
                    }
                    (_, value) => masked(value),
                };
                (name.clone(), value)
            };
            Value::Object(fields.iter().map(mask).collect())
        }
        Value::Array(values) => values.iter().map(masked).collect(),
        Value::String(text) => json!(masked_text(text)),
        other => other.clone(),
    }
}

fn masked_text(text: &str) -> String {
    let is_time = text.len() == 27 && text.ends_with('Z') && text.as_bytes()[10] == b'T';
    if is_time {
        return "<time>".to_owned();
    }
    // Which of the trainers is drawn.
    if let Some(digits) = text.strip_prefix("trainer_")
        && digits.parse::<u32>().is_ok()
    {
        return "trainer_<n>".to_owned();
    }
    // The stamp of a job id.
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("-20") {
        let (before, after) = rest.split_at(at + 1);
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 14 {
            out.push_str("<stamp>");
            rest = &after[14..];
        } else {
            out.push_str(&after[..2]);
            rest = &after[2..];
        }
    }
    out.push_str(rest);
    out
}

/// Compare an answer with its file.
pub(super) fn check(name: &str, answer: &Value) {
    let text = serde_json::to_string_pretty(&masked(answer)).unwrap() + "\n";
    let path = file(name);
    if std::env::var("FEDBROKER_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == wanted,
        "{name} has changed; if that is meant, run with FEDBROKER_GOLDEN=write\n---- now\n{text}---- {}\n{wanted}",
        path.display()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_on_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let away = |status: &Value| status["peers"][0]["state"] == "unreachable" && status["peers"][1]["state"] == "unreachable";
    Client::new(&master.address).until("/api/v1/status", away).await;
    check("status", &http.get("/api/v1/status").await.json(200));
    check("problem", &http.get("/api/v1/jobs/nope?x=1").await.json(400));
    check("job_not_found", &http.get("/api/v1/jobs/nope").await.json(404));
    check("empty_page", &http.get("/api/v1/tasks?state=held&state=queued").await.json(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_two_parties() {
    let federation = Federation::start(2).await;
    let client: Client = federation.client(0);
    let config = json!({ "program": "nowhere", "proposal_wait_time": 2, "worker_num": 2, "endpoints": 0 });
    let id = client.submit("program", &config).await;
    client.ended(&id).await;
    let http = Http::new(&federation.parties[0].master.address);
    // Which of its tasks ends first is a race, and so is when the rest of it is over.
    client.until(&format!("/api/v1/jobs/{id}"), |job| job["live"] == false).await;
    let mut failed = http.get(&format!("/api/v1/jobs/{id}")).await.json(200);
    let shown = failed.as_object_mut().unwrap();
    for name in ["tasks", "reason", "parties", "proposal"] {
        assert!(shown.remove(name).is_some_and(|value| !value.is_null()), "{name}");
    }
    check("job_failed", &failed);
    let id = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 2 })).await;
    client
        .until(&format!("/api/v1/jobs/{id}"), |job| {
            job["state"] == "success" && job["live"] == false
        })
        .await;
    let all_ended = |page: &Value| page["items"].as_array().is_some_and(|items| items.len() == 2);
    client.until(&format!("/api/v1/jobs/{id}/tasks?state=success"), all_ended).await;
    let all_told = |job: &Value| {
        let parties = job["parties"].as_array();
        parties.is_some_and(|parties| parties.len() == 2 && parties.iter().all(|party| party["state"] == "success"))
    };
    client.until(&format!("/api/v1/jobs/{id}"), all_told).await;
    check("job_success", &http.get(&format!("/api/v1/jobs/{id}")).await.json(200));
    check(
        "tasks_of_job",
        &http.get(&format!("/api/v1/jobs/{id}/tasks?state=success&limit=2")).await.json(200),
    );
    let other = Http::new(&federation.parties[1].master.address);
    let client = federation.client(1);
    client
        .until("/api/v1/proposals?state=won", |page| {
            page["items"].as_array().is_some_and(|items| items.len() == 2)
        })
        .await;
    check("proposals", &other.get("/api/v1/proposals?state=won").await.json(200));
}
