//! What waits here and for how long, line by line; for the status.
//!
//! Who puts something into a line keeps a [`Place`] with it, so that nothing is counted that is not there. Volatile; holds up nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Jobs that ask the cluster manager for endpoints.
    Leases,
    /// Jobs that wait for their turn to compile.
    CompileTurns,
    /// Jobs that compile.
    Compiling,
    /// Jobs whose proposal has no verdict yet.
    Proposals,
    /// Tasks of proposals that are fetched.
    Fetches,
    /// Submissions, stops, leases that go back: calls to the cluster manager that are not answered yet.
    ClusterCalls,
}

impl Line {
    /// All of them.
    pub const ALL: [Line; 6] = [
        Line::Leases,
        Line::CompileTurns,
        Line::Compiling,
        Line::Proposals,
        Line::Fetches,
        Line::ClusterCalls,
    ];
}

/// All lines. Cheap to clone; clones are one.
#[derive(Clone, Default)]
pub struct Waiting(Arc<[Mutex<Standing>; Line::ALL.len()]>);

/// Who stands in a line, by number; numbers rise, so the first came first.
#[derive(Default)]
struct Standing {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A place in a line, until it is dropped.
#[must_use = "it counts as long as this lives"]
pub struct Place {
    waiting: Waiting,
    line: Line,
    number: u64,
}

impl Waiting {
    /// Something comes into a line.
    pub fn join(&self, line: Line) -> Place {
        let number = self.with(line, |standing| {
            standing.next += 1;
            standing.since.insert(standing.next, Instant::now());
            standing.next
        });
        Place {
            waiting: self.clone(),
            line,
            number,
        }
    }

    /// How many stand in a line, and how long the first has.
    pub fn look(&self, line: Line) -> (usize, Option<Duration>) {
        self.with(line, |standing| {
            let oldest = standing.since.first_key_value().map(|(_, since)| since.elapsed());
            (standing.since.len(), oldest)
        })
    }

    fn with<T>(&self, line: Line, act: impl FnOnce(&mut Standing) -> T) -> T {
        act(&mut self.0[line as usize].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.with(self.line, |standing| standing.since.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_still_there_is_the_oldest() {
        let waiting = Waiting::default();
        assert_eq!(waiting.look(Line::Leases), (0, None));
        let first = waiting.join(Line::Leases);
        let first_since = waiting.look(Line::Leases).1.unwrap();
        while waiting.look(Line::Leases).1.unwrap() < first_since + Duration::from_millis(5) {}
        let second = waiting.join(Line::Leases);
        let (count, with_first) = waiting.look(Line::Leases);
        assert_eq!((count, waiting.look(Line::Fetches)), (2, (0, None)));
        drop(first);
        let (count, without) = waiting.look(Line::Leases);
        assert!(count == 1 && without < with_first, "{without:?} {with_first:?}");
        drop(second);
        assert_eq!(waiting.look(Line::Leases), (0, None));
    }
}
