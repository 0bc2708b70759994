//! `store dump` and `store stat`, and the help of all of them.

use super::{dir, dump, stat, stopped, store, text};
use serde_json::Value;

fn kinds(lines: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_of_dump_leaves_what_it_says() {
    let (federation, jobs) = stopped(4).await;
    let data_dir = dir(&federation, "p1-master");
    let all = dump(&data_dir, &[]);
    let records = dump(&data_dir, &["--records"]);
    let events = dump(&data_dir, &["--events"]);
    assert_eq!(all, [&records[..], &events[..]].concat());
    assert!(records.iter().all(|line| line["record"].is_string()));
    let numbers: Vec<u64> = events.iter().map(|line| line["event"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());

    let of_job = dump(&data_dir, &["--job", &jobs[1]]);
    assert!(of_job.len() > 4, "{of_job:?}");
    assert!(of_job.iter().all(|line| line.to_string().contains(&jobs[1])), "{of_job:?}");
    let others = all.iter().filter(|line| line.to_string().contains(&jobs[1])).count();
    assert_eq!(of_job.len(), others, "something of the job is left out");

    let jobs_only = dump(&data_dir, &["--records", "--kind", "job"]);
    assert_eq!(kinds(&jobs_only), ["job"]);
    assert_eq!(jobs_only.len(), jobs.len());
    assert_eq!(jobs_only[0]["value"]["state"], "Succeeded");
    assert_eq!(jobs_only[0]["value"]["spec"]["algorithm_config"]["len"], 1400);
    assert_eq!(jobs_only[0]["value"]["spec"]["config"]["text"], "{\"worker_num\":0}");
    assert_eq!(dump(&data_dir, &["--events", "--kind", "job_accepted"]).len(), jobs.len());

    assert_eq!(dump(&data_dir, &["--key", &format!("j{}", jobs[2])]).len(), 1);
    assert_eq!(dump(&data_dir, &["--from", "3", "--to", "5"]), events[2..5]);
    let (live, ended) = (dump(&data_dir, &["--live"]), dump(&data_dir, &["--ended"]));
    assert_eq!(kinds(&live), ["counter"]);
    assert_eq!([live, ended].concat(), records);
    assert_eq!(store(&["dump", "--data-dir", text(&data_dir), "--live", "--events"]).code, 2);

    for name in ["coordinator", "p1-manager"] {
        assert!(!dump(&dir(&federation, name), &["--events"]).is_empty());
    }
    let of_job = dump(&dir(&federation, "p1-manager"), &["--job", &jobs[0]]);
    assert!(of_job.iter().any(|line| line["kind"] == "task_ended"), "{of_job:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stat_counts_what_dump_shows() {
    let (federation, jobs) = stopped(4).await;
    let data_dir = dir(&federation, "p1-master");
    let found = stat(&data_dir);
    assert_eq!((found["role"].as_str(), found["owner"].as_str()), (Some("master"), Some("p1")));
    assert_eq!(found["records"]["ended"]["job Succeeded"], jobs.len());
    assert_eq!(found["records"]["live"]["counter"], 1);
    assert_eq!(found["payloads"]["files"], jobs.len());
    assert_eq!(found["payloads"]["bytes"], 1400 * jobs.len());
    assert_eq!(found["disk"]["payload_bytes"], 1400 * jobs.len());
    assert!(found["disk"]["free_bytes"].as_u64().unwrap() > 0);
    let events = dump(&data_dir, &["--events"]).len();
    assert_eq!(found["events"]["count"], events);
    let shown = store(&["stat", "--data-dir", text(&data_dir)]).good();
    assert!(shown.contains("master of p1"), "{shown}");
    assert!(shown.contains(&format!("job Succeeded: {}", jobs.len())), "{shown}");
    assert!(stat(&dir(&federation, "coordinator"))["owner"].is_null());
}

#[test]
fn each_command_has_a_help_and_its_place_in_the_guide() {
    let guide = include_str!("../../../docs/operations.md");
    let all = store(&["--help"]).good();
    for name in ["check", "dump", "stat", "backup", "verify-backup", "restore", "migrate"] {
        assert!(all.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))), "{all}");
        let help = store(&[name, "--help"]).good();
        assert!(
            help.contains(&format!("fedbroker store {name} --")),
            "{name} has no example:\n{help}"
        );
        assert!(guide.contains(&format!("fedbroker store {name}")), "the guide lacks {name}");
    }
    assert_eq!(store(&[]).code, 2);
}
