//! The line between what is confirmed and what is not.
//!
//! Called by `SledStore`: the committer moves the line, and what is behind it may be read. Once it is stopped nothing is confirmed any more:
//! on a full disk what was confirmed can still be read, after anything else nothing can.

use super::super::{Error, Head};
use std::io;
use std::sync::{Mutex, MutexGuard};

pub(super) struct Barrier(Mutex<State>);

struct State {
    /// The last durable commit.
    head: Head,
    stopped: Stopped,
}

/// Whether the line still moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    No,
    /// The disk was full.
    Full,
    /// Nothing is known any more.
    Failed,
}

/// A commit under way. Dropped without [`Pending::durable`], it poisons the store.
#[must_use]
pub(super) struct Pending<'a> {
    barrier: &'a Barrier,
    stops: Stopped,
}

impl Barrier {
    pub(super) fn new(head: Head) -> Barrier {
        let stopped = Stopped::No;
        Barrier(Mutex::new(State { head, stopped }))
    }

    pub(super) fn head(&self) -> Head {
        self.lock().head
    }

    /// Whether anything may be read.
    pub(super) fn readable(&self) -> Result<(), Error> {
        match self.lock().stopped {
            Stopped::No | Stopped::Full => Ok(()),
            Stopped::Failed => Err(Error::Poisoned),
        }
    }

    /// Whether there may be a commit.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.lock().stopped {
            Stopped::No => Ok(()),
            Stopped::Full => Err(Error::Io {
                what: "an earlier commit found the disk full; nothing is written until a restart".to_owned(),
                source: io::ErrorKind::StorageFull.into(),
            }),
            Stopped::Failed => Err(Error::Poisoned),
        }
    }

    /// Whether a full disk has stopped the line.
    pub(super) fn is_full(&self) -> bool {
        self.lock().stopped == Stopped::Full
    }

    /// Announce a commit before anything of it is written.
    pub(super) fn begin(&self) -> Result<Pending<'_>, Error> {
        self.check()?;
        Ok(Pending {
            barrier: self,
            stops: Stopped::Failed,
        })
    }

    /// The disk is full: no commit may follow.
    pub(super) fn full(&self) {
        self.stop(Stopped::Full);
    }

    pub(super) fn poison(&self) {
        self.stop(Stopped::Failed);
    }

    fn stop(&self, why: Stopped) {
        let mut state = self.lock();
        if state.stopped != Stopped::Failed {
            state.stopped = why;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing under this lock panics")
    }
}

impl Pending<'_> {
    /// The commit survives a power cut: `show` it, and move the line behind it. Both at once: who sees that an event is gone, or a new one, looks at the
    /// head next.
    pub(super) fn durable(mut self, head: Head, show: impl FnOnce()) {
        let mut state = self.barrier.lock();
        show();
        state.head = head;
        self.stops = Stopped::No;
    }

    /// The disk is full: nobody was shown anything of the commit.
    pub(super) fn full(mut self) {
        self.stops = Stopped::Full;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.stops != Stopped::No {
            self.barrier.stop(self.stops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(batch: u64) -> Head {
        Head {
            epoch: 1,
            batch,
            first_seq: 1,
            next_seq: 1,
        }
    }

    #[test]
    fn a_commit_moves_the_line() {
        let barrier = Barrier::new(head(4));
        let pending = barrier.begin().unwrap();
        assert_eq!(barrier.head(), head(4));
        let mut shown = false;
        pending.durable(head(5), || shown = true);
        assert!(shown);
        assert_eq!(barrier.head(), head(5));
        barrier.check().unwrap();
    }

    #[test]
    fn a_commit_that_ends_badly_ends_everything() {
        let barrier = Barrier::new(head(4));
        drop(barrier.begin().unwrap());
        assert!(matches!(barrier.readable(), Err(Error::Poisoned)));
        assert!(matches!(barrier.begin().err(), Some(Error::Poisoned)));
        barrier.full();
        assert!(matches!(barrier.readable(), Err(Error::Poisoned)), "a full disk mends nothing");
    }

    #[test]
    fn a_full_disk_ends_commits_and_not_reads() {
        let barrier = Barrier::new(head(4));
        barrier.begin().unwrap().full();
        assert!(barrier.is_full());
        barrier.readable().unwrap();
        assert!(barrier.check().unwrap_err().is_full());
        assert!(barrier.begin().is_err_and(|error| error.is_full()));
        assert_eq!(barrier.head(), head(4));
        barrier.poison();
        assert!(matches!(barrier.readable(), Err(Error::Poisoned)));
    }
}
