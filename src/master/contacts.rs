//! Whom this master needs, and whether they answer: for readiness and status.
//!
//! Most is known from the calls that are made anyway, all of the coordinator: this party tries to subscribe as long as it is not. A cluster manager that
//! was not heard for some seconds, since there was nothing to do, is asked what it is. Decides nothing.

use crate::wire::connect::Probe;
use crate::wire::contact::Known;
use crate::wire::metered::Channel;
use std::time::Duration;

/// A peer that answered so lately is not asked again.
const FRESH: Duration = Duration::from_secs(5);
/// One that did not answer so lately is not asked again either: who looks often must not cost a call each time.
const FRESH_TROUBLE: Duration = Duration::from_secs(1);
/// How long an answer is waited for: whoever asks for readiness gives up after a second, as Kubernetes does unless told otherwise.
const LIMIT: Duration = Duration::from_millis(700);

/// The peers of a master. Cheap to clone.
#[derive(Clone)]
pub struct Contacts {
    /// The coordinator.
    pub coordinator: Peer,
    /// The cluster manager.
    pub cluster: Peer,
}

/// A peer. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    /// Where it is, `host:port`.
    pub address: String,
    channel: Channel,
    probe: Probe,
}

impl Peer {
    pub(super) fn new(address: &str, channel: Channel) -> Self {
        Self {
            address: address.to_owned(),
            probe: Probe::new(channel.clone(), "master"),
            channel,
        }
    }

    /// What is known of it.
    pub fn known(&self) -> Known {
        self.channel.contact().known()
    }

    /// [`Peer::known`], of one that was asked lately. Takes 0.7 s at most.
    pub async fn ask(&self) -> Known {
        let known = self.known();
        let enough = if known.trouble().is_some() { FRESH_TROUBLE } else { FRESH };
        let is_fresh = known.looked().is_some_and(|at| at.elapsed() < enough) && (known.kind.is_some() || known.trouble().is_some());
        if !is_fresh {
            self.probe.forget();
            match tokio::time::timeout(LIMIT, self.probe.kind()).await {
                Ok(Ok(_)) => {}
                // The channel has noted why there was no answer.
                Ok(Err(status)) => tracing::debug!(why = status.message(), "a peer did not say what it is"),
                Err(_) => self.channel.contact().failed(format!("no answer within {LIMIT:?}")),
            }
        }
        self.known()
    }
}
