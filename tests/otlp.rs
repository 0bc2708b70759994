//! Spans at a collector: those of a job are in the trace that its submission named. Only with the feature: `cargo test --features otlp --test otlp`.
#![cfg(feature = "otlp")]

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "this binary needs little of it")]
mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use support::{Client, Role};

const TRACE: [u8; 16] = [
    0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36,
];
const SPAN: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What was posted: path and body.
type Posted = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Takes what is posted; gives its address.
#[expect(clippy::disallowed_methods, reason = "a collector of the test's own, outside of any runtime")]
fn collector() -> (String, Posted) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, posted) = (listener.local_addr().unwrap().to_string(), Posted::default());
    let taken = posted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let taken = taken.clone();
            std::thread::spawn(move || while take(&stream, &taken).is_some() {});
        }
    });
    (address, posted)
}

/// One request of a connection.
fn take(mut stream: &TcpStream, posted: &Posted) -> Option<()> {
    let mut reader = BufReader::with_capacity(1, stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|count| *count > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let (name, value) = line.split_once(':').unwrap_or(("", ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "" => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    posted.lock().unwrap().push((path, body));
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(answer.as_bytes()).ok()
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_a_job_come_to_the_collector_in_the_trace_of_its_submission() {
    let dir = tempfile::tempdir().unwrap();
    let (address, posted) = collector();
    let mut master = Role::master_alone("p1-master", dir.path(), &dir.path().join("data"));
    master.set_flag("--otlp-endpoint", &format!("http://{address}"));
    master.start().await;
    let client = Client::new(&master.address);
    let body = json!({ "job_type": "dummy", "job_config": { "worker_num": 0, "endpoints": 0 } });
    let (status, job) = client
        .send("POST", "/api/v1/jobs", &[("traceparent", TRACEPARENT)], &body)
        .await
        .unwrap();
    assert_eq!(status, 201, "{job}");
    let id = job["job_id"].as_str().unwrap().to_owned();
    // It is compiled, and waits for a cluster manager that is not there.
    client
        .until(&format!("/api/v1/jobs/{id}"), |job: &Value| job["state"] == "running")
        .await;
    // What waits to be sent is sent at the end.
    assert!(master.stop().await.unwrap().success());
    let posted = posted.lock().unwrap();
    assert!(posted.iter().all(|(path, _)| path == "/v1/traces") && !posted.is_empty());
    let of_job = posted.iter().find(|(_, body)| has(body, &TRACE)).map(|(_, body)| body);
    let body = of_job.unwrap_or_else(|| {
        panic!(
            "no span in the trace of the submission among {} posts\n{}",
            posted.len(),
            master.log()
        )
    });
    for part in [&SPAN[..], b"fedbroker-master", b"runner", b"prepare", id.as_bytes()] {
        assert!(has(body, part), "{:?} is not among the spans", String::from_utf8_lossy(part));
    }
}
