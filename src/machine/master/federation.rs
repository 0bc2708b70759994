//! What a job is to the other parties: how its proposal went, how each party's task ended, and what this party owes of its own tasks to others.
//!
//! Called by the machine's `decide`; the news come from a coordinator of ours. A FedVision 0.1 coordinator tells nothing, and then nothing is
//! guessed. Must never let the news change how the job itself ends: they are only shown, and may come long after it.

use super::records::{Job, JobState, Origin, ParticipationState, Task, TaskState};
use super::{Ctx, Effect, Event, Key, Master, Record, Rejection, Reply};
use crate::machine::ids::{JobId, PartyId, ProposalId, TaskId, TaskKey, Timestamp, TypeName};
use crate::machine::outcome::{End, REASON_MAX, clip, one_line};
use crate::machine::{Input, Out, Seq};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[cfg(test)]
pub(super) mod tests;

/// The most parties of one job that are kept: a coordinator of ours takes no proposal with more tasks.
pub const PEERS_MAX: usize = 256;

/// How the proposal of a job went. Live while more may come of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Its id, once it is known.
    pub proposal: Option<ProposalId>,
    /// Where it stands.
    pub status: Standing,
    /// Why it was refused or cancelled; empty otherwise.
    pub reason: String,
    /// Parties it was offered to when it was made.
    pub asked: u32,
    /// Parties that accepted.
    pub accepted: u32,
    /// Parties with a task, as many as have a [`Peer`]: [`PEERS_MAX`] at most.
    pub chosen: u32,
    /// The coordinator's number of the last news: it need not come again.
    pub revision: u64,
    /// Nothing more will come.
    pub over: bool,
    /// Number of the last event that changed it, or one of its parties.
    pub last_event: Seq,
}

/// Where a proposal stands, as far as its initiator was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Not told.
    #[default]
    Unknown,
    /// Its window is open.
    Open,
    /// Parties were chosen.
    Accepted,
    /// It failed.
    Refused,
    /// This party cancelled it.
    Cancelled,
}

impl Standing {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Open => "open",
            Standing::Accepted => "accepted",
            Standing::Refused => "refused",
            Standing::Cancelled => "cancelled",
        }
    }
}

/// A party that was chosen for a job of this one. Never live: it is read when news of it come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The job.
    pub job: JobId,
    /// The party; this one may be among them.
    pub party: PartyId,
    /// Its task.
    pub task: TaskId,
    /// How that stands.
    pub state: PeerState,
    /// What went wrong, at most [`REASON_MAX`] bytes.
    pub reason: String,
    /// When this party learnt it.
    pub changed_at: Timestamp,
}

/// How a task stands at the party that has it, as far as that party told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerState {
    /// Not told. News move it on. A crash asks for them again.
    Unknown,
    /// Its cluster manager has it. News move it on. A crash asks for them again.
    Running,
    /// It has ended. Final.
    Ended(End),
}

impl PeerState {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            PeerState::Unknown => "unknown",
            PeerState::Running => "running",
            PeerState::Ended(End::Succeeded) => "success",
            PeerState::Ended(End::Failed) => "failed",
            PeerState::Ended(End::Cancelled) => "cancelled",
        }
    }
}

/// What the coordinator is still to be told of a task that this party won. Live until the coordinator has it, then gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The task.
    pub key: TaskKey,
    /// Running or ended.
    pub state: PeerState,
    /// What went wrong, at most [`REASON_MAX`] bytes.
    pub reason: String,
    /// Sequence of the event that asked for it: the answer names it, so that a late one does not clear a report that was asked for again.
    pub number: u64,
}

/// The coordinator is still to be told that a job is no longer wanted. Live until it is, then gone; a purge of the job leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The job's type.
    pub job_type: TypeName,
    /// Why, at most [`REASON_MAX`] bytes.
    pub reason: String,
}

/// News of a job from a coordinator of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// How its proposal stands; `None` when the coordinator knows none, or tells nothing.
    pub announced: Option<Announced>,
    /// The chosen parties: name, task, state, reason.
    pub chosen: Vec<(PartyId, TaskId, PeerState, String)>,
}

/// What a won task may do to the report that is owed of it.
enum Order {
    Stop,
    Miss,
    Answer(PeerState, String),
}

impl Master {
    /// The job is proposed: from here on there may be news of it.
    pub(super) fn begin_following(&mut self, job: &JobId, out: &mut Out<Master>) {
        out.emit(
            self,
            Event::JobAnnounced {
                job: job.clone(),
                announced: Box::default(),
            },
        );
        self.ask_for_news(job, 0, out);
    }

    /// The coordinator tells no news: it is a FedVision 0.1 one.
    pub(super) fn stop_following(&mut self, job: &JobId, out: &mut Out<Master>) {
        if let Some(known) = self.announced.get(job).filter(|known| !known.over) {
            let announced = Box::new(Announced {
                over: true,
                ..known.clone()
            });
            out.emit(
                self,
                Event::JobAnnounced {
                    job: job.clone(),
                    announced,
                },
            );
        }
    }

    /// Ask where the job stands, if more may come of it; after 0 an answer comes at once.
    pub(super) fn ask_for_news(&self, job: &JobId, after: u64, out: &mut Out<Master>) {
        if self.announced.get(job).is_some_and(|known| !known.over) {
            out.effect(Effect::Follow { job: job.clone(), after });
        }
    }

    /// `Known` when there is more to wait for and nothing is new.
    pub(super) fn news(&mut self, job: JobId, news: News, (input, out): Ctx<'_>) -> Result<Reply, Rejection> {
        let Some(known) = self.announced.get(&job).filter(|known| !known.over).cloned() else {
            return Err(Rejection::Late(format!("the proposal of job {job}")));
        };
        let Some(announced) = news.announced else {
            // It is still on its way, as its withdrawal may be, or never will be; who has been told something cannot be told more.
            let proposing = |job: &Job| matches!(job.state, JobState::Proposing { .. });
            if self.withdrawals.contains_key(&job) || self.job(&job).is_some_and(proposing) {
                return Ok(Reply::Known);
            }
            self.stop_following(&job, out);
            return Ok(Reply::Done);
        };
        let mut chosen = known.chosen;
        for (party, task, state, reason) in news.chosen.into_iter().take(PEERS_MAX) {
            let before = self.peer(&job, &party, input);
            match before {
                None if chosen as usize >= PEERS_MAX => continue,
                None => chosen += 1,
                Some(_) => {}
            }
            let reason = clip(one_line(&reason), REASON_MAX);
            let same = |before: &Peer| before.task == task && before.state == state && before.reason == reason;
            if before.is_some_and(|before| same(before) || matches!(before.state, PeerState::Ended(_))) {
                continue;
            }
            let peer = Peer {
                job: job.clone(),
                party,
                task,
                state,
                reason,
                changed_at: input.now,
            };
            out.emit(self, Event::PeerChanged { peer: Box::new(peer) });
        }
        let announced = Announced {
            reason: clip(one_line(&announced.reason), REASON_MAX),
            chosen,
            last_event: known.last_event,
            ..announced
        };
        if announced == known {
            return Ok(Reply::Known);
        }
        let announced = Box::new(announced);
        out.emit(self, Event::JobAnnounced { job, announced });
        Ok(Reply::Done)
    }

    /// Remove what is known of an ended job's proposal; false, and nothing is removed, when there are parties that are not among these: news came
    /// since they were looked up.
    pub(super) fn purge_announced(&mut self, job: &JobId, parties: Vec<PartyId>, (input, out): Ctx<'_>) -> bool {
        let known: BTreeSet<PartyId> = parties.into_iter().filter(|party| self.peer(job, party, input).is_some()).collect();
        let announced = self.announced.get(job).or(match input.recalled(&Key::Announced(job.clone())) {
            Some(Record::Announced(announced)) => Some(announced),
            _ => None,
        });
        if let Some(announced) = announced {
            if announced.chosen as usize > known.len() {
                return false;
            }
            out.emit(self, Event::AnnouncedPurged { job: job.clone() });
        }
        for party in known {
            out.emit(self, Event::PeerPurged { job: job.clone(), party });
        }
        true
    }

    fn peer<'a>(&'a self, job: &JobId, party: &PartyId, input: &'a Input<Key, Record>) -> Option<&'a Peer> {
        if let Some(peer) = self.peers.get(&(job.clone(), party.clone())) {
            return Some(peer);
        }
        match input.recalled(&Key::Peer(job.clone(), party.clone())) {
            Some(Record::Peer(peer)) => Some(peer),
            _ => None,
        }
    }

    /// The coordinator is to know how a task of a proposal stands; later news of it replace what was not sent yet.
    pub(super) fn owe_report(&mut self, key: &TaskKey, state: PeerState, reason: &str, out: &mut Out<Master>) {
        let Some(Origin::Won(proposal)) = self.tasks.get(key).map(|task| &task.origin) else {
            return;
        };
        let proposal = proposal.clone();
        self.owe(proposal, key.clone(), state, reason, out);
    }

    fn owe(&mut self, proposal: ProposalId, key: TaskKey, state: PeerState, reason: &str, out: &mut Out<Master>) {
        let reason = clip(one_line(reason), REASON_MAX);
        let report = Box::new(Report {
            key,
            state,
            reason,
            number: 0,
        });
        out.emit(
            self,
            Event::ReportOwed {
                proposal: proposal.clone(),
                report,
            },
        );
        out.effects.extend(self.effect_of_report(&proposal));
    }

    fn effect_of_report(&self, proposal: &ProposalId) -> Option<Effect> {
        self.reports.get(proposal).map(|report| Effect::Report {
            proposal: proposal.clone(),
            number: report.number,
        })
    }

    /// The coordinator has the report, or never will.
    pub(super) fn reported(&mut self, proposal: ProposalId, number: u64, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        match self.reports.get(&proposal) {
            Some(report) if report.number == number => {
                out.emit(self, Event::ReportSent { proposal });
                Ok(Reply::Done)
            }
            _ => Err(Rejection::Late(format!("the report on proposal {proposal}"))),
        }
    }

    /// The other parties are to stop what they have of a job that has just ended, if it was proposed and they may still have something.
    pub(super) fn withdraw(&mut self, id: &JobId, reason: String, out: &mut Out<Master>) {
        let may_run = self.announced.get(id).is_some_and(|known| !known.over);
        let Some(job) = self.jobs.get(id).filter(|_| may_run) else { return };
        let withdrawal = Box::new(Withdrawal {
            job_type: job.spec.job_type.clone(),
            reason,
        });
        out.emit(
            self,
            Event::WithdrawalOwed {
                job: id.clone(),
                withdrawal,
            },
        );
        out.effect(Effect::Withdraw { job: id.clone() });
    }

    /// The coordinator has been told, or never will be.
    pub(super) fn withdrawn(&mut self, job: JobId, (_, out): Ctx<'_>) -> Result<Reply, Rejection> {
        if !self.withdrawals.contains_key(&job) {
            return Err(Rejection::Late(format!("the withdrawal of job {job}")));
        }
        out.emit(self, Event::WithdrawalSent { job: job.clone() });
        // What has become of it; a coordinator that tells nothing is asked no more.
        self.ask_for_news(&job, 0, out);
        Ok(Reply::Done)
    }

    /// The initiator does not want a task any more. Whatever became of it, the coordinator is told an end: that is what it waits for.
    pub(super) fn stop_ordered(
        &mut self,
        proposal: ProposalId,
        key: TaskKey,
        reason: &str,
        (input, out): Ctx<'_>,
    ) -> Result<Reply, Rejection> {
        let reason = clip(one_line(reason), REASON_MAX);
        let order = match self.won_task(&proposal, &key, input).map(|task| &task.state) {
            Some(TaskState::Queued | TaskState::Submitted { .. }) => Order::Stop,
            Some(TaskState::Held | TaskState::Cancelling { .. }) => return Ok(Reply::Known),
            Some(TaskState::Ended(outcome)) => Order::Answer(PeerState::Ended(outcome.end), outcome.reason.clone()),
            None if self.is_fetching(&proposal) => Order::Miss,
            None => Order::Answer(PeerState::Ended(End::Cancelled), "this party does not have the task".to_owned()),
        };
        match order {
            Order::Stop => {
                let at = input.now;
                out.emit(
                    self,
                    Event::TaskCancelling {
                        key: key.clone(),
                        reason: reason.clone(),
                        at,
                    },
                );
                out.effect(Effect::Cancel { key, reason });
            }
            Order::Miss => {
                let missed = clip(format!("the job was cancelled: {reason}"), REASON_MAX);
                out.emit(
                    self,
                    Event::ProposalMissed {
                        proposal: proposal.clone(),
                        reason: missed,
                        at: input.now,
                    },
                );
                let job = key.job.clone();
                self.owe(proposal, key, PeerState::Ended(End::Cancelled), &reason, out);
                self.settle_job(&job, (input, out));
            }
            Order::Answer(..) if self.reports.contains_key(&proposal) => return Ok(Reply::Known),
            Order::Answer(state, reason) => self.owe(proposal, key, state, &reason, out),
        }
        Ok(Reply::Done)
    }

    /// The task, if it was won in this proposal: another one under its name is nobody else's to stop.
    fn won_task<'a>(&'a self, proposal: &ProposalId, key: &TaskKey, input: &'a Input<Key, Record>) -> Option<&'a Task> {
        let task = match self.tasks.get(key) {
            Some(task) => task,
            None => match input.recalled(&Key::Task(key.clone())) {
                Some(Record::Task(task)) => task,
                _ => return None,
            },
        };
        matches!(&task.origin, Origin::Won(of) if of == proposal).then_some(task)
    }

    fn is_fetching(&self, proposal: &ProposalId) -> bool {
        let participation = self.participations.get(proposal);
        participation.is_some_and(|participation| participation.state == ParticipationState::Offered)
    }

    /// What is owed and waited for, at start.
    pub(super) fn resume_federation(&self) -> impl Iterator<Item = Effect> {
        let follows = self
            .announced
            .iter()
            .filter(|(_, known)| !known.over)
            .map(|(job, known)| Effect::Follow {
                job: job.clone(),
                after: known.revision,
            });
        let reports = self.reports.keys().filter_map(|proposal| self.effect_of_report(proposal));
        let withdrawals = self.withdrawals.keys().map(|job| Effect::Withdraw { job: job.clone() });
        follows.chain(reports).chain(withdrawals)
    }
}
