//! What this worker has been given to do, by (job, task, attempt): waiting, running, ended and not yet acknowledged, or done.
//!
//! Pure bookkeeping under the lock of [`super::tasks`]. It must never let an attempt start twice, nor forget an outcome that the
//! manager has not acknowledged.

use crate::machine::ids::TaskKey;
use crate::machine::outcome::{End, Outcome};
use std::collections::{HashMap, HashSet, VecDeque};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How many finished and acknowledged attempts are remembered, so that a late duplicate does not run again.
const REMEMBERED_MAX: usize = 100_000;

/// One attempt of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub key: TaskKey,
    pub number: u32,
}

#[derive(Debug)]
enum State {
    /// Waits for `go`; its task may be unpacking meanwhile.
    Waiting {
        go: oneshot::Sender<()>,
        stop: CancellationToken,
    },
    Running {
        stop: CancellationToken,
    },
    Ended(Outcome),
}

/// What is to be done with a task that came in.
#[derive(Debug)]
pub(super) enum Admission {
    /// Start it when `go` resolves; end it when `stop` does.
    New {
        go: oneshot::Receiver<()>,
        stop: CancellationToken,
    },
    /// It is here already, waiting or running.
    Here,
    /// It has ended; its outcome goes out again.
    Ended,
}

/// The attempts of one worker process.
#[derive(Debug)]
pub(super) struct Table {
    max: usize,
    running: usize,
    waiting: VecDeque<Attempt>,
    attempts: HashMap<Attempt, State>,
    /// Ended attempts whose outcome is to be sent, in order of their end.
    unsent: VecDeque<Attempt>,
    /// Reasons given with a kill.
    reasons: HashMap<Attempt, String>,
    /// Attempts that the manager has called void while they ran: they end without a report.
    void: HashSet<Attempt>,
    done: HashSet<Attempt>,
    done_order: VecDeque<Attempt>,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            running: 0,
            waiting: VecDeque::new(),
            attempts: HashMap::new(),
            unsent: VecDeque::new(),
            reasons: HashMap::new(),
            void: HashSet::new(),
            done: HashSet::new(),
            done_order: VecDeque::new(),
        }
    }

    /// How many run, how many may at once, how many wait.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.running, self.max, self.waiting.len())
    }

    /// A task came in.
    pub(super) fn admit(&mut self, attempt: &Attempt) -> Admission {
        match self.attempts.get(attempt) {
            Some(State::Ended(_)) => {
                if !self.unsent.contains(attempt) {
                    self.unsent.push_back(attempt.clone());
                }
                return Admission::Ended;
            }
            Some(_) => return Admission::Here,
            // It must not run twice, and a manager that gives it out again (its directory was replaced) waits for an end.
            None if self.done.contains(attempt) => {
                let reason = "this attempt ended before, and the manager acknowledged its outcome";
                let outcome = Outcome {
                    attempt: attempt.number,
                    ..Outcome::without_process(End::Failed, reason)
                };
                self.attempts.insert(attempt.clone(), State::Ended(outcome));
                self.unsent.push_back(attempt.clone());
                return Admission::Ended;
            }
            None => {}
        }
        let (go_sender, go) = oneshot::channel();
        let stop = CancellationToken::new();
        self.attempts.insert(
            attempt.clone(),
            State::Waiting {
                go: go_sender,
                stop: stop.clone(),
            },
        );
        self.waiting.push_back(attempt.clone());
        self.start_waiting();
        Admission::New { go, stop }
    }

    /// The number for a task that comes without one (FedVision 0.1): `None` while the same task is here and not ended.
    pub(super) fn next_number(&self, key: &TaskKey) -> Option<u32> {
        let mut attempt = Attempt {
            key: key.clone(),
            number: 1,
        };
        loop {
            match self.attempts.get(&attempt) {
                Some(State::Ended(_)) => {}
                Some(_) => return None,
                None if self.done.contains(&attempt) => {}
                None => return Some(attempt.number),
            }
            attempt.number += 1;
        }
    }

    /// True while an attempt waits or runs.
    pub(super) fn is_here(&self, attempt: &Attempt) -> bool {
        matches!(self.attempts.get(attempt), Some(State::Waiting { .. } | State::Running { .. }))
    }

    /// Give free slots to those that wait, in their order.
    fn start_waiting(&mut self) {
        while self.running < self.max {
            let Some(attempt) = self.waiting.pop_front() else { return };
            if let Some(State::Waiting { stop, .. }) = self.attempts.get(&attempt) {
                let running = State::Running { stop: stop.clone() };
                if let Some(State::Waiting { go, .. }) = self.attempts.insert(attempt, running) {
                    // Counted whether or not anybody listens: `ended` gives the slot back.
                    let _ = go.send(());
                    self.running += 1;
                }
            }
        }
    }

    /// An attempt ended (it may never have got a slot).
    pub(super) fn ended(&mut self, attempt: &Attempt, mut outcome: Outcome) {
        match self.attempts.remove(attempt) {
            Some(State::Running { .. }) => self.running -= 1,
            Some(State::Waiting { .. }) => self.waiting.retain(|a| a != attempt),
            Some(State::Ended(_)) | None => return,
        }
        outcome.attempt = attempt.number;
        if let Some(reason) = self.reasons.remove(attempt).filter(|_| outcome.end == End::Cancelled) {
            outcome.reason = reason;
        }
        if self.void.remove(attempt) {
            self.remember(attempt);
        } else {
            self.attempts.insert(attempt.clone(), State::Ended(outcome.clipped()));
            self.unsent.push_back(attempt.clone());
        }
        self.start_waiting();
    }

    /// The manager wants an attempt ended. One that is not here is reported as cancelled, and does not start if it comes later.
    pub(super) fn kill(&mut self, attempt: &Attempt, reason: String) {
        match self.attempts.get(attempt) {
            Some(State::Waiting { stop, .. } | State::Running { stop }) => {
                stop.cancel();
                self.reasons.insert(attempt.clone(), reason);
            }
            Some(State::Ended(_)) => {
                if !self.unsent.contains(attempt) {
                    self.unsent.push_back(attempt.clone());
                }
            }
            None if self.done.contains(attempt) => {}
            None => {
                let outcome = Outcome {
                    attempt: attempt.number,
                    ..Outcome::without_process(End::Cancelled, reason)
                };
                self.attempts.insert(attempt.clone(), State::Ended(outcome.clipped()));
                self.unsent.push_back(attempt.clone());
            }
        }
    }

    /// The outcome of an attempt is durable at the manager, or void there. One that still runs is ended and not reported.
    pub(super) fn acknowledged(&mut self, attempt: &Attempt) {
        match self.attempts.get(attempt) {
            Some(State::Waiting { stop, .. } | State::Running { stop }) => {
                stop.cancel();
                self.void.insert(attempt.clone());
            }
            Some(State::Ended(_)) => {
                // If it is among the unsent, `next_report` passes over it.
                self.attempts.remove(attempt);
                self.remember(attempt);
            }
            None => {}
        }
    }

    fn remember(&mut self, attempt: &Attempt) {
        if self.done.insert(attempt.clone()) {
            self.done_order.push_back(attempt.clone());
        }
        while self.done_order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.done_order.pop_front() {
                self.done.remove(&oldest);
            }
        }
    }

    /// The next outcome to send.
    pub(super) fn next_report(&mut self) -> Option<(Attempt, Outcome)> {
        while let Some(attempt) = self.unsent.pop_front() {
            if let Some(State::Ended(outcome)) = self.attempts.get(&attempt) {
                let outcome = outcome.clone();
                return Some((attempt, outcome));
            }
        }
        None
    }

    /// True when there may be an outcome to send.
    pub(super) fn has_reports(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Send every outcome again that is not acknowledged.
    pub(super) fn repeat_reports(&mut self) {
        let waiting: HashSet<_> = self.unsent.iter().cloned().collect();
        let ended = self.attempts.iter().filter(|(_, state)| matches!(state, State::Ended(_)));
        let again: Vec<_> = ended
            .map(|(attempt, _)| attempt)
            .filter(|a| !waiting.contains(a))
            .cloned()
            .collect();
        self.unsent.extend(again);
    }

    /// All attempts that are not acknowledged.
    pub(super) fn known(&self) -> Vec<Attempt> {
        self.attempts.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(task: &str, number: u32) -> Attempt {
        Attempt {
            key: TaskKey::parse("j", task).unwrap(),
            number,
        }
    }

    fn ok() -> Outcome {
        Outcome::without_process(End::Succeeded, "")
    }

    fn start(table: &mut Table, attempt: &Attempt) -> (oneshot::Receiver<()>, CancellationToken) {
        match table.admit(attempt) {
            Admission::New { go, stop } => (go, stop),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn slots_are_given_in_order_of_arrival() {
        let mut table = Table::new(1);
        let (mut a, _) = start(&mut table, &attempt("a", 1));
        let (mut b, _) = start(&mut table, &attempt("b", 1));
        let (mut c, _) = start(&mut table, &attempt("c", 1));
        assert!(a.try_recv().is_ok() && b.try_recv().is_err());
        table.ended(&attempt("b", 1), ok());
        assert!(c.try_recv().is_err(), "b never had a slot to give back");
        table.ended(&attempt("a", 1), ok());
        assert!(c.try_recv().is_ok());
    }

    #[test]
    fn an_attempt_starts_once_and_is_reported_until_acknowledged() {
        let mut table = Table::new(2);
        let a = attempt("a", 1);
        start(&mut table, &a);
        assert!(matches!(table.admit(&a), Admission::Here));
        table.ended(&a, ok());
        assert_eq!(table.next_report().unwrap().0, a);
        assert!(table.next_report().is_none());
        table.repeat_reports();
        table.repeat_reports();
        assert_eq!(table.next_report().unwrap().1.attempt, 1);
        assert!(table.next_report().is_none());
        assert!(matches!(table.admit(&a), Admission::Ended));
        assert!(table.has_reports());
        table.acknowledged(&a);
        assert!(table.next_report().is_none() && table.known().is_empty());
        assert!(matches!(table.admit(&a), Admission::Ended));
        assert!(matches!(table.admit(&attempt("a", 2)), Admission::New { .. }));
    }

    #[test]
    fn kills_reach_every_state() {
        let mut table = Table::new(1);
        let (a, b) = (attempt("a", 1), attempt("b", 1));
        let (_, stop_a) = start(&mut table, &a);
        table.kill(&a, "why".into());
        assert!(stop_a.is_cancelled());
        table.ended(&a, Outcome::without_process(End::Cancelled, "cancelled"));
        assert_eq!(table.next_report().unwrap().1.reason, "why");
        table.kill(&b, "early".into());
        assert_eq!(table.next_report().unwrap().1.end, End::Cancelled);
        assert!(
            matches!(table.admit(&b), Admission::Ended),
            "a task killed before it came does not start"
        );
    }

    #[test]
    fn a_void_attempt_ends_without_a_report() {
        let mut table = Table::new(1);
        let a = attempt("a", 1);
        let (_, stop) = start(&mut table, &a);
        table.acknowledged(&a);
        assert!(stop.is_cancelled());
        table.ended(&a, ok());
        assert!(table.next_report().is_none());
        assert!(matches!(table.admit(&a), Admission::Ended));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut table = Table::new(1);
        for number in 1..=100_001 {
            let a = attempt("a", number);
            start(&mut table, &a);
            table.ended(&a, ok());
            table.acknowledged(&a);
        }
        assert_eq!(table.done.len(), REMEMBERED_MAX);
        assert!(matches!(table.admit(&attempt("a", 2)), Admission::Ended));
        assert!(matches!(table.admit(&attempt("a", 1)), Admission::New { .. }));
    }

    #[test]
    fn tasks_without_a_number_get_the_next_one() {
        let mut table = Table::new(1);
        let key = attempt("a", 1).key;
        assert_eq!(table.next_number(&key), Some(1));
        start(&mut table, &attempt("a", 1));
        assert_eq!(table.next_number(&key), None);
        table.ended(&attempt("a", 1), ok());
        assert_eq!(table.next_number(&key), Some(2));
        table.acknowledged(&attempt("a", 1));
        assert_eq!(table.next_number(&key), Some(2));
    }
}
