//! Lets go of ended records: those that ended long ago, and the oldest ones while there are too many.
//!
//! Started by a role, with what its records and its command look like. Goes through the history page by page with pauses, and sends a command
//! for a few records at a time, through the same door as everybody: what is removed is an event. It must never hold up a commit.

use super::clock::Clock;
use super::reader::Reader;
use super::{Handle, Refusal};
use crate::machine::Machine;
use crate::machine::ids::Timestamp;
use crate::store::Error;
use crate::supervisor::Supervisor;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

/// Records read at once.
const PAGE: usize = 256;
/// Records that are let go together: the smallest step of any role.
pub const BATCH: usize = 64;
/// After each page and each command, so that others have the disk and the loop.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(600);
/// The most records that one round removes because there are too many; another round follows at once. Some 4 MiB of names.
const SURPLUS_MAX: usize = 16 * 1024;

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Since a record has ended.
    pub age: Duration,
    /// Ended records.
    pub count: u64,
}

impl Keep {
    /// As the command line says.
    pub fn new(days: u32, count: u64) -> Self {
        Self {
            age: Duration::from_secs(u64::from(days) * 24 * 3600),
            count,
        }
    }
}

/// From what the store has and the names of some records to the commands that remove them: more than one where much hangs on each record.
pub type Forget<M> = fn(&Reader<M>, Vec<<M as Machine>::Key>) -> Result<Vec<<M as Machine>::Command>, Error>;

/// What a role lets go of.
pub struct Kind<M: Machine> {
    /// How the key bytes of these records begin.
    pub prefix: Vec<u8>,
    /// When a record ended; `None` for one that stays.
    pub ended_at: fn(&M::Record) -> Option<Timestamp>,
    /// What removes these, at most [`BATCH`], with what the store has beside them. Blocks.
    pub forget: Forget<M>,
}

/// Rounds until the role stops.
pub async fn run<M: Machine>(handle: Handle<M>, clock: Arc<dyn Clock>, keep: Keep, kind: Kind<M>) {
    loop {
        match round(&handle, &*clock, keep, &kind).await {
            Ok(Round { removed, more }) => {
                if removed > 0 {
                    tracing::info!(removed, "ended records were kept long enough");
                }
                if more {
                    continue;
                }
            }
            Err(why) => tracing::warn!(why, "ended records cannot be removed now"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What a round has done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Round {
    removed: u64,
    /// There are too many still.
    more: bool,
}

async fn round<M: Machine>(handle: &Handle<M>, clock: &dyn Clock, keep: Keep, kind: &Kind<M>) -> Result<Round, String> {
    let age = u64::try_from(keep.age.as_micros()).unwrap_or(u64::MAX);
    let oldest = Timestamp(clock.now().0.saturating_sub(age));
    let mut round = Round::default();
    let mut kept: u64 = 0;
    // The oldest of those that are young enough.
    let mut surplus: BinaryHeap<(Timestamp, M::Key)> = BinaryHeap::new();
    let (mut batch, mut after) = (Vec::with_capacity(BATCH), None);
    loop {
        let (reader, prefix) = (handle.reader().clone(), kind.prefix.clone());
        let read = move || reader.ended_page(&prefix, after.as_ref(), PAGE);
        let page: Result<_, Error> = Supervisor::blocking(read).await.map_err(|error| error.to_string())?;
        let page = page.map_err(|error| error.to_string())?;
        let full = page.len() == PAGE;
        after = page.last().map(|(key, _)| key.clone());
        for (key, record) in page {
            match (kind.ended_at)(&record) {
                None => {}
                Some(at) if at <= oldest => batch.push(key),
                Some(at) => {
                    kept += 1;
                    surplus.push((at, key));
                    if surplus.len() > SURPLUS_MAX {
                        surplus.pop();
                    }
                }
            }
            if batch.len() == BATCH {
                round.removed += forget(handle, kind, std::mem::take(&mut batch)).await?;
            }
        }
        if !full {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let too_many = kept.saturating_sub(keep.count);
    round.more = too_many > surplus.len() as u64;
    let surplus = surplus.into_sorted_vec().into_iter().map(|(_, key)| key);
    batch.extend(surplus.take(usize::try_from(too_many).unwrap_or(usize::MAX)));
    for batch in batch.chunks(BATCH) {
        round.removed += forget(handle, kind, batch.to_vec()).await?;
    }
    Ok(round)
}

async fn forget<M: Machine>(handle: &Handle<M>, kind: &Kind<M>, keys: Vec<M::Key>) -> Result<u64, String> {
    let count = keys.len() as u64;
    let (reader, forget) = (handle.reader().clone(), kind.forget);
    let made: Result<_, Error> = Supervisor::blocking(move || forget(&reader, keys))
        .await
        .map_err(|error| error.to_string())?;
    for command in made.map_err(|error| error.to_string())? {
        match handle.send(command).await {
            Ok(_) => {}
            Err(Refusal::Rejected(why)) => return Err(why.to_string()),
            Err(why) => return Err(why.to_string()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(count)
}
