//! Who gets a directory, who is refused, and what a crash at its making leaves.

use super::*;

const ID: [u8; 16] = *b"0123456789abcdef";

#[test]
fn a_new_directory_keeps_its_instance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let first = Directory::open(&path, "master", ID).unwrap();
    assert!(first.created());
    assert_eq!(first.instance(), ID);
    drop(first);
    let second = Directory::open(&path, "master", [7; 16]).unwrap();
    assert!(!second.created());
    assert_eq!(second.instance(), ID);
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Directory::open(dir.path(), "master", ID).unwrap();
    let hold = first.hold();
    drop(first);
    let Err(Error::Held { holder, .. }) = Directory::open(dir.path(), "master", ID) else {
        panic!("two holders")
    };
    assert!(
        holder.starts_with(&format!("process {} (master), started 2", std::process::id())),
        "{holder}"
    );
    drop(hold);
    Directory::open(dir.path(), "master", ID).unwrap();
}

#[test]
fn a_child_that_is_being_made_does_not_keep_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let first = Directory::open(dir.path(), "master", ID).unwrap();
    let copied_by_fork = first.lock.0.try_clone().unwrap();
    drop(first);
    Directory::open(dir.path(), "master", ID).unwrap();
    drop(copied_by_fork);
}

#[test]
fn a_directory_that_lost_its_format_is_not_taken_for_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    drop(Directory::open(dir.path(), "master", ID).unwrap());
    fs::create_dir_all(dir.path().join("log-1/store")).unwrap();
    fs::remove_file(dir.path().join("FORMAT")).unwrap();
    for refused in [Directory::open(dir.path(), "master", ID), Directory::inspect(dir.path())] {
        assert!(matches!(refused, Err(Error::Damaged { file, .. }) if file == dir.path().join("FORMAT")));
    }
}

#[test]
fn foreign_directories_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    assert!(matches!(
        Directory::open(dir.path(), "master", ID),
        Err(Error::WrongDirectory { .. })
    ));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_directory_belongs_to_its_first_owner() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Directory::open(dir.path(), "master", ID).unwrap();
    assert_eq!(open().owner(), None);
    open().claim("a\nb").unwrap();
    open().claim("a\nb").unwrap();
    let error = open().claim("c").unwrap_err().to_string();
    assert!(
        error.ends_with("belongs to a\\nb, not c; give each party its own directory"),
        "{error}"
    );
    assert_eq!(Directory::inspect(dir.path()).unwrap().owner().as_deref(), Some("a\\nb"));
}

#[test]
fn inspecting_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Directory::inspect(dir.path()), Err(Error::WrongDirectory { .. })));
    assert!(matches!(
        Directory::inspect(&dir.path().join("none")),
        Err(Error::WrongDirectory { .. })
    ));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_half_made_directory_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("LOCK"), "").unwrap();
    fs::write(dir.path().join("FORMAT.new"), "fedbro").unwrap();
    assert!(Directory::open(dir.path(), "master", ID).unwrap().created());
    assert!(!dir.path().join("FORMAT.new").exists());
}

#[test]
fn other_roles_formats_and_damage_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Directory::open(dir.path(), "master", ID).unwrap());
    let reopen = || Directory::open(dir.path(), "master", ID);
    assert!(matches!(
        Directory::open(dir.path(), "cluster", ID),
        Err(Error::WrongDirectory { .. })
    ));
    let format = dir.path().join("FORMAT");
    let good = fs::read_to_string(&format).unwrap();
    fs::write(
        &format,
        "fedbroker data directory\nformat 4\nneeds fedbroker 0.9.0\nanything else\n",
    )
    .unwrap();
    let error = reopen().unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 4, known: 3, .. }));
    assert!(error.to_string().ends_with("run fedbroker 0.9.0 or a newer one"), "{error}");
    fs::write(&format, &good[..good.len() / 2]).unwrap();
    assert!(matches!(reopen(), Err(Error::Damaged { file, .. }) if file == format));
    fs::write(&format, &good).unwrap();
    reopen().unwrap();
}
