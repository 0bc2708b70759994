//! The result of a benchmark: for each row and column the median of all runs and their range, as a table or as JSON.

use super::Common;
use super::place::Machine;
use crate::telemetry::say;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// How a column is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    /// Things in a second, or a count.
    Number,
    /// Milliseconds.
    Millis,
    /// One divided by another.
    Ratio,
    /// Megabytes of a million bytes.
    Megabytes,
}

/// What is measured: its name for readers and programs, how it is shown, and whether its range is shown too.
pub(super) struct Column(pub(super) &'static str, pub(super) Unit, pub(super) bool);

/// Results as they come in.
pub(super) struct Table {
    name: &'static str,
    columns: &'static [Column],
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

impl Table {
    pub(super) fn new(name: &'static str, columns: &'static [Column]) -> Self {
        Self {
            name,
            columns,
            rows: Vec::new(),
        }
    }

    /// The values of one run, one for each column; `NaN` for what was not measured.
    pub(super) fn add(&mut self, row: &str, run: &[f64]) {
        debug_assert_eq!(run.len(), self.columns.len());
        match self.rows.iter_mut().find(|(name, _)| name == row) {
            Some((_, runs)) => runs.push(run.to_vec()),
            None => self.rows.push((row.to_owned(), vec![run.to_vec()])),
        }
    }

    /// The least median of a column over all rows whose name begins so.
    pub(super) fn least(&self, column: &str, prefix: &str) -> Option<f64> {
        let at = self.columns.iter().position(|Column(name, ..)| *name == column)?;
        let rows = self.rows.iter().filter(|(name, _)| name.starts_with(prefix));
        rows.map(|(_, runs)| spread(runs, at)[0]).min_by(f64::total_cmp)
    }

    /// Say it on stdout; `notes` are lines below the table.
    pub(super) fn say(&self, common: &Common, machine: &Machine, notes: &[String]) {
        if common.json {
            say(&self.json(machine, notes).to_string());
        } else {
            say(&self.text(machine, notes));
        }
    }

    fn text(&self, machine: &Machine, notes: &[String]) -> String {
        let header = std::iter::once(String::new()).chain(self.columns.iter().map(|Column(name, ..)| (*name).to_owned()));
        let mut lines: Vec<Vec<String>> = vec![header.collect()];
        for (name, runs) in &self.rows {
            let cells = self.columns.iter().enumerate().map(|(at, column)| column.cell(spread(runs, at)));
            lines.push(std::iter::once(name.clone()).chain(cells).collect());
        }
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..=self.columns.len()).map(width).collect();
        let runs = self.rows.iter().map(|(_, runs)| runs.len()).max().unwrap_or_default();
        let mut text = format!("{}, median of {runs} [range]\n{}\n\n", self.name, machine.lines());
        for line in &lines {
            let _ = write!(text, "{:1$}", line[0], widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.push('\n');
        }
        for note in notes {
            let _ = write!(text, "\n{note}");
        }
        text
    }

    fn json(&self, machine: &Machine, notes: &[String]) -> Value {
        let row = |(name, runs): &(String, Vec<Vec<f64>>)| {
            let mut row = Map::new();
            row.insert("row".to_owned(), json!(name));
            for (at, Column(name, ..)) in self.columns.iter().enumerate() {
                let [median, min, max] = spread(runs, at);
                row.insert((*name).to_owned(), json!({ "median": median, "min": min, "max": max }));
            }
            Value::Object(row)
        };
        let runs = self.rows.iter().map(|(_, runs)| runs.len()).max().unwrap_or_default();
        json!({
            "bench": self.name,
            "runs": runs,
            "machine": machine.json(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "notes": notes,
        })
    }
}

impl Column {
    fn cell(&self, [median, min, max]: [f64; 3]) -> String {
        let Column(_, unit, range) = self;
        let show = |value: f64| match unit {
            Unit::Number => format!("{value:.0}"),
            Unit::Millis if value >= 100.0 => format!("{value:.0}"),
            Unit::Millis | Unit::Ratio => format!("{value:.2}"),
            Unit::Megabytes => format!("{value:.1}"),
        };
        match (median.is_nan(), range) {
            (true, _) => "-".to_owned(),
            (false, true) => format!("{} [{}..{}]", show(median), show(min), show(max)),
            (false, false) => show(median),
        }
    }
}

/// Median, least and greatest of a column.
fn spread(runs: &[Vec<f64>], at: usize) -> [f64; 3] {
    let mut values: Vec<f64> = runs.iter().map(|run| run[at]).filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (values.first(), values.last()) else {
        return [f64::NAN; 3];
    };
    let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    [f64::midpoint(below, above), *min, *max]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_median_and_range() {
        static COLUMNS: [Column; 2] = [Column("per_s", Unit::Number, true), Column("p99_ms", Unit::Millis, false)];
        let mut table = Table::new("test", &COLUMNS);
        for value in [3.0, 1.0, 2.0] {
            table.add("a", &[value, f64::NAN]);
        }
        table.add("b", &[5.0, 1.25]);
        assert_eq!(spread(&table.rows[0].1, 0), [2.0, 1.0, 3.0]);
        assert_eq!(table.columns[0].cell([2.0, 1.0, 3.0]), "2 [1..3]");
        assert_eq!(table.columns[1].cell(spread(&table.rows[0].1, 1)), "-");
        assert_eq!(table.least("per_s", ""), Some(2.0));
        assert_eq!(table.least("per_s", "b"), Some(5.0));
    }
}
