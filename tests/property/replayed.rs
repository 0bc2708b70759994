//! `engine::replay` on what a history left: it agrees, and it sees every record that somebody changed behind the log's back.

use crate::harness::World;
use fedbroker::engine::reader::{ENDED, LIVE, PAYLOAD};
use fedbroker::engine::replay::{Comparison, LINGER, compare, count_payloads};
use fedbroker::machine::content::PayloadRef;
use fedbroker::store::codec;
use fedbroker::store::sim_store::SimDisk;
use fedbroker::store::{Commit, Store};

/// No burst of a history makes so many events; shorter than the histories, so that records are dropped on the way.
const SHORT: u64 = 40;

fn compared<W: World>(disk: &SimDisk, linger: u64) -> Comparison {
    let mut heard = 0;
    let found = compare(W::machine(), &disk.open().unwrap(), linger, &mut |seq| heard = seq).unwrap();
    assert_eq!(heard, found.events);
    found
}

/// Log and records agree, whether ended records linger or not, and everything stored was looked at.
pub fn agrees<W: World>(disk: &SimDisk) {
    let kinds: Vec<u8> = disk.durable_records().iter().map(|(key, _)| key[0]).collect();
    let count = |kind: u8| kinds.iter().filter(|found| **found == kind).count() as u64;
    let next_seq = disk.open().unwrap().head().next_seq;
    for linger in [LINGER, SHORT] {
        let found = compared::<W>(disk, linger);
        assert_eq!(found.differences.named, Vec::<String>::new());
        assert_eq!((found.events, found.trimmed), (next_seq - 1, None));
        assert_eq!((found.live, found.ended), (count(LIVE), count(ENDED)));
    }
    let (counts, differences) = count_payloads::<W::Machine>(&disk.open().unwrap()).unwrap();
    assert_eq!(differences.named, Vec::<String>::new());
    assert_eq!(counts.len() as u64, count(PAYLOAD));
}

/// Without the first events nothing can be replayed, and nothing is said about the records.
pub fn needs_all_events<W: World>(disk: &SimDisk) {
    let next_seq = disk.open().unwrap().head().next_seq;
    for first in [2, next_seq].into_iter().filter(|first| (2..=next_seq).contains(first)) {
        let store = disk.open().unwrap();
        let trim = Commit {
            epoch: store.head().epoch,
            expected: next_seq,
            trim_to: Some(first),
            ..Commit::default()
        };
        while store.commit(&trim).unwrap().first_seq < first {}
        let found = compare(W::machine(), &store, LINGER, &mut |_| {}).unwrap();
        assert_eq!((found.trimmed, found.differences.count), (Some(first), 0));
    }
}

/// Write a record without an event.
fn tamper(disk: &SimDisk, key: &[u8], value: Option<Vec<u8>>) {
    let store = disk.open().unwrap();
    let head = store.head();
    let changes = vec![(key.to_vec(), value)];
    let commit = Commit {
        epoch: head.epoch,
        expected: head.next_seq,
        events: Vec::new(),
        changes,
        trim_to: None,
    };
    store.commit(&commit).unwrap();
}

fn named<W: World>(disk: &SimDisk) -> Vec<String> {
    let mut named = compared::<W>(disk, SHORT).differences.named;
    named.extend(count_payloads::<W::Machine>(&disk.open().unwrap()).unwrap().1.named);
    named
}

/// A record that is gone, another one's, in the wrong place, or counted wrongly is named, and nothing else is.
pub fn finds<W: World>(disk: &SimDisk) {
    let records = disk.durable_records();
    for (at, (key, value)) in records.iter().enumerate() {
        let name = format!("record {}: ", key.escape_ascii());
        let expect = |spoiled: Option<Vec<u8>>| {
            tamper(disk, key, spoiled);
            let named = named::<W>(disk);
            tamper(disk, key, Some(value.clone()));
            assert!(named.iter().any(|line| line.starts_with(&name)), "{name}not found: {named:?}");
        };
        expect(None);
        if key[0] == PAYLOAD {
            let (payload, count): (PayloadRef, u32) = codec::decode(value).unwrap();
            expect(Some(codec::encode(&(payload, count + 1))));
        }
        let same_kind = |other: &&(Vec<u8>, Vec<u8>)| other.0[..2] == key[..2] && other.1 != *value;
        if key[0] != PAYLOAD
            && let Some((_, other)) = records[at + 1..].iter().find(same_kind)
        {
            expect(Some(other.clone()));
        }
        let mut moved = key.clone();
        moved[0] = if key[0] == LIVE { ENDED } else { LIVE };
        if key[0] != PAYLOAD && !records.iter().any(|(other, _)| *other == moved) {
            tamper(disk, &moved, Some(value.clone()));
            let named = named::<W>(disk);
            tamper(disk, &moved, None);
            assert!(
                named.iter().any(|line| line.contains("no event says so")),
                "{name}twice, not found: {named:?}"
            );
        }
    }
    agrees::<W>(disk);
}
