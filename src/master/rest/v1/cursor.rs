//! Where the next page of a list begins, as clients carry it: opaque text that holds for one list with one filter and one order.
//!
//! A cursor is a position, not a snapshot: it names the last item that was shown, so that what comes and goes meanwhile neither repeats nor hides
//! another item. It is made and read by the lists of `/api/v1`.

use super::problem::{Code, Problem};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Raised when the bytes change.
const VERSION: u8 = 1;
/// Version, list and checksum.
const FRAME: usize = 1 + 8 + 4;

/// A list: what is asked for, in which order, at which data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::master::rest) struct List([u8; 8]);

impl List {
    /// `what` has a text for everything that decides what is in the list and in which order.
    pub(in crate::master::rest) fn new(instance: &str, what: &str) -> Self {
        let hash = Sha256::digest([instance, "\0", what].concat());
        Self(hash[..8].try_into().expect("a hash has 32 bytes"))
    }

    /// The cursor that goes on behind a position.
    pub(in crate::master::rest) fn cursor(self, position: &[u8]) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.0);
        bytes.extend(position);
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position of a cursor.
    ///
    /// # Errors
    /// It is damaged, or of another list.
    pub(in crate::master::rest) fn position(self, cursor: &str) -> Result<Vec<u8>, Problem> {
        let refused = |why: &str| Problem::new(Code::InvalidCursor, why).at("?cursor");
        let damaged = || refused("cursor: is damaged; take it as it was given, or begin without one");
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| damaged())?;
        let (bytes, sum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if bytes.len() + 4 < FRAME || crc32fast::hash(bytes).to_be_bytes() != *sum || bytes[0] != VERSION {
            return Err(damaged());
        }
        if bytes[1..9] != self.0 {
            return Err(refused(
                "cursor: belongs to a list with another filter or order; repeat the parameters it was given for, or begin without one",
            ));
        }
        Ok(bytes[9..].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_holds_for_its_list_only() {
        let (list, other) = (List::new("i", "state=failed"), List::new("i", "state=success"));
        let cursor = list.cursor(b"position");
        assert_eq!(list.position(&cursor).unwrap(), b"position");
        assert_eq!(other.position(&cursor).unwrap_err().code(), Code::InvalidCursor);
        assert_ne!(List::new("other", "state=failed"), list);
    }

    #[test]
    fn a_damaged_cursor_is_refused() {
        let list = List::new("i", "");
        let cursor = list.cursor(&7u64.to_be_bytes());
        for at in 0..cursor.len() {
            for bad in ["A", "B", "_", "!", "ü", ""] {
                let damaged = format!("{}{bad}{}", &cursor[..at], &cursor[at + 1..]);
                assert!(damaged == cursor || list.position(&damaged).is_err(), "{damaged}");
            }
        }
        for text in ["", "AA", "AAAAAAAAAAAA"] {
            assert!(list.position(text).is_err(), "{text}");
        }
    }
}
