//! Stored-format version 1, the first.
//!
//! Frozen with release 0.1.0. `tests/compat` keeps directories that release made; `m0002_live_sum` brings them up to date.
//!
//! Directory: `LOCK` (free text), `FORMAT` (text, below), `high-water`, and the directories `store`, `payloads`, `work`.
//!
//! | file | layout |
//! | --- | --- |
//! | `FORMAT` | lines: title, `format 1`, `role <word>`, `instance <32 hex digits>`, `check <CRC-32 of the lines above, 8 hex digits>` |
//! | `store` | sled 0.34, 8 MiB segments, the default tree; keys and values below |
//! | `high-water` | 512 bytes at 0 and at 4096, commit n at n mod 2: envelope, key `high-water`, of the sum, little endian |
//! | `payloads` | `<2 hex digits>/<64 hex digits>`, the SHA-256 of the content |
//!
//! | key | body |
//! | --- | --- |
//! | `h` | epoch, batch, next sequence, count, sum: five unsigned varints |
//! | `e` + 8 bytes sequence, big endian | an event |
//! | `r` + key | a record |
//!
//! Every value is an envelope (format byte 1, batch as 8 bytes little endian, CRC-32 of key + these nine bytes + body as 4 bytes
//! little endian) and its body. Bodies are bincode 2, standard configuration (varints, little endian, enum variants by index).
//! Count and sum are over all events and records: FNV-1a, 64 bits, of key + envelope, finished like MurmurHash3, added with wrapping.

/// This version.
pub const VERSION: u32 = 1;

/// The body of the head value, as this version has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Head {
    /// Raised at every open.
    pub epoch: u64,
    /// Number of commits ever made.
    pub batch: u64,
    /// The sequence the next event will get.
    pub next_seq: u64,
    /// Events and records.
    pub count: u64,
    /// Over all of them.
    pub sum: u64,
}

impl Head {
    /// Read a body.
    pub(super) fn read(body: &[u8]) -> Result<Head, String> {
        crate::store::codec::decode(body).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_value_has_the_bytes_of_version_1() {
        let head = Head {
            epoch: 1,
            batch: 2,
            next_seq: 300,
            count: 4,
            sum: u64::MAX,
        };
        let body = b"\x01\x02\xfb\x2c\x01\x04\xfd\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(Head::read(body), Ok(head));
    }
}
