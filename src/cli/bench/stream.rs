//! The worker stream alone: tasks straight to a cluster manager, and its word on how each ended.
//!
//! Called by `federation`. Speaks the protocol a master speaks, over one connection.

use super::drive::{Client, Driven, Until, drive};
use crate::engine::clock::new_instance;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::Any;
use crate::wire::connect::channel;
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedbroker::v1::{DummyTask, TaskEnd, WatchRequest, outcome};
use crate::wire::fedvision::framework::Task;
use crate::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use crate::wire::fedvision::framework::cluster::task_submit;
use anyhow::Context;
use prost::Message;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Tasks in a second from the first submit to the last end, and the 99th percentile of the submits.
///
/// # Errors
/// A call failed, or a task did not succeed or was told of twice.
#[expect(clippy::cast_precision_loss, reason = "a rate for a reader")]
pub(super) async fn measure(address: &str, in_flight: usize, tasks: u64) -> anyhow::Result<[f64; 2]> {
    let supervisor = Supervisor::new();
    let channel = channel(address)?;
    let run = u64::from_le_bytes(new_instance()[..8].try_into()?);
    let each = tasks.div_ceil(in_flight as u64);
    let (watch, watched) = mpsc::channel(in_flight);
    let (told, ends) = mpsc::channel(1);
    let mut clients = Vec::new();
    for number in 0..in_flight {
        clients.push(Submitter {
            calls: ClusterManagerClient::new(channel.clone()),
            watch: watch.clone(),
            job: format!("stream-{run:016x}-{number}"),
        });
    }
    drop(watch);
    let ended = each * in_flight as u64;
    supervisor.spawn("bench watch", Policy::Ordinary, async move {
        let _ = told.send(ends_of(channel, watched, ended).await).await;
    });
    let began = Instant::now();
    let driven = drive(&supervisor, clients, Until::Asked(each)).await?;
    let Driven { latencies, clients, .. } = driven;
    drop(clients);
    let mut ends = ends;
    ends.recv().await.context("the watch has ended")??;
    Ok([ended as f64 / began.elapsed().as_secs_f64(), latencies.permille(990)])
}

struct Submitter {
    calls: ClusterManagerClient<Channel>,
    watch: mpsc::Sender<WatchRequest>,
    job: String,
}

impl Client for Submitter {
    async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
        let task_id = format!("task-{n}");
        let payload = Any {
            type_url: "type.googleapis.com/fedbroker.v1.DummyTask".to_owned(),
            value: DummyTask::default().encode_to_vec().into(),
        };
        let task = Task {
            job_id: self.job.clone(),
            task_id: task_id.clone(),
            task_type: "dummy_trainer".to_owned(),
            task: Some(payload),
            assignee: String::new(),
        };
        let reply = self.calls.task_submit(task_submit::Req { task: Some(task) }).await?.into_inner();
        anyhow::ensure!(reply.status() == task_submit::Status::Success, "task {task_id} was refused");
        let job_id = self.job.clone();
        self.watch
            .send(WatchRequest { job_id, task_id })
            .await
            .context("the watch has ended")
    }
}

/// Until so many tasks were told of, each once and with success.
async fn ends_of(channel: Channel, watched: mpsc::Receiver<WatchRequest>, count: u64) -> anyhow::Result<()> {
    let mut stream = ClusterClient::new(channel).watch(ReceiverStream::new(watched)).await?.into_inner();
    let mut seen = std::collections::HashSet::new();
    while (seen.len() as u64) < count {
        let end: TaskEnd = stream.message().await?.context("the watch ended early")?;
        let state = end.outcome.as_ref().map(|outcome| outcome.state());
        anyhow::ensure!(
            state == Some(outcome::State::Succeeded),
            "task {}/{} ended {state:?}",
            end.job_id,
            end.task_id
        );
        let (job, task) = (end.job_id, end.task_id);
        anyhow::ensure!(
            seen.insert((job.clone(), task.clone())),
            "the end of task {job}/{task} was told twice"
        );
    }
    Ok(())
}
