//! A file system of its own that is filled while a master works on it: at each phase the answers are the promised ones, and when there is space
//! again nothing that was acknowledged is lost.
//!
//! Needs to mount a tmpfs: root, or `unshare -rm` where users may do that. Where neither is allowed the tests say so and pass.

use crate::support::{Client, DEADLINE, Role, free_ports};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MIB: u64 = 1024 * 1024;
/// What a start needs, and below which nothing new is taken; `fedbroker::store::space`.
const FLOOR: u64 = fedbroker::store::space::FULL;
/// Set in the process that `unshare` has started.
const UNSHARED: &str = "FEDBROKER_TEST_UNSHARED";
/// Set where the tools of these tests must be there (CI).
const REQUIRED: &str = "FEDBROKER_REQUIRE_TOOLS";

/// A mounted tmpfs with a data directory on it; the master's log is elsewhere. Unmounted when dropped.
struct Disk {
    mount: PathBuf,
    logs: PathBuf,
    /// Address of the master's cluster manager; nobody is there.
    manager: String,
    _root: tempfile::TempDir,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
    }
}

/// Why there is no disk to fill.
enum NoDisk {
    /// The test has run in a process of its own.
    RanElsewhere,
    Refused(String),
}

impl Disk {
    fn new(size: u64) -> Result<Self, String> {
        let root = tempfile::tempdir().unwrap();
        let (mount, logs) = (root.path().join("disk"), root.path().join("logs"));
        fs::create_dir(&mount).unwrap();
        fs::create_dir(&logs).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "fedbroker-test"], &mount)?;
        let manager = format!("127.0.0.1:{}", free_ports(1));
        Ok(Self {
            mount,
            logs,
            manager,
            _root: root,
        })
    }

    /// As large as it is given, but never smaller than what is on it.
    fn resize(&self, size: u64) {
        // What is written between the look and the call makes the call fail.
        let began = Instant::now();
        while run("mount", &["-o", &format!("remount,size={}", size.max(self.used()))], &self.mount).is_err() {
            assert!(began.elapsed() < DEADLINE, "the disk cannot be resized");
        }
    }

    fn stat(&self) -> rustix::fs::StatVfs {
        rustix::fs::statvfs(&self.mount).unwrap()
    }

    fn free(&self) -> u64 {
        let stat = self.stat();
        stat.f_bavail * stat.f_frsize
    }

    fn used(&self) -> u64 {
        let stat = self.stat();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Take all but so many bytes, until the file is removed.
    fn fill(&self, leave: u64) -> PathBuf {
        let path = self.mount.join("filler");
        let mut file = File::create(&path).unwrap();
        let zeros = vec![0; MIB as usize];
        while self.free() > leave {
            let length = (self.free() - leave).min(MIB) as usize;
            if file.write_all(&zeros[..length]).is_err() {
                break;
            }
        }
        path
    }

    fn master(&self) -> Role {
        let data = self.data().to_string_lossy().into_owned();
        let args = [
            "master",
            "--party-id=p1",
            "--submitter-port",
            "0",
            "--cluster-address",
            &self.manager,
            "--coordinator-address=127.0.0.1:1",
            "--data-dir",
            &data,
        ];
        let mut master = Role::new("p1-master", &self.logs, &args);
        master.reserve_port();
        master
    }

    /// Start the master where it must not start; its exit code and last line.
    async fn refused(&self) -> (Option<i32>, String) {
        let mut master = self.master();
        master.start_unready();
        let status = master.ended().await;
        (status.code(), master.log().lines().last().unwrap_or_default().to_owned())
    }
}

fn run(program: &str, args: &[&str], last: &Path) -> Result<(), String> {
    let output = Command::new(program).args(args).arg(last).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(text) }
}

/// A disk for the named test, or a line that says why it is skipped.
fn disk(test: &str, size: u64) -> Option<Disk> {
    let found = if rustix::process::getuid().is_root() {
        Disk::new(size).map_err(NoDisk::Refused)
    } else {
        Err(in_own_namespace(test))
    };
    match found {
        Ok(disk) => Some(disk),
        Err(NoDisk::RanElsewhere) => None,
        Err(NoDisk::Refused(why)) => {
            let tools = ["mount", "umount"]
                .iter()
                .all(|tool| Command::new(tool).arg("--version").output().is_ok());
            assert!(
                tools || std::env::var_os(REQUIRED).is_none(),
                "{REQUIRED} is set and there is no mount command"
            );
            eprintln!("SKIPPED {test}: no tmpfs can be mounted here ({why})");
            None
        }
    }
}

/// Run the test once more where its user is root.
fn in_own_namespace(test: &str) -> NoDisk {
    if std::env::var_os(UNSHARED).is_some() {
        return NoDisk::Refused("not root inside unshare either".to_owned());
    }
    if let Err(why) = run("unshare", &["-rm"], Path::new("true")) {
        return NoDisk::Refused(why);
    }
    let test = format!("full::{test}");
    let status = Command::new("unshare")
        .arg("-rm")
        .arg(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .env(UNSHARED, "1")
        .status();
    assert!(status.unwrap().success(), "{test} failed as root of its own namespace");
    NoDisk::RanElsewhere
}

/// Users of a master: they submit and ask until they are stopped, and hold every answer against what is promised.
struct Users {
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    refusals: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Users {
    /// `submitters` submit configs of about so many bytes each, one more asks for what was acknowledged.
    fn start(address: &str, submitters: usize, config_bytes: usize) -> Self {
        let mut users = Self {
            acknowledged: Arc::default(),
            refusals: Arc::default(),
            stop: Arc::default(),
            tasks: JoinSet::new(),
        };
        let client = Client::new(address);
        for user in 0..submitters {
            let (client, stop) = (client.clone(), users.stop.clone());
            let (acknowledged, refusals) = (users.acknowledged.clone(), users.refusals.clone());
            users.tasks.spawn(async move {
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match client.post("/submit", &job(user, n, config_bytes)).await {
                        Ok((200, body)) => drop(acknowledged.lock().unwrap().insert(body["job_id"].as_str().unwrap().to_owned())),
                        Ok((507 | 503, body)) => {
                            assert!(body["exception"].is_string(), "{body}");
                            refusals.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok((status, body)) => panic!("/submit answered {status}: {body}"),
                        // The process has ended.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            });
        }
        let (stop, acknowledged) = (users.stop.clone(), users.acknowledged.clone());
        users.tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let jobs: Vec<String> = acknowledged.lock().unwrap().iter().cloned().collect();
                for id in jobs.iter().rev().take(20).chain(jobs.iter().take(5)) {
                    if let Ok((status, body)) = client.post("/query", &json!({ "job_id": id })).await {
                        assert_eq!(status, 200, "/query of {id}, which is durable: {body}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        users
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn refused(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Wait until something is so; panics of the users come through.
    async fn until(&mut self, what: &str, mut fits: impl AsyncFnMut(&Self) -> bool) {
        let began = Instant::now();
        while !fits(self).await {
            assert!(self.tasks.try_join_next().is_none(), "a user had a wrong answer");
            assert!(began.elapsed() < DEADLINE, "never came: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

/// Without an end: each is a commit, and neither is a new job.
async fn hold_and_release(client: Client, jobs: Vec<String>) {
    loop {
        for action in ["hold", "release"] {
            for id in &jobs {
                let _ = client.post(&format!("/api/v1/jobs/{id}:{action}"), &json!({})).await;
            }
        }
    }
}

/// A job of its own that is short, or has a config of so many bytes.
fn job(user: usize, n: u64, config_bytes: usize) -> Value {
    if config_bytes == 0 {
        return json!({ "job_type": "dummy", "job_config": { "worker_num": 0 } });
    }
    let text = format!("{user}/{n} ").repeat(config_bytes / 4);
    let config = json!({
        "program": "p", "proposal_wait_time": 1, "worker_num": 1, "params": { "text": &text[..config_bytes] },
    });
    json!({ "job_type": "program", "job_config": config })
}

async fn readiness(client: &Client) -> (u16, Value) {
    client.get("/readyz").await.unwrap_or((0, Value::Null))
}

async fn all_there(client: &Client, jobs: &BTreeSet<String>) {
    for id in jobs {
        let (status, body) = client.post("/query", &json!({ "job_id": id })).await.unwrap();
        assert_eq!(status, 200, "{id} was acknowledged and is lost: {body}");
    }
}

/// No half snapshot, no file of an unfinished write.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_leftover = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(".tmp") || name.ends_with(".generating")
    };
    entries
        .flat_map(|path| if path.is_dir() { leftovers(&path) } else { vec![path] })
        .filter(is_leftover)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn open_a_start_without_space_is_refused_and_works_once_there_is_some() {
    let Some(disk) = disk("open_a_start_without_space_is_refused_and_works_once_there_is_some", 40 * MIB) else {
        return;
    };
    // Creation.
    let (code, last) = disk.refused().await;
    assert_eq!(code, Some(75), "{last}");
    assert!(
        last.contains(&disk.data().display().to_string()) && last.contains("are needed"),
        "{last}"
    );
    disk.resize(160 * MIB);
    let mut master = disk.master();
    master.start().await;
    let client = Client::new(&master.address);
    let job = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    master.kill().await;
    // The store again.
    for leave in [0, MIB, FLOOR - MIB] {
        let filler = disk.fill(leave);
        let (code, last) = disk.refused().await;
        assert_eq!(code, Some(75), "with {leave} bytes free: {last}");
        assert!(last.contains("are needed"), "{last}");
        fs::remove_file(filler).unwrap();
        assert_eq!(leftovers(&disk.data()), [] as [PathBuf; 0]);
    }
    master.start().await;
    all_there(&client, &BTreeSet::from([job])).await;
}

/// The disk fills up after the start has looked at it.
#[tokio::test(flavor = "multi_thread")]
async fn open_a_disk_that_fills_up_during_the_start_does_no_harm() {
    let Some(disk) = disk("open_a_disk_that_fills_up_during_the_start_does_no_harm", 160 * MIB) else {
        return;
    };
    let mut master = disk.master();
    master.start().await;
    let client = Client::new(&master.address);
    let mut jobs = BTreeSet::new();
    let mut codes = Vec::new();
    for round in 0..12 {
        jobs.insert(client.submit("dummy", &json!({ "worker_num": 0 })).await);
        master.kill().await;
        let mut starting = disk.master();
        starting.start_unready();
        // Somewhere in the life of a start, which takes some ten milliseconds; each round falls elsewhere.
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        disk.resize(0);
        let answers = tokio::time::timeout(Duration::from_millis(500), starting.ended()).await;
        if let Ok(status) = answers {
            codes.push(status.code());
            assert_eq!(status.code(), Some(75), "{}", starting.log());
        }
        drop(starting);
        disk.resize(160 * MIB);
        master.start().await;
        all_there(&client, &jobs).await;
    }
    assert!(!codes.is_empty(), "no start met the full disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_a_master_on_a_full_disk_answers_from_what_is_durable_and_loses_nothing() {
    let name = "commit_a_master_on_a_full_disk_answers_from_what_is_durable_and_loses_nothing";
    let Some(disk) = disk(name, 160 * MIB) else { return };
    let mut master = disk.master();
    master.start().await;
    let client = Client::new(&master.address);
    let mut users = Users::start(&master.address, 8, 400);
    users.until("some jobs are under way", async |users| users.count() > 800).await;
    disk.resize(0);
    let refused = users.refused();
    users
        .until("new jobs are refused", async |users| users.refused() > refused + 20)
        .await;
    // What goes on is work that was begun: here jobs that are held and released, again and again. It takes what was reserved for it, and then a commit
    // finds nothing. All of them in turn, since what is written over before the engine has it takes nothing.
    let jobs: Vec<String> = users.acknowledged.lock().unwrap().iter().cloned().collect();
    let mut toggling = JoinSet::new();
    for jobs in jobs.chunks(jobs.len().div_ceil(32)) {
        toggling.spawn(hold_and_release(client.clone(), jobs.to_vec()));
    }
    users
        .until("a commit has met the full disk", async |_| {
            readiness(&client).await.1["checks"]["store"]["ok"] == false
        })
        .await;
    toggling.shutdown().await;
    let (status, ready) = readiness(&client).await;
    assert_eq!(status, 503, "{ready}");
    assert!(
        ready["checks"]["store"]["reason"].as_str().unwrap().contains("disk full"),
        "{ready}"
    );
    assert_eq!(client.get("/livez").await.unwrap().0, 200);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http
        .post(format!("http://{}/submit", master.address))
        .json(&job(0, 0, 0))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 507);
    assert!(answer.headers().contains_key("retry-after"));
    let before = users.acknowledged.lock().unwrap().clone();
    all_there(&client, &before).await;
    for id in before.iter().take(50) {
        let (status, body) = client.get(&format!("/api/v1/jobs/{id}")).await.unwrap();
        assert_eq!((status, body["job_id"].as_str()), (200, Some(id.as_str())), "{body}");
    }
    assert!(master.runs(), "it ends only when there is space");
    // Space is back: it ends with its code, and says why.
    disk.resize(160 * MIB);
    let status = master.ended().await;
    assert_eq!(status.code(), Some(75), "{}", master.log());
    let log = master.log();
    assert!(log.contains("read only until there is space"), "{log}");
    assert!(
        log.lines()
            .last()
            .unwrap()
            .contains("the disk was full; a restart goes on from what is durable"),
        "{log}"
    );
    let acknowledged = users.end().await;
    assert_eq!(acknowledged, before, "something was acknowledged on a full disk");
    master.start().await;
    all_there(&client, &acknowledged).await;
    client.submit("dummy", &json!({ "worker_num": 0 })).await;
    eprintln!("{} jobs were acknowledged", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn level_below_the_floor_jobs_are_refused_and_taken_again_without_a_restart() {
    let name = "level_below_the_floor_jobs_are_refused_and_taken_again_without_a_restart";
    let Some(disk) = disk(name, 400 * MIB) else { return };
    let mut master = disk.master();
    master.start().await;
    let pid = master.pid();
    let client = Client::new(&master.address);
    let first = client.submit("dummy", &json!({ "worker_num": 0 })).await;
    assert_eq!(readiness(&client).await.0, 200);
    let filler = disk.fill(4 * FLOOR - MIB);
    let body = client.until("/readyz", |ready| ready["checks"]["disk"]["ok"] == false).await;
    assert_eq!(body["ready"], true, "low is a warning: {body}");
    client.submit("dummy", &json!({ "worker_num": 0 })).await;
    fs::remove_file(filler).unwrap();
    let filler = disk.fill(FLOOR - MIB);
    let body = client.until("/readyz", |ready| ready["ready"] == false).await;
    assert!(body["checks"]["disk"]["reason"].as_str().unwrap().starts_with("full: "), "{body}");
    for config_bytes in [0, 5000] {
        let (status, body) = client.post("/submit", &job(0, 0, config_bytes)).await.unwrap();
        assert_eq!(status, 507, "{body}");
        assert!(
            body["exception"].as_str().unwrap().contains("free") || body["exception"].as_str().unwrap().contains("space"),
            "{body}"
        );
    }
    all_there(&client, &BTreeSet::from([first])).await;
    let status = client.get("/api/v1/status").await.unwrap().1;
    assert_eq!(
        (&status["store"], &status["disk"]["level"]),
        (&json!("working"), &json!("full")),
        "{status}"
    );
    fs::remove_file(filler).unwrap();
    client.until("/readyz", |ready| ready["ready"] == true).await;
    client.submit("dummy", &json!({ "worker_num": 0 })).await;
    assert_eq!(master.pid(), pid);
    assert!(master.runs());
    let log = master.log();
    for (line, times) in [
        ("the disk is getting full", 1..=2),
        ("the disk is full: what is new is refused", 1..=1),
        ("there is space again, new work is taken", 0..=1),
        ("there is ample space again", 0..=2),
    ] {
        assert!(times.contains(&log.matches(line).count()), "{line}: {times:?}\n{log}");
    }
    master.signal(Signal::TERM);
    assert_eq!(master.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_contents_that_find_no_room_are_refused_and_leave_nothing() {
    // A start needs the floor and two segments; the rest is for contents.
    const SMALL: u64 = 112 * MIB;
    let name = "payload_contents_that_find_no_room_are_refused_and_leave_nothing";
    let Some(disk) = disk(name, SMALL) else { return };
    let mut master = disk.master();
    master.start().await;
    let client = Client::new(&master.address);
    let mut jobs = BTreeSet::new();
    // Up to the floor: the disk fills with the contents themselves.
    let mut users = Users::start(&master.address, 4, 700_000);
    users.until("the disk is full", async |users| users.refused() > 20).await;
    jobs.extend(users.end().await);
    assert!(disk.free() >= FLOOR - 8 * MIB, "the floor was not kept: {} bytes free", disk.free());
    assert!(jobs.len() > 10, "{}", jobs.len());
    assert!(master.runs(), "{}", master.log());
    assert_eq!(leftovers(&disk.data()), [] as [PathBuf; 0]);
    all_there(&client, &jobs).await;
    // And at once, in the middle of a write.
    let mut size = SMALL;
    for _ in 0..3 {
        size += 20 * MIB;
        disk.resize(size);
        if !master.runs() {
            assert_eq!(master.ended().await.code(), Some(75), "{}", master.log());
            master.start().await;
        }
        client.until("/readyz", |ready| ready["ready"] == true).await;
        let mut users = Users::start(&master.address, 4, 700_000);
        users.until("some jobs are taken", async |users| users.count() > 5).await;
        disk.resize(0);
        users.until("the disk is full", async |users| users.refused() > 20).await;
        jobs.extend(users.end().await);
        assert_eq!(leftovers(&disk.data()), [] as [PathBuf; 0]);
        all_there(&client, &jobs).await;
    }
    disk.resize(size + 80 * MIB);
    master.kill().await;
    // A start proves every content that records refer to.
    master.start().await;
    all_there(&client, &jobs).await;
}

/// `fedbroker store backup` of the master into this directory; its exit code and what it said.
async fn back_up(address: &str, to: &Path) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(crate::support::BINARY);
    command.args(["store", "backup", "--endpoint", address, "--to"]).arg(to);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_that_finds_no_space_ends_with_an_error_and_disturbs_nobody() {
    let name = "backup_that_finds_no_space_ends_with_an_error_and_disturbs_nobody";
    let Some(disk) = disk(name, 200 * MIB) else { return };
    let mut master = disk.master();
    master.start().await;
    let client = Client::new(&master.address);
    let mut users = Users::start(&master.address, 2, 700_000);
    users.until("some jobs are taken", async |users| users.count() > 8).await;
    let mut jobs = users.end().await;
    // To another file system, which is too small.
    let other = Disk::new(4 * MIB).unwrap();
    let to = other.mount.join("backup");
    let mut users = Users::start(&master.address, 2, 0);
    for _ in 0..2 {
        let (code, said) = back_up(&master.address, &to).await;
        assert!(
            code.is_some_and(|code| code != 0) && said.contains(&to.display().to_string()),
            "{code:?}: {said}"
        );
        assert!(!to.exists(), "a part of a backup has the name of a whole one");
    }
    let before = users.count();
    users.until("jobs are taken", async |users| users.count() > before).await;
    // To the master's own: what it takes away comes back.
    let to = disk.mount.join("backup");
    let filler = disk.fill(3 * MIB);
    let (code, said) = back_up(&master.address, &to).await;
    assert!(
        code.is_some_and(|code| code != 0) && said.contains(&to.display().to_string()),
        "{code:?}: {said}"
    );
    assert!(!to.exists());
    fs::remove_file(filler).unwrap();
    jobs.extend(users.end().await);
    client.until("/readyz", |ready| ready["ready"] == true).await;
    all_there(&client, &jobs).await;
    let (code, said) = back_up(&master.address, &to).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(to.join("MANIFEST.json").exists());
}
