//! Who gives the engine what was confirmed, and which parts of the journal wait for that.
//!
//! Used by `SledStore`. The committer hands over a part that is full and goes on in the next; a thread that calls `Store::settle` freezes what is in
//! memory, gives it to the engine, and so on. Where there is none the committer does it itself, when it needs a part again. A
//! part must never be used again before the engine has all of it durably.

use super::journal::{Full, PARTS};
use crate::store::Error;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Settling {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The oldest one first.
    full: VecDeque<Full>,
    working: bool,
}

impl Settling {
    /// A part of the journal that is full. There must be a free one.
    pub(super) fn hand_over(&self, full: Full) {
        let mut state = self.lock();
        state.full.push_back(full);
        debug_assert!(state.full.len() < PARTS, "all parts are full");
    }

    /// Parts of the journal that are full and not cleared yet.
    pub(super) fn full(&self) -> usize {
        self.lock().full.len()
    }

    /// Do the `work` if it is due once nobody else does it; return when it is not due any more, or was done. What is due may depend on how many parts
    /// are full. The work gives the last commit that the engine has durably, and is followed by `clear` for each part of which that is all.
    /// An error goes to who did it: the work itself must stop the store, and others look whether it has stopped.
    pub(super) fn settle(
        &self,
        is_due: impl Fn(usize) -> bool,
        work: impl FnOnce() -> Result<u64, Error>,
        clear: impl Fn(&Full) -> Result<(), Error>,
    ) -> Result<(), Error> {
        {
            let mut state = self.lock();
            while state.working && is_due(state.full.len()) {
                state = self.moved.wait(state).expect("see lock");
            }
            if !is_due(state.full.len()) {
                return Ok(());
            }
            state.working = true;
        }
        let settled = self.work(work, clear);
        self.lock().working = false;
        self.moved.notify_all();
        settled
    }

    /// Wait while somebody works and `too_much` is left to be done, but no longer than that.
    pub(super) fn wait(&self, most: Duration, too_much: impl Fn() -> bool) {
        let is_to_wait = |state: &mut State| state.working && too_much();
        drop(self.moved.wait_timeout_while(self.lock(), most, is_to_wait));
    }

    /// Less may be due now.
    pub(super) fn moved(&self) {
        // Who has just found that it is due is waiting by now.
        drop(self.lock());
        self.moved.notify_all();
    }

    fn work(&self, work: impl FnOnce() -> Result<u64, Error>, clear: impl Fn(&Full) -> Result<(), Error>) -> Result<(), Error> {
        let last = work()?;
        let next = || self.lock().full.front().filter(|full| full.last() <= last).cloned();
        while let Some(full) = next() {
            clear(&full)?;
            // Not before: from now on it is written.
            self.lock().full.pop_front();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under this lock panics")
    }
}
