//! The queue of jobs that wait for endpoints: the first in order asks the cluster manager first.
//!
//! Called by `submitter`. One round asks for the jobs in order; while everything is granted it asks for many at once, after a refusal one by
//! one, and after some refusals in a row it ends, since there is no room. A new round begins after a pause, or when endpoints went back.

use super::submitter::{Failed, Submitter};
use super::turns::Order;
use crate::machine::ids::JobId;
use crate::machine::master::records::Lease;
use crate::wire::connect::Backoff;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Jobs asked for at once while there is room.
const AT_ONCE: usize = 64;
/// Refusals in a row that end a round: more than one, since a job that wants fewer endpoints may fit where the first does not.
const REFUSALS: usize = 8;

/// A job that waits for endpoints.
#[derive(Clone)]
struct Seeker {
    job: JobId,
    step: u32,
    endpoints: u16,
}

type Answer = Result<Lease, String>;

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Order, (Seeker, oneshot::Sender<Answer>)>,
    /// A call for it is out: it cannot be taken back before that is answered.
    asking: BTreeMap<Order, bool>,
}

/// The queue. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Leases {
    queue: Arc<Mutex<Queue>>,
    bell: Arc<Notify>,
}

impl Leases {
    /// Queue up; the receiver fails once the job is [withdrawn](Leases::withdraw) and nothing is asked for it any more.
    pub(super) fn seek(&self, order: Order, job: JobId, step: u32, endpoints: u16) -> oneshot::Receiver<Answer> {
        let (sender, answer) = oneshot::channel();
        let seeker = Seeker { job, step, endpoints };
        self.locked(|queue| drop(queue.waiting.insert(order, (seeker, sender))));
        self.bell.notify_one();
        answer
    }

    /// Ask no more for a job. A call that is out is waited for, so that what follows comes after it at the cluster manager.
    pub(super) fn withdraw(&self, order: Order) {
        self.locked(|queue| match queue.asking.get_mut(&order) {
            Some(withdrawn) => *withdrawn = true,
            None => drop(queue.waiting.remove(&order)),
        });
    }

    /// Endpoints went back: whoever is first may have them.
    pub(super) fn freed(&self) {
        if self.locked(|queue| !queue.waiting.is_empty()) {
            self.bell.notify_one();
        }
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next jobs after a place in the order, marked as asked for.
    fn next(&self, after: Option<Order>, count: usize) -> Vec<(Order, Seeker)> {
        self.locked(|queue| {
            let later = queue.waiting.iter().filter(|(order, _)| after.is_none_or(|after| **order > after));
            let next: Vec<_> = later.take(count).map(|(order, (seeker, _))| (*order, seeker.clone())).collect();
            queue.asking.extend(next.iter().map(|(order, _)| (*order, false)));
            next
        })
    }

    /// A call was answered; `None` when the job waits on.
    fn answered(&self, order: Order, answer: Option<Answer>) {
        self.locked(|queue| {
            let withdrawn = queue.asking.remove(&order).unwrap_or(false);
            if let Some(answer) = answer {
                if let Some((_, sender)) = queue.waiting.remove(&order) {
                    let _ = sender.send(answer);
                }
            } else if withdrawn {
                queue.waiting.remove(&order);
            }
        });
    }

    /// Serve the queue until the role stops.
    pub(super) async fn run(self, submitter: Submitter) {
        let mut backoff = Backoff::new();
        loop {
            if self.locked(|queue| queue.waiting.is_empty()) {
                self.bell.notified().await;
                backoff.reset();
            }
            if self.round(&submitter).await {
                backoff.reset();
            }
            if self.locked(|queue| !queue.waiting.is_empty()) {
                let pause = backoff.delay();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.bell.notified() => {}
                }
            }
        }
    }

    /// Ask for all in order, until there is no room. True when somebody was granted something.
    async fn round(&self, submitter: &Submitter) -> bool {
        let (mut after, mut at_once, mut refusals, mut granted) = (None, 1, 0, false);
        while refusals < REFUSALS {
            let next = self.next(after, at_once);
            let Some((last, _)) = next.last() else { return granted };
            after = Some(*last);
            let asked = next.into_iter().map(|(order, seeker)| async move {
                let answer = submitter.ask_lease(&seeker.job, seeker.endpoints).await;
                (order, seeker, answer)
            });
            let mut refused = false;
            for (order, seeker, answer) in join_all(asked).await {
                match answer {
                    Ok(lease) => {
                        granted = true;
                        self.answered(order, Some(Ok(lease)));
                    }
                    Err(Failed::Refused(why)) => self.answered(order, Some(Err(why))),
                    Err(Failed::Waiting(why) | Failed::Passing(why)) => {
                        refused = true;
                        refusals += 1;
                        self.answered(order, None);
                        submitter.note(&seeker.job, seeker.step, why).await;
                    }
                }
            }
            if refused {
                at_once = 1;
            } else {
                refusals = 0;
                at_once = (at_once * 2).min(AT_ONCE);
            }
        }
        granted
    }
}
