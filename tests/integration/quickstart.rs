//! What a newcomer types: `quickstart`, `standalone` and `submit`, as real processes.

use crate::gated::{command, until};
use crate::support::{Client, DEADLINE};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A whole training, with the machine busy.
const LONG: Duration = Duration::from_secs(150);

async fn output(command: &mut Command) -> Output {
    tokio::time::timeout(LONG, command.output()).await.expect("it ends").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Command lines of processes that name a path, whoever started them.
fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse::<u32>().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, text(&line).replace('\0', " ")))
    });
    lines
        .filter(|(_, line)| line.contains(&name))
        .map(|(pid, line)| format!("{pid} {line}"))
        .collect()
}

async fn nothing_is_left(dir: &Path) {
    let mut seen = BTreeSet::new();
    let gone = || {
        let there = processes_of(dir);
        seen.extend(there.iter().filter_map(|process| process.split(' ').next()).map(str::to_owned));
        // One that ends loses its command line first, and the lock of its directory with its files.
        let holds = |pid: &String| std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut files| files.next().is_some());
        there.is_empty() && !seen.iter().any(holds)
    };
    until(&format!("no process is left of {}", dir.display()), gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quickstarts_run_beside_each_other() {
    tokio::join!(
        the_quickstart_survives_its_crash_and_keeps_what_it_is_told_to(),
        the_quickstart_without_a_crash_leaves_nothing(),
        nothing_outlives_a_killed_quickstart(),
    );
}

async fn the_quickstart_survives_its_crash_and_keeps_what_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let kept_text = kept.to_string_lossy();
    let ended = output(&mut command(&["quickstart", "--keep", &kept_text])).await;
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    assert_eq!(ended.status.code(), Some(0), "{out}\n{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.contains(&"state     success"), "{out}");
    assert!(out.contains("kill -9 of the initiating master after round 3"), "{out}");
    assert!(out.contains("  round 8/8  accuracy 0."), "{out}");
    assert!(lines.iter().any(|line| line.starts_with("recovery  ")), "{out}");
    assert!(kept.join("party1/master/FORMAT").is_file() && kept.join("logs/coordinator.log").is_file());
    nothing_is_left(&kept).await;
    // A second one must not mix with the first.
    let ended = output(&mut command(&["quickstart", "--keep", &kept_text])).await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("is not empty"), "{}", text(&ended.stderr));
}

async fn the_quickstart_without_a_crash_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ended = output(command(&["quickstart", "--no-crash"]).env("TMPDIR", dir.path())).await;
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    assert_eq!(ended.status.code(), Some(0), "{out}\n{err}");
    assert!(out.lines().any(|line| line == "state     success"), "{out}");
    assert!(!out.contains("kill -9"), "{out}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its directory is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_without_python_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let ended = output(command(&["quickstart"]).env("PATH", "").env("TMPDIR", dir.path())).await;
    assert_eq!(ended.status.code(), Some(1));
    let err = text(&ended.stderr);
    assert!(err.contains("needs python3") && err.contains("install it"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

async fn nothing_outlives_a_killed_quickstart() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let mut child = command(&["quickstart", "--keep", &kept.to_string_lossy()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let training = async { while !lines.next_line().await.unwrap().expect("it goes on").contains("round 1/8") {} };
    tokio::time::timeout(LONG, training).await.unwrap();
    // Ten roles and their tasks.
    assert!(processes_of(&kept).len() > 10, "{:?}", processes_of(&kept));
    child.kill().await.unwrap();
    nothing_is_left(&kept).await;
}

/// A standalone federation; the address of its first master.
async fn standalone(dir: &Path) -> (Child, String) {
    let mut child = command(&["standalone", "--port", "0", "--data-dir", &dir.to_string_lossy()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it gets ready");
            if let Some(address) = line.strip_prefix("standalone ready on ") {
                break address.to_owned();
            }
        }
    };
    let address = tokio::time::timeout(DEADLINE, ready).await.unwrap();
    (child, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_federation_runs_jobs_and_remembers_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("standalone");
    let (mut child, address) = standalone(&data).await;
    let file = repository("examples/jobs/digits_fedavg.yaml");
    let submit = ["submit", "--config", &file.to_string_lossy(), "--endpoint", &address, "--wait"];
    let ended = output(&mut command(&submit)).await;
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    assert_eq!(ended.status.code(), Some(0), "{out}\n{err}");
    assert!(out.contains(r#""state": "success""#), "{out}");
    let id = out.split('"').find(|word| word.starts_with("party1-")).unwrap().to_owned();

    let failing = dir.path().join("failing.yaml");
    std::fs::write(&failing, "job_type: dummy\njob_config:\n  worker_num: 0\n  fail: true\n").unwrap();
    let submit = ["submit", "--config", &failing.to_string_lossy(), "--endpoint", &address, "--wait"];
    let ended = output(&mut command(&submit)).await;
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.stdout));
    assert!(text(&ended.stdout).contains("asked to fail"), "{}", text(&ended.stdout));
    std::fs::write(&failing, "job_type: dummy\njob_config:\n  worker_num: -1\n").unwrap();
    let ended = output(&mut command(&submit)).await;
    assert_eq!(ended.status.code(), Some(2));
    let err = text(&ended.stderr);
    assert!(err.contains("-1 is less than the minimum of 0"), "{err}");

    child.kill().await.unwrap();
    nothing_is_left(&data).await;
    let (mut child, address) = standalone(&data).await;
    let (status, answer) = Client::new(&address).post("/query", &json!({ "job_id": id })).await.unwrap();
    assert_eq!((status, answer), (200, json!({ "job_id": id, "status": "_JobStatus.SUCCESS" })));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    nothing_is_left(&data).await;
}
