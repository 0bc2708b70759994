//! A job's place in the federation, read from what is durable: its proposal, and each party that was chosen.
//!
//! Called by the REST service and by who purges.

use crate::engine::reader::Reader;
use crate::machine::ids::{JobId, PartyId};
use crate::machine::join_key;
use crate::machine::master::federation::{Announced, PEERS_MAX, Peer, PeerState};
use crate::machine::master::{Key, Master, PEER, Record};
use crate::store::Error;

/// The chosen parties of a job. Blocks.
///
/// # Errors
/// The store cannot be read.
pub(super) fn parties_of(reader: &Reader<Master>, job: &JobId) -> Result<Vec<PartyId>, Error> {
    Ok(Peers::of(reader, job)?.parties.into_iter().map(|peer| peer.party).collect())
}

/// What is known of a job at the other parties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Its proposal; `None` for a job that was not proposed. With a FedVision 0.1 coordinator nothing of it is known.
    pub announced: Option<Announced>,
    /// The chosen parties, by name.
    pub parties: Vec<Peer>,
}

impl Peers {
    /// Read it. Blocks.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn of(reader: &Reader<Master>, job: &JobId) -> Result<Self, Error> {
        let announced = match reader.get(&Key::Announced(job.clone()))? {
            Some(Record::Announced(announced)) => Some(announced),
            _ => None,
        };
        let mut parties = Vec::new();
        // The separator behind the job's id: another id may begin with this one.
        reader.scan(&join_key(PEER, &[job.as_str(), ""]), |_, record| {
            if let Record::Peer(peer) = record {
                parties.push(peer);
            }
            parties.len() < PEERS_MAX
        })?;
        // Who was running when the last news came, and will not be heard of any more, may have ended long ago.
        if announced.as_ref().is_some_and(|announced| announced.over) {
            let unheard = parties.iter_mut().filter(|peer| peer.state == PeerState::Running);
            unheard.for_each(|peer| peer.state = PeerState::Unknown);
        }
        Ok(Self { announced, parties })
    }
}
