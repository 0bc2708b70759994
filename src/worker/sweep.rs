//! Removes work directories: of attempts that ended long ago, the oldest ones while all of them take too much room, and of jobs that the manager
//! has forgotten.
//!
//! Started by `worker`, asked by `attach`. A directory is first moved aside, under the lock of the table and only if no attempt in it is running
//! or unacknowledged, then removed: no attempt ever sees its directory go. Nothing is followed: what a task left as a link is removed as a link.

use super::directory;
use super::tasks::Tasks;
use crate::engine::clock::{Clock, SystemClock};
use crate::machine::ids::JobId;
use crate::supervisor::Supervisor;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where directories go before they are removed. No id becomes a name that begins with a dot.
const TRASH: &str = ".removed";
/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// Pause between two removals, so that tasks have the disk.
const PAUSE: Duration = Duration::from_millis(5);

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// Since an attempt has ended.
    pub(super) age: Duration,
    /// Bytes on the disk of all that have ended.
    pub(super) bytes: Option<u64>,
}

/// Sizes on the disk, with the time of the last change.
type Sizes = HashMap<PathBuf, (i64, u64)>;

/// The directory of an attempt.
#[derive(Debug)]
struct Left {
    path: PathBuf,
    /// When it was last changed, seconds since 1970.
    changed: i64,
}

/// Shared by the rounds and the connection.
pub(super) struct Sweeper {
    tasks: Arc<Tasks>,
    work_dir: PathBuf,
    /// Held while a directory is removed; counts them.
    removed: Mutex<u64>,
}

impl Sweeper {
    pub(super) fn new(tasks: Arc<Tasks>, work_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            tasks,
            work_dir,
            removed: Mutex::new(0),
        })
    }

    /// Rounds for ever.
    pub(super) async fn run(self: Arc<Self>, keep: Keep) {
        let mut sizes = Sizes::new();
        loop {
            let (sweeper, known) = (self.clone(), std::mem::take(&mut sizes));
            match Supervisor::blocking(move || sweeper.round(keep, &known)).await {
                Ok(Ok(known)) => sizes = known,
                Ok(Err(error)) => tracing::warn!(work_dir = %self.work_dir.display(), %error, "cannot look through the work directories"),
                Err(error) => tracing::error!(%error, "the sweep of the work directories failed"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Remove all of a job, unless a task of it is here still. Blocks.
    pub(super) fn forget(&self, job: &JobId) {
        let path = self.work_dir.join(directory::component(job.as_str()));
        match self.remove(&path) {
            Ok(true) => tracing::info!(job = %job, "work directories of a forgotten job removed"),
            Ok(false) => tracing::info!(job = %job, "the job is forgotten, and its work directories stay: a task of it is here"),
            Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!(job = %job, %error, "cannot remove the work directories of a forgotten job"),
        }
    }

    /// One look at everything; gives back the sizes of what stays, if they count.
    fn round(&self, keep: Keep, known: &Sizes) -> io::Result<Sizes> {
        // What an earlier process was about to remove.
        drop(self.removed.lock().map(|_alone| self.empty_trash()));
        let now = i64::try_from(SystemClock.now().0 / 1_000_000).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(i64::try_from(keep.age.as_secs()).unwrap_or(i64::MAX));
        let mut left = self.attempts(oldest)?;
        left.sort_by_key(|attempt| attempt.changed);
        let old = left.partition_point(|attempt| attempt.changed <= oldest);
        let mut removed = left.drain(..old).filter(|attempt| self.remove_attempt(&attempt.path)).count();
        let mut sizes = Sizes::new();
        if let Some(max) = keep.bytes {
            left.retain(|attempt| self.tasks.unless_in_use(&attempt.path, || ()).is_some());
            for Left { path, changed } in &left {
                let size = match known.get(path) {
                    Some((at, size)) if at == changed => *size,
                    _ => bytes_below(path),
                };
                sizes.insert(path.clone(), (*changed, size));
            }
            let mut total: u64 = sizes.values().map(|(_, size)| size).sum();
            for attempt in left {
                if total <= max {
                    break;
                }
                if self.remove_attempt(&attempt.path) {
                    removed += 1;
                    total -= sizes.remove(&attempt.path).map_or(0, |(_, size)| size);
                }
            }
        }
        if removed > 0 {
            tracing::info!(removed, "work directories of ended tasks removed");
        }
        Ok(sizes)
    }

    /// Every attempt's directory. What holds none goes on the way: tasks without attempts, and jobs without tasks once they are old.
    fn attempts(&self, oldest: i64) -> io::Result<Vec<Left>> {
        let mut found = Vec::new();
        for job in directories(&self.work_dir)? {
            let before = found.len();
            for task in directories(&job.path())? {
                for attempt in directories(&task.path())? {
                    let path = attempt.path();
                    if let Ok(changed) = changed(&path) {
                        found.push(Left { path, changed });
                    }
                }
            }
            if found.len() == before && changed(&job.path()).is_ok_and(|at| at <= oldest) {
                let _ = self.remove(&job.path());
            }
        }
        Ok(found)
    }

    /// Remove one, and the directories above it that are empty then.
    fn remove_attempt(&self, path: &Path) -> bool {
        match self.remove(path) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                tracing::warn!(dir = %path.display(), %error, "cannot remove a work directory");
                return false;
            }
        }
        for above in path.ancestors().skip(1).take(2) {
            let emptied = self.tasks.unless_in_use(above, || {
                let (dir, name) = self.parent_of(above)?;
                unlinkat(&dir, name, AtFlags::REMOVEDIR)
            });
            if !matches!(emptied, Some(Ok(()))) {
                break;
            }
        }
        std::thread::sleep(PAUSE);
        true
    }

    /// Move a directory aside and remove it; false when it is in use.
    fn remove(&self, path: &Path) -> Result<bool, Errno> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        *removed += 1;
        let root = openat(CWD, &self.work_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        match rustix::fs::mkdirat(&root, TRASH, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let trash = directory::open_inside(&self.work_dir, &[TRASH])?;
        let moved = self.tasks.unless_in_use(path, || {
            let (dir, name) = self.parent_of(path)?;
            renameat(&dir, name, &trash, removed.to_string())
        });
        let Some(moved) = moved else { return Ok(false) };
        moved?;
        self.empty_trash();
        Ok(true)
    }

    /// The directory that a path below the work directory stands in, and its name there.
    fn parent_of<'a>(&self, path: &'a Path) -> Result<(std::os::fd::OwnedFd, &'a OsStr), Errno> {
        let inside = path.strip_prefix(&self.work_dir).map_err(|_| Errno::INVAL)?;
        let components: Vec<&OsStr> = inside.iter().collect();
        let (name, above) = components.split_last().ok_or(Errno::INVAL)?;
        Ok((directory::open_inside(&self.work_dir, above)?, name))
    }

    /// Each by itself: one that cannot be removed must not keep the others.
    fn empty_trash(&self) {
        let trash = self.work_dir.join(TRASH);
        let entries = fs::read_dir(&trash).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let removed = fs::remove_dir_all(&path).or_else(|_| {
                open_up(&path);
                fs::remove_dir_all(&path)
            });
            if let Err(error) = removed {
                tracing::warn!(dir = %path.display(), %error, "cannot remove what was moved aside");
            }
        }
        let _ = fs::remove_dir(&trash);
    }
}

/// The directories in a directory, links not among them.
fn directories(dir: &Path) -> io::Result<Vec<DirEntry>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != TRASH {
            found.push(entry);
        }
    }
    Ok(found)
}

/// When an attempt last did something: its record is written when it ends.
fn changed(dir: &Path) -> io::Result<i64> {
    let own = fs::symlink_metadata(dir)?.mtime();
    let record = fs::symlink_metadata(dir.join("task.json")).map_or(own, |meta| meta.mtime());
    Ok(own.max(record))
}

/// What a directory takes on the disk; what cannot be read counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let mut bytes = 0;
    each_below(dir, &mut |_, meta| bytes += meta.blocks() * 512);
    bytes
}

/// Make directories that a task has closed removable.
fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, Permissions::from_mode(0o700));
    each_below(dir, &mut |path, meta| {
        if meta.is_dir() {
            let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
        }
    });
}

/// Everything in a directory; a directory before what is in it. Links are not followed.
fn each_below(dir: &Path, each: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Ok(meta) = entry.metadata() {
                each(&path, &meta);
                if meta.is_dir() {
                    dirs.push(path);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Attempt;
    use super::*;
    use crate::job_types::exec::Shim;
    use crate::job_types::{Options, Python, Registry};
    use crate::machine::ids::{TaskKey, WorkerId};
    use crate::wire::fedbroker::v1::DummyTask;
    use crate::wire::fedvision::framework::Task;
    use std::os::unix::fs::symlink;

    struct Place {
        root: tempfile::TempDir,
        sweeper: Arc<Sweeper>,
        supervisor: Supervisor,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let work_dir = root.path().join("work");
        fs::create_dir(&work_dir).unwrap();
        let registry = Registry::new(Options {
            enabled: None,
            programs_dir: None,
            data_dir: None,
            python: Python {
                command: "python3".into(),
                timeout: Duration::from_secs(1),
            },
            shim: Shim::at("/none"),
            who: "w".into(),
        });
        let supervisor = Supervisor::new();
        let worker = WorkerId::parse("w").unwrap();
        let tasks = Tasks::new(worker, 4, work_dir.clone(), registry.unwrap(), supervisor.clone());
        Place {
            root,
            sweeper: Sweeper::new(tasks, work_dir),
            supervisor,
        }
    }

    fn attempt(job: &str, task: &str, number: u32) -> Attempt {
        let key = TaskKey::parse(job, task).unwrap();
        Attempt { key, number }
    }

    impl Place {
        /// The directory of an attempt that ended so many days ago.
        fn left(&self, attempt: &Attempt, days: u64, bytes: usize) -> PathBuf {
            let dir = directory::of_attempt(&self.sweeper.work_dir, attempt);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("stdout"), vec![b'x'; bytes]).unwrap();
            let ago = SystemClock.now().0 / 1_000_000 - days * 24 * 3600;
            let at = std::time::UNIX_EPOCH + Duration::from_secs(ago);
            fs::write(dir.join("task.json"), "{}").unwrap();
            for path in [dir.join("task.json"), dir.clone()] {
                fs::File::open(path).unwrap().set_modified(at).unwrap();
            }
            dir
        }

        fn round(&self, days: u64, bytes: Option<u64>) -> Sizes {
            let age = Duration::from_secs(days * 24 * 3600);
            self.sweeper.round(Keep { age, bytes }, &Sizes::new()).unwrap()
        }

        /// A task of this process, which waits for its end.
        fn run(&self, attempt: &Attempt) {
            let value = prost::Message::encode_to_vec(&DummyTask {
                sleep_ms: 600_000,
                fail: false,
                ..DummyTask::default()
            });
            let task = Task {
                job_id: attempt.key.job.to_string(),
                task_id: attempt.key.task.to_string(),
                task_type: "dummy_trainer".into(),
                task: Some(crate::wire::Any {
                    type_url: "type.googleapis.com/fedbroker.v1.DummyTask".into(),
                    value: value.into(),
                }),
                assignee: String::new(),
            };
            self.sweeper.tasks.run(task, Some(attempt.number));
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.supervisor.stop();
        }
    }

    #[tokio::test]
    async fn what_is_old_goes_and_what_runs_stays() {
        let place = place();
        let outside = place.root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let old = place.left(&attempt("j", "a", 1), 8, 10);
        symlink(&outside, old.join("link")).unwrap();
        // A task that has closed its directory behind it.
        let closed = old.join("closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
        place.left(&attempt("j", "a", 1), 8, 10);
        let young = place.left(&attempt("j", "b", 2), 6, 10);
        let (running, unacknowledged) = (attempt("k", "runs", 1), attempt("k", "ended", 1));
        let here = [&running, &unacknowledged].map(|attempt| place.left(attempt, 100, 10));
        place.run(&running);
        place.sweeper.tasks.kill(&unacknowledged, "ended, and nobody knows".into());
        let gone = place.left(&attempt("l", "c", 1), 100, 10);
        symlink(&outside, place.sweeper.work_dir.join("m")).unwrap();
        place.round(7, None);
        assert!(!old.exists() && !old.parent().unwrap().exists(), "its task went with it");
        assert!(young.exists() && here.iter().all(|dir| dir.exists()));
        assert!(!gone.ancestors().nth(2).unwrap().exists(), "its job went with it");
        assert!(outside.join("precious").exists() && !place.sweeper.work_dir.join(TRASH).exists());
        place.sweeper.tasks.acknowledged(&unacknowledged);
        place.round(7, None);
        assert_eq!(here.map(|dir| dir.exists()), [true, false]);
    }

    #[tokio::test]
    async fn the_oldest_go_when_all_take_too_much_room() {
        let place = place();
        let dirs = [3, 1, 2].map(|days| place.left(&attempt("j", &format!("t{days}"), 1), days, 1 << 20));
        let running = attempt("j", "runs", 1);
        let here = place.left(&running, 5, 1 << 20);
        place.run(&running);
        let sizes = place.round(7, Some(10 << 20));
        assert_eq!(sizes.len(), 3, "what runs does not count");
        assert!(sizes.values().all(|(_, size)| *size >= 1 << 20));
        place.round(7, Some(2_500_000));
        assert_eq!(dirs.map(|dir| dir.exists()), [false, true, true]);
        assert!(here.exists());
    }

    #[tokio::test]
    async fn a_forgotten_job_goes_whole_unless_a_task_of_it_is_here() {
        let place = place();
        let kept = place.left(&attempt("j", "a", 1), 0, 10);
        place.left(&attempt("k", "a", 1), 0, 10);
        let job = |id: &str| JobId::parse(id).unwrap();
        place.run(&attempt("j", "b", 1));
        place.sweeper.forget(&job("j"));
        place.sweeper.forget(&job("k"));
        place.sweeper.forget(&job("k"));
        place.sweeper.forget(&job("../outside"));
        assert!(kept.exists() && !place.sweeper.work_dir.join("k").exists());
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_directory_is_not_followed() {
        let place = place();
        let outside = place.root.path().join("outside");
        fs::create_dir_all(outside.join("a/1")).unwrap();
        symlink(&outside, place.sweeper.work_dir.join("j")).unwrap();
        let dir = directory::of_attempt(&place.sweeper.work_dir, &attempt("j", "a", 1));
        assert!(dir.exists() && !place.sweeper.remove_attempt(&dir));
        assert!(outside.join("a/1").exists());
        // The link itself may go.
        place.sweeper.forget(&JobId::parse("j").unwrap());
        assert!(outside.join("a/1").exists());
    }
}
