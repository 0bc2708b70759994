//! What a purge and the retention leave: nothing but the events, until those go too.

use super::{alone, closed, configure, made, program, with};
use crate::gated::{self, Gated};
use crate::support::Federation;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// All files and directories below a directory.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        found.extend(below(&entry.path()));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_removes_all_that_is_kept_of_a_job() {
    let federation = Federation::start(1).await;
    let gated = Gated::install(&federation);
    let client = federation.client(0);
    let dir = federation.dir.path();
    let payloads = || -> Vec<PathBuf> {
        let all = below(&dir.join("p1-master")).into_iter();
        all.filter(|path| path.is_file() && path.components().any(|part| part.as_os_str() == "payloads"))
            .collect()
    };
    assert_eq!(payloads(), Vec::<PathBuf>::new());
    let mut body = program(1, 1);
    // More than a record takes.
    body["job_config"]["params"] = json!({ "long": "x".repeat(5000) });
    let job = made(&client, &body).await;
    let ended = closed(&client, &job).await;
    assert_eq!(ended["state"], "success", "{ended}");
    assert_eq!(gated.ran(&job).len(), 3);
    assert!(!payloads().is_empty());
    let work = dir.join("p1-work").join(&job);
    assert!(!below(&work).is_empty(), "{}", work.display());
    let request = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = format!("/api/v1/jobs/{job}");
    let gone = request.delete(format!("http://{}{path}", client.address())).send().await.unwrap();
    assert_eq!(gone.status().as_u16(), 204);
    for left in ["", "/tasks", "/tasks?state=success", "/tasks/aggregator", "/events"] {
        assert_eq!(client.get(&format!("{path}{left}")).await.unwrap().0, 404, "{left}");
    }
    gated::until("the worker's directories go", || !work.exists()).await;
    gated::until("the payloads go", || payloads().is_empty()).await;
    let number = job.rsplit_once('-').unwrap().1;
    gated::until("the compile directory goes", || {
        let all = below(&dir.join("p1-master"));
        !all.iter().any(|path| path.ends_with(Path::new("compile").join(number)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_leaves_the_newest_and_says_which_events_went() {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let mut jobs = Vec::new();
    for n in 0..6 {
        let job = made(&client, &with(alone(1, 0), &json!({ "labels": { "n": n.to_string() } }))).await;
        assert_eq!(closed(&client, &job).await["state"], "success");
        jobs.push(job);
    }
    federation.parties[0].master.stop().await;
    configure(
        &mut federation,
        "[retention]\nevery_s = 1\nevents_days = 0\nsuccess = { days = 30, max = 2 }\n",
    );
    federation.parties[0].master.start().await;
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().into_iter().flatten();
        items.map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
    };
    let left = client.until("/api/v1/jobs?state=success", |page| ids(page).len() == 2).await;
    assert_eq!(ids(&left), [jobs[5].clone(), jobs[4].clone()]);
    // Three more rounds change nothing: another job ends in each.
    for _ in 0..3 {
        let next = made(&client, &alone(1, 0)).await;
        jobs.push(next.clone());
        closed(&client, &next).await;
        let two = &jobs[jobs.len() - 2..];
        client
            .until("/api/v1/jobs?state=success", |page| {
                let left = ids(page);
                left.len() == 2 && left.iter().all(|job| two.contains(job))
            })
            .await;
    }
    let trimmed = |body: &Value| body["code"] == "events_trimmed";
    let path = format!("/api/v1/jobs/{}/events?after=1", jobs.last().unwrap());
    let problem = client.until(&path, trimmed).await;
    let oldest = problem["oldest_seq"].as_u64().unwrap();
    assert!(oldest > 2, "{problem}");
    let request = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in ["/api/v1/events".to_owned(), format!("/api/v1/jobs/{}/events", jobs.last().unwrap())] {
        let request = request.get(format!("http://{}{path}", client.address()));
        let request = request.header("accept", "text/event-stream").header("last-event-id", "1");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 410, "{path}");
        let problem: Value = answer.json().await.unwrap();
        assert!(trimmed(&problem) && problem["oldest_seq"].as_u64().unwrap() >= oldest, "{problem}");
    }
    // Nothing goes any more: now the border is known to the number, as it is after a kill.
    federation.parties[0].master.stop().await;
    configure(&mut federation, "[retention]\nevents_days = 3000\n");
    federation.parties[0].master.start().await;
    federation.parties[0].master.kill_and_start().await;
    let (_, problem) = client.get("/api/v1/events?after=1").await.unwrap();
    let oldest = problem["oldest_seq"].as_u64().unwrap();
    assert!(trimmed(&problem) && oldest > 2, "{problem}");
    let last = jobs.last().unwrap();
    for path in ["/api/v1/events".to_owned(), format!("/api/v1/jobs/{last}/events")] {
        for (after, status) in [(oldest - 2, 410), (oldest - 1, 200), (oldest, 200)] {
            let paged = client.get(&format!("{path}?after={after}")).await.unwrap();
            assert_eq!(paged.0, status, "{path} after {after}: {}", paged.1);
            let followed = request.get(format!("http://{}{path}", client.address()));
            let followed = followed
                .header("accept", "text/event-stream")
                .header("last-event-id", after.to_string());
            let mut followed = followed.send().await.unwrap();
            assert_eq!(followed.status().as_u16(), status, "{path} behind {after}");
            if status == 410 {
                assert_eq!(followed.json::<Value>().await.unwrap()["oldest_seq"], json!(oldest));
            } else if path == "/api/v1/events" && after < oldest {
                let mut text = String::new();
                while !text.contains("data: ") {
                    text.push_str(std::str::from_utf8(&followed.chunk().await.unwrap().unwrap()).unwrap());
                }
                assert!(text.contains(&format!("id: {oldest}\n")), "{text}");
            }
        }
    }
}
