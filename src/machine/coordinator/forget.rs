//! Letting go of verdicts that nobody will ask for any more, with all that is kept of their parties.
//!
//! Called by the machine's `decide`. Must never let go of a proposal that has not expired, nor of so much that one commit cannot carry it.

use super::{Coordinator, Event, Key, RELEASE_MAX, Record, Reply, State};
use crate::machine::ids::{JobId, PartyId};
use crate::machine::{Input, Out};

/// A job whose proposal is to go, with every party that was chosen for it.
pub type Leftover = (JobId, Vec<PartyId>);

/// How many of these, from the first, one `Forget` lets go of: as many as have [`RELEASE_MAX`] records, and one in any case.
fn share(jobs: &[Leftover]) -> usize {
    let mut room = RELEASE_MAX;
    let fits = |(_, parties): &&Leftover| {
        let was_room = room > 0;
        room = room.saturating_sub(2 + parties.len());
        was_room
    };
    jobs.iter().take_while(fits).count()
}

/// What one `Forget` after the other lets go of.
pub fn shares(mut jobs: Vec<Leftover>) -> Vec<Vec<Leftover>> {
    let mut shares = Vec::new();
    while !jobs.is_empty() {
        let rest = jobs.split_off(share(&jobs));
        shares.push(std::mem::replace(&mut jobs, rest));
    }
    shares
}

/// What a `Forget` may be about: all that it lets go of. What it does not name would stay in the history if the job is proposed anew in the same commit.
pub(super) fn recall(jobs: &[Leftover]) -> Vec<Key> {
    let of = |(job, parties): &Leftover| {
        let assignments = parties.iter().map(|party| Key::Assignment(job.clone(), party.clone()));
        [Key::Proposal(job.clone()), Key::Course(job.clone())]
            .into_iter()
            .chain(assignments)
            .collect::<Vec<_>>()
    };
    jobs.iter().take(share(jobs)).flat_map(of).collect()
}

impl Coordinator {
    pub(super) fn forget_expired(&mut self, mut jobs: Vec<Leftover>, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        jobs.truncate(share(&jobs));
        for (job, parties) in jobs {
            // What was forgotten before, or was proposed anew since it was found in the history, is left as it is.
            let known = self.known(&job, input);
            if !known.is_some_and(|known| matches!(known.state, State::Expired { .. })) {
                continue;
            }
            for party in parties {
                // An order that was not met waits for a report that would be refused from here on.
                if self.orders.contains_key(&(party.clone(), job.clone())) {
                    let (party, job) = (party.clone(), job.clone());
                    out.emit(self, Event::OrderMet { party, job });
                }
                if self.assignment(&job, &party, input).is_some() {
                    let job = job.clone();
                    out.emit(self, Event::AssignmentForgotten { job, party });
                }
            }
            out.emit(self, Event::Forgotten { job });
        }
        Reply::Done
    }
}
