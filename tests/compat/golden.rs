//! Every message of FedVision 0.1's contracts as its own protobuf library wrote it (`wire/golden.json`), decoded and encoded by our
//! generated types: each field as it should be, and the same bytes again.
//!
//! The table below takes each message apart without a rest, so that no field of ours is missed; the key sets of the JSON are compared, so
//! that none of theirs is.

use bytes::Bytes;
use fedbroker::wire::Any;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::{enroll, task_resource_require, task_submit, update_status};
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, leave, proposal, subscribe};
use fedbroker::wire::fedvision::paddle_fl::{PaddleFlAggregatorTask, PaddleFlWorkerTask, init, worker_finish, worker_join};
use prost::Message;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// How many messages there are, by name; a message that gets lost from the file shows here.
const MESSAGES: usize = 63;

/// A field as the file shows it.
trait Field: Sized {
    /// `None` for a message that is not set.
    fn shown(&self) -> Option<Value>;
    fn read(shown: Option<&Value>) -> Self;
}

impl Field for String {
    fn shown(&self) -> Option<Value> {
        Some(json!(self))
    }
    fn read(shown: Option<&Value>) -> Self {
        shown.unwrap().as_str().unwrap().to_owned()
    }
}

impl Field for i32 {
    fn shown(&self) -> Option<Value> {
        Some(json!(self))
    }
    fn read(shown: Option<&Value>) -> Self {
        shown.unwrap().as_i64().unwrap().try_into().unwrap()
    }
}

impl Field for u32 {
    fn shown(&self) -> Option<Value> {
        Some(json!(self))
    }
    fn read(shown: Option<&Value>) -> Self {
        shown.unwrap().as_u64().unwrap().try_into().unwrap()
    }
}

impl Field for Bytes {
    fn shown(&self) -> Option<Value> {
        Some(json!({ "hex": hex(self) }))
    }
    fn read(shown: Option<&Value>) -> Self {
        unhex(shown.unwrap()["hex"].as_str().unwrap()).into()
    }
}

impl<T: Field> Field for Vec<T> {
    fn shown(&self) -> Option<Value> {
        Some(self.iter().map(|one| one.shown().unwrap()).collect())
    }
    fn read(shown: Option<&Value>) -> Self {
        shown.unwrap().as_array().unwrap().iter().map(|one| T::read(Some(one))).collect()
    }
}

impl<T: Field> Field for Option<T> {
    fn shown(&self) -> Option<Value> {
        self.as_ref().and_then(T::shown)
    }
    fn read(shown: Option<&Value>) -> Self {
        shown.map(|shown| T::read(Some(shown)))
    }
}

impl Field for Any {
    fn shown(&self) -> Option<Value> {
        let Any { type_url, value } = self;
        let mut shown = json!({ "type_url": type_url, "value": { "hex": hex(value) } });
        // The file opens the payloads of PaddleFL.
        match type_url.as_str() {
            "type.googleapis.com/fedvision.paddle_fl.PaddleFLWorkerTask" => {
                shown["unpacked"] = PaddleFlWorkerTask::decode(value.clone()).unwrap().fields();
            }
            "type.googleapis.com/fedvision.paddle_fl.PaddleFLAggregatorTask" => {
                shown["unpacked"] = PaddleFlAggregatorTask::decode(value.clone()).unwrap().fields();
            }
            _ => {}
        }
        Some(shown)
    }
    fn read(shown: Option<&Value>) -> Self {
        let shown = shown.unwrap();
        Any {
            type_url: Field::read(shown.get("type_url")),
            value: Field::read(shown.get("value")),
        }
    }
}

impl Field for Task {
    fn shown(&self) -> Option<Value> {
        Some(self.fields())
    }
    fn read(shown: Option<&Value>) -> Self {
        Task::of(shown.unwrap())
    }
}

/// A message as the file shows it.
trait Golden: Message + Default + PartialEq {
    fn fields(&self) -> Value;
    fn of(fields: &Value) -> Self;
    /// The name of the enum's value, where the message has one.
    fn name_of_enum(&self) -> Option<(&'static str, &'static str)>;
}

/// A type, its fields, and the field that is an enum with the enum.
macro_rules! golden {
    ($($type:path { $($field:ident),+ } $(enum $which:ident: $enum:path)?;)+) => {$(
        impl Golden for $type {
            fn fields(&self) -> Value {
                let $type { $($field),+ } = self;
                let shown = [$((stringify!($field), $field.shown())),+];
                shown.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
            }
            fn of(fields: &Value) -> Self {
                $type { $($field: Field::read(fields.get(stringify!($field)))),+ }
            }
            fn name_of_enum(&self) -> Option<(&'static str, &'static str)> {
                $(return Some((stringify!($which), <$enum>::try_from(self.$which).unwrap().as_str_name()));)?
                #[allow(unreachable_code)]
                None
            }
        }
    )+};
}

golden! {
    Task { job_id, task_id, task_type, task, assignee };
    subscribe::Req { party_id, job_types, credential };
    subscribe::Rep { status, proposal_id, job_type } enum status: subscribe::Status;
    proposal::Req { job_id, job_type, tasks, proposal_wait_time, minimum_acceptance, maximum_acceptance };
    proposal::Rep { status } enum status: proposal::Status;
    fetch_task::Req { party_id, proposal_id };
    fetch_task::Rep { status, task } enum status: fetch_task::Status;
    leave::Req { party_id };
    leave::Rep { status } enum status: leave::Status;
    enroll::Req { worker_id, worker_ip, max_tasks, port_start, port_end };
    enroll::Rep { status, task } enum status: enroll::Status;
    update_status::Req { worker_id, job_id, task_id, task_status, exception_id, exception, exec_result }
        enum task_status: update_status::TaskStatus;
    update_status::Rep { status } enum status: update_status::Status;
    task_submit::Req { task };
    task_submit::Rep { status } enum status: task_submit::Status;
    task_resource_require::Req { num_endpoints };
    task_resource_require::Rep { status, worker_id, endpoints } enum status: task_resource_require::Status;
    init::Req { name };
    init::Rep { status } enum status: init::Status;
    worker_join::Req { name, step };
    worker_join::Rep { status } enum status: worker_join::Status;
    worker_finish::Req { name };
    worker_finish::Rep { status } enum status: worker_finish::Status;
    PaddleFlWorkerTask {
        scheduler_ep, trainer_id, trainer_ep, entrypoint, main_program, startup_program, send_program, recv_program, feed_names,
        target_names, strategy, feeds, config_string, algorithm_config_string
    };
    PaddleFlAggregatorTask { scheduler_ep, main_program, startup_program, config_string };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Both ways: from the bytes to the fields and back, and from the fields to the bytes.
fn check<M: Golden>(golden: &Value) {
    let bytes = unhex(golden["hex"].as_str().unwrap());
    let decoded = M::decode(bytes.as_slice()).unwrap_or_else(|error| panic!("{golden}: {error}"));
    assert_eq!(decoded.fields(), golden["fields"], "decoded: {golden}");
    assert_eq!(hex(&decoded.encode_to_vec()), golden["hex"], "encoded again: {golden}");
    let made = M::of(&golden["fields"]);
    assert_eq!(hex(&made.encode_to_vec()), golden["hex"], "made from its fields: {golden}");
    let names = golden.get("enum_names").and_then(Value::as_object);
    let names = names.map(|names| names.iter().map(|(field, name)| (field.as_str(), name.as_str().unwrap())).collect());
    let expected: Option<BTreeSet<_>> = names;
    assert_eq!(decoded.name_of_enum().map(|one| BTreeSet::from([one])), expected, "names: {golden}");
}

#[test]
fn the_messages_of_fedvision_are_read_and_written_byte_for_byte() {
    let golden: Vec<Value> = serde_json::from_str(include_str!("wire/golden.json")).unwrap();
    assert_eq!(golden.len(), MESSAGES);
    let checks: BTreeMap<&str, fn(&Value)> = BTreeMap::from([
        ("fedvision.framework.Task", check::<Task> as fn(&Value)),
        ("fedvision.framework.coordinator.Subscribe.REQ", check::<subscribe::Req>),
        ("fedvision.framework.coordinator.Subscribe.REP", check::<subscribe::Rep>),
        ("fedvision.framework.coordinator.Proposal.REQ", check::<proposal::Req>),
        ("fedvision.framework.coordinator.Proposal.REP", check::<proposal::Rep>),
        ("fedvision.framework.coordinator.FetchTask.REQ", check::<fetch_task::Req>),
        ("fedvision.framework.coordinator.FetchTask.REP", check::<fetch_task::Rep>),
        ("fedvision.framework.coordinator.Leave.REQ", check::<leave::Req>),
        ("fedvision.framework.coordinator.Leave.REP", check::<leave::Rep>),
        ("fedvision.framework.cluster.Enroll.REQ", check::<enroll::Req>),
        ("fedvision.framework.cluster.Enroll.REP", check::<enroll::Rep>),
        ("fedvision.framework.cluster.UpdateStatus.REQ", check::<update_status::Req>),
        ("fedvision.framework.cluster.UpdateStatus.REP", check::<update_status::Rep>),
        ("fedvision.framework.cluster.TaskSubmit.REQ", check::<task_submit::Req>),
        ("fedvision.framework.cluster.TaskSubmit.REP", check::<task_submit::Rep>),
        (
            "fedvision.framework.cluster.TaskResourceRequire.REQ",
            check::<task_resource_require::Req>,
        ),
        (
            "fedvision.framework.cluster.TaskResourceRequire.REP",
            check::<task_resource_require::Rep>,
        ),
        ("fedvision.paddle_fl.Init.REQ", check::<init::Req>),
        ("fedvision.paddle_fl.Init.REP", check::<init::Rep>),
        ("fedvision.paddle_fl.WorkerJoin.REQ", check::<worker_join::Req>),
        ("fedvision.paddle_fl.WorkerJoin.REP", check::<worker_join::Rep>),
        ("fedvision.paddle_fl.WorkerFinish.REQ", check::<worker_finish::Req>),
        ("fedvision.paddle_fl.WorkerFinish.REP", check::<worker_finish::Rep>),
        ("fedvision.paddle_fl.PaddleFLWorkerTask", check::<PaddleFlWorkerTask>),
        ("fedvision.paddle_fl.PaddleFLAggregatorTask", check::<PaddleFlAggregatorTask>),
    ]);
    let mut seen = BTreeSet::new();
    for message in &golden {
        let name = message["message"].as_str().unwrap();
        checks.get(name).unwrap_or_else(|| panic!("no type of ours for {name}"))(message);
        seen.insert(name);
    }
    assert_eq!(
        seen,
        checks.keys().copied().collect(),
        "a message of the contracts has no golden bytes"
    );
}
