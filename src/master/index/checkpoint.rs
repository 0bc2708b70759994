//! The index as a file, so that a start need not read a million records.
//!
//! ```text
//! <log>/index   "fbindex1"  instance 16  sequence 8  columns ...  crc32 4      numbers little-endian
//! ```
//!
//! Written now and then and at a clean stop, beside the log it is of. It is derived data: whatever is wrong with it, the answer is `None`, and the
//! index is made from the records. Never a source of truth, never in a backup.

use super::columns::{CHUNK, Chunk, Columns};
use super::postings::Postings;
use crate::store::Seq;
use roaring::RoaringTreemap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Name and version.
const MAGIC: &[u8; 8] = b"fbindex1";
/// The largest file that is read, bytes: a hundred million jobs.
const FILE_MAX: u64 = 4 << 30;

/// The bytes of an index that holds every commit up to `seq`.
pub(super) fn encode(columns: &Columns, instance: &str, seq: Seq) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::try_from(columns.len() * 18).unwrap_or(0) + 4096);
    let written = write(columns, instance, seq, &mut bytes);
    written.expect("a Vec takes all that is written to it");
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn write(columns: &Columns, instance: &str, seq: Seq, out: &mut Vec<u8>) -> io::Result<()> {
    out.extend(MAGIC);
    text(out, instance);
    number(out, seq);
    number(out, columns.chunks.len() as u64);
    for (at, chunk) in &columns.chunks {
        number(out, *at);
        for (created, stamp) in chunk.created.iter().zip(&chunk.stamps) {
            number(out, *created);
            number(out, *stamp);
        }
        out.extend(&chunk.states);
    }
    number(out, columns.types.len() as u64);
    for (name, set) in &columns.types {
        text(out, name);
        set.serialize_into(&mut *out)?;
    }
    number(out, columns.labels.len() as u64);
    for (label, set) in &columns.labels {
        number(out, *label);
        set.write(out)?;
    }
    Ok(())
}

/// The inverse of [`encode`]; `None` for what is no whole index of this data directory.
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
    for _ in 0..read_number(&mut from)? {
        let at = read_number(&mut from)?;
        columns.take_chunk(at, read_chunk(&mut from)?);
    }
    for _ in 0..read_number(&mut from)? {
        let name = read_text(&mut from)?;
        columns.types.insert(name, RoaringTreemap::deserialize_from(&mut from).ok()?);
    }
    for _ in 0..read_number(&mut from)? {
        let label = read_number(&mut from)?;
        columns.labels.insert(label, Postings::read(&mut from).ok()?);
    }
    from.is_empty().then_some((columns, seq))
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

/// Put the file in its place: whole or as it was, whenever the process ends.
///
/// # Errors
/// It cannot be written.
pub(super) fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)
}

/// The file's bytes; `None` when there is none that can be read.
pub(super) fn load(path: &Path) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    if length > FILE_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
    file.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
