//! The cluster submitter: everything this party asks of its cluster manager, in order for each job, many jobs at once.
//!
//! A call that fails is made again with backoff until it is answered; no error ends a lane. How tasks end is learnt by [`super::watch`].
//! Most lanes wait, for as long as the manager is away, and there are as many as jobs: what they do only now and then is in a box, so that one that
//! waits takes hundreds of bytes and not thousands.

mod calls;

use super::call::{Failed, Unanswered, pause};
use super::leases::Leases;
use super::settings::Settings;
use super::small_tasks::SmallTasks;
use super::turns::Order;
use super::waiting::{Line, Place};
use super::watch::Watcher;
use super::{Shared, compile_dir};
use crate::engine::Refusal;
use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskKey};
use crate::machine::master::records::{Job, Lease, TaskState};
use crate::machine::master::{Command, Effect, Key, Record, SubmitAnswer};
use crate::machine::outcome::{End, Outcome};
use crate::supervisor::{Policy, Supervisor};
use crate::wire::connect::{Backoff, Probe};
use crate::wire::metered::Channel;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tracing::{Instrument, Span};

/// Calls in flight at once: enough to fill the manager's commit batches, few enough that large payloads do not pile up in memory.
const IN_FLIGHT: usize = 64;
/// A task of so many bytes is sent alone: the manager has it in memory while it comes.
const ALONE: u64 = 1024 * 1024;
/// The role of the peer, in metrics.
pub(super) const PEER: &str = "cluster-manager";
/// Runs lanes of effects, one lane for each job.
pub(super) struct Submitter {
    shared: Shared,
    channel: Channel,
    address: String,
    probe: Probe,
    watcher: Watcher,
    small_tasks: SmallTasks,
    lanes: Mutex<HashMap<JobId, Lane>>,
    leases: Leases,
    /// What a point of priority is worth.
    ageing: Duration,
    in_flight: Semaphore,
    /// Of those that are sent alone, the one that is.
    alone: Semaphore,
    /// How long one call may take.
    call_limit: Duration,
}

/// What is to be done for a job, in order.
struct Lane {
    queue: VecDeque<(Effect, Place)>,
    /// Rung when there is more to do, or less: who waits looks whether it still has to.
    moved: Arc<Notify>,
}

/// For what a call is repeated.
#[derive(Debug)]
enum Waits {
    /// Until it is answered, whatever happens.
    Anyway,
    /// As long as the job is at this step.
    Job(JobId, u32),
    /// As long as the task waits for this try of its submission; sent alone or not.
    Task(TaskKey, u32, bool),
}

impl Submitter {
    pub(super) fn new(shared: Shared, channel: Channel, address: String, settings: &Settings) -> Arc<Self> {
        let probe = Probe::new(channel.clone(), "master");
        let watcher = Watcher::start(&shared, channel.clone(), probe.clone());
        let small_tasks = SmallTasks::new(&shared.supervisor, channel.clone());
        let submitter = Arc::new(Self {
            small_tasks,
            channel,
            address,
            probe,
            watcher,
            lanes: Mutex::default(),
            leases: Leases::new(settings.jobs.ageing()),
            ageing: settings.jobs.ageing(),
            in_flight: Semaphore::new(IN_FLIGHT),
            alone: Semaphore::new(1),
            call_limit: Duration::from_secs(settings.patience.cluster_s),
            shared,
        });
        let leases = submitter.leases.clone().run(submitter.clone());
        submitter.shared.supervisor.spawn("leases", Policy::Essential, leases);
        submitter
    }

    /// Put an effect into the lane of its job; the lane runs by itself.
    pub(super) fn take(self: &Arc<Self>, effect: Effect) {
        let job = match &effect {
            Effect::Watch { key } => return self.watcher.watch(key.clone()),
            Effect::AcquireLease { job, .. } | Effect::ReleaseLease { job } | Effect::Forget { job, .. } => job.clone(),
            Effect::Submit { key, .. } | Effect::Cancel { key, .. } => key.job.clone(),
            Effect::Prepare { .. }
            | Effect::Propose { .. }
            | Effect::Fetch { .. }
            | Effect::WakeAt { .. }
            | Effect::DeadlineAt { .. }
            | Effect::GiveUp { .. }
            | Effect::Follow { .. }
            | Effect::Report { .. }
            | Effect::Withdraw { .. } => return,
        };
        let line = match effect {
            Effect::AcquireLease { .. } => Line::Leases,
            _ => Line::ClusterCalls,
        };
        let waiting = (effect, self.shared.waiting.join(line));
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(&job) {
            lane.queue.push_back(waiting);
            lane.moved.notify_one();
            return;
        }
        let moved = Arc::new(Notify::new());
        let lane = Lane {
            queue: VecDeque::from([waiting]),
            moved: moved.clone(),
        };
        lanes.insert(job.clone(), lane);
        drop(lanes);
        let submitter = self.clone();
        self.shared.supervisor.spawn("submitter", Policy::Passing, async move {
            while let Some((effect, _place)) = submitter.next(&job) {
                let span = span_of(&effect);
                Box::pin(submitter.perform(effect, &moved)).instrument(span).await;
            }
        });
    }

    /// Whoever waits in the lane of a job looks whether it still has to.
    pub(super) fn give_up(&self, job: &JobId) {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(job) {
            lane.moved.notify_one();
        }
    }

    fn next(&self, job: &JobId) -> Option<(Effect, Place)> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let effect = lanes.get_mut(job).and_then(|lane| lane.queue.pop_front());
        if effect.is_none() {
            lanes.remove(job);
        }
        effect
    }

    async fn perform(&self, effect: Effect, moved: &Notify) {
        match effect {
            Effect::AcquireLease { job, step, endpoints } => Box::pin(self.seek_lease(job, step, endpoints, moved)).await,
            Effect::ReleaseLease { job } => {
                // A compile step that was told to end may still use them.
                self.shared.working.gone(&job).await;
                let leases = |job: &Job| job.spec.plan.endpoints > 0;
                if !matches!(Box::pin(self.shared.record(Key::Job(job.clone()))).await, Some(Record::Job(job)) if !leases(&job)) {
                    let _ = self.until_answered(&Waits::Anyway, moved, || self.release(&job)).await;
                    self.leases.freed();
                }
                self.tell(Command::LeaseReleased { job }).await;
            }
            Effect::Submit { key, tries } => {
                let mut waits = Waits::Task(key.clone(), tries, false);
                if tries > 0 {
                    tokio::select! {
                        () = pause(tries) => {}
                        () = self.until_over(&waits, moved) => return,
                    }
                }
                let Some(content) = Box::pin(self.content(&key)).await else {
                    return;
                };
                if content.len() >= ALONE {
                    waits = Waits::Task(key.clone(), tries, true);
                }
                let answer = match self.until_answered(&waits, moved, || self.submit(&content)).await {
                    Ok(answer) => answer,
                    Err(Unanswered::Refused) => SubmitAnswer::Refused,
                    Err(Unanswered::Unreadable(why)) => {
                        tracing::error!(task = %key, error = why, "a stored task cannot be read; its job fails");
                        let outcome = Outcome::without_process(End::Failed, format!("the stored task cannot be read: {why}"));
                        return self.tell(Command::TaskEnded { key, outcome }).await;
                    }
                    Err(Unanswered::Over) => return,
                };
                self.tell(Command::Submitted { key, tries, answer }).await;
            }
            Effect::Cancel { key, reason } => {
                let answer = self.until_answered(&Waits::Anyway, moved, || self.cancel(&key, &reason)).await;
                match answer {
                    Ok(true) => self.watcher.watch(key),
                    Ok(false) | Err(_) => {
                        let why = match answer {
                            Ok(_) => "it never reached the cluster",
                            Err(_) => "the cluster manager cannot stop a task",
                        };
                        let outcome = Outcome::without_process(End::Cancelled, format!("{reason}; {why}"));
                        self.tell(Command::TaskEnded { key, outcome }).await;
                    }
                }
            }
            Effect::Forget { job, number } => Box::pin(self.forget(job, number, moved)).await,
            Effect::Watch { .. }
            | Effect::Prepare { .. }
            | Effect::Propose { .. }
            | Effect::Fetch { .. }
            | Effect::WakeAt { .. }
            | Effect::DeadlineAt { .. }
            | Effect::GiveUp { .. }
            | Effect::Follow { .. }
            | Effect::Report { .. }
            | Effect::Withdraw { .. } => {}
        }
    }

    /// Wait for endpoints in the order of all jobs, until there are some or the job has moved on.
    async fn seek_lease(&self, job: JobId, step: u32, endpoints: u16, moved: &Notify) {
        let order = match Box::pin(self.shared.record(Key::Job(job.clone()))).await {
            Some(Record::Job(job)) => Order::of(&job, self.ageing),
            _ => return,
        };
        let waits = Waits::Job(job.clone(), step);
        let mut answer = self.leases.seek(order, job.clone(), step, endpoints);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = self.until_over(&waits, moved) => {
                self.leases.withdraw(order);
                answer.await
            }
        };
        if let Ok(result) = answer {
            self.tell(Command::Leased { job, step, result }).await;
        }
    }

    /// One call for endpoints.
    pub(super) async fn ask_lease(&self, job: &JobId, endpoints: u16) -> Result<Lease, Failed> {
        let permit = self.in_flight.acquire().await;
        let answer = tokio::time::timeout(self.call_limit, self.acquire(job, endpoints)).await;
        drop(permit);
        match answer {
            Ok(Err(Failed::Passing(why))) => Err(Failed::Passing(self.unreachable(&why))),
            Ok(answer) => answer,
            Err(_) => Err(Failed::Passing(self.silent())),
        }
    }

    /// Remove what a purged job left at the cluster and here.
    async fn forget(&self, job: JobId, number: Option<u64>, moved: &Notify) {
        if let Some(number) = number {
            let dir = compile_dir(&self.shared, number);
            let removed = Supervisor::blocking(move || match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", dir.display())),
                _ => Ok(()),
            });
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(%job, error, "the compile directory of a purged job stays");
            }
        }
        if let Err(Unanswered::Refused) = self.until_answered(&Waits::Anyway, moved, || self.forget_job(&job)).await {
            tracing::warn!(%job, "the cluster manager keeps what a purged job left there");
        }
        self.tell(Command::Forgotten { job }).await;
    }

    /// Resolves once nobody waits for this any more.
    async fn until_over(&self, waits: &Waits, moved: &Notify) {
        while Box::pin(self.stands(waits)).await {
            moved.notified().await;
        }
    }

    /// Whether the durable records still want this.
    async fn stands(&self, waits: &Waits) -> bool {
        match waits {
            Waits::Anyway => true,
            Waits::Job(id, step) => matches!(
                self.shared.record(Key::Job(id.clone())).await,
                Some(Record::Job(job)) if job.step == *step && !job.state.is_final()
            ),
            Waits::Task(key, tries, _) => matches!(
                self.shared.record(Key::Task(key.clone())).await,
                Some(Record::Task(task)) if task.state == TaskState::Queued && task.tries == *tries
            ),
        }
    }

    /// Make a call until it is answered, or nobody waits for it any more.
    async fn until_answered<T, F>(&self, waits: &Waits, moved: &Notify, call: impl Fn() -> F) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut backoff = Backoff::new();
        loop {
            let alone = match waits {
                Waits::Task(_, _, true) => tokio::select! {
                    alone = self.alone.acquire() => Some(alone),
                    () = self.until_over(waits, moved) => return Err(Unanswered::Over),
                },
                _ => None,
            };
            let permit = self.in_flight.acquire().await;
            let answer = Box::pin(tokio::time::timeout(self.call_limit, call())).await;
            drop((permit, alone));
            let why = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Refused(why))) => {
                    tracing::debug!(?waits, why, "refused");
                    return Err(Unanswered::Refused);
                }
                Ok(Err(Failed::Unreadable(why))) => return Err(Unanswered::Unreadable(why)),
                Ok(Err(Failed::Waiting(why) | Failed::Busy(why))) => why,
                Ok(Err(Failed::Passing(why))) => self.unreachable(&why),
                Err(_) => self.silent(),
            };
            tracing::debug!(?waits, why, "trying again");
            if let Waits::Task(key, ..) = waits {
                Box::pin(self.note_running(&key.job, why)).await;
            }
            let pause = backoff.delay();
            if let Waits::Anyway = waits {
                tokio::time::sleep(pause).await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.until_over(waits, moved) => return Err(Unanswered::Over),
            }
        }
    }

    /// Say why a job waits.
    pub(super) async fn note(&self, job: &JobId, step: u32, note: String) {
        let job = job.clone();
        let _ = self.shared.handle.send(Command::Note { job, step, note }).await;
    }

    /// Say why a running job's task is not with the cluster yet.
    async fn note_running(&self, job: &JobId, note: String) {
        if let Some(Record::Job(record)) = self.shared.record(Key::Job(job.clone())).await {
            self.note(job, record.step, note).await;
        }
    }

    /// A call was not answered in time.
    fn silent(&self) -> String {
        let why = "no answer in time";
        self.channel.contact().failed(why);
        self.unreachable(why)
    }

    /// A call failed: what is known of the peer may be wrong by now.
    fn unreachable(&self, why: &str) -> String {
        self.probe.forget();
        self.small_tasks.forget();
        self.shared.supervisor.metrics().peers().unanswered(PEER);
        format!("the cluster manager at {} cannot be reached: {why}", self.address)
    }

    /// The task to send, if it still waits to be sent.
    async fn content(&self, key: &TaskKey) -> Option<Content> {
        match self.shared.record(Key::Task(key.clone())).await {
            Some(Record::Task(task)) if task.state == TaskState::Queued => task.content,
            _ => None,
        }
    }

    async fn tell(&self, command: Command) {
        if let Err(Refusal::Rejected(late)) = Box::pin(self.shared.handle.send(command)).await {
            tracing::debug!(%late, "a late outcome");
        }
    }
}

/// What is done for an effect, by its job and task.
fn span_of(effect: &Effect) -> Span {
    match effect {
        Effect::Submit { key, .. } | Effect::Cancel { key, .. } => {
            tracing::info_span!("submitter", job = %key.job, task = %key.task)
        }
        Effect::AcquireLease { job, .. } | Effect::ReleaseLease { job } => tracing::info_span!("submitter", job = %job),
        _ => Span::none(),
    }
}
