//! The line between what is durable and what is only in the engine's memory.
//!
//! Called by `SledStore`: the committer moves the line, readers wait at it. A batch is visible in the engine before its barrier, so a
//! reader may meet a value of it, or miss a key it deleted; it must never be answered before the line has passed that batch.

use super::super::{Error, Head};
use std::sync::{Condvar, Mutex, MutexGuard};

pub(super) struct Barrier {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The last durable commit.
    head: Head,
    /// Keys that the commit under way deletes: their absence is not durable yet.
    deleting: Vec<Vec<u8>>,
    poisoned: bool,
}

/// A commit under way. Dropped without [`Pending::durable`], it poisons the store, so that no reader waits for ever.
#[must_use]
pub(super) struct Pending<'a> {
    barrier: &'a Barrier,
    done: bool,
}

impl Barrier {
    pub(super) fn new(head: Head) -> Barrier {
        Barrier {
            state: Mutex::new(State {
                head,
                deleting: Vec::new(),
                poisoned: false,
            }),
            moved: Condvar::new(),
        }
    }

    pub(super) fn head(&self) -> Head {
        self.lock().head
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lock().poisoned { Err(Error::Poisoned) } else { Ok(()) }
    }

    /// Announce a commit before the engine is told of it.
    pub(super) fn begin(&self, deleting: Vec<Vec<u8>>) -> Result<Pending<'_>, Error> {
        let mut state = self.lock();
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        state.deleting = deleting;
        Ok(Pending {
            barrier: self,
            done: false,
        })
    }

    pub(super) fn poison(&self) {
        self.lock().poisoned = true;
        self.moved.notify_all();
    }

    /// Wait until `batch` is durable, and, if the commit under way deletes a key that `missed` names, until that one is.
    pub(super) fn wait(&self, batch: u64, missed: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
        let mut state = self.lock();
        let mut until = batch;
        if state.deleting.iter().any(|key| missed(key)) {
            until = until.max(state.head.batch + 1);
        }
        while !state.poisoned && state.head.batch < until {
            state = self.moved.wait(state).expect("see lock");
        }
        if state.poisoned { Err(Error::Poisoned) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under this lock panics")
    }
}

impl Pending<'_> {
    /// The commit survives a power cut: let readers pass.
    pub(super) fn durable(mut self, head: Head) {
        let mut state = self.barrier.lock();
        state.head = head;
        state.deleting.clear();
        self.done = true;
        self.barrier.moved.notify_all();
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.barrier.poison();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn head(batch: u64) -> Head {
        Head {
            epoch: 1,
            batch,
            next_seq: 1,
        }
    }

    /// Start a reader and give its answer; the channel says when it has begun.
    fn reader<'a>(
        scope: &'a thread::Scope<'a, '_>,
        barrier: &'a Barrier,
        batch: u64,
        missed: &'static [u8],
    ) -> thread::ScopedJoinHandle<'a, Result<(), Error>> {
        let (begun, wait) = mpsc::channel();
        let handle = scope.spawn(move || {
            begun.send(()).unwrap();
            barrier.wait(batch, |key| key == missed)
        });
        wait.recv().unwrap();
        handle
    }

    #[test]
    fn durable_values_pass_and_pending_ones_wait() {
        let barrier = Barrier::new(head(4));
        barrier.wait(4, |_| true).unwrap();
        thread::scope(|scope| {
            let pending = barrier.begin(vec![b"gone".to_vec()]).unwrap();
            barrier.wait(4, |key| key == b"other").unwrap();
            let value = reader(scope, &barrier, 5, b"");
            let absence = reader(scope, &barrier, 0, b"gone");
            assert!(!value.is_finished() && !absence.is_finished());
            pending.durable(head(5));
            value.join().unwrap().unwrap();
            absence.join().unwrap().unwrap();
        });
        assert_eq!(barrier.head(), head(5));
    }

    #[test]
    fn a_commit_that_ends_badly_lets_no_reader_pass() {
        let barrier = Barrier::new(head(4));
        thread::scope(|scope| {
            let pending = barrier.begin(Vec::new()).unwrap();
            let value = reader(scope, &barrier, 5, b"");
            drop(pending);
            assert!(matches!(value.join().unwrap(), Err(Error::Poisoned)));
        });
        assert!(matches!(barrier.wait(1, |_| false), Err(Error::Poisoned)));
        assert!(matches!(barrier.begin(Vec::new()), Err(Error::Poisoned)));
    }
}
