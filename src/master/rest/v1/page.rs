//! Pages of lists: of jobs through the index, of tasks and proposals in the order of their ids straight from the store.
//!
//! A page looks at a bounded number of records, so that a filter that fits few of them costs many short pages, never a long one.

use super::super::Door;
use super::cursor::List;
use super::filter::Filter;
use super::problem::{Code, Problem};
use super::query::Query;
use crate::engine::reader::{ENDED, LIVE, Reader};
use crate::machine::ids::{JobId, PartyId};
use crate::machine::master::records::Job;
use crate::machine::master::{Key, Master, Record};
use crate::master::index::{Columns, Index, has_ended};
use crate::store::Error;
use crate::supervisor::Supervisor;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Items of a page where the request does not say.
pub(in crate::master::rest) const LIMIT: u64 = 50;
/// The most items of a page.
pub(in crate::master::rest) const LIMIT_MAX: u64 = 500;
/// Records that one page looks at, of each kind: some milliseconds.
const LOOK_MAX: usize = 500;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Page<T: ToSchema> {
    /// At most `limit`; a page may hold fewer, even none, and not be the last.
    pub items: Vec<T>,
    /// Where the next page begins; null at the end of the list.
    pub next_cursor: Option<String>,
}

/// Which page.
pub(in crate::master::rest) struct Place {
    pub limit: usize,
    after: Option<Vec<u8>>,
    list: List,
}

impl Place {
    /// The position as the number of a job.
    ///
    /// # Errors
    /// It is none.
    pub(in crate::master::rest) fn number(&self) -> Result<Option<u64>, Problem> {
        let Some(after) = &self.after else { return Ok(None) };
        let bytes = after.as_slice().try_into();
        bytes
            .map(|bytes| Some(u64::from_be_bytes(bytes)))
            .map_err(|_| Problem::new(Code::InvalidCursor, "cursor: is none of this list").at("?cursor"))
    }

    /// The cursor that goes on behind a position.
    pub(in crate::master::rest) fn cursor(&self, position: &[u8]) -> String {
        self.list.cursor(position)
    }

    /// From `limit` and `cursor`; everything else of the query has been taken and is told in `what`.
    ///
    /// # Errors
    /// They are not right, or a parameter is left.
    pub(in crate::master::rest) fn take(mut query: Query, door: &Door, what: &str) -> Result<Self, Problem> {
        let limit = query.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT);
        let list = List::new(&door.shared.instance, what);
        let after = query.one("cursor")?.map(|cursor| list.position(&cursor)).transpose()?;
        query.end()?;
        Ok(Self {
            limit: usize::try_from(limit).expect("it is small"),
            after,
            list,
        })
    }
}

/// The page of records with the prefix that `fits` makes items of. `parts` are those in which there can be one ([`LIVE`], [`ENDED`]).
///
/// # Errors
/// The store cannot be read.
pub(in crate::master::rest) async fn page<T: ToSchema + Send + 'static>(
    door: &Door,
    prefix: Vec<u8>,
    parts: &'static [u8],
    place: Place,
    fits: impl Fn(Record) -> Option<T> + Send + 'static,
) -> Result<Page<T>, Problem> {
    let reader = door.shared.handle.reader().clone();
    let (limit, after) = (place.limit, place.after.clone());
    let read = move || walk(&reader, &prefix, parts, after, limit, fits);
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    let read = Supervisor::blocking(read).await.map_err(|error| unreadable(error.to_string()))?;
    let (items, last) = read.map_err(|error| unreadable(error.to_string()))?;
    Ok(Page {
        items,
        next_cursor: last.map(|position| place.list.cursor(&position)),
    })
}

/// Items, and the key behind which the walk goes on if there is more.
type Walked<T> = (Vec<T>, Option<Vec<u8>>);

fn walk<T>(
    reader: &Reader<Master>,
    prefix: &[u8],
    parts: &[u8],
    mut after: Option<Vec<u8>>,
    limit: usize,
    fits: impl Fn(Record) -> Option<T>,
) -> Result<Walked<T>, Error> {
    let (mut items, mut last, mut looked) = (Vec::new(), None, 0);
    // One more than is shown, to know whether there is a next page.
    let mut look = limit + 1;
    loop {
        // Live ones first: one that ends meanwhile is seen twice, and the later look counts. The other way round it would be missed.
        let mut found: BTreeMap<Vec<u8>, Record> = BTreeMap::new();
        let mut whole_to: Option<Vec<u8>> = None;
        for part in parts {
            let records = reader.page(*part, prefix, after.as_deref(), look)?;
            if records.len() == look
                && let Some((end, _)) = records.last()
            {
                whole_to = Some(whole_to.map_or(end.clone(), |other| other.min(end.clone())));
            }
            found.extend(records);
        }
        for (key, record) in found {
            if whole_to.as_ref().is_some_and(|end| key > *end) {
                break;
            }
            if items.len() == limit {
                return Ok((items, last));
            }
            items.extend(fits(record));
            last = Some(key);
        }
        looked += look;
        if whole_to.is_none() || looked >= LOOK_MAX {
            return Ok((items, whole_to));
        }
        after = whole_to;
        look = (2 * look).min(LOOK_MAX - looked).max(1);
    }
}

/// Both parts.
pub(in crate::master::rest) const EVERYWHERE: &[u8] = &[LIVE, ENDED];
/// What is under way.
pub(in crate::master::rest) const UNDER_WAY: &[u8] = &[LIVE];

/// A walk over jobs.
pub(in crate::master::rest) struct Jobs {
    /// Which.
    pub filter: Filter,
    /// The newest first.
    pub descending: bool,
    /// Beyond this number.
    pub after: Option<u64>,
}

/// Records, and where the walk goes on if there is more.
type Found = (Vec<Job>, Option<u64>);

/// Candidates that one page looks at beyond its limit, when records turn out not to fit.
const CANDIDATES: usize = 1000;

impl Jobs {
    /// The next records, and where the walk goes on if there is more.
    ///
    /// # Errors
    /// The index is being made, or the store cannot be read.
    pub(in crate::master::rest) async fn page(self, door: &Door, limit: usize) -> Result<Found, Problem> {
        let (index, reader, party) = (
            door.shared.index.clone(),
            door.shared.handle.reader().clone(),
            door.shared.party.clone(),
        );
        let read = move || self.walk(&index, &reader, &party, limit);
        let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
        let read = Supervisor::blocking(read).await.map_err(|error| unreadable(error.to_string()))?;
        let making = || {
            Problem::new(
                Code::IndexBuilding,
                "the index of the jobs is being made after the start; ask again",
            )
        };
        read.map_err(|error| unreadable(error.to_string()))?.ok_or_else(making)
    }
    /// See [`Jobs::page`]; `None` while the index is being made.
    fn walk(&self, index: &Index, reader: &Reader<Master>, party: &PartyId, limit: usize) -> Result<Option<Found>, Error> {
        let wanted = self.filter.wanted(party.as_str());
        let (mut found, mut after, mut looked) = (Vec::new(), self.after, 0);
        loop {
            // One more than is shown, to know whether there is a next page.
            let ask = limit - found.len() + 1;
            let look = |columns: &Columns| {
                let numbers = columns.find(&wanted, self.descending, after, ask);
                let name = |number| columns.stamp_and_state(number).map(|(stamp, state)| (number, stamp, state));
                numbers.into_iter().filter_map(name).collect::<Vec<_>>()
            };
            let Some(numbers) = index.read(look) else { return Ok(None) };
            let last = numbers.len() < ask;
            looked += numbers.len();
            for (number, stamp, state) in numbers {
                if found.len() == limit {
                    return Ok(Some((found, after)));
                }
                after = Some(number);
                let id = JobId::parse(format!("{party}-{stamp:014}-{number}"));
                let key = Key::Job(id.expect("a party id is checked to leave room for the rest"));
                let record = if has_ended(state) {
                    reader.get_ended_first(&key)?
                } else {
                    reader.get(&key)?
                };
                // Purged or changed meanwhile, or under another label with the same hash.
                if let Some(Record::Job(job)) = record
                    && self.filter.fits(&job)
                {
                    found.push(job);
                }
            }
            if last {
                return Ok(Some((found, None)));
            }
            if looked > limit + CANDIDATES {
                return Ok(Some((found, after)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
