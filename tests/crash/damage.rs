//! Damage the files of a data directory in every way a medium does: the role must go on with nothing amiss, or refuse to start and name the
//! file. A wrong or a missing answer is neither.
//!
//! `FEDBROKER_DAMAGE_TRIALS` and `FEDBROKER_DAMAGE_SEED` make a soak of it, or a failure happen again.

use crate::support::Federation;
use fedbroker::engine::open::open;
use fedbroker::machine::Machine;
use fedbroker::machine::content::PayloadRef;
use fedbroker::machine::ids::PartyId;
use fedbroker::machine::master::{Master, Rules, rule::ProposalAcceptRule};
use fedbroker::metrics::Metrics;
use fedbroker::store::{Error, Seq};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Trials without an order for more.
const TRIALS: u64 = 500;
const JOBS: usize = 150;
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Everything a master can answer from its directory.
#[derive(PartialEq)]
struct Answers {
    records: BTreeMap<Vec<u8>, String>,
    events: Vec<(Seq, String)>,
    payloads: BTreeMap<[u8; 32], Vec<u8>>,
}

/// Open the directory as a start does, and ask for everything.
fn answers(dir: &Path) -> Result<Answers, Error> {
    let rules = Rules {
        party: PartyId::parse("p1").unwrap(),
        accept: ProposalAcceptRule::default(),
        propose_again: false,
        submit_tries: 1,
    };
    let opened = open(dir, "master", Some("p1"), Master::new(rules), 1 << 30, &Metrics::new())?;
    let reader = opened.engine.handle().reader().clone();
    assert!(reader.history().done, "the store is too large to be proved at once");
    let mut records = BTreeMap::new();
    let mut refs: BTreeSet<([u8; 32], u64)> = BTreeSet::new();
    reader.scan(b"", |key, record| {
        refs.extend(Master::payloads(&record).iter().map(|payload| (payload.hash, payload.len)));
        records.insert(Master::key_bytes(&key), format!("{record:?}"));
        true
    })?;
    let events = reader.events(1, usize::MAX)?;
    let mut payloads = BTreeMap::new();
    for (hash, len) in refs {
        payloads.insert(hash, opened.payloads.get(&PayloadRef { hash, len })?);
    }
    Ok(Answers {
        records,
        events: events.into_iter().map(|(seq, event)| (seq, format!("{event:?}"))).collect(),
        payloads,
    })
}

/// The directory of a master that was killed with jobs of every kind in it: some hundred ended, some live, most with payload files.
async fn make(dir: &Path) {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let algorithm = format!("algorithm {n} ").repeat(1 + n % 90 * 5);
        let config = json!({ "worker_num": 0, "fail": n % 7 == 0 });
        let body = json!({ "job_type": "dummy", "job_config": config, "algorithm_config": algorithm });
        let (status, answer) = client.post("/submit", &body).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        jobs.push(answer["job_id"].as_str().unwrap().to_owned());
    }
    for job in &jobs {
        client.ended(job).await;
    }
    for n in 0..8 {
        let config = json!({ "worker_num": 0, "sleep_ms": 3_000_000 });
        let body = json!({ "job_type": "dummy", "job_config": config, "algorithm_config": format!("live {n} ").repeat(300) });
        let (_, answer) = client.post("/submit", &body).await.unwrap();
        let path = format!("/api/v1/jobs/{}", answer["job_id"].as_str().unwrap());
        client.until(&path, |job| job["state"] == "running").await;
    }
    for role in federation.roles() {
        role.kill().await;
    }
    copy(&federation.dir.path().join("p1-master"), dir);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// The files below a directory, relative, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.retain(|path| !path.starts_with("work"));
    found.sort();
    found
}

/// Where the zeros at the end of a file begin.
fn written(file: &Path) -> u64 {
    let content = fs::read(file).unwrap();
    content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

/// A place in a file, most of the time among what was written: the log is mostly zeros.
fn place(random: &mut StdRng, (written, len): (u64, u64), aligned: u64) -> u64 {
    let end = if random.random_bool(0.9) { written } else { len };
    random.random_range(0..end.max(1)) / aligned * aligned
}

/// Damage one file, of which so many bytes are not zeros; says how.
fn damage(random: &mut StdRng, file: &Path, written: u64) -> String {
    let open = || OpenOptions::new().read(true).write(true).open(file).unwrap();
    let len = fs::metadata(file).unwrap().len();
    let span = (written, len);
    match random.random_range(0..12) {
        kind @ 0..6 => {
            let bits = if kind == 5 { 16 } else { 1 };
            let mut at = Vec::new();
            for _ in 0..bits {
                let (byte, bit) = (place(random, span, 1), random.random_range(0..8));
                let mut old = [0];
                if open().read_at(&mut old, byte).unwrap() == 1 {
                    open().write_all_at(&[old[0] ^ (1 << bit)], byte).unwrap();
                }
                at.push(byte);
            }
            format!("bits flipped at {at:?}")
        }
        kind @ 6..10 => {
            let size = if kind < 8 { SECTOR } else { PAGE };
            let at = place(random, span, size);
            let zeros = vec![0; usize::try_from(size.min(len.saturating_sub(at))).unwrap()];
            open().write_all_at(&zeros, at).unwrap();
            format!("{size} bytes zeroed at {at}")
        }
        10 => {
            let to = if random.random_bool(0.2) { 0 } else { place(random, span, 1) };
            open().set_len(to).unwrap();
            format!("truncated to {to}")
        }
        _ => {
            fs::remove_file(file).unwrap();
            "removed".to_owned()
        }
    }
}

/// Whether an error leads the operator to the file. What is missing without a trace is named by the directory it should be in.
fn names(error: &Error, dir: &Path, file: &Path) -> bool {
    let text = error.to_string();
    let is_index = file.file_name().unwrap().to_string_lossy().starts_with("snap.");
    text.contains(&dir.join(file).display().to_string())
        || (is_index && text.contains("snap.*") && text.contains(&dir.join(file).parent().unwrap().display().to_string()))
        || (file == Path::new("FORMAT") && text.contains("FORMAT") || text.contains("stored-format version"))
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_harmless_or_refused_with_the_file_named() {
    let seed = setting("FEDBROKER_DAMAGE_SEED").unwrap_or_else(rand::random);
    let trials = setting("FEDBROKER_DAMAGE_TRIALS").unwrap_or(TRIALS);
    println!("damage: FEDBROKER_DAMAGE_SEED={seed} FEDBROKER_DAMAGE_TRIALS={trials}");
    // In memory where that is possible: every trial copies and syncs a whole directory.
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let good = root.path().join("good");
    make(&good).await;
    let counts = fedbroker::supervisor::Supervisor::blocking(move || run(seed, trials, root.path(), &good))
        .await
        .unwrap();
    println!("damage: {trials} trials: {counts:?}, 0 wrong answers");
    assert!(counts.values().sum::<u64>() == trials);
    assert!(
        trials < 100 || counts.keys().filter(|what| what.starts_with("refused")).count() > 2,
        "{counts:?}"
    );
}

/// Count the ends of all trials.
fn run(seed: u64, trials: u64, root: &Path, good: &Path) -> BTreeMap<String, u64> {
    // Opened once on a copy, so that a trial's open finds what every open leaves.
    let truth_dir = root.join("truth");
    copy(good, &truth_dir);
    let truth = answers(&truth_dir).unwrap();
    assert!(truth.records.len() > JOBS && truth.payloads.len() > JOBS / 2);
    let all: BTreeMap<PathBuf, u64> = files(good)
        .into_iter()
        .map(|file| (file.clone(), written(&good.join(&file))))
        .collect();
    let mut counts = BTreeMap::new();
    for trial in 0..trials {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(trial));
        let dir = root.join(format!("trial-{trial}"));
        copy(good, &dir);
        // The log gets half of the trials, the payload files a quarter, everything else the rest.
        let is_log = |path: &PathBuf| path.ends_with("store/db");
        let is_payload = |path: &PathBuf| path.starts_with("payloads");
        let others = |path: &PathBuf| !is_log(path) && !is_payload(path);
        let of = |wanted: &dyn Fn(&PathBuf) -> bool| all.iter().filter(|(path, _)| wanted(path)).collect::<Vec<_>>();
        let candidates = match random.random_range(0..4) {
            0 | 1 => of(&is_log),
            2 => of(&is_payload),
            _ => of(&others),
        };
        let (file, written) = *candidates.choose(&mut random).unwrap();
        let how = damage(&mut random, &dir.join(file), *written);
        let end = match answers(&dir) {
            Ok(found) if found == truth => "harmless".to_owned(),
            Ok(_) => panic!("trial {trial} (seed {seed}): {} {how}: a wrong or a missing answer", file.display()),
            Err(error) => {
                assert!(
                    names(&error, &dir, file),
                    "trial {trial} (seed {seed}): {} {how}: refused with {error}",
                    file.display()
                );
                let group = if is_payload(file) {
                    "payloads".into()
                } else {
                    file.display().to_string()
                };
                format!("refused, {group}")
            }
        };
        *counts.entry(end).or_default() += 1;
        fs::remove_dir_all(&dir).unwrap();
    }
    counts
}
