//! What a role counts and measures, for Prometheus: made with the role's supervisor, handed down, shown at `GET /metrics`.
//!
//! A leaf: everything above may use it, it knows nobody. One registry for each role, so that several in one process do not mix. Families come
//! in groups, and a group shows once its owner has asked for it: a worker has no engine, so it shows none. It must never cost a commit more
//! than a few atomic operations, and no label may have more values than the program itself has names: never an id of a job, task or party.

mod engine;
mod http;
mod peers;
mod process;
mod worker;

pub use engine::{Depth, Engine, Figures};
pub use http::{Http, SseClient};
pub use peers::{Call, Peers};
pub use worker::Worker;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// The type of the text of [`Metrics::text`], for the header of an answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Times of calls and requests, seconds: from what a loopback call takes to what a user gives up on.
const CALL_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Times of the disk, seconds: from a barrier of a fast NVMe disk to one that makes users wait.
const DISK_SECONDS: [f64; 12] = [0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0, 5.0];
/// Sizes of a batch: its commands have a limit of 1024, and one may bring many events.
const BATCH: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// What is asked when somebody looks. Runs on a thread that may block, for a second at most.
type Probe = Box<dyn Fn() + Send + Sync>;

/// The metrics of one role. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    families: Mutex<Families>,
    probes: Mutex<Vec<Probe>>,
    process: OnceLock<process::Process>,
    engine: OnceLock<Engine>,
    peers: OnceLock<Peers>,
    http: OnceLock<Http>,
    worker: OnceLock<Worker>,
}

/// The registry, and what has been put into it.
#[derive(Default)]
struct Families {
    registry: Registry,
    described: Vec<Family>,
}

/// One family, as `docs/metrics.md` describes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Family {
    /// As Prometheus shows it, with unit and `_total`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
}

/// What is in a family's name behind its own words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Number,
    Seconds,
    Bytes,
}

impl Families {
    fn add(&mut self, kind: &'static str, name: &str, of: Of, labels: &'static [&'static str], help: &str, metric: impl Metric) {
        let unit = match of {
            Of::Number => None,
            Of::Seconds => Some(("_seconds", Unit::Seconds)),
            Of::Bytes => Some(("_bytes", Unit::Bytes)),
        };
        let total = if kind == "counter" { "_total" } else { "" };
        self.described.push(Family {
            name: format!("{name}{}{total}", unit.as_ref().map_or("", |(suffix, _)| suffix)),
            kind,
            labels,
        });
        match unit {
            None => self.registry.register(name, help, metric),
            Some((_, unit)) => self.registry.register_with_unit(name, help, unit, metric),
        }
    }

    fn counter(&mut self, name: &str, labels: &'static [&'static str], help: &str, metric: impl Metric) {
        self.add("counter", name, Of::Number, labels, help, metric);
    }

    fn gauge(&mut self, name: &str, of: Of, labels: &'static [&'static str], help: &str, metric: impl Metric) {
        self.add("gauge", name, of, labels, help, metric);
    }

    fn histogram(&mut self, name: &str, of: Of, labels: &'static [&'static str], help: &str, metric: impl Metric) {
        self.add("histogram", name, of, labels, help, metric);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Nothing is measured yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Say what this process is: the role's subcommand name, and when it began, in microseconds since the Unix epoch. Once for each role.
    pub fn begin(&self, role: &'static str, started: u64) {
        let started = Duration::from_micros(started);
        let process = self.group(&self.0.process, |families| process::Process::new(families, role, started));
        let process = process.clone();
        self.probe(move || process.look());
    }

    /// The loop, its log and its disk.
    pub fn engine(&self) -> &Engine {
        self.group(&self.0.engine, Engine::new)
    }

    /// Calls to other roles and from them.
    pub fn peers(&self) -> &Peers {
        self.group(&self.0.peers, Peers::new)
    }

    /// Requests of users.
    pub fn http(&self) -> &Http {
        self.group(&self.0.http, Http::new)
    }

    /// Tasks of a worker.
    pub fn worker(&self) -> &Worker {
        self.group(&self.0.worker, Worker::new)
    }

    fn group<'a, T>(&self, group: &'a OnceLock<T>, make: impl FnOnce(&mut Families) -> T) -> &'a T {
        group.get_or_init(|| make(&mut lock(&self.0.families)))
    }

    /// Let something be asked each time somebody looks; it may block for a second at most.
    pub fn probe(&self, probe: impl Fn() + Send + Sync + 'static) {
        lock(&self.0.probes).push(Box::new(probe));
    }

    /// Every family that is shown so far, sorted.
    pub fn families(&self) -> Vec<Family> {
        let mut families = lock(&self.0.families).described.clone();
        families.sort();
        families
    }

    /// All of it as OpenMetrics text, see [`CONTENT_TYPE`]. Blocks for the probes; those who look at the same time wait for each other.
    pub fn text(&self) -> String {
        for probe in &*lock(&self.0.probes) {
            probe();
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &lock(&self.0.families).registry);
        text
    }
}

/// Durations of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Seconds(Histogram);

impl Seconds {
    fn of(buckets: [f64; 12]) -> Self {
        Self(Histogram::new(buckets))
    }

    /// One more.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// Something that is counted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Count(Counter);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.0.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_do_not_mix_and_groups_show_when_asked_for() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.begin("master", 1_500_000);
        other.begin("worker", 0);
        one.http().answered("/submit", "POST", 200, Duration::from_millis(3));
        let (shown, not) = (one.text(), other.text());
        assert!(shown.contains("fedbroker_http_request_duration_seconds_count{route=\"/submit\",method=\"POST\",status=\"200\"} 1\n"));
        assert!(shown.contains("\nprocess_start_time_seconds 1.5\n"), "{shown}");
        assert!(shown.contains("fedbroker_build_info{role=\"master\",version=\""), "{shown}");
        assert!(!not.contains("http") && not.contains("role=\"worker\""), "{not}");
        assert!(shown.ends_with("# EOF\n"));
    }

    #[test]
    fn a_probe_is_asked_at_each_look_and_at_no_other_time() {
        let metrics = Metrics::new();
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let asking = asked.clone();
        metrics.probe(move || {
            asking.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let now = || asked.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(now(), 0);
        metrics.text();
        metrics.text();
        assert_eq!(now(), 2);
    }
}
