//! Data directories of earlier releases: brought up to date at the first start, with everything in them, or left as they were.

use crate::support::{Client, Role};
use fedbroker::engine::reader::Reader;
use fedbroker::engine::replay::{LINGER, compare, count_payloads};
use fedbroker::machine::Machine;
use fedbroker::machine::cluster::{self, Cluster};
use fedbroker::machine::coordinator::{self, Coordinator};
use fedbroker::machine::ids::PartyId;
use fedbroker::machine::master::{self, Event, Key, Master, Record};
use fedbroker::migrations::m0003_master_0_1_0;
use fedbroker::store::codec;
use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::{SledStore, migrate};
use fedbroker::store::{Error, Store};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIRECTORIES: &[u8] = include_bytes!("v1/directories.tar.gz");
const JOBS: &str = include_str!("v1/jobs.json");
/// Where each role's directory is in the archive, and its role.
const ROLES: [(&str, &str); 3] = [
    ("coordinator", "coordinator"),
    ("party1/master", "master"),
    ("party1/cluster-manager", "cluster-manager"),
];

fn unpack(root: &Path) {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(DIRECTORIES));
    archive.unpack(root).unwrap();
}

/// Every file below a directory with its content, but for the text in `LOCK`.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("LOCK") {
                let content = fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

/// The master on the unpacked directory, alone: nobody it could call is there.
fn master(root: &Path) -> Role {
    let dir = root.join("party1/master");
    Role::new(
        "master",
        root,
        &[
            "master",
            "--party-id",
            "party1",
            "--submitter-port",
            "0",
            "--cluster-address",
            "127.0.0.1:1",
            "--coordinator-address",
            "127.0.0.1:1",
            "--data-dir",
            dir.to_str().unwrap(),
        ],
    )
}

async fn compare_jobs(client: &Client) {
    let expected: BTreeMap<String, Value> = serde_json::from_str(JOBS).unwrap();
    assert_eq!(expected.len(), 9);
    for (id, job) in expected {
        let (status, found) = client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        assert_eq!(status, 200, "{id}");
        for (field, value) in job.as_object().unwrap() {
            assert!(covers(&found[field], value), "{id}: {field} is {}, and was {value}", found[field]);
        }
    }
}

/// Whether a value is what it was; there may be more fields by now, and what has nothing to say is `null`, not empty and not 0.
fn covers(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => then.iter().all(|(name, value)| now.get(name).is_some_and(|now| covers(now, value))),
        (Value::Array(now), Value::Array(then)) => now.len() == then.len() && now.iter().zip(then).all(|(now, then)| covers(now, then)),
        (Value::Null, Value::String(text)) => text.is_empty(),
        (Value::Null, Value::Number(count)) => count.as_u64() == Some(0),
        (now, then) => now == then,
    }
}

#[tokio::test]
async fn a_master_of_0_1_0_is_brought_up_to_date_with_all_its_jobs() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    let mut master = master(root.path());
    for start in 0..2 {
        master.start().await;
        compare_jobs(&Client::new(&master.address)).await;
        master.kill().await;
        let migrated = master.log().matches("bringing the data directory to the current format").count();
        assert_eq!(migrated, 1, "after start {start}");
    }
    let dir = root.path().join("party1/master");
    let format = fs::read_to_string(dir.join("FORMAT")).unwrap();
    for line in ["format 3", "needs fedbroker 0.2.0", "owner party1", "log 1"] {
        assert!(format.lines().any(|found| found == line), "{format}");
    }
    assert!(!dir.join("store").exists() && !dir.join("high-water").exists());
}

#[test]
fn every_role_keeps_its_events_its_epoch_and_its_instance() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    for (dir, role) in ROLES {
        let dir = root.path().join(dir);
        let text = fs::read_to_string(dir.join("FORMAT")).unwrap();
        let directory = Directory::open(&dir, role, [0; 16]).unwrap();
        assert_eq!(directory.version(), 1);
        let plan = migrate::plan(&directory).unwrap();
        assert_eq!(directory.version(), 1, "a plan changes nothing");
        let store = SledStore::open(&directory).unwrap();
        let instance = format!("instance {:032x}", u128::from_be_bytes(directory.instance()));
        assert!(text.contains(&instance), "{role}: {text} {instance}");
        let head = store.head();
        assert_eq!((head.epoch, head.batch), (2, plan.batch + 1), "{role}");
        let events = store.events(1, usize::MAX).unwrap();
        assert_eq!(events.len() as u64, head.next_seq - 1, "{role}");
        let records = store.scan(b"", None, usize::MAX).unwrap();
        assert_eq!((events.len() + records.len()) as u64, plan.values, "{role}");
        assert!(store.history().done && plan.values > 10, "{role}: {plan:?}");
        let rules = coordinator::Rules {
            party_lease_ms: 0,
            keep_closed_ms: 0,
            settle_ms: 0,
        };
        match role {
            "master" => check_stories(store),
            "coordinator" => agrees(Coordinator::new(rules), &store),
            _ => agrees(Cluster::new(cluster::Rules::default()), &store),
        }
    }
}

/// The events make the records, and follow each other as they should.
fn agrees<M: Machine>(machine: M, store: &SledStore) {
    let found = compare(machine, store, LINGER, &mut |_| {}).unwrap();
    assert_eq!(found.differences.named, Vec::<String>::new(), "{}", M::ROLE);
    assert!(found.trimmed.is_none() && found.events > 5, "{}: {found:?}", M::ROLE);
    let (_, differences) = count_payloads::<M>(store).unwrap();
    assert_eq!(differences.named, Vec::<String>::new(), "{}", M::ROLE);
}

/// The story of each record of the master can be read from its end to its beginning.
fn check_stories(store: SledStore) {
    let rules = master::Rules {
        party: PartyId::parse("party1").unwrap(),
        accept: Default::default(),
        propose_again: false,
        submit_tries: 1,
    };
    agrees(Master::new(rules), &store);
    let reader = Reader::<Master>::new(Arc::new(store));
    let mut stories = Vec::new();
    let each = |key, record| {
        match record {
            Record::Job(job) => stories.push((key, job.last_event)),
            Record::Task(task) => stories.push((key, task.last_event)),
            Record::Participation(participation) => stories.push((key, participation.last_event)),
            _ => {}
        }
        true
    };
    reader.scan(b"", each).unwrap();
    let mut lengths = BTreeMap::<&str, usize>::new();
    for (key, last) in stories {
        let story = reader.thread([last], usize::MAX).unwrap();
        assert!(story[0].0 == last && story.is_sorted_by(|a, b| a.0 > b.0), "{key:?}: {story:?}");
        let (kind, begins) = match (&key, &story.last().unwrap().1) {
            (Key::Job(job), Event::JobAccepted { id, .. }) => ("job", job == id),
            (Key::Task(key), Event::TaskHeld { key: held, .. }) => ("task", key == held),
            (Key::Task(key), Event::ProposalOffered { proposal, .. }) => ("won", proposal.as_str().starts_with(key.job.as_str())),
            (Key::Participation(id), Event::ProposalOffered { proposal, .. }) => ("proposal", id == proposal),
            other => panic!("{other:?}"),
        };
        assert!(begins, "{key:?}: {story:?}");
        *lengths.entry(kind).or_default() += story.len();
    }
    let kinds: Vec<&str> = lengths.keys().copied().collect();
    assert_eq!(kinds, ["job", "proposal", "task", "won"]);
    assert!(lengths["job"] > 9 * 4 - 5, "{lengths:?}");
}

#[test]
fn the_frozen_types_of_0_1_0_read_and_write_its_bytes() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    let config = sled::Config::new()
        .path(root.path().join("party1/master/store"))
        .segment_size(8 << 20);
    let log = config.open().unwrap();
    let (mut events, mut records) = (0, 0);
    for value in log.iter() {
        let (key, sealed) = value.unwrap();
        let (_, body) = codec::unseal(&key, &sealed).unwrap();
        let again = match key[..] {
            [b'e', ..] => {
                events += 1;
                let event: m0003_master_0_1_0::Event = codec::decode(body).unwrap_or_else(|error| panic!("{key:?}: {error}"));
                codec::encode(&event)
            }
            [b'r', b'l' | b'd', ..] => {
                records += 1;
                let record: m0003_master_0_1_0::Record = codec::decode(body).unwrap_or_else(|error| panic!("{key:?}: {error}"));
                codec::encode(&record)
            }
            // The head, and the counts of payload files, are not the master's.
            _ => continue,
        };
        assert_eq!(again, body, "{key:?}");
    }
    assert!(events > 50 && records > 9, "{events} events, {records} records");
}

#[test]
fn a_damaged_directory_of_an_old_version_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    let dir = root.path().join("party1/master");
    let log = fs::OpenOptions::new().read(true).write(true).open(dir.join("store/db")).unwrap();
    // Not a word the engine looks at: the middle of a stored value, found by the words in it.
    let content = fs::read(dir.join("store/db")).unwrap();
    let at = content.windows(13).rposition(|bytes| bytes == b"asked to fail").unwrap() as u64;
    log.write_all_at(b"A", at).unwrap();
    let before = files(&dir);
    for _ in 0..2 {
        let directory = Directory::open(&dir, "master", [0; 16]).unwrap();
        let refused = SledStore::open(&directory).map(|store| store.head());
        assert!(matches!(refused, Err(Error::Damaged { .. } | Error::Io { .. })), "{refused:?}");
        assert_eq!(directory.version(), 1);
    }
    let (left, text) = (files(&dir), dir.join("FORMAT"));
    assert_eq!(left[&text], before[&text]);
    assert_eq!(left[&dir.join("high-water")], before[&dir.join("high-water")]);
}

#[test]
fn a_directory_left_before_its_first_store_gets_one() {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    let dir = root.path().join("coordinator");
    fs::remove_dir_all(dir.join("store")).unwrap();
    let directory = Directory::open(&dir, "coordinator", [0; 16]).unwrap();
    // The file outside tells of commits: this is a loss.
    assert!(SledStore::open(&directory).is_err());
    fs::remove_file(dir.join("high-water")).unwrap();
    assert_eq!(SledStore::open(&directory).unwrap().head().epoch, 1);
    assert_eq!(directory.version(), 3);
}
