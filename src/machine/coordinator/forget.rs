//! Letting go of verdicts that nobody will ask for any more.
//!
//! Called by the machine's `decide`. Must never let go of a proposal that has not expired.

use super::{Coordinator, Event, Key, RELEASE_MAX, Record, Reply, State};
use crate::machine::ids::JobId;
use crate::machine::{Input, Out};

impl Coordinator {
    pub(super) fn forget_expired(&mut self, jobs: Vec<JobId>, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        for job in jobs.into_iter().take(RELEASE_MAX) {
            // What was forgotten before, or was proposed anew since it was found in the history, is left as it is.
            if self
                .known(&job, input)
                .is_some_and(|known| matches!(known.state, State::Expired { .. }))
            {
                out.emit(self, Event::Forgotten { job });
            }
        }
        Reply::Done
    }
}
