//! The loop of a durable role: what it takes, what it commits, how long that takes, and what is on its disk.
//!
//! Filled by `engine` (one call for each commit) and by the barrier of the store; what costs a look is asked for when somebody looks.

use super::{BATCH, Count, DISK_SECONDS, Families, Of, Seconds};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Command {
    command: &'static str,
    outcome: &'static str,
}

/// How far the loop is behind. Shared by the loop, its handle and whoever looks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Depth {
    began: Instant,
    /// When the oldest command of the batch under way was sent, in nanoseconds after `began`, and one more; 0 while there is no batch.
    oldest: Arc<AtomicU64>,
}

impl Default for Depth {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            oldest: Arc::default(),
        }
    }
}

impl Depth {
    /// A batch begins; this is when its first command was sent.
    pub fn begin(&self, sent: Instant) {
        let after = u64::try_from(sent.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX - 1);
        self.oldest.store(after + 1, Ordering::Relaxed);
    }

    /// All of its commands are answered.
    pub fn end(&self) {
        self.oldest.store(0, Ordering::Relaxed);
    }

    /// How long the oldest command has been waiting for its answer; zero when none waits.
    pub fn oldest(&self) -> Duration {
        match self.oldest.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            after => self.began.elapsed().saturating_sub(Duration::from_nanos(after - 1)),
        }
    }
}

/// What is known of a store when somebody looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes that the files of the log take.
    pub log_bytes: u64,
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// The sequence the next event will get.
    pub next_seq: u64,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    records: Family<Kind, Gauge>,
    ended: Family<Kind, Counter>,
    commands: Family<Command, Counter>,
    queue: Gauge,
    oldest: Gauge<f64, AtomicU64>,
    batch_commands: Histogram,
    batch_events: Histogram,
    commit: Seconds,
    barrier: Seconds,
    recovery: Gauge<f64, AtomicU64>,
    log: Gauge,
    free: Gauge,
    next: Gauge,
    payload_files: Gauge,
    payload_bytes: Gauge,
    full: Count,
    /// Kinds and states that were ever shown: one that has no record now is shown with 0.
    seen: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl Engine {
    pub(super) fn new(families: &mut Families) -> Self {
        let new = Self {
            records: Family::default(),
            ended: Family::default(),
            commands: Family::default(),
            queue: Gauge::default(),
            oldest: Gauge::default(),
            batch_commands: Histogram::new(BATCH),
            batch_events: Histogram::new(BATCH),
            commit: Seconds::of(DISK_SECONDS),
            barrier: Seconds::of(DISK_SECONDS),
            recovery: Gauge::default(),
            log: Gauge::default(),
            free: Gauge::default(),
            next: Gauge::default(),
            payload_files: Gauge::default(),
            payload_bytes: Gauge::default(),
            full: Count::default(),
            seen: Arc::default(),
        };
        new.register(families);
        new
    }

    fn register(&self, families: &mut Families) {
        let help = "Records in memory: those that have not ended";
        families.gauge("fedbroker_records", Of::Number, &["kind", "state"], help, self.records.clone());
        let help = "Records that have ended, by the state they ended in";
        families.counter("fedbroker_records_ended", &["kind", "state"], help, self.ended.clone());
        let help = "Commands the loop has answered, by what became of them";
        families.counter("fedbroker_commands", &["command", "outcome"], help, self.commands.clone());
        let help = "Commands that wait for the loop; senders wait beyond 4096";
        families.gauge("fedbroker_queue_commands", Of::Number, &[], help, self.queue.clone());
        let help = "How long the oldest command has been waiting for its answer; 0 when none waits";
        families.gauge("fedbroker_queue_oldest", Of::Seconds, &[], help, self.oldest.clone());
        let help = "Commands answered by one commit";
        families.histogram("fedbroker_commit_commands", Of::Number, &[], help, self.batch_commands.clone());
        let help = "Events written by one commit";
        families.histogram("fedbroker_commit_events", Of::Number, &[], help, self.batch_events.clone());
        let help = "One commit, from the encoding of its records to its durability";
        families.histogram("fedbroker_commit_duration", Of::Seconds, &[], help, self.commit.0.clone());
        let help = "The fdatasync of one commit";
        families.histogram("fedbroker_commit_barrier", Of::Seconds, &[], help, self.barrier.0.clone());
        let help = "Commits that found the disk full; the role is then read only until it restarts";
        families.counter("fedbroker_commit_disk_full", &[], help, self.full.0.clone());
        let help = "How long the last start took to open the data directory and read it back";
        families.gauge("fedbroker_recovery", Of::Seconds, &[], help, self.recovery.clone());
        let help = "Disk space that the files of the log take";
        families.gauge("fedbroker_store_log", Of::Bytes, &[], help, self.log.clone());
        let help = "Space left on the disk of the data directory";
        families.gauge("fedbroker_store_free", Of::Bytes, &[], help, self.free.clone());
        let help = "The sequence the next event will get";
        families.gauge("fedbroker_store_next_sequence", Of::Number, &[], help, self.next.clone());
        let help = "Payload files that records refer to";
        families.gauge("fedbroker_store_payload_files", Of::Number, &[], help, self.payload_files.clone());
        let help = "Bytes in payload files that records refer to";
        families.gauge("fedbroker_store_payload", Of::Bytes, &[], help, self.payload_bytes.clone());
    }

    /// For the store: the time of its barrier.
    pub fn barrier(&self) -> Seconds {
        self.barrier.clone()
    }

    /// The start is over.
    pub fn recovered(&self, took: Duration) {
        self.recovery.set(took.as_secs_f64());
    }

    /// The commands of one batch are answered; each name comes with what became of it.
    pub fn answered(&self, commands: impl Iterator<Item = (&'static str, &'static str)>) {
        let mut counts: Vec<(Command, u64)> = Vec::new();
        for (command, outcome) in commands {
            match counts
                .iter_mut()
                .find(|(known, _)| known.command == command && known.outcome == outcome)
            {
                Some((_, count)) => *count += 1,
                None => counts.push((Command { command, outcome }, 1)),
            }
        }
        for (command, count) in counts {
            self.commands.get_or_create(&command).inc_by(count);
        }
    }

    /// A commit is durable.
    pub fn committed(&self, commands: usize, events: usize, took: Duration) {
        self.batch_commands.observe(number(commands));
        self.batch_events.observe(number(events));
        self.commit.observe(took);
    }

    /// A commit found the disk full.
    pub fn disk_full(&self) {
        self.full.one();
    }

    /// A record has left the live ones; its kind and state, as in a census.
    pub fn ended(&self, what: &'static str) {
        self.ended.get_or_create(&kind(what)).inc();
    }

    /// Payload files that records have come to refer to, or refer to no more, and their bytes.
    pub fn payloads(&self, files: i64, bytes: i64) {
        self.payload_files.inc_by(files);
        self.payload_bytes.inc_by(bytes);
    }

    /// How many payload files records refer to, and their bytes.
    pub fn payloads_now(&self) -> (u64, u64) {
        let number = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or_default();
        (number(&self.payload_files), number(&self.payload_bytes))
    }

    /// How far the loop is behind.
    pub fn depth(&self, waiting: usize, oldest: Duration) {
        self.queue.set(gauge(waiting as u64));
        self.oldest.set(oldest.as_secs_f64());
    }

    /// Records by kind and state.
    pub fn census(&self, counts: &[(&'static str, u64)]) {
        let mut seen = super::lock(&self.seen);
        seen.values_mut().for_each(|count| *count = 0);
        seen.extend(counts.iter().copied());
        for (what, count) in &*seen {
            self.records.get_or_create(&kind(what)).set(gauge(*count));
        }
    }

    /// What the store says.
    pub fn store(&self, figures: Figures) {
        self.log.set(gauge(figures.log_bytes));
        self.free.set(gauge(figures.free_bytes));
        self.next.set(gauge(figures.next_seq));
    }
}

fn kind(what: &'static str) -> Kind {
    let (kind, state) = what.split_once(' ').unwrap_or((what, "all"));
    Kind { kind, state }
}

fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn a_state_that_has_emptied_is_shown_as_zero() {
        let metrics = Metrics::new();
        metrics.engine().census(&[("job running", 2), ("task queued", 1)]);
        metrics.engine().census(&[("job running", 1)]);
        let text = metrics.text();
        assert!(text.contains("fedbroker_records{kind=\"job\",state=\"running\"} 1\n"), "{text}");
        assert!(text.contains("fedbroker_records{kind=\"task\",state=\"queued\"} 0\n"), "{text}");
    }

    #[test]
    fn the_oldest_waits_from_when_it_was_sent_until_the_batch_is_answered() {
        let depth = Depth::default();
        assert_eq!(depth.oldest(), Duration::ZERO);
        let sent = Instant::now();
        depth.begin(sent);
        while sent.elapsed() < Duration::from_millis(2) {}
        assert!(depth.oldest() >= Duration::from_millis(2) && depth.oldest() <= sent.elapsed());
        depth.end();
        assert_eq!(depth.oldest(), Duration::ZERO);
    }

    #[test]
    fn commands_of_a_batch_are_counted_together() {
        let metrics = Metrics::new();
        let batch = [("submit", "accepted"), ("note", "rejected"), ("submit", "accepted")];
        metrics.engine().answered(batch.into_iter());
        let text = metrics.text();
        assert!(
            text.contains("fedbroker_commands_total{command=\"submit\",outcome=\"accepted\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("fedbroker_commands_total{command=\"note\",outcome=\"rejected\"} 1\n"),
            "{text}"
        );
    }
}
