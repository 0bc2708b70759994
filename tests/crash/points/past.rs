//! Data directories as a role left them some time ago: what only time brings about cannot be waited for.

use crate::support::{DEADLINE, beginning};
use fedbroker::engine::clock::{Clock, SystemClock};
use fedbroker::engine::{Engine, Parts};
use fedbroker::machine::Machine;
use fedbroker::machine::ids::Timestamp;
use fedbroker::store::directory::Directory;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::space::Space;
use fedbroker::supervisor::Supervisor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What goes by from one command to the next.
const STEP: Duration = Duration::from_secs(2);

/// In the ids of jobs, so that the commands can name them.
pub const STAMP: &str = "20200101000000";

/// The clock of then.
struct Then(AtomicU64);

impl Clock for Then {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(u64::try_from(STEP.as_micros()).unwrap(), Ordering::Relaxed))
    }

    fn stamp(&self, _: Timestamp) -> String {
        STAMP.to_owned()
    }

    fn random(&self) -> u64 {
        1
    }
}

/// Make a data directory with the real engine, in which these commands were taken so long ago.
pub async fn make<M: Machine>(dir: &Path, role: &'static str, machine: M, ago: Duration, commands: Vec<M::Command>) {
    let supervisor = Supervisor::new();
    {
        let directory = Directory::open(dir, role, [7; 16]).unwrap();
        let then = SystemClock.now().0 - u64::try_from(ago.as_micros()).unwrap();
        let parts = Parts {
            machine,
            store: Arc::new(SledStore::open(&directory).unwrap()),
            payloads: Arc::new(Payloads::open(&directory.payload_dir(), 1 << 20).unwrap()),
            clock: Arc::new(Then(AtomicU64::new(then))),
            space: Space::unlimited(),
        };
        let engine = Engine::recover(parts).unwrap();
        let handle = engine.handle();
        engine.start(&supervisor, Box::new(drop)).unwrap();
        for command in commands {
            let said = format!("{command:?}");
            if let Err(refusal) = handle.send(command).await {
                panic!("{said} is refused: {refusal:?}");
            }
        }
    }
    // The loop lets go of it once it has seen that the handle is gone.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let alone = beginning();
        if Directory::open(dir, role, [7; 16]).is_ok() {
            return;
        }
        drop(alone);
        assert!(Instant::now() < deadline, "{} stays held", dir.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
