//! The doors: `fedvision.framework.coordinator.Coordinator`, as FedVision 0.1 peers speak it.
//!
//! Called by tonic. Every call becomes a command; what waits for a close asks the machine again afterwards, so the answer is always the
//! recorded one. Must never answer from memory of its own, and never let the end of a call change what happens to a proposal.

use super::convert::{self, bad_id, refused};
use super::hub::{Hub, Item, STREAM_BUFFER};
use super::intake::Kept;
use crate::engine::{Handle, Refusal, outgoing};
use crate::machine::content::Content;
use crate::machine::coordinator::{Command, Coordinator, Key, Record, Rejection, Reply, job_of};
use crate::machine::ids::{JobId, PartyId, ProposalId};
use crate::store::payload::Payloads;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::body;
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::framework::coordinator::{coordinator_server, fetch_task, leave, proposal, subscribe};
use crate::wire::metadata;
use crate::wire::pieces::before;
use futures_util::TryStreamExt;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

/// How often a proposal that came too early after a start is tried again; the caller only sees that the answer takes longer.
const SETTLE_LOOK: Duration = Duration::from_millis(200);

/// Answers the calls of the parties.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) handle: Handle<Coordinator>,
    pub(super) hub: Arc<Hub>,
    pub(super) payloads: Arc<Payloads>,
    pub(super) supervisor: Supervisor,
}

#[tonic::async_trait]
impl coordinator_server::Coordinator for Service {
    type SubscribeStream = ReceiverStream<Item>;

    /// Answers with headers as soon as the party is enrolled; FedVision 0.1 sends nothing before the first offer.
    async fn subscribe(&self, request: Request<subscribe::Req>) -> Result<Response<Self::SubscribeStream>, Status> {
        let instance = convert::instance(request.metadata())?;
        let request = request.into_inner();
        let party = PartyId::parse(request.party_id).map_err(|error| bad_id(&error))?;
        let job_types = request
            .job_types
            .iter()
            .map(|text| convert::type_name(text))
            .collect::<Result<_, _>>()?;
        let session = self.hub.session();
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        let (enrolled, answer) = oneshot::channel();
        let command = Command::Subscribe {
            party: party.clone(),
            session,
            job_types,
            instance,
        };
        let subscription = Subscription {
            service: self.clone(),
            party,
            session,
            sender,
        };
        // A task of its own: it sees the stream through even if this call is dropped while it waits for the command.
        self.supervisor
            .spawn("subscription", Policy::Ordinary, subscription.run(command, enrolled));
        let enrolled = answer.await.map_err(|_| stopping())??;
        let mut response = Response::new(ReceiverStream::new(receiver));
        if enrolled {
            // A 0.1 party hears nothing before the first offer; one of ours learns here that it takes part.
            response
                .metadata_mut()
                .insert(metadata::ENROLLED, MetadataValue::from_static("true"));
        }
        Ok(response)
    }

    /// Answers when the window closes. A caller that goes away changes nothing; the same request again joins or gets the verdict.
    async fn proposal(&self, request: Request<proposal::Req>) -> Result<Response<proposal::Rep>, Status> {
        let owner = convert::instance(request.metadata())?;
        let kept = request.extensions().get::<Kept>().cloned().unwrap_or_default();
        let (payloads, request) = (self.payloads.clone(), request.into_inner());
        let prepared = Supervisor::blocking(move || {
            // Or a quiet coordinator would keep what was stored before something wrong was met.
            convert::prepare(&payloads, &request, &kept, owner).inspect_err(|_| payloads.settle(&[], &[]))
        })
        .await;
        let convert::Prepared { job, command, pins } = prepared.map_err(internal)??;
        let wait = self.hub.wait(job.clone());
        let reply = loop {
            match self.handle.send_pinned(command.clone(), pins.clone()).await {
                Err(Refusal::Rejected(early @ Rejection::Settling { .. })) => {
                    tracing::debug!(%job, %early, "a proposal waits");
                    tokio::time::sleep(SETTLE_LOOK).await;
                }
                reply => break reply,
            }
        };
        drop(pins);
        // Those who follow it know of no proposal yet.
        self.hub.changed(&job);
        match reply.map_err(refused)? {
            Reply::Verdict { verdict, reason } => Ok(convert::verdict(verdict, &reason)),
            _ => {
                wait.closed().await;
                self.verdict(job).await
            }
        }
    }

    async fn fetch_task(&self, request: Request<fetch_task::Req>) -> Result<Response<fetch_task::Rep>, Status> {
        let request = request.into_inner();
        let party = PartyId::parse(request.party_id).map_err(|error| bad_id(&error))?;
        let proposal = ProposalId::parse(request.proposal_id).map_err(|error| bad_id(&error))?;
        let wait = job_of(&proposal).map(|job| self.hub.wait(job));
        let accepted = format!("{party} accepts {proposal}");
        let command = Command::Fetch { party, proposal };
        let mut reply = self.handle.send(command.clone()).await.map_err(refused)?;
        if let (Reply::Wait, Some(wait)) = (&reply, wait) {
            tracing::debug!("{accepted}");
            wait.closed().await;
            reply = self.handle.send(command).await.map_err(refused)?;
        }
        let status = match reply {
            Reply::Ready(content) => return self.ready(content).await,
            Reply::NotFound => fetch_task::Status::NotFound,
            Reply::NotAllow => fetch_task::Status::NotAllow,
            Reply::Timeout => fetch_task::Status::Timeout,
            Reply::Canceled => fetch_task::Status::Canceled,
            Reply::RandomOut => fetch_task::Status::RandomOut,
            Reply::Wait | Reply::Done | Reply::Open { .. } | Reply::Verdict { .. } => return Err(stopping()),
        };
        Ok(Response::new(fetch_task::Rep {
            status: status.into(),
            task: None,
        }))
    }

    /// Always answers at once; FedVision 0.1 hangs when the party's stream is dead.
    async fn leave(&self, request: Request<leave::Req>) -> Result<Response<leave::Rep>, Status> {
        let party = PartyId::parse(request.into_inner().party_id).map_err(|error| bad_id(&error))?;
        let status = match self.handle.send(Command::Leave { party }).await.map_err(refused)? {
            Reply::NotFound => leave::Status::NotFound,
            _ => leave::Status::Success,
        };
        Ok(Response::new(leave::Rep { status: status.into() }))
    }
}

impl Service {
    /// The task of a party. Its content is the encoded task: a large one goes out as it is read, so that many parties at once cost no memory.
    async fn ready(&self, content: Content) -> Result<Response<fetch_task::Rep>, Status> {
        let mut reply = fetch_task::Rep {
            status: fetch_task::Status::Ready.into(),
            task: None,
        };
        let payload = match content {
            Content::Inline(bytes) => {
                let task = Task::decode(bytes.as_slice());
                reply.task = Some(task.map_err(|error| Status::internal(format!("the recorded task does not decode: {error}")))?);
                return Ok(Response::new(reply));
            }
            Content::Stored(payload) => payload,
        };
        let payloads = self.payloads.clone();
        let pieces = Supervisor::blocking(move || payloads.pieces(&payload)).await.map_err(internal)?;
        let Some(pieces) = pieces.map_err(|error| convert::store_failed(&error))? else {
            // It is no longer kept.
            reply.status = fetch_task::Status::Timeout.into();
            return Ok(Response::new(reply));
        };
        let read = outgoing::stream(pieces).inspect_err(|error| tracing::error!(%error, "a task cannot be read"));
        let answer = body::answer(&before(&reply, 2, payload.len), payload.len, read)?;
        let mut response = Response::new(reply);
        response.extensions_mut().insert(answer);
        Ok(response)
    }

    /// The recorded verdict on a job's proposal, after its close.
    async fn verdict(&self, job: JobId) -> Result<Response<proposal::Rep>, Status> {
        let record = self.handle.reader().fetch(Key::Proposal(job)).await.map_err(internal)?;
        match record.map_err(|error| convert::store_failed(&error))? {
            Some(Record::Proposal(proposal)) => proposal
                .verdict()
                .map_or_else(|| Err(stopping()), |(verdict, reason)| Ok(convert::verdict(verdict, reason))),
            _ => Err(Status::internal("the proposal has no record")),
        }
    }
}

/// The task behind one stream, from the command that opens it to the one that says it is gone.
struct Subscription {
    service: Service,
    party: PartyId,
    session: u64,
    sender: mpsc::Sender<Item>,
}

impl Subscription {
    async fn run(self, command: Command, enrolled: oneshot::Sender<Result<bool, Status>>) {
        let Subscription {
            service,
            party,
            session,
            sender,
        } = self;
        let ended = service.hub.open(session, sender.clone());
        match service.handle.send(command).await {
            Ok(_) => {
                tracing::info!(%party, session, "party subscribed");
                let _ = enrolled.send(Ok(true));
                tokio::select! {
                    () = sender.closed() => {}
                    _ = ended => {}
                }
                service.hub.end(session);
                // Dropped first: a party that is cut off must not wait for the record of it.
                drop(sender);
                tracing::info!(%party, session, "stream ended");
                let _ = service.handle.send(Command::StreamBroken { party, session }).await;
            }
            Err(Refusal::Rejected(Rejection::Duplicate(_))) => {
                service.hub.end(session);
                tracing::warn!(%party, "party is subscribed already, refused");
                let _ = sender.try_send(Ok(subscribe::Rep {
                    status: subscribe::Status::DuplicateEnroll.into(),
                    ..Default::default()
                }));
                let _ = enrolled.send(Ok(false));
            }
            Err(refusal) => {
                service.hub.end(session);
                let _ = enrolled.send(Err(refused(refusal)));
            }
        }
    }
}

/// A call that was woken by the end of the role, not by a close: asking again after the restart gives the answer.
fn stopping() -> Status {
    Status::unavailable("the coordinator is stopping; ask again")
}

fn internal(error: anyhow::Error) -> Status {
    Status::internal(error.to_string())
}
