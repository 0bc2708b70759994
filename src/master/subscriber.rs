//! The door of the federation: stays subscribed to the coordinator, and fetches the tasks of the proposals the machine wants.
//!
//! Never deaf for longer than the backoff: a broken stream, a coordinator that went away and a party that is still enrolled from before a
//! crash all lead back to Subscribe. No Leave at shutdown: at a FedVision 0.1 coordinator it would break other parties' proposals.

use super::settings::Patience;
use super::waiting::Line;
use super::{Shared, SubscriptionState};
use crate::engine::Refusal;
use crate::machine::ids::{ProposalId, TaskKey, TypeName};
use crate::machine::master::{Command, WonTask};
use crate::metrics::Peers;
use crate::store::payload::Pinned;
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, MESSAGE_MAX, PeerKind, Probe, hello};
use crate::wire::fedvision::framework::Task as WireTask;
use crate::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use crate::wire::fedvision::framework::coordinator::{fetch_task, leave, subscribe};
use crate::wire::metadata;
use crate::wire::metered::Channel;
use crate::wire::pieces;
use std::future::Future;
use std::time::Duration;
use tonic::{Code, Request, Status};
use tracing::{Instrument, Span, field};

/// How long a Leave may take. At a FedVision 0.1 coordinator that has offered the party anything since its stream died, it never returns.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// A FedVision 0.1 coordinator refuses at once and says nothing when it takes a party: silence for so long is taken for a subscription.
const SILENCE_IS_CONSENT: Duration = Duration::from_secs(1);
/// What an operator must know: nothing this process does can mend it.
const BURNT: &str = "the coordinator has this party enrolled from before and does not let it leave: the party id is burnt, and gets no offers until that \
                     coordinator is restarted, or the party takes another id";
/// NOT_ALLOW means that the coordinator does not know this party now; a Subscribe may be under way.
const NOT_ALLOW_TRIES: u32 = 6;
/// The role of the peer, in metrics.
pub(super) const PEER: &str = "coordinator";

/// Keeps the subscription and fetches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Subscriber {
    shared: Shared,
    coordinator: Channel,
    probe: Probe,
    job_types: Vec<String>,
    /// One FetchTask call is open until the proposal's window closes; longer windows are covered by asking again.
    fetch_limit: Duration,
}

/// How one subscription ended.
enum Ended {
    /// The coordinator still has this party enrolled. One of ours says so only when another process holds the party, and lets this one in
    /// once that one is gone; a FedVision 0.1 one has to be told to forget it.
    Duplicate,
    /// The stream ended, after it had worked.
    Broken(String),
}

/// Why this party does not take part now.
enum Trouble {
    /// The coordinator does not let it in.
    Refused(String),
    /// It could not be asked, or the stream is gone.
    Passing(String),
}

impl Subscriber {
    pub(super) fn new(shared: Shared, (coordinator, probe): (Channel, Probe), job_types: Vec<String>, patience: &Patience) -> Self {
        Self {
            shared,
            coordinator,
            probe,
            job_types,
            fetch_limit: Duration::from_secs(patience.fetch_s),
        }
    }

    fn peers(&self) -> &Peers {
        self.shared.supervisor.metrics().peers()
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
                let (refused, trouble) = match subscriber.take_part(&mut backoff).await {
                    Trouble::Refused(trouble) => (true, trouble),
                    Trouble::Passing(trouble) => (false, trouble),
                };
                if subscriber.shared.subscription.get().trouble.as_ref() == Some(&trouble) {
                    tracing::debug!(why = trouble, "still not subscribed, trying again");
                } else {
                    tracing::warn!(why = trouble, "not subscribed, trying again");
                }
                subscriber.shared.subscription.set(SubscriptionState {
                    connected: false,
                    refused,
                    trouble: Some(trouble),
                });
                subscriber.peers().connected(PEER, false);
                subscriber.peers().reconnects(PEER).one();
                backoff.wait().await;
            }
        });
    }

    /// Until there is trouble; says which.
    async fn take_part(&self, backoff: &mut Backoff) -> Trouble {
        let cannot = |status: &Status| Trouble::Passing(format!("the coordinator cannot be reached: {}", status.message()));
        // Asked anew, and for all of this party who ask.
        self.probe.forget();
        let kind = match self.probe.kind().await {
            Ok(kind) => kind,
            Err(status) => return cannot(&status),
        };
        let mut has_left = false;
        loop {
            match self.subscribe(&kind, backoff).await {
                Ok(Ended::Duplicate) if kind == PeerKind::FedVision && !has_left => match self.leave().await {
                    // At once, over the same connection: until this party is back, nobody can propose what it takes part in.
                    Ok(()) => has_left = true,
                    Err(trouble) => return trouble,
                },
                Ok(Ended::Duplicate) => return Trouble::Refused("another process takes part under this party id".to_owned()),
                Ok(Ended::Broken(why)) => return Trouble::Passing(format!("the subscription ended: {why}")),
                Err(status) => return cannot(&status),
            }
        }
    }

    async fn subscribe(&self, kind: &PeerKind, backoff: &mut Backoff) -> Result<Ended, Status> {
        let mut request = Request::new(subscribe::Req {
            party_id: self.shared.party.as_str().to_owned(),
            job_types: self.job_types.clone(),
            credential: String::new(),
        });
        if let (PeerKind::Fedbroker { .. }, Ok(instance)) = (kind, self.shared.instance.parse()) {
            request.metadata_mut().insert(metadata::INSTANCE, instance);
        }
        let mut client = self.client();
        let call = client.subscribe(request);
        let response = match kind {
            PeerKind::Fedbroker { .. } => call.await?,
            PeerKind::FedVision => self.silently(call).await?,
        };
        let mut confirmed = response.metadata().contains_key(metadata::ENROLLED);
        let mut offers = response.into_inner();
        if confirmed {
            self.subscribed(None);
            backoff.reset();
        }
        loop {
            let offer = match offers.message().await {
                Ok(Some(offer)) => offer,
                Ok(None) => return Ok(Ended::Broken("the coordinator ended the stream".to_owned())),
                Err(status) => return Ok(Ended::Broken(status.message().to_owned())),
            };
            match offer.status() {
                subscribe::Status::DuplicateEnroll => return Ok(Ended::Duplicate),
                subscribe::Status::NotServing => return Ok(Ended::Broken("the coordinator is not serving".to_owned())),
                subscribe::Status::Success => {
                    if !std::mem::replace(&mut confirmed, true) {
                        self.subscribed(None);
                    }
                    backoff.reset();
                    self.offered(offer).await;
                }
            }
        }
    }

    /// A FedVision 0.1 coordinator sends nothing, not even headers, before the first offer: the call may be pending for days, and a time-out
    /// on it would leave the party enrolled and dead.
    async fn silently<T>(&self, call: impl Future<Output = T>) -> T {
        tokio::pin!(call);
        tokio::select! {
            answered = &mut call => return answered,
            () = tokio::time::sleep(SILENCE_IS_CONSENT) => {}
        }
        let unconfirmed = "a FedVision 0.1 coordinator does not confirm a subscription".to_owned();
        self.subscribed(Some(unconfirmed));
        call.await
    }

    fn subscribed(&self, trouble: Option<String>) {
        tracing::info!(party = %self.shared.party, job_types = ?self.job_types, but = trouble, "subscribed");
        self.peers().connected(PEER, true);
        self.shared.subscription.set(SubscriptionState {
            connected: true,
            refused: false,
            trouble,
        });
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

    /// Make the coordinator forget this party's earlier enrolment, or say why it does not.
    async fn leave(&self) -> Result<(), Trouble> {
        let party_id = self.shared.party.as_str().to_owned();
        match tokio::time::timeout(LEAVE_LIMIT, self.client().leave(leave::Req { party_id })).await {
            Ok(Ok(_)) => {
                tracing::info!(party = %self.shared.party, "the party was still enrolled from before; it has left and subscribes again");
                Ok(())
            }
            Ok(Err(status)) => Err(Trouble::Passing(format!(
                "the party is still enrolled from before, and cannot leave: {}",
                status.message()
            ))),
            Err(_) => Err(Trouble::Refused(BURNT.to_owned())),
        }
    }

    /// Fetch the task of a proposal, for as long as it takes.
    pub(super) fn fetch(&self, proposal: ProposalId) {
        let subscriber = self.clone();
        let span = tracing::info_span!("subscriber", %proposal, job = field::Empty, task = field::Empty);
        let fetching = async move {
            let _waits = subscriber.shared.waiting.join(Line::Fetches);
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
        };
        self.shared.supervisor.spawn("fetch", Policy::Passing, fetching.instrument(span));
    }

    async fn won(&self, task: WireTask) -> Result<(WonTask, Option<Pinned>), String> {
        let key = TaskKey::parse(task.job_id.clone(), task.task_id.clone()).map_err(|error| error.to_string())?;
        Span::current().record("job", key.job.as_str()).record("task", key.task.as_str());
        let task_type = TypeName::parse(task.task_type.clone()).map_err(|error| error.to_string())?;
        // An old coordinator may never give the task again, so a full disk must not lose it.
        let kept = self.shared.keep_patiently(pieces::of_task(&task)).await;
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
            match tokio::time::timeout(self.fetch_limit, self.client().fetch_task(request)).await {
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
                    return Err(format!("the coordinator did not answer for {} s", self.fetch_limit.as_secs()));
                }
                Err(_) => {}
            }
            self.peers().unanswered(PEER);
            backoff.wait().await;
        }
    }
}
