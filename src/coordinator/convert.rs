//! Between the wire and the machine: ids are checked, tasks become content, verdicts and refusals become statuses.
//!
//! Called by `service`. Must never panic on what a peer sends, and never let a number or a text through that the machine does not bound.

use super::intake::Kept;
use crate::engine::Refusal;
use crate::machine::content::{Content, PayloadRef};
use crate::machine::coordinator::{Assignment, AssignmentState, Command, INSTANCE_MAX, Order, Rejection, TASKS_MAX, Verdict};
use crate::machine::ids::{BadId, JobId, PartyId, TaskId, TypeName};
use crate::machine::outcome::End;
use crate::store;
use crate::store::payload::{Payloads, Pinned};
use crate::wire::fedbroker::v1 as ours;
use crate::wire::fedvision::framework::coordinator::proposal;
use crate::wire::metadata;
use crate::wire::pieces;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

/// A Propose command whose payload files are durable and pinned.
pub(super) struct Prepared {
    pub(super) job: JobId,
    pub(super) command: Command,
    pub(super) pins: Vec<Pinned>,
}

/// Check a proposal and store its tasks, but those that are kept already and have no payload in it. Blocks.
pub(super) fn prepare(payloads: &Payloads, request: &proposal::Req, kept: &Kept, owner: Option<String>) -> Result<Prepared, Status> {
    let job = JobId::parse(request.job_id.as_str()).map_err(|error| bad_id(&error))?;
    let job_type = type_name(&request.job_type)?;
    // Refused by the machine for their number: nothing of them is kept.
    let keep = request.tasks.len() <= TASKS_MAX;
    let mut fingerprint = Fingerprint::new(request);
    let (mut tasks, mut pins) = (Vec::with_capacity(request.tasks.len()), Vec::new());
    for (place, task) in request.tasks.iter().enumerate() {
        let task_id = TaskId::parse(task.task_id.as_str()).map_err(|error| bad_id(&error))?;
        // A party that took it would count it as a task of that other job.
        if task.job_id != request.job_id {
            return Err(Status::invalid_argument(format!(
                "tasks: task {task_id} must carry the job_id of the proposal"
            )));
        }
        let file = kept.file(place);
        let content = match file {
            _ if !keep => Content::default(),
            Some(pin) => {
                fingerprint.add_file(payloads, pin).map_err(|error| store_failed(&error))?;
                pins.push(pin.clone());
                Content::Stored(**pin)
            }
            None => {
                let pieces = pieces::of_task(task);
                fingerprint.add(&pieces);
                let (content, pin) = payloads.keep(&pieces).map_err(|error| store_failed(&error))?;
                pins.extend(pin);
                content
            }
        };
        tasks.push((task_id, content));
    }
    let command = Command::Propose {
        job_id: job.clone(),
        job_type,
        tasks,
        wait_s: request.proposal_wait_time,
        min: request.minimum_acceptance,
        max: request.maximum_acceptance,
        fingerprint: fingerprint.finish(),
        owner,
    };
    Ok(Prepared { job, command, pins })
}

/// SHA-256 over everything in a proposal but its job id, each text with its length before it.
struct Fingerprint(Sha256);

impl Fingerprint {
    fn new(request: &proposal::Req) -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.add(&[request.job_type.as_bytes()]);
        for number in [request.proposal_wait_time, request.minimum_acceptance, request.maximum_acceptance] {
            fingerprint.0.update(number.to_le_bytes());
        }
        fingerprint
    }

    fn add(&mut self, pieces: &[impl AsRef<[u8]>]) {
        let len: usize = pieces.iter().map(|piece| piece.as_ref().len()).sum();
        self.0.update((len as u64).to_le_bytes());
        pieces.iter().for_each(|piece| self.0.update(piece));
    }

    fn add_file(&mut self, payloads: &Payloads, payload: &PayloadRef) -> Result<(), store::Error> {
        self.0.update(payload.len.to_le_bytes());
        let Some(mut reader) = payloads.pieces(payload)? else {
            // It is pinned, so it was not let go.
            return payloads.prove(payload);
        };
        while let Some(piece) = reader.read()? {
            self.0.update(piece);
        }
        Ok(())
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The identity of the caller's data directory, when it is one of ours.
pub(super) fn instance(headers: &tonic::metadata::MetadataMap) -> Result<Option<String>, Status> {
    let Some(value) = headers.get(metadata::INSTANCE) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if text.len() <= INSTANCE_MAX => Ok(Some(text.to_owned())),
        _ => Err(Status::invalid_argument(format!(
            "{}: must be ASCII, at most {INSTANCE_MAX} bytes",
            metadata::INSTANCE
        ))),
    }
}

/// A job type of a request.
pub(super) fn type_name(text: &str) -> Result<TypeName, Status> {
    TypeName::parse(text).map_err(|error| Status::invalid_argument(format!("job_type: {}", error.why)))
}

/// A field that cannot be taken.
pub(super) fn bad_id(error: &BadId) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The disk did not do what it should: the caller may try again.
pub(super) fn store_failed(error: &store::Error) -> Status {
    tracing::error!(%error, "a request failed for its store");
    if matches!(error, store::Error::Damaged { .. }) {
        return Status::data_loss(format!("the coordinator lost what was asked for: {error}"));
    }
    Status::unavailable(format!("the coordinator could not use its store: {error}"))
}

/// A command without a reply.
pub(super) fn refused(refusal: Refusal<Rejection>) -> Status {
    let code = match &refusal {
        // Not RESOURCE_EXHAUSTED for a full disk: that is the word of grpc for a message that will always be too large, and a proposer
        // gives up on it. UNAVAILABLE is what a coordinator that is away gives, which every client waits out.
        Refusal::DiskFull | Refusal::Unknown | Refusal::Stopped => Code::Unavailable,
        Refusal::Rejected(rejection) => match rejection {
            Rejection::Duplicate(_) | Rejection::OtherProposal(_) => Code::AlreadyExists,
            Rejection::LongJobId(_) | Rejection::TooManyTypes | Rejection::LongInstance => Code::InvalidArgument,
            Rejection::TooManyParties | Rejection::TooManyParticipants | Rejection::TooManyProposals => Code::ResourceExhausted,
            Rejection::Settling { .. } | Rejection::TooManyOrders => Code::Unavailable,
            Rejection::NotChosen(..) | Rejection::OtherTask(..) | Rejection::OtherEnd(..) => Code::FailedPrecondition,
            Rejection::NotTheOne(..) => Code::PermissionDenied,
        },
    };
    Status::new(code, refusal.to_string())
}

/// An order as it goes to the party.
pub(super) fn order(job: &JobId, order: &Order) -> ours::Order {
    ours::Order {
        proposal_id: order.proposal(job).map(|id| id.to_string()).unwrap_or_default(),
        job_id: job.to_string(),
        task_id: order.task.to_string(),
        reason: order.reason.clone(),
    }
}

/// What a party reports; `None` for what is no report.
pub(super) fn reported(state: ours::TaskState) -> Option<AssignmentState> {
    match state {
        ours::TaskState::Running => Some(AssignmentState::Running),
        ours::TaskState::Succeeded => Some(AssignmentState::Ended(End::Succeeded)),
        ours::TaskState::Failed => Some(AssignmentState::Ended(End::Failed)),
        ours::TaskState::Cancelled => Some(AssignmentState::Ended(End::Cancelled)),
        ours::TaskState::Unspecified | ours::TaskState::Unknown => None,
    }
}

/// A chosen party as its initiator sees it.
pub(super) fn chosen(party: &PartyId, assignment: &Assignment) -> ours::ChosenParty {
    let (state, has_ended) = match assignment.state {
        AssignmentState::Given => (ours::TaskState::Unknown, assignment.instance.is_none()),
        AssignmentState::Running => (ours::TaskState::Running, false),
        AssignmentState::Ended(End::Succeeded) => (ours::TaskState::Succeeded, true),
        AssignmentState::Ended(End::Failed) => (ours::TaskState::Failed, true),
        AssignmentState::Ended(End::Cancelled) => (ours::TaskState::Cancelled, true),
    };
    ours::ChosenParty {
        party_id: party.to_string(),
        task_id: assignment.task.to_string(),
        state: state.into(),
        reason: assignment.reason.clone(),
        r#final: has_ended,
    }
}

/// The answer to a proposal.
pub(super) fn verdict(verdict: Verdict, reason: &str) -> tonic::Response<proposal::Rep> {
    let status = match verdict {
        Verdict::Success => proposal::Status::Success,
        Verdict::NotEnoughResponders => proposal::Status::NotEnoughResponders,
        Verdict::NotEnoughSubscribers => proposal::Status::NotEnoughSubscribers,
        Verdict::Reject | Verdict::Cancelled => proposal::Status::Reject,
    };
    let mut response = tonic::Response::new(proposal::Rep { status: status.into() });
    let ascii: String = reason
        .chars()
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
        .collect();
    if let Ok(value) = ascii.parse()
        && verdict != Verdict::Success
    {
        response.metadata_mut().insert(metadata::REASON, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fedvision::framework::Task;
    use prost::Message;

    #[test]
    fn reasons_are_ascii_and_success_has_none() {
        let response = verdict(Verdict::Reject, "no party: \u{e9}\n\u{7f}");
        assert_eq!(response.metadata().get(metadata::REASON).unwrap(), "no party: ???");
        assert!(verdict(Verdict::Success, "x").metadata().get(metadata::REASON).is_none());
    }

    #[test]
    fn fingerprints_tell_requests_apart_and_leave_the_job_id_out() {
        let of = |request: &proposal::Req| {
            let mut fingerprint = Fingerprint::new(request);
            request.tasks.iter().for_each(|task| fingerprint.add(&[task.encode_to_vec()]));
            fingerprint.finish()
        };
        let task = |id: &str| Task {
            task_id: id.to_owned(),
            ..Task::default()
        };
        let base = proposal::Req {
            job_id: "j".into(),
            job_type: "t".into(),
            tasks: vec![task("a"), task("b")],
            ..Default::default()
        };
        assert_eq!(
            of(&base),
            of(&proposal::Req {
                job_id: "k".into(),
                ..base.clone()
            })
        );
        for other in [
            proposal::Req {
                job_type: "u".into(),
                ..base.clone()
            },
            proposal::Req {
                tasks: vec![task("b"), task("a")],
                ..base.clone()
            },
            proposal::Req {
                tasks: vec![task("ab")],
                ..base.clone()
            },
            proposal::Req {
                proposal_wait_time: 1,
                ..base.clone()
            },
            proposal::Req {
                minimum_acceptance: 1,
                ..base.clone()
            },
            proposal::Req {
                maximum_acceptance: 1,
                ..base.clone()
            },
        ] {
            assert_ne!(of(&base), of(&other), "{other:?}");
        }
    }
}
