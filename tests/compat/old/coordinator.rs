//! A coordinator as FedVision 0.1 has it.

use super::front::{self, Seen};
use super::{Process, lock};
use fedbroker::wire::connect::MESSAGE_MAX;
use fedbroker::wire::fedbroker::v1::federation_server::{Federation, FederationServer};
use fedbroker::wire::fedbroker::v1::peer_server::{Peer, PeerServer};
use fedbroker::wire::fedbroker::v1::{
    CancelJobReply, CancelJobRequest, FollowRequest, HelloReply, HelloRequest, JobNews, Order, OrdersRequest, ReportTaskReply,
    ReportTaskRequest,
};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_server::{Coordinator, CoordinatorServer};
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, leave, proposal, subscribe};
use futures_util::stream::{BoxStream, StreamExt, once, unfold};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// How often a stream looks whether its party has left.
const LOOK: Duration = Duration::from_millis(500);

/// A call, in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Hello,
    Subscribe {
        party: String,
        types: Vec<String>,
        metadata: bool,
    },
    Leave(String),
    Proposal(String),
    Fetch {
        party: String,
        proposal: String,
    },
    /// Of a service of ours that it does not have.
    Federation(&'static str),
}

/// The running coordinator.
pub struct OldCoordinator {
    process: Process,
    /// `host:port`.
    pub address: String,
    /// What its connections carried.
    pub wire: Arc<Seen>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    calls: Mutex<Vec<Call>>,
    enrolled: Mutex<HashMap<String, Arc<Provider>>>,
    /// A Leave takes nobody out of it.
    members: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// Nothing is ever taken out of it.
    proposals: Mutex<HashMap<String, Arc<Proposed>>>,
    /// What `Peer/Hello` answers, where the process in front of the coordinator is not well.
    hello: Mutex<Option<Code>>,
    /// As after the loss of a machine: neither an answer nor an end of the call.
    stuck: AtomicBool,
    /// A machine or a network that is slow today.
    slow: AtomicBool,
}

/// The queue of an enrolled party, whose `join` waits until each offer was read from a stream.
#[derive(Default)]
struct Provider {
    offers: Mutex<VecDeque<(String, String)>>,
    put: Notify,
    unread: watch::Sender<usize>,
    closed: AtomicBool,
}

struct Proposed {
    job_type: String,
    tasks: Vec<Task>,
    minimum: usize,
    maximum: usize,
    responders: Mutex<BTreeSet<String>>,
    chosen: Mutex<HashMap<String, Task>>,
    reached: AtomicBool,
    finished: watch::Sender<bool>,
}

impl OldCoordinator {
    /// Empty, at this address (port 0 takes a free one).
    pub async fn start(address: &str) -> Self {
        Self::start_with(address, None).await
    }

    /// One behind something that answers `Peer/Hello` with this failure.
    pub async fn start_unwell(address: &str, hello: Code) -> Self {
        Self::start_with(address, Some(hello)).await
    }

    async fn start_with(address: &str, hello: Option<Code>) -> Self {
        let (process, state) = (Process::new(), Arc::new(State::default()));
        *lock(&state.hello) = hello;
        let service = Service(state.clone());
        let listening = process.spawn(async { TcpListener::bind("127.0.0.1:0").await.unwrap() });
        let listener = listening.await.unwrap();
        let inner = listener.local_addr().unwrap();
        let coordinator = CoordinatorServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        process.spawn(async move {
            // 0.1 has no such services; these give the answer of a server that has none, and count.
            let ours = FederationServer::new(service.clone());
            let router = Server::builder().add_service(coordinator).add_service(ours);
            let router = router.add_service(PeerServer::new(service));
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let (address, wire) = front::start(&process, address, inner).await;
        Self {
            process,
            address: address.to_string(),
            wire,
            state,
        }
    }

    /// SIGKILL, and a new one at the same place.
    pub async fn restart(&mut self) {
        self.process.kill();
        *self = Self::start(&self.address.clone()).await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).clone()
    }

    pub fn leaves(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Leave(_))).count()
    }

    pub fn fetches(&self, party: &str) -> usize {
        let of_party = |call: &Call| matches!(call, Call::Fetch { party: by, .. } if by == party);
        self.calls().iter().filter(|call| of_party(call)).count()
    }

    pub fn proposed(&self, job: &str) -> usize {
        self.calls().iter().filter(|call| **call == Call::Proposal(job.to_owned())).count()
    }

    /// From now on Proposal calls are taken, and never answered.
    pub fn never_answer_proposals(&self) {
        self.state.stuck.store(true, Ordering::SeqCst);
    }

    /// From now on a Subscribe that is refused takes longer to be.
    pub fn refuse_slowly(&self) {
        self.state.slow.store(true, Ordering::SeqCst);
    }

    pub fn is_enrolled(&self, party: &str) -> bool {
        lock(&self.state.enrolled).contains_key(party)
    }

    /// True while the window of a job's proposal has not closed, which may be for ever.
    pub fn is_open(&self, job: &str) -> bool {
        let proposals = lock(&self.state.proposals);
        proposals
            .iter()
            .any(|(id, proposed)| id.starts_with(&format!("{job}-coo_")) && !*proposed.finished.borrow())
    }
}

impl Provider {
    fn put(&self, offer: (String, String)) {
        self.unread.send_modify(|n| *n += 1);
        lock(&self.offers).push_back(offer);
        self.put.notify_one();
    }

    fn read(&self) {
        self.unread.send_modify(|n| *n -= 1);
    }

    /// The next offer; `None` once the party has left.
    async fn next(&self) -> Option<subscribe::Rep> {
        while !self.closed.load(Ordering::SeqCst) {
            if let Some((proposal_id, job_type)) = lock(&self.offers).pop_front() {
                let status = subscribe::Status::Success.into();
                return Some(subscribe::Rep {
                    status,
                    proposal_id,
                    job_type,
                });
            }
            let _ = tokio::time::timeout(LOOK, self.put.notified()).await;
        }
        while lock(&self.offers).pop_front().is_some() {
            self.read();
        }
        None
    }

    fn offers(self: Arc<Self>) -> impl futures_util::Stream<Item = Result<subscribe::Rep, Status>> {
        unfold(self, |provider| async move {
            // The one before was read by the stream when it asks for another.
            provider.read();
            let offer = provider.next().await?;
            Some((Ok(offer), provider))
        })
    }
}

impl Proposed {
    /// Draws with replacement: a party may be drawn twice, and a task be given to nobody.
    fn finish(&self, reached: bool) -> Result<(), Status> {
        let responders: Vec<String> = lock(&self.responders).iter().cloned().collect();
        let drawn = if responders.len() > self.maximum {
            (0..self.maximum)
                .map(|_| responders[rand::random_range(0..responders.len())].clone())
                .collect()
        } else {
            responders
        };
        for (index, party) in drawn.into_iter().enumerate() {
            let Some(task) = self.tasks.get(index) else {
                // The window stays open: those who wait wait for ever.
                let why = format!("Unexpected <class 'IndexError'>: list index ({index}) out of range");
                return Err(Status::unknown(why));
            };
            lock(&self.chosen).insert(party, task.clone());
        }
        self.reached.store(reached, Ordering::SeqCst);
        self.finished.send_replace(true);
        Ok(())
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

impl Service {
    fn note(&self, call: Call) {
        lock(&self.0.calls).push(call);
    }

    async fn window(&self, id: &str, request: proposal::Req) -> Result<proposal::Status, Status> {
        let wait = Duration::from_secs(u64::from(request.proposal_wait_time));
        let minimum = usize::try_from(request.minimum_acceptance).unwrap();
        let proposed = Arc::new(Proposed {
            job_type: request.job_type,
            tasks: request.tasks,
            minimum,
            maximum: usize::try_from(request.maximum_acceptance).unwrap(),
            responders: Mutex::default(),
            chosen: Mutex::default(),
            reached: AtomicBool::new(false),
            finished: watch::Sender::new(false),
        });
        lock(&self.0.proposals).insert(id.to_owned(), proposed.clone());
        let Some(members) = lock(&self.0.members).get(&proposed.job_type).cloned() else {
            return Ok(proposal::Status::Reject);
        };
        if members.len() < minimum {
            return Ok(proposal::Status::NotEnoughSubscribers);
        }
        for party in members {
            let provider = lock(&self.0.enrolled).get(&party).cloned();
            // One that has left is still a member: nobody can propose until it subscribes again.
            let provider = provider.ok_or_else(|| Status::unknown(format!("Unexpected <class 'KeyError'>: '{party}'")))?;
            provider.put((id.to_owned(), proposed.job_type.clone()));
        }
        if self.0.stuck.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        // Never earlier, even when all have answered. A caller that goes away takes this with it, and the window stays open for ever.
        tokio::time::sleep(wait).await;
        let reached = lock(&proposed.responders).len() >= proposed.minimum;
        proposed.finish(reached)?;
        Ok(if reached {
            proposal::Status::Success
        } else {
            proposal::Status::NotEnoughResponders
        })
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type SubscribeStream = BoxStream<'static, Result<subscribe::Rep, Status>>;

    /// A party that is enrolled, alive or dead, is refused at once. A new one hears nothing, not even headers, before the first offer; when it
    /// goes away it stays enrolled and a member of its types.
    async fn subscribe(&self, request: Request<subscribe::Req>) -> Result<Response<Self::SubscribeStream>, Status> {
        let metadata = request.metadata().keys().any(|key| format!("{key:?}").contains("fedbroker"));
        let request = request.into_inner();
        self.note(Call::Subscribe {
            party: request.party_id.clone(),
            types: request.job_types.clone(),
            metadata,
        });
        if self.0.slow.load(Ordering::SeqCst) && lock(&self.0.enrolled).contains_key(&request.party_id) {
            tokio::time::sleep(LOOK).await;
        }
        let provider = {
            let mut enrolled = lock(&self.0.enrolled);
            if enrolled.contains_key(&request.party_id) {
                let refused = subscribe::Rep::default();
                return Ok(Response::new(once(async { Ok(refused) }).boxed()));
            }
            let provider = Arc::new(Provider::default());
            enrolled.insert(request.party_id.clone(), provider.clone());
            provider
        };
        for job_type in request.job_types {
            lock(&self.0.members).entry(job_type).or_default().insert(request.party_id.clone());
        }
        match provider.next().await {
            Some(first) => Ok(Response::new(once(async { Ok(first) }).chain(provider.offers()).boxed())),
            None => Ok(Response::new(futures_util::stream::empty().boxed())),
        }
    }

    async fn proposal(&self, request: Request<proposal::Req>) -> Result<Response<proposal::Rep>, Status> {
        let request = request.into_inner();
        let job = request.job_id.clone();
        self.note(Call::Proposal(job.clone()));
        let number = {
            let calls = lock(&self.0.calls);
            calls.iter().filter(|call| matches!(call, Call::Proposal(_))).count()
        };
        let status = self.window(&format!("{job}-coo_{number}"), request).await?;
        Ok(Response::new(proposal::Rep { status: status.into() }))
    }

    /// One that goes away still counts as an acceptance, and one that asks again in the window gets the same task.
    async fn fetch_task(&self, request: Request<fetch_task::Req>) -> Result<Response<fetch_task::Rep>, Status> {
        let request = request.into_inner();
        let (party, id) = (request.party_id, request.proposal_id);
        self.note(Call::Fetch {
            party: party.clone(),
            proposal: id.clone(),
        });
        let answer = |status: fetch_task::Status, task| {
            let status = status.into();
            Ok(Response::new(fetch_task::Rep { status, task }))
        };
        let Some(proposed) = lock(&self.0.proposals).get(&id).cloned() else {
            return answer(fetch_task::Status::NotFound, None);
        };
        if !lock(&self.0.enrolled).contains_key(&party) {
            return answer(fetch_task::Status::NotAllow, None);
        }
        let mut finished = proposed.finished.subscribe();
        if *finished.borrow_and_update() {
            return answer(fetch_task::Status::Timeout, None);
        }
        lock(&proposed.responders).insert(party.clone());
        finished
            .wait_for(|finished| *finished)
            .await
            .expect("the proposal is kept for ever");
        if !proposed.reached.load(Ordering::SeqCst) {
            return answer(fetch_task::Status::Canceled, None);
        }
        match lock(&proposed.chosen).get(&party).cloned() {
            Some(task) => answer(fetch_task::Status::Ready, Some(task)),
            None => answer(fetch_task::Status::RandomOut, None),
        }
    }

    /// Waits until every offer of the party was read, which is never when one came after its stream died.
    async fn leave(&self, request: Request<leave::Req>) -> Result<Response<leave::Rep>, Status> {
        let party = request.into_inner().party_id;
        self.note(Call::Leave(party.clone()));
        let Some(provider) = lock(&self.0.enrolled).get(&party).cloned() else {
            return Ok(Response::new(leave::Rep::default()));
        };
        provider.closed.store(true, Ordering::SeqCst);
        let mut unread = provider.unread.subscribe();
        unread.wait_for(|unread| *unread == 0).await.expect("the sender is in the provider");
        lock(&self.0.enrolled).remove(&party);
        let status = leave::Status::Success.into();
        Ok(Response::new(leave::Rep { status }))
    }
}

#[tonic::async_trait]
impl Peer for Service {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        self.note(Call::Hello);
        let code = (*lock(&self.0.hello)).unwrap_or(Code::Unimplemented);
        Err(Status::new(code, "Method not found!"))
    }
}

impl Service {
    fn has_none<T>(&self, call: &'static str) -> Result<T, Status> {
        self.note(Call::Federation(call));
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Federation for Service {
    type FollowJobsStream = BoxStream<'static, Result<JobNews, Status>>;
    type OrdersStream = BoxStream<'static, Result<Order, Status>>;

    async fn report_task(&self, _: Request<ReportTaskRequest>) -> Result<Response<ReportTaskReply>, Status> {
        self.has_none("ReportTask")
    }

    async fn follow_jobs(&self, _: Request<Streaming<FollowRequest>>) -> Result<Response<Self::FollowJobsStream>, Status> {
        self.has_none("FollowJobs")
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobReply>, Status> {
        self.has_none("CancelJob")
    }

    async fn orders(&self, _: Request<OrdersRequest>) -> Result<Response<Self::OrdersStream>, Status> {
        self.has_none("Orders")
    }
}
