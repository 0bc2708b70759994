//! `fedbroker job` against a federation of one party: each command as in docs/api.md, its output and its exit code.

use crate::support::{BINARY, DEADLINE, Federation, beginning};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};

async fn run(endpoint: &str, args: &[&str]) -> Output {
    let child = {
        let _alone = beginning();
        let mut command = tokio::process::Command::new(BINARY);
        command.args(args).env("FEDBROKER_ENDPOINT", endpoint).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).spawn().unwrap()
    };
    tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap()
}

/// Exit code, stdout, stderr.
pub(super) async fn said(endpoint: &str, args: &[&str]) -> (i32, String, String) {
    let output = run(endpoint, args).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Stdout of a command that must succeed.
async fn good(endpoint: &str, args: &[&str]) -> String {
    let (code, out, err) = said(endpoint, args).await;
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    out
}

fn job_file(dir: &Path, name: &str, config: &Value) -> String {
    let path = dir.join(name);
    std::fs::write(&path, json!({ "job_type": "dummy", "job_config": config }).to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

async fn submit(endpoint: &str, file: &str, more: &[&str]) -> String {
    let args = [&["job", "submit", "--config", file, "-o", "name"], more].concat();
    good(endpoint, &args).await.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_submitted_found_watched_and_purged() {
    let federation = Federation::start(1).await;
    let (endpoint, dir) = (federation.client(0).address(), federation.dir.path());
    let quick = job_file(dir, "quick.yaml", &json!({ "worker_num": 0 }));
    let id = submit(&endpoint, &quick, &["--label", "team=a", "--label", "run=1", "--priority", "-3"]).await;

    assert_eq!(good(&endpoint, &["job", "wait", &id, "-o", "name"]).await.trim(), id);
    let (code, out, err) = said(&endpoint, &["job", "watch", &id]).await;
    assert!(code == 0 && out.contains("success") && err.contains(&id), "{out}{err}");

    let table = good(&endpoint, &["job", "list"]).await;
    assert!(
        table.starts_with("JOB ") && table.contains(&id) && table.contains("success"),
        "{table}"
    );
    let wide = good(&endpoint, &["job", "list", "--label", "team=a", "-o", "wide"]).await;
    assert!(wide.contains("team=a") && wide.contains("-3"), "{wide}");
    assert_eq!(good(&endpoint, &["job", "list", "--label", "team=b", "-o", "name"]).await, "");
    assert_eq!(
        good(
            &endpoint,
            &["job", "list", "--state", "success", "--type", "dummy", "-q", &id, "-o", "name"]
        )
        .await
        .trim(),
        id
    );
    assert_eq!(good(&endpoint, &["job", "list", "--created-after", "1h", "-o", "name"]).await, "");

    let job: Value = serde_json::from_str(&good(&endpoint, &["job", "get", &id, "-o", "json"]).await).unwrap();
    assert_eq!(
        (&job["job_id"], &job["labels"]["run"], &job["priority"]),
        (&json!(id), &json!("1"), &json!(-3))
    );
    let (code, out, err) = said(&endpoint, &["job", "get", "nope", &id, "-o", "name"]).await;
    assert!(code == 6 && out.trim() == id && err.contains("nope"), "{code} {out} {err}");
    let yaml = good(&endpoint, &["job", "get", &id, "-o", "yaml"]).await;
    assert!(yaml.contains(&format!("job_id: {id}")), "{yaml}");

    let events = good(&endpoint, &["job", "events", &id, "-o", "jsonl"]).await;
    let kinds: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds.first().map(String::as_str), Some("job_accepted"));
    assert!(kinds.iter().any(|kind| kind == "job_succeeded"), "{kinds:?}");

    let lines = good(&endpoint, &["job", "export"]).await;
    assert!(
        lines
            .lines()
            .any(|line| serde_json::from_str::<Value>(line).unwrap()["job_id"] == json!(id)),
        "{lines}"
    );
    let again = good(&endpoint, &["job", "rerun", &id, "-o", "json"]).await;
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again[0]["parent"], json!(id));
    good(&endpoint, &["job", "wait", again[0]["job_id"].as_str().unwrap()]).await;

    assert_eq!(good(&endpoint, &["job", "purge", &id]).await.trim(), id);
    let again = again[0]["job_id"].as_str().unwrap();
    let (code, out, err) = said(&endpoint, &["job", "purge", again, &id, "-o", "json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&out).unwrap(),
        json!([{ "job_id": again }]),
        "what was done before a refusal is shown"
    );
    assert!(code == 6 && err.matches(&id).count() == 1, "{code} {err}");
    // What would lead elsewhere in a path is no id.
    for none in ["", ".", ".."] {
        let (code, out, err) = said(&endpoint, &["job", "get", none]).await;
        assert!(
            code == 2 && out.is_empty() && err.contains("is no id"),
            "{none}: {code} {out} {err}"
        );
    }
    // A job that is not there is none that failed.
    for command in ["get", "wait", "watch", "cancel", "events", "logs"] {
        let (code, _, err) = said(&endpoint, &["job", command, &id]).await;
        assert!(code == 6 && err.contains(&id), "{command}: {code} {err}");
    }
    assert!(good(&endpoint, &["status"]).await.contains("party: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_held_released_and_cancelled() {
    let federation = Federation::start(1).await;
    let (endpoint, dir) = (federation.client(0).address(), federation.dir.path());
    let long = job_file(dir, "long.yaml", &json!({ "worker_num": 0, "sleep_ms": 600_000 }));
    let later = submit(&endpoint, &long, &["--not-before", "2h", "--label", "sweep=1"]).await;
    assert!(good(&endpoint, &["job", "hold", &later]).await.contains("held"));
    let (code, _, err) = said(&endpoint, &["job", "hold", &later]).await;
    assert!(code == 5 || code == 0, "{code} {err}");
    assert!(good(&endpoint, &["job", "release", &later]).await.contains("waiting"));
    let (code, _, err) = said(&endpoint, &["job", "purge", &later]).await;
    assert!(code == 5 && err.matches(&later).count() == 1, "{code} {err}");
    let (code, _, err) = said(&endpoint, &["job", "watch", &later, "--timeout", "100ms"]).await;
    assert!(code == 4 && err.contains("is still waiting after the time given"), "{code} {err}");

    let running = submit(&endpoint, &long, &["--label", "sweep=1"]).await;
    let (code, _, err) = said(&endpoint, &["job", "wait", &running, "--timeout", "500ms"]).await;
    assert!(code == 4 && err.contains("after the time given"), "{code} {err}");
    let found = good(&endpoint, &["job", "cancel", "--label", "sweep=1", "--dry-run", "-o", "name"]).await;
    assert_eq!(
        found.lines().map(str::to_owned).collect::<BTreeSet<_>>(),
        BTreeSet::from([later.clone(), running.clone()])
    );
    assert!(
        good(&endpoint, &["job", "cancel", &later, "--reason", "not needed"])
            .await
            .contains("not needed")
    );
    good(&endpoint, &["job", "cancel", "--label", "sweep=1"]).await;
    let (code, out, _) = said(&endpoint, &["job", "wait", &running, &later]).await;
    assert!(code == 1 && out.matches("cancelled").count() == 2, "{out}");
    let (code, _, err) = said(&endpoint, &["job", "cancel"]).await;
    assert!(code == 2 && err.contains("name jobs"), "{code} {err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_can_tell_what_went_wrong() {
    let mut federation = Federation::start(1).await;
    let endpoint = federation.client(0).address();
    let failing = job_file(federation.dir.path(), "failing.yaml", &json!({ "worker_num": 0, "fail": true }));
    let wrong = job_file(federation.dir.path(), "wrong.yaml", &json!({ "worker_num": -1 }));
    let (code, _, err) = said(&endpoint, &["job", "submit", "--config", &wrong]).await;
    assert!(code == 2 && err.contains("worker_num"), "{code} {err}");
    let (code, _, err) = said(&endpoint, &["job", "submit", "--config", "no-such-file"]).await;
    assert!(code == 2 && err.contains("cannot read no-such-file"), "{code} {err}");
    for (flag, value, range) in [
        ("--priority", "101", "-100..=100"),
        ("--priority", "300", "-100..=100"),
        ("--max-attempts", "0", "1..=100"),
    ] {
        let (code, _, err) = said(&endpoint, &["job", "submit", "--config", &failing, flag, value]).await;
        assert!(code == 2 && err.contains(range), "{code} {err}");
    }
    let key = ["--idempotency-key", "only-once"];
    let first = submit(&endpoint, &failing, &key).await;
    assert_eq!(submit(&endpoint, &failing, &key).await, first, "the same key is the same job");
    let quick = job_file(federation.dir.path(), "quick.yaml", &json!({ "worker_num": 0 }));
    let (code, _, err) = said(&endpoint, &[&["job", "submit", "--config", &quick], &key[..]].concat()).await;
    assert!(code == 5 && err.contains(&first), "{code} {err}");

    let retried = submit(&endpoint, &failing, &["--max-attempts", "2"]).await;
    let (code, out, err) = said(&endpoint, &["job", "wait", &retried]).await;
    assert!(
        code == 1 && err.contains("runs it again") && !out.contains(&format!("{retried} ")),
        "{out}{err}"
    );
    let (code, out, _) = said(&endpoint, &["job", "wait", &retried, "--no-follow"]).await;
    assert!(code == 1 && out.contains(&retried), "{out}");

    federation.parties[0].master.kill().await;
    let (code, _, err) = said(&endpoint, &["job", "list"]).await;
    assert!(code == 3 && err.contains("cannot reach the master"), "{code} {err}");
    let submitting = ["job", "submit", "--config", &quick, "--patience", "0s"];
    assert_eq!(said(&endpoint, &submitting).await.0, 3);
    // No patience goes past the time given.
    let waiting = ["job", "wait", &first, "--timeout", "1s", "--patience", "1d"];
    assert_eq!(said(&endpoint, &waiting).await.0, 3);

    // With patience, a submit waits for a master that comes back.
    let submitting = ["job", "submit", "--config", &quick, "--wait", "-o", "name"];
    let master = &mut federation.parties[0].master;
    let ((code, out, err), ()) = tokio::join!(said(&endpoint, &submitting), master.start());
    assert!(code == 0 && !out.trim().is_empty(), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_has_a_completion() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = good("127.0.0.1:1", &["completion", shell]).await;
        assert!(script.contains("fedbroker") && script.contains("rerun"), "{shell}");
    }
}
