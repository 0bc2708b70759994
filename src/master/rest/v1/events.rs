//! `GET /api/v1/events`, `GET /api/v1/jobs/{id}/events`: what happened, as pages, and as server-sent events that follow the log.
//!
//! A stream reads the store when its client has taken what came before, and keeps nothing but its place: however slow a client is, it costs a
//! connection. One that takes no byte for a while is cut off by `server`, and resumes with `Last-Event-ID`.

use super::super::Door;
use super::accept::wants_stream;
use super::event::Event;
use super::jobs;
use super::page::Page;
use super::path::Id;
use super::problem::{Code, Problem};
use super::query::Query;
use crate::machine::ids::JobId;
use crate::machine::join_key;
use crate::machine::master::{Event as Record, Key, Record as Stored};
use crate::master::index::Watcher;
use crate::metrics::SseClient;
use crate::store::{Error, Seq};
use crate::supervisor::Supervisor;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Events of one piece of a stream: some hundred KiB at most.
const PIECE: usize = 128;
/// Events of a page where the request does not say, and the most.
const LIMIT: [u64; 2] = [100, 1000];
/// The most events of one job: a few for each step and each of its tasks.
const STORY_MAX: usize = 20_000;
/// How long a stream is silent before it says that it is there: proxies give up after a minute.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What a stream begins with: how long a client waits before it comes back.
const BEGIN: &str = "retry: 1000\n: from fedbroker\n\n";

/// What happened at this master, the oldest first
///
/// As server-sent events, which go on as more happens, where `Accept` names `text/event-stream` and wants it no less than JSON: without `Last-Event-ID`
/// or `after` from now on.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", operation_id = "list_events",
    params(
        ("after" = Option<u64>, Query, description = "Events with higher numbers only"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 1000; 100 if it is not there", minimum = 1, maximum = 1000),
        ("Last-Event-ID" = Option<u64>, Header, description = "Of a stream: the number of the last event that is known"),
    ),
    responses(
        (status = 200, description = "A page, whose `next_cursor` is the next `after`; or a stream", content(
            (Page<Event> = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "Events after that one were removed; `oldest_seq` is the first there is", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "Too many streams", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn all(State(door): State<Door>, headers: HeaderMap, query: Query) -> Result<Response, Problem> {
    let asked = Asked::take(query, &headers)?;
    asked.check(&door)?;
    if asked.stream {
        let after = asked.after.unwrap_or_else(|| *door.shared.handle.head().borrow());
        return Source::All(door.shared.handle.head()).stream(door, after);
    }
    let (from, limit) = (asked.after.unwrap_or(0) + 1, asked.limit);
    let reader = door.shared.handle.reader().clone();
    // One more than is shown, to know whether there is a next page.
    let read = move || {
        let events = reader.events(from, limit + 1)?;
        Ok((reader.gap(from, &events), events))
    };
    match blocking(read).await? {
        (Some(oldest), _) if from > 1 => Err(trimmed(oldest)),
        (_, events) => Ok(page(events, limit).into_response()),
    }
}

/// What happened to a job and its tasks, the oldest first
///
/// As server-sent events, which go on as more happens, where `Accept` names `text/event-stream` and wants it no less than JSON.
#[utoipa::path(get, path = "/api/v1/jobs/{job_id}/events", tag = "events", operation_id = "list_events_of_job",
    params(
        ("job_id" = String, Path, description = "Id of the job"),
        ("after" = Option<u64>, Query, description = "Events with higher numbers only"),
        ("limit" = Option<u16>, Query, description = "Items of a page, 1 to 1000; 100 if it is not there", minimum = 1, maximum = 1000),
        ("Last-Event-ID" = Option<u64>, Header, description = "Of a stream: the number of the last event that is known"),
    ),
    responses(
        (status = 200, description = "A page, whose `next_cursor` is the next `after`; or a stream", content(
            (Page<Event> = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "A parameter is not right", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "This party has no such job", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "Events after that one were removed; `oldest_seq` is the first there is", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "Too many streams", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::master::rest) async fn of_job(
    State(door): State<Door>,
    Id(id): Id,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, Problem> {
    let asked = Asked::take(query, &headers)?;
    let job = jobs::find(&door, &id).await?.id;
    asked.check(&door)?;
    let after = asked.after.unwrap_or(0);
    if asked.stream {
        let source = Source::Job {
            watcher: door.shared.index.watch(&job),
            job,
            head: door.shared.handle.head(),
        };
        return source.stream(door, after);
    }
    let events = story(&door, &job, after).await?;
    Ok(page(events, asked.limit).into_response())
}

/// What a request wants.
struct Asked {
    stream: bool,
    after: Option<Seq>,
    limit: usize,
}

impl Asked {
    fn take(mut query: Query, headers: &HeaderMap) -> Result<Self, Problem> {
        let stream = wants_stream(headers);
        let mut after = query.number("after", 0, Seq::MAX - 1)?;
        let limit = query.number("limit", 1, LIMIT[1])?.unwrap_or(LIMIT[0]);
        query.end()?;
        if stream && let Some(last) = headers.get("last-event-id") {
            let number = last
                .to_str()
                .ok()
                .and_then(|text| text.parse().ok())
                .filter(|last| *last < Seq::MAX);
            let bad = || Problem::new(Code::InvalidHeader, "last-event-id: is no number of an event");
            after = Some(number.ok_or_else(bad)?);
        }
        let limit = usize::try_from(limit).expect("it is small");
        Ok(Self { stream, after, limit })
    }

    /// Whether what is asked for is there to its beginning, and is of this log: whoever has a number beyond its end would wait for ever, or be
    /// given other events than those after the one it knows.
    fn check(&self, door: &Door) -> Result<(), Problem> {
        let Some(after) = self.after else { return Ok(()) };
        let oldest = door.shared.handle.reader().first_seq();
        if after > 0 && after + 1 < oldest {
            return Err(trimmed(oldest));
        }
        let head = *door.shared.handle.head().borrow();
        if after > head {
            let why = format!(
                "the last event is {head}, and {after} is none of this log; was the store restored from a backup? Go on with after={head}"
            );
            return Err(Problem::parameter("after", why));
        }
        Ok(())
    }
}

fn trimmed(oldest: Seq) -> Problem {
    let last = oldest - 1;
    let why = format!("events up to {last} were removed; go on with after={last}, or without it for what there is");
    Problem::new(Code::EventsTrimmed, why).since(oldest)
}

fn page(mut events: Vec<(Seq, Record)>, limit: usize) -> Json<Page<Event>> {
    let more = events.len() > limit;
    events.truncate(limit);
    let last = events.last().map(|(seq, _)| seq.to_string());
    Json(Page {
        items: events.iter().map(|(seq, event)| Event::new(*seq, event)).collect(),
        next_cursor: last.filter(|_| more),
    })
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Problem> {
    let unreadable = |why: String| Problem::new(Code::StoreUnavailable, why);
    let read = Supervisor::blocking(read).await.map_err(|error| unreadable(error.to_string()))?;
    read.map_err(|error| unreadable(error.to_string()))
}

/// The events of a job and its tasks after a number, the oldest first.
async fn story(door: &Door, job: &JobId, after: Seq) -> Result<Vec<(Seq, Record)>, Problem> {
    let (reader, job) = (door.shared.handle.reader().clone(), job.clone());
    // The records are read one after the other, and a commit between them shows in some of them only: what is shown ends before it.
    let head = *door.shared.handle.head().borrow();
    blocking(move || {
        let mut last = Vec::new();
        if let Some(Stored::Job(job)) = reader.get(&Key::Job(job.clone()))? {
            last.push(job.last_event);
        }
        if let Some(Stored::Announced(announced)) = reader.get(&Key::Announced(job.clone()))? {
            last.push(announced.last_event);
        }
        // The trailing empty part ends the prefix with the separator, so that job `a-1` does not find the tasks of `a-10`.
        reader.scan(&join_key(b't', &[job.as_str(), ""]), |_, record| {
            if let Stored::Task(task) = record {
                last.push(task.last_event);
            }
            true
        })?;
        last.retain(|last| *last > after);
        let mut events = reader.thread(last, STORY_MAX)?;
        // That a proposal was offered belongs to the job only once it is won, too late for a stream that has passed its number.
        let of_job = |event: &Record| !matches!(event, Record::ProposalOffered { .. });
        events.retain(|(seq, event)| (after + 1..=head).contains(seq) && of_job(event));
        events.reverse();
        Ok(events)
    })
    .await
}

/// Where the events of a stream come from, and what tells of more.
enum Source {
    All(watch::Receiver<Seq>),
    Job {
        job: JobId,
        watcher: Watcher,
        head: watch::Receiver<Seq>,
    },
}

/// A stream at its place.
struct Following {
    door: Door,
    source: Source,
    /// The last event that was sent.
    last: Seq,
    begun: bool,
    _place: (OwnedSemaphorePermit, SseClient),
}

impl Source {
    fn stream(self, door: Door, after: Seq) -> Result<Response, Problem> {
        let place = door.take_stream()?;
        let counted = door.shared.supervisor.metrics().http().sse_client();
        let following = Following {
            door,
            source: self,
            last: after,
            begun: false,
            _place: (place, counted),
        };
        let pieces = stream::unfold(following, |mut following| async move {
            let piece = following.next().await?;
            Some((Ok::<_, std::convert::Infallible>(piece), following))
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        Ok((headers, Body::from_stream(pieces)).into_response())
    }
}

impl Following {
    /// The next piece; `None` ends the stream, and the client comes back with the last number it has.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(BEGIN.as_bytes()));
        }
        loop {
            // What is durable after this look is told by the next one.
            if let Source::All(head) = &mut self.source {
                head.borrow_and_update();
            }
            let events = self.read().await.ok()?;
            if let Some((seq, _)) = events.last() {
                self.last = *seq;
                return Some(text(&events));
            }
            let more = async {
                match &mut self.source {
                    Source::All(head) => head.changed().await.is_ok(),
                    Source::Job { watcher, head, .. } => {
                        let seq = watcher.changed().await;
                        head.wait_for(|head| *head >= seq).await.is_ok()
                    }
                }
            };
            tokio::select! {
                more = more => if !more { return None },
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
                () = self.door.shared.supervisor.stopped() => return None,
            }
        }
    }

    async fn read(&self) -> Result<Vec<(Seq, Record)>, Problem> {
        match &self.source {
            Source::All(_) => {
                let (reader, from) = (self.door.shared.handle.reader().clone(), self.last + 1);
                let read = move || {
                    let events = reader.events(from, PIECE)?;
                    Ok((reader.gap(from, &events), events))
                };
                match blocking(read).await? {
                    // It fell behind what is kept; a client that comes back is told so.
                    (Some(oldest), _) if from > 1 => Err(trimmed(oldest)),
                    (_, events) => Ok(events),
                }
            }
            Source::Job { job, .. } => {
                let mut events = story(&self.door, job, self.last).await?;
                events.truncate(PIECE);
                Ok(events)
            }
        }
    }
}

fn text(events: &[(Seq, Record)]) -> Bytes {
    let mut text = String::new();
    for (seq, record) in events {
        let event = Event::new(*seq, record);
        let data = serde_json::to_string(&event).expect("an event is plain data with text keys");
        // JSON text has no line breaks.
        text.push_str(&format!("id: {seq}\nevent: {}\ndata: {data}\n\n", event.kind));
    }
    Bytes::from(text)
}
