//! Logs, as a worker sends them to a hand-made manager, and the directories it removes.

use super::manager::Manager;
use super::{Worker, attempt, dummy, eventually, program};
use fedbroker::wire::fedbroker::v1::{FetchLogs, LogFailure, LogPart, LogStream, outcome::State};
use std::os::unix::fs::MetadataExt;

/// All that is kept of stdout of attempt 1 of `j/<task>`, without following.
fn fetch(request_id: u64, task: &str) -> FetchLogs {
    FetchLogs {
        request_id,
        task: Some(attempt("j", task, 1)),
        stream: LogStream::Stdout.into(),
        window: 2,
        ..FetchLogs::default()
    }
}

/// The parts up to the last one, each allowed as soon as one has come.
async fn read_all(manager: &mut Manager, request_id: u64) -> Vec<LogPart> {
    let mut parts = Vec::new();
    loop {
        let part = manager.part().await;
        assert_eq!(part.request_id, request_id);
        if part.end {
            assert_eq!(part.failure(), LogFailure::None, "{}", part.reason);
            return parts;
        }
        assert!(part.data.len() <= 32 * 1024);
        parts.push(part);
        manager.more(request_id, 1).await;
    }
}

fn text(parts: &[LogPart]) -> String {
    parts.iter().map(|part| String::from_utf8_lossy(&part.data).into_owned()).collect()
}

#[tokio::test]
async fn what_ended_tasks_wrote_can_be_read_whole_and_by_its_last_lines() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install("p", r#"seq 1 20000; echo oops >&2"#);
    assert!(manager.attached().await.logs);
    manager.run(program("j", "t", "p"), 1).await;
    assert_eq!(manager.report().await.1.state(), State::Succeeded);
    manager.fetch(fetch(1, "t")).await;
    let parts = read_all(&mut manager, 1).await;
    let all: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(parts.len() > 3 && parts[0].data.is_empty() && text(&parts) == all);
    let mut place = 0;
    for part in &parts {
        assert_eq!(part.offset, place);
        place += part.data.len() as u64;
    }
    manager
        .fetch(FetchLogs {
            tail_lines: 3,
            ..fetch(2, "t")
        })
        .await;
    let tail = read_all(&mut manager, 2).await;
    assert_eq!(
        (text(&tail).as_str(), tail[0].offset),
        ("19998\n19999\n20000\n", all.len() as u64 - 18)
    );
    let stderr = FetchLogs {
        stream: LogStream::Stderr.into(),
        follow: true,
        ..fetch(3, "t")
    };
    manager.fetch(stderr).await;
    assert_eq!(
        text(&read_all(&mut manager, 3).await),
        "oops\n",
        "a task that has ended is not waited for"
    );
}

#[tokio::test]
async fn a_running_task_is_followed_to_its_end_and_a_second_attempt_is_another_log() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    let script = r#"echo one; until [ -e ../../go ]; do sleep 0.02; done; echo two; printf three"#;
    worker.install("held", script);
    manager.attached().await;
    let follow = |id| FetchLogs {
        follow: true,
        ..fetch(id, "t")
    };
    manager.run(program("j", "t", "held"), 1).await;
    // It may not have been started: the file comes later.
    manager.fetch(follow(1)).await;
    assert!(manager.part().await.data.is_empty());
    assert_eq!(manager.part().await.data, b"one\n");
    manager.fetch(fetch(2, "t")).await;
    assert_eq!(text(&read_all(&mut manager, 2).await), "one\n", "not followed");
    std::fs::write(worker.work("j/go"), "").unwrap();
    let (mut rest, mut reported) = (String::new(), false);
    loop {
        match manager.hear().await {
            super::Heard::Report(_) => reported = true,
            super::Heard::Logs(part) if part.end => break,
            super::Heard::Logs(part) => {
                rest += &text(&[part]);
                manager.more(1, 1).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rest, "two\nthree");
    if !reported {
        manager.report().await;
    }
    manager.run(program("j", "t", "held"), 2).await;
    manager.report().await;
    let second = FetchLogs {
        task: Some(attempt("j", "t", 2)),
        ..fetch(3, "t")
    };
    manager.fetch(second).await;
    assert_eq!(text(&read_all(&mut manager, 3).await), "one\ntwo\nthree");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_up_nothing() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install("much", "seq 1 300000");
    manager.attached().await;
    manager.run(program("j", "t", "much"), 1).await;
    manager.report().await;
    for id in 1..=8 {
        manager.fetch(fetch(id, "t")).await;
    }
    // One without data for each, and two that it was allowed.
    let mut bytes = 0;
    for _ in 0..8 * 3 {
        let part = manager.part().await;
        assert!(!part.end);
        bytes += part.data.len();
    }
    assert_eq!(bytes, 8 * 2 * 32 * 1024);
    // As many as there may be.
    manager.fetch(fetch(9, "t")).await;
    let refused = manager.part().await;
    assert_eq!((refused.request_id, refused.failure()), (9, LogFailure::Busy));
    // Reports and heartbeats go on, and no part comes that was not allowed.
    manager.run(dummy("j", "other", 0), 1).await;
    assert_eq!(manager.report().await.0.task_id, "other");
    let before = manager.heartbeats();
    eventually("heartbeats go on", || (manager.heartbeats() >= before + 3).then_some(())).await;
    assert!(!manager.has_more(), "a part that was not allowed");
    // A reader that is gone makes room for another, and is sent nothing any more.
    manager.stop_logs(1).await;
    manager.more(1, 10).await;
    manager.more(2, 1).await;
    assert_eq!(manager.part().await.request_id, 2);
    manager.fetch(fetch(10, "t")).await;
    assert_eq!(manager.part().await.request_id, 10);
}

#[tokio::test]
async fn a_flood_is_kept_to_its_limit_and_its_last_lines_can_be_read() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    // 40 MiB to stdout, and the last lines of stderr come behind 20 MiB.
    worker.install(
        "flood",
        r#"yes 0123456789abcde | head -c 41943040; echo the end; yes no | head -c 20971520 >&2; echo because >&2; exit 1"#,
    );
    manager.attached().await;
    manager.run(program("j", "t", "flood"), 1).await;
    let outcome = manager.report().await.1;
    assert!(outcome.stderr_tail.ends_with("because"), "{}", outcome.stderr_tail);
    for name in ["stdout", "stderr"] {
        let meta = std::fs::metadata(worker.work(&format!("j/t/1/{name}"))).unwrap();
        assert!(meta.len() > 20_000_000 && meta.blocks() * 512 <= 16 << 20, "{name}: {meta:?}");
    }
    let tail = FetchLogs {
        tail_lines: 2,
        ..fetch(1, "t")
    };
    manager.fetch(tail).await;
    assert_eq!(text(&read_all(&mut manager, 1).await), "0123456789abcde\nthe end\n");
    manager.fetch(fetch(2, "t")).await;
    let parts = read_all(&mut manager, 2).await;
    let (mut place, mut gaps) = (0, Vec::new());
    for part in &parts {
        if part.offset != place {
            gaps.push((place, part.offset));
        }
        place = part.offset + part.data.len() as u64;
        assert!(!part.data.contains(&0), "what is not kept is no zeros");
    }
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].0, place), (1 << 20, (40 << 20) + 8));
}

#[tokio::test]
async fn what_is_gone_or_not_what_the_worker_made_is_not_read() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 1).await;
    std::fs::write(worker.dir.path().join("secret"), "secret\n").unwrap();
    worker.install("link", r#"rm stdout; ln -s "$0/../secret" stdout; rm stderr; mkfifo stderr"#);
    manager.attached().await;
    manager.run(program("j", "t", "link"), 1).await;
    manager.report().await;
    for (id, stream) in [(1, LogStream::Stdout), (2, LogStream::Stderr)] {
        let request = FetchLogs {
            stream: stream.into(),
            follow: true,
            ..fetch(id, "t")
        };
        manager.fetch(request).await;
        let part = manager.part().await;
        assert!(part.end && part.data.is_empty() && part.failure() == LogFailure::Gone);
        assert!(part.reason.contains("is not the file that the worker made"), "{}", part.reason);
    }
    manager.fetch(fetch(3, "never")).await;
    let part = manager.part().await;
    assert!(part.end && part.reason.contains("there is no such file"), "{}", part.reason);
    let outside = FetchLogs {
        task: Some(attempt("..", "..", 1)),
        ..fetch(4, "t")
    };
    manager.fetch(outside).await;
    assert_eq!(manager.part().await.failure(), LogFailure::Gone);
}

#[tokio::test]
async fn a_forgotten_job_leaves_no_directory() {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 2).await;
    worker.install("p", "echo here");
    worker.install("held", r#"until [ -e ../../go ]; do sleep 0.02; done"#);
    manager.attached().await;
    for job in ["j", "k"] {
        manager.run(program(job, "t", "p"), 1).await;
        manager.report().await;
        manager.acknowledge(attempt(job, "t", 1)).await;
    }
    manager.run(program("k", "held", "held"), 1).await;
    eventually("it runs", || worker.work("k/held/1/task.json").exists().then_some(())).await;
    for job in ["k", "j", "j", "never"] {
        manager.remove_job(job).await;
    }
    eventually("the directory goes", || (!worker.work("j").exists()).then_some(())).await;
    assert!(worker.work("k/t/1/stdout").exists(), "a task of it runs");
    std::fs::write(worker.work("k/go"), "").unwrap();
    manager.report().await;
}
