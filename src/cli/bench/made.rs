//! What is in a made store: what the nth job of it is like, and which jobs have something in common.
//!
//! The one place that says it: `maker` makes them so, and `history` checks by it what a master answers. Jobs are counted from 0 here, and have
//! the number one above that in their ids.

use crate::machine::ids::Timestamp;
use std::collections::BTreeMap;

/// The party of a master's directory; a master is started on it with this `--party-id`.
pub(super) const PARTY: &str = "bench";
/// When the first record begins: 2026-01-01 UTC. The next ones follow a second apart.
pub(super) const BEGIN: Timestamp = Timestamp(1_767_225_600_000_000);

/// Every so many jobs, from the first on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    every: u64,
    first: u64,
}

impl Group {
    /// Every job.
    pub(super) const ALL: Group = Group { every: 1, first: 0 };
    /// Those that failed; the others succeeded.
    pub(super) const FAILED: Group = Group { every: 10, first: 9 };
    /// Those of type `program`; the others are `dummy`.
    pub(super) const PROGRAMS: Group = Group { every: 100, first: 50 };
    /// Those with the label `rare`.
    pub(super) const RARE: Group = Group { every: 100_000, first: 7 };
    /// Those beside which the party was asked to join another's proposal.
    pub(super) const PROPOSED: Group = Group { every: 10, first: 0 };
    /// Of these, those that it wanted (they were of type `dummy`) and missed; the others it declined.
    pub(super) const MISSED: Group = Group { every: 1000, first: 0 };
    /// Values of the label `run`.
    const RUNS: u64 = 1000;

    /// Those with this value of the label `run`; all of them failed if it ends with 9.
    pub(super) const fn run(value: u64) -> Group {
        Group {
            every: Self::RUNS,
            first: value,
        }
    }

    /// Whether a job is one of them.
    pub(super) fn has(self, n: u64) -> bool {
        n % self.every == self.first
    }

    /// The first one from `n` on.
    pub(super) fn next(self, n: u64) -> u64 {
        n + (self.first + self.every - n % self.every) % self.every
    }

    /// The last one up to `n`.
    pub(super) fn last(self, n: u64) -> Option<u64> {
        n.checked_sub((n % self.every + self.every - self.first) % self.every)
    }
}

/// The type of a job.
pub(super) fn job_type(n: u64) -> &'static str {
    if Group::PROGRAMS.has(n) { "program" } else { "dummy" }
}

/// The labels of a job.
pub(super) fn labels(n: u64) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([("run".to_owned(), (n % Group::RUNS).to_string())]);
    if Group::RARE.has(n) {
        labels.insert("rare".to_owned(), "yes".to_owned());
    }
    labels
}

/// When a job was accepted.
pub(super) fn accepted_at(n: u64) -> Timestamp {
    BEGIN.plus_ms(n * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_neighbours_in_a_group_are_found() {
        for group in [Group::ALL, Group::FAILED, Group::run(7), Group::RARE, Group::MISSED] {
            let near = |n: u64| n.saturating_sub(100_000)..n + 100_001;
            for n in [0, 6, 7, 8, 9, 10, 1006, 1007, 1008, 100_007, 250_000] {
                assert_eq!(Some(group.next(n)), near(n).find(|found| *found >= n && group.has(*found)));
                assert_eq!(group.last(n), (0..=n).rev().find(|found| group.has(*found)), "{group:?} {n}");
            }
        }
    }
}
