//! Lets go of history: jobs, proposals and used keys that ended long ago, and the oldest jobs while there are too many.
//!
//! Started by the role. What is due is looked up in the job index or read page by page; a few at a time go through the same door as everybody's
//! commands, with pauses, so that nobody waits behind it. Decides nothing: the machine refuses what is still needed.

use super::Shared;
use super::index::{Columns, Wanted, state_number};
use super::peers;
use crate::engine::Refusal;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::reader::Reader;
use crate::machine::ids::{JobId, Timestamp};
use crate::machine::join_key;
use crate::machine::master::purge::SWEEP_MAX;
use crate::machine::master::records::{ParticipationState, StepName, TaskState};
use crate::machine::master::{Command, Key, Master, Record};
use crate::store::Error;
use crate::supervisor::Supervisor;
use futures_util::future::join_all;
use serde::Deserialize;
use std::time::Duration;

/// Records read, or jobs looked at, in one go.
const PAGE: usize = 256;
/// Events removed in one go.
const EVENTS: usize = 1000;
/// Jobs purged together: one commit for all of them, as a rule.
const BATCH: usize = 32;
/// Between two goes, so that others have the disk and the loop.
const PAUSE: Duration = Duration::from_millis(10);

/// How long history is kept; `[retention]` of the file behind `--config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retention {
    /// Jobs that succeeded.
    pub success: Keep,
    /// Jobs that failed.
    pub failed: Keep,
    /// Jobs that were cancelled.
    pub cancelled: Keep,
    /// Proposals this party was asked to join, and the tasks that came of other parties' jobs, days.
    pub proposals_days: u32,
    /// Events, days: the story of a job that is kept longer loses its beginning.
    pub events_days: u32,
    /// Idempotency keys of purged jobs, days.
    pub keys_days: u32,
    /// How often is looked for what is due, seconds.
    pub every_s: u64,
}

/// How many jobs are kept for how long.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keep {
    /// Since they ended, days.
    pub days: u32,
    /// At most so many; the oldest go first.
    pub max: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { days: 30, max: 1_000_000 }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            success: Keep::default(),
            failed: Keep::default(),
            cancelled: Keep::default(),
            proposals_days: 30,
            events_days: 90,
            keys_days: 30,
            every_s: 600,
        }
    }
}

/// Sweep again and again, until the role stops.
pub(super) async fn run(shared: Shared, retention: Retention) {
    let sweeper = Sweeper { shared };
    let every = Duration::from_secs(retention.every_s);
    loop {
        match sweeper.round(&retention).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "history was kept long enough"),
            Err(why) => tracing::warn!(%why, "history cannot be let go now"),
        }
        tokio::time::sleep(every).await;
    }
}

struct Sweeper {
    shared: Shared,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Store(#[from] Error),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Panicked(anyhow::Error),
}

impl Sweeper {
    /// Everything that is due now; gives the number of records that went.
    async fn round(&self, retention: &Retention) -> Result<u64, Trouble> {
        let mut removed = 0;
        let kept = [
            (StepName::Succeeded, retention.success),
            (StepName::Failed, retention.failed),
            (StepName::Cancelled, retention.cancelled),
        ];
        for (state, keep) in kept {
            removed += self.jobs(state_number(state), keep).await?;
        }
        removed += self.proposals(before(retention.proposals_days)).await?;
        removed += self.keys(before(retention.keys_days)).await?;
        removed += self.events(before(retention.events_days)).await?;
        Ok(removed)
    }

    /// Jobs in one state, oldest first.
    async fn jobs(&self, state: u8, keep: Keep) -> Result<u64, Trouble> {
        let (due, mut removed, mut after) = (before(keep.days), 0, None);
        loop {
            let wanted = Wanted {
                states: vec![state],
                ..Wanted::default()
            };
            let look = |columns: &Columns| {
                let surplus = columns.in_state(state).saturating_sub(keep.max);
                let numbers = columns.find(&wanted, false, after, PAGE).into_iter();
                let named = numbers.filter_map(|number| Some((number, columns.stamp_and_state(number)?.0, columns.created_at(number)?)));
                (surplus, named.collect::<Vec<_>>())
            };
            // While the index is being made there is another round.
            let Some((mut surplus, found)) = self.shared.index.read(look) else {
                return Ok(removed);
            };
            let full = found.len() == PAGE;
            let mut batch = Vec::with_capacity(BATCH);
            for (number, stamp, created_at) in found {
                if surplus == 0 && created_at > due {
                    removed += self.purge(batch).await?;
                    return Ok(removed);
                }
                after = Some(number);
                let id = JobId::parse(format!("{}-{stamp:014}-{number}", self.shared.party));
                let id = id.expect("a party id is checked to leave room for the rest");
                if surplus > 0 || self.ended_before(&id, due).await? {
                    surplus = surplus.saturating_sub(1);
                    batch.push(id);
                }
                if batch.len() == BATCH {
                    removed += self.purge(std::mem::take(&mut batch)).await?;
                }
            }
            removed += self.purge(batch).await?;
            if !full {
                return Ok(removed);
            }
        }
    }

    async fn ended_before(&self, id: &JobId, due: Timestamp) -> Result<bool, Trouble> {
        let (reader, key) = (self.shared.handle.reader().clone(), Key::Job(id.clone()));
        let record = blocking(move || reader.get(&key)).await?;
        Ok(matches!(record, Some(Record::Job(job)) if job.state.is_final() && job.changed_at <= due))
    }

    /// Those of them that nothing holds any more; the others have their turn in another round.
    async fn purge(&self, jobs: Vec<JobId>) -> Result<u64, Trouble> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let purged = jobs.into_iter().map(|job| async move {
            let (reader, of) = (self.shared.handle.reader().clone(), job.clone());
            // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
            let prefix = join_key(b't', &[of.as_str(), ""]);
            let found = blocking(move || {
                let mut tasks = Vec::new();
                reader.scan(&prefix, |_, record| {
                    if let Record::Task(task) = record {
                        tasks.push(task.key);
                    }
                    true
                })?;
                Ok((tasks, peers::parties_of(&reader, &of)?))
            });
            let (tasks, parties) = found.await?;
            self.send(Command::Purge { job, tasks, parties }).await
        });
        let mut removed = 0;
        for outcome in join_all(purged).await {
            removed += u64::from(outcome?);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(removed)
    }

    async fn proposals(&self, due: Timestamp) -> Result<u64, Trouble> {
        let old = move |reader: &Reader<Master>, _: Key, record: Record| {
            let Record::Participation(participation) = record else {
                return Ok(None);
            };
            if participation.changed_at > due {
                return Ok(None);
            }
            let won = match participation.state {
                ParticipationState::Won(key) => Some(key),
                _ => None,
            };
            // The task goes with it, once it has ended long enough ago too.
            if let Some(key) = &won
                && let Some(Record::Task(task)) = reader.get(&Key::Task(key.clone()))?
                && (task.changed_at > due || !matches!(task.state, TaskState::Ended(_)))
            {
                return Ok(None);
            }
            Ok(Some((participation.proposal, won)))
        };
        self.pages(b"p", old, |proposals| Command::PurgeProposals { proposals }).await
    }

    /// Events up to the last one of that time; those that carry no time go with their neighbours.
    async fn events(&self, due: Timestamp) -> Result<u64, Trouble> {
        let mut removed = 0;
        loop {
            let reader = self.shared.handle.reader().clone();
            let old = move || {
                let first = reader.first_seq();
                let page = reader.events(first, EVENTS)?;
                let young = page.iter().find(|(_, event)| event.at().is_some_and(|at| at > due));
                // Before the first that tells the time, the neighbours are those that follow it.
                let told = page.iter().find_map(|(_, event)| event.at());
                let all = told.map_or(page.len() == EVENTS, |at| at <= due);
                let end = young.or(page.last()).filter(|_| all).map_or(first, |(seq, _)| *seq);
                Ok((first, end))
            };
            let (first, end) = blocking(old).await?;
            if end == first {
                return Ok(removed);
            }
            let trimmed = self.shared.handle.trim(end).await;
            removed += trimmed
                .map_err(|refusal| Trouble::Refused(refusal.to_string()))?
                .saturating_sub(first);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn keys(&self, due: Timestamp) -> Result<u64, Trouble> {
        let used = move |_: &Reader<Master>, key: Key, record: Record| {
            Ok(match (key, record) {
                (Key::Submission(key), Record::Submission(submission)) if submission.purged_at.is_some_and(|at| at < due) => Some(key),
                _ => None,
            })
        };
        self.pages(b"s", used, |keys| Command::SweepTombstones { keys, before: due }).await
    }

    /// Ended records page by page; what `choose` takes of them is given to `command`, a batch at a time.
    async fn pages<T: Send + 'static>(
        &self,
        prefix: &'static [u8],
        choose: impl Fn(&Reader<Master>, Key, Record) -> Result<Option<T>, Error> + Copy + Send + 'static,
        command: impl Fn(Vec<T>) -> Command,
    ) -> Result<u64, Trouble> {
        let (mut removed, mut after) = (0, None::<Key>);
        loop {
            let (reader, from) = (self.shared.handle.reader().clone(), after);
            let read = move || {
                let page = reader.ended_page(prefix, from.as_ref(), PAGE)?;
                let last = (page.len() == PAGE).then(|| page.last().map(|(key, _)| key.clone())).flatten();
                let mut chosen = Vec::new();
                for (key, record) in page {
                    chosen.extend(choose(&reader, key, record)?);
                }
                Ok((last, chosen))
            };
            let (last, mut chosen) = blocking(read).await?;
            while !chosen.is_empty() {
                let rest = chosen.split_off(chosen.len().min(SWEEP_MAX));
                removed += chosen.len() as u64;
                self.send(command(chosen)).await?;
                chosen = rest;
            }
            tokio::time::sleep(PAUSE).await;
            after = last;
            if after.is_none() {
                return Ok(removed);
            }
        }
    }

    /// True when it was taken; false when the machine still needs it.
    async fn send(&self, command: Command) -> Result<bool, Trouble> {
        match self.shared.handle.send(command).await {
            Ok(_) => Ok(true),
            Err(Refusal::Rejected(needed)) => {
                tracing::debug!(%needed, "not purged yet");
                Ok(false)
            }
            Err(refusal) => Err(Trouble::Refused(refusal.to_string())),
        }
    }
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Trouble> {
    Ok(Supervisor::blocking(read).await.map_err(Trouble::Panicked)??)
}

/// So many days ago.
fn before(days: u32) -> Timestamp {
    let micros = u64::from(days) * 24 * 3_600_000_000;
    Timestamp(SystemClock.now().0.saturating_sub(micros))
}
