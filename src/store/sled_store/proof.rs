//! The proof of values that are in no engine: those of a backup.
//!
//! Called by `engine::backup::verify`, with each key once. It is the proof of `verify`, without the order of the keys: a hole among the
//! events shows in their sum.

use super::{HEAD_KEY, Position, Tally, is_history};
use crate::store::{Head, codec};

/// Counts values that come in any order.
#[derive(Default)]
pub struct Proof {
    head: Option<Position>,
    newest: u64,
    live: Tally,
    history: Tally,
}

impl Proof {
    /// One value. `Err` says what is wrong with it.
    pub fn add(&mut self, key: &[u8], sealed: &[u8]) -> Result<(), String> {
        let about = |what: String| format!("key {}: {what}", key.escape_ascii());
        let (batch, body) = codec::unseal(key, sealed).map_err(|error| about(error.to_string()))?;
        self.newest = self.newest.max(batch);
        if key == HEAD_KEY {
            let head = codec::decode(body).map_err(|error| about(error.to_string()))?;
            self.head = Some(head);
            return Ok(());
        }
        let tally = if is_history(key) { &mut self.history } else { &mut self.live };
        tally.add(key, sealed);
        Ok(())
    }

    /// Where the values are, if they are exactly those of one commit.
    pub fn finish(self) -> Result<Head, String> {
        let head = self.head.ok_or("the head value is missing")?;
        if self.newest > head.batch {
            return Err(format!("a value is of commit {}, and the head is at {}", self.newest, head.batch));
        }
        for (which, found, should) in [("live", self.live, head.live), ("history", self.history, head.history)] {
            if let Some(what) = found.difference(&should, which, &format!("commit {}", head.batch)) {
                return Err(what);
            }
        }
        Ok(head.head())
    }
}
