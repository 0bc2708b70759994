//! Proposals of the federation, this party's own among them, from the offer to the task or the miss.

use super::records::{JobState, ParticipationState};
use super::{Ctx, Effect, Event, Master, Record, Rejection, Reply, WonTask};
use crate::machine::ids::{JobId, ProposalId, TypeName};
use crate::machine::outcome::{REASON_MAX, clip, one_line};

impl Master {
    pub(super) fn offered(&mut self, proposal: ProposalId, job_type: TypeName, (input, out): Ctx<'_>) -> Reply {
        if input.recalled.is_some() || self.participations.contains_key(&proposal) {
            return Reply::Known;
        }
        match self.rules.accept.decide(&self.rules.party, &proposal, &job_type, self.under_way) {
            Ok(()) => {
                out.emit(
                    self,
                    Event::ProposalOffered {
                        proposal: proposal.clone(),
                        job_type,
                        at: input.now,
                    },
                );
                out.effect(Effect::Fetch { proposal });
            }
            Err(reason) => {
                let reason = clip(one_line(&reason), REASON_MAX);
                out.emit(
                    self,
                    Event::ProposalDeclined {
                        proposal,
                        job_type,
                        reason,
                        at: input.now,
                    },
                );
            }
        }
        Reply::Done
    }

    pub(super) fn fetched(
        &mut self,
        proposal: ProposalId,
        result: Result<WonTask, String>,
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        let wanted = self
            .participations
            .get(&proposal)
            .is_some_and(|p| p.state == ParticipationState::Offered);
        if !wanted {
            return Err(Rejection::Late(format!("proposal {proposal}")));
        }
        let at = input.now;
        match result.and_then(|won| self.check_won(won, input.recalled.as_ref())) {
            Ok(WonTask { key, task_type, content }) => {
                out.emit(
                    self,
                    Event::ProposalWon {
                        proposal,
                        key: key.clone(),
                        task_type,
                        content,
                        at,
                    },
                );
                out.effect(Effect::Submit { key, tries: 0 });
            }
            Err(reason) => {
                let job = job_of(&proposal);
                out.emit(
                    self,
                    Event::ProposalMissed {
                        proposal,
                        reason: clip(one_line(&reason), REASON_MAX),
                        at,
                    },
                );
                if let Some(job) = job {
                    self.settle_job(&job, (input, out));
                }
            }
        }
        Ok(Reply::Done)
    }

    /// A task that another party sent must not take the place of one that is here.
    fn check_won(&self, won: WonTask, recalled: Option<&Record>) -> Result<WonTask, String> {
        if self.tasks.contains_key(&won.key) || recalled.is_some() {
            return Err(format!("a task {} is here already", won.key));
        }
        if self.is_unproposed(&won.key.job) {
            return Err(format!("job {} of this party has not been proposed", won.key.job));
        }
        Ok(won)
    }

    /// True for a job of this party whose local tasks are still to come, now or under a number not given yet: a task under its name that
    /// ended before would lose its record to one of those.
    fn is_unproposed(&self, job: &JobId) -> bool {
        match self.jobs.get(job) {
            Some(known) => matches!(known.state, JobState::Leasing | JobState::Preparing),
            None => {
                let of_this_party = job.as_str().strip_prefix(self.rules.party.as_str());
                let number = of_this_party.and_then(|rest| rest.strip_prefix('-')?.rsplit_once('-')?.1.parse::<u64>().ok());
                number.is_some_and(|number| number > self.last_number)
            }
        }
    }

    /// True while a fetch for one of the job's own proposals is out.
    pub(super) fn fetches_for(&self, job: &JobId) -> bool {
        let Ok(first) = ProposalId::parse(format!("{job}-coo_")) else {
            return false;
        };
        let mut from_here = self.participations.range(first.clone()..).map(|(_, p)| p);
        from_here
            .by_ref()
            .take_while(|p| p.proposal.as_str().starts_with(first.as_str()))
            .any(|p| p.state == ParticipationState::Offered)
    }
}

/// The job in `<job_id>-coo_<n>`.
fn job_of(proposal: &ProposalId) -> Option<JobId> {
    let (job, _) = proposal.as_str().rsplit_once("-coo_")?;
    JobId::parse(job).ok()
}
