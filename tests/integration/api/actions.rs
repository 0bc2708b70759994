//! What users do with jobs: cancel, hold, release, rerun, purge; and clients that ask again when they get no answer.

use super::{Http, golden, master};
use crate::support::{DEADLINE, Federation};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const JSON: (&str, &str) = ("content-type", "application/json");

fn waiting(label: &str) -> Value {
    json!({ "job_type": "dummy", "job_config": { "worker_num": 0 }, "not_before": "2999-01-01T00:00:00Z", "labels": { "of": label } })
}

async fn made(http: &Http, body: &Value) -> String {
    http.post("/api/v1/jobs", body).await.json(201)["job_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_held_released_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let id = made(&http, &waiting("a")).await;
    let act = |action: &str| format!("/api/v1/jobs/{id}:{action}");
    assert_eq!(http.post(&act("release"), &json!({})).await.problem("release").0, "job_not_held");
    assert_eq!(http.post(&act("rerun"), &json!({})).await.problem("rerun").0, "job_not_ended");
    assert_eq!(
        http.send("DELETE", &format!("/api/v1/jobs/{id}"), &[], "").await.problem("purge").0,
        "job_not_ended"
    );
    for _ in 0..2 {
        assert_eq!(http.post(&act("hold"), &json!({})).await.json(200)["state"], "held");
    }
    assert_eq!(
        http.get("/api/v1/jobs?state=held").await.json(200)["items"][0]["job_id"],
        id.as_str()
    );
    // No body is an empty one.
    let released = http.send("POST", &act("release"), &[], "").await.json(200);
    assert_ne!(released["state"], "held");
    assert_eq!(
        http.post(&act("cancel"), &json!({ "reasn": "x" })).await.problem("cancel"),
        ("unknown_field".to_owned(), "/reasn".to_owned())
    );
    assert_eq!(
        http.post(&act("cancel"), &json!({ "reason": "x".repeat(513) }))
            .await
            .problem("cancel"),
        ("invalid_field".to_owned(), "/reason".to_owned())
    );
    for _ in 0..2 {
        let job = http
            .post(&act("cancel"), &json!({ "reason": "not needed\nany more" }))
            .await
            .json(200);
        assert_eq!(
            (job["state"].as_str(), job["reason"].as_str()),
            (Some("cancelled"), Some("not needed any more"))
        );
    }
    golden::check("job_cancelled", &http.get(&format!("/api/v1/jobs/{id}")).await.json(200));
    assert_eq!(http.post(&act("hold"), &json!({})).await.problem("hold").0, "job_ended");
    for odd in ["", ":", ":nope"] {
        let answer = http.post(&format!("/api/v1/jobs/{id}{odd}"), &json!({})).await;
        assert_eq!(
            (answer.status, answer.problem(odd).0.as_str()),
            (405, "method_not_allowed"),
            "{odd}"
        );
    }
    // It stays so.
    master.kill_and_start().await;
    assert_eq!(http.get(&format!("/api/v1/jobs/{id}")).await.json(200)["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_cancelled_by_filter() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let (mut wanted, mut others) = (BTreeSet::new(), BTreeSet::new());
    for n in 0..30 {
        let id = made(&http, &waiting(if n % 3 == 0 { "b" } else { "a" })).await;
        if n % 3 == 0 {
            others.insert(id)
        } else {
            wanted.insert(id)
        };
    }
    let ask = |dry_run: bool| json!({ "filter": { "labels": { "of": "a" } }, "dry_run": dry_run, "reason": "all of a" });
    let ids = |answer: &Value| -> BTreeSet<String> {
        answer["job_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap().to_owned())
            .collect()
    };
    let dry = http.post("/api/v1/jobs:cancel", &ask(true)).await.json(200);
    assert_eq!(ids(&dry), wanted);
    assert_eq!(http.get("/api/v1/jobs?state=cancelled").await.json(200)["items"], json!([]));
    let real = http.post("/api/v1/jobs:cancel", &ask(false)).await.json(200);
    assert_eq!(ids(&real), wanted);
    let again = http.post("/api/v1/jobs:cancel", &ask(false)).await.json(200);
    assert_eq!((ids(&again).len(), &again["more"]), (0, &json!(false)));
    let cancelled = http.get("/api/v1/jobs?state=cancelled&limit=100").await.json(200);
    let cancelled: BTreeSet<String> = cancelled["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(cancelled, wanted);
    let cases = [
        (json!({ "filter": {} }), "/filter"),
        (json!({ "filter": { "state": ["nope"] } }), "/filter/state"),
        (json!({ "filter": { "created_after": "now" } }), "/filter/created_after"),
        // As if it were not there it would end all that wait.
        (json!({ "filter": { "state": ["waiting"], "q": "" }, "dry_run": true }), "/filter/q"),
        (json!({ "filter": { "stat": [] } }), "/filter/stat"),
        (json!({}), "/filter"),
    ];
    for (body, pointer) in cases {
        assert_eq!(http.post("/api/v1/jobs:cancel", &body).await.problem(pointer).1, pointer, "{body}");
    }
    // Only those that have ended are meant: nothing is done.
    let none = http
        .post("/api/v1/jobs:cancel", &json!({ "filter": { "state": ["success"] } }))
        .await
        .json(200);
    assert_eq!(ids(&none).len(), 0);
    assert_eq!(others.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_is_run_again_and_purged() {
    let federation = Federation::start(1).await;
    let http = Http::new(&federation.parties[0].master.address);
    let client = federation.client(0);
    let body = json!({ "job_type": "dummy", "job_config": { "worker_num": 1, "proposal_wait_time": 2 }, "labels": { "a": "b" } });
    let headers = [JSON, ("idempotency-key", "first")];
    let send = || http.send("POST", "/api/v1/jobs", &headers, body.to_string());
    let id = send().await.json(201)["job_id"].as_str().unwrap().to_owned();
    assert_eq!(send().await.json(200)["job_id"], id.as_str());
    let other = http
        .send("POST", "/api/v1/jobs", &headers, body.to_string().replace("\"b\"", "\"c\""))
        .await;
    assert_eq!((other.status, other.problem("other").0.as_str()), (409, "key_conflict"));
    assert_eq!(serde_json::from_slice::<Value>(&other.body).unwrap()["job_id"], id.as_str());
    client.ended(&id).await;
    client.until(&format!("/api/v1/jobs/{id}"), |job| job["live"] == false).await;
    let again = [JSON, ("idempotency-key", "again")];
    let rerun = http.send("POST", &format!("/api/v1/jobs/{id}:rerun"), &again, "{}").await.json(201);
    assert_eq!((rerun["parent"].as_str(), &rerun["labels"]), (Some(id.as_str()), &body["labels"]));
    let replay = http.send("POST", &format!("/api/v1/jobs/{id}:rerun"), &again, "{}").await.json(200);
    assert_eq!(replay["job_id"], rerun["job_id"]);
    client.ended(rerun["job_id"].as_str().unwrap()).await;
    let gone = http.send("DELETE", &format!("/api/v1/jobs/{id}"), &[], "").await;
    assert_eq!((gone.status, gone.text()), (204, String::new()));
    assert_eq!(
        http.send("DELETE", &format!("/api/v1/jobs/{id}"), &[], "").await.problem("gone").0,
        "job_not_found"
    );
    assert_eq!(http.get(&format!("/api/v1/jobs/{id}")).await.problem("gone").0, "job_not_found");
    assert_eq!(
        http.get(&format!("/api/v1/jobs/{id}/tasks/aggregator")).await.problem("gone").0,
        "task_not_found"
    );
    let left = http.get("/api/v1/jobs?label=a").await.json(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(send().await.problem("late").0, "key_purged");
}

/// Passes on requests, and drops a third of the answers, whole or in the middle, and some requests.
#[expect(clippy::disallowed_methods, reason = "a proxy of the test's own")]
async fn bad_proxy(to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let fate = rand::random_range(0..6);
                let mut request = vec![0; 16 * 1024];
                let Ok(count) = client.read(&mut request).await else { return };
                if fate == 0 {
                    return;
                }
                let Ok(mut server) = TcpStream::connect(&to).await else { return };
                if server.write_all(&request[..count]).await.is_err() {
                    return;
                }
                let mut answer = vec![0; 64 * 1024];
                let Ok(count) = server.read(&mut answer).await else { return };
                match fate {
                    1 => {}
                    2 => drop(client.write_all(&answer[..count / 2]).await),
                    _ => drop(client.write_all(&answer[..count]).await),
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_submits_through_a_proxy_that_drops_answers_make_a_thousand_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let proxy = bad_proxy(master.address.clone()).await;
    let body = waiting("proxy").to_string();
    let http = reqwest::Client::builder()
        .timeout(DEADLINE)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .unwrap();
    let submit = |worker: usize| {
        let (http, proxy, body) = (http.clone(), proxy.clone(), body.clone());
        async move {
            let (mut jobs, mut tries) = (Vec::new(), 0);
            for n in 0..125 {
                loop {
                    tries += 1;
                    let request = http
                        .post(format!("http://{proxy}/api/v1/jobs"))
                        .header("content-type", "application/json");
                    let request = request.header("idempotency-key", format!("{worker}-{n}")).body(body.clone());
                    let Ok(answer) = request.send().await else { continue };
                    let status = answer.status().as_u16();
                    let Ok(job) = answer.json::<Value>().await else { continue };
                    assert!(matches!(status, 200 | 201), "{status} {job}");
                    jobs.push(job["job_id"].as_str().unwrap().to_owned());
                    break;
                }
            }
            (jobs, tries)
        }
    };
    let done = futures_util::future::join_all((0..8).map(submit)).await;
    let tries: usize = done.iter().map(|(_, tries)| tries).sum();
    let jobs: BTreeSet<String> = done.into_iter().flat_map(|(jobs, _)| jobs).collect();
    assert_eq!(jobs.len(), 1000);
    assert!(tries > 1100, "the proxy drops nothing: {tries} tries");
    let exported = Http::new(&master.address).get("/api/v1/jobs:export?fields=job_id").await.text();
    let exported: BTreeSet<String> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["job_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(exported, jobs);
}
