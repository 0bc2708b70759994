//! Runs one child process to its end, under a `shim` that ends it with all its descendants when it is not wanted any more.
//!
//! Called by `program` for compile steps and tasks. Never uses a shell, never leaves a process behind: cancellation, the time-out,
//! the drop of the future, the exit and even the SIGKILL of this process all end the child's whole group.

mod kept;
mod shim;

pub use shim::shim_main;

use crate::machine::outcome::{STDERR_TAIL_MAX, clip_front};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio_util::sync::CancellationToken;

/// Subcommand under which our own binary is the shim.
pub const SHIM_COMMAND: &str = "task-shim";
/// File in the child's directory that takes what it writes to stdout.
pub const STDOUT: &str = "stdout";
/// File in the child's directory that takes what it writes to stderr.
pub const STDERR: &str = "stderr";
/// Time between SIGTERM and SIGKILL: enough to write a last line, short enough to wait for.
const GRACE: Duration = Duration::from_secs(5);
/// How much longer than the grace time the shim may take to say how the program ended.
const SHIM_SLACK: Duration = Duration::from_secs(15);
/// How much of stderr is read to find its last lines: four bytes per character of the tail.
const TAIL_READ: u64 = 4 * STDERR_TAIL_MAX as u64;

/// How long a start waits for what an earlier process left: a shim ends its program within the grace time, and reaps the rest in as much.
const LEFT_LIMIT: Duration = Duration::from_secs(15);
/// Pause between two looks at it.
const LEFT_PAUSE: Duration = Duration::from_millis(5);

/// Where the binary is that offers `task-shim`.
#[derive(Clone, Debug)]
pub struct Shim {
    path: PathBuf,
    /// A locked file that every shim holds open, see [`Shim::guard`].
    guard: Arc<OnceLock<File>>,
}

impl Shim {
    /// This very program. By `/proc/self/exe` where there is one: it stays valid, and of this release, when the file is replaced.
    ///
    /// # Errors
    /// The operating system does not say where the program is.
    pub fn this_program() -> std::io::Result<Self> {
        let link = Path::new("/proc/self/exe");
        let path = if link.exists() { link.to_owned() } else { std::env::current_exe()? };
        Ok(Self::at(path))
    }

    /// A given binary, for tests (whose own program is no shim).
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            guard: Arc::default(),
        }
    }

    /// Wait until nothing runs any more that an earlier process with this lock file left behind when it was killed, and let whatever is run from
    /// now on hold the lock. Blocks, for 15 s at most.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn guard(&self, lock: &Path) -> std::io::Result<()> {
        let file = File::options().create(true).append(true).open(lock)?;
        let until = Instant::now() + LEFT_LIMIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LEFT_PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    tracing::warn!(lock = %lock.display(), "something that an earlier process ran is still there");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let _ = self.guard.set(file);
        Ok(())
    }

    /// What a shim gets as its stderr, which it does not use: the lock lasts until the last who has it open is gone.
    fn held(&self) -> std::io::Result<Stdio> {
        self.guard
            .get()
            .map_or_else(|| Ok(Stdio::null()), |file| Ok(Stdio::from(file.try_clone()?)))
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment of this process.
    pub env: Vec<(String, OsString)>,
    /// Its directory; must exist. `stdout` and `stderr` are written there, at most 16 MiB each, see `kept`.
    pub dir: PathBuf,
    /// Wall-clock limit.
    pub timeout: Duration,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exit(i32),
    /// By a signal.
    Signal(i32),
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How the process ended.
    pub status: Status,
    /// The last lines it wrote to stderr, at most 1 KiB.
    pub stderr_tail: String,
    /// It was ended because its time was up.
    pub timed_out: bool,
    /// It was ended because of the cancellation.
    pub cancelled: bool,
}

/// Why there is no end to tell of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim could not be started or spoken to.
    #[error("cannot run {SHIM_COMMAND}: {0}")]
    Shim(#[from] std::io::Error),
    /// The shim could not start or watch the program.
    #[error("{0}")]
    Program(String),
    /// The shim was killed or hung; what it watched has been killed.
    #[error("{SHIM_COMMAND} ended without saying how the program ended")]
    Lost,
}

/// Why the end of stdin was given to the shim.
enum Asked {
    Timeout,
    Cancel,
}

/// Run a process to its end. Dropping the future ends the process too (its group gets SIGTERM, and SIGKILL 5 s later).
///
/// # Errors
/// The process could not be started or watched; see [`Error`].
pub async fn run(shim: &Shim, run: &Run, cancel: &CancellationToken) -> Result<Ended, Error> {
    let mut child = tokio::process::Command::new(&shim.path)
        .arg0("fedbroker")
        .arg(SHIM_COMMAND)
        .arg(GRACE.as_millis().to_string())
        .args(&run.argv)
        .envs(run.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&run.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(shim.held()?)
        // Not in our group: Ctrl-C on a terminal must reach us, not the shims.
        .process_group(0)
        .spawn()?;
    let mut stdin = child.stdin.take();
    let out = child.stdout.take().ok_or(Error::Lost)?;
    let mut said = Said::default();
    let mut asked = None;
    {
        let listening = listen(out, &mut said);
        tokio::pin!(listening);
        tokio::select! {
            () = &mut listening => {}
            () = cancel.cancelled() => asked = Some(Asked::Cancel),
            () = tokio::time::sleep(run.timeout) => asked = Some(Asked::Timeout),
        }
        if asked.is_some() {
            stdin = None;
            let _ = tokio::time::timeout(GRACE + SHIM_SLACK, &mut listening).await;
        }
    }
    let status = match said.end {
        Some(end) => end.map_err(Error::Program)?,
        None => {
            // Last resort: the shim is dead or stuck. Its child is ours to end.
            let _ = child.start_kill();
            if let Some(group) = said.pid {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            return Err(Error::Lost);
        }
    };
    drop(stdin);
    let _ = child.wait().await;
    Ok(Ended {
        status,
        stderr_tail: tail(&run.dir.join(STDERR)).await,
        timed_out: matches!(asked, Some(Asked::Timeout)),
        cancelled: matches!(asked, Some(Asked::Cancel)),
    })
}

/// What the shim has said so far.
#[derive(Default)]
struct Said {
    pid: Option<Pid>,
    end: Option<Result<Status, String>>,
}

/// Read the shim's lines to the end of the pipe.
async fn listen(out: tokio::process::ChildStdout, said: &mut Said) {
    let mut lines = BufReader::new(out).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((word, rest)) = line.split_once(' ') else { continue };
        match word {
            "pid" => said.pid = rest.parse().ok().and_then(Pid::from_raw),
            "exit" => said.end = rest.parse().ok().map(|code| Ok(Status::Exit(code))),
            "signal" => said.end = rest.parse().ok().map(|signal| Ok(Status::Signal(signal))),
            "failed" => said.end = Some(Err(rest.to_owned())),
            _ => {}
        }
    }
}

/// The last lines of a file, at most 1 KiB of text; empty when it cannot be read. The process may have put anything in its place: a pipe, on
/// which an open would wait for ever, or a link to a file that is not its own.
async fn tail(path: &Path) -> String {
    let read = async {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(std::io::Error::other)?;
        let mut file = tokio::fs::File::options().read(true).custom_flags(flags).open(path).await?;
        let meta = file.metadata().await?;
        if !meta.is_file() {
            return Ok(String::new());
        }
        let len = meta.len();
        file.seek(std::io::SeekFrom::Start(len.saturating_sub(TAIL_READ))).await?;
        let mut bytes = Vec::new();
        file.take(TAIL_READ).read_to_end(&mut bytes).await?;
        std::io::Result::Ok(last_lines(&bytes))
    };
    read.await.unwrap_or_default()
}

/// Whole lines where there are any, the end of the last line where it alone is too long.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
    let clipped = clip_front(text.clone(), STDERR_TAIL_MAX);
    if clipped.len() == text.len() {
        return text;
    }
    match clipped.split_once('\n') {
        Some((_, lines)) if !lines.trim().is_empty() => lines.to_owned(),
        _ => clipped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_process_put_in_place_of_its_stderr_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("plain"), "one\ntwo\n").unwrap();
        assert_eq!(tail(&path("plain")).await, "one\ntwo");
        std::os::unix::fs::symlink(path("plain"), path("link")).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for name in ["link", "pipe", "none", "."] {
            let tail = tokio::time::timeout(Duration::from_secs(20), tail(&path(name))).await;
            assert_eq!(tail.expect("it waits for a pipe"), "", "{name}");
        }
    }

    #[test]
    fn the_tail_holds_whole_lines_within_its_limit() {
        assert_eq!(last_lines(b"one\ntwo\n"), "one\ntwo");
        let long = "x".repeat(800);
        assert_eq!(last_lines(format!("{long}\n{long}\n").as_bytes()), long);
        assert_eq!(last_lines("é".repeat(2000).as_bytes()).len(), STDERR_TAIL_MAX);
        assert_eq!(last_lines(b"a\xffb"), "a\u{fffd}b");
    }
}
