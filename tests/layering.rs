//! Who may import whom, and who owns which word: the tables, and the check that the source is what they say.
//!
//! The check reads text, without comments and strings. What a table allows and nobody uses is an error too: the tables are the map.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and their layers. Imports go to a lower layer only.
const LAYERS: &[(&str, u8)] = &[
    ("machine", 0),
    ("config", 0),
    ("crash_point", 0),
    ("metrics", 0),
    ("telemetry", 0),
    ("migrations", 0),
    ("store", 1),
    ("wire", 1),
    ("supervisor", 1),
    ("engine", 2),
    ("job_types", 2),
    ("observe", 2),
    ("master", 3),
    ("coordinator", 3),
    ("cluster", 3),
    ("worker", 3),
    ("cli", 4),
    ("lib", 5),
    ("main", 5),
];

/// The imports between rooms: from, to, why.
const EDGES: &[(&str, &str, &str)] = &[
    ("store", "machine", "a payload file is named by the reference that records hold"),
    ("store", "crash_point", "the steps of a batch and of a payload file are boundaries"),
    (
        "store",
        "migrations",
        "the directory is brought to the newest format when it is opened",
    ),
    ("store", "metrics", "a barrier is measured where it is"),
    ("supervisor", "metrics", "a role has its metrics from its supervisor"),
    ("wire", "metrics", "every call is measured"),
    ("observe", "metrics", "shows them"),
    ("observe", "supervisor", "has them; its door is a task"),
    ("observe", "telemetry", "says where it listens"),
    ("engine", "metrics", "commits are measured, the census is shown"),
    ("engine", "machine", "runs any machine"),
    ("engine", "crash_point", "every command and effect is a boundary"),
    ("engine", "store", "commits and reads back"),
    ("engine", "supervisor", "the loop has a thread"),
    ("engine", "migrations", "a backup says of which version it is"),
    ("job_types", "machine", "makes plans and outcomes"),
    ("job_types", "wire", "packs tasks as messages"),
    ("master", "machine", "speaks to the master machine"),
    ("master", "store", "reads and writes payloads"),
    ("master", "wire", "calls coordinator and cluster manager"),
    ("master", "engine", "sends commands, reads records"),
    ("master", "job_types", "compiles and packs jobs"),
    ("master", "config", "its options"),
    ("master", "supervisor", "its tasks"),
    ("master", "telemetry", "says that it is ready"),
    ("master", "metrics", "requests and retries are counted"),
    ("master", "observe", "shows the metrics at its own door"),
    ("coordinator", "observe", "its door for the metrics"),
    ("coordinator", "machine", "speaks to the coordinator machine"),
    ("coordinator", "store", "reads and writes payloads"),
    ("coordinator", "wire", "serves gRPC"),
    ("coordinator", "engine", "sends commands, reads records"),
    ("coordinator", "config", "its options"),
    ("coordinator", "supervisor", "its tasks"),
    ("coordinator", "telemetry", "says that it is ready"),
    ("cluster", "observe", "its door for the metrics"),
    ("cluster", "machine", "speaks to the cluster machine"),
    ("cluster", "store", "reads and writes payloads"),
    ("cluster", "wire", "serves gRPC"),
    ("cluster", "engine", "sends commands, reads records"),
    ("cluster", "config", "its options"),
    ("cluster", "supervisor", "its tasks"),
    ("cluster", "telemetry", "says that it is ready"),
    ("worker", "metrics", "tasks are counted"),
    ("worker", "observe", "its door for the metrics"),
    ("worker", "machine", "ids and outcomes; it has no machine of its own"),
    ("worker", "crash_point", "the begin and the end of a task are boundaries"),
    ("worker", "wire", "calls the cluster manager"),
    ("worker", "engine", "the clock and its identity only; it has no log"),
    ("worker", "job_types", "runs tasks"),
    ("worker", "config", "its options"),
    ("worker", "supervisor", "its tasks"),
    ("worker", "telemetry", "says that it is ready"),
    ("cli", "master", "serves it"),
    ("cli", "coordinator", "serves it"),
    ("cli", "cluster", "serves it"),
    ("cli", "worker", "serves it"),
    (
        "cli",
        "machine",
        "the store commands read records and events of every role; bench gives commands",
    ),
    ("cli", "store", "the store commands"),
    ("cli", "engine", "the store commands: backup, replay; bench runs it"),
    ("cli", "migrations", "the store commands name versions"),
    ("cli", "job_types", "the hidden subcommand that is the shim of a task"),
    ("cli", "store", "what its failures mean as an exit code"),
    (
        "cli",
        "wire",
        "the delays between two tries; bench submits tasks to a cluster manager",
    ),
    ("cli", "crash_point", "arms the one that the environment names; debug builds only"),
    ("cli", "config", "the options of all roles"),
    ("cli", "supervisor", "made here, once for each process"),
    ("cli", "telemetry", "started here, once for each process"),
];

/// Edges upwards that stand all the same.
const UPWARDS: &[(&str, &str, &str)] = &[
    ("store", "migrations", "downwards; the way back is the codec"),
    (
        "migrations",
        "machine",
        "sideways: a step ends in the newest types; the next step freezes them",
    ),
    (
        "migrations",
        "store",
        "a step reads bodies and envelopes through the codec; its golden tests write and open a store",
    ),
];

/// Words with owners: the word, the only files or directories that may say it, why.
const WORDS: &[(&str, &[&str], &str)] = &[
    (
        "sled::",
        &["src/store/sled_store/disk.rs"],
        "the storage engine can be replaced in one file",
    ),
    ("bincode::", &["src/store/codec.rs"], "the encoding can be replaced in one file"),
    ("tokio::spawn", &["src/supervisor.rs"], "every task has a name and a policy"),
    ("task::spawn_blocking", &["src/supervisor.rs"], "every task has a name and a policy"),
    ("thread::Builder", &["src/supervisor.rs"], "every thread has a name and a policy"),
    ("thread::spawn", &[], "every thread has a name and a policy"),
    (
        "Stdio",
        &["src/job_types/exec", "src/cli/federation.rs"],
        "child processes: tasks and compile steps under their shim; the roles of a quickstart",
    ),
    (
        "process::Command",
        &["src/job_types/exec", "src/cli/quickstart"],
        "as above; a quickstart asks for the version of python first",
    ),
    ("SystemTime::now", &["src/engine/clock.rs"], "time is an input of the machines"),
    ("Timestamp::now", &[], "time is an input of the machines"),
    ("Zoned::now", &[], "time is an input of the machines"),
    (
        "rand::",
        &["src/engine/clock.rs", "src/wire/connect.rs"],
        "randomness is an input of the machines; a delay between two tries is none, and layer 1 cannot ask the engine",
    ),
    ("axum", &["src/master/rest"], "one HTTP door"),
    (
        "hyper",
        &["src/master/rest/server.rs", "src/master/rest/refusal.rs", "src/observe.rs"],
        "the connections of that door have limits; a refusal has a reason phrase; the door for metrics is too small for a router",
    ),
    (
        "hyper_util",
        &["src/master/rest/server.rs", "src/observe.rs"],
        "the connections of those doors have limits",
    ),
    (
        "prometheus_client",
        &["src/metrics"],
        "how metrics are kept and written can be replaced in one room",
    ),
    ("clap", &["src/config.rs", "src/cli"], "options are read once, at the top"),
    (
        "env::",
        &["src/cli", "src/telemetry.rs", "src/job_types/exec/mod.rs"],
        "the environment is read at the top; telemetry asks for NO_COLOR, exec for the path of this very program",
    ),
    ("unsafe", &[], "none"),
];

/// What a pure room must not say.
const IMPURE: &[&str] = &[
    "tokio",
    "tracing",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "std::time",
    "std::env",
    "rand",
];

/// The most lines of a file, its tests not counted.
const LINES_MAX: usize = 500;

struct Source {
    path: String,
    room: String,
    text: String,
    /// Without comments and the insides of strings.
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    files(&root().join("src"), &mut found);
    files(&root().join("migrations"), &mut found);
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        let room = if parts[0] == "migrations" { parts[0] } else { parts[1] }.to_owned();
        let code = code_of(&text);
        Source { path, room, text, code }
    };
    found.into_iter().map(source).collect()
}

/// The text without line comments and without what is in strings, each on its line. Raw strings count as strings.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => while rest.next_if(|c| *c != '\n').is_some() {},
            '"' if before != '\'' => {
                code.push('"');
                while let Some(c) = rest.next() {
                    match c {
                        '\\' => drop(rest.next()),
                        '"' => break,
                        '\n' => code.push('\n'),
                        _ => {}
                    }
                }
                code.push('"');
            }
            _ => code.push(c),
        }
        before = c;
    }
    code
}

/// Lines that say a word, as a word.
fn says(code: &str, word: &str) -> Vec<usize> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let lines = (1..).zip(code.lines());
    let hit = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back().is_some_and(part_of_name);
            let after = line[at + word.len()..].chars().next().is_some_and(part_of_name);
            !before && (word.ends_with("::") || !after)
        })
    };
    lines.filter(|(_, line)| hit(line)).map(|(number, _)| number).collect()
}

fn rooms_named(code: &str) -> BTreeSet<String> {
    let paths = code.match_indices("crate::").map(|(at, found)| &code[at + found.len()..]);
    let word = |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    paths.map(word).collect()
}

fn layer(room: &str) -> u8 {
    let found = LAYERS.iter().find(|(name, _)| *name == room);
    found.unwrap_or_else(|| panic!("room {room:?} has no layer in the table")).1
}

#[test]
fn imports_go_downwards_and_are_those_of_the_table() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for Source { path, room, code, .. } in sources() {
        for other in rooms_named(&code) {
            if other.is_empty() {
                wrong.push(format!("{path}: write one `use crate::room` for each room, no group"));
            } else if other != room {
                let stands = EDGES.iter().chain(UPWARDS).any(|(from, to, _)| *from == room && *to == other);
                let upwards = UPWARDS.iter().any(|(from, to, _)| *from == room && *to == other);
                if !stands {
                    wrong.push(format!("{path}: {room} imports {other}, which no edge allows"));
                } else if layer(&other) >= layer(&room) && !upwards {
                    wrong.push(format!("{path}: {room} imports {other}, which is not below it"));
                }
                used.insert((room.clone(), other));
            }
        }
        layer(&room);
    }
    for (from, to, why) in EDGES.iter().chain(UPWARDS) {
        if !used.contains(&((*from).to_owned(), (*to).to_owned())) {
            wrong.push(format!("the edge from {from} to {to} ({why}) is not used any more"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn words_are_said_by_their_owners_only() {
    let mut wrong = Vec::new();
    let sources = sources();
    for (word, owners, why) in WORDS {
        let mut used = BTreeSet::new();
        for Source { path, code, .. } in &sources {
            let lines = says(code, word);
            let owner = owners.iter().find(|owner| path == *owner || path.starts_with(&format!("{owner}/")));
            match owner {
                Some(owner) if !lines.is_empty() => drop(used.insert(*owner)),
                None => wrong.extend(lines.iter().map(|line| format!("{path}:{line} says {word}, but: {why}"))),
                Some(_) => {}
            }
        }
        let idle = owners.iter().filter(|owner| !used.contains(*owner));
        wrong.extend(idle.map(|owner| format!("{owner} owns {word} and does not say it any more")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn machines_are_pure() {
    let machines = sources().into_iter().filter(|source| source.room == "machine");
    let impure = |source: Source| {
        let path = source.path;
        let lines = IMPURE.iter().map(move |word| (*word, says(&source.code, word)));
        lines
            .filter(|(_, lines)| !lines.is_empty())
            .map(move |(word, lines)| format!("{path}:{lines:?} says {word}"))
            .collect::<Vec<_>>()
    };
    let wrong: Vec<String> = machines.flat_map(impure).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_say_what_they_are_and_are_short() {
    let mut wrong = Vec::new();
    for Source { path, text, .. } in sources() {
        if !text.starts_with("//!") {
            wrong.push(format!("{path} does not begin with what it is"));
        }
        let of_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        let mod_only = text
            .lines()
            .skip(lines + 1)
            .any(|line| line.starts_with("mod ") && line.ends_with(';'));
        let lines = if mod_only { text.lines().count() } else { lines };
        if lines > LINES_MAX && !of_tests {
            wrong.push(format!("{path} has {lines} lines, at most {LINES_MAX} without tests are wanted"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_this_test_sees_code_only() {
    let code = code_of("let a = \"crate::no\"; // crate::no\nlet b = '\"'; crate::store::get();");
    assert_eq!(rooms_named(&code), BTreeSet::from(["store".to_owned()]));
    assert_eq!(says("a\nlet bincode::x", "bincode::"), [2]);
    assert_eq!(says("mybincode::x, rand_x, rand", "bincode::"), []);
    assert_eq!(says("rand_x\nrand", "rand"), [2]);
}
