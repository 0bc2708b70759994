//! Where a benchmark runs: its scratch directory, and the names of disk, file system and processor that its numbers belong to.

use anyhow::Context;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the numbers belong to.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    disk: String,
    file_system: String,
    processor: String,
    cores: usize,
    kernel: String,
    load: String,
}

/// A directory for the time of a benchmark, on the disk that is measured.
pub(super) struct Place {
    scratch: TempDir,
    /// What is measured here.
    pub(super) machine: Machine,
}

impl Place {
    /// Make one in `parent`; warns when no disk is behind it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn make(parent: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("--dir: cannot make {}", parent.display()))?;
        let parent = fs::canonicalize(parent).with_context(|| format!("--dir: cannot find {}", parent.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix("fedbroker-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("--dir: cannot make a directory in {}", parent.display()))?;
        let machine = Machine::of(scratch.path());
        if machine.file_system == "tmpfs" {
            eprintln!(
                "warning: {} is in memory (tmpfs), where a barrier costs nothing; give --dir on a disk",
                parent.display()
            );
        }
        Ok(Self { scratch, machine })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// A new directory in it, for one run.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn run(&self) -> anyhow::Result<TempDir> {
        tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(self.path())
            .with_context(|| format!("cannot make a directory in {}", self.path().display()))
    }
}

impl Machine {
    fn of(dir: &Path) -> Self {
        let (file_system, source) = mount_of(&read("/proc/self/mountinfo"), dir);
        let device = fs::metadata(dir).map(|metadata| metadata.dev()).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            disk: disk(device).unwrap_or(source),
            file_system,
            processor: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            load: load(),
        }
    }

    /// For a reader.
    pub(super) fn lines(&self) -> String {
        let profile = if cfg!(debug_assertions) { "DEBUG BUILD" } else { "release" };
        format!(
            "disk       {}\nsystem     {}, Linux {}\nprocessor  {} cores, {}\nload       {} at the start, {} at the end (1 minute)\nfedbroker  {}, {profile}",
            self.disk,
            self.file_system,
            self.kernel,
            self.cores,
            self.processor,
            self.load,
            load(),
            env!("CARGO_PKG_VERSION"),
        )
    }

    /// For a program.
    pub(super) fn json(&self) -> Value {
        json!({
            "disk": self.disk,
            "file_system": self.file_system,
            "kernel": self.kernel,
            "processor": self.processor,
            "cores": self.cores,
            "load_at_start": self.load,
            "load_at_end": load(),
            "version": env!("CARGO_PKG_VERSION"),
            "debug_build": cfg!(debug_assertions),
        })
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn load() -> String {
    read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()
}

/// File system and source of the mount a directory is on: the last one with the longest mount point.
fn mount_of(mounts: &str, dir: &Path) -> (String, String) {
    let parse = |line: &str| -> Option<(PathBuf, String, String)> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        Some((left.split(' ').nth(4)?.into(), right.next()?.to_owned(), right.next()?.to_owned()))
    };
    let here = mounts.lines().filter_map(parse).filter(|(point, _, _)| dir.starts_with(point));
    here.max_by_key(|(point, _, _)| point.components().count()).map_or_else(
        || ("unknown".to_owned(), "unknown".to_owned()),
        |(_, system, source)| (system, source),
    )
}

/// Name, kind and cache of the disk behind a device number; of a partition its disk.
fn disk(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut at = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if at.join("partition").exists() {
        at.pop();
    }
    let of = |name: &str| read(&at.join(name).to_string_lossy());
    let kind = if of("queue/rotational") == "1" { "rotating" } else { "solid state" };
    let names = [of("device/model"), kind.to_owned(), format!("cache {}", of("queue/write_cache"))];
    let told: Vec<String> = names.into_iter().filter(|text| !text.is_empty()).collect();
    Some(format!("{} ({})", at.file_name()?.to_string_lossy(), told.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_nearest_to_a_directory_counts() {
        let mounts = "1 0 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n2 1 0:22 / /tmp rw - tmpfs tmpfs rw\n3 1 0:23 / /tmp/disk rw shared:2 master:3 - xfs /dev/vdb rw";
        let of = |dir: &str| mount_of(mounts, Path::new(dir)).0;
        assert_eq!(
            [of("/home/x"), of("/tmp/x"), of("/tmp/disk/x"), of("/tmpx")],
            ["ext4", "tmpfs", "xfs", "ext4"]
        );
    }
}
