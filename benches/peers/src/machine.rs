//! What the figures were measured on: processor, kernel, disk, and how busy it was.
//!
//! Read by `main` for the document. Linux only, as the harness.

use anyhow::{Context, ensure};
use std::fs;
use std::path::Path;

/// `tmpfs`, of linux/magic.h: a barrier there costs nothing and means nothing.
const TMPFS: u64 = 0x0102_1994;

/// The machine in one line.
pub fn facts() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: Option<u64> = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{}, {cores} cores, {} GiB, Linux {}",
        model.map_or("unknown processor", |(_, model)| model.trim()),
        kib.unwrap_or_default() >> 20,
        release.trim()
    )
}

/// The file system of a directory and the device behind it.
///
/// # Errors
/// It is in memory, where nothing is durable.
pub fn disk(dir: &Path) -> anyhow::Result<String> {
    let kind = rustix::fs::statfs(dir)
        .with_context(|| format!("cannot look at {}", dir.display()))?
        .f_type;
    ensure!(
        u64::try_from(kind).ok() != Some(TMPFS),
        "{} is in memory; give a directory on a disk with --dir",
        dir.display()
    );
    let dir = dir.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // 36 35 98:0 /root /mount/point options... - type source superoptions
    let mounts = mounts.lines().filter_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let point = head.split(' ').nth(4)?;
        let mut tail = tail.split(' ');
        dir.starts_with(point)
            .then_some((point.len(), format!("{} on {}", tail.next()?, tail.next()?)))
    });
    let (_, disk) = mounts.max_by_key(|(length, _)| *length).context("no mount point")?;
    Ok(disk)
}

/// How many wanted to run in the last minute, on average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// Today, as the machine says.
pub fn today() -> String {
    crate::server::run(&["date".to_owned(), "-u".to_owned(), "+%Y-%m-%d".to_owned()], None)
        .map_or_else(|_| "unknown".to_owned(), |date| date.trim().to_owned())
}
