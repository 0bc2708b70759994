//! What comes of a call to another role that is made until it is answered.
//!
//! Used by `submitter`, `leases` and `runner`.

use crate::wire::connect::Backoff;
use tonic::Status;

/// Why a call was not answered.
pub(super) enum Failed {
    /// The call failed; ask again.
    Passing(String),
    /// Not now; ask again.
    Waiting(String),
    /// Not until others gave back what they have; ask again.
    Busy(String),
    /// The peer said that it will never do this.
    Refused(String),
    /// What is to be said to the peer cannot be read here.
    Unreadable(String),
}

/// Why there is no answer, and will be none.
pub(super) enum Unanswered {
    /// The peer will never do this.
    Refused,
    /// What is to be said cannot be read.
    Unreadable(String),
    /// Nobody waits for it any more.
    Over,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        use tonic::Code::{FailedPrecondition, InvalidArgument, OutOfRange, ResourceExhausted};
        match status.code() {
            InvalidArgument | FailedPrecondition | OutOfRange | ResourceExhausted => Failed::Refused(status.message().to_owned()),
            _ => Failed::Passing(status.message().to_owned()),
        }
    }
}

/// A pause that grows with the number of refusals, up to 5 s.
pub(super) async fn pause(tries: u32) {
    if tries > 0 {
        let mut backoff = Backoff::new();
        let delay = (0..tries.min(8)).map(|_| backoff.delay()).last().unwrap_or_default();
        tokio::time::sleep(delay).await;
    }
}
