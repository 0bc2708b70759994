//! A small cluster manager for tests: it hands out what the test says and keeps what the worker says. Speaks either protocol.

use fedbroker::wire::fedbroker::v1::cluster_server::{Cluster, ClusterServer};
use fedbroker::wire::fedbroker::v1::peer_server::PeerServer;
use fedbroker::wire::fedbroker::v1::*;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_server::{ClusterManager, ClusterManagerServer};
use fedbroker::wire::fedvision::framework::cluster::{enroll, task_resource_require, task_submit, update_status};
use fedbroker::wire::serve;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// What the worker said.
#[derive(Clone, Debug)]
pub enum Heard {
    Attached(WorkerAttach),
    Report(TaskReport),
    Logs(LogPart),
    Enrolled(enroll::Req),
    Updated(update_status::Req),
}

type Orders = Arc<Mutex<Option<mpsc::Sender<Result<ToWorker, Status>>>>>;
type OldOrders = Arc<Mutex<Option<mpsc::Sender<Result<enroll::Rep, Status>>>>>;

pub struct Manager {
    pub address: SocketAddr,
    heard: mpsc::UnboundedReceiver<Heard>,
    orders: Orders,
    old_orders: OldOrders,
    heartbeats: Arc<Mutex<usize>>,
    down: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Service {
    heard: mpsc::UnboundedSender<Heard>,
    orders: Orders,
    old_orders: OldOrders,
    heartbeats: Arc<Mutex<usize>>,
    down: CancellationToken,
    refusals: Arc<Mutex<usize>>,
}

impl Manager {
    pub async fn ours(port: u16) -> Self {
        Self::start(port, true, 0).await
    }

    pub async fn fedvision(port: u16) -> Self {
        Self::start(port, false, 0).await
    }

    /// Answers the first calls with ALREADY_ENROLL.
    pub async fn fedvision_refusing(port: u16, refusals: usize) -> Self {
        Self::start(port, false, refusals).await
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own server")]
    async fn start(port: u16, ours: bool, refusals: usize) -> Self {
        let (listener, address) = serve::bind("127.0.0.1", port).await.unwrap();
        let (sender, heard) = mpsc::unbounded_channel();
        let service = Service {
            heard: sender,
            orders: Orders::default(),
            old_orders: OldOrders::default(),
            heartbeats: Arc::default(),
            down: CancellationToken::new(),
            refusals: Arc::new(Mutex::new(refusals)),
        };
        let heartbeats = service.heartbeats.clone();
        let (orders, old_orders, down) = (service.orders.clone(), service.old_orders.clone(), service.down.clone());
        let peer = serve::PeerService {
            role: "cluster-manager",
            instance: "test".into(),
        };
        let mut server = serve::server();
        let router = if ours {
            server.add_service(PeerServer::new(peer)).add_service(ClusterServer::new(service))
        } else {
            server.add_service(ClusterManagerServer::new(service))
        };
        let running = router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), down.clone().cancelled_owned());
        let server = tokio::spawn(async move { running.await.unwrap() });
        Self {
            address,
            heard,
            orders,
            old_orders,
            heartbeats,
            down,
            server,
        }
    }

    /// End all connections and give the port back.
    pub async fn stop(self) -> u16 {
        self.down.cancel();
        self.orders.lock().unwrap().take();
        self.old_orders.lock().unwrap().take();
        tokio::time::timeout(DEADLINE, self.server).await.unwrap().unwrap();
        self.address.port()
    }

    pub async fn hear(&mut self) -> Heard {
        tokio::time::timeout(DEADLINE, self.heard.recv())
            .await
            .expect("the worker said nothing")
            .unwrap()
    }

    pub async fn attached(&mut self) -> WorkerAttach {
        match self.hear().await {
            Heard::Attached(attach) => attach,
            other => panic!("{other:?}"),
        }
    }

    pub async fn report(&mut self) -> (TaskAttempt, Outcome) {
        match self.hear().await {
            Heard::Report(report) => (report.task.unwrap(), report.outcome.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// The next status update that is about a task.
    pub async fn updated(&mut self) -> update_status::Req {
        loop {
            match self.hear().await {
                Heard::Updated(update) if update.task_id.is_empty() => {}
                Heard::Updated(update) => return update,
                other => panic!("{other:?}"),
            }
        }
    }

    /// True when the worker has said something that the test has not taken.
    pub fn has_more(&mut self) -> bool {
        self.heard.try_recv().is_ok()
    }

    async fn order(&self, message: to_worker::Message) {
        let orders = self.orders.lock().unwrap().clone().expect("no worker is attached");
        orders.send(Ok(ToWorker { message: Some(message) })).await.unwrap();
    }

    pub async fn run(&self, task: Task, attempt: u32) {
        self.order(to_worker::Message::Run(RunTask {
            task: Some(task),
            attempt,
            content_bytes: 0,
        }))
        .await;
    }

    /// Announce a task whose pieces follow.
    pub async fn announce(&self, attempt: u32, content_bytes: u64) {
        let task = None;
        self.order(to_worker::Message::Run(RunTask {
            task,
            attempt,
            content_bytes,
        }))
        .await;
    }

    pub async fn piece(&self, data: &[u8]) {
        let data = bytes::Bytes::copy_from_slice(data);
        self.order(to_worker::Message::Piece(TaskPiece { data, void: false })).await;
    }

    pub async fn kill(&self, task: TaskAttempt) {
        self.order(to_worker::Message::Kill(KillTask {
            task: Some(task),
            reason: "enough".into(),
        }))
        .await;
    }

    pub async fn acknowledge(&self, task: TaskAttempt) {
        self.order(to_worker::Message::Acknowledged(task)).await;
    }

    pub async fn fetch(&self, request: FetchLogs) {
        self.order(to_worker::Message::FetchLogs(request)).await;
    }

    pub async fn more(&self, request_id: u64, parts: u32) {
        self.order(to_worker::Message::MoreLogs(MoreLogs { request_id, parts })).await;
    }

    pub async fn stop_logs(&self, request_id: u64) {
        self.order(to_worker::Message::StopLogs(StopLogs { request_id })).await;
    }

    pub async fn remove_job(&self, job: &str) {
        self.order(to_worker::Message::RemoveJob(RemoveJob { job_id: job.into() })).await;
    }

    /// Heartbeats so far.
    pub fn heartbeats(&self) -> usize {
        *self.heartbeats.lock().unwrap()
    }

    /// The next part of a log.
    pub async fn part(&mut self) -> LogPart {
        match self.hear().await {
            Heard::Logs(part) => part,
            other => panic!("{other:?}"),
        }
    }

    pub async fn submit(&self, task: Task) {
        let orders = self.old_orders.lock().unwrap().clone().expect("no worker is enrolled");
        let ready = enroll::Rep {
            status: enroll::Status::TaskReady.into(),
            task: Some(task),
        };
        orders.send(Ok(ready)).await.unwrap();
    }

    /// End the worker's stream but stay there.
    pub fn drop_worker(&self) {
        self.orders.lock().unwrap().take();
        self.old_orders.lock().unwrap().take();
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    type AttachStream = ReceiverStream<Result<ToWorker, Status>>;
    type WatchStream = ReceiverStream<Result<TaskEnd, Status>>;
    type SubmitTasksStream = ReceiverStream<Result<TaskSubmitted, Status>>;
    type TaskLogsStream = ReceiverStream<Result<LogChunk, Status>>;

    #[expect(clippy::disallowed_methods, reason = "a test's own server")]
    async fn attach(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(1024);
        let attached = to_worker::Message::Attached(Attached { heartbeat_seconds: 1 });
        sender.try_send(Ok(ToWorker { message: Some(attached) })).unwrap();
        let service = self.clone();
        tokio::spawn(async move {
            let mut sender = Some(sender);
            loop {
                let next = tokio::select! {
                    next = incoming.message() => next,
                    () = service.down.cancelled() => return,
                };
                let Ok(Some(FromWorker { message: Some(message) })) = next else {
                    return;
                };
                let heard = match message {
                    from_worker::Message::Attach(attach) => {
                        *service.orders.lock().unwrap() = sender.take();
                        Heard::Attached(attach)
                    }
                    from_worker::Message::Report(report) => Heard::Report(report),
                    from_worker::Message::Logs(part) => Heard::Logs(part),
                    from_worker::Message::Heartbeat(_) => {
                        *service.heartbeats.lock().unwrap() += 1;
                        continue;
                    }
                };
                let _ = service.heard.send(heard);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn acquire_lease(&self, _: Request<AcquireLeaseRequest>) -> Result<Response<AcquireLeaseReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn release_lease(&self, _: Request<ReleaseLeaseRequest>) -> Result<Response<ReleaseLeaseReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn cancel_task(&self, _: Request<CancelTaskRequest>) -> Result<Response<CancelTaskReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn task_logs(&self, _: Request<TaskLogsRequest>) -> Result<Response<Self::TaskLogsStream>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn forget_job(&self, _: Request<ForgetJobRequest>) -> Result<Response<ForgetJobReply>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn submit_tasks(&self, _: Request<Streaming<SubmitTask>>) -> Result<Response<Self::SubmitTasksStream>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn watch(&self, _: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("test"))
    }
}

#[tonic::async_trait]
impl ClusterManager for Service {
    type EnrollStream = ReceiverStream<Result<enroll::Rep, Status>>;

    async fn enroll(&self, request: Request<enroll::Req>) -> Result<Response<Self::EnrollStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let refuse = {
            let mut refusals = self.refusals.lock().unwrap();
            let refuse = *refusals > 0;
            *refusals = refusals.saturating_sub(1);
            refuse
        };
        if refuse {
            let status = enroll::Status::AlreadyEnroll.into();
            sender.try_send(Ok(enroll::Rep { status, task: None })).unwrap();
            return Ok(Response::new(ReceiverStream::new(receiver)));
        }
        let success = enroll::Rep {
            status: enroll::Status::EnrollSuccess.into(),
            task: None,
        };
        sender.try_send(Ok(success)).unwrap();
        *self.old_orders.lock().unwrap() = Some(sender);
        let _ = self.heard.send(Heard::Enrolled(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn update_task_status(&self, request: Request<update_status::Req>) -> Result<Response<update_status::Rep>, Status> {
        let _ = self.heard.send(Heard::Updated(request.into_inner()));
        Ok(Response::new(update_status::Rep {
            status: update_status::Status::Success.into(),
        }))
    }

    async fn task_submit(&self, _: Request<task_submit::Req>) -> Result<Response<task_submit::Rep>, Status> {
        Err(Status::unimplemented("test"))
    }
    async fn task_resource_require(&self, _: Request<task_resource_require::Req>) -> Result<Response<task_resource_require::Rep>, Status> {
        Err(Status::unimplemented("test"))
    }
}
