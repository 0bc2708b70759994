//! The papers say what the code says: states in the diagrams, rooms in the map, links that lead somewhere, the two commands of the README.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names of the variants of an enum, from its source text.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let begin = source
        .find(&format!("pub enum {name} {{"))
        .unwrap_or_else(|| panic!("no enum {name}"));
    let body = &source[begin..];
    let body = &body[..body.find("\n}").unwrap()];
    let is_variant = |line: &&str| line.starts_with("    ") && line.chars().nth(4).is_some_and(char::is_uppercase);
    let name_of = |line: &str| line.trim().chars().take_while(|c| c.is_alphanumeric()).collect();
    body.lines().filter(is_variant).map(name_of).collect()
}

/// The part of a page under a heading that begins with this text.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let begin = page
        .find(&format!("\n## {heading}"))
        .unwrap_or_else(|| panic!("no section {heading}"));
    let rest = &page[begin + 4..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// Names that stand in transitions of a diagram.
fn drawn(section: &str) -> BTreeSet<String> {
    let transitions = section.lines().filter_map(|line| line.trim().split_once(" --> "));
    let ends = transitions.flat_map(|(from, to)| [from.trim(), to.split(':').next().unwrap_or(to).trim()]);
    ends.filter(|name| *name != "[*]").map(str::to_owned).collect()
}

#[test]
fn the_diagrams_draw_exactly_the_states_there_are() {
    let page = read("docs/state_machine.md");
    let master = read("src/machine/master/records.rs");
    assert_eq!(drawn(section(&page, "A job, at the master")), variants(&master, "JobState"));
    assert_eq!(drawn(section(&page, "A task of the cluster queue")), variants(&master, "TaskState"));
    assert_eq!(drawn(section(&page, "A proposal a party")), variants(&master, "ParticipationState"));
    let coordinator = read("src/machine/coordinator/proposals.rs");
    assert_eq!(
        drawn(section(&page, "A proposal, at the coordinator")),
        variants(&coordinator, "State")
    );
    let assignments = read("src/machine/coordinator/assignments.rs");
    assert_eq!(
        drawn(section(&page, "A task given to a party")),
        variants(&assignments, "AssignmentState")
    );
    let federation = read("src/machine/master/federation.rs");
    assert_eq!(drawn(section(&page, "A party that was chosen")), variants(&federation, "PeerState"));
    let cluster = read("src/machine/cluster/records.rs");
    assert_eq!(
        drawn(section(&page, "A worker, at the cluster manager")),
        variants(&cluster, "WorkerState")
    );
    assert_eq!(
        drawn(section(&page, "A task, at the cluster manager")),
        variants(&cluster, "TaskState")
    );
    assert_eq!(
        drawn(section(&page, "A lease, at the cluster manager")),
        variants(&cluster, "LeaseState")
    );
}

#[test]
fn the_map_shows_every_room() {
    let map = read("ARCHITECTURE.md");
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = ["main.rs", "lib.rs"].contains(&name.as_str());
        assert!(known || map.contains(&name), "ARCHITECTURE.md does not mention src/{name}");
    }
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/fedvision.md",
        "docs/benchmarks.md",
        "docs/programs.md",
        "docs/configuration.md",
        "docs/durability.md",
        "docs/operations.md",
        "docs/api.md",
        "docs/metrics.md",
    ] {
        let text = read(page);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
        {
            // A place in a page is a heading of it: lower case, hyphens for spaces.
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let from = root.join(page);
            let target = if file.is_empty() {
                from.clone()
            } else {
                from.parent().unwrap().join(file)
            };
            let is_place = |line: &str| line.starts_with('#') && line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-") == place;
            assert!(
                place.is_empty() || fs::read_to_string(&target).unwrap().lines().any(is_place),
                "{page} links to {link}, a heading that is not there"
            );
            assert!(
                link.starts_with("https://") || target.exists(),
                "{page} links to {link}, which is not there"
            );
        }
    }
}

#[test]
fn the_gate_runs_what_the_readme_promises() {
    let (readme, gate) = (read("README.md"), read(".ci/run"));
    for command in ["cargo run --release -- quickstart", "cargo test"] {
        assert!(
            readme.lines().take(12).any(|line| line.trim_start().starts_with(command)),
            "the README's first screen lacks {command}"
        );
        assert!(gate.contains(command), ".ci/run lacks {command}");
    }
}
