//! Where a task runs: `<work-dir>/<job>/<task>/<attempt>`, and the record it leaves there (`task.json`).
//!
//! Ids come from other parties: each becomes one harmless path component, so that no id can lead out of the work directory.

use super::table::Attempt;
use crate::machine::ids::Timestamp;
use crate::machine::outcome::Outcome;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// The longest path component made of an id, bytes; file systems take 255.
const COMPONENT_MAX: usize = 200;
/// How much of a longer one is kept in front of its hash.
const PREFIX: usize = 120;

/// The directory of an attempt.
pub(super) fn of_attempt(work_dir: &Path, attempt: &Attempt) -> PathBuf {
    work_dir.join(components(attempt).iter().collect::<PathBuf>())
}

/// The names on the way from the work directory to that of an attempt.
pub(super) fn components(attempt: &Attempt) -> [String; 3] {
    let key = &attempt.key;
    [
        component(key.job.as_str()),
        component(key.task.as_str()),
        attempt.number.to_string(),
    ]
}

/// Open a directory inside of the work directory. No link on the way is followed but those of the operator's own path: a task may have put one in
/// place of any directory.
pub(super) fn open_inside(work_dir: &Path, components: &[impl rustix::path::Arg + Copy]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = openat(CWD, work_dir, flags, Mode::empty())?;
    for component in components {
        dir = openat(&dir, *component, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(dir)
}

/// One path component for an id: everything but `[A-Za-z0-9_.-]`, and dots in front, percent-encoded (so it can be read back);
/// too long ones are cut and end in `~` and the SHA-256 of the id.
pub(super) fn component(id: &str) -> String {
    let mut name = String::with_capacity(id.len());
    let mut leading = true;
    for byte in id.bytes() {
        leading &= byte == b'.';
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && !leading) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    if name.len() > COMPONENT_MAX {
        name.truncate(PREFIX);
        name.push('~');
        for byte in Sha256::digest(id.as_bytes()) {
            let _ = write!(name, "{byte:02x}");
        }
    }
    name
}

/// Leave the record of an attempt in its directory, for people. A failure is logged: the outcome does not depend on it.
pub(super) async fn write_record(dir: &Path, attempt: &Attempt, task_type: &str, started: Timestamp, ended: Option<(Timestamp, &Outcome)>) {
    let time = |at: Timestamp| {
        i64::try_from(at.0)
            .ok()
            .and_then(|us| jiff::Timestamp::from_microsecond(us).ok())
            .map(|t| t.to_string())
    };
    let record = serde_json::json!({
        "job_id": attempt.key.job,
        "task_id": attempt.key.task,
        "attempt": attempt.number,
        "task_type": task_type,
        "started": time(started),
        "ended": ended.and_then(|(at, _)| time(at)),
        "outcome": ended.map(|(_, outcome)| outcome),
    });
    // The task may have put anything in its place, a link or a pipe, and is not to be followed out of its directory.
    let (path, new) = (dir.join("task.json"), dir.join(".task.json.new"));
    let write = async {
        match tokio::fs::remove_file(&new).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = tokio::fs::File::create_new(&new).await?;
        file.write_all(format!("{record:#}\n").as_bytes()).await?;
        file.flush().await?;
        tokio::fs::rename(&new, &path).await
    };
    if let Err(error) = write.await {
        tracing::warn!(dir = %dir.display(), %error, "cannot write task.json");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_one_harmless_component() {
        for (id, name) in [
            ("master1-20261122-1", "master1-20261122-1"),
            ("../x", "%2E%2E%2Fx"),
            ("..", "%2E%2E"),
            (".a.b", "%2Ea.b"),
            ("a/b\\c d%", "a%2Fb%5Cc%20d%25"),
            ("é~", "%C3%A9%7E"),
        ] {
            assert_eq!(component(id), name);
        }
        let (one, two) = (component(&"/".repeat(199)), component(&"/".repeat(200)));
        assert!(one.len() <= COMPONENT_MAX && two.len() <= COMPONENT_MAX && one != two);
        assert_eq!(component(&"x".repeat(200)), "x".repeat(200));
    }

    #[tokio::test]
    async fn a_record_is_not_written_through_what_the_task_put_in_its_place() {
        use crate::machine::ids::{JobId, TaskId, TaskKey};
        let root = tempfile::tempdir().unwrap();
        let (dir, outside) = (root.path().join("task"), root.path().join("outside"));
        std::fs::create_dir(&dir).unwrap();
        let attempt = Attempt {
            key: TaskKey {
                job: JobId::parse("j").unwrap(),
                task: TaskId::parse("t").unwrap(),
            },
            number: 1,
        };
        for name in ["task.json", ".task.json.new"] {
            let _ = std::fs::remove_file(dir.join(name));
            std::os::unix::fs::symlink(&outside, dir.join(name)).unwrap();
        }
        write_record(&dir, &attempt, "dummy", Timestamp(1), None).await;
        assert!(!outside.exists());
        let record = dir.join("task.json");
        assert!(record.symlink_metadata().unwrap().is_file() && std::fs::read_to_string(record).unwrap().contains("dummy"));
    }
}
