//! Whatever is asked, the answer is never a 5xx, and every refusal is a whole problem.

use super::{Http, master};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const PATHS: &[&str] = &[
    "/api/v1/jobs",
    "/api/v1/jobs:batch",
    "/api/v1/jobs:cancel",
    "/api/v1/jobs/x:cancel",
    "/api/v1/jobs/x:rerun",
    "/api/v1/jobs/x:nope",
    "/api/v1/events",
    "/api/v1/jobs/x/events",
    "/api/v1/jobs/p1-20260101000000-1",
    "/api/v1/jobs/x/tasks",
    "/api/v1/jobs/x/tasks/y",
    "/api/v1/tasks",
    "/api/v1/proposals",
    "/api/v1/proposals/x",
    "/api/v1/status",
];
const NAMES: &[&str] = &[
    "state",
    "job_type",
    "label",
    "created_after",
    "created_before",
    "q",
    "order",
    "fields",
    "limit",
    "cursor",
    "wait",
    "until",
    "job_id",
    "task_type",
];
const VALUES: &[&str] = &[
    "",
    "1",
    "500",
    "-1",
    "99999999999999999999",
    "failed",
    "success",
    "created_asc",
    "a:b",
    "a",
    ":",
    "job_id,config,tasks",
    "2026-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "p1-",
    "p1-20260101000000-",
    "p1-99999999999999-0",
    "1ms",
    "terminal",
    "change",
    "AQ",
    "%00",
    "%ff",
    "%F0%9F%A6%80",
];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("dummy")),
        Just(json!({ "worker_num": 0 })),
        Just(json!("2026-01-01T00:00:00Z")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let name = prop_oneof![
            Just("job_type".to_owned()),
            Just("job_config".to_owned()),
            Just("labels".to_owned()),
            Just("items".to_owned()),
            Just("priority".to_owned()),
            Just("not_before".to_owned()),
            Just("idempotency_key".to_owned()),
            "\\PC{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..5).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

#[test]
fn nothing_that_is_asked_is_answered_with_a_5xx() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut master = runtime.block_on(master(dir.path()));
    let http = Http::new(&master.address);
    runtime.block_on(async {
        // Lists are there once the index is.
        while http.get("/api/v1/jobs").await.status == 503 {}
    });
    let pair = (
        prop::sample::select(NAMES),
        prop_oneof![prop::sample::select(VALUES).prop_map(str::to_owned), "[a-zA-Z0-9%=&+.:-]{0,12}"],
    );
    let query = prop::collection::vec(pair, 0..4);
    let body = prop_oneof![
        json_value().prop_map(|value| value.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..60)
    ];
    let method = prop::sample::select(vec!["GET", "POST", "DELETE", "PUT", "HEAD"]);
    let strategy = (prop::sample::select(PATHS), method, query, body, any::<bool>());
    let config = Config {
        cases: 1500,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&strategy, |(path, method, query, body, typed)| {
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = format!("{path}?{}", query.join("&"));
        let headers: &[(&str, &str)] = if typed { &[("content-type", "application/json")] } else { &[] };
        let answer = runtime.block_on(http.send(method, &path, headers, body.clone()));
        prop_assert!(
            answer.status < 500,
            "{method} {path} {}: {} {}",
            String::from_utf8_lossy(&body),
            answer.status,
            answer.text()
        );
        if answer.status >= 400 && method != "HEAD" {
            answer.problem(&path);
        }
        Ok(())
    });
    assert!(master.runs());
    runtime.block_on(async move { drop(master) });
    result.unwrap();
}
