//! Names of the cluster manager's commands and effects, see `crate::crash_point`.
//!
//! Read by `engine` and by the test that kills a process at each. A new variant gets its line here and its row in `ARCHITECTURE.md`.

use super::{Command, Effect};
use crate::machine::named;

named!(
    Command:
    Started = "started",
    Attach = "attach",
    ConnectionLost = "connection_lost",
    WorkerLost = "worker_lost",
    Submit = "submit",
    Report = "report",
    Cancel = "cancel",
    AcquireLease = "acquire_lease",
    ReleaseLease = "release_lease",
    LeaseExpired = "lease_expired",
    Place = "place",
    Forget = "forget",
);

named!(
    Effect:
    Dispatch = "dispatch",
    Kill = "kill",
    DropConnection = "drop_connection",
    Ended = "ended",
    GraceAt = "grace_at",
    LeaseExpiryAt = "lease_expiry_at",
    PlaceMore = "place_more",
);
