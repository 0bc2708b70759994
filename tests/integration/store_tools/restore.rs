//! `store restore`: what is lost is said exactly, nothing else is lost, and a kill leaves the old state or the new one.

use super::{Done, command, dir, dump, files, log, some_payload, spoil, stat, store, submit, text};
use crate::support::Federation;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A federation with a backup of its master in the middle of its life, and the truth about what came after.
struct Worst {
    federation: Federation,
    data_dir: PathBuf,
    backup: PathBuf,
    /// A whole copy of the last state.
    last: PathBuf,
    before: Vec<String>,
    after: Vec<String>,
}

async fn worst(before: usize, after: usize) -> Worst {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let jobs = async |from: usize, count: usize| {
        let mut jobs = Vec::new();
        for n in from..from + count {
            jobs.push(submit(&client, n).await);
        }
        for job in &jobs {
            client.ended(job).await;
        }
        jobs
    };
    let first = jobs(0, before).await;
    let backup = dir(&federation, "backup");
    store(&["backup", "--endpoint", &client.address(), "--to", text(&backup)]).good();
    let second = jobs(before, after).await;
    federation.parties[0].master.kill().await;
    let (data_dir, last) = (dir(&federation, "p1-master"), dir(&federation, "last"));
    super::copy_dir(&data_dir, &last);
    Worst {
        federation,
        data_dir,
        backup,
        last,
        before: first,
        after: second,
    }
}

fn restore(backup: &Path, data_dir: &Path, more: &[&str]) -> Done {
    store(&[&["restore", "--from", text(backup), "--data-dir", text(data_dir)], more].concat())
}

fn set(jobs: &[String]) -> BTreeSet<String> {
    jobs.iter().cloned().collect()
}

fn jobs_in(data_dir: &Path) -> BTreeSet<String> {
    let jobs = dump(data_dir, &["--records", "--kind", "job"]);
    jobs.iter().map(|line| line["value"]["id"].as_str().unwrap().to_owned()).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_damaged_directory_it_says_exactly_what_is_lost() {
    let mut worst = worst(6, 5).await;
    let truth = stat(&worst.last);
    // The head of the log file is gone: the storage engine cannot open it any more.
    let db = log(&worst.data_dir).join("store/db");
    spoil(&db, 0);
    spoil(&some_payload(&worst.data_dir), 0);
    assert_eq!(store(&["check", "--data-dir", text(&worst.data_dir)]).code, 65);

    let refused = restore(&worst.backup, &worst.data_dir, &[]);
    assert!(refused.code == 1 && refused.err.contains("--replace"), "{refused:?}");
    let before = files(&worst.data_dir);
    let planned = restore(&worst.backup, &worst.data_dir, &["--replace", "--dry-run", "-o", "json"]);
    assert_eq!(planned.code, 0, "{planned:?}");
    let mut after = files(&worst.data_dir);
    after.insert("LOCK".into(), before[Path::new("LOCK")].clone());
    assert!(before == after, "a dry run changes the directory");

    let loss: Value = serde_json::from_str(&planned.out).unwrap();
    let backed_up: Value = serde_json::from_slice(&fs::read(worst.backup.join("MANIFEST.json")).unwrap()).unwrap();
    assert_eq!(loss["backup_commit"], backed_up["head"]["batch"]);
    assert_eq!(loss["confirmed_commit"], truth["batch"]);
    assert_eq!(loss["events"][0], backed_up["head"]["next_seq"]);
    assert_eq!(loss["events"][1].as_u64().unwrap() + 1, truth["events"]["next"].as_u64().unwrap());
    assert_eq!(strings(&loss["jobs_came"]).into_iter().collect::<BTreeSet<_>>(), set(&worst.after));
    assert_eq!(strings(&loss["jobs_changed"]), Vec::<String>::new());
    assert_eq!(loss["complete"], true, "{loss}");

    let done = restore(&worst.backup, &worst.data_dir, &["--replace"]);
    assert_eq!(done.code, 0, "{done:?}");
    let (first, last) = (backed_up["head"]["batch"].as_u64().unwrap() + 1, &truth["batch"]);
    assert!(done.out.contains(&format!("lost: commits {first} to {last}\n")), "{}", done.out);
    for job in &worst.after {
        assert!(
            done.out.contains(&format!("job {job} came after the backup, will not be there")),
            "{}",
            done.out
        );
    }
    assert!(done.out.contains("these are all jobs"), "{}", done.out);
    assert!(
        worst.before.iter().all(|job| !done.out.contains(&format!("job {job} "))),
        "{}",
        done.out
    );

    let checked = store(&["check", "--data-dir", text(&worst.data_dir)]);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert_eq!(jobs_in(&worst.data_dir), set(&worst.before));
    assert!(
        stat(&worst.data_dir)["epoch"].as_u64() > truth["epoch"].as_u64(),
        "an epoch may be given twice"
    );
    let kept = worst.data_dir.join("damaged-log-1");
    assert!(done.err.contains(text(&kept)), "{}", done.err);
    assert_eq!(files(&kept)[Path::new("store/db")], before[Path::new("log-1/store/db")]);

    // The role goes on with it, and leaves the damaged log to the operator.
    worst.federation.parties[0].master.start().await;
    let client = worst.federation.client(0);
    for job in &worst.before {
        assert_eq!(client.ended(job).await["state"], "success");
    }
    for job in &worst.after {
        assert_eq!(client.get(&format!("/api/v1/jobs/{job}")).await.unwrap().0, 404);
    }
    let job = submit(&client, 77).await;
    assert_eq!(client.ended(&job).await["state"], "success");
    assert!(kept.is_dir() && !worst.data_dir.join("log-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_changed_after_the_backup_is_told_as_changed() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    // Nobody runs its task yet.
    let job = submit(&client, 1).await;
    client.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == "running").await;
    let backup = dir(&federation, "backup");
    store(&["backup", "--endpoint", &client.address(), "--to", text(&backup)]).good();
    federation.start_all().await;
    client.ended(&job).await;
    federation.parties[0].master.kill().await;
    let data_dir = dir(&federation, "p1-master");
    fs::write(log(&data_dir).join("store/conf"), "x").unwrap();
    let done = restore(&backup, &data_dir, &["--replace"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains(&format!("job {job} changed after the backup\n")), "{}", done.out);
    // It is taken up where the backup has it; the cluster manager knows its task.
    federation.parties[0].master.start().await;
    assert_eq!(client.ended(&job).await["state"], "success");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_traces_are_gone_it_says_that_there_may_be_more() {
    let worst = worst(3, 4).await;
    let loss = |data_dir: &Path| -> Value {
        let done = restore(&worst.backup, data_dir, &["--replace", "--dry-run", "-o", "json"]);
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.out).unwrap()
    };
    let why = |loss: &Value| loss["why_incomplete"].as_str().unwrap_or_default().to_owned();
    let trial = |name: &str, harm: &dyn Fn(&Path)| {
        let data_dir = worst.last.with_file_name(name);
        super::copy_dir(&worst.last, &data_dir);
        harm(&data_dir);
        loss(&data_dir)
    };
    let found = trial("no-log", &|dir| fs::remove_dir_all(log(dir).join("store")).unwrap());
    assert_eq!(found["confirmed_commit"], stat(&worst.last)["batch"]);
    assert!(why(&found).contains("nobody knows how many events"), "{found}");
    let found = trial("no-witness", &|dir| fs::remove_file(super::high_water(dir)).unwrap());
    assert!(why(&found).contains("high-water"), "{found}");
    assert_eq!(strings(&found["jobs_came"]).len(), worst.after.len());

    // One job's acceptance is wiped wherever it stands; all that is left of its first event is a hole in the numbers.
    let lost = &worst.after[1];
    let found = trial("hole", &|dir| {
        let mut places = 0;
        for file in ["store/db", "store/journal"].map(|file| log(dir).join(file)) {
            let mut bytes = fs::read(&file).unwrap();
            let at: Vec<usize> = (0..bytes.len() - lost.len())
                .filter(|at| bytes[*at..].starts_with(lost.as_bytes()))
                .collect();
            places += at.len();
            for at in at {
                bytes[at] ^= 0x20;
            }
            fs::write(&file, bytes).unwrap();
        }
        assert!(places > 0);
    });
    assert!(why(&found).contains("lost events were not found"), "{found}");
    assert!(!strings(&found["jobs_came"]).contains(lost), "{found}");
    assert_eq!(found["complete"], false);
    // A directory that has nothing newer than its backup loses nothing.
    let fresh = worst.last.with_file_name("fresh");
    restore(&worst.backup, &fresh, &[]).good();
    let found = loss(&fresh);
    assert_eq!(
        (found["complete"].as_bool(), strings(&found["jobs_came"]).len()),
        (Some(true), 0),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_place_is_refused() {
    let worst = worst(2, 0).await;
    let foreign = dir(&worst.federation, "foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "x").unwrap();
    let done = restore(&worst.backup, &foreign, &["--replace"]);
    assert!(done.code == 1 && done.err.contains("is not empty and has no FORMAT"), "{done:?}");
    let done = restore(&worst.backup, &dir(&worst.federation, "nobody's"), &["--replace"]);
    assert_eq!(done.code, 0, "{done:?}");
    let mut other = Federation::planned(1, &[], &[]);
    other.parties[0].master.start().await;
    other.parties[0].master.kill().await;
    let done = restore(&worst.backup, &dir(&other, "p1-master"), &["--replace"]);
    assert!(done.code == 1 && done.err.contains("restore into a new directory"), "{done:?}");
}

/// Into how many parts the time of one restore is cut.
const MOMENTS: u32 = 20;

/// Kill the restore after longer and longer parts of the time it takes: what is there is the old state or the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_the_old_or_the_new() {
    let worst = worst(8, 3).await;
    let (old, restored) = (dump(&worst.last, &["--events"]), dir(&worst.federation, "restored"));
    let began = Instant::now();
    restore(&worst.backup, &restored, &[]).good();
    let step = began.elapsed() / MOMENTS;
    let new = dump(&restored, &["--events"]);
    assert_ne!(old, new);
    let (mut olds, mut news) = (0, 0);
    let data_dir = dir(&worst.federation, "killed");
    let fresh = dir(&worst.federation, "killed-fresh");
    let mut wait = Duration::ZERO;
    loop {
        // What a killed restore has left half done stays for the next one.
        let _ = fs::remove_dir_all(&fresh);
        if !data_dir.exists() {
            super::copy_dir(&worst.last, &data_dir);
        }
        let mut ended = 0;
        for target in [&data_dir, &fresh] {
            let args = ["restore", "--from", text(&worst.backup), "--data-dir", text(target), "--replace"];
            let mut child = command(&args)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let until = Instant::now() + wait;
            while Instant::now() < until && child.try_wait().unwrap().is_none() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            ended += usize::from(child.try_wait().unwrap().is_some());
            let _ = child.kill();
            child.wait().unwrap();
        }
        let found = dump(&data_dir, &["--events"]);
        if found == old {
            olds += 1;
        } else {
            assert_eq!(found, new);
            news += 1;
            fs::remove_dir_all(&data_dir).unwrap();
        }
        if fresh.exists() {
            assert_eq!(dump(&fresh, &["--events"]), new);
        }
        if ended == 2 {
            break;
        }
        wait += step;
    }
    assert!(olds > 3 && news > 0, "old {olds}, new {news}");
    println!("old {olds}, new {news}, up to {wait:?}");
}
