//! Whether there are confirmed commits that the engine is to be given, and who gives them to it.
//!
//! Used by `SledStore`. The committer hands over what a half of the journal holds and goes on in the other; a thread that
//! calls `Store::settle` takes it. Where there is none the committer does it itself, when it needs that half again. It must never let a half be used
//! again before the engine has it durably.

use super::journal::Full;
use crate::store::Error;
use std::sync::{Condvar, Mutex, MutexGuard};

#[derive(Default)]
pub(super) struct Settling {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    due: Option<Full>,
    working: bool,
}

impl Settling {
    /// The table that was frozen, and its half of the journal. What was handed over before must have been settled.
    pub(super) fn hand_over(&self, full: Full) {
        let before = self.lock().due.replace(full);
        debug_assert!(before.is_none(), "two halves are full");
    }

    pub(super) fn is_due(&self) -> bool {
        self.lock().due.is_some()
    }

    /// Do the `work` that was handed over, if nobody else does; return when it is done. Its error goes to who did it: the work itself must stop the store, and
    /// others look whether it has stopped.
    pub(super) fn settle(&self, work: impl FnOnce(Full) -> Result<(), Error>) -> Result<(), Error> {
        let full = {
            let mut state = self.lock();
            while state.working {
                state = self.moved.wait(state).expect("see lock");
            }
            let Some(full) = state.due.take() else { return Ok(()) };
            state.working = true;
            full
        };
        let settled = work(full);
        self.lock().working = false;
        self.moved.notify_all();
        settled
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under this lock panics")
    }
}
