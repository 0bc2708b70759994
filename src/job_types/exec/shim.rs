//! The task shim: a small process between ours and a task's, so that no task process outlives the process that wants it.
//!
//! `fedbroker task-shim <grace_ms> <program> <arg>...` is started by [`super::run`] only, with the task's directory and
//! environment. It starts the program in a process group of its own and watches two things: its stdin, a pipe whose other end the
//! parent holds (its end means that the parent wants the task to end, or is gone, even by SIGKILL), and the program. On the end of
//! stdin the group gets SIGTERM, then after the grace time SIGKILL. When the program has ended, whatever is left of its group, and
//! every descendant that had left the group, is killed. Meanwhile it brings what the program writes into files of a bounded size (`kept`). It must
//! never do anything else: no threads, no runtime, no log.
//!
//! It says on its stdout: `pid <n>` once the program runs, then one of `exit <code>` and `signal <number>`; or `failed <why>`.

use super::kept::Kept;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long the killed rest of a task may take to disappear (a process in an uninterruptible wait takes its time).
const REAP_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at what is left.
const REAP_PAUSE: Duration = Duration::from_millis(2);

/// The main function of `task-shim`; `args` are those after the subcommand. The exit code is the program's, or 128 plus the
/// signal that ended it, or 127 if it could not be started.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match supervise(args) {
        Ok(status) => {
            let (line, code) = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => (format!("exit {code}"), code),
                (None, signal) => {
                    let signal = signal.unwrap_or(Signal::KILL.as_raw());
                    (format!("signal {signal}"), 128 + signal)
                }
            };
            say(&line);
            ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
        }
        Err(why) => {
            say(&format!("failed {why}"));
            ExitCode::from(127)
        }
    }
}

/// A line for the parent; it may be gone, and then nobody needs the line.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn supervise(args: impl IntoIterator<Item = OsString>) -> Result<WaitStatus, String> {
    let mut args = args.into_iter();
    let grace = args.next().and_then(|a| a.to_str()?.parse().ok()).map(Duration::from_millis);
    let (Some(grace), Some(program)) = (grace, args.next()) else {
        return Err("usage: task-shim <grace_ms> <program> <arg>... (for internal use)".to_owned());
    };
    // Descendants that leave the group become children of this process instead of being lost; without it only the group is killed.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let create = |name| Kept::create(name).map_err(|e| format!("cannot create {name}: {e}"));
    let (stdout_kept, stdout) = create(super::STDOUT)?;
    let (stderr_kept, stderr) = create(super::STDERR)?;
    let mut kept = [stdout_kept, stderr_kept];
    // Never waited for through `child`: `waitpid` below does.
    let child = Command::new(&program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
    let pid = Pid::from_child(&child);
    say(&format!("pid {}", pid.as_raw_nonzero()));
    let watched = watch(pid, grace, &mut kept);
    // Before the reaping, while the dead leader still reserves the group's number.
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let status = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    kill_rest();
    kept.iter_mut().for_each(Kept::take_rest);
    watched.map_err(|e| format!("cannot watch the program: {e}"))?;
    match status {
        Ok(Some((_, status))) => Ok(status),
        Ok(None) => Err("the program left no status".to_owned()),
        Err(e) => Err(format!("cannot wait for the program: {e}")),
    }
}

/// Returns when the program has ended; ends it when stdin ends. Takes what it writes.
fn watch(pid: Pid, grace: Duration, kept: &mut [Kept; 2]) -> rustix::io::Result<()> {
    let program = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdin = std::io::stdin().lock();
    let mut asked: Option<Instant> = None;
    loop {
        let left = asked.map(|at| (at + grace).saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        // After SIGKILL there is nothing left to do but wait.
        let timeout = left
            .filter(|l| !l.is_zero())
            .and_then(|l| Timespec::try_from(l + Duration::from_millis(1)).ok());
        let mut fds = vec![PollFd::new(&program, PollFlags::IN)];
        let pipes: Vec<usize> = (0..kept.len()).filter(|n| kept[*n].pipe().is_some()).collect();
        fds.extend(
            kept.iter()
                .filter_map(Kept::pipe)
                .map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)),
        );
        if asked.is_none() {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (ended, written, input) = (ready[0], &ready[1..=pipes.len()], ready.get(pipes.len() + 1) == Some(&true));
        for (n, _) in pipes.iter().zip(written).filter(|(_, written)| **written) {
            kept[*n].take();
        }
        if ended {
            return Ok(());
        }
        if input && asked.is_none() && !matches!(stdin.read(&mut [0; 64]), Ok(1..)) {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
            asked = Some(Instant::now());
        }
    }
}

/// Kill and reap every descendant that is left: orphans of the program come to this process, their subreaper.
fn kill_rest() {
    let until = Instant::now() + REAP_LIMIT;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(None) => {}
        }
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_whitespace().filter_map(|c| Pid::from_raw(c.parse().ok()?)) {
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        if Instant::now() > until {
            return;
        }
        std::thread::sleep(REAP_PAUSE);
    }
}
