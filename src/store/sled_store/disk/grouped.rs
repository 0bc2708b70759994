//! Reads and writes the engine group by group.
//!
//! A part of `Disk`, which has the keys that the engine is yet to be given before what is found here. What may write, and a read may, is followed by
//! `keep_up`.

use super::super::group::{self, Change, Malformed, Piece, Walk};
#[cfg(test)]
use super::Fault;
use super::{Disk, Each, EngineResult, LOOK_AGAIN, Value};
use crate::store::Error;
use crate::store::sled_store::recent::Table;
#[cfg(test)]
use std::io;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::atomic::Ordering;

type Span<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

impl Disk {
    /// The value that the engine has.
    pub(super) fn look(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        loop {
            let moved = self.moved.load(Ordering::SeqCst);
            let found = match self.group(key)? {
                Some((fence, group)) => group::find(&fence, &group, key).map_err(|e| self.malformed(&fence, e))?,
                None => None,
            };
            // A key that went to another group meanwhile may be missed in both.
            if found.is_some() || moved == self.moved.load(Ordering::SeqCst) {
                return Ok(found);
            }
        }
    }

    /// The group that has a key if any has: its fence and its value.
    pub(super) fn group(&self, key: &[u8]) -> Result<Option<(Value, Value)>, Error> {
        let found = self.neighbour(|| self.db().range::<&[u8], _>(..=key).next_back().transpose())?;
        Ok(found.filter(|(fence, _)| group::kind(fence) == group::kind(key)))
    }

    /// A fence with its group, from the engine.
    fn neighbour(&self, look: impl FnOnce() -> EngineResult<Option<(Value, Value)>>) -> Result<Option<(Value, Value)>, Error> {
        self.guard("read", || {
            let found = look()?;
            self.keep_up()?;
            Ok(found)
        })
    }

    fn malformed(&self, fence: &[u8], _: Malformed) -> Error {
        super::super::damaged_key(&self.path, fence, "it is no group of values")
    }

    pub(super) fn engine_range(&self, (from, until): (Bound<Vec<u8>>, Option<&[u8]>), each: &mut Each<'_>) -> Result<(), Error> {
        let first = match &from {
            Bound::Included(from) | Bound::Excluded(from) => self.group(from)?.map_or_else(|| from.clone(), |(fence, _)| fence.to_vec()),
            Bound::Unbounded => Vec::new(),
        };
        let until = until.map_or(Bound::Unbounded, Bound::Included);
        let groups_from = |fence: &[u8]| self.db().range::<&[u8], _>((Bound::Included(fence), until));
        let mut ahead: Option<(Value, Value)> = None;
        let (mut flow, mut failure, mut nth) = (ControlFlow::Continue(()), Ok(()), 0);
        self.guard("read", || {
            let mut removed = self.removed.load(Ordering::SeqCst);
            let mut groups = groups_from(&first);
            while flow.is_continue() && failure.is_ok() {
                let next = groups.next().transpose()?;
                self.keep_up()?;
                // The engine shows pages as they were: one before a fence that has gone may still have what that fence shut out.
                let now = self.removed.load(Ordering::SeqCst);
                if now != removed {
                    groups = groups_from(ahead.as_ref().map_or(&first, |(fence, _)| fence));
                    (removed, ahead) = (now, None);
                    continue;
                }
                if let Some((fence, _)) = &next {
                    nth += 1;
                    if nth % LOOK_AGAIN == 0 {
                        self.db().contains_key(fence)?;
                    }
                } else if ahead.is_none() {
                    break;
                }
                // What a group still has of the next one's keys counts for nothing.
                let end = next.as_ref().map_or(until, |(fence, _)| Bound::Excluded(fence.as_ref()));
                if let Some((fence, group)) = &ahead {
                    let span = (from.as_ref().map(Vec::as_slice), end);
                    match self.group_range((fence, group), span, each) {
                        Ok(after) => flow = after,
                        Err(error) => failure = Err(error),
                    }
                }
                ahead = next;
            }
            Ok(())
        })?;
        failure
    }

    /// The keys of one group, within a span.
    fn group_range(&self, (fence, group): (&[u8], &[u8]), span: Span<'_>, each: &mut Each<'_>) -> Result<ControlFlow<()>, Error> {
        let mut walk = Walk::new(fence, group);
        while let Some((key, value)) = walk.next().map_err(|e| self.malformed(fence, e))? {
            if RangeBounds::<[u8]>::contains(&span, key) && each(key, &group[value])?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Give the engine these values, one group after the other. Not as a batch of the engine: that seals two buffers, which two threads of its pool
    /// write and wait for the disk at, each time.
    pub(super) fn apply(&self, table: &Table) -> Result<(), Error> {
        let mut left = table.iter().peekable();
        while let Some((key, _)) = left.peek() {
            let (kind, group) = (group::kind(key), self.group(key)?);
            let (fence, group) = group.map_or_else(|| (Value::from(key.as_slice()), None), |(fence, group)| (fence, Some(group)));
            let until = self.neighbour(|| self.db().get_gt(&fence))?.map(|(next, _)| next);
            let until = until.as_deref().filter(|next| group::kind(next) == kind);
            let within = |key: &[u8]| group::kind(key) == kind && until.is_none_or(|until| key < until);
            let mut changes: Vec<Change<'_>> = Vec::new();
            while let Some(change) = left.next_if(|(key, _)| within(key)) {
                changes.push(change);
            }
            if changes.is_empty() {
                // A tree that contradicts itself.
                return Err(self.malformed(&fence, Malformed));
            }
            let mut pieces = group::change((&fence, group.as_ref()), until, &changes).map_err(|e| self.malformed(&fence, e))?;
            if let Some((fence, group @ None)) = pieces.first_mut()
                && self.is_held_back(fence)?
            {
                *group = Some(group::EMPTY.into());
            }
            let mut pieces = pieces.into_iter().peekable();
            // What they cost is an estimate: there is space for a segment more whenever one is begun.
            while self.guard("write to", || self.write_until_segment(&mut pieces))? {
                self.reserve_more()?;
            }
        }
        #[cfg(test)]
        if *self.fault.lock().unwrap() == Some(Fault::Apply) {
            return self.guard("write to", || Err(io::Error::from(io::ErrorKind::StorageFull).into()));
        }
        Ok(())
    }

    /// Whether the group before a fence still has keys from there on, which would count again without the fence. A power cut leaves such when it comes
    /// before a group that gave keys away is written, and nothing that the journal has is left in that group.
    fn is_held_back(&self, fence: &[u8]) -> Result<bool, Error> {
        let before = self.neighbour(|| self.db().get_lt(fence))?;
        let Some((before, group)) = before.filter(|(before, _)| group::kind(before) == group::kind(fence)) else {
            return Ok(false);
        };
        let last = group::last(&before, &group).map_err(|e| self.malformed(&before, e))?;
        Ok(last.is_some_and(|last| last.as_slice() >= fence))
    }

    /// The last of the pieces is the group that the others came from. True when a segment was begun, and some may be left.
    fn write_until_segment(&self, pieces: &mut Peekable<impl Iterator<Item = Piece>>) -> EngineResult<bool> {
        while let Some((fence, group)) = pieces.next() {
            if pieces.peek().is_none() {
                self.moved.fetch_add(1, Ordering::SeqCst);
            }
            #[cfg(test)]
            if !self.may_write() {
                return Ok(false);
            }
            match group {
                Some(group) => self.db().insert(fence, group)?,
                None => {
                    self.removed.fetch_add(1, Ordering::SeqCst);
                    self.db().remove(fence)?
                }
            };
            if self.keep_up()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    #[cfg(test)]
    fn may_write(&self) -> bool {
        let left = &mut *self.writes_left.lock().unwrap();
        let may = *left != Some(0);
        *left = left.map(|left| left.saturating_sub(1));
        may
    }
}
