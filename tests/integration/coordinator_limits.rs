//! The coordinator's limits against the store's: the largest command fits a batch that is already full.

use fedbroker::machine::content::{Content, INLINE_MAX, PayloadRef};
use fedbroker::machine::coordinator::{AssignmentState, Command, Coordinator, Key, Record, Rules, TASKS_MAX, TYPES_BYTES_MAX};
use fedbroker::machine::ids::{JobId, PartyId, ProposalId, TaskId, Timestamp, TypeName};
use fedbroker::machine::outcome::End;
use fedbroker::machine::{Changes, Input, Logged, Machine, Out, Seq};
use fedbroker::store::{BODY_MAX, COST_MAX, Commit, KEY_MAX, codec};
use std::collections::BTreeSet;

/// The loop takes no more commands once a batch costs this much at worst (`engine::commit`).
const FULL: usize = COST_MAX * 7 / 16;
/// The longest id that ends in this number. Texts that do not repeat each other are no different to the store.
fn long(number: usize, len: usize) -> String {
    format!("{number:0>len$}")
}

fn party(number: usize) -> PartyId {
    PartyId::parse(long(number, 200)).unwrap()
}

/// What a command costs in a batch: events, and the records they changed.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    events: usize,
    records: usize,
}

/// The worst of all commands.
#[derive(Debug, Default)]
struct Worst {
    /// The largest command.
    largest: Cost,
}

struct World {
    machine: Coordinator,
    worst: Worst,
}

impl World {
    fn run(&mut self, command: Command) {
        let input = Input::<Key, Record> {
            now: Timestamp(u64::MAX / 4),
            stamp: String::new(),
            random: 1,
            recalled: Vec::new(),
        };
        let mut out = Out::new(Seq::MAX / 2);
        self.machine.decide(command, &input, &mut out).unwrap();
        let cost = self.cost(&out.events, &out.changes);
        let worst = &mut self.worst;
        if cost.events + cost.records > worst.largest.events + worst.largest.records {
            worst.largest = cost;
        }
    }

    fn cost(&self, events: &[Logged<<Coordinator as Machine>::Event>], changes: &Changes<Key>) -> Cost {
        let events: Vec<Vec<u8>> = events.iter().map(codec::encode).collect();
        let mut records = Vec::new();
        for key in &changes.keys {
            // With the byte that the loop puts in front.
            let bytes = [b"l".to_vec(), Coordinator::key_bytes(key)].concat();
            let record = self.machine.record(key).map(|record| codec::encode(&record));
            let sizes = (bytes.len(), record.as_ref().map_or(0, Vec::len));
            assert!(sizes.0 <= KEY_MAX && sizes.1 <= BODY_MAX, "{sizes:?} for {key:?}");
            records.extend([(bytes.clone(), record), (bytes, None)]);
        }
        let payloads: BTreeSet<PayloadRef> = changes.held.iter().chain(&changes.released).copied().collect();
        records.extend(
            payloads
                .iter()
                .map(|payload| (vec![0; 33], Some(codec::encode(&(*payload, u32::MAX))))),
        );
        assert!(events.iter().all(|event| event.len() <= BODY_MAX));
        let events = Commit {
            events,
            ..Commit::default()
        }
        .cost();
        Cost {
            events,
            records: Commit {
                changes: records,
                ..Commit::default()
            }
            .cost(),
        }
    }
}

/// Every command with the longest names, the most tasks, and a content of this kind.
fn worst(content: impl Fn(usize) -> Content) -> Worst {
    let mut world = World {
        machine: Coordinator::new(Rules {
            party_lease_ms: 1,
            settle_ms: 0,
            keep_closed_ms: 1,
        }),
        worst: Worst::default(),
    };
    let job = JobId::parse(long(1, 190)).unwrap();
    let proposal = ProposalId::parse(format!("{job}-coo_1")).unwrap();
    let types: Vec<TypeName> = [200, 200, TYPES_BYTES_MAX - 400]
        .map(|len| TypeName::parse(long(7, len)).unwrap())
        .into();
    let job_type = types[0].clone();
    world.run(Command::Started);
    for number in 0..=TASKS_MAX {
        let (job_types, instance) = (types.clone(), Some(long(number, 64)));
        world.run(Command::Subscribe {
            party: party(number),
            session: u64::MAX - number as u64,
            job_types,
            instance,
        });
    }
    let tasks = (0..TASKS_MAX).map(|i| (TaskId::parse(long(i, 200)).unwrap(), content(i))).collect();
    let (min, max, wait_s, fingerprint) = (0, u32::MAX, 1, [255; 32]);
    world.run(Command::Propose {
        job_id: job.clone(),
        job_type,
        tasks,
        wait_s,
        min,
        max,
        fingerprint,
        owner: Some(long(1, 64)),
    });
    for number in 0..=TASKS_MAX {
        world.run(Command::Fetch {
            party: party(number),
            proposal: proposal.clone(),
        });
    }
    world.run(Command::Close { job: job.clone() });
    let (owner, reason) = (long(1, 64), "x".repeat(512));
    world.run(Command::Cancel {
        job: job.clone(),
        job_type: types[1].clone(),
        owner,
        reason: reason.clone(),
    });
    for number in 0..=TASKS_MAX {
        world.run(Command::Stop {
            job: job.clone(),
            party: party(number),
            reason: reason.clone(),
        });
        let Some(Record::Assignment(given)) = world.machine.record(&Key::Assignment(job.clone(), party(number))) else {
            continue;
        };
        world.run(Command::Report {
            party: party(number),
            job: job.clone(),
            proposal: proposal.clone(),
            task: given.task,
            instance: given.instance.unwrap(),
            state: AssignmentState::Ended(End::Failed),
            reason: reason.clone(),
        });
    }
    while !world.machine.resume(Timestamp(0)).is_empty() {
        world.run(Command::Expire { job: job.clone() });
        let ended = |record: &Record| !Coordinator::is_live(record);
        if world.machine.record(&Key::Proposal(job.clone())).as_ref().is_some_and(ended) {
            break;
        }
    }
    let chosen = (0..=TASKS_MAX).map(party).collect();
    world.run(Command::Forget {
        jobs: vec![(job.clone(), chosen)],
    });
    assert_eq!(world.machine.record(&Key::Proposal(job)), None);
    world.run(Command::StreamBroken {
        party: party(0),
        session: u64::MAX,
    });
    world.run(Command::Leave { party: party(0) });
    world.worst
}

#[test]
fn the_largest_command_fits_a_batch_that_is_full_of_small_ones() {
    let inline = worst(|_| Content::Inline(vec![255; INLINE_MAX]));
    let stored = worst(|i| {
        Content::Stored(PayloadRef {
            hash: [u8::try_from(i).unwrap(); 32],
            len: u64::MAX,
        })
    });
    println!("inline {inline:?}\nstored {stored:?}");
    for Worst { largest, .. } in [inline, stored] {
        let total = FULL + largest.events + largest.records;
        assert!(total <= COST_MAX, "{total} of {COST_MAX}");
    }
}
