//! One watch stream: tasks are named as it goes, each is answered once, when it has ended.
//!
//! Run as a task of its own by the door `fedbroker`. First the hub is told, then the record is read: an end in between rings the bell, one
//! before it is in the record, so none is missed. A task costs one entry here and one in the hub, so that a stream can carry 100 000.

use super::convert;
use super::hub::Bell;
use super::parts::Shared;
use crate::engine::reader::Reader;
use crate::machine::cluster::records::TaskState;
use crate::machine::cluster::{Cluster, Key, Record};
use crate::machine::ids::TaskKey;
use crate::machine::outcome::Outcome;
use crate::supervisor::Supervisor;
use crate::wire::fedbroker::v1::{TaskEnd, WatchRequest};
use futures_util::stream::StreamExt;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// The most tasks one stream may wait for; about 1 KiB of memory each with the longest ids.
const TASKS_MAX: usize = 1 << 20;
/// Records read by one blocking call: few enough that an answer is not held up.
const CHUNK: usize = 256;

type Answers = mpsc::Sender<Result<TaskEnd, Status>>;

/// What the store says of a task that is watched.
enum Standing {
    Live,
    Ended(Outcome),
    Unknown,
}

struct Watch {
    shared: Shared,
    id: u64,
    bell: Bell,
    pending: HashSet<TaskKey>,
    out: Answers,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.hub.unwatch(self.id, self.pending.iter());
    }
}

/// Until all is answered and no more will be asked, or the caller is gone.
pub(super) async fn run(shared: Shared, inbound: tonic::Streaming<WatchRequest>, out: Answers) {
    let (bell, mut rings) = mpsc::unbounded_channel();
    let id = shared.hub.watch_id();
    let pending = HashSet::new();
    let mut watch = Watch {
        shared,
        id,
        bell,
        pending,
        out: out.clone(),
    };
    let mut requests = inbound.ready_chunks(CHUNK);
    let mut asking = true;
    let mut ended = Vec::with_capacity(CHUNK);
    while asking || !watch.pending.is_empty() {
        let step = tokio::select! {
            chunk = requests.next(), if asking => match chunk {
                Some(chunk) => watch.ask(chunk).await,
                None => {
                    asking = false;
                    Ok(())
                }
            },
            _ = rings.recv_many(&mut ended, CHUNK) => watch.look(std::mem::take(&mut ended)).await,
            () = out.closed() => return,
        };
        if let Err(status) = step {
            let _ = out.send(Err(status)).await;
            return;
        }
    }
}

impl Watch {
    async fn ask(&mut self, requests: Vec<Result<WatchRequest, Status>>) -> Result<(), Status> {
        let mut fresh = Vec::with_capacity(requests.len());
        for request in requests {
            let request = request?;
            let key = convert::key(request.job_id, request.task_id)?;
            if self.pending.insert(key.clone()) {
                fresh.push(key);
            }
        }
        if self.pending.len() > TASKS_MAX {
            return Err(Status::resource_exhausted(format!("a stream may wait for {TASKS_MAX} tasks")));
        }
        self.shared.hub.watch(self.id, &self.bell, fresh.iter());
        self.look(fresh).await
    }

    /// Read the records and answer for those that are over.
    async fn look(&mut self, keys: Vec<TaskKey>) -> Result<(), Status> {
        let keys: Vec<TaskKey> = keys.into_iter().filter(|key| self.pending.contains(key)).collect();
        let found = match in_memory(self.shared.handle.reader(), &keys)? {
            Some(found) => found,
            None => on_disk(self.shared.handle.reader().clone(), keys.clone()).await?,
        };
        for (standing, key) in found.into_iter().zip(keys) {
            let answer = match &standing {
                Standing::Live => continue,
                Standing::Ended(outcome) => convert::task_end(&key, Some(outcome)),
                Standing::Unknown => convert::task_end(&key, None),
            };
            if self.pending.remove(&key) {
                self.shared.hub.unwatch(self.id, [&key].into_iter());
                if self.out.send(Ok(answer)).await.is_err() {
                    return Err(Status::cancelled("the caller is gone"));
                }
            }
        }
        Ok(())
    }
}

/// `None` if one of the tasks is not in memory.
fn in_memory(reader: &Reader<Cluster>, keys: &[TaskKey]) -> Result<Option<Vec<Standing>>, Status> {
    let peek = |key: &TaskKey| reader.peek(&Key::Task(key.clone())).map_err(convert::unavailable);
    keys.iter().map(|key| Ok(peek(key)?.map(|record| standing(Some(record))))).collect()
}

async fn on_disk(reader: Reader<Cluster>, keys: Vec<TaskKey>) -> Result<Vec<Standing>, Status> {
    let read = move || keys.into_iter().map(|key| Ok(standing(reader.get(&Key::Task(key))?))).collect();
    let read: Result<_, crate::store::Error> = Supervisor::blocking(read).await.map_err(convert::unavailable)?;
    read.map_err(convert::unavailable)
}

fn standing(record: Option<Record>) -> Standing {
    match record {
        Some(Record::Task(task)) => match Arc::unwrap_or_clone(task).state {
            TaskState::Ended(outcome) => Standing::Ended(outcome),
            TaskState::Queued | TaskState::Assigned { .. } => Standing::Live,
        },
        _ => Standing::Unknown,
    }
}
