//! A job that is cancelled while a party has its task: the coordinator killed on the way of the cancellation, then the master that is ordered to stop,
//! where the test is the initiator, and against the coordinator the party as well; then the initiator's own master.

use super::coordinator::{self as rules, Lonely, machine, soon};
use super::paper::row_of;
use super::retention::rules as rules_of_master;
use super::{at_rest, died, dies_again, master, open_of_master, skipped, start_again, start_doomed};
use crate::support::{DEADLINE, Federation};
use fedbroker::machine::coordinator::{AssignmentState, Coordinator, Key, Record, Verdict};
use fedbroker::machine::ids::{JobId, PartyId};
use fedbroker::machine::master::{self as party_master, Event, records::TaskState as AtMaster};
use fedbroker::machine::outcome::End;
use fedbroker::wire::connect::channel;
use fedbroker::wire::fedbroker::v1::federation_client::FederationClient;
use fedbroker::wire::fedbroker::v1::job_news::Status as Standing;
use fedbroker::wire::fedbroker::v1::{
    CancelJobRequest, DummyTask, FollowRequest, JobNews, Order, OrdersRequest, ReportTaskRequest, TaskState,
};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, proposal};
use fedbroker::wire::metadata;
use prost::Message;
use serde_json::{Value, json};
use std::time::Instant;
use tonic::{Request, Status};

fn of<T>(identity: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(metadata::INSTANCE, identity.parse().unwrap());
    request
}

fn ours(address: &str) -> FederationClient<tonic::transport::Channel> {
    FederationClient::new(channel(address).unwrap())
}

async fn cancel(address: &str, job: &str, job_type: &str) -> Result<(), Status> {
    let message = CancelJobRequest {
        job_id: job.into(),
        job_type: job_type.into(),
        reason: "not needed".into(),
    };
    soon(ours(address).cancel_job(of("me", message))).await.map(drop)
}

/// The news of the initiator's job that fit.
async fn news(address: &str, job: &str, fits: impl Fn(&JobNews) -> bool) -> JobNews {
    let deadline = Instant::now() + DEADLINE;
    let request = FollowRequest {
        job_id: job.to_owned(),
        after: 0,
    };
    loop {
        // The stream of questions stays open as long as this one.
        let questions = futures_util::StreamExt::chain(tokio_stream::once(request.clone()), tokio_stream::pending());
        let mut stream = soon(ours(address).follow_jobs(of("me", questions))).await.unwrap().into_inner();
        while let Ok(Ok(Some(news))) = tokio::time::timeout(DEADLINE / 4, stream.message()).await {
            if fits(&news) {
                return news;
            }
        }
        assert!(Instant::now() < deadline, "the news of {job} never came to what was waited for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_with_a_cancellation() {
    if skipped() {
        return;
    }
    let mut lonely = Lonely::start().await;
    for (point, _) in rules::points(&[rules::Scenario::Unwanted]) {
        lonely.role.kill().await;
        assert!(start_doomed(&mut lonely.role, &point).await, "{point} is passed with a job only");
        let mut offers = lonely.subscribe("p", "p-one").await.unwrap();
        let fetched = async {
            let offer = soon(offers.message()).await.unwrap().unwrap();
            let request = fetch_task::Req {
                party_id: "p".into(),
                proposal_id: offer.proposal_id.clone(),
            };
            let reply = soon(lonely.client().fetch_task(request)).await.unwrap().into_inner();
            assert_eq!(reply.status(), fetch_task::Status::Ready);
            offer.proposal_id
        };
        let (verdict, proposal_id) = tokio::join!(lonely.propose(&point), fetched);
        assert_eq!(verdict.unwrap(), proposal::Status::Success);
        let cancelled = cancel(&lonely.role.address, &point, "guest").await;
        // An effect leaves after the answer; whether that gets out is not known.
        assert!(cancelled.is_err() || point.ends_with(".leaving"), "it was answered before {point}");
        died(&mut lonely.role).await;
        drop(offers);
        if point.ends_with(".leaving") {
            dies_again(&mut lonely.role).await;
        }
        start_again(&mut lonely.role).await;
        let _offers = lonely.subscribe("p", "p-one").await.unwrap();
        cancel(&lonely.role.address, &point, "guest").await.unwrap();
        let party_id = "p".to_owned();
        let mut orders = soon(ours(&lonely.role.address).orders(of("p-one", OrdersRequest { party_id })))
            .await
            .unwrap()
            .into_inner();
        let order = soon(orders.message()).await.unwrap().unwrap();
        let expected = Order {
            proposal_id: proposal_id.clone(),
            job_id: point.clone(),
            task_id: "t".into(),
            reason: "not needed".into(),
        };
        assert_eq!(order, expected, "after {point}: {}", row_of(&point));
        let request = fetch_task::Req {
            party_id: "p".into(),
            proposal_id: proposal_id.clone(),
        };
        let again = soon(lonely.client().fetch_task(request)).await.unwrap().into_inner();
        assert_eq!(again.status(), fetch_task::Status::Canceled, "after {point}");
        let report = ReportTaskRequest {
            party_id: "p".into(),
            proposal_id,
            job_id: point.clone(),
            task_id: "t".into(),
            state: TaskState::Cancelled.into(),
            reason: "not needed".into(),
        };
        soon(ours(&lonely.role.address).report_task(of("p-one", report))).await.unwrap();
    }
    let data = lonely.dir.path().join("data");
    let left = at_rest::<Coordinator>(&mut lonely.role, &data, "coordinator", |_| Vec::new()).await;
    left.check_replay("coordinator", machine());
    for (point, _) in rules::points(&[rules::Scenario::Unwanted]) {
        let (job, party) = (JobId::parse(point.clone()).unwrap(), PartyId::parse("p").unwrap());
        let Some(Record::Proposal(proposal)) = left.records.get(&Key::Proposal(job.clone())) else {
            panic!("{point}")
        };
        assert_eq!(proposal.verdict().map(|(verdict, _)| verdict), Some(Verdict::Cancelled), "{point}");
        let Some(Record::Assignment(assignment)) = left.records.get(&Key::Assignment(job.clone(), party.clone())) else {
            panic!("{point}")
        };
        assert_eq!(assignment.state, AssignmentState::Ended(End::Cancelled), "{point}");
        assert!(!left.records.contains_key(&Key::Order(party, job)), "{point}");
    }
}

/// A task that runs for longer than any test, for one party.
fn endless(job: &str) -> proposal::Req {
    let payload = DummyTask {
        sleep_ms: 600_000,
        fail: false,
        ..DummyTask::default()
    };
    let any = fedbroker::wire::Any {
        type_url: "type.googleapis.com/fedbroker.v1.DummyTask".into(),
        value: payload.encode_to_vec().into(),
    };
    let task = Task {
        job_id: job.into(),
        task_id: "trainer_0".into(),
        task_type: "dummy_trainer".into(),
        task: Some(any),
        assignee: String::new(),
    };
    proposal::Req {
        job_id: job.into(),
        job_type: "dummy".into(),
        tasks: vec![task],
        proposal_wait_time: 1,
        minimum_acceptance: 1,
        maximum_acceptance: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_that_is_ordered_to_stop() {
    if skipped() {
        return;
    }
    let mut federation = Federation::start(1).await;
    let address = federation.coordinator.address.clone();
    let mut jobs = Vec::new();
    for (point, _) in master::points(&[master::Scenario::Ordered]) {
        let job = format!("me-20261122212634-{}", jobs.len() + 1);
        federation.parties[0].master.kill().await;
        assert!(
            start_doomed(&mut federation.parties[0].master, &point).await,
            "{point} is passed with an order only"
        );
        federation.subscribed().await;
        let mut proposer = CoordinatorClient::new(channel(&address).unwrap());
        let verdict = soon(proposer.proposal(of("me", endless(&job)))).await.unwrap().into_inner();
        assert_eq!(verdict.status(), proposal::Status::Success);
        let running = |news: &JobNews| news.chosen.iter().all(|party| party.state() == TaskState::Running);
        let told = news(&address, &job, |news| news.status() == Standing::Accepted && running(news)).await;
        assert_eq!((told.chosen[0].party_id.as_str(), told.r#final), ("p1", false));
        cancel(&address, &job, "dummy").await.unwrap();
        died(&mut federation.parties[0].master).await;
        start_again(&mut federation.parties[0].master).await;
        let told = news(&address, &job, |news| news.r#final).await;
        assert_eq!(told.status(), Standing::WasCancelled);
        assert_eq!(told.chosen[0].state(), TaskState::Cancelled, "after {point}: {told:?}");
        jobs.push(job);
    }
    let dir = federation.dir.path().join("p1-master");
    let left = at_rest(&mut federation.parties[0].master, &dir, "master", open_of_master).await;
    let ended = left.records.values().filter_map(|record| match record {
        party_master::Record::Task(task) => Some(task),
        _ => None,
    });
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended.len(), jobs.len());
    for task in ended {
        assert!(
            matches!(&task.state, AtMaster::Ended(outcome) if outcome.end == End::Cancelled),
            "{task:?}"
        );
    }
    let log = federation.parties[0].worker.log();
    assert_eq!(log.matches("task started task=me-").count(), jobs.len(), "each ran once\n{log}");
}

/// The cancellation was answered, or is known to be durable: it comes to the other parties however often the initiator dies on its way.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_whose_job_others_have() {
    if skipped() {
        return;
    }
    let mut federation = Federation::start(2).await;
    let client = federation.client(0);
    let config = json!({ "worker_num": 2, "proposal_wait_time": 1, "sleep_ms": 600_000 });
    let mut jobs = Vec::new();
    for (point, _) in master::points(&[master::Scenario::Withdrawn]) {
        let job = client.submit("dummy", &config).await;
        let path = format!("/api/v1/jobs/{job}");
        let all = |job: &Value, state: &str| {
            let parties = job["parties"].as_array().into_iter().flatten();
            parties.filter(|party| party["state"] == state).count() == 2
        };
        client.until(&path, |job| all(job, "running")).await;
        federation.parties[0].master.kill().await;
        assert!(
            start_doomed(&mut federation.parties[0].master, &point).await,
            "{point} is passed with a job only"
        );
        let body = json!({ "reason": "not needed" });
        // An effect leaves after the answer; whether that gets out is not known.
        drop(client.post(&format!("{path}:cancel"), &body).await);
        died(&mut federation.parties[0].master).await;
        if point.ends_with(".leaving") {
            dies_again(&mut federation.parties[0].master).await;
        }
        start_again(&mut federation.parties[0].master).await;
        let told = client.until(&path, |job| all(job, "cancelled")).await;
        assert_eq!(told["state"], "cancelled", "after {point}, {}: {told}", row_of(&point));
        assert_eq!(told["proposal"]["status"], "cancelled", "after {point}: {told}");
        jobs.push(job);
    }
    let dir = federation.dir.path().join("p1-master");
    let left = at_rest(&mut federation.parties[0].master, &dir, "master", open_of_master).await;
    for job in &jobs {
        let owed = |event: &&Event| matches!(event, Event::WithdrawalOwed { job: of, .. } if of.as_str() == job);
        let sent = |event: &&Event| matches!(event, Event::WithdrawalSent { job: of } if of.as_str() == job);
        let times = (left.events.iter().filter(owed).count(), left.events.iter().filter(sent).count());
        assert_eq!(times, (1, 1), "{job}: each once");
    }
    left.check_replay("master", party_master::Master::new(rules_of_master()));
}
