//! Server-sent events from the master, over broken connections: begun again after the last event seen, so that none is missed or comes twice.

use crate::cli::client::{Client, ClientError, Request};
use serde_json::Value;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The longest line taken.
const LINE_MAX: usize = 1024 * 1024;

/// Events as they happen.
pub(super) struct Events {
    client: Client,
    path: Vec<String>,
    patience: Duration,
    /// The sequence of the last event handed out.
    last: Option<String>,
    answer: Option<reqwest::Response>,
    parser: Parser,
}

impl Events {
    /// Those at a path of the service, after `last` or from the beginning of what is there.
    pub(super) fn new(client: Client, path: &[&str], last: Option<String>, patience: Duration) -> Self {
        Self {
            client,
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            patience,
            last,
            answer: None,
            parser: Parser::default(),
        }
    }

    /// The next one; waits for it.
    ///
    /// # Errors
    /// The master is away for longer than the patience, or says no.
    pub(super) async fn next(&mut self) -> Result<Value, ClientError> {
        let mut away_since = None::<Instant>;
        let mut backoff = crate::wire::connect::Backoff::new();
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                self.last = Some(event.id);
                return Ok(event.data);
            }
            let error = match self.read().await {
                Ok(()) => {
                    away_since = None;
                    continue;
                }
                Err(error) => error,
            };
            self.answer = None;
            self.parser = Parser::default();
            let since = *away_since.get_or_insert_with(Instant::now);
            if !error.is_passing() || since.elapsed() > self.patience {
                return Err(error);
            }
            backoff.wait().await;
        }
    }

    /// Take in one more piece.
    async fn read(&mut self) -> Result<(), ClientError> {
        let client = self.client.clone();
        let answer = match &mut self.answer {
            Some(answer) => answer,
            none => {
                let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
                let mut request = Request::get(&path).header("accept", "text/event-stream");
                if let Some(last) = &self.last {
                    request = request.header("last-event-id", last.clone());
                }
                none.insert(client.open(request).await?)
            }
        };
        match client.chunk(answer).await? {
            Some(bytes) if self.parser.take(&bytes) => Ok(()),
            ended => Err(ClientError::Unreachable {
                endpoint: self.path.join("/"),
                why: if ended.is_some() {
                    "a line of the stream is too long"
                } else {
                    "the stream ended"
                }
                .to_owned(),
            }),
        }
    }
}

struct Event {
    id: String,
    data: Value,
}

/// The text of a stream as it comes in pieces.
#[derive(Default)]
struct Parser {
    rest: Vec<u8>,
    id: String,
    data: String,
    events: VecDeque<Event>,
}

impl Parser {
    /// False when a line is too long to be one of ours.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\r', '\n']));
        }
        self.rest.len() + self.data.len() <= LINE_MAX
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let data = serde_json::from_str(&std::mem::take(&mut self.data));
            if let Ok(data) = data {
                let id = self.id.clone();
                self.events.push_back(Event { id, data });
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => value.clone_into(&mut self.id),
            "data" if self.data.is_empty() => value.clone_into(&mut self.data),
            "data" => self.data.extend(["\n", value]),
            // A comment is the heartbeat; the type is in the data too.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_however_the_stream_is_cut() {
        let text = "id: 7\nevent: job_accepted\ndata: {\"seq\":7,\"é\":1}\n\n: heartbeat\n\nid:8\ndata: {\"seq\":\ndata: 8}\r\n\r\nid: 9\ndata: {\"seq\"";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            assert!(text.as_bytes().chunks(size).all(|piece| parser.take(piece)));
            let ids: Vec<_> = parser
                .events
                .iter()
                .map(|event| (event.id.as_str(), event.data["seq"].as_u64()))
                .collect();
            assert_eq!(ids, [("7", Some(7)), ("8", Some(8))], "in pieces of {size}");
        }
        assert!(!Parser::default().take(&vec![b'x'; LINE_MAX + 1]));
    }
}
