//! The document: tables of medians and ranges, ratios, and what each system promises.
//!
//! Written by `main` from one run; no figure in it comes from anywhere else. The prose that does not depend on the run is in `promises.md`.

use crate::measure::{Figures, Plan, Workload};
use crate::{Kind, beanstalkd, grpc, postgres, redis};
use serde_json::{Value, json};
use std::fmt::Write;

/// What each peer makes durable.
const PROMISES: &str = include_str!("promises.md");

/// The load before the begin above which other work shows in the figures.
const QUIET: f64 = 0.5;

/// One measurement.
pub struct Row {
    /// Who.
    pub kind: Kind,
    /// Did what.
    pub workload: Workload,
    /// How many at once.
    pub producers: u32,
    /// The machine's load when it began: average of the minute before, others' work and the measurement before it.
    pub load: f64,
    /// And reached this.
    pub figures: Figures,
}

/// A whole run.
pub struct Run {
    /// Who was there, with versions.
    pub systems: Vec<(Kind, String)>,
    /// All measurements.
    pub rows: Vec<Row>,
    /// How many of each.
    pub rounds: u32,
    /// What counted.
    pub seconds: f64,
    /// What did not.
    pub warm_up: f64,
    /// The machine.
    pub machine: String,
    /// The disk.
    pub disk: String,
    /// The day.
    pub date: String,
    /// Load before and after.
    pub load: (f64, f64),
}

/// A measurement as one line.
pub fn json(kind: Kind, plan: Plan, round: u32, load: f64, figures: &Figures) -> Value {
    json!({
        "system": kind.title(),
        "workload": plan.workload.name(),
        "producers": plan.producers,
        "round": round,
        "load": load,
        "ops_per_s": figures.ops_per_s.round(),
        "p50_us": figures.p50_us,
        "p99_us": figures.p99_us,
        "p999_us": figures.p999_us,
    })
}

/// Median, least and most of some figure; `None` without measurements.
fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_unstable_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let middle = [(values.len() - 1) / 2, values.len() / 2].map(|at| values[at]);
    Some([f64::midpoint(middle[0], middle[1]), least, most])
}

impl Run {
    fn figure(&self, kind: Kind, workload: Workload, producers: u32, of: fn(&Figures) -> f64) -> Option<[f64; 3]> {
        let wanted = |row: &&Row| row.kind == kind && row.workload == workload && row.producers == producers;
        spread(self.rows.iter().filter(wanted).map(|row| of(&row.figures)).collect())
    }

    fn producers(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.rows.iter().map(|row| row.producers).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut all: Vec<Kind> = self.systems.iter().map(|(kind, _)| *kind).collect();
        all.sort_unstable();
        all
    }

    fn cell(&self, kind: Kind, workload: Workload, producers: u32) -> String {
        match self.figure(kind, workload, producers, |figures| figures.ops_per_s) {
            Some([median, least, most]) => format!("{} ({} to {})", grouped(median), grouped(least), grouped(most)),
            None => "–".to_owned(),
        }
    }

    /// p50, p99 and p99.9 in milliseconds.
    fn latency(&self, kind: Kind, workload: Workload, producers: u32) -> String {
        let of: [fn(&Figures) -> f64; 3] = [|f| f.p50_us, |f| f.p99_us, |f| f.p999_us];
        let parts = of.map(|of| {
            self.figure(kind, workload, producers, of)
                .map(|[median, ..]| format!("{:.2}", median / 1000.0))
        });
        let parts: Option<Vec<String>> = parts.into_iter().collect();
        parts.map_or_else(|| "–".to_owned(), |parts| parts.join(" / "))
    }

    /// How many times as many operations as another: median by median.
    fn ratio(&self, ours: Kind, other: Kind, workload: Workload, producers: u32) -> String {
        let median = |kind| {
            self.figure(kind, workload, producers, |figures| figures.ops_per_s)
                .map(|[median, ..]| median)
        };
        match (median(ours), median(other)) {
            (Some(ours), Some(other)) => format!("{:.2}", ours / other),
            _ => "–".to_owned(),
        }
    }

    fn table(&self, page: &mut String, first: &str, rows: &[(String, Kind)], cell: impl Fn(Kind, u32) -> String) {
        let producers = self.producers();
        let heads: String = producers.iter().map(|n| format!(" {n} |")).collect();
        let _ = writeln!(page, "| {first} |{heads}\n| --- |{}", " ---: |".repeat(producers.len()));
        for (title, kind) in rows {
            let cells: Vec<String> = producers.iter().map(|n| cell(*kind, *n)).collect();
            if cells.iter().any(|cell| cell != "–") {
                let _ = writeln!(page, "| {title} | {} |", cells.join(" | "));
            }
        }
        page.push('\n');
    }

    fn workload(&self, page: &mut String, workload: Workload) {
        let rows: Vec<(String, Kind)> = self.kinds().into_iter().map(|kind| (kind.title().to_owned(), kind)).collect();
        let (heading, unit) = match workload {
            Workload::Enqueue => ("Enqueue", "items enqueued per second"),
            Workload::Life => ("Whole life", "items per second that were enqueued, taken and finished"),
        };
        let _ = writeln!(
            page,
            "## {heading}\n\nThroughput, {unit}, by number of producers: median (range of {} runs).\n",
            self.rounds
        );
        self.table(page, "producers", &rows, |kind, n| self.cell(kind, workload, n));
        let _ = writeln!(page, "Latency in ms, p50 / p99 / p99.9, medians of the runs.\n");
        self.table(page, "producers", &rows, |kind, n| self.latency(kind, workload, n));
        let ours = [Kind::Inside, Kind::Grpc].into_iter().filter(|kind| self.kinds().contains(kind));
        for ours in ours {
            let others: Vec<(String, Kind)> = rows
                .iter()
                .filter(|(_, kind)| ![Kind::Inside, Kind::Grpc].contains(kind))
                .cloned()
                .collect();
            let _ = writeln!(page, "Ratio, `{}` to:\n", ours.title());
            self.table(page, "producers", &others, |kind, n| self.ratio(ours, kind, workload, n));
        }
    }
}

/// A whole number with thousands set apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// What a reader must know before the figures, if others worked on the machine too.
fn caution(run: &Run) -> String {
    if run.load.0 < QUIET {
        return String::new();
    }
    format!(
        "**The machine was not quiet: load {:.2} before it began, none of it of this run.** Servers with one thread lose the most then, since each barrier \
         puts them back in line for a processor, and so does whoever has one producer; a figure may even exceed that of the disk itself. Read no \
         target and no rank from these figures; run it again on a quiet machine.\n\n",
        run.load.0
    )
}

fn method(run: &Run) -> String {
    format!(
        "Written by `benches/peers/run` on {}; every figure is of that one run.\n\n\
         - Machine: {}. Disk: {}. Client and server share it. Load average {:.2} at the begin, {:.2} at the end, {:.2} in the median of all \
         measurements.\n\
         - {} rounds; in each, every system once for each workload and number of producers, in turn, beginning with another one each round.\n\
         - A measurement: a fresh server process, {} s that do not count, then {} s that do.\n",
        run.date,
        run.machine,
        run.disk,
        run.load.0,
        run.load.1,
        spread(run.rows.iter().map(|row| row.load).collect()).map_or(f64::NAN, |[median, ..]| median),
        run.rounds,
        run.warm_up,
        run.seconds,
    )
}

fn configuration(run: &Run) -> String {
    let mut text = String::new();
    for (kind, version) in &run.systems {
        let how = match kind {
            Kind::Disk => "appends to a file whose space was written before; one fdatasync for all that wait".to_owned(),
            Kind::Inside => "`fedbroker bench queue`".to_owned(),
            Kind::Grpc => format!(
                "`fedbroker cluster-manager` with its defaults; {} connections for all producers together, {} workers on one each",
                grpc::CHANNELS,
                grpc::WORKERS
            ),
            Kind::Postgres => format!(
                "`{}`; `{}`; `{}`; `{}`",
                postgres::SETTINGS.join(" "),
                postgres::PUT,
                postgres::TAKE,
                postgres::FINISH
            ),
            Kind::Redis => format!("`{}`; XADD, XREADGROUP COUNT 1, XACK", redis::OPTIONS.join(" ")),
            Kind::Beanstalkd => format!("`{} -b DIR`; put, reserve, delete", beanstalkd::OPTIONS.join(" ")),
        };
        let _ = writeln!(text, "| {} | {version} | {how} |", kind.title());
    }
    text
}

/// The whole document.
pub fn page(run: &Run) -> String {
    let mut page = format!("# Fedbroker beside its peers\n\n{}{}", caution(run), method(run));
    let (before, after) = PROMISES.split_once("<!-- tables -->\n").unwrap_or((PROMISES, ""));
    page.push_str(before);
    for workload in [Workload::Enqueue, Workload::Life] {
        if run.rows.iter().any(|row| row.workload == workload) {
            run.workload(&mut page, workload);
        }
    }
    let _ = writeln!(
        page,
        "## Configuration\n\n| system | version | how |\n| --- | --- | --- |\n{}",
        configuration(run)
    );
    page.push_str(after);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ranges_and_thousands() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0, 9.0, 4.0]), Some([3.0, 1.0, 9.0]));
        assert_eq!(spread(vec![3.0, 1.0]), Some([2.0, 1.0, 3.0]));
        assert_eq!(spread(Vec::new()), None);
        assert_eq!(
            ["999", "1,000", "1,234,567"],
            [999.0, 1000.0, 1_234_567.4].map(grouped).each_ref().map(String::as_str)
        );
    }
}
