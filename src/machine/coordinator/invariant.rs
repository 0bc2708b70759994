//! What is always true of a coordinator, numbered. Checked after every command by the tests of the rules and of random histories, which
//! also compare the payload references held with those in the records, and the timers with the live proposals.
//!
//! 1. A task is given to at most one party, and exists. (That a party has at most one task of a proposal is the shape of the record.)
//! 2. No more parties are chosen than the maximum and the number of tasks allow.
//! 3. Only a proposal that closed with success (and may have been cancelled since) has chosen parties, and then at least the minimum (or one for every task, if these are fewer).
//! 4. An open proposal has all its tasks and a window that ends no earlier than it began.
//! 5. An expired proposal has let go of its tasks and acceptances.
//! 6. A proposal's id is made of its job id and its number; no number is used twice or beyond the counter.
//! 7. No stream belongs to two parties, and none to a run to come.
//! 8. Nobody is over the limits.
//! 9. A verdict other than success says why.
//! 10. An open proposal's course has no tally, a closed one's has. A tally counts the chosen among those who accepted.

use super::{
    Coordinator, Entry, Link, ORDERS_MAX, PARTICIPANTS_MAX, PARTIES_MAX, State, TASKS_MAX, TYPES_BYTES_MAX, TYPES_MAX, Verdict, job_of,
};
use std::collections::BTreeSet;

/// Check them all.
///
/// # Errors
/// Number and name of the first one that does not hold, and where.
pub fn check(machine: &Coordinator) -> Result<(), String> {
    let mut numbers = BTreeSet::new();
    for (job, entry) in &machine.proposals {
        let proposal = &entry.proposal;
        let fits = *job == proposal.job_id && job_of(&proposal.id).as_ref() == Some(job);
        let named = proposal.id.as_str().ends_with(&format!("_{}", proposal.number));
        ensure(fits && named, 6, "proposal id", job)?;
        ensure(
            proposal.number <= machine.counters.proposals && numbers.insert(proposal.number),
            6,
            "proposal number",
            job,
        )?;
        check_entry(entry)?;
    }
    ensure(machine.orders.len() <= ORDERS_MAX, 8, "too many orders", "all")?;
    for (job, course) in &machine.courses {
        let open = machine.proposals.get(job).is_some_and(|entry| entry.proposal.is_open());
        let counted = course.tally.is_none_or(|tally| tally.chosen <= tally.accepted);
        ensure(course.tally.is_none() == open && counted, 10, "tally", job)?;
    }
    let mut sessions = BTreeSet::new();
    ensure(machine.parties.len() <= PARTIES_MAX, 8, "too many parties", "all")?;
    for (id, party) in &machine.parties {
        let run = if let Link::Up { run, .. } = party.link { run } else { 0 };
        ensure(sessions.insert(party.session) && run <= machine.counters.run, 7, "stream", id)?;
        let bytes: usize = party.job_types.iter().map(|t| t.as_str().len()).sum();
        ensure(
            party.job_types.len() <= TYPES_MAX && bytes <= TYPES_BYTES_MAX,
            8,
            "too many job types",
            id,
        )?;
        ensure(party.job_types.is_sorted(), 8, "job types out of order", id)?;
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), String> {
    let Entry {
        proposal,
        tasks,
        participants,
    } = entry;
    let at = &proposal.id;
    let given: Vec<u32> = participants.values().filter_map(|p| p.chosen).collect();
    let distinct: BTreeSet<u32> = given.iter().copied().collect();
    ensure(
        distinct.len() == given.len() && distinct.iter().all(|i| *i < proposal.tasks),
        1,
        "task given twice or unknown",
        at,
    )?;
    ensure(given.len() <= proposal.max.min(proposal.tasks) as usize, 2, "too many chosen", at)?;
    let needed = proposal.min.min(proposal.tasks) as usize;
    match &proposal.state {
        State::Open => {
            ensure(given.is_empty(), 3, "chosen while open", at)?;
            ensure(
                tasks.len() == proposal.tasks as usize && proposal.closes_at >= proposal.opened_at,
                4,
                "open proposal",
                at,
            )?;
        }
        State::Closed { verdict, reason, .. } => {
            // A proposal is let go in pieces, tasks first: while all tasks are there, all acceptances are.
            let whole = tasks.len() == proposal.tasks as usize;
            let enough = *verdict != Verdict::Success || !whole || given.len() >= needed;
            ensure(
                (matches!(verdict, Verdict::Success | Verdict::Cancelled) || given.is_empty()) && enough,
                3,
                "chosen against the verdict",
                at,
            )?;
            ensure(*verdict == Verdict::Success || !reason.is_empty(), 9, "no reason", at)?;
        }
        State::Expired { verdict, reason, .. } => {
            ensure(
                tasks.is_empty() && participants.is_empty(),
                5,
                "expired proposal holds something",
                at,
            )?;
            ensure(*verdict == Verdict::Success || !reason.is_empty(), 9, "no reason", at)?;
        }
    }
    ensure(
        tasks.len() <= TASKS_MAX && participants.len() <= PARTICIPANTS_MAX,
        8,
        "too much in a proposal",
        at,
    )
}

fn ensure(holds: bool, number: u32, what: &str, at: impl std::fmt::Display) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("invariant {number}: {what}: {at}"))
    }
}
