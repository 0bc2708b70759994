//! `/api/v1` from the outside: its contract, its shapes, and what it says to bad requests.

mod actions;
mod contract;
mod events;
mod fuzz;
mod golden;
mod lists;
mod paper;
mod problems;
mod status;
mod submit;

use crate::support::{DEADLINE, Role};
use serde_json::Value;
use std::path::Path;

/// A master on its own: it serves without a coordinator and without a cluster.
async fn master(dir: &Path) -> Role {
    let mut master = Role::master_alone("p1-master", dir, &dir.join("data"));
    master.start().await;
    master
}

/// Sends requests as they are.
#[derive(Clone)]
struct Http {
    http: reqwest::Client,
    base: String,
}

/// Status, headers, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Http {
    fn new(address: &str) -> Self {
        let http = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap();
        let base = format!("http://{address}");
        Self { http, base }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string())
            .await
    }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of an answer of this status.
    fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A problem, whole and in order; its code and pointer.
    fn problem(&self, what: &str) -> (String, String) {
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{what}: {} {}",
            self.status,
            self.text()
        );
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["status"], self.status, "{what}: {body}");
        let code = body["code"].as_str().unwrap();
        assert_eq!(body["type"], format!("urn:fedbroker:problem:{code}"), "{what}");
        for text in ["title", "detail"] {
            let text = body[text].as_str().unwrap_or_default();
            assert!(!text.is_empty() && text.len() < 2000, "{what}: {body}");
        }
        assert_eq!(body["retryable"], self.headers.contains_key("retry-after"), "{what}: {body}");
        (code.to_owned(), body["pointer"].as_str().unwrap_or_default().to_owned())
    }
}
