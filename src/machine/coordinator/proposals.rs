//! Proposals: opening, accepting, closing with a draw, answering again, letting go.
//!
//! Called by the machine's `decide`. Must never let a proposal end without a recorded verdict, and never give a task to two parties.

use super::{
    ANSWER_MS, Coordinator, Course, Effect, Entry, Event, Key, Link, PARTICIPANTS_MAX, PROPOSALS_MAX, Party, RELEASE_MAX, RETURN_MS,
    Record, Rejection, Reply, TASKS_MAX, Tally, WAIT_MAX_S,
};
use crate::machine::content::Content;
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId, Timestamp, TypeName};
use crate::machine::{Input, Out};
use serde::{Deserialize, Serialize};

/// Between the job id and the number in a proposal id, as in FedVision 0.1.
const ID_INFIX: &str = "-coo_";

/// The search for parties for the tasks of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// `<job_id>-coo_<number>`.
    pub id: ProposalId,
    /// Number of the proposal in this data directory, from 1.
    pub number: u64,
    /// The job.
    pub job_id: JobId,
    /// Its type.
    pub job_type: TypeName,
    /// SHA-256 of the request.
    pub fingerprint: [u8; 32],
    /// Acceptances needed.
    pub min: u32,
    /// Parties chosen at most.
    pub max: u32,
    /// Number of tasks.
    pub tasks: u32,
    /// Parties it was offered to when it was made.
    pub offered: u32,
    /// When it was made.
    pub opened_at: Timestamp,
    /// When its window ends.
    pub closes_at: Timestamp,
    /// How far it is.
    pub state: State,
}

/// How far a proposal is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Parties may accept. Moved on by the timer of its window. A crash keeps the acceptances; the timer is set again at start, and
    /// fires at once if the window ended meanwhile, but if they are still too few, not before the parties had time to come back (also
    /// for a proposal made shortly after the start). Then it closes as soon as they are enough.
    Open,
    /// The verdict is known and the tasks are kept for chosen parties that ask (again). Moved on by the retention timer. A crash changes
    /// nothing; the timer is set again at start.
    Closed {
        /// The verdict.
        verdict: Verdict,
        /// Why, for verdicts other than success.
        reason: String,
        /// When it closed.
        at: Timestamp,
    },
    /// History: only this record is left. Final; also the first state of a proposal that was refused at once.
    Expired {
        /// The verdict.
        verdict: Verdict,
        /// Why, for verdicts other than success.
        reason: String,
        /// When it closed.
        at: Timestamp,
    },
}

/// What came of a proposal, as FedVision 0.1 names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Parties were chosen.
    Success,
    /// Too few accepted.
    NotEnoughResponders,
    /// Too few parties were there to be asked.
    NotEnoughSubscribers,
    /// Nobody knows the job type, or the numbers make no sense.
    Reject,
    /// The initiator cancelled the job, before or after the close: nobody gets a task any more. To FedVision 0.1 it is a reject.
    Cancelled,
}

/// A task of a proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalTask {
    /// Id within the job.
    pub task_id: TaskId,
    /// The encoded `fedvision.framework.Task`.
    pub content: Content,
}

/// An acceptance. What it means follows from the proposal: accepted and not chosen is `CANCELED` when the verdict is no success, else
/// `RANDOM_OUT`. A party that was only offered a proposal has no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// When it accepted.
    pub accepted_at: Timestamp,
    /// Position of its task in the proposal, once it was drawn. Set by the close; a crash before that leaves the acceptance.
    pub chosen: Option<u32>,
}

impl Proposal {
    /// True while parties may accept.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The verdict and its reason, once there is one.
    pub fn verdict(&self) -> Option<(Verdict, &str)> {
        match &self.state {
            State::Open => None,
            State::Closed { verdict, reason, .. } | State::Expired { verdict, reason, .. } => Some((*verdict, reason)),
        }
    }

    fn reply(&self) -> Reply {
        match self.verdict() {
            None => Reply::Open { proposal: self.id.clone() },
            Some((verdict, reason)) => Reply::Verdict {
                verdict,
                reason: reason.to_owned(),
            },
        }
    }
}

/// The id of a job's proposal; `None` if the job's id leaves no room for it.
pub(super) fn id_of(job: &JobId, number: u64) -> Option<ProposalId> {
    ProposalId::parse(format!("{job}{ID_INFIX}{number}")).ok()
}

/// The job a proposal id belongs to; `None` if it is no proposal id of this coordinator's making.
pub fn job_of(proposal: &ProposalId) -> Option<JobId> {
    let (job, number) = proposal.as_str().rsplit_once(ID_INFIX)?;
    number.parse::<u64>().ok()?;
    JobId::parse(job).ok()
}

/// What [`super::Command::Propose`] says.
pub(super) struct Asked {
    pub(super) job_id: JobId,
    pub(super) job_type: TypeName,
    pub(super) tasks: Vec<(TaskId, Content)>,
    pub(super) wait_s: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) fingerprint: [u8; 32],
    pub(super) owner: Option<String>,
}

impl Asked {
    /// What is wrong with the numbers.
    fn nonsense(&self) -> Option<String> {
        if self.tasks.len() > TASKS_MAX {
            Some(format!("{} tasks, at most {TASKS_MAX} are taken", self.tasks.len()))
        } else if self.wait_s > WAIT_MAX_S {
            Some(format!("a window of {} s, at most {WAIT_MAX_S} s are taken", self.wait_s))
        } else if self.max < self.min {
            Some(format!("at most {} parties cannot be at least {}", self.max, self.min))
        } else if self.tasks.is_empty() && self.max > 0 {
            Some("no tasks to give to parties".to_owned())
        } else {
            None
        }
    }
}

impl Coordinator {
    pub(super) fn propose(&mut self, asked: Asked, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        if let Some(known) = self.known(&asked.job_id, input) {
            // A cancellation may come before what it cancels.
            let unmade = known.tasks == 0 && known.verdict().is_some_and(|(verdict, _)| verdict == Verdict::Cancelled);
            let same = known.fingerprint == asked.fingerprint || unmade;
            return if same {
                Ok(known.reply())
            } else {
                Err(Rejection::OtherProposal(asked.job_id))
            };
        }
        if let Some(too_early) = self.settling(&asked, input.now) {
            return Err(too_early);
        }
        if self.proposals.len() >= PROPOSALS_MAX {
            return Err(Rejection::TooManyProposals);
        }
        let number = self.counters.proposals + 1;
        let Some(id) = id_of(&asked.job_id, number) else {
            return Err(Rejection::LongJobId(asked.job_id));
        };
        let refusal = self.refusal(&asked, input.now);
        let offers = if refusal.is_none() {
            self.offers(&id, &asked.job_type)
        } else {
            Vec::new()
        };
        let state = match refusal {
            Some((verdict, reason)) => State::Expired {
                verdict,
                reason,
                at: input.now,
            },
            None => State::Open,
        };
        let proposal = Proposal {
            id,
            number,
            job_id: asked.job_id.clone(),
            job_type: asked.job_type,
            fingerprint: asked.fingerprint,
            min: asked.min,
            max: asked.max,
            tasks: u32::try_from(asked.tasks.len()).unwrap_or(u32::MAX),
            offered: u32::try_from(offers.len()).unwrap_or(u32::MAX),
            opened_at: input.now,
            closes_at: input.now.plus_ms(u64::from(asked.wait_s) * 1000),
            state,
        };
        let reply = proposal.reply();
        let (open, closes_at) = (proposal.is_open(), proposal.closes_at);
        out.emit(self, Event::Proposed(Box::new(proposal)));
        if asked.owner.is_some() {
            let (job, tally) = (asked.job_id.clone(), (!open).then(Tally::default));
            let course = Course { owner: asked.owner, tally };
            out.emit(self, Event::CourseKept { job, course });
        }
        if !open {
            return Ok(reply);
        }
        for (index, (task_id, content)) in (0..).zip(asked.tasks) {
            let task = ProposalTask { task_id, content };
            out.emit(
                self,
                Event::TaskAdded {
                    job: asked.job_id.clone(),
                    index,
                    task,
                },
            );
        }
        if asked.wait_s == 0 {
            // Nobody can accept within no time, so there is nothing to wait for; 0.1 answers the same.
            self.close(&asked.job_id, input, out);
            return Ok(self.proposals.get(&asked.job_id).map_or(reply, |entry| entry.proposal.reply()));
        }
        out.effects.extend(offers);
        out.effect(Effect::CloseAt {
            job: asked.job_id,
            at: closes_at,
        });
        Ok(reply)
    }

    /// The proposal of a job: in memory, or ended and recalled.
    pub(super) fn known<'a>(&'a self, job: &JobId, input: &'a Input<Key, Record>) -> Option<&'a Proposal> {
        if let Some(entry) = self.proposals.get(job) {
            return Some(&entry.proposal);
        }
        match input.recalled(&Key::Proposal(job.clone())) {
            Some(Record::Proposal(proposal)) => Some(proposal),
            _ => None,
        }
    }

    /// Right after a start the parties come back one by one, each after its own backoff: a window that opened before them would close on
    /// a job that nothing is wrong with.
    fn settling(&self, asked: &Asked, now: Timestamp) -> Option<Rejection> {
        if asked.nonsense().is_some() || now.ms_since(self.counters.run_began) >= self.rules.settle_ms {
            return None;
        }
        let here = |party: &&super::Party| party.takes(&asked.job_type) && self.is_connected(party);
        let here = self.parties.values().filter(here).count();
        (here < asked.min as usize).then(|| Rejection::Settling {
            job_type: asked.job_type.clone(),
            here,
            needed: asked.min,
        })
    }

    /// The verdict on a proposal that is not even opened.
    fn refusal(&self, asked: &Asked, now: Timestamp) -> Option<(Verdict, String)> {
        if let Some(reason) = asked.nonsense() {
            return Some((Verdict::Reject, reason));
        }
        let members: Vec<_> = self.parties.values().filter(|party| party.takes(&asked.job_type)).collect();
        if members.is_empty() {
            return Some((Verdict::Reject, format!("no party has subscribed to job type {}", asked.job_type)));
        }
        let here = members.iter().filter(|party| self.counts(party, now)).count();
        if here < asked.min as usize {
            let reason = format!(
                "too few parties are subscribed to job type {}: {here} of the {} needed",
                asked.job_type, asked.min
            );
            return Some((Verdict::NotEnoughSubscribers, reason));
        }
        None
    }

    /// The checks come in the order of FedVision 0.1: proposal, party, window.
    pub(super) fn fetch(
        &mut self,
        party: PartyId,
        proposal: &ProposalId,
        input: &Input<Key, Record>,
        out: &mut Out<Self>,
    ) -> Result<Reply, Rejection> {
        let Some(job) = job_of(proposal) else { return Ok(Reply::NotFound) };
        let Some(known) = self.known(&job, input).filter(|known| known.id == *proposal) else {
            return Ok(Reply::NotFound);
        };
        let Some(enrolled) = self.parties.get(&party) else {
            return Ok(Reply::NotAllow);
        };
        let entry = self.proposals.get(&job);
        let participant = entry.and_then(|entry| entry.participants.get(&party));
        if participant.is_none() && !enrolled.takes(&known.job_type) {
            return Ok(Reply::NotAllow);
        }
        match (known.verdict(), participant) {
            (None, Some(_)) => Ok(Reply::Wait),
            (None, None) if entry.is_some_and(|entry| entry.participants.len() >= PARTICIPANTS_MAX) => Err(Rejection::TooManyParticipants),
            (None, None) => {
                let over = input.now >= known.closes_at;
                out.emit(
                    self,
                    Event::Accepted {
                        job: job.clone(),
                        party,
                        at: input.now,
                    },
                );
                if over && self.proposals.get(&job).is_some_and(|entry| self.has_enough(entry)) {
                    // Only a start keeps a window open for longer, and only for want of this one.
                    self.close(&job, input, out);
                }
                Ok(Reply::Wait)
            }
            (Some(_), None) => Ok(Reply::Timeout),
            (Some((Verdict::Success, _)), Some(Participant { chosen: Some(index), .. })) => {
                let task = entry.and_then(|entry| entry.tasks.get(index));
                Ok(task.map_or(Reply::Timeout, |task| Reply::Ready(task.content.clone())))
            }
            (Some((Verdict::Success, _)), Some(_)) => Ok(Reply::RandomOut),
            (Some(_), Some(_)) => Ok(Reply::Canceled),
        }
    }

    /// The timer is trusted: it runs on a clock that nobody sets, unlike the one that stamps records. Shortly after a start a window that is
    /// short of parties is left open: a crash of this process must not cost a job its parties.
    pub(super) fn close(&mut self, job: &JobId, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        let Some(entry) = self.proposals.get(job).filter(|entry| entry.proposal.is_open()) else {
            return Reply::Done;
        };
        if !self.has_enough(entry) && self.awaits_return(&entry.proposal, input.now) {
            let at = input.now.min(self.counters.run_began).plus_ms(RETURN_MS);
            out.effect(Effect::CloseAt { job: job.clone(), at });
            return Reply::Done;
        }
        let present: Vec<PartyId> = self.present(entry).cloned().collect();
        let (min, max, tasks) = (entry.proposal.min as usize, entry.proposal.max as usize, entry.tasks.len());
        let (verdict, reason) = if present.len() < min {
            (
                Verdict::NotEnoughResponders,
                format!(
                    "too few parties accepted within proposal_wait_time: {} of the {min} needed",
                    present.len()
                ),
            )
        } else {
            (Verdict::Success, String::new())
        };
        if verdict == Verdict::Success {
            self.assign(job, present, max.min(tasks), input, out);
        }
        self.count(job, out);
        out.emit(
            self,
            Event::Closed {
                job: job.clone(),
                verdict,
                reason,
                at: input.now,
            },
        );
        out.effect(Effect::Closed { job: job.clone() });
        out.effects
            .extend(self.proposals.get(job).and_then(|entry| self.timer(&entry.proposal)));
        Reply::Done
    }

    /// Lets go of at most [`RELEASE_MAX`] records, tasks first, and asks to be called again while there are more.
    pub(super) fn expire(&mut self, job: &JobId, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        let closed = |entry: &&Entry| matches!(entry.proposal.state, State::Closed { .. });
        let Some(entry) = self.proposals.get(job).filter(closed) else {
            return Reply::Done;
        };
        let total = entry.tasks.len() + entry.participants.len();
        let tasks = entry.tasks.keys().map(|index| Event::TaskReleased {
            job: job.clone(),
            index: *index,
        });
        let participants = entry.participants.keys().map(|party| Event::ParticipantReleased {
            job: job.clone(),
            party: party.clone(),
        });
        let events: Vec<Event> = tasks.chain(participants).take(RELEASE_MAX).collect();
        let all = events.len() == total;
        for event in events {
            out.emit(self, event);
        }
        if all {
            out.emit(self, Event::Expired { job: job.clone() });
        } else {
            out.effect(Effect::ExpireAt {
                job: job.clone(),
                at: input.now,
            });
        }
        Reply::Done
    }

    /// Those who accepted and have not left since.
    fn present<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a PartyId> {
        entry.participants.keys().filter(|party| self.parties.contains_key(*party))
    }

    fn has_enough(&self, entry: &Entry) -> bool {
        self.present(entry).count() >= entry.proposal.min as usize
    }

    /// True while a party that takes this job type has not come back since the start that cut it off, and still may, or has come back a
    /// moment ago and not answered the offer that it got then.
    fn awaits_return(&self, proposal: &Proposal, now: Timestamp) -> bool {
        let awaited = |party: &Party| match party.link {
            Link::Up { .. } if !self.is_connected(party) => true,
            Link::Up { since, .. } => since > proposal.opened_at && now < since.plus_ms(ANSWER_MS),
            Link::Down { .. } => false,
        };
        let mut members = self.parties.values().filter(|party| party.takes(&proposal.job_type));
        let has_window = proposal.closes_at > proposal.opened_at;
        has_window && now < self.counters.run_began.plus_ms(RETURN_MS) && members.any(awaited)
    }

    /// The timer a proposal needs after a start: a crash of this process must not cost a job its parties.
    pub(super) fn timer_at_start(&self, entry: &Entry, now: Timestamp) -> Option<Effect> {
        let effect = self.timer(&entry.proposal)?;
        // A clock that was set back meanwhile must not make it wait longer than its whole length.
        let length = |from: Timestamp, to: Timestamp| now.plus_ms(to.ms_since(from));
        let effect = match (effect, &entry.proposal.state) {
            (Effect::CloseAt { job, at }, _) => Effect::CloseAt {
                job,
                at: at.min(length(entry.proposal.opened_at, at)),
            },
            (Effect::ExpireAt { job, at }, State::Closed { at: closed, .. }) => Effect::ExpireAt {
                job,
                at: at.min(length(*closed, at)),
            },
            (other, _) => other,
        };
        Some(match effect {
            Effect::CloseAt { job, at } if !self.has_enough(entry) => Effect::CloseAt {
                job,
                at: at.max(now.plus_ms(RETURN_MS)),
            },
            other => other,
        })
    }

    /// The timer a proposal needs now.
    pub(super) fn timer(&self, proposal: &Proposal) -> Option<Effect> {
        let job = proposal.job_id.clone();
        match &proposal.state {
            State::Open => Some(Effect::CloseAt {
                job,
                at: proposal.closes_at,
            }),
            State::Closed { at, .. } => Some(Effect::ExpireAt {
                job,
                at: at.plus_ms(self.rules.keep_closed_ms),
            }),
            State::Expired { .. } => None,
        }
    }
}
