//! Tasks on a stream of `fedbroker.v1`.

use super::{Manager, next, soon, task};
use fedbroker::wire::connect::MESSAGE_MAX;
use fedbroker::wire::fedbroker::v1 as ours;
use fedbroker::wire::task_stream::{TASK_MAX, TaskStream};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::task::JoinHandle;

#[expect(clippy::disallowed_methods, reason = "there is no supervisor here")]
async fn open(manager: &Manager) -> (Arc<TaskStream>, JoinHandle<()>) {
    let (stream, carry) = soon("open", TaskStream::open(manager.ours())).await.unwrap();
    (Arc::new(stream), tokio::spawn(carry))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_of_a_stream_has_its_own_answer() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let many = (0..700).map(|n| task("j", &n.to_string(), "", 200));
    let bad = [
        task("", "no job", "", 1),
        task("j", "0", "", 201),
        task("j", "too large", "", TASK_MAX),
        task("j", "a worker with a bad name", "a\nb", 1),
    ];
    let tasks = many
        .chain(bad.clone())
        .chain([task("j", "1", "", 200), task("j", "last", "", 60_000)]);
    let requests: Vec<_> = tasks
        .zip(1u64..)
        .map(|(task, number)| ours::SubmitTask { number, task: Some(task) })
        .chain([ours::SubmitTask { number: 900, task: None }])
        .collect();
    let count = requests.len();
    let mut client = manager.ours().max_encoding_message_size(MESSAGE_MAX);
    let call = client.submit_tasks(tokio_stream::iter(requests));
    let mut answers = soon("submit", call).await.unwrap().into_inner();
    let mut refused = Vec::new();
    let mut numbers = Vec::new();
    while let Some(answer) = next(&mut answers).await {
        numbers.push(answer.number);
        assert_eq!(answer.taken, answer.reason.is_empty());
        if !answer.taken {
            refused.push((answer.number, answer.reason));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "each is answered once");
    refused.sort();
    let reasons = ["job_id", "0", "TaskSubmit", "assignee", "task: must be set"];
    assert_eq!(
        refused.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [701, 702, 703, 704, 900]
    );
    for ((_, reason), part) in refused.iter().zip(reasons) {
        assert!(reason.contains(part), "{reason}");
    }
    let mut ends = manager.watch(&[("j", "too large")]).await;
    assert_eq!(super::end(&mut ends).await.1, super::State::NotFound);
}

/// The manager is aborted under load: who has no answer is told so, and what was answered is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_has_answered_is_durable_and_the_rest_is_told() {
    let dir = TempDir::new().unwrap();
    let mut manager = Manager::patient(dir.path()).await;
    let mut taken = Vec::new();
    for round in 0..4 {
        let (stream, carried) = open(&manager).await;
        let mut calls: FuturesUnordered<_> = (0..3000)
            .map(|n| {
                let (stream, name) = (stream.clone(), format!("{round}-{n}"));
                async move { (stream.submit(task("j", &name, "", 50)).await, name) }
            })
            .collect();
        let mut manager_runs = Some(manager);
        let mut lost = 0;
        while let Some((answer, name)) = soon("an answer", calls.next()).await {
            match answer {
                Ok(answer) => {
                    assert!(answer.taken, "{}", answer.reason);
                    taken.push(name);
                }
                Err(_) => lost += 1,
            }
            if taken.len() > (round + 1) * 300
                && let Some(manager) = manager_runs.take()
            {
                manager.abort();
            }
        }
        assert!(lost > 0, "all was answered before the end");
        soon("the end of the stream", carried).await.unwrap();
        assert!(stream.is_over());
        assert!(stream.submit(task("j", "late", "", 1)).await.is_err());
        manager = Manager::patient(dir.path()).await;
    }
    let (stream, carried) = open(&manager).await;
    for name in &taken {
        let same = stream.submit(task("j", name, "", 50)).await.unwrap();
        assert!(same.taken, "{}", same.reason);
        let other = stream.submit(task("j", name, "", 51)).await.unwrap();
        assert!(!other.taken, "{name} was answered and is not there");
    }
    // Nobody asks any more: the manager ends its side.
    drop(stream);
    soon("the end of the stream", carried).await.unwrap();
}
