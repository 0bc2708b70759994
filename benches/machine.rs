//! The life of a task in the cluster manager's machine: submitted and assigned, ended; with as many others that wait.
//!
//! Serves the decision what the machine derives and what it stores (`machine/cluster/index.rs`): a decision must cost the same however long the queue
//! is, and little against the share of a commit that the task pays (`benches/commit.rs`).

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fedbroker::machine::cluster::records::{Ports, Profile};
use fedbroker::machine::cluster::{Attach, Cluster, Command, Effect, Rules, Submission};
use fedbroker::machine::content::Content;
use fedbroker::machine::ids::{TaskKey, Timestamp, TypeName, WorkerId};
use fedbroker::machine::outcome::{End, Outcome};
use fedbroker::machine::{Input, Machine, Out};

fn send(cluster: &mut Cluster, command: Command) -> Out<Cluster> {
    let input = Input {
        now: Timestamp(1),
        stamp: String::new(),
        random: 0,
        recalled: Vec::new(),
    };
    let mut out = Out::new(1);
    cluster.decide(command, &input, &mut out).unwrap();
    out
}

fn submission(job: &str, task: u64) -> Command {
    Command::Submit(Submission {
        key: TaskKey::parse(job, format!("task-{task}")).unwrap(),
        task_type: TypeName::parse("dummy_trainer").unwrap(),
        content: Content::Inline(vec![7; 200]),
        fingerprint: [7; 32],
        // Those that wait ask for a worker that has no room.
        assignee: (job == "waiting").then(|| WorkerId::parse("full").unwrap()),
    })
}

fn attach(cluster: &mut Cluster, name: &str) -> WorkerId {
    let worker = WorkerId::parse(name).unwrap();
    let profile = Profile {
        ip: "127.0.0.1".to_owned(),
        max_tasks: 1,
        ports: Ports::default(),
        instance: "bench".to_owned(),
        legacy: false,
    };
    let known = Vec::new();
    send(
        cluster,
        Command::Attach(Attach {
            worker: worker.clone(),
            profile,
            known,
        }),
    );
    worker
}

fn life(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("machine_task_life");
    for waiting in [0u64, 100_000] {
        let mut cluster = Cluster::new(Rules::default());
        attach(&mut cluster, "full");
        for task in 0..waiting {
            send(&mut cluster, submission("waiting", task));
        }
        attach(&mut cluster, "free");
        let mut task = 0;
        group.bench_function(BenchmarkId::from_parameter(format!("{waiting}_waiting")), |bencher| {
            bencher.iter_batched(
                || {
                    task += 1;
                    submission("job", task)
                },
                |command| {
                    let out = send(&mut cluster, command);
                    let dispatched = out.effects.into_iter().find_map(|effect| match effect {
                        Effect::Dispatch { worker, key, attempt, .. } => Some((worker, key, attempt)),
                        _ => None,
                    });
                    let (worker, key, attempt) = dispatched.unwrap();
                    let report = Command::Report {
                        worker,
                        key: key.clone(),
                        attempt: Some(attempt),
                        outcome: Outcome::without_process(End::Succeeded, ""),
                    };
                    let ended = send(&mut cluster, report);
                    cluster.forget(&fedbroker::machine::cluster::Key::Task(key));
                    ended
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, life);
criterion_main!(benches);
