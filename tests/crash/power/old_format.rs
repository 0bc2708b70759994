//! Directories as release 0.1.0 would have left them, with the batches of a workload in them.
//!
//! Called by `power`, to cut the power while they are brought up to date. Made from a directory of today: version 1 differs in its head
//! value, in its events, which do not say what they follow and have a value each, in the places of its files, and in `FORMAT`.

use super::model::Tree;
use super::replay::Progress;
use super::workload::{Opened, ROLE, Workload};
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
    // A start gives the engine all of it.
    drop(Opened::open(&data).unwrap());
    let log = data.join("log-1");
    let high_water = rewrite(&log.join("store"));
    fs::rename(log.join("store"), data.join("store")).unwrap();
    fs::remove_file(data.join("high-water-1")).unwrap();
    fs::write(data.join("high-water"), high_water).unwrap();
    fs::remove_dir(log).unwrap();
    let text = format!("fedbroker data directory\nformat 1\nrole {ROLE}\ninstance {INSTANCE}\n");
    let check = crc32fast::hash(text.as_bytes());
    fs::write(data.join("FORMAT"), format!("{text}check {check:08x}\n")).unwrap();
    let progress = Progress {
        confirmed: batches,
        begun: batches,
        ..Progress::default()
    };
    (Tree::read(root.path()), progress)
}

/// Events without their first byte; in the head epoch, batch, next sequence, count and sum instead of those of today. Gives the
/// high-water file that belongs to it.
fn rewrite(store: &std::path::Path) -> Vec<u8> {
    let config = sled::Config::new().path(store).flush_every_ms(None).segment_size(8 << 20);
    let open = || config.open().ok();
    let db = std::iter::repeat_with(open)
        .flatten()
        .next()
        .expect("the lock of the engine is let go soon");
    // Today neighbours share a value of the engine.
    for (fence, group) in db.iter().map(Result::unwrap).collect::<Vec<_>>() {
        let pairs = pairs(&fence, &group);
        db.remove(&fence).unwrap();
        for (key, sealed) in pairs {
            if key[0] != b'e' {
                db.insert(key, sealed).unwrap();
                continue;
            }
            let (commit, mut left) = codec::unseal(&key, &sealed).unwrap();
            let mut events = Vec::new();
            while let Some((len, rest)) = left.split_first_chunk::<2>() {
                let (event, rest) = rest.split_at(u16::from_le_bytes(*len).into());
                assert_eq!(event[0], 0);
                events.push(&event[1..]);
                left = rest;
            }
            let last = u64::from_be_bytes(key[1..].try_into().unwrap());
            for (seq, event) in (last + 1 - events.len() as u64..).zip(events) {
                let key = [b"e", &seq.to_be_bytes()[..]].concat();
                db.insert(&key, codec::seal(&key, commit, event)).unwrap();
            }
        }
    }
    let values = db.iter().map(|value| value.unwrap()).filter(|(key, _)| key != HEAD);
    let sums: Vec<u64> = values.map(|(key, sealed)| codec::fingerprint(&key, &sealed)).collect();
    let sum = sums.iter().fold(0_u64, |sum, one| sum.wrapping_add(*one));
    let sealed = db.get(HEAD).unwrap().unwrap();
    let (commit, body) = codec::unseal(HEAD, &sealed).unwrap();
    type Today = (u64, u64, u64, u64, (u64, u64), (u64, u64));
    let (epoch, batch, _, next, ..): Today = codec::decode(body).unwrap();
    let body = codec::encode(&(epoch, batch, next, sums.len() as u64, sum));
    db.insert(HEAD, codec::seal(HEAD, commit, &body)).unwrap();
    db.flush().unwrap();
    let mut high_water = vec![0; 8192];
    let slot = codec::seal(b"high-water", batch, &sum.to_le_bytes());
    let at = (batch % 2) as usize * 4096;
    high_water[at..at + slot.len()].copy_from_slice(&slot);
    high_water
}

/// What is stored under a fence: the value of that key, or 2 and for each key what it has in common with the one before, the lengths of the rest and
/// of the value, and both.
fn pairs(fence: &[u8], group: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Some((2, mut left)) = group.split_first() else {
        return vec![(fence.to_vec(), group.to_vec())];
    };
    let (mut pairs, mut key) = (Vec::new(), Vec::new());
    while let Some((frame, rest)) = left.split_first_chunk::<6>() {
        let [common, more, len] = [0, 2, 4].map(|n| usize::from(u16::from_le_bytes([frame[n], frame[n + 1]])));
        key.truncate(common);
        key.extend_from_slice(&rest[..more]);
        let (value, rest) = rest[more..].split_at(len);
        pairs.push((key.clone(), value.to_vec()));
        left = rest;
    }
    pairs
}
