//! The cluster manager's world: workers that come, go and report, and masters that submit.

use crate::harness::{Contents, Holds, Standing, World, replays, survives, twice_is_once};
use fedbroker::machine::cluster::records::{LeaseId, Ports, Profile, TaskState, WorkerState};
use fedbroker::machine::cluster::{Attach, Cluster, Command, Effect, Key, Record, Reply, Rules, Submission, invariant};
use fedbroker::machine::ids::{JobId, TaskKey, TypeName, WorkerId};
use fedbroker::machine::outcome::{End, Outcome};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub enum Act {
    /// Who, instance, slots, a FedVision 0.1 worker, which of the tasks it was ever sent it knows (bits).
    Attach(u8, u8, u16, bool, u8),
    /// Who, session.
    Break(u8, u64),
    /// Job, task, content, assignee.
    Submit(u8, u8, u8, Option<u8>),
    /// Who, job, task.
    LegacyReport(u8, u8, u8),
    Cancel(u8, u8),
    Acquire(Option<u8>, u16),
    Release(u8),
    /// The whole job, as its master says it; or three tasks, as retention does.
    Forget(bool),
}

/// The one job whose tasks are forgotten: of the others every promise is kept for ever.
const FORGOTTEN: u8 = 3;

#[derive(Default)]
pub struct ClusterWorld {
    dispatched: Vec<(WorkerId, TaskKey, u32)>,
}

fn worker(n: u8) -> WorkerId {
    WorkerId::parse(format!("w{n}")).unwrap()
}

fn job(n: u8) -> JobId {
    JobId::parse(format!("j{n}")).unwrap()
}

fn key(job: u8, task: u8) -> TaskKey {
    TaskKey::parse(format!("j{job}"), format!("t{task}")).unwrap()
}

fn attach(who: u8, instance: u8, max_tasks: u16, legacy: bool, known: Vec<(TaskKey, u32)>) -> Command {
    let profile = Profile {
        ip: "127.0.0.1".to_owned(),
        max_tasks,
        ports: Ports {
            start: 12000,
            end: 12006 - u32::from(instance),
        },
        instance: instance.to_string(),
        legacy,
    };
    Command::Attach(Attach {
        worker: worker(who),
        profile,
        known,
    })
}

/// What an effect stands on when its task is not there as it was: it may have been forgotten since, and even submitted again, or it never was.
fn absent(key: &TaskKey) -> Standing {
    if key.job == job(FORGOTTEN) {
        Standing::Earlier
    } else {
        Standing::Never
    }
}

impl World for ClusterWorld {
    type Machine = Cluster;
    type Act = Act;

    fn acts() -> BoxedStrategy<Act> {
        prop_oneof![
            5 => (0u8..3, 0u8..3, 1u16..5, prop::bool::weighted(0.2), any::<u8>()).prop_map(|(w, i, n, l, k)| Act::Attach(w, i, n, l, k)),
            2 => (0u8..3, 1u64..9).prop_map(|(who, session)| Act::Break(who, session)),
            8 => (0u8..4, 0u8..4, 1u8..6, prop::option::weighted(0.3, 0u8..3)).prop_map(|(j, t, c, w)| Act::Submit(j, t, c, w)),
            1 => (0u8..3, 0u8..4, 0u8..4).prop_map(|(w, j, t)| Act::LegacyReport(w, j, t)),
            1 => (0u8..4, 0u8..4).prop_map(|(j, t)| Act::Cancel(j, t)),
            3 => (prop::option::of(0u8..4), 0u16..4).prop_map(|(j, n)| Act::Acquire(j, n)),
            2 => (0u8..4).prop_map(Act::Release),
            1 => any::<bool>().prop_map(Act::Forget),
        ]
        .boxed()
    }

    fn machine() -> Cluster {
        Cluster::new(Rules {
            max_attempts: 2,
            queue_max: 12,
            ..Rules::default()
        })
    }

    fn check(machine: &Cluster) -> Result<(), String> {
        invariant::check(machine).map_err(|violation| violation.to_string())
    }

    fn started() -> Option<Command> {
        Some(Command::Started)
    }

    fn probe() -> Command {
        Command::ReleaseLease {
            job: JobId::parse("none").unwrap(),
        }
    }

    fn saw(&mut self, effect: &Effect) {
        if let Effect::Dispatch { worker, key, attempt, .. } = effect {
            self.dispatched.push((worker.clone(), key.clone(), *attempt));
        }
    }

    fn act(&mut self, act: &Act, contents: &mut Contents) -> Command {
        match *act {
            Act::Attach(who, instance, max_tasks, legacy, bits) => {
                let sent = self
                    .dispatched
                    .iter()
                    .rev()
                    .filter(|(id, ..)| *id == worker(who))
                    .take(8)
                    .enumerate();
                let known = sent.filter(|(i, _)| bits >> i & 1 == 1);
                let known = known.map(|(_, (_, key, attempt))| (key.clone(), *attempt)).collect();
                attach(who, instance, max_tasks, legacy, known)
            }
            Act::Break(who, session) => Command::ConnectionLost {
                worker: worker(who),
                session,
            },
            Act::Submit(j, t, content, assignee) => Command::Submit(Submission {
                key: key(j, t),
                task_type: TypeName::parse("program_trainer").unwrap(),
                content: contents.make(content),
                fingerprint: [content; 32],
                assignee: assignee.map(worker),
            }),
            Act::LegacyReport(who, j, t) => Command::Report {
                worker: worker(who),
                key: key(j, t),
                attempt: None,
                outcome: Outcome::without_process(End::Succeeded, ""),
            },
            Act::Cancel(j, t) => Command::Cancel {
                key: key(j, t),
                reason: "enough".to_owned(),
            },
            Act::Acquire(j, endpoints) => Command::AcquireLease {
                job: j.map(job),
                endpoints,
            },
            Act::Release(j) => Command::ReleaseLease { job: job(j) },
            Act::Forget(whole) => Command::Forget {
                job: whole.then(|| job(FORGOTTEN)),
                tasks: (0..3).map(|task| key(FORGOTTEN, task)).collect(),
            },
        }
    }

    fn outcomes(effect: &Effect, how: u8, _: &mut Contents) -> Vec<Command> {
        let report = |worker, key, attempt, end| Command::Report {
            worker,
            key,
            attempt: Some(attempt),
            outcome: Outcome::without_process(end, ""),
        };
        match effect.clone() {
            Effect::Dispatch { worker, key, attempt, .. } => {
                let end = if how % 3 == 1 { End::Failed } else { End::Succeeded };
                vec![report(worker, key, attempt, end)]
            }
            Effect::Kill { worker, key, attempt, .. } => vec![report(worker, key, attempt, End::Cancelled)],
            Effect::DropConnection { worker, session } => vec![Command::ConnectionLost { worker, session }],
            Effect::Ended { .. } => Vec::new(),
            Effect::GraceAt { worker, session, .. } => vec![Command::WorkerLost { worker, session }],
            Effect::LeaseExpiryAt { lease, .. } => vec![Command::LeaseExpired { lease }],
            Effect::PlaceMore => vec![Command::Place],
        }
    }

    fn may_come_late(_: &Effect) -> bool {
        true
    }

    fn standing(effect: &Effect, read: &dyn Fn(&Key) -> Option<Record>) -> Standing {
        let task = |key: &TaskKey| match read(&Key::Task(key.clone())) {
            Some(Record::Task(task)) => Some(task),
            _ => None,
        };
        let at = |id: &WorkerId| match read(&Key::Worker(id.clone())) {
            Some(Record::Worker(worker)) => Some(worker),
            _ => None,
        };
        match effect {
            Effect::Dispatch {
                worker,
                session,
                key,
                attempt,
            } => {
                let Some(task) = task(key) else { return absent(key) };
                let current = at(worker).is_some_and(|worker| worker.session == *session);
                match task.assignment() {
                    Some((on, n)) if on == worker && n == *attempt && current => Standing::Now,
                    _ if task.attempts >= *attempt => Standing::Earlier,
                    _ => absent(key),
                }
            }
            Effect::Kill { worker, key, attempt, .. } => match task(key) {
                // Attempts of a task that was forgotten and came again count from one.
                Some(task) if task.assignment() == Some((worker, *attempt)) && task.stopping.is_none() && key.job != job(FORGOTTEN) => {
                    Standing::Never
                }
                _ => Standing::Now,
            },
            Effect::DropConnection { worker, session } => match at(worker) {
                Some(worker) if worker.session > *session => Standing::Now,
                _ => Standing::Never,
            },
            Effect::Ended { key } => match task(key) {
                Some(task) if task.is_ended() => Standing::Now,
                _ => absent(key),
            },
            Effect::GraceAt { worker, session, .. } => match at(worker) {
                Some(worker) if worker.session == *session && !worker.is_lost() => Standing::Now,
                Some(worker) if worker.session >= *session => Standing::Earlier,
                _ => Standing::Never,
            },
            Effect::LeaseExpiryAt { lease, .. } => match (read(&Key::Lease(lease.clone())), lease, read(&Key::Counters)) {
                (Some(Record::Lease(lease)), _, _) if lease.is_unbound() => Standing::Now,
                (_, LeaseId::Anonymous(n), Some(Record::Counters(counters))) if counters.anonymous >= *n => Standing::Earlier,
                _ => Standing::Never,
            },
            Effect::PlaceMore => Standing::Now,
        }
    }

    fn promise(command: &Command, reply: &Reply) -> Option<(Key, Holds<Self>)> {
        let forgotten = |key: &TaskKey| key.job == job(FORGOTTEN);
        match (command, reply) {
            (Command::Submit(Submission { key, .. }) | Command::Report { key, .. }, _) if forgotten(key) => None,
            (Command::Submit(submission), _) => Some((Key::Task(submission.key.clone()), |said, record| match record {
                // One that was cancelled before it came is kept as that.
                Record::Task(task) => task.is_barred() || said.contains(&format!("fingerprint: {:?}", task.fingerprint)),
                _ => false,
            })),
            (Command::Report { key, .. }, Reply::Done) => Some((Key::Task(key.clone()), |said, record| match record {
                Record::Task(task) => {
                    matches!(&task.state, TaskState::Ended(outcome) if said.contains(&format!("end: {:?}", outcome.end)))
                }
                _ => false,
            })),
            (Command::Cancel { key, .. }, Reply::Cancelled { known: false }) if !forgotten(key) => {
                Some((Key::Task(key.clone()), |_, record| match record {
                    Record::Task(task) => {
                        matches!(&task.state, TaskState::Ended(outcome) if outcome.end == End::Cancelled && task.attempts == 0)
                    }
                    _ => false,
                }))
            }
            (Command::Attach(attach), Reply::Attached { .. }) => Some((Key::Worker(attach.worker.clone()), |said, record| match record {
                Record::Worker(worker) => (1..=worker.session).any(|n| said.contains(&format!("session: {n} }}"))),
                _ => false,
            })),
            _ => None,
        }
    }

    /// Every worker comes as a new process, and every job is over.
    fn help(&mut self) -> Vec<Command> {
        let workers = (0..3).map(|who| attach(who, 5, 4, false, Vec::new()));
        let jobs = (0..4).map(|n| Command::ReleaseLease { job: job(n) });
        workers.chain(jobs).collect()
    }

    fn stays(record: &Record) -> bool {
        match record {
            Record::Counters(_) => true,
            Record::Worker(worker) => !matches!(worker.state, WorkerState::Lost { .. }),
            Record::Lease(_) | Record::Task(_) => false,
        }
    }
}

#[test]
fn a_cluster_manager_survives() {
    survives::<ClusterWorld>(100);
}

#[test]
fn a_cluster_manager_takes_everything_once() {
    twice_is_once::<ClusterWorld>(30);
}

#[test]
fn a_cluster_manager_can_be_replayed() {
    replays::<ClusterWorld>(25);
}
