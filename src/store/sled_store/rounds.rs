//! When the engine is given what was confirmed, and what a commit waits for meanwhile.
//!
//! A part of `SledStore`: who settles takes a round as soon as there is one, or a part of the journal is full, and what comes meanwhile is the next one. It must
//! never let a failure pass: what could not be given stays in memory, to be read, and nothing is confirmed any more.

use super::frame::Draft;
use super::journal::PARTS;
use super::{SledStore, Writer};
use crate::store::{COST_MAX, Error};
use std::fs::File;
use std::time::Duration;

/// Once what is in memory will cost the engine so much it is given that. More comes together while the engine has the round before, so that
/// rounds are larger where it is slower.
const ROUND: usize = COST_MAX;
/// Before there is more a commit waits until the engine has the round before.
const ROUND_MAX: usize = 4 * COST_MAX;
/// How long it waits at most from half of that on, the longer the more there is: the engine then catches up while many wait for a little, and not a few for long.
const PACE: Duration = Duration::from_millis(10);

impl SledStore {
    /// Whether there is a round to be given.
    pub(super) fn has_round(&self) -> bool {
        self.is_round(self.settling.full())
    }

    /// Give the engine a round, if there is one.
    pub(super) fn give_round(&self) -> Result<(), Error> {
        self.settle_when(|full| self.is_round(full))
    }

    fn is_round(&self, full: usize) -> bool {
        full > 0 || self.disk.cost() >= ROUND
    }

    /// See to it that a commit finds space in the journal, in memory and, later, in the engine's log; an error leaves what was confirmed as it was.
    pub(super) fn make_room(&self, writer: &mut Writer, draft: &Draft) -> Result<(), Error> {
        self.disk.reserve()?;
        let over = self.disk.cost().saturating_sub(ROUND_MAX / 2);
        if over > 0 {
            let thousandths = u32::try_from(over * 1000 / (ROUND_MAX / 2)).unwrap_or(u32::MAX);
            self.settling
                .wait(PACE / 1000 * thousandths.min(1000), || self.disk.cost() > ROUND_MAX / 2);
            self.settle_when(|_| self.disk.cost() > ROUND_MAX)?;
        }
        if !writer.journal.has_room(draft) {
            self.turn_over(writer)?;
        }
        // Another thread may have been at it, and failed.
        self.barrier.check()
    }

    /// Let commits go on in the next part of the journal.
    pub(super) fn turn_over(&self, writer: &mut Writer) -> Result<(), Error> {
        while self.settling.full() == PARTS - 1 {
            self.settle_when(|full| full == PARTS - 1)?;
            self.barrier.check()?;
        }
        self.settling.hand_over(writer.journal.turn());
        Ok(())
    }

    /// Give the engine what was confirmed if that is due, which may depend on how many parts of the journal are full.
    fn settle_when(&self, is_due: impl Fn(usize) -> bool) -> Result<(), Error> {
        // What could not be given stays frozen in memory, to be read, once the store has stopped.
        let is_due = |full| is_due(full) && self.barrier.check().is_ok();
        let give = || {
            let last = self.disk.freeze();
            self.settling.moved();
            // Whoever else found that what was written may be lost has stopped the store: then the journal must keep it.
            let given = self.disk.settle().and_then(|()| self.barrier.check());
            self.or_stop(given.map(|()| last))
        };
        self.settling.settle(is_due, give, |full| self.or_stop(full.clear(File::sync_data)))
    }

    /// What fails beside commits stops the store.
    fn or_stop<T>(&self, settled: Result<T, Error>) -> Result<T, Error> {
        if settled.as_ref().is_err_and(Error::is_full) {
            self.barrier.full();
        }
        self.or_poison(settled)
    }
}
