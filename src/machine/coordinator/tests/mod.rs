//! The rules, case by case: what a command is answered and which effects it has.

mod assignments;
mod history;

use super::*;
use crate::machine::content::Content;
use crate::machine::ids::{ProposalId, TaskId, TypeName};

const LEASE_MS: u64 = 60_000;
const KEEP_MS: u64 = 3_600_000;
const RULES: Rules = Rules {
    party_lease_ms: LEASE_MS,
    keep_closed_ms: KEEP_MS,
    settle_ms: 0,
};

fn party(name: &str) -> PartyId {
    PartyId::parse(name).unwrap()
}

fn job(name: &str) -> JobId {
    JobId::parse(name).unwrap()
}

fn kind(name: &str) -> TypeName {
    TypeName::parse(name).unwrap()
}

fn proposal(name: &str) -> ProposalId {
    ProposalId::parse(name).unwrap()
}

/// The content of a task: a payload file for even positions, so that both kinds are met.
fn content(index: u32) -> Content {
    if index.is_multiple_of(2) {
        Content::Stored(PayloadRef {
            hash: [u8::try_from(index % 250).unwrap(); 32],
            len: 9000,
        })
    } else {
        Content::Inline(vec![u8::try_from(index % 250).unwrap(); 3])
    }
}

/// A machine with a clock and the store's part of recalling ended records.
struct World {
    machine: Coordinator,
    now: Timestamp,
    random: u64,
    ended: std::collections::BTreeMap<Key, Record>,
    /// Ended records stay in memory for this many commands more, as they do until the end of a batch.
    batch: usize,
    leaving: std::collections::VecDeque<Vec<Key>>,
}

impl World {
    fn new() -> Self {
        Self {
            machine: Coordinator::new(RULES),
            now: Timestamp(1_000_000),
            random: 7,
            ended: Default::default(),
            batch: 0,
            leaving: Default::default(),
        }
    }

    fn run(&mut self, command: Command) -> (Result<Reply, Rejection>, Out<Coordinator>) {
        let asked = self.machine.recall(&command).into_iter();
        let asked = asked.filter(|key| self.machine.record(key).is_none());
        let recalled = asked.filter_map(|key| Some((key.clone(), self.ended.get(&key)?.clone()))).collect();
        let input = Input {
            now: self.now,
            stamp: String::new(),
            random: self.random,
            recalled,
        };
        let mut out = Out::new(1);
        let reply = self.machine.decide(command, &input, &mut out);
        let mut leaving = Vec::new();
        for key in &out.changes.keys {
            match self.machine.record(key) {
                Some(record) if !Coordinator::is_live(&record) => {
                    self.ended.insert(key.clone(), record);
                    leaving.push(key.clone());
                }
                Some(_) => {}
                None => drop(self.ended.remove(key)),
            }
        }
        self.leaving.push_back(leaving);
        while self.leaving.len() > self.batch {
            self.leaving.pop_front().unwrap().iter().for_each(|key| self.machine.forget(key));
        }
        invariant::check(&self.machine).unwrap();
        (reply, out)
    }

    fn reply(&mut self, command: Command) -> Reply {
        self.run(command).0.unwrap()
    }

    fn effects(&mut self, command: Command) -> Vec<Effect> {
        self.run(command).1.effects
    }

    fn subscribed(names: &[&str]) -> Self {
        let mut world = Self::new();
        for (session, name) in (1..).zip(names) {
            world.reply(subscribe(name, session, None));
        }
        world
    }
}

fn subscribe(name: &str, session: u64, instance: Option<&str>) -> Command {
    Command::Subscribe {
        party: party(name),
        session,
        job_types: vec![kind("dummy")],
        instance: instance.map(str::to_owned),
    }
}

fn propose(name: &str, tasks: u32, wait_s: u32, min: u32, max: u32) -> Command {
    let tasks = (0..tasks)
        .map(|i| (TaskId::parse(format!("trainer_{i}")).unwrap(), content(i)))
        .collect();
    Command::Propose {
        job_id: job(name),
        job_type: kind("dummy"),
        tasks,
        wait_s,
        min,
        max,
        fingerprint: [1; 32],
        owner: None,
    }
}

fn fetch(name: &str, of: &str) -> Command {
    Command::Fetch {
        party: party(name),
        proposal: proposal(of),
    }
}

fn close(name: &str) -> Command {
    Command::Close { job: job(name) }
}

fn offer(name: &str, session: u64, of: &str) -> Effect {
    Effect::Offer {
        party: party(name),
        session,
        proposal: proposal(of),
        job_type: kind("dummy"),
    }
}

fn verdict(reply: Reply) -> Verdict {
    match reply {
        Reply::Verdict { verdict, .. } => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

#[test]
fn a_proposal_is_offered_to_connected_members_and_gets_a_timer() {
    let mut world = World::subscribed(&["a", "b", "c"]);
    world.reply(Command::StreamBroken {
        party: party("b"),
        session: 2,
    });
    let other = Command::Subscribe {
        party: party("d"),
        session: 4,
        job_types: vec![kind("other")],
        instance: None,
    };
    world.reply(other);
    let (reply, out) = world.run(propose("j", 2, 5, 1, 2));
    assert_eq!(
        reply,
        Ok(Reply::Open {
            proposal: proposal("j-coo_1")
        })
    );
    let at = Timestamp(6_000_000);
    assert_eq!(
        out.effects,
        [
            offer("a", 1, "j-coo_1"),
            offer("c", 3, "j-coo_1"),
            Effect::CloseAt { job: job("j"), at }
        ]
    );
    assert_eq!(out.changes.held, [content(0).payload().unwrap()]);
}

#[test]
fn the_chosen_get_their_task_as_often_as_they_ask_and_the_rest_is_told() {
    let mut world = World::subscribed(&["a", "b", "c", "late"]);
    world.reply(propose("j", 2, 5, 2, 2));
    for name in ["a", "b", "c", "a"] {
        assert_eq!(world.reply(fetch(name, "j-coo_1")), Reply::Wait);
    }
    world.now = Timestamp(6_000_000);
    let effects = world.effects(close("j"));
    let at = Timestamp(6_000_000).plus_ms(KEEP_MS);
    assert_eq!(effects, [Effect::Closed { job: job("j") }, Effect::ExpireAt { job: job("j"), at }]);
    for _ in 0..2 {
        let answers: Vec<Reply> = ["a", "b", "c"].map(|name| world.reply(fetch(name, "j-coo_1"))).into();
        assert_eq!(answers.iter().filter(|reply| **reply == Reply::RandomOut).count(), 1);
        for index in 0..2 {
            assert_eq!(answers.iter().filter(|reply| **reply == Reply::Ready(content(index))).count(), 1);
        }
    }
    assert_eq!(world.reply(fetch("late", "j-coo_1")), Reply::Timeout);
    assert_eq!(verdict(world.reply(propose("j", 2, 5, 2, 2))), Verdict::Success);
}

#[test]
fn fewer_tasks_than_acceptances_below_the_maximum_is_no_error() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(propose("j", 1, 5, 0, 2));
    world.reply(fetch("a", "j-coo_1"));
    world.reply(fetch("b", "j-coo_1"));
    world.reply(close("j"));
    let answers = [world.reply(fetch("a", "j-coo_1")), world.reply(fetch("b", "j-coo_1"))];
    assert!(
        answers.contains(&Reply::Ready(content(0))) && answers.contains(&Reply::RandomOut),
        "{answers:?}"
    );
}

#[test]
fn too_few_acceptances_cancel_the_waiting() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(propose("j", 2, 5, 2, 2));
    world.reply(fetch("a", "j-coo_1"));
    world.reply(close("j"));
    let stored = world.reply(propose("j", 2, 5, 2, 2));
    let reason = "too few parties accepted within proposal_wait_time: 1 of the 2 needed".to_owned();
    assert_eq!(
        stored,
        Reply::Verdict {
            verdict: Verdict::NotEnoughResponders,
            reason
        }
    );
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Canceled);
    assert_eq!(world.reply(fetch("b", "j-coo_1")), Reply::Timeout);
}

#[test]
fn what_cannot_succeed_is_answered_at_once_and_recorded() {
    let mut world = World::new();
    assert_eq!(verdict(world.reply(propose("nobody", 1, 5, 0, 1))), Verdict::Reject);
    world.reply(subscribe("a", 1, None));
    assert_eq!(verdict(world.reply(propose("few", 2, 5, 2, 2))), Verdict::NotEnoughSubscribers);
    for (name, command) in [
        ("below", propose("below", 2, 5, 2, 1)),
        ("none", propose("none", 0, 5, 0, 1)),
        ("many", propose("many", u32::try_from(TASKS_MAX).unwrap() + 1, 5, 0, 1)),
        ("long", propose("long", 1, WAIT_MAX_S + 1, 0, 1)),
    ] {
        let (reply, out) = world.run(command);
        assert_eq!(verdict(reply.unwrap()), Verdict::Reject, "{name}");
        assert_eq!(out.effects, []);
        assert_eq!(out.changes.held, []);
    }
    // Asked again, now that it could succeed, the recorded verdict stands; the numbers go on.
    world.reply(subscribe("b", 2, None));
    assert_eq!(verdict(world.reply(propose("few", 2, 5, 2, 2))), Verdict::NotEnoughSubscribers);
    assert_eq!(
        world.reply(propose("next", 1, 5, 0, 1)),
        Reply::Open {
            proposal: proposal("next-coo_7")
        }
    );
}

#[test]
fn a_window_of_no_length_closes_at_once() {
    let mut world = World::subscribed(&["a"]);
    assert_eq!(verdict(world.reply(propose("zero", 1, 0, 0, 1))), Verdict::Success);
    assert_eq!(verdict(world.reply(propose("one", 1, 0, 1, 1))), Verdict::NotEnoughResponders);
    assert_eq!(world.reply(fetch("a", "zero-coo_1")), Reply::Timeout);
}

#[test]
fn a_job_id_names_one_proposal_only() {
    let mut world = World::subscribed(&["a"]);
    let first = world.reply(propose("j", 1, 5, 0, 1));
    assert_eq!(world.reply(propose("j", 1, 5, 0, 1)), first);
    let Command::Propose {
        job_id,
        job_type,
        tasks,
        wait_s,
        min,
        max,
        ..
    } = propose("j", 1, 5, 0, 1)
    else {
        panic!()
    };
    let other = Command::Propose {
        job_id,
        job_type,
        tasks,
        wait_s,
        min,
        max,
        fingerprint: [2; 32],
        owner: None,
    };
    assert_eq!(world.run(other).0, Err(Rejection::OtherProposal(job("j"))));
    let long = "x".repeat(200);
    assert_eq!(world.run(propose(&long, 1, 5, 0, 1)).0, Err(Rejection::LongJobId(job(&long))));
}

#[test]
fn a_fetch_is_checked_in_the_order_of_fedvision() {
    let mut world = World::subscribed(&["a"]);
    let other = Command::Subscribe {
        party: party("other"),
        session: 2,
        job_types: vec![kind("other")],
        instance: None,
    };
    world.reply(other);
    for unknown in ["nonsense", "j-coo_1", "j-coo_x", "-coo_1"] {
        assert_eq!(world.reply(fetch("stranger", unknown)), Reply::NotFound, "{unknown}");
    }
    world.reply(propose("j", 1, 5, 1, 1));
    assert_eq!(world.reply(fetch("a", "j-coo_2")), Reply::NotFound);
    assert_eq!(world.reply(fetch("stranger", "j-coo_1")), Reply::NotAllow);
    assert_eq!(world.reply(fetch("other", "j-coo_1")), Reply::NotAllow);
    world.reply(fetch("a", "j-coo_1"));
    // A participant stays one when it comes back with other types.
    world.reply(Command::StreamBroken {
        party: party("a"),
        session: 1,
    });
    world.reply(Command::Subscribe {
        party: party("a"),
        session: 3,
        job_types: vec![],
        instance: None,
    });
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Wait);
}

#[test]
fn one_stream_a_party_unless_the_same_instance_comes_back() {
    let mut world = World::new();
    world.reply(subscribe("a", 1, Some("i")));
    assert_eq!(world.run(subscribe("a", 2, None)).0, Err(Rejection::Duplicate(party("a"))));
    assert_eq!(world.run(subscribe("a", 3, Some("k"))).0, Err(Rejection::Duplicate(party("a"))));
    assert_eq!(
        world.effects(subscribe("a", 4, Some("i"))),
        [Effect::CloseStream {
            party: party("a"),
            session: 1
        }]
    );
    // A FedVision 0.1 party names no instance: two of them are not known to be the same.
    world.reply(subscribe("old", 10, None));
    assert_eq!(world.run(subscribe("old", 11, None)).0, Err(Rejection::Duplicate(party("old"))));
    // The end of the replaced stream is no news; the end of the new one lets anybody in.
    assert_eq!(
        world
            .run(Command::StreamBroken {
                party: party("a"),
                session: 1
            })
            .1
            .events,
        []
    );
    world.reply(Command::StreamBroken {
        party: party("a"),
        session: 4,
    });
    assert_eq!(world.reply(subscribe("a", 5, None)), Reply::Done);
}

#[test]
fn coming_back_while_a_proposal_is_open_brings_its_offer_again() {
    let mut world = World::subscribed(&["a"]);
    world.reply(propose("j", 1, 5, 0, 1));
    world.reply(Command::StreamBroken {
        party: party("a"),
        session: 1,
    });
    assert_eq!(world.effects(subscribe("a", 2, None)), [offer("a", 2, "j-coo_1")]);
    assert_eq!(world.effects(subscribe("new", 3, None)), [offer("new", 3, "j-coo_1")]);
    world.reply(close("j"));
    assert_eq!(world.effects(subscribe("newer", 4, None)), []);
}

#[test]
fn a_start_leaves_the_parties_time_to_come_back_and_closes_once_they_are_enough() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(propose("j", 2, 5, 2, 2));
    world.reply(fetch("a", "j-coo_1"));
    // Long after the window.
    world.now = Timestamp(60_000_000);
    let at = world.now.plus_ms(RETURN_MS);
    assert_eq!(world.machine.resume(world.now), [Effect::CloseAt { job: job("j"), at }]);
    let effects = world.effects(fetch("b", "j-coo_1"));
    assert_eq!(effects[0], Effect::Closed { job: job("j") });
    assert_eq!(verdict(world.reply(propose("j", 2, 5, 2, 2))), Verdict::Success);
    assert_eq!(world.effects(close("j")), [], "the timer comes too late to change anything");

    // Enough have accepted: nothing is waited for, and within the window nothing closes early.
    world.reply(propose("k", 1, 5, 1, 1));
    let at = world.now.plus_ms(5000);
    assert_eq!(world.effects(fetch("a", "k-coo_2")), []);
    let later = world.now.plus_ms(9000);
    assert!(world.machine.resume(later).contains(&Effect::CloseAt { job: job("k"), at }));
}

#[test]
fn a_window_shortly_after_a_start_waits_for_those_it_cut_off_only() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(Command::StreamBroken {
        party: party("b"),
        session: 2,
    });
    world.now = Timestamp(60_000_000);
    world.reply(Command::Started);
    let at = world.now.plus_ms(RETURN_MS);
    world.reply(propose("j", 1, 1, 1, 1));
    world.now = world.now.plus_ms(1000);
    assert_eq!(world.effects(close("j")), [Effect::CloseAt { job: job("j"), at }]);
    assert_eq!(world.effects(subscribe("a", 11, None)), [offer("a", 11, "j-coo_1")]);
    assert_eq!(
        world.effects(close("j")),
        [Effect::CloseAt { job: job("j"), at }],
        "it needs a moment to answer"
    );
    world.now = world.now.plus_ms(ANSWER_MS);
    // It does not accept, and the other one was away before.
    assert_eq!(world.effects(close("j"))[0], Effect::Closed { job: job("j") });
    assert_eq!(verdict(world.reply(propose("j", 1, 1, 1, 1))), Verdict::NotEnoughResponders);
    world.reply(propose("k", 1, 1, 1, 1));
    world.reply(Command::Started);
    world.now = world.now.plus_ms(RETURN_MS);
    assert_eq!(world.effects(close("k"))[0], Effect::Closed { job: job("k") }, "not for ever");
}

#[test]
fn leaving_answers_at_once_and_poisons_nothing() {
    let mut world = World::subscribed(&["a", "b"]);
    assert_eq!(world.reply(Command::Leave { party: party("stranger") }), Reply::NotFound);
    world.reply(propose("j", 2, 5, 1, 2));
    world.reply(fetch("a", "j-coo_1"));
    world.reply(fetch("b", "j-coo_1"));
    assert_eq!(
        world.effects(Command::Leave { party: party("a") }),
        [Effect::CloseStream {
            party: party("a"),
            session: 1
        }]
    );
    world.reply(close("j"));
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::NotAllow);
    assert!(matches!(world.reply(fetch("b", "j-coo_1")), Reply::Ready(_)));
    world.reply(subscribe("a", 3, None));
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::RandomOut);
    // With a dead stream there is nothing to close, and the type goes on without it.
    world.reply(Command::StreamBroken {
        party: party("a"),
        session: 3,
    });
    assert_eq!(world.effects(Command::Leave { party: party("a") }), []);
    assert!(matches!(world.reply(propose("k", 1, 5, 1, 1)), Reply::Open { .. }));
}

#[test]
fn a_party_without_a_stream_counts_until_its_lease_is_over() {
    let mut world = World::subscribed(&["a", "b"]);
    world.reply(Command::StreamBroken {
        party: party("a"),
        session: 1,
    });
    world.now = world.now.plus_ms(LEASE_MS - 1);
    assert!(matches!(world.reply(propose("j", 2, 5, 2, 2)), Reply::Open { .. }));
    world.now = world.now.plus_ms(1);
    assert_eq!(verdict(world.reply(propose("k", 2, 5, 2, 2))), Verdict::NotEnoughSubscribers);
    // A restart ends every stream: the lease runs from there, and nobody is offered anything before coming back.
    world.reply(Command::Started);
    let effects = world.effects(propose("l", 1, 5, 1, 1));
    assert_eq!(
        effects,
        [Effect::CloseAt {
            job: job("l"),
            at: world.now.plus_ms(5000)
        }]
    );
    assert_eq!(
        world.effects(subscribe("b", 9, None)),
        [offer("b", 9, "j-coo_1"), offer("b", 9, "l-coo_3")]
    );
    world.now = world.now.plus_ms(LEASE_MS);
    assert_eq!(verdict(world.reply(propose("m", 1, 5, 2, 2))), Verdict::NotEnoughSubscribers);
}

#[test]
fn right_after_a_start_missing_parties_are_waited_for() {
    let mut world = World::subscribed(&["p1"]);
    world.machine.rules.settle_ms = 8000;
    world.reply(Command::Started);
    let early = |here| Rejection::Settling {
        job_type: kind("dummy"),
        here,
        needed: 1,
    };
    // Known from before, and not back yet: a window now would pass it by.
    assert_eq!(world.run(propose("a", 1, 1, 1, 1)).0, Err(early(0)));
    world.reply(subscribe("p1", 9, None));
    assert!(matches!(world.reply(propose("a", 1, 1, 1, 1)), Reply::Open { .. }));
    // Numbers that make no sense are no matter of time; and the time ends.
    assert_eq!(verdict(world.reply(propose("b", 1, 1, 2, 1))), Verdict::Reject);
    assert!(world.run(propose("c", 2, 1, 2, 2)).0.is_err());
    world.now = world.now.plus_ms(8000);
    assert_eq!(verdict(world.reply(propose("c", 2, 1, 2, 2))), Verdict::NotEnoughSubscribers);
}

#[test]
fn retention_lets_go_in_pieces_and_leaves_the_verdict() {
    let mut world = World::subscribed(&["a"]);
    let tasks = u32::try_from(RELEASE_MAX).unwrap();
    world.reply(propose("j", tasks, 5, 1, 1));
    world.reply(fetch("a", "j-coo_1"));
    let expire = || Command::Expire { job: job("j") };
    assert_eq!(world.run(expire()).1.events, [], "an open proposal does not expire");
    world.reply(close("j"));
    let (_, out) = world.run(expire());
    assert_eq!(
        out.effects,
        [Effect::ExpireAt {
            job: job("j"),
            at: world.now
        }]
    );
    assert_eq!(out.changes.released.len(), RELEASE_MAX / 2);
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Timeout);
    let (_, out) = world.run(expire());
    assert_eq!(out.effects, []);
    assert!(world.machine.proposals.is_empty());
    assert_eq!(verdict(world.reply(propose("j", tasks, 5, 1, 1))), Verdict::Success);
    assert_eq!(world.reply(fetch("a", "j-coo_1")), Reply::Timeout);
}

#[test]
fn limits_of_a_party_are_refused() {
    let mut world = World::new();
    let with = |job_types: Vec<TypeName>, instance: Option<String>| Command::Subscribe {
        party: party("a"),
        session: 1,
        job_types,
        instance,
    };
    let many = (0..=TYPES_MAX).map(|i| kind(&format!("t{i}"))).collect();
    assert_eq!(world.run(with(many, None)).0, Err(Rejection::TooManyTypes));
    let long = (0..3).map(|i| kind(&format!("{i}{}", "x".repeat(190)))).collect();
    assert_eq!(world.run(with(long, None)).0, Err(Rejection::TooManyTypes));
    assert_eq!(world.run(with(vec![], Some("x".repeat(65)))).0, Err(Rejection::LongInstance));
    assert_eq!(world.run(with(vec![kind("dummy"); 100], Some("x".repeat(64)))).0, Ok(Reply::Done));
}

#[test]
fn keys_keep_their_order_in_bytes() {
    let keys = [
        Key::Counters,
        Key::Party(party("a")),
        Key::Proposal(job("j")),
        Key::Proposal(job("j1")),
        Key::Task(job("j"), 2),
        Key::Task(job("j"), 10),
        Key::Task(job("j1"), 0),
        Key::Participant(job("j"), party("b")),
        Key::Participant(job("j1"), party("a")),
        Key::Assignment(job("j"), party("b")),
        Key::Assignment(job("j1"), party("a")),
        Key::Course(job("j")),
        Key::Order(party("a"), job("k")),
        Key::Order(party("b"), job("j")),
    ];
    let bytes: Vec<Vec<u8>> = keys.iter().map(Coordinator::key_bytes).collect();
    assert!(keys.is_sorted() && bytes.is_sorted());
    for (key, bytes) in keys.iter().zip(&bytes) {
        assert_eq!(Coordinator::key_from_bytes(bytes).as_ref(), Some(key));
    }
    assert_eq!(Coordinator::key_from_bytes(b"x"), None);
    assert_eq!(Coordinator::key_from_bytes(b"tj\0nine"), None);
}
