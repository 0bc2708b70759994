//! Lists of jobs: every filter, the walk with a cursor while the list changes, restarts with and without the index's file.

use super::{Http, master};
use crate::support::{Client, DEADLINE};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap_or_else(|| panic!("{page}"));
    items.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

/// A page, once the index is made.
async fn page(http: &Http, path: &str) -> Value {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let answer = http.get(path).await;
        if answer.status != 503 {
            return answer.json(200);
        }
        assert_eq!(answer.problem(path).0, "index_building");
        assert!(std::time::Instant::now() < deadline, "{path}: the index is never made");
        tokio::task::yield_now().await;
    }
}

/// All pages.
async fn walk(http: &Http, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = path.to_owned();
    loop {
        let page = page(http, &next).await;
        found.extend(ids(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { return found };
        let and = if path.contains('?') { '&' } else { '?' };
        next = format!("{path}{and}cursor={cursor}");
    }
}

/// Jobs that wait for a cluster that is not there; one that asks for nothing runs, and waits as well.
async fn submit_some(client: &Client, count: usize) -> Vec<String> {
    let mut jobs = Vec::new();
    for n in 0..count {
        let config = json!({ "worker_num": n % 2, "proposal_wait_time": 1 });
        jobs.push(client.submit("dummy", &config).await);
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_what_was_answered_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let (http, client) = (Http::new(&master.address), Client::new(&master.address));
    assert_eq!(page(&http, "/api/v1/jobs").await, json!({ "items": [], "next_cursor": null }));
    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.extend(submit_some(&client, 1).await);
        // What was answered is in the next list.
        assert_eq!(ids(&page(&http, "/api/v1/jobs?limit=1").await), [jobs.last().unwrap().clone()]);
    }
    let newest: Vec<String> = jobs.iter().rev().cloned().collect();
    assert_eq!(walk(&http, "/api/v1/jobs").await, newest);
    assert_eq!(walk(&http, "/api/v1/jobs?limit=5").await, newest);
    assert_eq!(walk(&http, "/api/v1/jobs?limit=12&order=created_asc").await, jobs);
    // Filters, each with its opposite.
    let first = http.get(&format!("/api/v1/jobs/{}", jobs[0])).await.json(200);
    let created = |index: usize| {
        let (http, id) = (http.clone(), jobs[index].clone());
        async move {
            http.get(&format!("/api/v1/jobs/{id}")).await.json(200)["created_at"]
                .as_str()
                .unwrap()
                .to_owned()
        }
    };
    let middle = created(6).await;
    let older = walk(&http, &format!("/api/v1/jobs?created_before={middle}&limit=4")).await;
    let newer = walk(&http, &format!("/api/v1/jobs?created_after={middle}&limit=4")).await;
    assert_eq!([newer.clone(), older].concat(), newest);
    assert!(newer.contains(&jobs[6]));
    assert_eq!(walk(&http, "/api/v1/jobs?job_type=dummy").await, newest);
    assert!(walk(&http, "/api/v1/jobs?job_type=program").await.is_empty());
    assert!(walk(&http, "/api/v1/jobs?label=a").await.is_empty());
    assert!(walk(&http, "/api/v1/jobs?state=success&state=held").await.is_empty());
    let states = "state=waiting&state=leasing&state=preparing&state=proposing&state=running";
    assert_eq!(walk(&http, &format!("/api/v1/jobs?{states}&limit=3")).await, newest);
    for (q, count) in [("p", 12), ("p1-2", 12), ("p1-3", 0), ("q", 0)] {
        assert_eq!(walk(&http, &format!("/api/v1/jobs?q={q}")).await.len(), count, "{q}");
    }
    assert_eq!(walk(&http, &format!("/api/v1/jobs?q={}", jobs[4])).await, [jobs[4].clone()]);
    let narrow = page(&http, "/api/v1/jobs?fields=job_id,config&limit=1&order=created_asc").await;
    assert_eq!(narrow["items"][0], json!({ "job_id": jobs[0], "config": first["config"] }));
    assert_eq!(first["config"], json!({ "worker_num": 0, "proposal_wait_time": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_hold_for_their_list_only() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let (http, client) = (Http::new(&master.address), Client::new(&master.address));
    submit_some(&client, 3).await;
    let first = page(&http, "/api/v1/jobs?limit=1").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    for other in [
        "state=leasing",
        "order=created_asc",
        "job_type=dummy",
        "label=a",
        "q=p",
        "created_after=2020-01-01T00:00:00Z",
    ] {
        let answer = http.get(&format!("/api/v1/jobs?{other}&cursor={cursor}")).await;
        assert_eq!(
            (answer.status, answer.problem(other).0.as_str()),
            (400, "invalid_cursor"),
            "{other}"
        );
    }
    assert_eq!(
        http.get(&format!("/api/v1/tasks?cursor={cursor}")).await.problem("tasks").0,
        "invalid_cursor"
    );
    // How much is shown of each is another thing.
    for same in ["limit=2", "fields=job_id"] {
        assert_eq!(
            http.get(&format!("/api/v1/jobs?{same}&cursor={cursor}")).await.status,
            200,
            "{same}"
        );
    }
}

/// The index is there after every kind of end and with any file: the list is the same.
#[tokio::test(flavor = "multi_thread")]
async fn lists_are_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let client = Client::new(&master.address);
    let mut jobs = submit_some(&client, 4).await;
    let file = |dir: &Path| -> Option<PathBuf> {
        let logs = std::fs::read_dir(dir.join("data")).unwrap().map(|entry| entry.unwrap().path());
        logs.map(|path| path.join("index")).find(|path| path.exists())
    };
    // Killed: no file. Stopped: a file. Killed after more: a file that is behind. Damaged: none that counts.
    for (stop, damage, from_checkpoint) in [
        (false, false, false),
        (true, false, true),
        (false, false, true),
        (true, true, false),
        (true, false, true),
    ] {
        if stop {
            master.stop().await;
            assert!(file(dir.path()).is_some());
        }
        master.kill().await;
        if damage {
            let path = file(dir.path()).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        let before = master.log().len();
        master.start().await;
        let http = Http::new(&master.address);
        let newest: Vec<String> = jobs.iter().rev().cloned().collect();
        assert_eq!(walk(&http, "/api/v1/jobs").await, newest);
        let log = master.log()[before..].to_owned();
        assert!(
            log.contains(&format!("from_checkpoint={from_checkpoint}")),
            "{stop} {damage}: {log}"
        );
        jobs.extend(submit_some(&client, 3).await);
    }
}

/// What happens between two pages.
#[derive(Clone, Debug)]
enum Meanwhile {
    Nothing,
    Submit(usize),
}

/// A walk over a list that grows and whose jobs move on sees every job that was there throughout exactly once, and none twice.
#[test]
fn a_walk_sees_every_job_that_was_there_throughout_exactly_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let master = runtime.block_on(master(dir.path()));
    let (http, client) = (Http::new(&master.address), Client::new(&master.address));
    let known = std::cell::RefCell::new(BTreeSet::<String>::new());
    let meanwhile = prop_oneof![Just(Meanwhile::Nothing), (1..4usize).prop_map(Meanwhile::Submit)];
    let strategy = (prop::collection::vec(meanwhile, 1..12), 1..6usize, any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(Config {
        cases: 12,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&strategy, |(steps, limit, descending, filtered)| {
        runtime.block_on(async {
            let first = submit_some(&client, 2).await;
            known.borrow_mut().extend(first);
            let before = known.borrow().clone();
            let order = if descending { "created_desc" } else { "created_asc" };
            let filter = if filtered { "&job_type=dummy&q=p1-" } else { "" };
            let path = format!("/api/v1/jobs?limit={limit}&order={order}{filter}");
            let (mut seen, mut next) = (Vec::new(), path.clone());
            let mut steps = steps.into_iter();
            loop {
                let page = page(&http, &next).await;
                seen.extend(ids(&page));
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                next = format!("{path}&cursor={cursor}");
                if let Some(Meanwhile::Submit(count)) = steps.next() {
                    let more = submit_some(&client, count).await;
                    known.borrow_mut().extend(more);
                }
            }
            let once: BTreeSet<String> = seen.iter().cloned().collect();
            prop_assert_eq!(once.len(), seen.len(), "a job came twice");
            prop_assert!(
                before.is_subset(&once),
                "missing: {:?}",
                before.difference(&once).collect::<Vec<_>>()
            );
            prop_assert!(once.is_subset(&known.borrow()));
            Ok(())
        })
    });
    runtime.block_on(async move {
        drop(master);
    });
    result.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_waited_for_and_its_tag_tells_what_is_known() {
    let federation = crate::support::Federation::start(1).await;
    let http = Http::new(&federation.parties[0].master.address);
    let client = federation.client(0);
    let config = json!({ "worker_num": 1, "proposal_wait_time": 2 });
    let id = client.submit("dummy", &config).await;
    let path = format!("/api/v1/jobs/{id}");
    let first = http.get(&path).await;
    let ended = http.get(&format!("{path}?wait=5m&until=terminal")).await;
    let job = ended.json(200);
    assert!(matches!(job["state"].as_str(), Some("success" | "failed")), "{job}");
    let tag = ended.header("etag").to_owned();
    assert_ne!(first.header("etag"), tag);
    // The lease may go back after the end, which shows as `live`, and parties may tell of their tasks later still.
    let over = |job: &Value| job["live"] == false && job["parties"][0]["state"] == "success";
    client.until(&path, over).await;
    let tag_now = http.get(&path).await.header("etag").to_owned();
    let same = http.send("GET", &path, &[("if-none-match", &tag_now)], "").await;
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, tag_now.as_str()));
    let other = http.send("GET", &path, &[("if-none-match", "\"nope\", W/\"x\"")], "").await;
    assert_eq!(other.status, 200);
    let began = std::time::Instant::now();
    let waited = http
        .send("GET", &format!("{path}?wait=50ms&until=change"), &[("if-none-match", &tag_now)], "")
        .await;
    assert_eq!(waited.status, 304);
    assert!(began.elapsed() >= std::time::Duration::from_millis(50));
    assert_eq!(
        http.send("GET", &path, &[("if-none-match", "nope")], "").await.problem("tag").0,
        "invalid_header"
    );
    for query in ["wait=6m", "until=terminal", "wait=1s&until=nope", "wait=1"] {
        assert_eq!(http.get(&format!("{path}?{query}")).await.problem(query).0, "invalid_parameter");
    }
}
