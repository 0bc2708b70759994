//! The master's world: users who submit, a coordinator that announces, a cluster manager that runs.

use crate::harness::{Contents, Holds, Standing, World, replays, survives, twice_is_once};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskId, TaskKey, TypeName};
use fedbroker::machine::master::federation::{self, Announced, News, PeerState};
use fedbroker::machine::master::records::{Failure, Job, JobState, Lease, ParticipationState, TaskState};
use fedbroker::machine::master::rule::ProposalAcceptRule;
use fedbroker::machine::master::spec::{Provenance, Spec};
use fedbroker::machine::master::{
    Command, Effect, Key, LocalTask, Master, Packed, Record, Reply, Rules, SubmitAnswer, Verdict, WonTask, invariant,
};
use fedbroker::machine::outcome::{End, Outcome};
use fedbroker::machine::plan::Plan;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Act {
    /// Endpoints, other parties, an algorithm config, size of the config.
    Submit(bool, bool, bool, u8),
    /// A proposal of this party or another one.
    Offer(u8, bool),
    /// Proposal, whose, task: it is to be stopped.
    Order(u8, bool, u8),
}

#[derive(Default)]
pub struct MasterWorld;

fn job_of(proposal: &ProposalId) -> &str {
    proposal.as_str().rsplit_once("-coo_").map_or("other", |(job, _)| job)
}

fn at_step(job: Option<Record>, step: u32, fits: fn(&Job) -> bool) -> Standing {
    match job {
        Some(Record::Job(job)) if job.step == step && fits(&job) => Standing::Now,
        Some(Record::Job(job)) if job.step > step => Standing::Earlier,
        _ => Standing::Never,
    }
}

impl World for MasterWorld {
    type Machine = Master;
    type Act = Act;

    fn acts() -> BoxedStrategy<Act> {
        prop_oneof![
            (any::<bool>(), any::<bool>(), any::<bool>(), any::<u8>()).prop_map(|(e, w, a, n)| Act::Submit(e, w, a, n)),
            (0u8..12, any::<bool>()).prop_map(|(n, own)| Act::Offer(n, own)),
            (0u8..12, any::<bool>(), 0u8..2).prop_map(|(n, own, task)| Act::Order(n, own, task)),
        ]
        .boxed()
    }

    fn machine() -> Master {
        Master::new(Rules {
            party: PartyId::parse("p1").unwrap(),
            accept: ProposalAcceptRule {
                at_once: Some(6),
                ..ProposalAcceptRule::default()
            },
            propose_again: true,
            submit_tries: 3,
        })
    }

    fn check(machine: &Master) -> Result<(), String> {
        invariant::check(machine)
    }

    fn started() -> Option<Command> {
        None
    }

    fn probe() -> Command {
        Command::LeaseReleased {
            job: JobId::parse("none").unwrap(),
        }
    }

    fn act(&mut self, act: &Act, contents: &mut Contents) -> Command {
        match *act {
            Act::Submit(endpoints, workers, algorithm, n) => {
                let plan = Plan {
                    endpoints: u16::from(endpoints),
                    workers: u32::from(workers),
                    wait_s: 5,
                };
                let algorithm_config = algorithm.then(|| contents.make(n.wrapping_add(1)));
                Command::Submit {
                    spec: Spec::plain(TypeName::parse("program").unwrap(), contents.make(n), algorithm_config, plan),
                    provenance: Provenance::unknown(),
                    fingerprint: [0; 32],
                }
            }
            Act::Order(n, own, task) => {
                let job = format!("{}-20261122212634-{n}", if own { "p1" } else { "p2" });
                Command::StopOrdered {
                    proposal: ProposalId::parse(format!("{job}-coo_{n}")).unwrap(),
                    key: TaskKey::parse(job, format!("trainer_{task}")).unwrap(),
                    reason: "unwanted".to_owned(),
                }
            }
            Act::Offer(n, own) => {
                let party = if own { "p1" } else { "p2" };
                Command::Offered {
                    proposal: ProposalId::parse(format!("{party}-20261122212634-{n}-coo_{n}")).unwrap(),
                    job_type: TypeName::parse("program").unwrap(),
                }
            }
        }
    }

    fn outcomes(effect: &Effect, how: u8, contents: &mut Contents) -> Vec<Command> {
        let command = match effect.clone() {
            Effect::WakeAt { job, step, .. } => Command::Wake { job, step },
            Effect::DeadlineAt { job, .. } => Command::DeadlinePassed { job },
            Effect::Forget { job, .. } => Command::Forgotten { job },
            Effect::GiveUp { .. } => return Vec::new(),
            Effect::AcquireLease { job, step, .. } => {
                let lease = Lease::parse("w1", &["127.0.0.1:12000".to_owned()]);
                let result = if how % 3 == 1 { Err("no slot".to_owned()) } else { lease };
                Command::Leased { job, step, result }
            }
            Effect::ReleaseLease { job } => Command::LeaseReleased { job },
            Effect::Prepare { job, step } => {
                let local = |name: &str, content| LocalTask {
                    task: TaskId::parse(name).unwrap(),
                    task_type: TypeName::parse("program_aggregator").unwrap(),
                    content,
                };
                let packed = Packed {
                    proposal: (how % 4 != 2).then(|| contents.make(how.wrapping_add(1))),
                    local: vec![
                        local("aggregator", contents.make(how)),
                        local("trainer_1", contents.make(how.wrapping_add(2))),
                    ],
                };
                let result = if how % 4 == 1 {
                    Err(Failure::because("compile error"))
                } else {
                    Ok(packed)
                };
                Command::Prepared { job, step, result }
            }
            Effect::Propose {
                job, step, legacy_call, ..
            } => return propose(job, step, legacy_call, how),
            Effect::Submit { key, tries } => {
                let answer = [SubmitAnswer::Taken, SubmitAnswer::Refused, SubmitAnswer::TakenUnwatched][usize::from(how % 3)];
                Command::Submitted { key, tries, answer }
            }
            Effect::Watch { key } | Effect::Cancel { key, .. } => {
                let end = [End::Succeeded, End::Failed, End::Cancelled][usize::from(how % 3)];
                Command::TaskEnded {
                    key,
                    outcome: Outcome::without_process(end, "why"),
                }
            }
            Effect::Fetch { proposal } => {
                let key = TaskKey::parse(job_of(&proposal), format!("trainer_{}", how % 2)).unwrap();
                let won = WonTask {
                    key,
                    task_type: TypeName::parse("program_trainer").unwrap(),
                    content: contents.make(how.wrapping_add(1)),
                };
                let result = if how % 3 == 1 { Err("drawn out".to_owned()) } else { Ok(won) };
                Command::Fetched { proposal, result }
            }
            Effect::Follow { job, .. } => Command::News { job, news: news(how) },
            Effect::Report { proposal, number } => Command::Reported { proposal, number },
            Effect::Withdraw { job } => Command::Withdrawn { job },
        };
        vec![command]
    }

    /// News of earlier are no news: the last ones count.
    fn may_come_late(effect: &Effect) -> bool {
        !matches!(effect, Effect::Follow { .. })
    }

    fn standing(effect: &Effect, read: &dyn Fn(&Key) -> Option<Record>) -> Standing {
        match effect {
            Effect::AcquireLease { job, step, .. } => at_step(read(&Key::Job(job.clone())), *step, |job| job.state == JobState::Leasing),
            Effect::Prepare { job, step } => at_step(read(&Key::Job(job.clone())), *step, |job| job.state == JobState::Preparing),
            Effect::Propose { job, step, .. } => at_step(read(&Key::Job(job.clone())), *step, |job| {
                matches!(job.state, JobState::Proposing { .. })
            }),
            Effect::ReleaseLease { job } => match read(&Key::Job(job.clone())) {
                Some(Record::Job(job)) if job.returning => Standing::Now,
                // Held and let go again, or purged.
                _ => Standing::Earlier,
            },
            Effect::WakeAt { job, step, .. } => at_step(read(&Key::Job(job.clone())), *step, |job| {
                matches!(job.state, JobState::Waiting { .. })
            }),
            Effect::DeadlineAt { job, .. } => match read(&Key::Job(job.clone())) {
                Some(Record::Job(job)) if !job.state.is_final() => Standing::Now,
                _ => Standing::Earlier,
            },
            Effect::GiveUp { .. } => Standing::Earlier,
            Effect::Forget { job, .. } => match read(&Key::Purge(job.clone())) {
                Some(_) => Standing::Now,
                None => Standing::Earlier,
            },
            Effect::Submit { key, tries } => match read(&Key::Task(key.clone())) {
                Some(Record::Task(task)) if task.state == TaskState::Queued && task.tries == *tries => Standing::Now,
                Some(Record::Task(task)) if task.tries > *tries || !matches!(task.state, TaskState::Held | TaskState::Queued) => {
                    Standing::Earlier
                }
                _ => Standing::Never,
            },
            Effect::Watch { key } => match read(&Key::Task(key.clone())) {
                Some(Record::Task(task)) if matches!(task.state, TaskState::Submitted { .. }) => Standing::Now,
                Some(Record::Task(task)) if matches!(task.state, TaskState::Cancelling { .. } | TaskState::Ended(_)) => Standing::Earlier,
                _ => Standing::Never,
            },
            Effect::Cancel { key, .. } => match read(&Key::Task(key.clone())) {
                Some(Record::Task(task)) if matches!(task.state, TaskState::Cancelling { .. }) => Standing::Now,
                Some(Record::Task(task)) if matches!(task.state, TaskState::Ended(_)) => Standing::Earlier,
                _ => Standing::Never,
            },
            Effect::Fetch { proposal } => match read(&Key::Participation(proposal.clone())) {
                Some(Record::Participation(p)) if p.state == ParticipationState::Offered => Standing::Now,
                Some(Record::Participation(p)) if !matches!(p.state, ParticipationState::Declined(_)) => Standing::Earlier,
                _ => Standing::Never,
            },
            Effect::Follow { job, .. } => match read(&Key::Announced(job.clone())) {
                Some(Record::Announced(announced)) if !announced.over => Standing::Now,
                Some(_) => Standing::Earlier,
                None => Standing::Never,
            },
            Effect::Withdraw { job } => match read(&Key::Withdrawal(job.clone())) {
                Some(_) => Standing::Now,
                None => Standing::Earlier,
            },
            // A report that has left is gone.
            Effect::Report { proposal, number } => match read(&Key::Report(proposal.clone())) {
                Some(Record::Report(report)) if report.number == *number => Standing::Now,
                _ => Standing::Earlier,
            },
        }
    }

    fn promise(command: &Command, reply: &Reply) -> Option<(Key, Holds<Self>)> {
        match (command, reply) {
            (Command::Submit { .. }, Reply::Accepted(id)) => Some((Key::Job(id.clone()), |said, record| match record {
                Record::Job(job) => said.contains(&format!("{:?}", job.spec.config)) && said.contains(&format!("{:?}", job.spec.plan)),
                _ => false,
            })),
            (Command::Offered { proposal, .. }, _) => Some((Key::Participation(proposal.clone()), |_, _| true)),
            (Command::TaskEnded { key, .. }, Reply::Done) => Some((Key::Task(key.clone()), |said, record| match record {
                Record::Task(task) => matches!(&task.state, TaskState::Ended(outcome) if said.contains(&format!("{outcome:?}"))),
                _ => false,
            })),
            _ => None,
        }
    }

    fn help(&mut self) -> Vec<Command> {
        Vec::new()
    }

    fn stays(record: &Record) -> bool {
        matches!(record, Record::Counter(_))
    }

    fn last_event(record: &Record) -> Option<u64> {
        match record {
            Record::Counter(_)
            | Record::Submission(_)
            | Record::Purge(_)
            | Record::Announced(_)
            | Record::Peer(_)
            | Record::Report(_)
            | Record::Withdrawal(_) => None,
            Record::Job(job) => Some(job.last_event),
            Record::Task(task) => Some(task.last_event),
            Record::Participation(participation) => Some(participation.last_event),
        }
    }
}

/// What a coordinator says of a job; 0 is the last it ever says.
fn news(how: u8) -> News {
    let (status, over, state) = match how % 4 {
        0 => (federation::Standing::Accepted, true, PeerState::Ended(End::Succeeded)),
        1 => (federation::Standing::Refused, true, PeerState::Ended(End::Failed)),
        2 => (federation::Standing::Accepted, false, PeerState::Running),
        _ => {
            return News {
                announced: None,
                chosen: Vec::new(),
            };
        }
    };
    let chosen = ["p2", "p3"].map(|name| (PartyId::parse(name).unwrap(), TaskId::parse("t").unwrap(), state, "why".to_owned()));
    News {
        announced: Some(Announced {
            status,
            chosen: 2,
            revision: u64::from(how),
            over,
            ..Announced::default()
        }),
        chosen: chosen.to_vec(),
    }
}

/// A call to a coordinator of ours, or to an old one: that is announced first, and what a crash left of it is unknown.
fn propose(job: JobId, step: u32, legacy_call: bool, how: u8) -> Vec<Command> {
    let verdict = |verdict| Command::Verdict {
        job: job.clone(),
        step,
        verdict,
    };
    let announced = Command::LegacyProposal { job: job.clone(), step };
    match how % 5 {
        0 => vec![verdict(Verdict::Accepted)],
        1 => vec![verdict(Verdict::Refused("nobody".into()))],
        _ if legacy_call => vec![verdict(Verdict::Unknown)],
        2 => vec![announced, verdict(Verdict::Accepted)],
        3 => vec![announced, verdict(Verdict::Unknown)],
        _ => vec![verdict(Verdict::Accepted)],
    }
}

#[test]
fn a_master_survives() {
    survives::<MasterWorld>(100);
}

#[test]
fn a_master_takes_everything_once() {
    twice_is_once::<MasterWorld>(30);
}

#[test]
fn a_master_can_be_replayed() {
    replays::<MasterWorld>(25);
}
