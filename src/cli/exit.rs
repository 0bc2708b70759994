//! What the exit code of a process says to whoever started it. The numbers are those of sysexits.h; `docs/durability.md` explains them.
//!
//! Called once, when a command has failed. All exit codes but 0, 1 and those of clap are here.

use crate::store::Error as StoreError;

/// Stored bytes are not what was written: a restart does not help.
const DAMAGED: u8 = 65;
/// The file system failed: a restart may help, a look at the disk comes first.
const IO: u8 = 74;
/// Start it again: the disk was full, or another process has the data directory.
const TRY_AGAIN: u8 = 75;
/// Everything else.
const FAILURE: u8 = 1;

/// For `--help`.
pub(super) const HELP: &str = "Exit codes of the roles:\n   0  asked to stop\n   1  could not start, or something essential ended\n  \
     65  stored data is damaged; a restart does not help\n  74  the file system failed\n  75  the disk was full, or the data directory is in use; start again";

/// The code for the error a command ended with.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    match error.chain().find_map(|cause| cause.downcast_ref::<StoreError>()) {
        Some(StoreError::Damaged { .. }) => DAMAGED,
        Some(StoreError::Held { .. }) => TRY_AGAIN,
        Some(full) if full.is_full() => TRY_AGAIN,
        Some(StoreError::Io { .. } | StoreError::Engine(_) | StoreError::Poisoned) => IO,
        Some(
            StoreError::NewerFormat { .. }
            | StoreError::WrongDirectory { .. }
            | StoreError::TooLarge(_)
            | StoreError::Conflict { .. }
            | StoreError::Fenced { .. },
        )
        | None => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_cause_decides_under_whatever_context() {
        let of = |error: StoreError| code(&anyhow::Error::new(error).context("the store could not commit").context("p1"));
        let io = |kind: io::ErrorKind| StoreError::Io {
            what: "cannot write /x".to_owned(),
            source: kind.into(),
        };
        let damaged = StoreError::Damaged {
            file: "/x".into(),
            what: String::new(),
        };
        let held = StoreError::Held {
            dir: "/x".into(),
            holder: String::new(),
        };
        assert_eq!(of(damaged), 65);
        assert_eq!(of(held), 75);
        assert_eq!(of(io(io::ErrorKind::StorageFull)), 75);
        assert_eq!(of(io(io::ErrorKind::Other)), 74);
        assert_eq!(of(StoreError::Engine(String::new())), 74);
        assert_eq!(code(&anyhow::anyhow!("--party-id: is required")), 1);
    }
}
