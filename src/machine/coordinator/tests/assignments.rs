//! After the draw: reports, orders, cancellations.

use super::*;
use crate::machine::outcome::{End, REASON_MAX};
use AssignmentState::{Ended, Given, Running};

fn propose_of(owner: &str, name: &str, tasks: u32, min: u32, max: u32) -> Command {
    match propose(name, tasks, 5, min, max) {
        Command::Propose {
            job_id,
            job_type,
            tasks,
            wait_s,
            min,
            max,
            fingerprint,
            ..
        } => Command::Propose {
            job_id,
            job_type,
            tasks,
            wait_s,
            min,
            max,
            fingerprint,
            owner: Some(owner.to_owned()),
        },
        other => panic!("{other:?}"),
    }
}

fn report(name: &str, task: &str, state: AssignmentState) -> Command {
    Command::Report {
        party: party(name),
        job: job("j"),
        proposal: proposal("j-coo_1"),
        task: TaskId::parse(task).unwrap(),
        instance: format!("of {name}"),
        state,
        reason: String::new(),
    }
}

fn cancel(owner: &str, name: &str) -> Command {
    Command::Cancel {
        job: job(name),
        job_type: kind("dummy"),
        owner: owner.to_owned(),
        reason: "no longer wanted".to_owned(),
    }
}

fn stop(name: &str) -> Command {
    Command::Stop {
        job: job("j"),
        party: party(name),
        reason: "no longer wanted".to_owned(),
    }
}

/// Two parties of ours and one of 0.1, all of them chosen for a job of "initiator".
fn closed() -> World {
    let mut world = World::new();
    for (session, (name, instance)) in (1..).zip([("a", Some("of a")), ("b", Some("of b")), ("old", None)]) {
        world.reply(subscribe(name, session, instance));
    }
    world.reply(propose_of("initiator", "j", 3, 3, 3));
    for name in ["a", "b", "old"] {
        world.reply(fetch(name, "j-coo_1"));
    }
    world.reply(close("j"));
    world
}

fn assignment(world: &World, name: &str) -> Assignment {
    match &world.ended[&Key::Assignment(job("j"), party(name))] {
        Record::Assignment(assignment) => assignment.clone(),
        other => panic!("{other:?}"),
    }
}

fn task_of(world: &World, name: &str) -> String {
    assignment(world, name).task.as_str().to_owned()
}

#[test]
fn the_draw_is_kept_as_history_with_who_may_report() {
    let world = closed();
    for (name, instance) in [("a", Some("of a")), ("b", Some("of b")), ("old", None)] {
        let assignment = assignment(&world, name);
        assert_eq!((assignment.instance.as_deref(), assignment.state), (instance, Given), "{name}");
    }
    assert!(world.machine.assignments.is_empty(), "nothing of it is in memory");
    let course = Course {
        owner: Some("initiator".to_owned()),
        tally: Some(Tally { accepted: 3, chosen: 3 }),
    };
    assert_eq!(world.ended[&Key::Course(job("j"))], Record::Course(course));
}

#[test]
fn a_report_counts_once_and_an_end_is_final_long_after_the_tasks_were_let_go() {
    let mut world = closed();
    let task = task_of(&world, "a");
    assert_eq!(world.effects(report("a", &task, Running)), [Effect::Changed { job: job("j") }]);
    world.reply(Command::Expire { job: job("j") });
    assert!(world.machine.proposals.is_empty());
    world.now = world.now.plus_ms(20 * 24 * 3600 * 1000);
    assert_eq!(
        world.effects(report("a", &task, Ended(End::Failed))),
        [Effect::Changed { job: job("j") }]
    );
    let stands = assignment(&world, "a");
    assert_eq!((stands.state, stands.changed_at), (Ended(End::Failed), world.now));
    for again in [Ended(End::Failed), Running, Given] {
        let (reply, out) = world.run(report("a", &task, again));
        assert_eq!((reply, out.events), (Ok(Reply::Done), vec![]), "{again:?}");
    }
    let other = world.run(report("a", &task, Ended(End::Succeeded))).0;
    assert_eq!(other, Err(Rejection::OtherEnd(party("a"), TaskId::parse(task).unwrap())));
}

#[test]
fn a_report_of_somebody_else_or_something_else_is_refused() {
    let mut world = closed();
    let task = task_of(&world, "a");
    let stranger = world.run(report("stranger", &task, Running)).0;
    assert_eq!(stranger, Err(Rejection::NotChosen(party("stranger"), proposal("j-coo_1"))));
    let other_task = world.run(report("a", &task_of(&world, "b"), Running)).0;
    assert_eq!(
        other_task,
        Err(Rejection::OtherTask(party("a"), TaskId::parse(task.clone()).unwrap()))
    );
    let wrong = |command: Command, change: fn(&mut Command)| {
        let mut command = command;
        change(&mut command);
        command
    };
    let other_proposal = wrong(report("a", &task, Running), |command| {
        if let Command::Report { proposal: of, .. } = command {
            *of = proposal("j-coo_2");
        }
    });
    assert!(matches!(world.run(other_proposal).0, Err(Rejection::NotChosen(..))));
    let other_instance = wrong(report("a", &task, Running), |command| {
        if let Command::Report { instance, .. } = command {
            *instance = "of b".to_owned();
        }
    });
    assert_eq!(world.run(other_instance).0, Err(Rejection::NotTheOne("party", "a".to_owned())));
    // Nobody can speak for a party that never says who it is.
    let old = report("old", &task_of(&world, "old"), Ended(End::Failed));
    assert_eq!(world.run(old).0, Err(Rejection::NotTheOne("party", "old".to_owned())));
    assert_eq!(assignment(&world, "a").state, Given);
}

#[test]
fn a_reason_is_one_line_and_bounded() {
    let mut world = closed();
    let mut command = report("a", &task_of(&world, "a"), Ended(End::Failed));
    if let Command::Report { reason, .. } = &mut command {
        *reason = format!("one\ntwo{}", "x".repeat(REASON_MAX));
    }
    world.reply(command);
    let reason = assignment(&world, "a").reason;
    assert!(reason.starts_with("one two") && reason.len() == REASON_MAX, "{reason}");
}

#[test]
fn an_open_proposal_that_is_cancelled_closes_and_who_accepted_is_told_so() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(propose_of("initiator", "j", 2, 2, 2));
    world.reply(fetch("a", "j-coo_1"));
    assert_eq!(
        world.run(cancel("somebody", "j")).0,
        Err(Rejection::NotTheOne("initiator of job", "j".to_owned()))
    );
    let at = world.now.plus_ms(KEEP_MS);
    let effects = world.effects(cancel("initiator", "j"));
    assert_eq!(effects, [Effect::Closed { job: job("j") }, Effect::ExpireAt { job: job("j"), at }]);
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Canceled);
    assert_eq!(world.reply(fetch("b", "j-coo_1")), Reply::Timeout);
    let asked = world.reply(propose_of("initiator", "j", 2, 2, 2));
    assert!(
        matches!(&asked, Reply::Verdict { verdict: Verdict::Cancelled, reason } if reason == "no longer wanted"),
        "{asked:?}"
    );
    assert_eq!(world.effects(close("j")), [], "the timer comes too late");
    assert_eq!(world.run(cancel("initiator", "j")).1.events, [], "once is enough");
}

#[test]
fn a_closed_proposal_that_is_cancelled_gives_no_task_and_orders_the_chosen_to_stop() {
    let mut world = closed();
    let closed_at = world.now;
    world.now = world.now.plus_ms(1000);
    assert_eq!(world.effects(cancel("initiator", "j")), [Effect::Changed { job: job("j") }]);
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Canceled);
    let order = |world: &World, name: &str| Effect::Order {
        party: party(name),
        job: job("j"),
        order: Box::new(world.machine.orders[&(party(name), job("j"))].clone()),
    };
    for name in ["a", "b"] {
        let effects = world.effects(stop(name));
        assert_eq!(effects, [order(&world, name)]);
        let (again, out) = (world.effects(stop(name)), world.run(stop(name)).1);
        assert_eq!((again, out.events), (effects, vec![]), "told again, written once");
    }
    // 0.1 cannot be told, and a stranger has nothing to stop.
    assert_eq!(world.effects(stop("old")), []);
    assert_eq!(world.effects(stop("stranger")), []);
    // A start tells again what is open; a report meets the order.
    assert!(world.machine.resume(world.now).contains(&order(&world, "a")));
    world.reply(report("a", &task_of(&world, "a"), Running));
    assert!(world.machine.orders.contains_key(&(party("a"), job("j"))), "not stopped yet");
    world.reply(report("a", &task_of(&world, "a"), Ended(End::Cancelled)));
    assert!(!world.machine.orders.contains_key(&(party("a"), job("j"))));
    assert_eq!(world.effects(stop("a")), [], "it has ended");
    // It is kept as long as if it had not been cancelled.
    let at = closed_at.plus_ms(KEEP_MS);
    assert!(world.machine.resume(world.now).contains(&Effect::ExpireAt { job: job("j"), at }));
}

#[test]
fn a_cancellation_reaches_a_proposal_that_is_history_and_one_that_was_never_made() {
    let mut world = closed();
    world.reply(Command::Expire { job: job("j") });
    assert_eq!(
        world.run(cancel("somebody", "j")).0,
        Err(Rejection::NotTheOne("initiator of job", "j".to_owned()))
    );
    assert_eq!(world.effects(cancel("initiator", "j")), [Effect::Changed { job: job("j") }]);
    assert!(world.machine.proposals.is_empty());
    let Record::Proposal(stands) = &world.ended[&Key::Proposal(job("j"))] else {
        panic!()
    };
    assert_eq!(stands.verdict(), Some((Verdict::Cancelled, "no longer wanted")));
    assert_eq!(world.effects(stop("a")).len(), 1);
    // The Proposal call comes after all: nobody is asked.
    world.reply(cancel("initiator", "early"));
    let (reply, out) = world.run(propose_of("initiator", "early", 2, 1, 2));
    assert_eq!((verdict(reply.unwrap()), out.effects), (Verdict::Cancelled, vec![]));
    // One that nobody may cancel.
    let mut world = World::subscribed(&["a"]);
    world.reply(propose("j", 1, 5, 1, 1));
    assert!(matches!(world.run(cancel("initiator", "j")).0, Err(Rejection::NotTheOne(..))));
}

#[test]
fn orders_are_bounded_and_old_ones_make_room() {
    let mut world = closed();
    world.reply(cancel("initiator", "j"));
    world.reply(stop("a"));
    let order = world.machine.orders[&(party("a"), job("j"))].clone();
    for n in 1..ORDERS_MAX {
        world.machine.orders.insert((party("gone"), job(&n.to_string())), order.clone());
    }
    assert_eq!(world.run(stop("b")).0, Err(Rejection::TooManyOrders));
    world.now = world.now.plus_ms(ORDER_KEPT_MS + 1);
    world.reply(stop("b"));
    assert!(world.machine.orders.contains_key(&(party("b"), job("j"))));
    assert_eq!(world.machine.orders.len(), ORDERS_MAX);
}

fn forget(jobs: &[(&str, &[&str])]) -> Command {
    let named = |names: &&[&str]| names.iter().map(|name| party(name)).collect();
    Command::Forget {
        jobs: jobs.iter().map(|(name, parties)| (job(name), named(parties))).collect(),
    }
}

#[test]
fn what_is_forgotten_leaves_nothing_of_its_parties() {
    let mut world = closed();
    let all: &[&str] = &["a", "b", "old", "stranger"];
    world.reply(cancel("initiator", "j"));
    world.reply(stop("a"));
    assert_eq!(world.run(forget(&[("j", all)])).1.events, [], "it has not expired");
    world.reply(Command::Expire { job: job("j") });
    let (_, out) = world.run(forget(&[("other", all), ("j", all)]));
    let of_parties = |event: &&Event| matches!(event, Event::AssignmentForgotten { .. });
    assert_eq!(out.events.iter().map(|logged| &logged.event).filter(of_parties).count(), 3);
    let left: Vec<_> = world
        .ended
        .keys()
        .filter(|key| !matches!(key, Key::Counters | Key::Party(_)))
        .collect();
    assert!(left.is_empty() && world.machine.orders.is_empty(), "{left:?}");
    // What comes too late is told so, once and for all.
    let late = world.run(report("a", "trainer_0", Ended(End::Cancelled))).0;
    assert!(matches!(late, Err(Rejection::NotChosen(..))), "{late:?}");
    assert_eq!(world.effects(stop("b")), []);
}

/// One command must never be more than a commit can carry, whatever has gathered; and none is left for the next round.
#[test]
fn what_is_to_be_forgotten_goes_in_shares() {
    let left = |n: usize, parties: usize| (job(&n.to_string()), (0..parties).map(|n| party(&n.to_string())).collect::<Vec<_>>());
    let large: Vec<Leftover> = (0..64).map(|n| left(n, TASKS_MAX)).collect();
    assert_eq!(
        shares(large.clone()).into_iter().map(|share| share.len()).collect::<Vec<_>>(),
        [1; 64]
    );
    let small: Vec<Leftover> = (0..32).map(|n| left(n, 0)).collect();
    assert_eq!(shares(small.clone()), [small]);
    let mixed: Vec<Leftover> = (0..9).map(|n| left(n, 15)).collect();
    assert_eq!(shares(mixed).into_iter().map(|share| share.len()).collect::<Vec<_>>(), [4, 4, 1]);
    assert_eq!(shares(Vec::new()), Vec::<Vec<Leftover>>::new());
    // More than a share in one command: the rest stays.
    let mut world = closed();
    world.reply(Command::Expire { job: job("j") });
    let recalled = |jobs: &[Leftover]| world.machine.recall(&Command::Forget { jobs: jobs.to_vec() }).len();
    assert_eq!(recalled(&large), 2 + TASKS_MAX);
    let jobs = large.into_iter().take(1).chain([left(64, 0), (job("j"), vec![])]).collect();
    world.reply(Command::Forget { jobs });
    assert!(world.ended.contains_key(&Key::Proposal(job("j"))));
}
