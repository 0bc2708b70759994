//! Requests nobody would send on purpose: none is answered with a 5xx, and the master goes on.

use super::{Wire, master, request};
use crate::support::Client;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A request: path, headers, body.
fn requests() -> impl Strategy<Value = (String, Vec<String>, Vec<u8>)> {
    const GOOD: [&str; 3] = [
        r#""job_type": "dummy", "job_config": {"worker_num": 0}"#,
        r#""job_id": 1"#,
        r#""x": 1"#,
    ];
    let path = prop_oneof![4 => Just("/submit".to_owned()), 4 => Just("/query".to_owned()), 1 => "/[!-~]{0,20}"];
    let charset = prop_oneof![
        "utf-?8",
        "latin-1",
        "utf-16(le|be)?",
        "ascii",
        "gbk",
        "shift_jis",
        "iso-2022-kr",
        "x-user-defined",
        "[!-~]{0,8}"
    ];
    let header = prop_oneof![
        charset.prop_map(|name| format!("content-type: a/b; charset={name}")),
        "content-encoding: (gzip|deflate|br|identity|[a-z]{0,5})",
        "content-type: [ -~]{0,30}",
        "x-[a-z]{1,5}: [ -~]{0,30}",
    ];
    let value = prop_oneof![
        Just("dummy".to_owned()).prop_map(|text| format!("\"{text}\"")),
        "NaN|-?Infinity|null|true|-?[0-9]{1,25}(\\.[0-9]{1,3})?(e[0-9]{1,3})?|\"\\PC{0,20}\"|\\[{0,5}\\]{0,5}",
        r#"\{"worker_num": ?(0|NaN|1e999|-1|99999999999999999999|"\\ud800"|\{\})(, "[a-z]{1,8}": ?(1|NaN|\[\]))?\}"#,
    ];
    let field =
        (r#""(job_type|job_config|algorithm_config|job_id|[a-z]{0,4})""#, value).prop_map(|(name, value)| format!("{name}: {value}"));
    let fields = (proptest::sample::select(&GOOD[..]), proptest::collection::vec(field, 0..4));
    let object = fields.prop_map(|(good, more)| format!("{{{}}}", [vec![good.to_owned()], more].concat().join(", ")).into_bytes());
    let body =
        prop_oneof![6 => object, 1 => proptest::collection::vec(any::<u8>(), 0..200), 1 => "\\PC{0,100}".prop_map(String::into_bytes)];
    (path, proptest::collection::vec(header, 0..3), body)
}

#[test]
fn no_request_is_answered_with_a_5xx() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut master = runtime.block_on(master(dir.path()));
    let mut runner = TestRunner::new(Config {
        cases: 1500,
        failure_persistence: None,
        ..Config::default()
    });
    let send = async |(path, headers, body): (String, Vec<String>, Vec<u8>)| {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let mut wire = Wire::to(&master.address).await;
        wire.say(&request("POST", &path, &headers, &body)).await;
        let answer = wire.answer().await;
        answer.status().to_owned()
    };
    let seen = RefCell::new(BTreeMap::<String, u32>::new());
    runner
        .run(&requests(), |case| {
            let status = runtime.block_on(send(case));
            *seen.borrow_mut().entry(status[..3].to_owned()).or_default() += 1;
            prop_assert!(status.starts_with("200 ") || status.starts_with('4'), "{}", status);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    println!("{seen:?}");
    assert!(
        ["200", "400", "404"]
            .iter()
            .all(|status| seen.get(*status).is_some_and(|n| *n > 20)),
        "{seen:?}"
    );
    assert!(master.runs());
    assert!(!master.log().contains("panicked"), "{}", master.log());
    runtime.block_on(Client::new(&master.address).submit("dummy", &json!({ "worker_num": 0 })));
}
