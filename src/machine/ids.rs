//! Names and times as the machines know them: checked once, at the door, and trusted afterwards.
//!
//! Every id that comes from outside is built with `parse`, which bounds its length and refuses control characters: ids are
//! parts of store keys, log lines and HTTP answers. They are *not* safe as file names; whoever makes a path of one escapes it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The longest id, bytes: two ids and a prefix must fit a store key of 512 bytes.
pub const ID_MAX: usize = 200;

/// An id that cannot be taken, with the name of the field it came in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct BadId {
    /// The field, as the caller names it.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub why: String,
}

fn check(field: &'static str, text: &str) -> Result<(), BadId> {
    let why = if text.is_empty() {
        "must not be empty".to_owned()
    } else if text.len() > ID_MAX {
        format!("is {} bytes long, at most {ID_MAX} are taken", text.len())
    } else if text.chars().any(char::is_control) {
        "must not contain control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(BadId { field, why })
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Check a text that came from outside.
            ///
            /// # Errors
            /// Empty, longer than [`ID_MAX`] bytes, or with control characters.
            pub fn parse(text: impl Into<Arc<str>>) -> Result<Self, BadId> {
                let text = text.into();
                check($field, &text)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A job: `<party>-<YYYYmmddHHMMSS>-<n>` when made by a master, any text when it came over the wire.
    JobId, "job_id"
}
text_id! {
    /// A task within its job, e.g. `trainer_0` or `aggregator`; not unique across jobs.
    TaskId, "task_id"
}
text_id! {
    /// A party of the federation.
    PartyId, "party_id"
}
text_id! {
    /// A worker of a cluster.
    WorkerId, "worker_id"
}
text_id! {
    /// A proposal: `<job_id>-coo_<n>` when made by a FedVision or Fedbroker coordinator.
    ProposalId, "proposal_id"
}
text_id! {
    /// A job type or task type, e.g. `program` or `dummy_trainer`.
    TypeName, "type"
}

/// A task anywhere: ids of job and task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskKey {
    /// The job.
    pub job: JobId,
    /// The task within it.
    pub task: TaskId,
}

impl TaskKey {
    /// Check both ids.
    ///
    /// # Errors
    /// As [`JobId::parse`] and [`TaskId::parse`].
    pub fn parse(job: impl Into<Arc<str>>, task: impl Into<Arc<str>>) -> Result<Self, BadId> {
        Ok(Self {
            job: JobId::parse(job)?,
            task: TaskId::parse(task)?,
        })
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.task)
    }
}

/// Microseconds since 1970-01-01 UTC, by the wall clock of the machine that recorded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time plus a number of milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Timestamp(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// Milliseconds from `earlier` to this time, 0 if it is not earlier.
    pub fn ms_since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded_and_printable() {
        assert_eq!(JobId::parse("").unwrap_err().to_string(), "job_id: must not be empty");
        assert!(JobId::parse("a\nb").is_err());
        assert!(JobId::parse("x".repeat(ID_MAX)).is_ok());
        assert_eq!(
            TaskId::parse("x".repeat(201)).unwrap_err().to_string(),
            "task_id: is 201 bytes long, at most 200 are taken"
        );
    }
}
