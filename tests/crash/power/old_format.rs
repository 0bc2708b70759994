//! Directories as release 0.1.0 would have left them, with the batches of a workload in them.
//!
//! Called by `power`, to cut the power while they are brought up to date. Made from a directory of today: version 1 differs in its head
//! value, in the places of its files, and in `FORMAT`.

use super::model::Tree;
use super::replay::Progress;
use super::workload::{Opened, Workload};
use fedbroker::store::codec;
use std::fs;

const HEAD: &[u8] = b"h";
const INSTANCE: &str = "09090909090909090909090909090909";

/// A directory with so many batches in it.
pub fn version_1(workload: Workload, batches: u64) -> (Tree, Progress) {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut opened = Opened::open(&data).unwrap();
    for _ in 0..batches {
        opened.commit(workload, || {}).unwrap();
    }
    drop(opened);
    let log = data.join("log-1");
    rewrite_head(&log.join("store"));
    fs::rename(log.join("store"), data.join("store")).unwrap();
    fs::rename(data.join("high-water-1"), data.join("high-water")).unwrap();
    fs::remove_dir(log).unwrap();
    let text = format!("fedbroker data directory\nformat 1\nrole master\ninstance {INSTANCE}\n");
    let check = crc32fast::hash(text.as_bytes());
    fs::write(data.join("FORMAT"), format!("{text}check {check:08x}\n")).unwrap();
    let progress = Progress {
        confirmed: batches,
        begun: batches,
        ..Progress::default()
    };
    (Tree::read(root.path()), progress)
}

/// Epoch, batch, next sequence, count and sum instead of those of version 2.
fn rewrite_head(store: &std::path::Path) {
    let config = sled::Config::new().path(store).flush_every_ms(None).segment_size(8 << 20);
    let open = || config.open().ok();
    let db = std::iter::repeat_with(open)
        .flatten()
        .next()
        .expect("the lock of the engine is let go soon");
    let sealed = db.get(HEAD).unwrap().unwrap();
    let (commit, body) = codec::unseal(HEAD, &sealed).unwrap();
    type Version2 = (u64, u64, u64, u64, (u64, u64), (u64, u64));
    let (epoch, batch, _, next, live, history): Version2 = codec::decode(body).unwrap();
    let body = codec::encode(&(epoch, batch, next, live.0 + history.0, live.1.wrapping_add(history.1)));
    db.insert(HEAD, codec::seal(HEAD, commit, &body)).unwrap();
    db.flush().unwrap();
}
