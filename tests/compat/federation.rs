//! One federation of two parties, each role replaced in turn by its twin of FedVision 0.1, to the end of a dummy job: as far as 0.1 can tell.

use crate::old::coordinator::OldCoordinator;
use crate::old::manager::OldManager;
use crate::old::master::{JobStatus, OldMaster};
use crate::old::until;
use crate::old::worker::OldWorker;
use crate::support::{Client, Federation, Role, free_ports};
use serde_json::{Value, json};

async fn submit(client: &Client) -> String {
    client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await
}

async fn succeeds(client: &Client, job: &str) {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}");
}

/// Tasks of a job that ended well on a worker of ours.
fn succeeded(worker: &Role, job: &str) -> usize {
    let log = worker.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("task succeeded") && line.contains(&format!("{job}/")));
    lines.count()
}

async fn done(worker: &Role, job: &str, tasks: usize) {
    until("all tasks of the party end well", || succeeded(worker, job) == tasks).await;
}

/// What our master shows with a cluster manager of 0.1, which takes tasks and never tells how they end.
async fn stays_running(client: &Client, job: &str) {
    let untold = "the cluster manager is a FedVision 0.1 one, which does not tell how tasks end";
    let shown = client
        .until(&format!("/api/v1/jobs/{job}"), |job: &Value| job["reason"] == untold)
        .await;
    assert_eq!(shown["state"], "running");
    let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer["status"], "_JobStatus.RUNNING");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_coordinator_of_0_1() {
    let mut ours = Federation::planned(2, &[], &[]);
    let _coordinator = OldCoordinator::start(&ours.coordinator.address).await;
    for party in &mut ours.parties {
        for role in [&mut party.manager, &mut party.worker, &mut party.master] {
            role.start().await;
        }
    }
    ours.subscribed().await;
    let client = ours.client(0);
    let job = submit(&client).await;
    succeeds(&client, &job).await;
    done(&ours.parties[0].worker, &job, 2).await;
    done(&ours.parties[1].worker, &job, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_cluster_manager_of_0_1() {
    let mut ours = Federation::planned(2, &[], &[]);
    let _manager = OldManager::start(&ours.parties[0].manager.address).await;
    ours.coordinator.start().await;
    ours.parties[1].manager.start().await;
    for party in &mut ours.parties {
        party.worker.start().await;
        party.master.start().await;
    }
    ours.subscribed().await;
    let client = ours.client(0);
    let job = submit(&client).await;
    done(&ours.parties[0].worker, &job, 2).await;
    done(&ours.parties[1].worker, &job, 1).await;
    stays_running(&client, &job).await;
    // A job of the other party knows its own end, whatever the manager of this one keeps to itself.
    let client = ours.client(1);
    let job = submit(&client).await;
    succeeds(&client, &job).await;
    done(&ours.parties[0].worker, &job, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_worker_of_0_1() {
    let mut ours = Federation::planned(2, &[], &[]);
    ours.coordinator.start().await;
    ours.parties[1].worker.start_unready();
    for party in &mut ours.parties {
        party.manager.start().await;
        party.master.start().await;
    }
    let worker = OldWorker::start("old", &ours.parties[0].manager.address, 4, i32::from(free_ports(10)));
    ours.subscribed().await;
    let client = ours.client(0);
    let job = submit(&client).await;
    succeeds(&client, &job).await;
    assert_eq!(worker.ran().len(), 2);
    done(&ours.parties[1].worker, &job, 1).await;
    // Its failures are failures.
    let failing = json!({ "worker_num": 0, "fail": true });
    let job = client.submit("dummy", &failing).await;
    let ended = client.ended(&job).await;
    let reason = "task aggregator failed: execute task: aggregator failed, return code: 1";
    assert_eq!((&ended["state"], &ended["reason"]), (&json!("failed"), &json!(reason)));
}

/// A federation of ours whose party `old` has a master of 0.1.
async fn with_old_master(old: usize) -> (Federation, OldMaster) {
    let mut ours = Federation::planned(2, &[], &[]);
    ours.coordinator.start().await;
    for party in &mut ours.parties {
        party.manager.start().await;
        party.worker.start().await;
    }
    ours.parties[1 - old].master.start().await;
    let master = OldMaster::start(&ours.parties[old].id, &ours.coordinator.address, &ours.parties[old].manager.address);
    let client = ours.client(1 - old);
    client
        .until("/api/v1/status", |status| status["coordinator"]["subscribed"] == true)
        .await;
    let joined = format!("party subscribed party={}", master.party());
    until("both take part", || ours.coordinator.log().contains(&joined)).await;
    (ours, master)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_master_of_0_1_as_participant() {
    let (ours, _master) = with_old_master(1).await;
    let client = ours.client(0);
    let job = submit(&client).await;
    succeeds(&client, &job).await;
    done(&ours.parties[0].worker, &job, 2).await;
    done(&ours.parties[1].worker, &job, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_master_of_0_1_as_initiator() {
    let (ours, master) = with_old_master(0).await;
    let status = master.submit("p1-20260101000000-1", 2, 1);
    done(&ours.parties[0].worker, "p1-20260101000000-1", 2).await;
    done(&ours.parties[1].worker, "p1-20260101000000-1", 1).await;
    assert_eq!(*status.lock().unwrap(), JobStatus::Running);
}

/// What an operator begins with: only the master is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn with_everything_of_0_1_around_one_master_of_ours() {
    let mut ours = Federation::planned(1, &[], &[]);
    let coordinator = OldCoordinator::start(&ours.coordinator.address).await;
    let manager = OldManager::start(&ours.parties[0].manager.address).await;
    let other = OldManager::start("127.0.0.1:0").await;
    let ports = i32::from(free_ports(20));
    let workers = [
        OldWorker::start("w", &manager.address, 8, ports),
        OldWorker::start("w", &other.address, 8, ports + 10),
    ];
    let master = OldMaster::start("p2", &coordinator.address, &other.address);
    ours.parties[0].master.start().await;
    until("all are there", || {
        coordinator.is_enrolled("p2") && workers.iter().all(OldWorker::is_enrolled)
    })
    .await;
    ours.subscribed().await;
    let client = ours.client(0);
    let job = submit(&client).await;
    until("all tasks run", || workers[0].ran().len() == 2 && workers[1].ran().len() == 1).await;
    stays_running(&client, &job).await;
    let theirs = "p2-20260101000000-1";
    let status = master.submit(theirs, 2, 1);
    until("all tasks run", || workers[0].ran().len() == 3 && workers[1].ran().len() == 3).await;
    assert_eq!(*status.lock().unwrap(), JobStatus::Running);
    assert_eq!(workers[1].times(theirs, "aggregator"), 1);
}
