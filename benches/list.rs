//! A page of fifty among a million jobs, found by the index: by state and label, by time, by one that fits none, at the end of the list.
//!
//! Serves the decision that lists come from an index in memory which every commit feeds (`src/master/index`), and not from keys in the store: a page
//! must cost well below a read of its records, and a commit must not be held up by what it adds. The whole page, records and HTTP and submits
//! beside it: `fedbroker bench history`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fedbroker::machine::ids::Timestamp;
use fedbroker::master::index::{Columns, Entry, Wanted, label_hashes};

const JOBS: u64 = 1_000_000;
const PAGE: usize = 51;
/// Success and failure, as the index numbers them.
const ENDED: [u8; 2] = [6, 7];

fn entry(number: u64) -> Entry {
    Entry {
        number,
        stamp: 20_260_101_000_000 + number,
        created_at: Timestamp(number * 1_000_000),
        state: ENDED[usize::from(number % 10 == 9)],
        job_type: if number % 100 == 50 { "program" } else { "dummy" }.to_owned(),
        labels: label_hashes("run", &(number % 1000).to_string()).to_vec(),
    }
}

fn list(criterion: &mut Criterion) {
    let mut columns = Columns::default();
    (1..=JOBS).for_each(|number| columns.put(&entry(number)));
    let run = label_hashes("run", "9")[1];
    let created = |from: u64| Some(from * 1_000_000..(from + 100) * 1_000_000);
    let wanted = [
        ("all", Wanted::default()),
        (
            "state_type_label",
            Wanted {
                states: ENDED.to_vec(),
                job_type: Some("dummy".to_owned()),
                labels: vec![run],
                ..Wanted::default()
            },
        ),
        (
            "first_minutes",
            Wanted {
                states: vec![ENDED[1]],
                created: created(0),
                ..Wanted::default()
            },
        ),
        (
            "no_such_time",
            Wanted {
                created: created(JOBS + 1),
                ..Wanted::default()
            },
        ),
    ];
    let mut group = criterion.benchmark_group("list_page_of_a_million");
    for (name, wanted) in &wanted {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| columns.find(wanted, true, None, PAGE));
        });
    }
    group.bench_function(BenchmarkId::from_parameter("deep"), |bencher| {
        bencher.iter(|| columns.find(&wanted[0].1, true, Some(JOBS / 2), PAGE));
    });
    group.finish();

    let mut number = JOBS;
    criterion.bench_function("list_feed_of_a_million", |bencher| {
        bencher.iter(|| {
            number += 1;
            columns.put(&entry(number));
        });
    });
}

criterion_group!(benches, list);
criterion_main!(benches);
