//! Our master and our worker at a cluster manager of FedVision 0.1: one test for each thing that manager does to a client.

use crate::gated::{self, Gated, replace_worker};
use crate::old::manager::OldManager;
use crate::old::until;
use crate::old::worker::OldWorker;
use crate::support::{Client, Federation, free_ports};
use fedbroker::wire::fedvision::framework::cluster::{task_resource_require, update_status};
use serde_json::{Value, json};
use std::path::Path;

/// One party of ours whose cluster manager, where it runs, is one of 0.1.
struct Party {
    ours: Federation,
    address: String,
    client: Client,
}

impl Party {
    async fn start(master_args: &[&str]) -> Self {
        let mut ours = Federation::planned(1, &[], master_args);
        ours.coordinator.start().await;
        ours.parties[0].master.start().await;
        ours.subscribed().await;
        let (address, client) = (ours.parties[0].manager.address.clone(), ours.client(0));
        Self { ours, address, client }
    }

    async fn manager(&self) -> OldManager {
        OldManager::start(&self.address).await
    }

    async fn old_worker(&self, max_tasks: i32) -> OldWorker {
        let worker = OldWorker::start("w", &self.address, max_tasks, i32::from(free_ports(10)));
        until("the worker is enrolled", || worker.is_enrolled()).await;
        worker
    }

    async fn dummy(&self, workers: u32) -> String {
        self.client
            .submit("dummy", &json!({ "worker_num": workers, "proposal_wait_time": 1 }))
            .await
    }

    /// The job once it fits.
    async fn job(&self, job: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.client.until(&format!("/api/v1/jobs/{job}"), fits).await
    }
}

/// What a job says once all its tasks are at such a manager.
const UNTOLD: &str = "the cluster manager is a FedVision 0.1 one, which does not tell how tasks end";

fn says(job: &Value, part: &str) -> bool {
    job["reason"].as_str().is_some_and(|why| why.contains(part))
}

async fn both_run_once(worker: &OldWorker, job: &str) {
    let all = || worker.times(job, "trainer_0") >= 1 && worker.times(job, "aggregator") >= 1;
    until("both tasks run", all).await;
    let ran: Vec<_> = worker.ran().into_iter().filter(|(of, _)| of == job).collect();
    assert_eq!(ran.len(), 2, "{ran:?}");
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("master.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn task_ends_are_never_told_and_the_job_says_so() {
    let party = Party::start(&[]).await;
    let manager = party.manager().await;
    let worker = party.old_worker(4).await;
    let job = party.dummy(1).await;
    both_run_once(&worker, &job).await;
    until("both ends are reported", || {
        manager.updates().iter().filter(|(update, _)| !update.task_id.is_empty()).count() == 2
    })
    .await;
    let shown = party.job(&job, |job| says(job, UNTOLD)).await;
    assert_eq!(shown["state"], "running");
    assert!(
        shown["tasks"].as_array().unwrap().iter().all(|task| task["state"] == "submitted"),
        "{shown}"
    );
    let (status, answer) = party.client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!((status, &answer["status"]), (200, &json!("_JobStatus.RUNNING")));
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_never_come_back_are_the_reason_shown() {
    let mut party = Party::start(&[]).await;
    let gated = Gated::install(&party.ours);
    let mut manager = party.manager().await;
    let programs = party.ours.dir.path().join("programs");
    replace_worker(&mut party.ours, 0, 2, 10, &programs);
    party.ours.parties[0].worker.start().await;
    let program = json!({ "program": gated::NAME, "worker_num": 1, "proposal_wait_time": 1 });
    let first = party.client.submit("program", &program).await;
    // A slot for the endpoints, a slot for the trainer.
    gated.until_runs(&first, "trainer", 1).await;
    gated.until_runs(&first, "aggregator", 1).await;
    let second = party.client.submit("program", &program).await;
    let never = "the cluster manager has no slots left; a FedVision 0.1 manager never gives them back";
    let shown = party.job(&second, |job| says(job, never)).await;
    assert_eq!(shown["state"], "leasing");
    let refused = |lease: &task_resource_require::Rep| lease.status() == task_resource_require::Status::Failed;
    until("it asks again", || {
        manager.leases().iter().filter(|lease| refused(lease)).count() >= 2
    })
    .await;
    // Only another enrolment of the worker gives them back.
    manager.kill();
    let _manager = party.manager().await;
    gated.until_runs(&second, "trainer", 1).await;
    gated.until_runs(&second, "aggregator", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn task_submit_failed_is_kept_and_sent_again() {
    let party = Party::start(&[]).await;
    let manager = party.manager().await;
    let job = party.dummy(1).await;
    party.job(&job, |job| says(job, "the cluster manager does not take task")).await;
    until("it is refused more than once", || manager.refused() >= 3).await;
    assert_eq!(manager.submitted().len(), 0);
    let worker = party.old_worker(4).await;
    both_run_once(&worker, &job).await;
    assert_eq!(manager.submitted().len(), 2);
    let shown = party.job(&job, |job| says(job, UNTOLD)).await;
    assert_eq!(shown["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn task_submit_failed_as_often_as_the_rule_allows_fails_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let party = Party::start(&["--config", &config(dir.path(), "submit_tries = 3")]).await;
    let manager = party.manager().await;
    let job = party.dummy(0).await;
    let ended = party.client.ended(&job).await;
    assert_eq!(
        ended["reason"],
        "task aggregator failed: the cluster manager refused the task 3 times"
    );
    assert_eq!(manager.refused(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn manager_killed_between_proposal_and_task_submit_ends_no_loop() {
    let party = Party::start(&[]).await;
    let mut manager = party.manager().await;
    let worker = party.old_worker(4).await;
    let job = party.dummy(1).await;
    party.job(&job, |job| job["state"] == "proposing").await;
    manager.kill();
    until("the worker ends with its stream", || worker.ended().is_some()).await;
    party.job(&job, |job| says(job, "cannot be reached")).await;
    let manager = party.manager().await;
    // A manager that came back empty refuses until its workers are there again.
    until("it is refused", || manager.refused() >= 1).await;
    let worker = party.old_worker(8).await;
    both_run_once(&worker, &job).await;
    let next = party.dummy(1).await;
    both_run_once(&worker, &next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_task_is_durable_before_it_is_sent() {
    let mut party = Party::start(&[]).await;
    // Nobody there who could take it.
    let job = party.dummy(1).await;
    until("the task is won", || party.ours.parties[0].master.log().contains("won a task")).await;
    party.job(&job, |job| job["state"] == "running").await;
    party.ours.parties[0].master.kill().await;
    let _manager = party.manager().await;
    let worker = party.old_worker(4).await;
    party.ours.parties[0].master.start().await;
    both_run_once(&worker, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_never_answered_have_a_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let party = Party::start(&["--config", &config(dir.path(), "[patience]\ncluster_s = 1")]).await;
    // The system takes connections for it; it never does.
    let deaf = std::net::TcpListener::bind(&party.address).unwrap();
    let job = party.dummy(0).await;
    let why = format!("the cluster manager at {} cannot be reached: no answer in time", party.address);
    party.job(&job, |job| job["reason"] == why).await;
    drop(deaf);
    let _manager = party.manager().await;
    let worker = party.old_worker(4).await;
    until("the task runs", || worker.times(&job, "aggregator") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_ours_enrolls_reports_and_enrolls_again() {
    let mut party = Party::start(&[]).await;
    let mut manager = party.manager().await;
    party.ours.parties[0].worker.start().await;
    assert!(manager.has_worker("p1-worker"));
    let reports = |manager: &OldManager| {
        let of_tasks = |(update, answer): (update_status::Req, _)| (!update.task_id.is_empty()).then_some((update, answer));
        manager.updates().into_iter().filter_map(of_tasks).collect::<Vec<_>>()
    };
    let job = party.dummy(1).await;
    until("both ends are reported", || reports(&manager).len() == 2).await;
    for (update, answer) in reports(&manager) {
        assert_eq!((update.job_id.as_str(), update.worker_id.as_str()), (job.as_str(), "p1-worker"));
        assert_eq!(update.task_status(), update_status::TaskStatus::TaskFinish);
        assert_eq!(answer, update_status::Status::Success);
    }
    // The same task ids of another job are refused there, and the worker minds it no more than its own predecessor did.
    party.dummy(1).await;
    until("both ends are reported", || reports(&manager).len() == 4).await;
    assert!(
        reports(&manager)[2..]
            .iter()
            .all(|(_, answer)| *answer == update_status::Status::Failed)
    );
    manager.kill();
    let manager = party.manager().await;
    until("it enrolls again", || manager.has_worker("p1-worker")).await;
    let job = party.dummy(1).await;
    until("both ends are reported", || reports(&manager).len() == 2).await;
    assert_eq!(manager.times(&job, "trainer_0"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_ours_that_was_paused_and_dropped_enrolls_again() {
    let mut party = Party::start(&[]).await;
    let manager = party.manager().await;
    party.ours.parties[0].worker.start().await;
    party.ours.parties[0].worker.signal(rustix::process::Signal::STOP);
    until("it is dropped for its silence", || !manager.has_worker("p1-worker")).await;
    party.ours.parties[0].worker.signal(rustix::process::Signal::CONT);
    until("it enrolls again", || manager.has_worker("p1-worker")).await;
    let job = party.dummy(1).await;
    let reported = || manager.updates().iter().filter(|(update, _)| update.job_id == job).count() == 2;
    until("both tasks run", reported).await;
}
