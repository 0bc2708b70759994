//! The coordinator over its real wire, row by row of what FedVision 0.1 does (`subscribe_`, `leave_`, `proposal_`, `fetch_`), and over
//! crashes. A name that ends in `_unlike_0_1` is a row that is changed on purpose.
//!
//! Each server has a runtime of its own; a crash drops it with every connection and call in flight, without any farewell.

use fedbroker::config::CoordinatorOptions;
use fedbroker::supervisor::Supervisor;
use fedbroker::wire::connect::{MESSAGE_MAX, PeerKind, hello};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, leave, proposal, subscribe};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

pub type Client = CoordinatorClient<Channel>;
pub type Offers = Streaming<subscribe::Rep>;

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

pub struct Server {
    runtime: Option<Runtime>,
    pub channel: Channel,
    supervisor: Supervisor,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    pub async fn start(data_dir: &Path) -> Self {
        let begun = Instant::now();
        loop {
            match Self::try_start(data_dir).await {
                Ok(server) => return server,
                // The one that crashed is still letting go of its directory.
                Err(error) => assert!(error.contains("is in use") && begun.elapsed() < DEADLINE, "{error}"),
            }
        }
    }

    async fn try_start(data_dir: &Path) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let options = CoordinatorOptions {
            port: 0,
            host: "127.0.0.1".into(),
            data_dir: data_dir.to_owned(),
            party_lease: 60,
            settle: 0,
            keep_closed: 3600,
            metrics_port: None,
            keep_ended_days: 30,
            keep_ended: 1_000_000,
        };
        let (bound, address) = oneshot::channel();
        let supervisor = Supervisor::new();
        let mut serving = runtime.spawn({
            let supervisor = supervisor.clone();
            async move {
                let coordinator = fedbroker::coordinator::bind(options).await?;
                bound.send(coordinator.address()).unwrap();
                coordinator.serve(supervisor).await
            }
        });
        let address = within(address).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        // A server that cannot have its directory takes its port down with it: then its own error says why.
        if let Ok(peer) = within(hello(channel.clone(), "master")).await {
            assert!(matches!(peer, PeerKind::Fedbroker { .. }), "{peer:?}");
            return Ok(Self {
                runtime: Some(runtime),
                channel,
                supervisor,
                serving,
            });
        }
        let ended = within(&mut serving).await.unwrap();
        runtime.shutdown_background();
        Err(format!("{:#}", ended.unwrap_err()))
    }

    pub fn client(&self) -> Client {
        CoordinatorClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// No farewell: every task of the server is dropped where it stands.
    pub fn crash(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

pub async fn subscribe_as(client: &Client, party: &str, job_type: &str, instance: Option<&str>) -> Result<Offers, Status> {
    let request = subscribe::Req {
        party_id: party.into(),
        job_types: vec![job_type.into()],
        credential: String::new(),
    };
    let mut request = Request::new(request);
    if let Some(instance) = instance {
        request.metadata_mut().insert("fedbroker-instance", instance.parse().unwrap());
    }
    within(client.clone().subscribe(request)).await.map(Response::into_inner)
}

pub async fn subscribe(client: &Client, party: &str) -> Offers {
    subscribe_as(client, party, "dummy", None).await.unwrap()
}

/// The next message, `None` at the end of the stream.
pub async fn next(offers: &mut Offers) -> Option<subscribe::Rep> {
    within(offers.message()).await.unwrap()
}

pub async fn offered(offers: &mut Offers) -> String {
    let offer = next(offers).await.expect("an offer");
    assert_eq!(offer.status(), subscribe::Status::Success);
    assert_eq!(offer.job_type, "dummy");
    offer.proposal_id
}

fn task(index: usize, len: usize) -> Task {
    let value = vec![u8::try_from(index).unwrap(); len];
    let payload = fedbroker::wire::Any {
        type_url: "type.googleapis.com/fedbroker.v1.DummyTask".into(),
        value: value.into(),
    };
    Task {
        job_id: "j".into(),
        task_id: format!("trainer_{index}"),
        task_type: "dummy_trainer".into(),
        task: Some(payload),
        assignee: String::new(),
    }
}

/// A proposal with a window of one second, whose tasks are small and large in turns.
pub fn request(job: &str, tasks: usize, min: u32, max: u32) -> proposal::Req {
    let of_job = |i: usize| Task {
        job_id: job.into(),
        ..task(i, if i.is_multiple_of(2) { 10 } else { 300_000 })
    };
    let tasks = (0..tasks).map(of_job).collect();
    proposal::Req {
        job_id: job.into(),
        job_type: "dummy".into(),
        tasks,
        proposal_wait_time: 1,
        minimum_acceptance: min,
        maximum_acceptance: max,
    }
}

pub async fn propose(client: &Client, request: proposal::Req) -> Result<(proposal::Status, String), Status> {
    let response = within(client.clone().proposal(request)).await?;
    let reason = response
        .metadata()
        .get("fedbroker-reason")
        .map(|value| value.to_str().unwrap().to_owned());
    Ok((response.into_inner().status(), reason.unwrap_or_default()))
}

/// Make a call in the background: it is on its way even while nobody waits for it, and ends when the future is dropped.
pub fn background<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> {
    let mut calls = tokio::task::JoinSet::new();
    calls.spawn(call);
    async move { calls.join_next().await.unwrap().unwrap() }
}

pub fn proposing(client: &Client, request: proposal::Req) -> impl Future<Output = proposal::Status> + use<> {
    let client = client.clone();
    background(async move { propose(&client, request).await.unwrap().0 })
}

pub async fn fetch(client: &Client, party: &str, proposal: &str) -> (fetch_task::Status, Option<Task>) {
    let request = fetch_task::Req {
        party_id: party.into(),
        proposal_id: proposal.into(),
    };
    let reply = within(client.clone().fetch_task(request)).await.unwrap().into_inner();
    (reply.status(), reply.task)
}

async fn leave(client: &Client, party: &str) -> leave::Status {
    within(client.clone().leave(leave::Req { party_id: party.into() }))
        .await
        .unwrap()
        .into_inner()
        .status()
}

/// Subscribe while a proposal is open, as often as it takes until the coordinator knows that the old stream is gone.
async fn resubscribe(client: &Client, party: &str) -> (Offers, String) {
    let begun = Instant::now();
    for attempt in 0.. {
        let _open = proposing(client, request(&format!("probe-{party}-{attempt}"), 1, 0, 1));
        let mut offers = subscribe(client, party).await;
        let reply = next(&mut offers).await.expect("an answer");
        if reply.status() == subscribe::Status::Success {
            return (offers, reply.proposal_id);
        }
        assert!(begun.elapsed() < DEADLINE, "still taken for subscribed");
    }
    unreachable!("the loop has no end")
}

#[tokio::test]
async fn subscribe_new_party_has_headers_before_the_first_offer_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    // Resolves on the headers alone; with 0.1 it would wait for an offer.
    let mut offers = subscribe(&server.client(), "a").await;
    let verdict = proposing(&server.client(), request("j", 1, 0, 1));
    assert_eq!(offered(&mut offers).await, "j-coo_1");
    assert_eq!(verdict.await, proposal::Status::Success);
}

#[tokio::test]
async fn subscribe_enrolled_party_is_duplicate_while_its_stream_lives() {
    let dir = tempfile::tempdir().unwrap();
    let client_of = Server::start(dir.path()).await;
    let client = client_of.client();
    let mut first = subscribe(&client, "a").await;
    let mut second = subscribe(&client, "a").await;
    assert_eq!(next(&mut second).await.unwrap().status(), subscribe::Status::DuplicateEnroll);
    assert_eq!(next(&mut second).await, None);
    let verdict = proposing(&client, request("j", 1, 0, 1));
    assert_eq!(offered(&mut first).await, "j-coo_1");
    verdict.await;
}

#[tokio::test]
async fn subscribe_enrolled_party_with_a_dead_stream_is_taken_back_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    drop(subscribe(&client, "a").await);
    let (_offers, proposal) = resubscribe(&client, "a").await;
    assert!(proposal.starts_with("probe-a-"), "{proposal}");
}

#[tokio::test]
async fn subscribe_of_the_same_instance_replaces_its_stream_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut old = subscribe_as(&client, "a", "dummy", Some("i1")).await.unwrap();
    let mut other = subscribe_as(&client, "a", "dummy", Some("i2")).await.unwrap();
    assert_eq!(next(&mut other).await.unwrap().status(), subscribe::Status::DuplicateEnroll);
    let mut new = subscribe_as(&client, "a", "dummy", Some("i1")).await.unwrap();
    assert_eq!(next(&mut old).await, None);
    let verdict = proposing(&client, request("j", 1, 0, 1));
    assert_eq!(offered(&mut new).await, "j-coo_1");
    verdict.await;
}

#[tokio::test]
async fn leave_unknown_party_is_not_found_and_live_stream_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    assert_eq!(leave(&client, "a").await, leave::Status::NotFound);
    let mut offers = subscribe(&client, "a").await;
    assert_eq!(leave(&client, "a").await, leave::Status::Success);
    assert_eq!(next(&mut offers).await, None);
    assert_eq!(leave(&client, "a").await, leave::Status::NotFound);
}

#[tokio::test]
async fn leave_with_a_dead_stream_and_an_offer_since_answers_at_once_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    drop(subscribe(&client, "a").await);
    assert_eq!(propose(&client, request("j", 1, 0, 1)).await.unwrap().0, proposal::Status::Success);
    assert_eq!(leave(&client, "a").await, leave::Status::Success);
    // And the id is not burnt.
    let mut offers = subscribe(&client, "a").await;
    let verdict = proposing(&client, request("k", 1, 0, 1));
    assert_eq!(offered(&mut offers).await, "k-coo_2");
    verdict.await;
}

#[tokio::test]
async fn leave_poisons_the_type_for_nobody_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let (_a, mut b) = (subscribe(&client, "a").await, subscribe(&client, "b").await);
    leave(&client, "a").await;
    let verdict = proposing(&client, request("j", 1, 1, 1));
    let id = offered(&mut b).await;
    assert_eq!(fetch(&client, "b", &id).await, (fetch_task::Status::Ready, Some(task(0, 10))));
    assert_eq!(verdict.await, proposal::Status::Success);
}

#[tokio::test]
async fn proposal_that_cannot_succeed_is_answered_at_once_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let answer = propose(&client, request("nobody", 1, 1, 1)).await.unwrap();
    assert_eq!(
        answer,
        (proposal::Status::Reject, "no party has subscribed to job type dummy".to_owned())
    );
    let _a = subscribe(&client, "a").await;
    let answer = propose(&client, request("few", 2, 2, 2)).await.unwrap();
    let reason = "too few parties are subscribed to job type dummy: 1 of the 2 needed".to_owned();
    assert_eq!(answer, (proposal::Status::NotEnoughSubscribers, reason));
    let answer = propose(&client, request("numbers", 2, 1, 0)).await.unwrap();
    assert_eq!(
        answer,
        (proposal::Status::Reject, "at most 0 parties cannot be at least 1".to_owned())
    );
    // The verdict stands, whatever happens since.
    let _b = subscribe(&client, "b").await;
    assert_eq!(
        propose(&client, request("few", 2, 2, 2)).await.unwrap().0,
        proposal::Status::NotEnoughSubscribers
    );
}

#[tokio::test]
async fn proposal_with_too_few_acceptances_ends_after_its_window_and_cancels() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let (mut a, _b) = (subscribe(&client, "a").await, subscribe(&client, "b").await);
    let begun = Instant::now();
    let verdict = proposing(&client, request("j", 2, 2, 2));
    let id = offered(&mut a).await;
    assert_eq!(fetch(&client, "a", &id).await.0, fetch_task::Status::Canceled);
    assert_eq!(verdict.await, proposal::Status::NotEnoughResponders);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(fetch(&client, "b", &id).await.0, fetch_task::Status::Timeout);
}

#[tokio::test]
async fn proposal_with_more_acceptances_than_its_maximum_draws_distinct_parties_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut streams = Vec::new();
    for party in ["a", "b", "c", "d"] {
        streams.push(subscribe(&client, party).await);
    }
    let verdict = proposing(&client, request("j", 2, 2, 2));
    let id = offered(&mut streams[0]).await;
    let get = |party| fetch(&client, party, &id);
    let (a, b, c, d) = tokio::join!(get("a"), get("b"), get("c"), get("d"));
    assert_eq!(verdict.await, proposal::Status::Success);
    let mut answers = vec![a, b, c, d];
    answers.sort_by_key(|(_, task)| task.as_ref().map(|task| task.task_id.clone()));
    let random_out = (fetch_task::Status::RandomOut, None);
    let ready = |index, len| (fetch_task::Status::Ready, Some(task(index, len)));
    assert_eq!(answers, [random_out.clone(), random_out, ready(0, 10), ready(1, 300_000)]);
}

#[tokio::test]
async fn proposal_with_fewer_tasks_than_acceptances_succeeds_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let (mut a, _b) = (subscribe(&client, "a").await, subscribe(&client, "b").await);
    let verdict = proposing(&client, request("j", 1, 1, 2));
    let id = offered(&mut a).await;
    let (a, b) = tokio::join!(fetch(&client, "a", &id), fetch(&client, "b", &id));
    assert_eq!(verdict.await, proposal::Status::Success);
    assert!(
        [a.0, b.0].contains(&fetch_task::Status::Ready) && [a.0, b.0].contains(&fetch_task::Status::RandomOut),
        "{a:?} {b:?}"
    );
}

#[tokio::test]
async fn proposal_with_no_window_is_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let _a = subscribe(&client, "a").await;
    let none = proposal::Req {
        proposal_wait_time: 0,
        ..request("none", 1, 0, 1)
    };
    assert_eq!(propose(&client, none).await.unwrap().0, proposal::Status::Success);
    let one = proposal::Req {
        proposal_wait_time: 0,
        ..request("one", 1, 1, 1)
    };
    assert_eq!(propose(&client, one).await.unwrap().0, proposal::Status::NotEnoughResponders);
    assert_eq!(fetch(&client, "a", "none-coo_1").await.0, fetch_task::Status::Timeout);
}

#[tokio::test]
async fn proposal_whose_proposer_goes_away_still_closes_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let call = proposing(&client, request("j", 1, 1, 1));
    let id = offered(&mut a).await;
    drop(call);
    assert_eq!(fetch(&client, "a", &id).await, (fetch_task::Status::Ready, Some(task(0, 10))));
    assert_eq!(propose(&client, request("j", 1, 1, 1)).await.unwrap().0, proposal::Status::Success);
}

#[tokio::test]
async fn proposal_of_the_same_job_joins_and_of_other_contents_is_refused_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let first = proposing(&client, request("j", 1, 1, 1));
    let id = offered(&mut a).await;
    let second = proposing(&client, request("j", 1, 1, 1));
    let other = propose(&client, request("j", 1, 0, 1)).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other}");
    assert_eq!(fetch(&client, "a", &id).await.0, fetch_task::Status::Ready);
    assert_eq!((first.await, second.await), (proposal::Status::Success, proposal::Status::Success));
}

#[tokio::test]
async fn fetch_is_checked_for_proposal_party_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let _other = subscribe_as(&client, "other", "other", None).await.unwrap();
    assert_eq!(fetch(&client, "stranger", "j-coo_1").await.0, fetch_task::Status::NotFound);
    let verdict = proposing(&client, request("j", 1, 0, 1));
    let id = offered(&mut a).await;
    assert_eq!(fetch(&client, "a", "j-coo_2").await.0, fetch_task::Status::NotFound);
    assert_eq!(fetch(&client, "stranger", &id).await.0, fetch_task::Status::NotAllow);
    assert_eq!(fetch(&client, "other", &id).await.0, fetch_task::Status::NotAllow);
    verdict.await;
    assert_eq!(fetch(&client, "a", &id).await.0, fetch_task::Status::Timeout);
}

#[tokio::test]
async fn fetch_repeated_gives_the_same_task_in_and_after_the_window_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let verdict = proposing(&client, request("j", 1, 1, 1));
    let id = offered(&mut a).await;
    let (first, second) = tokio::join!(fetch(&client, "a", &id), fetch(&client, "a", &id));
    assert_eq!((first.0, first.1.clone()), (fetch_task::Status::Ready, Some(task(0, 10))));
    assert_eq!(first, second);
    assert_eq!(verdict.await, proposal::Status::Success);
    assert_eq!(fetch(&client, "a", &id).await, first);
}

#[tokio::test]
async fn ids_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut client = server.client();
    let check = |status: Status, field: &str| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(field), "{status}");
    };
    check(subscribe_as(&client, "", "dummy", None).await.unwrap_err(), "party_id:");
    check(subscribe_as(&client, "a", "", None).await.unwrap_err(), "job_type:");
    check(propose(&client, request("", 1, 0, 1)).await.unwrap_err(), "job_id:");
    check(propose(&client, request(&"x".repeat(200), 1, 0, 1)).await.unwrap_err(), "job_id:");
    let fetch = fetch_task::Req {
        party_id: "a".into(),
        proposal_id: "a\nb".into(),
    };
    check(within(client.fetch_task(fetch)).await.unwrap_err(), "proposal_id:");
    check(
        within(client.leave(leave::Req { party_id: "x".repeat(201) })).await.unwrap_err(),
        "party_id:",
    );
}

#[tokio::test]
async fn crash_in_the_window_loses_neither_acceptances_nor_the_verdict_unlike_0_1() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let window = Instant::now() + Duration::from_secs(1);
    let proposer = background({
        let client = client.clone();
        async move { propose(&client, request("j", 2, 1, 2)).await }
    });
    let id = offered(&mut a).await;
    let mut fetcher = client.clone();
    let fetching = fetch_task::Req {
        party_id: "a".into(),
        proposal_id: id.clone(),
    };
    let accepting = background(async move { fetcher.fetch_task(fetching).await });
    // An accepted fetch is silent. Calls on the same connection after it, each answered by the same queue, show that it was taken.
    for _ in 0..5 {
        leave(&client, "nobody").await;
    }
    assert!(Instant::now() < window, "the machine is too slow for this test");
    server.crash();
    assert!(
        within(proposer).await.is_err() && within(accepting).await.is_err(),
        "calls of the crashed server fail"
    );
    assert!(within(a.message()).await.is_err());
    // The window ends while nobody is there.
    tokio::time::sleep_until((window + Duration::from_millis(500)).into()).await;

    let server = Server::start(dir.path()).await;
    let client = server.client();
    let verdict = proposing(&client, request("j", 2, 1, 2));
    // The party is known and without a stream, so no Leave is needed; its acceptance was on record.
    let _a = subscribe(&client, "a").await;
    let (status, task) = fetch(&client, "a", &id).await;
    assert_eq!(
        (status, task.map(|task| task.task_id)),
        (fetch_task::Status::Ready, Some("trainer_0".into()))
    );
    assert_eq!(verdict.await, proposal::Status::Success);
    server.crash();

    // After the close nothing depends on the process either, and proposal numbers go on.
    let server = Server::start(dir.path()).await;
    let client = server.client();
    assert_eq!(fetch(&client, "a", &id).await.0, fetch_task::Status::Ready);
    assert_eq!(propose(&client, request("j", 2, 1, 2)).await.unwrap().0, proposal::Status::Success);
    let mut a = subscribe(&client, "a").await;
    let verdict = proposing(&client, request("k", 1, 0, 1));
    assert_eq!(offered(&mut a).await, "k-coo_2");
    verdict.await;
}

#[tokio::test]
async fn stop_ends_streams_and_waiting_calls_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).await;
    let client = server.client();
    let mut a = subscribe(&client, "a").await;
    let waiting = background({
        let client = client.clone();
        async move { propose(&client, request("j", 1, 0, 1)).await }
    });
    offered(&mut a).await;
    server.supervisor.stop();
    let refused = within(waiting).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    while within(a.message()).await.is_ok_and(|message| message.is_some()) {}
    within(&mut server.serving).await.unwrap().unwrap();
    server.crash();
    let server = Server::start(dir.path()).await;
    assert_eq!(
        propose(&server.client(), request("j", 1, 0, 1)).await.unwrap().0,
        proposal::Status::Success
    );
}
