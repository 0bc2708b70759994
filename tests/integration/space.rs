//! A disk that fills up under an engine: what is refused and what goes on, and that nothing is shown that may not be durable.

use fedbroker::engine::clock::SystemClock;
use fedbroker::engine::{Condition, Engine, Handle, Parts, Refusal};
use fedbroker::machine::content::Content;
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TypeName};
use fedbroker::machine::master::spec::{Provenance, Spec};
use fedbroker::machine::master::{Command, Key, Master, Record, Reply, Rules};
use fedbroker::machine::plan::Plan;
use fedbroker::store::Error;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sim_store::{Fate, SimDisk};
use fedbroker::store::space::{FULL, LOW, SLACK, Space};
use fedbroker::supervisor::Supervisor;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

struct Role {
    handle: Handle<Master>,
    supervisor: Supervisor,
    free: Arc<AtomicU64>,
}

fn start(disk: &SimDisk, dir: &Path, free: u64) -> Role {
    let rules = Rules {
        party: PartyId::parse("p1").unwrap(),
        accept: Default::default(),
        propose_again: false,
        submit_tries: 3,
    };
    let free = Arc::new(AtomicU64::new(free));
    let probed = free.clone();
    let space = Space::asking(dir, move || Ok(probed.load(Ordering::Relaxed)));
    let parts = Parts {
        machine: Master::new(rules),
        store: Arc::new(disk.open().unwrap()),
        payloads: Arc::new(Payloads::open_within(dir, 1 << 20, space.clone()).unwrap()),
        clock: Arc::new(SystemClock),
        space,
    };
    let engine = Engine::recover(parts).unwrap();
    let (handle, supervisor) = (engine.handle(), Supervisor::new());
    engine.start(&supervisor, Box::new(drop)).unwrap();
    Role { handle, supervisor, free }
}

/// A job that needs endpoints, so that it stays under way.
fn submit() -> Command {
    let plan = Plan {
        endpoints: 1,
        workers: 0,
        wait_s: 0,
    };
    Command::Submit {
        spec: Spec::plain(TypeName::parse("dummy").unwrap(), Content::default(), None, plan),
        provenance: Provenance::unknown(),
        fingerprint: [0; 32],
    }
}

fn note(job: &JobId) -> Command {
    let (job, note) = (job.clone(), "waiting".to_owned());
    Command::Note { job, step: 0, note }
}

fn offer() -> Command {
    Command::Offered {
        proposal: ProposalId::parse("other-1").unwrap(),
        job_type: TypeName::parse("dummy").unwrap(),
    }
}

impl Role {
    async fn submitted(&self) -> JobId {
        match self.handle.send(submit()).await {
            Ok(Reply::Accepted(job)) => job,
            other => panic!("{other:?}"),
        }
    }

    /// Send until the answer fits: the free space is not asked for each command.
    async fn until(
        &self,
        command: impl Fn() -> Command,
        fits: impl Fn(&Result<Reply, Refusal<fedbroker::machine::master::Rejection>>) -> bool,
    ) {
        let began = Instant::now();
        loop {
            let answer = self.handle.send(command()).await;
            if fits(&answer) {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "the last answer: {answer:?}");
        }
    }

    async fn ends_once_there_is_space(&self) {
        self.free.store(FULL + SLACK, Ordering::Relaxed);
        tokio::time::timeout(DEADLINE, self.supervisor.stopped())
            .await
            .expect("it ends once there is space");
        let why = self.supervisor.clone().run().await.unwrap_err();
        assert!(why.downcast_ref::<Error>().is_some_and(Error::is_full), "{why:#}");
    }

    fn job(&self, job: &JobId) -> Option<Record> {
        self.handle.reader().get(&Key::Job(job.clone())).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_floor_nothing_new_is_taken_and_what_was_begun_goes_on() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let role = start(&disk, dir.path(), LOW - 1);
    let job = role.submitted().await;
    role.free.store(FULL - 1, Ordering::Relaxed);
    role.until(submit, |answer| matches!(answer, Err(Refusal::DiskFull))).await;
    assert!(matches!(role.handle.send(offer()).await, Err(Refusal::DiskFull)));
    assert!(matches!(role.handle.send(note(&job)).await, Ok(Reply::Done)), "work that was begun");
    assert!(role.job(&job).is_some());
    assert_eq!(role.handle.condition(), Condition::Working);
    role.free.store(FULL + SLACK, Ordering::Relaxed);
    role.until(submit, Result::is_ok).await;
    assert!(role.handle.send(offer()).await.is_ok());
    assert!(!role.supervisor.is_stopped());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_the_role_read_only_until_there_is_space() {
    for fate in [Fate::Lost, Fate::Kept] {
        let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
        let role = start(&disk, dir.path(), u64::MAX);
        let job = role.submitted().await;
        let before = role.job(&job);
        role.free.store(0, Ordering::Relaxed);
        disk.fill_at_next_barrier(fate);
        assert!(matches!(role.handle.send(note(&job)).await, Err(Refusal::Unknown)));
        assert_eq!(role.handle.condition(), Condition::ReadOnly);
        for command in [submit(), note(&job), offer()] {
            assert!(matches!(role.handle.send(command).await, Err(Refusal::DiskFull)));
        }
        assert_eq!(role.job(&job), before, "as of the last durable commit");
        assert!(!role.supervisor.is_stopped(), "it ended while the disk was full");
        role.ends_once_there_is_space().await;
        let again = start(&disk, dir.path(), u64::MAX);
        assert_ne!(again.job(&job), None);
        assert_eq!(again.job(&job) == before, fate == Fate::Lost, "a restart finds out");
    }
}

/// Nobody sends a command that would find out.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_beside_commits_makes_the_role_read_only_too() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let role = start(&disk, dir.path(), u64::MAX);
    let job = role.submitted().await;
    role.free.store(0, Ordering::Relaxed);
    disk.fill_beside_commits();
    assert!(matches!(role.handle.send(note(&job)).await, Ok(Reply::Done)), "it was durable");
    let began = Instant::now();
    while role.handle.condition() == Condition::Working {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(role.handle.condition(), Condition::ReadOnly);
    assert!(role.job(&job).is_some());
    assert!(matches!(role.handle.send(note(&job)).await, Err(Refusal::DiskFull)));
    role.ends_once_there_is_space().await;
}
