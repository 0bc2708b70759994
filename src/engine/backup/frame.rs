//! How a backup travels and how its log is kept: a row of frames, each with its own checksum.
//!
//! Written by `send`, taken apart by `receive` (as it comes, in pieces of any size) and `log` (from the file). A row that is cut short
//! has no end frame; nothing else may be taken for an end. It must never panic on what it reads, nor believe a length.
//!
//! ```text
//! offset  bytes  what
//! 0       1      kind
//! 1       4      length of the body, little endian
//! 5       ..     body
//! ..      4      CRC-32 (IEEE) over all before; little endian
//! ```

use crate::store::{KEY_MAX, VALUE_MAX};

/// Who the backup is of; the first frame. JSON.
pub(super) const BEGIN: u8 = b'B';
/// Keys and values, see [`Values`].
pub(super) const VALUES: u8 = b'V';
/// A payload file begins: its SHA-256, its length in 8 bytes, little endian.
pub(super) const PAYLOAD: u8 = b'P';
/// A piece of it.
pub(super) const PIECE: u8 = b'D';
/// All is said; the last frame. JSON.
pub(super) const END: u8 = b'E';
/// It cannot go on: why, in words. The last frame.
pub(super) const FAILED: u8 = b'X';

/// The longest body. A frame is held in memory as a whole.
pub(super) const BODY_MAX: usize = 512 * 1024;
/// A frame of values is sent once it is so long.
pub(super) const BODY_GOOD: usize = 256 * 1024;
const HEAD: usize = 5;
const _: () = assert!(BODY_GOOD + KEY_MAX + VALUE_MAX + 6 <= BODY_MAX);

/// What is wrong with a row of frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a frame of {0} bytes, which is longer than any")]
    Long(usize),
    #[error("a frame with a checksum that does not fit")]
    Checksum,
    #[error("a frame of values that does not hold values")]
    Values,
}

/// The bytes of a frame.
pub(super) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= BODY_MAX, "bodies are cut to pieces before");
    let mut bytes = Vec::with_capacity(HEAD + body.len() + 4);
    bytes.push(kind);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Takes bytes as they come and gives frames as they are whole.
#[derive(Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// More bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame: kind and body.
    pub(super) fn next(&mut self) -> Result<Option<(u8, &[u8])>, Malformed> {
        let rest = &self.buffer[self.taken..];
        let Some((head, after)) = rest.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > BODY_MAX {
            return Err(Malformed::Long(len));
        }
        let Some(checksum) = after.get(len..len + 4) else { return Ok(None) };
        if crc32fast::hash(&rest[..HEAD + len]).to_le_bytes() != checksum {
            return Err(Malformed::Checksum);
        }
        self.taken += HEAD + len + 4;
        Ok(Some((head[0], &after[..len])))
    }

    /// True when no byte is left over.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.buffer.len()
    }
}

/// The body of a frame of values, being filled: for each the key's length in 2 bytes, the key, the value's length in 4 bytes, the value
/// as it is stored, with its envelope; the length `u32::MAX` and no value for a key that is deleted.
#[derive(Default)]
pub(super) struct Values(Vec<u8>);

impl Values {
    /// One more.
    pub(super) fn push(&mut self, key: &[u8], sealed: Option<&[u8]>) {
        let len = |len: usize| u32::try_from(len).expect("the store limits values to 4 KiB");
        self.0
            .extend_from_slice(&u16::try_from(key.len()).expect("the store limits keys to 512 bytes").to_le_bytes());
        self.0.extend_from_slice(key);
        self.0
            .extend_from_slice(&sealed.map_or(u32::MAX, |sealed| len(sealed.len())).to_le_bytes());
        self.0.extend_from_slice(sealed.unwrap_or_default());
    }

    /// The frame, once it is long enough or `now`; empty afterwards.
    pub(super) fn take(&mut self, now: bool) -> Option<Vec<u8>> {
        let wanted = if now { 1 } else { BODY_GOOD };
        let frame = (self.0.len() >= wanted).then(|| frame(VALUES, &self.0))?;
        self.0.clear();
        Some(frame)
    }
}

/// A key and its value as stored; `None` for one that is deleted.
pub(super) type Value<'a> = (&'a [u8], Option<&'a [u8]>);

/// What a frame of values holds.
pub(super) fn values(mut body: &[u8]) -> Result<Vec<Value<'_>>, Malformed> {
    let mut values = Vec::new();
    while !body.is_empty() {
        let (value, rest) = value(body).ok_or(Malformed::Values)?;
        values.push(value);
        body = rest;
    }
    Ok(values)
}

fn value(body: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (len, body) = body.split_first_chunk::<2>()?;
    let (key, body) = body.split_at_checked(u16::from_le_bytes(*len).into())?;
    let (len, body) = body.split_first_chunk::<4>()?;
    match u32::from_le_bytes(*len) {
        u32::MAX => Some(((key, None), body)),
        len => {
            let (sealed, body) = body.split_at_checked(len as usize)?;
            Some(((key, Some(sealed)), body))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut values_in = Values::default();
        values_in.push(b"key", Some(b"value"));
        values_in.push(b"gone", None);
        values_in.push(b"empty", Some(b""));
        assert_eq!(values_in.take(false), None);
        let row = [frame(BEGIN, b"{}"), values_in.take(true).unwrap(), frame(END, b"")].concat();
        assert_eq!(values_in.take(true), None);
        for step in [1, 7, row.len()] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in row.chunks(step) {
                frames.feed(piece);
                while let Some((kind, body)) = frames.next().unwrap() {
                    found.push((kind, body.to_vec()));
                }
            }
            assert!(frames.is_empty());
            assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [BEGIN, VALUES, END]);
            let expected: [Value<'_>; 3] = [(b"key", Some(b"value")), (b"gone", None), (b"empty", Some(b""))];
            assert_eq!(values(&found[1].1).unwrap(), expected);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed_or_leaves_the_row_without_its_end() {
        let row = frame(VALUES, b"\x01\0k\x01\0\0\0v");
        for bit in 0..row.len() * 8 {
            let mut damaged = row.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut frames = Frames::default();
            frames.feed(&damaged);
            assert!(!matches!(frames.next(), Ok(Some(_))), "bit {bit}");
        }
        assert_eq!(values(b"\x01\0k\x02\0\0\0v"), Err(Malformed::Values));
        assert_eq!(values(b"\x01"), Err(Malformed::Values));
    }
}
