//! What must always be true of the master, numbered. Checked by the property tests after every command.

use super::records::{JobState, ParticipationState, STEPS_MAX, TaskState};
use super::{Effect, Master, apply};
use crate::machine::Machine;
use crate::machine::ids::Timestamp;

/// Check every invariant.
///
/// # Errors
/// The number and the record of the first one that does not hold.
pub fn check(master: &Master) -> Result<(), String> {
    jobs(master)?;
    tasks(master)?;
    effects(master)
}

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(broken()) }
}

fn jobs(master: &Master) -> Result<(), String> {
    for (id, job) in &master.jobs {
        let ends = id.as_str().ends_with(&format!("-{}", job.number));
        ensure(ends && job.number <= master.last_number, || {
            format!("M1 a job's number is in its id and was counted: {id}")
        })?;
        let needs_lease = job.spec.plan.endpoints > 0;
        let has_lease = job.lease.is_some();
        let lease_fits = match job.state {
            JobState::Leasing if job.returning => needs_lease,
            JobState::Leasing => needs_lease && !has_lease,
            JobState::Preparing if job.returning => !needs_lease,
            JobState::Preparing | JobState::Proposing { .. } | JobState::Running => needs_lease == has_lease && !job.returning,
            JobState::Waiting { .. } | JobState::Held => !has_lease || job.returning,
            JobState::Succeeded | JobState::Failed(_) | JobState::Cancelled { .. } => needs_lease || !has_lease,
        };
        ensure(lease_fits, || format!("M2 a job holds endpoints from its lease to its end: {id}"))?;
        let open = master.has_open_task(id);
        ensure(!(job.state.is_final() && open) || Master::owes(job), || {
            format!("M15 a job is live until nothing of it runs: {id}")
        })?;
        let held_back = master
            .tasks_of(id)
            .find(|task| job.state.is_final() && matches!(task.state, TaskState::Held | TaskState::Queued | TaskState::Submitted { .. }));
        ensure(held_back.is_none(), || {
            format!("M10 a job that has ended has no task that may start or is left running: {id}")
        })?;
        let stepped = job.steps.last().is_some_and(|step| step.state == job.state.step_name()) && job.steps.len() <= STEPS_MAX;
        ensure(stepped, || format!("M11 the last step of a job is its state: {id}"))?;
        let proposing = matches!(job.state, JobState::Proposing { .. });
        ensure(proposing == job.proposal.is_some(), || {
            format!("M3 packed tasks are kept while they are proposed: {id}")
        })?;
        let open = master.tasks_of(id).any(|task| !matches!(task.state, TaskState::Ended(_))) || master.fetches_for(id);
        ensure(job.state != JobState::Running || open, || {
            format!("M4 a running job waits for something of its own: {id}")
        })?;
    }
    Ok(())
}

fn tasks(master: &Master) -> Result<(), String> {
    for (key, task) in &master.tasks {
        let ended = matches!(task.state, TaskState::Ended(_));
        ensure(ended != task.content.is_some(), || {
            format!("M5 a task keeps its content until it has ended: {key}")
        })?;
        let held_for = master
            .jobs
            .get(&key.job)
            .is_some_and(|job| matches!(job.state, JobState::Proposing { .. }));
        ensure(task.state != TaskState::Held || held_for, || {
            format!("M6 a held task waits for a verdict: {key}")
        })?;
        ensure(task.tries < master.rules.submit_tries, || {
            format!("M7 a task is submitted as often as the rule says: {key}")
        })?;
    }
    let won = master.tasks.values().filter(|task| apply::is_under_way(task)).count();
    let offered = master
        .participations
        .values()
        .filter(|p| p.state == ParticipationState::Offered)
        .count();
    ensure(master.under_way as usize == won + offered, || {
        format!("M8 {won} won and {offered} offered are not {}", master.under_way)
    })
}

/// M9: whatever waits for something outside, a restart asks for it again.
fn effects(master: &Master) -> Result<(), String> {
    let resumed = master.resume(Timestamp(0));
    for (id, job) in &master.jobs {
        let owes = Master::owes(job);
        let waits = if owes {
            !master.has_open_task(id)
        } else {
            !matches!(job.state, JobState::Held | JobState::Running) && !job.state.is_final()
        };
        let asked = resumed.iter().any(|effect| match effect {
            Effect::AcquireLease { job, .. }
            | Effect::ReleaseLease { job }
            | Effect::Prepare { job, .. }
            | Effect::Propose { job, .. }
            | Effect::WakeAt { job, .. } => job == id,
            _ => false,
        });
        let armed = resumed
            .iter()
            .any(|effect| matches!(effect, Effect::DeadlineAt { job, .. } if job == id));
        ensure(armed == (job.spec.deadline.is_some() && !job.state.is_final()), || {
            format!("M12 a deadline is watched until the job has ended: {id}")
        })?;
        ensure(waits == asked, || format!("M9 a job that waits is resumed: {id}"))?;
    }
    let owed = resumed.iter().filter(|effect| matches!(effect, Effect::Report { .. })).count();
    let followed = resumed.iter().filter(|effect| matches!(effect, Effect::Follow { .. })).count();
    let open = master.announced.values().filter(|announced| !announced.over).count();
    let withdrawn = resumed.iter().filter(|effect| matches!(effect, Effect::Withdraw { .. })).count();
    let waiting = master.withdrawals.len();
    ensure(withdrawn == waiting, || {
        format!("M14 {waiting} withdrawals wait, {withdrawn} are resumed")
    })?;
    ensure(owed == master.reports.len() && followed == open, || {
        format!(
            "M13 {} reports and {open} jobs wait, {owed} and {followed} are resumed",
            master.reports.len()
        )
    })?;
    let tasks = master
        .tasks
        .values()
        .filter(|task| !matches!(task.state, TaskState::Held | TaskState::Ended(_)))
        .count();
    let asked = resumed
        .iter()
        .filter(|e| matches!(e, Effect::Submit { .. } | Effect::Watch { .. } | Effect::Cancel { .. }))
        .count();
    ensure(tasks == asked, || format!("M9 {tasks} tasks wait, {asked} are resumed"))
}
