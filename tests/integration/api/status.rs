//! Readiness and status: every check and every peer named, what waits counted, against real processes.

use super::{Http, master};
use crate::gated::{self, Gated};
use crate::support::{Client, Federation};
use serde_json::{Value, json};

fn peer<'a>(status: &'a Value, role: &str) -> &'a Value {
    let mut peers = status["peers"].as_array().into_iter().flatten();
    peers.find(|peer| peer["role"] == role).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_whom_nobody_answers_is_ready_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let tried = |status: &Value| peer(status, "coordinator")["state"] == "unreachable";
    Client::new(&master.address).until("/api/v1/status", tried).await;
    let ready = http.get("/readyz?verbose").await.json(200);
    assert_eq!(ready["ready"], true);
    let checks = ready["checks"].as_object().unwrap();
    let named: Vec<&str> = checks.keys().map(String::as_str).collect();
    assert_eq!(named, ["cluster_manager", "coordinator", "disk", "engine", "index", "store"]);
    for away in ["coordinator", "cluster_manager"] {
        let check = &checks[away];
        assert_eq!((&check["ok"], &check["required"]), (&json!(false), &json!(false)), "{check}");
        let reason = check["reason"].as_str().unwrap();
        assert!(!reason.is_empty(), "{check}");
    }
    let reason = checks["cluster_manager"]["reason"].as_str().unwrap();
    assert!(reason.contains("127.0.0.1:1: ") && reason.contains("refused"), "{reason}");
    for needed in ["engine", "store"] {
        assert_eq!(checks[needed], json!({ "ok": true, "required": true, "reason": null }));
    }
    let status = http.get("/api/v1/status").await.json(200);
    for role in ["coordinator", "cluster_manager"] {
        let peer = peer(&status, role);
        assert_eq!((&peer["state"], &peer["kind"]), (&json!("unreachable"), &Value::Null), "{peer}");
        assert!(peer["last_error"]["what"].as_str().unwrap().contains("refused"), "{peer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_and_comes_is_seen_and_its_last_error_kept() {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let of = |role: &'static str, state: &'static str| move |status: &Value| peer(status, role)["state"] == state;
    let status = client.until("/api/v1/status", of("cluster_manager", "connected")).await;
    let manager = peer(&status, "cluster_manager");
    assert_eq!(
        (&manager["kind"], &manager["last_error"]),
        (&json!("fedbroker"), &Value::Null),
        "{manager}"
    );
    assert_eq!(manager["address"], json!(federation.parties[0].manager.address));
    assert_eq!(peer(&status, "coordinator")["state"], "connected");
    federation.parties[0].manager.kill().await;
    federation.coordinator.kill().await;
    client.until("/api/v1/status", of("cluster_manager", "unreachable")).await;
    client.until("/api/v1/status", of("coordinator", "unreachable")).await;
    let not_ok = |ready: &Value| ready["checks"]["cluster_manager"]["ok"] == false && ready["checks"]["coordinator"]["ok"] == false;
    assert_eq!(client.until("/readyz?verbose", not_ok).await["ready"], true);
    federation.start_all().await;
    for role in ["coordinator", "cluster_manager"] {
        let status = client.until("/api/v1/status", of(role, "connected")).await;
        let peer = peer(&status, role);
        assert!(peer["last_error"]["what"].is_string() && peer["answered_at"].is_string(), "{peer}");
    }
    let ok = |ready: &Value| ready["checks"]["cluster_manager"]["ok"] == true && ready["checks"]["coordinator"]["ok"] == true;
    client.until("/readyz", ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_counted_and_the_oldest_named() {
    let mut federation = Federation::planned(1, &[], &[]);
    let path = federation.dir.path().join("master.toml");
    std::fs::write(&path, "[preparing]\nat_once = 1\n").unwrap();
    federation.parties[0].master.set_flag("--config", &path.to_string_lossy());
    federation.start_all().await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let quiet = |status: &Value| {
        let queues = ["leases", "compile_turns", "compiling", "proposals", "fetches", "cluster_calls"];
        queues
            .iter()
            .all(|queue| status["queues"][queue]["waiting"] == 0 && status["queues"][queue]["oldest_seconds"].is_null())
    };
    client.until("/api/v1/status", quiet).await;
    gated.shut("compile");
    let config = json!({ "program": gated::NAME, "worker_num": 1, "proposal_wait_time": 1 });
    for _ in 0..3 {
        client.submit("program", &config).await;
    }
    // More than one worker has: it waits on.
    let large = client.submit("dummy", &json!({ "worker_num": 0, "endpoints": 21 })).await;
    let waits = |status: &Value| {
        let queues = &status["queues"];
        queues["compiling"]["waiting"] == 1 && queues["compile_turns"]["waiting"] == 2 && queues["leases"]["waiting"] == 1
    };
    let status = client.until("/api/v1/status", waits).await;
    for queue in ["compiling", "compile_turns", "leases"] {
        assert!(status["queues"][queue]["oldest_seconds"].as_f64().unwrap() > 0.0, "{status}");
    }
    assert_eq!(
        (&status["jobs"]["preparing"], &status["jobs"]["leasing"]),
        (&json!(3), &json!(1)),
        "{status}"
    );
    assert_eq!(status["jobs"]["oldest_waiting"]["state"], "preparing", "{status}");
    assert!(
        status["log"]["bytes"].as_u64().unwrap() > 0 && status["log"]["next_seq"].as_u64().unwrap() > 5,
        "{status}"
    );
    gated.open("compile");
    let rest = |status: &Value| status["jobs"]["oldest_waiting"]["job_id"] == json!(large) && status["jobs"]["success"] == 3;
    client.until("/api/v1/status", rest).await;
    client.post(&format!("/api/v1/jobs/{large}:cancel"), &json!({})).await.unwrap();
    client.until("/api/v1/status", quiet).await;
}
