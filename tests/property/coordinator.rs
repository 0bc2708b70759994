//! The coordinator's world: parties that come, accept, break off and leave, and masters that propose.

use crate::harness::{Contents, Holds, Standing, World, replays, survives, twice_is_once};
use fedbroker::machine::Machine;
use fedbroker::machine::coordinator::{
    AssignmentState, Command, Coordinator, Effect, Key, RELEASE_MAX, Record, Reply, Rules, State, Verdict, invariant,
};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskId, TypeName};
use fedbroker::machine::outcome::End;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Act {
    /// Who, which types, which instance.
    Subscribe(u8, u8, Option<u8>),
    /// Who, how many streams ago.
    Break(u8, u8),
    Leave(u8),
    /// Job, tasks, window, min, max.
    Propose(u8, u8, u32, u32, u32),
    /// A proposal with more tasks than one `Expire` lets go.
    ProposeMany(u8),
    /// Who, job, number.
    Fetch(u8, u8, u8),
    /// What retention does, of the one job that is ever forgotten.
    Forget,
    /// Who, job, number, task, which instance, how it stands.
    Report(u8, u8, u8, u8, u8, u8),
    /// Job, and whether its initiator says so.
    Cancel(u8, bool),
    /// Job, who.
    Stop(u8, u8),
}

/// Of all others every promise is kept for ever.
const FORGOTTEN: u8 = 5;

#[derive(Default)]
pub struct CoordinatorWorld {
    session: u64,
}

fn party(n: u8) -> PartyId {
    PartyId::parse(format!("party{n}")).unwrap()
}

fn job(n: u8) -> JobId {
    JobId::parse(format!("job{n}")).unwrap()
}

fn kind(name: &str) -> TypeName {
    TypeName::parse(name).unwrap()
}

fn propose(n: u8, tasks: u8, numbers: (u32, u32, u32), contents: &mut Contents) -> Command {
    let task = |i: u8| (TaskId::parse(format!("task{i}")).unwrap(), contents.make(i.wrapping_add(n)));
    Command::Propose {
        job_id: job(n),
        job_type: kind("dummy"),
        tasks: (0..tasks).map(task).collect(),
        wait_s: numbers.0,
        min: numbers.1,
        max: numbers.2,
        fingerprint: [tasks; 32],
        owner: Some("owner".to_owned()),
    }
}

impl World for CoordinatorWorld {
    type Machine = Coordinator;
    type Act = Act;

    fn acts() -> BoxedStrategy<Act> {
        prop_oneof![
            5 => (0u8..5, 0u8..4, prop::option::of(0u8..2)).prop_map(|(who, types, instance)| Act::Subscribe(who, types, instance)),
            1 => (0u8..5, 0u8..6).prop_map(|(who, ago)| Act::Break(who, ago)),
            1 => (0u8..5).prop_map(Act::Leave),
            5 => (0u8..6, 0u8..4, 0u32..3, 0u32..3, 0u32..4).prop_map(|(n, t, w, min, max)| Act::Propose(n, t, w, min, max)),
            1 => (6u8..8).prop_map(Act::ProposeMany),
            6 => (0u8..5, 0u8..8, 1u8..8).prop_map(|(who, n, number)| Act::Fetch(who, n, number)),
            1 => Just(Act::Forget),
            5 => (0u8..5, 0u8..8, 1u8..8, 0u8..4, 0u8..2, 0u8..3)
                .prop_map(|(who, n, number, task, instance, how)| Act::Report(who, n, number, task, instance, how)),
            1 => (0u8..9, any::<bool>()).prop_map(|(n, own)| Act::Cancel(n, own)),
            2 => (0u8..8, 0u8..5).prop_map(|(n, who)| Act::Stop(n, who)),
        ]
        .boxed()
    }

    fn machine() -> Coordinator {
        Coordinator::new(Rules {
            settle_ms: 0,
            party_lease_ms: 20_000,
            keep_closed_ms: 60_000,
        })
    }

    fn check(machine: &Coordinator) -> Result<(), String> {
        invariant::check(machine)
    }

    fn started() -> Option<Command> {
        Some(Command::Started)
    }

    fn probe() -> Command {
        Command::Leave {
            party: PartyId::parse("nobody").unwrap(),
        }
    }

    fn act(&mut self, act: &Act, contents: &mut Contents) -> Command {
        match *act {
            Act::Subscribe(who, types, instance) => {
                self.session += 1;
                let types = ["dummy", "other"]
                    .into_iter()
                    .enumerate()
                    .filter(|(bit, _)| types != 3 - *bit as u8);
                Command::Subscribe {
                    party: party(who),
                    session: self.session,
                    job_types: types.map(|(_, name)| kind(name)).collect(),
                    instance: instance.map(|n| n.to_string()),
                }
            }
            Act::Break(who, ago) => Command::StreamBroken {
                party: party(who),
                session: self.session.saturating_sub(u64::from(ago)),
            },
            Act::Leave(who) => Command::Leave { party: party(who) },
            Act::Propose(n, tasks, wait, min, max) => propose(n, tasks, (wait, min, max), contents),
            Act::ProposeMany(n) => propose(n, u8::try_from(RELEASE_MAX + 3).unwrap(), (1, 0, 3), contents),
            Act::Forget => Command::Forget {
                jobs: vec![(job(FORGOTTEN), (0..5).map(party).collect()), (job(FORGOTTEN + 100), Vec::new())],
            },
            Act::Fetch(who, n, number) => Command::Fetch {
                party: party(who),
                proposal: ProposalId::parse(format!("job{n}-coo_{number}")).unwrap(),
            },
            Act::Report(who, n, number, task, instance, how) => Command::Report {
                party: party(who),
                job: job(n),
                proposal: ProposalId::parse(format!("job{n}-coo_{number}")).unwrap(),
                task: TaskId::parse(format!("task{task}")).unwrap(),
                instance: instance.to_string(),
                state: [
                    AssignmentState::Running,
                    AssignmentState::Ended(End::Succeeded),
                    AssignmentState::Ended(End::Failed),
                ][usize::from(how)],
                reason: "said".to_owned(),
            },
            Act::Cancel(n, own) => Command::Cancel {
                job: job(n),
                job_type: kind("dummy"),
                owner: if own { "owner" } else { "other" }.to_owned(),
                reason: "unwanted".to_owned(),
            },
            Act::Stop(n, who) => Command::Stop {
                job: job(n),
                party: party(who),
                reason: "unwanted".to_owned(),
            },
        }
    }

    fn outcomes(effect: &Effect, _: u8, _: &mut Contents) -> Vec<Command> {
        match effect.clone() {
            Effect::Offer { party, proposal, .. } => vec![Command::Fetch { party, proposal }],
            Effect::CloseStream { party, session } => vec![Command::StreamBroken { party, session }],
            Effect::CloseAt { job, .. } => vec![Command::Close { job }],
            Effect::ExpireAt { job, .. } => vec![Command::Expire { job }],
            Effect::Closed { .. } | Effect::Changed { .. } => Vec::new(),
            Effect::Order { party, job, order } => vec![Command::Report {
                party,
                proposal: order.proposal(&job).unwrap(),
                job,
                task: order.task,
                instance: order.instance,
                state: AssignmentState::Ended(End::Cancelled),
                reason: order.reason,
            }],
        }
    }

    /// A party that takes up an offer later wishes to take part later; a clock that rings late, for a window that was kept open longer meanwhile, does
    /// what the next one would.
    fn may_come_late(effect: &Effect) -> bool {
        !matches!(effect, Effect::Offer { .. } | Effect::CloseAt { .. })
    }

    fn ends_in_pieces(act: &Act) -> bool {
        matches!(act, Act::ProposeMany(_))
    }

    fn standing(effect: &Effect, read: &dyn Fn(&Key) -> Option<Record>) -> Standing {
        let proposal = |job: &JobId| match read(&Key::Proposal(job.clone())) {
            Some(Record::Proposal(proposal)) => Some(proposal),
            _ => None,
        };
        // It may have been forgotten since, and even proposed anew, or it never was.
        let absent = |of: &JobId| {
            if *of == job(FORGOTTEN) {
                Standing::Earlier
            } else {
                Standing::Never
            }
        };
        match effect {
            Effect::Offer {
                party,
                session,
                proposal: id,
                ..
            } => {
                let of = fedbroker::machine::coordinator::job_of(id).unwrap();
                let known = proposal(&of);
                let here = matches!(read(&Key::Party(party.clone())), Some(Record::Party(known)) if known.session == *session);
                match known {
                    Some(known) if known.is_open() && here => Standing::Now,
                    Some(_) => Standing::Earlier,
                    None => absent(&of),
                }
            }
            Effect::CloseStream { party, session } => match read(&Key::Party(party.clone())) {
                Some(Record::Party(known)) if known.session <= *session => Standing::Never,
                _ => Standing::Now,
            },
            Effect::CloseAt { job, at } => match proposal(job) {
                // After a start a window may be kept open for the parties that the crash cut off.
                Some(known) if known.is_open() && known.closes_at <= *at => Standing::Now,
                Some(known) if !known.is_open() => Standing::Earlier,
                _ => absent(job),
            },
            Effect::Closed { job } => match proposal(job) {
                Some(known) if !known.is_open() => Standing::Now,
                _ => absent(job),
            },
            Effect::Changed { job } => match proposal(job) {
                Some(_) => Standing::Now,
                None => absent(job),
            },
            Effect::Order { party, job, order } => {
                match (
                    read(&Key::Order(party.clone(), job.clone())),
                    read(&Key::Assignment(job.clone(), party.clone())),
                ) {
                    (Some(Record::Order(open)), _) if open == **order => Standing::Now,
                    (None, Some(Record::Assignment(known))) if matches!(known.state, AssignmentState::Ended(_)) => Standing::Earlier,
                    _ => absent(job),
                }
            }
            Effect::ExpireAt { job, .. } => match proposal(job).map(|known| known.state) {
                Some(State::Closed { .. }) => Standing::Now,
                Some(State::Expired { .. }) => Standing::Earlier,
                None | Some(State::Open) => absent(job),
            },
        }
    }

    fn promise(command: &Command, reply: &Reply) -> Option<(Key, Holds<Self>)> {
        match (command, reply) {
            (Command::Propose { job_id: of, .. } | Command::Report { job: of, .. }, _) if *of == job(FORGOTTEN) => None,
            (Command::Propose { job_id, .. }, Reply::Open { .. }) => Some((Key::Proposal(job_id.clone()), |_, _| true)),
            (Command::Propose { job_id, .. }, Reply::Verdict { .. }) => {
                Some((Key::Proposal(job_id.clone()), |said, record| match record {
                    Record::Proposal(proposal) => proposal.verdict().is_some_and(|(verdict, reason)| {
                        // A success may have been cancelled since.
                        let cancelled = verdict == Verdict::Cancelled && said.contains("verdict: Success");
                        cancelled || said.contains(&format!("verdict: {verdict:?}, reason: {reason:?}"))
                    }),
                    _ => false,
                }))
            }
            (
                Command::Report {
                    job,
                    party,
                    state: AssignmentState::Ended(_),
                    ..
                },
                Reply::Done,
            ) => Some((
                Key::Assignment(job.clone(), party.clone()),
                |_, record| matches!(record, Record::Assignment(known) if matches!(known.state, AssignmentState::Ended(_))),
            )),
            _ => None,
        }
    }

    fn help(&mut self) -> Vec<Command> {
        Vec::new()
    }

    fn stays(record: &Record) -> bool {
        matches!(record, Record::Counters(_) | Record::Party(_)) && Coordinator::is_live(record)
    }
}

#[test]
fn a_coordinator_survives() {
    survives::<CoordinatorWorld>(100);
}

#[test]
fn a_coordinator_takes_everything_once() {
    twice_is_once::<CoordinatorWorld>(30);
}

#[test]
fn a_coordinator_can_be_replayed() {
    replays::<CoordinatorWorld>(25);
}
