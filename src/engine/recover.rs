//! From the store back into the machine, once, at start.

use super::Parts;
use super::reader::{LIVE, PAYLOAD, decode, pages, unknown};
use crate::machine::Machine;
use crate::machine::content::PayloadRef;
use crate::store::{Error, Seq, Store};
use crate::supervisor::Supervisor;
use std::collections::BTreeSet;
use std::sync::mpsc;
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
    /// How long it took to read the records back; with the store's opening and its proof, where it was opened for this.
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

/// What the live records of a store say besides what the machine took of them.
#[derive(Default)]
pub(super) struct Found {
    /// Content that live records refer to.
    in_use: BTreeSet<[u8; 32]>,
    /// Payload files, each with the number of records that refer to it.
    counts: Vec<(PayloadRef, u32)>,
}

impl Found {
    /// Take a live record back into the machine. They come in the order of their keys.
    fn take<M: Machine>(&mut self, machine: &mut M, key: &[u8], value: &[u8]) -> Result<(), Error> {
        match key.split_first() {
            Some((&LIVE, name)) => {
                let name = M::key_from_bytes(name).ok_or_else(|| unknown(key))?;
                let record = decode(key, value)?;
                self.in_use.extend(M::payloads(&record).into_iter().map(|payload| payload.hash));
                machine.restore(&name, record);
            }
            Some((&PAYLOAD, _)) => self.counts.push(decode(key, value)?),
            _ => return Err(unknown(key)),
        }
        Ok(())
    }
}

/// Fill the machine from a store that is open.
pub(super) fn read<M: Machine>(store: &dyn Store, machine: &mut M) -> Result<Found, Error> {
    let mut found = Found::default();
    for kind in [LIVE, PAYLOAD] {
        pages(store, &[kind], |key, value| found.take(machine, key, value).map(|()| true))?;
    }
    Ok(found)
}

/// Keys and values, one behind the other.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

/// Records that are handed on together, and how many such pieces may wait: some 100 KB each.
const PIECE: usize = 256;
const AHEAD: usize = 8;

impl Piece {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            self.bytes.extend_from_slice(part);
            self.ends.push(self.bytes.len());
        }
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= 2 * PIECE
    }

    fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut from = 0;
        let mut part = move |until: &usize| &self.bytes[std::mem::replace(&mut from, *until)..*until];
        self.ends.chunks_exact(2).map(move |ends| (part(&ends[0]), part(&ends[1])))
    }
}

/// Fill the machine on a thread of its own while `open` opens the store and proves it, which reads each live record anyway.
///
/// # Errors
/// Those of `open` first: records of a store that is not proved say nothing. Within, that of a record.
pub(super) fn while_opened<M: Machine, S>(
    machine: &mut M,
    open: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])) -> Result<S, Error>,
) -> Result<(S, Result<Found, Error>), Error> {
    let (pieces, taken) = mpsc::sync_channel::<Piece>(AHEAD);
    std::thread::scope(|scope| {
        let fill = move || {
            let mut found = Found::default();
            for piece in taken {
                for (key, value) in piece.records() {
                    found.take(machine, key, value)?;
                }
            }
            Ok(found)
        };
        let filling = Supervisor::beside(scope, "records", fill).map_err(|source| Error::Io {
            what: "start a thread that reads records back".to_owned(),
            source,
        })?;
        let mut piece = Piece::default();
        let opened = open(&mut |key, value| {
            piece.push(key, value);
            if piece.is_full() {
                // Nobody takes it after a record that cannot be read; that is told below.
                let _ = pieces.send(std::mem::take(&mut piece));
            }
        });
        let _ = pieces.send(piece);
        drop(pieces);
        let found = filling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((opened?, found))
    })
}

/// Prove the payloads, and say what was found; gives those beside the report that only ended records refer to, whose content was not looked at.
pub(super) fn conclude<M: Machine>(parts: &Parts<M>, found: Found, began: Instant) -> Result<(RecoveryReport, Vec<PayloadRef>), Error> {
    let Found { in_use, counts } = found;
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
        records: parts.machine.census(),
        next_seq: head.next_seq,
        epoch: head.epoch,
        payloads: counts.len() as u64,
        payload_bytes: counts.iter().map(|(payload, _)| payload.len).sum(),
        took: began.elapsed(),
    };
    Ok((report, unproved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cluster::records::{Ports, Profile, Worker, WorkerState};
    use crate::machine::cluster::{Cluster, Key, Record, Rules};
    use crate::machine::ids::{Timestamp, WorkerId};
    use crate::store::codec;

    fn worker(n: usize) -> (Vec<u8>, Vec<u8>) {
        let key = Key::Worker(WorkerId::parse(format!("w{n:04}")).unwrap());
        let profile = Profile {
            ip: "127.0.0.1".to_owned(),
            max_tasks: 1,
            ports: Ports { start: 1, end: 2 },
            instance: "i".to_owned(),
            legacy: false,
        };
        let record = Record::Worker(Worker {
            profile,
            session: n as u64,
            next_port: 1,
            state: WorkerState::Away { since: Timestamp(1) },
        });
        let key = super::super::reader::record_key(LIVE, &Cluster::key_bytes(&key));
        (key, codec::encode(&record))
    }

    fn fill(records: &[(Vec<u8>, Vec<u8>)], opened: Result<(), Error>) -> (Cluster, Result<Result<Found, Error>, Error>) {
        let mut machine = Cluster::new(Rules::default());
        let found = while_opened(&mut machine, |each| {
            records.iter().for_each(|(key, value)| each(key, value));
            opened
        });
        (machine, found.map(|((), found)| found))
    }

    #[test]
    fn records_that_come_in_many_pieces_are_all_taken() {
        let records: Vec<_> = (0..3 * PIECE + 1).map(worker).collect();
        let (machine, found) = fill(&records, Ok(()));
        assert!(found.unwrap().is_ok());
        for n in 0..records.len() {
            let key = Key::Worker(WorkerId::parse(format!("w{n:04}")).unwrap());
            let Some(Record::Worker(found)) = machine.record(&key) else {
                panic!("{key:?}")
            };
            assert_eq!(found.session, n as u64);
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_named_however_many_follow() {
        let mut records: Vec<_> = (0..(AHEAD + 3) * PIECE).map(worker).collect();
        records[3].1.truncate(4);
        let found = fill(&records, Ok(())).1.unwrap();
        assert!(matches!(found, Err(Error::Damaged { what, .. }) if what.starts_with("record lww0003: ")));
        records[3].0[0] = b'q';
        let found = fill(&records, Ok(())).1.unwrap();
        assert!(matches!(found, Err(Error::Damaged { what, .. }) if what == "unknown record qww0003"));
    }

    #[test]
    fn a_store_that_is_not_proved_is_told_first() {
        let mut records = vec![worker(0)];
        records[0].1.truncate(4);
        assert!(matches!(fill(&records, Err(Error::Poisoned)).1, Err(Error::Poisoned)));
    }
}
