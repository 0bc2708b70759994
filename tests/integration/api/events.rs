//! What happened, as pages and as streams: whole, in order, and so again after any break.

use super::{Http, golden, master};
use crate::support::{Client, DEADLINE, Federation};
use serde_json::{Value, json};

/// Reads a stream of server-sent events.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(http: &Http, path: &str, last: Option<u64>) -> Self {
        let mut request = http.http.get(format!("{}{path}", http.base)).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = String::new();
        Self { response, text }
    }

    /// The next event: its number and its data; what is no event is passed over.
    async fn next(&mut self) -> (u64, Value) {
        loop {
            while let Some(at) = self.text.find("\n\n") {
                let block: String = self.text.drain(..at + 2).collect();
                let field = |name: &str| {
                    let mut lines = block.lines().filter_map(|line| line.split_once(": "));
                    lines.find(|(field, _)| *field == name).map(|(_, value)| value.to_owned())
                };
                if let Some(id) = field("id") {
                    let data: Value = serde_json::from_str(&field("data").unwrap()).unwrap();
                    assert_eq!(field("event").unwrap(), data["type"], "{block}");
                    assert_eq!(data["seq"].to_string(), id, "{block}");
                    return (id.parse().unwrap(), data);
                }
            }
            let piece = tokio::time::timeout(DEADLINE, self.response.chunk())
                .await
                .expect("more comes")
                .unwrap();
            self.text
                .push_str(std::str::from_utf8(&piece.expect("the stream goes on")).unwrap());
        }
    }
}

/// All events by pages.
async fn pages(http: &Http, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = http.get(&format!("{path}?limit={limit}&after={after}")).await.json(200);
        all.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => after = next.parse().unwrap(),
            None => return all,
        }
    }
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

/// A client that is killed again and again, and comes back with the last number it has, sees every event once and in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_broken_fifty_times_misses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let (http, client) = (Http::new(&master.address), Client::new(&master.address));
    let (mut seen, mut last) = (Vec::new(), 0);
    for round in 0..50u64 {
        if round == 25 {
            master.kill_and_start().await;
        }
        let begun = client.submit("dummy", &json!({ "worker_num": 0 })).await;
        let mut stream = Stream::open(&http, "/api/v1/events", Some(last)).await;
        let writer = {
            let client = client.clone();
            async move { client.submit("dummy", &json!({ "worker_num": 1, "proposal_wait_time": 1 })).await }
        };
        // Read a few while more comes, and break off anywhere.
        let reader = async {
            for _ in 0..=round % 4 {
                let (seq, event) = stream.next().await;
                seen.push(event);
                last = seq;
            }
        };
        let ((), other) = tokio::join!(reader, writer);
        assert_ne!(begun, other);
    }
    // The rest, in one go.
    let all = pages(&http, "/api/v1/events", 7).await;
    let mut stream = Stream::open(&http, "/api/v1/events", Some(last)).await;
    while last < *numbers(&all).last().unwrap() {
        let (seq, event) = stream.next().await;
        seen.push(event);
        last = seq;
    }
    let upto: Vec<Value> = pages(&http, "/api/v1/events", 1000).await;
    let upto: Vec<Value> = upto.into_iter().filter(|event| event["seq"].as_u64().unwrap() <= last).collect();
    assert_eq!(numbers(&seen), numbers(&upto));
    assert_eq!(seen, upto);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_of_a_job_is_whole_and_goes_on() {
    let federation = Federation::start(2).await;
    let http = Http::new(&federation.parties[0].master.address);
    let client = federation.client(0);
    let other = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    let id = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 2 })).await;
    let path = format!("/api/v1/jobs/{id}/events");
    let mut stream = Stream::open(&http, &path, None).await;
    let mut live = Vec::new();
    while live.last().is_none_or(|event: &Value| event["type"] != "job_succeeded") {
        live.push(stream.next().await.1);
        assert_eq!(live.last().unwrap()["job_id"], id.as_str());
    }
    let told = |job: &Value| {
        let parties = job["parties"].as_array().into_iter().flatten();
        parties.filter(|party| party["state"] == "success").count() == 2
    };
    client
        .until(&format!("/api/v1/jobs/{id}"), |job| job["live"] == false && told(job))
        .await;
    client.ended(&other).await;
    let story = pages(&http, &path, 3).await;
    assert!(story.len() >= live.len());
    assert_eq!(story[..live.len()], live[..]);
    assert_eq!(story[0]["type"], "job_accepted");
    let all = pages(&http, "/api/v1/events", 100).await;
    // The story is what the log has of the job, its tasks and the other parties; what this party tells the coordinator is no part of it.
    let told = |event: &Value| matches!(event["type"].as_str(), Some("report_owed" | "report_sent"));
    let of_job: Vec<Value> = all
        .into_iter()
        .filter(|event| event["job_id"] == id.as_str() && !told(event))
        .collect();
    assert_eq!(story, of_job);
    let kinds: Vec<&str> = story.iter().map(|event| event["type"].as_str().unwrap()).collect();
    for kind in [
        "job_proposing",
        "task_held",
        "job_running",
        "task_submitted",
        "task_ended",
        "job_succeeded",
        "job_announced",
        "party_changed",
    ] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    golden::check(
        "event",
        story
            .iter()
            .find(|event| event["type"] == "task_ended" && event["task_id"] == "aggregator")
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_refused_in_words_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let (http, client) = (Http::new(&master.address), Client::new(&master.address));
    let id = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    let stream = ("accept", "text/event-stream;q=0.9, */*");
    for bad in ["x", "-1", "1.5", "99999999999999999999", "18446744073709551615"] {
        let answer = http.send("GET", "/api/v1/events", &[stream, ("last-event-id", bad)], "").await;
        assert_eq!((answer.status, answer.problem(bad).0.as_str()), (400, "invalid_header"), "{bad}");
    }
    assert_eq!(
        http.send("GET", "/api/v1/jobs/nope/events", &[stream], "").await.problem("job").0,
        "job_not_found"
    );
    // A number of another log, or of this one before it was restored.
    for path in ["/api/v1/events".to_owned(), format!("/api/v1/jobs/{id}/events")] {
        let answer = http.send("GET", &path, &[stream, ("last-event-id", "1000000")], "").await;
        assert_eq!(answer.problem(&path), ("invalid_parameter".to_owned(), "?after".to_owned()));
    }
    for json in ["text/event-stream;q=0", "application/json, text/event-stream;q=0.5"] {
        let answer = http.send("GET", "/api/v1/events", &[("accept", json)], "").await;
        assert_eq!(answer.header("content-type"), "application/json", "{json}");
    }
    for query in ["after=x", "after=-1", "after=1000000", "limit=1001", "limit=0"] {
        assert_eq!(
            http.get(&format!("/api/v1/events?{query}")).await.problem(query).0,
            "invalid_parameter"
        );
    }
    let mut open = Vec::new();
    let refused = loop {
        let request = http
            .http
            .get(format!("{}/api/v1/jobs/{id}/events", http.base))
            .header("accept", "text/event-stream");
        let response = request.send().await.unwrap();
        match response.status().as_u16() {
            200 => open.push(response),
            status => break (status, response.headers()["retry-after"].to_str().unwrap().to_owned()),
        }
        assert!(open.len() <= 256);
    };
    assert_eq!(refused, (429, "10".to_owned()));
    // Others are served, and the places come back.
    assert_eq!(http.get(&format!("/api/v1/jobs/{id}")).await.status, 200);
    drop(open);
    let deadline = std::time::Instant::now() + DEADLINE;
    while http
        .http
        .get(format!("{}/api/v1/events", http.base))
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap()
        .status()
        != 200
    {
        assert!(std::time::Instant::now() < deadline, "no place comes back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_all_jobs_a_line_each() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let item = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } });
    let items: Vec<Value> = (0..250).map(|_| item.clone()).collect();
    let made = http.post("/api/v1/jobs:batch", &json!({ "items": items })).await.json(200);
    let made: std::collections::BTreeSet<String> = made["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["job"]["job_id"].as_str().unwrap().to_owned())
        .collect();
    let answer = http.get("/api/v1/jobs:export?fields=job_id,config").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"));
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 250);
    let exported = lines.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(made, exported);
    assert!(lines.iter().all(|job| job["config"] == item["job_config"]));
    assert_eq!(http.get("/api/v1/jobs:export?state=success").await.text(), "");
    assert_eq!(
        http.get("/api/v1/jobs:export?limit=5").await.problem("limit").0,
        "unknown_parameter"
    );
}

/// Makes so much happen that no socket takes it all.
async fn much(http: &Http) {
    let later = json!({ "job_type": "dummy", "job_config": { "worker_num": 0 }, "not_before": "2999-01-01T00:00:00Z" });
    let items: Vec<Value> = (0..1000).map(|_| later.clone()).collect();
    for _ in 0..5 {
        http.post("/api/v1/jobs:batch", &json!({ "items": items })).await.json(200);
    }
    let cancel = json!({ "filter": { "state": ["waiting"] }, "reason": "x".repeat(500) });
    http.post("/api/v1/jobs:cancel", &cancel).await.json(200);
}

fn memory(master: &crate::support::Role) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", master.pid().unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Clients that ask for all there is and read nothing: each costs a connection, for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_cost_no_memory_and_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    much(&http).await;
    let all = pages(&http, "/api/v1/events", 1000).await;
    let bytes: usize = all.iter().map(|event| event.to_string().len()).sum();
    assert!(bytes > 3_000_000, "{bytes}");
    let before = memory(&master);
    let mut slow = Vec::new();
    for _ in 0..30 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(master.address.parse().unwrap()).await.unwrap();
        let head = b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\nlast-event-id: 0\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
        slow.push(stream);
    }
    let clients = |text: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix("fedbroker_sse_clients "))?;
        line.parse().ok()
    };
    let until = async |wanted: u64| {
        let deadline = std::time::Instant::now() + DEADLINE;
        let mut most = 0;
        loop {
            most = most.max(memory(&master));
            if clients(&http.get("/metrics").await.text()) == Some(wanted) {
                return most;
            }
            assert!(std::time::Instant::now() < deadline, "there are never {wanted} clients");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let open = until(30).await;
    // All are cut off; meanwhile the master takes and tells what comes.
    let (client, config) = (Client::new(&master.address), json!({ "worker_num": 0 }));
    let (most, id) = tokio::join!(until(0), client.submit("dummy", &config));
    let grown = most.saturating_sub(before);
    // Each may cost half a megabyte in buffers; kept whole it would cost three times its bytes.
    let whole = 30 * bytes as u64;
    assert!(
        grown < whole * 9 / 10,
        "30 readers of {bytes} bytes: {before} before, {open} with all open, {most} at most"
    );
    assert_eq!(http.get(&format!("/api/v1/jobs/{id}")).await.status, 200);
    // Who was cut off has a piece of it, from the begin, and may come back for the rest.
    for mut stream in slow {
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
        let text = String::from_utf8_lossy(&rest);
        assert!(text.contains("\nid: 1\n") && rest.len() < bytes, "{} bytes", rest.len());
    }
}
