//! The help of every command, word for word, as in `tests/integration/cli/help`; with `FEDBROKER_WRITE_GOLDEN=1` the files are written instead.

use crate::support::BINARY;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn help(command: &[String]) -> String {
    let mut child = Command::new(BINARY);
    child.args(command).arg("--help").stdin(Stdio::null());
    for variable in ["FEDBROKER_ENDPOINT", "COLUMNS", "FEDBROKER_LOG"] {
        child.env_remove(variable);
    }
    let output = {
        let _alone = crate::support::beginning();
        child.output().unwrap()
    };
    assert!(
        output.status.success(),
        "{command:?} --help: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The commands below one, from its help.
fn below(text: &str) -> Vec<String> {
    let listed = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
    let lines = listed.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| {
        line.strip_prefix("  ")?
            .split_whitespace()
            .next()
            .filter(|_| !line.starts_with("   "))
    });
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn walk(command: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let text = help(command);
    for name in below(&text) {
        walk(&[command, &[name]].concat(), found);
    }
    found.push((command.to_vec(), text));
}

#[test]
fn every_help_text_is_the_one_in_the_repository() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/cli/help");
    let file = |command: &[String]| -> PathBuf {
        let name = [&["fedbroker".to_owned()], command].concat().join("-");
        dir.join(format!("{name}.txt"))
    };
    let mut found = Vec::new();
    walk(&[], &mut found);
    assert!(found.len() > 20, "commands were not found: {found:?}");
    if std::env::var_os("FEDBROKER_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(&dir).unwrap();
        fs::read_dir(&dir)
            .unwrap()
            .for_each(|entry| fs::remove_file(entry.unwrap().path()).unwrap());
        found.iter().for_each(|(command, text)| fs::write(file(command), text).unwrap());
        return;
    }
    for (command, text) in &found {
        let path = file(command);
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            *text,
            expected,
            "{} differs; FEDBROKER_WRITE_GOLDEN=1 cargo test --test integration help writes it anew",
            path.display()
        );
    }
    let kept: BTreeSet<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let expected = found.iter().map(|(command, _)| file(command)).collect();
    assert_eq!(kept, expected, "files of commands that are gone");
}

#[test]
fn every_command_of_a_user_has_an_example() {
    let mut found = Vec::new();
    walk(&[], &mut found);
    for (command, text) in found.iter().filter(|(_, text)| below(text).is_empty()) {
        let role = command.len() == 1 && ["master", "coordinator", "cluster-manager", "cluster-worker"].contains(&command[0].as_str());
        assert!(role || text.contains("Example"), "{command:?} has no example");
    }
}
