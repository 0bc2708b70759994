//! The logs that the manager asks for on one connection: each request is a task of its own that reads a file and sends parts of it.
//!
//! Used by `attach`. A request may send as many parts as it was allowed (`window`, then `MoreLogs`) and waits otherwise, so that a reader that
//! is slow holds up nothing; parts go out behind reports and heartbeats. All requests end with their connection.

use super::Worker;
use super::log_file::{LogFile, Stream};
use super::table::Attempt;
use super::tasks::Tasks;
use crate::supervisor::{Policy, Supervisor};
use crate::wire::fedbroker::v1::{self, FetchLogs, FromWorker, LogFailure, LogPart, from_worker};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Requests open at once; the manager asks for no more.
const REQUESTS_MAX: usize = 8;
/// Bytes of one part, small beside a heartbeat's patience.
const PART: usize = 32 * 1024;
/// The most parts a request may be allowed at once, whatever the manager says.
const WINDOW_MAX: usize = 64;
/// How often a log that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The requests of one connection; dropping it ends them.
pub(super) struct Requests {
    supervisor: Supervisor,
    tasks: Arc<Tasks>,
    work_dir: PathBuf,
    out: mpsc::Sender<FromWorker>,
    open: HashMap<u64, Open>,
}

struct Open {
    /// Cancelled by either side when it is over.
    stop: CancellationToken,
    allowed: Arc<Semaphore>,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.open.values().for_each(|open| open.stop.cancel());
    }
}

impl Requests {
    pub(super) fn new(worker: &Worker, out: mpsc::Sender<FromWorker>) -> Self {
        Self {
            supervisor: worker.supervisor.clone(),
            tasks: worker.tasks.clone(),
            work_dir: worker.options.work_dir.clone(),
            out,
            open: HashMap::new(),
        }
    }

    /// A request; `attempt` is its task, if its ids were good.
    pub(super) fn fetch(&mut self, request: &FetchLogs, attempt: Option<Attempt>) {
        self.open.retain(|_, open| !open.stop.is_cancelled());
        let (id, stop) = (request.request_id, CancellationToken::new());
        let window = usize::try_from(request.window).unwrap_or(WINDOW_MAX).clamp(1, WINDOW_MAX);
        let allowed = Arc::new(Semaphore::new(window));
        let full = self.open.len() >= REQUESTS_MAX;
        let reading = Reading {
            id,
            tasks: self.tasks.clone(),
            work_dir: self.work_dir.clone(),
            stream: match request.stream() {
                v1::LogStream::Stdout => Stream::Stdout,
                v1::LogStream::Stderr => Stream::Stderr,
            },
            tail_lines: request.tail_lines,
            follow: request.follow,
            allowed: allowed.clone(),
            out: self.out.clone(),
        };
        if !full {
            self.open.insert(
                id,
                Open {
                    stop: stop.clone(),
                    allowed,
                },
            );
        }
        let over = stop.clone().drop_guard();
        self.supervisor.spawn("log reader", Policy::Ordinary, async move {
            let _over = over;
            let reading = async {
                let failed = match attempt {
                    _ if full => Some((LogFailure::Busy, format!("{REQUESTS_MAX} logs are being read already"))),
                    None => Some((LogFailure::Gone, "its ids are no ids".to_owned())),
                    Some(attempt) => reading.run(&attempt).await.err(),
                };
                let (failure, reason) = failed.unwrap_or((LogFailure::None, String::new()));
                reading.send(0, Vec::new(), Some((failure, reason))).await;
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = reading => {}
            }
        });
    }

    /// More parts may be sent.
    pub(super) fn more(&self, id: u64, parts: u32) {
        if let Some(open) = self.open.get(&id) {
            let room = WINDOW_MAX.saturating_sub(open.allowed.available_permits());
            open.allowed.add_permits(usize::try_from(parts).unwrap_or(room).min(room));
        }
    }

    /// Nobody reads any more.
    pub(super) fn stop(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            open.stop.cancel();
        }
    }
}

struct Reading {
    id: u64,
    tasks: Arc<Tasks>,
    work_dir: PathBuf,
    stream: Stream,
    tail_lines: u32,
    follow: bool,
    allowed: Arc<Semaphore>,
    out: mpsc::Sender<FromWorker>,
}

type Failed = (LogFailure, String);

fn gone(what: impl std::fmt::Display) -> Failed {
    (LogFailure::Gone, what.to_string())
}

impl Reading {
    /// Send what there is, and what comes if that is wanted.
    async fn run(&self, attempt: &Attempt) -> Result<(), Failed> {
        let mut log = self.open(attempt).await?;
        if log.is_none() && !self.tasks.is_here(attempt) {
            // It may have ended, and left its file, between the two looks.
            log = self.open(attempt).await?;
            if log.is_none() {
                return Err(gone(
                    "there is no such file in the work directory: the task left none, or it was removed",
                ));
            }
        }
        let mut at = match &log {
            Some(log) if self.tail_lines > 0 => {
                let (log, lines) = (log.clone(), self.tail_lines);
                blocking(move || log.start_of_tail(lines)).await?
            }
            _ => 0,
        };
        self.send(at, Vec::new(), None).await;
        loop {
            // Asked first: what is written before the end is then read.
            let over = !self.follow || !self.tasks.is_here(attempt);
            if log.is_none() {
                log = self.open(attempt).await?;
            }
            let (from, bytes) = match &log {
                Some(log) => {
                    // Not before it can be sent: what waits here would be memory.
                    let Ok(allowed) = self.allowed.acquire().await else { return Ok(()) };
                    let log = log.clone();
                    let read = blocking(move || log.read(at, PART)).await?;
                    if !read.1.is_empty() {
                        allowed.forget();
                    }
                    read
                }
                None => (at, Vec::new()),
            };
            if bytes.is_empty() {
                if over {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            } else {
                at = from + bytes.len() as u64;
                self.send(from, bytes, None).await;
            }
        }
    }

    async fn open(&self, attempt: &Attempt) -> Result<Option<Arc<LogFile>>, Failed> {
        let (work_dir, attempt, stream) = (self.work_dir.clone(), attempt.clone(), self.stream);
        let log = blocking(move || LogFile::open(&work_dir, &attempt, stream)).await?;
        Ok(log.map(Arc::new))
    }

    async fn send(&self, offset: u64, data: Vec<u8>, end: Option<Failed>) {
        let (failure, reason) = end.clone().unwrap_or((LogFailure::None, String::new()));
        let part = LogPart {
            request_id: self.id,
            data,
            offset,
            end: end.is_some(),
            failure: failure.into(),
            reason,
        };
        // A connection that is gone ends the request.
        let message = Some(from_worker::Message::Logs(part));
        let _ = self.out.send(FromWorker { message }).await;
    }
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Failed> {
    Supervisor::blocking(read).await.map_err(gone)?.map_err(gone)
}
