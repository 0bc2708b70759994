//! A task's record to bytes, into its envelope, and back.
//!
//! Serves the decision whether records keep the general encoder and one copy into the envelope (`store/codec.rs`): both must stay small against what the
//! engine costs for each record (`benches/commit.rs`).

use criterion::{Criterion, criterion_group, criterion_main};
use fedbroker::machine::cluster::{Cluster, Command, Key, Record, Rules, Submission};
use fedbroker::machine::content::Content;
use fedbroker::machine::ids::{TaskKey, Timestamp, TypeName};
use fedbroker::machine::{Input, Machine, Out};
use fedbroker::store::codec;
use std::hint::black_box;

fn record() -> Record {
    let mut cluster = Cluster::new(Rules::default());
    let key = TaskKey::parse("producer-7", "task-1234").unwrap();
    let submission = Submission {
        key: key.clone(),
        task_type: TypeName::parse("dummy_trainer").unwrap(),
        content: Content::Inline(vec![7; 200]),
        fingerprint: [7; 32],
        assignee: None,
    };
    let input = Input {
        now: Timestamp(1_767_225_600_000_000),
        stamp: String::new(),
        random: 0,
        recalled: Vec::new(),
    };
    cluster.decide(Command::Submit(submission), &input, &mut Out::new(1)).unwrap();
    cluster.record(&Key::Task(key)).unwrap()
}

fn codec(criterion: &mut Criterion) {
    let (record, key) = (record(), b"rltproducer-7\0task-1234");
    let body = codec::encode(&record);
    let sealed = codec::seal(key, 7, &body);
    criterion.bench_function("codec_encode_task", |bencher| bencher.iter(|| codec::encode(black_box(&record))));
    criterion.bench_function("codec_seal", |bencher| bencher.iter(|| codec::seal(key, 7, black_box(&body))));
    criterion.bench_function("codec_fingerprint", |bencher| {
        bencher.iter(|| codec::fingerprint(key, black_box(&sealed)))
    });
    criterion.bench_function("codec_unseal_decode_task", |bencher| {
        bencher.iter(|| {
            let (_, body) = codec::unseal(key, black_box(&sealed)).unwrap();
            codec::decode::<Record>(body).unwrap()
        });
    });
}

criterion_group!(benches, codec);
criterion_main!(benches);
