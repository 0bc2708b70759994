//! What the doors of this role share.
//!
//! Made once by `mod.rs`, cloned into every stream. Holds no state of its own.

use super::convert;
use super::hub::Hub;
use super::logs;
use crate::engine::{Handle, Refusal};
use crate::machine::cluster::{Cluster, Command, Key, Record, Rejection, Reply};
use crate::machine::ids::JobId;
use crate::store::payload::Payloads;
use crate::supervisor::Supervisor;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// Every call and every stream has it.
pub(super) type Shared = Arc<SharedParts>;

/// See [`Shared`].
pub(super) struct SharedParts {
    /// The door to the loop.
    pub(super) handle: Handle<Cluster>,
    /// Task contents.
    pub(super) payloads: Arc<Payloads>,
    /// Connections and watchers.
    pub(super) hub: Arc<Hub>,
    /// Logs that are being read.
    pub(super) logs: Arc<logs::Requests>,
    /// The spawner.
    pub(super) supervisor: Supervisor,
    /// How long a worker's stream may be silent.
    pub(super) silence: Duration,
    /// How often a worker of ours is to send a sign of life.
    pub(super) heartbeat: Duration,
}

impl SharedParts {
    /// A durable record, for an answer over the wire.
    pub(super) async fn record(&self, key: Key) -> Result<Option<Record>, Status> {
        let read = self.handle.reader().fetch(key).await.map_err(convert::unavailable)?;
        read.map_err(convert::unavailable)
    }

    /// Ask for a lease, again while forgotten ones are being taken back.
    pub(super) async fn acquire(&self, job: Option<JobId>, endpoints: u16) -> Result<Reply, Refusal<Rejection>> {
        loop {
            let command = Command::AcquireLease {
                job: job.clone(),
                endpoints,
            };
            match self.handle.send(command).await {
                Ok(Reply::Again) => {}
                answered => return answered,
            }
        }
    }
}
