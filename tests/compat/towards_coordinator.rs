//! Our master at a coordinator of FedVision 0.1: one test for each thing that coordinator does to a client.

use crate::gated::{self, Gated};
use crate::old::coordinator::{Call, OldCoordinator};
use crate::old::{until, within};
use crate::support::{Client, Federation};
use fedbroker::engine::reader::Reader;
use fedbroker::machine::ids::JobId;
use fedbroker::machine::master::Master;
use fedbroker::machine::master::federation::Announced;
use fedbroker::master::peers::Peers;
use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::SledStore;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{leave, subscribe};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// A federation of ours around a coordinator of 0.1.
struct Around {
    coordinator: OldCoordinator,
    ours: Federation,
}

impl Around {
    async fn start(parties: usize, master_args: &[&str]) -> Self {
        let mut ours = Federation::planned(parties, &[], master_args);
        let coordinator = OldCoordinator::start(&ours.coordinator.address).await;
        let starting = ours.parties.iter_mut().map(|party| async {
            tokio::join!(party.manager.start(), party.worker.start(), party.master.start());
        });
        futures_util::future::join_all(starting).await;
        ours.subscribed().await;
        Self { coordinator, ours }
    }

    /// A client of it that is no party of ours.
    async fn stranger(&self) -> CoordinatorClient<Channel> {
        let address = format!("http://{}", self.coordinator.address);
        CoordinatorClient::new(Endpoint::from_shared(address).unwrap().connect().await.unwrap())
    }

    /// A stranger who has subscribed as `ghost` and gave up before any answer: enrolled, and dead.
    async fn ghost(&self) -> CoordinatorClient<Channel> {
        let mut stranger = self.stranger().await;
        let request = subscribe::Req {
            party_id: "ghost".into(),
            job_types: vec!["dummy".into()],
            credential: String::new(),
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), stranger.subscribe(request)).await;
        until("it is enrolled", || self.coordinator.is_enrolled("ghost")).await;
        stranger
    }

    /// The calls since so many.
    fn calls_since(&self, count: usize) -> Vec<Call> {
        self.coordinator.calls().split_off(count)
    }
}

fn dummy(workers: u32, wait_s: u32) -> Value {
    json!({ "worker_num": workers, "proposal_wait_time": wait_s })
}

async fn submit(client: &Client, workers: u32, wait_s: u32) -> String {
    client.submit("dummy", &dummy(workers, wait_s)).await
}

async fn succeeds(client: &Client, job: &str) {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "success", "{ended}");
}

async fn fails(client: &Client, job: &str) -> String {
    let ended = client.ended(job).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    ended["reason"].as_str().unwrap().to_owned()
}

/// `/api/v1/status` once what it says of the coordinator fits.
async fn standing(client: &Client, fits: impl Fn(&Value) -> bool) -> Value {
    client.until("/api/v1/status", |status| fits(&status["coordinator"])).await["coordinator"].clone()
}

/// A file for `--config` that lasts as long as the directory.
fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("master.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn subscribe_call(party: &str) -> Call {
    Call::Subscribe {
        party: party.to_owned(),
        types: ["paddle_fl", "program", "dummy"].map(str::to_owned).to_vec(),
        metadata: false,
    }
}

/// It cannot be told that a job is not wanted any more, and is not: not of one that others run, nor of one that it never heard of.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_is_no_matter_of_it() {
    let mut around = Around::start(2, &[]).await;
    let client = around.ours.client(0);
    let cancel = async |job: &str| {
        let (status, body) = client.post(&format!("/api/v1/jobs/{job}:cancel"), &json!({})).await.unwrap();
        assert_eq!((status, &body["state"]), (200, &json!("cancelled")), "{body}");
    };
    let slow = json!({ "worker_num": 2, "proposal_wait_time": 1, "sleep_ms": 600_000 });
    let running = client.submit("dummy", &slow).await;
    let state = |wanted: &'static str| move |job: &Value| job["state"] == wanted;
    client.until(&format!("/api/v1/jobs/{running}"), state("running")).await;
    let began = format!("task started task={running}/");
    until("the others run it", || around.ours.parties[1].worker.log().contains(&began)).await;
    cancel(&running).await;
    around.coordinator.kill();
    let early = submit(&client, 2, 1).await;
    client.until(&format!("/api/v1/jobs/{early}"), state("proposing")).await;
    cancel(&early).await;
    let calls = around.calls_since(0);
    around.coordinator.restart().await;
    // What was owed to a coordinator of which nothing was known is owed no more.
    let sent = |event: &Value| event["type"] == "withdrawal_sent" && event["job_id"] == early.as_str();
    let any = |page: &Value| page["items"].as_array().is_some_and(|items| items.iter().any(sent));
    let events = client.until("/api/v1/events?limit=500", any).await;
    let owed = events["items"].as_array().unwrap().iter();
    let owed: Vec<&Value> = owed.filter(|event| event["type"] == "withdrawal_owed").collect();
    assert!(owed.len() == 1 && owed[0]["job_id"] == early.as_str(), "{owed:?}");
    let calls = [calls, around.calls_since(0)].concat();
    assert!(!calls.iter().any(|call| matches!(call, Call::Federation(_))), "{calls:?}");
    assert!(!calls.contains(&Call::Proposal(early.clone())), "{calls:?}");
    let path = format!("/api/v1/jobs/{early}");
    assert_eq!(client.send("DELETE", &path, &[], &json!({})).await.unwrap().0, 204);
    let end = format!("task ended task={running}/");
    assert!(!around.ours.parties[1].worker.log().contains(&end), "the others were not told");
}

/// It tells nothing about the other parties, and nothing is made up.
#[tokio::test(flavor = "multi_thread")]
async fn how_the_other_parties_end_stays_unknown() {
    let mut around = Around::start(2, &[]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 2, 1).await;
    succeeds(&client, &job).await;
    let dir = around.ours.dir.path().to_owned();
    for (n, party) in around.ours.parties.iter_mut().enumerate() {
        party.master.kill().await;
        let _alone = crate::support::beginning();
        let directory = Directory::open(&dir.join(format!("p{}-master", n + 1)), "master", [0; 16]).unwrap();
        let reader = Reader::<Master>::new(Arc::new(SledStore::open(&directory).unwrap()));
        let peers = Peers::of(&reader, &JobId::parse(job.clone()).unwrap()).unwrap();
        assert_eq!(peers.parties, []);
        let announced = (n == 0).then(|| Announced {
            over: true,
            ..Announced::default()
        });
        let found = peers.announced.map(|found| Announced { last_event: 0, ..found });
        assert_eq!(found, announced, "p{}", n + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribe_is_silent_until_the_first_offer() {
    let around = Around::start(2, &[]).await;
    let client = around.ours.client(0);
    // No answer has come yet: what is said is what is known.
    let standing = standing(&client, |coordinator| coordinator["subscribed"] == true).await;
    assert_eq!(standing["trouble"], "a FedVision 0.1 coordinator does not confirm a subscription");
    let calls = around.coordinator.calls();
    // The other party's come in between. Who they are is not said to a peer that is not ours.
    assert_eq!(calls.first(), Some(&Call::Hello));
    assert!(calls.contains(&subscribe_call("p1")), "{calls:?}");
    let job = submit(&client, 2, 1).await;
    succeeds(&client, &job).await;
    // An offer is the confirmation.
    let confirmed = client.get("/api/v1/status").await.unwrap().1["coordinator"].clone();
    assert_eq!(confirmed, json!({ "subscribed": true, "trouble": null }));
    let calls = around.coordinator.calls();
    let subscribed = |call: &&Call| matches!(call, Call::Subscribe { .. });
    assert_eq!(
        calls.iter().filter(subscribed).count(),
        2,
        "nobody gave the silent call up: {calls:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_enroll_at_start_is_answered_with_leave_and_subscribe_at_once() {
    let mut around = Around::start(1, &[]).await;
    let before = around.coordinator.calls().len();
    let connections = around.coordinator.wire.connections.load(Ordering::Relaxed);
    around.ours.parties[0].master.kill_and_start().await;
    around.ours.subscribed().await;
    let again = || subscribe_call("p1");
    let calls = [Call::Hello, again(), Call::Leave("p1".into()), again()];
    assert_eq!(around.calls_since(before), calls, "nothing comes between Leave and Subscribe");
    assert_eq!(around.coordinator.wire.connections.load(Ordering::Relaxed), connections + 1);
    let client = around.ours.client(0);
    let job = submit(&client, 1, 1).await;
    succeeds(&client, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leave_that_hangs_is_said_plainly_and_everything_else_goes_on() {
    let mut around = Around::start(2, &[]).await;
    let (one, two) = (around.ours.client(0), around.ours.client(1));
    around.ours.parties[1].master.kill().await;
    // The offer to the dead stream is what burns the id.
    let job = submit(&one, 1, 1).await;
    succeeds(&one, &job).await;
    around.ours.parties[1].master.start().await;
    let burnt = |coordinator: &Value| {
        coordinator["trouble"]
            .as_str()
            .is_some_and(|why| why.contains("the party id is burnt"))
    };
    assert_eq!(standing(&two, burnt).await["subscribed"], false);
    assert!(around.ours.parties[1].master.log().contains("the party id is burnt"));
    let (code, ready) = two.get("/readyz").await.unwrap();
    // Jobs are taken: it is told, and fails nothing.
    assert!(code == 200 && ready.to_string().contains("the party id is burnt"), "{code} {ready}");
    let leaves = around.coordinator.leaves();
    // What it can do without offers it does.
    let job = submit(&two, 1, 1).await;
    succeeds(&two, &job).await;
    assert_eq!(around.coordinator.proposed(&job), 1);
    until("it keeps trying", || around.coordinator.leaves() > leaves).await;
    // At no moment of a try does it claim to take part.
    assert_eq!(standing(&two, |_| true).await["subscribed"], false);
    around.coordinator.restart().await;
    around.ours.subscribed().await;
    let job = submit(&two, 2, 1).await;
    succeeds(&two, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_leave_at_shutdown_so_that_others_can_propose() {
    let mut around = Around::start(2, &[]).await;
    let status = around.ours.parties[1].master.stop().await.unwrap();
    assert!(status.success(), "{status}");
    around.ours.parties[0].master.signal(rustix::process::Signal::TERM);
    assert!(around.ours.parties[0].master.ended().await.success());
    assert_eq!(around.coordinator.leaves(), 0);
    assert!(around.coordinator.is_enrolled("p1") && around.coordinator.is_enrolled("p2"));
    around.ours.parties[0].master.start().await;
    let client = around.ours.client(0);
    let job = submit(&client, 1, 1).await;
    succeeds(&client, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_task_is_repeated_in_the_window_after_kill_9() {
    let mut around = Around::start(2, &[]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 2, 5).await;
    until("the other party fetches", || around.coordinator.fetches("p2") == 1).await;
    around.ours.parties[1].master.kill_and_start().await;
    until("it fetches again", || around.coordinator.fetches("p2") >= 2).await;
    assert!(around.coordinator.is_open(&job), "the window was too short for this machine");
    succeeds(&client, &job).await;
    until("it has its task", || around.ours.parties[1].master.log().contains("won a task")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proposal_is_of_unknown_outcome_after_kill_9_in_the_window() {
    let mut around = Around::start(1, &[]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 1, 2).await;
    until("it fetches", || around.coordinator.fetches("p1") == 1).await;
    around.ours.parties[0].master.kill_and_start().await;
    assert_eq!(fails(&client, &job).await, "proposal outcome unknown");
    assert_eq!(around.coordinator.proposed(&job), 1);
    // The window that nobody closes any more keeps nothing else up.
    let next = submit(&client, 1, 1).await;
    succeeds(&client, &next).await;
    assert!(around.coordinator.is_open(&job));
}

#[tokio::test(flavor = "multi_thread")]
async fn proposal_is_made_again_after_kill_9_where_configured() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "propose_again = true");
    let mut around = Around::start(1, &["--config", &config]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 1, 2).await;
    until("it fetches", || around.coordinator.fetches("p1") == 1).await;
    around.ours.parties[0].master.kill_and_start().await;
    // The fetch of the first proposal hangs for ever at that coordinator, and the job does not wait for it.
    succeeds(&client, &job).await;
    assert_eq!(around.coordinator.proposed(&job), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn own_proposals_wait_for_the_own_subscription_after_a_restart() {
    let mut around = Around::start(1, &[]).await;
    let gated = Gated::install(&around.ours);
    gated.shut("compile");
    let client = around.ours.client(0);
    // Accepted, and not yet proposed when the process ends.
    let job = client
        .submit(
            "program",
            &json!({ "program": gated::NAME, "worker_num": 1, "proposal_wait_time": 1 }),
        )
        .await;
    gated.until_runs(&job, "compile", 1).await;
    around.ours.parties[0].master.kill().await;
    gated.open("compile");
    around.coordinator.refuse_slowly();
    let before = around.coordinator.calls().len();
    around.ours.parties[0].master.start().await;
    succeeds(&client, &job).await;
    let calls = around.calls_since(before);
    let place = |wanted: &dyn Fn(&Call) -> bool| calls.iter().rposition(wanted);
    let subscribed = place(&|call| matches!(call, Call::Subscribe { .. }));
    let proposed = place(&|call| matches!(call, Call::Proposal(_)));
    // An offer to the stream that died with the earlier process would burn the id.
    assert!(subscribed.is_some() && subscribed < proposed, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn proposal_that_cannot_be_done_fails_the_job_and_says_why() {
    let around = Around::start(1, &[]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 2, 1).await;
    assert_eq!(fails(&client, &job).await, "fewer than 2 parties take part in this job type");
    around.ghost().await;
    let job = submit(&client, 2, 1).await;
    assert_eq!(fails(&client, &job).await, "fewer than 2 parties answered the proposal");
}

#[tokio::test(flavor = "multi_thread")]
async fn proposal_while_a_party_has_left_fails_the_job_and_says_why() {
    let around = Around::start(1, &[]).await;
    let client = around.ours.client(0);
    let mut stranger = around.ghost().await;
    let left = within("leave", stranger.leave(leave::Req { party_id: "ghost".into() })).await;
    assert_eq!(left.unwrap().into_inner().status(), leave::Status::Success);
    let job = submit(&client, 1, 1).await;
    assert_eq!(
        fails(&client, &job).await,
        "a party has left this job type, and a FedVision 0.1 coordinator cannot propose until it is back: Unexpected <class 'KeyError'>: 'ghost'"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn proposal_and_fetch_that_are_never_answered_have_a_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "[patience]\nproposal_s = 1\nfetch_s = 3");
    let around = Around::start(1, &["--config", &config]).await;
    around.coordinator.never_answer_proposals();
    let client = around.ours.client(0);
    let job = submit(&client, 1, 1).await;
    assert_eq!(fails(&client, &job).await, "proposal outcome unknown");
    assert_eq!(around.coordinator.proposed(&job), 1);
    let given_up = "the coordinator did not answer for 3 s";
    until("the fetch is given up", || around.ours.parties[0].master.log().contains(given_up)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinator_restarted_is_subscribed_to_again() {
    let mut around = Around::start(2, &[]).await;
    let client = around.ours.client(0);
    around.coordinator.kill();
    standing(&client, |coordinator| coordinator["subscribed"] == false).await;
    // Meanwhile jobs are accepted, and wait.
    let job = submit(&client, 1, 1).await;
    let waits = |job: &Value| {
        job["reason"]
            .as_str()
            .is_some_and(|why| why.contains("the coordinator cannot be reached"))
    };
    client.until(&format!("/api/v1/jobs/{job}"), waits).await;
    around.coordinator.restart().await;
    around.ours.subscribed().await;
    succeeds(&client, &job).await;
    let job = submit(&client, 2, 1).await;
    succeeds(&client, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_say_what_it_is_is_not_taken_for_one_of_0_1() {
    let mut ours = Federation::planned(1, &[], &[]);
    let address = ours.coordinator.address.clone();
    let coordinator = OldCoordinator::start_unwell(&address, tonic::Code::Internal).await;
    ours.parties[0].master.start().await;
    until("it asks, and asks again", || coordinator.calls().len() >= 4).await;
    assert!(
        coordinator.calls().iter().all(|call| *call == Call::Hello),
        "{:?}",
        coordinator.calls()
    );
    let client = ours.client(0);
    let standing = standing(&client, |coordinator| coordinator["trouble"].is_string()).await;
    assert_eq!(standing["subscribed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alive_pings_are_not_sent() {
    let coordinator = OldCoordinator::start("127.0.0.1:0").await;
    // That one really minds.
    let endpoint = Endpoint::from_shared(format!("http://{}", coordinator.address)).unwrap();
    #[expect(clippy::disallowed_methods, reason = "to see what comes of it")]
    let pinging = endpoint
        .http2_keep_alive_interval(Duration::from_millis(100))
        .connect()
        .await
        .unwrap();
    let request = subscribe::Req {
        party_id: "pinging".into(),
        ..Default::default()
    };
    let refused = within("GOAWAY", CoordinatorClient::new(pinging).subscribe(request))
        .await
        .unwrap_err();
    assert_eq!(coordinator.wire.goaways.load(Ordering::Relaxed), 1, "{refused}");
    drop(coordinator);

    let around = Around::start(1, &[]).await;
    let client = around.ours.client(0);
    let job = submit(&client, 1, 2).await;
    succeeds(&client, &job).await;
    let wire = &around.coordinator.wire;
    assert_eq!(wire.pings.load(Ordering::Relaxed), 0);
    assert_eq!(wire.connections.load(Ordering::Relaxed), 1);
}
