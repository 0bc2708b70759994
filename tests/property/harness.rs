//! A history: bursts of commands and faults, with everything checked that must hold whatever the machine is.
//!
//! What is checked, and where: (a) nothing answered is lost, nothing is there in part (`Shadow::recovered`); (b) the numbered
//! invariants after each command and each start (`Shadow`); (c) records and payload counts are what the log says (`Shadow::recovered`);
//! (d) an effect leaves after its record (`process`); (e) effects delivered twice and late end like effects delivered once
//! ([`twice_is_once`]); (f) a world that works brings everything to an end ([`History::come_to_rest`]).

use crate::process::{Answer, Gate, Process, Waiting};
use crate::replayed;
use crate::shadow::Shadow;
use fedbroker::engine::Refusal;
use fedbroker::machine::Machine;
use fedbroker::machine::content::Content;
use fedbroker::store::payload::{Payloads, Pinned};
use fedbroker::store::sim_store::{Fate, SimDisk};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

type CommandOf<W> = <<W as World>::Machine as Machine>::Command;
type EffectOf<W> = <<W as World>::Machine as Machine>::Effect;
type KeyOf<W> = <<W as World>::Machine as Machine>::Key;
type RecordOf<W> = <<W as World>::Machine as Machine>::Record;

/// How a record stands to an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It asks for it.
    Now,
    /// It asked for it and has moved on.
    Earlier,
    /// It never asked for it.
    Never,
}

/// What is around a machine: users, peers and executors.
pub trait World: Default {
    type Machine: Machine<Command: Clone, Reply: PartialEq, Rejection: PartialEq>;
    /// What somebody outside does of his own accord.
    type Act: Clone + Debug;

    fn acts() -> BoxedStrategy<Self::Act>;
    fn machine() -> Self::Machine;
    fn check(machine: &Self::Machine) -> Result<(), String>;
    /// The first command of a process.
    fn started() -> Option<CommandOf<Self>>;
    /// A command that changes nothing: once it is answered, all effects before it are handed on.
    fn probe() -> CommandOf<Self>;
    /// An effect was handed on.
    fn saw(&mut self, _: &EffectOf<Self>) {}
    fn act(&mut self, act: &Self::Act, contents: &mut Contents) -> CommandOf<Self>;
    /// What an executor sends while it carries out an effect; `how` chooses among what can come of it, 0 is the good end.
    fn outcomes(effect: &EffectOf<Self>, how: u8, contents: &mut Contents) -> Vec<CommandOf<Self>>;
    /// False for an effect whose outcome is a new wish of somebody, which is no repetition when it comes later.
    fn may_come_late(effect: &EffectOf<Self>) -> bool;
    fn standing(effect: &EffectOf<Self>, read: &dyn Fn(&KeyOf<Self>) -> Option<RecordOf<Self>>) -> Standing;
    /// True for an act whose end takes several commands: a repetition of the first of them is the second.
    fn ends_in_pieces(_: &Self::Act) -> bool {
        false
    }
    /// What a reply says for good.
    fn promise(command: &CommandOf<Self>, reply: &<Self::Machine as Machine>::Reply) -> Option<(KeyOf<Self>, Holds<Self>)>;
    /// What users and peers do so that everything can end.
    fn help(&mut self) -> Vec<CommandOf<Self>>;
    /// True for a live record that stays when there is nothing to do.
    fn stays(record: &RecordOf<Self>) -> bool;
    /// The last event of a record that has a story.
    fn last_event(_: &RecordOf<Self>) -> Option<u64> {
        None
    }
}

pub type Holds<W> = fn(&str, &RecordOf<W>) -> bool;

/// Contents as a door brings them: large ones in files that exist before the command does.
pub struct Contents {
    payloads: Arc<Payloads>,
    pins: Vec<Pinned>,
}

impl Contents {
    /// Few different ones, so that records share files; every third is small.
    pub fn make(&mut self, n: u8) -> Content {
        if n.is_multiple_of(3) {
            return Content::Inline(vec![n; 5]);
        }
        let pinned = self.payloads.put(&[n % 5; 600]).unwrap();
        let content = Content::Stored(*pinned);
        self.pins.push(pinned);
        content
    }
}

/// A step of a history; numbers choose among what is there.
#[derive(Clone, Debug)]
pub enum Step<A> {
    Act(A),
    /// An executor carries out a pending effect, which stays pending when the flag is set, as if it had been handed on twice.
    Execute(u16, u8, bool),
    /// The outcome of an effect of long ago, of this process or an earlier one.
    Late(u16, u8),
    /// Events are let go of, up to this part of them all.
    Trim(u8),
}

/// What happens to the process during or after a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It is killed when all is answered.
    Crash,
    /// The barrier fails.
    Fail(Kept),
    /// Power goes while the barrier is out.
    Cut(Kept),
    /// The barrier takes long.
    Slow,
    /// The disk is full.
    Full,
}

type Kept = bool;

fn fate(kept: Kept) -> Fate {
    if kept { Fate::Kept } else { Fate::Lost }
}

pub type Burst<A> = (Vec<Step<A>>, Fault);

fn step<W: World>() -> impl Strategy<Value = Step<W::Act>> {
    prop_oneof![
        5 => W::acts().prop_map(Step::Act),
        6 => (any::<u16>(), any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(i, how, again)| Step::Execute(i, how, again)),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(i, how)| Step::Late(i, how)),
        1 => any::<u8>().prop_map(Step::Trim),
    ]
}

fn bursts<W: World>() -> impl Strategy<Value = Vec<Burst<W::Act>>> {
    let fault = prop_oneof![
        12 => Just(Fault::None),
        2 => Just(Fault::Crash),
        2 => any::<bool>().prop_map(Fault::Fail),
        2 => any::<bool>().prop_map(Fault::Cut),
        2 => Just(Fault::Slow),
        1 => Just(Fault::Full),
    ];
    prop::collection::vec((prop::collection::vec(step::<W>(), 1..6), fault), 1..30)
}

/// One run.
pub struct History<W: World> {
    world: W,
    disk: SimDisk,
    dir: tempfile::TempDir,
    gate: Gate,
    now: u64,
    process: Process<W>,
    contents: Contents,
    shadow: Shadow<W>,
    /// Handed on and not carried out, by their words, so that two runs choose alike.
    pending: BTreeMap<String, EffectOf<W>>,
    seen: Vec<EffectOf<W>>,
    trims: bool,
}

impl<W: World> Drop for History<W> {
    /// Lets the loop's thread go, also after a failed check.
    fn drop(&mut self) {
        self.gate.open();
        self.disk.lose();
    }
}

impl<W: World> History<W> {
    fn new() -> Self {
        // The disk under test is the simulated one; the payload files need not wait for a real one.
        let in_memory = std::path::Path::new("/dev/shm");
        let parent = if in_memory.is_dir() {
            in_memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let (disk, dir, gate) = (SimDisk::new(), tempfile::tempdir_in(parent).unwrap(), Gate::default());
        let now = 1_700_000_000_000_000;
        gate.set(now);
        let starting = Process::<W>::recover(&disk, dir.path(), &gate).unwrap();
        let contents = Contents {
            payloads: starting.payloads.clone(),
            pins: Vec::new(),
        };
        let mut history = Self {
            world: W::default(),
            process: starting.start(),
            contents,
            disk,
            dir,
            gate,
            now,
            shadow: Shadow::new(),
            pending: BTreeMap::new(),
            seen: Vec::new(),
            trims: true,
        };
        history.begin(Vec::new());
        history
    }

    fn run(&mut self, bursts: &[Burst<W::Act>]) {
        for (steps, fault) in bursts {
            self.now += 7_000_000;
            self.gate.set(self.now);
            let commands = steps.iter().flat_map(|step| self.commands(step)).collect();
            let trim = steps
                .iter()
                .find_map(|step| if let Step::Trim(part) = step { Some(*part) } else { None });
            let trim = trim
                .filter(|_| self.trims)
                .map(|part| self.shadow.events.len() as u64 * u64::from(part) / 200);
            self.burst_and_trim(commands, trim, *fault);
        }
    }

    fn commands(&mut self, step: &Step<W::Act>) -> Vec<CommandOf<W>> {
        match step {
            Step::Act(act) => vec![self.world.act(act, &mut self.contents)],
            Step::Execute(_, _, _) if self.pending.is_empty() => Vec::new(),
            Step::Execute(i, how, again) => {
                let name = self.pending.keys().nth(usize::from(*i) % self.pending.len()).cloned().unwrap();
                let effect = self.pending[&name].clone();
                if !again {
                    self.pending.remove(&name);
                }
                self.seen.push(effect.clone());
                W::outcomes(&effect, *how, &mut self.contents)
            }
            Step::Late(_, _) if self.seen.is_empty() => Vec::new(),
            Step::Trim(_) => Vec::new(),
            Step::Late(i, how) => W::outcomes(&self.seen[usize::from(*i) % self.seen.len()], *how, &mut self.contents),
        }
    }

    fn burst(&mut self, commands: Vec<CommandOf<W>>, fault: Fault) {
        self.burst_and_trim(commands, None, fault);
    }

    /// All commands in one turn of the loop; it also lets go of events.
    fn burst_and_trim(&mut self, commands: Vec<CommandOf<W>>, trim: Option<u64>, fault: Fault) {
        self.order(fault);
        self.process.be_strict(commands.len() == 1);
        self.gate.close();
        let before = self.gate.taken();
        let mut waiting: Vec<Waiting<_>> = commands.iter().map(|command| self.process.send(command.clone())).collect();
        let mut trimming = trim.map(|to| self.process.trim(to));
        self.gate.open();
        if matches!(fault, Fault::Cut(_) | Fault::Slow) {
            self.hold(fault, &mut waiting, &mut trimming);
        }
        let answers: Vec<_> = waiting.into_iter().map(Waiting::wait).collect();
        let trimmed = trimming.map(Waiting::wait);
        assert_eq!(self.gate.taken() - before, commands.len(), "a burst is one turn");

        let failed = trimmed == Some(None) || answers.iter().any(|answer| !matches!(answer, Ok(_) | Err(Refusal::Rejected(_))));
        assert!(
            !failed || !matches!(fault, Fault::None | Fault::Crash | Fault::Slow),
            "failed without a fault"
        );
        if let Some(to) = trim {
            self.shadow.trim(to, trimmed.flatten());
        }
        let mut effects = Vec::new();
        for (command, answer) in commands.into_iter().zip(answers) {
            let (reply, asked) = self.shadow.take(command.clone(), self.now);
            effects.extend(asked);
            match answer {
                Ok(answer) => {
                    assert_eq!(Ok(&answer), reply.as_ref(), "the engine answers as the machine does");
                    if let Some((key, holds)) = W::promise(&command, &answer) {
                        self.shadow.promise((format!("{answer:?} to {command:?}"), key, holds));
                    }
                }
                Err(Refusal::Rejected(rejection)) => assert_eq!(Err(rejection), reply, "the engine refuses as the machine does"),
                Err(_) => continue,
            }
            assert!(!failed, "a failed commit answers somebody");
        }
        if !failed {
            self.shadow.answered();
        }
        self.contents.pins.clear();
        if failed {
            // The poisoned loop ends by itself and stops the role.
            self.process.end();
            self.process.has_stopped();
            self.restart();
        } else if fault == Fault::Crash {
            self.crash();
        } else {
            self.disk.heal();
            self.collect(effects);
        }
    }

    fn order(&self, fault: Fault) {
        match fault {
            Fault::Fail(kept) => self.disk.fail_next_barrier(fate(kept)),
            Fault::Full => self.disk.set_full(true),
            Fault::Cut(_) | Fault::Slow => self.disk.hold_next_barrier(),
            Fault::None | Fault::Crash => {}
        }
    }

    /// While the barrier is out nobody has an answer and nothing is handed on.
    fn hold(&self, fault: Fault, waiting: &mut [Waiting<Answer<W::Machine>>], trimming: &mut Option<Waiting<Option<u64>>>) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.disk.is_held() {
            if waiting.iter_mut().all(Waiting::is_answered) && trimming.iter_mut().all(Waiting::is_answered) {
                return;
            }
            assert!(Instant::now() < until, "a burst is neither answered nor committed");
            std::thread::park_timeout(Duration::from_micros(50));
        }
        assert!(!waiting.iter_mut().any(Waiting::is_answered), "answered before the barrier");
        assert!(!trimming.iter_mut().any(Waiting::is_answered), "answered before the barrier");
        assert!(self.process.effects().is_empty(), "handed on before the barrier");
        match fault {
            Fault::Cut(true) => self.disk.keep(),
            Fault::Cut(false) => self.disk.lose(),
            _ => self.disk.release(),
        }
    }

    fn collect(&mut self, expected: Vec<EffectOf<W>>) {
        let _ = self.process.send(W::probe()).wait();
        let effects = self.process.effects();
        assert_eq!(effects, expected, "handed on, asked for by the machine");
        effects.iter().for_each(|effect| self.world.saw(effect));
        self.pending
            .extend(effects.into_iter().map(|effect| (format!("{effect:?}"), effect)));
    }

    /// Kill the process, and start another one on what is there.
    fn crash(&mut self) {
        self.disk.lose();
        self.process.end();
        self.restart();
    }

    fn restart(&mut self) {
        self.contents.pins.clear();
        self.pending.clear();
        let starting = match Process::<W>::recover(&self.disk, self.dir.path(), &self.gate) {
            Ok(starting) => starting,
            Err(error) => {
                assert!(error.is_full(), "{error}");
                self.disk.heal();
                Process::<W>::recover(&self.disk, self.dir.path(), &self.gate).unwrap()
            }
        };
        self.disk.heal();
        let handle = starting.engine.handle();
        self.shadow.recovered(handle.reader(), &self.disk, self.dir.path());
        drop(handle);
        self.contents.payloads = starting.payloads.clone();
        self.process = starting.start();
        let resumed = self.shadow.machine.resume(fedbroker::machine::ids::Timestamp(self.now));
        self.begin(resumed);
    }

    /// The first things a process does.
    fn begin(&mut self, resumed: Vec<EffectOf<W>>) {
        let _ = self.process.send(W::probe()).wait();
        self.collect(resumed);
        if let Some(command) = W::started() {
            self.burst(vec![command], Fault::None);
        }
    }

    /// From here, a world in which everything works brings everything to an end.
    fn come_to_rest(&mut self) {
        self.crash();
        for command in self.world.help() {
            self.burst(vec![command], Fault::None);
        }
        for _ in 0..5_000 {
            let Some((_, effect)) = self.pending.pop_first() else {
                self.crash();
                let left: Vec<_> = self.shadow.live.values().filter(|record| !W::stays(record)).collect();
                assert!(left.is_empty(), "never comes to an end: {left:?}");
                return;
            };
            // A timer fires at its time, not before.
            self.now += 7_000_000;
            self.gate.set(self.now);
            let outcomes = W::outcomes(&effect, 0, &mut self.contents);
            outcomes.into_iter().for_each(|command| self.burst(vec![command], Fault::None));
        }
        panic!("never comes to rest: {:?}", self.pending);
    }

    /// Each step on its own, without faults but crashes; with `twice` each outcome comes again at once and, if it may, once more later.
    fn deliver(&mut self, bursts: &[Burst<W::Act>], twice: bool) {
        let mut late: Option<(EffectOf<W>, u8)> = None;
        for (steps, fault) in bursts {
            for step in steps {
                self.now += 7_000_000;
                self.gate.set(self.now);
                let (before, how) = (self.seen.len(), if let Step::Execute(_, how, _) = step { *how } else { 0 });
                if matches!(step, Step::Late(..)) || matches!(step, Step::Act(act) if W::ends_in_pieces(act)) {
                    continue;
                }
                let step = if let Step::Execute(i, how, _) = step {
                    Step::Execute(*i, *how, false)
                } else {
                    step.clone()
                };
                for command in self.commands(&step) {
                    self.burst(vec![command], Fault::None);
                }
                if twice && self.seen.len() > before {
                    let effect = self.seen[before].clone();
                    self.again(&effect, how);
                    if let Some((effect, how)) = late.replace((effect, how)).filter(|(effect, _)| W::may_come_late(effect)) {
                        self.again(&effect, how.wrapping_add(1));
                    }
                }
            }
            if *fault != Fault::None {
                self.crash();
            }
        }
        self.now += 7_000_000;
        self.gate.set(self.now);
        self.come_to_rest();
    }

    /// A repetition changes nothing.
    fn again(&mut self, effect: &EffectOf<W>, how: u8) {
        let events = self.shadow.events.len();
        for command in W::outcomes(effect, how, &mut self.contents) {
            self.burst(vec![command], Fault::None);
        }
        assert_eq!(self.shadow.events[events..], [], "{effect:?} took effect twice");
    }
}

/// Random histories with every kind of fault.
pub fn survives<W: World>(cases: u32) {
    check::<W>(cases, |bursts| {
        let mut history = History::<W>::new();
        history.run(&bursts);
        history.come_to_rest();
    });
}

/// `engine::replay` finds the log and the records of a history in agreement, and each record that was tampered with.
pub fn replays<W: World>(cases: u32) {
    check::<W>(cases, |bursts| {
        let mut history = History::<W>::new();
        history.trims = false;
        history.run(&bursts);
        history.crash();
        replayed::agrees::<W>(&history.disk);
        history.come_to_rest();
        replayed::agrees::<W>(&history.disk);
        replayed::finds::<W>(&history.disk);
        replayed::needs_all_events::<W>(&history.disk);
    });
}

/// A history in which every effect is delivered twice and late ends with the records of one in which each is delivered once.
pub fn twice_is_once<W: World>(cases: u32) {
    check::<W>(cases, |bursts| {
        let (mut once, mut twice) = (History::<W>::new(), History::<W>::new());
        once.deliver(&bursts, false);
        twice.deliver(&bursts, true);
        assert_eq!(once.shadow.live, twice.shadow.live);
        assert_eq!(once.shadow.ended, twice.shadow.ended);
    });
}

fn check<W: World>(cases: u32, run: impl Fn(Vec<Burst<W::Act>>)) {
    let given = std::env::var("PROPERTY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| u64::from(std::process::id()) << 32 | u64::from(cases));
    println!("PROPERTY_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tested = runner.run(&bursts::<W>(), |bursts| {
        run(bursts);
        Ok(())
    });
    if let Err(error) = tested {
        panic!("PROPERTY_SEED={seed}\n{error}");
    }
}
