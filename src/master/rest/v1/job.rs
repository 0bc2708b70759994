//! A job as `/api/v1` shows it.
//!
//! Made from durable records only; holds no rules. A name in here is a promise to clients.

use super::problem::{Problem, quoted};
use super::task::Task;
use super::time::time;
use crate::machine::Machine;
use crate::machine::master::federation::{Announced, Peer};
use crate::machine::master::records::{Job as Record, JobState, KeyHash, StepName};
use crate::machine::master::{Master, Record as AnyRecord};
use crate::master::peers::Peers;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// A job this party initiated. Lists leave out `config`, `algorithm_config`, `tasks`, `proposal` and `parties` unless `fields` names
/// them.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Job {
    /// `<party>-<YYYYmmddHHMMSS>-<n>`
    #[schema(example = "p1-20260101120000-7")]
    pub job_id: String,
    #[schema(example = "program")]
    pub job_type: String,
    pub state: State,
    /// Why it waits, or why it ended badly.
    pub reason: Option<String>,
    /// False once nothing more can happen to it.
    pub live: bool,
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it entered its state.
    #[schema(format = DateTime)]
    pub changed_at: String,
    #[schema(format = DateTime)]
    pub ended_at: Option<String>,
    /// `created_at` by the name it had in 0.1.0.
    #[schema(format = DateTime)]
    pub submitted_at: String,
    /// -100 to 100: higher goes first where jobs wait; age raises it.
    pub priority: i8,
    /// It does not begin before.
    #[schema(format = DateTime)]
    pub not_before: Option<String>,
    /// It has failed when it has not ended by then.
    #[schema(format = DateTime)]
    pub deadline: Option<String>,
    /// How often it is tried in all, each time as a job of its own.
    pub max_attempts: u32,
    pub labels: BTreeMap<String, String>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The job it repeats.
    pub parent: Option<String>,
    /// The job that tries again what it failed to do.
    pub successor: Option<String>,
    pub submitted_by: Submitter,
    /// W3C `traceparent` of the submission.
    pub traceparent: Option<String>,
    /// SHA-256 of the `Idempotency-Key` of the submission.
    pub idempotency_key_sha256: Option<String>,
    /// The states it entered, in order; the newest 16.
    pub steps: Vec<Step>,
    /// Exit code of the process that failed, if one did.
    pub exit_code: Option<i32>,
    /// Its last lines of stderr.
    pub stderr_tail: Option<String>,
    /// `job_config` as it was submitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub config: Option<Value>,
    /// As it was submitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub algorithm_config: Option<Option<String>>,
    /// Of this party's own cluster, the first 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Task>)]
    pub tasks: Option<Vec<Task>>,
    /// How its proposal went; null for a job that was not proposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Proposed>)]
    pub proposal: Option<Option<Proposed>>,
    /// The chosen parties, by name. With a coordinator of FedVision 0.1 none are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Party>)]
    pub parties: Option<Vec<Party>>,
}

/// How the proposal of a job went, as far as the coordinator told.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Proposed {
    proposal_id: Option<String>,
    /// `unknown`, `open`, `accepted`, `refused` or `cancelled`.
    status: &'static str,
    /// Why it was refused or cancelled.
    reason: Option<String>,
    /// Parties it was offered to.
    asked: u32,
    /// Parties that accepted.
    accepted: u32,
    /// Parties with a task.
    chosen: u32,
}

/// A party that was chosen for a job, and how its task stands there.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Party {
    #[schema(example = "p2")]
    party: String,
    task_id: String,
    /// `unknown`, `running`, `success`, `failed` or `cancelled`, as far as that party told.
    state: &'static str,
    reason: Option<String>,
    /// When this party learnt it.
    #[schema(format = DateTime)]
    changed_at: String,
}

/// Who submitted a job.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Submitter {
    /// Its address, without the port.
    #[schema(example = "127.0.0.1")]
    address: Option<String>,
    /// What it called itself, the first 64 bytes.
    #[schema(example = "curl/8.5.0")]
    agent: Option<String>,
}

/// A state that a job entered.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::master::rest) struct Step {
    state: State,
    #[schema(format = DateTime)]
    at: String,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobState)]
pub(in crate::master::rest) enum State {
    /// Is not to begin yet.
    Waiting,
    /// A user holds it back.
    Held,
    /// Waits for endpoints and a slot at the cluster manager.
    Leasing,
    /// Is compiled and packed.
    Preparing,
    /// Is proposed to the other parties.
    Proposing,
    /// Its tasks run, or wait for a worker.
    Running,
    /// Ended well.
    Success,
    /// Ended badly; `reason` tells why.
    Failed,
    /// A user ended it.
    Cancelled,
}

impl From<StepName> for State {
    fn from(name: StepName) -> Self {
        match name {
            StepName::Waiting => State::Waiting,
            StepName::Held => State::Held,
            StepName::Leasing => State::Leasing,
            StepName::Preparing => State::Preparing,
            StepName::Proposing => State::Proposing,
            StepName::Running => State::Running,
            StepName::Succeeded => State::Success,
            StepName::Failed => State::Failed,
            StepName::Cancelled => State::Cancelled,
        }
    }
}

/// What is not in the record of a job.
#[derive(Debug, Default)]
pub(in crate::master::rest) struct Beside {
    pub config: Option<Value>,
    pub algorithm_config: Option<Option<String>>,
    pub tasks: Option<Vec<Task>>,
    pub proposal: Option<Option<Proposed>>,
    pub parties: Option<Vec<Party>>,
}

impl Beside {
    /// Take in what is known of the other parties.
    pub(in crate::master::rest) fn tell(&mut self, peers: &Peers, proposal: bool, parties: bool) {
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        let proposed = |announced: &Announced| Proposed {
            proposal_id: announced.proposal.as_ref().map(ToString::to_string),
            status: announced.status.name(),
            reason: said(&announced.reason),
            asked: announced.asked,
            accepted: announced.accepted,
            chosen: announced.chosen,
        };
        let party = |peer: &Peer| Party {
            party: peer.party.to_string(),
            task_id: peer.task.to_string(),
            state: peer.state.name(),
            reason: said(&peer.reason),
            changed_at: time(peer.changed_at),
        };
        self.proposal = proposal.then(|| peers.announced.as_ref().map(proposed));
        self.parties = parties.then(|| peers.parties.iter().map(party).collect());
    }
}

impl Job {
    /// From its record.
    pub(in crate::master::rest) fn new(job: &Record, beside: Beside) -> Self {
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        let failure = match &job.state {
            JobState::Failed(failure) => Some(failure),
            _ => None,
        };
        let reason = match &job.state {
            JobState::Failed(failure) => said(&failure.reason),
            JobState::Cancelled { reason } => said(reason),
            _ => said(&job.note),
        };
        let step = |step: &crate::machine::master::records::Step| Step {
            state: State::from(step.state),
            at: time(step.at),
        };
        Self {
            job_id: job.id.to_string(),
            job_type: job.spec.job_type.to_string(),
            state: State::from(job.state.step_name()),
            reason,
            live: Master::is_live(&AnyRecord::Job(job.clone())),
            created_at: time(job.submitted_at),
            changed_at: time(job.changed_at),
            ended_at: job.state.is_final().then(|| time(job.changed_at)),
            submitted_at: time(job.submitted_at),
            priority: job.spec.priority,
            not_before: job.spec.not_before.map(time),
            deadline: job.spec.deadline.map(time),
            max_attempts: job.spec.max_attempts,
            labels: job.spec.labels.clone(),
            attempt: job.provenance.attempt,
            parent: job.provenance.parent.as_ref().map(ToString::to_string),
            successor: job.successor.as_ref().map(ToString::to_string),
            submitted_by: Submitter {
                address: said(&job.provenance.address),
                agent: said(&job.provenance.agent),
            },
            traceparent: job.provenance.traceparent.clone(),
            idempotency_key_sha256: job.provenance.key.as_ref().map(KeyHash::hex),
            steps: job.steps.iter().map(step).collect(),
            exit_code: failure.and_then(|failure| failure.exit_code),
            stderr_tail: failure.map(|failure| failure.stderr_tail.clone()),
            config: beside.config,
            algorithm_config: beside.algorithm_config,
            tasks: beside.tasks,
            proposal: beside.proposal,
            parties: beside.parties,
        }
    }
}

/// The fields a request asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::master::rest) struct Fields(Option<BTreeSet<String>>);

impl Fields {
    /// What lists leave out.
    const LARGE: [&str; 5] = ["config", "algorithm_config", "tasks", "proposal", "parties"];
    /// The rest of a job.
    const SMALL: [&str; 23] = [
        "job_id",
        "job_type",
        "state",
        "reason",
        "live",
        "created_at",
        "changed_at",
        "ended_at",
        "submitted_at",
        "priority",
        "not_before",
        "deadline",
        "max_attempts",
        "labels",
        "attempt",
        "parent",
        "successor",
        "submitted_by",
        "traceparent",
        "idempotency_key_sha256",
        "steps",
        "exit_code",
        "stderr_tail",
    ];

    /// From `fields`, a list with commas.
    ///
    /// # Errors
    /// One that a job does not have.
    pub(in crate::master::rest) fn parse(text: Option<String>) -> Result<Self, Problem> {
        let Some(text) = text else { return Ok(Self(None)) };
        let known = |name: &str| Self::SMALL.contains(&name) || Self::LARGE.contains(&name);
        let check = |name: &str| {
            if known(name) {
                return Ok(name.to_owned());
            }
            let all = [Self::SMALL.as_slice(), &Self::LARGE].concat().join(", ");
            Err(Problem::parameter(
                "fields",
                format!("{} is none of a job; there are {all}", quoted(name)),
            ))
        };
        text.split(',').map(check).collect::<Result<_, _>>().map(|names| Self(Some(names)))
    }

    /// No choice.
    pub(in crate::master::rest) fn all() -> Self {
        Self(None)
    }

    /// Whether this large one is asked for in a list.
    pub(in crate::master::rest) fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_some_and(|names| names.contains(name))
    }

    /// Whether it is shown of a job that is asked for by its id.
    pub(in crate::master::rest) fn shows(&self, name: &str) -> bool {
        self.0.is_none() || self.has(name)
    }

    /// The job with these fields only.
    pub(in crate::master::rest) fn pick(&self, job: &Job) -> Value {
        let mut whole = serde_json::to_value(job).expect("a job is plain data with text keys");
        if let (Some(names), Value::Object(fields)) = (&self.0, &mut whole) {
            fields.retain(|name, _| names.contains(name));
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use utoipa::PartialSchema;

    #[test]
    fn every_field_of_a_job_can_be_asked_for() {
        let schema = serde_json::to_value(Job::schema()).unwrap();
        let shown: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let known: BTreeSet<&str> = Fields::SMALL.into_iter().chain(Fields::LARGE).collect();
        assert_eq!(shown, known);
        assert!(Fields::parse(Some("job_id,nope".to_owned())).is_err());
        assert!(Fields::parse(Some(String::new())).is_err());
    }
}
