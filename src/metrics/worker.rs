//! Tasks of a worker.

use super::{Families, Of};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct End {
    outcome: &'static str,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Worker {
    tasks: Family<State, Gauge>,
    ended: Family<End, Counter>,
    slots: Gauge,
}

impl Worker {
    pub(super) fn new(families: &mut Families) -> Self {
        let new = Self {
            tasks: Family::default(),
            ended: Family::default(),
            slots: Gauge::default(),
        };
        let help = "Tasks the worker has and has not ended";
        families.gauge("fedbroker_worker_tasks", Of::Number, &["state"], help, new.tasks.clone());
        let help = "Attempts of tasks that have ended here";
        families.counter("fedbroker_worker_tasks_ended", &["outcome"], help, new.ended.clone());
        families.gauge(
            "fedbroker_worker_slots",
            Of::Number,
            &[],
            "Tasks that may run at once",
            new.slots.clone(),
        );
        new
    }

    /// How many run, of how many that may, and how many wait.
    pub fn tasks(&self, running: usize, slots: usize, waiting: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.tasks.get_or_create(&State { state: "running" }).set(number(running));
        self.tasks.get_or_create(&State { state: "waiting" }).set(number(waiting));
        self.slots.set(number(slots));
    }

    /// An attempt has ended.
    pub fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&End { outcome }).inc();
    }
}
