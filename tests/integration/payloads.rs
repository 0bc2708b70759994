//! Payload files: durable names, counts and pins, damage.

use fedbroker::machine::content::PayloadRef;
use fedbroker::store::Error;
use fedbroker::store::payload::{Payloads, Pinned, Seeded};
use fedbroker::store::space::{FULL, Space};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

const MAX: u64 = 1024 * 1024;

fn open(dir: &Path) -> Payloads {
    Payloads::open(dir, MAX).unwrap()
}

fn file(dir: &Path, payload: &PayloadRef) -> PathBuf {
    dir.join(&payload.hex()[..2]).join(payload.hex())
}

/// All files below the payload directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

#[test]
fn content_comes_back_under_the_hash_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    let pinned = payloads.put(b"abc").unwrap();
    assert_eq!(pinned.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(pinned.len, 3);
    assert_eq!(files(dir.path()), [file(dir.path(), &pinned)]);
    assert_eq!(payloads.get(&pinned).unwrap(), b"abc");

    let mut writer = payloads.writer().unwrap();
    writer.write(b"a").unwrap();
    writer.write(b"").unwrap();
    writer.write(b"bc").unwrap();
    assert_eq!(*writer.finish().unwrap(), *pinned, "the same content is one file");
    assert_eq!(payloads.get(&payloads.put(b"").unwrap()).unwrap(), b"");
}

#[test]
fn the_limit_holds_and_an_unfinished_writer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = Payloads::open(dir.path(), 4).unwrap();
    payloads.put(b"1234").unwrap();
    assert!(matches!(payloads.put(b"12345"), Err(Error::TooLarge(_))));
    let mut writer = payloads.writer().unwrap();
    writer.write(b"123").unwrap();
    assert!(matches!(writer.write(b"45"), Err(Error::TooLarge(_))));
    assert!(matches!(writer.finish(), Err(Error::TooLarge(_))));
    let mut writer = payloads.writer().unwrap();
    writer.write(b"1").unwrap();
    drop(writer);
    assert_eq!(files(dir.path()).len(), 1);
}

#[test]
fn a_file_lives_while_records_or_pins_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    let there = |payload: &PayloadRef| file(dir.path(), payload).exists();

    let pinned = payloads.put(b"model").unwrap();
    let payload = *pinned;
    payloads.settle(&[payload, payload], &[]);
    drop(pinned);
    payloads.settle(&[], &[payload]);
    assert!(there(&payload), "one record is left");
    let reader = payloads.pin(&payload).unwrap();
    let second = reader.clone();
    payloads.settle(&[], &[payload]);
    drop(reader);
    payloads.settle(&[], &[]);
    assert!(there(&payload), "a pin is left");
    drop(second);
    payloads.settle(&[], &[]);
    assert!(!there(&payload));
    assert!(payloads.pin(&payload).is_none());

    let again = payloads.put(b"model").unwrap();
    assert_eq!(payloads.get(&again).unwrap(), b"model");
    drop(again);
    payloads.settle(&[payload], &[]);
    assert!(there(&payload), "a record counted in the same breath keeps it");
    payloads.settle(&[payload], &[payload]);
    assert!(there(&payload), "replaced by the same content");
}

#[test]
fn a_backup_finds_every_file_until_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    let there = |payload: &PayloadRef| file(dir.path(), payload).exists();
    let released = *payloads.put(b"released").unwrap();
    payloads.settle(&[released], &[]);
    let (first, second) = (payloads.freeze(), payloads.freeze());
    payloads.settle(&[], &[released]);
    let refused = *payloads.put(b"refused").unwrap();
    payloads.settle(&[], &[]);
    drop(first);
    assert!(there(&released) && there(&refused), "another backup is under way");
    assert_eq!(payloads.get(&released).unwrap(), b"released");
    let kept = *payloads.put(b"kept").unwrap();
    payloads.settle(&[kept], &[]);
    drop(second);
    assert!(!there(&released) && !there(&refused) && there(&kept));
    payloads.settle(&[], &[kept]);
    assert!(!there(&kept));
}

#[test]
fn a_refused_payload_is_removed_at_the_next_settle() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    drop(payloads.put(b"refused").unwrap());
    payloads.settle(&[], &[]);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_start_keeps_what_records_hold_and_removes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    let [held, unheld, lost, short] = [b"held", b"free", b"lost", b"shrt"].map(|content| *payloads.put(content).unwrap());
    drop(payloads);
    fs::write(dir.path().join(".tmpA1b2C3"), "half").unwrap();
    fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    fs::remove_file(file(dir.path(), &lost)).unwrap();
    fs::write(file(dir.path(), &short), "s").unwrap();

    let payloads = open(dir.path());
    let seeded = payloads.seed([held, held, lost, short]).unwrap();
    assert_eq!(
        seeded,
        Seeded {
            kept: 1,
            removed: 1,
            missing: vec![lost, short]
        }
    );
    assert!(!file(dir.path(), &unheld).exists());
    assert!(!dir.path().join(".tmpA1b2C3").exists());
    assert!(dir.path().join("notes.txt").exists());
    payloads.put(b"lost").unwrap();
    assert_eq!(payloads.get(&lost).unwrap(), b"lost", "bringing the content again mends it");
    payloads.settle(&[], &[held, short]);
    assert!(!file(dir.path(), &short).exists());
    assert_eq!(payloads.get(&held).unwrap(), b"held", "two records held it");
    payloads.settle(&[], &[held]);
    assert!(!file(dir.path(), &held).exists());
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    let pinned = payloads.put(&[7; 100_000]).unwrap();
    let path = file(dir.path(), &pinned);
    let damaged = || matches!(payloads.get(&pinned), Err(Error::Damaged { file, .. }) if file == path);
    let mut content = fs::read(&path).unwrap();
    content[50_000] ^= 1;
    fs::write(&path, &content).unwrap();
    assert!(damaged());
    let mut reader = payloads.reader(&pinned).unwrap();
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    fs::write(&path, &content[1..]).unwrap();
    assert!(damaged());
    fs::remove_file(&path).unwrap();
    assert!(damaged());
    payloads.put(&[7; 100_000]).unwrap();
    assert!(payloads.get(&pinned).is_ok(), "bringing the content again mends it");
}

#[test]
fn many_threads_with_the_same_content_share_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = open(dir.path());
    for _ in 0..20 {
        let pins: Vec<Pinned> = thread::scope(|scope| {
            let put = |content: u8| payloads.put(&[content]).unwrap();
            let threads: Vec<_> = (0..8u8).map(|i| scope.spawn(move || put(i / 4))).collect();
            // Removes the files of the round before while they are written again: what is pinned must stay.
            payloads.settle(&[], &[]);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (i, pin) in pins.iter().enumerate() {
            assert_eq!(payloads.get(pin).unwrap(), [i as u8 / 4]);
        }
        assert_eq!(files(dir.path()).len(), 2);
    }
    payloads.settle(&[], &[]);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn what_the_disk_has_no_room_for_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let space = Space::asking(dir.path(), || Ok(FULL + 1000));
    let payloads = Payloads::open_within(dir.path(), MAX, space).unwrap();
    let kept = payloads.put(&[1; 1000]).unwrap();
    assert!(payloads.put(&[2; 1001]).unwrap_err().is_full());
    let mut writer = payloads.writer().unwrap();
    writer.write(&[3; 1000]).unwrap();
    assert!(writer.write(&[3; 1001]).unwrap_err().is_full());
    drop(writer);
    assert_eq!(files(dir.path()), [file(dir.path(), &kept)]);
}
