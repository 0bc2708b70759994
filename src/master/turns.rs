//! Who goes first where jobs wait: by priority and age.
//!
//! One point of priority is worth a time of waiting (`[jobs] ageing_minutes`), so that nothing starves: all jobs age alike, which makes the
//! order a number that never changes, see [`Order::of`]. [`Turns`] gives out the turns to compile; `leases` orders by it too.

use crate::machine::master::records::Job;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// A place in every queue; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(i128, u64);

impl Order {
    /// When the job was submitted, in microseconds, less the waiting that its priority is worth; then its number.
    pub(super) fn of(job: &Job, ageing: Duration) -> Self {
        let worth = i128::from(job.spec.priority) * i128::try_from(ageing.as_micros()).unwrap_or(i128::MAX / 256);
        Self(i128::from(job.submitted_at.0) - worth, job.number)
    }
}

#[cfg(test)]
impl Order {
    /// Some place; a greater number is a later one.
    pub(super) fn at(number: u64) -> Self {
        Self(0, number)
    }
}

/// A number of turns, given to the first in order. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<Queue>>);

struct Queue {
    free: usize,
    waiting: BTreeMap<(Order, u64), oneshot::Sender<Turn>>,
    /// Makes keys unique, and keeps those of one order first come first served.
    next: u64,
}

/// A turn; over when dropped.
pub(super) struct Turn {
    turns: Turns,
    returned: bool,
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue {
            free: at_once,
            waiting: BTreeMap::new(),
            next: 0,
        })))
    }

    /// Wait for a turn. Who goes away meanwhile loses nothing of anybody else.
    pub(super) async fn take(&self, order: Order) -> Turn {
        let turn = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (sender, turn) = oneshot::channel();
            queue.next += 1;
            let key = (order, queue.next);
            queue.waiting.insert(key, sender);
            turn
        };
        self.give();
        turn.await.expect("a waiting sender is only dropped once it was used")
    }

    /// Hand out what is free.
    fn give(&self) {
        loop {
            let sender = {
                let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.free == 0 {
                    return;
                }
                let Some((_, sender)) = queue.waiting.pop_first() else { return };
                queue.free -= 1;
                sender
            };
            let turn = Turn {
                turns: self.clone(),
                returned: false,
            };
            if let Err(mut unwanted) = sender.send(turn) {
                unwanted.returned = true;
                self.0.lock().unwrap_or_else(PoisonError::into_inner).free += 1;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.returned {
            self.turns.0.lock().unwrap_or_else(PoisonError::into_inner).free += 1;
            self.turns.give();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::machine::content::Content;
    use crate::machine::ids::{JobId, Timestamp, TypeName};
    use crate::machine::master::records::JobState;
    use crate::machine::master::spec::{Provenance, Spec};
    use crate::machine::plan::Plan;
    use futures_util::FutureExt;

    /// A job that was submitted in this minute.
    pub(in crate::master) fn aged(number: u64, minute: u64, priority: i8) -> Job {
        let plan = Plan {
            endpoints: 1,
            workers: 0,
            wait_s: 0,
        };
        let at = Timestamp(minute * 60_000_000);
        let mut spec = Spec::plain(TypeName::parse("x").unwrap(), Content::default(), None, plan);
        spec.priority = priority;
        Job {
            id: JobId::parse(format!("p-{number}")).unwrap(),
            number,
            spec,
            provenance: Provenance::unknown(),
            submitted_at: at,
            changed_at: at,
            state: JobState::Leasing,
            step: 0,
            tries: 0,
            note: String::new(),
            lease: None,
            returning: false,
            proposal: None,
            steps: Vec::new(),
            successor: None,
            last_event: 0,
        }
    }

    #[tokio::test]
    async fn the_first_in_order_gets_the_turn_and_who_goes_away_loses_none() {
        let turns = Turns::new(1);
        let held = turns.take(Order(0, 0)).await;
        let mut low = Box::pin(turns.take(Order(9, 1)));
        let mut gone = Box::pin(turns.take(Order(1, 2)));
        let mut high = Box::pin(turns.take(Order(2, 3)));
        assert!(low.as_mut().now_or_never().is_none());
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(high.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        assert!(low.as_mut().now_or_never().is_none(), "it is not first");
        let turn = high.await;
        assert!(low.as_mut().now_or_never().is_none(), "there is one turn");
        drop(turn);
        drop(low.await);
        assert_eq!(turns.0.lock().unwrap().free, 1);
    }

    #[test]
    fn a_point_of_priority_is_worth_its_time_of_waiting() {
        let job = aged;
        let order = |job: &Job| Order::of(job, Duration::from_secs(300));
        assert!(order(&job(1, 0, 0)) < order(&job(2, 0, 0)), "first come");
        assert!(order(&job(2, 0, 1)) < order(&job(1, 0, 0)), "priority");
        assert!(
            order(&job(1, 0, 0)) < order(&job(2, 6, 1)),
            "six minutes of waiting are worth more than a point of five"
        );
        assert!(order(&job(2, 4, 1)) < order(&job(1, 0, 0)), "four are not");
        assert!(order(&job(1, 0, -100)) < order(&job(2, 1001, 100)), "nothing starves");
    }
}
