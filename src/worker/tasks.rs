//! The tasks of this worker process, shared by the connection to the manager and the tasks themselves.
//!
//! The connection puts in what the manager says ([`Tasks::run`], [`Tasks::kill`], [`Tasks::acknowledged`]) and takes out reports;
//! tasks outlive connections. Nothing here knows a protocol.

use super::directory;
use super::table::{Admission, Attempt, Table};
use crate::crash_point;
use crate::engine::clock::{Clock, SystemClock};
use crate::job_types::{Registry, TaskRunner};
use crate::machine::ids::{TaskKey, WorkerId};
use crate::machine::outcome::{End, Outcome};
use crate::metrics::Metrics;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::fedvision::framework::Task;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Shared by reference; see the module.
pub(super) struct Tasks {
    worker: WorkerId,
    work_dir: PathBuf,
    registry: Registry,
    supervisor: Supervisor,
    table: Mutex<Table>,
    /// Woken when there is a report to send.
    pub(super) reports: Notify,
}

impl Tasks {
    pub(super) fn new(worker: WorkerId, max: usize, work_dir: PathBuf, registry: Registry, supervisor: Supervisor) -> Arc<Self> {
        Arc::new(Self {
            worker,
            work_dir,
            registry,
            supervisor,
            table: Mutex::new(Table::new(max)),
            reports: Notify::new(),
        })
    }

    /// Let the metrics show how many tasks there are whenever somebody looks.
    pub(super) fn shown_by(self: &Arc<Self>, metrics: &Metrics) {
        let (tasks, worker) = (Arc::downgrade(self), metrics.worker().clone());
        metrics.probe(move || {
            if let Some(tasks) = tasks.upgrade() {
                let (running, slots, waiting) = tasks.table().counts();
                worker.tasks(running, slots, waiting);
            }
        });
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run a task, unless this attempt is known already. A task without an attempt number gets the next one.
    pub(super) fn run(self: &Arc<Self>, task: Task, number: Option<u32>) {
        let key = match TaskKey::parse(task.job_id.as_str(), task.task_id.as_str()) {
            Ok(key) => key,
            // It cannot be named, so it cannot be reported either; our manager refuses such ids at its door.
            Err(error) => return tracing::warn!(%error, "task refused"),
        };
        let mut table = self.table();
        let Some(number) = number.or_else(|| table.next_number(&key)) else {
            return tracing::info!(task = %key, "task is running already, the repetition is dropped");
        };
        let attempt = Attempt { key, number };
        let admission = table.admit(&attempt);
        drop(table);
        match admission {
            Admission::New { go, stop } => {
                let tasks = self.clone();
                let span = tracing::info_span!("task", job = %attempt.key.job, task = %attempt.key.task, attempt = attempt.number);
                let performing = async move { tasks.perform(attempt, task, go, stop).await };
                self.supervisor.spawn("task", Policy::Ordinary, performing.instrument(span));
            }
            Admission::Ended => self.reports.notify_one(),
            Admission::Here => tracing::debug!(task = %attempt.key, attempt = number, "task is known already"),
        }
    }

    /// One attempt from its message to its outcome. The slot comes back however it ends.
    async fn perform(self: Arc<Self>, attempt: Attempt, task: Task, go: oneshot::Receiver<()>, stop: CancellationToken) {
        let guard = EndGuard {
            tasks: &self,
            attempt: &attempt,
        };
        let mut outcome = self.outcome(&attempt, task, go, stop).await;
        outcome.worker = Some(self.worker.clone());
        if outcome.end == End::Succeeded {
            tracing::debug!(task = %attempt.key, attempt = attempt.number, "task succeeded");
        } else {
            tracing::info!(task = %attempt.key, attempt = attempt.number, end = ?outcome.end, reason = outcome.reason, "task ended");
        }
        crash_point::reach("worker.task.ended");
        self.ended(&attempt, outcome);
        drop(guard);
    }

    async fn outcome(&self, attempt: &Attempt, task: Task, go: oneshot::Receiver<()>, stop: CancellationToken) -> Outcome {
        let Some(runner) = self.registry.runner(&task.task_type) else {
            return Registry::unknown_task_type(&task.task_type);
        };
        if !runner.uses_directory() {
            return match runner.stage(task, attempt.number, PathBuf::new()).await {
                Ok(staged) => {
                    if let Some(cancelled) = turn(go, &stop).await {
                        cancelled
                    } else {
                        started(attempt);
                        staged.run(stop).await
                    }
                }
                Err(outcome) => outcome,
            };
        }
        self.outcome_in_directory(&runner, attempt, task, go, stop).await
    }

    async fn outcome_in_directory(
        &self,
        runner: &TaskRunner,
        attempt: &Attempt,
        task: Task,
        go: oneshot::Receiver<()>,
        stop: CancellationToken,
    ) -> Outcome {
        let dir = directory::of_attempt(&self.work_dir, attempt);
        let task_type = task.task_type.clone();
        // Before its turn: the message, which can be large, leaves memory for the disk.
        let staged = match runner.stage(task, attempt.number, dir.clone()).await {
            Ok(staged) => staged,
            Err(outcome) => return outcome,
        };
        if let Some(cancelled) = turn(go, &stop).await {
            return cancelled;
        }
        let started_at = SystemClock.now();
        directory::write_record(&dir, attempt, &task_type, started_at, None).await;
        started(attempt);
        let outcome = staged.run(stop).await;
        directory::write_record(&dir, attempt, &task_type, started_at, Some((SystemClock.now(), &outcome))).await;
        outcome
    }

    fn ended(&self, attempt: &Attempt, outcome: Outcome) {
        self.supervisor.metrics().worker().ended(match outcome.end {
            End::Succeeded => "success",
            End::Failed => "failed",
            End::Cancelled => "cancelled",
        });
        self.table().ended(attempt, outcome);
        self.reports.notify_one();
    }

    /// The manager wants an attempt ended.
    pub(super) fn kill(&self, attempt: &Attempt, reason: String) {
        tracing::info!(task = %attempt.key, attempt = attempt.number, reason, "task is to be ended");
        let reason = if reason.is_empty() { "cancelled".to_owned() } else { reason };
        self.table().kill(attempt, reason);
        self.reports.notify_one();
    }

    /// The manager need not be told of an attempt again.
    pub(super) fn acknowledged(&self, attempt: &Attempt) {
        self.table().acknowledged(attempt);
    }

    /// True while an attempt waits or runs; its files are whole once it does not.
    pub(super) fn is_here(&self, attempt: &Attempt) -> bool {
        self.table().is_here(attempt)
    }

    /// Do something to a directory, that of an attempt or one above it, unless an attempt in it runs or is not acknowledged; `None` if so. None can
    /// begin meanwhile.
    pub(super) fn unless_in_use<T>(&self, dir: &Path, away: impl FnOnce() -> T) -> Option<T> {
        let table = self.table();
        let mut known = table.known().into_iter();
        let in_use = known.any(|attempt| directory::of_attempt(&self.work_dir, &attempt).starts_with(dir));
        (!in_use).then(away)
    }

    /// The next outcome to send.
    pub(super) fn next_report(&self) -> Option<(Attempt, Outcome)> {
        self.table().next_report()
    }

    /// True when there may be one.
    pub(super) fn has_reports(&self) -> bool {
        self.table().has_reports()
    }

    /// Send again what is not acknowledged.
    pub(super) fn repeat_reports(&self) {
        self.table().repeat_reports();
        self.reports.notify_one();
    }

    /// All attempts that are not acknowledged.
    pub(super) fn known(&self) -> Vec<Attempt> {
        self.table().known()
    }
}

/// Said once for each attempt that is really run: `tests/crash/federation` counts these lines as a witness of its own.
fn started(attempt: &Attempt) {
    tracing::debug!(task = %attempt.key, attempt = attempt.number, "task started");
    crash_point::reach("worker.task.started");
}

/// Wait for a slot; the outcome when the task is to end before it has one.
async fn turn(go: oneshot::Receiver<()>, stop: &CancellationToken) -> Option<Outcome> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Some(Outcome::without_process(End::Cancelled, "cancelled")),
        _ = go => None,
    }
}

/// Ends the attempt if its task panics; does nothing once it has ended.
struct EndGuard<'a> {
    tasks: &'a Tasks,
    attempt: &'a Attempt,
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tasks.ended(
                self.attempt,
                Outcome::without_process(End::Failed, "the worker panicked while it ran the task"),
            );
        }
    }
}
