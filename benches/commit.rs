//! One commit of the store, by the number of records in it.
//!
//! Serves the decision how many commands one batch takes (`engine/commit.rs`): what the barrier costs however small the batch is, and what each further
//! record adds. Works in the directory of the build, on the disk it is on; `fedbroker bench queue` shows what it comes to.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedbroker::store::directory::Directory;
use fedbroker::store::sled_store::SledStore;
use fedbroker::store::{Commit, Store};

fn commit(criterion: &mut Criterion) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let directory = Directory::open(&root.path().join("data"), "cluster-manager", [1; 16]).unwrap();
    let store = SledStore::open(&directory).unwrap();
    let mut group = criterion.benchmark_group("commit");
    let mut number = 0u64;
    for records in [1u64, 16, 64, 180, 1024] {
        group.throughput(Throughput::Elements(records)).sample_size(20);
        group.bench_function(BenchmarkId::from_parameter(records), |bencher| {
            bencher.iter(|| {
                let head = store.head();
                let mut commit = Commit {
                    epoch: head.epoch,
                    expected: head.next_seq,
                    ..Commit::default()
                };
                for _ in 0..records {
                    number += 1;
                    commit.events.push(vec![7; 300]);
                    commit.changes.push((format!("lttask-{number}").into_bytes(), Some(vec![7; 300])));
                }
                store.commit(&commit).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commit);
criterion_main!(benches);
