//! Parties and their streams: subscribing, losing the stream, leaving.
//!
//! Called by the machine's `decide`. Must never let the state of one party change what another one gets.

use super::{Coordinator, Effect, Event, INSTANCE_MAX, Key, PARTIES_MAX, Record, Rejection, Reply, TYPES_BYTES_MAX, TYPES_MAX};
use crate::machine::ids::{PartyId, ProposalId, Timestamp, TypeName};
use crate::machine::{Input, Out};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A party that has subscribed and not left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// What it takes part in, sorted, each once.
    pub job_types: Vec<TypeName>,
    /// Number of its last stream.
    pub session: u64,
    /// Identity of its data directory, when it is one of ours: lets it replace a stream that is not known to be broken yet.
    pub instance: Option<String>,
    /// When it first subscribed.
    pub enrolled_at: Timestamp,
    /// Its stream.
    pub link: Link,
}

/// The stream of a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// It had a stream when the record was written. Moved on by the end of the stream (to `Down`), by Leave (the record goes), by a
    /// new Subscribe of the same instance (another stream). A crash ends the stream with the process: the next run is another one, and
    /// the party counts as disconnected since its start, without the record being written.
    Up {
        /// When the stream began.
        since: Timestamp,
        /// The run of the coordinator it belongs to.
        run: u64,
    },
    /// It has no stream; after the lease it no longer counts as a subscriber. Moved on by Subscribe or Leave. A crash changes nothing.
    Down {
        /// When the stream ended.
        since: Timestamp,
    },
}

impl Party {
    /// True if it takes part in jobs of this type.
    pub fn takes(&self, job_type: &TypeName) -> bool {
        self.job_types.binary_search(job_type).is_ok()
    }
}

/// What [`super::Command::Subscribe`] says.
pub(super) struct Subscription {
    pub(super) party: PartyId,
    pub(super) session: u64,
    pub(super) job_types: Vec<TypeName>,
    pub(super) instance: Option<String>,
}

impl Coordinator {
    /// True if the party has a stream in this run.
    pub fn is_connected(&self, party: &Party) -> bool {
        matches!(party.link, Link::Up { run, .. } if run == self.counters.run)
    }

    /// True if the party counts for a proposal's minimum: it has a stream, or lost it less than the lease ago.
    pub(super) fn counts(&self, party: &Party, now: Timestamp) -> bool {
        let down_since = match party.link {
            _ if self.is_connected(party) => return true,
            Link::Up { .. } => self.counters.run_began,
            Link::Down { since } => since,
        };
        now.ms_since(down_since) < self.rules.party_lease_ms
    }

    pub(super) fn subscribe(&mut self, asked: Subscription, input: &Input<Key, Record>, out: &mut Out<Self>) -> Result<Reply, Rejection> {
        let Subscription {
            party,
            session,
            job_types,
            instance,
        } = asked;
        let job_types: Vec<TypeName> = job_types.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let bytes: usize = job_types.iter().map(|t| t.as_str().len()).sum();
        if job_types.len() > TYPES_MAX || bytes > TYPES_BYTES_MAX {
            return Err(Rejection::TooManyTypes);
        }
        if instance.as_ref().is_some_and(|i| i.len() > INSTANCE_MAX) {
            return Err(Rejection::LongInstance);
        }
        match self.parties.get(&party) {
            Some(known) if self.is_connected(known) => {
                if instance.is_none() || instance != known.instance {
                    return Err(Rejection::Duplicate(party));
                }
                out.effect(Effect::CloseStream {
                    party: party.clone(),
                    session: known.session,
                });
            }
            Some(_) => {}
            None if self.parties.len() >= PARTIES_MAX => return Err(Rejection::TooManyParties),
            None => {}
        }
        for entry in self.proposals.values().filter(|entry| entry.proposal.is_open()) {
            if job_types.binary_search(&entry.proposal.job_type).is_ok() {
                let (proposal, job_type) = (entry.proposal.id.clone(), entry.proposal.job_type.clone());
                out.effect(Effect::Offer {
                    party: party.clone(),
                    session,
                    proposal,
                    job_type,
                });
            }
        }
        out.emit(
            self,
            Event::Subscribed {
                party,
                session,
                job_types,
                instance,
                at: input.now,
            },
        );
        Ok(Reply::Done)
    }

    /// To everybody who takes this type and has a stream.
    pub(super) fn offers(&self, proposal: &ProposalId, job_type: &TypeName) -> Vec<Effect> {
        let members = self
            .parties
            .iter()
            .filter(|(_, party)| party.takes(job_type) && self.is_connected(party));
        members
            .map(|(id, party)| Effect::Offer {
                party: id.clone(),
                session: party.session,
                proposal: proposal.clone(),
                job_type: job_type.clone(),
            })
            .collect()
    }

    pub(super) fn stream_broken(&mut self, party: PartyId, session: u64, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        if self
            .parties
            .get(&party)
            .is_some_and(|known| known.session == session && self.is_connected(known))
        {
            out.emit(self, Event::Disconnected { party, at: input.now });
        }
        Reply::Done
    }

    /// An acceptance of an open proposal stays on record, but a party that is not there at the close is not chosen.
    pub(super) fn leave(&mut self, party: PartyId, input: &Input<Key, Record>, out: &mut Out<Self>) -> Reply {
        let Some(known) = self.parties.get(&party) else {
            return Reply::NotFound;
        };
        if self.is_connected(known) {
            out.effect(Effect::CloseStream {
                party: party.clone(),
                session: known.session,
            });
        }
        out.emit(self, Event::Left { party, at: input.now });
        Reply::Done
    }
}
