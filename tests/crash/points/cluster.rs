//! The cluster manager, killed at each of its crash points between a master and a worker of ours. What needs other callers is in `raw`, what needs
//! a worker that is given up in `worker`.

use super::paper::{of_every_durable_role, points_of, row_of};
use super::{
    at_rest, check_remains, died, dies_again, dummy, is_in_every_commit, next_submission, skipped, start_again, start_doomed, submit, times,
};
use crate::federation::load::Ledger;
use crate::federation::remains::History;
use crate::support::{DEADLINE, Federation};
use fedbroker::machine::cluster::{self, Cluster};
use std::time::{Duration, Instant};

/// What drives a manager to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Its start.
    Start,
    /// A job of its master.
    Job,
    /// Its worker comes back to it.
    WorkerComes,
    /// Its worker dies.
    WorkerGoes,
    /// Its worker dies and stays away: in `worker`.
    GivenUp,
    /// A task is cancelled: this and all below in `raw`.
    Cancelled,
    /// A worker opens a second connection.
    SecondConnection,
    /// More tasks wait than one command places.
    ManyTasks,
    /// A master of FedVision 0.1 asks for endpoints.
    Anonymous,
    /// Such a lease is too old.
    Aged,
    /// A task whose content is a payload file.
    Large,
    /// A job is forgotten; what ended long ago is let go by itself in `retention`.
    Forgotten,
}

/// The scenario of each point.
pub fn scenario(point: &str) -> Scenario {
    use Scenario::{
        Aged, Anonymous, Cancelled, Forgotten, GivenUp, Job, Large, ManyTasks, SecondConnection, Start, WorkerComes, WorkerGoes,
    };
    let (name, moment) = point.rsplit_once('.').unwrap();
    match (name, moment) {
        ("cluster.started", _) => Start,
        ("cluster.attach", _) => WorkerComes,
        ("cluster.connection_lost" | "cluster.grace_at", _) => WorkerGoes,
        ("cluster.worker_lost", _) => GivenUp,
        ("cluster.submit" | "cluster.report" | "cluster.dispatch" | "cluster.ended" | "store", _) => Job,
        ("cluster.acquire_lease" | "cluster.release_lease", _) => Job,
        ("cluster.cancel" | "cluster.kill", _) => Cancelled,
        ("cluster.drop_connection", _) => SecondConnection,
        ("cluster.place" | "cluster.place_more", _) => ManyTasks,
        ("cluster.lease_expiry_at", _) => Anonymous,
        ("cluster.lease_expired", _) => Aged,
        ("cluster.forget", _) => Forgotten,
        ("payload", _) => Large,
        _ => panic!("{point} has no scenario: say what drives a cluster manager to it"),
    }
}

/// Every point of this role.
pub fn every_point() -> Vec<(String, Scenario)> {
    let points = points_of::<Cluster>().into_iter().chain(of_every_durable_role());
    points.map(|point| (point.clone(), scenario(&point))).collect()
}

/// What a manager has under way.
pub fn open_of_manager(history: &History<Cluster>) -> Vec<String> {
    let open = |(key, record): (&cluster::Key, &cluster::Record)| match record {
        cluster::Record::Task(task) if !task.is_ended() => Some(format!("{key:?} {:?}", task.state)),
        cluster::Record::Lease(_) => Some(format!("{key:?}")),
        _ => None,
    };
    history.records.iter().filter_map(open).collect()
}

/// Wait until the worker has said so many times that it is attached.
async fn attached(federation: &Federation, times: usize) {
    let deadline = Instant::now() + DEADLINE;
    while attaches(federation) < times {
        assert!(Instant::now() < deadline, "the worker did not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn attaches(federation: &Federation) -> usize {
    federation.parties[0].worker.log().matches(" attached worker=").count()
}

/// One death of the manager, and what came of the job that was there.
async fn one(federation: &mut Federation, ledger: &Ledger, scenario: Scenario, spec: &str) {
    let dir = federation.dir.path().join("p1-manager");
    let point = spec.split(':').next().unwrap();
    let client = federation.client(0);
    let before = attaches(federation);
    let ready = start_doomed(&mut federation.parties[0].manager, spec).await;
    // A job that is submitted before the manager dies, or while it is away, or is started: it must not matter.
    let submission = dummy(0, 0, 0, false);
    let number = next_submission(ledger, false, &submission);
    if ready && scenario == Scenario::WorkerGoes {
        attached(federation, before + 1).await;
        federation.parties[0].worker.kill().await;
    }
    let job = submit(&client, ledger, number, submission)
        .await
        .expect("its master was not killed");
    let party = &mut federation.parties[0];
    if ready {
        died(&mut party.manager).await;
    }
    if matches!(point, "cluster.grace_at.leaving") {
        dies_again(&mut party.manager).await;
    }
    start_again(&mut party.manager).await;
    if !party.worker.runs() {
        party.worker.start().await;
    }
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "success", "after {spec}, {}: {ended}", row_of(point));
    at_rest(&mut federation.parties[0].manager, &dir, "cluster-manager", open_of_manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_manager() {
    if skipped() {
        return;
    }
    let mut federation = Federation::planned(1, &["--worker-grace", "8"], &[]);
    federation.start_all().await;
    federation.parties[0].manager.kill().await;
    let ledger = Ledger::default();
    let here = [Scenario::Start, Scenario::Job, Scenario::WorkerComes, Scenario::WorkerGoes];
    for (point, scenario) in every_point().into_iter().filter(|(_, scenario)| here.contains(scenario)) {
        // The first batch of a start is its own, the second says so of the workers; the fifth is in the middle of a job.
        let of: &[u32] = if is_in_every_commit(&point) { &[1, 2, 5] } else { &[1] };
        for spec in times(&point, of) {
            one(&mut federation, &ledger, scenario, &spec).await;
        }
    }
    start_again(&mut federation.parties[0].manager).await;
    check_remains(&mut federation, &ledger).await;
}
