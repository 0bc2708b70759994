//! Fedbroker over the wire: a cluster manager as a process of its own, spoken to over gRPC as a master and its workers speak to it.
//!
//! Enqueue is a task on a stream of `SubmitTasks`, answered when it is durable. For the whole life workers are attached (`Cluster/Attach`) that report each task as soon as it comes: submitted,
//! assigned and ended are all in the log before anybody hears of them, and a life ends when the report is acknowledged.

use crate::item::Item;
use crate::measure::{Producer, System, Workload};
use crate::server::{Launch, Server, run, text};
use anyhow::{Context, bail, ensure};
use fedbroker::wire::Any;
use fedbroker::wire::connect;
use fedbroker::wire::fedbroker::v1::cluster_client::ClusterClient;
use fedbroker::wire::fedbroker::v1::{
    FromWorker, Heartbeat, Outcome, RunTask, TaskAttempt, TaskReport, ToWorker, WorkerAttach, from_worker, outcome, to_worker,
};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::task_stream::TaskStream;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

/// Connections of the producers, with one stream of tasks on each.
pub const CHANNELS: u32 = 4;
/// Worker streams, each on a connection of its own.
pub const WORKERS: u32 = 4;
/// Tasks at once on each: all that 256 producers can have under way.
const SLOTS: i32 = 256;
/// Messages that may wait for a worker's connection.
const OUTGOING: usize = 512;
/// A third of the shortest silence that counts as loss.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Where producers hear of the end of their task: by number.
type Ends = Vec<mpsc::Sender<anyhow::Result<Item>>>;

/// A running cluster manager with an empty queue.
pub struct Grpc {
    server: Option<Server>,
    binary: PathBuf,
    data: PathBuf,
    streams: Vec<Arc<TaskStream>>,
    ends: Vec<Mutex<Option<mpsc::Receiver<anyhow::Result<Item>>>>>,
    tasks: JoinSet<()>,
}

impl Grpc {
    /// Start it in an empty directory, with workers if tasks are to be run.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(dir: &Path, binary: &Path, workload: Workload, producers: u32) -> anyhow::Result<Self> {
        let data = dir.join("data");
        let mut command = vec![text(binary)];
        command.extend(["cluster-manager", "--port", "0", "--data-dir"].map(str::to_owned));
        command.push(text(&data));
        let log = dir.join("log");
        let mut server = Server::start(Launch {
            command,
            user: None,
            log,
            farewell: Signal::TERM,
        })?;
        let address = server.says(" ready on ").await?;
        let count = CHANNELS.min(producers);
        let mut streams = Vec::new();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (stream, carry) = TaskStream::open(ClusterClient::new(connect::channel(&address)?)).await?;
            tasks.spawn(carry);
            streams.push(Arc::new(stream));
        }
        let (senders, receivers): (Ends, Vec<_>) = (0..producers).map(|_| mpsc::channel(1)).unzip();
        let ends = Arc::new(senders);
        if workload == Workload::Life {
            for number in 0..WORKERS.min(producers) {
                let session = Session::open(&address, number).await?;
                tasks.spawn(session.work(ends.clone()));
            }
        }
        Ok(Self {
            server: Some(server),
            binary: binary.to_owned(),
            data,
            streams,
            ends: receivers.into_iter().map(|receiver| Mutex::new(Some(receiver))).collect(),
            tasks,
        })
    }
}

/// A worker's stream.
struct Session {
    orders: tonic::Streaming<ToWorker>,
    out: mpsc::Sender<FromWorker>,
    name: String,
}

fn message(message: from_worker::Message) -> FromWorker {
    FromWorker { message: Some(message) }
}

impl Session {
    async fn open(address: &str, number: u32) -> anyhow::Result<Self> {
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let name = format!("w{number}");
        let attach = WorkerAttach {
            worker_id: name.clone(),
            worker_ip: "127.0.0.1".to_owned(),
            max_tasks: SLOTS,
            instance: name.clone(),
            ..Default::default()
        };
        out.send(message(from_worker::Message::Attach(attach))).await?;
        let mut client = ClusterClient::new(connect::channel(address)?);
        let mut orders = client.attach(ReceiverStream::new(outgoing)).await?.into_inner();
        let first = orders.message().await?.and_then(|first| first.message);
        ensure!(
            matches!(first, Some(to_worker::Message::Attached(_))),
            "the worker was not attached: {first:?}"
        );
        Ok(Self { orders, out, name })
    }

    /// Report what comes, and tell the producers what is acknowledged.
    async fn work(mut self, ends: Arc<Ends>) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                order = self.orders.message() => {
                    let told = match order {
                        Ok(Some(order)) => self.obey(order, &ends).await,
                        Ok(None) => Err(anyhow::anyhow!("the manager ended the worker's stream")),
                        Err(status) => Err(status.into()),
                    };
                    if let Err(error) = told {
                        for end in ends.iter() {
                            let _ = end.try_send(Err(anyhow::anyhow!("{error:#}")));
                        }
                        return;
                    }
                }
                _ = beat.tick() => drop(self.out.try_send(message(from_worker::Message::Heartbeat(Heartbeat {})))),
            }
        }
    }

    async fn obey(&mut self, order: ToWorker, ends: &Ends) -> anyhow::Result<()> {
        match order.message {
            Some(to_worker::Message::Run(RunTask {
                task: Some(task), attempt, ..
            })) => {
                let item = Item::from_payload(&task.task.context("a task without content")?.value)?;
                ensure!(
                    attempt == 1 && item_of(&task.job_id, &task.task_id)? == item,
                    "{item:?} came as another task"
                );
                let outcome = Outcome {
                    state: outcome::State::Succeeded.into(),
                    exit_code: Some(0),
                    worker_id: self.name.clone(),
                    attempt,
                    ..Default::default()
                };
                let task = TaskAttempt {
                    job_id: task.job_id,
                    task_id: task.task_id,
                    attempt,
                };
                let report = TaskReport {
                    task: Some(task),
                    outcome: Some(outcome),
                };
                Ok(self.out.send(message(from_worker::Message::Report(report))).await?)
            }
            Some(to_worker::Message::Acknowledged(task)) => {
                let item = item_of(&task.job_id, &task.task_id)?;
                let end = ends.get(item.producer as usize).context("an end for nobody")?;
                // Room for one: a second end of the same life has nowhere to go.
                end.try_send(Ok(item)).map_err(|_| anyhow::anyhow!("{item:?} ended twice"))
            }
            other => bail!("unexpected order {other:?}"),
        }
    }
}

fn job(item: Item) -> String {
    format!("bench-{}", item.producer)
}

fn item_of(job: &str, task: &str) -> anyhow::Result<Item> {
    let producer = job.strip_prefix("bench-").context("a job that was not sent")?.parse()?;
    let number = task.parse()?;
    Ok(Item { producer, number })
}

/// A producer.
pub struct Client {
    stream: Arc<TaskStream>,
    ended: mpsc::Receiver<anyhow::Result<Item>>,
}

impl Producer for Client {
    async fn enqueue(&mut self, item: Item) -> anyhow::Result<()> {
        let content = Any {
            type_url: String::new(),
            value: item.payload().into(),
        };
        let task = Task {
            job_id: job(item),
            task_id: item.number.to_string(),
            task_type: "dummy_trainer".to_owned(),
            task: Some(content),
            assignee: String::new(),
        };
        let answer = self.stream.submit(task).await?;
        ensure!(answer.taken, "not taken: {}", answer.reason);
        Ok(())
    }

    async fn live(&mut self, item: Item) -> anyhow::Result<Item> {
        self.enqueue(item).await?;
        self.ended.recv().await.context("the workers have ended")?
    }
}

impl System for Grpc {
    type Producer = Client;

    async fn producer(&self, number: u32) -> anyhow::Result<Client> {
        let at = number as usize;
        let stream = self.streams[at % self.streams.len()].clone();
        let ended = self.ends[at].lock().await.take().context("one connection for each producer")?;
        Ok(Client { stream, ended })
    }

    /// Read from the disk once the manager has ended, not asked from its memory.
    async fn left(mut self, _: Workload) -> anyhow::Result<Vec<Item>> {
        self.tasks.abort_all();
        self.streams.clear();
        drop(self.server.take());
        let data = text(&self.data);
        let words = ["store", "dump", "--records", "--live", "--kind", "task", "--data-dir", &data];
        let command: Vec<String> = [text(&self.binary)].into_iter().chain(words.map(str::to_owned)).collect();
        let mut left = Vec::new();
        for line in run(&command, None)?.lines() {
            let record: serde_json::Value = serde_json::from_str(line)?;
            let name = record["record"].as_str().context("a record without a name")?;
            let (job, task) = name
                .strip_prefix('t')
                .and_then(|name| name.split_once("\\x00"))
                .with_context(|| format!("no task: {name}"))?;
            let item = item_of(job, task)?;
            ensure!(
                carries(&record["value"]["content"], item),
                "the record of {item:?} has other content: {line}"
            );
            left.push(item);
        }
        Ok(left)
    }
}

/// Whether a record's content, as it is printed, has the payload of an item in it.
fn carries(content: &serde_json::Value, item: Item) -> bool {
    let hex: String = item.payload().iter().map(|byte| format!("{byte:02x}")).collect();
    let says = |field: &str, what: &str| content[field].as_str().is_some_and(|is| is.contains(what));
    says("hex", &hex) || says("text", &String::from_utf8_lossy(&item.payload()))
}
