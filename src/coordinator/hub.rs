//! What is volatile in a coordinator: the streams of the parties, the calls that wait for a close, those who follow jobs, the timers.
//!
//! Filled by `service`, driven by the effects of the machine. Everything in it may vanish with the process: parties come back, callers ask
//! again, timers are set again from the records. It must never decide anything, and never wait for a slow party.

use super::convert;
use crate::engine::Handle;
use crate::engine::clock::Clock;
use crate::machine::coordinator::{Command, Coordinator, Effect, Order};
use crate::machine::ids::{JobId, PartyId, Timestamp};
use crate::supervisor::{Policy, Supervisor};
use crate::wire::fedbroker::v1 as ours;
use crate::wire::fedvision::framework::coordinator::subscribe;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Offers that may wait for a party to read them. A party that is so far behind is cut off: it comes back and is offered what is open.
pub(super) const STREAM_BUFFER: usize = 256;

/// The most jobs that are followed, over all streams; about 1 KiB of memory each with the longest ids.
const FOLLOWED_MAX: usize = 100_000;

/// What goes down a party's stream of orders.
pub(super) type Told = Result<ours::Order, tonic::Status>;
/// What goes down a party's stream.
pub(super) type Item = Result<subscribe::Rep, tonic::Status>;

#[derive(Default)]
struct Volatile {
    stopped: bool,
    streams: HashMap<u64, Stream>,
    waits: HashMap<JobId, watch::Sender<()>>,
    follows: HashMap<JobId, HashMap<u64, Bell>>,
    /// Entries in `follows`.
    followed: usize,
    listeners: HashMap<PartyId, Listener>,
}

/// Where a party hears its orders.
struct Listener {
    session: u64,
    /// Identity of its data directory.
    instance: String,
    sender: mpsc::Sender<Told>,
    /// Dropped to tell the stream's task to end.
    _end: oneshot::Sender<Infallible>,
}

/// The jobs of one follow stream that have changed since it looked: each once, so at most as many as it follows.
#[derive(Clone, Default)]
pub(super) struct Bell {
    changed: Arc<Mutex<BTreeSet<JobId>>>,
    rung: Arc<Notify>,
}

impl Bell {
    fn ring(&self, job: &JobId) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone());
        self.rung.notify_one();
    }

    /// Resolves once something has changed.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// What has changed.
    pub(super) fn take(&self) -> BTreeSet<JobId> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Stream {
    sender: mpsc::Sender<Item>,
    /// Dropped to tell the stream's task to end.
    _end: oneshot::Sender<Infallible>,
}

/// The volatile side of a coordinator.
pub(super) struct Hub {
    volatile: Mutex<Volatile>,
    next_session: AtomicU64,
}

impl Hub {
    /// Session numbers are made of the epoch of the store, so that none is ever used twice in a data directory.
    pub(super) fn new(epoch: u64) -> Arc<Self> {
        Arc::new(Self {
            volatile: Mutex::default(),
            next_session: AtomicU64::new((epoch << 32) | 1),
        })
    }

    /// A session number.
    pub(super) fn session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Let offers for a session go down this channel. The receiver resolves when the stream is to end; [`Hub::end`] must follow.
    pub(super) fn open(&self, session: u64, sender: mpsc::Sender<Item>) -> oneshot::Receiver<Infallible> {
        let (end, ended) = oneshot::channel();
        let mut volatile = self.lock();
        if !volatile.stopped {
            volatile.streams.insert(session, Stream { sender, _end: end });
        }
        ended
    }

    /// The stream has ended.
    pub(super) fn end(&self, session: u64) {
        self.lock().streams.remove(&session);
    }

    /// Wait for the close of a job's proposal. Must be taken before the command that finds it open, so that the close is not missed.
    pub(super) fn wait(self: &Arc<Self>, job: JobId) -> Wait {
        let mut volatile = self.lock();
        let closed = if volatile.stopped {
            watch::channel(()).1
        } else {
            volatile
                .waits
                .entry(job.clone())
                .or_insert_with(|| watch::channel(()).0)
                .subscribe()
        };
        Wait {
            hub: self.clone(),
            job,
            closed: Some(closed),
        }
    }

    /// End all streams and wake all calls: the role stops. Follow streams look at the supervisor themselves.
    pub(super) fn stop(&self) {
        let mut volatile = self.lock();
        volatile.stopped = true;
        volatile.streams.clear();
        volatile.waits.clear();
        volatile.listeners.clear();
    }

    /// Ring when something of the job has changed. Must be called before its records are read. False if no more can be followed.
    pub(super) fn follow(&self, session: u64, bell: &Bell, job: &JobId) -> bool {
        let mut volatile = self.lock();
        if volatile.followed >= FOLLOWED_MAX {
            return false;
        }
        let bells = volatile.follows.entry(job.clone()).or_default();
        if bells.insert(session, bell.clone()).is_none() {
            volatile.followed += 1;
        }
        true
    }

    /// No more.
    pub(super) fn unfollow<'a>(&self, session: u64, jobs: impl Iterator<Item = &'a JobId>) {
        let mut volatile = self.lock();
        for job in jobs {
            let Some(bells) = volatile.follows.get_mut(job) else { continue };
            let (gone, empty) = (bells.remove(&session).is_some(), bells.is_empty());
            if empty {
                volatile.follows.remove(job);
            }
            volatile.followed -= usize::from(gone);
        }
    }

    /// Something of the job has changed.
    pub(super) fn changed(&self, job: &JobId) {
        if let Some(bells) = self.lock().follows.get(job) {
            bells.values().for_each(|bell| bell.ring(job));
        }
    }

    /// Orders to this party go down this channel, and no longer down another. Must be called before the open ones are read. The receiver
    /// resolves when the stream is to end; [`Hub::unlisten`] must follow.
    pub(super) fn listen(
        &self,
        session: u64,
        party: &PartyId,
        instance: &str,
        sender: mpsc::Sender<Told>,
    ) -> oneshot::Receiver<Infallible> {
        let (end, ended) = oneshot::channel();
        let mut volatile = self.lock();
        if !volatile.stopped {
            let listener = Listener {
                session,
                instance: instance.to_owned(),
                sender,
                _end: end,
            };
            volatile.listeners.insert(party.clone(), listener);
        }
        ended
    }

    /// The stream has ended.
    pub(super) fn unlisten(&self, session: u64, party: &PartyId) {
        let mut volatile = self.lock();
        if volatile.listeners.get(party).is_some_and(|listener| listener.session == session) {
            volatile.listeners.remove(party);
        }
    }

    fn order(&self, party: &PartyId, job: &JobId, order: &Order) {
        let mut volatile = self.lock();
        let Some(listener) = volatile.listeners.get(party).filter(|listener| listener.instance == order.instance) else {
            return;
        };
        if let Err(error) = listener.sender.try_send(Ok(convert::order(job, order))) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                tracing::warn!(%party, session = listener.session, "party does not read its orders, cut off");
            }
            volatile.listeners.remove(party);
        }
    }

    fn offer(&self, session: u64, offer: subscribe::Rep) {
        let mut volatile = self.lock();
        let Some(stream) = volatile.streams.get(&session) else { return };
        if let Err(error) = stream.sender.try_send(Ok(offer)) {
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                tracing::warn!(session, buffered = STREAM_BUFFER, "party does not read its offers, cut off");
            }
            volatile.streams.remove(&session);
        }
    }

    fn wake(&self, job: &JobId) {
        self.lock().waits.remove(job);
    }

    /// No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, Volatile> {
        self.volatile.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits for a close.
pub(super) struct Wait {
    hub: Arc<Hub>,
    job: JobId,
    closed: Option<watch::Receiver<()>>,
}

impl Wait {
    /// Resolves at the close, or when the role stops.
    pub(super) async fn closed(mut self) {
        if let Some(closed) = &mut self.closed {
            // Nothing is ever sent: the end of the channel is the news.
            let _ = closed.changed().await;
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.closed = None;
        let mut volatile = self.hub.lock();
        if volatile.waits.get(&self.job).is_some_and(|sender| sender.receiver_count() == 0) {
            volatile.waits.remove(&self.job);
        }
    }
}

/// Executes the effects of the machine.
pub(super) struct Executor {
    pub(super) hub: Arc<Hub>,
    pub(super) handle: Handle<Coordinator>,
    pub(super) supervisor: Supervisor,
    pub(super) clock: Arc<dyn Clock>,
}

impl Executor {
    /// Until the role stops. The queue is not bounded, since the loop must not wait for it; every effect is handled in microseconds.
    pub(super) async fn run(self, mut effects: mpsc::UnboundedReceiver<Effect>) {
        while let Some(effect) = effects.recv().await {
            match effect {
                Effect::Offer {
                    session,
                    proposal,
                    job_type,
                    ..
                } => {
                    let status = subscribe::Status::Success.into();
                    let (proposal_id, job_type) = (proposal.to_string(), job_type.to_string());
                    self.hub.offer(
                        session,
                        subscribe::Rep {
                            status,
                            proposal_id,
                            job_type,
                        },
                    );
                }
                Effect::CloseStream { session, .. } => self.hub.end(session),
                Effect::Closed { job } => {
                    self.hub.wake(&job);
                    self.hub.changed(&job);
                }
                Effect::Changed { job } => self.hub.changed(&job),
                Effect::Order { party, job, order } => self.hub.order(&party, &job, &order),
                Effect::CloseAt { job, at } => self.send_at(at, Command::Close { job }),
                Effect::ExpireAt { job, at } => self.send_at(at, Command::Expire { job }),
            }
        }
    }

    fn send_at(&self, at: Timestamp, command: Command) {
        // At least what is left: a millisecond is the grain of the timer.
        let left = Duration::from_micros(at.0.saturating_sub(self.clock.now().0));
        let handle = self.handle.clone();
        self.supervisor.spawn("proposal timer", Policy::Ordinary, async move {
            tokio::time::sleep(left).await;
            if let Err(error) = handle.send(command).await {
                tracing::debug!(%error, "timer without effect");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobId {
        JobId::parse("j").unwrap()
    }

    #[test]
    fn a_slow_reader_is_cut_off_and_others_are_not() {
        let hub = Hub::new(1);
        let (sender, mut receiver) = mpsc::channel(1);
        let mut ended = hub.open(7, sender);
        hub.offer(7, subscribe::Rep::default());
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        hub.offer(7, subscribe::Rep::default());
        assert_eq!(ended.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(receiver.try_recv().is_ok());
        hub.offer(8, subscribe::Rep::default());
    }

    #[tokio::test]
    async fn a_close_wakes_all_and_leaves_nothing() {
        let hub = Hub::new(1);
        let waits = [hub.wait(job()), hub.wait(job())];
        drop(hub.wait(job()));
        assert_eq!(hub.lock().waits.len(), 1);
        hub.wake(&job());
        for wait in waits {
            wait.closed().await;
        }
        drop(hub.wait(job()));
        assert!(hub.lock().waits.is_empty());
    }

    #[tokio::test]
    async fn a_stopped_hub_holds_nobody() {
        let hub = Hub::new(1);
        let before = hub.wait(job());
        hub.stop();
        before.closed().await;
        hub.wait(job()).closed().await;
        assert!(hub.open(1, mpsc::channel(1).0).await.is_err());
    }

    #[test]
    fn sessions_never_repeat_over_starts() {
        assert!(Hub::new(2).session() > Hub::new(1).session() + 1_000_000_000);
    }
}
