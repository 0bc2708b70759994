//! Proposals of the federation, this party's own among them, from the offer to the task or the miss.

use super::records::{JobState, Origin, ParticipationState};
use super::{Ctx, Effect, Event, Key, Master, Record, Rejection, Reply, UNDER_WAY_MAX, WonTask};
use crate::machine::Input;
use crate::machine::ids::{JobId, ProposalId, TypeName};
use crate::machine::outcome::{REASON_MAX, clip, one_line};

impl Master {
    pub(super) fn offered(&mut self, proposal: ProposalId, job_type: TypeName, (input, out): Ctx<'_>) -> Reply {
        if !input.recalled.is_empty() || self.participations.contains_key(&proposal) {
            return Reply::Known;
        }
        let room = if self.under_way < UNDER_WAY_MAX {
            Ok(())
        } else {
            Err(format!("{UNDER_WAY_MAX} tasks of proposals are under way"))
        };
        match room.and_then(|()| self.rules.accept.decide(&self.rules.party, &proposal, &job_type, self.under_way)) {
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
        for earlier in self.earlier_of_the_job(&proposal) {
            let reason = format!("the job was proposed again, as {proposal}");
            out.emit(
                self,
                Event::ProposalMissed {
                    proposal: earlier,
                    reason: clip(one_line(&reason), REASON_MAX),
                    at,
                },
            );
        }
        match result.and_then(|won| self.check_won(&proposal, won, input)) {
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

    /// Earlier proposals of the same job that are still to be answered. A job is proposed again only when nobody waits for the first proposal any
    /// more, and then a FedVision 0.1 coordinator never closes it.
    fn earlier_of_the_job(&self, proposal: &ProposalId) -> Vec<ProposalId> {
        let Some((job, number)) = parts_of(proposal) else {
            return Vec::new();
        };
        let earlier = self.offered_of(&job).filter(|id| parts_of(id).is_some_and(|(_, n)| n < number));
        earlier.take(EARLIER_MAX).cloned().collect()
    }

    /// A task that another party sent must be of the job it was proposed for, and must not take the place of one that is here.
    fn check_won(&self, proposal: &ProposalId, won: WonTask, input: &Input<Key, Record>) -> Result<WonTask, String> {
        if job_of(proposal).as_ref() != Some(&won.key.job) {
            return Err(format!("the task is of job {}, which is not the one proposed", won.key.job));
        }
        if self.tasks.contains_key(&won.key) || input.recalled(&Key::Task(won.key.clone())).is_some() {
            return Err(format!("a task {} is here already", won.key));
        }
        if let Some(ended) = self.ended_own(&won.key.job, input) {
            return Err(ended);
        }
        let own = self.jobs.contains_key(&won.key.job);
        if own && self.tasks_of(&won.key.job).any(|task| matches!(task.origin, Origin::Won(_))) {
            return Err(format!("this party has a task of job {} already", won.key.job));
        }
        if self.is_unproposed(&won.key.job) {
            return Err(format!("job {} of this party has not been proposed", won.key.job));
        }
        Ok(won)
    }

    /// Why no task of this job of this party may start any more, if it has ended: as cancelled, as failed, or long ago.
    fn ended_own(&self, job: &JobId, input: &Input<Key, Record>) -> Option<String> {
        let known = self.job(job).or(match input.recalled(&Key::Job(job.clone())) {
            Some(Record::Job(job)) => Some(job),
            _ => None,
        });
        match known {
            Some(known) if known.state.is_final() => Some(format!("job {job} of this party has ended: {}", known.state.name())),
            Some(_) => None,
            None if self.own_number(job).is_some_and(|number| number <= self.last_number) => {
                Some(format!("job {job} of this party has been purged"))
            }
            None => None,
        }
    }

    /// True for an id that this party gave, or will give.
    pub(super) fn is_own(&self, job: &JobId) -> bool {
        self.own_number(job).is_some()
    }

    /// The `n` of `<this party>-<YYYYmmddHHMMSS>-<n>`; a party whose name begins with this one's is another.
    fn own_number(&self, job: &JobId) -> Option<u64> {
        let rest = job.as_str().strip_prefix(self.rules.party.as_str())?.strip_prefix('-')?;
        let (stamp, number) = rest.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (stamp.len() == 14 && digits(stamp) && digits(number))
            .then(|| number.parse().ok())
            .flatten()
    }

    /// True for a job of this party whose local tasks are still to come, now or under a number not given yet: a task under its name that
    /// ended before would lose its record to one of those.
    fn is_unproposed(&self, job: &JobId) -> bool {
        match self.jobs.get(job) {
            Some(known) => matches!(
                known.state,
                JobState::Waiting { .. } | JobState::Held | JobState::Leasing | JobState::Preparing
            ),
            None => self.own_number(job).is_some_and(|number| number > self.last_number),
        }
    }

    /// True while a fetch for one of the job's own proposals is out.
    pub(super) fn fetches_for(&self, job: &JobId) -> bool {
        self.offered_of(job).next().is_some()
    }

    /// The proposals of a job that are being fetched.
    fn offered_of(&self, job: &JobId) -> impl Iterator<Item = &ProposalId> {
        // A job id that leaves no room for a number has no proposals.
        let first = ProposalId::parse(format!("{job}{INFIX}")).ok();
        let from_here = first.clone().map(|first| self.participations.range(first..));
        let of_job = from_here.into_iter().flatten().map(|(_, participation)| participation);
        of_job
            .take_while(move |p| first.as_ref().is_some_and(|first| p.proposal.as_str().starts_with(first.as_str())))
            .filter(|p| p.state == ParticipationState::Offered)
            .map(|p| &p.proposal)
    }
}

/// What is between the job and the number in a proposal id.
const INFIX: &str = "-coo_";
/// Proposals given up in one command; there is one for each time a job is proposed again.
const EARLIER_MAX: usize = 16;

/// The job in `<job_id>-coo_<n>`.
fn job_of(proposal: &ProposalId) -> Option<JobId> {
    let (job, _) = proposal.as_str().rsplit_once(INFIX)?;
    JobId::parse(job).ok()
}

/// The job and the number in `<job_id>-coo_<n>`.
fn parts_of(proposal: &ProposalId) -> Option<(JobId, u64)> {
    let (_, number) = proposal.as_str().rsplit_once(INFIX)?;
    Some((job_of(proposal)?, number.parse().ok()?))
}
