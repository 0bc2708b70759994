//! A job at three parties that its initiator does not want any more: what runs of it ends everywhere, whoever is away or is killed meanwhile; and a
//! purge leaves nothing of the other parties.

use super::{closed, made, program, with};
use crate::gated::{self, Gated};
use crate::support::{Client, Federation, beginning, in_ms};
use fedbroker::engine::reader::Reader;
use fedbroker::machine::Machine;
use fedbroker::machine::coordinator::{self, Coordinator};
use fedbroker::machine::master::{self, Master};
use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::SledStore;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;

const PARTIES: usize = 3;

/// How many parties of a job are in a state.
fn count(job: &Value, state: &str) -> usize {
    let parties = job["parties"].as_array().into_iter().flatten();
    parties.filter(|party| party["state"] == state).count()
}

async fn until_all(client: &Client, job: &str, state: &str) -> Value {
    let path = format!("/api/v1/jobs/{job}");
    client.until(&path, |job| count(job, state) == PARTIES).await
}

async fn cancel(client: &Client, job: &str) {
    let (path, body) = (format!("/api/v1/jobs/{job}:cancel"), json!({ "reason": "enough" }));
    let (status, body) = client.post(&path, &body).await.unwrap();
    assert_eq!((status, &body["state"]), (200, &json!("cancelled")), "{body}");
}

/// Trainers of a job whose processes run.
fn running(gated: &Gated, job: &str) -> usize {
    gated.runs(job, "trainer").iter().filter(|run| gated::alive(&run.pid)).count()
}

async fn stops(gated: &Gated, job: &str) {
    gated::until(&format!("no process of {job} runs"), || running(gated, job) == 0).await;
    assert_eq!(gated.runs(job, "trainer").len(), PARTIES, "each began once");
}

/// The keys that a role's store has. No process may have it open.
fn keys<M: Machine>(dir: &Path, role: &str) -> Vec<M::Key> {
    let _alone = beginning();
    let directory = Directory::open(dir, role, [0; 16]).unwrap();
    let reader = Reader::<M>::new(Arc::new(SledStore::open(&directory).unwrap()));
    let mut keys = Vec::new();
    let each = |key, _| {
        keys.push(key);
        true
    };
    reader.scan(b"", each).unwrap();
    keys
}

/// The initiator dies after the cancellation is durable and before anybody is told; a release build has no such point, and it is killed after the answer.
async fn killed_before_it_tells(federation: &mut Federation, client: &Client, job: &str) {
    let master = &mut federation.parties[0].master;
    if cfg!(debug_assertions) {
        master.kill().await;
        master.dies_at = Some("master.withdraw.leaving".to_owned());
        master.start().await;
        // The answer is on its way when it dies.
        drop(
            client
                .post(&format!("/api/v1/jobs/{job}:cancel"), &json!({ "reason": "enough" }))
                .await,
        );
        assert_eq!(master.ended().await.signal(), Some(9), "{}", master.log());
        master.dies_at = None;
        master.start().await;
    } else {
        cancel(client, job).await;
        master.kill_and_start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_party_goes_on_with_a_job_that_is_not_wanted_any_more() {
    let mut federation = Federation::start(PARTIES).await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    gated.shut("aggregator");
    let client = federation.client(0);
    let body = program(u32::try_from(PARTIES).unwrap(), 1);
    let jobs = join_all((0..4).map(|_| made(&client, &body))).await;
    let late = made(&client, &with(body.clone(), &json!({ "deadline": in_ms(20_000) }))).await;
    for job in jobs.iter().chain([&late]) {
        gated.until_runs(job, "trainer", PARTIES).await;
        until_all(&client, job, "running").await;
    }
    let [plain, killed, away, purged] = jobs.as_slice() else { panic!() };

    cancel(&client, plain).await;
    stops(&gated, plain).await;
    until_all(&client, plain, "cancelled").await;

    killed_before_it_tells(&mut federation, &client, killed).await;
    stops(&gated, killed).await;
    until_all(&client, killed, "cancelled").await;

    // The coordinator is away; one of the jobs is even purged before it hears of anything.
    federation.coordinator.kill().await;
    cancel(&client, away).await;
    federation.parties[0].master.kill_and_start().await;
    cancel(&client, purged).await;
    closed(&client, purged).await;
    let path = format!("/api/v1/jobs/{purged}");
    assert_eq!(client.send("DELETE", &path, &[], &json!({})).await.unwrap().0, 204);
    for job in [away, purged] {
        gated::until("its own tasks end", || running(&gated, job) == PARTIES - 1).await;
    }
    federation.coordinator.start().await;
    for job in [away, purged] {
        stops(&gated, job).await;
    }
    until_all(&client, away, "cancelled").await;

    let ended = client.ended(&late).await;
    let reason = "the deadline passed while the job was running";
    assert_eq!((&ended["state"], &ended["reason"]), (&json!("failed"), &json!(reason)), "{ended}");
    stops(&gated, &late).await;
    until_all(&client, &late, "cancelled").await;

    for job in [plain, killed, away, &late] {
        closed(&client, job).await;
        let path = format!("/api/v1/jobs/{job}");
        assert_eq!(client.send("DELETE", &path, &[], &json!({})).await.unwrap().0, 204);
    }
    federation.parties[0].master.kill().await;
    let left = keys::<Master>(&federation.dir.path().join("p1-master"), "master");
    let of_jobs = |key: &&master::Key| {
        use master::Key;
        matches!(key, Key::Announced(_) | Key::Peer(..) | Key::Withdrawal(_) | Key::Job(_))
    };
    assert_eq!(left.iter().filter(of_jobs).collect::<Vec<_>>(), Vec::<&master::Key>::new());
    federation.coordinator.kill().await;
    let left = keys::<Coordinator>(&federation.dir.path().join("coordinator"), "coordinator");
    let orders = left.iter().filter(|key| matches!(key, coordinator::Key::Order(..)));
    assert_eq!(orders.count(), 0, "every order was met");
}
