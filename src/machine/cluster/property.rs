//! Random histories: the invariants hold after each command, replay gives the same records, a repeated command changes nothing.

use super::records::LeaseId;
use super::tests::{Bench, SECOND, job, key, profile, submission, worker};
use super::{Attach, Cluster, Command, Key, Record, Reply, Rules};
use crate::machine::ids::TaskKey;
use crate::machine::outcome::{End, Outcome};
use crate::machine::{Changes, Machine};
use proptest::prelude::*;
use std::collections::BTreeMap;

const WORKERS: [&str; 3] = ["w0", "w1", "w2"];

fn command() -> impl Strategy<Value = Command> {
    let a_worker = || prop::sample::select(WORKERS.to_vec());
    let a_key = || (0..4u8, 0..4u8).prop_map(|(job, task)| key(&format!("j{job}"), &format!("t{task}")));
    let a_job = || (0..4u8).prop_map(|n| job(&format!("j{n}")));
    let known = prop::collection::vec((a_key(), 1..4u32), 0..4);
    let outcome =
        || prop::sample::select(vec![End::Succeeded, End::Failed, End::Cancelled]).prop_map(|end| Outcome::without_process(end, ""));
    prop_oneof![
        1 => Just(Command::Started),
        4 => (a_worker(), 0..3u8, 1..5u16, any::<bool>(), known).prop_map(|(name, instance, max_tasks, legacy, known)| {
            let mut profile = profile(&instance.to_string(), max_tasks, legacy);
            profile.ports.end -= u32::from(instance);
            Command::Attach(Attach { worker: worker(name), profile, known })
        }),
        2 => (a_worker(), 1..9u64).prop_map(|(name, session)| Command::ConnectionLost { worker: worker(name), session }),
        2 => (a_worker(), 1..9u64).prop_map(|(name, session)| Command::WorkerLost { worker: worker(name), session }),
        8 => (a_key(), 1..3u8, prop::option::of(a_worker())).prop_map(|(key, content, name)| submission(key, content, name)),
        6 => (a_worker(), a_key(), prop::option::of(1..4u32), outcome())
            .prop_map(|(name, key, attempt, outcome)| Command::Report { worker: worker(name), key, attempt, outcome }),
        2 => a_key().prop_map(|key| Command::Cancel { key, reason: "enough".into() }),
        4 => (prop::option::of(a_job()), 0..4u16).prop_map(|(job, endpoints)| Command::AcquireLease { job, endpoints }),
        2 => a_job().prop_map(|job| Command::ReleaseLease { job }),
        1 => (1..5u64).prop_map(|n| Command::LeaseExpired { lease: LeaseId::Anonymous(n) }),
        1 => Just(Command::Place),
    ]
}

/// A worker that attaches again gets another session, and a FedVision 0.1 master another lease.
fn may_be_repeated(command: &Command) -> bool {
    !matches!(
        command,
        Command::Attach(_) | Command::AcquireLease { job: None, .. } | Command::Started
    )
}

fn live(machine: &Cluster) -> BTreeMap<Key, Record> {
    let keys = machine.tasks.iter().map(|(key, _)| Key::Task(TaskKey::clone(key)));
    let keys = keys
        .chain(machine.leases.keys().cloned().map(Key::Lease))
        .chain(machine.workers.keys().cloned().map(Key::Worker));
    let keys = keys.chain([Key::Counters]);
    keys.filter_map(|key| machine.record(&key).map(|record| (key, record))).collect()
}

proptest! {
    #[test]
    fn histories_keep_the_rules(commands in prop::collection::vec(command(), 1..120)) {
        let mut bench = Bench::new(Rules { max_attempts: 2, ..Rules::default() });
        for command in commands {
            bench.now.0 += SECOND;
            let reply = bench.send(command.clone());
            if may_be_repeated(&command) && reply != Ok(Reply::Again) {
                let before = bench.events.len();
                let _ = bench.send(command);
                prop_assert_eq!(bench.events.len(), before);
            }
        }
        let mut replayed = Cluster::new(Rules::default());
        for event in &bench.events {
            replayed.apply(event, &mut Changes::default());
        }
        let mut expected = live(&bench.machine);
        let held = expected.values().flat_map(Cluster::payloads).count() as i64;
        prop_assert_eq!(bench.payloads, held);
        expected.extend(bench.ended.clone().into_iter().filter(|(key, _)| bench.machine.record(key).is_none()));
        prop_assert_eq!(live(&replayed), expected);
    }

    #[test]
    fn a_restart_anywhere_changes_no_record(commands in prop::collection::vec(command(), 1..60)) {
        let mut bench = Bench::new(Rules::default());
        for command in commands {
            let _ = bench.send(command);
            let records = live(&bench.machine);
            let mut restarted = Cluster::new(Rules::default());
            for (key, record) in &records {
                prop_assert!(Cluster::is_live(record));
                let bytes = Cluster::key_bytes(key);
                prop_assert_eq!(Cluster::key_from_bytes(&bytes), Some(key.clone()));
                restarted.restore(key, record.clone());
            }
            let in_order: Vec<_> = records.keys().map(Cluster::key_bytes).collect();
            prop_assert!(in_order.is_sorted());
            prop_assert_eq!(live(&restarted), records);
            prop_assert_eq!(restarted.resume(bench.now), bench.machine.resume(bench.now));
            bench.machine = restarted;
        }
    }
}
