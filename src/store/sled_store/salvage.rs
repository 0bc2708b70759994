//! What a damaged log still tells of the commits after a backup.
//!
//! Called by `fedbroker store restore`, which must say what is lost. Nothing is opened with the storage engine, which would change the
//! file and may give up at the first bad page: its log and the journal are read byte by byte for envelopes (`codec`). An envelope is believed when its
//! body decodes and its checksum fits. The key is in the checksum and not beside the value, but the checksum can be turned round: what
//! it was before the body gives the number of the block's last event.

use super::high_water::{HighWater, SYNC_EVERY};
use super::{HEAD_KEY, Position, block, event_key, journal};
use crate::store::directory::Directory;
use crate::store::{COST_MAX, Error, Head, Seq, VALUE_MAX, codec};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

/// Bytes read at once.
const WINDOW: usize = 4 * 1024 * 1024;
/// A commit holds fewer events: each costs a KiB at least.
const EVENTS_MAX: u64 = (COST_MAX / 1024) as u64;

/// What was found of the commits after a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// The last commit that was confirmed for certain, as the file beside the store has it; `None` if that cannot be read.
    pub confirmed: Option<u64>,
    /// The newest head value found.
    pub head: Option<Head>,
    /// The newest commit that any value found is of; 0 for none.
    pub newest: u64,
    /// The events found, by number.
    pub events: BTreeSet<Seq>,
}

/// Length of the event that the bytes begin with, if they do.
pub type EventLen<'a> = dyn Fn(&[u8]) -> Option<usize> + 'a;

/// Search the log that counts for commits after `backup`. `each` gets every event once: number, body. Bytes that cannot be read are passed
/// over.
pub fn salvage(directory: &Directory, backup: Head, event_len: &EventLen<'_>, each: &mut dyn FnMut(Seq, &[u8])) -> Salvage {
    let confirmed = HighWater::open(&directory.high_water_path()).ok().map(|(_, mark)| mark.batch);
    let files = ["db", journal::NAME].map(|name| directory.store_dir().join(name));
    search(&files, backup, confirmed, event_len, each)
}

fn search(files: &[PathBuf], backup: Head, confirmed: Option<u64>, event_len: &EventLen<'_>, each: &mut dyn FnMut(Seq, &[u8])) -> Salvage {
    let mut heads = Heads(BTreeMap::from([(backup.batch, backup)]));
    let last_possible = |newest: u64| newest.saturating_add(SYNC_EVERY);
    let until = confirmed.map_or(u64::MAX, |confirmed| last_possible(confirmed.max(backup.batch)));
    envelopes(files, backup.batch + 1..=until, &mut |batch, bytes| heads.look(batch, bytes));
    let newest = heads.newest();
    let mut found = Salvage {
        confirmed,
        head: Some(newest).filter(|head| head.batch > backup.batch),
        newest: if newest.batch > backup.batch { newest.batch } else { 0 },
        events: BTreeSet::new(),
    };
    let until = last_possible(newest.batch.max(confirmed.unwrap_or(0)));
    envelopes(files, backup.batch + 1..=until, &mut |batch, bytes| {
        let Some(events) = block_in(bytes, &heads.events_of(batch), event_len) else {
            return;
        };
        found.newest = found.newest.max(batch);
        for (seq, event) in events {
            if found.events.insert(seq) {
                each(seq, event);
            }
        }
    });
    found
}

/// The block of events in the envelope that the bytes begin with, if it is one and its events can be no others than the `possible` ones. Where it
/// ends is not written: with as many of the events that may follow as fit its checksum.
fn block_in<'a>(bytes: &'a [u8], possible: &Range<Seq>, event_len: &EventLen<'_>) -> Option<Vec<(Seq, &'a [u8])>> {
    let (start, rest) = bytes.split_at(codec::ENVELOPE_LEN);
    let checksum = u32::from_le_bytes([start[9], start[10], start[11], start[12]]);
    let mut left = rest;
    while let Some((_, more)) = block::next(left).filter(|(event, _)| event_len(event) == Some(event.len())) {
        left = more;
        let body = &rest[..rest.len() - left.len()];
        let last = seq_of(checksum, &start[..9], body, possible.start).filter(|last| possible.contains(last));
        let sealed = &bytes[..codec::ENVELOPE_LEN + body.len()];
        let block = last
            .filter(|last| codec::unseal(&event_key(*last), sealed).is_ok())
            .and_then(|last| block::unpack(last, body))
            .filter(|events| possible.contains(&events[0].0));
        if block.is_some() {
            return block;
        }
    }
    None
}

/// The head values of commits, by commit. They say which events a commit can have made, so that nothing else is taken for one of them.
struct Heads(BTreeMap<u64, Head>);

impl Heads {
    fn look(&mut self, batch: u64, bytes: &[u8]) {
        let Some((position, len)) = codec::decode_prefix::<Position>(&bytes[codec::ENVELOPE_LEN..]) else {
            return;
        };
        if position.batch == batch && codec::unseal(HEAD_KEY, &bytes[..codec::ENVELOPE_LEN + len]).is_ok() {
            self.0.insert(batch, position.head());
        }
    }

    fn newest(&self) -> Head {
        *self.0.last_key_value().expect("that of the backup is in it").1
    }

    fn events_of(&self, batch: u64) -> Range<Seq> {
        let before = self.0.range(..batch).next_back().expect("that of the backup is before it").1;
        let after = self.0.range(batch..).next().map(|(_, head)| head.next_seq);
        let most = || before.next_seq.saturating_add((batch - before.batch).saturating_mul(EVENTS_MAX));
        before.next_seq..after.unwrap_or_else(most)
    }
}

/// Hand on the bytes at every place where an envelope of one of these commits may begin, and those behind it. What cannot be read is
/// logged.
fn envelopes(files: &[PathBuf], batches: RangeInclusive<u64>, each: &mut dyn FnMut(u64, &[u8])) {
    for file in files {
        if let Err(error) = try_envelopes(file, &batches, each) {
            tracing::warn!(%error, "the damaged log cannot be read to its end");
        }
    }
}

fn try_envelopes(file: &Path, batches: &RangeInclusive<u64>, each: &mut dyn FnMut(u64, &[u8])) -> Result<(), Error> {
    let mut log = File::open(file).map_err(Error::at("open", file))?;
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW + VALUE_MAX);
    loop {
        let before = window.len();
        let read = log.by_ref().take(WINDOW as u64).read_to_end(&mut window);
        read.map_err(Error::at("read", file))?;
        let last = window.len() == before;
        // A value that begins near the end is looked at with the bytes after it.
        let until = window.len().saturating_sub(if last { codec::ENVELOPE_LEN } else { VALUE_MAX });
        for at in 0..until {
            let bytes = &window[at..window.len().min(at + VALUE_MAX)];
            if bytes[0] == codec::ENVELOPE_FORMAT
                && let Some(batch) = bytes[1..].first_chunk::<8>().map(|batch| u64::from_le_bytes(*batch))
                && batches.contains(&batch)
            {
                each(batch, bytes);
            }
        }
        if last {
            return Ok(());
        }
        window.drain(..until);
    }
}

/// The number, at or after `from`, of the event whose key, envelope and body have this checksum.
fn seq_of(checksum: u32, start: &[u8], body: &[u8], from: Seq) -> Option<Seq> {
    // The register after the key: from its last value backwards over everything that follows the key.
    let after_key = body
        .iter()
        .rev()
        .chain(start.iter().rev())
        .fold(!checksum, |register, byte| back(register, *byte));
    let before_zeros = (0..4).fold(after_key, |register, _| back(register, 0));
    // The key's last four bytes are what takes the register from where the first five leave it to there, and there is one such.
    [0, 1].into_iter().find_map(|carry| {
        let high = (from >> 32) + carry;
        let key = event_key(high << 32);
        let after_five = key[..5].iter().fold(!0, |register, byte| forward(register, *byte));
        let low = u32::from_be_bytes((after_five ^ before_zeros).to_le_bytes());
        Some(high << 32 | u64::from(low)).filter(|seq| *seq >= from)
    })
}

/// CRC-32 (IEEE), one byte on.
fn forward(register: u32, byte: u8) -> u32 {
    TABLE[usize::from(register as u8 ^ byte)] ^ (register >> 8)
}

/// One byte back.
fn back(register: u32, byte: u8) -> u32 {
    let index = BACK[(register >> 24) as usize];
    ((register ^ TABLE[usize::from(index)]) << 8) | u32::from(index ^ byte)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut register = index as u32;
        let mut bit = 0;
        while bit < 8 {
            register = if register & 1 == 1 {
                0xedb8_8320 ^ (register >> 1)
            } else {
                register >> 1
            };
            bit += 1;
        }
        table[index] = register;
        index += 1;
    }
    table
};

/// Which entry of the table has this highest byte: each has another one.
const BACK: [u8; 256] = {
    let mut back = [0; 256];
    let mut index = 0;
    while index < 256 {
        back[(TABLE[index] >> 24) as usize] = index as u8;
        index += 1;
    }
    back
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_tells_the_number_of_its_event() {
        for seq in [1, 77, 0xffff_ffff, 0x1_0000_0000, 0x7_1234_5678] {
            let sealed = codec::seal(&event_key(seq), 9, b"some body");
            let checksum = u32::from_le_bytes(sealed[9..13].try_into().unwrap());
            for from in [seq, seq.saturating_sub(1_000_000).max(1)] {
                assert_eq!(seq_of(checksum, &sealed[..9], b"some body", from), Some(seq));
            }
        }
    }

    const BACKUP: Head = Head {
        epoch: 1,
        batch: 5,
        first_seq: 1,
        next_seq: 11,
    };

    fn found(bytes: &[u8], confirmed: Option<u64>) -> (Salvage, Vec<(Seq, Vec<u8>)>) {
        let dir = tempfile::tempdir().unwrap();
        let (file, mut events) = (dir.path().join("db"), Vec::new());
        std::fs::write(&file, bytes).unwrap();
        // Bodies of this test tell their length in their first byte.
        let len = |body: &[u8]| body.first().map(|len| usize::from(*len));
        let salvage = search(&[file], BACKUP, confirmed, &len, &mut |seq, body| events.push((seq, body.to_vec())));
        (salvage, events)
    }

    /// A block of events, of which the first has this number.
    fn sealed(first: Seq, batch: u64, events: &[&[u8]]) -> Vec<u8> {
        let (last, body) = block::pack(first, events).pop().unwrap();
        assert_eq!(last + 1, first + events.len() as Seq);
        codec::seal(&event_key(last), batch, &body)
    }

    fn head(batch: u64, next_seq: Seq) -> Vec<u8> {
        codec::seal(HEAD_KEY, batch, &codec::encode(&Position::new(1, batch, next_seq)))
    }

    #[test]
    fn events_after_the_backup_are_found_wherever_they_are_and_nothing_else() {
        let mut bytes = vec![1; WINDOW - 20];
        let mut events = Vec::new();
        for (seqs, batch) in [(10..11, 5), (11..12, 6), (12..15, 6), (15..16, 9)] {
            let bodies: Vec<Vec<u8>> = seqs.clone().map(|seq| [&[40][..], &[seq as u8; 39]].concat()).collect();
            bytes.extend(sealed(seqs.start, batch, &bodies.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            // Might be one more event of the block.
            bytes.extend([1, 0, 1]);
            if batch > 5 {
                events.extend(seqs.zip(bodies));
            }
        }
        let whole = bytes.len();
        bytes.extend(sealed(11, 6, &[&events[0].1]));
        bytes.extend(codec::seal(b"rl", 7, &[3, 1, 1]));
        let (salvage, told) = found(&bytes, Some(9));
        assert_eq!(told, events);
        assert_eq!((salvage.newest, salvage.head), (9, None));
        bytes[whole - 10] ^= 1;
        assert_eq!(found(&bytes, Some(9)).0.events, BTreeSet::from([11, 12, 13, 14]));
    }

    /// A checksum of 32 bits alone would let something pass for an event once in a while.
    #[test]
    fn heads_and_the_witness_bound_what_can_be_an_event() {
        let body = [&[40][..], &[7; 39]].concat();
        let event = |seq, batch| sealed(seq, batch, &[&body]);
        let bytes = [
            event(11, 6),
            event(14, 6),
            event(12, 7),
            event(500, 8),
            event(13, 1000),
            head(6, 12),
            head(8, 20),
        ]
        .concat();
        let (salvage, told) = found(&bytes, Some(8));
        assert_eq!(told.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [11, 12]);
        assert_eq!(
            (salvage.newest, salvage.head.map(|head| (head.batch, head.next_seq))),
            (8, Some((8, 20)))
        );
        // Without the witness the heads tell how far it can have come.
        assert_eq!(found(&bytes, None).0.events, BTreeSet::from([11, 12]));
        assert_eq!(found(&event(11, 6), None).0.events, BTreeSet::from([11]));
    }
}
