//! The queue of jobs that wait for endpoints: the first in order asks the cluster manager first.
//!
//! Called by `submitter`. One round asks for the jobs in order; while everything is granted it asks for many at once, after a refusal one by
//! one, and only for jobs that want fewer endpoints than were refused: the others would get the same answer. So a job that wants more than there is
//! holds up nobody. Nor do the others hold up it: once it has waited for long and a worker could have what it wants, nobody behind it is asked for,
//! until what others have is back and it gets its endpoints. A new round begins after a pause, or when endpoints went back.

use super::call::Failed;
use super::submitter::Submitter;
use super::turns::Order;
use crate::machine::ids::JobId;
use crate::machine::master::records::Lease;
use crate::wire::connect::Backoff;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Jobs asked for at once while there is room.
const AT_ONCE: usize = 64;
/// Jobs that were not asked for and are told why all the same, the first in order: a note is an event.
const TOLD: usize = 8;

/// A job that waits for endpoints.
#[derive(Clone)]
struct Seeker {
    job: JobId,
    step: u32,
    endpoints: u16,
    since: Instant,
}

type Answer = Result<Lease, String>;

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Order, (Seeker, oneshot::Sender<Answer>)>,
    /// A call for it is out: it cannot be taken back before that is answered.
    asking: BTreeMap<Order, bool>,
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leases {
    queue: Arc<Mutex<Queue>>,
    bell: Arc<Notify>,
    /// How long a job is passed over by others.
    patience: Duration,
}

/// What a round of asking has come to.
#[derive(Default)]
struct Round {
    /// Everybody before this has been looked at.
    after: Option<Order>,
    /// As many endpoints were refused, and so would be more.
    refused: Option<u16>,
    /// Nobody else is to be asked for, and why.
    over: Option<String>,
    granted: bool,
}

impl Round {
    /// A job was refused its endpoints.
    fn refused(&mut self, seeker: &Seeker, busy: bool, patience: Duration, why: &str) {
        self.refused = Some(self.refused.map_or(seeker.endpoints, |least| least.min(seeker.endpoints)));
        if busy && seeker.since.elapsed() >= patience {
            self.over = Some(format!("job {} has waited longer: {why}", seeker.job));
        }
    }

    /// Nobody was there to ask.
    fn unanswered(&mut self, why: &str) {
        self.over = Some(why.to_owned());
    }
}

impl Leases {
    /// An empty queue, in which a job is passed over by others for so long.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            queue: Arc::default(),
            bell: Arc::default(),
            patience,
        }
    }

    /// Queue up; the receiver fails once the job is [withdrawn](Leases::withdraw) and nothing is asked for it any more.
    pub(super) fn seek(&self, order: Order, job: JobId, step: u32, endpoints: u16) -> oneshot::Receiver<Answer> {
        let (sender, answer) = oneshot::channel();
        let seeker = Seeker {
            job,
            step,
            endpoints,
            since: Instant::now(),
        };
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

    /// The next jobs of a round that may be granted what they want, marked as asked for. The last of them may be one that is passed over no longer.
    fn next(&self, round: &Round, count: usize) -> Vec<(Order, Seeker)> {
        self.locked(|queue| {
            let mut next = Vec::new();
            for (order, (seeker, _)) in &queue.waiting {
                let is_later = round.after.is_none_or(|after| *order > after);
                if !is_later || round.refused.is_some_and(|refused| seeker.endpoints >= refused) {
                    continue;
                }
                next.push((*order, seeker.clone()));
                if next.len() == count || seeker.since.elapsed() >= self.patience {
                    break;
                }
            }
            queue.asking.extend(next.iter().map(|(order, _)| (*order, false)));
            next
        })
    }

    /// Some who were not asked for, the first in order.
    fn passed(&self, asked: &BTreeSet<Order>) -> Vec<Seeker> {
        self.locked(|queue| {
            let passed = queue.waiting.iter().filter(|(order, _)| !asked.contains(order));
            passed.take(TOLD).map(|(_, (seeker, _))| seeker.clone()).collect()
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
    pub(super) async fn run(self, submitter: Arc<Submitter>) {
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

    /// Ask for all in order, as far as there may be room. True when somebody was granted something.
    async fn round(&self, submitter: &Submitter) -> bool {
        let (mut round, mut asked, mut at_once, mut last) = (Round::default(), BTreeSet::new(), 1, None);
        while round.over.is_none() {
            let next = self.next(&round, at_once);
            let Some((order, _)) = next.last() else { break };
            round.after = Some(*order);
            at_once = (at_once * 2).min(AT_ONCE);
            let asking = next.into_iter().map(|(order, seeker)| async move {
                let answer = submitter.ask_lease(&seeker.job, seeker.endpoints).await;
                (order, seeker, answer)
            });
            for (order, seeker, answer) in join_all(asking).await {
                asked.insert(order);
                let why = match answer {
                    Ok(lease) => {
                        round.granted = true;
                        self.answered(order, Some(Ok(lease)));
                        continue;
                    }
                    Err(Failed::Refused(why) | Failed::Unreadable(why)) => {
                        self.answered(order, Some(Err(why)));
                        continue;
                    }
                    Err(Failed::Waiting(why)) => {
                        round.refused(&seeker, false, self.patience, &why);
                        why
                    }
                    Err(Failed::Busy(why)) => {
                        round.refused(&seeker, true, self.patience, &why);
                        why
                    }
                    Err(Failed::Passing(why)) => {
                        round.unanswered(&why);
                        why
                    }
                };
                at_once = 1;
                self.answered(order, None);
                submitter.note(&seeker.job, seeker.step, why.clone()).await;
                last = Some(why);
            }
        }
        if let Some(why) = round.over.or(last) {
            for seeker in self.passed(&asked) {
                submitter.note(&seeker.job, seeker.step, why.clone()).await;
            }
        }
        round.granted
    }
}

#[cfg(test)]
mod tests {
    use super::super::turns::tests::aged;
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn queue(patience: Duration, endpoints: &[u16]) -> Leases {
        let leases = Leases::new(patience);
        for (number, endpoints) in endpoints.iter().enumerate() {
            let job = JobId::parse(format!("p-{number}")).unwrap();
            drop(leases.seek(Order::at(number as u64), job, 0, *endpoints));
        }
        leases
    }

    /// Who is asked for, when a manager has so many endpoints free, and grants more once others go back, up to `most`.
    fn asked(leases: &Leases, mut free: u16, most: u16) -> (Vec<u16>, bool) {
        let (mut round, mut asked) = (Round::default(), Vec::new());
        while round.over.is_none() {
            let next = leases.next(&round, 1);
            let Some((order, seeker)) = next.into_iter().next() else { break };
            round.after = Some(order);
            asked.push(seeker.endpoints);
            if seeker.endpoints <= free {
                free -= seeker.endpoints;
                leases.answered(order, Some(Err(String::new())));
            } else {
                round.refused(&seeker, seeker.endpoints <= most, leases.patience, "no room");
                leases.answered(order, None);
            }
        }
        (asked, round.over.is_some())
    }

    #[test]
    fn jobs_that_want_more_than_there_is_hold_up_nobody() {
        // Many more than a round of any fixed length would get past.
        let mut wanted = vec![30; 100];
        wanted.extend([25, 3, 4, 2, 5, 1]);
        let leases = queue(LONG, &wanted);
        let (asked, over) = asked(&leases, 5, 20);
        assert_eq!((asked, over), (vec![30, 25, 3, 4, 2, 1], false));
        assert_eq!(leases.locked(|queue| queue.waiting.len()), 104, "two were granted");
    }

    #[test]
    fn a_job_that_was_passed_over_for_long_gets_what_goes_back() {
        let leases = queue(Duration::ZERO, &[30, 20, 1, 1]);
        // The first never fits and is passed over for ever; the second would, and nobody after it is asked for.
        assert_eq!(asked(&leases, 19, 20), (vec![30, 20], true));
        assert_eq!(asked(&leases, 20, 20), (vec![30, 20, 1], true));
    }

    #[test]
    fn whoever_has_waited_for_long_is_asked_for_before_a_higher_one() {
        let minutes = Duration::from_secs(60);
        for (waited, first) in [(4, 2), (6, 1)] {
            let leases = Leases::new(LONG);
            for job in [aged(2, waited, 1), aged(1, 0, 0)] {
                drop(leases.seek(Order::of(&job, 5 * minutes), job.id.clone(), 0, 1));
            }
            let (_, seeker) = leases.next(&Round::default(), 1).remove(0);
            assert_eq!(
                seeker.job.as_str(),
                format!("p-{first}"),
                "a point of priority is worth five minutes, after {waited}"
            );
        }
    }

    #[test]
    fn nobody_is_asked_for_together_with_those_behind_one_that_waits_for_long() {
        let leases = queue(Duration::ZERO, &[5, 1, 1]);
        assert_eq!(leases.next(&Round::default(), AT_ONCE).len(), 1);
        let leases = queue(LONG, &[5, 1, 1]);
        assert_eq!(leases.next(&Round::default(), AT_ONCE).len(), 3);
    }
}
