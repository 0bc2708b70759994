//! `fedbroker.v1.Federation` of a real coordinator that crashes: reports, news of a job, cancellations and orders. The test plays initiator and parties.

use crate::coordinator::{Server, fetch, offered, proposing, request, subscribe, subscribe_as, within};
use fedbroker::wire::fedbroker::v1::federation_client::FederationClient;
use fedbroker::wire::fedbroker::v1::job_news::Status as Standing;
use fedbroker::wire::fedbroker::v1::{
    CancelJobRequest, FollowRequest, JobNews, Order, OrdersRequest, ReportTaskRequest, TaskState as State,
};
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, proposal};
use fedbroker::wire::metadata;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, Streaming};

fn of<T>(identity: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !identity.is_empty() {
        request.metadata_mut().insert(metadata::INSTANCE, identity.parse().unwrap());
    }
    request
}

fn ours(server: &Server) -> FederationClient<tonic::transport::Channel> {
    FederationClient::new(server.channel.clone())
}

/// One follow stream.
struct Followed {
    ask: mpsc::UnboundedSender<FollowRequest>,
    news: Streaming<JobNews>,
}

impl Followed {
    async fn open(server: &Server, owner: &str) -> Self {
        let (ask, requests) = mpsc::unbounded_channel();
        let call = of(owner, UnboundedReceiverStream::new(requests));
        let news = within(ours(server).follow_jobs(call)).await.unwrap().into_inner();
        Self { ask, news }
    }

    fn ask(&self, job: &str, after: u64) {
        let job_id = job.to_owned();
        self.ask.send(FollowRequest { job_id, after }).unwrap();
    }

    async fn next(&mut self) -> JobNews {
        within(self.news.message()).await.unwrap().expect("news")
    }

    /// The first that fits: several changes may come as one.
    async fn until(&mut self, fits: impl Fn(&JobNews) -> bool) -> JobNews {
        loop {
            let news = self.next().await;
            if fits(&news) {
                return news;
            }
        }
    }
}

fn states(news: &JobNews) -> Vec<(String, State)> {
    news.chosen.iter().map(|party| (party.party_id.clone(), party.state())).collect()
}

fn named(states: &[(&str, State)]) -> Vec<(String, State)> {
    states.iter().map(|(party, state)| ((*party).to_owned(), *state)).collect()
}

async fn report(server: &Server, party: &str, identity: &str, task: &str, state: State) -> Result<(), Status> {
    let message = ReportTaskRequest {
        party_id: party.into(),
        proposal_id: "j-coo_1".into(),
        job_id: "j".into(),
        task_id: task.into(),
        state: state.into(),
        reason: if state == State::Failed { "it broke".into() } else { String::new() },
    };
    within(ours(server).report_task(of(identity, message))).await.map(drop)
}

async fn cancel(server: &Server, owner: &str, job: &str) -> Result<(), Status> {
    let message = CancelJobRequest {
        job_id: job.into(),
        job_type: "dummy".into(),
        reason: "not needed any more".into(),
    };
    within(ours(server).cancel_job(of(owner, message))).await.map(drop)
}

async fn orders(server: &Server, party: &str) -> Result<Streaming<Order>, Status> {
    let message = OrdersRequest { party_id: party.into() };
    let stream = within(ours(server).orders(of(&format!("of {party}"), message))).await?;
    Ok(stream.into_inner())
}

/// A job of "me" whose window has closed: `a` and `b` are ours, `old` is of 0.1; each has the task that is said.
async fn closed(server: &Server) -> Vec<(&'static str, String)> {
    let client = server.client();
    let mut offers = Vec::new();
    for party in ["a", "b", "old"] {
        let identity = format!("of {party}");
        let instance = (party != "old").then_some(identity.as_str());
        offers.push(subscribe_as(&client, party, "dummy", instance).await.unwrap());
    }
    let verdict = propose(server, "me", "j", 3);
    for stream in &mut offers {
        assert_eq!(offered(stream).await, "j-coo_1");
    }
    let (a, b, old) = tokio::join!(
        fetch(&client, "a", "j-coo_1"),
        fetch(&client, "b", "j-coo_1"),
        fetch(&client, "old", "j-coo_1")
    );
    assert_eq!(verdict.await.0, proposal::Status::Success);
    let task = |(status, task): (fetch_task::Status, Option<fedbroker::wire::fedvision::framework::Task>)| {
        assert_eq!(status, fetch_task::Status::Ready);
        task.unwrap().task_id
    };
    vec![("a", task(a)), ("b", task(b)), ("old", task(old))]
}

/// The Proposal call of an initiator of ours, in the background.
fn propose(server: &Server, owner: &str, job: &str, parties: u32) -> impl Future<Output = (proposal::Status, String)> + use<> {
    let (mut client, call) = (server.client(), of(owner, request(job, parties as usize, parties, parties)));
    crate::coordinator::background(async move {
        let response = client.proposal(call).await.unwrap();
        let reason = response.metadata().get(metadata::REASON);
        let reason = reason.map(|reason| reason.to_str().unwrap().to_owned()).unwrap_or_default();
        (response.into_inner().status(), reason)
    })
}

#[tokio::test]
async fn the_initiator_hears_how_every_party_ends_across_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut followed = Followed::open(&server, "me").await;
    followed.ask("j", 0);
    assert_eq!(followed.next().await.status(), Standing::NotKnown);
    let tasks = closed(&server).await;
    let news = followed.until(|news| news.status() == Standing::Accepted).await;
    assert_eq!((news.proposal_id.as_str(), news.asked, news.accepted), ("j-coo_1", 3, 3));
    assert_eq!(
        states(&news),
        named(&[("a", State::Unknown), ("b", State::Unknown), ("old", State::Unknown)])
    );
    let over: Vec<bool> = news.chosen.iter().map(|party| party.r#final).collect();
    assert_eq!(over, [false, false, true], "0.1 never tells, ours has not told yet");
    for (party, (_, task)) in news.chosen.iter().zip(&tasks) {
        assert_eq!(&party.task_id, task);
    }

    report(&server, "a", "of a", &tasks[0].1, State::Running).await.unwrap();
    let news = followed.next().await;
    assert_eq!(states(&news)[0].1, State::Running);
    report(&server, "b", "of b", &tasks[1].1, State::Failed).await.unwrap();
    let news = followed.until(|news| states(news)[1].1 == State::Failed).await;
    assert_eq!(news.chosen[1].reason, "it broke");
    assert!(!news.r#final);
    server.crash();

    let server = Server::start(dir.path()).await;
    let mut followed = Followed::open(&server, "me").await;
    // Known already: silence until something changes. The same report again changes nothing.
    followed.ask("j", news.revision);
    report(&server, "b", "of b", &tasks[1].1, State::Failed).await.unwrap();
    report(&server, "a", "of a", &tasks[0].1, State::Succeeded).await.unwrap();
    let last = followed.next().await;
    let expected = named(&[("a", State::Succeeded), ("b", State::Failed), ("old", State::Unknown)]);
    assert_eq!((states(&last), last.r#final), (expected, true));
    // Asked for once more, from the start, it is told again; to somebody else nothing.
    followed.ask("j", 0);
    assert_eq!(followed.next().await, last);
    let mut other = Followed::open(&server, "somebody else").await;
    other.ask("j", 0);
    let nothing = other.next().await;
    assert_eq!((nothing.status(), nothing.chosen.len(), nothing.asked), (Standing::NotKnown, 0, 0));
}

#[tokio::test]
async fn a_report_that_is_none_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let tasks = closed(&server).await;
    let (task, other) = (tasks[0].1.as_str(), tasks[1].1.as_str());
    for (party, identity, task, state, code, word) in [
        ("a", "", task, State::Running, Code::Unauthenticated, "fedbroker-instance"),
        ("a", "of b", task, State::Running, Code::PermissionDenied, "party a"),
        ("c", "of c", task, State::Running, Code::FailedPrecondition, "was not chosen"),
        ("a", "of a", other, State::Running, Code::FailedPrecondition, "has task"),
        ("a", "of a", task, State::Unknown, Code::InvalidArgument, "state"),
        (
            "old",
            "of old",
            tasks[2].1.as_str(),
            State::Failed,
            Code::PermissionDenied,
            "party old",
        ),
    ] {
        let refused = report(&server, party, identity, task, state).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{refused}");
    }
    report(&server, "a", "of a", task, State::Succeeded).await.unwrap();
    let refused = report(&server, "a", "of a", task, State::Failed).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let long = ReportTaskRequest {
        party_id: "b".into(),
        proposal_id: "j-coo_1".into(),
        job_id: "j".into(),
        task_id: other.into(),
        state: State::Failed.into(),
        reason: "x".repeat(513),
    };
    let refused = within(ours(&server).report_task(of("of b", long))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let refused = cancel(&server, "somebody else", "j").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = within(ours(&server).orders(of("of a", OrdersRequest { party_id: "b".into() })))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn an_open_proposal_that_is_cancelled_closes_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut offers = subscribe(&client, "a").await;
    let long = fedbroker::wire::fedvision::framework::coordinator::proposal::Req {
        proposal_wait_time: 3600,
        ..request("j", 1, 1, 1)
    };
    let mut proposer = server.client();
    let verdict = crate::coordinator::background(async move { proposer.proposal(of("me", long)).await.unwrap() });
    offered(&mut offers).await;
    let (fetched, cancelled) = tokio::join!(fetch(&client, "a", "j-coo_1"), cancel(&server, "me", "j"));
    cancelled.unwrap();
    // As the two come; the rules are tested with the machine.
    assert!(
        matches!(fetched.0, fetch_task::Status::Canceled | fetch_task::Status::Timeout),
        "{fetched:?}"
    );
    let verdict = verdict.await;
    assert_eq!(verdict.metadata().get(metadata::REASON).unwrap(), "not needed any more");
    assert_eq!(verdict.into_inner().status(), proposal::Status::Reject);
    cancel(&server, "me", "j").await.unwrap();
    let mut followed = Followed::open(&server, "me").await;
    followed.ask("j", 0);
    let news = followed.next().await;
    assert_eq!(
        (news.status(), news.reason.as_str(), news.r#final),
        (Standing::WasCancelled, "not needed any more", true)
    );
    // A cancellation that overtakes its proposal.
    cancel(&server, "me", "later").await.unwrap();
    assert_eq!(propose(&server, "me", "later", 1).await.0, proposal::Status::Reject);
    assert_eq!(proposing(&client, request("another", 1, 0, 1)).await, proposal::Status::Success);
}

#[tokio::test]
async fn the_chosen_are_ordered_to_stop_until_they_have_reported() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let tasks = closed(&server).await;
    let mut to_a = orders(&server, "a").await.unwrap();
    report(&server, "b", "of b", &tasks[1].1, State::Succeeded).await.unwrap();
    cancel(&server, "me", "j").await.unwrap();
    let expected = Order {
        proposal_id: "j-coo_1".into(),
        job_id: "j".into(),
        task_id: tasks[0].1.clone(),
        reason: "not needed any more".into(),
    };
    assert_eq!(within(to_a.message()).await.unwrap(), Some(expected.clone()));
    // No task is given any more.
    assert_eq!(fetch(&server.client(), "a", "j-coo_1").await.0, fetch_task::Status::Canceled);
    server.crash();

    let server = Server::start(dir.path()).await;
    let (mut first, mut to_b) = (orders(&server, "a").await.unwrap(), orders(&server, "b").await.unwrap());
    assert_eq!(within(first.message()).await.unwrap(), Some(expected.clone()));
    // A party that comes once more is told on its new stream; the other one ends.
    let mut second = orders(&server, "a").await.unwrap();
    assert_eq!(within(second.message()).await.unwrap(), Some(expected));
    assert_eq!(within(first.message()).await.unwrap(), None);
    report(&server, "a", "of a", &tasks[0].1, State::Cancelled).await.unwrap();
    drop(second);
    let mut third = orders(&server, "a").await.unwrap();
    cancel(&server, "me", "j").await.unwrap();
    for stream in [&mut third, &mut to_b] {
        let told = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
        assert!(told.is_err(), "nothing is left to be stopped: {told:?}");
    }
}
