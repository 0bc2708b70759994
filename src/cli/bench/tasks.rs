//! The durable task queue in this process: the cluster manager's machine behind the engine on the store, opened as the role opens it.
//!
//! Only the network is missing. Producers speak to the loop through its `Handle` like the doors do, and get its dispatches like a worker's
//! stream does. What was acknowledged is read back from the closed store afterwards: each task once, and none more.

use super::drive::Client;
use crate::engine::Handle;
use crate::engine::open::open;
use crate::engine::reader::Reader;
use crate::machine::cluster::records::{Ports, Profile, TASKS_MAX, TaskState};
use crate::machine::cluster::{Attach, Cluster, Command, Effect, Key, Record, Reply, Rules, Submission};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, TaskKey, TypeName, WorkerId};
use crate::machine::outcome::{End, Outcome};
use crate::store::directory::Directory;
use crate::store::sled_store::SledStore;
use crate::store::{Error as StoreError, Store};
use crate::supervisor::Supervisor;
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The role whose queue this is.
pub(super) const ROLE: &str = "cluster-manager";
/// Contents are inline here.
const PAYLOAD_MAX: u64 = 1024 * 1024;
/// How long the proof of the history may take.
const PROVING: Duration = Duration::from_secs(600);
/// How long a closed store may keep its directory's lock.
const CLOSING: Duration = Duration::from_secs(30);

/// What a producer does with each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Enqueues it; nobody takes it.
    Enqueue,
    /// Enqueues it, gets it on a worker, reports its end: three durable transitions in two commits.
    Life,
}

/// Dispatches by job, each job being one producer.
type Lines = Arc<Mutex<HashMap<JobId, mpsc::UnboundedSender<(TaskKey, u32)>>>>;

/// A running queue.
pub(super) struct Queue {
    dir: PathBuf,
    handle: Handle<Cluster>,
    lines: Lines,
    worker: WorkerId,
    /// Stops it.
    pub(super) supervisor: Supervisor,
}

impl Queue {
    /// Open the data directory `dir`, which may be new, and start its loop. With [`Work::Life`] a worker is attached that has a slot for each producer.
    ///
    /// # Errors
    /// The directory is no good.
    pub(super) async fn open(dir: &Path, work: Work) -> anyhow::Result<Self> {
        let (supervisor, lines) = (Supervisor::new(), Lines::default());
        let (path, metrics) = (dir.to_owned(), supervisor.metrics().clone());
        let machine = Cluster::new(Rules::default());
        let opened = Supervisor::blocking(move || open(&path, ROLE, None, machine, PAYLOAD_MAX, &metrics)).await??;
        let handle = opened.engine.handle();
        let sink = lines.clone();
        let dispatch = move |effect| {
            if let Effect::Dispatch { key, attempt, .. } = effect {
                let lines = sink.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = lines.get(&key.job).map(|line| line.send((key.clone(), attempt)));
            }
        };
        opened.engine.start(&supervisor, Box::new(dispatch))?;
        handle.send(Command::Started).await?;
        let worker = WorkerId::parse("bench-worker")?;
        if work == Work::Life {
            handle.send(Command::Attach(attach(worker.clone()))).await?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            handle,
            lines,
            worker,
            supervisor,
        })
    }

    /// Once the history is proved, which goes on while the queue is served.
    ///
    /// # Errors
    /// The queue has stopped, or it takes too long.
    pub(super) async fn proved(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.handle.reader().history().done {
            anyhow::ensure!(!self.supervisor.is_stopped(), "the queue has stopped");
            anyhow::ensure!(began.elapsed() < PROVING, "the history is not proved after {} s", PROVING.as_secs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// A producer, with a job of its own.
    ///
    /// # Errors
    /// None: the name is a good one.
    pub(super) fn producer(&self, number: usize, work: Work, size: usize) -> anyhow::Result<Producer> {
        let job = producer_job(number)?;
        let (line, dispatched) = mpsc::unbounded_channel();
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), line);
        Ok(Producer {
            number,
            job,
            work,
            size,
            worker: self.worker.clone(),
            handle: self.handle.clone(),
            dispatched,
        })
    }

    /// Stop the loop, open the store again and compare it with what was acknowledged to each producer, by number. Gives the commits it had.
    ///
    /// # Errors
    /// A task is missing, extra, or in another state than was acknowledged.
    pub(super) async fn check(self, work: Work, acknowledged: HashMap<usize, u64>) -> anyhow::Result<u64> {
        let Self {
            dir, handle, supervisor, ..
        } = self;
        drop(handle);
        supervisor.stop();
        Supervisor::blocking(move || read_back(&dir, work, &acknowledged)).await?
    }
}

fn producer_job(number: usize) -> anyhow::Result<JobId> {
    Ok(JobId::parse(format!("producer-{number}"))?)
}

/// A worker with all the slots one may have.
pub(super) fn attach(worker: WorkerId) -> Attach {
    let profile = Profile {
        ip: "127.0.0.1".to_owned(),
        max_tasks: TASKS_MAX,
        ports: Ports { start: 1, end: 1 },
        instance: "bench".to_owned(),
        legacy: false,
    };
    let known = Vec::new();
    Attach { worker, profile, known }
}

/// A task of so many bytes that no other one has.
pub(super) fn submission(key: TaskKey, size: usize) -> Submission {
    let mut content: Vec<u8> = format!("{key} ").into_bytes();
    content.resize(size, b'x');
    Submission {
        task_type: TypeName::parse("dummy_trainer").expect("it is short and printable"),
        // The door computes it too.
        fingerprint: Sha256::digest(&content).into(),
        content: Content::Inline(content),
        assignee: None,
        key,
    }
}

/// Enqueues tasks one after another.
pub(super) struct Producer {
    /// Which one.
    pub(super) number: usize,
    job: JobId,
    work: Work,
    size: usize,
    worker: WorkerId,
    handle: Handle<Cluster>,
    dispatched: mpsc::UnboundedReceiver<(TaskKey, u32)>,
}

impl Client for Producer {
    async fn ask(&mut self, n: u64) -> anyhow::Result<()> {
        let key = TaskKey::parse(self.job.as_str(), format!("task-{n}"))?;
        let reply = self.handle.send(Command::Submit(submission(key.clone(), self.size))).await?;
        anyhow::ensure!(reply == Reply::Submitted { repeated: false }, "task {key} was answered {reply:?}");
        if self.work == Work::Enqueue {
            return Ok(());
        }
        let (dispatched, attempt) = self.dispatched.recv().await.context("the queue has stopped")?;
        anyhow::ensure!(dispatched == key, "task {dispatched} was dispatched in place of {key}");
        let report = Command::Report {
            worker: self.worker.clone(),
            key,
            attempt: Some(attempt),
            outcome: Outcome::without_process(End::Succeeded, ""),
        };
        let reply = self.handle.send(report).await?;
        anyhow::ensure!(reply == Reply::Done, "the end of task-{n} was answered {reply:?}");
        Ok(())
    }
}

fn read_back(dir: &Path, work: Work, acknowledged: &HashMap<usize, u64>) -> anyhow::Result<u64> {
    let directory = closed(dir)?;
    let store = Arc::new(SledStore::inspect(&directory)?);
    let mut expected: HashMap<JobId, u64> = HashMap::new();
    for (number, count) in acknowledged {
        expected.insert(producer_job(*number)?, *count);
    }
    let (mut found, mut wrong) = (HashMap::<JobId, u64>::new(), None);
    Reader::<Cluster>::new(store.clone()).scan(b"t", |key, record| {
        let (Key::Task(key), Record::Task(task)) = (key, record) else {
            return true;
        };
        // What was there before has other names.
        let Some(count) = expected.get(&key.job) else { return true };
        let number = key.task.as_str().strip_prefix("task-").and_then(|n| n.parse::<u64>().ok());
        let done = match &task.state {
            TaskState::Queued => work == Work::Enqueue,
            TaskState::Assigned { .. } => false,
            TaskState::Ended(outcome) => work == Work::Life && outcome.end == End::Succeeded,
        };
        if number.is_none_or(|number| number >= *count) || !done {
            wrong = Some(format!("task {key} is stored as {:?}", task.state));
        }
        *found.entry(key.job).or_default() += 1;
        wrong.is_none()
    })?;
    if let Some(wrong) = wrong {
        anyhow::bail!("{wrong}, which was not acknowledged");
    }
    for (job, count) in expected {
        // Names are unique in the store and below `count` each, so as many as were acknowledged are exactly those.
        let stored = found.get(&job).copied().unwrap_or_default();
        anyhow::ensure!(stored == count, "{count} tasks were acknowledged to {job}, and {stored} are stored");
    }
    Ok(store.head().batch)
}

/// The directory, once its store is closed.
fn closed(dir: &Path) -> anyhow::Result<Directory> {
    let began = Instant::now();
    loop {
        match Directory::inspect(dir) {
            Err(StoreError::Held { .. }) if began.elapsed() < CLOSING => std::thread::sleep(Duration::from_millis(5)),
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::drive::{Until, drive};

    /// What a check says that is told `told` of the three tasks which each of two producers had acknowledged.
    async fn check(work: Work, told: u64) -> Result<u64, String> {
        let root = tempfile::tempdir().unwrap();
        let queue = Queue::open(&root.path().join("data"), work).await.unwrap();
        let producers = (0..2).map(|number| queue.producer(number, work, 200).unwrap()).collect();
        let supervisor = queue.supervisor.clone();
        let driven = drive(&supervisor, producers, Until::Asked(3)).await.unwrap();
        assert_eq!(driven.acknowledged(), 6);
        drop(driven);
        let counts = HashMap::from([(0, told), (1, 3)]);
        queue.check(work, counts).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_is_stored_must_be_what_was_acknowledged() {
        for work in [Work::Enqueue, Work::Life] {
            assert!(check(work, 3).await.unwrap() > 1);
            let lost = check(work, 4).await.unwrap_err();
            assert_eq!(lost, "4 tasks were acknowledged to producer-0, and 3 are stored");
            let extra = check(work, 2).await.unwrap_err();
            assert!(extra.starts_with("task producer-0/task-2 is stored as"), "{extra}");
        }
    }
}
