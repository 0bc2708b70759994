//! The master, killed while users cancel, hold, release, run again and remove jobs, and while the hours of jobs come. What goes by age is in
//! `retention`.

use super::master::{Scenario, every_point};
use super::paper::row_of;
use super::{at_rest, died, dies_again, open_of_master, skipped, start_again, start_doomed};
use crate::federation::remains::{History, PartyRemains};
use crate::support::{Client, DEADLINE, Federation, in_ms};
use fedbroker::machine::cluster::records::TaskState as ClusterState;
use fedbroker::machine::cluster::{self, Cluster};
use fedbroker::machine::ids::JobId;
use fedbroker::machine::master::records::{Job, JobState, Task, TaskState};
use fedbroker::machine::master::{Event, Key, Master, Record};
use fedbroker::machine::outcome::End;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

struct Stage {
    federation: Federation,
    client: Client,
}

impl Stage {
    /// Everything runs.
    async fn set() -> Self {
        let federation = Federation::start(1).await;
        let client = federation.client(0);
        Self { federation, client }
    }

    /// A new job, of a master that lives.
    async fn made(&self, body: &Value) -> String {
        let (status, job) = self.client.post("/api/v1/jobs", body).await.unwrap();
        assert_eq!(status, 201, "{job}");
        job["job_id"].as_str().unwrap().to_owned()
    }

    async fn until(&self, id: &str, state: &str) -> Value {
        self.client
            .until(&format!("/api/v1/jobs/{id}"), |job| job["state"].as_str() == Some(state))
            .await
    }

    async fn state(&self, id: &str) -> String {
        let (status, job) = self.client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        assert_eq!(status, 200, "{job}");
        job["state"].as_str().unwrap().to_owned()
    }

    /// What a user does, to a master that lives.
    async fn act(&self, id: &str, action: &str) -> Value {
        let (status, job) = self.client.post(&format!("/api/v1/jobs/{id}:{action}"), &json!({})).await.unwrap();
        assert_eq!(status, 200, "{action}: {job}");
        job
    }

    /// The master dies at a point on the way of a request, and starts again. The answer's status, if one came.
    async fn killed(&mut self, point: &str, method: &str, path: &str, body: &Value) -> Option<u16> {
        let master = &mut self.federation.parties[0].master;
        master.kill().await;
        let mut answer = None;
        if start_doomed(master, point).await {
            let headers = [("idempotency-key", point)];
            let sent = self.client.send(method, path, &headers, body);
            let (sent, ()) = tokio::join!(sent, died(master));
            answer = sent.ok().map(|(status, _)| status);
        }
        if matches!(
            point,
            "master.wake_at.leaving" | "master.deadline_at.leaving" | "master.forget.leaving" | "master.cancel.leaving"
        ) {
            dies_again(master).await;
        }
        start_again(master).await;
        answer
    }

    async fn killed_by(&mut self, point: &str, id: &str, action: &str) -> Option<u16> {
        self.killed(point, "POST", &format!("/api/v1/jobs/{id}:{action}"), &json!({})).await
    }

    /// What both leave once nothing is under way; both run again afterwards.
    async fn left(&mut self) -> PartyRemains {
        let dir = self.federation.dir.path().to_owned();
        let party = &mut self.federation.parties[0];
        let master = at_rest(&mut party.master, &dir.join("p1-master"), "master", open_of_master).await;
        let open = super::cluster::open_of_manager;
        let cluster = at_rest(&mut party.manager, &dir.join("p1-manager"), "cluster-manager", open).await;
        start_again(&mut party.manager).await;
        start_again(&mut party.master).await;
        let id = party.id.clone();
        PartyRemains { id, master, cluster }
    }
}

fn job<'a>(history: &'a History<Master>, id: &str) -> Option<&'a Job> {
    match history.records.get(&Key::Job(JobId::parse(id).unwrap())) {
        Some(Record::Job(job)) => Some(job),
        _ => None,
    }
}

/// Its tasks, at the master.
fn tasks_of(history: &History<Master>, id: &str) -> Vec<Task> {
    let task = |record: &Record| match record {
        Record::Task(task) if task.key.job.as_str() == id => Some(task.clone()),
        _ => None,
    };
    history.records.values().filter_map(task).collect()
}

/// Taken: nothing of it is there, and it can be asked for again. Otherwise it is there, answered or not.
fn lasts(point: &str, answer: Option<u16>) -> bool {
    let taken = point.ends_with(".taken");
    assert!(
        !point.ends_with(".taken") && !point.ends_with(".durable") || answer != Some(200),
        "it was answered before {point}"
    );
    !taken
}

/// A job whose task cannot have reached the manager, or one whose task runs.
async fn cancelled(stage: &mut Stage, point: &str, running: bool) {
    let manager = &mut stage.federation.parties[0].manager;
    if !running {
        manager.kill().await;
    }
    let before = stage.federation.parties[0].worker.log().len();
    let body = json!({ "job_type": "dummy", "job_config": { "worker_num": 0, "sleep_ms": 3_600_000 } });
    let id = stage.made(&body).await;
    stage.until(&id, "running").await;
    if running {
        let deadline = Instant::now() + DEADLINE;
        while !stage.federation.parties[0].worker.log()[before..].contains(&id) {
            assert!(Instant::now() < deadline, "the task of {id} never began");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let answer = stage.killed_by(point, &id, "cancel").await;
    if lasts(point, answer) {
        assert_eq!(stage.state(&id).await, "cancelled", "after {point}");
    } else {
        assert_eq!(stage.state(&id).await, "running", "after {point}");
        assert_eq!(stage.act(&id, "cancel").await["state"], "cancelled");
    }
    if !running {
        start_again(&mut stage.federation.parties[0].manager).await;
    }
    let left = stage.left().await;
    let state = &job(&left.master, &id).unwrap().state;
    assert!(matches!(state, JobState::Cancelled { .. }), "after {point}: {state:?}");
    let tasks = tasks_of(&left.master, &id);
    assert_eq!(tasks.len(), 1);
    for task in tasks {
        let ended = |state: &TaskState| matches!(state, TaskState::Ended(outcome) if outcome.end == End::Cancelled);
        assert!(ended(&task.state), "after {point}: {task:?}");
        let there = left.cluster_tasks().find(|(key, _)| **key == task.key);
        let (_, there) = there.expect("the manager keeps that it must not start");
        assert!(
            matches!(&there.state, ClusterState::Ended(outcome) if outcome.end == End::Cancelled),
            "after {point}: {there:?}"
        );
        assert_eq!(there.is_barred(), !running, "after {point}: {there:?}");
        let told = |event: &&Event| matches!(event, Event::TaskEnded { key, .. } if *key == task.key);
        assert_eq!(left.master.events.iter().filter(told).count(), 1, "after {point}: ended once");
        let begun = |event: &&cluster::Event| matches!(event, cluster::Event::TaskAssigned { key, .. } if *key == task.key);
        assert_eq!(
            left.cluster.events.iter().filter(begun).count(),
            usize::from(running),
            "after {point}"
        );
    }
}

/// A job that waits for endpoints of a manager that is away.
async fn held(stage: &mut Stage, point: &str, release: bool) {
    stage.federation.parties[0].manager.kill().await;
    let id = stage
        .made(&json!({ "job_type": "dummy", "job_config": { "worker_num": 0, "endpoints": 1 } }))
        .await;
    if release {
        stage.act(&id, "hold").await;
    }
    let action = if release { "release" } else { "hold" };
    let answer = stage.killed_by(point, &id, action).await;
    let there = lasts(point, answer);
    assert_eq!(stage.state(&id).await == "held", there != release, "after {point}");
    if !there {
        stage.act(&id, action).await;
    }
    start_again(&mut stage.federation.parties[0].manager).await;
    if release {
        stage.until(&id, "success").await;
        return;
    }
    // It stays held, with nothing leased, however long; then it can go on.
    let dir = stage.federation.dir.path().join("p1-manager");
    let returned = |history: &History<Master>| {
        let job = job(history, &id).unwrap();
        assert_eq!(job.state, JobState::Held, "after {point}");
        job.returning.then(|| "its endpoints go back".to_owned()).into_iter().collect()
    };
    let master_dir = stage.federation.dir.path().join("p1-master");
    let party = &mut stage.federation.parties[0];
    at_rest(&mut party.master, &master_dir, "master", returned).await;
    party.manager.kill().await;
    let manager = History::<Cluster>::read(&dir, "cluster-manager");
    assert_eq!(super::cluster::open_of_manager(&manager), Vec::<String>::new(), "after {point}");
    start_again(&mut party.manager).await;
    start_again(&mut party.master).await;
    assert_eq!(stage.state(&id).await, "held", "after {point}");
    stage.act(&id, "release").await;
    stage.until(&id, "success").await;
}

/// The hour of a job comes although the master was not there when it was due.
async fn woken(stage: &mut Stage, point: &str) {
    let body = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 }, "not_before": in_ms(1_500) });
    stage.killed(point, "POST", "/api/v1/jobs", &body).await;
    let left = stage.left().await;
    let last = left.jobs().max_by_key(|job| job.number);
    let job = last.expect("it was durable before its hour was waited for");
    assert_eq!(job.state, JobState::Succeeded, "after {point}");
    let due = job.spec.not_before.unwrap();
    let woken = left.master.events.iter().filter_map(|event| match event {
        Event::JobWoken { job: id, at } if *id == job.id => Some(*at),
        _ => None,
    });
    let woken: Vec<_> = woken.collect();
    assert!(
        woken.len() == 1 && woken[0] >= due,
        "after {point}: due at {due:?}, woken at {woken:?}"
    );
}

/// A job whose endpoints do not come: their manager is away until the deadline has passed.
async fn too_late(stage: &mut Stage, point: &str) {
    stage.federation.parties[0].manager.kill().await;
    let deadline = in_ms(1_500);
    let config = json!({ "worker_num": 0, "endpoints": 1 });
    let body = json!({ "job_type": "dummy", "job_config": config, "deadline": deadline, "labels": { "of": point } });
    stage.killed(point, "POST", "/api/v1/jobs", &body).await;
    let failed = |list: &Value| list["items"][0]["state"] == "failed";
    stage.client.until(&format!("/api/v1/jobs?label=of:{point}"), failed).await;
    start_again(&mut stage.federation.parties[0].manager).await;
    let left = stage.left().await;
    let of_point: Vec<_> = left
        .jobs()
        .filter(|job| job.spec.labels.get("of").is_some_and(|of| of == point))
        .collect();
    let [job] = of_point.as_slice() else {
        panic!("after {point}: {of_point:?}")
    };
    let JobState::Failed(failure) = &job.state else {
        panic!("after {point}: {job:?}")
    };
    let why = format!("{failure:?}");
    assert!(
        why.contains("the deadline passed while the job was leasing"),
        "after {point}: {why}"
    );
    assert!(job.changed_at >= job.spec.deadline.unwrap(), "after {point}");
}

/// A job that has succeeded.
async fn over(stage: &Stage) -> String {
    let id = stage.made(&json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } })).await;
    stage.until(&id, "success").await;
    id
}

async fn purged(stage: &mut Stage, point: &str) {
    let id = over(stage).await;
    assert_eq!(tasks_of(&stage.left().await.master, &id).len(), 1);
    let path = format!("/api/v1/jobs/{id}");
    let answer = stage.killed(point, "DELETE", &path, &json!({})).await;
    if point.starts_with("master.purge.") {
        assert_eq!(answer, None, "it was answered before {point}");
    }
    stage.federation.parties[0].master.kill().await;
    let dir = stage.federation.dir.path().join("p1-master");
    let found = History::<Master>::read(&dir, "master");
    let whole = usize::from(point == "master.purge.taken");
    let there = (usize::from(job(&found, &id).is_some()), tasks_of(&found, &id).len());
    assert_eq!(there, (whole, whole), "after {point}: whole or not at all");
    start_again(&mut stage.federation.parties[0].master).await;
    if whole == 1 {
        assert_eq!(stage.client.send("DELETE", &path, &[], &json!({})).await.unwrap().0, 204);
    }
    let left = stage.left().await;
    let kept = (job(&left.master, &id), tasks_of(&left.master, &id));
    assert_eq!(kept, (None, Vec::new()), "after {point}");
    let at_manager = left.cluster_tasks().filter(|(key, _)| key.job.as_str() == id).count();
    assert_eq!(at_manager, 0, "after {point} the manager still has tasks of it");
    let purged = |event: &&Event| matches!(event, Event::JobPurged { job, .. } if job.as_str() == id);
    let forgotten = |event: &&Event| matches!(event, Event::JobForgotten { job } if job.as_str() == id);
    let events = &left.master.events;
    let times = (events.iter().filter(purged).count(), events.iter().filter(forgotten).count());
    assert_eq!(times, (1, 1), "after {point}: each once");
}

async fn run_again(stage: &mut Stage, point: &str) {
    let id = over(stage).await;
    let path = format!("/api/v1/jobs/{id}:rerun");
    assert_eq!(
        stage.killed(point, "POST", &path, &json!({})).await,
        None,
        "it was answered before {point}"
    );
    // The same key: made now, or found.
    let made = if point.ends_with(".taken") { 201 } else { 200 };
    let (status, again) = stage
        .client
        .send("POST", &path, &[("idempotency-key", point)], &json!({}))
        .await
        .unwrap();
    assert_eq!(status, made, "after {point}: {again}");
    stage.until(again["job_id"].as_str().unwrap(), "success").await;
    let left = stage.left().await;
    let children = left
        .jobs()
        .filter(|job| job.provenance.parent.as_ref().is_some_and(|parent| parent.as_str() == id));
    assert_eq!(children.count(), 1, "after {point}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_whose_jobs_are_controlled() {
    if skipped() {
        return;
    }
    let mut stage = Stage::set().await;
    for (point, scenario) in every_point() {
        match scenario {
            Scenario::Cancelled => {
                cancelled(&mut stage, &point, false).await;
                cancelled(&mut stage, &point, true).await;
            }
            Scenario::Held => held(&mut stage, &point, false).await,
            Scenario::Released => held(&mut stage, &point, true).await,
            Scenario::Woken => woken(&mut stage, &point).await,
            Scenario::TooLate => too_late(&mut stage, &point).await,
            Scenario::Purged => purged(&mut stage, &point).await,
            Scenario::RunAgain => run_again(&mut stage, &point).await,
            _ => continue,
        }
        println!("{point}: {}", row_of(&point));
    }
    stage.left().await.check_replay();
}
