//! Memory of a process, as Linux tells it.

use anyhow::Context;
use std::fs;

/// Resident now, bytes.
///
/// # Errors
/// There is no such process.
pub(super) fn resident(pid: u32) -> anyhow::Result<u64> {
    field(pid, "VmRSS:")
}

/// The most that was resident at once since [`forget_peak`], bytes.
///
/// # Errors
/// There is no such process.
pub(super) fn peak(pid: u32) -> anyhow::Result<u64> {
    field(pid, "VmHWM:")
}

/// Let the peak begin anew.
///
/// # Errors
/// There is no such process, or it is of another user.
pub(super) fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

fn field(pid: u32, name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .with_context(|| format!("{path} has no {name}"))?
        .parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let pid = std::process::id();
        assert!(peak(pid).unwrap() >= resident(pid).unwrap() / 2 && resident(pid).unwrap() > 4096);
        assert!(resident(u32::MAX).is_err());
    }
}
