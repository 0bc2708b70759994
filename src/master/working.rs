//! Who works for which job here, so that it can be told to give up, and so that nothing else begins before it has.
//!
//! Used by `runner`, which does the work, and by `submitter`, which waits for its end before it says that nothing of a job is left. Volatile: after a
//! restart nobody works, and what an earlier process left has been waited for (`job_types::exec`).

use crate::machine::ids::JobId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type All = HashMap<JobId, Vec<Weak<Work>>>;

/// All who work. Cheap to clone; clones are one.
#[derive(Clone, Default)]
pub struct Working(Arc<Mutex<All>>);

/// Work for a job, as long as it lives.
#[derive(Debug)]
pub(super) struct Work {
    /// Cancelled when the job moves on.
    pub(super) over: CancellationToken,
    /// Whether the job must not go on before this has ended: it has a process.
    awaited: bool,
    /// Closed with the work.
    ended: watch::Sender<()>,
}

impl Working {
    /// Begin to compile for a job: it is not left before that has ended.
    pub(super) fn compile(&self, job: &JobId) -> Arc<Work> {
        self.begin(job, true)
    }

    /// Begin a call for a job, which nobody waits for.
    pub(super) fn call(&self, job: &JobId) -> Arc<Work> {
        self.begin(job, false)
    }

    fn begin(&self, job: &JobId, awaited: bool) -> Arc<Work> {
        let work = Arc::new(Work {
            over: CancellationToken::new(),
            awaited,
            ended: watch::channel(()).0,
        });
        self.with(|all| {
            all.entry(job.clone()).or_default().push(Arc::downgrade(&work));
            if all.len().is_power_of_two() {
                all.retain(|_, works| {
                    works.retain(|work| work.strong_count() > 0);
                    !works.is_empty()
                });
            }
        });
        work
    }

    /// Whoever works for a job gives up: it has moved on.
    pub(super) fn give_up(&self, job: &JobId) {
        self.with(|all| {
            let works = all.get(job).into_iter().flatten();
            works.filter_map(Weak::upgrade).for_each(|work| work.over.cancel());
        });
    }

    /// Resolves once all who were to give up have ended.
    pub(super) async fn gone(&self, job: &JobId) {
        let ending: Vec<watch::Receiver<()>> = self.with(|all| {
            let Some(works) = all.get_mut(job) else { return Vec::new() };
            works.retain(|work| work.strong_count() > 0);
            let given_up = works
                .iter()
                .filter_map(Weak::upgrade)
                .filter(|work| work.awaited && work.over.is_cancelled());
            let ending = given_up.map(|work| work.ended.subscribe()).collect();
            if works.is_empty() {
                all.remove(job);
            }
            ending
        });
        for mut ended in ending {
            // An error says that the sender is gone, and with it the work.
            let _ = ended.changed().await;
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut All) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn what_was_given_up_is_waited_for_and_nothing_else() {
        let (working, job) = (Working::default(), JobId::parse("p-1").unwrap());
        working.gone(&job).await;
        let (old, call) = (working.compile(&job), working.call(&job));
        working.gone(&job).await;
        working.give_up(&job);
        assert!(old.over.is_cancelled() && call.over.is_cancelled());
        let new = working.compile(&job);
        let mut gone = Box::pin(working.gone(&job));
        assert!(gone.as_mut().now_or_never().is_none(), "the old one is not gone");
        drop(old);
        gone.await;
        assert!(!new.over.is_cancelled());
        drop((new, call));
        working.gone(&job).await;
        assert!(working.with(|all| all.is_empty()), "nothing is kept");
    }
}
