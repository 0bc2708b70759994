//! Lets go of what is kept of ended tasks: of one job when its master says so, and of all that ended long ago.
//!
//! `ForgetJob` of the door `fedbroker` comes in here; the retention of `engine` is told what a task looks like. It must never remove what has
//! not ended.

use super::convert;
use super::parts::Shared;
use crate::engine::retention::{BATCH, Kind};
use crate::machine::cluster::{Cluster, Command, Key, Record, STEP_MAX, all_tasks, tasks_of};
use crate::machine::ids::{JobId, TaskKey};
use crate::supervisor::Supervisor;
use tonic::Status;

const _: () = assert!(BATCH <= STEP_MAX);

/// The ended tasks of this role.
pub(super) fn kind() -> Kind<Cluster> {
    Kind {
        prefix: all_tasks(),
        ended_at: |record| match record {
            Record::Task(task) if task.is_ended() => Some(task.changed_at),
            _ => None,
        },
        forget: |_, keys| {
            Ok(vec![Command::Forget {
                job: None,
                tasks: keys.into_iter().filter_map(task_of).collect(),
            }])
        },
    }
}

fn task_of(key: Key) -> Option<TaskKey> {
    match key {
        Key::Task(key) => Some(key),
        _ => None,
    }
}

/// Remove the records of a job, then have the workers remove its directories; how many records. A worker that is away keeps its directories until its
/// own retention takes them.
pub(super) async fn job(shared: &Shared, job: JobId) -> Result<u32, Status> {
    let mut removed = 0;
    loop {
        let (reader, prefix) = (shared.handle.reader().clone(), tasks_of(&job));
        let read = move || {
            let mut keys = Vec::with_capacity(STEP_MAX);
            let scanned = reader.scan(&prefix, |key, _| {
                keys.extend(task_of(key));
                keys.len() < STEP_MAX
            });
            scanned.map(|()| keys)
        };
        let keys = Supervisor::blocking(read).await.map_err(convert::unavailable)?;
        let tasks = keys.map_err(convert::unavailable)?;
        if tasks.is_empty() {
            break;
        }
        removed += u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        let job = Some(job.clone());
        let command = Command::Forget { job, tasks };
        shared.handle.send(command).await.map_err(convert::refused)?;
    }
    shared.hub.remove_job(&job);
    Ok(removed)
}
