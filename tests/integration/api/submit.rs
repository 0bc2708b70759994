//! Jobs made through `/api/v1`: what is taken and shown, what is refused and where the fault is.

use super::{Http, golden, master};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_made_and_shown_with_all_it_was_asked_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let body = json!({
        "job_type": "dummy",
        "job_config": { "worker_num": 1, "proposal_wait_time": 1 },
        "algorithm_config": "a: 1\n",
        "priority": -100,
        "not_before": "2999-01-01T00:00:00+01:00",
        "deadline": "2999-01-02T00:00:00Z",
        "max_attempts": 3,
        "labels": { "run": "7", "team/x": "" },
    });
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [JSON, ("user-agent", "tests/1.0"), ("traceparent", trace)];
    let answer = http.send("POST", "/api/v1/jobs", &headers, body.to_string()).await;
    let job = answer.json(201);
    golden::check("job_submitted", &job);
    let path = answer.header("location").to_owned();
    assert_eq!(path, format!("/api/v1/jobs/{}", job["job_id"].as_str().unwrap()));
    assert_eq!(http.get(&path).await.json(200)["labels"], body["labels"]);
    let listed = http.get("/api/v1/jobs?label=run:7&label=team/x").await.json(200);
    golden::check("jobs_page", &listed);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    for none in ["label=run:8", "label=run:", "label=nope", "label=run:7&label=team/x:y"] {
        assert_eq!(
            http.get(&format!("/api/v1/jobs?{none}")).await.json(200)["items"],
            json!([]),
            "{none}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let with = |name: &str, value: Value| {
        let mut body = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } });
        body[name] = value;
        body.to_string()
    };
    let both = |not_before: &str, deadline: &str| {
        let (mut body, given) = (with("not_before", json!(not_before)), json!(deadline));
        body.insert_str(1, &format!("\"deadline\":{given},"));
        body
    };
    let twice = r#"{#"job_type": "dummy", "job_config": {"worker_num": 0}}"#;
    let many: Value = (0..17)
        .map(|n| (n.to_string(), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let cases = [
        ("{bad".to_owned(), "malformed_json", ""),
        (json!(["dummy", { "worker_num": 0 }]).to_string(), "invalid_field", ""),
        ("{}".to_owned(), "missing_field", "/job_type"),
        (json!({ "job_type": "dummy" }).to_string(), "missing_field", "/job_config"),
        (with("job_typ", json!(1)), "unknown_field", "/job_typ"),
        (with("job_type", json!(1)), "invalid_field", "/job_type"),
        (with("job_type", json!("nope")), "invalid_field", "/job_type"),
        (
            with("job_config", json!({ "worker_num": -1 })),
            "invalid_field",
            "/job_config/worker_num",
        ),
        (
            with("job_config", json!({ "worker_num": 0, "a.b/c": 1 })),
            "invalid_field",
            "/job_config/a.b~1c",
        ),
        (with("job_config", json!({})), "invalid_field", "/job_config/worker_num"),
        (
            with("job_config", json!({ "worker_num": "1" })),
            "invalid_field",
            "/job_config/worker_num",
        ),
        (with("job_config", json!([])), "invalid_field", "/job_config"),
        (with("algorithm_config", json!({})), "invalid_field", "/algorithm_config"),
        (with("priority", json!(101)), "invalid_field", "/priority"),
        (with("priority", json!(1.5)), "invalid_field", "/priority"),
        (with("max_attempts", json!(0)), "invalid_field", "/max_attempts"),
        (with("max_attempts", json!(101)), "invalid_field", "/max_attempts"),
        (with("not_before", json!("tomorrow")), "invalid_field", "/not_before"),
        (with("deadline", json!(5)), "invalid_field", "/deadline"),
        (with("labels", json!({ "a": 1 })), "invalid_field", "/labels/a"),
        (
            with("labels", json!({ "a": "c", "a /~b": "c" })),
            "invalid_field",
            "/labels/a ~1~0b",
        ),
        (with("labels", json!({ "a": "c", "b/c": "d e" })), "invalid_field", "/labels/b~1c"),
        (with("labels", many), "invalid_field", "/labels"),
        (twice.replace("#", r#""job_type": "dummy", "#), "invalid_field", "/job_type"),
        (
            twice.replace("#", r#""labels": {"a/b": "", "a/b": ""}, "#),
            "invalid_field",
            "/labels/a~1b",
        ),
        (
            twice.replace("0}", r#"0, "worker_num": 1}"#).replace('#', ""),
            "invalid_field",
            "/job_config/worker_num",
        ),
        (with("deadline", json!("9999-12-31T00:00:00Z")), "invalid_field", "/deadline"),
        (
            with("not_before", json!("9999-12-31T23:59:59-12:00")),
            "invalid_field",
            "/not_before",
        ),
        (
            both("2999-01-01T00:00:00Z", "2999-01-01T01:00:00+01:00"),
            "invalid_field",
            "/deadline",
        ),
        (both("2999-01-01T00:00:00Z", "2998-01-01T00:00:00Z"), "invalid_field", "/deadline"),
    ];
    for (body, code, pointer) in cases {
        let answer = http.send("POST", "/api/v1/jobs", &[JSON], body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert_eq!(
            answer.problem(&body),
            (code.to_owned(), pointer.to_owned()),
            "{body}: {}",
            answer.text()
        );
    }
    let good = with("priority", json!(0));
    let cases = [
        (vec![("content-type", "text/plain")], good.clone(), 415, "unsupported_media_type"),
        (vec![], good.clone(), 415, "unsupported_media_type"),
        (
            vec![JSON, ("content-encoding", "gzip")],
            good.clone(),
            415,
            "unsupported_media_type",
        ),
        (vec![JSON, JSON], good.clone(), 400, "invalid_header"),
        (vec![JSON, ("content-type", "text/plain")], good.clone(), 400, "invalid_header"),
        (vec![JSON], " ".repeat(1 << 20), 413, "body_too_large"),
        (vec![JSON, ("idempotency-key", "a b")], good.clone(), 400, "invalid_header"),
        (
            vec![JSON, ("idempotency-key", "a"), ("idempotency-key", "b")],
            good,
            400,
            "invalid_header",
        ),
    ];
    for (headers, body, status, code) in cases {
        let answer = http.send("POST", "/api/v1/jobs", &headers, body).await;
        assert_eq!((answer.status, answer.problem(code).0.as_str()), (status, code), "{headers:?}");
    }
    let answer = http
        .send(
            "POST",
            "/api/v1/jobs",
            &[JSON],
            both("2999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"),
        )
        .await;
    let detail = answer.json(400)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("deadline") && detail.contains("not_before"), "{detail}");
    assert!(master.runs());
    // Refused requests use up no numbers.
    let job = http
        .post("/api/v1/jobs", &json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } }))
        .await
        .json(201);
    assert!(job["job_id"].as_str().unwrap().ends_with("-1"), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_of_a_batch_is_answered_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let good = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } });
    let twice = r#"{"job_type": "dummy", "job_type": "dummy", "job_config": {"worker_num": 0}}"#;
    let answer = http
        .send("POST", "/api/v1/jobs:batch", &[JSON], format!("{{\"items\": [{twice}]}}"))
        .await
        .json(200);
    assert_eq!(answer["items"][0]["problem"]["pointer"], "/job_type", "{answer}");
    let items =
        json!([good, 5, { "job_type": "dummy" }, good, { "job_type": "dummy", "job_config": {}, "idempotency_key": "" }, { "x": 1 }]);
    let answer = http.post("/api/v1/jobs:batch", &json!({ "items": items })).await.json(200);
    let keyed = [JSON, ("idempotency-key", "a")];
    let answer_keyed = http
        .send("POST", "/api/v1/jobs:batch", &keyed, json!({ "items": [good] }).to_string())
        .await;
    assert_eq!(answer_keyed.problem("a key for all").0, "invalid_header");
    let items = answer["items"].as_array().unwrap();
    let statuses: Vec<u64> = items.iter().map(|item| item["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 400, 400, 201, 400, 400]);
    assert_eq!(items[5]["problem"]["pointer"], "/x");
    assert_eq!(items[2]["problem"]["pointer"], "/job_config");
    assert_eq!(items[4]["problem"]["pointer"], "/idempotency_key");
    golden::check("batch_item_refused", &items[2]);
    let all = http.get("/api/v1/jobs").await.json(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    let many: Vec<Value> = (0..1001).map(|_| good.clone()).collect();
    assert_eq!(
        http.post("/api/v1/jobs:batch", &json!({ "items": many })).await.problem("many"),
        ("invalid_field".to_owned(), "/items".to_owned())
    );
    let answer = http.post("/api/v1/jobs:batch", &json!({ "items": many[..1000] })).await.json(200);
    assert!(answer["items"].as_array().unwrap().iter().all(|item| item["status"] == 201));
}
