//! What a command shows of texts that came from elsewhere: nothing that a terminal would obey.

use super::jobs::said;
use crate::support::{BINARY, DEADLINE, Federation, beginning};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Clears the screen: as a sequence, and with an 8-bit character.
const HOSTILE: &str = "a\u{1b}[2J\u{9b}2Jb";

/// Runs a command on a terminal of its own, and prints what it printed there.
const ON_A_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

async fn on_a_terminal(endpoint: &str, args: &[&str]) -> String {
    let child = {
        let _alone = beginning();
        let mut command = tokio::process::Command::new("python3");
        command
            .args(["-c", ON_A_TERMINAL, BINARY])
            .args(args)
            .env("FEDBROKER_ENDPOINT", endpoint);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.kill_on_drop(true).spawn().unwrap()
    };
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn steers(text: &str) -> bool {
    text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
}

/// A master that means harm: every text of its answers is hostile. It ends with the set.
async fn evil() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 16 * 1024];
            let size = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..size]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let item = json!({ "seq": 1, "at": HOSTILE, "type": HOSTILE, "job_id": HOSTILE, "job_type": HOSTILE, "state": HOSTILE, "reason": HOSTILE,
                "labels": { HOSTILE: HOSTILE }, "tasks": [{ "stderr_tail": format!("one\n{HOSTILE}") }] });
            let (status, body) = match path {
                _ if path.contains("no-such") => (404, json!({ "detail": HOSTILE, "code": "job_not_found", "pointer": HOSTILE })),
                _ if path.contains("limit=7") => (200, json!("no page at all")),
                _ if path.contains("/jobs?") || path.contains("/events") => (200, json!({ "items": [item], "next_cursor": null })),
                _ => (200, item),
            };
            let body = body.to_string();
            let answer = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_from_elsewhere_does_not_steer_the_terminal() {
    let (endpoint, _serving) = evil().await;
    for format in ["table", "wide", "json", "jsonl", "yaml", "name"] {
        for command in [
            &["job", "get", "x"][..],
            &["job", "list"],
            &["job", "events"],
            &["job", "hold", "x"],
            &["status"],
        ] {
            let (code, out, err) = said(&endpoint, &[command, &["-o", format]].concat()).await;
            assert!(!out.is_empty() || format == "name", "{command:?} {format}: {code} {err}");
            assert!(!steers(&out) && !steers(&err), "{command:?} {format}: {out:?} {err:?}");
        }
    }
    for command in [&["job", "get", "x", "-o", "jsonl"][..], &["job", "export"]] {
        let (_, out, _) = said(&endpoint, command).await;
        assert!(!steers(&out), "{out:?}");
        let shown: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(shown["reason"], HOSTILE, "{command:?}: JSON says the same");
    }
    let (code, _, err) = said(&endpoint, &["job", "list", "--limit", "7"]).await;
    assert!(code == 1 && err.contains("the master gave no items"), "{code} {err:?}");
    let (code, _, err) = said(&endpoint, &["job", "get", "no-such"]).await;
    assert!(code == 6 && !steers(&err), "{err:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_wrote_goes_to_a_file_as_it_is_and_harmless_to_a_terminal() {
    let federation = Federation::start(1).await;
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    client.ended(&job).await;
    // A dummy task prints nothing; this stands in for what a program would.
    let work = Path::new(federation.parties[0].worker.flag("--work-dir").unwrap());
    let attempt = work.join(&job).join("aggregator/1");
    std::fs::create_dir_all(&attempt).unwrap();
    let wrote = format!("one\n\ttwo {HOSTILE}\n");
    std::fs::write(attempt.join("stderr"), &wrote).unwrap();
    let args = ["job", "logs", &job, "aggregator"];
    let (code, out, err) = said(&client.address(), &args).await;
    assert_eq!((code, &out), (0, &wrote), "{err}");
    let shown = on_a_terminal(&client.address(), &args).await;
    assert!(shown.contains(r"a\u{1b}[2J\u{9b}2Jb"), "{shown:?}");
    // A terminal makes \r\n of each line break.
    assert!(shown.starts_with("one\r\n") && !steers(&shown.replace("\r\n", "\n")), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_than_a_page_has_are_all_shown() {
    let federation = Federation::start(1).await;
    let client = federation.client(0);
    let item = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 }, "not_before": "2999-01-01T00:00:00Z" });
    for count in [1000, 1] {
        let items = vec![item.clone(); count];
        let (status, _) = client.post("/api/v1/jobs:batch", &json!({ "items": items })).await.unwrap();
        assert_eq!(status, 200);
    }
    let (code, out, err) = said(&client.address(), &["job", "events", "-o", "jsonl"]).await;
    assert_eq!(code, 0, "{err}");
    let accepted = out.lines().filter(|line| line.contains("\"job_accepted\"")).count();
    assert_eq!(accepted, 1001, "{err}");
}
