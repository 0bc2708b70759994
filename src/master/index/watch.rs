//! Who waits for a job: told of each commit that changes it, so that many who wait cost nothing until then.
//!
//! Fed by the index, used by requests that wait for the end of a job or follow its events.

use crate::machine::ids::JobId;
use crate::store::Seq;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

type Waiting = Arc<Mutex<HashMap<JobId, watch::Sender<Seq>>>>;

/// All who wait.
#[derive(Default)]
pub(super) struct Watchers(Waiting);

/// One who waits.
pub struct Watcher {
    job: JobId,
    changes: watch::Receiver<Seq>,
    all: Waiting,
}

impl Watchers {
    pub(super) fn watch(&self, job: &JobId) -> Watcher {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = all.entry(job.clone()).or_insert_with(|| watch::channel(0).0).subscribe();
        Watcher {
            job: job.clone(),
            changes,
            all: self.0.clone(),
        }
    }

    pub(super) fn tell(&self, job: &JobId, seq: Seq) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changes) = all.get(job) {
            changes.send_replace(seq);
        }
    }
}

impl Watcher {
    /// Resolves once a commit changed the job since the watcher was made, or since this resolved last, with the number of its last event.
    pub async fn changed(&mut self) -> Seq {
        if self.changes.changed().await.is_err() {
            // The sender lives as long as one who waits.
            std::future::pending::<()>().await;
        }
        *self.changes.borrow_and_update()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // The last one; new ones are only made under the lock.
        if all.get(&self.job).is_some_and(|changes| changes.receiver_count() == 1) {
            all.remove(&self.job);
        }
    }
}
