//! SIGKILL and a start with the same arguments, row by row of the recovery table: the master's own side.
//!
//! No test hopes for a moment: each waits until the phase has been reached, and holds it there with a gate, a window or a role that is away.

use crate::gated::{self, Gated, alive, until};
use crate::support::{Client, Federation};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn program(workers: u32, wait_s: u32) -> Value {
    json!({ "program": gated::NAME, "proposal_wait_time": wait_s, "worker_num": workers })
}

fn dummy() -> Value {
    json!({ "worker_num": 0 })
}

async fn in_state(client: &Client, job: &str, state: &str) -> Value {
    client.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == state).await
}

async fn succeeds(client: &Client, job: &str) {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}");
}

/// What the last start of a master found.
async fn found(client: &Client, what: &str) -> u64 {
    let (_, status) = client.get("/api/v1/status").await.unwrap();
    status["recovery"]["records"][what].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_was_answered() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    federation.parties[0].master.start().await;
    Gated::install(&federation);
    let client = federation.client(0);
    let job = client.submit("program", &program(1, 1)).await;
    federation.parties[0].master.kill_and_start().await;
    assert_eq!(found(&client, "job leasing").await, 1);
    let (_, again) = client.get(&format!("/api/v1/jobs/{job}")).await.unwrap();
    assert_eq!(again["state"], "leasing", "{again}");
    federation.start_all().await;
    succeeds(&client, &job).await;
    // An ended job is history, and history is kept.
    federation.parties[0].master.kill_and_start().await;
    succeeds(&client, &job).await;
    let (_, answer) = client.post("/query", &json!({ "job_id": job })).await.unwrap();
    assert_eq!(answer["status"], "_JobStatus.SUCCESS");
}

/// Requests in flight at the kill: answered ones are there, the others whole or not at all, and no id is given twice.
#[tokio::test(flavor = "multi_thread")]
async fn submit_was_not_answered() {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let client = client.clone();
        requests.spawn(async move {
            let mut answered = Vec::new();
            let request = json!({ "job_type": "dummy", "job_config": dummy() });
            while let Ok((200, body)) = client.post("/submit", &request).await {
                answered.push(body["job_id"].as_str().unwrap().to_owned());
            }
            answered
        });
    }
    let last = client.submit("dummy", &dummy()).await;
    succeeds(&client, &last).await;
    federation.parties[0].master.kill().await;
    let mut answered = vec![last];
    answered.extend(requests.join_all().await.into_iter().flatten());
    federation.parties[0].master.start().await;
    let next = client.submit("dummy", &dummy()).await;
    let number = |job: &str| job.rsplit_once('-').unwrap().1.parse::<u64>().unwrap();
    let numbers: BTreeSet<u64> = answered.iter().map(|job| number(job)).collect();
    assert_eq!(numbers.len(), answered.len(), "an id was given twice");
    assert!(
        numbers.iter().all(|known| *known < number(&next)),
        "a number was given again: {next}"
    );
    for job in answered.iter().chain([&next]) {
        succeeds(&client, job).await;
    }
    // The jobs nobody was told of carry the numbers in between, and a stamp of about the last answer.
    let parse = |job: &str| {
        let digits = job.rsplit('-').nth(1).unwrap();
        jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", digits).unwrap()
    };
    let from = answered.iter().map(|job| parse(job)).max().unwrap();
    let mut untold = 0;
    for number in (1..number(&next)).filter(|number| !numbers.contains(number)) {
        for seconds in -1..=2 {
            let at = from.checked_add(jiff::Span::new().seconds(seconds)).unwrap();
            let job = format!("p1-{}-{number}", at.strftime("%Y%m%d%H%M%S"));
            let (code, _) = client.get(&format!("/api/v1/jobs/{job}")).await.unwrap();
            if code == 200 {
                succeeds(&client, &job).await;
                untold += 1;
            }
        }
    }
    println!("{} jobs answered, {untold} accepted without an answer", answered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn compiling() {
    let mut federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("compile");
    let client = federation.client(0);
    let job = client.submit("program", &program(1, 1)).await;
    gated.until_runs(&job, "compile", 1).await;
    federation.parties[0].master.kill().await;
    let pid = gated.runs(&job, "compile")[0].pid.clone();
    until("the compile step ends with its master", || !alive(&pid)).await;
    federation.parties[0].master.start().await;
    assert_eq!(found(&client, "job preparing").await, 1);
    gated.until_runs(&job, "compile", 2).await;
    gated.open("compile");
    // The program refuses to run in a directory that holds its leftovers.
    succeeds(&client, &job).await;
    assert_eq!(gated.runs(&job, "compile").len(), 2);
    assert_eq!(gated.runs(&job, "aggregator").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proposal_call_is_out() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let job = client.submit("program", &program(2, 3)).await;
    let offered = format!("{job}-coo_1");
    let other = &federation.parties[1].master;
    until("the other party is offered the job", || other.log().contains(&offered)).await;
    federation.parties[0].master.kill_and_start().await;
    assert_eq!(found(&client, "job proposing").await, 1);
    succeeds(&client, &job).await;
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.ran(&job).len(), 4, "{:?}", gated.ran(&job));
    let log = federation.parties[1].master.log();
    assert!(!log.contains(&format!("{job}-coo_2")), "it was proposed twice");
    // One proposal in all: the next job's is the second.
    let next = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    succeeds(&client, &next).await;
    assert!(federation.parties[1].master.log().contains(&format!("{next}-coo_2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn some_local_tasks_are_sent_some_not() {
    let mut federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("aggregator");
    let client = federation.client(0);
    let sent = client.submit("program", &program(1, 1)).await;
    gated.until_runs(&sent, "aggregator", 1).await;
    gated.until_runs(&sent, "trainer", 1).await;
    federation.parties[0].manager.kill().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(client.submit("dummy", &dummy()).await);
    }
    for job in &waiting {
        in_state(&client, job, "running").await;
    }
    federation.parties[0].master.kill_and_start().await;
    assert_eq!(found(&client, "task queued").await, 3);
    federation.parties[0].manager.start().await;
    gated.open("aggregator");
    for job in waiting.iter().chain([&sent]) {
        succeeds(&client, job).await;
    }
    assert_eq!(gated.ran(&sent).len(), 3, "{:?}", gated.ran(&sent));
}

/// The manager is stopped as a whole, so the call is neither answered nor refused. It may still read it once it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn task_submit_is_out() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    gated.shut("compile");
    let client = federation.client(0);
    let job = client.submit("program", &program(1, 1)).await;
    gated.until_runs(&job, "compile", 1).await;
    federation.parties[0].manager.signal(Signal::STOP);
    gated.open("compile");
    in_state(&client, &job, "running").await;
    federation.parties[0].master.kill().await;
    federation.parties[0].manager.signal(Signal::CONT);
    federation.parties[0].master.start().await;
    succeeds(&client, &job).await;
    assert_eq!(gated.runs(&job, "aggregator").len(), 1);
    assert_eq!(gated.runs(&job, "trainer").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_run() {
    let mut federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    gated.shut("aggregator");
    let client = federation.client(0);
    let job = client.submit("program", &program(1, 1)).await;
    gated.until_runs(&job, "trainer", 1).await;
    gated.until_runs(&job, "aggregator", 1).await;
    federation.parties[0].master.kill_and_start().await;
    assert_eq!(found(&client, "job running").await, 1);
    gated.open("trainer");
    // This one ends while its master is away.
    federation.parties[0].master.kill().await;
    gated.open("aggregator");
    let pids: Vec<_> = gated.ran(&job).into_iter().map(|ran| ran.pid).collect();
    until("all tasks have ended", || pids.iter().all(|pid| !alive(pid))).await;
    federation.parties[0].master.start().await;
    succeeds(&client, &job).await;
    assert_eq!(gated.ran(&job).len(), 3, "{:?}", gated.ran(&job));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_of_another_party_is_being_fetched() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let job = client.submit("program", &program(2, 3)).await;
    let offered = format!("{job}-coo_1");
    let other = &mut federation.parties[1].master;
    until("the other party is offered the job", || other.log().contains(&offered)).await;
    other.kill_and_start().await;
    succeeds(&client, &job).await;
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.runs(&job, "trainer").len(), 2);
    // One that comes back after the close still gets its task.
    let job = client.submit("program", &program(2, 1)).await;
    let accepts = format!("p2 accepts {job}-coo_2");
    let coordinator = &federation.coordinator;
    until("the other party accepts the job", || coordinator.log().contains(&accepts)).await;
    federation.parties[1].master.kill().await;
    succeeds(&client, &job).await;
    federation.parties[1].master.start().await;
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.ran(&job).len(), 4, "{:?}", gated.ran(&job));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_task_is_durable() {
    let mut federation = Federation::start(2).await;
    let gated = Gated::install(&federation);
    federation.parties[1].manager.kill().await;
    let client = federation.client(0);
    let job = client.submit("program", &program(2, 1)).await;
    succeeds(&client, &job).await;
    let other = &mut federation.parties[1];
    until("the other party has fetched its task", || other.master.log().contains("won a task")).await;
    other.master.kill_and_start().await;
    assert_eq!(found(&Client::new(&other.master.address), "task queued").await, 1);
    other.manager.start().await;
    gated.until_runs(&job, "trainer", 2).await;
    assert_eq!(gated.ran(&job).len(), 4, "{:?}", gated.ran(&job));
}

/// A party that is hung, not dead, and is started anew with nothing left of its data.
#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_still_knows_the_party() {
    let mut federation = Federation::start(2).await;
    let hung = &mut federation.parties[1].master;
    hung.signal(Signal::STOP);
    let data = federation.dir.path().join("p2-anew").to_string_lossy().into_owned();
    let args = [
        "master",
        "--party-id=p2",
        "--submitter-port",
        "0",
        "--cluster-address",
        &federation.parties[1].manager.address,
        "--coordinator-address",
        &federation.coordinator.address,
        "--data-dir",
        &data,
    ];
    let mut anew = crate::support::Role::new("p2-anew", &federation.dir.path().join("logs"), &args);
    anew.start().await;
    let other = Client::new(&anew.address);
    // As long as the coordinator has reason to believe that the other process lives, it keeps the party for that one.
    let told = |status: &Value| status["coordinator"]["trouble"] == "another process takes part under this party id";
    other.until("/api/v1/status", told).await;
    federation.parties[1].master.kill().await;
    other
        .until("/api/v1/status", |status| status["coordinator"]["subscribed"] == true)
        .await;
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 1 })).await;
    succeeds(&client, &job).await;
    until("the new master has its task", || anew.log().contains("won a task")).await;
}
