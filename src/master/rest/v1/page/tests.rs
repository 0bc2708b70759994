//! What a page costs, counted in values read from the store: never time, which a busy machine would spoil.

use super::*;
use crate::engine::clock::{Clock, SystemClock};
use crate::engine::reader::record_key;
use crate::machine::content::Content;
use crate::machine::ids::{TaskId, TaskKey, Timestamp, TypeName};
use crate::machine::master::records::{JobState, Origin, Provenance, Spec, Task, TaskState};
use crate::machine::master::rule::ProposalAcceptRule;
use crate::machine::master::{Command, Rules};
use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;
use crate::machine::{Input, Machine, Out};
use crate::master::index::Entry;
use crate::store::sim_store::SimDisk;
use crate::store::{Commit, Head, HistoryProof, Seq, Store, codec};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More than one page looks at.
const JOBS: u64 = 5000;
const PAGE: usize = 50;

/// A store that counts the values it is asked for.
struct Counting(Arc<dyn Store>, Arc<AtomicUsize>);

impl Store for Counting {
    fn head(&self) -> Head {
        self.0.head()
    }

    fn commit(&self, commit: &Commit) -> Result<Head, Error> {
        self.0.commit(commit)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.get(key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<crate::store::Page, Error> {
        let page = self.0.scan(prefix, after, limit)?;
        self.1.fetch_add(page.len(), Ordering::Relaxed);
        Ok(page)
    }

    fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, Vec<u8>)>, Error> {
        self.0.events(from, limit)
    }

    fn history(&self) -> HistoryProof {
        self.0.history()
    }

    fn prove_history(&self) -> Result<HistoryProof, Error> {
        self.0.prove_history()
    }
}

/// A history of [`JOBS`] jobs, of which every tenth failed, each with its task.
struct Past {
    index: Index,
    reader: Reader<Master>,
    party: PartyId,
    reads: Arc<AtomicUsize>,
}

/// A job as the machine makes it.
fn job(party: &PartyId) -> Job {
    let mut machine = Master::new(Rules {
        party: party.clone(),
        accept: ProposalAcceptRule::default(),
        propose_again: false,
        submit_tries: 1,
    });
    let (endpoints, workers, wait_s) = (0, 0, 0);
    let plan = Plan {
        endpoints,
        workers,
        wait_s,
    };
    let submit = Command::Submit {
        spec: Spec::plain(TypeName::parse("dummy").unwrap(), Content::Inline(b"{}".to_vec()), None, plan),
        provenance: Provenance::unknown(),
        fingerprint: [0; 32],
    };
    let now = Timestamp(1_767_225_600_000_000);
    let input = Input {
        now,
        stamp: SystemClock.stamp(now),
        random: 0,
        recalled: Vec::new(),
    };
    let mut out = Out::new(1);
    machine.decide(submit, &input, &mut out).unwrap();
    let made = out.changes.keys.iter().find_map(|key| match machine.record(key) {
        Some(Record::Job(job)) => Some(job),
        _ => None,
    });
    made.unwrap()
}

impl Past {
    fn new() -> Self {
        let party = PartyId::parse("p").unwrap();
        let store: Arc<dyn Store> = Arc::new(SimDisk::new().open().unwrap());
        let (template, mut columns) = (job(&party), Columns::default());
        let mut changes = Vec::new();
        let mut put = |key: &Key, record: &Record| {
            let bytes = codec::encode(record);
            changes.push((record_key(ENDED, &Master::key_bytes(key)), Some(bytes)));
        };
        for number in 1..=JOBS {
            let at = Timestamp(template.submitted_at.0 + number * 1_000_000);
            let (stamp, failed) = (SystemClock.stamp(at), number % 10 == 0);
            let mut job = template.clone();
            job.id = JobId::parse(format!("{party}-{stamp}-{number}")).unwrap();
            (job.number, job.submitted_at) = (number, at);
            job.state = if failed {
                JobState::Cancelled { reason: String::new() }
            } else {
                JobState::Succeeded
            };
            job.spec.labels = [("run".to_owned(), (number % 100).to_string())].into();
            let entry = Entry::of(&job);
            columns.put(&entry);
            let end = if failed { End::Cancelled } else { End::Succeeded };
            let task = Task {
                key: TaskKey {
                    job: job.id.clone(),
                    task: TaskId::parse("aggregator").unwrap(),
                },
                task_type: TypeName::parse("dummy_aggregator").unwrap(),
                content: None,
                origin: Origin::Own,
                queued_at: at,
                changed_at: at,
                tries: 0,
                state: TaskState::Ended(Outcome::without_process(end, "")),
                last_event: 1,
            };
            put(&Key::Job(job.id.clone()), &Record::Job(job));
            put(&Key::Task(task.key.clone()), &Record::Task(task));
        }
        for changes in changes.chunks(500) {
            let (head, changes) = (store.head(), changes.to_vec());
            let commit = Commit {
                epoch: head.epoch,
                expected: head.next_seq,
                changes,
                ..Commit::default()
            };
            store.commit(&commit).unwrap();
        }
        let reads = Arc::new(AtomicUsize::new(0));
        Self {
            index: Index::of(columns),
            reader: Reader::new(Arc::new(Counting(store, reads.clone()))),
            party,
            reads,
        }
    }

    /// All jobs of a list, page by page, each of which must cost a read for each job it shows and no more.
    fn jobs(&self, query: &str, descending: bool) -> Vec<u64> {
        let mut walk = Jobs {
            filter: Filter::take(&mut Query::parse(query).unwrap()).unwrap(),
            descending,
            after: None,
        };
        let mut numbers = Vec::new();
        loop {
            let before = self.reads.load(Ordering::Relaxed);
            let (jobs, next) = walk.walk(&self.index, &self.reader, &self.party, PAGE).unwrap().unwrap();
            let reads = self.reads.load(Ordering::Relaxed) - before;
            assert_eq!(reads, jobs.len(), "{query} behind {:?}", walk.after);
            numbers.extend(jobs.iter().map(|job| job.number));
            match next {
                Some(_) => walk.after = next,
                None => return numbers,
            }
        }
    }

    /// All tasks of a list, page by page; gives the jobs they are of, the reads of the first page and those of the longest one.
    fn tasks(&self, fits: impl Fn(&Task) -> bool) -> (Vec<JobId>, usize, usize) {
        let fits = |record| match record {
            Record::Task(task) => fits(&task).then_some(task.key.job),
            _ => None,
        };
        let (mut jobs, mut reads, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let before = self.reads.load(Ordering::Relaxed);
            let (items, next) = walk(&self.reader, b"t", EVERYWHERE, after, PAGE, fits).unwrap();
            reads.push(self.reads.load(Ordering::Relaxed) - before);
            assert!(items.len() <= PAGE);
            jobs.extend(items);
            if next.is_none() {
                return (jobs, reads[0], reads.into_iter().max().unwrap());
            }
            after = next;
        }
    }
}

#[test]
fn a_page_of_jobs_reads_what_it_shows() {
    let past = Past::new();
    let which = |fits: fn(u64) -> bool| (1..=JOBS).filter(|n| fits(*n)).collect::<Vec<_>>();
    for descending in [false, true] {
        let expected: [(&str, Vec<u64>); 8] = [
            ("", which(|_| true)),
            ("state=success", which(|n| n % 10 != 0)),
            ("state=cancelled&job_type=dummy&label=run:20", which(|n| n % 100 == 20)),
            (
                "label=run:7&created_after=2026-01-01T01:00:00Z",
                which(|n| n % 100 == 7 && n >= 3600),
            ),
            (
                "state=cancelled&created_before=2026-01-01T00:01:00Z",
                which(|n| n % 10 == 0 && n < 60),
            ),
            ("q=p-2026010100010", which(|n| (60..70).contains(&n))),
            ("state=failed", Vec::new()),
            ("state=success&label=nobody", Vec::new()),
        ];
        for (query, mut numbers) in expected {
            if descending {
                numbers.reverse();
            }
            assert_eq!(past.jobs(query, descending), numbers, "{query}");
        }
    }
}

#[test]
fn a_page_of_tasks_reads_little_more_than_it_shows_and_a_bounded_number_for_a_rare_one() {
    let past = Past::new();
    let (all, first, most) = past.tasks(|_| true);
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len() as u64, distinct.len() as u64), (JOBS, JOBS));
    assert!(first == PAGE + 1 && most == PAGE + 1, "{most} were read for a page of {PAGE}");
    assert!(all.is_sorted());
    let cancelled = |task: &Task| matches!(&task.state, TaskState::Ended(outcome) if outcome.end == End::Cancelled);
    let (found, first, _) = past.tasks(cancelled);
    assert_eq!(found.len() as u64, JOBS / 10);
    assert!(first <= LOOK_MAX, "{first} were read for {PAGE} of which every tenth fits");
    let (none, first, most) = past.tasks(|_| false);
    assert!(none.is_empty());
    assert!(first == most && most <= LOOK_MAX, "{most} were read for a page that shows none");
}
