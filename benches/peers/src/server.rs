//! The processes this harness starts, and how they end: with their value, with this process whatever ends it, never later.
//!
//! Used by every system. `setpriv` has the kernel end a child when this process dies without a word; it also runs PostgreSQL as another
//! user than root. Must be called on the main thread: the kernel's promise is about the thread that started the child.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long a server may take to begin or to end.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running server. Dropping it ends it.
pub struct Server {
    child: Child,
    log: PathBuf,
    farewell: Signal,
}

/// How to start a server.
pub struct Launch<'a> {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Another user than ours, if we are root and it refuses that.
    pub user: Option<&'a str>,
    /// Where its output goes.
    pub log: PathBuf,
    /// What it takes for "end in good order".
    pub farewell: Signal,
}

impl Server {
    /// Start it; it may not listen yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(launch: Launch<'_>) -> anyhow::Result<Self> {
        let Launch {
            command,
            user,
            log,
            farewell,
        } = launch;
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = tied(&command, user)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        Ok(Self { child, log, farewell })
    }

    /// Wait until it takes connections.
    ///
    /// # Errors
    /// It ended, or does not listen in time; the text has the end of its log.
    pub async fn listens(&mut self, port: u16) -> anyhow::Result<()> {
        let until = Instant::now() + DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                anyhow::bail!("it does not listen ({ended:?}):\n{}", self.tail());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Wait until it has said a line with this in it, and give what stands behind.
    ///
    /// # Errors
    /// It ended, or does not say it in time; the text has the end of its log.
    pub async fn says(&mut self, word: &str) -> anyhow::Result<String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let said = std::fs::read_to_string(&self.log)?;
            let mut whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some((_, rest)) = whole.find_map(|line| line.split_once(word)) {
                return Ok(rest.trim_end().to_owned());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                anyhow::bail!("it is not ready ({ended:?}):\n{}", self.tail());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The end of what it said.
    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(self.farewell);
        let until = Instant::now() + DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A command that ends with us.
fn tied(command: &[String], user: Option<&str>) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        tied.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    tied.arg("--").args(command);
    tied
}

/// Run a program to its end and give its standard output.
///
/// # Errors
/// It failed; the text has what it said.
pub fn run(command: &[String], user: Option<&str>) -> anyhow::Result<String> {
    let done = tied(command, user)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command[0]))?;
    let errors = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "{} failed ({}): {errors}", command[0], done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A port that nobody has at this moment.
///
/// # Errors
/// The system gives none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Where a program is: a directory of the PATH, or one of these.
pub fn find(program: &str, also: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(also.iter().cloned());
    places.find_map(|place| Some(place.join(program)).filter(|file| file.is_file()))
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
