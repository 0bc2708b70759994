//! Names of the coordinator's commands and effects, see `crate::crash_point`.
//!
//! Read by `engine` and by the test that kills a process at each. A new variant gets its line here and its row in `ARCHITECTURE.md`.

use super::{Command, Effect};
use crate::machine::named;

named!(
    Command:
    Started = "started",
    Subscribe = "subscribe",
    StreamBroken = "stream_broken",
    Leave = "leave",
    Propose = "propose",
    Fetch = "fetch",
    Close = "close",
    Expire = "expire",
    Forget = "forget",
    Report = "report",
    Cancel = "cancel",
    Stop = "stop",
);

named!(
    Effect:
    Offer = "offer",
    CloseStream = "close_stream",
    CloseAt = "close_at",
    Closed = "closed",
    ExpireAt = "expire_at",
    Changed = "changed",
    Order = "order",
);
