//! What the initiator shows of the other parties, with every role killed on the way.

use crate::federation::remains::History;
use crate::gated::{Gated, replace_worker};
use crate::points::{at_rest, open_of_master};
use crate::support::{DEADLINE, Federation, Role};
use fedbroker::machine::coordinator::{self, AssignmentState, Coordinator};
use fedbroker::machine::ids::{JobId, PartyId};
use fedbroker::machine::master::federation::{PeerState, Standing};
use fedbroker::machine::master::{Key, Master, Record};
use fedbroker::machine::outcome::End;
use serde_json::json;
use std::time::{Duration, Instant};

async fn said(role: &Role, what: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !role.log().contains(what) {
        assert!(Instant::now() < deadline, "{} never said {what:?}\n{}", role.name, role.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_initiator_shows_how_every_party_ended_whoever_was_killed() {
    let mut federation = Federation::planned(3, &[], &[]);
    let nothing = federation.dir.path().join("nothing-installed");
    replace_worker(&mut federation, 2, 4, 4, &nothing);
    federation.start_all().await;
    let gated = Gated::install(&federation);
    gated.shut("trainer");
    let client = federation.client(0);
    let config = json!({ "program": "gated", "proposal_wait_time": 1, "worker_num": 3, "params": {} });
    let job = client.submit("program", &config).await;
    gated.until_runs(&job, "trainer", 2).await;
    // The third has failed at once, told or not. Nobody is left who could hear how the others end.
    federation.coordinator.kill().await;
    federation.parties[1].master.kill().await;
    federation.parties[0].master.kill().await;
    gated.open("trainer");
    federation.parties[1].master.start().await;
    federation.parties[0].master.start().await;
    let ended = client.ended(&job).await;
    assert_eq!(ended["state"], "success", "a job does not wait for the others: {ended}");
    federation.coordinator.start().await;
    let last = "every party has said how its task ended";
    said(&federation.parties[0].master, last).await;

    let dir = federation.dir.path().to_owned();
    let left: History<Master> = at_rest(&mut federation.parties[0].master, &dir.join("p1-master"), "master", open_of_master).await;
    let id = JobId::parse(job.clone()).unwrap();
    let Some(Record::Announced(announced)) = left.records.get(&Key::Announced(id.clone())) else {
        panic!("nothing is known of the proposal")
    };
    assert_eq!((announced.status, announced.over), (Standing::Accepted, true));
    assert_eq!((announced.asked, announced.accepted, announced.chosen), (3, 3, 3));
    let peer = |name: &str| match left.records.get(&Key::Peer(id.clone(), PartyId::parse(name).unwrap())) {
        Some(Record::Peer(peer)) => peer.clone(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(peer("p1").state, PeerState::Ended(End::Succeeded));
    assert_eq!(peer("p2").state, PeerState::Ended(End::Succeeded));
    let failed = peer("p3");
    assert_eq!(failed.state, PeerState::Ended(End::Failed));
    assert!(
        failed.reason.contains("program gated is not installed at worker p3-worker"),
        "{failed:?}"
    );

    // Everybody has told what it owed, and the coordinator has it.
    for (n, party) in federation.parties.iter_mut().enumerate().skip(1) {
        let data = dir.join(format!("p{}-master", n + 1));
        let left: History<Master> = at_rest(&mut party.master, &data, "master", open_of_master).await;
        assert!(!left.records.values().any(|record| matches!(record, Record::Report(_))));
    }
    let open = |history: &History<Coordinator>| {
        let states = history.records.values().filter_map(|record| match record {
            coordinator::Record::Assignment(assignment) => Some(assignment),
            _ => None,
        });
        let open = states.filter(|assignment| !matches!(assignment.state, AssignmentState::Ended(_)));
        open.map(|assignment| format!("{assignment:?}")).collect()
    };
    at_rest::<Coordinator>(&mut federation.coordinator, &dir.join("coordinator"), "coordinator", open).await;
}
