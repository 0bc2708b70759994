//! Random histories: the invariants hold after every command, a replay and a restart give the same records, the timers of what is live
//! come back.

use super::*;
use crate::machine::outcome::End;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    /// Time passes.
    Wait(u64),
    /// The process dies and comes back with what was recorded.
    Restart,
}

fn command() -> impl Strategy<Value = Command> {
    let name = || prop::sample::select(vec!["a", "b", "c", "d", "e"]);
    let jobs = || prop::sample::select(vec!["j", "k", "l", "m"]);
    let types = prop::collection::vec(prop::sample::select(vec!["dummy", "other"]).prop_map(kind), 0..3);
    let instance = prop::option::of(prop::sample::select(vec!["i", "k"]).prop_map(str::to_owned));
    prop_oneof![
        3 => (name(), types, instance).prop_map(|(name, job_types, instance)| {
            // The session is put in when the step is run: it is never used twice.
            Command::Subscribe { party: party(name), session: 0, job_types, instance }
        }),
        1 => (name(), 1u64..40).prop_map(|(name, session)| Command::StreamBroken { party: party(name), session }),
        1 => name().prop_map(|name| Command::Leave { party: party(name) }),
        2 => (jobs(), 1u32..5, 1u32..3, 0u32..2, 1u32..4).prop_map(|(name, tasks, wait, min, max)| owned(propose(name, tasks, wait, min, max))),
        3 => (jobs(), 0u32..5, 0u32..3, 0u32..3, 0u32..4).prop_map(|(name, tasks, wait, min, max)| propose(name, tasks, wait, min, max)),
        1 => jobs().prop_map(|name| propose(name, u32::try_from(RELEASE_MAX).unwrap(), 1, 0, 3)),
        6 => (name(), jobs(), 1u64..6).prop_map(|(name, job, n)| fetch(name, &format!("{job}-coo_{n}"))),
        3 => jobs().prop_map(close),
        2 => jobs().prop_map(|name| Command::Expire { job: job(name) }),
        4 => (name(), jobs(), 1u64..6, 0u32..3, prop::sample::select(vec!["i", "k"]), states()).prop_map(|(name, of, n, task, instance, state)| {
            Command::Report {
                party: party(name),
                job: job(of),
                proposal: proposal(&format!("{of}-coo_{n}")),
                task: TaskId::parse(format!("trainer_{task}")).unwrap(),
                instance: instance.to_owned(),
                state,
                reason: "because".to_owned(),
            }
        }),
        1 => jobs().prop_map(|name| Command::Cancel {
            job: job(name),
            job_type: kind("dummy"),
            owner: "owner".to_owned(),
            reason: "unwanted".to_owned(),
        }),
        2 => (jobs(), name()).prop_map(|(of, name)| Command::Stop { job: job(of), party: party(name), reason: "unwanted".to_owned() }),
    ]
}

fn states() -> impl Strategy<Value = AssignmentState> {
    prop::sample::select(vec![
        AssignmentState::Running,
        AssignmentState::Ended(End::Succeeded),
        AssignmentState::Ended(End::Failed),
    ])
}

/// Whoever proposes may follow and cancel.
fn owned(command: Command) -> Command {
    let mut command = command;
    if let Command::Propose { owner, .. } = &mut command {
        *owner = Some("owner".to_owned());
    }
    command
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => command().prop_map(Step::Command),
        1 => (0u64..100_000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// A world with the disk beside it.
struct History {
    world: World,
    events: Vec<Event>,
    live: BTreeMap<Key, Record>,
    held: BTreeMap<PayloadRef, i64>,
    sessions: u64,
}

impl History {
    fn new() -> Self {
        let mut history = Self {
            world: World::new(),
            events: Vec::new(),
            live: BTreeMap::new(),
            held: BTreeMap::new(),
            sessions: 0,
        };
        history.run(Command::Started);
        history
    }

    fn run(&mut self, mut command: Command) {
        if let Command::Subscribe { session, .. } = &mut command {
            self.sessions += 1;
            *session = self.sessions;
        }
        self.world.random = self.world.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // `World::run` checks the invariants.
        let (reply, out) = self.world.run(command);
        assert!(reply.is_ok() || out.events.is_empty() && out.effects.is_empty());
        for key in out.changes.keys {
            match self.world.machine.record(&key).filter(Coordinator::is_live) {
                Some(record) => self.live.insert(key, record),
                None => self.live.remove(&key),
            };
        }
        for payload in out.changes.held {
            *self.held.entry(payload).or_default() += 1;
        }
        for payload in out.changes.released {
            *self.held.entry(payload).or_default() -= 1;
        }
        self.events.extend(out.events.into_iter().map(|logged| logged.event));
        self.check();
    }

    fn restart(&mut self) {
        let mut machine = Coordinator::new(RULES);
        for (key, record) in &self.live {
            machine.restore(key, record.clone());
        }
        self.world.machine = machine;
        self.world.leaving.clear();
        self.run(Command::Started);
        assert!(
            self.world
                .machine
                .parties
                .values()
                .all(|party| !self.world.machine.is_connected(party))
        );
    }

    fn check(&self) {
        // What was counted as held is what the live records hold.
        let mut held: BTreeMap<PayloadRef, i64> = BTreeMap::new();
        for payload in self.live.values().flat_map(Coordinator::payloads) {
            *held.entry(payload).or_default() += 1;
        }
        let counted: BTreeMap<_, _> = self.held.iter().filter(|(_, n)| **n != 0).map(|(p, n)| (*p, *n)).collect();
        assert_eq!(counted, held);
        // Every live proposal has exactly one timer.
        let timers = self.world.machine.resume(self.world.now);
        let orders = timers.iter().filter(|effect| matches!(effect, Effect::Order { .. }));
        assert_eq!(orders.count(), self.live.keys().filter(|key| matches!(key, Key::Order(..))).count());
        let covered: Vec<JobId> = timers
            .iter()
            .filter(|effect| !matches!(effect, Effect::Order { .. }))
            .map(|effect| match effect {
                Effect::CloseAt { job, .. } => {
                    assert!(self.world.machine.proposals[job].proposal.is_open());
                    job.clone()
                }
                Effect::ExpireAt { job, .. } => {
                    assert!(!self.world.machine.proposals[job].proposal.is_open());
                    job.clone()
                }
                other => panic!("resume asks for {other:?}"),
            })
            .collect();
        let live: Vec<JobId> = self
            .live
            .keys()
            .filter_map(|key| if let Key::Proposal(job) = key { Some(job.clone()) } else { None })
            .collect();
        assert_eq!(covered, live);
    }

    fn replayed(&self) -> (BTreeMap<Key, Record>, BTreeMap<Key, Record>) {
        let mut machine = Coordinator::new(RULES);
        let mut changes = Changes::default();
        for event in &self.events {
            machine.apply(event, &mut changes);
        }
        let records = changes
            .keys
            .iter()
            .filter_map(|key| machine.record(key).map(|record| (key.clone(), record)));
        records.partition(|(_, record)| Coordinator::is_live(record))
    }
}

fn run(steps: Vec<Step>, times: usize, batch: usize) {
    let mut history = History::new();
    history.world.batch = batch;
    for step in steps {
        match step {
            Step::Command(command) => (0..times).for_each(|_| history.run(command.clone())),
            Step::Wait(ms) => history.world.now = history.world.now.plus_ms(ms),
            Step::Restart => history.restart(),
        }
    }
    let (live, ended) = history.replayed();
    assert_eq!(live, history.live);
    assert_eq!(ended, history.world.ended);
}

proptest! {
    #[test]
    fn histories_keep_the_invariants_and_replay(steps in steps(), batch in 0usize..4) {
        run(steps, 1, batch);
    }

    #[test]
    fn every_command_may_come_twice(steps in steps(), batch in 0usize..4) {
        run(steps, 2, batch);
    }
}
