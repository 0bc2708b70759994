//! `fedbroker submit` against the same service, and what the submitter of FedVision 0.1 makes of its answers.

use super::master;
use crate::support::{BINARY, beginning};
use std::path::Path;
use std::process::{Output, Stdio};

/// What 0.1's submitter does, with Python's own HTTP client: it shows the JSON of a good answer and the reason phrase of any other.
const SUBMITTER: &str = r#"
import http.client, json, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
connection.request("POST", "/submit", sys.argv[2].encode(), {"Content-Type": "application/json", "Accept": "*/*"})
answer = connection.getresponse()
assert answer.headers.get_content_type() == "application/json", answer.headers
print(json.dumps(json.load(answer), indent=2) if answer.status < 400 else f"{answer.status}, message={answer.reason!r}")
"#;

async fn run(program: &str, args: &[&str]) -> Output {
    let child = {
        let _alone = beginning();
        let mut command = tokio::process::Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true).spawn().unwrap()
    };
    tokio::time::timeout(crate::support::DEADLINE, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap()
}

async fn submit(address: &str, dir: &Path, job: &str) -> Output {
    let file = dir.join("job.yaml");
    std::fs::write(&file, job).unwrap();
    run(BINARY, &["submit", "--config", file.to_str().unwrap(), "--endpoint", address]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn our_submit_shows_the_job_or_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let done = submit(&master.address, dir.path(), "job_type: dummy\njob_config: {worker_num: 0}\n").await;
    let shown = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && shown.contains("\"job_id\": \"p1-"), "{shown}");
    let refused = submit(&master.address, dir.path(), "job_type: dummy\njob_config: {worker_num: x}\n").await;
    let shown = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(
        shown.contains("job_config.worker_num: 'x' is not of type 'integer' (400)"),
        "{shown}"
    );
    let large = format!("job_type: dummy\njob_config: {{worker_num: 0, x: {}}}\n", "x".repeat(1 << 20));
    let refused = submit(&master.address, dir.path(), &large).await;
    let shown = String::from_utf8(refused.stderr).unwrap();
    assert!(shown.contains("at most 1048575 are taken (413)"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_submitter_shows_the_job_or_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let submit = async |body: &str| {
        let output = run("python3", &["-c", SUBMITTER, &master.address, body]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let good = r#"{"job_type": "dummy", "job_config": {"worker_num": 0}, "algorithm_config": "a: 1\n"}"#;
    let shown = submit(good).await;
    assert!(
        shown.starts_with("{\n  \"job_id\": \"p1-") && shown.ends_with("-1\"\n}\n"),
        "{shown}"
    );
    let shown = submit(r#"{"job_type": "é", "job_config": {}}"#).await;
    assert_eq!(shown, "400, message='job type \\\\u00e9 not supported'\n");
    let shown = submit(r#"{"job_type": "dummy", "job_config": {"worker_num": -1}}"#).await;
    assert_eq!(shown, "400, message='job_config.worker_num: -1 is less than the minimum of 0'\n");
    assert_eq!(
        submit("{bad").await,
        "400, message='Expecting property name enclosed in double quotes: line 1 column 2 (char 1)'\n"
    );
}
