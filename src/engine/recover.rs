//! From the store back into the machine, once, at start.

use super::Parts;
use super::reader::{LIVE, PAYLOAD, decode, pages};
use crate::machine::Machine;
use crate::machine::content::PayloadRef;
use crate::store::{Error, Seq};
use std::collections::BTreeSet;
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
    /// Bytes in them.
    pub payload_bytes: u64,
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

/// Fill the machine; gives the payloads beside the report that only ended records refer to, whose content was not looked at.
pub(super) fn load<M: Machine>(parts: &mut Parts<M>) -> Result<(RecoveryReport, Vec<PayloadRef>), Error> {
    let began = Instant::now();
    let machine = &mut parts.machine;
    let mut in_use = BTreeSet::new();
    pages(&*parts.store, &[LIVE], |key, value| {
        let record = decode(key, value)?;
        in_use.extend(M::payloads(&record).into_iter().map(|payload| payload.hash));
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
    let seeded = parts.payloads.seed(
        counts
            .iter()
            .flat_map(|(payload, count)| std::iter::repeat_n(*payload, *count as usize)),
    )?;
    if let Some(missing) = seeded.missing.first() {
        // Says whether it is missing or cut short, and under which path.
        parts.payloads.prove(missing)?;
    }
    let (in_use, unproved): (Vec<_>, Vec<_>) = counts
        .iter()
        .map(|(payload, _)| *payload)
        .partition(|payload| in_use.contains(&payload.hash));
    for payload in &in_use {
        parts.payloads.prove(payload)?;
    }
    let head = parts.store.head();
    let report = RecoveryReport {
        records: machine.census(),
        next_seq: head.next_seq,
        epoch: head.epoch,
        payloads: counts.len() as u64,
        payload_bytes: counts.iter().map(|(payload, _)| payload.len).sum(),
        took: began.elapsed(),
    };
    Ok((report, unproved))
}
