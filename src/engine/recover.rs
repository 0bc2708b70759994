//! From the store back into the machine, once, at start.

use super::Parts;
use super::reader::{LIVE, PAYLOAD, decode, pages};
use crate::machine::Machine;
use crate::machine::content::PayloadRef;
use crate::store::{Error, Seq};
use std::time::{Duration, Instant};

/// What a start found.
#[derive(Clone, Debug)]
pub struct RecoveryReport {
    /// Live records by kind and state.
    pub records: Vec<(&'static str, u64)>,
    /// Sequence the next event will get.
    pub next_seq: Seq,
    /// Epoch of this start: 1 for a new directory.
    pub epoch: u64,
    /// Payload files in use.
    pub payloads: u64,
    /// How long reading the records back took.
    pub took: Duration,
}

impl RecoveryReport {
    /// One line for the log, e.g. `job running 1, task submitted 2`.
    pub fn summary(&self) -> String {
        let found: Vec<String> = self
            .records
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        if found.is_empty() {
            "nothing in flight".to_owned()
        } else {
            found.join(", ")
        }
    }
}

pub(super) fn load<M: Machine>(parts: &mut Parts<M>) -> Result<RecoveryReport, Error> {
    let began = Instant::now();
    let machine = &mut parts.machine;
    pages(&*parts.store, &[LIVE], |key, value| {
        let record = decode(key, value)?;
        match M::key_from_bytes(&key[1..]) {
            Some(key) => machine.restore(&key, record),
            None => {
                return Err(Error::Damaged {
                    file: "store".into(),
                    what: format!("unknown record {}", key.escape_ascii()),
                });
            }
        }
        Ok(true)
    })?;
    let mut counts: Vec<(PayloadRef, u32)> = Vec::new();
    pages(&*parts.store, &[PAYLOAD], |key, value| {
        counts.push(decode(key, value)?);
        Ok(true)
    })?;
    let references = counts.iter().flat_map(|(payload, count)| (0..*count).map(|_| *payload));
    for payload in parts.payloads.seed(references)?.missing {
        tracing::error!(
            hash = payload.hex(),
            length = payload.len,
            "payload file is missing; restore it from a backup"
        );
    }
    let head = parts.store.head();
    Ok(RecoveryReport {
        records: machine.census(),
        next_seq: head.next_seq,
        epoch: head.epoch,
        payloads: counts.len() as u64,
        took: began.elapsed(),
    })
}
