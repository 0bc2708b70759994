//! Opens the states on a few threads and counts.
//!
//! Called by `power`. A state that fails is put down again as it was before the check, with what was expected, and named.

use super::model::Tree;
use super::replay::Progress;
use super::workload::{Oracle, Workload};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

/// Failed states that are kept; there may be thousands.
const KEPT_STATES: usize = 5;
/// Space that a directory in memory must have, bytes: a few states of some log segments each.
const MEMORY_NEEDED: u64 = 1 << 30;
/// A check takes a fraction of a second; this is for a machine that is very busy.
const LONGEST_CHECK: Duration = Duration::from_secs(120);

pub struct Job {
    pub tree: Tree,
    /// Where in which trace, and what was left.
    pub place: String,
    pub progress: Progress,
    pub workload: Workload,
    pub reopen: bool,
}

#[derive(Default)]
pub struct Tally {
    pub points: usize,
    pub states: usize,
    pub second_points: usize,
    pub second_states: usize,
    pub failures: Vec<String>,
}

pub struct Checker<'a> {
    jobs: SyncSender<Job>,
    tally: &'a Mutex<Tally>,
}

impl Checker<'_> {
    pub fn check(&self, job: Job) {
        self.jobs.send(job).expect("the checking threads live as long as this sender");
    }

    pub fn note<T>(&self, note: impl FnOnce(&mut Tally) -> T) -> T {
        note(&mut self.tally.lock().unwrap())
    }
}

/// Check all that `produce` hands over. The oracles are those of the small and of the bulk workload.
pub fn run(oracles: &[Oracle; 2], produce: impl FnOnce(&Checker<'_>)) -> Tally {
    let tally = Mutex::new(Tally::default());
    let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let (jobs, queue) = sync_channel(threads);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&queue, oracles, &tally));
        }
        produce(&Checker { jobs, tally: &tally });
    });
    tally.into_inner().unwrap()
}

fn work(queue: &Mutex<Receiver<Job>>, oracles: &[Oracle; 2], tally: &Mutex<Tally>) {
    let dir = scratch();
    let root = dir.path().join("root");
    loop {
        let next = queue.lock().unwrap().recv();
        let Ok(job) = next else { return };
        job.tree.write(&root);
        let Progress { confirmed, begun, .. } = job.progress;
        let oracle = &oracles[usize::from(job.workload.bulk)];
        let checked = AssertUnwindSafe(|| oracle.check(&root.join("data"), confirmed, begun.max(confirmed), job.reopen));
        let result = limited(&job, || {
            catch_unwind(checked).unwrap_or_else(|_| Err("a panic, see above".to_owned()))
        });
        std::fs::remove_dir_all(&root).unwrap();
        let mut tally = tally.lock().unwrap();
        tally.states += 1;
        if let Err(what) = result {
            let kept = if tally.failures.len() < KEPT_STATES {
                format!("; look again: {}", keep(&job))
            } else {
                String::new()
            };
            let failure = format!("{}: {what}{kept}", job.place);
            eprintln!("{failure}");
            tally.failures.push(failure);
        }
    }
}

/// A check that hangs cannot be stopped, so it ends the whole test, after it was named.
fn limited<T>(job: &Job, check: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(LONGEST_CHECK) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{}: no answer in {LONGEST_CHECK:?}; look again: {}", job.place, keep(job));
                std::process::exit(1);
            }
        });
        let result = check();
        drop(done);
        result
    })
}

/// Put the state down as it was before the check; gives the command that looks at it again.
fn keep(job: &Job) -> String {
    let dir = tempfile::Builder::new().prefix("fedbroker-power-").tempdir().unwrap().keep();
    job.tree.write(&dir.join("root"));
    let (Progress { confirmed, begun, .. }, Workload { seed, bulk }) = (job.progress, job.workload);
    let expected = format!("{confirmed} {begun} {seed} {}\n{}\n", u8::from(bulk), job.place);
    std::fs::write(dir.join("expected"), expected).unwrap();
    format!(
        "FEDBROKER_POWER_STATE={} cargo test --test crash power::a_kept_state -- --ignored",
        dir.display()
    )
}

/// A state that [`keep`] has put down.
pub fn kept(dir: &Path) -> (Tree, Progress, Workload) {
    let expected = std::fs::read_to_string(dir.join("expected")).unwrap();
    let numbers = expected.lines().next().unwrap().split(' ').map(|word| word.parse().unwrap());
    let [confirmed, begun, seed, bulk] = numbers.collect::<Vec<u64>>()[..] else {
        panic!("four numbers")
    };
    let progress = Progress {
        confirmed,
        begun: begun.max(confirmed),
        ..Progress::default()
    };
    (Tree::read(&dir.join("root")), progress, Workload { seed, bulk: bulk == 1 })
}

/// In memory where there is room: the states are written and synced for nothing.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= MEMORY_NEEDED);
    if room { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}
