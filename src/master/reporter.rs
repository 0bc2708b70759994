//! What this party tells a coordinator of ours about the tasks it won, and what it is told about them: how they stand, and that one is to stop. And
//! that a job of its own is no longer wanted.
//!
//! A report or withdrawal is sent until it is answered; the coordinator counts it once. Orders come on a stream that is opened again whenever it breaks; all that
//! are open come again then. A coordinator of release 0.1 takes no reports and gives no orders.

use super::Shared;
use super::follower::signed;
use crate::engine::Refusal;
use crate::machine::ids::{JobId, ProposalId, TaskKey};
use crate::machine::master::federation::{PeerState, Report, Withdrawal};
use crate::machine::master::{Command, Key, Record};
use crate::machine::outcome::End;
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, PeerKind, Probe};
use crate::wire::fedbroker::v1::federation_client::FederationClient;
use crate::wire::fedbroker::v1::{CancelJobRequest, Order, OrdersRequest, ReportTaskRequest, TaskState};
use crate::wire::metered::Channel;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// Reports and withdrawals in flight at once.
const IN_FLIGHT: usize = 64;
/// How long one may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How often a coordinator that gives no orders is asked whether it has become one that does.
const SILENT_PAUSE: Duration = Duration::from_secs(30);

/// Sends reports, listens to orders. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reporter {
    shared: Shared,
    channel: Channel,
    probe: Probe,
    in_flight: Arc<Semaphore>,
}

impl Reporter {
    pub(super) fn start(shared: &Shared, channel: Channel, probe: Probe) -> Self {
        let reporter = Self {
            shared: shared.clone(),
            probe,
            channel,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
        };
        shared.supervisor.spawn("orders", Policy::Essential, reporter.clone().listen());
        reporter
    }

    /// Tell the coordinator what is owed on a proposal.
    pub(super) fn report(&self, proposal: ProposalId, number: u64) {
        let reporter = self.clone();
        self.shared.supervisor.spawn("report", Policy::Passing, async move {
            let mut backoff = Backoff::new();
            // What is owed may have become something else while this waited, and then somebody else tells it.
            while let Some(report) = reporter.owed(&proposal).await.filter(|report| report.number == number) {
                let permit = reporter.in_flight.acquire().await;
                let answer = tokio::time::timeout(CALL_LIMIT, reporter.call(&proposal, &report)).await;
                drop(permit);
                match answer {
                    Ok(Ok(())) => {}
                    Ok(Err(status)) if is_refusal(&status) => {
                        tracing::warn!(%proposal, task = %report.key, why = status.message(), "the coordinator does not take a report");
                    }
                    Ok(Err(status)) => {
                        tracing::debug!(%proposal, why = status.message(), "a report failed, sending again");
                        reporter.probe.forget();
                        backoff.wait().await;
                        continue;
                    }
                    Err(_) => {
                        reporter.probe.forget();
                        continue;
                    }
                }
                let command = Command::Reported {
                    proposal: proposal.clone(),
                    number,
                };
                if let Err(Refusal::Rejected(late)) = reporter.shared.handle.send(command).await {
                    tracing::debug!(%late, "there is more to tell by now");
                }
                return;
            }
        });
    }

    /// Tell the coordinator that a job is no longer wanted, until it knows. One of FedVision 0.1 or of release 0.1 is told nothing.
    pub(super) fn withdraw(&self, job: JobId) {
        let reporter = self.clone();
        self.shared.supervisor.spawn("withdraw", Policy::Passing, async move {
            let mut backoff = Backoff::new();
            while let Some(Record::Withdrawal(withdrawal)) = reporter.shared.record(Key::Withdrawal(job.clone())).await {
                let permit = reporter.in_flight.acquire().await;
                let answer = tokio::time::timeout(CALL_LIMIT, reporter.call_off(&job, &withdrawal)).await;
                drop(permit);
                match answer {
                    Ok(Ok(())) => {}
                    Ok(Err(status)) if is_refusal(&status) => {
                        tracing::warn!(%job, why = status.message(), "the coordinator does not take a cancellation");
                    }
                    Ok(Err(status)) => {
                        tracing::debug!(%job, why = status.message(), "a cancellation failed, sending again");
                        reporter.probe.forget();
                        backoff.wait().await;
                        continue;
                    }
                    Err(_) => {
                        reporter.probe.forget();
                        continue;
                    }
                }
                if let Err(Refusal::Rejected(late)) = reporter.shared.handle.send(Command::Withdrawn { job }).await {
                    tracing::debug!(%late, "it was told before");
                }
                return;
            }
        });
    }

    /// `Ok` as well when there is nobody to tell.
    async fn call_off(&self, job: &JobId, withdrawal: &Withdrawal) -> Result<(), Status> {
        if self.probe.kind().await? == PeerKind::FedVision {
            return Ok(());
        }
        let request = CancelJobRequest {
            job_id: job.as_str().to_owned(),
            job_type: withdrawal.job_type.as_str().to_owned(),
            reason: withdrawal.reason.clone(),
        };
        let mut client = FederationClient::new(self.channel.clone());
        match client.cancel_job(signed(request, &self.shared.instance)).await {
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn owed(&self, proposal: &ProposalId) -> Option<Report> {
        match self.shared.record(Key::Report(proposal.clone())).await {
            Some(Record::Report(report)) => Some(report),
            _ => None,
        }
    }

    /// `Ok` as well when there is nobody to tell.
    async fn call(&self, proposal: &ProposalId, report: &Report) -> Result<(), Status> {
        if self.probe.kind().await? == PeerKind::FedVision {
            return Ok(());
        }
        let state = match report.state {
            PeerState::Running => TaskState::Running,
            PeerState::Ended(End::Succeeded) => TaskState::Succeeded,
            PeerState::Ended(End::Failed) => TaskState::Failed,
            PeerState::Ended(End::Cancelled) => TaskState::Cancelled,
            PeerState::Unknown => return Ok(()),
        };
        let request = ReportTaskRequest {
            party_id: self.shared.party.as_str().to_owned(),
            proposal_id: proposal.as_str().to_owned(),
            job_id: report.key.job.as_str().to_owned(),
            task_id: report.key.task.as_str().to_owned(),
            state: state.into(),
            reason: report.reason.clone(),
        };
        let mut client = FederationClient::new(self.channel.clone());
        match client.report_task(signed(request, &self.shared.instance)).await {
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Take orders, for as long as the role runs.
    async fn listen(self) {
        let mut backoff = Backoff::new();
        loop {
            // Only one that takes part can be chosen, and only one that the coordinator knows is listened to.
            self.shared.subscription.connected().await;
            match self.probe.kind().await {
                Ok(PeerKind::Fedbroker { .. }) => match self.orders(&mut backoff).await {
                    Ok(()) => tracing::debug!("the orders ended, listening again"),
                    Err(status) if status.code() == Code::Unimplemented => tokio::time::sleep(SILENT_PAUSE).await,
                    Err(status) => tracing::debug!(why = status.message(), "the orders broke off, listening again"),
                },
                Ok(PeerKind::FedVision) => tokio::time::sleep(SILENT_PAUSE).await,
                Err(status) => tracing::debug!(why = status.message(), "the coordinator cannot be reached"),
            }
            self.probe.forget();
            backoff.wait().await;
        }
    }

    async fn orders(&self, backoff: &mut Backoff) -> Result<(), Status> {
        let party_id = self.shared.party.as_str().to_owned();
        let request = signed(OrdersRequest { party_id }, &self.shared.instance);
        let mut orders = FederationClient::new(self.channel.clone()).orders(request).await?.into_inner();
        while let Some(order) = orders.message().await? {
            backoff.reset();
            self.ordered(order).await;
        }
        Ok(())
    }

    async fn ordered(&self, order: Order) {
        let ids = ProposalId::parse(order.proposal_id).and_then(|proposal| Ok((proposal, TaskKey::parse(order.job_id, order.task_id)?)));
        let (proposal, key) = match ids {
            Ok(ids) => ids,
            Err(error) => return tracing::warn!(%error, "the coordinator ordered something that cannot be"),
        };
        tracing::info!(%proposal, task = %key, reason = order.reason, "ordered to stop a task");
        let reason = order.reason;
        if let Err(Refusal::Rejected(late)) = self.shared.handle.send(Command::StopOrdered { proposal, key, reason }).await {
            tracing::debug!(%late, "an order for nothing");
        }
    }
}

/// True when asking again would bring the same.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::OutOfRange
    )
}
