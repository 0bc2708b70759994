//! Calls whose message is a payload file: the body is read while it is sent, and never whole in memory.
//!
//! Used by `runner` (proposals) and `submitter` (tasks). It must tell a file that cannot be read from a peer that does not answer: the peer has no whole
//! message then, and asking again would not mend it.

use super::call::Failed;
use crate::engine::outgoing;
use crate::store::payload::pieces::Pieces;
use crate::wire::body::{self, Calling};
use crate::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use crate::wire::fedvision::framework::cluster::task_submit;
use crate::wire::metered::Channel;
use crate::wire::pieces::before;
use bytes::Bytes;
use futures_util::TryStreamExt;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::body::Body;
use tonic::{Response, Status};

/// Why there is no answer.
pub(super) enum Unsent {
    /// The file is damaged. The peer got no whole message.
    Unreadable(anyhow::Error),
    /// The call failed.
    Failed(Status),
}

impl From<Status> for Unsent {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl From<Unsent> for Failed {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Unreadable(error) => Failed::Unreadable(format!("{error:#}")),
            Unsent::Failed(status) => status.into(),
        }
    }
}

/// Where a body says why it broke off.
#[derive(Clone, Default)]
pub(super) struct Broken(Arc<Mutex<Option<anyhow::Error>>>);

impl Broken {
    /// Why a call failed: for the file, or as the call says.
    pub(super) fn or(&self, status: Status) -> Unsent {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Unsent::Unreadable(error),
            None => Unsent::Failed(status),
        }
    }
}

/// The body of a message that is `head` and a file behind it.
///
/// # Errors
/// OUT_OF_RANGE: it is longer than any peer takes.
pub(super) fn message(head: &Bytes, pieces: Pieces) -> Result<(Body, Broken), Status> {
    let (len, broken) = (pieces.content_len(), Broken::default());
    let told = broken.clone();
    let pieces = outgoing::stream(pieces).map_err(move |error| {
        let text = error.to_string();
        *told.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
        text
    });
    Ok((body::call(head, len, pieces)?, broken))
}

/// TaskSubmit with a task that is a payload file.
pub(super) async fn submit(channel: Channel, pieces: Pieces) -> Result<Response<task_submit::Rep>, Unsent> {
    let head = before(&task_submit::Req::default(), 1, pieces.content_len());
    let (body, broken) = message(&head, pieces)?;
    let mut client = ClusterManagerClient::new(Calling::new(channel, body));
    let answer = client.task_submit(task_submit::Req::default()).await;
    answer.map_err(|status| broken.or(status))
}
