//! How a stored value becomes bytes: the encoding of its body, and the envelope around it.
//!
//! Called by `sled_store` (envelope, head record) and by `engine` (events and records). This file and `migrations/` are the only ones
//! that name the encoder. It must never panic on bytes it reads, and never change the bytes it writes without a new stored-format
//! version: the golden tests below and in `migrations/m0001_initial.rs` hold it to that.

use serde::{Serialize, de::DeserializeOwned};
use std::cell::Cell;

/// First byte of every stored value: the version of the envelope.
pub const ENVELOPE_FORMAT: u8 = 1;
/// Bytes the envelope puts in front of a body.
pub const ENVELOPE_LEN: usize = 1 + 8 + 4;

/// What one decode may claim in bytes. A stored body is below 4 KiB; in memory its lists may take several times that, and a hostile
/// length must not take more than this.
const DECODE_LIMIT: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why bytes could not be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not an encoding of the wanted type.
    #[error("the body does not decode: {0}")]
    Malformed(String),
    /// More bytes than the value takes.
    #[error("{0} bytes follow the body")]
    Trailing(usize),
    /// Shorter than an envelope.
    #[error("{0} bytes are too few for an envelope")]
    Short(usize),
    /// An envelope of another version.
    #[error("envelope format {0} is unknown")]
    Format(u8),
    /// Key, header and body do not belong together.
    #[error("the checksum does not fit")]
    Checksum,
}

/// The bytes of a body. Integers are written with variable length, enum variants by their index.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // One that has room already: a vector that grows is copied four times for a body of 300 bytes.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    bincode::serde::encode_into_std_write(value, &mut scratch, bincode::config::standard())
        .expect("stored types are plain data: every list knows its length and a vector takes any number of bytes");
    let bytes = scratch.as_slice().into();
    SCRATCH.set(scratch);
    bytes
}

/// The value of a body. All bytes must belong to it.
///
/// Never panics. Stored types hold no lists of zero-sized elements: a hostile length of those costs time instead of memory.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if used != bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

/// The value that bytes begin with, and how many it takes; never panics.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    bincode::serde::decode_from_slice(bytes, config).ok()
}

/// Put a body into its envelope.
///
/// ```text
/// offset  bytes  what
/// 0       1      envelope format, 1
/// 1       8      number of the commit that wrote it, little endian
/// 9       4      CRC-32 (IEEE) over key, the nine bytes above, body; little endian
/// 13      ..     body
/// ```
///
/// The key is in the checksum, so that a value found under another key is damage; the commit number tells a reader whether the value
/// is durable yet.
pub fn seal(key: &[u8], batch: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENVELOPE_LEN + body.len());
    seal_into(&mut bytes, key, batch, body);
    bytes
}

/// [`seal`], at the end of these bytes.
pub fn seal_into(bytes: &mut Vec<u8>, key: &[u8], batch: u64, body: &[u8]) {
    let start = bytes.len();
    bytes.push(ENVELOPE_FORMAT);
    bytes.extend_from_slice(&batch.to_le_bytes());
    let checksum = checksum(key, &bytes[start..], body);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(body);
}

/// Check an envelope; gives the number of the commit that wrote it and the body.
pub fn unseal<'a>(key: &[u8], bytes: &'a [u8]) -> Result<(u64, &'a [u8]), DecodeError> {
    let short = || DecodeError::Short(bytes.len());
    let (start, rest) = bytes.split_at_checked(9).ok_or_else(short)?;
    let (stored, body) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (format, batch) = start.split_first_chunk::<1>().ok_or_else(short)?;
    if format[0] != ENVELOPE_FORMAT {
        return Err(DecodeError::Format(format[0]));
    }
    if u32::from_le_bytes(*stored) != checksum(key, start, body) {
        return Err(DecodeError::Checksum);
    }
    let batch = batch.first_chunk::<8>().ok_or_else(short)?;
    Ok((u64::from_le_bytes(*batch), body))
}

/// A 64-bit hash of a key and the envelope of its value: one summand of the sum over all live values.
///
/// It reads the envelope only; the body is in there through its checksum. FNV-1a with the finalizer of MurmurHash3, because sums of
/// plain FNV values of similar keys can cancel out. Part of the stored format.
pub fn fingerprint(key: &[u8], sealed: &[u8]) -> u64 {
    let envelope = &sealed[..sealed.len().min(ENVELOPE_LEN)];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in key.iter().chain(envelope) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn checksum(key: &[u8], start: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(start);
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::content::Content;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Sample {
        Empty,
        Full {
            name: String,
            count: u64,
            parts: Vec<u8>,
            maybe: Option<u32>,
        },
    }

    fn sample() -> Sample {
        Sample::Full {
            name: "party".into(),
            count: 300,
            parts: vec![1, 2],
            maybe: Some(7),
        }
    }

    #[test]
    fn bodies_have_the_golden_bytes() {
        assert_eq!(encode(&sample()), b"\x01\x05party\xfb\x2c\x01\x02\x01\x02\x01\x07");
        assert_eq!(encode(&Sample::Empty), [0]);
    }

    #[test]
    fn envelopes_have_the_golden_bytes() {
        let sealed = seal(b"rjob", 0x0102, b"body");
        assert_eq!(sealed, b"\x01\x02\x01\x00\x00\x00\x00\x00\x00\x2c\x19\x5f\xc5body");
        assert_eq!(fingerprint(b"rjob", &sealed), 0xe917_a462_a0f8_afd2);
    }

    #[test]
    fn what_was_sealed_unseals_under_its_key_only() {
        let sealed = seal(b"key", 7, b"body");
        assert_eq!(unseal(b"key", &sealed), Ok((7, &b"body"[..])));
        assert_eq!(unseal(b"kez", &sealed), Err(DecodeError::Checksum));
        assert_eq!(unseal(b"key", &sealed[..12]), Err(DecodeError::Short(12)));
        assert_eq!(unseal(b"key", b""), Err(DecodeError::Short(0)));
        let mut other = sealed.clone();
        other[0] = 9;
        assert_eq!(unseal(b"key", &other), Err(DecodeError::Format(9)));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let sealed = seal(b"key", 7, b"body");
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(b"key", &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn trailing_bytes_and_hostile_lengths_are_refused() {
        let mut bytes = encode(&sample());
        bytes.push(0);
        assert_eq!(decode::<Sample>(&bytes), Err(DecodeError::Trailing(1)));
        let hostile = b"\xfd\xff\xff\xff\xff\xff\xff\xff\xff";
        assert!(matches!(decode::<Vec<u8>>(hostile), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<String>(hostile), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn content_in_one_piece_is_stored_as_its_length_and_its_bytes() {
        let content = Content::Inline(vec![7, 0, 255]);
        assert_eq!(encode(&content), [0, 3, 7, 0, 255]);
        assert_eq!(decode(&[0, 3, 7, 0, 255]), Ok(content));
        let hostile = b"\0\xfd\xff\xff\xff\xff\xff\xff\xff\xff";
        assert!(matches!(decode::<Content>(hostile), Err(DecodeError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Sample>(&bytes);
            let _ = decode::<Vec<(String, Option<Vec<u64>>)>>(&bytes);
            let _ = unseal(b"key", &bytes);
        }

        #[test]
        fn values_come_back(name in ".*", count: u64, parts: Vec<u8>, maybe: Option<u32>) {
            let value = Sample::Full { name, count, parts, maybe };
            prop_assert_eq!(decode::<Sample>(&encode(&value)), Ok(value));
        }
    }
}
