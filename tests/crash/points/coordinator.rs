//! The coordinator, killed at each of its crash points: between two masters of ours, between parties played by the test, and with a proposal that
//! closed long ago.

use super::paper::{of_every_durable_role, points_of, row_of};
use super::{
    at_rest, check_payload_files, check_remains, died, dies_again, dummy, is_in_every_commit, next_submission, past, skipped, start_again,
    start_doomed, submit, times,
};
use crate::federation::load::Ledger;
use crate::federation::remains::History;
use crate::support::{DEADLINE, Federation, Role};
use fedbroker::machine::content::Content;
use fedbroker::machine::coordinator::{self, Command, Coordinator, Key, Record, State};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskId, TypeName};
use fedbroker::wire::connect::channel;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{leave, proposal, subscribe};
use fedbroker::wire::metadata;
use std::future::Future;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// What drives a coordinator to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Its start.
    Start,
    /// Its parties come back to it.
    PartiesCome,
    /// A party dies.
    PartyGoes,
    /// A job of a party.
    Job,
    /// A party leaves: this and all below with parties that the test plays.
    Leave,
    /// A party subscribes once more.
    Twice,
    /// A proposal whose task is a payload file.
    Large,
    /// A proposal that closed long ago.
    Aged,
    /// One that expired longer ago than is kept: in `retention`.
    Forgotten,
    /// A job that is cancelled while a party has its task: in `unwanted`.
    Unwanted,
}

/// The scenario of each point.
pub fn scenario(point: &str) -> Scenario {
    use Scenario::{Aged, Forgotten, Job, Large, Leave, PartiesCome, PartyGoes, Start, Twice, Unwanted};
    match point.rsplit_once('.').unwrap().0 {
        "coordinator.started" => Start,
        "coordinator.subscribe" | "store" => PartiesCome,
        "coordinator.stream_broken" => PartyGoes,
        "coordinator.propose" | "coordinator.offer" | "coordinator.close_at" | "coordinator.fetch" => Job,
        "coordinator.close" | "coordinator.closed" | "coordinator.expire_at" => Job,
        "coordinator.report" | "coordinator.changed" => Job,
        "coordinator.cancel" | "coordinator.stop" | "coordinator.order" => Unwanted,
        "coordinator.leave" => Leave,
        "coordinator.close_stream" => Twice,
        "coordinator.expire" => Aged,
        "coordinator.forget" => Forgotten,
        "payload" => Large,
        _ => panic!("{point} has no scenario: say what drives a coordinator to it"),
    }
}

/// Every point of this role.
pub fn every_point() -> Vec<(String, Scenario)> {
    let points = points_of::<Coordinator>().into_iter().chain(of_every_durable_role());
    points.map(|point| (point.clone(), scenario(&point))).collect()
}

pub fn points(of: &[Scenario]) -> Vec<(String, Scenario)> {
    every_point().into_iter().filter(|(_, scenario)| of.contains(scenario)).collect()
}

/// The window of a job, seconds. It stays open for those who come back after a crash.
const WINDOW_S: u32 = 1;

fn comes(federation: &Federation) -> usize {
    let log = federation.coordinator.log();
    log.matches("party subscribed party=").count()
}

/// Wait until the parties have subscribed so many times in all.
async fn subscribed(federation: &Federation, times: usize) {
    let deadline = Instant::now() + DEADLINE;
    while comes(federation) < times {
        assert!(
            Instant::now() < deadline,
            "the parties did not come back\n{}",
            federation.coordinator.log()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// [`subscribed`], or false when the coordinator has died before.
async fn subscribed_or_dead(federation: &mut Federation, times: usize) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while comes(federation) < times {
        if !federation.coordinator.runs() {
            return false;
        }
        assert!(Instant::now() < deadline, "the parties did not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// One death of the coordinator, and what came of the proposal that was open, or that was made after it.
async fn one(federation: &mut Federation, ledger: &Ledger, scenario: Scenario, spec: &str, closed: usize) {
    let point = spec.split(':').next().unwrap().to_owned();
    // Every proposal that has closed is to expire: a start asks for that as well.
    let spec = if point == "coordinator.expire_at.leaving" {
        format!("{point}:{}", closed + 1)
    } else {
        spec.to_owned()
    };
    let client = federation.client(0);
    let before = comes(federation);
    let ready = start_doomed(&mut federation.coordinator, &spec).await;
    let mut job = None;
    let submission = dummy(2, WINDOW_S, 0, false);
    let number = next_submission(ledger, false, &submission);
    if ready {
        match scenario {
            Scenario::Job => {
                let back = subscribed_or_dead(federation, before + 2).await;
                if back {
                    job = submit(&client, ledger, number, submission.clone()).await;
                }
            }
            Scenario::PartyGoes => {
                subscribed(federation, before + 2).await;
                federation.parties[1].master.kill().await;
            }
            _ => {}
        }
        died(&mut federation.coordinator).await;
    }
    if matches!(point.as_str(), "coordinator.close_at.leaving" | "coordinator.expire_at.leaving") {
        dies_again(&mut federation.coordinator).await;
    }
    let before = comes(federation);
    start_again(&mut federation.coordinator).await;
    if !federation.parties[1].master.runs() {
        federation.parties[1].master.start().await;
    }
    match job {
        Some(job) => {
            let ended = client.ended(&job).await;
            assert_eq!(ended["state"], "success", "after {spec}, {}: {ended}", row_of(&point));
        }
        None => {
            subscribed(federation, before + 2).await;
            if scenario == Scenario::Job {
                // What the job before it left to be reported came as soon as a party was back, and was told to who follows that job.
                let reported = point.starts_with("coordinator.report.") || point == "coordinator.changed.leaving";
                assert!(reported, "{spec} is passed with a job only");
                let job = submit(&client, ledger, number, submission).await.expect("nothing dies here");
                assert_eq!(client.ended(&job).await["state"], "success", "after {spec}, {}", row_of(&point));
            }
        }
    }
    federation.coordinator.kill().await;
}

/// One federation, for these points one after the other.
async fn lane(points: &[(String, Scenario)]) {
    let mut federation = Federation::start(2).await;
    federation.coordinator.kill().await;
    let ledger = Ledger::default();
    let mut closed = 0;
    for (point, scenario) in points {
        // The first batch of a start is its own, the second says so, the third has the first party.
        let of: &[u32] = if is_in_every_commit(point) { &[1, 2, 3] } else { &[1] };
        for spec in times(point, of) {
            one(&mut federation, &ledger, *scenario, &spec, closed).await;
        }
        closed += usize::from(*scenario == Scenario::Job);
    }
    start_again(&mut federation.coordinator).await;
    check_remains(&mut federation, &ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_whose_parties_come_and_go() {
    if skipped() {
        return;
    }
    lane(&points(&[Scenario::Start, Scenario::PartiesCome, Scenario::PartyGoes])).await;
}

/// Windows take most of the time, so two federations share the points.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_with_a_proposal() {
    if skipped() {
        return;
    }
    let points = points(&[Scenario::Job]);
    let (one, other) = points.split_at(points.len() / 2);
    tokio::join!(lane(one), lane(other));
}

/// A coordinator alone.
pub struct Lonely {
    pub dir: tempfile::TempDir,
    pub role: Role,
}

impl Lonely {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let args = ["coordinator", "--port", "0", "--settle", "0", "--data-dir", data.to_str().unwrap()];
        let mut role = Role::new("coordinator", dir.path(), &args);
        role.reserve_port();
        role.start().await;
        Self { dir, role }
    }

    pub fn client(&self) -> CoordinatorClient<Channel> {
        CoordinatorClient::new(channel(&self.role.address).unwrap())
    }

    /// Of a type that nobody proposes. Fails unless the party is enrolled.
    pub async fn subscribe(&self, party: &str, instance: &'static str) -> Result<Streaming<subscribe::Rep>, Status> {
        let mut request = Request::new(subscribe::Req {
            party_id: party.into(),
            job_types: vec!["guest".into()],
            credential: String::new(),
        });
        let instance = tonic::metadata::MetadataValue::from_static(instance);
        request.metadata_mut().insert(metadata::INSTANCE, instance);
        let response = soon(self.client().subscribe(request)).await?;
        match response.metadata().contains_key(metadata::ENROLLED) {
            true => Ok(response.into_inner()),
            false => Err(Status::already_exists("refused")),
        }
    }

    async fn leave(&self, party: &str) -> Result<leave::Status, Status> {
        let party_id = party.into();
        let reply = soon(self.client().leave(leave::Req { party_id })).await?;
        Ok(reply.into_inner().status())
    }

    /// In the name of the initiator `me`.
    pub async fn propose(&self, job: &str) -> Result<proposal::Status, Status> {
        let value = vec![b'x'; 2000];
        let any = fedbroker::wire::Any {
            type_url: "t".into(),
            value: value.into(),
        };
        let task = Task {
            job_id: job.into(),
            task_id: "t".into(),
            task_type: "guest".into(),
            task: Some(any),
            assignee: String::new(),
        };
        let request = proposal::Req {
            job_id: job.into(),
            job_type: "guest".into(),
            tasks: vec![task],
            proposal_wait_time: 1,
            minimum_acceptance: 1,
            maximum_acceptance: 1,
        };
        let mut call = Request::new(request);
        let me = tonic::metadata::MetadataValue::from_static("me");
        call.metadata_mut().insert(metadata::INSTANCE, me);
        Ok(soon(self.client().proposal(call)).await?.into_inner().status())
    }
}

pub async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, call).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_with_other_parties() {
    if skipped() {
        return;
    }
    let mut lonely = Lonely::start().await;
    let data = lonely.dir.path().join("data");
    for (point, scenario) in points(&[Scenario::Leave, Scenario::Twice, Scenario::Large]) {
        lonely.role.kill().await;
        assert!(start_doomed(&mut lonely.role, &point).await, "{point} is passed with a party only");
        let party = format!("of-{point}");
        let stream = lonely.subscribe(&party, "one").await.unwrap();
        match scenario {
            Scenario::Leave => assert!(lonely.leave(&party).await.is_err(), "it was answered before {point}"),
            // The second stream has its answer before the first one is told; whether that gets out is not known.
            Scenario::Twice => drop(lonely.subscribe(&party, "one").await),
            _ => assert!(lonely.propose(&point).await.is_err(), "it was answered before {point}"),
        }
        died(&mut lonely.role).await;
        drop(stream);
        start_again(&mut lonely.role).await;
        match scenario {
            Scenario::Leave => {
                let expected = if point.ends_with(".taken") {
                    leave::Status::Success
                } else {
                    leave::Status::NotFound
                };
                assert_eq!(lonely.leave(&party).await.unwrap(), expected, "after {point}");
            }
            Scenario::Twice => drop(lonely.subscribe(&party, "one").await.expect("ours is let in again")),
            _ => {
                check_payload_files(&lonely.role, &data);
                let stream = lonely.subscribe(&party, "one").await.unwrap();
                let status = lonely.propose(&point).await.unwrap();
                assert_eq!(status, proposal::Status::NotEnoughResponders, "after {point}");
                drop(stream);
            }
        }
    }
    let left = at_rest(&mut lonely.role, &data, "coordinator", |_| Vec::new()).await;
    left.check_replay("coordinator", machine());
    let gone = |point: &str| {
        !left
            .records
            .contains_key(&Key::Party(PartyId::parse(format!("of-{point}")).unwrap()))
    };
    assert!(gone("coordinator.leave.taken") && gone("coordinator.leave.durable"));
}

pub fn machine() -> Coordinator {
    Coordinator::new(coordinator::Rules {
        settle_ms: 0,
        party_lease_ms: 60_000,
        keep_closed_ms: 3_600_000,
    })
}

/// Nobody waits an hour for this: the proposal closed long ago, and its task is a payload file.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_coordinator_with_an_old_proposal() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let job = JobId::parse("job").unwrap();
    for (point, _) in points(&[Scenario::Aged]) {
        assert_eq!(row_of(&point), "the coordinator, with a proposal closed");
        let data = dir.path().join(&point);
        let (party, job_type) = (PartyId::parse("p").unwrap(), TypeName::parse("dummy").unwrap());
        let subscribe = Command::Subscribe {
            party: party.clone(),
            session: 1,
            job_types: vec![job_type.clone()],
            instance: None,
        };
        let propose = Command::Propose {
            job_id: job.clone(),
            job_type,
            tasks: vec![(TaskId::parse("t").unwrap(), Content::Inline(vec![1; 100]))],
            wait_s: 3,
            min: 1,
            max: 1,
            fingerprint: [1; 32],
            owner: None,
        };
        let proposal = ProposalId::parse("job-coo_1").unwrap();
        let fetch = Command::Fetch { party, proposal };
        let commands = vec![Command::Started, subscribe, propose, fetch, Command::Close { job: job.clone() }];
        past::make(&data, "coordinator", machine(), Duration::from_secs(2 * 3600), commands).await;
        let args = ["coordinator", "--port", "0", "--data-dir", data.to_str().unwrap()];
        let mut role = Role::new("coordinator", dir.path(), &args);
        if start_doomed(&mut role, &point).await {
            died(&mut role).await;
        }
        start_again(&mut role).await;
        let kept = |history: &History<Coordinator>| match history.records.get(&Key::Proposal(job.clone())) {
            Some(Record::Proposal(proposal)) if matches!(proposal.state, State::Expired { .. }) => Vec::new(),
            other => vec![format!("{other:?}")],
        };
        let left = at_rest(&mut role, &data, "coordinator", kept).await;
        let expired = left
            .events
            .iter()
            .filter(|event| matches!(event, coordinator::Event::Expired { .. }));
        assert_eq!(expired.count(), 1, "after {point}: {:?}", left.events);
        let of_it = |key: &&Key| matches!(key, Key::Task(..) | Key::Participant(..));
        assert_eq!(
            left.records.keys().filter(of_it).count(),
            0,
            "after {point} something of it is kept"
        );
        left.check_replay("coordinator", machine());
    }
}
