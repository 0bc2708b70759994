//! What the index knows of all jobs: a set of numbers for each state, type and label, and three columns over the number.
//!
//! Plain data in memory, used by `index` under its lock; reads nothing and writes nothing. It gives *candidates*: labels are kept as hashes, so a
//! job may be named that does not fit, never one left out that does. Whoever shows a job looks at its record.

use super::postings::Postings;
use crate::machine::ids::Timestamp;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::ops::Range;

/// Jobs of one piece of the columns: small enough to be let go when its jobs are purged, large enough that a search skips quickly.
pub(super) const CHUNK: u64 = 4096;
/// No job has this number.
const NOBODY: u8 = u8::MAX;

/// What the index keeps of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The `n` of its id.
    pub number: u64,
    /// The middle part of its id as a number, `YYYYmmddHHMMSS`.
    pub stamp: u64,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Its state, as the caller numbers them; below 64.
    pub state: u8,
    /// Its type.
    pub job_type: String,
    /// Hashes of its labels, of each `key` and each `key=value`.
    pub labels: Vec<u64>,
}

/// What is asked for; everything is optional, and all of it must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// One of these states; empty for any.
    pub states: Vec<u8>,
    /// This type.
    pub job_type: Option<String>,
    /// All of these label hashes.
    pub labels: Vec<u64>,
    /// `created_at` in this range, microseconds.
    pub created: Option<Range<u64>>,
    /// The stamp in this range.
    pub stamps: Option<Range<u64>>,
    /// The number begins with these decimal digits.
    pub digits: Option<String>,
}

/// One piece of the columns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    /// Jobs in it.
    pub count: u32,
    pub created: Vec<u64>,
    pub stamps: Vec<u64>,
    pub states: Vec<u8>,
    /// Least and greatest value there has been in each column, so that a search passes over the piece without a look inside.
    spans: [Span; 2],
}

/// From the least to the greatest; none yet if they are the other way round.
type Span = (u64, u64);

impl Chunk {
    pub(super) fn new() -> Self {
        let size = usize::try_from(CHUNK).expect("a chunk is small");
        Self {
            count: 0,
            created: vec![0; size],
            stamps: vec![0; size],
            states: vec![NOBODY; size],
            spans: [(u64::MAX, 0); 2],
        }
    }

    /// A job has come to this place.
    fn count(&mut self, at: usize) {
        self.count += 1;
        for (span, value) in self.spans.iter_mut().zip([self.created[at], self.stamps[at]]) {
            *span = (span.0.min(value), span.1.max(value));
        }
    }

    fn may_fit(&self, wanted: &Wanted) -> bool {
        let there = |(least, greatest): Span, range: &Range<u64>| range.start <= greatest && least < range.end;
        let [created, stamps] = self.spans;
        wanted.created.as_ref().is_none_or(|range| there(created, range)) && wanted.stamps.as_ref().is_none_or(|range| there(stamps, range))
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    pub(super) chunks: BTreeMap<u64, Chunk>,
    pub(super) all: RoaringTreemap,
    pub(super) states: BTreeMap<u8, RoaringTreemap>,
    pub(super) types: BTreeMap<String, RoaringTreemap>,
    pub(super) labels: BTreeMap<u64, Postings>,
    /// Jobs removed since the sets were last swept.
    removed: u64,
}

fn place(number: u64) -> (u64, usize) {
    (number / CHUNK, usize::try_from(number % CHUNK).expect("a chunk is small"))
}

impl Columns {
    /// Jobs known.
    pub fn len(&self) -> u64 {
        self.all.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many are in a state.
    pub fn in_state(&self, state: u8) -> u64 {
        self.states.get(&state).map_or(0, RoaringTreemap::len)
    }

    /// The least number in one of the states: the job that has been there longest by the order of submission.
    pub fn oldest(&self, states: &[u8]) -> Option<u64> {
        states.iter().filter_map(|state| self.states.get(state)?.min()).min()
    }

    /// `created_at` of a job.
    pub fn created_at(&self, number: u64) -> Option<Timestamp> {
        let (chunk, at) = place(number);
        let chunk = self.chunks.get(&chunk)?;
        (chunk.states[at] != NOBODY).then(|| Timestamp(chunk.created[at]))
    }

    /// The stamp of a job's id, and its state.
    pub fn stamp_and_state(&self, number: u64) -> Option<(u64, u8)> {
        let (chunk, at) = place(number);
        let chunk = self.chunks.get(&chunk)?;
        (chunk.states[at] != NOBODY).then(|| (chunk.stamps[at], chunk.states[at]))
    }

    /// Take a job in, or its new state; the rest of a job never changes.
    pub fn put(&mut self, entry: &Entry) {
        let (chunk, at) = place(entry.number);
        let chunk = self.chunks.entry(chunk).or_insert_with(Chunk::new);
        let before = std::mem::replace(&mut chunk.states[at], entry.state);
        if before == NOBODY {
            chunk.created[at] = entry.created_at.0;
            chunk.stamps[at] = entry.stamp;
            chunk.count(at);
            self.all.insert(entry.number);
            self.types.entry(entry.job_type.clone()).or_default().insert(entry.number);
            for label in &entry.labels {
                let new = || Postings::One(entry.number);
                self.labels.entry(*label).or_insert_with(new).insert(entry.number);
            }
        } else if before != entry.state
            && let Some(set) = self.states.get_mut(&before)
        {
            set.remove(entry.number);
        }
        if before != entry.state {
            self.states.entry(entry.state).or_default().insert(entry.number);
        }
    }

    /// A piece of a checkpoint; the sets that follow from it are made again.
    pub(super) fn take_chunk(&mut self, at: u64, mut chunk: Chunk) {
        for (number, place) in (at.saturating_mul(CHUNK)..).zip(0..chunk.states.len()) {
            let state = chunk.states[place];
            if state != NOBODY {
                chunk.count(place);
                self.all.insert(number);
                self.states.entry(state).or_default().insert(number);
            }
        }
        if chunk.count > 0 {
            self.chunks.insert(at, chunk);
        }
    }

    /// Let a job go. It stays in the sets of its labels, where it does no harm, until a sweep.
    pub fn remove(&mut self, number: u64) {
        let (chunk, at) = place(number);
        let Some(piece) = self.chunks.get_mut(&chunk) else { return };
        let state = std::mem::replace(&mut piece.states[at], NOBODY);
        if state == NOBODY {
            return;
        }
        piece.count -= 1;
        if piece.count == 0 {
            self.chunks.remove(&chunk);
        }
        self.all.remove(number);
        if let Some(set) = self.states.get_mut(&state) {
            set.remove(number);
        }
        for set in self.types.values_mut() {
            set.remove(number);
        }
        self.removed += 1;
        // Each job is swept away once for as many that were removed: the cost of a removal stays even.
        if self.removed > 4096 && self.removed > self.all.len() / 4 {
            self.sweep();
        }
    }

    /// Drop removed jobs from the sets of labels.
    pub(super) fn sweep(&mut self) {
        let all = &self.all;
        self.labels.retain(|_, set| set.sweep(all));
        self.types.retain(|_, set| !set.is_empty());
        self.removed = 0;
    }

    /// At most `limit` numbers that may fit, in the order asked for, all beyond `after`.
    pub fn find(&self, wanted: &Wanted, descending: bool, after: Option<u64>, limit: usize) -> Vec<u64> {
        let found = self.candidates(wanted);
        let by_column = wanted.created.is_some() || wanted.stamps.is_some() || wanted.digits.is_some();
        let mut numbers = found.iter();
        match after {
            Some(number) if descending => match number.checked_sub(1) {
                Some(last) => numbers.advance_back_to(last),
                None => return Vec::new(),
            },
            Some(number) => match number.checked_add(1) {
                Some(first) => numbers.advance_to(first),
                None => return Vec::new(),
            },
            None => {}
        }
        let mut page = Vec::with_capacity(limit.min(1024));
        let mut seen: Option<(u64, bool)> = None;
        while page.len() < limit {
            let next = if descending { numbers.next_back() } else { numbers.next() };
            let Some(number) = next else { break };
            if !by_column {
                page.push(number);
                continue;
            }
            let (chunk, _) = place(number);
            let may = match seen {
                Some((of, may)) if of == chunk => may,
                _ => self.chunks.get(&chunk).is_some_and(|chunk| chunk.may_fit(wanted)),
            };
            seen = Some((chunk, may));
            if may {
                if self.fits_columns(number, wanted) {
                    page.push(number);
                }
            } else if descending {
                match (chunk * CHUNK).checked_sub(1) {
                    Some(last) => numbers.advance_back_to(last),
                    None => break,
                }
            } else {
                numbers.advance_to((chunk + 1) * CHUNK);
            }
        }
        page
    }

    fn candidates(&self, wanted: &Wanted) -> std::borrow::Cow<'_, RoaringTreemap> {
        use std::borrow::Cow;
        let none = || Cow::Owned(RoaringTreemap::new());
        let of_states = match wanted.states.as_slice() {
            [] => Some(Cow::Borrowed(&self.all)),
            [state] => self.states.get(state).map(Cow::Borrowed),
            states => {
                let mut union = RoaringTreemap::new();
                for set in states.iter().filter_map(|state| self.states.get(state)) {
                    union |= set;
                }
                Some(Cow::Owned(union))
            }
        };
        let Some(mut found) = of_states else { return none() };
        if let Some(name) = &wanted.job_type {
            match self.types.get(name) {
                Some(set) => found = Cow::Owned(&*found & set),
                None => return none(),
            }
        }
        for label in &wanted.labels {
            match self.labels.get(label) {
                Some(set) => found = Cow::Owned(set.common(&found)),
                None => return none(),
            }
        }
        found
    }

    fn fits_columns(&self, number: u64, wanted: &Wanted) -> bool {
        let (chunk, at) = place(number);
        let Some(chunk) = self.chunks.get(&chunk) else { return false };
        wanted.created.as_ref().is_none_or(|range| range.contains(&chunk.created[at]))
            && wanted.stamps.as_ref().is_none_or(|range| range.contains(&chunk.stamps[at]))
            && wanted.digits.as_ref().is_none_or(|digits| number.to_string().starts_with(digits))
    }
}
