//! `store check`: whole directories pass untouched, damaged ones are told with file, record and next step.

use super::{Done, dir, files, log, some_payload, spoil, stopped, store, text};
use crate::support::Federation;
use std::fs;
use std::path::{Path, PathBuf};

fn check(data_dir: &Path) -> Done {
    store(&["check", "--data-dir", text(data_dir)])
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_directories_of_all_roles_pass_and_are_left_as_they_are() {
    let (federation, jobs) = stopped(5).await;
    for (name, role) in [
        ("coordinator", "coordinator"),
        ("p1-manager", "cluster-manager"),
        ("p1-master", "master"),
    ] {
        let data_dir = dir(&federation, name);
        let mut before = files(&data_dir);
        let done = check(&data_dir);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.out.starts_with(&format!("whole: {role} at commit ")), "{}", done.out);
        assert_eq!(done.out.lines().count(), 1);
        let mut after = files(&data_dir);
        for found in [&mut before, &mut after] {
            found.remove(Path::new("LOCK"));
        }
        assert!(before == after, "{name} was changed");
    }
    let done = check(&dir(&federation, "p1-master"));
    assert!(done.out.contains(&format!("{} payload files", jobs.len())), "{}", done.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_directory_is_refused_by_every_offline_command() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.coordinator.start().await;
    let data_dir = dir(&federation, "coordinator");
    let (of, to) = (text(&data_dir), dir(&federation, "backup"));
    let backup = dir(&federation, "some-backup");
    for args in [
        &["check", "--data-dir", of][..],
        &["check", "--rebuild-high-water", "--data-dir", of],
        &["dump", "--data-dir", of],
        &["stat", "--data-dir", of],
        &["backup", "--data-dir", of, "--to", text(&to)],
        &["restore", "--from", text(&backup), "--data-dir", of, "--replace"],
        &["migrate", "--data-dir", of],
    ] {
        let done = store(args);
        assert_eq!(done.code, 75, "{args:?} {done:?}");
        let holder = format!(
            "is in use by process {} (coordinator), started ",
            federation.coordinator.pid().unwrap()
        );
        assert!(done.err.contains(&holder), "{args:?} {}", done.err);
        assert_eq!(done.out, "");
    }
    assert!(federation.coordinator.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_the_file_and_the_next_step_and_made_no_worse() {
    let (federation, _) = stopped(20).await;
    let data_dir = dir(&federation, "p1-master");
    let good = dir(&federation, "good");
    super::copy_dir(&data_dir, &good);
    let again = || {
        fs::remove_dir_all(&data_dir).unwrap();
        super::copy_dir(&good, &data_dir);
    };
    let damaged = |what: &[&str]| {
        let before = files(&log(&data_dir));
        let done = check(&data_dir);
        assert_eq!(done.code, 65, "{done:?}");
        for part in what {
            assert!(done.err.contains(part), "{part} is not in: {}", done.err);
        }
        assert!(!done.err.contains("store-copy"), "names the copy: {}", done.err);
        assert!(files(&log(&data_dir)) == before, "the damage was changed");
        assert_eq!(
            fs::read_dir(data_dir.join("work"))
                .unwrap()
                .filter(|e| { e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("store-copy") })
                .count(),
            0,
            "the copy is left"
        );
    };
    let restore = format!("next: fedbroker store restore --from BACKUP --data-dir {}", data_dir.display());

    let db = log(&data_dir).join("store/db");
    let all_of_db = fs::read(&db).unwrap();
    fs::write(&db, &all_of_db[..20]).unwrap();
    damaged(&[text(&db), &restore]);

    // All commits are in the journal still: with a log that ends before them nothing is lost.
    again();
    fs::write(&db, &all_of_db[..5000]).unwrap();
    assert_eq!(check(&data_dir).code, 0);
    again();
    let journal = log(&data_dir).join("store/journal");
    fs::remove_file(&journal).unwrap();
    damaged(&[text(&journal), "it is missing", &restore]);

    again();
    fs::remove_dir_all(log(&data_dir).join("store")).unwrap();
    damaged(&[text(&log(&data_dir).join("store")), &restore]);

    again();
    let payload = some_payload(&data_dir);
    spoil(&payload, 0);
    damaged(&[text(&payload), "refers to it", "record dj", &restore]);
    let done = check(&data_dir);
    assert!(done.out.starts_with("damaged: master at commit "), "{}", done.out);

    again();
    fs::remove_file(some_payload(&data_dir)).unwrap();
    damaged(&["is missing; record dj"]);

    again();
    let high_water = super::high_water(&data_dir);
    fs::remove_file(&high_water).unwrap();
    damaged(&[text(&high_water), "check --rebuild-high-water"]);
    let done = store(&["check", "--rebuild-high-water", "--data-dir", text(&data_dir)]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.err.contains("cannot be told any more"), "{}", done.err);
    assert_eq!(check(&data_dir).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_no_case_for_a_new_high_water_file_alone() {
    let (mut federation, _) = stopped(3).await;
    let data_dir = dir(&federation, "p1-master");
    let old = dir(&federation, "old");
    super::copy_dir(&data_dir, &old);
    for role in federation.roles() {
        role.start().await;
    }
    super::submit(&federation.client(0), 9).await;
    federation.parties[0].master.kill().await;
    fs::remove_dir_all(log(&data_dir).join("store")).unwrap();
    fs::rename(log(&old).join("store"), log(&data_dir).join("store")).unwrap();
    let done = check(&data_dir);
    assert_eq!(done.code, 65, "{done:?}");
    assert!(done.err.contains("was confirmed"), "{}", done.err);
    assert!(done.err.contains("store restore"), "{}", done.err);
}

#[test]
fn what_is_no_data_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    for path in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let done = check(&path);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.err.contains("is not a data directory"), "{}", done.err);
    }
    assert_eq!(files(dir.path()).into_keys().collect::<Vec<_>>(), [PathBuf::from("thesis.tex")]);
}
