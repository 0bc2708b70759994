//! Learns how this party's jobs go at the others: one stream to the coordinator for all of them, begun again with all that are open whenever it
//! breaks.
//!
//! A FedVision 0.1 coordinator, and a Fedbroker 0.1.0 one, have no such service: the machine is told that there are no news, and decides which
//! jobs still wait for some. Must never make up an end.

use super::Shared;
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId};
use crate::machine::master::federation::{Announced, News, PeerState, Standing};
use crate::machine::master::{Command, Reply};
use crate::machine::outcome::End;
use crate::supervisor::Policy;
use crate::wire::connect::{Backoff, PeerKind, Probe};
use crate::wire::fedbroker::v1::federation_client::FederationClient;
use crate::wire::fedbroker::v1::job_news::Status as NewsStatus;
use crate::wire::fedbroker::v1::{FollowRequest, JobNews, TaskState};
use crate::wire::metadata;
use crate::wire::metered::Channel;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status};

/// How often a coordinator that tells nothing is asked whether it has become one that does.
const SILENT_PAUSE: Duration = Duration::from_secs(30);
/// News that may be on their way into the machine at once.
const TELLING: usize = 256;

/// Takes the jobs to follow. Cheap to clone.
#[derive(Clone)]
pub(super) struct Follower {
    jobs: mpsc::UnboundedSender<(JobId, u64)>,
}

impl Follower {
    pub(super) fn start(shared: &Shared, channel: Channel, probe: Probe) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        let follow = Follow {
            shared: shared.clone(),
            probe,
            channel,
            queue,
            open: HashMap::new(),
        };
        shared.supervisor.spawn("follower", Policy::Essential, follow.run());
        Self { jobs }
    }

    /// Bring the news of a job to the machine, as long as there may be any.
    pub(super) fn follow(&self, job: JobId, after: u64) {
        let _ = self.jobs.send((job, after));
    }
}

struct Follow {
    shared: Shared,
    channel: Channel,
    probe: Probe,
    queue: mpsc::UnboundedReceiver<(JobId, u64)>,
    /// The jobs, with the number of the last news of each.
    open: HashMap<JobId, u64>,
}

/// Where the machine is with a job once it has heard something.
enum Heard {
    /// More may come.
    Open(u64),
    /// Nothing more is waited for.
    Over,
    /// It could not be told: the role stops.
    Lost,
}

impl Follow {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            if self.open.is_empty() {
                match self.queue.recv().await {
                    Some((job, after)) => drop(self.open.insert(job, after)),
                    None => return,
                }
            }
            match self.probe.kind().await {
                Ok(PeerKind::Fedbroker { .. }) => match self.stream(&mut backoff).await {
                    Ok(()) => tracing::debug!("the news ended, asking again"),
                    Err(status) if status.code() == Code::Unimplemented => self.silence().await,
                    Err(status) => tracing::debug!(why = status.message(), "the news broke off, asking again"),
                },
                Ok(PeerKind::FedVision) => self.silence().await,
                Err(status) => tracing::debug!(why = status.message(), "the coordinator cannot be reached"),
            }
            self.probe.forget();
            backoff.wait().await;
        }
    }

    /// One stream, until it breaks.
    async fn stream(&mut self, backoff: &mut Backoff) -> Result<(), Status> {
        let (requests, stream) = mpsc::unbounded_channel();
        for (job, after) in &self.open {
            let _ = requests.send(request(job, *after));
        }
        let call = signed(UnboundedReceiverStream::new(stream), &self.shared.instance);
        let mut client = FederationClient::new(self.channel.clone());
        let mut stream = client.follow_jobs(call).await?.into_inner();
        let mut telling = FuturesUnordered::new();
        loop {
            tokio::select! {
                job = self.queue.recv() => match job {
                    Some((job, after)) => {
                        let _ = requests.send(request(&job, after));
                        self.open.insert(job, after);
                    }
                    None => return Ok(()),
                },
                news = stream.message(), if telling.len() < TELLING => {
                    let Some(news) = news? else { return Ok(()) };
                    backoff.reset();
                    let Ok(job) = JobId::parse(news.job_id.clone()) else { continue };
                    if self.open.contains_key(&job) {
                        telling.push(tell(self.shared.clone(), job, news));
                    }
                }
                Some((job, heard)) = telling.next() => match heard {
                    Heard::Open(revision) => drop(self.open.insert(job, revision)),
                    Heard::Over => drop(self.open.remove(&job)),
                    Heard::Lost => return Ok(()),
                },
            }
        }
    }

    /// A coordinator that tells nothing: what waits for the outcome of its proposal stays, in case it is replaced by one that does.
    async fn silence(&mut self) {
        let jobs: Vec<JobId> = self.open.keys().cloned().collect();
        for job in jobs {
            let (job, heard) = tell(self.shared.clone(), job, JobNews::default()).await;
            if matches!(heard, Heard::Over) {
                self.open.remove(&job);
            }
        }
        if self.open.is_empty() {
            return;
        }
        // A job that has failed meanwhile is asked for again, and need not wait so long.
        if let Ok(Some((job, after))) = tokio::time::timeout(SILENT_PAUSE, self.queue.recv()).await {
            self.open.insert(job, after);
        }
    }
}

/// The identity of this party's data directory, with a call: it is what a coordinator of ours knows it by.
pub(super) fn signed<T>(message: T, instance: &str) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(instance) = instance.parse() {
        request.metadata_mut().insert(metadata::INSTANCE, instance);
    }
    request
}

fn request(job: &JobId, after: u64) -> FollowRequest {
    FollowRequest {
        job_id: job.as_str().to_owned(),
        after,
    }
}

/// Tell the machine; resolves once that is durable.
async fn tell(shared: Shared, job: JobId, news: JobNews) -> (JobId, Heard) {
    let (revision, has_ended) = (news.revision, news.r#final);
    let news = from_wire(news);
    let known = news.announced.is_some();
    let command = Command::News { job: job.clone(), news };
    let heard = match shared.handle.send(command).await {
        Ok(_) if has_ended => {
            tracing::info!(%job, "every party has said how its task ended, as far as it ever will");
            Heard::Over
        }
        Ok(Reply::Known) if !known => Heard::Open(revision),
        Ok(_) if known => Heard::Open(revision),
        // No proposal is known, and the machine does not wait for one.
        Ok(_) | Err(crate::engine::Refusal::Rejected(_)) => Heard::Over,
        Err(_) => Heard::Lost,
    };
    (job, heard)
}

/// What cannot be understood is left out: it is only shown.
fn from_wire(news: JobNews) -> News {
    let status = match news.status() {
        NewsStatus::Unspecified | NewsStatus::NotKnown => {
            return News {
                announced: None,
                chosen: Vec::new(),
            };
        }
        NewsStatus::Open => Standing::Open,
        NewsStatus::Accepted => Standing::Accepted,
        NewsStatus::Refused => Standing::Refused,
        NewsStatus::WasCancelled => Standing::Cancelled,
    };
    let chosen: Vec<_> = news
        .chosen
        .into_iter()
        .filter_map(|chosen| {
            let state = match chosen.state() {
                TaskState::Unspecified | TaskState::Unknown => PeerState::Unknown,
                TaskState::Running => PeerState::Running,
                TaskState::Succeeded => PeerState::Ended(End::Succeeded),
                TaskState::Failed => PeerState::Ended(End::Failed),
                TaskState::Cancelled => PeerState::Ended(End::Cancelled),
            };
            let ids = (PartyId::parse(chosen.party_id).ok()?, TaskId::parse(chosen.task_id).ok()?);
            Some((ids.0, ids.1, state, chosen.reason))
        })
        .collect();
    let announced = Announced {
        proposal: ProposalId::parse(news.proposal_id).ok(),
        status,
        reason: news.reason,
        asked: news.asked,
        accepted: news.accepted,
        chosen: u32::try_from(chosen.len()).unwrap_or(u32::MAX),
        revision: news.revision,
        over: news.r#final,
        last_event: 0,
    };
    News {
        announced: Some(announced),
        chosen,
    }
}
