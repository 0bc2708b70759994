//! Each kind of request that FedVision 0.1 was seen to answer, with our answer in full. They differ where 0.1 answers with a traceback (here: the
//! cause, and in the reason phrase too, where its submitter shows it) or with a 500 (here: a 400 with the cause).

use super::{Wire, master};
use crate::support::Client;
use serde_json::{Value, json};

const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Bodies that are no request, on both paths: body, status line, and whether the cause stands in the body as well.
const NO_REQUESTS: &[(&str, &str, bool)] = &[
    ("", "400 Expecting value: line 1 column 1 (char 0)", false),
    ("  \n", "400 Expecting value: line 2 column 1 (char 3)", false),
    ("nul", "400 Expecting value: line 1 column 1 (char 0)", false),
    ("{\"a\":\n  tru}", "400 Expecting value: line 2 column 3 (char 8)", false),
    ("[1,]", "400 Expecting value: line 1 column 4 (char 3)", false),
    (
        "{bad",
        "400 Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        false,
    ),
    (
        "{\"a\": 1,\r\n}",
        "400 Expecting property name enclosed in double quotes: line 2 column 1 (char 10)",
        false,
    ),
    ("{\"a\" 1}", "400 Expecting ':' delimiter: line 1 column 6 (char 5)", false),
    ("{\"größe 🦀\" 1}", "400 Expecting ':' delimiter: line 1 column 12 (char 11)", false),
    ("{\"a\": 1 2}", "400 Expecting ',' delimiter: line 1 column 9 (char 8)", false),
    ("[1 2]", "400 Expecting ',' delimiter: line 1 column 4 (char 3)", false),
    (
        "{\"a\": \"b",
        "400 Unterminated string starting at: line 1 column 7 (char 6)",
        false,
    ),
    ("{\"a\\", "400 Unterminated string starting at: line 1 column 2 (char 1)", false),
    (r#"{"a": "\q"}"#, r"400 Invalid \escape: line 1 column 8 (char 7)", false),
    (r#"{"a": "\u12G4"}"#, r"400 Invalid \uXXXX escape: line 1 column 9 (char 8)", false),
    (r#"{"a": "\u12"}"#, r"400 Invalid \uXXXX escape: line 1 column 9 (char 8)", false),
    (r#""\ud83e\u12"}"#, r"400 Invalid \uXXXX escape: line 1 column 9 (char 8)", false),
    (
        "{\"a\": \"\n\"}",
        "400 Invalid control character at: line 1 column 8 (char 7)",
        false,
    ),
    (
        "{\"a\": \"\0\"}",
        "400 Invalid control character at: line 1 column 8 (char 7)",
        false,
    ),
    ("{}{}", "400 Extra data: line 1 column 3 (char 2)", false),
    ("01", "400 Extra data: line 1 column 2 (char 1)", false),
    ("1.", "400 Extra data: line 1 column 2 (char 1)", false),
    (
        "\u{feff}{}",
        "400 Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)",
        false,
    ),
    // A 500 in 0.1, from here on.
    ("null", "400 the request body must be a JSON object", true),
    ("[{}]", "400 the request body must be a JSON object", true),
    ("\"job_type\"", "400 the request body must be a JSON object", true),
    ("NaN", "400 the request body must be a JSON object", true),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_has_the_words_of_python() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    for path in ["/submit", "/query"] {
        for (body, status, in_body) in NO_REQUESTS {
            let answer = wire.post(path, &[], body.as_bytes()).await;
            let cause = status.strip_prefix("400 ").unwrap();
            let wanted = if *in_body {
                format!(r#"{{"exception": "{cause}"}}"#)
            } else {
                "{}".to_owned()
            };
            answer.is(&format!("{path} {body}"), status, JSON, &wanted);
        }
        let not_utf8 = "400 the request body is not UTF-8 at byte 13; name its charset in the content type";
        let broken: [(&[&str], &[u8], &str); 4] = [
            (&[], b"{\"job_type\": \xff}", not_utf8),
            (
                &["content-type: a/b; charset=ascii"],
                b"{\"\xc3\xa9\": 1}",
                "400 the request body is not ascii",
            ),
            (
                &["content-type: a/b; charset=nope"],
                b"{}",
                "400 content-type: charset nope is not known; use utf-8",
            ),
            (
                &["content-encoding: gzip"],
                b"{\"job_type\": \"dummy\"}",
                "400 the request body is not what content-encoding gzip says: invalid gzip header",
            ),
        ];
        for (headers, body, status) in broken {
            let answer = wire.post(path, headers, body).await;
            let wanted = format!(r#"{{"exception": "{}"}}"#, status.strip_prefix("400 ").unwrap());
            answer.is(&format!("{path} {headers:?}"), status, JSON, &wanted);
        }
    }
}

/// `/submit`: body, and the cause of its 400.
const NO_JOBS: &[(&str, &str)] = &[
    ("{}", "job_type: is required"),
    (r#"{"job_config": {}}"#, "job_type: is required"),
    (r#"{"job_type": "dummy"}"#, "job_config: is required"),
    (r#"{"job_type": "foo", "job_config": {}}"#, "job type foo not supported"),
    (r#"{"job_type": 1, "job_config": {}}"#, "job type 1 not supported"),
    (r#"{"job_type": 1e16, "job_config": {}}"#, "job type 1e+16 not supported"),
    (r#"{"job_type": NaN, "job_config": {}}"#, "job type nan not supported"),
    (r#"{"job_type": null, "job_config": {}}"#, "job type None not supported"),
    (r#"{"job_type": ["dummy"], "job_config": {}}"#, "job_type: must be a string"),
    (r#"{"job_type": {}, "job_config": {}}"#, "job_type: must be a string"),
    (
        r#"{"job_type": "dummy", "job_type": "foo", "job_config": {}}"#,
        "job type foo not supported",
    ),
    (r#"{"job_type": "dummy", "job_config": {}}"#, "'worker_num' is a required property"),
    (
        r#"{"job_type": "dummy", "job_config": null}"#,
        "job_config: None is not of type 'object'",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": "x"}}"#,
        "job_config.worker_num: 'x' is not of type 'integer'",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": true}}"#,
        "job_config.worker_num: True is not of type 'integer'",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": 1, "proposal_wait_time": 0}}"#,
        "job_config.proposal_wait_time: 0 is less than the minimum of 1",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": NaN}}"#,
        "job_config.worker_num: NaN is not a number; write one, or null",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": 0, "more": [-Infinity]}}"#,
        "job_config.more.0: -Infinity is not a number; write one, or null",
    ),
    (
        r#"{"job_type": "dummy", "job_config": {"worker_num": 0}, "algorithm_config": {"a": 1}}"#,
        "algorithm_config: must be a string, the text of the file",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_is_told_in_the_reason_phrase() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    for (body, cause) in NO_JOBS {
        let answer = wire.post("/submit", &[], body.as_bytes()).await;
        answer.is(body, &format!("400 {cause}"), JSON, &format!(r#"{{"exception": "{cause}"}}"#));
    }
    // Whatever a cause quotes, it stays one line of printable ASCII.
    let hostile = r#"{"job_type": "é\r\nSet-Cookie: a=b\r\n\r\n<html>🦀\u0000", "job_config": {}}"#;
    let answer = wire.post("/submit", &[], hostile.as_bytes()).await;
    let cause = r"job type \u00e9  Set-Cookie: a=b    <html>\ud83e\udd80  not supported";
    answer.is("hostile", &format!("400 {cause}"), JSON, &format!(r#"{{"exception": "{cause}"}}"#));
    assert_eq!(answer.header("set-cookie"), "");
    let long = json!({ "job_type": "é".repeat(100_000), "job_config": {} }).to_string();
    let answer = wire.post("/submit", &[], long.as_bytes()).await;
    assert!(answer.line.len() < 1100, "{}", answer.line.len());
    // None of them used up a number.
    let job = Client::new(&master.address).submit("dummy", &json!({ "worker_num": 0 })).await;
    assert!(job.ends_with("-1"), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_and_good_is_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    let dummy = r#"{"job_type": "dummy", "job_config": {"worker_num": 0}"#;
    let params = r#"{"program": "p", "proposal_wait_time": 1.0, "worker_num": 1, "params": {"é": "🦀"}}"#;
    let latin1: Vec<u8> =
        br#"{"job_type": "dummy", "job_config": {"worker_num": 0}, "note": "caf"#.iter().copied().chain(*b"\xe9\"}").collect();
    let jobs: [(&str, &[&str], Vec<u8>); 7] = [
        ("/submit", &["content-type: application/json"], format!("{dummy}}}").into()),
        (
            "/submit?a=b&c",
            &["content-type: application/x-www-form-urlencoded"],
            format!("{dummy}}}").into(),
        ),
        ("/submit", &[], format!("{dummy}, \"algorithm_config\": null}}").into()),
        (
            "/submit",
            &[],
            format!("{dummy}, \"more\": [NaN, -Infinity], \"job_type\": \"dummy\"}}").into(),
        ),
        (
            "/submit",
            &[],
            format!("{}, \"job_config\": {{\"worker_num\": 0}}}}", dummy.replace('0', "NaN")).into(),
        ),
        (
            "/submit",
            &[],
            format!(r#"{{"job_type": "program", "job_config": {params}}}"#).into(),
        ),
        ("/submit", &["content-type: text/plain; charset=iso-8859-1"], latin1),
    ];
    for (n, (path, headers, body)) in (1..).zip(jobs) {
        let answer = wire.post(path, headers, &body).await;
        let what = String::from_utf8_lossy(&body);
        let id = answer
            .body
            .strip_prefix(r#"{"job_id": ""#)
            .and_then(|rest| rest.strip_suffix("\"}"));
        let id = id.unwrap_or_else(|| panic!("{what}: {answer:?}"));
        answer.is(&what, "200 OK", JSON, &format!(r#"{{"job_id": "{id}"}}"#));
        assert!(id.starts_with("p1-20") && id.ends_with(&format!("-{n}")), "{id}");
        // `dummy` without workers goes on without anybody, `program` waits for endpoints.
        let answer = wire.post("/query", &[], format!(r#"{{"job_id":"{id}"}}"#).as_bytes()).await;
        let status = answer.body.strip_prefix(&format!(r#"{{"job_id": "{id}", "status": "_JobStatus."#));
        assert!(matches!(status, Some("WAITING\"}" | "RUNNING\"}")), "{answer:?}");
        answer.is(id, "200 OK", JSON, &answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_for_what_is_no_job_are_echoed() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    let echoed = [
        (r#""nope""#, r#""nope""#),
        (r#""""#, r#""""#),
        ("5", "5"),
        ("-0", "0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1.0", "1.0"),
        ("-0.0", "-0.0"),
        ("1e5", "100000.0"),
        ("1E+16", "1e+16"),
        ("0.00001", "1e-05"),
        ("true", "true"),
        ("false", "false"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e999", "Infinity"),
        (
            r#""é\ud83e\udd80\/\"\\\n\u0000\u007f""#,
            r#""\u00e9\ud83e\udd80/\"\\\n\u0000\u007f""#,
        ),
        (r#""half \ud800 of a pair""#, r#""half \ud800 of a pair""#),
        (r#""a", "job_id": "b""#, r#""b""#),
    ];
    for (asked, echo) in echoed {
        let answer = wire.post("/query", &[], format!(r#"{{"job_id": {asked}}}"#).as_bytes()).await;
        let wanted = format!(r#"{{"job_id": {echo}, "status": "_JobStatus.NOTFOUND"}}"#);
        answer.is(asked, "404 Not Found", JSON, &wanted);
    }
    for body in ["{}", r#"{"job_id": null}"#, r#"{"job_id": "p1", "job_id": null}"#] {
        let answer = wire.post("/query", &[], body.as_bytes()).await;
        answer.is(body, "400 required `job_id`", JSON, "{}");
    }
    for body in [r#"{"job_id": []}"#, r#"{"job_id": {"a": 1}}"#] {
        let answer = wire.post("/query", &[], body.as_bytes()).await;
        let cause = "job_id: must be a string";
        answer.is(body, &format!("400 {cause}"), JSON, &format!(r#"{{"exception": "{cause}"}}"#));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_paths_and_sizes_are_refused_in_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    for path in ["/submit", "/query", "/submit?a=b"] {
        for method in ["GET", "PUT", "OPTIONS", "DELETE", "PATCH", "NONSENSE"] {
            wire.say(&super::request(method, path, &[], b"{}")).await;
            let answer = wire.answer().await;
            answer.is(method, "405 Method Not Allowed", TEXT, "405: Method Not Allowed");
            assert_eq!(answer.header("allow"), "POST", "{method} {path}");
        }
        wire.say(&super::request("HEAD", path, &[], b"")).await;
        let answer = wire.head().await;
        let of_head = ["allow", "content-type", "content-length"].map(|name| answer.header(name));
        assert_eq!((answer.status(), of_head), ("405 Method Not Allowed", ["POST", TEXT, "23"]));
    }
    for path in [
        "/",
        "/submit/",
        "/query/",
        "/nope",
        "//submit",
        "/Submit",
        "/submit/x",
        "/submit%00",
    ] {
        let answer = wire.post(path, &[], b"{}").await;
        answer.is(path, "404 Not Found", TEXT, "404: Not Found");
    }
    // The status is told for what is our own as well.
    wire.say(&super::request("DELETE", "/api/v1/status", &[], b"")).await;
    assert_eq!(wire.answer().await.status(), "405 Method Not Allowed");
    for path in ["/submit", "/query"] {
        let most = [b"{}".as_slice(), &vec![b' '; 1_048_573]].concat();
        let answer = wire.post(path, &[], &most).await;
        assert!(answer.status().starts_with("400 "), "{path}: {answer:?}");
        assert!(!answer.status().contains("line 1"), "all of it is read: {answer:?}");
        for size in [1_048_576, 1_100_014] {
            let answer = wire.post(path, &[], &vec![b' '; size]).await;
            let text = format!("Maximum request body size 1048576 exceeded, actual body size {size}");
            answer.is(path, "413 Request Entity Too Large", TEXT, &text);
        }
    }
}

/// The first words of an answer as the submitter of 0.1 prints them are those of its status line: there is always something to read.
#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_the_same_in_both_places() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    for body in [
        "null",
        "{}",
        r#"{"job_type": 1, "job_config": {}}"#,
        r#"{"job_type": "dummy", "job_config": {"x": 1}}"#,
    ] {
        let answer = wire.post("/submit", &[], body.as_bytes()).await;
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer.status(), format!("400 {}", told["exception"].as_str().unwrap()));
    }
}
