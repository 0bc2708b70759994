//! The client of a master's REST service, for the commands that need one.
//!
//! Says apart what a script wants to tell apart: a master that cannot be reached, and one that says no ([`ClientError`]).

use super::terminal::plain;
use crate::wire::connect::Backoff;
use reqwest::{Method, Url};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long one request may take, beyond what it asks the master to wait.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the next piece of a long answer may take: the master reads from its disk between two of them, and a stream of events beats more often.
const STREAM_LIMIT: Duration = Duration::from_secs(120);

/// Talks to one master. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// As the user named it.
    endpoint: String,
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// `--endpoint` is no address.
    #[error("--endpoint: {0:?} is not a host:port")]
    Endpoint(String),
    /// A part of a path that is none: it would lead to another resource.
    #[error("{0:?} is no id")]
    Id(String),
    /// Nobody answers, or the answer broke off.
    #[error("cannot reach the master at {endpoint}: {why}")]
    Unreachable {
        /// As the user named it.
        endpoint: String,
        /// The cause.
        why: String,
    },
    /// The master said no.
    #[error("{detail} ({status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable name of the problem, where the answer has one.
        code: String,
        /// What is wrong, with the field where the answer names one.
        detail: String,
        /// When another try may bring another answer.
        retry_after: Option<Duration>,
    },
}

impl ClientError {
    /// True when the same request may be taken later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            ClientError::Endpoint(_) | ClientError::Id(_) => false,
            ClientError::Unreachable { .. } => true,
            ClientError::Refused { status, .. } => matches!(status, 429 | 502..=504 | 507),
        }
    }

    /// How long the master asks to be left alone.
    fn retry_after(&self) -> Duration {
        match self {
            ClientError::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            ClientError::Endpoint(_) | ClientError::Id(_) | ClientError::Unreachable { .. } => Duration::ZERO,
        }
    }
}

/// What is asked of the master.
pub(super) struct Request<'a> {
    method: Method,
    /// Parts of the path, as they are; slashes and the like in them are escaped.
    path: Vec<&'a str>,
    query: Vec<(&'a str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<&'a Value>,
    /// How long the master may wait with its answer.
    pub(super) waits: Duration,
}

impl<'a> Request<'a> {
    /// GET of a path below the root.
    pub(super) fn get(path: &[&'a str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// POST.
    pub(super) fn post(path: &[&'a str]) -> Self {
        Self::new(Method::POST, path)
    }

    /// DELETE.
    pub(super) fn delete(path: &[&'a str]) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn new(method: Method, path: &[&'a str]) -> Self {
        Self {
            method,
            path: path.to_vec(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            waits: Duration::ZERO,
        }
    }

    /// With a query parameter.
    #[must_use]
    pub(super) fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// With many.
    #[must_use]
    pub(super) fn queries(mut self, more: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        self.query.extend(more);
        self
    }

    /// With a header.
    #[must_use]
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a JSON body.
    #[must_use]
    pub(super) fn json(mut self, body: &'a Value) -> Self {
        self.body = Some(body);
        self
    }
}

impl Client {
    /// A client of `host:port`.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn new(endpoint: &str) -> Result<Self, ClientError> {
        let wrong = || ClientError::Endpoint(endpoint.to_owned());
        let plain = endpoint.trim_start_matches("http://").trim_end_matches('/');
        let base = Url::parse(&format!("http://{plain}/")).map_err(|_| wrong())?;
        if base.path() != "/" || base.host_str().is_none() {
            return Err(wrong());
        }
        let http = reqwest::Client::builder()
            .connect_timeout(LIMIT)
            .read_timeout(STREAM_LIMIT)
            .user_agent(concat!("fedbroker/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Unreachable {
                endpoint: plain.to_owned(),
                why: error.to_string(),
            })?;
        let endpoint = plain.to_owned();
        Ok(Self { http, base, endpoint })
    }

    /// The JSON of a good answer; `Null` when it has no body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(super) async fn ask(&self, request: Request<'_>) -> Result<Value, ClientError> {
        let limit = LIMIT + request.waits;
        let whole = async {
            let response = self.open(request).await?;
            let text = response.text().await.map_err(|error| self.unreachable(&error))?;
            Ok(serde_json::from_str(&text).unwrap_or(if text.is_empty() { Value::Null } else { Value::String(text) }))
        };
        let late = || ClientError::Unreachable {
            endpoint: self.endpoint.clone(),
            why: format!("no answer within {} s", limit.as_secs()),
        };
        tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| Err(late()))
    }

    /// [`Client::ask`], again and again while the master is away or asks to come back later, for at most `patience`. Only for requests that may be
    /// repeated.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(super) async fn ask_patiently<'a>(&self, patience: Duration, request: impl Fn() -> Request<'a>) -> Result<Value, ClientError> {
        let (mut backoff, until) = (Backoff::new(), Instant::now() + patience);
        loop {
            match self.ask(request()).await {
                Err(error) if error.is_passing() => {
                    let delay = backoff.delay().max(error.retry_after());
                    if Instant::now() + delay > until {
                        return Err(error);
                    }
                    eprintln!("{error}; trying again");
                    tokio::time::sleep(delay).await;
                }
                answered => return answered,
            }
        }
    }

    /// A good answer whose body comes as long as it comes; each piece of it within a limit.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(super) async fn open(&self, request: Request<'_>) -> Result<reqwest::Response, ClientError> {
        if let Some(none) = request.path.iter().find(|part| matches!(**part, "" | "." | "..")) {
            return Err(ClientError::Id((*none).to_owned()));
        }
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(&request.path);
        }
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut builder = self.http.request(request.method, url);
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        if let Some(body) = request.body {
            builder = builder.json(body);
        }
        let response = builder.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let text = response.text().await.unwrap_or_default();
        Err(refusal(status, retry_after.map(Duration::from_secs), &text))
    }

    /// The next piece of an answer from [`Client::open`].
    ///
    /// # Errors
    /// It broke off.
    pub(super) async fn chunk(&self, response: &mut reqwest::Response) -> Result<Option<bytes::Bytes>, ClientError> {
        response.chunk().await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            why = source.to_string();
            cause = source.source();
        }
        ClientError::Unreachable {
            endpoint: self.endpoint.clone(),
            why,
        }
    }
}

/// What a body that says no says, be it a problem or the exception of FedVision 0.1.
fn refusal(status: u16, retry_after: Option<Duration>, text: &str) -> ClientError {
    let body: Value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let texts = ["detail", "exception", "title"];
    let why = texts.iter().find_map(|name| body[*name].as_str()).or(body.as_str());
    let why = why.filter(|why| !why.is_empty()).unwrap_or("no reason given");
    let detail = match body["pointer"].as_str() {
        Some(pointer) if !names(why, pointer) => plain(&format!("{pointer}: {why}")),
        _ => plain(why),
    };
    ClientError::Refused {
        status,
        code: body["code"].as_str().unwrap_or_default().to_owned(),
        detail,
        retry_after,
    }
}

/// True when a text names the field that a pointer leads to.
fn names(why: &str, pointer: &str) -> bool {
    let dotted = pointer.trim_start_matches(['/', '?']).replace('/', ".");
    let field = pointer.rsplit(['/', '?']).next().unwrap_or_default();
    let field = field.replace("~1", "/").replace("~0", "~");
    let forms = [format!("\"{field}\""), format!("'{field}'"), format!(" {field}:")];
    why.starts_with(&format!("{dotted}:")) || forms.iter().any(|form| why.contains(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses() {
        for good in ["127.0.0.1:10002", "http://localhost:1/", "[::1]:80"] {
            assert!(Client::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "127.0.0.1:99999", "127.0.0.1:1/api"] {
            assert!(matches!(Client::new(bad), Err(ClientError::Endpoint(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        let text = r#"{"code": "invalid_field", "pointer": "/labels/a", "detail": "too long", "retryable": false}"#;
        let error = refusal(400, None, text);
        assert_eq!(error.to_string(), "/labels/a: too long (400)");
        assert!(!error.is_passing() && refusal(503, None, "").is_passing());
        for (pointer, detail) in [
            ("?limit", "limit: \"0\" is no whole number"),
            ("/filter/q", "filter.q: is empty"),
            ("/foo", "\"foo\" is not known; there is `reason`"),
            ("/labels/a~1 b", "label \"a/ b\": a key is ..."),
            ("/labels/a~1b", "label a/b: a value is ..."),
            ("/job_config/x", "'x' is a required property"),
        ] {
            let text = serde_json::json!({ "pointer": pointer, "detail": detail }).to_string();
            assert_eq!(refusal(400, None, &text).to_string(), format!("{detail} (400)"), "{pointer}");
        }
        assert_eq!(refusal(500, None, "").to_string(), "no reason given (500)");
        assert_eq!(refusal(502, None, "\u{1b}[2Jx").to_string(), " [2Jx (502)");
    }
}
