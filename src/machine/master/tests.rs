//! The walk of a job with literal effects, and random histories with effects delivered twice, late, and across crashes.

use super::federation::PeerState;
use super::records::*;
use super::*;
use crate::machine::content::Content;
use crate::machine::ids::{TaskId, TypeName};
use crate::machine::outcome::{End, Outcome};
use crate::machine::plan::Plan;
use proptest::prelude::*;
use std::collections::HashMap;

/// A machine with a store of maps: commits like the engine, and can crash.
pub(super) struct World {
    machine: Master,
    pub(super) live: BTreeMap<Key, Record>,
    pub(super) ended: BTreeMap<Key, Record>,
    events: Vec<Event>,
    payloads: HashMap<PayloadRef, i64>,
    pub(super) pending: Vec<Effect>,
    pub(super) now: u64,
    propose_again: bool,
}

fn rules(propose_again: bool) -> Rules {
    let party = PartyId::parse("p1").unwrap();
    Rules {
        party,
        accept: ProposalAcceptRule {
            at_once: Some(6),
            ..Default::default()
        },
        propose_again,
        submit_tries: 3,
    }
}

impl World {
    pub(super) fn new(propose_again: bool) -> Self {
        Self {
            machine: Master::new(rules(propose_again)),
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
            events: Vec::new(),
            payloads: HashMap::new(),
            pending: Vec::new(),
            now: 1_000_000,
            propose_again,
        }
    }

    pub(super) fn send(&mut self, command: Command) -> Result<Reply, Rejection> {
        self.now += 1;
        let asked = self.machine.recall(&command).into_iter();
        let recalled = asked.filter_map(|key| Some((key.clone(), self.ended.get(&key)?.clone()))).collect();
        let input = Input {
            now: Timestamp(self.now),
            stamp: "20261122212634".into(),
            random: self.now,
            recalled,
        };
        let mut out = Out::new(self.events.len() as u64 + 1);
        let reply = self.machine.decide(command, &input, &mut out);
        assert!(
            reply.is_ok() || (out.events.is_empty() && out.effects.is_empty()),
            "a rejection changes nothing"
        );
        invariant::check(&self.machine).unwrap();
        for payload in &out.changes.held {
            *self.payloads.entry(*payload).or_default() += 1;
        }
        for payload in &out.changes.released {
            *self.payloads.entry(*payload).or_default() -= 1;
        }
        for key in &out.changes.keys {
            self.live.remove(key);
            match self.machine.record(key) {
                Some(record) if Master::is_live(&record) => drop(self.live.insert(key.clone(), record)),
                Some(record) => {
                    let before = self.ended.insert(key.clone(), record);
                    // A peer is history from its first moment.
                    let again = matches!(key, Key::Submission(_) | Key::Peer(..));
                    assert!(before.is_none() || again, "{key:?} ended twice");
                    self.machine.forget(key);
                }
                None => drop(self.ended.remove(key)),
            }
            assert_eq!(Master::key_from_bytes(&Master::key_bytes(key)).as_ref(), Some(key));
        }
        self.events.extend(out.events.into_iter().map(|logged| logged.event));
        self.pending.extend(out.effects);
        reply
    }

    pub(super) fn crash(&mut self) {
        self.machine = Master::new(rules(self.propose_again));
        for (key, record) in &self.live {
            self.machine.restore(key, record.clone());
        }
        invariant::check(&self.machine).unwrap();
        self.pending = self.machine.resume(Timestamp(self.now));
    }

    /// Records and payload counts are what the log says.
    pub(super) fn check_replay(&self) {
        let mut replayed = Master::new(rules(self.propose_again));
        let mut changes = Changes::default();
        for event in &self.events {
            changes.seq += 1;
            replayed.apply(event, &mut changes);
        }
        for (key, record) in self.live.iter().chain(&self.ended) {
            assert_eq!(replayed.record(key).as_ref(), Some(record), "{key:?}");
        }
        let mut counted: HashMap<PayloadRef, i64> = HashMap::new();
        for payload in self.live.values().chain(self.ended.values()).flat_map(Master::payloads) {
            *counted.entry(payload).or_default() += 1;
        }
        assert_eq!(
            counted,
            self.payloads.iter().filter(|(_, n)| **n != 0).map(|(p, n)| (*p, *n)).collect()
        );
    }

    pub(super) fn parties_of(&self, job: &JobId) -> Vec<PartyId> {
        let parties = self.ended.keys().filter_map(|key| match key {
            Key::Peer(of, party) if of == job => Some(party.clone()),
            _ => None,
        });
        parties.collect()
    }

    /// What a user does to one of the jobs there ever were.
    fn user(&self, i: u8, how: u8) -> Command {
        let known = |record: &Record| match record {
            Record::Job(job) => Some(job.id.clone()),
            _ => None,
        };
        let jobs: Vec<JobId> = self.live.values().chain(self.ended.values()).filter_map(known).collect();
        let fallback = JobId::parse("p1-20261122212634-9").unwrap();
        let job = jobs.get(usize::from(i) % jobs.len().max(1)).cloned().unwrap_or(fallback);
        let tasks = self.ended.keys().filter_map(|key| match key {
            Key::Task(key) if key.job == job => Some(key.clone()),
            _ => None,
        });
        match how % 7 {
            0 | 1 => Command::Hold { job },
            2 | 3 => Command::Release { job },
            4 => Command::Cancel {
                job,
                reason: "enough".into(),
            },
            5 => Command::Rerun {
                job,
                provenance: Provenance::unknown(),
                fingerprint: [0; 32],
            },
            _ => Command::Purge {
                tasks: tasks.collect(),
                parties: self.parties_of(&job),
                job,
            },
        }
    }

    pub(super) fn submit(&mut self, plan: Plan) -> JobId {
        self.submitted(spec(plan))
    }

    pub(super) fn submit_until(&mut self, plan: Plan, deadline: Timestamp) -> JobId {
        let deadline = Some(deadline);
        self.submitted(Spec { deadline, ..spec(plan) })
    }

    fn submitted(&mut self, spec: Spec) -> JobId {
        let command = Command::Submit {
            spec,
            provenance: Provenance::unknown(),
            fingerprint: [0; 32],
        };
        match self.send(command).unwrap() {
            Reply::Accepted(id) => id,
            other => panic!("{other:?}"),
        }
    }
}

fn spec(plan: Plan) -> Spec {
    let config = Content::Stored(PayloadRef { hash: [1; 32], len: 9000 });
    Spec::plain(TypeName::parse("program").unwrap(), config, None, plan)
}

pub(super) const FULL: Plan = Plan {
    endpoints: 1,
    workers: 2,
    wait_s: 5,
};
const LOCAL: Plan = Plan {
    endpoints: 0,
    workers: 0,
    wait_s: 0,
};

fn lease() -> Lease {
    Lease::parse("w1", &["127.0.0.1:12000".to_owned()]).unwrap()
}

pub(super) fn packed(proposal: bool) -> Packed {
    let content = Content::Stored(PayloadRef { hash: [2; 32], len: 5000 });
    let local = LocalTask {
        task: TaskId::parse("aggregator").unwrap(),
        task_type: TypeName::parse("program_aggregator").unwrap(),
        content,
    };
    Packed {
        proposal: proposal.then_some(Content::Stored(PayloadRef { hash: [3; 32], len: 7000 })),
        local: vec![local],
    }
}

pub(super) fn outcome(end: End) -> Outcome {
    Outcome {
        end,
        reason: "why".into(),
        exit_code: Some(1),
        stderr_tail: "tail".into(),
        worker: None,
        attempt: 1,
    }
}

pub(super) fn won(job: &str, task: &str) -> WonTask {
    let content = Content::Stored(PayloadRef { hash: [4; 32], len: 6000 });
    WonTask {
        key: TaskKey::parse(job, task).unwrap(),
        task_type: TypeName::parse("program_trainer").unwrap(),
        content,
    }
}

#[test]
fn a_job_walks_from_submit_to_success() {
    let mut world = World::new(false);
    let job = world.submit(FULL);
    assert_eq!(job.as_str(), "p1-20261122212634-1");
    assert_eq!(
        world.pending,
        [Effect::AcquireLease {
            job: job.clone(),
            step: 0,
            endpoints: 1
        }]
    );
    world.pending.clear();
    world
        .send(Command::Leased {
            job: job.clone(),
            step: 0,
            result: Ok(lease()),
        })
        .unwrap();
    assert_eq!(world.pending, [Effect::Prepare { job: job.clone(), step: 1 }]);
    world.pending.clear();
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 1,
            result: Ok(packed(true)),
        })
        .unwrap();
    assert_eq!(
        world.pending,
        [
            Effect::Propose {
                job: job.clone(),
                step: 2,
                legacy_call: false,
                tries: 0
            },
            Effect::Follow {
                job: job.clone(),
                after: 0
            }
        ]
    );
    world.pending.clear();
    world
        .send(Command::Verdict {
            job: job.clone(),
            step: 2,
            verdict: Verdict::Accepted,
        })
        .unwrap();
    let key = TaskKey::parse(job.as_str(), "aggregator").unwrap();
    assert_eq!(
        world.pending,
        [Effect::Submit {
            key: key.clone(),
            tries: 0
        }]
    );
    world.pending.clear();
    world
        .send(Command::Submitted {
            key: key.clone(),
            tries: 0,
            answer: SubmitAnswer::Taken,
        })
        .unwrap();
    assert_eq!(world.pending, [Effect::Watch { key: key.clone() }]);
    world.pending.clear();
    world
        .send(Command::TaskEnded {
            key,
            outcome: outcome(End::Succeeded),
        })
        .unwrap();
    assert_eq!(world.pending, [Effect::ReleaseLease { job: job.clone() }]);
    world.send(Command::LeaseReleased { job: job.clone() }).unwrap();
    let Some(Record::Job(ended)) = world.ended.get(&Key::Job(job)) else {
        panic!("the job has ended")
    };
    assert_eq!(ended.state, JobState::Succeeded);
    world.check_replay();
}

#[test]
fn a_failed_task_fails_the_job_with_its_words_and_stops_the_rest() {
    let mut world = World::new(false);
    let job = world.submit(LOCAL);
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 0,
            result: Ok(packed(false)),
        })
        .unwrap();
    world
        .send(Command::Offered {
            proposal: ProposalId::parse(format!("{job}-coo_1")).unwrap(),
            job_type: TypeName::parse("x").unwrap(),
        })
        .unwrap();
    let proposal = ProposalId::parse(format!("{job}-coo_1")).unwrap();
    world
        .send(Command::Fetched {
            proposal,
            result: Ok(won(job.as_str(), "trainer_0")),
        })
        .unwrap();
    world.pending.clear();
    let key = TaskKey::parse(job.as_str(), "aggregator").unwrap();
    world
        .send(Command::TaskEnded {
            key,
            outcome: outcome(End::Failed),
        })
        .unwrap();
    let trainer = TaskKey::parse(job.as_str(), "trainer_0").unwrap();
    assert_eq!(
        world.pending,
        [Effect::Cancel {
            key: trainer.clone(),
            reason: "the job failed".into()
        }]
    );
    // It is live until nothing of it runs, whether it has endpoints or not.
    world.crash();
    assert!(matches!(&world.live[&Key::Job(job.clone())], Record::Job(job) if job.returning));
    assert!(!world.pending.iter().any(|effect| matches!(effect, Effect::ReleaseLease { .. })));
    world
        .send(Command::TaskEnded {
            key: trainer,
            outcome: outcome(End::Cancelled),
        })
        .unwrap();
    assert!(world.pending.contains(&Effect::ReleaseLease { job: job.clone() }));
    world.send(Command::LeaseReleased { job: job.clone() }).unwrap();
    let Some(Record::Job(ended)) = world.ended.get(&Key::Job(job)) else {
        panic!("the job has ended")
    };
    let failure = Failure {
        reason: "task aggregator failed: why".into(),
        exit_code: Some(1),
        stderr_tail: "tail".into(),
    };
    assert_eq!(ended.state, JobState::Failed(failure));
    world.check_replay();
}

#[test]
fn an_unknown_outcome_at_an_old_coordinator_fails_or_is_proposed_again() {
    for again in [false, true] {
        let mut world = World::new(again);
        let job = world.submit(Plan { endpoints: 0, ..FULL });
        world
            .send(Command::Prepared {
                job: job.clone(),
                step: 0,
                result: Ok(packed(true)),
            })
            .unwrap();
        world.send(Command::LegacyProposal { job: job.clone(), step: 1 }).unwrap();
        world.crash();
        assert_eq!(
            world.pending,
            [Effect::Propose {
                job: job.clone(),
                step: 1,
                legacy_call: true,
                tries: 0
            }]
        );
        world.pending.clear();
        world
            .send(Command::Verdict {
                job: job.clone(),
                step: 1,
                verdict: Verdict::Unknown,
            })
            .unwrap();
        if again {
            assert_eq!(
                world.pending,
                [Effect::Propose {
                    job,
                    step: 2,
                    legacy_call: false,
                    tries: 1
                }]
            );
        } else {
            let Some(Record::Job(ended)) = world.ended.get(&Key::Job(job)) else {
                panic!("the job has ended")
            };
            assert_eq!(ended.state, JobState::Failed(Failure::because("proposal outcome unknown")));
        }
        world.check_replay();
    }
}

#[test]
fn an_answer_to_a_later_proposal_of_a_job_gives_up_the_earlier_ones() {
    let mut world = World::new(false);
    let id = |text: &str| ProposalId::parse(text).unwrap();
    for text in ["p2-1-1-coo_9", "p2-1-1-coo_10", "p2-1-1-coo_11", "p2-1-10-coo_1"] {
        world
            .send(Command::Offered {
                proposal: id(text),
                job_type: TypeName::parse("dummy").unwrap(),
            })
            .unwrap();
    }
    let closed = Err("the proposal closed meanwhile".to_owned());
    world
        .send(Command::Fetched {
            proposal: id("p2-1-1-coo_10"),
            result: closed.clone(),
        })
        .unwrap();
    // By number, not by text, and none of another job.
    let Some(Record::Participation(earlier)) = world.ended.get(&Key::Participation(id("p2-1-1-coo_9"))) else {
        panic!("it is given up")
    };
    assert_eq!(
        earlier.state,
        ParticipationState::Missed("the job was proposed again, as p2-1-1-coo_10".to_owned())
    );
    let left: Vec<_> = world.machine.participations.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["p2-1-1-coo_11", "p2-1-10-coo_1"]);
    let late = world.send(Command::Fetched {
        proposal: id("p2-1-1-coo_9"),
        result: closed,
    });
    assert!(matches!(late, Err(Rejection::Late(_))));
    world.check_replay();
}

#[test]
fn a_sent_task_cannot_take_the_place_of_another() {
    let mut world = World::new(false);
    let job = world.submit(LOCAL);
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 0,
            result: Ok(packed(false)),
        })
        .unwrap();
    let proposal = ProposalId::parse("evil-coo_1").unwrap();
    world
        .send(Command::Offered {
            proposal: proposal.clone(),
            job_type: TypeName::parse("x").unwrap(),
        })
        .unwrap();
    world
        .send(Command::Fetched {
            proposal: proposal.clone(),
            result: Ok(won(job.as_str(), "aggregator")),
        })
        .unwrap();
    let Some(Record::Participation(missed)) = world.ended.get(&Key::Participation(proposal)) else {
        panic!("it has ended")
    };
    assert!(matches!(missed.state, ParticipationState::Missed(_)));
}

#[test]
fn a_task_sent_before_its_job_was_proposed_is_not_taken() {
    let mut world = World::new(false);
    let job = world.submit(FULL);
    // The job that waits for its lease, and the next one of this party.
    for (n, of) in [(1, job.as_str()), (2, "p1-20261122212634-2")] {
        let proposal = ProposalId::parse(format!("evil-coo_{n}")).unwrap();
        world
            .send(Command::Offered {
                proposal: proposal.clone(),
                job_type: TypeName::parse("x").unwrap(),
            })
            .unwrap();
        world
            .send(Command::Fetched {
                proposal: proposal.clone(),
                result: Ok(won(of, "aggregator")),
            })
            .unwrap();
        let Some(Record::Participation(missed)) = world.ended.get(&Key::Participation(proposal)) else {
            panic!("it has ended")
        };
        assert!(matches!(missed.state, ParticipationState::Missed(_)), "{of}");
    }
}

#[test]
fn a_task_must_be_of_the_job_it_was_proposed_for_and_comes_once() {
    let mut world = World::new(false);
    let job = world.submit(LOCAL);
    let result = Ok(packed(false));
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 0,
            result,
        })
        .unwrap();
    let mut fetch = |proposal: &str, task: &str| {
        let proposal = ProposalId::parse(proposal).unwrap();
        let job_type = TypeName::parse("x").unwrap();
        world
            .send(Command::Offered {
                proposal: proposal.clone(),
                job_type,
            })
            .unwrap();
        let result = Ok(won(job.as_str(), task));
        world
            .send(Command::Fetched {
                proposal: proposal.clone(),
                result,
            })
            .unwrap();
        let Some(Record::Participation(participation)) = world.ended.get(&Key::Participation(proposal)) else {
            panic!("it has ended")
        };
        matches!(participation.state, ParticipationState::Won(_))
    };
    assert!(!fetch("p2-20261122212634-1-coo_1", "trainer_0"), "another job's proposal");
    assert!(fetch(&format!("{job}-coo_1"), "trainer_0"));
    assert!(!fetch(&format!("{job}-coo_2"), "trainer_1"), "a second task of an own job");
}

#[test]
fn an_own_task_that_fails_before_the_verdict_is_known_fails_the_job_and_endpoints_go_back_last() {
    let mut world = World::new(false);
    let job = world.submit(FULL);
    world
        .send(Command::Leased {
            job: job.clone(),
            step: 0,
            result: Ok(lease()),
        })
        .unwrap();
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 1,
            result: Ok(packed(true)),
        })
        .unwrap();
    for n in 1..=2 {
        let proposal = ProposalId::parse(format!("{job}-coo_{n}")).unwrap();
        let job_type = TypeName::parse("x").unwrap();
        world
            .send(Command::Offered {
                proposal: proposal.clone(),
                job_type,
            })
            .unwrap();
        let _ = world.send(Command::Fetched {
            proposal,
            result: Ok(won(job.as_str(), "trainer_0")),
        });
    }
    world.pending.clear();
    let key = TaskKey::parse(job.as_str(), "trainer_0").unwrap();
    world
        .send(Command::TaskEnded {
            key,
            outcome: outcome(End::Failed),
        })
        .unwrap();
    let proposal = ProposalId::parse(format!("{job}-coo_1")).unwrap();
    let Record::Report(owed) = &world.live[&Key::Report(proposal.clone())] else {
        panic!()
    };
    assert_eq!(owed.state, PeerState::Ended(End::Failed));
    let number = owed.number;
    let told = [
        Effect::Report { proposal, number },
        Effect::Follow {
            job: job.clone(),
            after: 0,
        },
    ];
    assert_eq!(world.pending[..2], told);
    assert_eq!(world.pending[2..], [Effect::ReleaseLease { job: job.clone() }]);
    let Some(Record::Job(closing)) = world.live.get(&Key::Job(job)) else {
        panic!("it holds its lease")
    };
    assert!(matches!(&closing.state, JobState::Failed(failure) if failure.reason == "task trainer_0 failed: why"));
}

/// One step of a random history; numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Submit(bool, bool),
    Offer(u8, bool),
    /// The coordinator orders a task to be stopped.
    Order(u8, bool, u8),
    /// Carry out a pending effect; keep it pending when the flag is set, so that it is delivered again.
    Act(u16, u8, bool),
    /// Deliver an outcome with an old step or for an ended record.
    Late(u16, u8),
    /// A user does something to a job.
    User(u8, u8),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any::<bool>(), any::<bool>()).prop_map(|(endpoints, workers)| Step::Submit(endpoints, workers)),
        2 => (0u8..12, any::<bool>()).prop_map(|(n, own)| Step::Offer(n, own)),
        1 => (0u8..12, any::<bool>(), 0u8..2).prop_map(|(n, own, task)| Step::Order(n, own, task)),
        12 => (any::<u16>(), any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(i, how, again)| Step::Act(i, how, again)),
        2 => (any::<u16>(), any::<u8>()).prop_map(|(i, how)| Step::Late(i, how)),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(i, how)| Step::User(i, how)),
        1 => Just(Step::Crash),
    ]
}

/// The outcome of an effect, one of those its executor can come back with.
fn outcome_of(effect: &Effect, how: u8) -> Command {
    match effect.clone() {
        Effect::WakeAt { job, step, .. } => Command::Wake { job, step },
        Effect::DeadlineAt { job, .. } => Command::DeadlinePassed { job },
        Effect::Forget { job, .. } | Effect::GiveUp { job, .. } => Command::Forgotten { job },
        Effect::AcquireLease { job, step, .. } => {
            let result = if how.is_multiple_of(3) {
                Err("no slot".to_owned())
            } else {
                Ok(lease())
            };
            Command::Leased { job, step, result }
        }
        Effect::ReleaseLease { job } => Command::LeaseReleased { job },
        Effect::Prepare { job, step } => {
            let result = match how % 4 {
                0 => Err(Failure::because("compile error")),
                1 => Ok(packed(false)),
                _ => Ok(packed(true)),
            };
            Command::Prepared { job, step, result }
        }
        Effect::Propose {
            job, step, legacy_call, ..
        } => match how % 5 {
            0 => Command::LegacyProposal { job, step },
            1 => Command::Verdict {
                job,
                step,
                verdict: Verdict::Refused("nobody".into()),
            },
            _ if legacy_call => Command::Verdict {
                job,
                step,
                verdict: Verdict::Unknown,
            },
            2 => Command::Note {
                job,
                step,
                note: "waiting".into(),
            },
            _ => Command::Verdict {
                job,
                step,
                verdict: Verdict::Accepted,
            },
        },
        Effect::Submit { key, tries } => {
            let answer = match how % 4 {
                0 => SubmitAnswer::Refused,
                1 => SubmitAnswer::TakenUnwatched,
                _ => SubmitAnswer::Taken,
            };
            Command::Submitted { key, tries, answer }
        }
        Effect::Watch { key } | Effect::Cancel { key, .. } => {
            let end = [End::Succeeded, End::Succeeded, End::Failed, End::Cancelled][usize::from(how % 4)];
            Command::TaskEnded {
                key,
                outcome: outcome(end),
            }
        }
        Effect::Fetch { proposal } => {
            let result = match how % 3 {
                0 => Err("drawn out".to_owned()),
                _ => Ok(won(job_part(&proposal), &format!("trainer_{}", how % 2))),
            };
            Command::Fetched { proposal, result }
        }
        Effect::Follow { job, .. } => Command::News {
            job,
            news: federation::tests::news(how),
        },
        Effect::Report { proposal, number } => Command::Reported { proposal, number },
        Effect::Withdraw { job } => Command::Withdrawn { job },
    }
}

fn job_part(proposal: &ProposalId) -> &str {
    proposal.as_str().rsplit_once("-coo_").map_or("other", |(job, _)| job)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_every_invariant(again in any::<bool>(), steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(again);
        let mut seen: Vec<Effect> = Vec::new();
        for step in steps {
            match step {
                Step::Submit(endpoints, workers) => {
                    let plan = Plan { endpoints: u16::from(endpoints), workers: u32::from(workers), wait_s: 5 };
                    let mut spec = spec(plan);
                    spec.max_attempts = 1 + u32::from(endpoints);
                    spec.not_before = workers.then_some(Timestamp(world.now + 5));
                    spec.deadline = endpoints.then_some(Timestamp(world.now + 20_000_000));
                    let key = Some(KeyHash([u8::from(endpoints) + 2 * u8::from(workers); 32]));
                    let provenance = Provenance { key, ..Provenance::unknown() };
                    let _ = world.send(Command::Submit { spec, provenance, fingerprint: [0; 32] });
                    world.submit(plan);
                }
                Step::User(i, how) => {
                    let _ = world.send(world.user(i, how));
                }
                Step::Offer(n, own) => {
                    let job = if own { format!("p1-20261122212634-{n}") } else { format!("p2-20261122212634-{n}") };
                    let proposal = ProposalId::parse(format!("{job}-coo_{n}")).unwrap();
                    world.send(Command::Offered { proposal, job_type: TypeName::parse("program").unwrap() }).unwrap();
                }
                Step::Order(n, own, task) => {
                    let job = if own { format!("p1-20261122212634-{n}") } else { format!("p2-20261122212634-{n}") };
                    let proposal = ProposalId::parse(format!("{job}-coo_{n}")).unwrap();
                    let key = TaskKey::parse(job, format!("trainer_{task}")).unwrap();
                    let _ = world.send(Command::StopOrdered { proposal, key, reason: "unwanted".to_owned() });
                }
                Step::Act(i, how, keep) if !world.pending.is_empty() => {
                    let i = usize::from(i) % world.pending.len();
                    let effect = if keep { world.pending[i].clone() } else { world.pending.swap_remove(i) };
                    let first = world.send(outcome_of(&effect, how));
                    if !matches!(effect, Effect::Propose { .. } | Effect::WakeAt { .. } | Effect::DeadlineAt { .. } | Effect::GiveUp { .. }) {
                        let events = world.events.len();
                        let second = world.send(outcome_of(&effect, how));
                        let repeats = matches!(effect, Effect::Follow { .. }) && second == Ok(Reply::Known);
                        prop_assert!(second.is_err() || first.is_err() || repeats, "{effect:?} took effect twice");
                        prop_assert_eq!(world.events.len(), events);
                    }
                    seen.push(effect);
                }
                Step::Late(i, how) if !seen.is_empty() => {
                    let effect = seen[usize::from(i) % seen.len()].clone();
                    let _ = world.send(outcome_of(&effect, how));
                }
                Step::Crash => world.crash(),
                Step::Act(..) | Step::Late(..) => {}
            }
        }
        world.check_replay();
        drain(&mut world);
        prop_assert!(world.live.keys().all(|key| matches!(key, Key::Counter)), "everything ends: {:?}", world.live);
        for record in world.ended.values() {
            let Record::Task(task) = record else { continue };
            let of_cancelled = world.ended.get(&Key::Job(task.key.job.clone()));
            if let Some(Record::Job(Job { state: JobState::Cancelled { .. }, changed_at, .. })) = of_cancelled {
                prop_assert!(task.queued_at <= *changed_at, "{} came after its job was cancelled", task.key);
            }
        }
        world.check_replay();
    }
}

/// From any state, a world in which everything works ends every job, task and participation.
fn drain(world: &mut World) {
    world.now += 1_000_000;
    world.crash();
    for _ in 0..10_000 {
        let held = |record: &Record| match record {
            Record::Job(job) if job.state == JobState::Held => Some(job.id.clone()),
            _ => None,
        };
        if let Some(job) = world.live.values().find_map(held) {
            world.send(Command::Release { job }).unwrap();
        }
        let Some(effect) = world.pending.pop() else { return };
        if let Effect::WakeAt { at, .. } = &effect {
            world.now = world.now.max(at.0);
        }
        if let Effect::DeadlineAt { .. } = &effect {
            continue;
        }
        let _ = world.send(outcome_of(&effect, 19));
    }
    panic!("the machine never comes to rest");
}
