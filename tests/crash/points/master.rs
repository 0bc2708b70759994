//! The master, killed at each of its crash points. With itself as proposer and as responder, and against a coordinator of FedVision 0.1.

use super::paper::{of_every_durable_role, points_of, row_of};
use super::{
    at_rest, check_job, check_payload_files, check_remains, died, dies_again, dummy, is_in_every_commit, next_submission, open_of_master,
    skipped, start_again, start_doomed, submit, times,
};
use crate::federation::load::Ledger;
use crate::federation::remains::History;
use crate::support::Federation;
use fedbroker::machine::Machine;
use fedbroker::machine::master::{Master, Record};

/// What drives a master to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// A job without a proposal.
    Local,
    /// Such a job, whose text is a payload file.
    Large,
    /// Such a job, submitted while the cluster manager is away.
    Waiting,
    /// A job that both parties take part in, the proposer too.
    Proposed,
    /// Such a job, all of whose tasks fail.
    Failing,
    /// A job at a coordinator of FedVision 0.1: in `legacy`.
    Legacy,
    /// A won task whose initiator cancels: in `unwanted`.
    Ordered,
    /// A job that is cancelled while other parties have its tasks: in `unwanted`.
    Withdrawn,
    /// A user cancels a job: this and all below in `control`.
    Cancelled,
    /// A user holds a job back.
    Held,
    /// A user lets a held job go on.
    Released,
    /// A job that may not begin before an hour.
    Woken,
    /// A job with a deadline.
    TooLate,
    /// A user removes a job.
    Purged,
    /// A user runs a job again.
    RunAgain,
    /// What ended long ago is let go: in `retention`.
    Old,
}

/// The scenario of each point.
pub fn scenario(point: &str) -> Scenario {
    use Scenario::{
        Cancelled, Failing, Held, Large, Legacy, Local, Old, Ordered, Proposed, Purged, Released, RunAgain, TooLate, Waiting, Withdrawn,
        Woken,
    };
    let name = point.rsplit_once('.').unwrap().0;
    match (name, point) {
        (_, "master.fetch.leaving" | "master.propose.leaving" | "master.follow.leaving" | "master.report.leaving") => Proposed,
        ("master.news" | "master.reported", _) => Proposed,
        ("master.stop_ordered", _) => Ordered,
        ("master.withdraw" | "master.withdrawn", _) => Withdrawn,
        (_, "master.cancel.leaving") => Failing,
        ("master.verdict" | "master.offered" | "master.fetched", _) => Proposed,
        ("master.legacy_proposal", _) => Legacy,
        ("master.cancel" | "master.give_up", _) => Cancelled,
        ("master.hold", _) => Held,
        ("master.release", _) => Released,
        ("master.wake" | "master.wake_at", _) => Woken,
        ("master.deadline_passed" | "master.deadline_at", _) => TooLate,
        ("master.purge" | "master.forget" | "master.forgotten", _) => Purged,
        ("master.rerun", _) => RunAgain,
        ("master.purge_proposals" | "master.sweep_tombstones", _) => Old,
        ("master.note", _) => Waiting,
        ("payload", _) => Large,
        ("master.submit" | "master.leased" | "master.lease_released" | "master.prepared", _) => Local,
        ("master.submitted" | "master.task_ended" | "store", _) => Local,
        (_, "master.acquire_lease.leaving" | "master.release_lease.leaving" | "master.prepare.leaving" | "master.watch.leaving") => Local,
        _ => panic!("{point} has no scenario: say what drives a master to it"),
    }
}

/// Every point of this role.
pub fn every_point() -> Vec<(String, Scenario)> {
    let points = points_of::<Master>().into_iter().chain(of_every_durable_role());
    points.map(|point| (point.clone(), scenario(&point))).collect()
}

pub fn points(of: &[Scenario]) -> Vec<(String, Scenario)> {
    every_point().into_iter().filter(|(_, scenario)| of.contains(scenario)).collect()
}

/// How a job may have ended whose master was killed there: found as this, or not at all. And whether its submission can have been answered.
fn promised(point: &str, time: u32, end: &'static str) -> (Vec<Option<&'static str>>, bool) {
    let row = row_of(point);
    if row.starts_with("`/submit` was not answered") {
        // Whole or not at all: a boundary tells which.
        let end = if point.ends_with(".taken") { None } else { Some(end) };
        return (vec![end], false);
    }
    if row.starts_with("content too large") {
        return (vec![None], false);
    }
    if row.starts_with("a batch is being written") && time == 2 {
        // The first batch after the start's own: the job's.
        let ends = match point {
            "store.begun" => vec![None],
            "store.written" => vec![None, Some(end)],
            _ => vec![Some(end)],
        };
        return (ends, false);
    }
    (vec![Some(end)], true)
}

/// One death of the first party's master, and what came of the job. Says whether the records justified the effect it died at to the end: other
/// tasks may have failed by themselves before they were stopped.
async fn one(federation: &mut Federation, ledger: &Ledger, scenario: Scenario, spec: &str) -> bool {
    let dir = federation.dir.path().join("p1-master");
    let (point, time) = spec.split_once(':').unwrap();
    let (proposed, failing) = (
        matches!(scenario, Scenario::Proposed | Scenario::Failing),
        scenario == Scenario::Failing,
    );
    let (workers, window_s) = if proposed { (2, WINDOW_S) } else { (0, 0) };
    let submission = dummy(workers, window_s, if failing { 500 } else { 0 }, failing);
    let number = next_submission(ledger, scenario == Scenario::Large, &submission);
    let client = federation.client(0);
    if scenario == Scenario::Waiting {
        federation.parties[0].manager.kill().await;
    }
    let mut sent = None;
    if start_doomed(&mut federation.parties[0].master, spec).await {
        if proposed {
            federation.subscribed().await;
        }
        let master = &mut federation.parties[0].master;
        let (answer, ()) = tokio::join!(submit(&client, ledger, number, submission), died(master));
        sent = Some(answer);
    }
    let master = &mut federation.parties[0].master;
    let nothing_to_stop = point == "master.cancel.leaving" && open_tasks(&History::read(&dir, "master")) == 0;
    if point.ends_with(".leaving") && !nothing_to_stop {
        dies_again(master).await;
    }
    start_again(master).await;
    if scenario == Scenario::Large {
        check_payload_files(master, &dir);
    }
    if scenario == Scenario::Waiting {
        federation.parties[0].manager.start().await;
    }
    let Some(answer) = sent else {
        assert_eq!(time, "1", "only the first batch is written before the master is ready");
        federation.parties[0].master.kill().await;
        return true;
    };
    let end = if failing { "failed" } else { "success" };
    let (ends, may_be_answered) = promised(point, time.parse().unwrap(), end);
    assert!(may_be_answered || answer.is_none(), "it was answered before {spec}");
    if let Some(job) = &answer {
        let ended = client.ended(job).await;
        assert_eq!(ended["state"], end, "after {spec}: {ended}");
    }
    let left = at_rest(&mut federation.parties[0].master, &dir, "master", open_of_master).await;
    check_job(&left, number, &ends, spec);
    !nothing_to_stop
}

fn open_tasks(history: &History<Master>) -> usize {
    let open = |record: &&Record| matches!(record, Record::Task(_)) && Master::is_live(record);
    history.records.values().filter(open).count()
}

/// How often a job is tried whose tasks must not all fail at once.
const TRIES: u32 = 10;

/// Long enough for a master that dies and starts twice in the window to be offered the proposal again.
const WINDOW_S: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_with_a_job_of_its_own() {
    if skipped() {
        return;
    }
    let mut federation = Federation::start(1).await;
    federation.parties[0].master.kill().await;
    let ledger = Ledger::default();
    for (point, scenario) in points(&[Scenario::Local, Scenario::Large, Scenario::Waiting]) {
        // The first batch of a start is its own; the second is the job, the fourth is in the middle of its way.
        let of: &[u32] = if is_in_every_commit(&point) { &[1, 2, 4] } else { &[1] };
        for spec in times(&point, of) {
            one(&mut federation, &ledger, scenario, &spec).await;
        }
    }
    answered_before_the_kill(&mut federation, &ledger).await;
    check_remains(&mut federation, &ledger).await;
}

/// The answer was seen, and only then, before the first effect of the job, the master dies.
async fn answered_before_the_kill(federation: &mut Federation, ledger: &Ledger) {
    let client = federation.client(0);
    federation.parties[0].manager.kill().await;
    start_again(&mut federation.parties[0].master).await;
    let submission = dummy(0, 0, 0, false);
    let number = next_submission(ledger, false, &submission);
    let job = submit(&client, ledger, number, submission).await.expect("nothing was killed");
    let master = &mut federation.parties[0].master;
    master.kill().await;
    if start_doomed(master, "master.acquire_lease.leaving").await {
        died(master).await;
    }
    start_again(master).await;
    federation.parties[0].manager.start().await;
    assert_eq!(client.ended(&job).await["state"], "success");
}

/// One federation, for these points one after the other.
async fn lane(points: &[(String, Scenario)]) {
    let mut federation = Federation::start(2).await;
    federation.parties[0].master.kill().await;
    let ledger = Ledger::default();
    for (point, scenario) in points {
        let mut tries = 1;
        while !one(&mut federation, &ledger, *scenario, &format!("{point}:1")).await {
            tries += 1;
            assert!(tries <= TRIES, "no try left anything to do at {point}");
        }
    }
    check_remains(&mut federation, &ledger).await;
}

/// Windows take most of the time, so two federations share the points.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_with_a_proposal() {
    if skipped() {
        return;
    }
    let points = points(&[Scenario::Proposed, Scenario::Failing]);
    let (one, other) = points.split_at(points.len() / 2);
    tokio::join!(lane(one), lane(other));
}
