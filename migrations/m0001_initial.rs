//! Stored-format version 1, the first.
//!
//! Frozen: the tests below hold today's code to these bytes. A change that fails them is a new version and gets a file of its own.
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

#[cfg(test)]
mod tests {
    use crate::store::codec;
    use crate::store::directory::Directory;
    use crate::store::sled_store::{EVENT_PREFIX, HEAD_KEY, Position, RECORD_PREFIX, SledStore};
    use crate::store::{Commit, Store};
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn a_directory_looks_like_version_1() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [0xab; 16]).unwrap();
        let text = "fedbroker data directory\nformat 1\nrole master\ninstance abababababababababababababababab\ncheck 6c7f31e8\n";
        assert_eq!(fs::read_to_string(root.path().join("FORMAT")).unwrap(), text);
        drop(SledStore::open(&directory).unwrap());
        let names = fs::read_dir(root.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let expected = ["FORMAT", "LOCK", "high-water", "payloads", "store", "work"].map(String::from);
        assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    }

    #[test]
    fn the_head_value_has_the_bytes_of_version_1() {
        let position = Position {
            epoch: 1,
            batch: 2,
            next_seq: 300,
            count: 4,
            sum: u64::MAX,
        };
        let body = codec::encode(&position);
        assert_eq!(body, b"\x01\x02\xfb\x2c\x01\x04\xfd\xff\xff\xff\xff\xff\xff\xff\xff");
        assert_eq!(codec::decode(&body), Ok(position));
        assert_eq!((HEAD_KEY, EVENT_PREFIX, RECORD_PREFIX), (&b"h"[..], b'e', b'r'));
    }

    #[test]
    fn the_high_water_file_has_the_bytes_of_version_1() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path(), "master", [0; 16]).unwrap();
        let store = SledStore::open(&directory).unwrap();
        let commit = Commit {
            epoch: 1,
            expected: 1,
            events: vec![b"event".to_vec()],
            changes: vec![(b"key".to_vec(), Some(b"value".to_vec()))],
        };
        store.commit(&commit).unwrap();
        let event = b"\x01\x02\0\0\0\0\0\0\0";
        let event_crc = crc32fast::hash(&[b"e\0\0\0\0\0\0\0\x01", &event[..], b"event"].concat());
        let record_crc = crc32fast::hash(&[b"rkey", &event[..], b"value"].concat());
        let event_sum = codec::fingerprint(b"e\0\0\0\0\0\0\0\x01", &[&event[..], &event_crc.to_le_bytes()].concat());
        let record_sum = codec::fingerprint(b"rkey", &[&event[..], &record_crc.to_le_bytes()].concat());
        let sum = event_sum.wrapping_add(record_sum).to_le_bytes();
        let crc = crc32fast::hash(&[b"high-water", &event[..], &sum].concat()).to_le_bytes();
        let file = fs::read(root.path().join("high-water")).unwrap();
        assert_eq!(file.len(), 8192);
        assert_eq!(file[..21], [&event[..], &crc, &sum].concat());
        assert_eq!(file[21..512], [0; 491]);
    }
}
