//! Fedbroker's queue without a network between: `fedbroker bench queue --json`, the same producers, payload and seconds.
//!
//! Called by `main`. That command measures and checks by itself, without a warm-up; here its figures are read.

use crate::item::PAYLOAD;
use crate::measure::{Figures, Plan, Workload};
use crate::server::{run, text};
use anyhow::Context;
use serde_json::Value;
use std::path::Path;

/// It counts three transitions for each life; here a life is one.
const TRANSITIONS: f64 = 3.0;

fn command(binary: &Path, words: &[&str]) -> Vec<String> {
    let words = words.iter().map(|word| (*word).to_owned());
    [text(binary)].into_iter().chain(words).collect()
}

/// The version of this program, if it is there.
pub fn version(binary: &Path) -> Option<String> {
    let said = run(&command(binary, &["--version"]), None).ok()?;
    said.split_whitespace().last().map(str::to_owned)
}

/// Whether it can measure itself.
pub fn has_bench(binary: &Path) -> bool {
    run(&command(binary, &["bench", "queue", "--help"]), None).is_ok()
}

/// One measurement of the command.
///
/// # Errors
/// It failed, or its answer lacks a figure.
pub fn measure(binary: &Path, dir: &Path, plan: Plan) -> anyhow::Result<Figures> {
    let (producers, size) = (plan.producers.to_string(), PAYLOAD.to_string());
    let (seconds, dir) = (plan.window.as_secs_f64().to_string(), text(dir));
    let name = plan.workload.name();
    let words = [
        "bench",
        "queue",
        "--json",
        "--runs",
        "1",
        "--workload",
        name,
        "--producers",
        &producers,
        "--size",
        &size,
    ];
    let words = [words.as_slice(), &["--seconds", &seconds, "--dir", &dir]].concat();
    let said = run(&command(binary, &words), None)?;
    read(&said, plan).with_context(|| format!("`bench queue --json` said {said}"))
}

fn read(said: &str, plan: Plan) -> anyhow::Result<Figures> {
    let answer: Value = serde_json::from_str(said)?;
    let name = format!("{} {}", plan.workload.name(), plan.producers);
    let row = answer["rows"]
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["row"] == *name));
    let row = row.with_context(|| format!("there is no row {name:?}"))?;
    let figure = |name: &str| row[name]["median"].as_f64().with_context(|| format!("there is no figure {name:?}"));
    let steps = if plan.workload == Workload::Life { TRANSITIONS } else { 1.0 };
    Ok(Figures {
        ops_per_s: figure("per_s")? / steps,
        p50_us: figure("p50_ms")? * 1000.0,
        p99_us: figure("p99_ms")? * 1000.0,
        p999_us: figure("p999_ms")? * 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_row_of_the_plan_is_read_and_a_life_is_one() {
        let said = r#"{"rows": [{"row": "life 1"}, {"row": "life 16", "per_s": {"median": 30.0}, "p50_ms": {"median": 0.5},
            "p99_ms": {"median": 1.0}, "p999_ms": {"median": 2.0}}]}"#;
        let plan = |producers| Plan {
            workload: Workload::Life,
            producers,
            warm_up: Duration::ZERO,
            window: Duration::from_secs(1),
        };
        let expected = Figures {
            ops_per_s: 10.0,
            p50_us: 500.0,
            p99_us: 1000.0,
            p999_us: 2000.0,
        };
        assert_eq!(read(said, plan(16)).unwrap(), expected);
        assert!(read(said, plan(1)).unwrap_err().to_string().contains("per_s"));
        assert!(read(said, plan(2)).is_err());
    }
}
