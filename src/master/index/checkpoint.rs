//! The index as a file, so that a start need not read a million records.
//!
//! ```text
//! <log>/index   "fbindex2"  instance  sequence 8  pieces ...  crc32 4      numbers little-endian, texts with their length in 8 bytes
//! piece         "c" number 8, then of each job created_at 8, stamp 8; then their states, 1 each
//!               "t" type, bitmap     "l" label 8, set     "." the end
//! ```
//!
//! Written now and then and at a clean stop, beside the log it is of, while commits go on: a piece is as it was when it was written, and the sequence
//! is that of before the first one. Whoever reads it looks again at every job that was changed after that. The pieces with types and labels
//! come last, so that they name every job that is in another piece.
//!
//! It is derived data: whatever is wrong with it, the answer is `None`, and the index is made from the records. Never a source of truth, never in
//! a backup.

use super::columns::{CHUNK, Chunk, Columns};
use super::postings::Postings;
use crate::store::Seq;
use roaring::RoaringTreemap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Bound;
use std::path::Path;

/// Name and version.
const MAGIC: &[u8; 8] = b"fbindex2";
/// The largest file that is read, bytes: a hundred million jobs.
const FILE_MAX: u64 = 4 << 30;
/// A piece of labels ends at this size, bytes: some ten microseconds.
const PIECE: usize = 64 * 1024;

/// Which piece comes next: the first one behind a key.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Chunks(Option<u64>),
    Types(Option<String>),
    Labels(Option<u64>),
}

impl Place {
    /// Before the first one.
    pub(super) const BEGIN: Place = Place::Chunks(None);
}

/// Write the piece at a place, and say where the next one is; `None` when that was all.
pub(super) fn piece(columns: &Columns, place: Place, out: &mut Vec<u8>) -> Option<Place> {
    Some(match place {
        Place::Chunks(after) => match columns.chunks.range((behind(after), Bound::Unbounded)).next() {
            Some((at, chunk)) => {
                out.push(b'c');
                number(out, *at);
                for (created, stamp) in chunk.created.iter().zip(&chunk.stamps) {
                    number(out, *created);
                    number(out, *stamp);
                }
                out.extend(&chunk.states);
                Place::Chunks(Some(*at))
            }
            None => Place::Types(None),
        },
        Place::Types(after) => match columns.types.range((behind(after), Bound::Unbounded)).next() {
            Some((name, set)) => {
                out.push(b't');
                text(out, name);
                set.serialize_into(&mut *out).expect("a Vec takes all that is written to it");
                Place::Types(Some(name.clone()))
            }
            None => Place::Labels(None),
        },
        Place::Labels(after) => {
            let mut last = None;
            for (label, set) in columns.labels.range((behind(after), Bound::Unbounded)) {
                out.push(b'l');
                number(out, *label);
                set.write(out).expect("a Vec takes all that is written to it");
                last = Some(*label);
                if out.len() >= PIECE {
                    break;
                }
            }
            Place::Labels(Some(last?))
        }
    })
}

fn behind<T>(key: Option<T>) -> Bound<T> {
    key.map_or(Bound::Unbounded, Bound::Excluded)
}

/// The inverse of [`write`]; `None` for what is no whole index of this data directory. What is in it may be newer than its sequence.
pub(super) fn decode(bytes: &[u8], instance: &str) -> Option<(Columns, Seq)> {
    let (bytes, sum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut from = bytes.strip_prefix(MAGIC)?;
    if read_text(&mut from)? != instance {
        return None;
    }
    let seq = read_number(&mut from)?;
    let mut columns = Columns::default();
    loop {
        let (kind, rest) = from.split_first()?;
        from = rest;
        match kind {
            b'c' => {
                let at = read_number(&mut from)?;
                columns.take_chunk(at, read_chunk(&mut from)?);
            }
            b't' => {
                let name = read_text(&mut from)?;
                columns.types.insert(name, RoaringTreemap::deserialize_from(&mut from).ok()?);
            }
            b'l' => {
                let label = read_number(&mut from)?;
                columns.labels.insert(label, Postings::read(&mut from).ok()?);
            }
            b'.' => return from.is_empty().then_some((columns, seq)),
            _ => return None,
        }
    }
}

fn read_chunk(from: &mut &[u8]) -> Option<Chunk> {
    let size = usize::try_from(CHUNK).ok()?;
    let mut chunk = Chunk::new();
    for (created, stamp) in chunk.created.iter_mut().zip(&mut chunk.stamps) {
        *created = read_number(from)?;
        *stamp = read_number(from)?;
    }
    let (states, rest) = from.split_at_checked(size)?;
    chunk.states.copy_from_slice(states);
    *from = rest;
    Some(chunk)
}

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn read_number(from: &mut &[u8]) -> Option<u64> {
    let (bytes, rest) = from.split_first_chunk::<8>()?;
    *from = rest;
    Some(u64::from_le_bytes(*bytes))
}

fn read_text(from: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(read_number(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    String::from_utf8(bytes.to_vec()).ok()
}

/// The whole index, of which `next` gives the pieces, as [`piece`] does; `seq` is that of the index before the first one.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(
    mut to: impl Write,
    instance: &str,
    seq: Seq,
    mut next: impl FnMut(Place, &mut Vec<u8>) -> Option<Place>,
) -> io::Result<()> {
    let mut sum = crc32fast::Hasher::new();
    let mut bytes = MAGIC.to_vec();
    text(&mut bytes, instance);
    number(&mut bytes, seq);
    let mut place = Some(Place::BEGIN);
    while let Some(at) = place {
        place = next(at, &mut bytes);
        if place.is_none() {
            bytes.push(b'.');
        }
        sum.update(&bytes);
        to.write_all(&bytes)?;
        bytes.clear();
    }
    to.write_all(&sum.finalize().to_le_bytes())
}

/// [`write`] to a file: whole or as it was, whenever the process ends.
///
/// # Errors
/// It cannot be written.
pub(super) fn save(path: &Path, instance: &str, seq: Seq, next: impl FnMut(Place, &mut Vec<u8>) -> Option<Place>) -> io::Result<()> {
    let beside = path.with_extension("new");
    let file = File::create(&beside)?;
    write(&file, instance, seq, next)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)
}

/// The index in a file; `None` when there is none that is whole and of this data directory.
pub(super) fn load(path: &Path, instance: &str) -> Option<(Columns, Seq)> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    if length > FILE_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
    file.read_to_end(&mut bytes).ok()?;
    decode(&bytes, instance)
}
