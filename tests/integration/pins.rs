//! A caller that goes away while its command waits must not take the payload files of that command with it.

use fedbroker::engine::clock::SystemClock;
use fedbroker::engine::{Engine, Parts};
use fedbroker::machine::content::Content;
use fedbroker::machine::ids::{PartyId, TypeName};
use fedbroker::machine::master::spec::{Provenance, Spec};
use fedbroker::machine::master::{Command, Master, Rules};
use fedbroker::machine::plan::Plan;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sim_store::SimDisk;
use fedbroker::store::space::Space;
use fedbroker::supervisor::Supervisor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn engine(disk: &SimDisk, dir: &Path) -> (Engine<Master>, Arc<Payloads>) {
    let rules = Rules {
        party: PartyId::parse("p1").unwrap(),
        accept: Default::default(),
        propose_again: false,
        submit_tries: 3,
    };
    let payloads = Arc::new(Payloads::open(dir, 1 << 20).unwrap());
    let parts = Parts {
        machine: Master::new(rules),
        store: Arc::new(disk.open().unwrap()),
        payloads: payloads.clone(),
        clock: Arc::new(SystemClock),
        space: Space::unlimited(),
    };
    (Engine::recover(parts).unwrap(), payloads)
}

fn submit(config: Content) -> Command {
    let plan = Plan {
        endpoints: 0,
        workers: 0,
        wait_s: 0,
    };
    Command::Submit {
        spec: Spec::plain(TypeName::parse("dummy").unwrap(), config, None, plan),
        provenance: Provenance::unknown(),
        fingerprint: [0; 32],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_its_files_behind() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let supervisor = Supervisor::new();
    let (recovered, payloads) = engine(&disk, dir.path());
    let handle = recovered.handle();
    recovered.start(&supervisor, Box::new(drop)).unwrap();

    // While the barrier of a first turn is held, a second command waits, and its caller goes.
    disk.hold_next_barrier();
    let second = async {
        let held = disk.clone();
        Supervisor::blocking(move || held.wait_for_held()).await.unwrap();
        let pin = payloads.put(&[7; 9000]).unwrap();
        let command = submit(Content::Stored(*pin));
        let gone = tokio::time::timeout(Duration::from_millis(50), handle.send_pinned(command, vec![pin])).await;
        assert!(gone.is_err(), "the barrier is held");
        disk.release();
    };
    let (first, ()) = tokio::join!(handle.send(submit(Content::default())), second);
    first.unwrap();
    // A third command is answered after the second, whose caller is gone.
    handle.send(submit(Content::default())).await.unwrap();
    supervisor.stop();
    let (again, _) = engine(&disk, dir.path());
    assert_eq!(again.report.payloads, 1, "the job of the second command keeps its file");
}
