//! News of jobs, reports that are owed, orders to stop: case by case.

use super::*;
use crate::machine::ids::TypeName;
use crate::machine::master::tests::{FULL, World, outcome, packed, won};
use crate::machine::master::{Command, SubmitAnswer, Verdict};
use crate::machine::outcome::Outcome;
use PeerState::{Ended, Running, Unknown};

fn party(name: &str) -> PartyId {
    PartyId::parse(name).unwrap()
}

fn task(name: &str) -> TaskId {
    TaskId::parse(name).unwrap()
}

fn announced(status: Standing, over: bool, chosen: usize) -> Announced {
    Announced {
        proposal: Some(ProposalId::parse("p1-20261122212634-1-coo_1").unwrap()),
        status,
        asked: 3,
        accepted: 2,
        chosen: u32::try_from(chosen).unwrap(),
        revision: 7,
        over,
        ..Announced::default()
    }
}

fn news_of(status: Standing, over: bool, states: &[(&str, PeerState)]) -> News {
    let chosen = (0..).zip(states).map(|(n, (name, state))| {
        let reason = if *state == Ended(End::Failed) { "it broke" } else { "" };
        (party(name), task(&format!("trainer_{n}")), *state, reason.to_owned())
    });
    News {
        announced: Some(announced(status, over, states.len())),
        chosen: chosen.collect(),
    }
}

/// News for random histories; 3 of 4 is the last that ever comes.
pub(in crate::machine::master) fn news(how: u8) -> News {
    match how % 4 {
        0 => News {
            announced: None,
            chosen: Vec::new(),
        },
        1 => news_of(Standing::Open, false, &[]),
        2 => news_of(Standing::Accepted, false, &[("p2", Running), ("p3", Unknown)]),
        _ => news_of(
            Standing::Accepted,
            true,
            &[("p2", Ended(End::Failed)), ("p3", Ended(End::Succeeded))],
        ),
    }
}

fn proposing() -> (World, JobId) {
    let mut world = World::new(false);
    let job = world.submit(crate::machine::plan::Plan { endpoints: 0, ..FULL });
    let result = Ok(packed(true));
    world
        .send(Command::Prepared {
            job: job.clone(),
            step: 0,
            result,
        })
        .unwrap();
    (world, job)
}

fn accepted(world: &mut World, job: &JobId) {
    let command = Command::Verdict {
        job: job.clone(),
        step: 1,
        verdict: Verdict::Accepted,
    };
    world.send(command).unwrap();
}

fn tell(world: &mut World, job: &JobId, news: News) -> Result<Reply, Rejection> {
    world.send(Command::News { job: job.clone(), news })
}

fn peer(world: &World, job: &JobId, name: &str) -> Peer {
    match &world.ended[&Key::Peer(job.clone(), party(name))] {
        Record::Peer(peer) => peer.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_is_followed_from_its_proposal_to_the_last_end_even_after_its_own() {
    let (mut world, job) = proposing();
    assert!(world.pending.contains(&Effect::Follow {
        job: job.clone(),
        after: 0
    }));
    assert_eq!(tell(&mut world, &job, news(0)), Ok(Reply::Known), "it is on its way");
    assert_eq!(tell(&mut world, &job, news(1)), Ok(Reply::Done));
    accepted(&mut world, &job);
    assert_eq!(tell(&mut world, &job, news(2)), Ok(Reply::Done));
    assert_eq!(tell(&mut world, &job, news(2)), Ok(Reply::Known), "nothing new, nothing written");
    assert_eq!((peer(&world, &job, "p2").state, peer(&world, &job, "p3").state), (Running, Unknown));

    // The job ends on its own; the others do not matter for that.
    let key = TaskKey::parse(job.as_str(), "aggregator").unwrap();
    let answer = SubmitAnswer::Taken;
    world
        .send(Command::Submitted {
            key: key.clone(),
            tries: 0,
            answer,
        })
        .unwrap();
    let outcome = Outcome::without_process(End::Succeeded, "");
    world.send(Command::TaskEnded { key, outcome }).unwrap();
    assert!(matches!(&world.ended[&Key::Job(job.clone())], Record::Job(job) if job.state == JobState::Succeeded));

    world.crash();
    assert_eq!(
        world.pending,
        [Effect::Follow {
            job: job.clone(),
            after: 7
        }]
    );
    assert_eq!(tell(&mut world, &job, news(3)), Ok(Reply::Done));
    let failed = peer(&world, &job, "p2");
    assert_eq!(
        (failed.state, failed.reason.as_str(), failed.task.as_str()),
        (Ended(End::Failed), "it broke", "trainer_0")
    );
    world.crash();
    assert_eq!(world.pending, []);
    assert!(matches!(tell(&mut world, &job, news(2)), Err(Rejection::Late(_))));
    assert_eq!(peer(&world, &job, "p2").state, Ended(End::Failed));
    world.check_replay();
}

#[test]
fn what_a_coordinator_does_not_know_is_not_waited_for() {
    // The verdict is there, and no proposal: its data directory was replaced.
    let (mut world, job) = proposing();
    accepted(&mut world, &job);
    tell(&mut world, &job, news(2)).unwrap();
    assert_eq!(tell(&mut world, &job, news(0)), Ok(Reply::Done));
    let over = Announced {
        over: true,
        ..announced(Standing::Accepted, false, 2)
    };
    assert_eq!(world.ended[&Key::Announced(job.clone())], Record::Announced(over));
    // A job that fails before its proposal is known is asked for once more, from the start.
    let (mut world, job) = proposing();
    world.pending.clear();
    let verdict = Verdict::Refused("too large".to_owned());
    world
        .send(Command::Verdict {
            job: job.clone(),
            step: 1,
            verdict,
        })
        .unwrap();
    assert!(world.pending.contains(&Effect::Follow {
        job: job.clone(),
        after: 0
    }));
    assert_eq!(tell(&mut world, &job, news(0)), Ok(Reply::Done));
    assert!(matches!(tell(&mut world, &job, news(0)), Err(Rejection::Late(_))));
    // A FedVision 0.1 coordinator tells nothing.
    let (mut world, job) = proposing();
    world.send(Command::LegacyProposal { job: job.clone(), step: 1 }).unwrap();
    let unknown = Announced {
        over: true,
        ..Announced::default()
    };
    assert_eq!(world.ended[&Key::Announced(job.clone())], Record::Announced(unknown));
    accepted(&mut world, &job);
    assert!(matches!(tell(&mut world, &job, news(3)), Err(Rejection::Late(_))));
}

#[test]
fn news_are_bounded_and_an_end_stays() {
    let (mut world, job) = proposing();
    accepted(&mut world, &job);
    let mut many = news(1);
    many.chosen = (0..PEERS_MAX + 5)
        .map(|n| (party(&format!("q{n}")), task("t"), Running, "x".repeat(REASON_MAX + 9)))
        .collect();
    tell(&mut world, &job, many).unwrap();
    let peers: Vec<_> = world.ended.values().filter(|record| matches!(record, Record::Peer(_))).collect();
    assert_eq!(peers.len(), PEERS_MAX);
    assert_eq!(peer(&world, &job, "q0").reason.len(), REASON_MAX);
    let ended = News {
        announced: Some(announced(Standing::Accepted, false, 1)),
        ..news_of(Standing::Accepted, false, &[("p2", Ended(End::Failed))])
    };
    tell(&mut world, &job, ended).unwrap();
    let back = news_of(Standing::Accepted, false, &[("p2", Running)]);
    tell(&mut world, &job, back).unwrap();
    assert_eq!(peer(&world, &job, "p2").state, Ended(End::Failed));
}

/// A task of another party's job, fetched; its key and its proposal.
fn fetched(world: &mut World) -> (TaskKey, ProposalId) {
    let proposal = ProposalId::parse("p2-20261122212634-4-coo_4").unwrap();
    let job_type = TypeName::parse("program").unwrap();
    let offered = Command::Offered {
        proposal: proposal.clone(),
        job_type,
    };
    world.send(offered).unwrap();
    let won = won("p2-20261122212634-4", "trainer_0");
    let key = won.key.clone();
    let (proposal_id, result) = (proposal.clone(), Ok(won));
    world
        .send(Command::Fetched {
            proposal: proposal_id,
            result,
        })
        .unwrap();
    world.pending.clear();
    (key, proposal)
}

/// The effect of what is owed on a proposal, which is this.
fn report(world: &World, proposal: &ProposalId, state: PeerState) -> Effect {
    let Some(Record::Report(owed)) = world.live.get(&Key::Report(proposal.clone())) else {
        panic!("nothing is owed on {proposal}")
    };
    assert_eq!(owed.state, state);
    Effect::Report {
        proposal: proposal.clone(),
        number: owed.number,
    }
}

fn answered(effect: &Effect) -> Command {
    let Effect::Report { proposal, number } = effect.clone() else {
        panic!("{effect:?}")
    };
    Command::Reported { proposal, number }
}

#[test]
fn a_won_task_is_reported_running_and_ended_until_the_coordinator_has_it() {
    let mut world = World::new(false);
    let (key, proposal) = fetched(&mut world);
    let answer = SubmitAnswer::Taken;
    world
        .send(Command::Submitted {
            key: key.clone(),
            tries: 0,
            answer,
        })
        .unwrap();
    let running = report(&world, &proposal, Running);
    assert!(world.pending.contains(&running));
    // It ends before that is sent: the end takes its place, and the answer to the first report is late.
    world
        .send(Command::TaskEnded {
            key: key.clone(),
            outcome: outcome(End::Failed),
        })
        .unwrap();
    assert_eq!(world.pending.last(), Some(&report(&world, &proposal, Ended(End::Failed))));
    let late = world.send(answered(&running));
    assert!(matches!(late, Err(Rejection::Late(_))));
    world.crash();
    assert_eq!(world.pending, [report(&world, &proposal, Ended(End::Failed))]);
    let Record::Report(owed) = &world.live[&Key::Report(proposal.clone())] else {
        panic!()
    };
    assert_eq!((&owed.key, owed.reason.as_str()), (&key, "why"));
    let told = answered(&report(&world, &proposal, Ended(End::Failed)));
    world.send(told).unwrap();
    assert!(!world.live.contains_key(&Key::Report(proposal.clone())));
    world.crash();
    assert_eq!(world.pending, []);
    world.check_replay();
}

fn order(world: &mut World, proposal: &ProposalId, key: &TaskKey) -> Result<Reply, Rejection> {
    world.send(Command::StopOrdered {
        proposal: proposal.clone(),
        key: key.clone(),
        reason: "not needed".to_owned(),
    })
}

#[test]
fn an_order_stops_the_task_wherever_it_is_and_always_ends_in_a_report() {
    // Running: stopped through the cluster manager, then reported.
    let mut world = World::new(false);
    let (key, proposal) = fetched(&mut world);
    let answer = SubmitAnswer::Taken;
    world
        .send(Command::Submitted {
            key: key.clone(),
            tries: 0,
            answer,
        })
        .unwrap();
    world.pending.clear();
    order(&mut world, &proposal, &key).unwrap();
    let stop = Effect::Cancel {
        key: key.clone(),
        reason: "not needed".to_owned(),
    };
    assert_eq!(world.pending, [stop]);
    assert_eq!(order(&mut world, &proposal, &key), Ok(Reply::Known));
    world
        .send(Command::TaskEnded {
            key: key.clone(),
            outcome: outcome(End::Cancelled),
        })
        .unwrap();
    assert_eq!(world.pending.last(), Some(&report(&world, &proposal, Ended(End::Cancelled))));
    // Ended and told: told again, since it is asked for.
    let told = answered(&report(&world, &proposal, Ended(End::Cancelled)));
    world.send(told.clone()).unwrap();
    world.pending.clear();
    order(&mut world, &proposal, &key).unwrap();
    let again = report(&world, &proposal, Ended(End::Cancelled));
    assert_eq!(world.pending, std::slice::from_ref(&again));
    let late = world.send(told);
    assert!(
        matches!(late, Err(Rejection::Late(_))),
        "the first answer says nothing of the second report"
    );
    assert_eq!(report(&world, &proposal, Ended(End::Cancelled)), again);
    assert_eq!(order(&mut world, &proposal, &key), Ok(Reply::Known), "it is on its way");

    // Not fetched yet: what the fetch brings is not taken any more.
    let mut world = World::new(false);
    let job_type = TypeName::parse("program").unwrap();
    world
        .send(Command::Offered {
            proposal: proposal.clone(),
            job_type,
        })
        .unwrap();
    order(&mut world, &proposal, &key).unwrap();
    assert_eq!(world.pending.last(), Some(&report(&world, &proposal, Ended(End::Cancelled))));
    let result = Ok(won(key.job.as_str(), "trainer_0"));
    let late = world.send(Command::Fetched {
        proposal: proposal.clone(),
        result,
    });
    assert!(matches!(late, Err(Rejection::Late(_))));
    assert!(!world.live.contains_key(&Key::Task(key.clone())));

    // Never heard of: the coordinator is told so, or it would order for ever.
    let mut world = World::new(false);
    order(&mut world, &proposal, &key).unwrap();
    assert_eq!(world.pending, [report(&world, &proposal, Ended(End::Cancelled))]);

    // A task of that name that came another way is nobody else's to stop.
    let mut world = World::new(false);
    let (key, _) = fetched(&mut world);
    let other = ProposalId::parse("p2-20261122212634-4-coo_5").unwrap();
    order(&mut world, &other, &key).unwrap();
    assert_eq!(world.pending, [report(&world, &other, Ended(End::Cancelled))]);
    assert!(matches!(&world.live[&Key::Task(key)], Record::Task(task) if task.state == TaskState::Queued));
}

#[test]
fn records_stay_below_the_limit_of_a_value() {
    let long = || "x".repeat(200);
    let peer = Peer {
        job: JobId::parse(long()).unwrap(),
        party: party(&long()),
        task: task(&long()),
        state: Ended(End::Failed),
        reason: "x".repeat(REASON_MAX),
        changed_at: Timestamp(u64::MAX),
    };
    let report = Report {
        key: TaskKey::parse(long(), long()).unwrap(),
        state: Ended(End::Failed),
        reason: "x".repeat(REASON_MAX),
        number: u64::MAX,
    };
    let announced = Announced {
        proposal: Some(ProposalId::parse(long()).unwrap()),
        reason: "x".repeat(REASON_MAX),
        ..announced(Standing::Accepted, false, 256)
    };
    for record in [Record::Peer(peer), Record::Report(report), Record::Announced(announced)] {
        let size = serde_json::to_vec(&record).unwrap().len();
        assert!(size < 2048, "{size}: {record:?}");
    }
}
