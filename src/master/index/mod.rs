//! Which jobs there are, by state, type, label and time, in memory: what lists are answered from, next to the records.
//!
//! Derived from the records and never a source of truth. The loop feeds it every commit after its barrier and before its answers ([`Index::feed`]), so
//! that a list shows what was answered. At a start it is made in the background, from its last checkpoint and what changed since, or from all records;
//! until then there are no lists. A reader holds its lock for well below a millisecond: the loop waits for it.

mod checkpoint;
mod columns;
mod entry;
mod postings;
#[cfg(test)]
mod tests;
mod watch;

pub use columns::{Columns, Entry, Wanted};
pub use entry::{has_ended, label_hashes, state_number};
pub use watch::Watcher;

use crate::engine::projection::Projection;
use crate::engine::reader::Reader;
use crate::machine::master::records::Job;
use crate::machine::master::{Key, Master, Record};
use crate::store::{Error, Seq};
use crate::supervisor::Supervisor;
use entry::{job_of, number_of};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use watch::Watchers;

/// More events than this since the checkpoint, and reading all records is quicker.
const CATCH_UP_MAX: Seq = 500_000;
/// Events of one read.
const EVENTS: usize = 1000;
/// How often it is looked whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A checkpoint is due after so many changes: what a start then reads again takes a second.
const DUE_CHANGES: u64 = 50_000;
/// Or after so long, if there was any change.
const DUE_AFTER: Duration = Duration::from_secs(300);

/// What a commit did to a job.
#[derive(Clone, Debug)]
enum Change {
    Put(Entry),
    Remove(u64),
}

/// How far the index is.
enum Phase {
    /// Being made; what the loop commits meanwhile waits here.
    Making(Vec<Change>),
    /// It holds every commit up to the sequence.
    Ready(Box<Columns>, Seq),
}

/// See the module.
pub struct Index {
    phase: RwLock<Phase>,
    watchers: Watchers,
    /// Changes since the last checkpoint.
    changes: AtomicU64,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            phase: RwLock::new(Phase::Making(Vec::new())),
            watchers: Watchers::default(),
            changes: AtomicU64::new(0),
        }
    }
}

/// Where an index comes from and goes to.
#[derive(Clone)]
pub struct Home {
    /// The records.
    pub reader: Reader<Master>,
    /// Its file.
    pub path: PathBuf,
    /// Identity of the data directory.
    pub instance: String,
    /// The last durable sequence before the loop began.
    pub head: Seq,
}

impl Index {
    /// What the loop tells of its commits; before it begins.
    pub fn feed(self: &Arc<Self>) -> Box<dyn Projection<Master>> {
        Box::new(Feed {
            index: self.clone(),
            changes: Vec::new(),
            keys: Vec::new(),
        })
    }

    /// Look into it; `None` while it is being made. `look` must be quick.
    pub fn read<T>(&self, look: impl FnOnce(&Columns) -> T) -> Option<T> {
        match &*self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            Phase::Making(_) => None,
            Phase::Ready(columns, _) => Some(look(columns)),
        }
    }

    /// One that is made.
    #[cfg(test)]
    pub fn of(columns: Columns) -> Self {
        Self {
            phase: RwLock::new(Phase::Ready(Box::new(columns), 0)),
            ..Self::default()
        }
    }

    /// Be told of every commit that changes this job or its tasks, from now on.
    pub fn watch(self: &Arc<Self>, job: &crate::machine::ids::JobId) -> Watcher {
        self.watchers.watch(job)
    }

    /// Make it, and keep its checkpoint, until the role stops.
    pub fn start(self: &Arc<Self>, supervisor: &Supervisor, home: Home) {
        let (index, role) = (self.clone(), supervisor.clone());
        supervisor.finish("index", async move {
            let (made, of) = (index.clone(), home.clone());
            match Supervisor::blocking(move || made.make(&of)).await {
                Ok(Ok(())) => {}
                // The reader has ended the role, or the disk is full and the loop will.
                Ok(Err(error)) => return tracing::error!(%error, "the job index cannot be made"),
                Err(panicked) => return role.fatal(panicked.context("making the job index")),
            }
            let mut written = Instant::now();
            let mut stopped = false;
            while !stopped {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = role.stopped() => stopped = true,
                }
                let changes = index.changes.load(Ordering::Relaxed);
                let due = stopped || changes >= DUE_CHANGES || written.elapsed() >= DUE_AFTER;
                if changes > 0 && due {
                    let (index, home) = (index.clone(), home.clone());
                    let saved = Supervisor::blocking(move || index.save(&home)).await;
                    if let Ok(Err(error)) = saved {
                        tracing::warn!(%error, "no checkpoint of the job index; the next start takes longer");
                    }
                    written = Instant::now();
                }
            }
        });
    }

    /// From the checkpoint and what changed since, or from all records. Blocks.
    fn make(&self, home: &Home) -> Result<(), Error> {
        let began = Instant::now();
        let found = checkpoint::load(&home.path, &home.instance);
        let caught_up = match found {
            Some((columns, seq)) => catch_up(columns, seq, home)?,
            None => None,
        };
        let from_checkpoint = caught_up.is_some();
        let columns = match caught_up {
            Some(columns) => columns,
            None => scan(home)?,
        };
        let jobs = self.finish(columns, home.head);
        // What was read from the records is not in any file yet.
        self.changes.fetch_add(u64::from(!from_checkpoint && jobs > 0), Ordering::Relaxed);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(jobs, from_checkpoint, took_ms, "the job index is made");
        Ok(())
    }

    fn finish(&self, mut columns: Columns, head: Seq) -> u64 {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Making(waiting) = &mut *phase {
            for change in waiting.drain(..) {
                apply(&mut columns, change);
            }
            let jobs = columns.len();
            // A commit meanwhile may be in it: that it is told to begin at `head` costs the next start some reads at most.
            *phase = Phase::Ready(Box::new(columns), head);
            return jobs;
        }
        columns.len()
    }

    /// Write the checkpoint, a piece at a time: what the loop commits meanwhile goes on between them.
    fn save(&self, home: &Home) -> std::io::Result<()> {
        let began = {
            let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner);
            let Phase::Ready(_, seq) = &*phase else { return Ok(()) };
            self.changes.store(0, Ordering::Relaxed);
            *seq
        };
        checkpoint::save(&home.path, &home.instance, began, |place, out| {
            // Once it is made it stays so.
            self.read(|columns| checkpoint::piece(columns, place, out)).flatten()
        })
    }
}

fn apply(columns: &mut Columns, change: Change) {
    match change {
        Change::Put(entry) => columns.put(&entry),
        Change::Remove(number) => columns.remove(number),
    }
}

/// Bring a checkpoint up to date; `None` when that is not possible or takes longer than without it.
fn catch_up(mut columns: Columns, seq: Seq, home: &Home) -> Result<Option<Columns>, Error> {
    let head = home.head;
    if seq > head || head - seq > CATCH_UP_MAX || seq + 1 < home.reader.first_seq() {
        return Ok(None);
    }
    let mut jobs = BTreeSet::new();
    let mut next = seq + 1;
    while next <= head {
        let page = home.reader.events(next, EVENTS)?;
        if home.reader.gap(next, &page).is_some() {
            return Ok(None);
        }
        let Some((last, _)) = page.last() else { break };
        next = last + 1;
        jobs.extend(page.iter().filter_map(|(_, event)| job_of(event).cloned()));
    }
    for job in jobs {
        match home.reader.get(&Key::Job(job.clone()))? {
            Some(Record::Job(record)) => columns.put(&Entry::of(&record)),
            _ => number_of(&job).into_iter().for_each(|number| columns.remove(number)),
        }
    }
    Ok(Some(columns))
}

/// From all records.
fn scan(home: &Home) -> Result<Columns, Error> {
    let mut columns = Columns::default();
    home.reader.scan(b"j", |_, record| {
        if let Record::Job(job) = record {
            columns.put(&Entry::of(&job));
        }
        true
    })?;
    Ok(columns)
}

/// See [`Index::feed`].
struct Feed {
    index: Arc<Index>,
    /// Of the commit that is being told.
    changes: Vec<Change>,
    keys: Vec<crate::machine::ids::JobId>,
}

impl Feed {
    fn job(&mut self, job: &Job) {
        self.changes.push(Change::Put(Entry::of(job)));
    }
}

impl Projection<Master> for Feed {
    fn changed(&mut self, key: &Key, record: Option<&Record>) {
        match (key, record) {
            (Key::Job(id), Some(Record::Job(job))) => {
                self.job(job);
                self.keys.push(id.clone());
            }
            (Key::Job(id), _) => {
                self.changes.extend(number_of(id).map(Change::Remove));
                self.keys.push(id.clone());
            }
            (Key::Task(key), _) => self.keys.push(key.job.clone()),
            (Key::Announced(job) | Key::Peer(job, _), _) => self.keys.push(job.clone()),
            _ => {}
        }
    }

    fn committed(&mut self, seq: Seq) {
        self.index.changes.fetch_add(self.changes.len() as u64, Ordering::Relaxed);
        {
            let mut phase = self.index.phase.write().unwrap_or_else(PoisonError::into_inner);
            match &mut *phase {
                Phase::Making(waiting) => waiting.append(&mut self.changes),
                Phase::Ready(columns, at) => {
                    for change in self.changes.drain(..) {
                        apply(columns, change);
                    }
                    *at = seq;
                }
            }
        }
        for job in self.keys.drain(..) {
            self.index.watchers.tell(&job, seq);
        }
    }
}
