//! Each rule of the cluster manager by example: commands in, literal replies and effects out.

use super::invariant;
use super::records::{LeaseId, Ports, Profile, TaskState};
use super::{Attach, Cluster, Command, Effect, Key, Record, Rejection, Reply, Rules, Submission};
use crate::machine::content::{Content, PayloadRef};
use crate::machine::ids::{JobId, TaskKey, Timestamp, TypeName, WorkerId};
use crate::machine::outcome::{End, Outcome};
use crate::machine::{Input, Machine, Out};
use std::collections::BTreeMap;

pub(super) const SECOND: u64 = 1_000_000;

pub(super) fn worker(name: &str) -> WorkerId {
    WorkerId::parse(name).unwrap()
}

pub(super) fn job(name: &str) -> JobId {
    JobId::parse(name).unwrap()
}

pub(super) fn key(job: &str, task: &str) -> TaskKey {
    TaskKey::parse(job, task).unwrap()
}

/// A machine with its history, as the engine would keep it.
pub(super) struct Bench {
    pub(super) machine: Cluster,
    pub(super) events: Vec<super::Event>,
    pub(super) ended: BTreeMap<Key, Record>,
    pub(super) now: Timestamp,
    pub(super) effects: Vec<Effect>,
    pub(super) payloads: i64,
}

impl Bench {
    pub(super) fn new(rules: Rules) -> Self {
        let (events, ended, effects) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self {
            machine: Cluster::new(rules),
            events,
            ended,
            now: Timestamp(SECOND),
            effects,
            payloads: 0,
        }
    }

    /// One command as a commit of its own; effects are left in `effects`.
    pub(super) fn send(&mut self, command: Command) -> Result<Reply, Rejection> {
        let asked = self.machine.recall(&command).into_iter();
        let asked = asked.filter(|key| self.machine.record(key).is_none());
        let recalled = asked.filter_map(|key| Some((key.clone(), self.ended.get(&key)?.clone()))).collect();
        let input = Input {
            now: self.now,
            stamp: String::new(),
            random: 0,
            recalled,
        };
        let mut out = Out::new(self.events.len() as u64 + 1);
        let reply = self.machine.decide(command, &input, &mut out);
        assert!(reply.is_ok() || out.events.is_empty());
        invariant::check(&self.machine).unwrap();
        self.payloads += out.changes.held.len() as i64 - out.changes.released.len() as i64;
        for key in &out.changes.keys {
            match self.machine.record(key) {
                Some(record) if Cluster::is_live(&record) => {}
                Some(record) => {
                    self.ended.insert(key.clone(), record);
                    self.machine.forget(key);
                }
                None => {
                    self.ended.remove(key);
                }
            }
        }
        self.events.extend(out.events.into_iter().map(|logged| logged.event));
        self.effects = out.effects;
        reply
    }

    pub(super) fn attach(&mut self, name: &str, instance: &str, max_tasks: u16, known: Vec<(TaskKey, u32)>) -> Result<Reply, Rejection> {
        let profile = profile(instance, max_tasks, false);
        self.send(Command::Attach(Attach {
            worker: worker(name),
            profile,
            known,
        }))
    }

    pub(super) fn submit(&mut self, job: &str, task: &str, assignee: Option<&str>) -> Result<Reply, Rejection> {
        self.send(submission(key(job, task), 1, assignee))
    }

    pub(super) fn report(&mut self, name: &str, key: TaskKey, attempt: Option<u32>) -> Result<Reply, Rejection> {
        let outcome = Outcome::without_process(End::Succeeded, "");
        self.send(Command::Report {
            worker: worker(name),
            key,
            attempt,
            outcome,
        })
    }

    pub(super) fn acquire(&mut self, job_id: Option<&str>, endpoints: u16) -> Result<Reply, Rejection> {
        self.send(Command::AcquireLease {
            job: job_id.map(job),
            endpoints,
        })
    }

    pub(super) fn lose(&mut self, name: &str, session: u64) -> Reply {
        self.send(Command::ConnectionLost {
            worker: worker(name),
            session,
        })
        .unwrap();
        loop {
            let reply = self
                .send(Command::WorkerLost {
                    worker: worker(name),
                    session,
                })
                .unwrap();
            if reply != Reply::Again {
                return reply;
            }
        }
    }

    pub(super) fn outcome(&self, key: &TaskKey) -> Option<(End, String)> {
        match self.ended.get(&Key::Task(key.clone())) {
            Some(Record::Task(task)) => match &task.state {
                TaskState::Ended(outcome) => Some((outcome.end, outcome.reason.clone())),
                _ => None,
            },
            _ => None,
        }
    }
}

pub(super) fn profile(instance: &str, max_tasks: u16, legacy: bool) -> Profile {
    let ports = Ports { start: 7000, end: 7004 };
    Profile {
        ip: "10.0.0.1".into(),
        max_tasks,
        ports,
        instance: instance.into(),
        legacy,
    }
}

pub(super) fn submission(key: TaskKey, content: u8, assignee: Option<&str>) -> Command {
    let payload = PayloadRef {
        hash: [content; 32],
        len: 5000,
    };
    Command::Submit(Submission {
        key,
        task_type: TypeName::parse("dummy_trainer").unwrap(),
        content: Content::Stored(payload),
        fingerprint: [content; 32],
        assignee: assignee.map(worker),
    })
}

fn dispatch(name: &str, session: u64, key: TaskKey, attempt: u32) -> Effect {
    Effect::Dispatch {
        worker: worker(name),
        session,
        key,
        attempt,
    }
}

fn ended(key: TaskKey) -> Effect {
    Effect::Ended { key }
}

fn granted(name: &str, ports: &[u16]) -> Result<Reply, Rejection> {
    let endpoints = ports.iter().map(|port| format!("10.0.0.1:{port}")).collect();
    Ok(Reply::Lease {
        worker: worker(name),
        endpoints,
    })
}

fn refused(why: &str) -> Result<Reply, Rejection> {
    Err(Rejection::NotGranted(why.to_owned()))
}

fn busy(why: &str) -> Result<Reply, Rejection> {
    Err(Rejection::Busy(why.to_owned()))
}

#[test]
fn a_task_waits_for_a_worker_runs_once_and_is_remembered() {
    let mut bench = Bench::new(Rules::default());
    assert_eq!(bench.submit("j", "t", None), Ok(Reply::Submitted { repeated: false }));
    assert_eq!(bench.effects, vec![]);
    assert_eq!(bench.submit("j", "t", None), Ok(Reply::Submitted { repeated: true }));
    assert_eq!(
        bench.send(submission(key("j", "t"), 2, None)),
        Err(Rejection::Conflict(key("j", "t")))
    );
    assert_eq!(bench.attach("w", "i", 1, vec![]), Ok(Reply::Attached { session: 1 }));
    assert_eq!(bench.effects, vec![dispatch("w", 1, key("j", "t"), 1)]);
    bench.submit("j", "u", None).unwrap();
    assert_eq!(bench.effects, vec![]);
    assert_eq!(bench.report("w", key("j", "t"), Some(1)), Ok(Reply::Done));
    assert_eq!(bench.effects, vec![ended(key("j", "t")), dispatch("w", 1, key("j", "u"), 1)]);
    assert_eq!(bench.report("w", key("j", "t"), Some(1)), Ok(Reply::Void));
    assert_eq!(bench.submit("j", "t", None), Ok(Reply::Submitted { repeated: true }));
    assert_eq!(
        bench.send(submission(key("j", "t"), 2, None)),
        Err(Rejection::Conflict(key("j", "t")))
    );
    assert_eq!(bench.payloads, 1);
}

#[test]
fn an_unknown_assignee_is_refused_and_an_away_one_is_waited_for() {
    let mut bench = Bench::new(Rules::default());
    assert_eq!(bench.submit("j", "t", Some("w")), Err(Rejection::UnknownAssignee(worker("w"))));
    bench.attach("w", "i", 1, vec![]).unwrap();
    bench
        .send(Command::ConnectionLost {
            worker: worker("w"),
            session: 1,
        })
        .unwrap();
    assert_eq!(
        bench.effects,
        vec![Effect::GraceAt {
            worker: worker("w"),
            session: 1,
            at: Timestamp(11 * SECOND)
        }]
    );
    assert_eq!(bench.submit("j", "t", Some("w")), Ok(Reply::Submitted { repeated: false }));
    bench.attach("w", "i", 1, vec![]).unwrap();
    assert_eq!(bench.effects, vec![dispatch("w", 2, key("j", "t"), 1)]);
}

#[test]
fn a_worker_that_comes_back_keeps_its_tasks() {
    let mut bench = Bench::new(Rules::default());
    bench.attach("w", "i", 3, vec![]).unwrap();
    for task in ["a", "b", "c"] {
        bench.submit("j", task, None).unwrap();
    }
    bench
        .send(Command::Cancel {
            key: key("j", "c"),
            reason: "why".into(),
        })
        .unwrap();
    let kill = |session, key: TaskKey, attempt, reason: &str| Effect::Kill {
        worker: worker("w"),
        session,
        key,
        attempt,
        reason: reason.into(),
    };
    assert_eq!(bench.effects, vec![kill(1, key("j", "c"), 1, "why")]);
    let known = vec![(key("j", "a"), 1), (key("j", "c"), 1), (key("old", "x"), 2)];
    assert_eq!(bench.attach("w", "i", 3, known), Ok(Reply::Attached { session: 2 }));
    assert_eq!(
        bench.effects,
        vec![
            Effect::DropConnection {
                worker: worker("w"),
                session: 1
            },
            dispatch("w", 2, key("j", "b"), 1),
            kill(2, key("j", "c"), 1, "why"),
            kill(2, key("old", "x"), 2, "attempt 2 is not assigned to worker w any more"),
        ]
    );
    assert_eq!(
        bench.send(Command::ConnectionLost {
            worker: worker("w"),
            session: 1
        }),
        Ok(Reply::Void)
    );
    assert_eq!(bench.attach("w", "i", 4, vec![]), Err(Rejection::Changed(worker("w"))));
    assert_eq!(bench.report("w", key("j", "a"), Some(1)), Ok(Reply::Done));
}

#[test]
fn another_process_under_the_name_waits_until_the_first_is_gone() {
    let mut bench = Bench::new(Rules {
        max_attempts: 2,
        ..Rules::default()
    });
    bench.attach("w", "i", 1, vec![]).unwrap();
    bench.submit("j", "t", None).unwrap();
    assert_eq!(bench.attach("w", "other", 1, vec![]), Err(Rejection::AlreadyEnrolled(worker("w"))));
    bench
        .send(Command::ConnectionLost {
            worker: worker("w"),
            session: 1,
        })
        .unwrap();
    assert_eq!(bench.attach("w", "other", 1, vec![]), Ok(Reply::Attached { session: 2 }));
    assert_eq!(bench.effects, vec![dispatch("w", 2, key("j", "t"), 2)]);
    assert_eq!(bench.report("w", key("j", "t"), Some(1)), Ok(Reply::Void));
    bench
        .send(Command::ConnectionLost {
            worker: worker("w"),
            session: 2,
        })
        .unwrap();
    bench.attach("w", "third", 1, vec![]).unwrap();
    assert_eq!(bench.effects, vec![ended(key("j", "t"))]);
    assert_eq!(bench.outcome(&key("j", "t")), Some((End::Failed, "worker w was restarted".into())));
}

#[test]
fn a_lost_workers_tasks_run_elsewhere_or_fail() {
    let mut bench = Bench::new(Rules {
        max_attempts: 2,
        ..Rules::default()
    });
    bench.attach("w1", "i", 2, vec![]).unwrap();
    bench.submit("j", "any", None).unwrap();
    bench.submit("j", "named", Some("w1")).unwrap();
    bench.submit("j", "waits", Some("w1")).unwrap();
    bench.attach("w2", "i", 1, vec![]).unwrap();
    bench
        .send(Command::ConnectionLost {
            worker: worker("w1"),
            session: 1,
        })
        .unwrap();
    assert_eq!(
        bench.send(Command::WorkerLost {
            worker: worker("w1"),
            session: 0
        }),
        Ok(Reply::Void)
    );
    assert_eq!(
        bench.send(Command::WorkerLost {
            worker: worker("w1"),
            session: 1
        }),
        Ok(Reply::Done)
    );
    assert_eq!(
        bench.effects,
        vec![
            ended(key("j", "named")),
            ended(key("j", "waits")),
            dispatch("w2", 1, key("j", "any"), 2)
        ]
    );
    assert_eq!(bench.outcome(&key("j", "waits")), Some((End::Failed, "worker w1 was lost".into())));
    assert_eq!(
        bench.report("w1", key("j", "any"), Some(1)),
        Err(Rejection::UnknownWorker(worker("w1")))
    );
    assert_eq!(
        bench.attach("w1", "i", 2, vec![(key("j", "any"), 1)]),
        Ok(Reply::Attached { session: 2 })
    );
    assert_eq!(bench.effects.len(), 1);
}

#[test]
fn a_lease_is_a_slot_and_ports_and_comes_back() {
    let mut bench = Bench::new(Rules::default());
    assert_eq!(bench.acquire(Some("a"), 2), refused("no worker is attached"));
    bench.attach("w", "i", 3, vec![]).unwrap();
    assert_eq!(
        bench.acquire(Some("a"), 5),
        refused("5 endpoints were asked for, no worker has more than 4 ports")
    );
    assert_eq!(
        bench.acquire(Some("a"), 300),
        refused("300 endpoints were asked for, a lease has at most 256")
    );
    assert_eq!(bench.acquire(Some("a"), 3), granted("w", &[7000, 7001, 7002]));
    assert_eq!(bench.acquire(Some("a"), 3), granted("w", &[7000, 7001, 7002]));
    assert_eq!(bench.acquire(Some("b"), 2), busy("no worker with a free slot has 2 free ports"));
    assert_eq!(bench.acquire(Some("b"), 1), granted("w", &[7003]));
    assert_eq!(bench.acquire(Some("c"), 0), busy("no worker has a free slot for a lease"));
    bench.submit("a", "aggregator", Some("w")).unwrap();
    assert_eq!(bench.effects, vec![dispatch("w", 1, key("a", "aggregator"), 1)]);
    bench.submit("a", "trainer", None).unwrap();
    assert_eq!(bench.effects.len(), 1);
    bench.submit("a", "late", None).unwrap();
    assert_eq!(bench.effects, vec![]);
    assert_eq!(bench.send(Command::ReleaseLease { job: job("b") }), Ok(Reply::Done));
    assert_eq!(bench.effects, vec![dispatch("w", 1, key("a", "late"), 1)]);
    assert_eq!(bench.send(Command::ReleaseLease { job: job("b") }), Ok(Reply::Void));
    // The running aggregator takes the released slot itself: nothing becomes free.
    bench.send(Command::ReleaseLease { job: job("a") }).unwrap();
    bench.submit("z", "z", None).unwrap();
    assert_eq!(bench.effects, vec![]);
}

#[test]
fn ports_go_round_in_a_circle() {
    let mut bench = Bench::new(Rules::default());
    bench.attach("w", "i", 9, vec![]).unwrap();
    assert_eq!(bench.acquire(Some("a"), 3), granted("w", &[7000, 7001, 7002]));
    bench.send(Command::ReleaseLease { job: job("a") }).unwrap();
    assert_eq!(bench.acquire(Some("b"), 2), granted("w", &[7003, 7000]));
    assert_eq!(bench.acquire(Some("c"), 2), granted("w", &[7001, 7002]));
}

#[test]
fn an_anonymous_lease_goes_to_the_first_task_for_its_worker() {
    let mut bench = Bench::new(Rules::default());
    bench.attach("w", "i", 4, vec![]).unwrap();
    assert_eq!(bench.acquire(None, 1), granted("w", &[7000]));
    let first = LeaseId::Anonymous(1);
    assert_eq!(
        bench.effects,
        vec![Effect::LeaseExpiryAt {
            lease: first.clone(),
            at: Timestamp(601 * SECOND)
        }]
    );
    assert_eq!(bench.acquire(None, 1), granted("w", &[7001]));
    bench.submit("j", "aggregator", Some("w")).unwrap();
    assert_eq!(bench.send(Command::LeaseExpired { lease: first }), Ok(Reply::Void));
    assert_eq!(
        bench.send(Command::LeaseExpired {
            lease: LeaseId::Anonymous(2)
        }),
        Ok(Reply::Done)
    );
    bench.report("w", key("j", "aggregator"), Some(1)).unwrap();
    assert_eq!(bench.machine.census().last(), Some(&("lease held", 0)));
}

#[test]
fn a_lease_whose_master_never_came_back_is_taken_back_when_somebody_needs_it() {
    let mut bench = Bench::new(Rules {
        job_unbound_ms: 0,
        ..Rules::default()
    });
    bench.attach("w", "i", 1, vec![]).unwrap();
    assert_eq!(bench.acquire(Some("gone"), 1), granted("w", &[7000]));
    bench.now = Timestamp(bench.now.0 + SECOND);
    assert_eq!(bench.acquire(Some("here"), 1), granted("w", &[7001]));
    assert_eq!(bench.acquire(Some("here"), 1), granted("w", &[7001]));
}

#[test]
fn a_lease_lost_with_its_worker_says_so() {
    let mut bench = Bench::new(Rules {
        max_attempts: 3,
        ..Rules::default()
    });
    bench.attach("w", "i", 4, vec![]).unwrap();
    bench.acquire(Some("a"), 1).unwrap();
    bench.acquire(Some("b"), 1).unwrap();
    bench.submit("a", "aggregator", Some("w")).unwrap();
    assert_eq!(bench.lose("w", 1), Reply::Done);
    assert_eq!(
        bench.outcome(&key("a", "aggregator")),
        Some((End::Failed, "worker w was lost".into()))
    );
    bench.attach("w", "j", 4, vec![]).unwrap();
    let lost = Rejection::LeaseLost {
        job: job("b"),
        worker: worker("w"),
    };
    assert_eq!(bench.submit("b", "aggregator", Some("w")), Err(lost));
    assert_eq!(bench.acquire(Some("b"), 1), granted("w", &[7002]));
    assert_eq!(bench.submit("b", "aggregator", Some("w")), Ok(Reply::Submitted { repeated: false }));
}

#[test]
fn a_restarted_worker_keeps_the_leases_it_can_honour() {
    let mut bench = Bench::new(Rules {
        max_attempts: 2,
        ..Rules::default()
    });
    bench.attach("w", "i", 4, vec![]).unwrap();
    bench.acquire(Some("a"), 1).unwrap();
    bench.acquire(Some("b"), 1).unwrap();
    bench.submit("a", "aggregator", Some("w")).unwrap();
    bench
        .send(Command::ConnectionLost {
            worker: worker("w"),
            session: 1,
        })
        .unwrap();
    bench.attach("w", "j", 2, vec![]).unwrap();
    assert_eq!(bench.effects, vec![dispatch("w", 2, key("a", "aggregator"), 2)]);
    assert_eq!(bench.acquire(Some("a"), 1), granted("w", &[7000]));
    let lost = Rejection::LeaseLost {
        job: job("b"),
        worker: worker("w"),
    };
    assert_eq!(bench.submit("b", "aggregator", Some("w")), Err(lost));
}

#[test]
fn cancel_ends_what_waits_and_kills_what_runs() {
    let mut bench = Bench::new(Rules::default());
    let cancel = |task: &str| Command::Cancel {
        key: key("j", task),
        reason: "not\nwanted".into(),
    };
    bench.submit("j", "t", None).unwrap();
    assert_eq!(bench.send(cancel("t")), Ok(Reply::Cancelled { known: true }));
    assert_eq!(bench.effects, vec![ended(key("j", "t"))]);
    assert_eq!(bench.outcome(&key("j", "t")), Some((End::Cancelled, "not wanted".into())));
    assert_eq!(bench.send(cancel("t")), Ok(Reply::Cancelled { known: true }));
    bench.attach("w", "i", 1, vec![]).unwrap();
    bench.submit("j", "u", None).unwrap();
    bench.send(cancel("u")).unwrap();
    bench.lose("w", 1);
    assert_eq!(bench.outcome(&key("j", "u")), Some((End::Cancelled, "not wanted".into())));
}

#[test]
fn what_is_cancelled_before_it_comes_never_starts() {
    let mut bench = Bench::new(Rules::default());
    bench.attach("w", "i", 1, vec![]).unwrap();
    let late = key("j", "t");
    let cancel = || Command::Cancel {
        key: late.clone(),
        reason: "not wanted".into(),
    };
    assert_eq!(bench.send(cancel()), Ok(Reply::Cancelled { known: false }));
    assert_eq!(bench.effects, vec![ended(late.clone())]);
    assert_eq!(bench.outcome(&late), Some((End::Cancelled, "not wanted".into())));
    // Whatever it carries, and for whatever worker it is.
    for (content, assignee) in [(1, None), (2, Some("w")), (3, Some("nobody"))] {
        let before = bench.events.len();
        assert_eq!(
            bench.send(submission(late.clone(), content, assignee)),
            Ok(Reply::Submitted { repeated: true })
        );
        assert_eq!((bench.events.len(), bench.effects.len()), (before, 0));
    }
    assert_eq!(bench.send(cancel()), Ok(Reply::Cancelled { known: false }));
    assert_eq!(bench.effects, vec![]);
    // Let go of with its job, it is as if it had never been.
    let forget = Command::Forget {
        job: Some(job("j")),
        tasks: vec![late.clone()],
    };
    bench.send(forget).unwrap();
    bench.submit("j", "t", None).unwrap();
    assert_eq!(bench.effects, vec![dispatch("w", 1, late, 1)]);
}

#[test]
fn a_fedvision_worker_reports_without_attempts_and_cannot_be_stopped() {
    let mut bench = Bench::new(Rules::default());
    let attach = |instance: &str| {
        Command::Attach(Attach {
            worker: worker("w"),
            profile: profile(instance, 2, true),
            known: vec![],
        })
    };
    bench.send(attach("1")).unwrap();
    assert_eq!(bench.send(attach("2")), Err(Rejection::AlreadyEnrolled(worker("w"))));
    bench.submit("j", "t", None).unwrap();
    bench.submit("j", "u", None).unwrap();
    assert_eq!(bench.report("w", key("j", "t"), None), Ok(Reply::Done));
    assert_eq!(bench.report("w", key("j", "t"), None), Ok(Reply::Void));
    bench
        .send(Command::Cancel {
            key: key("j", "u"),
            reason: String::new(),
        })
        .unwrap();
    assert_eq!(bench.effects, vec![ended(key("j", "u"))]);
    assert_eq!(
        bench.report("gone", key("j", "u"), None),
        Err(Rejection::UnknownWorker(worker("gone")))
    );
}

#[test]
fn after_a_start_everyone_is_away_and_a_big_loss_is_taken_in_steps() {
    let mut bench = Bench::new(Rules::default());
    bench.attach("w", "i", 200, vec![]).unwrap();
    for n in 0..200 {
        bench.submit("j", &n.to_string(), None).unwrap();
    }
    let resumed = bench.machine.resume(Timestamp(5 * SECOND));
    assert_eq!(
        resumed,
        vec![Effect::GraceAt {
            worker: worker("w"),
            session: 1,
            at: Timestamp(15 * SECOND)
        }]
    );
    bench.send(Command::Started).unwrap();
    assert_eq!(
        bench.send(Command::ConnectionLost {
            worker: worker("w"),
            session: 1
        }),
        Ok(Reply::Void)
    );
    let lost = || Command::WorkerLost {
        worker: worker("w"),
        session: 1,
    };
    assert_eq!(bench.send(lost()), Ok(Reply::Again));
    assert_eq!(bench.effects.len(), 64);
    assert_eq!(bench.lose("w", 1), Reply::Done);
    assert_eq!(bench.send(lost()), Ok(Reply::Void));
    assert_eq!((bench.payloads, bench.ended.len()), (0, 201));
}
