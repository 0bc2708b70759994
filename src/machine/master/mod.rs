//! The party master: its jobs, its queue towards the cluster, and the proposals it is asked to join.
//!
//! Pure; run by `engine`, fed by `master`. `jobs`, `tasks` and `proposals` decide; `apply` alone changes state.

mod apply;
mod census;
mod control;
pub mod federation;
pub mod invariant;
mod jobs;
mod messages;
mod names;
mod proposals;
pub mod purge;
pub mod records;
pub mod rule;
pub mod spec;
mod story;
mod tasks;
#[cfg(test)]
mod tests;

pub use jobs::{JOB_TAIL_MAX, LOCAL_TASKS_MAX};
pub use messages::{Command, Effect, Event, LocalTask, Packed, Rejection, Reply, SubmitAnswer, Verdict, WonTask};

use super::content::{Content, PayloadRef};
use super::ids::{JobId, PartyId, ProposalId, TaskId, TaskKey, Timestamp};
use super::{Changes, Input, Machine, Out, Seq, join_key, split_key};
use federation::{Announced, Peer, Report, Withdrawal};
use records::{Job, Participation, ParticipationState, Purge, Submission, Task, TaskState};
use rule::ProposalAcceptRule;
use serde::{Deserialize, Serialize};
use spec::KeyHash;
use std::collections::BTreeMap;

/// The most jobs under way: each takes about 4 KiB of memory, and a flood of submits must not take all of it.
pub const JOBS_MAX: usize = 100_000;
/// The most fetches and won tasks under way, whatever the rule allows: other parties decide how many there are.
pub const UNDER_WAY_MAX: u32 = 4096;

/// What an operator decides.
#[derive(Clone, Debug)]
pub struct Rules {
    /// This party.
    pub party: PartyId,
    /// Which proposals it joins.
    pub accept: ProposalAcceptRule,
    /// Propose again when a FedVision 0.1 coordinator may or may not have seen the proposal.
    pub propose_again: bool,
    /// How often a task that the cluster manager refuses is submitted before it has failed.
    pub submit_tries: u32,
}

/// Name of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The number of the last job.
    Counter,
    /// A job.
    Job(JobId),
    /// A task of the cluster queue.
    Task(TaskKey),
    /// A proposal this party was asked to join.
    Participation(ProposalId),
    /// A submission with an `Idempotency-Key`.
    Submission(KeyHash),
    /// A purged job that has left something elsewhere.
    Purge(JobId),
    /// How the proposal of a job went.
    Announced(JobId),
    /// A party that was chosen for a job.
    Peer(JobId, PartyId),
    /// What the coordinator is to be told of a proposal's task.
    Report(ProposalId),
    /// That the coordinator is to be told that a job is no longer wanted.
    Withdrawal(JobId),
}

/// A stored record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "a record is read, used and dropped; the maps of the machine hold what is in it"
)]
pub enum Record {
    /// Number of the last job ever accepted.
    Counter(u64),
    /// A job.
    Job(Job),
    /// A task.
    Task(Task),
    /// A participation.
    Participation(Participation),
    /// A submission.
    Submission(Submission),
    /// A purge under way.
    Purge(Purge),
    /// What is known of a job's proposal.
    Announced(Announced),
    /// A chosen party.
    Peer(Peer),
    /// A report.
    Report(Report),
    /// A withdrawal.
    Withdrawal(Withdrawal),
}

/// The machine's state: everything live, and the counters.
#[derive(Debug)]
pub struct Master {
    rules: Rules,
    last_number: u64,
    // In boxes: half the places of a node are empty.
    jobs: BTreeMap<JobId, Box<Job>>,
    tasks: BTreeMap<TaskKey, Box<Task>>,
    participations: BTreeMap<ProposalId, Participation>,
    /// Only those of the commit under way: a submission is never live.
    submissions: BTreeMap<KeyHash, Submission>,
    purges: BTreeMap<JobId, Purge>,
    announced: BTreeMap<JobId, Announced>,
    /// Only those of the commit under way.
    peers: BTreeMap<(JobId, PartyId), Peer>,
    reports: BTreeMap<ProposalId, Report>,
    withdrawals: BTreeMap<JobId, Withdrawal>,
    /// Derived: fetches and won tasks under way.
    under_way: u32,
}

/// The kind byte of a [`Peer`]'s key: those of a job are read together.
pub const PEER: u8 = b'q';

type Ctx<'a> = (&'a Input<Key, Record>, &'a mut Out<Master>);

impl Master {
    /// An empty machine.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            last_number: 0,
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            participations: BTreeMap::new(),
            submissions: BTreeMap::new(),
            purges: BTreeMap::new(),
            announced: BTreeMap::new(),
            peers: BTreeMap::new(),
            reports: BTreeMap::new(),
            withdrawals: BTreeMap::new(),
            under_way: 0,
        }
    }

    fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id).map(Box::as_ref)
    }

    fn task(&self, key: &TaskKey) -> Option<&Task> {
        self.tasks.get(key).map(Box::as_ref)
    }

    fn tasks_of<'a>(&'a self, job: &'a JobId) -> impl Iterator<Item = &'a Task> {
        // Keys sort by job first; the empty task id cannot be parsed, so begin at the job and stop when it changes.
        self.tasks
            .range(first_task(job)..)
            .map(|(_, task)| &**task)
            .take_while(move |task| task.key.job == *job)
    }
}

/// The least key of a job's tasks: one space sorts before every printable id.
fn first_task(job: &JobId) -> TaskKey {
    let least = TaskId::parse(" ").expect("a space is a valid task id");
    TaskKey {
        job: job.clone(),
        task: least,
    }
}

impl Machine for Master {
    const ROLE: &'static str = "master";

    type Command = Command;
    type Event = Event;
    type Effect = Effect;
    type Reply = Reply;
    type Rejection = Rejection;
    type Key = Key;
    type Record = Record;

    fn recall(&self, command: &Command) -> Vec<Key> {
        match command {
            Command::Offered { proposal, .. } => vec![Key::Participation(proposal.clone())],
            Command::Fetched { result: Ok(won), .. } => vec![Key::Task(won.key.clone()), Key::Job(won.key.job.clone())],
            Command::Submit { provenance, .. } => provenance.key.map(Key::Submission).into_iter().collect(),
            Command::Rerun { job, provenance, .. } => {
                let submission = provenance.key.map(Key::Submission);
                [Key::Job(job.clone())].into_iter().chain(submission).collect()
            }
            Command::Cancel { job, .. } | Command::Hold { job } | Command::Release { job } => vec![Key::Job(job.clone())],
            Command::Purge { job, tasks, parties } => {
                let tasks = tasks.iter().take(purge::PURGE_TASKS_MAX).cloned().map(Key::Task);
                let parties = parties.iter().take(federation::PEERS_MAX);
                let peers = parties.map(|party| Key::Peer(job.clone(), party.clone()));
                let own = [Key::Job(job.clone()), Key::Announced(job.clone())];
                own.into_iter().chain(tasks).chain(peers).collect()
            }
            Command::PurgeProposals { proposals } => {
                let of = |(proposal, task): &(ProposalId, Option<TaskKey>)| {
                    let task = task.clone().map(Key::Task);
                    [Key::Participation(proposal.clone())].into_iter().chain(task)
                };
                proposals.iter().take(purge::SWEEP_MAX).flat_map(of).collect()
            }
            Command::SweepTombstones { keys, .. } => keys.iter().take(purge::SWEEP_MAX).copied().map(Key::Submission).collect(),
            Command::StopOrdered { key, .. } => vec![Key::Task(key.clone())],
            Command::News { job, news } => {
                let parties = news.chosen.iter().take(federation::PEERS_MAX);
                parties.map(|(party, ..)| Key::Peer(job.clone(), party.clone())).collect()
            }
            _ => Vec::new(),
        }
    }

    fn brings_work(&self, command: &Command, input: &Input<Key, Record>) -> bool {
        match command {
            Command::Submit { provenance, .. } | Command::Rerun { provenance, .. } => {
                let known = |key: KeyHash| self.submissions.contains_key(&key) || input.recalled(&Key::Submission(key)).is_some();
                !provenance.key.is_some_and(known)
            }
            Command::Offered { proposal, .. } => input.recalled.is_empty() && !self.participations.contains_key(proposal),
            _ => false,
        }
    }

    fn decide(&mut self, command: Command, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        let ctx = (input, out);
        match command {
            Command::Submit {
                spec,
                provenance,
                fingerprint,
            } => self.submit(spec, provenance, fingerprint, ctx),
            Command::Rerun {
                job,
                provenance,
                fingerprint,
            } => self.rerun(&job, provenance, fingerprint, ctx),
            Command::Cancel { job, reason } => self.cancel(&job, &reason, ctx),
            Command::Hold { job } => self.hold(&job, ctx),
            Command::Release { job } => self.release(&job, ctx),
            Command::Wake { job, step } => self.wake(&job, step, ctx),
            Command::DeadlinePassed { job } => self.deadline_passed(&job, ctx),
            Command::Purge { job, tasks, parties } => self.purge(&job, (tasks, parties), ctx),
            Command::Forgotten { job } => self.forgotten(&job, ctx),
            Command::PurgeProposals { proposals } => Ok(self.purge_proposals(proposals, ctx)),
            Command::SweepTombstones { keys, before } => Ok(self.sweep_tombstones(keys, before, ctx)),
            Command::Leased { job, step, result } => self.leased(job, step, result, ctx),
            Command::LeaseReleased { job } => self.lease_released(job, ctx),
            Command::Prepared { job, step, result } => self.prepared(job, step, result, ctx),
            Command::LegacyProposal { job, step } => self.legacy_proposal(job, step, ctx),
            Command::Verdict { job, step, verdict } => self.verdict(job, step, verdict, ctx),
            Command::Note { job, step, note } => self.note(job, step, note, ctx),
            Command::Offered { proposal, job_type } => Ok(self.offered(proposal, job_type, ctx)),
            Command::Fetched { proposal, result } => self.fetched(proposal, result, ctx),
            Command::Submitted { key, tries, answer } => self.submitted(key, tries, answer, ctx),
            Command::TaskEnded { key, outcome } => self.task_ended(key, outcome, ctx),
            Command::News { job, news } => self.news(job, news, ctx),
            Command::Reported { proposal, number } => self.reported(proposal, number, ctx),
            Command::Withdrawn { job } => self.withdrawn(job, ctx),
            Command::StopOrdered { proposal, key, reason } => self.stop_ordered(proposal, key, &reason, ctx),
        }
    }

    fn apply(&mut self, event: &Event, changes: &mut Changes<Key>) {
        self.apply_event(event, changes);
    }

    fn thread(event: &Event) -> Option<Key> {
        event.thread()
    }

    fn last_event(&self, key: &Key) -> Option<Seq> {
        match key {
            Key::Counter | Key::Submission(_) | Key::Purge(_) | Key::Peer(..) | Key::Report(_) | Key::Withdrawal(_) => None,
            Key::Announced(job) => self.announced.get(job).map(|announced| announced.last_event),
            Key::Job(id) => self.jobs.get(id).map(|job| job.last_event),
            Key::Task(key) => self.tasks.get(key).map(|task| task.last_event),
            Key::Participation(id) => self.participations.get(id).map(|participation| participation.last_event),
        }
    }

    fn record(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Counter => Some(Record::Counter(self.last_number)),
            Key::Job(id) => self.job(id).cloned().map(Record::Job),
            Key::Task(key) => self.task(key).cloned().map(Record::Task),
            Key::Participation(id) => self.participations.get(id).cloned().map(Record::Participation),
            Key::Submission(hash) => self.submissions.get(hash).cloned().map(Record::Submission),
            Key::Purge(id) => self.purges.get(id).cloned().map(Record::Purge),
            Key::Announced(job) => self.announced.get(job).cloned().map(Record::Announced),
            Key::Peer(job, party) => self.peers.get(&(job.clone(), party.clone())).cloned().map(Record::Peer),
            Key::Report(proposal) => self.reports.get(proposal).cloned().map(Record::Report),
            Key::Withdrawal(job) => self.withdrawals.get(job).cloned().map(Record::Withdrawal),
        }
    }

    fn holds(&self, key: &Key) -> bool {
        match key {
            Key::Counter => true,
            Key::Job(id) => self.job(id).is_some(),
            Key::Task(key) => self.task(key).is_some(),
            Key::Participation(id) => self.participations.contains_key(id),
            Key::Submission(hash) => self.submissions.contains_key(hash),
            Key::Purge(id) => self.purges.contains_key(id),
            Key::Announced(job) => self.announced.contains_key(job),
            Key::Peer(job, party) => self.peers.contains_key(&(job.clone(), party.clone())),
            Key::Report(proposal) => self.reports.contains_key(proposal),
            Key::Withdrawal(job) => self.withdrawals.contains_key(job),
        }
    }

    fn is_live(record: &Record) -> bool {
        match record {
            Record::Counter(_) => true,
            Record::Job(job) => !job.state.is_final() || Master::owes(job),
            Record::Task(task) => !matches!(task.state, TaskState::Ended(_)),
            Record::Participation(participation) => participation.state == ParticipationState::Offered,
            Record::Submission(_) | Record::Peer(_) => false,
            Record::Announced(announced) => !announced.over,
            Record::Purge(_) | Record::Report(_) | Record::Withdrawal(_) => true,
        }
    }

    fn payloads(record: &Record) -> Vec<PayloadRef> {
        let contents: Vec<&Content> = match record {
            Record::Counter(_)
            | Record::Participation(_)
            | Record::Submission(_)
            | Record::Purge(_)
            | Record::Announced(_)
            | Record::Peer(_)
            | Record::Report(_)
            | Record::Withdrawal(_) => Vec::new(),
            Record::Job(job) => [Some(&job.spec.config), job.spec.algorithm_config.as_ref(), job.proposal.as_ref()]
                .into_iter()
                .flatten()
                .collect(),
            Record::Task(task) => task.content.iter().collect(),
        };
        contents.into_iter().filter_map(Content::payload).collect()
    }

    fn restore(&mut self, key: &Key, record: Record) {
        match record {
            Record::Counter(number) => self.last_number = number,
            Record::Job(job) => {
                self.jobs.insert(job.id.clone(), Box::new(job));
            }
            Record::Task(task) => {
                self.under_way += u32::from(apply::is_under_way(&task));
                self.tasks.insert(task.key.clone(), Box::new(task));
            }
            Record::Participation(participation) => {
                self.under_way += u32::from(participation.state == ParticipationState::Offered);
                self.participations.insert(participation.proposal.clone(), participation);
            }
            Record::Purge(purge) => {
                self.purges.insert(purge.job.clone(), purge);
            }
            Record::Announced(announced) => {
                if let Key::Announced(job) = key {
                    self.announced.insert(job.clone(), announced);
                }
            }
            Record::Withdrawal(withdrawal) => {
                if let Key::Withdrawal(job) = key {
                    self.withdrawals.insert(job.clone(), withdrawal);
                }
            }
            Record::Peer(peer) => drop(self.peers.insert((peer.job.clone(), peer.party.clone()), peer)),
            Record::Report(report) => {
                if let Key::Report(proposal) = key {
                    self.reports.insert(proposal.clone(), report);
                }
            }
            Record::Submission(submission) => {
                if let Key::Submission(hash) = key {
                    self.submissions.insert(*hash, submission);
                }
            }
        }
        debug_assert!(self.record(key).is_some(), "a record is restored under its own key");
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Counter => {}
            Key::Job(id) => drop(self.jobs.remove(id)),
            Key::Task(key) => drop(self.tasks.remove(key)),
            Key::Participation(id) => drop(self.participations.remove(id)),
            Key::Submission(hash) => drop(self.submissions.remove(hash)),
            Key::Purge(id) => drop(self.purges.remove(id)),
            Key::Announced(job) => drop(self.announced.remove(job)),
            Key::Peer(job, party) => drop(self.peers.remove(&(job.clone(), party.clone()))),
            Key::Report(proposal) => drop(self.reports.remove(proposal)),
            Key::Withdrawal(job) => drop(self.withdrawals.remove(job)),
        }
    }

    fn resume(&self, _now: Timestamp) -> Vec<Effect> {
        let jobs = self.jobs.values().filter_map(|job| self.effect_of_job(job));
        let tasks = self.tasks.values().filter_map(|task| Self::effect_of_task(task));
        let offered = self.participations.values().filter(|p| p.state == ParticipationState::Offered);
        let fetches = offered.map(|p| Effect::Fetch {
            proposal: p.proposal.clone(),
        });
        let deadlines = self.jobs.values().filter_map(|job| control::deadline_of(job));
        let purges = self.purges.values().map(|purge| Effect::Forget {
            job: purge.job.clone(),
            number: purge.number,
        });
        let own = jobs.chain(deadlines).chain(tasks).chain(fetches).chain(purges);
        own.chain(self.resume_federation()).collect()
    }

    fn key_bytes(key: &Key) -> Vec<u8> {
        match key {
            Key::Counter => join_key(b'c', &[]),
            Key::Job(id) => join_key(b'j', &[id.as_str()]),
            Key::Task(key) => join_key(b't', &[key.job.as_str(), key.task.as_str()]),
            Key::Participation(id) => join_key(b'p', &[id.as_str()]),
            Key::Submission(hash) => join_key(b's', &[&hash.hex()]),
            Key::Purge(id) => join_key(b'f', &[id.as_str()]),
            Key::Announced(job) => join_key(b'a', &[job.as_str()]),
            Key::Peer(job, party) => join_key(PEER, &[job.as_str(), party.as_str()]),
            Key::Report(proposal) => join_key(b'r', &[proposal.as_str()]),
            Key::Withdrawal(job) => join_key(b'w', &[job.as_str()]),
        }
    }

    fn key_from_bytes(bytes: &[u8]) -> Option<Key> {
        let (kind, parts) = split_key(bytes)?;
        match (kind, parts.as_slice()) {
            (b'c', [""]) => Some(Key::Counter),
            (b'j', [id]) => JobId::parse(*id).ok().map(Key::Job),
            (b't', [job, task]) => TaskKey::parse(*job, *task).ok().map(Key::Task),
            (b'p', [id]) => ProposalId::parse(*id).ok().map(Key::Participation),
            (b'f', [id]) => JobId::parse(*id).ok().map(Key::Purge),
            (b's', [hash]) => KeyHash::from_hex(hash).map(Key::Submission),
            (b'a', [job]) => JobId::parse(*job).ok().map(Key::Announced),
            (PEER, [job, party]) => Some(Key::Peer(JobId::parse(*job).ok()?, PartyId::parse(*party).ok()?)),
            (b'r', [proposal]) => ProposalId::parse(*proposal).ok().map(Key::Report),
            (b'w', [job]) => JobId::parse(*job).ok().map(Key::Withdrawal),
            _ => None,
        }
    }

    fn census(&self) -> Vec<(&'static str, u64)> {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for job in self.jobs.values() {
            *counts.entry(census::census_name(&job.state)).or_default() += 1;
        }
        for task in self.tasks.values() {
            *counts.entry(census::census_task(&task.state)).or_default() += 1;
        }
        let offered = self.participations.len() as u64;
        counts.insert("proposal fetching", offered);
        if !self.purges.is_empty() {
            counts.insert("purge closing", self.purges.len() as u64);
        }
        counts.insert("job followed", self.announced.len() as u64);
        counts.insert("report owed", self.reports.len() as u64);
        counts.insert("withdrawal owed", self.withdrawals.len() as u64);
        counts.into_iter().collect()
    }

    fn ending(record: &Record) -> &'static str {
        census::ending(record)
    }
}
