//! What is true of any role: what it is, when it began, what it takes from the system.

use super::{Families, Of};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Build {
    role: &'static str,
    version: &'static str,
    revision: &'static str,
    rustc: &'static str,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Process {
    memory: Gauge,
    files: Gauge,
}

impl Process {
    pub(super) fn new(families: &mut Families, role: &'static str, started: Duration) -> Self {
        let build: Family<Build, Gauge> = Family::default();
        let this = Build {
            role,
            version: env!("CARGO_PKG_VERSION"),
            // Given by whoever builds a release; a build does not ask git.
            revision: option_env!("FEDBROKER_REVISION").unwrap_or("unknown"),
            rustc: env!("FEDBROKER_RUSTC"),
        };
        build.get_or_create(&this).set(1);
        let labels = &["role", "version", "revision", "rustc"];
        families.gauge("fedbroker_build_info", Of::Number, labels, "What runs here; always 1", build);
        let start = Gauge::<f64, AtomicU64>::default();
        start.set(started.as_secs_f64());
        let help = "When the process began, since the Unix epoch";
        families.gauge("process_start_time", Of::Seconds, &[], help, start);
        let (memory, files) = (Gauge::default(), Gauge::default());
        let help = "Memory of the process that is in RAM";
        families.gauge("process_resident_memory", Of::Bytes, &[], help, memory.clone());
        families.gauge(
            "process_open_fds",
            Of::Number,
            &[],
            "Files and sockets the process has open",
            files.clone(),
        );
        Self { memory, files }
    }

    /// Ask the system; what it does not tell stays as it was.
    pub(super) fn look(&self) {
        if let Some(bytes) = std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident) {
            self.memory.set(bytes);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is this look.
            self.files.set(i64::try_from(open.count()).unwrap_or(i64::MAX) - 1);
        }
    }
}

/// Bytes, from the text of `/proc/self/status`.
fn resident(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(super::resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(super::resident("VmRSS: much"), None);
    }
}
