//! The clock of the jobs: says when one may begin, and when its deadline has passed.
//!
//! Called by the executors. Volatile: after a crash the machine asks for every timer again. Goes by the wall clock, since the times are a
//! user's, and looks at it often enough to follow when it is set.

use crate::engine::Handle;
use crate::engine::clock::{Clock, SystemClock};
use crate::machine::ids::{JobId, Timestamp};
use crate::machine::master::{Command, Master};
use crate::supervisor::{Policy, Supervisor};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the clock goes unread.
const LOOK_MS: u64 = 10_000;

/// What happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Wake { step: u32 },
    Deadline,
}

enum Order {
    Set(JobId, Due, Timestamp),
    Disarm(JobId),
}

/// Takes timers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Timers {
    orders: mpsc::UnboundedSender<Order>,
}

impl Timers {
    pub(super) fn start(handle: Handle<Master>, supervisor: &Supervisor) -> Self {
        let (orders, queue) = mpsc::unbounded_channel();
        supervisor.spawn("timers", Policy::Essential, run(handle, queue));
        Self { orders }
    }

    /// Wake a job at a time.
    pub(super) fn wake(&self, job: JobId, step: u32, at: Timestamp) {
        let _ = self.orders.send(Order::Set(job, Due::Wake { step }, at));
    }

    /// Say when a deadline has passed.
    pub(super) fn deadline(&self, job: JobId, at: Timestamp) {
        let _ = self.orders.send(Order::Set(job, Due::Deadline, at));
    }

    /// Forget the timers of a job.
    pub(super) fn disarm(&self, job: JobId) {
        let _ = self.orders.send(Order::Disarm(job));
    }
}

/// The timers there are, by time and by job.
#[derive(Default)]
struct Table {
    by_time: BTreeSet<(Timestamp, JobId, Due)>,
    by_job: BTreeMap<JobId, BTreeMap<Due, Timestamp>>,
}

impl Table {
    fn take(&mut self, order: Order) {
        match order {
            Order::Set(job, due, at) => {
                if let Some(before) = self.by_job.entry(job.clone()).or_default().insert(due, at) {
                    self.by_time.remove(&(before, job.clone(), due));
                }
                self.by_time.insert((at, job, due));
            }
            Order::Disarm(job) => {
                for (due, at) in self.by_job.remove(&job).unwrap_or_default() {
                    self.by_time.remove(&(at, job.clone(), due));
                }
            }
        }
    }

    /// Take out the first timer that is due.
    fn pop(&mut self, now: Timestamp) -> Option<(JobId, Due)> {
        let first = self.by_time.first().filter(|(at, ..)| *at <= now)?.clone();
        self.by_time.remove(&first);
        let (_, job, due) = first;
        if let Some(of_job) = self.by_job.get_mut(&job) {
            of_job.remove(&due);
            if of_job.is_empty() {
                self.by_job.remove(&job);
            }
        }
        Some((job, due))
    }

    /// How long nothing is due, as far as the clock is trusted.
    fn pause(&self, now: Timestamp) -> Duration {
        let next = self.by_time.first().map_or(LOOK_MS, |(at, ..)| at.ms_since(now) + 1);
        Duration::from_millis(next.min(LOOK_MS))
    }
}

async fn run(handle: Handle<Master>, mut queue: mpsc::UnboundedReceiver<Order>) {
    let mut table = Table::default();
    loop {
        while let Some((job, due)) = table.pop(SystemClock.now()) {
            let command = match due {
                Due::Wake { step } => Command::Wake { job, step },
                Due::Deadline => Command::DeadlinePassed { job },
            };
            if let Err(late) = handle.send(command).await {
                tracing::debug!(%late, "a timer of no use");
            }
        }
        tokio::select! {
            order = queue.recv() => match order {
                Some(order) => table.take(order),
                None => return,
            },
            () = tokio::time::sleep(table.pause(SystemClock.now())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_due_in_order_once_and_go_with_their_job() {
        let mut table = Table::default();
        let job = |name: &str| JobId::parse(name).unwrap();
        table.take(Order::Set(job("a"), Due::Deadline, Timestamp(9_000)));
        table.take(Order::Set(job("a"), Due::Wake { step: 0 }, Timestamp(5_000)));
        table.take(Order::Set(job("b"), Due::Deadline, Timestamp(7_000)));
        table.take(Order::Set(job("b"), Due::Deadline, Timestamp(8_000)));
        assert_eq!(table.pause(Timestamp(0)), Duration::from_millis(6));
        assert_eq!(table.pop(Timestamp(4_999)), None);
        assert_eq!(table.pop(Timestamp(8_000)), Some((job("a"), Due::Wake { step: 0 })));
        assert_eq!(table.pop(Timestamp(8_000)), Some((job("b"), Due::Deadline)));
        assert_eq!(table.pop(Timestamp(8_000)), None);
        table.take(Order::Disarm(job("a")));
        assert_eq!(table.pop(Timestamp(99_000)), None);
        assert!(table.by_job.is_empty() && table.by_time.is_empty());
    }
}
