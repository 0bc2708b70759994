//! Bytes that a record carries: small ones inline, large ones as a reference to a content-addressed file.
//!
//! Made by the doors (which store the file first, see `store::payload`), carried by commands, events and records.
//! Never holds more than [`INLINE_MAX`] bytes itself, so that no stored value grows past the engine's safe size.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest content kept inside a record, bytes. A record may carry two of them (a job: its config and its
/// algorithm config) and must stay below the store's value limit of 4 KiB.
pub const INLINE_MAX: usize = 512;

/// A content-addressed file: the SHA-256 of its bytes and their number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PayloadRef {
    /// SHA-256 of the content.
    pub hash: [u8; 32],
    /// Length of the content in bytes.
    pub len: u64,
}

impl PayloadRef {
    /// The hash in lower-case hexadecimal: the name of the file.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.hash.iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// The inverse of [`PayloadRef::hex`]; `None` for what is no hash.
    pub fn from_hex(name: &str, len: u64) -> Option<Self> {
        let bytes: &[u8; 64] = name.as_bytes().try_into().ok()?;
        if !bytes.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self { hash, len })
    }
}

impl fmt::Debug for PayloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", &self.hex()[..12], self.len)
    }
}

/// Bytes of any size, as a record holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// At most [`INLINE_MAX`] bytes.
    Inline(#[serde(with = "at_once")] Vec<u8>),
    /// A payload file that was durable before the command that carries this reference was made.
    Stored(PayloadRef),
}

impl Content {
    /// Whether a record holds so many bytes itself.
    pub fn fits(bytes: usize) -> bool {
        bytes <= INLINE_MAX
    }

    /// The payload file this content keeps alive, if any.
    pub fn payload(&self) -> Option<PayloadRef> {
        match self {
            Content::Inline(_) => None,
            Content::Stored(payload) => Some(*payload),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Stored(payload) => payload.len,
        }
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in one piece and not one by one: stored the same, and read in a fraction of the time.
mod at_once {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

impl Default for Content {
    fn default() -> Self {
        Content::Inline(Vec::new())
    }
}
