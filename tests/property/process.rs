//! One process on the simulated disk: an engine with its thread, its door, and the effects it hands on.

use crate::harness::{Standing, World};
use fedbroker::engine::clock::Clock;
use fedbroker::engine::reader::{ENDED, LIVE, record_key};
use fedbroker::engine::{Engine, Handle, Parts, Refusal};
use fedbroker::machine::Machine;
use fedbroker::machine::ids::Timestamp;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sim_store::SimDisk;
use fedbroker::store::space::Space;
use fedbroker::store::{Error as StoreError, codec};
use fedbroker::supervisor::Supervisor;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Where answers and effects are handed out.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Longer than any step of a history takes on a loaded machine: over it, something hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Time as the history says; it also holds the loop back until a whole burst is in its queue, so that the burst is one turn.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<Times>, Condvar)>);

#[derive(Default)]
struct Times {
    now: u64,
    closed: bool,
    taken: usize,
}

/// A number that follows from the time, so that two runs of a history draw the same.
pub fn random_at(now: u64) -> u64 {
    (now ^ (now >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Gate {
    pub fn set(&self, now: u64) {
        self.0.0.lock().unwrap().now = now;
    }

    pub fn close(&self) {
        self.0.0.lock().unwrap().closed = true;
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap().closed = false;
        self.0.1.notify_all();
    }

    /// Commands the engine has taken so far.
    pub fn taken(&self) -> usize {
        self.0.0.lock().unwrap().taken
    }
}

impl Clock for Gate {
    fn now(&self) -> Timestamp {
        let (times, opened) = &*self.0;
        let times = opened.wait_while(times.lock().unwrap(), |times| times.closed).unwrap();
        Timestamp(times.now)
    }

    fn stamp(&self, _: Timestamp) -> String {
        "20261122212634".to_owned()
    }

    fn random(&self) -> u64 {
        let mut times = self.0.0.lock().unwrap();
        times.taken += 1;
        random_at(times.now)
    }
}

pub type Answer<M> = Result<<M as Machine>::Reply, Refusal<<M as Machine>::Rejection>>;

/// Something whose answer is out.
pub struct Waiting<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    answer: Option<T>,
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<T> Waiting<T> {
    /// Begin: the first poll puts it into the queue.
    fn begin(future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut waiting = Waiting {
            future: Box::pin(future),
            answer: None,
        };
        waiting.is_answered();
        waiting
    }

    pub fn is_answered(&mut self) -> bool {
        if self.answer.is_none() {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            if let Poll::Ready(answer) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.answer = Some(answer);
            }
        }
        self.answer.is_some()
    }

    pub fn wait(mut self) -> T {
        let until = Instant::now() + DEADLINE;
        while !self.is_answered() {
            assert!(Instant::now() < until, "a command is never answered");
            std::thread::park_timeout(DEADLINE);
        }
        self.answer.expect("it is answered")
    }
}

/// An engine at work. Dropped, it is a process that was killed: the disk keeps what is durable.
pub struct Process<W: World> {
    pub handle: Option<Handle<W::Machine>>,
    pub supervisor: Supervisor,
    gate: Gate,
    effects: Receiver<<W::Machine as Machine>::Effect>,
    complaints: Arc<Mutex<Vec<String>>>,
    strict: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl<W: World> Process<W> {
    pub fn recover(disk: &SimDisk, dir: &Path, gate: &Gate) -> Result<Starting<W>, StoreError> {
        let payloads = Arc::new(Payloads::open(dir, 1 << 20).unwrap());
        let engine = Engine::recover(Parts {
            machine: W::machine(),
            store: Arc::new(disk.open()?),
            payloads: payloads.clone(),
            clock: Arc::new(gate.clone()),
            space: Space::unlimited(),
        })?;
        Ok(Starting {
            engine,
            payloads,
            disk: disk.clone(),
            gate: gate.clone(),
        })
    }

    pub fn send(&self, command: <W::Machine as Machine>::Command) -> Waiting<Answer<W::Machine>> {
        let handle = self.handle.clone().expect("the process lives");
        Waiting::begin(async move { handle.send(command).await })
    }

    /// Let go of events; gives the first one there is then, unless the store failed.
    pub fn trim(&self, to: u64) -> Waiting<Option<u64>> {
        let handle = self.handle.clone().expect("the process lives");
        Waiting::begin(async move { handle.trim(to).await.ok() })
    }

    /// Hold every effect to come against the present record alone; a command after it in the same commit may have moved that on.
    pub fn be_strict(&self, strict: bool) {
        self.strict.store(strict, Ordering::SeqCst);
    }

    /// Effects handed on so far.
    pub fn effects(&self) -> Vec<<W::Machine as Machine>::Effect> {
        let complaints = self.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "effects without a durable record: {complaints:?}");
        self.effects.try_iter().collect()
    }

    /// A failed store stops the role.
    pub fn has_stopped(&self) {
        let until = Instant::now() + DEADLINE;
        while !self.supervisor.is_stopped() {
            assert!(Instant::now() < until, "a failed store does not stop the role");
            std::thread::yield_now();
        }
    }

    /// Wait until the loop has ended.
    pub fn end(&mut self) {
        self.gate.open();
        self.handle = None;
        assert!(
            self.ended.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected),
            "the loop never ends"
        );
        let complaints = self.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "effects without a durable record: {complaints:?}");
    }
}

/// A recovered engine that has not begun.
pub struct Starting<W: World> {
    pub engine: Engine<W::Machine>,
    pub payloads: Arc<Payloads>,
    disk: SimDisk,
    gate: Gate,
}

impl<W: World> Starting<W> {
    pub fn start(self) -> Process<W> {
        let (sender, effects) = channel();
        let (alive, ended) = channel();
        let (complaints, strict) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let process = Process {
            handle: Some(self.engine.handle()),
            supervisor: Supervisor::new(),
            gate: self.gate,
            effects,
            complaints: Arc::clone(&complaints),
            strict: Arc::clone(&strict),
            ended,
        };
        let sink = sink::<W>(self.disk, sender, alive, complaints, strict);
        let _entered = RUNTIME.enter();
        self.engine.start(&process.supervisor, sink).unwrap();
        process
    }
}

/// Takes effects, and holds each against what a power cut at this moment would leave on the disk.
fn sink<W: World>(
    disk: SimDisk,
    sender: Sender<<W::Machine as Machine>::Effect>,
    alive: Sender<()>,
    complaints: Arc<Mutex<Vec<String>>>,
    strict: Arc<AtomicBool>,
) -> fedbroker::engine::EffectSink<W::Machine> {
    Box::new(move |effect| {
        let _alive = &alive;
        let read = |key: &<W::Machine as Machine>::Key| {
            let bytes = W::Machine::key_bytes(key);
            let stored = [LIVE, ENDED].iter().find_map(|kind| disk.durable(&record_key(*kind, &bytes)));
            stored.map(|bytes| codec::decode(&bytes).unwrap())
        };
        let standing = W::standing(&effect, &read);
        if standing == Standing::Never || standing == Standing::Earlier && strict.load(Ordering::SeqCst) {
            complaints.lock().unwrap().push(format!("{effect:?}: {standing:?}"));
        }
        let _ = sender.send(effect);
    })
}
