//! The master at a coordinator of FedVision 0.1, which neither says what it is nor joins a call to one that is open: a stand-in that counts.

use super::master::{Scenario, every_point};
use super::paper::row_of;
use super::{
    at_rest, check_job, check_payload_files, died, dummy, next_submission, open_of_master, skipped, start_again, start_doomed, submit,
};
use crate::federation::load::Ledger;
use crate::support::Federation;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_server::{Coordinator, CoordinatorServer};
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, leave, proposal, subscribe};
use fedbroker::wire::serve;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

/// Says yes to every proposal, and never offers one.
#[derive(Clone, Default)]
struct Old {
    proposals: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Coordinator for Old {
    type SubscribeStream = ReceiverStream<Result<subscribe::Rep, Status>>;

    /// As 0.1: silent until the first offer, headers too.
    async fn subscribe(&self, _: Request<subscribe::Req>) -> Result<Response<Self::SubscribeStream>, Status> {
        std::future::pending().await
    }

    async fn proposal(&self, _: Request<proposal::Req>) -> Result<Response<proposal::Rep>, Status> {
        self.proposals.fetch_add(1, Ordering::SeqCst);
        let status = proposal::Status::Success.into();
        Ok(Response::new(proposal::Rep { status }))
    }

    async fn fetch_task(&self, _: Request<fetch_task::Req>) -> Result<Response<fetch_task::Rep>, Status> {
        let status = fetch_task::Status::NotFound.into();
        Ok(Response::new(fetch_task::Rep { status, task: None }))
    }

    async fn leave(&self, _: Request<leave::Req>) -> Result<Response<leave::Rep>, Status> {
        let status = leave::Status::Success.into();
        Ok(Response::new(leave::Rep { status }))
    }
}

impl Old {
    #[expect(clippy::disallowed_methods, reason = "a test's own server")]
    async fn start(address: &str) -> Self {
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let (listener, _) = serve::bind("127.0.0.1", port).await.unwrap();
        let old = Self::default();
        let router = serve::server().add_service(CoordinatorServer::new(old.clone()));
        tokio::spawn(async move { router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
        old
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_master_at_an_old_coordinator() {
    if skipped() {
        return;
    }
    let mut federation = Federation::planned(1, &[], &[]);
    let old = Old::start(&federation.coordinator.address).await;
    let dir = federation.dir.path().join("p1-master");
    let party = &mut federation.parties[0];
    party.manager.start().await;
    party.worker.start().await;
    let client = crate::support::Client::new(&party.master.address);
    let ledger = Ledger::default();
    for (point, _) in every_point().into_iter().filter(|(_, scenario)| *scenario == Scenario::Legacy) {
        assert_eq!(row_of(&point), "the Proposal call is out");
        // Not durable: the call has not gone out, and goes out once. Durable: it may be out, and nobody can tell.
        let (end, calls) = if point.ends_with(".taken") { ("success", 1) } else { ("failed", 0) };
        let before = old.proposals.load(Ordering::SeqCst);
        let submission = dummy(1, 1, 0, false);
        let number = next_submission(&ledger, false, &submission);
        assert!(start_doomed(&mut party.master, &point).await, "{point} is passed with a job only");
        let (answer, ()) = tokio::join!(submit(&client, &ledger, number, submission), died(&mut party.master));
        start_again(&mut party.master).await;
        let ended = client.ended(&answer.expect("the proposal comes long after the answer")).await;
        assert_eq!(ended["state"], end, "after {point}: {ended}");
        if end == "failed" {
            assert_eq!(ended["reason"], "proposal outcome unknown", "after {point}: {ended}");
        }
        assert_eq!(old.proposals.load(Ordering::SeqCst) - before, calls, "Proposal calls with {point}");
        let left = at_rest(&mut party.master, &dir, "master", open_of_master).await;
        check_job(&left, number, &[Some(end)], &point);
    }
    start_again(&mut party.master).await;
    check_payload_files(&party.master, &dir);
}
