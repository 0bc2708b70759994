//! The commands of `docs/api.md` run as they are, and none is missing there.

use super::jobs::said;
use crate::support::Federation;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

/// Words of a command: double quotes, no escapes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// Whether a text is what is wanted, where `...` stands for anything.
fn fits(text: &str, wanted: &str) -> bool {
    let mut rest = text.trim_end();
    let parts: Vec<&str> = wanted.trim_end().split("...").collect();
    let Some(after) = rest.strip_prefix(parts[0]) else { return false };
    rest = after;
    for part in &parts[1..] {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    parts.len() > 1 || rest.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_run_as_they_are() {
    let federation = Federation::start(1).await;
    let client = federation.client(0);
    let endpoint = client.address();
    let job = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    client.ended(&job).await;
    // A dummy task prints nothing; this stands in for what a program would.
    let work = Path::new(federation.parties[0].worker.flag("--work-dir").unwrap());
    let attempt = work.join(&job).join("aggregator/1");
    std::fs::create_dir_all(&attempt).unwrap();
    std::fs::write(attempt.join("stderr"), "round 1 of 3\nround 2 of 3\n").unwrap();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md")).unwrap();
    let block = page.split("```shell-session\n").nth(1).unwrap().split("```").next().unwrap();
    let (mut shown, mut later) = (BTreeSet::new(), String::new());
    for example in block.split("$ fedbroker ").skip(1) {
        let (command, wanted) = example.split_once('\n').unwrap();
        let real = command.replace("$JOB", &job).replace("$LATER", &later);
        let words = words(&real);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let (code, out, err) = said(&endpoint, &args).await;
        assert_eq!(code, 0, "{command}\n{out}{err}");
        assert!(fits(&out, wanted), "{command}\nprinted\n{out}\nand not\n{wanted}");
        if command.contains("later=1") && !command.contains("cancel") {
            later = out.trim().to_owned();
        }
        let name = if args[0] == "job" {
            format!("job-{}", args[1])
        } else {
            args[0].to_owned()
        };
        shown.insert(name);
    }
    let help = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/cli/help");
    for entry in std::fs::read_dir(help).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let command = name
            .strip_prefix("fedbroker-")
            .and_then(|name| name.strip_suffix(".txt"))
            .unwrap_or_default();
        let of_client = command.starts_with("job-") || ["submit", "status", "completion"].contains(&command);
        assert!(!of_client || shown.contains(command), "docs/api.md has no example of {command}");
    }
}
