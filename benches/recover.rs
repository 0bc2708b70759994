//! From a data directory to a recovered engine: 20,000 tasks that wait, and as many that have ended.
//!
//! Serves the decision what a start reads (`docs/decisions/0002-live-and-ended-records.md`): its cost must follow what is live, not what was ever done. The
//! real sizes, with the memory they take: `fedbroker bench recover`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fedbroker::engine::open::open;
use fedbroker::machine::cluster::{Cluster, Rules};
use fedbroker::metrics::Metrics;
use std::process::Command;

const COUNT: &str = "20000";

fn recover(criterion: &mut Criterion) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut group = criterion.benchmark_group("recover");
    group.sample_size(10);
    for (live, finished) in [("0", "0"), (COUNT, "0"), ("0", COUNT)] {
        let name = format!("{live}_live_{finished}_finished");
        let dir = root.path().join(&name);
        let made = Command::new(env!("CARGO_BIN_EXE_fedbroker"))
            .args([
                "bench",
                "make-store",
                "--role",
                "cluster-manager",
                "--live",
                live,
                "--finished",
                finished,
                "--dir",
            ])
            .arg(&dir)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                open(&dir, "cluster-manager", None, Cluster::new(Rules::default()), 1024, &Metrics::new())
                    .unwrap()
                    .engine
                    .report
            });
        });
    }
    group.finish();
}

criterion_group!(benches, recover);
criterion_main!(benches);
