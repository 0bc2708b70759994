//! What must be true of the remains, whatever was killed when.
//!
//! An answered submission is a promise. An unanswered one is unknown: its job may be there, whole and once, or not at all. Either way a job
//! that is there has ended, and the roles agree about how.

use super::load::{Submission, text};
use super::remains::{PartyRemains, Remains};
use fedbroker::machine::cluster::{self, records::TaskState as ClusterState};
use fedbroker::machine::coordinator::{self, State, Verdict};
use fedbroker::machine::ids::{JobId, TaskKey};
use fedbroker::machine::master::records::{Job, JobState, Origin, ParticipationState, TaskState};
use fedbroker::machine::master::{self, Event};
use fedbroker::machine::outcome::End;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What came of the jobs.
#[derive(Debug, Default)]
pub struct Tally {
    /// Jobs found.
    pub jobs: usize,
    /// Those whose submission was answered.
    pub answered: usize,
    /// Submissions whose outcome the caller never learned.
    pub unanswered: usize,
    /// Jobs found of such submissions.
    pub unanswered_found: usize,
    /// Jobs that ended well.
    pub succeeded: usize,
    /// Jobs that failed, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Tasks given to workers.
    pub tasks: usize,
    /// Events in all logs.
    pub events: usize,
}

/// Check everything; `started` counts the runs of each attempt that the workers' logs tell of.
pub fn check(remains: &Remains, started: &HashMap<(String, u32), u32>) -> Tally {
    let mut tally = Tally::default();
    remains.check_replay();
    check_submissions(remains, &mut tally);
    check_proposals(remains);
    for party in &remains.parties {
        check_numbers(party);
        check_cluster(party, started);
        check_queue(party);
        tally.tasks += party.cluster_tasks().count();
        tally.events += party.master.events.len() + party.cluster.events.len();
    }
    tally.events += remains.coordinator.events.len();
    tally
}

/// Every answered submission has its job, every job has its one submission, and each job ended as it had to.
fn check_submissions(remains: &Remains, tally: &mut Tally) {
    let numbers: HashMap<String, usize> = (0..remains.submissions.len()).map(|n| (text(n), n)).collect();
    let windows = windows(remains);
    let mut found: HashMap<usize, &Job> = HashMap::new();
    for (index, party) in remains.parties.iter().enumerate() {
        for job in party.jobs() {
            let content = job.spec.algorithm_config.as_ref().expect("every submission has one");
            let said = String::from_utf8(party.master.content(content)).unwrap();
            let number = *numbers
                .get(&said)
                .unwrap_or_else(|| panic!("job {} is of no submission: {said:?}", job.id));
            let submission = &remains.submissions[number];
            assert_eq!(submission.party, index, "job {} is at another master than it was sent to", job.id);
            let config: serde_json::Value = serde_json::from_slice(&party.master.content(&job.spec.config)).unwrap();
            assert_eq!(config, submission.config(), "job {} is not what was submitted", job.id);
            if let Some(twin) = found.insert(number, job) {
                panic!("one submission became two jobs, {} and {}", twin.id, job.id);
            }
            check_end(submission, job, &windows, tally);
        }
    }
    for (number, submission) in remains.submissions.iter().enumerate() {
        let job = found.get(&number).map(|job| job.id.as_str());
        match &submission.answer {
            Some(answer) => assert_eq!(job, Some(answer.as_str()), "an accepted job is gone, or under another id"),
            None => tally.unanswered_found += usize::from(job.is_some()),
        }
    }
    tally.jobs = found.len();
    tally.answered = remains.submissions.iter().filter(|s| s.answer.is_some()).count();
    tally.unanswered = remains.submissions.len() - tally.answered;
}

/// The only reasons to fail: it was asked for, a worker was lost, or (while parties were down) too few parties were there.
fn check_end(submission: &Submission, job: &Job, windows: &HashMap<&JobId, &'static str>, tally: &mut Tally) {
    let failure = match &job.state {
        JobState::Succeeded => {
            assert!(!submission.fail, "job {} was to fail: {submission:?}", job.id);
            tally.succeeded += 1;
            return;
        }
        JobState::Failed(failure) => failure,
        other => panic!("job {} has not ended: {other:?}", job.id),
    };
    let reason = failure.reason.as_str();
    let kind = if reason.ends_with("failed: asked to fail") && submission.fail {
        "asked to fail"
    } else if reason.contains("failed: worker p") && reason.ends_with("was restarted") {
        "a worker was restarted"
    } else if reason.contains("failed: worker p") && reason.ends_with("was lost") {
        "a worker was lost"
    } else if reason.starts_with("too few parties accepted") && submission.workers > 0 {
        // A busy machine may need longer than a window without any kill, so this is told and not asserted.
        windows.get(&job.id).copied().unwrap_or("too few parties accepted")
    } else {
        panic!(
            "job {} failed for a reason that no crash excuses: {reason} ({submission:?})",
            job.id
        );
    };
    let excused = kind == "asked to fail" || !submission.quiet;
    assert!(excused, "job {} failed when nothing was killed: {reason} ({submission:?})", job.id);
    *tally.failed.entry(kind.to_owned()).or_default() += 1;
}

/// How the parties were connected in the window of each job, as the coordinator's log tells.
fn windows(remains: &Remains) -> HashMap<&JobId, &'static str> {
    let (mut connected, mut cut_off) = (HashSet::new(), HashSet::new());
    let (mut open, mut windows) = (HashMap::new(), HashMap::new());
    for event in &remains.coordinator.events {
        match event {
            coordinator::Event::Subscribed { party, .. } => {
                cut_off.remove(party);
                connected.insert(party);
            }
            coordinator::Event::Disconnected { party, .. } => {
                connected.remove(party);
                open.values_mut()
                    .for_each(|window| *window = "too few parties accepted, one went away");
            }
            coordinator::Event::Started { .. } => cut_off.extend(connected.drain()),
            coordinator::Event::Proposed(proposal) => {
                let all = connected.len() + cut_off.len() == remains.parties.len();
                let window = if all {
                    "too few parties accepted, all were there"
                } else {
                    "too few parties accepted, one was away"
                };
                open.insert(&proposal.job_id, window);
            }
            coordinator::Event::Closed { job, .. } => {
                let window = open.remove(job).unwrap_or_default();
                let late = "too few parties accepted, the coordinator's crash cut one off";
                windows.insert(job, if cut_off.is_empty() { window } else { late });
            }
            _ => {}
        }
    }
    windows
}

/// Job numbers rise by one from 1 and are in the ids, so that no id is ever given twice.
fn check_numbers(party: &PartyRemains) {
    let mut last = 0;
    for event in &party.master.events {
        if let Event::JobAccepted { id, number, .. } = event {
            assert_eq!(*number, last + 1, "job numbers of {}", party.id);
            let fits = id.as_str().starts_with(&format!("{}-", party.id)) && id.as_str().ends_with(&format!("-{number}"));
            assert!(fits, "job id {id} of number {number}");
            last = *number;
        }
    }
    assert_eq!(usize::try_from(last).unwrap(), party.jobs().count(), "jobs of {}", party.id);
}

/// One proposal for each job that asked for parties, of a job its master knows, and each of its tasks at the one party that was drawn.
fn check_proposals(remains: &Remains) {
    let mut made: HashMap<&JobId, u32> = HashMap::new();
    for event in &remains.coordinator.events {
        if let coordinator::Event::Proposed(proposal) = event {
            *made.entry(&proposal.job_id).or_default() += 1;
        }
    }
    for job in remains.parties.iter().flat_map(PartyRemains::jobs) {
        let expected = (job.spec.plan.workers > 0).then_some(1);
        assert_eq!(made.remove(&job.id), expected, "proposals of job {}", job.id);
        if job.spec.plan.workers > 0 {
            check_proposal(remains, job);
        }
    }
    assert!(
        made.is_empty(),
        "the coordinator has proposals of jobs that no master knows: {made:?}"
    );
}

fn check_proposal(remains: &Remains, job: &Job) {
    let proposal = remains.proposal(&job.id).unwrap();
    let verdict = match &proposal.state {
        State::Closed { verdict, .. } | State::Expired { verdict, .. } => *verdict,
        State::Open => panic!("the proposal of job {} is still open", job.id),
    };
    let chosen = remains.chosen(&job.id);
    if verdict == Verdict::Success {
        assert_eq!(chosen.len(), job.spec.plan.workers as usize, "parties chosen for job {}", job.id);
    } else {
        assert!(chosen.is_empty(), "parties chosen for job {} against the verdict", job.id);
        assert_ne!(job.state, JobState::Succeeded, "job {} against the verdict", job.id);
    }
    let tasks: HashSet<u32> = chosen.iter().map(|(_, index)| *index).collect();
    assert_eq!(tasks.len(), chosen.len(), "a task of job {} was given to two parties", job.id);
    for party in &remains.parties {
        let index = chosen.iter().find(|(id, _)| id.as_str() == party.id).map(|(_, index)| *index);
        let won = index.map(|index| TaskKey::parse(job.id.as_str(), format!("trainer_{index}")).unwrap());
        match (party.participation(&proposal.id), &won) {
            (Some(ParticipationState::Won(key)), Some(won)) => assert_eq!(key, won),
            // The initiator's own part, when its job has ended before the answer came: nothing of it begins any more.
            (Some(ParticipationState::Missed(_)), Some(_)) if party.jobs().any(|own| own.id == job.id) => {}
            (state, Some(won)) => panic!("{} was given {won} and has {state:?}", party.id),
            (Some(ParticipationState::Won(key)), None) => panic!("{} has {key}, which it was not given", party.id),
            (_, None) => {}
        }
        let trainers = party
            .tasks()
            .filter(|task| task.key.job == job.id && task.key.task.as_str() != "aggregator");
        for task in trainers {
            assert_eq!(Some(&task.key), won.as_ref(), "{} has a task it was not given", party.id);
            assert_eq!(task.origin, Origin::Won(proposal.id.clone()));
        }
    }
}

/// Each task was begun once at most, ended once, and the worker's own log knows of no other run.
fn check_cluster(party: &PartyRemains, started: &HashMap<(String, u32), u32>) {
    let mut counts: HashMap<&TaskKey, [u32; 3]> = HashMap::new();
    for event in &party.cluster.events {
        match event {
            cluster::Event::TaskSubmitted { key, .. } => counts.entry(key).or_default()[0] += 1,
            cluster::Event::TaskAssigned { key, .. } => counts.entry(key).or_default()[1] += 1,
            cluster::Event::TaskEnded { key, .. } => counts.entry(key).or_default()[2] += 1,
            cluster::Event::TaskRequeued { key, .. } => panic!("{key} was to be tried once"),
            _ => {}
        }
    }
    for (key, task) in party.cluster_tasks() {
        let [submitted, assigned, ended] = counts.remove(key).unwrap_or_default();
        let once = submitted == 1 && assigned <= 1 && ended == 1;
        assert!(once, "{key} was submitted {submitted}, assigned {assigned}, ended {ended} times");
        let runs = started.get(&(key.to_string(), 1)).copied().unwrap_or_default();
        assert!(runs <= assigned, "{key} was assigned {assigned} times and ran {runs} times");
        let ClusterState::Ended(outcome) = &task.state else {
            panic!("{key} has not ended: {:?}", task.state)
        };
        let finished = outcome.end == End::Succeeded || outcome.reason == "asked to fail";
        assert!(!finished || runs == 1, "{key} ended with {outcome:?} and ran {runs} times");
    }
    assert!(counts.is_empty(), "events of tasks without a record: {counts:?}");
}

/// Master and cluster manager agree about every task, and a job that succeeded had all its own tasks run well.
fn check_queue(party: &PartyRemains) {
    let mut at_cluster: HashMap<_, _> = party.cluster_tasks().collect();
    let mut own: HashMap<&JobId, Vec<End>> = HashMap::new();
    for task in party.tasks() {
        let TaskState::Ended(outcome) = &task.state else {
            panic!("{} has not ended: {:?}", task.key, task.state)
        };
        own.entry(&task.key.job).or_default().push(outcome.end);
        match at_cluster.remove(&task.key).map(|task| &task.state) {
            Some(ClusterState::Ended(ended)) => assert_eq!(ended.end, outcome.end, "{}: {ended:?}, {outcome:?}", task.key),
            Some(state) => panic!("{}: {state:?} at the manager", task.key),
            None => assert_eq!(outcome.end, End::Cancelled, "{} was never at the manager: {outcome:?}", task.key),
        }
    }
    assert!(at_cluster.is_empty(), "the manager has tasks that its master does not know");
    for job in party.jobs().filter(|job| job.state == JobState::Succeeded) {
        let ends = own.get(&job.id).cloned().unwrap_or_default();
        let well = !ends.is_empty() && ends.iter().all(|end| *end == End::Succeeded);
        assert!(well, "job {} is a success of {ends:?}", job.id);
    }
    let counter = party.master.records.get(&master::Key::Counter);
    let count = party.jobs().count() as u64;
    assert_eq!(counter, (count > 0).then_some(&master::Record::Counter(count)));
}
