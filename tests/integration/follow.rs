//! Who follows the log hears of a commit once it is durable, and before anybody is answered.

use fedbroker::engine::clock::SystemClock;
use fedbroker::engine::projection::Projection;
use fedbroker::engine::{Engine, Handle, Parts, Refusal};
use fedbroker::machine::content::Content;
use fedbroker::machine::ids::{PartyId, TypeName};
use fedbroker::machine::master::records::{JobState, Provenance, Spec};
use fedbroker::machine::master::{Command, Key, Master, Record, Reply, Rules};
use fedbroker::machine::plan::Plan;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sim_store::{Fate, SimDisk};
use fedbroker::store::space::Space;
use fedbroker::supervisor::Supervisor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The jobs as a projection sees them, and the commits it was told of.
#[derive(Clone, Default)]
struct Jobs(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    records: BTreeMap<Key, Record>,
    commits: Vec<u64>,
}

impl Projection<Master> for Jobs {
    fn changed(&mut self, key: &Key, record: Option<&Record>) {
        let records = &mut self.0.lock().unwrap().records;
        match record {
            Some(record) => records.insert(key.clone(), record.clone()),
            None => records.remove(key),
        };
    }

    fn committed(&mut self, seq: u64) {
        self.0.lock().unwrap().commits.push(seq);
    }
}

impl Jobs {
    fn commits(&self) -> Vec<u64> {
        self.0.lock().unwrap().commits.clone()
    }

    fn states(&self) -> Vec<&'static str> {
        let told = self.0.lock().unwrap();
        let states = told.records.values().filter_map(|record| match record {
            Record::Job(job) => Some(job.state.name()),
            _ => None,
        });
        states.collect()
    }
}

fn start(disk: &SimDisk, dir: &tempfile::TempDir, supervisor: &Supervisor) -> (Handle<Master>, Jobs) {
    let rules = Rules {
        party: PartyId::parse("p1").unwrap(),
        accept: Default::default(),
        propose_again: false,
        submit_tries: 3,
    };
    let parts = Parts {
        machine: Master::new(rules),
        store: Arc::new(disk.open().unwrap()),
        payloads: Arc::new(Payloads::open(dir.path(), 1 << 20).unwrap()),
        clock: Arc::new(SystemClock),
        space: Space::unlimited(),
    };
    let (mut engine, jobs) = (Engine::recover(parts).unwrap(), Jobs::default());
    engine.project(Box::new(jobs.clone()));
    let handle = engine.handle();
    engine.start(supervisor, Box::new(drop)).unwrap();
    (handle, jobs)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_told_once_it_is_durable() {
    let (disk, dir, supervisor) = (SimDisk::new(), tempfile::tempdir().unwrap(), Supervisor::new());
    let (handle, jobs) = start(&disk, &dir, &supervisor);
    let mut head = handle.head();
    assert_eq!((*head.borrow_and_update(), handle.reader().first_seq()), (0, 1));

    disk.hold_next_barrier();
    let held = async {
        let held = disk.clone();
        Supervisor::blocking(move || held.wait_for_held()).await.unwrap();
        assert!(jobs.commits().is_empty() && !head.has_changed().unwrap(), "its barrier is out");
        disk.release();
    };
    let (reply, ()) = tokio::join!(handle.send(submit()), held);
    let Reply::Accepted(job) = reply.unwrap() else { panic!() };
    assert_eq!((jobs.commits(), jobs.states()), (vec![1], vec!["leasing"]));
    assert_eq!(*head.borrow_and_update(), 1);

    // A record that ends is told as it has ended, though it leaves memory with this commit.
    let never = Command::Leased {
        job: job.clone(),
        step: 0,
        result: Err("there are no ports".to_owned()),
    };
    handle.send(never.clone()).await.unwrap();
    let known = jobs.0.lock().unwrap().records.get(&Key::Job(job.clone())).cloned();
    assert!(matches!(known, Some(Record::Job(ended)) if matches!(ended.state, JobState::Failed(_))));
    assert_eq!(jobs.commits().last(), Some(&*head.borrow_and_update()));

    // A refused command commits nothing.
    let told = jobs.commits();
    assert!(matches!(handle.send(never).await, Err(Refusal::Rejected(_))));
    assert!(jobs.commits() == told && !head.has_changed().unwrap());

    disk.fail_next_barrier(Fate::Kept);
    assert!(matches!(handle.send(submit()).await, Err(Refusal::Unknown)));
    assert_eq!(jobs.commits(), told, "nobody may see what may be gone after the restart");
    while head.changed().await.is_ok() {}
    assert_eq!(Some(*head.borrow()), told.last().copied());

    // A restart goes on from what is durable.
    let (handle, jobs) = start(&disk, &dir, &Supervisor::new());
    let found = *handle.head().borrow();
    assert_eq!(found, told.last().unwrap() + 1);
    handle.send(submit()).await.unwrap();
    assert_eq!(jobs.commits(), [found + 1]);
}
