//! The line between what is durable and what is only in the engine's memory.
//!
//! Called by `SledStore`: the committer moves the line, readers wait at it. A batch is visible in the engine before its barrier, so a
//! reader may meet a value of it, or miss a key it deleted; it must never be answered before the line has passed that batch. When a
//! full disk stops the line, readers are given what stood there [`Before`] the batch that cannot pass.

use super::super::{Error, Head};
use super::before::Before;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

pub(super) struct Barrier {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The last durable commit.
    head: Head,
    /// Keys that the commit under way deletes: their absence is not durable yet.
    deleting: Vec<Vec<u8>>,
    stopped: Stopped,
}

/// Whether the line still moves.
enum Stopped {
    No,
    /// The disk was full: what the last commit overwrote is in here, and nothing is written any more.
    Full(Arc<Before>),
    /// Nothing is known any more.
    Failed,
}

/// What a reader may look at.
pub(super) enum View {
    /// What the engine shows, once it is durable: ask [`Barrier::wait`] before answering.
    Live,
    /// What the engine shows, but this where it has something; durable.
    Before(Arc<Before>),
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
                stopped: Stopped::No,
            }),
            moved: Condvar::new(),
        }
    }

    pub(super) fn head(&self) -> Head {
        self.lock().head
    }

    /// What may be read now.
    pub(super) fn view(&self) -> Result<View, Error> {
        match &self.lock().stopped {
            Stopped::No => Ok(View::Live),
            Stopped::Full(before) => Ok(View::Before(Arc::clone(before))),
            Stopped::Failed => Err(Error::Poisoned),
        }
    }

    /// Whether there may be a commit.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.lock().check()
    }

    /// Announce a commit before the engine is told of it.
    pub(super) fn begin(&self, deleting: Vec<Vec<u8>>) -> Result<Pending<'_>, Error> {
        let mut state = self.lock();
        state.check()?;
        state.deleting = deleting;
        Ok(Pending {
            barrier: self,
            done: false,
        })
    }

    /// The disk is full: no commit may follow, and what the engine shows is durable but for what is in `before`.
    pub(super) fn full(&self, before: Before) {
        self.lock().stopped = Stopped::Full(Arc::new(before));
        self.moved.notify_all();
    }

    pub(super) fn poison(&self) {
        self.lock().stopped = Stopped::Failed;
        self.moved.notify_all();
    }

    /// Wait until `batch` is durable, and, if the commit under way deletes a key that `missed` names, until that one is. False when the line
    /// has stopped meanwhile: take a new [`View`].
    pub(super) fn wait(&self, batch: u64, missed: impl Fn(&[u8]) -> bool) -> Result<bool, Error> {
        let mut state = self.lock();
        let mut until = batch;
        if state.deleting.iter().any(|key| missed(key)) {
            until = until.max(state.head.batch + 1);
        }
        while matches!(state.stopped, Stopped::No) && state.head.batch < until {
            state = self.moved.wait(state).expect("see lock");
        }
        match state.stopped {
            Stopped::No => Ok(true),
            Stopped::Full(_) => Ok(false),
            Stopped::Failed => Err(Error::Poisoned),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under this lock panics")
    }
}

impl State {
    fn check(&self) -> Result<(), Error> {
        match self.stopped {
            Stopped::No => Ok(()),
            Stopped::Full(_) => Err(Error::Io {
                what: "an earlier commit found the disk full; nothing is written until a restart".to_owned(),
                source: io::ErrorKind::StorageFull.into(),
            }),
            Stopped::Failed => Err(Error::Poisoned),
        }
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

    /// The disk is full: let readers pass as if the commit had never been.
    pub(super) fn full(mut self, before: Before) {
        self.done = true;
        self.barrier.full(before);
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
            first_seq: 1,
            next_seq: 1,
        }
    }

    /// Start a reader and give its answer; the channel says when it has begun.
    fn reader<'a>(
        scope: &'a thread::Scope<'a, '_>,
        barrier: &'a Barrier,
        batch: u64,
        missed: &'static [u8],
    ) -> thread::ScopedJoinHandle<'a, Result<bool, Error>> {
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
        assert!(barrier.wait(4, |_| true).unwrap());
        thread::scope(|scope| {
            let pending = barrier.begin(vec![b"gone".to_vec()]).unwrap();
            assert!(barrier.wait(4, |key| key == b"other").unwrap());
            let value = reader(scope, &barrier, 5, b"");
            let absence = reader(scope, &barrier, 0, b"gone");
            assert!(!value.is_finished() && !absence.is_finished());
            pending.durable(head(5));
            assert!(value.join().unwrap().unwrap());
            assert!(absence.join().unwrap().unwrap());
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

    #[test]
    fn a_full_disk_sends_readers_to_look_again_and_takes_no_commit() {
        let barrier = Barrier::new(head(4));
        thread::scope(|scope| {
            let pending = barrier.begin(Vec::new()).unwrap();
            let value = reader(scope, &barrier, 5, b"");
            pending.full(Before::default());
            assert!(!value.join().unwrap().unwrap());
        });
        assert!(matches!(barrier.view(), Ok(View::Before(_))));
        assert!(!barrier.wait(1, |_| false).unwrap());
        assert!(barrier.check().unwrap_err().is_full());
        assert!(barrier.begin(Vec::new()).is_err_and(|error| error.is_full()));
        assert_eq!(barrier.head(), head(4));
        barrier.poison();
        assert!(matches!(barrier.view(), Err(Error::Poisoned)));
    }
}
