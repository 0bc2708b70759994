//! `store migrate` on directories that release 0.1.0 made.

use super::{dump, files, stat, store, text};
use std::path::Path;

const DIRECTORIES: &[u8] = include_bytes!("../../compat/v1/directories.tar.gz");

#[test]
fn a_dry_run_says_what_would_be_done_and_the_run_does_it() {
    let root = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(DIRECTORIES))
        .unpack(root.path())
        .unwrap();
    for name in ["coordinator", "party1/master", "party1/cluster-manager"] {
        let data_dir = root.path().join(name);
        let tool = |command: &str, more: &[&str]| store(&[&[command, "--data-dir", text(&data_dir)], more].concat());
        let done = tool("check", &[]);
        assert!(done.code == 1 && done.err.contains("fedbroker store migrate"), "{done:?}");
        assert!(
            done.err.contains(text(&data_dir)) && !done.err.contains("store-copy"),
            "{}",
            done.err
        );

        let mut before = files(&data_dir);
        let planned = tool("migrate", &["--dry-run"]).good();
        let mut after = files(&data_dir);
        for found in [&mut before, &mut after] {
            found.remove(Path::new("LOCK"));
        }
        assert!(before == after, "a dry run changes {name}");
        assert!(planned.starts_with("format 1 to 3: "), "{planned}");
        assert!(planned.ends_with(" would be carried over\n"), "{planned}");

        let done = tool("migrate", &[]).good();
        assert_eq!(done, planned.replace("would be carried", "carried"));
        let checked = tool("check", &[]);
        assert_eq!(checked.code, 0, "{checked:?}");
        let batch = planned.split("at commit ").nth(1).unwrap().split(' ').next().unwrap();
        assert_eq!(stat(&data_dir)["batch"].to_string(), batch);
        assert!(!dump(&data_dir, &["--events"]).is_empty());
        assert!(tool("migrate", &[]).good().ends_with("nothing to do\n"));
    }
}

#[test]
fn a_damaged_directory_is_not_migrated() {
    let root = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(DIRECTORIES))
        .unpack(root.path())
        .unwrap();
    let data_dir = root.path().join("party1/master");
    let db = data_dir.join("store/db");
    std::fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(4096).unwrap();
    for more in [&["--dry-run"][..], &[]] {
        let done = store(&[&["migrate", "--data-dir", text(&data_dir)], more].concat());
        assert_eq!(done.code, 65, "{done:?}");
        assert!(done.err.contains(text(&db)), "{}", done.err);
        assert!(std::fs::read_to_string(data_dir.join("FORMAT")).unwrap().contains("format 1"));
    }
}
