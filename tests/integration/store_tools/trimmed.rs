//! A directory whose oldest events were let go of: checked, backed up, restored and served like any other, and it says where its events begin.

use super::{dir, dump, some_payload, stat, store, submit, text};
use crate::support::{Client, Federation, Role};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A master that has let go of all events but the newest, and still runs; gives its jobs.
async fn trimmed() -> (Federation, Vec<String>) {
    let mut federation = Federation::planned(1, &[], &[]);
    let config = dir(&federation, "master.toml");
    fs::write(&config, "[retention]\nevery_s = 1\nevents_days = 0\n").unwrap();
    federation.parties[0].master.set_flag("--config", text(&config));
    federation.start_all().await;
    let client = federation.client(0);
    let mut jobs = Vec::new();
    for n in 0..4 {
        let job = submit(&client, n).await;
        client.until(&format!("/api/v1/jobs/{job}"), |job| job["live"] == false).await;
        jobs.push(job);
    }
    client
        .until("/api/v1/status", |status| status["log"]["first_seq"].as_u64() > Some(20))
        .await;
    (federation, jobs)
}

fn first_event(data_dir: &Path) -> u64 {
    dump(data_dir, &["--events"])[0]["event"].as_u64().unwrap()
}

fn checked(data_dir: &Path) -> u64 {
    let done = store(&["check", "--data-dir", text(data_dir)]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.starts_with("whole: master at commit "), "{}", done.out);
    let first = first_event(data_dir);
    let said = format!("the log begins with event {first}, so its events cannot be replayed");
    assert!(first > 20 && done.err.contains(&said), "{first} {}", done.err);
    first
}

/// What a restored directory serves: all jobs, and the events from the first one on.
async fn serves(federation: &Federation, data_dir: &Path, jobs: &[String], first: u64) {
    let mut master = Role::master_alone("restored", &dir(federation, "logs"), data_dir);
    master.start().await;
    let client = Client::new(&master.address);
    let listed = client.until("/api/v1/jobs", |page| page["items"].is_array()).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), jobs.len(), "{listed}");
    for job in jobs {
        let (_, shown) = client.get(&format!("/api/v1/jobs/{job}")).await.unwrap();
        assert_eq!((&shown["state"], &shown["live"]), (&json!("success"), &json!(false)), "{shown}");
        assert!(shown["algorithm_config"].as_str().unwrap().len() > 512, "its payload file is there");
    }
    let (status, problem) = client.get("/api/v1/events?after=1").await.unwrap();
    assert_eq!((status, &problem["oldest_seq"]), (410, &json!(first)), "{problem}");
    let (status, page) = client.get(&format!("/api/v1/events?after={}", first - 1)).await.unwrap();
    assert_eq!((status, &page["items"][0]["seq"]), (200, &json!(first)), "{page}");
    master.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_directory_is_checked_backed_up_and_restored() {
    let (mut federation, jobs) = trimmed().await;
    let (client, data_dir) = (federation.client(0), dir(&federation, "p1-master"));
    let (online, offline) = (dir(&federation, "online"), dir(&federation, "offline"));
    store(&["backup", "--endpoint", &client.address(), "--to", text(&online)]).good();
    for role in federation.roles() {
        role.kill().await;
    }
    let first = checked(&data_dir);
    assert_eq!(stat(&data_dir)["first_seq"].as_u64().unwrap_or(first), first);
    store(&["backup", "--data-dir", text(&data_dir), "--to", text(&offline)]).good();
    for backup in [online, offline] {
        store(&["verify-backup", "--from", text(&backup)]).good();
        let manifest: Value = serde_json::from_slice(&fs::read(backup.join("MANIFEST.json")).unwrap()).unwrap();
        let restored = backup.with_extension("restored");
        store(&["restore", "--from", text(&backup), "--data-dir", text(&restored)]).good();
        let begins = checked(&restored);
        assert_eq!(manifest["head"]["first_seq"], json!(begins), "{manifest}");
        serves(&federation, &restored, &jobs, begins).await;
    }
    // Damage is found all the same.
    fs::remove_file(some_payload(&data_dir)).unwrap();
    let done = store(&["check", "--data-dir", text(&data_dir)]);
    assert!(done.code == 65 && done.err.contains("is missing"), "{done:?}");
}
