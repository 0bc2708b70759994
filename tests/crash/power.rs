//! Power cuts, by model: the file operations of the real store are recorded, and at sampled points the disk is left in the states that
//! POSIX allows. Each must open, hold exactly the batches 1 to k with confirmed <= k <= begun, and go on from there.
//!
//! `trace` runs processes under `strace`, `replay` plays what they did into `model`, which knows what is durable, `states` chooses what is left,
//! `workload` commits and compares, `checker` opens the states.

mod checker;
mod model;
mod old_format;
mod replay;
mod states;
mod strace;
mod trace;
mod workload;

use crate::settler::Settler;
use checker::{Checker, Job, Tally};
use model::Tree;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use replay::Progress;
use rustix::process::{Signal, getpid, kill_process};
use states::{DRAWN, DRAWN_AT_NAMES, Kind};
use std::io::Write;
use std::path::{Path, PathBuf};
use trace::{BATCHES_MAX, CHILD_DIR, CHILD_SCRIPT, End, Trace, sessions};
use workload::{Opened, Oracle, Workload};

const POINTS: usize = 300;
/// States at each point, besides the one that keeps everything, which is looked at in every eighth.
const STATES: usize = 3;
/// Of so many states one is opened under strace, and that open is crashed again.
const SECOND_EVERY: usize = 100;
const SECOND_POINTS: usize = 8;
/// No more points are tried after so many failures.
const FAILURES_ENOUGH: usize = 20;

#[test]
#[ignore = "the process that the tests below record"]
fn child_that_commits() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let script = std::env::var(CHILD_SCRIPT).unwrap();
    let script: Vec<u64> = script.split(' ').map(|word| word.parse().unwrap()).collect();
    let [seed, bulk, batches, kill] = script[..] else {
        panic!("four numbers")
    };
    let workload = Workload { seed, bulk: bulk == 1 };
    // One write for each line; the harness may have begun one.
    let say = |word: &str, k: u64| std::io::stdout().write_all(format!("{word} {k}\n").as_bytes()).unwrap();
    println!();
    let mut opened = Opened::open(Path::new(&dir)).unwrap();
    say("opened", opened.batches);
    // Without one the commits settle by themselves.
    let settler = (!seed.is_multiple_of(3)).then(|| Settler::start(opened.store.clone()));
    for _ in 0..batches {
        let k = opened.batches + 1;
        say("begun", k);
        opened.commit(workload, || say("confirmed", k)).unwrap();
    }
    if kill == 1 {
        kill_process(getpid(), Signal::KILL).unwrap();
    }
    drop(settler);
}

/// Cut the power at sampled points of a trace and hand the states to the checker.
fn cut(trace: &Trace, workload: Workload, points: usize, random: &mut StdRng, checker: &Checker<'_>) {
    let mut states = 0;
    let sampled = trace.sample(points, random);
    checker.note(|tally| tally.points += sampled.len());
    trace.walk(&sampled, |replay, of_names, place| {
        if checker.note(|tally| tally.failures.len()) >= FAILURES_ENOUGH {
            return;
        }
        let drawn = if of_names { &DRAWN_AT_NAMES[..] } else { &DRAWN };
        let mut kinds: Vec<Kind> = drawn.sample(random, STATES - 1).copied().collect();
        kinds.push(Kind::Dropped);
        if random.random_ratio(1, 8) {
            kinds.push(Kind::Kept);
        }
        if replay.disk.pending.is_empty() {
            kinds.truncate(1);
        }
        for kind in kinds {
            let tree = states::state(&replay.disk, kind, random);
            states += 1;
            if states % SECOND_EVERY == 0 && kind != Kind::Kept {
                cut_again(&tree, &place, replay.progress, workload, random, checker);
            }
            checker.check(Job {
                tree,
                place: format!("{place}, {kind:?}"),
                progress: replay.progress,
                workload,
                reopen: random.random_ratio(1, 8),
            });
        }
    });
}

/// Open a state that a power cut has left, and cut the power again meanwhile.
fn cut_again(tree: &Tree, place: &str, progress: Progress, workload: Workload, random: &mut StdRng, checker: &Checker<'_>) {
    // A state that does not open has failed already; the checker says so.
    let Ok(trace) = Trace::record(tree, progress, workload, &[(1, End::Close)]) else {
        return;
    };
    let sampled = trace.sample(SECOND_POINTS, random);
    checker.note(|tally| tally.second_points += sampled.len());
    trace.walk(&sampled, |replay, of_names, second| {
        let drawn = if of_names { &DRAWN_AT_NAMES[..] } else { &DRAWN };
        for kind in [*drawn.choose(random).expect("there are some"), Kind::Dropped] {
            checker.note(|tally| tally.second_states += 1);
            checker.check(Job {
                tree: states::state(&replay.disk, kind, random),
                place: format!("{place}, then {second}, {kind:?}"),
                progress: replay.progress,
                workload,
                reopen: false,
            });
        }
    });
}

fn env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text}, which is no number")))
}

#[test]
#[ignore = "looks at a state that a failed run has kept, once more"]
fn a_kept_state() {
    let dir = PathBuf::from(std::env::var_os("FEDBROKER_POWER_STATE").expect("FEDBROKER_POWER_STATE names a kept state"));
    let (tree, progress, workload) = checker::kept(&dir);
    let copy = tempfile::tempdir().unwrap();
    tree.write(&copy.path().join("root"));
    let oracle = Oracle::new(workload, BATCHES_MAX);
    oracle
        .check(&copy.path().join("root/data"), progress.confirmed, progress.begun, true)
        .unwrap();
}

/// Whether processes can be recorded here; where they must be, it is an error if not.
fn can_record() -> bool {
    let Err(why) = strace::usable() else { return true };
    assert!(
        std::env::var_os("FEDBROKER_REQUIRE_TOOLS").is_none(),
        "strace cannot record here: {why}"
    );
    eprintln!("skipped, strace cannot record here: {why}");
    false
}

#[test]
fn a_power_cut_while_a_directory_is_brought_up_to_date_loses_nothing() {
    if !can_record() {
        return;
    }
    let points = env("FEDBROKER_POWER_POINTS").unwrap_or(POINTS) / 5;
    let seed = env("FEDBROKER_POWER_SEED").unwrap_or_else(rand::random::<u32>);
    println!("FEDBROKER_POWER_SEED={seed}, {points} points");
    let mut random = StdRng::seed_from_u64(seed.into());
    let workloads = [false, true].map(|bulk| Workload { seed: seed.into(), bulk });
    let oracles = workloads.map(|workload| Oracle::new(workload, BATCHES_MAX));
    let tally = checker::run(&oracles, |checker| {
        let (tree, progress) = old_format::version_1(workloads[0], 30);
        let trace = Trace::record(&tree, progress, workloads[0], &[(1, End::Close)]).unwrap();
        cut(&trace, workloads[0], points, &mut random, checker);
    });
    println!(
        "power while migrating: {} points, {} states, {} failures, seed {seed}",
        tally.points,
        tally.states,
        tally.failures.len()
    );
    assert!(
        tally.states > points && tally.failures.is_empty(),
        "\n{}",
        tally.failures.join("\n")
    );
}

#[test]
fn after_a_power_cut_the_store_holds_what_it_confirmed_and_nothing_half() {
    if !can_record() {
        return;
    }
    let points = env("FEDBROKER_POWER_POINTS").unwrap_or(POINTS);
    let seed = env("FEDBROKER_POWER_SEED").unwrap_or_else(rand::random::<u32>);
    println!("FEDBROKER_POWER_SEED={seed} FEDBROKER_POWER_POINTS={points}");
    let mut random = StdRng::seed_from_u64(seed.into());
    let workloads = [false, true].map(|bulk| Workload { seed: seed.into(), bulk });
    let oracles = workloads.map(|workload| Oracle::new(workload, BATCHES_MAX));
    let tally = checker::run(&oracles, |checker| {
        // New recordings every few hundred points: a soak shall see more than one history.
        for round in 0..points.div_ceil(POINTS) {
            let points = (points - round * POINTS).min(POINTS);
            for (workload, points) in [(workloads[0], points - points / 3), (workloads[1], points / 3)] {
                let sessions = sessions(workload.bulk, &mut random);
                let trace = Trace::record(&Tree::empty(), Progress::default(), workload, &sessions).unwrap();
                cut(&trace, workload, points, &mut random, checker);
            }
        }
    });
    let Tally {
        points,
        states,
        second_points,
        second_states,
        failures,
    } = tally;
    println!(
        "power: {points} points, {states} states, {second_points} second crashes ({second_states} of the states), {} failures, seed {seed}",
        failures.len()
    );
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
