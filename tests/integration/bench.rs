//! `fedbroker bench`, small: that it measures what serves, notices what is wrong, and makes stores that are honest.

use crate::support::BINARY;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::{fs, str};

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("bench").args(args).stdin(Stdio::null());
    command
}

fn good(output: Output) -> String {
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The median of a column in the only row.
fn median(json: &str, column: &str) -> f64 {
    let value: Value = serde_json::from_str(json).unwrap();
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{json}");
    let median = rows[0][column]["median"].as_f64();
    median.unwrap_or_else(|| panic!("no {column} in {json}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every commit that the benchmark counts has waited for the disk, on the log of the store the roles use; and so has the raw disk.
#[test]
fn the_queue_that_is_measured_is_the_durable_one() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", "trace=fdatasync", "-o", text(&trace), BINARY, "bench", "queue"]);
    command.args([
        "--producers",
        "4",
        "--seconds",
        "0.3",
        "--runs",
        "1",
        "--workload",
        "life",
        "--json",
    ]);
    let output = match command.args(["--dir", text(dir.path())]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() || trace.exists() => good(output),
        missing => {
            assert!(
                std::env::var_os("FEDBROKER_REQUIRE_TOOLS").is_none(),
                "strace does not work: {missing:?}"
            );
            return eprintln!("skipped: strace does not work here");
        }
    };
    let trace = fs::read_to_string(trace).unwrap();
    let synced = |file: &str| {
        trace
            .lines()
            .filter(|line| line.contains(" fdatasync(") && line.contains(file))
            .count()
    };
    let (log, raw) = (synced("/data/log-1/store/journal>"), synced("/raw>"));
    let commits = median(&output, "commits");
    assert!(commits >= 10.0, "{output}");
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let barriers = log as f64;
    assert!(
        barriers >= commits,
        "{commits} commits were counted, and the log was synced {log} times"
    );
    assert!(raw >= 10, "the raw disk was synced {raw} times");
    assert!(median(&output, "ratio") > 0.0 && median(&output, "p99_ms") > 0.0);
}

#[test]
fn a_ratio_below_the_wanted_one_fails() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "queue",
        "--producers",
        "2",
        "--seconds",
        "0.1",
        "--runs",
        "1",
        "--workload",
        "enqueue",
        "--dir",
        text(dir.path()),
    ];
    let output = bench(&args).args(["--min-ratio", "1000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("below --min-ratio 1000"), "{error}");
    let table = good(bench(&args).args(["--min-ratio", "0"]).output().unwrap());
    assert!(table.contains("enqueue 2") && table.contains("processor  "), "{table}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the scratch directory is still there");
}

#[test]
fn roles_are_measured_as_processes() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        good(
            bench(args)
                .args(["--runs", "1", "--json", "--dir", text(dir.path())])
                .output()
                .unwrap(),
        )
    };
    let rest = run(&["rest", "--connections", "4", "--seconds", "0.3"]);
    assert!(median(&rest, "submits_per_s") > 0.0 && median(&rest, "query_p99_ms") > 0.0);
    let federation: Value = serde_json::from_str(&run(&["federation", "--tasks", "12", "--per-job", "1,3", "--connections", "4"])).unwrap();
    let medians = |column: &str| [0, 1, 2].map(|row: usize| federation["rows"][row][column]["median"].as_f64());
    let [one, three, stream] = medians("tasks_per_s");
    assert!(one > Some(0.0) && three > Some(0.0) && stream.is_none(), "{federation}");
    assert!(medians("stream_tasks_per_s")[2] > Some(0.0), "{federation}");
    let payload = run(&["payload", "--sizes", "3MB"]);
    assert!(median(&payload, "worker_mb") >= 3.0, "the worker had no payload: {payload}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the scratch directory is still there");
}

/// The rows that must be there are the promise of `docs/benchmarks.md`; that every page was right, and that no job was lost, is checked by the benchmark itself.
#[test]
fn pages_of_a_history_are_measured_while_submits_run() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, scratch) = (dir.path().join("kept"), dir.path().join("scratch"));
    let run = |finished: &str| {
        let mut command = bench(&["history", "--finished", finished, "--seconds", "1", "--runs", "1", "--json"]);
        command.args(["--keep", text(&kept), "--dir", text(&scratch)]).output().unwrap()
    };
    let result: Value = serde_json::from_str(&good(run("2500"))).unwrap();
    let row = |name: &str| {
        let found = result["rows"].as_array().unwrap().iter().find(|row| row["row"] == name);
        found.unwrap_or_else(|| panic!("no row {name} in {result}"))
    };
    let value = |name: &str, column: &str| row(name)[column]["median"].as_f64();
    for kind in [
        "all pages",
        "jobs, the newest",
        "jobs, label",
        "tasks, type of none",
        "proposals, state",
        "submits",
    ] {
        assert!(
            value(kind, "per_s") > Some(0.0) && value(kind, "p99_ms") > Some(0.0),
            "{kind}: {result}"
        );
    }
    assert_eq!(value("jobs, state", "items"), Some(50.0));
    for start in ["start without a checkpoint", "start", "start after a kill"] {
        assert!(
            value(start, "lists_ms") >= value(start, "ready_ms") && value(start, "peak_mb") > Some(1.0),
            "{result}"
        );
    }
    let other = run("2400");
    assert_eq!(other.status.code(), Some(1), "a store of another size was measured");
    assert!(String::from_utf8_lossy(&other.stderr).contains("the store has 2500 jobs and not 2400"));
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "the scratch directory is still there");
}

/// Records by kind and state, as `fedbroker store stat` tells.
fn stat(dir: &Path) -> Value {
    let output = Command::new(BINARY)
        .args(["store", "stat", "--output", "json", "--data-dir", text(dir)])
        .output()
        .unwrap();
    serde_json::from_str(&good(output)).unwrap()
}

#[test]
fn a_store_that_is_made_is_whole_and_holds_what_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    for (role, live, ended) in [("master", "job", "job"), ("cluster-manager", "task", "task")] {
        let dir = root.path().join(role);
        let made = bench(&[
            "make-store",
            "--role",
            role,
            "--live",
            "40",
            "--finished",
            "300",
            "--dir",
            text(&dir),
        ])
        .output();
        good(made.unwrap());
        // Compares the records with a replay of all events.
        good(
            Command::new(BINARY)
                .args(["store", "check", "--data-dir", text(&dir)])
                .output()
                .unwrap(),
        );
        let stat = stat(&dir);
        let count = |part: &str, kind: &str| -> u64 {
            let counts = stat["records"][part].as_object().unwrap_or_else(|| panic!("{stat}"));
            counts
                .iter()
                .filter(|(name, _)| name.split(' ').next() == Some(kind))
                .filter_map(|(_, n)| n.as_u64())
                .sum()
        };
        assert_eq!((count("live", live), count("ended", ended)), (40, 300), "{stat}");
        let again = bench(&["make-store", "--role", role, "--live", "1", "--dir", text(&dir)])
            .output()
            .unwrap();
        assert_eq!(again.status.code(), Some(1), "a directory was made twice");
    }
    let kept = root.path().join("cluster-manager");
    let dir = root.path().join("scratch");
    let args = [
        "recover",
        "--live",
        "40",
        "--finished",
        "300",
        "--runs",
        "1",
        "--json",
        "--keep",
        text(&kept),
        "--dir",
        text(&dir),
    ];
    let recover = good(bench(&args).output().unwrap());
    assert!(median(&recover, "ready_ms") > 0.0 && median(&recover, "rss_mb") > 1.0);
    assert!(kept.join("FORMAT").exists());
}
