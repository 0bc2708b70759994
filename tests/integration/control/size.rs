//! The largest records of a master fit what the store takes.

use fedbroker::machine::content::{Content, INLINE_MAX, PayloadRef};
use fedbroker::machine::ids::{ID_MAX, JobId, ProposalId, TaskKey, Timestamp, TypeName, WorkerId};
use fedbroker::machine::master::records::*;
use fedbroker::machine::master::spec::{ADDRESS_MAX, AGENT_MAX, ATTEMPTS_MAX, LABELS_LEN_MAX, TRACEPARENT_LEN, check_labels};
use fedbroker::machine::master::{JOB_TAIL_MAX, Record};
use fedbroker::machine::outcome::{End, Outcome, REASON_MAX, STDERR_TAIL_MAX};
use fedbroker::machine::plan::Plan;
use fedbroker::store::{BODY_MAX, codec};
use std::collections::BTreeMap;

const LATEST: Timestamp = Timestamp(u64::MAX);

fn id() -> String {
    "x".repeat(ID_MAX)
}

fn inline(len: usize) -> Content {
    Content::Inline(vec![255; len])
}

fn fits(record: &Record) {
    let size = codec::encode(record).len();
    assert!(size <= BODY_MAX, "{size} bytes, {BODY_MAX} are taken: {record:?}");
}

/// 16 labels of 32 bytes each.
fn labels() -> BTreeMap<String, String> {
    let each = LABELS_LEN_MAX / 16 / 2;
    let labels: BTreeMap<_, _> = (0..16).map(|n| (format!("{n:0each$}"), "v".repeat(each))).collect();
    check_labels(&labels).unwrap();
    labels
}

fn job(state: JobState) -> Job {
    let job_id = JobId::parse(id()).unwrap();
    let (is_final, proposing) = (state.is_final(), matches!(state, JobState::Proposing { .. }));
    let plan = Plan {
        endpoints: u16::MAX,
        workers: u32::MAX,
        wait_s: u32::MAX,
    };
    let mut spec = Spec::plain(
        TypeName::parse(id()).unwrap(),
        inline(INLINE_MAX / 2),
        Some(inline(INLINE_MAX - INLINE_MAX / 2)),
        plan,
    );
    spec.priority = -100;
    spec.not_before = Some(LATEST);
    spec.deadline = Some(LATEST);
    spec.max_attempts = ATTEMPTS_MAX;
    spec.labels = labels();
    Job {
        id: job_id.clone(),
        number: u64::MAX,
        spec,
        provenance: Provenance {
            address: "x".repeat(ADDRESS_MAX),
            agent: "x".repeat(AGENT_MAX),
            parent: Some(job_id.clone()),
            attempt: ATTEMPTS_MAX,
            key: Some(KeyHash([255; 32])),
            traceparent: Some("x".repeat(TRACEPARENT_LEN)),
        },
        submitted_at: LATEST,
        changed_at: LATEST,
        // A new state clears the note, and a job that has ended has no packed tasks and gets no note.
        note: if is_final { String::new() } else { "x".repeat(REASON_MAX) },
        proposal: proposing.then(|| inline(INLINE_MAX)),
        successor: is_final.then_some(job_id),
        steps: vec![
            Step {
                state: state.step_name(),
                at: LATEST
            };
            STEPS_MAX
        ],
        state,
        step: u32::MAX,
        tries: u32::MAX,
        lease: Some(Lease {
            worker: WorkerId::parse(id()).unwrap(),
            host: "x".repeat(Lease::HOST_MAX),
            ports: vec![u16::MAX; Lease::PORTS_MAX],
        }),
        returning: true,
        last_event: u64::MAX,
    }
}

#[test]
fn the_largest_records_fit_the_store() {
    let text = |len: usize| "x".repeat(len);
    let failure = Failure {
        reason: text(REASON_MAX),
        exit_code: Some(i32::MIN),
        stderr_tail: text(JOB_TAIL_MAX),
    };
    let states = [
        JobState::Waiting { until: LATEST },
        JobState::Proposing { legacy_call: true },
        JobState::Running,
        JobState::Failed(failure),
        JobState::Cancelled { reason: text(REASON_MAX) },
    ];
    for state in states {
        fits(&Record::Job(job(state)));
    }
    let key = TaskKey::parse(id(), id()).unwrap();
    let outcome = Outcome {
        end: End::Failed,
        reason: text(REASON_MAX),
        exit_code: Some(i32::MIN),
        stderr_tail: text(STDERR_TAIL_MAX),
        worker: Some(WorkerId::parse(id()).unwrap()),
        attempt: u32::MAX,
    };
    let stored = PayloadRef {
        hash: [255; 32],
        len: u64::MAX,
    };
    for content in [inline(INLINE_MAX), Content::Stored(stored)] {
        for state in [
            TaskState::Cancelling { reason: text(REASON_MAX) },
            TaskState::Ended(outcome.clone()),
        ] {
            fits(&Record::Task(Task {
                key: key.clone(),
                task_type: TypeName::parse(id()).unwrap(),
                content: Some(content.clone()),
                origin: Origin::Won(ProposalId::parse(id()).unwrap()),
                queued_at: LATEST,
                changed_at: LATEST,
                tries: u32::MAX,
                state,
                last_event: u64::MAX,
            }));
        }
    }
    for state in [ParticipationState::Won(key.clone()), ParticipationState::Missed(text(REASON_MAX))] {
        fits(&Record::Participation(Participation {
            proposal: ProposalId::parse(id()).unwrap(),
            job_type: TypeName::parse(id()).unwrap(),
            offered_at: LATEST,
            changed_at: LATEST,
            state,
            last_event: u64::MAX,
        }));
    }
    fits(&Record::Submission(Submission {
        job: JobId::parse(id()).unwrap(),
        fingerprint: [255; 32],
        purged_at: Some(LATEST),
    }));
}
