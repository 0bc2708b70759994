//! A small client of the master's REST service, for the commands that need one.

use anyhow::Context;
use serde_json::Value;
use std::time::Duration;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the next piece of a long answer may take: the master reads from its disk between two of them.
const STREAM_LIMIT: Duration = Duration::from_secs(120);

/// Talks to one master.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    endpoint: String,
}

/// An answer of the master.
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON body; what is no JSON is a string.
    pub body: Value,
}

impl Client {
    /// A client of `host:port`.
    pub(super) fn new(endpoint: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(LIMIT)
            .no_proxy()
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            http,
            endpoint: endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned(),
        })
    }

    /// POST JSON.
    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.answer(self.http.post(self.url(path)).json(body)).await
    }

    /// GET.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.answer(self.http.get(self.url(path))).await
    }

    /// POST for an answer that comes as long as it comes; each piece of it within the limit.
    ///
    /// # Errors
    /// The master cannot be reached, or says no.
    pub(super) async fn stream(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let http = reqwest::Client::builder()
            .connect_timeout(LIMIT)
            .read_timeout(STREAM_LIMIT)
            .no_proxy()
            .build()
            .context("cannot make an HTTP client")?;
        let response = http
            .post(self.url(path))
            .send()
            .await
            .with_context(|| format!("cannot reach the master at {}", self.endpoint))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let body = serde_json::from_str(&response.text().await.unwrap_or_default()).unwrap_or(Value::Null);
        match (Answer { status, body }).good() {
            Ok(_) => anyhow::bail!("the master at {} gave no answer", self.endpoint),
            Err(error) => Err(error),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.endpoint)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        let response = request
            .send()
            .await
            .with_context(|| format!("cannot reach the master at {}", self.endpoint))?;
        let status = response.status().as_u16();
        let text = response
            .text()
            .await
            .with_context(|| format!("the master at {} broke off", self.endpoint))?;
        Ok(Answer {
            status,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        })
    }
}

impl Answer {
    /// The body of a good answer.
    ///
    /// # Errors
    /// The answer's own reason.
    pub(super) fn good(self) -> anyhow::Result<Value> {
        if self.status < 400 {
            return Ok(self.body);
        }
        let texts = ["exception", "detail", "title"];
        let why = texts.iter().find_map(|name| self.body[*name].as_str()).or(self.body.as_str());
        let why = why.filter(|why| !why.is_empty()).unwrap_or("no reason given");
        anyhow::bail!("{} ({})", why, self.status)
    }
}
