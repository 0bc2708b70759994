//! The worker, killed while it has a task; and its cluster manager, killed when it gives up one that does not come back.

use super::cluster::{Scenario, every_point as every_point_of_the_manager};
use super::paper::{of_the_worker, row_of};
use super::{check_remains, died, dummy, next_submission, skipped, start_again, start_doomed, submit};
use crate::federation::load::{self, Ledger};
use crate::support::Federation;

/// Every point of the worker; one job drives it to each.
pub fn every_point() -> Vec<String> {
    of_the_worker()
}

/// So that a worker that is gone is given up within a test's time.
const GRACE_S: &str = "1";

/// The job failed, and says with which worker.
async fn lost_with_its_worker(federation: &Federation, job: &str, after: &str) {
    let ended = federation.client(0).ended(job).await;
    let reason = ended["reason"].as_str().unwrap_or_default();
    let says = reason.starts_with("task aggregator failed: worker p1-worker was ");
    assert!(ended["state"] == "failed" && says, "after {after}: {ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_worker_and_of_a_manager_that_gives_it_up() {
    if skipped() {
        return;
    }
    let mut federation = Federation::planned(1, &["--worker-grace", GRACE_S], &[]);
    federation.start_all().await;
    let (client, ledger) = (federation.client(0), Ledger::default());
    for point in every_point() {
        assert_eq!(row_of(&point), "a worker");
        let worker = &mut federation.parties[0].worker;
        worker.kill().await;
        assert!(start_doomed(worker, &point).await, "{point} is passed with a task only");
        let submission = dummy(0, 0, 0, false);
        let number = next_submission(&ledger, false, &submission);
        let (job, ()) = tokio::join!(submit(&client, &ledger, number, submission), died(worker));
        start_again(worker).await;
        lost_with_its_worker(&federation, &job.expect("its master was not killed"), &point).await;
        load::workers_work(&federation, &ledger).await;
    }
    let given_up = every_point_of_the_manager().into_iter();
    for (point, _) in given_up.filter(|(_, scenario)| *scenario == Scenario::GivenUp) {
        assert_eq!(row_of(&point), "the cluster manager, with a worker away");
        let party = &mut federation.parties[0];
        party.manager.kill().await;
        assert!(
            start_doomed(&mut party.manager, &point).await,
            "{point} is passed when a worker is lost"
        );
        let submission = dummy(0, 0, 120_000, false);
        let number = next_submission(&ledger, false, &submission);
        let job = submit(&client, &ledger, number, submission)
            .await
            .expect("its master was not killed");
        let ran = format!("task started task={job}/aggregator");
        let deadline = std::time::Instant::now() + crate::support::DEADLINE;
        while !party.worker.log().contains(&ran) {
            assert!(std::time::Instant::now() < deadline, "{job} never ran");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        party.worker.kill().await;
        died(&mut party.manager).await;
        start_again(&mut party.manager).await;
        // It does not come back: the manager, started anew, gives it up all the same.
        lost_with_its_worker(&federation, &job, &point).await;
        federation.parties[0].worker.start().await;
        load::workers_work(&federation, &ledger).await;
    }
    check_remains(&mut federation, &ledger).await;
}
