//! Names of the master's commands and effects, see `crate::crash_point`.
//!
//! Read by `engine` and by the test that kills a process at each. A new variant gets its line here and its row in `ARCHITECTURE.md`.

use super::{Command, Effect};
use crate::machine::named;

named!(
    Command:
    Submit = "submit",
    Rerun = "rerun",
    Cancel = "cancel",
    Hold = "hold",
    Release = "release",
    Wake = "wake",
    DeadlinePassed = "deadline_passed",
    Purge = "purge",
    Forgotten = "forgotten",
    PurgeProposals = "purge_proposals",
    SweepTombstones = "sweep_tombstones",
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
    News = "news",
    Reported = "reported",
    Withdrawn = "withdrawn",
    StopOrdered = "stop_ordered",
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
    WakeAt = "wake_at",
    DeadlineAt = "deadline_at",
    GiveUp = "give_up",
    Forget = "forget",
    Follow = "follow",
    Report = "report",
    Withdraw = "withdraw",
);
