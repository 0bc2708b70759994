//! Masters and workers of FedVision 0.1 at our coordinator and our cluster manager: they are served, and use nothing up.

use crate::old::coordinator::OldCoordinator;
use crate::old::master::{JobStatus, OldMaster};
use crate::old::worker::OldWorker;
use crate::old::{until, within};
use crate::support::{Role, free_ports};
use fedbroker::machine::cluster::Rules;
use fedbroker::supervisor::Supervisor;
use fedbroker::wire::connect::channel;
use fedbroker::wire::fedbroker::v1::CancelTaskRequest;
use fedbroker::wire::fedbroker::v1::cluster_client::ClusterClient;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::{task_resource_require, task_submit};
use fedbroker::wire::fedvision::framework::coordinator::fetch_task;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Our coordinator and our cluster manager, for peers of 0.1 only.
struct Ours {
    dir: tempfile::TempDir,
    coordinator: Role,
    manager: Role,
}

impl Ours {
    async fn start(coordinator_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let data = path("coordinator");
        let mut args = vec!["coordinator", "--port", "0", "--data-dir", &data];
        args.extend(coordinator_args);
        let mut coordinator = Role::new("coordinator", dir.path(), &args);
        let data = path("manager");
        let args = ["cluster-manager", "--port", "0", "--data-dir", &data, "--worker-grace", "1"];
        let mut manager = Role::new("manager", dir.path(), &args);
        coordinator.start().await;
        manager.start().await;
        Self { dir, coordinator, manager }
    }

    fn master(&self, party: &str) -> OldMaster {
        OldMaster::start(party, &self.coordinator.address, &self.manager.address)
    }

    async fn worker(&self, max_tasks: i32) -> OldWorker {
        let worker = OldWorker::start("w", &self.manager.address, max_tasks, i32::from(free_ports(10)));
        until("it is enrolled", || worker.is_enrolled()).await;
        worker
    }

    /// How often parties have subscribed so far.
    fn subscribed(&self, party: &str) -> usize {
        self.coordinator.log().matches(&format!("party subscribed party={party} ")).count()
    }

    fn payloads(&self, role: &str) -> usize {
        files(&self.dir.path().join(role).join("payloads"))
    }
}

fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.map(|path: PathBuf| if path.is_dir() { files(&path) } else { 1 }).sum()
}

/// What a role found in its records at its last start.
fn recovered(role: &Role) -> String {
    let log = role.log();
    log.lines().rfind(|line| line.contains("recovered")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_of_a_master_of_0_1_use_up_no_slots_ports_or_memory() {
    let mut ours = Ours::start(&["--keep-closed", "1"]).await;
    // Two endpoints and a slot for each job, and more jobs than there are of either.
    let worker = ours.worker(4).await;
    let master = ours.master("m1");
    until("it takes part", || ours.subscribed("m1") == 1).await;
    let mut kept = 0;
    for round in 0..4 {
        let jobs = [0, 1].map(|n| format!("m1-20260101000000-{}", 2 * round + n));
        let running = jobs.each_ref().map(|job| master.submit(job, 1, 1));
        // Not before: such a master asks for resources once, and waits for ever if there are none.
        until("all tasks are reported", || jobs.iter().all(|job| worker.reported(job) == 2)).await;
        assert!(running.iter().all(|status| *status.lock().unwrap() == JobStatus::Running));
        kept = kept.max(ours.payloads("coordinator"));
    }
    assert_eq!(worker.ran().len(), 16, "none ran twice");
    // The tasks were files while somebody could ask for them again, or this counts nothing.
    assert!(kept > 0);
    until("the coordinator lets go of the bytes", || ours.payloads("coordinator") == 0).await;
    until("the manager lets go of the bytes", || ours.payloads("manager") == 0).await;
    ours.coordinator.kill_and_start().await;
    ours.manager.kill_and_start().await;
    // Only what there is is named.
    for role in [&ours.coordinator, &ours.manager] {
        let found = recovered(role);
        assert!(["proposal", "task", "lease"].iter().all(|what| !found.contains(what)), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_master_counts_no_longer_after_its_lease_and_comes_back_under_its_id() {
    let ours = Ours::start(&["--party-lease", "1", "--settle", "0"]).await;
    let worker = ours.worker(16).await;
    let (one, mut two) = (ours.master("m1"), ours.master("m2"));
    until("both take part", || ours.subscribed("m1") == 1 && ours.subscribed("m2") == 1).await;
    two.kill();
    until("its stream is gone", || ours.coordinator.log().contains("stream ended party=m2")).await;
    // Within the lease it counts, and does not answer.
    let status = one.submit("m1-20260101000000-1", 2, 1);
    until("refused at the end of the window", || *status.lock().unwrap() == JobStatus::Failed).await;
    // After it there is nothing to wait for, least of all for a window longer than this test's patience.
    let status = one.submit("m1-20260101000000-2", 2, 600);
    until("refused at once", || *status.lock().unwrap() == JobStatus::Failed).await;
    let status = one.submit("m1-20260101000000-3", 1, 1);
    until("the others go on", || *status.lock().unwrap() == JobStatus::Running).await;
    // 0.1 would refuse it for ever.
    let two = ours.master("m2");
    until("it takes part again", || ours.subscribed("m2") == 2).await;
    let status = one.submit("m1-20260101000000-4", 2, 1);
    until("both are drawn", || *status.lock().unwrap() == JobStatus::Running).await;
    until("it has its task", || two.fetched() == [fetch_task::Status::Ready]).await;
    let all = || {
        ["trainer_0", "trainer_1", "aggregator"]
            .iter()
            .all(|task| worker.times("m1-20260101000000-4", task) == 1)
    };
    until("all tasks run", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_deaf_since_the_coordinator_restarted_holds_up_nobody() {
    let mut ours = Ours::start(&["--party-lease", "1", "--settle", "0"]).await;
    let worker = ours.worker(8).await;
    let deaf = ours.master("m1");
    until("it takes part", || ours.subscribed("m1") == 1).await;
    ours.coordinator.kill_and_start().await;
    until("nobody tells it", || deaf.is_deaf()).await;
    let other = ours.master("m2");
    until("it takes part", || ours.subscribed("m2") == 1).await;
    let status = other.submit("m2-20260101000000-1", 1, 1);
    until("it needs no deaf one", || *status.lock().unwrap() == JobStatus::Running).await;
    until("its task runs", || worker.times("m2-20260101000000-1", "trainer_0") == 1).await;
    assert!(deaf.offers().is_empty());
    // It can still propose to those who hear.
    let status = deaf.submit("m1-20260101000000-1", 1, 1);
    until("the other one takes it", || *status.lock().unwrap() == JobStatus::Running).await;
    assert!(!deaf.is_mute());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_knows_only_enroll_comes_and_goes() {
    let ours = Ours::start(&["--settle", "0"]).await;
    let mut worker = ours.worker(2).await;
    let twin = OldWorker::start("w", &ours.manager.address, 2, i32::from(free_ports(10)));
    until("the name is taken while it lives", || twin.ended().is_some()).await;
    assert!(!twin.is_enrolled());
    let master = ours.master("m1");
    until("it takes part", || ours.subscribed("m1") == 1).await;
    master.submit("m1-20260101000000-1", 1, 1);
    until("its tasks run", || worker.ran().len() == 2).await;
    worker.kill();
    until("it is gone", || ours.manager.log().contains("worker connection lost")).await;
    // The name is free at once; 0.1 refuses it for 5 to 10 s.
    let worker = ours.worker(2).await;
    master.submit("m1-20260101000000-2", 1, 1);
    until("its tasks run", || worker.ran().len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_a_worker_of_0_1_drops_gives_its_slot_back_when_it_is_cancelled() {
    let ours = Ours::start(&[]).await;
    let worker = ours.worker(1).await;
    let mut manager = ClusterManagerClient::new(channel(&ours.manager.address).unwrap());
    let task = |id: &str, task_type: &str| task_submit::Req {
        task: Some(Task {
            job_id: "j".into(),
            task_id: id.into(),
            task_type: task_type.into(),
            ..Task::default()
        }),
    };
    for (id, task_type) in [("unknown", "nobody_knows_it"), ("known", "dummy_trainer")] {
        let reply = within("submit", manager.task_submit(task(id, task_type))).await.unwrap();
        assert_eq!(reply.into_inner().status(), task_submit::Status::Success);
    }
    until("it is dropped without a report", || worker.dropped() == 1).await;
    assert_eq!(worker.ran().len(), 0, "the slot is held");
    let cancel = CancelTaskRequest {
        job_id: "j".into(),
        task_id: "unknown".into(),
        reason: "nobody runs it".into(),
    };
    let mut ours = ClusterClient::new(channel(&ours.manager.address).unwrap());
    assert!(within("cancel", ours.cancel_task(cancel)).await.unwrap().into_inner().known);
    until("the next one has the slot", || worker.times("j", "known") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_that_a_master_of_0_1_never_used_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new();
    let settings = fedbroker::cluster::Settings {
        data_dir: dir.path().to_owned(),
        rules: Rules {
            unbound_ms: 1000,
            ..Rules::default()
        },
        silence: Duration::from_secs(10),
        keep: fedbroker::engine::retention::Keep::new(30, 1_000_000),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = fedbroker::cluster::start(settings, listener, &supervisor)
        .await
        .unwrap()
        .to_string();
    let worker = OldWorker::start("w", &address, 20, i32::from(free_ports(10)));
    until("it is enrolled", || worker.is_enrolled()).await;
    let mut manager = ClusterManagerClient::new(channel(&address).unwrap());
    let mut require = async || {
        let request = task_resource_require::Req { num_endpoints: 5 };
        within("require", manager.task_resource_require(request))
            .await
            .unwrap()
            .into_inner()
    };
    // Its jobs end before they come to a task: a compile step that fails, a proposal that is refused.
    let mut refused = false;
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        let lease = require().await;
        refused |= lease.status() == task_resource_require::Status::Failed;
        endpoints.extend(lease.endpoints);
    }
    assert!(refused, "ten ports are not enough for three");
    let given = endpoints.len();
    endpoints.sort();
    endpoints.dedup();
    assert_eq!(endpoints.len(), given, "none is given twice");
    within("they come back", async {
        while require().await.status() == task_resource_require::Status::Failed {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    supervisor.stop();
}

/// The twin is as bad as it should be: without its faults the tests of this directory show nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_twins_are_as_0_1_was_seen_to_be() {
    let coordinator = OldCoordinator::start("127.0.0.1:0").await;
    let manager = crate::old::manager::OldManager::start("127.0.0.1:0").await;
    let worker = OldWorker::start("w", &manager.address, 4, i32::from(free_ports(10)));
    until("it is enrolled", || worker.is_enrolled()).await;
    let mut first = OldMaster::start("m1", &coordinator.address, &manager.address);
    until("it takes part", || coordinator.is_enrolled("m1")).await;
    let status = first.submit("m1-20260101000000-1", 1, 1);
    until("its tasks run", || worker.ran().len() == 2).await;
    assert_eq!(*status.lock().unwrap(), JobStatus::Running);
    // The proposer dies in the window, which then never closes; the restarted one is deaf.
    first.submit("m1-20260101000000-2", 1, 1);
    until("it is proposed", || coordinator.proposed("m1-20260101000000-2") == 1).await;
    first.kill();
    let again = OldMaster::start("m1", &coordinator.address, &manager.address);
    until("it is deaf", || again.is_deaf()).await;
    // One slot of four is left, and two endpoints want two.
    let status = again.submit("m1-20260101000000-3", 1, 1);
    until("it is refused", || manager.leases().len() == 3).await;
    assert_eq!(*status.lock().unwrap(), JobStatus::Waiting);
    assert_eq!(manager.leases()[2].status(), task_resource_require::Status::Failed);
    assert!(coordinator.is_open("m1-20260101000000-2"));
    assert_eq!(coordinator.leaves(), 0);
    assert!(again.offers().is_empty() && !again.is_mute());
    // The same task again is executed again.
    let task = manager.submitted()[1].clone();
    let mut client = ClusterManagerClient::new(channel(&manager.address).unwrap());
    let (job, id) = (task.job_id.clone(), task.task_id.clone());
    within("submit", client.task_submit(task_submit::Req { task: Some(task) }))
        .await
        .unwrap();
    until("twice", || worker.times(&job, &id) == 2).await;
}
