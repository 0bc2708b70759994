//! `store backup` and `store verify-backup`: a master that goes on, a directory that stands still, and backups that are not whole.

use super::{dir, dump, files, some_payload, spoil, stat, stopped, store, submit, text};
use crate::support::Federation;
use fedbroker::engine::backup::Source;
use fedbroker::engine::backup::receive::Receiver;
use fedbroker::engine::backup::verify::verify;
use fedbroker::engine::reader::PAYLOAD;
use fedbroker::store::directory::Directory;
use fedbroker::store::payload::Payloads;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Commit, Store, codec};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn manifest(backup: &Path) -> Value {
    serde_json::from_slice(&fs::read(backup.join("MANIFEST.json")).unwrap()).unwrap()
}

fn back_up(endpoint: &str, to: &Path) -> super::Done {
    store(&["backup", "--endpoint", endpoint, "--to", text(to)])
}

/// Jobs come and end all the while; each backup holds what was acknowledged before it began and is exactly one state of the master.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_the_state_after_one_commit() {
    let federation = Federation::start(1).await;
    let (client, stop) = (federation.client(0), Arc::new(AtomicBool::new(false)));
    let mut load = tokio::task::JoinSet::new();
    for worker in 0..6 {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        load.spawn(async move {
            let mut jobs = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                jobs.push(submit(&client, worker * 100_000 + jobs.len()).await);
            }
            jobs
        });
    }
    let mut rounds = Vec::new();
    for round in 0..3 {
        let mut before = Vec::new();
        for n in 0..5 {
            before.push(submit(&client, 1_000_000 + round * 100 + n).await);
        }
        client.ended(&before[0]).await;
        let to = dir(&federation, &format!("backup-{round}"));
        let done = back_up(&client.address(), &to);
        assert_eq!(done.code, 0, "{done:?}");
        rounds.push((before, to));
    }
    stop.store(true, Ordering::SeqCst);
    load.join_all().await;
    let mut federation = federation;
    federation.parties[0].master.kill().await;
    let master = dir(&federation, "p1-master");
    let truth = dump(&master, &["--events"]);
    let mut moving = 0;
    for (before, backup) in rounds {
        assert_eq!(store(&["verify-backup", "--from", text(&backup)]).code, 0);
        let restored = backup.with_extension("restored");
        store(&["restore", "--from", text(&backup), "--data-dir", text(&restored)]).good();
        let whole = store(&["check", "--data-dir", text(&restored)]);
        assert_eq!(whole.code, 0, "{whole:?}");
        let manifest = manifest(&backup);
        assert_eq!(stat(&restored)["batch"], manifest["head"]["batch"]);
        // Records follow from events (check replays them), and the events are the master's own up to that commit.
        let events = dump(&restored, &["--events"]);
        assert_eq!(events.len() as u64 + 1, manifest["head"]["next_seq"].as_u64().unwrap());
        assert!(events[..] == truth[..events.len()], "other events than the master's");
        moving += usize::from(truth.len() > events.len());
        let kept: BTreeSet<String> = dump(&restored, &["--records", "--kind", "job"])
            .iter()
            .map(|line| line["value"]["id"].as_str().unwrap().to_owned())
            .collect();
        for job in before {
            assert!(kept.contains(&job), "{job} was acknowledged before the backup and is not in it");
        }
    }
    assert_eq!(moving, 3, "nothing happened after a backup began");
}

/// Lets a job's content go while the backup is at it: after the values were said, before the payload files are.
struct Releasing<'a> {
    receiver: &'a mut Receiver,
    release: Option<Box<dyn FnOnce() + 'a>>,
}

impl std::io::Write for Releasing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.receiver.feed(bytes).unwrap();
        if bytes[0] == b'V'
            && let Some(release) = self.release.take()
        {
            release();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_values_refer_to_is_in_the_backup_even_if_it_is_let_go_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(&root.path().join("data"), "master", [3; 16]).unwrap();
    let store = Arc::new(SledStore::open(&directory).unwrap());
    let payloads = Arc::new(Payloads::open(&directory.payload_dir(), 1 << 20).unwrap());
    let pinned = payloads.put(&[7; 3000]).unwrap();
    let payload = *pinned;
    let count = [&[PAYLOAD][..], &payload.hash].concat();
    let commit = |value: Option<Vec<u8>>| {
        let head = store.head();
        let changes = vec![(count.clone(), value)];
        let (epoch, expected) = (head.epoch, head.next_seq);
        let events = Vec::new();
        store
            .commit(&Commit {
                epoch,
                expected,
                events,
                changes,
                trim_to: None,
            })
            .unwrap()
    };
    let state = commit(Some(codec::encode(&(payload, 1u32))));
    payloads.settle(&[payload], &[]);
    drop(pinned);
    let to = root.path().join("backup");
    let mut receiver = Receiver::new(&to).unwrap();
    let release = || {
        commit(None);
        payloads.settle(&[], &[payload]);
    };
    let source = Source::new(&directory, Arc::clone(&store), Arc::clone(&payloads));
    let mut releasing = Releasing {
        receiver: &mut receiver,
        release: Some(Box::new(release)),
    };
    source.send(&mut releasing).unwrap();
    assert!(releasing.release.is_none());
    drop(releasing);
    let manifest = receiver.finish().unwrap();
    assert_eq!((manifest.head.batch, manifest.counts.payloads), (state.batch, 1));
    let verdict = verify(&to, &mut |_| {}).unwrap();
    assert!(verdict.damage.is_empty(), "{:?}", verdict.damage);
    assert!(payloads.pin(&payload).is_none(), "it is removed once the backup has ended");
}

#[test]
fn no_beginning_of_a_backup_is_taken_for_all_of_it() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(&root.path().join("data"), "master", [3; 16]).unwrap();
    let store = Arc::new(SledStore::open(&directory).unwrap());
    let payloads = Arc::new(Payloads::open(&directory.payload_dir(), 1 << 20).unwrap());
    let pinned = payloads.put(&[7; 3000]).unwrap();
    let head = store.head();
    let count = [&[PAYLOAD][..], &pinned.hash].concat();
    let commit = Commit {
        epoch: head.epoch,
        expected: head.next_seq,
        events: vec![b"event".to_vec()],
        changes: vec![(count, Some(codec::encode(&(*pinned, 1u32))))],
        trim_to: None,
    };
    store.commit(&commit).unwrap();
    let mut bytes = Vec::new();
    Source::new(&directory, store, payloads).send(&mut bytes).unwrap();
    let to = root.path().join("backup");
    let received = |bytes: &[u8]| {
        let mut receiver = Receiver::new(&to).unwrap();
        bytes.chunks(1000).try_for_each(|piece| receiver.feed(piece))?;
        receiver.finish()
    };
    // Also between two frames, where nothing is left over.
    let mut boundaries = vec![0];
    while let Some(at) = boundaries.last().copied().filter(|at| *at < bytes.len()) {
        let len = u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap());
        boundaries.push(at + 5 + len as usize + 4);
    }
    assert_eq!(boundaries.pop(), Some(bytes.len()));
    assert!(boundaries.len() > 4);
    for cut in (0..bytes.len()).step_by(13).chain(bytes.len() - 3..bytes.len()).chain(boundaries) {
        assert!(received(&bytes[..cut]).is_err(), "cut at {cut}");
        assert!(!to.exists() && !to.with_extension("new").exists());
    }
    assert!(received(&[&bytes[..], b"more"].concat()).is_err());
    received(&bytes).unwrap();
    assert!(verify(&to, &mut |_| {}).unwrap().damage.is_empty());
}

/// Jobs with 19 MB of content in all, no two the same.
async fn submit_large(client: &crate::support::Client) {
    for n in 0..24 {
        let request = json!({
            "job_type": "dummy",
            "job_config": { "worker_num": 0 },
            "algorithm_config": format!("{n:04}").repeat(200_000),
        });
        assert_eq!(client.post("/submit", &request).await.unwrap().0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_at_a_time_and_a_reader_that_goes_away_leaves_nothing_behind() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    // More than fits between the master and a reader that does not read: the backup stays under way. Distinct content cannot be shared.
    submit_large(&client).await;
    let url = format!("http://{}/api/v1/backup", client.address());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut slow = http.post(&url).send().await.unwrap();
    assert_eq!(slow.status(), 200);
    assert!(slow.chunk().await.unwrap().is_some());
    let refused = http.post(&url).send().await.unwrap();
    assert_eq!(refused.status(), 409);
    let to = dir(&federation, "backup");
    let done = back_up(&client.address(), &to);
    assert_eq!(done.code, 5, "{done:?}");
    assert!(done.err.contains("one backup at a time"), "{}", done.err);
    assert!(!to.exists() && !to.with_extension("new").exists());
    // The master goes on meanwhile.
    assert_eq!(client.get("/api/v1/status").await.unwrap().0, 200);
    submit(&client, 1).await;

    drop(slow);
    let deadline = std::time::Instant::now() + crate::support::DEADLINE;
    loop {
        let done = back_up(&client.address(), &to);
        if done.code == 0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{done:?}");
    }
    assert_eq!(manifest(&to)["counts"]["payloads"], 25);
    let done = back_up(&client.address(), &to);
    assert!(done.code == 1 && done.err.contains("is there already"), "{done:?}");
    assert_eq!(store(&["verify-backup", "--from", text(&to)]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_cut_off_leaves_nothing() {
    let mut federation = Federation::planned(1, &[], &[]);
    federation.parties[0].master.start().await;
    let client = federation.client(0);
    submit_large(&client).await;
    let (proxy, address) = cut_after(client.address(), 3_000_000).await;
    let to = dir(&federation, "backup");
    let done = back_up(&address, &to);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(!to.exists() && !to.with_extension("new").exists(), "{done:?}");
    drop(proxy);
}

/// Passes on so many bytes of an answer, then closes.
async fn cut_after(to: String, limit: u64) -> (tokio::task::JoinSet<()>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut proxy = tokio::task::JoinSet::new();
    proxy.spawn(async move {
        while let Ok((inner, _)) = listener.accept().await {
            let outer = tokio::net::TcpStream::connect(&to).await.unwrap();
            let (mut from_client, mut to_client) = inner.into_split();
            let (from_master, mut to_master) = outer.into_split();
            let mut some = tokio::io::AsyncReadExt::take(from_master, limit);
            tokio::select! {
                _ = tokio::io::copy(&mut some, &mut to_client) => {}
                never = async {
                    let _ = tokio::io::copy(&mut from_client, &mut to_master).await;
                    std::future::pending::<()>().await
                } => never,
            }
        }
    });
    (proxy, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_without_a_service_are_backed_up_when_they_stand_still() {
    let (federation, _) = stopped(3).await;
    for name in ["coordinator", "p1-manager", "p1-master"] {
        let (data_dir, to) = (dir(&federation, name), dir(&federation, &format!("{name}-backup")));
        let before = files(&super::log(&data_dir));
        store(&["backup", "--data-dir", text(&data_dir), "--to", text(&to)]).good();
        assert!(files(&super::log(&data_dir)) == before, "{name} was changed");
        assert_eq!(store(&["verify-backup", "--from", text(&to)]).code, 0);
        let restored = dir(&federation, &format!("{name}-restored"));
        fs::create_dir(&restored).unwrap();
        store(&["restore", "--from", text(&to), "--data-dir", text(&restored)]).good();
        assert_eq!(dump(&restored, &[]), dump(&data_dir, &[]), "{name}");
        let (was, is) = (stat(&data_dir), stat(&restored));
        for field in ["role", "owner", "instance", "batch", "events", "records", "payloads"] {
            assert_eq!(was[field], is[field], "{name}: {field}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_backup_names_each_file_that_is_not_whole() {
    let (federation, _) = stopped(6).await;
    let good = dir(&federation, "good");
    store(&["backup", "--data-dir", text(&dir(&federation, "p1-master")), "--to", text(&good)]).good();
    let trial = dir(&federation, "trial");
    let payload = some_payload(&good).strip_prefix(&good).unwrap().to_owned();
    let names = [Path::new("log"), Path::new("MANIFEST.json"), Path::new("MANIFEST.sha256"), &payload];
    let restored = dir(&federation, "restored");
    for name in names {
        type Harm = fn(&Path);
        let harms: [(&str, Harm); 4] = [
            ("flipped at the beginning", |path| spoil(path, 0)),
            ("flipped in the middle", |path| spoil(path, fs::metadata(path).unwrap().len() / 2)),
            ("cut", |path| {
                let bytes = fs::read(path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
            }),
            ("removed", |path| fs::remove_file(path).unwrap()),
        ];
        for (how, harm) in harms {
            let _ = fs::remove_dir_all(&trial);
            for (path, bytes) in files(&good) {
                fs::create_dir_all(trial.join(&path).parent().unwrap()).unwrap();
                fs::write(trial.join(path), bytes).unwrap();
            }
            harm(&trial.join(name));
            // A text file without its last newline is the same text.
            let harmless = name == Path::new("MANIFEST.sha256") && how != "removed" && how != "flipped at the beginning";
            let done = store(&["verify-backup", "--from", text(&trial)]);
            if harmless && done.code == 0 {
                continue;
            }
            let by_manifest = name.to_str().unwrap().starts_with("MANIFEST");
            assert!(
                done.code == 65 || (by_manifest && how == "removed" && done.code == 74),
                "{name:?} {how}: {done:?}"
            );
            let named = if by_manifest { "MANIFEST" } else { text(name) };
            assert!(done.err.contains(named), "{name:?} {how}: {}", done.err);
            let done = store(&["restore", "--from", text(&trial), "--data-dir", text(&restored)]);
            assert_ne!(done.code, 0, "{name:?} {how}");
            assert!(!restored.exists() && !restored.with_extension("restoring").exists());
        }
    }
    fs::write(good.join("notes.txt"), "x").unwrap();
    let done = store(&["verify-backup", "--from", text(&good)]);
    assert!(
        done.code == 0 && done.err.contains("notes.txt is in the directory and not in the manifest"),
        "{done:?}"
    );
}

/// Hashes alone are not enough: values that are not a whole commit are found even if somebody makes the hashes fit.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_a_missing_value_is_found_behind_good_hashes() {
    let (federation, _) = stopped(3).await;
    let backup = dir(&federation, "backup");
    store(&["backup", "--data-dir", text(&dir(&federation, "p1-master")), "--to", text(&backup)]).good();
    // The first frame: kind, length, then the first value, an event. Take that out and close the frame again.
    let log = fs::read(backup.join("log")).unwrap();
    let len = u32::from_le_bytes(log[1..5].try_into().unwrap()) as usize;
    let (body, rest) = (&log[5..5 + len], &log[5 + len + 4..]);
    let key_len = usize::from(u16::from_le_bytes(body[..2].try_into().unwrap()));
    let value_len = u32::from_le_bytes(body[2 + key_len..6 + key_len].try_into().unwrap()) as usize;
    let body = &body[6 + key_len + value_len..];
    let mut frame = [&log[..1], &(body.len() as u32).to_le_bytes(), body].concat();
    frame.extend(crc32fast::hash(&frame).to_le_bytes());
    frame.extend(rest);
    fs::write(backup.join("log"), &frame).unwrap();
    let hex = |bytes: &[u8]| -> String {
        <sha2::Sha256 as sha2::Digest>::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let mut manifest = manifest(&backup);
    let files = manifest["files"].as_array_mut().unwrap();
    let entry = files.iter_mut().find(|entry| entry["path"] == "log").unwrap();
    *entry = json!({ "path": "log", "len": frame.len(), "sha256": hex(&frame) });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    fs::write(backup.join("MANIFEST.json"), &manifest).unwrap();
    fs::write(backup.join("MANIFEST.sha256"), format!("{}  MANIFEST.json\n", hex(&manifest))).unwrap();
    let done = store(&["verify-backup", "--from", text(&backup)]);
    assert_eq!(done.code, 65, "{done:?}");
    assert!(done.err.contains("history values are there, not the"), "{}", done.err);
}
