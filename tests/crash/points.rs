//! A real process is killed at every crash point (`src/crash_point.rs`) of every role, and the recovery table of `ARCHITECTURE.md` is held to
//! its word, row by row.
//!
//! One process at a time is told to die at one point; the others are as they always are. A point that its scenario does not pass, one without a
//! scenario and one without a row fail. The binary must be a debug build: a release build has no crash points, and these tests say so and skip.

mod cluster;
mod control;
mod coordinator;
mod legacy;
mod master;
mod paper;
mod past;
mod raw;
mod retention;
mod unwanted;
mod worker;

use crate::federation::load::{self, Ledger, Submission};
use crate::federation::remains::History;
use crate::support::{Client, DEADLINE, Federation, Role};
use fedbroker::machine::Machine;
use fedbroker::machine::content::Content;
use fedbroker::machine::master::records::{Job, JobState};
use fedbroker::machine::master::{self as machine, Master};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// True, with a word about it, when there are no crash points to die at.
pub fn skipped() -> bool {
    if cfg!(debug_assertions) {
        return false;
    }
    println!("skipped: a release build has no crash points");
    true
}

/// Wait until the process has died at the point it was told to die at.
pub async fn died(role: &mut Role) {
    let spec = role.dies_at.clone().expect("it was told to die");
    let point = spec.split(':').next().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while role.runs() {
        assert!(Instant::now() < deadline, "{} never came to {spec}\n{}", role.name, role.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = role.ended().await;
    let log = role.log();
    let said = format!("dying at a crash point point=\"{point}\"");
    let last: Vec<&str> = log.lines().rev().take(20).collect();
    assert_eq!(status.signal(), Some(9), "{} ended otherwise than at {spec}\n{log}", role.name);
    assert!(
        last.iter().any(|line| line.contains(&said)),
        "{} died, and not at {spec}\n{log}",
        role.name
    );
}

/// Start a role that is to die at a point; false when it has died before it was ready.
pub async fn start_doomed(role: &mut Role, spec: &str) -> bool {
    assert!(!role.runs(), "{} runs", role.name);
    role.dies_at = Some(spec.to_owned());
    match role.launch().await {
        Ok(()) => true,
        Err(_) => {
            died(role).await;
            false
        }
    }
}

/// The records justify the effect still: a start asks for it again, and so dies at the same point.
pub async fn dies_again(role: &mut Role) {
    let point = role.dies_at.clone().unwrap();
    let point = point.split(':').next().unwrap().to_owned();
    if start_doomed(role, &point).await {
        died(role).await;
    }
}

/// Start with the same arguments, and live.
pub async fn start_again(role: &mut Role) {
    role.dies_at = None;
    role.start().await;
}

/// A point that a start passes with the commit of its own, and then with every other one.
pub fn is_in_every_commit(point: &str) -> bool {
    point.starts_with("store.") && !matches!(point, "store.given" | "store.flushed" | "store.replayed")
}

/// `<point>:<n>` for each time at which a process is to die there.
pub fn times(point: &str, of: &[u32]) -> Vec<String> {
    of.iter().map(|n| format!("{point}:{n}")).collect()
}

/// Enter a submission under a number whose text is kept in a payload file, or is not.
pub fn next_submission(ledger: &Ledger, large: bool, submission: &Submission) -> usize {
    let mut ledger = ledger.lock().unwrap();
    // Never sent, so never answered and never found.
    while ledger.len().is_multiple_of(3) != large {
        ledger.push(submission.clone());
    }
    ledger.len()
}

/// A dummy job of the first party.
pub fn dummy(workers: u32, window_s: u32, sleep_ms: u32, fail: bool) -> Submission {
    Submission {
        party: 0,
        workers,
        fail,
        quiet: false,
        sleep_ms,
        window_s,
        endpoints: 1,
        answer: None,
    }
}

/// Send it; what was answered.
pub async fn submit(client: &Client, ledger: &Ledger, number: usize, submission: Submission) -> Option<String> {
    load::submit(client, ledger, submission).await;
    ledger.lock().unwrap()[number].answer.clone()
}

/// The job that a submission has become.
pub fn job_of(master: &History<Master>, number: usize) -> Option<Job> {
    let text = load::text(number);
    master.records.values().find_map(|record| match record {
        machine::Record::Job(job) => {
            let said = job.spec.algorithm_config.as_ref().map(|content: &Content| master.content(content));
            (said.as_deref() == Some(text.as_bytes())).then(|| job.clone())
        }
        _ => None,
    })
}

/// Kill a role and read what it leaves; as long as something is under way there, let it go on.
pub async fn at_rest<M: Machine>(role: &mut Role, dir: &Path, kind: &str, under_way: impl Fn(&History<M>) -> Vec<String>) -> History<M> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        role.kill().await;
        let history = History::<M>::read(dir, kind);
        let open = under_way(&history);
        if open.is_empty() {
            return history;
        }
        assert!(
            Instant::now() < deadline,
            "{} never comes to rest: {open:#?}\n{}",
            role.name,
            role.log()
        );
        role.dies_at = None;
        role.start().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a master has under way.
pub fn open_of_master(history: &History<Master>) -> Vec<String> {
    let open = |record: &machine::Record| match record {
        machine::Record::Job(job) if !job.state.is_final() || job.lease.is_some() => Some(format!("job {} {:?}", job.id, job.state)),
        record if Master::is_live(record) && !matches!(record, machine::Record::Counter(_)) => Some(format!("{record:?}")),
        _ => None,
    };
    history.records.values().filter_map(open).collect()
}

/// Files that a start has left among the payloads, and how many records there were to hold one.
pub fn payload_files(role: &Role, data_dir: &Path) -> (Vec<String>, usize) {
    let mut files = Vec::new();
    let mut dirs = vec![data_dir.join("payloads")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.push(path.display().to_string());
            }
        }
    }
    let log = role.log();
    let recovered = log.lines().rev().find(|line| line.contains(" recovered ")).expect("it says so");
    let held = recovered.split(" payloads=").nth(1).unwrap().split(' ').next().unwrap();
    (files, held.parse().unwrap())
}

/// Nothing but what records refer to.
pub fn check_payload_files(role: &Role, data_dir: &Path) {
    let (files, held) = payload_files(role, data_dir);
    assert_eq!(files.len(), held, "{} has left payload files: {files:?}", role.name);
}

/// What has become of a submission.
pub fn check_job(history: &History<Master>, number: usize, ends: &[Option<&str>], spec: &str) {
    let job = job_of(history, number);
    let found = job.as_ref().map(|job| match &job.state {
        JobState::Succeeded => "success",
        JobState::Failed(_) => "failed",
        _ => "under way",
    });
    assert!(
        ends.contains(&found),
        "after {spec} the job is {found:?}, not one of {ends:?}: {job:?}"
    );
}

/// Every process gone, everything ended: the oracle of the random kills, no lease and no payload file too many.
pub async fn check_remains(federation: &mut Federation, ledger: &Ledger) {
    use crate::federation::{oracle, settle, started};
    use fedbroker::machine::cluster;
    use std::collections::HashMap;
    let remains = settle(federation, ledger).await;
    oracle::check(&remains, &started(federation));
    for party in &remains.parties {
        let leases = party.cluster.records.keys().filter(|key| matches!(key, cluster::Key::Lease(_)));
        assert_eq!(leases.count(), 0, "{}'s manager still has leases", party.id);
        let mut granted: HashMap<_, u32> = HashMap::new();
        for event in &party.cluster.events {
            if let cluster::Event::LeaseGranted { lease, .. } = event {
                *granted.entry(lease).or_default() += 1;
            }
        }
        let twice: Vec<_> = granted.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{}'s manager granted a lease twice: {twice:?}", party.id);
    }
}
