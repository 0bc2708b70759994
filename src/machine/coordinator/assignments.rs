//! What comes after the draw: how the chosen parties' tasks end, who may know, and that a job is no longer wanted.
//!
//! Called by the machine's `decide`. An assignment is history from its first moment: it is never in memory for longer than a commit, so that a job
//! may run for days and a party may never report. Must never let one party speak for another, nor an end change.

use super::draw::draw;
use super::proposals::id_of;
use super::{Coordinator, Effect, Entry, Event, Key, ORDER_KEPT_MS, ORDERS_MAX, Proposal, Record, Rejection, Reply, State, Verdict};
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId, Timestamp, TypeName};
use crate::machine::outcome::{End, REASON_MAX, clip, one_line};
use crate::machine::{Input, Out};
use serde::{Deserialize, Serialize};

/// A task of a proposal in the hands of a party. Stays as long as the record of its proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Number of the proposal.
    pub number: u64,
    /// The task.
    pub task: TaskId,
    /// Identity of the party's data directory when it was drawn: only this one may report. `None` for a FedVision 0.1 party, which never does.
    pub instance: Option<String>,
    /// How it stands.
    pub state: AssignmentState,
    /// What went wrong, at most [`REASON_MAX`] bytes.
    pub reason: String,
    /// When it came to that.
    pub changed_at: Timestamp,
}

/// How a task stands at the party that has it, as far as the party told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentState {
    /// Drawn; nothing was heard. Moved on by the party's report. A crash changes nothing.
    Given,
    /// The party's cluster manager has it. Moved on by the party's report. A crash changes nothing.
    Running,
    /// It has ended. Final.
    Ended(End),
}

/// An order to a party to stop its task. Live until the party has reported how the task ended; kept by the party's name, so that all of them are
/// found when it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Number of the proposal.
    pub number: u64,
    /// The task.
    pub task: TaskId,
    /// Whom it is for: the party as it was when it was drawn.
    pub instance: String,
    /// Why, at most [`REASON_MAX`] bytes.
    pub reason: String,
    /// When it was given.
    pub at: Timestamp,
}

/// What the initiator of a proposal may know of it beside its verdict. Live while the proposal is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// Identity of the initiator's data directory: only this one may follow and cancel. `None` for one that does neither.
    pub owner: Option<String>,
    /// How many accepted and how many were chosen, since the close.
    pub tally: Option<Tally>,
}

/// See [`Course`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Acceptances at the close.
    pub accepted: u32,
    /// Parties with a task.
    pub chosen: u32,
}

/// What [`super::Command::Report`] says.
pub(super) struct Told {
    pub(super) party: PartyId,
    pub(super) job: JobId,
    pub(super) proposal: ProposalId,
    pub(super) task: TaskId,
    pub(super) instance: String,
    pub(super) state: AssignmentState,
    pub(super) reason: String,
}

/// What [`super::Command::Cancel`] says.
pub(super) struct Unwanted {
    pub(super) job: JobId,
    pub(super) job_type: TypeName,
    pub(super) owner: String,
    pub(super) reason: String,
}

impl Coordinator {
    /// The draw: a task for each of at most `count` of those present.
    pub(super) fn assign(&mut self, job: &JobId, present: Vec<PartyId>, count: usize, input: &Input<Key, Record>, out: &mut Out<Self>) {
        for (index, party) in (0..).zip(draw(present, count, input.random)) {
            out.emit(
                self,
                Event::Assigned {
                    job: job.clone(),
                    party,
                    index,
                    at: input.now,
                },
            );
        }
    }

    /// At the close, in the same commit: the acceptances go with the tasks, their number stays.
    pub(super) fn count(&mut self, job: &JobId, out: &mut Out<Self>) {
        let Some(entry) = self.proposals.get(job) else { return };
        let Some(owner) = self.courses.get(job).map(|course| course.owner.clone()) else {
            return;
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let chosen = entry.participants.values().filter(|participant| participant.chosen.is_some());
        let tally = Some(Tally {
            accepted: number(entry.participants.len()),
            chosen: number(chosen.count()),
        });
        let course = Course { owner, tally };
        out.emit(self, Event::CourseKept { job: job.clone(), course });
    }

    pub(super) fn report(&mut self, told: Told, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        let Told { party, job, .. } = &told;
        let Some(known) = self
            .assignment(job, party, input)
            .filter(|known| id_of(job, known.number).as_ref() == Some(&told.proposal))
        else {
            return Err(Rejection::NotChosen(told.party, told.proposal));
        };
        if known.task != told.task {
            return Err(Rejection::OtherTask(told.party, known.task.clone()));
        }
        if known.instance.as_ref() != Some(&told.instance) {
            return Err(Rejection::NotTheOne("party", told.party.to_string()));
        }
        match (known.state, told.state) {
            (old, new) if old == new => return Ok(Reply::Done),
            // It was on its way for longer than the task ran.
            (AssignmentState::Ended(_), AssignmentState::Running) | (_, AssignmentState::Given) => return Ok(Reply::Done),
            (AssignmentState::Ended(_), AssignmentState::Ended(_)) => return Err(Rejection::OtherEnd(told.party, told.task)),
            _ => {}
        }
        let assignment = Assignment {
            state: told.state,
            reason: clip(one_line(&told.reason), REASON_MAX),
            changed_at: input.now,
            ..known.clone()
        };
        let (job, party) = (told.job, told.party);
        let has_ended = matches!(assignment.state, AssignmentState::Ended(_));
        out.emit(
            self,
            Event::Reported {
                job: job.clone(),
                party: party.clone(),
                assignment: Box::new(assignment),
            },
        );
        if has_ended && self.orders.contains_key(&(party.clone(), job.clone())) {
            out.emit(self, Event::OrderMet { party, job: job.clone() });
        }
        out.effect(Effect::Changed { job });
        Ok(Reply::Done)
    }

    /// An open proposal closes, one that has succeeded gives nothing any more, and one that nobody has made yet never will be.
    pub(super) fn cancel(&mut self, unwanted: Unwanted, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        let Unwanted { job, owner, reason, .. } = &unwanted;
        let reason = clip(one_line(reason), REASON_MAX);
        let Some(known) = self.known(job, input).cloned() else {
            return Ok(self.never(unwanted, input, out));
        };
        if self.owner(job, input) != Some(owner) {
            return Err(Rejection::NotTheOne("initiator of job", job.to_string()));
        }
        let job = job.clone();
        let verdict = Verdict::Cancelled;
        let state = match known.state {
            State::Open => State::Closed {
                verdict,
                reason,
                at: input.now,
            },
            State::Closed {
                verdict: Verdict::Success,
                at,
                ..
            } => State::Closed { verdict, reason, at },
            State::Expired {
                verdict: Verdict::Success,
                at,
                ..
            } => State::Expired { verdict, reason, at },
            State::Closed { .. } | State::Expired { .. } => return Ok(Reply::Done),
        };
        let was_open = known.state == State::Open;
        if was_open {
            self.count(&job, out);
        }
        let proposal = Proposal { state, ..known };
        let timer = if was_open { self.timer(&proposal) } else { None };
        out.emit(self, Event::Cancelled(Box::new(proposal)));
        if was_open {
            out.effect(Effect::Closed { job });
        } else {
            out.effect(Effect::Changed { job });
        }
        out.effects.extend(timer);
        Ok(Reply::Done)
    }

    /// The cancellation has overtaken the proposal, or there never was to be one: it is recorded as one that was refused at once.
    fn never(&mut self, unwanted: Unwanted, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        let Unwanted {
            job,
            job_type,
            owner,
            reason,
        } = unwanted;
        let number = self.counters.proposals + 1;
        // A job id that leaves no room for a number can never be proposed.
        let Some(id) = id_of(&job, number) else { return Reply::Done };
        let proposal = Proposal {
            id,
            number,
            job_id: job.clone(),
            job_type,
            fingerprint: [0; 32],
            min: 0,
            max: 0,
            tasks: 0,
            offered: 0,
            opened_at: input.now,
            closes_at: input.now,
            state: State::Expired {
                verdict: Verdict::Cancelled,
                reason: clip(one_line(&reason), REASON_MAX),
                at: input.now,
            },
        };
        out.emit(self, Event::Proposed(Box::new(proposal)));
        let course = Course {
            owner: Some(owner),
            tally: Some(Tally::default()),
        };
        out.emit(self, Event::CourseKept { job: job.clone(), course });
        out.effect(Effect::Changed { job });
        Reply::Done
    }

    /// Sent for each chosen party of a cancelled job.
    pub(super) fn stop(
        &mut self,
        job: JobId,
        party: PartyId,
        reason: &str,
        input: &Input<Key, Record>,
        out: &mut Out<Self>,
    ) -> Result<Reply, Rejection> {
        let Some(Assignment {
            number,
            task,
            instance: Some(instance),
            state: AssignmentState::Given | AssignmentState::Running,
            ..
        }) = self.assignment(&job, &party, input).cloned()
        else {
            return Ok(Reply::Done);
        };
        let key = (party.clone(), job.clone());
        if !self.orders.contains_key(&key) {
            if self.orders.len() >= ORDERS_MAX {
                let old = |order: &Order| input.now.ms_since(order.at) > ORDER_KEPT_MS;
                let given_up = self.orders.iter().find(|(_, order)| old(order)).map(|(key, _)| key.clone());
                let Some((party, job)) = given_up else {
                    return Err(Rejection::TooManyOrders);
                };
                out.emit(self, Event::OrderMet { party, job });
            }
            let order = Order {
                number,
                task,
                instance,
                reason: clip(one_line(reason), REASON_MAX),
                at: input.now,
            };
            let order = Box::new(order);
            out.emit(
                self,
                Event::Ordered {
                    party: party.clone(),
                    job: job.clone(),
                    order,
                },
            );
        }
        out.effects.extend(self.orders.get(&key).map(|order| order.effect(&party, &job)));
        Ok(Reply::Done)
    }

    pub(super) fn assignment<'a>(&'a self, job: &JobId, party: &PartyId, input: &'a Input<Key, Record>) -> Option<&'a Assignment> {
        if let Some(known) = self.assignments.get(&(job.clone(), party.clone())) {
            return Some(known);
        }
        match input.recalled(&Key::Assignment(job.clone(), party.clone())) {
            Some(Record::Assignment(known)) => Some(known),
            _ => None,
        }
    }

    fn owner<'a>(&'a self, job: &JobId, input: &'a Input<Key, Record>) -> Option<&'a str> {
        let course = self.courses.get(job).or(match input.recalled(&Key::Course(job.clone())) {
            Some(Record::Course(course)) => Some(course),
            _ => None,
        });
        course?.owner.as_deref()
    }
}

impl Order {
    /// The proposal.
    pub fn proposal(&self, job: &JobId) -> Option<ProposalId> {
        id_of(job, self.number)
    }

    /// Tell the party, if it listens.
    pub(super) fn effect(&self, party: &PartyId, job: &JobId) -> Effect {
        Effect::Order {
            party: party.clone(),
            job: job.clone(),
            order: Box::new(self.clone()),
        }
    }
}

impl Entry {
    /// A proposal, and nothing that belongs to it.
    pub(super) fn bare(proposal: Proposal) -> Self {
        Self {
            proposal,
            tasks: Default::default(),
            participants: Default::default(),
        }
    }
}
