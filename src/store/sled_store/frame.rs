//! One commit as the journal has it, and the only one who knows these bytes.
//!
//! Made by the committer key by key, each value sealed where it is written from; read by a start. It must never panic on bytes it reads, nor take some for a
//! frame that were not written as one.
//!
//! ```text
//! offset  bytes  what                                     each frame begins at a multiple of 512
//! 0       4      CRC-32 (IEEE) over all that follows; little endian
//! 4       4      length of the body, little endian
//! 8       8      number of the commit, little endian
//! 16      ..     body: for each key  2 bytes its length, 4 bytes that of the value or ffffffff where the key goes, key, sealed value
//! ```

use super::disk::Value;
use crate::store::codec;
use std::ops::Range;

/// Where frames begin: what a disk writes whole or not at all, so that a torn frame takes none before it.
pub(super) const ALIGN: usize = 512;
pub(super) const HEADER: usize = 16;
const GONE: u32 = u32::MAX;
/// So many bytes of a frame share a piece of memory, which is there as long as one of its values: as many as an allocator has at hand.
const PIECE: usize = 16 * 1024;

/// What one commit writes: keys and sealed values.
pub(super) type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The frame of a commit while it is made, with the keys that are in it and where their values are.
pub(super) struct Draft {
    batch: u64,
    bytes: Vec<u8>,
    places: Vec<(Vec<u8>, Option<Range<usize>>)>,
}

impl Draft {
    /// An empty one, in memory that there is.
    pub(super) fn new(batch: u64, mut bytes: Vec<u8>) -> Draft {
        bytes.clear();
        bytes.extend_from_slice(&[0; HEADER]);
        let places = Vec::new();
        Draft { batch, bytes, places }
    }

    /// The number of the commit.
    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    /// Write a body under a key, or remove the key; gives it back with the sealed value.
    pub(super) fn put(&mut self, key: Vec<u8>, body: Option<&[u8]>) -> (&[u8], Option<&[u8]>) {
        let key_len = u16::try_from(key.len()).expect("a key is below KEY_MAX");
        let value_len = body.map_or(GONE, |body| {
            u32::try_from(codec::ENVELOPE_LEN + body.len()).expect("a commit is below COST_MAX")
        });
        self.bytes.extend_from_slice(&key_len.to_le_bytes());
        self.bytes.extend_from_slice(&value_len.to_le_bytes());
        self.bytes.extend_from_slice(&key);
        let start = self.bytes.len();
        if let Some(body) = body {
            codec::seal_into(&mut self.bytes, &key, self.batch, body);
        }
        let place = body.map(|_| start..self.bytes.len());
        let sealed = place.clone().map(|place| &self.bytes[place]);
        let (key, _) = self.places.push_mut((key, place));
        (key, sealed)
    }

    /// The keys it writes.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.places.iter().map(|(key, _)| key.as_slice())
    }

    /// Bytes that the frame takes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGN)
    }

    /// The bytes of the frame.
    pub(super) fn seal(&mut self) -> &[u8] {
        let body = u32::try_from(self.bytes.len() - HEADER).expect("a commit is below COST_MAX");
        self.bytes[4..8].copy_from_slice(&body.to_le_bytes());
        self.bytes[8..HEADER].copy_from_slice(&self.batch.to_le_bytes());
        let checksum = crc32fast::hash(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.len(), 0);
        &self.bytes
    }

    /// The frame is durable. Its bytes go where they are kept until the next one.
    pub(super) fn written(self, kept: &mut Vec<u8>) -> Written<'_> {
        *kept = self.bytes;
        Written {
            frame: kept,
            places: self.places,
        }
    }
}

/// A commit that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) batch: u64,
    pub(super) writes: Writes,
}

/// A commit that is durable.
pub(super) struct Written<'a> {
    frame: &'a [u8],
    places: Vec<(Vec<u8>, Option<Range<usize>>)>,
}

impl<'a> Written<'a> {
    /// Its keys and sealed values; neighbours are parts of one piece of memory.
    pub(super) fn values(self) -> impl Iterator<Item = (Vec<u8>, Option<Value>)> + use<'a> {
        let Written { frame, places } = self;
        let (mut piece, mut of) = (Value::default(), 0..0);
        places.into_iter().map(move |(key, place)| {
            let value = place.map(|place| {
                if place.end > of.end {
                    of = place.start..frame.len().min(place.end.max(place.start + PIECE));
                    piece = Value::from(&frame[of.clone()]);
                }
                piece.subslice(place.start - of.start, place.len())
            });
            (key, value)
        })
    }
}

/// The frame that these bytes are.
pub(super) fn decode(bytes: &[u8]) -> Option<Frame> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let checksum = u32::from_le_bytes(*header.first_chunk()?);
    let len = u32::from_le_bytes(*header[4..].first_chunk()?) as usize;
    let body = rest.get(..len)?;
    if crc32fast::hash(&bytes[4..HEADER + len]) != checksum {
        return None;
    }
    let batch = u64::from_le_bytes(*header[8..].first_chunk()?);
    let (mut writes, mut left) = (Vec::new(), body);
    while !left.is_empty() {
        let (key_len, rest) = left.split_first_chunk::<2>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key_len).into())?;
        let (value, rest) = match u32::from_le_bytes(*value_len) {
            GONE => (None, rest),
            len => {
                let (value, rest) = rest.split_at_checked(len as usize)?;
                (Some(value.to_vec()), rest)
            }
        };
        writes.push((key.to_vec(), value));
        left = rest;
    }
    Some(Frame { batch, writes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_have_the_golden_bytes() {
        let mut draft = Draft::new(0x0102, vec![1; 99]);
        let sealed = codec::seal(b"k", 0x0102, b"v");
        assert_eq!(draft.put(b"k".to_vec(), Some(b"v")), (&b"k"[..], Some(sealed.as_slice())));
        assert_eq!(draft.put(b"g".to_vec(), None), (&b"g"[..], None));
        let frame = draft.seal();
        assert_eq!(frame.len(), ALIGN);
        let head = b"\x1c\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x01\x00\x0e\x00\x00\x00k\x01\x02\x01\x00\x00\x00\x00\x00\x00";
        assert_eq!(&frame[4..4 + head.len()], head);
        // The checksum of the envelope is between them.
        let rest = b"v\x01\x00\xff\xff\xff\xffg\x00";
        assert_eq!(&frame[4 + head.len() + 4..][..rest.len()], rest);
        assert_eq!(crc32fast::hash(&frame[4..HEADER + 0x1c]).to_le_bytes(), frame[..4]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if bytes.len() > HEADER {
                let len = u32::try_from(bytes.len() - HEADER).unwrap();
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
                let checksum = crc32fast::hash(&bytes[4..]);
                bytes[..4].copy_from_slice(&checksum.to_le_bytes());
                let _ = decode(&bytes);
            }
        }
    }
}
