//! The door of the federation: stays subscribed to the coordinator, and fetches the tasks of the proposals the machine wants.
//!
//! Never deaf for longer than the backoff: a broken stream, a coordinator that went away and a party that is still enrolled from before a
//! crash all lead back to Subscribe. No Leave at shutdown: at a FedVision 0.1 coordinator it would break other parties' proposals.

use super::Shared;
use crate::engine::Refusal;
use crate::machine::ids::{ProposalId, TaskKey, TypeName};
use crate::machine::master::{Command, WonTask};
use crate::store::payload::Pinned;
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, MESSAGE_MAX, PeerKind, hello};
use crate::wire::fedvision::framework::Task as WireTask;
use crate::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use crate::wire::fedvision::framework::coordinator::{fetch_task, leave, subscribe};
use crate::wire::metadata;
use prost::Message;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How long a Leave may take. At a FedVision 0.1 coordinator that has offered the party anything since its stream died, it never returns.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// One FetchTask call is open until the proposal's window closes; longer windows are covered by asking again.
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// NOT_ALLOW means that the coordinator does not know this party now; a Subscribe may be under way.
const NOT_ALLOW_TRIES: u32 = 6;

/// Keeps the subscription and fetches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Subscriber {
    shared: Shared,
    coordinator: Channel,
    job_types: Vec<String>,
}

/// How one subscription ended.
enum Ended {
    /// The coordinator still has this party enrolled. One of ours says so only when another process holds the party, and lets this one in
    /// once that one is gone; a FedVision 0.1 one has to be told to forget it.
    Duplicate(PeerKind),
    /// The stream ended, after it had worked.
    Broken(String),
}

impl Subscriber {
    pub(super) fn new(shared: Shared, coordinator: Channel, job_types: Vec<String>) -> Self {
        Self {
            shared,
            coordinator,
            job_types,
        }
    }

    fn client(&self) -> CoordinatorClient<Channel> {
        CoordinatorClient::new(self.coordinator.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// Subscribe, and again whenever the subscription ends.
    pub(super) fn start(&self) {
        let subscriber = self.clone();
        self.shared.supervisor.spawn("subscriber", Policy::Essential, async move {
            let mut backoff = Backoff::new();
            loop {
                let trouble = match subscriber.subscribe(&mut backoff).await {
                    Ok(Ended::Duplicate(PeerKind::FedVision)) => subscriber.leave().await,
                    Ok(Ended::Duplicate(PeerKind::Fedbroker { .. })) => "another process takes part under this party id".to_owned(),
                    Ok(Ended::Broken(why)) => format!("the subscription ended: {why}"),
                    Err(status) => format!("the coordinator cannot be reached: {}", status.message()),
                };
                tracing::warn!(why = trouble, "not subscribed, trying again");
                subscriber.shared.subscription.set(false, Some(trouble));
                backoff.wait().await;
            }
        });
    }

    async fn subscribe(&self, backoff: &mut Backoff) -> Result<Ended, Status> {
        let kind = hello(self.coordinator.clone(), "master").await?;
        let mut request = Request::new(subscribe::Req {
            party_id: self.shared.party.as_str().to_owned(),
            job_types: self.job_types.clone(),
            credential: String::new(),
        });
        if let (PeerKind::Fedbroker { .. }, Ok(instance)) = (&kind, self.shared.instance.parse()) {
            request.metadata_mut().insert(metadata::INSTANCE, instance);
        }
        // A FedVision 0.1 coordinator sends nothing, not even headers, before the first offer: this call may be pending for days, and a
        // time-out on it would leave the party enrolled and dead.
        let silent = kind == PeerKind::FedVision;
        if silent {
            self.shared
                .subscription
                .set(true, Some("a FedVision 0.1 coordinator does not confirm a subscription".to_owned()));
        }
        let mut client = self.client();
        let response = client.subscribe(request).await?;
        let enrolled = response.metadata().contains_key(metadata::ENROLLED);
        let mut offers = response.into_inner();
        if enrolled {
            self.shared.subscription.set(true, None);
            backoff.reset();
            tracing::info!(party = %self.shared.party, job_types = ?self.job_types, "subscribed");
        }
        loop {
            let offer = match offers.message().await {
                Ok(Some(offer)) => offer,
                Ok(None) => return Ok(Ended::Broken("the coordinator ended the stream".to_owned())),
                Err(status) => return Ok(Ended::Broken(status.message().to_owned())),
            };
            match offer.status() {
                subscribe::Status::DuplicateEnroll => return Ok(Ended::Duplicate(kind)),
                subscribe::Status::NotServing => return Ok(Ended::Broken("the coordinator is not serving".to_owned())),
                subscribe::Status::Success => {
                    backoff.reset();
                    self.offered(offer).await;
                }
            }
        }
    }

    async fn offered(&self, offer: subscribe::Rep) {
        let ids = ProposalId::parse(offer.proposal_id).and_then(|proposal| Ok((proposal, TypeName::parse(offer.job_type)?)));
        match ids {
            Ok((proposal, job_type)) => {
                tracing::debug!(%proposal, %job_type, "offered");
                let _ = self.shared.handle.send(Command::Offered { proposal, job_type }).await;
            }
            Err(error) => tracing::warn!(%error, "the coordinator offered something that cannot be fetched"),
        }
    }

    /// Make the coordinator forget this party's earlier enrolment; says what came of it.
    async fn leave(&self) -> String {
        let party_id = self.shared.party.as_str().to_owned();
        match tokio::time::timeout(LEAVE_LIMIT, self.client().leave(leave::Req { party_id })).await {
            Ok(Ok(_)) => "the party was still enrolled from before; it has left and subscribes again".to_owned(),
            Ok(Err(status)) => format!("the party is still enrolled from before, and cannot leave: {}", status.message()),
            Err(_) => {
                "the coordinator has this party enrolled from before and does not let it leave: it gets no offers until that coordinator \
                       is restarted, or the party takes another id"
                    .to_owned()
            }
        }
    }

    /// Fetch the task of a proposal, for as long as it takes.
    pub(super) fn fetch(&self, proposal: ProposalId) {
        let subscriber = self.clone();
        self.shared.supervisor.spawn("fetch", Policy::Passing, async move {
            let task = subscriber.task_of(&proposal).await;
            let (result, pins) = match task {
                Ok(task) => match subscriber.won(task).await {
                    Ok((won, pin)) => (Ok(won), pin.into_iter().collect()),
                    Err(reason) => (Err(reason), Vec::new()),
                },
                Err(reason) => (Err(reason), Vec::new()),
            };
            match &result {
                Ok(won) => tracing::info!(%proposal, task = %won.key, "won a task"),
                Err(reason) => tracing::info!(%proposal, reason, "no task"),
            }
            if let Err(Refusal::Rejected(late)) = subscriber
                .shared
                .handle
                .send_pinned(Command::Fetched { proposal, result }, pins)
                .await
            {
                tracing::debug!(%late, "a late fetch");
            }
        });
    }

    async fn won(&self, task: WireTask) -> Result<(WonTask, Option<Pinned>), String> {
        let key = TaskKey::parse(task.job_id.clone(), task.task_id.clone()).map_err(|error| error.to_string())?;
        let task_type = TypeName::parse(task.task_type.clone()).map_err(|error| error.to_string())?;
        // An old coordinator may never give the task again, so a full disk must not lose it.
        let kept = self.shared.keep_patiently(task.encode_to_vec()).await;
        let (content, pin) = kept.map_err(|error| format!("cannot keep the task: {error:#}"))?;
        Ok((WonTask { key, task_type, content }, pin))
    }

    /// The task, or why there is none.
    async fn task_of(&self, proposal: &ProposalId) -> Result<WireTask, String> {
        let mut backoff = Backoff::new();
        let mut not_allowed = 0;
        loop {
            let request = fetch_task::Req {
                party_id: self.shared.party.as_str().to_owned(),
                proposal_id: proposal.as_str().to_owned(),
            };
            match tokio::time::timeout(FETCH_LIMIT, self.client().fetch_task(request)).await {
                Ok(Ok(reply)) => {
                    let reply = reply.into_inner();
                    match reply.status() {
                        fetch_task::Status::Ready => return reply.task.ok_or_else(|| "the coordinator sent no task".to_owned()),
                        fetch_task::Status::NotFound => return Err("the coordinator does not know the proposal".to_owned()),
                        fetch_task::Status::Timeout => return Err("the proposal closed meanwhile".to_owned()),
                        fetch_task::Status::Canceled => return Err("cancelled: not enough parties answered".to_owned()),
                        fetch_task::Status::RandomOut => return Err("drawn out: more parties answered than were needed".to_owned()),
                        fetch_task::Status::NotAllow if not_allowed + 1 >= NOT_ALLOW_TRIES => {
                            return Err("the coordinator does not let this party fetch".to_owned());
                        }
                        fetch_task::Status::NotAllow => not_allowed += 1,
                    }
                }
                Ok(Err(status))
                    if matches!(
                        status.code(),
                        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented | Code::DataLoss
                    ) =>
                {
                    return Err(format!("the coordinator refused the fetch: {}", status.message()));
                }
                Ok(Err(status)) => tracing::debug!(%proposal, why = status.message(), "fetch failed, trying again"),
                // A 0.1 coordinator whose proposer vanished never closes the window.
                Err(_) if matches!(hello(self.coordinator.clone(), "master").await, Ok(PeerKind::FedVision)) => {
                    return Err("the coordinator did not answer for an hour".to_owned());
                }
                Err(_) => {}
            }
            backoff.wait().await;
        }
    }
}
