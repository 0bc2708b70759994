//! The crash points there are, and the rows of the recovery table they stand in.

use fedbroker::crash_point::{Moment, PLACES};
use fedbroker::machine::cluster::Cluster;
use fedbroker::machine::coordinator::Coordinator;
use fedbroker::machine::master::Master;
use fedbroker::machine::{Machine, Named};
use std::collections::BTreeMap;
use std::path::Path;

/// A row: what the killed process was doing, and the points of that.
pub struct Row {
    /// The first column.
    pub killed_while: String,
    /// In the order of the paper.
    pub points: Vec<String>,
}

/// All commands and effects of a role, as they are compiled in.
pub fn points_of<M: Machine>() -> Vec<String> {
    let point = |name: &str, moment: Moment| format!("{}.{name}.{}", M::ROLE, moment.name());
    let commands = M::Command::NAMES.iter();
    let commands = commands.flat_map(|name| [point(name, Moment::Taken), point(name, Moment::Durable)]);
    let effects = M::Effect::NAMES.iter().map(|name| point(name, Moment::Leaving));
    commands.chain(effects).collect()
}

/// Those that every durable role has: the steps of its store and its payload files.
pub fn of_every_durable_role() -> Vec<String> {
    let places = PLACES.iter().map(|(name, _)| (*name).to_owned());
    places.filter(|name| !name.starts_with("worker.")).collect()
}

/// Those of the worker.
pub fn of_the_worker() -> Vec<String> {
    let places = PLACES.iter().map(|(name, _)| (*name).to_owned());
    places.filter(|name| name.starts_with("worker.")).collect()
}

/// Every point, in every role.
fn all() -> Vec<String> {
    let machines = points_of::<Master>().into_iter().chain(points_of::<Coordinator>());
    let machines = machines.chain(points_of::<Cluster>());
    machines.chain(of_every_durable_role()).chain(of_the_worker()).collect()
}

/// Columns of the table that begins with this head.
fn table(page: &str, head: &str) -> Vec<(String, String)> {
    let begin = page.find(head).unwrap_or_else(|| panic!("ARCHITECTURE.md has no table {head:?}"));
    let rows = page[begin..].lines().skip(2).take_while(|line| line.starts_with('|'));
    let columns = |line: &str| {
        let mut cells = line.trim_matches('|').splitn(2, " | ").map(|cell| cell.trim().to_owned());
        (cells.next().unwrap(), cells.next().expect("two columns"))
    };
    rows.map(columns).collect()
}

/// `a.{b,c}` is `a.b` and `a.c`.
fn expand(name: &str) -> Vec<String> {
    match name.split_once('{') {
        None => vec![name.to_owned()],
        Some((before, rest)) => {
            let inside = rest.strip_suffix('}').unwrap_or_else(|| panic!("{name} has no end"));
            inside.split(',').map(|last| format!("{before}{last}")).collect()
        }
    }
}

/// The rows of the paper.
pub fn rows() -> Vec<Row> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let promises = table(&page, "| killed while | after the restart |");
    let points = table(&page, "| killed while | crash points |");
    let firsts = |rows: &[(String, String)]| rows.iter().map(|(first, _)| first.clone()).collect::<Vec<_>>();
    assert_eq!(
        firsts(&promises),
        firsts(&points),
        "the two tables of ARCHITECTURE.md have other rows"
    );
    let row = |(killed_while, names): (String, String)| {
        let points = names.split_whitespace().flat_map(|name| expand(name.trim_matches('`'))).collect();
        Row { killed_while, points }
    };
    points.into_iter().map(row).collect()
}

/// The row of a point.
pub fn row_of(point: &str) -> String {
    let row = rows().into_iter().find(|row| row.points.iter().any(|name| name == point));
    row.unwrap_or_else(|| panic!("{point} stands in no row of ARCHITECTURE.md"))
        .killed_while
}

#[test]
fn every_point_has_one_row_and_every_row_a_point() {
    let mut places: BTreeMap<String, usize> = all().into_iter().map(|point| (point, 0)).collect();
    assert_eq!(places.len(), all().len(), "two points have the same name");
    let mut wrong = Vec::new();
    for Row { killed_while, points } in rows() {
        if points.is_empty() {
            wrong.push(format!("no point for: {killed_while}"));
        }
        for point in points {
            match places.get_mut(&point) {
                Some(times) => *times += 1,
                None => wrong.push(format!("{point} is no crash point: {killed_while}")),
            }
        }
    }
    let elsewhere = places.iter().filter(|(_, times)| **times != 1);
    wrong.extend(elsewhere.map(|(point, times)| format!("{point} stands in {times} rows")));
    assert!(wrong.is_empty(), "ARCHITECTURE.md, crash points:\n{}", wrong.join("\n"));
}

/// A point that nobody drives a process to would be a name without a proof.
#[test]
fn every_point_has_its_scenario() {
    super::master::every_point();
    super::coordinator::every_point();
    super::cluster::every_point();
    super::worker::every_point();
}
