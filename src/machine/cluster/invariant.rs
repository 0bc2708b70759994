//! What must hold of a cluster after every command, numbered.
//!
//! Called by the property tests and by whoever checks a store offline. Reads the machine and changes nothing.

use super::leases::share;
use super::records::{LeaseId, LeaseState, TaskState};
use super::{Cluster, Key, STEP_MAX, placement};
use crate::machine::Machine;
use crate::machine::ids::TaskKey;
use crate::machine::outcome::End;
use std::collections::BTreeSet;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cluster invariant {number}: {what}")]
pub struct Violation {
    /// Which rule, as the functions below are numbered.
    pub number: u8,
    /// What is wrong.
    pub what: String,
}

type Check = fn(&Cluster) -> Result<(), String>;

/// All rules in order.
const CHECKS: [Check; 10] = [
    assigned_once,
    slots,
    lease_share,
    ports,
    ended_holds_nothing,
    bound_both_ways,
    attempts,
    derived,
    nothing_waits_in_vain,
    barred_never_runs,
];

/// Check all rules.
///
/// # Errors
/// The first that does not hold.
pub fn check(cluster: &Cluster) -> Result<(), Violation> {
    for (number, check) in (1..).zip(CHECKS) {
        check(cluster).map_err(|what| Violation { number, what })?;
    }
    Ok(())
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// 1. An assigned task is on one worker, which is known and not lost.
fn assigned_once(cluster: &Cluster) -> Result<(), String> {
    for (key, task) in cluster.tasks.iter() {
        let carriers: Vec<_> = cluster
            .index
            .loads
            .iter()
            .filter(|(_, load)| load.tasks.contains(key))
            .map(|(id, _)| id)
            .collect();
        let wanted: Vec<_> = task.assignment().map(|(worker, _)| worker).into_iter().collect();
        must(carriers == wanted, || {
            format!("task {key} is assigned to {wanted:?} and carried by {carriers:?}")
        })?;
        for worker in wanted {
            must(cluster.live_worker(worker).is_some(), || {
                format!("task {key} is on worker {worker}, which is not here")
            })?;
        }
    }
    Ok(())
}

/// 2. No worker has more slots taken than it has.
fn slots(cluster: &Cluster) -> Result<(), String> {
    for (id, load) in &cluster.index.loads {
        let worker = cluster
            .live_worker(id)
            .ok_or_else(|| format!("worker {id} is not here and carries {load:?}"))?;
        must(load.slots() <= u32::from(worker.profile.max_tasks), || {
            format!("worker {id} has {} slots taken", load.slots())
        })?;
    }
    Ok(())
}

/// 3. Leases take their share of a worker's slots at most.
fn lease_share(cluster: &Cluster) -> Result<(), String> {
    for (id, load) in &cluster.index.loads {
        let max = cluster.workers.get(id).map_or(0, |worker| share(worker.profile.max_tasks));
        must(load.leases.len() <= max as usize, || {
            format!("worker {id} has {} leases of at most {max}", load.leases.len())
        })?;
    }
    Ok(())
}

/// 4. No port is in two leases of a worker, each is one of the worker's; a lost lease has none.
fn ports(cluster: &Cluster) -> Result<(), String> {
    let mut taken = BTreeSet::new();
    for (id, lease) in &cluster.leases {
        must(lease.state != LeaseState::Lost || lease.ports.is_empty(), || {
            format!("lost lease {id:?} has ports")
        })?;
        for port in &lease.ports {
            must(taken.insert((&lease.worker, *port)), || {
                format!("port {port} of {} is leased twice", lease.worker)
            })?;
            let range = cluster.workers.get(&lease.worker).map(|worker| worker.profile.ports);
            must(range.is_some_and(|range| range.contains(*port)), || {
                format!("port {port} is not one of {}'s", lease.worker)
            })?;
        }
    }
    Ok(())
}

/// 5. An ended task holds no content and no lease.
fn ended_holds_nothing(cluster: &Cluster) -> Result<(), String> {
    for (key, task) in cluster.tasks.iter().filter(|(_, task)| task.is_ended()) {
        let empty = task.content.is_empty() && task.content.payload().is_none() && task.lease.is_none();
        must(empty, || format!("ended task {key} holds something"))?;
    }
    Ok(())
}

/// 6. A lease and the task in its slot name each other; the task names the lease's worker; an anonymous lease is never lost.
fn bound_both_ways(cluster: &Cluster) -> Result<(), String> {
    for (id, lease) in &cluster.leases {
        if let Some(key) = lease.bound() {
            let back = cluster.tasks.get(key).and_then(|task| task.lease.as_ref());
            must(back == Some(id), || format!("lease {id:?} is bound to {key}, which is on {back:?}"))?;
        }
        must(matches!(id, LeaseId::Job(_)) || lease.state != LeaseState::Lost, || {
            format!("anonymous lease {id:?} is lost")
        })?;
    }
    for (key, task) in cluster.tasks.iter() {
        if let Some(id) = &task.lease {
            let lease = cluster.leases.get(id);
            let fits = lease.is_some_and(|lease| lease.bound() == Some(key) && task.assignee.as_ref() == Some(&lease.worker));
            must(fits, || format!("task {key} is on lease {id:?}, which says {lease:?}"))?;
        }
    }
    Ok(())
}

/// 7. Attempts go up to the limit; an assigned task is in its last begun one; a queued one has one left.
fn attempts(cluster: &Cluster) -> Result<(), String> {
    for (key, task) in cluster.tasks.iter() {
        let fits = match &task.state {
            TaskState::Queued => task.attempts < task.max_attempts,
            TaskState::Assigned { attempt, .. } => *attempt == task.attempts && task.attempts <= task.max_attempts,
            TaskState::Ended(_) => task.attempts <= task.max_attempts,
        };
        must(fits, || {
            format!(
                "task {key} has {} of {} attempts as {:?}",
                task.attempts, task.max_attempts, task.state
            )
        })?;
    }
    Ok(())
}

/// 8. What is derived equals a recount from the records.
fn derived(cluster: &Cluster) -> Result<(), String> {
    let mut recount = Cluster::new(cluster.rules.clone());
    let keys = cluster.tasks.iter().map(|(key, _)| Key::Task(TaskKey::clone(key)));
    let keys = keys
        .chain(cluster.leases.keys().cloned().map(Key::Lease))
        .chain(cluster.workers.keys().cloned().map(Key::Worker));
    for key in keys {
        if let Some(record) = cluster.record(&key) {
            recount.restore(&key, record);
        }
    }
    must(recount.index == cluster.index, || {
        format!("derived {:?}, recounted {:?}", cluster.index, recount.index)
    })?;
    must(recount.next_number <= cluster.next_number, || {
        "a queue number would be given twice".to_owned()
    })
}

/// 9. No task waits that could run, unless so many can that one command could not place them all.
fn nothing_waits_in_vain(cluster: &Cluster) -> Result<(), String> {
    let placed = placement::place(&cluster.index.queues, &cluster.index.rooms, STEP_MAX);
    let stuck = !placed.is_empty() && cluster.index.loads.values().map(|load| load.tasks.len()).sum::<usize>() < STEP_MAX;
    must(!stuck, || format!("{placed:?} could run"))
}

/// 10. A task that was cancelled before it was submitted has ended so, and nothing of it was begun.
fn barred_never_runs(cluster: &Cluster) -> Result<(), String> {
    for (key, task) in cluster.tasks.iter().filter(|(_, task)| task.is_barred()) {
        let cancelled = matches!(&task.state, TaskState::Ended(outcome) if outcome.end == End::Cancelled);
        must(cancelled && task.attempts == 0, || {
            format!("task {key} was cancelled before it came, and is {:?}", task.state)
        })?;
    }
    Ok(())
}
