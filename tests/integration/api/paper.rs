//! `docs/api.md` says what is true: its examples are run as they are, it has one for every operation of the contract, and it names every code.

use crate::support::Federation;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A command of the page, and what it is to print.
struct Example {
    command: String,
    wanted: String,
}

fn examples(page: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = &block[..block.find("```").unwrap()];
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => examples.push(Example {
                    command: command.to_owned(),
                    wanted: String::new(),
                }),
                None => {
                    let wanted = &mut examples.last_mut().unwrap().wanted;
                    wanted.push_str(line);
                    wanted.push('\n');
                }
            }
        }
    }
    examples
}

/// Words of a command: single and double quotes, no escapes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == ' ' => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// What curl would do: method, URL, answer.
async fn run(command: &str, base: &str, job: &str) -> (String, String, String) {
    let (mut method, mut url, mut body, mut headers) = (None, String::new(), None, Vec::new());
    let mut words = words(command).into_iter();
    assert_eq!(words.next().as_deref(), Some("curl"), "{command}");
    while let Some(word) = words.next() {
        match word.as_str() {
            "-s" => {}
            "-X" => method = words.next(),
            "-d" => body = words.next(),
            "-H" => headers.extend(
                words
                    .next()
                    .unwrap()
                    .split_once(": ")
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            ),
            _ => url = word,
        }
    }
    let method = method.unwrap_or_else(|| "GET".to_owned());
    let http = reqwest::Client::builder()
        .timeout(crate::support::DEADLINE)
        .no_proxy()
        .build()
        .unwrap();
    let real = url.replace("$FB", base).replace("$JOB", job);
    let mut request = http.request(method.parse().unwrap(), real);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let response = request.body(body.unwrap_or_default()).send().await.unwrap();
    let path = url.strip_prefix("$FB").unwrap().split('?').next().unwrap().to_owned();
    (method, path, response.text().await.unwrap())
}

/// Whether a text is what is wanted, where `...` stands for anything.
fn fits(text: &str, wanted: &str) -> bool {
    let mut parts = wanted.trim_end().split("...");
    let Some(mut rest) = text.trim_end().strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_page_run_as_they_are() {
    let federation = Federation::start(2).await;
    let client = federation.client(0);
    let job = client.submit("dummy", &json!({ "worker_num": 2, "proposal_wait_time": 2 })).await;
    client.ended(&job).await;
    let base = format!("http://{}", federation.parties[0].master.address);
    let page = read("docs/api.md");
    let mut shown = BTreeSet::new();
    for Example { command, wanted } in examples(&page) {
        let (method, path, answer) = run(&command, &base, &job).await;
        assert!(fits(&answer, &wanted), "{command}\nprinted\n{answer}\nand not\n{wanted}");
        shown.insert((method.to_lowercase(), path));
    }
    let contract: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    for (path, item) in contract["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let path = path
                .replace("{job_id}", "$JOB")
                .replace("{task_id}", "aggregator")
                .replace("{proposal_id}", "none");
            let path = if *method == "delete" { path.replace("$JOB", "none") } else { path };
            // A backup is no text.
            let is_shown = shown.contains(&(method.clone(), path.clone())) || path == "/api/v1/backup";
            assert!(is_shown, "docs/api.md has no example of {method} {path}");
        }
    }
}

#[test]
fn every_code_is_on_the_page() {
    let page = read("docs/api.md");
    let source = read("src/master/rest/v1/problem.rs");
    let table = &source[source.find("codes! {").unwrap()..];
    let table = &table[..table.find("\n}").unwrap()];
    let codes: Vec<&str> = table.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(codes.len() > 20);
    for code in codes {
        assert!(page.contains(&format!("`{code}`")), "docs/api.md does not name {code}");
    }
}

#[test]
fn dots_stand_for_anything() {
    for (text, wanted) in [
        ("abc", "abc"),
        ("abc", "..."),
        ("abc", "a...c"),
        ("abc", "...c"),
        ("abc\n", "ab...\n"),
        ("a1b2c", "a...b...c"),
    ] {
        assert!(fits(text, wanted), "{text} {wanted}");
    }
    for (text, wanted) in [("abc", "ab"), ("abc", "b..."), ("abc", "...b"), ("abc", "a...d...c")] {
        assert!(!fits(text, wanted), "{text} {wanted}");
    }
}
