//! The coordinator: which parties are there, what they are offered, and who gets which task.
//!
//! Run by `engine` for `coordinator`, which turns gRPC calls into commands and executes the effects. Pure, like every machine: it must
//! never wait, read a clock or draw randomness.
//!
//! Against FedVision 0.1 the rules differ where that one hangs, loses or crashes: parties are drawn without replacement, a proposal closes
//! whether or not its proposer still listens, a party that left or died poisons nothing, and every verdict is recorded under its
//! job id, so that asking again is safe.

mod apply;
mod assignments;
pub mod draw;
mod forget;
pub mod invariant;
mod messages;
mod names;
mod parties;
mod proposals;
#[cfg(test)]
mod tests;

pub use assignments::{Assignment, AssignmentState, Course, Order, Tally};
pub use forget::{Leftover, shares};
pub use messages::{Command, Effect, Event, Rejection, Reply};
pub use parties::{Link, Party};
pub use proposals::{Participant, Proposal, ProposalTask, State, Verdict, job_of};

use super::content::PayloadRef;
use super::ids::{JobId, PartyId, Timestamp};
use super::outcome::End;
use super::{Changes, Input, Machine, Out, join_key, split_key};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most job types of one party.
pub const TYPES_MAX: usize = 32;
/// The most bytes of all job types of one party: a party's record is written again at every loss of its stream and must stay small
/// beside the event that does it, since the loop bounds a batch by its events.
pub const TYPES_BYTES_MAX: usize = 512;
/// The longest instance text of a party, bytes.
pub const INSTANCE_MAX: usize = 64;
/// The most enrolled parties: each may be offered every proposal in one command, and lives in memory.
pub const PARTIES_MAX: usize = 4096;
/// The most proposals in memory, open ones and those kept for parties that ask again: whoever can reach the port can make them.
pub const PROPOSALS_MAX: usize = 20_000;
/// The most tasks of one proposal. All of them come in one command and so must fit one commit of the store, on top of a batch that is full
/// already: with the longest ids a task costs up to 12 KiB of the 6 MiB (`tests/integration/coordinator_limits.rs` does the sum). The
/// parties chosen at the close are at most as many and cheaper.
pub const TASKS_MAX: usize = 256;
/// The most acceptances of one proposal: as many as there can be parties, so that only leaving and coming back under ever new names
/// meets it.
pub const PARTICIPANTS_MAX: usize = PARTIES_MAX;
/// The longest window, seconds.
pub const WAIT_MAX_S: u32 = 24 * 3600;
/// How long a start leaves the parties to come back before it lets a window close that would fail for want of them, ms: they lost their
/// streams with the process, and knock again after 6.25 s at the latest (`wire::connect::Backoff`).
pub const RETURN_MS: u64 = 8_000;
/// How long a party that came back after a start has to answer the offers it gets then, ms: an answer takes milliseconds on a machine that
/// is not busy.
pub const ANSWER_MS: u64 = 1_000;
/// The most records one `Expire` lets go: a large proposal goes in pieces, none of which holds up the loop.
pub const RELEASE_MAX: usize = 64;

/// The most open orders: one for each task of a cancelled job whose party has not said how it ended.
pub const ORDERS_MAX: usize = 20_000;
/// How long an order stays at least, ms; an older one makes room for a new one when there are [`ORDERS_MAX`]: its party is not coming back.
pub const ORDER_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// How the coordinator is set up.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a party without a stream still counts as a subscriber.
    pub party_lease_ms: u64,
    /// How long a closed proposal keeps its tasks, for chosen parties that ask again.
    pub keep_closed_ms: u64,
    /// How long after a start parties may still be on their way: meanwhile no proposal is opened or refused for want of them.
    pub settle_ms: u64,
}

/// Name of a record. The order is the order of restoring: a proposal comes before what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The one [`Counters`] record.
    Counters,
    /// A party.
    Party(PartyId),
    /// The proposal of a job.
    Proposal(JobId),
    /// A task of the proposal of a job.
    Task(JobId, u32),
    /// An acceptance of the proposal of a job.
    Participant(JobId, PartyId),
    /// What became of the task of a party that was chosen for a job.
    Assignment(JobId, PartyId),
    /// What the initiator of a job may know.
    Course(JobId),
    /// That a party is to stop its task of a job.
    Order(PartyId, JobId),
}

/// A stored record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// See [`Counters`].
    Counters(Counters),
    /// See [`Party`].
    Party(Party),
    /// See [`Proposal`].
    Proposal(Box<Proposal>),
    /// See [`ProposalTask`].
    Task(ProposalTask),
    /// See [`Participant`].
    Participant(Participant),
    /// See [`Assignment`].
    Assignment(Assignment),
    /// See [`Course`].
    Course(Course),
    /// See [`Order`].
    Order(Order),
}

/// Numbers that never repeat in a data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Proposals ever made, the refused ones too.
    pub proposals: u64,
    /// Starts of the process.
    pub run: u64,
    /// When the last one was.
    pub run_began: Timestamp,
}

/// A proposal with what belongs to it.
#[derive(Clone, Debug)]
struct Entry {
    proposal: Proposal,
    tasks: BTreeMap<u32, ProposalTask>,
    participants: BTreeMap<PartyId, Participant>,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Coordinator {
    rules: Rules,
    counters: Counters,
    parties: BTreeMap<PartyId, Party>,
    proposals: BTreeMap<JobId, Entry>,
    courses: BTreeMap<JobId, Course>,
    orders: BTreeMap<(PartyId, JobId), Order>,
    /// Changed, and not durable yet.
    assignments: BTreeMap<(JobId, PartyId), Assignment>,
}

impl Coordinator {
    /// A coordinator that knows nobody.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            counters: Counters::default(),
            parties: BTreeMap::new(),
            proposals: BTreeMap::new(),
            courses: BTreeMap::new(),
            orders: BTreeMap::new(),
            assignments: BTreeMap::new(),
        }
    }
}

const PROPOSAL: u8 = b'p';

/// The beginning of the key bytes of all proposals, for a scan.
pub fn all_proposals() -> Vec<u8> {
    vec![PROPOSAL]
}

impl Machine for Coordinator {
    const ROLE: &'static str = "coordinator";

    type Command = Command;
    type Event = Event;
    type Effect = Effect;
    type Reply = Reply;
    type Rejection = Rejection;
    type Key = Key;
    type Record = Record;

    fn recall(&self, command: &Command) -> Vec<Key> {
        match command {
            Command::Propose { job_id, .. } => vec![Key::Proposal(job_id.clone())],
            Command::Fetch { proposal, .. } => job_of(proposal).map(Key::Proposal).into_iter().collect(),
            Command::Forget { jobs } => forget::recall(jobs),
            Command::Cancel { job, .. } => vec![Key::Proposal(job.clone()), Key::Course(job.clone())],
            Command::Report { job, party, .. } | Command::Stop { job, party, .. } => vec![Key::Assignment(job.clone(), party.clone())],
            _ => Vec::new(),
        }
    }

    fn brings_work(&self, command: &Command, input: &Input<Key, Record>) -> bool {
        match command {
            Command::Propose { job_id, .. } => self.known(job_id, input).is_none(),
            Command::Subscribe { party, .. } => !self.parties.contains_key(party),
            _ => false,
        }
    }

    fn decide(&mut self, command: Command, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        match command {
            Command::Started => {
                out.emit(
                    self,
                    Event::Started {
                        run: self.counters.run + 1,
                        at: input.now,
                    },
                );
                Ok(Reply::Done)
            }
            Command::Subscribe {
                party,
                session,
                job_types,
                instance,
            } => self.subscribe(
                parties::Subscription {
                    party,
                    session,
                    job_types,
                    instance,
                },
                input,
                out,
            ),
            Command::StreamBroken { party, session } => Ok(self.stream_broken(party, session, input, out)),
            Command::Leave { party } => Ok(self.leave(party, input, out)),
            Command::Propose {
                job_id,
                job_type,
                tasks,
                wait_s,
                min,
                max,
                fingerprint,
                owner,
            } => {
                let asked = proposals::Asked {
                    job_id,
                    job_type,
                    tasks,
                    wait_s,
                    min,
                    max,
                    fingerprint,
                    owner,
                };
                self.propose(asked, input, out)
            }
            Command::Fetch { party, proposal } => self.fetch(party, &proposal, input, out),
            Command::Close { job } => Ok(self.close(&job, input, out)),
            Command::Expire { job } => Ok(self.expire(&job, input, out)),
            Command::Forget { jobs } => Ok(self.forget_expired(jobs, input, out)),
            Command::Report {
                party,
                job,
                proposal,
                task,
                instance,
                state,
                reason,
            } => {
                let told = assignments::Told {
                    party,
                    job,
                    proposal,
                    task,
                    instance,
                    state,
                    reason,
                };
                self.report(told, input, out)
            }
            Command::Cancel {
                job,
                job_type,
                owner,
                reason,
            } => {
                let unwanted = assignments::Unwanted {
                    job,
                    job_type,
                    owner,
                    reason,
                };
                self.cancel(unwanted, input, out)
            }
            Command::Stop { job, party, reason } => self.stop(job, party, &reason, input, out),
        }
    }

    fn apply(&mut self, event: &Event, changes: &mut Changes<Key>) {
        self.apply_event(event, changes);
    }

    fn record(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Counters => Some(Record::Counters(self.counters)),
            Key::Party(party) => self.parties.get(party).cloned().map(Record::Party),
            Key::Proposal(job) => self
                .proposals
                .get(job)
                .map(|entry| Record::Proposal(Box::new(entry.proposal.clone()))),
            Key::Task(job, index) => self.proposals.get(job)?.tasks.get(index).cloned().map(Record::Task),
            Key::Participant(job, party) => self.proposals.get(job)?.participants.get(party).cloned().map(Record::Participant),
            Key::Assignment(job, party) => {
                let key = (job.clone(), party.clone());
                self.assignments.get(&key).cloned().map(Record::Assignment)
            }
            Key::Course(job) => self.courses.get(job).cloned().map(Record::Course),
            Key::Order(party, job) => self.orders.get(&(party.clone(), job.clone())).cloned().map(Record::Order),
        }
    }

    fn holds(&self, key: &Key) -> bool {
        match key {
            Key::Counters => true,
            Key::Party(party) => self.parties.contains_key(party),
            Key::Proposal(job) => self.proposals.contains_key(job),
            Key::Task(job, index) => self.proposals.get(job).is_some_and(|entry| entry.tasks.contains_key(index)),
            Key::Participant(job, party) => self.proposals.get(job).is_some_and(|entry| entry.participants.contains_key(party)),
            Key::Assignment(job, party) => self.assignments.contains_key(&(job.clone(), party.clone())),
            Key::Course(job) => self.courses.contains_key(job),
            Key::Order(party, job) => self.orders.contains_key(&(party.clone(), job.clone())),
        }
    }

    fn is_live(record: &Record) -> bool {
        match record {
            Record::Proposal(proposal) => !matches!(proposal.state, State::Expired { .. }),
            Record::Assignment(_) => false,
            Record::Course(course) => course.tally.is_none(),
            Record::Counters(_) | Record::Party(_) | Record::Task(_) | Record::Participant(_) | Record::Order(_) => true,
        }
    }

    fn payloads(record: &Record) -> Vec<PayloadRef> {
        match record {
            Record::Task(task) => task.content.payload().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn restore(&mut self, key: &Key, record: Record) {
        self.restore_record(key, record);
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Proposal(job) => drop(self.proposals.remove(job)),
            Key::Assignment(job, party) => drop(self.assignments.remove(&(job.clone(), party.clone()))),
            Key::Course(job) => drop(self.courses.remove(job)),
            Key::Counters | Key::Party(_) | Key::Task(..) | Key::Participant(..) | Key::Order(..) => {}
        }
    }

    fn resume(&self, now: Timestamp) -> Vec<Effect> {
        let timers = self.proposals.values().filter_map(|entry| self.timer_at_start(entry, now));
        let orders = self.orders.iter().map(|((party, job), order)| order.effect(party, job));
        timers.chain(orders).collect()
    }

    fn key_bytes(key: &Key) -> Vec<u8> {
        match key {
            Key::Counters => join_key(b'c', &[]),
            Key::Party(party) => join_key(b'e', &[party.as_str()]),
            Key::Proposal(job) => join_key(PROPOSAL, &[job.as_str()]),
            Key::Task(job, index) => join_key(b't', &[job.as_str(), &format!("{index:010}")]),
            Key::Participant(job, party) => join_key(b'u', &[job.as_str(), party.as_str()]),
            Key::Assignment(job, party) => join_key(b'v', &[job.as_str(), party.as_str()]),
            Key::Course(job) => join_key(b'w', &[job.as_str()]),
            Key::Order(party, job) => join_key(b'x', &[party.as_str(), job.as_str()]),
        }
    }

    fn key_from_bytes(bytes: &[u8]) -> Option<Key> {
        match split_key(bytes)? {
            (b'c', parts) if parts == [""] => Some(Key::Counters),
            (b'e', parts) if parts.len() == 1 => Some(Key::Party(PartyId::parse(parts[0]).ok()?)),
            (PROPOSAL, parts) if parts.len() == 1 => Some(Key::Proposal(JobId::parse(parts[0]).ok()?)),
            (b't', parts) if parts.len() == 2 => Some(Key::Task(JobId::parse(parts[0]).ok()?, parts[1].parse().ok()?)),
            (b'u', parts) if parts.len() == 2 => Some(Key::Participant(JobId::parse(parts[0]).ok()?, PartyId::parse(parts[1]).ok()?)),
            (b'v', parts) if parts.len() == 2 => Some(Key::Assignment(JobId::parse(parts[0]).ok()?, PartyId::parse(parts[1]).ok()?)),
            (b'w', parts) if parts.len() == 1 => Some(Key::Course(JobId::parse(parts[0]).ok()?)),
            (b'x', parts) if parts.len() == 2 => Some(Key::Order(PartyId::parse(parts[0]).ok()?, JobId::parse(parts[1]).ok()?)),
            _ => None,
        }
    }

    fn census(&self) -> Vec<(&'static str, u64)> {
        let connected = self.parties.values().filter(|party| self.is_connected(party)).count();
        let open = self.proposals.values().filter(|entry| entry.proposal.is_open()).count();
        vec![
            ("party connected", connected as u64),
            ("party disconnected", (self.parties.len() - connected) as u64),
            ("proposal open", open as u64),
            ("proposal closed", (self.proposals.len() - open) as u64),
            ("order open", self.orders.len() as u64),
        ]
    }

    fn ending(record: &Record) -> &'static str {
        match record {
            Record::Proposal(proposal) => match proposal.verdict() {
                Some((Verdict::Success, _)) => "proposal success",
                Some((Verdict::NotEnoughResponders, _)) => "proposal not_enough_responders",
                Some((Verdict::NotEnoughSubscribers, _)) => "proposal not_enough_subscribers",
                Some((Verdict::Reject, _)) => "proposal rejected",
                Some((Verdict::Cancelled, _)) => "proposal cancelled",
                None => "proposal open",
            },
            // An assignment is history in every state: each counts as often as it is entered.
            Record::Assignment(assignment) => match assignment.state {
                AssignmentState::Given => "assignment given",
                AssignmentState::Running => "assignment running",
                AssignmentState::Ended(End::Succeeded) => "assignment success",
                AssignmentState::Ended(End::Failed) => "assignment failed",
                AssignmentState::Ended(End::Cancelled) => "assignment cancelled",
            },
            _ => "record ended",
        }
    }
}
