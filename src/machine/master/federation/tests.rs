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

/// What is known of a proposal nothing more will come of; its place in the log is another test's.
fn kept_of(world: &World, job: &JobId) -> Announced {
    let Record::Announced(announced) = &world.ended[&Key::Announced(job.clone())] else {
        panic!()
    };
    assert!(announced.last_event > 0);
    Announced {
        last_event: 0,
        ..announced.clone()
    }
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
    assert_eq!(kept_of(&world, &job), over);
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
    assert_eq!(kept_of(&world, &job), unknown);
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
        ..news_of(Standing::Accepted, false, &[("q0", Ended(End::Failed))])
    };
    tell(&mut world, &job, ended).unwrap();
    let back = news_of(Standing::Accepted, false, &[("q0", Running)]);
    tell(&mut world, &job, back).unwrap();
    assert_eq!(peer(&world, &job, "q0").state, Ended(End::Failed));
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

fn purge(world: &mut World, job: &JobId, parties: Vec<PartyId>) -> Result<Reply, Rejection> {
    let tasks = ["aggregator", "trainer_1"].map(|name| TaskKey::parse(job.as_str(), name).unwrap());
    let (job, tasks) = (job.clone(), tasks.to_vec());
    world.send(Command::Purge { job, tasks, parties })
}

fn kept(world: &World) -> usize {
    let keys = world.live.keys().chain(world.ended.keys());
    keys.filter(|key| matches!(key, Key::Announced(_) | Key::Peer(..))).count()
}

#[test]
fn a_purge_takes_what_is_known_of_the_other_parties() {
    for over in [3, 2] {
        let (mut world, job) = proposing();
        tell(&mut world, &job, news(over)).unwrap();
        let verdict = Verdict::Refused("too large".to_owned());
        let (id, step) = (job.clone(), 1);
        world.send(Command::Verdict { job: id, step, verdict }).unwrap();
        let parties = world.parties_of(&job);
        assert_eq!((parties.len(), kept(&world)), (2, 3));
        if over == 2 {
            // News came between the look at the store and the purge: one would be left behind.
            let purged = purge(&mut world, &job, parties[..1].to_vec());
            assert!(matches!(purged, Err(Rejection::NotEnded { .. })));
            assert_eq!(kept(&world), 3);
        }
        assert_eq!(purge(&mut world, &job, parties), Ok(Reply::Done));
        assert_eq!(kept(&world), 0);
        assert!(matches!(tell(&mut world, &job, news(2)), Err(Rejection::Late(_))));
        world.crash();
        assert!(!world.pending.iter().any(|effect| matches!(effect, Effect::Follow { .. })));
        world.check_replay();
    }
}

/// The last news came between the look at the store and the purge.
#[test]
fn a_purge_leaves_no_party_behind_that_came_meanwhile() {
    let (mut world, job) = proposing();
    tell(&mut world, &job, news(1)).unwrap();
    cancel(&mut world, &job);
    world.send(Command::Withdrawn { job: job.clone() }).unwrap();
    let looked = world.parties_of(&job);
    tell(&mut world, &job, news(3)).unwrap();
    assert!(!world.live.contains_key(&Key::Announced(job.clone())), "nothing more comes");
    assert!(matches!(purge(&mut world, &job, looked), Err(Rejection::NotEnded { .. })));
    let parties = world.parties_of(&job);
    assert_eq!((parties.len(), purge(&mut world, &job, parties)), (2, Ok(Reply::Done)));
    assert_eq!(kept(&world), 0);
}

/// Whatever a coordinator tells: the parties it named stay as many as are kept, and as many as the purge looks for.
#[test]
fn parties_that_change_or_repeat_are_counted_once_and_are_bounded() {
    let (mut world, job) = proposing();
    tell(
        &mut world,
        &job,
        news_of(Standing::Accepted, false, &[("p2", Running), ("p2", Running)]),
    )
    .unwrap();
    let counted = |world: &World| match &world.live[&Key::Announced(job.clone())] {
        Record::Announced(announced) => announced.chosen as usize,
        other => panic!("{other:?}"),
    };
    assert_eq!((counted(&world), world.parties_of(&job).len()), (1, 1));
    for round in 0..3 {
        let names: Vec<String> = (0..PEERS_MAX).map(|n| format!("x{round}-{n}")).collect();
        let states: Vec<_> = names.iter().map(|name| (name.as_str(), Running)).collect();
        tell(&mut world, &job, news_of(Standing::Accepted, false, &states)).unwrap();
        assert_eq!((counted(&world), world.parties_of(&job).len()), (PEERS_MAX, PEERS_MAX));
    }
    cancel(&mut world, &job);
    let parties = world.parties_of(&job);
    assert_eq!(purge(&mut world, &job, parties), Ok(Reply::Done));
    assert_eq!(kept(&world), 0);
    assert!(
        world.live.contains_key(&Key::Withdrawal(job.clone())),
        "the coordinator is told all the same"
    );
    assert_eq!(world.send(Command::Withdrawn { job }), Ok(Reply::Done));
    world.check_replay();
}

fn cancel(world: &mut World, job: &JobId) {
    let (job, reason) = (job.clone(), "enough".to_owned());
    world.send(Command::Cancel { job, reason }).unwrap();
}

#[test]
fn the_coordinator_is_told_of_a_cancelled_job_until_it_knows() {
    for running in [false, true] {
        let (mut world, job) = proposing();
        if running {
            accepted(&mut world, &job);
        }
        cancel(&mut world, &job);
        let withdraw = Effect::Withdraw { job: job.clone() };
        assert!(world.pending.contains(&withdraw), "{:?}", world.pending);
        let Record::Withdrawal(owed) = &world.live[&Key::Withdrawal(job.clone())] else {
            panic!()
        };
        assert_eq!((owed.job_type.as_str(), owed.reason.as_str()), ("program", "enough"));
        world.crash();
        assert!(world.pending.contains(&withdraw), "asked again after a crash");
        // The question for news was faster than the withdrawal, which leaves a verdict behind in any case.
        assert_eq!(tell(&mut world, &job, news(0)), Ok(Reply::Known));
        let told = Command::Withdrawn { job: job.clone() };
        world.pending.clear();
        assert_eq!(world.send(told.clone()), Ok(Reply::Done));
        let after = 0;
        let asked = Effect::Follow { job: job.clone(), after };
        assert_eq!(world.pending, [asked]);
        assert!(matches!(world.send(told), Err(Rejection::Late(_))));
        world.crash();
        assert!(!world.pending.contains(&withdraw));
        world.check_replay();
    }
}

#[test]
fn the_coordinator_is_told_of_a_job_whose_deadline_passed() {
    let mut world = World::new(false);
    let plan = crate::machine::plan::Plan { endpoints: 0, ..FULL };
    let job = world.submit_until(plan, Timestamp(world.now + 1000));
    let (id, step, result) = (job.clone(), 0, Ok(packed(true)));
    world.send(Command::Prepared { job: id, step, result }).unwrap();
    accepted(&mut world, &job);
    world.now += 1000;
    world.send(Command::DeadlinePassed { job: job.clone() }).unwrap();
    assert!(
        world.pending.contains(&Effect::Withdraw { job: job.clone() }),
        "{:?}",
        world.pending
    );
    let Record::Withdrawal(owed) = &world.live[&Key::Withdrawal(job)] else {
        panic!()
    };
    assert_eq!(owed.reason, "the deadline passed while the job was running");
}

#[test]
fn nobody_is_told_of_a_job_that_was_not_proposed_or_that_nobody_has() {
    let withdraws = |world: &World| world.pending.iter().any(|effect| matches!(effect, Effect::Withdraw { .. }));
    // Never proposed.
    let mut world = World::new(false);
    let job = world.submit(FULL);
    cancel(&mut world, &job);
    assert!(!withdraws(&world));
    // At a FedVision 0.1 coordinator.
    let (mut world, job) = proposing();
    world.send(Command::LegacyProposal { job: job.clone(), step: 1 }).unwrap();
    cancel(&mut world, &job);
    assert!(!withdraws(&world));
    // Every party has said how its task ended.
    let (mut world, job) = proposing();
    accepted(&mut world, &job);
    tell(&mut world, &job, news(3)).unwrap();
    cancel(&mut world, &job);
    assert!(!withdraws(&world));
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
