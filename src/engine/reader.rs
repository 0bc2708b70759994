//! Typed, durable reads beside the loop: history, and the present as far as it is on disk.

use crate::machine::{Logged, Machine};
use crate::store::{Error, HISTORY, HistoryProof, Seq, Store, codec};
use crate::supervisor::Supervisor;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

/// Records that must be in memory after a restart are stored under this byte.
pub const LIVE: u8 = b'l';
/// Records that have ended are stored under this byte, so that a start need not read them.
pub const ENDED: u8 = HISTORY;
/// How many records refer to a payload file.
pub const PAYLOAD: u8 = b'p';

/// The store key of a record.
pub fn record_key(kind: u8, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(kind);
    bytes.extend_from_slice(key);
    bytes
}

/// Decode a stored value; bytes that pass their checksum and do not decode are damage all the same.
pub(super) fn decode<T: serde::de::DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, Error> {
    codec::decode(bytes).map_err(|error| Error::Damaged {
        file: "store".into(),
        what: format!("record {}: {error}", key.escape_ascii()),
    })
}

/// A record whose key says nothing to the machine.
pub(super) fn unknown(key: &[u8]) -> Error {
    Error::Damaged {
        file: "store".into(),
        what: format!("unknown record {}", key.escape_ascii()),
    }
}

/// Decode a stored event.
pub(super) fn decode_event<E: serde::de::DeserializeOwned>(seq: Seq, bytes: &[u8]) -> Result<Logged<E>, Error> {
    codec::decode(bytes).map_err(|error| Error::Damaged {
        file: "store".into(),
        what: format!("event {seq}: {error}"),
    })
}

type LoggedOf<M> = (Seq, Logged<<M as Machine>::Event>);

/// Records with their names, in the order of their keys.
pub type RecordPage<M> = Vec<(<M as Machine>::Key, <M as Machine>::Record)>;

/// Records with the bytes of their keys, in their order.
pub type KeyedPage<M> = Vec<(Vec<u8>, <M as Machine>::Record)>;

/// Reads one role's records and events. Cheap to clone. A method that is not async blocks for a disk read at most.
pub struct Reader<M> {
    store: Arc<dyn Store>,
    /// Ended by a store that fails while it is read.
    role: Arc<OnceLock<Supervisor>>,
    machine: PhantomData<fn() -> M>,
}

impl<M> Clone for Reader<M> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            role: self.role.clone(),
            machine: PhantomData,
        }
    }
}

impl<M: Machine> Reader<M> {
    /// A reader on a store that holds records of this machine.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            role: Arc::default(),
            machine: PhantomData,
        }
    }

    /// Let a failure of the store met by a reader, which is final, end the role. Later calls are void.
    pub(super) fn ends(&self, role: &Supervisor) {
        let _ = self.role.set(role.clone());
    }

    /// See [`Reader::ends`]. After a full disk the loop ends the role in its time, and a poisoned store is in the hands of whom it failed.
    fn final_for_role<T>(&self, read: Result<T, Error>) -> Result<T, Error> {
        if let (Err(error), Some(role)) = (&read, self.role.get())
            && !error.is_full()
            && !matches!(error, Error::Poisoned)
        {
            role.fatal(anyhow::Error::new(error.again()).context("the store cannot be read"));
        }
        read
    }

    /// A record, live or ended. A record moves from live to ended; the few that come back (a worker that was lost) may be missed by one
    /// look in this order, so a miss looks at the live ones once more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, key: &M::Key) -> Result<Option<M::Record>, Error> {
        self.final_for_role(self.look_in(key, [LIVE, ENDED, LIVE]))
    }

    /// [`Reader::get`] of a record that has ended as far as the caller knows: one look at the store where that is so.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get_ended_first(&self, key: &M::Key) -> Result<Option<M::Record>, Error> {
        self.final_for_role(self.look_in(key, [ENDED, LIVE, ENDED]))
    }

    /// [`Reader::get`] of a record that is in memory; `None` where only the disk can tell. Does not block.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn peek(&self, key: &M::Key) -> Result<Option<M::Record>, Error> {
        let bytes = M::key_bytes(key);
        for kind in [LIVE, ENDED] {
            let key = record_key(kind, &bytes);
            if let Some(value) = self.final_for_role(self.store.peek(&key))? {
                return self.final_for_role(decode(&key, &value)).map(Some);
            }
        }
        Ok(None)
    }

    /// [`Reader::get`] for a caller that must not block: a thread of the pool only for what is not in memory.
    ///
    /// # Errors
    /// The read panicked; within, the store cannot be read.
    pub async fn fetch(&self, key: M::Key) -> anyhow::Result<Result<Option<M::Record>, Error>> {
        match self.peek(&key) {
            Ok(None) => {
                let reader = self.clone();
                Supervisor::blocking(move || reader.get(&key)).await
            }
            peeked => Ok(peeked),
        }
    }

    fn look_in(&self, key: &M::Key, parts: [u8; 3]) -> Result<Option<M::Record>, Error> {
        let bytes = M::key_bytes(key);
        for kind in parts {
            let key = record_key(kind, &bytes);
            if let Some(value) = self.store.get(&key)? {
                return decode(&key, &value).map(Some);
            }
        }
        Ok(None)
    }

    /// An ended record.
    pub(super) fn ended(&self, key: &M::Key) -> Result<Option<M::Record>, Error> {
        let key = record_key(ENDED, &M::key_bytes(key));
        self.store.get(&key)?.map(|value| decode(&key, &value)).transpose()
    }

    /// Every record whose key bytes begin with `prefix`, live ones first, a page at a time, until `each` returns false.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn scan(&self, prefix: &[u8], each: impl FnMut(M::Key, M::Record) -> bool) -> Result<(), Error> {
        self.final_for_role(self.walk(prefix, each))
    }

    fn walk(&self, prefix: &[u8], mut each: impl FnMut(M::Key, M::Record) -> bool) -> Result<(), Error> {
        for kind in [LIVE, ENDED] {
            let mut go_on = true;
            pages(&*self.store, &record_key(kind, prefix), |key, value| {
                let record = decode(key, value)?;
                if let Some(key) = M::key_from_bytes(&key[1..]) {
                    go_on = each(key, record);
                }
                Ok(go_on)
            })?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    /// A page of ended records whose key bytes begin with `prefix`, in key order, behind a key.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn ended_page(&self, prefix: &[u8], after: Option<&M::Key>, limit: usize) -> Result<RecordPage<M>, Error> {
        let named = |(bytes, record): (Vec<u8>, M::Record)| {
            let key = M::key_from_bytes(&bytes).ok_or_else(|| unknown(&record_key(ENDED, &bytes)))?;
            Ok((key, record))
        };
        let page = self.page(ENDED, prefix, after.map(M::key_bytes).as_deref(), limit)?;
        self.final_for_role(page.into_iter().map(named).collect())
    }

    /// At most `limit` records of one part ([`LIVE`] or [`ENDED`]) whose key bytes begin with `prefix` and are greater than `after`, in their order,
    /// each behind its key bytes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn page(&self, part: u8, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<KeyedPage<M>, Error> {
        let after = after.map(|after| record_key(part, after));
        let page = self.store.scan(&record_key(part, prefix), after.as_deref(), limit);
        let decoded = |(mut key, value): (Vec<u8>, Vec<u8>)| {
            let record = decode(&key, &value)?;
            key.remove(0);
            Ok((key, record))
        };
        self.final_for_role(page.and_then(|page| page.into_iter().map(decoded).collect()))
    }

    /// How far the history is proved: until it is, a record that is not found may be missing.
    pub fn history(&self) -> HistoryProof {
        self.store.history()
    }

    /// The oldest event there is, or the next one if there is none; older ones were trimmed.
    pub fn first_seq(&self) -> Seq {
        self.store.head().first_seq
    }

    /// Events from a sequence on. Those that were let go of are not there: see [`Reader::gap`].
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn events(&self, from: Seq, limit: usize) -> Result<Vec<(Seq, M::Event)>, Error> {
        let page = self.logged(from, limit)?;
        Ok(page.into_iter().map(|(seq, logged)| (seq, logged.event)).collect())
    }

    /// The first event there is, if events from `from` on were let go of before this page of them was read.
    pub fn gap(&self, from: Seq, page: &[(Seq, M::Event)]) -> Option<Seq> {
        let found = page.first().map_or_else(|| self.first_seq(), |(seq, _)| *seq);
        (found > from.max(1)).then_some(found)
    }

    /// [`Reader::events`] with their places in their threads.
    pub(crate) fn logged(&self, from: Seq, limit: usize) -> Result<Vec<LoggedOf<M>>, Error> {
        let page = self.store.events(from, limit);
        let decoded = |(seq, bytes): (Seq, Vec<u8>)| decode_event(seq, &bytes).map(|logged| (seq, logged));
        self.final_for_role(page.and_then(|page| page.into_iter().map(decoded).collect()))
    }

    /// The story of records, newest event first: the last events of these threads, as the records name them, and each one's predecessors,
    /// at most `limit` of them. It ends at [`Reader::first_seq`] if its beginning was trimmed. Numbers that no event has are passed over.
    ///
    /// # Errors
    /// The store cannot be read, or has no event of such a number.
    pub fn thread(&self, last: impl IntoIterator<Item = Seq>, limit: usize) -> Result<Vec<(Seq, M::Event)>, Error> {
        self.final_for_role(self.walk_back(last.into_iter().collect(), limit))
    }

    fn walk_back(&self, mut next: BTreeSet<Seq>, limit: usize) -> Result<Vec<(Seq, M::Event)>, Error> {
        let mut story = Vec::new();
        while story.len() < limit
            && let Some(seq) = next.pop_last()
        {
            let found = self.store.events(seq, 1)?.pop().filter(|(found, _)| *found == seq);
            let Some((_, bytes)) = found else {
                let head = self.store.head();
                if !(head.first_seq..head.next_seq).contains(&seq) {
                    continue;
                }
                return Err(Error::Damaged {
                    file: "store".into(),
                    what: format!("event {seq} is missing"),
                });
            };
            let Logged { prev, event } = decode_event(seq, &bytes)?;
            next.extend(prev);
            story.push((seq, event));
        }
        Ok(story)
    }
}

/// Walk all keys with a prefix in pages, until `each` returns false.
pub(crate) fn pages(store: &dyn Store, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>) -> Result<(), Error> {
    /// Small enough that a page of 4 KiB values stays at 2 MiB.
    const PAGE: usize = 512;
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.scan(prefix, after.as_deref(), PAGE)?;
        let full = page.len() == PAGE;
        for (key, value) in &page {
            if !each(key, value)? {
                return Ok(());
            }
        }
        match page.into_iter().next_back() {
            Some((last, _)) if full => after = Some(last),
            _ => return Ok(()),
        }
    }
}
