//! Names of the master's commands and effects, see `crate::crash_point`.
//!
//! Read by `engine` and by the test that kills a process at each. A new variant gets its line here and its row in `ARCHITECTURE.md`.

use super::{Command, Effect};
use crate::machine::named;

named!(
    Command:
    Submit = "submit",
    Leased = "leased",
    LeaseReleased = "lease_released",
    Prepared = "prepared",
    LegacyProposal = "legacy_proposal",
    Verdict = "verdict",
    Note = "note",
    Offered = "offered",
    Fetched = "fetched",
    Submitted = "submitted",
    TaskEnded = "task_ended",
);

named!(
    Effect:
    AcquireLease = "acquire_lease",
    ReleaseLease = "release_lease",
    Prepare = "prepare",
    Propose = "propose",
    Submit = "submit",
    Watch = "watch",
    Cancel = "cancel",
    Fetch = "fetch",
);
