//! `/submit` and `/query` from the outside, byte by byte: what FedVision 0.1 answers to good requests, and that nothing bad is answered with a 500.

use crate::support::{Client, DEADLINE, Federation, Role};
use serde_json::{Value, json};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A master on its own: it serves without a coordinator and without a cluster.
async fn master(dir: &Path) -> Role {
    let mut master = Role::master_alone("p1-master", dir, &dir.join("data"));
    master.start().await;
    master
}

/// Sends bytes as they are.
struct Raw {
    http: reqwest::Client,
    base: String,
}

/// Status, headers, body.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Raw {
    fn new(address: &str) -> Self {
        let http = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap();
        Self {
            http,
            base: format!("http://{address}"),
        }
    }

    async fn send(&self, method: &str, path: &str, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> Answer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.send("POST", path, None, body).await
    }
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A refusal: 400 and JSON, with one key or with none, as 0.1 has it for what is no JSON.
    fn refusal(&self, what: &str) {
        assert_eq!(self.status, 400, "{what}: {}", self.text());
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8", "{what}");
        if self.body != b"{}" {
            self.exception(what);
        }
    }

    /// The words of a refusal: 400, JSON, one key.
    fn exception(&self, what: &str) -> String {
        assert_eq!(self.status, 400, "{what}: {}", self.text());
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8", "{what}");
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 1, "{what}: {body}");
        let words = body["exception"].as_str().unwrap().to_owned();
        assert!(!words.is_empty() && words.len() < 1000, "{what}: {words}");
        words
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn good_requests_are_answered_as_by_fedvision() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let raw = Raw::new(&master.address);
    let job = r#"{"job_type": "dummy", "job_config": {"worker_num": 0}}"#;
    let extra = r#"{"job_type": "dummy", "job_config": {"worker_num": 0.0}, "algorithm_config": null, "more": [1], "more": 2}"#;
    let text = r#"{"job_type":"dummy","job_config":{"worker_num":1,"proposal_wait_time":1.0},"algorithm_config":"a: 1\n"}"#;
    let types = [
        None,
        Some("application/json"),
        Some("application/x-www-form-urlencoded"),
        Some("text/plain; charset=latin-1"),
    ];
    for (n, (body, content_type)) in [job, extra, text, job].into_iter().zip(types).enumerate() {
        let answer = raw.send("POST", "/submit?x=1", content_type, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
        let text = answer.text();
        // {"job_id": "p1-YYYYmmddHHMMSS-1"}
        let id = text
            .strip_prefix(r#"{"job_id": ""#)
            .and_then(|rest| rest.strip_suffix(r#""}"#))
            .unwrap();
        let parts: Vec<_> = id.split('-').collect();
        assert_eq!(
            (parts[0], parts[1].len(), parts[2]),
            ("p1", 14, (n + 1).to_string().as_str()),
            "{id}"
        );
        assert!(parts[1].bytes().all(|byte| byte.is_ascii_digit()), "{id}");
        // Nothing it needs is there, so it goes on only as far as that.
        let words = if n == 2 { ["WAITING", "PROPOSAL"] } else { ["WAITING", "RUNNING"] };
        let answer = raw.post("/query", format!(r#"{{"job_id":"{id}"}}"#)).await;
        assert_eq!(answer.status, 200);
        let fits = words.map(|word| format!(r#"{{"job_id": "{id}", "status": "_JobStatus.{word}"}}"#));
        assert!(fits.contains(&answer.text()), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_jobs_are_not_found_and_echoed() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let raw = Raw::new(&master.address);
    let long = format!(r#""{}""#, "x".repeat(100_000));
    let ids = [
        (r#""nope""#, r#""nope""#),
        (r#""""#, r#""""#),
        ("5", "5"),
        ("1.0", "1.0"),
        ("true", "true"),
        (r#""../../etc/passwd""#, r#""../../etc/passwd""#),
        (r#""p1-20260101000000-1/../..""#, r#""p1-20260101000000-1/../..""#),
        (r#""\u0000\u001b[2J\n\"\\""#, r#""\u0000\u001b[2J\n\"\\""#),
        (r#""größe \ud83e\udd80""#, r#""gr\u00f6\u00dfe \ud83e\udd80""#),
        (&long, &long),
    ];
    for (asked, echoed) in ids {
        let answer = raw.post("/query", format!(r#"{{"job_id": {asked}, "more": 1}}"#)).await;
        assert_eq!(answer.status, 404, "{asked:.50}");
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(answer.text(), format!(r#"{{"job_id": {echoed}, "status": "_JobStatus.NOTFOUND"}}"#));
    }
    for path in [
        "/api/v1/jobs/nope",
        "/api/v1/jobs/..%2f..%2fetc",
        "/api/v1/jobs/%00%ff%0a",
        "/api/v1/jobs/%20",
    ] {
        let answer = raw.send("GET", path, None, "").await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
    }
    assert!(master.runs());
}

/// Bodies that are no request at all, for both paths.
fn no_requests() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("not JSON", b"{bad".to_vec()),
        ("nothing", Vec::new()),
        ("blank", b"  \n".to_vec()),
        ("null", b"null".to_vec()),
        ("a list", b"[{}]".to_vec()),
        ("a string", b"\"job_type\"".to_vec()),
        ("a number", b"1".to_vec()),
        ("an empty object", b"{}".to_vec()),
        ("two objects", b"{}{}".to_vec()),
        ("not UTF-8", b"{\"job_id\": \"\xff\xfe\", \"job_type\": \"\xff\"}".to_vec()),
        ("UTF-16", "{\"job_id\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
        ("zeros", vec![0; 1000]),
        ("deep lists", [vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
        ("deep objects", b"{\"a\":".repeat(100_000)),
        ("a deep id", {
            let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
            format!(r#"{{"job_id": {open}{close}, "job_type": {open}{close}}}"#).into_bytes()
        }),
        ("null ids", br#"{"job_id": null, "job_type": null, "job_config": null}"#.to_vec()),
        (
            "ids that are lists",
            br#"{"job_id": ["a"], "job_type": ["dummy"], "job_config": {}}"#.to_vec(),
        ),
        (
            "ids that are objects",
            br#"{"job_id": {"a": 1}, "job_type": {"dummy": 1}, "job_config": {}}"#.to_vec(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_a_400_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let raw = Raw::new(&master.address);
    for path in ["/submit", "/query"] {
        for (what, body) in no_requests() {
            raw.post(path, body).await.refusal(&format!("{path}: {what}"));
        }
    }
    assert!(master.runs());
    // Refused requests use up no numbers.
    let job = Client::new(&master.address).submit("dummy", &json!({ "worker_num": 0 })).await;
    assert!(job.ends_with("-1"), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_be_are_a_400_that_names_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let raw = Raw::new(&master.address);
    let long = "x".repeat(10_000);
    let dummy = |config: Value| json!({ "job_type": "dummy", "job_config": config });
    let program =
        |name: &str| json!({ "job_type": "program", "job_config": { "program": name, "proposal_wait_time": 1, "worker_num": 1 } });
    let mut cases = vec![
        (json!({ "job_type": "dummy" }), "job_config: is required".to_owned()),
        (json!({ "job_config": {} }), "job_type: is required".to_owned()),
        (json!({ "job_type": 1, "job_config": {} }), "job type 1 not supported".to_owned()),
        (
            json!({ "job_type": "foo", "job_config": {} }),
            "job type foo not supported".to_owned(),
        ),
        (
            json!({ "job_type": "paddle_fl", "job_config": {} }),
            "'proposal_wait_time' is a required property".to_owned(),
        ),
        (json!({ "job_type": "", "job_config": {} }), "job type  not supported".to_owned()),
        (json!({ "job_type": long, "job_config": {} }), "not supported".to_owned()),
        (json!({ "job_type": "a\nb\u{0}", "job_config": {} }), "not supported".to_owned()),
        (dummy(json!(null)), "None is not of type 'object'".to_owned()),
        (dummy(json!([])), "is not of type 'object'".to_owned()),
        (dummy(json!("x")), "'x' is not of type 'object'".to_owned()),
        (dummy(json!({})), "'worker_num' is a required property".to_owned()),
        (
            dummy(json!({ "worker_num": 1 })),
            "'proposal_wait_time' is a required property".to_owned(),
        ),
        (
            dummy(json!({ "worker_num": "x" })),
            "job_config.worker_num: 'x' is not of type 'integer'".to_owned(),
        ),
        (dummy(json!({ "worker_num": true })), "True is not of type 'integer'".to_owned()),
        (dummy(json!({ "worker_num": 1.5 })), "1.5 is not of type 'integer'".to_owned()),
        (dummy(json!({ "worker_num": -1 })), "-1 is less than the minimum of 0".to_owned()),
        (dummy(json!({ "worker_num": 1e300 })), "job_config.worker_num".to_owned()),
        (dummy(json!({ "worker_num": u64::MAX })), "job_config.worker_num".to_owned()),
        (
            dummy(json!({ "worker_num": 1, "proposal_wait_time": 0 })),
            "0 is less than the minimum of 1".to_owned(),
        ),
        (
            dummy(json!({ "worker_num": 1, "proposal_wait_time": 1e9 })),
            "proposal_wait_time".to_owned(),
        ),
        (
            dummy(json!({ "worker_num": 0, "nonsense": 1 })),
            "'nonsense' was unexpected".to_owned(),
        ),
        (dummy(json!({ "worker_num": 0, long.as_str(): 1 })), "unexpected".to_owned()),
        (
            json!({ "job_type": "dummy", "job_config": { "worker_num": 0 }, "algorithm_config": { "a": 1 } }),
            "algorithm_config: must be a string".to_owned(),
        ),
    ];
    for name in [
        "..", ".", "", "/", "/bin/sh", "../x", "a/../b", "a/b", "a\\b", "a;b", "$(id)", "-rf", ".hidden", "a b", "a\nb", "a\u{0}", "größe",
        "a..b",
    ] {
        cases.push((program(name), "job_config.program: program name".to_owned()));
    }
    cases.push((program(&long), "job_config.program: program name".to_owned()));
    for (request, part) in cases {
        let shown: String = request.to_string().chars().take(100).collect();
        let words = raw.post("/submit", request.to_string()).await.exception(&shown);
        assert!(words.contains(&part), "{shown}: {words}");
    }
    assert!(master.runs());
    let job = Client::new(&master.address).submit("dummy", &json!({ "worker_num": 0 })).await;
    assert!(job.ends_with("-1"), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_other_paths_are_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let raw = Raw::new(&master.address);
    let of_length = |length: usize| {
        let head = r#"{"job_type": "program", "job_config": {"program": "p", "proposal_wait_time": 1, "worker_num": 1, "params": ""#;
        let tail = r#""}}"#;
        format!("{head}{}{tail}", "x".repeat(length - head.len() - tail.len()))
    };
    for path in ["/submit", "/query"] {
        for length in [1024 * 1024, 1024 * 1024 + 1, 10 * 1024 * 1024] {
            let answer = raw.post(path, of_length(length)).await;
            assert_eq!(answer.status, 413, "{path} {length}: {}", answer.text());
        }
    }
    let answer = raw.post("/submit", of_length(1024 * 1024 - 1)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for method in ["GET", "PUT", "OPTIONS", "DELETE"] {
        for path in ["/submit", "/query"] {
            let answer = raw.send(method, path, None, "{}").await;
            assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{method} {path}");
        }
    }
    for path in ["/", "/submit/", "/query/", "/nope", "//submit", "/api/v1/jobs/"] {
        assert_eq!(raw.post(path, "{}").await.status, 404, "{path}");
    }
    assert!(master.runs());
}

/// What is no HTTP, and who never says the rest, neither ends the service nor holds up its end.
#[tokio::test(flavor = "multi_thread")]
async fn broken_clients_are_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = master(dir.path()).await;
    let mut open = Vec::new();
    let texts: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /submit HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"job_type\":",
        b"POST /query HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /submit HTTP/1.1\r\n",
    ];
    for text in texts {
        let mut stream = tokio::net::TcpStream::connect(&master.address).await.unwrap();
        stream.write_all(text).await.unwrap();
        open.push(stream);
    }
    // A body of unknown length is held to the same limit.
    let mut chunked = b"POST /submit HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..17 {
        chunked.extend([b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat());
    }
    let mut stream = tokio::net::TcpStream::connect(&master.address).await.unwrap();
    stream.write_all(&chunked).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 413");
    let job = Client::new(&master.address).submit("dummy", &json!({ "worker_num": 0 })).await;
    assert!(job.ends_with("-1"), "{job}");
    let began = std::time::Instant::now();
    master.signal(rustix::process::Signal::TERM);
    assert_eq!(master.ended().await.code(), Some(0));
    assert!(began.elapsed() < std::time::Duration::from_secs(5));
    drop(open);
}

/// A whole federation must not be disturbed by ids and texts that are merely strange.
#[tokio::test(flavor = "multi_thread")]
async fn strange_but_allowed_content_reaches_its_end() {
    let federation = Federation::start(1).await;
    let raw = Raw::new(&federation.parties[0].master.address);
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let config = format!(
        r#"{{"program": "nowhere", "proposal_wait_time": 1, "worker_num": 1, "endpoints": 0, "params": {{"\u0000": {deep}, "🦀": -0.0, "n": 123456789012345678901234567890}}}}"#
    );
    let request = format!(r#"{{"job_type": "program", "job_config": {config}, "algorithm_config": "\u0000\ud83e\udd80"}}"#);
    let answer = raw.post("/submit", request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    let ended = federation.client(0).ended(body["job_id"].as_str().unwrap()).await;
    let reason = ended["reason"].as_str().unwrap();
    assert!(reason.contains("program nowhere is not installed at worker p1-worker"), "{reason}");
}
