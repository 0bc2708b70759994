//! Learns how tasks end at the cluster manager: one stream for all of them, begun again with all that are open whenever it breaks.
//!
//! A FedVision 0.1 manager has no such service: its tasks stay open, and it is asked now and then whether it has become one of ours.

use super::Shared;
use super::submitter::PEER;
use crate::engine::Refusal;
use crate::machine::ids::TaskKey;
use crate::machine::ids::WorkerId;
use crate::machine::master::Command;
use crate::machine::outcome::{End, Outcome};
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, PeerKind, Probe};
use crate::wire::fedbroker::v1::cluster_client::ClusterClient;
use crate::wire::fedbroker::v1::{self, TaskEnd, WatchRequest, outcome};
use crate::wire::metered::Channel;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::Instrument;

/// How often a FedVision 0.1 manager is asked whether it still is one.
const LEGACY_PAUSE: Duration = Duration::from_secs(30);
/// Ends that may be on their way into the machine at once.
const TELLING: usize = 1024;

/// Takes the keys of tasks to watch. Cheap to clone.
#[derive(Clone)]
pub(super) struct Watcher {
    keys: mpsc::UnboundedSender<TaskKey>,
}

impl Watcher {
    pub(super) fn start(shared: &Shared, channel: Channel, probe: Probe) -> Self {
        let (keys, queue) = mpsc::unbounded_channel();
        let watch = Watch {
            shared: shared.clone(),
            channel,
            probe,
            queue,
            open: HashSet::new(),
        };
        shared.supervisor.spawn("watcher", Policy::Essential, watch.run());
        Self { keys }
    }

    /// Bring the end of a task to the machine, whenever it comes.
    pub(super) fn watch(&self, key: TaskKey) {
        let _ = self.keys.send(key);
    }
}

struct Watch {
    shared: Shared,
    channel: Channel,
    probe: Probe,
    queue: mpsc::UnboundedReceiver<TaskKey>,
    open: HashSet<TaskKey>,
}

impl Watch {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        let reconnects = self.shared.supervisor.metrics().peers().reconnects(PEER);
        loop {
            if self.open.is_empty() {
                match self.queue.recv().await {
                    Some(key) => drop(self.open.insert(key)),
                    None => return,
                }
            }
            match self.probe.kind().await {
                Ok(PeerKind::Fedbroker { .. }) => match self.stream(&mut backoff).await {
                    Ok(()) => tracing::debug!("the watch ended, beginning again"),
                    Err(status) => tracing::debug!(why = status.message(), "the watch broke, beginning again"),
                },
                Ok(PeerKind::FedVision) => tokio::time::sleep(LEGACY_PAUSE).await,
                Err(status) => tracing::debug!(why = status.message(), "the cluster manager cannot be reached"),
            }
            self.probe.forget();
            reconnects.one();
            backoff.wait().await;
        }
    }

    /// One stream, until it breaks.
    async fn stream(&mut self, backoff: &mut Backoff) -> Result<(), tonic::Status> {
        let (requests, stream) = mpsc::unbounded_channel();
        for key in &self.open {
            let _ = requests.send(request(key));
        }
        let mut client = ClusterClient::new(self.channel.clone());
        let mut ends = client.watch(UnboundedReceiverStream::new(stream)).await?.into_inner();
        let mut telling = FuturesUnordered::new();
        loop {
            tokio::select! {
                key = self.queue.recv() => match key {
                    Some(key) => {
                        let _ = requests.send(request(&key));
                        self.open.insert(key);
                    }
                    None => return Ok(()),
                },
                end = ends.message(), if telling.len() < TELLING => {
                    let Some(end) = end? else { return Ok(()) };
                    backoff.reset();
                    telling.extend(self.ended(end));
                }
                Some(told) = telling.next() => drop(self.open.remove(&told)),
            }
        }
    }

    /// Tell the machine; resolves to the task once that is durable.
    fn ended(&self, end: TaskEnd) -> Option<impl Future<Output = TaskKey> + use<>> {
        let key = TaskKey::parse(end.job_id, end.task_id).ok()?;
        if !self.open.contains(&key) {
            return None;
        }
        let outcome = from_wire(end.outcome.unwrap_or_default());
        let handle = self.shared.handle.clone();
        let span = tracing::info_span!("watcher", job = %key.job, task = %key.task);
        let telling = async move {
            tracing::debug!(task = %key, end = ?outcome.end, "a task ended");
            if let Err(Refusal::Rejected(late)) = handle.send(Command::TaskEnded { key: key.clone(), outcome }).await {
                tracing::debug!(%late, "a late end");
            }
            key
        };
        Some(telling.instrument(span))
    }
}

fn request(key: &TaskKey) -> WatchRequest {
    WatchRequest {
        job_id: key.job.as_str().to_owned(),
        task_id: key.task.as_str().to_owned(),
    }
}

fn from_wire(wire: v1::Outcome) -> Outcome {
    let (end, fallback) = match wire.state() {
        outcome::State::Succeeded => (End::Succeeded, ""),
        outcome::State::Cancelled => (End::Cancelled, "cancelled"),
        outcome::State::Failed => (End::Failed, "the task failed"),
        outcome::State::NotFound => (
            End::Failed,
            "the cluster manager does not know the task: its data directory was replaced, or it has taken the place of a FedVision 0.1 one",
        ),
        outcome::State::Unspecified => (End::Failed, "the cluster manager did not say how the task ended"),
    };
    let reason = if wire.reason.is_empty() { fallback.to_owned() } else { wire.reason };
    let worker = WorkerId::parse(wire.worker_id).ok();
    Outcome {
        end,
        reason,
        exit_code: wire.exit_code,
        stderr_tail: wire.stderr_tail,
        worker,
        attempt: wire.attempt,
    }
}
