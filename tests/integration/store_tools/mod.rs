//! `fedbroker store`: the real binary on directories of real roles.

mod backup;
mod check;
mod look;
mod migrate;
mod restore;
mod trimmed;

use crate::support::{BINARY, Client, Federation};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    /// The lines of stdout as JSON.
    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// It went well; gives stdout.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .arg("store")
        .args(args)
        .env_remove("FEDBROKER_ENDPOINT")
        .stdin(Stdio::null());
    command
}

pub fn store(args: &[&str]) -> Done {
    let output = command(args).output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A job that ends at once, with content of its own that is kept in a payload file.
pub async fn submit(client: &Client, n: usize) -> String {
    let request = json!({
        "job_type": "dummy",
        "job_config": { "worker_num": 0 },
        "algorithm_config": format!("{n} ").repeat(700),
    });
    let (status, body) = client.post("/submit", &request).await.unwrap();
    assert_eq!(status, 200, "{body}");
    body["job_id"].as_str().unwrap().to_owned()
}

/// A federation of one party that has run some jobs and stands still; gives the jobs.
pub async fn stopped(jobs: usize) -> (Federation, Vec<String>) {
    let mut federation = Federation::start(1).await;
    let client = federation.client(0);
    let mut ids = Vec::new();
    for n in 0..jobs {
        ids.push(submit(&client, n).await);
    }
    for job in &ids {
        assert_eq!(client.ended(job).await["state"], "success");
    }
    for role in federation.roles() {
        role.kill().await;
    }
    (federation, ids)
}

pub fn dir(federation: &Federation, name: &str) -> PathBuf {
    federation.dir.path().join(name)
}

/// The directory of the log that counts.
pub fn log(data_dir: &Path) -> PathBuf {
    let format = fs::read_to_string(data_dir.join("FORMAT")).unwrap();
    let number = format.lines().find_map(|line| line.strip_prefix("log ")).unwrap();
    data_dir.join(format!("log-{number}"))
}

/// The witness of the log that counts.
pub fn high_water(data_dir: &Path) -> PathBuf {
    let log = log(data_dir).file_name().unwrap().to_str().unwrap().replace("log", "high-water");
    data_dir.join(log)
}

/// Every file below a directory with its content.
pub fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

pub fn copy_dir(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let target = to.join(path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
    // Empty directories matter to nobody but the engine.
    fs::create_dir_all(log(to).join("store/blobs")).unwrap();
}

/// Overwrite bytes of a file that mean something: the first at or after `from` that are not zero.
pub fn spoil(file: &Path, from: u64) {
    let bytes = fs::read(file).unwrap();
    let at = (from as usize..bytes.len()).find(|at| bytes[*at] != 0).unwrap();
    let opened = fs::OpenOptions::new().write(true).open(file).unwrap();
    opened.write_all_at(&[!bytes[at]], at as u64).unwrap();
}

/// A payload file of a data directory or a backup.
pub fn some_payload(dir: &Path) -> PathBuf {
    let found = files(&dir.join("payloads")).into_keys().next().unwrap();
    dir.join("payloads").join(found)
}

/// Records and events as `dump` has them.
pub fn dump(data_dir: &Path, more: &[&str]) -> Vec<Value> {
    let done = store(&[&["dump", "--data-dir", text(data_dir)], more].concat());
    assert_eq!(done.code, 0, "{done:?}");
    done.lines()
}

pub fn stat(data_dir: &Path) -> Value {
    serde_json::from_str(&store(&["stat", "--data-dir", text(data_dir), "-o", "json"]).good()).unwrap()
}
