//! Carries a job from its record to a verdict: compiles and packs it, then proposes it.

use super::call::pause;
use super::follower::signed;
use super::sending::{self, Unsent};
use super::settings::Settings;
use super::subscriber::PEER;
use super::turns::{Order, Turns};
use super::waiting::Line;
use super::{Shared, compile_dir};
use crate::job_types::{PrepareInput, Prepared};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskId, TypeName};
use crate::machine::master::records::{Failure, Job, JobState};
use crate::machine::master::{Command, Key, LocalTask, Packed, Record, Rejection, Verdict};
use crate::store::payload::Pinned;
use crate::store::payload::pieces::Pieces;
use crate::supervisor::Policy;
use crate::telemetry::adopt;
use crate::wire::body::Calling;
use crate::wire::connect::{Backoff, PeerKind, hello};
use crate::wire::fedvision::framework::Task as WireTask;
use crate::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use crate::wire::fedvision::framework::coordinator::proposal;
use crate::wire::metadata;
use crate::wire::metered::Channel;
use crate::wire::pieces;
use bytes::Bytes;
use prost::Message;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tracing::{Instrument, Span, field};

/// Compiles, packs and proposes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Runner {
    shared: Shared,
    coordinator: Channel,
    preparing: Turns,
    /// What a point of priority is worth.
    ageing: Duration,
    /// How much longer than its window a Proposal call may take: the coordinator answers when the window closes.
    proposal_slack: Duration,
}

impl Runner {
    pub(super) fn new(shared: Shared, coordinator: Channel, settings: &Settings) -> Self {
        Self {
            shared,
            coordinator,
            preparing: Turns::new(settings.preparing.at_once),
            ageing: settings.jobs.ageing(),
            proposal_slack: Duration::from_secs(settings.patience.proposal_s),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Compile and pack a job.
    pub(super) fn prepare(&self, id: JobId, step: u32) {
        let (runner, work) = (self.clone(), self.shared.working.compile(&id));
        self.shared.supervisor.spawn("prepare", Policy::Passing, async move {
            let prepared = runner.prepared(&id, step, &work.over).await;
            drop(work);
            let (result, pins) = match prepared {
                Some(Ok((packed, pins))) => (Ok(packed), pins),
                Some(Err(failure)) => (Err(failure), Vec::new()),
                None => return,
            };
            runner.tell(Command::Prepared { job: id, step, result }, pins).await;
        });
    }

    /// `None` when the job has moved on meanwhile; then nothing of it runs here any more.
    async fn prepared(&self, id: &JobId, step: u32, over: &CancellationToken) -> Option<Result<(Packed, Vec<Pinned>), Failure>> {
        let (_turn, job) = unless(over, async {
            let order = Order::of(&self.job(id, step).await?, self.ageing);
            let _waits = self.shared.waiting.join(Line::CompileTurns);
            let turn = self.preparing.take(order).await;
            Some((turn, self.job(id, step).await?))
        })
        .await??;
        let _compiles = self.shared.waiting.join(Line::Compiling);
        let span = span_of("prepare", &job);
        let input = match unless(over, self.input(&job, over)).await? {
            Ok(input) => input,
            Err(failure) => return Some(Err(failure)),
        };
        // It ends when it is over, and not before its processes have.
        let preparing = self.shared.registry.prepare(job.spec.job_type.as_str(), input);
        let prepared = match preparing.instrument(span.clone()).await {
            Ok(prepared) => prepared,
            Err(_) if over.is_cancelled() => return None,
            Err(error) => {
                return Some(Err(Failure {
                    reason: error.reason,
                    exit_code: error.exit_code,
                    stderr_tail: error.stderr_tail,
                }));
            }
        };
        unless(over, self.pack(&job, prepared).instrument(span)).await
    }

    async fn input(&self, job: &Job, over: &CancellationToken) -> Result<PrepareInput, Failure> {
        let config = self.shared.load(&job.spec.config).await.map_err(io_failure)?;
        let config = serde_json::from_slice(&config).map_err(|error| Failure::because(format!("the stored job_config: {error}")))?;
        let algorithm_config = match &job.spec.algorithm_config {
            Some(content) => Some(String::from_utf8_lossy(&self.shared.load(content).await.map_err(io_failure)?).into_owned()),
            None => None,
        };
        Ok(PrepareInput {
            job_id: job.id.as_str().to_owned(),
            config,
            algorithm_config,
            endpoints: job.lease.as_ref().map(|lease| lease.endpoints()).unwrap_or_default(),
            work_dir: compile_dir(&self.shared, job.number),
            attempt: job.step,
            cancel: over.clone(),
        })
    }

    async fn pack(&self, job: &Job, prepared: Prepared) -> Result<(Packed, Vec<Pinned>), Failure> {
        let mut pins = Vec::new();
        let mut local = Vec::new();
        for mut task in prepared.local_tasks {
            task.assignee = job.lease.as_ref().map(|lease| lease.worker.as_str().to_owned()).unwrap_or_default();
            let id = TaskId::parse(task.task_id.clone()).map_err(|error| Failure::because(error.to_string()))?;
            let task_type = TypeName::parse(task.task_type.clone()).map_err(|error| Failure::because(error.to_string()))?;
            let (content, pin) = self.shared.keep_patiently(pieces::of_task(&task)).await.map_err(io_failure)?;
            pins.extend(pin);
            local.push(LocalTask {
                task: id,
                task_type,
                content,
            });
        }
        let proposal = match job.spec.plan.workers {
            0 => None,
            _ => {
                let pieces = pieces::of_proposal(&request(job, prepared.proposal_tasks));
                let (content, pin) = self.shared.keep_patiently(pieces).await.map_err(io_failure)?;
                pins.extend(pin);
                Some(content)
            }
        };
        Ok((Packed { proposal, local }, pins))
    }

    /// Propose a job and bring back the verdict.
    pub(super) fn propose(&self, id: JobId, step: u32, legacy_call: bool, tries: u32) {
        let (runner, work) = (self.clone(), self.shared.working.call(&id));
        self.shared.supervisor.spawn("propose", Policy::Passing, async move {
            let _waits = runner.shared.waiting.join(Line::Proposals);
            pause(tries).await;
            let verdict = if legacy_call {
                Some(Verdict::Unknown)
            } else {
                runner.verdict(&id, step, &work.over).await
            };
            if let Some(verdict) = verdict {
                runner.tell(Command::Verdict { job: id, step, verdict }, Vec::new()).await;
            }
        });
    }

    /// `None` when the job has moved on meanwhile.
    /// A call that is out is waited for all the same: given up, it would leave the parties of a FedVision 0.1 coordinator waiting for ever.
    async fn verdict(&self, id: &JobId, step: u32, over: &CancellationToken) -> Option<Verdict> {
        let job = self.job(id, step).await?;
        let span = span_of("propose", &job);
        let limit = Duration::from_secs(u64::from(job.spec.plan.wait_s)) + self.proposal_slack;
        let mut backoff = Backoff::new();
        loop {
            if over.is_cancelled() {
                return None;
            }
            let kind = match hello(self.coordinator.clone(), "master").await {
                Ok(kind) => kind,
                Err(status) => {
                    self.note(id, step, format!("the coordinator cannot be reached: {}", status.message()))
                        .await;
                    backoff.wait().await;
                    continue;
                }
            };
            let legacy = kind == PeerKind::FedVision;
            if legacy && !self.takes_part(id, step).await {
                continue;
            }
            let request = match self.packed(&job).await {
                Ok(request) => request,
                Err(error) => return Some(unreadable(&error)),
            };
            if legacy {
                // From here on the outcome is unknown until the call is answered; a crash must find that written.
                match self.shared.handle.send(Command::LegacyProposal { job: id.clone(), step }).await {
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
            let call = self.call(request, &kind, job.spec.plan.workers).instrument(span.clone());
            match tokio::time::timeout(limit, call).await {
                Ok(Ok(verdict)) => return Some(verdict),
                // The coordinator did not get the last of it, and knows of no proposal.
                Ok(Err(Unsent::Unreadable(error))) => return Some(unreadable(&error)),
                Ok(Err(Unsent::Failed(status))) if is_answer(&status, legacy) => {
                    return Some(Verdict::Refused(refusal(&status)));
                }
                _ if legacy => return Some(Verdict::Unknown),
                Ok(Err(Unsent::Failed(status))) => {
                    self.note(id, step, format!("the coordinator cannot be reached: {}", status.message()))
                        .await
                }
                Err(_) => self.note(id, step, "the coordinator does not answer".to_owned()).await,
            }
            self.shared.supervisor.metrics().peers().unanswered(PEER);
            backoff.wait().await;
        }
    }

    /// At a FedVision 0.1 coordinator this party's own place comes first: an offer to a stream that died with an earlier process of it would burn
    /// its id for ever, and a proposal before the first Subscribe would be rejected. False if that had to be waited for.
    async fn takes_part(&self, id: &JobId, step: u32) -> bool {
        let state = self.shared.subscription.get();
        if state.connected || state.refused {
            return true;
        }
        self.note(id, step, "this party does not take part in the federation yet".to_owned())
            .await;
        self.shared.subscription.decided().await;
        false
    }

    async fn call(&self, request: Packing, kind: &PeerKind, workers: u32) -> Result<Verdict, Unsent> {
        let reply = match request {
            Packing::Small(request) => {
                let mut client = CoordinatorClient::new(self.coordinator.clone());
                client.proposal(self.addressed(request, kind)).await?
            }
            Packing::Large(pieces) => {
                let (body, broken) = sending::message(&Bytes::new(), pieces)?;
                let mut client = CoordinatorClient::new(Calling::new(self.coordinator.clone(), body));
                let answer = client.proposal(self.addressed(proposal::Req::default(), kind)).await;
                answer.map_err(|status| broken.or(status))?
            }
        };
        let why = reply
            .metadata()
            .get(metadata::REASON)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let text = match reply.into_inner().status() {
            proposal::Status::Success => return Ok(Verdict::Accepted),
            proposal::Status::NotEnoughResponders => format!("fewer than {workers} parties answered the proposal"),
            proposal::Status::NotEnoughSubscribers => format!("fewer than {workers} parties take part in this job type"),
            proposal::Status::Reject => "the coordinator rejected the proposal: no party ever took part in this job type".to_owned(),
            proposal::Status::Unknown => "the coordinator answered with an unknown status".to_owned(),
        };
        Ok(Verdict::Refused(why.unwrap_or(text)))
    }

    /// A coordinator of ours lets nobody else follow the job or cancel it.
    fn addressed(&self, request: proposal::Req, kind: &PeerKind) -> Request<proposal::Req> {
        match kind {
            PeerKind::Fedbroker { .. } => signed(request, &self.shared.instance),
            PeerKind::FedVision => Request::new(request),
        }
    }

    async fn packed(&self, job: &Job) -> anyhow::Result<Packing> {
        match job.proposal.as_ref() {
            Some(Content::Inline(bytes)) => Ok(Packing::Small(proposal::Req::decode(bytes.as_slice())?)),
            Some(Content::Stored(payload)) => Ok(Packing::Large(self.shared.open(*payload).await?)),
            None => anyhow::bail!("it is gone"),
        }
    }

    /// The durable record, if it still waits for this step.
    async fn job(&self, id: &JobId, step: u32) -> Option<Job> {
        match self.shared.record(Key::Job(id.clone())).await {
            Some(Record::Job(job)) if job.step == step && !job.state.is_final() && job.state != JobState::Running => Some(job),
            _ => None,
        }
    }

    async fn note(&self, id: &JobId, step: u32, note: String) {
        tracing::debug!(job = %id, note, "waiting");
        self.tell(
            Command::Note {
                job: id.clone(),
                step,
                note,
            },
            Vec::new(),
        )
        .await;
    }

    async fn tell(&self, command: Command, pins: Vec<Pinned>) {
        let job = command.job().cloned();
        if let Err(crate::engine::Refusal::Rejected(Rejection::Late(what))) = self.shared.handle.send_pinned(command, pins).await {
            tracing::debug!(?job, what, "a late outcome");
        }
    }
}

/// A packed proposal.
enum Packing {
    Small(proposal::Req),
    /// The file is the encoded message.
    Large(Pieces),
}

fn unreadable(error: &anyhow::Error) -> Verdict {
    tracing::error!(error = format!("{error:#}"), "a packed proposal cannot be read; its job fails");
    Verdict::Refused(format!("the packed proposal cannot be read: {error:#}"))
}

/// What comes of this, unless it is over before: then it is dropped where it stands.
async fn unless<T>(over: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = over.cancelled() => None,
    }
}

/// A step of a job, in the trace of its submission.
fn span_of(step: &'static str, job: &Job) -> Span {
    let span = tracing::info_span!("runner", step, job = %job.id, trace = field::Empty);
    if let Some(traceparent) = &job.provenance.traceparent {
        adopt(&span, traceparent);
    }
    span
}

/// True when the coordinator itself refused the call, so that asking again would bring the same. A FedVision 0.1 coordinator answers UNKNOWN when
/// its handler failed.
fn is_answer(status: &Status, legacy: bool) -> bool {
    let refused = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented
    );
    refused || (legacy && status.code() == Code::Unknown && status.message().starts_with("Unexpected"))
}

/// What a refused Proposal call means to a user.
fn refusal(status: &Status) -> String {
    let what = status.message();
    if status.code() == Code::Unknown && what.contains("KeyError") {
        // Its name for it is the party's id.
        return format!("a party has left this job type, and a FedVision 0.1 coordinator cannot propose until it is back: {what}");
    }
    format!("the coordinator refused the proposal: {what}")
}

fn io_failure(error: anyhow::Error) -> Failure {
    Failure::because(format!("{error:#}"))
}

fn request(job: &Job, tasks: Vec<WireTask>) -> proposal::Req {
    proposal::Req {
        job_id: job.id.as_str().to_owned(),
        job_type: job.spec.job_type.as_str().to_owned(),
        tasks,
        proposal_wait_time: job.spec.plan.wait_s,
        minimum_acceptance: job.spec.plan.workers,
        maximum_acceptance: job.spec.plan.workers,
    }
}
