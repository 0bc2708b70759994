//! What a job asks of the federation before anything of it runs: made by `job_types` from a checked config, carried by the
//! master's records. Pure data.

use serde::{Deserialize, Serialize};

/// The needs of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Endpoints to lease from the initiator's own cluster.
    pub endpoints: u16,
    /// Parties that must take part: minimum and maximum acceptance of the proposal alike. 0 means that there is no proposal.
    pub workers: u32,
    /// How long the proposal waits for acceptances, seconds; 0 when there is none.
    pub wait_s: u32,
}
