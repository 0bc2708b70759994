//! The contract: what is served, what is committed and what is true are one.

use super::{Http, master};
use crate::support::BINARY;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn committed() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_contract_is_the_one_that_is_served() {
    let printed = {
        let _alone = crate::support::beginning();
        std::process::Command::new(BINARY).arg("openapi").output().unwrap()
    };
    assert!(
        String::from_utf8(printed.stdout).unwrap() == committed(),
        "docs/openapi.json is not what the code says; `fedbroker openapi > docs/openapi.json` writes it"
    );
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let served = http.get("/openapi.json").await;
    assert_eq!(served.header("content-type"), "application/json");
    assert_eq!(served.text(), committed());
    assert_eq!(served.json(200)["openapi"], "3.1.0");
    let page = http.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    // Nothing of it comes from elsewhere.
    let text = page.text();
    for part in ["http://", "https://", "src=\"", "@import", "url("] {
        assert!(!text.contains(part), "the page has {part}");
    }
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
}

/// Every reference in the contract leads somewhere, and every shape is referred to.
#[test]
fn the_contract_is_whole() {
    fn refs(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(target) if name == "$ref" => drop(found.insert(target.rsplit('/').next().unwrap().to_owned())),
                        _ => refs(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }
    let contract: Value = serde_json::from_str(&committed()).unwrap();
    let mut found = BTreeSet::new();
    refs(&contract, &mut found);
    let known: BTreeSet<String> = contract["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert!(found.is_subset(&known), "{:?}", found.difference(&known));
    // What is shown in pages only stands within the page.
    let in_page = |name: &&String| known.contains(&format!("Page_{name}"));
    let idle: Vec<_> = known.difference(&found).filter(|name| !in_page(name)).collect();
    assert!(idle.is_empty(), "nothing shows {idle:?}");
    let mut ids = BTreeSet::new();
    for (path, item) in contract["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"]
                .as_str()
                .unwrap_or_else(|| panic!("{method} {path} has no id"));
            assert!(ids.insert(id.to_owned()), "{method} {path}: the id {id} is there twice");
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{method} {path} has no summary"
            );
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
            }
        }
    }
}

/// Every path of the contract is served, by its methods and no other.
#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_contract_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let http = Http::new(&master.address);
    let contract: Value = serde_json::from_str(&committed()).unwrap();
    for (path, item) in contract["paths"].as_object().unwrap() {
        let real = path
            .replace("{job_id}", "x")
            .replace("{task_id}", "y")
            .replace("{proposal_id}", "z");
        let answer = http.send("PATCH", &real, &[], "").await;
        assert_eq!(answer.status, 405, "{path}: {}", answer.text());
        let allowed: BTreeSet<String> = answer.header("allow").split(',').map(|name| name.trim().to_lowercase()).collect();
        for method in item.as_object().unwrap().keys() {
            assert!(allowed.contains(method), "{method} {path}: {allowed:?}");
            let answer = http.send(&method.to_uppercase(), &format!("{real}?nonsense=1"), &[], "").await;
            if path.starts_with("/api/v1") {
                assert_eq!(
                    answer.problem(path),
                    ("unknown_parameter".to_owned(), "?nonsense".to_owned()),
                    "{method} {path}"
                );
            }
        }
    }
}
