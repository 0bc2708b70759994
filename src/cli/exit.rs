//! What the exit code of a process says to whoever started it. The numbers are those of sysexits.h; `docs/durability.md` explains them.
//!
//! Called once, when a command has failed. All exit codes but 0 and those of clap are here; those of a client are its own (`CLIENT_HELP`).

use super::client::ClientError;
use crate::store::Error as StoreError;

/// Stored bytes are not what was written: a restart does not help.
const DAMAGED: u8 = 65;
/// The file system failed: a restart may help, a look at the disk comes first.
const IO: u8 = 74;
/// Start it again: the disk was full, or another process has the data directory.
const TRY_AGAIN: u8 = 75;
/// Everything else.
const FAILURE: u8 = 1;

/// Bad input, as clap has it.
const USAGE: u8 = 2;
/// The master cannot be reached, or does not allow it.
const UNREACHABLE: u8 = 3;
/// The time was over.
const TIMEOUT: u8 = 4;
/// It does not fit the present state.
const CONFLICT: u8 = 5;
/// What is asked for is not there.
const NOT_FOUND: u8 = 6;

/// For `--help` of the commands that speak to a master.
pub(super) const CLIENT_HELP: &str = "Exit codes:\n  0  done; for wait and watch: the job succeeded\n  1  failed; for wait and watch: the job did not succeed\n  \
     2  bad input\n  3  the master cannot be reached, or does not allow it\n  4  the time was over\n  5  it does not fit the job's state, or its idempotency key\n  6  there is no such job or task";

/// The time a user gave was over.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TimedOut(pub String);

/// What a user asked for makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// End a command for bad input that clap cannot see.
pub(super) fn usage<T>(what: &str) -> anyhow::Result<T> {
    Err(Usage(what.to_owned()).into())
}

fn client_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Endpoint(_) | ClientError::Id(_) => USAGE,
        ClientError::Unreachable { .. } => UNREACHABLE,
        // Another 404 is one of a path: of a master that is too old, or of something else than a master.
        ClientError::Refused { code, .. } if code == "job_not_found" || code == "task_not_found" => NOT_FOUND,
        ClientError::Refused { status, .. } => match status {
            400 | 413 | 415 | 422 => USAGE,
            401 | 403 | 429 | 502..=504 | 507 => UNREACHABLE,
            409 | 412 => CONFLICT,
            _ => FAILURE,
        },
    }
}

/// For `--help`.
pub(super) const HELP: &str = "Exit codes of the roles:\n   0  asked to stop\n   1  could not start, or something essential ended\n  \
     65  stored data is damaged; a restart does not help\n  74  the file system failed\n  75  the disk was full, or the data directory is in use; start again";

/// The code for the error a command ended with.
pub(super) fn code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref()) {
        return client_code(error);
    }
    if error.is::<TimedOut>() {
        return TIMEOUT;
    }
    if error.is::<Usage>() {
        return USAGE;
    }
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

    #[test]
    fn a_script_can_tell_why_a_client_gave_up() {
        let refused = |(status, problem): (u16, &str)| {
            let error = ClientError::Refused {
                status,
                code: problem.to_owned(),
                detail: String::new(),
                retry_after: None,
            };
            code(&anyhow::Error::new(error).context("job x"))
        };
        let plain = [400, 403, 404, 409, 503].map(|status| refused((status, "")));
        assert_eq!(plain, [2, 3, 1, 5, 3]);
        let gone = ["job_not_found", "task_not_found", "route_not_found", "logs_gone"];
        assert_eq!(gone.map(|problem| refused((404, problem))), [6, 6, 1, 1]);
        assert_eq!(code(&TimedOut("x".to_owned()).into()), 4);
        assert_eq!(usage::<()>("x").map_err(|error| code(&error)), Err(2));
    }
}
