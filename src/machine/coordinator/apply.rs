//! The only place where the coordinator's state changes: one arm for each event, and records coming back at start.
//!
//! Called live for each event just decided, and in replay. Must be total: an event that was once emitted always applies.

use super::{Assignment, AssignmentState, Coordinator, Entry, Event, Key, Link, Participant, Party, Record, State, Verdict};
use crate::machine::Changes;
use crate::machine::ids::{JobId, PartyId, Timestamp};

impl Coordinator {
    pub(super) fn apply_event(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::Started { run, at } => {
                self.counters.run = *run;
                self.counters.run_began = *at;
                changes.keys.insert(Key::Counters);
            }
            Event::Subscribed { .. } | Event::Disconnected { .. } | Event::Left { .. } => self.apply_to_party(event, changes),
            Event::Proposed(proposal) => {
                self.counters.proposals = proposal.number;
                self.proposals.insert(proposal.job_id.clone(), Entry::bare((**proposal).clone()));
                changes.keys.extend([Key::Counters, Key::Proposal(proposal.job_id.clone())]);
            }
            Event::Forgotten { job } => {
                self.proposals.remove(job);
                self.courses.remove(job);
                changes.keys.extend([Key::Proposal(job.clone()), Key::Course(job.clone())]);
            }
            Event::TaskAdded { job, .. }
            | Event::Accepted { job, .. }
            | Event::Chosen { job, .. }
            | Event::Closed { job, .. }
            | Event::TaskReleased { job, .. }
            | Event::ParticipantReleased { job, .. }
            | Event::Expired { job } => {
                if let Some(entry) = self.proposals.get_mut(job) {
                    entry.apply(job, event, changes);
                }
            }
            Event::CourseKept { job, course } => {
                self.courses.insert(job.clone(), course.clone());
                changes.keys.insert(Key::Course(job.clone()));
            }
            Event::Cancelled(proposal) => {
                let job = &proposal.job_id;
                match self.proposals.get_mut(job) {
                    Some(entry) => entry.proposal = (**proposal).clone(),
                    None => drop(self.proposals.insert(job.clone(), Entry::bare((**proposal).clone()))),
                }
                changes.keys.insert(Key::Proposal(job.clone()));
            }
            Event::Assigned { job, party, index, at } => self.apply_assigned(job, party, *index, *at, changes),
            Event::Reported { job, party, assignment } => {
                self.assignments.insert((job.clone(), party.clone()), (**assignment).clone());
                changes.keys.insert(Key::Assignment(job.clone(), party.clone()));
            }
            Event::AssignmentForgotten { job, party } => {
                self.assignments.remove(&(job.clone(), party.clone()));
                changes.keys.insert(Key::Assignment(job.clone(), party.clone()));
            }
            Event::Ordered { party, job, order } => {
                self.orders.insert((party.clone(), job.clone()), (**order).clone());
                changes.keys.insert(Key::Order(party.clone(), job.clone()));
            }
            Event::OrderMet { party, job } => {
                self.orders.remove(&(party.clone(), job.clone()));
                changes.keys.insert(Key::Order(party.clone(), job.clone()));
            }
        }
    }

    fn apply_assigned(&mut self, job: &JobId, party: &PartyId, index: u32, at: Timestamp, changes: &mut Changes<Key>) {
        let Some(entry) = self.proposals.get_mut(job) else { return };
        entry.choose(job, party, index, changes);
        let Some(task) = entry.tasks.get(&index) else { return };
        let assignment = Assignment {
            number: entry.proposal.number,
            task: task.task_id.clone(),
            instance: self.parties.get(party).and_then(|party| party.instance.clone()),
            state: AssignmentState::Given,
            reason: String::new(),
            changed_at: at,
        };
        self.assignments.insert((job.clone(), party.clone()), assignment);
        changes.keys.insert(Key::Assignment(job.clone(), party.clone()));
    }

    fn apply_to_party(&mut self, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::Subscribed {
                party,
                session,
                job_types,
                instance,
                at,
            } => {
                let enrolled_at = self.parties.get(party).map_or(*at, |known| known.enrolled_at);
                let (job_types, instance) = (job_types.clone(), instance.clone());
                let link = Link::Up {
                    since: *at,
                    run: self.counters.run,
                };
                self.parties.insert(
                    party.clone(),
                    Party {
                        job_types,
                        session: *session,
                        instance,
                        enrolled_at,
                        link,
                    },
                );
                changes.keys.insert(Key::Party(party.clone()));
            }
            Event::Disconnected { party, at } => {
                if let Some(known) = self.parties.get_mut(party) {
                    known.link = Link::Down { since: *at };
                    changes.keys.insert(Key::Party(party.clone()));
                }
            }
            Event::Left { party, .. } => {
                self.parties.remove(party);
                changes.keys.insert(Key::Party(party.clone()));
            }
            _ => {}
        }
    }

    /// Records come in key order, so a proposal is there before what belongs to it.
    pub(super) fn restore_record(&mut self, key: &Key, record: Record) {
        match (key, record) {
            (Key::Counters, Record::Counters(counters)) => self.counters = counters,
            (Key::Party(party), Record::Party(record)) => {
                self.parties.insert(party.clone(), record);
            }
            (Key::Proposal(job), Record::Proposal(proposal)) => {
                self.proposals.insert(job.clone(), Entry::bare(*proposal));
            }
            (Key::Task(job, index), Record::Task(task)) => {
                if let Some(entry) = self.proposals.get_mut(job) {
                    entry.tasks.insert(*index, task);
                }
            }
            (Key::Participant(job, party), Record::Participant(participant)) => {
                if let Some(entry) = self.proposals.get_mut(job) {
                    entry.participants.insert(party.clone(), participant);
                }
            }
            (Key::Course(job), Record::Course(course)) => drop(self.courses.insert(job.clone(), course)),
            (Key::Order(party, job), Record::Order(order)) => drop(self.orders.insert((party.clone(), job.clone()), order)),
            (key, record) => debug_assert!(false, "record {record:?} under key {key:?}"),
        }
    }
}

impl Entry {
    fn apply(&mut self, job: &JobId, event: &Event, changes: &mut Changes<Key>) {
        match event {
            Event::TaskAdded { index, task, .. } => {
                changes.held.extend(task.content.payload());
                self.tasks.insert(*index, task.clone());
                changes.keys.insert(Key::Task(job.clone(), *index));
            }
            Event::Accepted { party, at, .. } => {
                self.participants.insert(
                    party.clone(),
                    Participant {
                        accepted_at: *at,
                        chosen: None,
                    },
                );
                changes.keys.insert(Key::Participant(job.clone(), party.clone()));
            }
            Event::Chosen { party, index, .. } => self.choose(job, party, *index, changes),
            Event::Closed { verdict, reason, at, .. } => {
                self.proposal.state = State::Closed {
                    verdict: *verdict,
                    reason: reason.clone(),
                    at: *at,
                };
                changes.keys.insert(Key::Proposal(job.clone()));
            }
            Event::TaskReleased { index, .. } => {
                if let Some(task) = self.tasks.remove(index) {
                    changes.released.extend(task.content.payload());
                    changes.keys.insert(Key::Task(job.clone(), *index));
                }
            }
            Event::ParticipantReleased { party, .. } => {
                self.participants.remove(party);
                changes.keys.insert(Key::Participant(job.clone(), party.clone()));
            }
            Event::Expired { .. } => {
                let (verdict, reason, at) = self.closed();
                self.proposal.state = State::Expired { verdict, reason, at };
                changes.keys.insert(Key::Proposal(job.clone()));
            }
            _ => {}
        }
    }

    fn choose(&mut self, job: &JobId, party: &PartyId, index: u32, changes: &mut Changes<Key>) {
        if let Some(participant) = self.participants.get_mut(party) {
            participant.chosen = Some(index);
            changes.keys.insert(Key::Participant(job.clone(), party.clone()));
        }
    }

    /// What a closed proposal says; one that is open was never emitted an `Expired` for.
    fn closed(&self) -> (Verdict, String, Timestamp) {
        match &self.proposal.state {
            State::Closed { verdict, reason, at } | State::Expired { verdict, reason, at } => (*verdict, reason.clone(), *at),
            State::Open => (Verdict::Reject, String::new(), self.proposal.closes_at),
        }
    }
}
