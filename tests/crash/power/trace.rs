//! Recorded processes, and the points in their lives at which the power can be cut.
//!
//! Called by `power`. What is recorded is the test binary itself, run again with the ignored test that commits.

use super::model::Tree;
use super::replay::{Phase, Progress, Replay};
use super::strace::{self, Recording};
use super::workload::Workload;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The directory the recorded process works in; and its seed, kind of workload, number of batches, and whether it kills itself.
pub const CHILD_DIR: &str = "FEDBROKER_POWER_DIR";
pub const CHILD_SCRIPT: &str = "FEDBROKER_POWER_SCRIPT";
/// More than all sessions of a trace can commit.
pub const BATCHES_MAX: u64 = 160;

/// How much likelier than another a point of a start is at which names change: each has a window of its own that a lost sync opens.
const WEIGHT_OF_NAMES: usize = 16;

/// How a recorded process ends: by itself, or killed between two batches, or when it comes to a barrier of this number.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Close,
    Kill,
    AtBarrier(u32),
}

/// One process: so many batches at most, and its end.
pub type Session = (u64, End);

/// Recorded processes, one after the other, in one directory.
pub struct Trace {
    root: PathBuf,
    base: Tree,
    progress: Progress,
    /// Small runs are on a file system without DIRSYNC. On such a one the engine can zero what its old index needs before the new one's name is durable,
    /// which only a log of several segments shows.
    heeds_dirsync: bool,
    sessions: Vec<Recording>,
    /// Sessions and moments before which the power can be cut.
    points: BTreeMap<Phase, Vec<(usize, usize)>>,
}

/// Run one process in `root` and record it. `Err`: it did not end as it should.
fn record(root: &Path, workload: Workload, (batches, end): Session) -> Result<Recording, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let at_barrier = match end {
        End::AtBarrier(count) => Some(count),
        End::Close | End::Kill => None,
    };
    let kill = matches!(end, End::Kill);
    let script = format!("{} {} {batches} {}", workload.seed, u8::from(workload.bulk), u8::from(kill));
    let output = strace::command(file.path(), at_barrier, &std::env::current_exe().unwrap())
        .args([
            "power::child_that_commits",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD_DIR, root.join("data"))
        .env(CHILD_SCRIPT, script)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(Signal::KILL.as_raw());
    let as_meant = match end {
        End::Close => output.status.success(),
        End::Kill => killed,
        // There may be fewer barriers.
        End::AtBarrier(_) => killed || output.status.success(),
    };
    if !as_meant {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{end:?}, but {}: {errors}", output.status));
    }
    Ok(strace::read(&fs::read(file.path()).unwrap()))
}

impl Trace {
    /// Run the sessions in a directory that holds `base`. `Err`: one did not end as it should.
    pub fn record(base: &Tree, progress: Progress, workload: Workload, sessions: &[Session]) -> Result<Trace, String> {
        loop {
            if let Some(trace) = Trace::try_record(base.clone(), progress, workload, sessions)? {
                return Ok(trace);
            }
        }
    }

    /// `None`: a process was killed while it changed a file, or cut a file off while another thread wrote to it; both are rare. That the
    /// model sees after each session what is really there is part of the proof.
    fn try_record(base: Tree, progress: Progress, workload: Workload, sessions: &[Session]) -> Result<Option<Trace>, String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        base.write(&root);
        let mut trace = Trace {
            root: root.clone(),
            base,
            progress,
            heeds_dirsync: workload.bulk,
            sessions: Vec::new(),
            points: BTreeMap::new(),
        };
        let mut replay = Replay::new(&root, &trace.base, progress, workload.bulk);
        for (number, session) in sessions.iter().enumerate() {
            let recording = record(&root, workload, *session)?;
            if recording.is_cut() {
                return Ok(None);
            }
            replay.next_session();
            for (at, moment) in recording.moments.iter().enumerate() {
                if let Some(phase) = replay.phase(&recording, moment) {
                    let rare = matches!(phase, Phase::Creating | Phase::Opening) && replay.is_of_names(moment);
                    let points = trace.points.entry(phase).or_default();
                    points.extend(std::iter::repeat_n((number, at), if rare { WEIGHT_OF_NAMES } else { 1 }));
                }
                replay.pass(&recording, moment);
            }
            let wrong = replay.disk.seen_tree().difference(&Tree::read(&root));
            if wrong.is_some() && replay.disk.order_unknown {
                return Ok(None);
            }
            assert_eq!(wrong, None, "session {number}: the model does not see what is there");
            trace.sessions.push(recording);
        }
        Ok(Some(trace))
    }

    /// Any of the points, in the order of time; every phase that there is has its part. A point can come more than once.
    pub fn sample(&self, count: usize, random: &mut StdRng) -> Vec<((usize, usize), Phase)> {
        let mut sampled = Vec::new();
        for (number, (phase, points)) in self.points.iter().enumerate() {
            let part = count * (number + 1) / self.points.len() - count * number / self.points.len();
            sampled.extend((0..part).map(|_| (*points.choose(random).expect("a phase has points"), *phase)));
        }
        sampled.sort();
        sampled
    }

    /// Stop at the sampled points; says whether names have just changed there, and where it is.
    pub fn walk(&self, points: &[((usize, usize), Phase)], mut visit: impl FnMut(&Replay, bool, String)) {
        let mut replay = Replay::new(&self.root, &self.base, self.progress, self.heeds_dirsync);
        let mut points = points.iter().peekable();
        for (session, recording) in self.sessions.iter().enumerate() {
            replay.next_session();
            for (at, moment) in recording.moments.iter().enumerate() {
                while let Some((_, phase)) = points.next_if(|(place, _)| *place == (session, at)) {
                    visit(
                        &replay,
                        replay.is_of_names(moment),
                        format!("{phase:?}, session {session}, moment {at}"),
                    );
                }
                replay.pass(recording, moment);
            }
        }
    }
}

/// Sessions of a run: ends of all kinds, so that recoveries are in the trace.
pub fn sessions(bulk: bool, random: &mut StdRng) -> Vec<Session> {
    let ends: &[u8] = if bulk { b"bkcb" } else { b"cbkbcbk" };
    let session = |end: &u8| {
        // Of the large batches, some eight fill a segment of the log, and a dozen the journal: one process comes round in it.
        let batches = random.random_range(match (bulk, end) {
            (true, b'k') => 45..65,
            (true, _) => 10..30,
            (false, _) => 4..16,
        });
        let end = match end {
            b'c' => End::Close,
            b'k' => End::Kill,
            // The first barriers belong to the open, and not every batch is followed by exactly one.
            _ => End::AtBarrier(random.random_range(4..=batches as u32)),
        };
        (batches, end)
    };
    ends.iter().map(session).collect()
}
