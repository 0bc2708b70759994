//! Our own door: `fedbroker.v1.Federation`.
//!
//! Called by our masters. Checks who calls and what, sends commands, answers when they are durable. Must never let a caller speak for another
//! data directory than its own.

use super::convert::{self, bad_id, refused};
use super::follow;
use super::hub::{Hub, Told};
use crate::engine::Handle;
use crate::engine::reader::Reader;
use crate::machine::coordinator::{Assignment, AssignmentState, Command, Coordinator, Key, Record};
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId};
use crate::machine::join_key;
use crate::machine::outcome::REASON_MAX;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::fedbroker::v1 as ours;
use crate::wire::metadata;
use futures_util::future::try_join_all;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// Orders that may wait for a party to read them. One that is so far behind is cut off: it comes back and hears what is open.
const ORDERS: usize = 256;
/// News on their way down a follow stream; a caller that reads slowly is told less often.
const NEWS: usize = 16;

/// The service.
#[derive(Clone)]
pub(super) struct Federation {
    pub(super) handle: Handle<Coordinator>,
    pub(super) hub: Arc<Hub>,
    pub(super) supervisor: Supervisor,
}

#[tonic::async_trait]
impl ours::federation_server::Federation for Federation {
    async fn report_task(&self, request: Request<ours::ReportTaskRequest>) -> Result<Response<ours::ReportTaskReply>, Status> {
        let instance = identity(request.metadata())?;
        let request = request.into_inner();
        let state = convert::reported(request.state()).ok_or_else(|| Status::invalid_argument("state: RUNNING or an end"))?;
        let command = Command::Report {
            party: PartyId::parse(request.party_id).map_err(|error| bad_id(&error))?,
            job: JobId::parse(request.job_id).map_err(|error| bad_id(&error))?,
            proposal: ProposalId::parse(request.proposal_id).map_err(|error| bad_id(&error))?,
            task: TaskId::parse(request.task_id).map_err(|error| bad_id(&error))?,
            instance,
            state,
            reason: reason(request.reason)?,
        };
        self.is_proved().await?;
        self.handle.send(command).await.map_err(refused)?;
        Ok(Response::new(ours::ReportTaskReply {}))
    }

    type FollowJobsStream = ReceiverStream<Result<ours::JobNews, Status>>;

    async fn follow_jobs(&self, request: Request<Streaming<ours::FollowRequest>>) -> Result<Response<Self::FollowJobsStream>, Status> {
        let owner = identity(request.metadata())?;
        self.is_proved().await?;
        let (out, stream) = mpsc::channel(NEWS);
        let life = follow::run(self.clone(), owner, request.into_inner(), out);
        self.supervisor.spawn("follow stream", Policy::Ordinary, life);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel_job(&self, request: Request<ours::CancelJobRequest>) -> Result<Response<ours::CancelJobReply>, Status> {
        let owner = identity(request.metadata())?;
        let request = request.into_inner();
        let job = JobId::parse(request.job_id).map_err(|error| bad_id(&error))?;
        let (job_type, reason) = (convert::type_name(&request.job_type)?, reason(request.reason)?);
        self.is_proved().await?;
        let command = Command::Cancel {
            job: job.clone(),
            job_type,
            owner,
            reason: reason.clone(),
        };
        self.handle.send(command).await.map_err(refused)?;
        let of_job = job.clone();
        let assignments = self
            .read(move |federation| assignments(federation.handle.reader(), &of_job))
            .await?;
        let open = assignments
            .into_iter()
            .filter(|(_, assignment)| !matches!(assignment.state, AssignmentState::Ended(_)));
        // All in flight together, so that they share a commit.
        let stops = open.map(|(party, _)| {
            self.handle.send(Command::Stop {
                job: job.clone(),
                party,
                reason: reason.clone(),
            })
        });
        try_join_all(stops).await.map_err(refused)?;
        tracing::info!(%job, reason, "job cancelled");
        Ok(Response::new(ours::CancelJobReply {}))
    }

    type OrdersStream = ReceiverStream<Told>;

    async fn orders(&self, request: Request<ours::OrdersRequest>) -> Result<Response<Self::OrdersStream>, Status> {
        let instance = identity(request.metadata())?;
        let party = PartyId::parse(request.into_inner().party_id).map_err(|error| bad_id(&error))?;
        let (key, reader) = (Key::Party(party.clone()), self.handle.reader().clone());
        let known = self.read(move |_| reader.get(&key)).await?;
        if !matches!(known, Some(Record::Party(known)) if known.instance.as_ref() == Some(&instance)) {
            return Err(Status::failed_precondition(format!(
                "party {party} is not subscribed with this identity"
            )));
        }
        let (sender, stream) = mpsc::channel(ORDERS);
        let session = self.hub.session();
        let ended = self.hub.listen(session, &party, &instance, sender.clone());
        let federation = self.clone();
        self.supervisor.spawn("orders", Policy::Ordinary, async move {
            tokio::select! {
                () = federation.tell_orders(&party, instance, &sender) => {}
                _ = ended => {}
            }
            federation.hub.unlisten(session, &party);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Federation {
    /// Read records, off the threads that serve.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, crate::store::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let federation = self.clone();
        let read = Supervisor::blocking(move || read(&federation)).await;
        read.map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| convert::store_failed(&error))
    }

    /// Until the history is proved, "there is none" may be wrong.
    async fn is_proved(&self) -> Result<(), Status> {
        match self.read(|federation| Ok(federation.handle.reader().history().done)).await? {
            true => Ok(()),
            false => Err(Status::unavailable("the coordinator still proves its history; ask again")),
        }
    }

    /// All that are open, for a stream that has just begun; then until the party is gone.
    async fn tell_orders(&self, party: &PartyId, instance: String, sender: &mpsc::Sender<Told>) {
        let of_party = party.clone();
        match self.read(move |federation| federation.open_orders(&of_party, &instance)).await {
            Ok(orders) => {
                for order in orders {
                    if sender.send(Ok(order)).await.is_err() {
                        return;
                    }
                }
            }
            Err(status) => return drop(sender.send(Err(status)).await),
        }
        sender.closed().await;
    }

    fn open_orders(&self, party: &PartyId, instance: &str) -> Result<Vec<ours::Order>, crate::store::Error> {
        let mut orders = Vec::new();
        self.handle.reader().scan(&join_key(b'x', &[party.as_str(), ""]), |key, record| {
            if let (Key::Order(_, job), Record::Order(order)) = (key, record)
                && order.instance == instance
            {
                orders.push(convert::order(&job, &order));
            }
            true
        })?;
        Ok(orders)
    }
}

/// Who has which task of a job. Blocks.
pub(super) fn assignments(reader: &Reader<Coordinator>, job: &JobId) -> Result<Vec<(PartyId, Assignment)>, crate::store::Error> {
    let mut found = Vec::new();
    // The separator behind the job's id: another id may begin with this one.
    reader.scan(&join_key(b'v', &[job.as_str(), ""]), |key, record| {
        if let (Key::Assignment(_, party), Record::Assignment(assignment)) = (key, record) {
            found.push((party, assignment));
        }
        true
    })?;
    Ok(found)
}

fn identity(metadata: &MetadataMap) -> Result<String, Status> {
    let missing = || Status::unauthenticated(format!("{}: must be there", metadata::INSTANCE));
    convert::instance(metadata)?
        .filter(|instance| !instance.is_empty())
        .ok_or_else(missing)
}

fn reason(text: String) -> Result<String, Status> {
    if text.len() > REASON_MAX {
        return Err(Status::invalid_argument(format!(
            "reason: is {} bytes long, at most {REASON_MAX} are taken",
            text.len()
        )));
    }
    Ok(text)
}
