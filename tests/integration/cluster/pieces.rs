//! Large tasks on their way to workers: in pieces to those that take them, whole to others.

use super::{Manager, Worker, end, introduction, soon, task};
use fedbroker::store::payload::pieces::PIECE_MAX;
use fedbroker::wire::fedbroker::v1 as ours;
use fedbroker::wire::fedvision::framework::Task;
use ours::to_worker::Message;
use prost::Message as _;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const LARGE: usize = 20_000_000;

impl Worker {
    async fn taking_pieces(manager: &Manager, instance: &str) -> Worker {
        let introduction = ours::WorkerAttach {
            pieces: true,
            max_tasks: 3,
            ..introduction(instance, Vec::new())
        };
        let mut worker = Worker::open(manager, ours::from_worker::Message::Attach(introduction)).await;
        assert!(matches!(worker.order().await, Message::Attached(_)));
        worker
    }

    /// The announcement of a task.
    async fn announced(&mut self, attempt: u32) -> usize {
        match self.order().await {
            Message::Run(ours::RunTask {
                task: None,
                attempt: number,
                content_bytes,
            }) if number == attempt => usize::try_from(content_bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn piece(&mut self) -> ours::TaskPiece {
        match self.order().await {
            Message::Piece(piece) => piece,
            other => panic!("{other:?}"),
        }
    }

    /// The pieces of a task of so many bytes.
    async fn pieces(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while taken.len() < bytes {
            let piece = self.piece().await;
            assert!(!piece.void && (1..=PIECE_MAX).contains(&piece.data.len()), "{}", piece.data.len());
            taken.extend_from_slice(&piece.data);
        }
        taken
    }
}

/// The one payload file of a manager.
fn payload_file(dir: &Path) -> PathBuf {
    let mut files = Vec::new();
    for fan_out in fs::read_dir(dir.join("payloads")).unwrap() {
        files.extend(fs::read_dir(fan_out.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    assert_eq!(files.len(), 1);
    files.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_task_comes_in_pieces_that_are_its_encoding() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let (large, small): (Task, Task) = (task("j", "large", "", LARGE), task("j", "small", "", PIECE_MAX / 2));
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    manager.submitted(large.clone()).await;
    manager.submitted(small.clone()).await;
    let bytes = worker.announced(1).await;
    assert_eq!(worker.pieces(bytes).await, large.encode_to_vec());
    worker.report("j", "large", 1, ours::outcome::State::Succeeded).await;
    assert_eq!(worker.run().await, (small, 1));
    drop(worker);

    // Another one, which was never asked for pieces.
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::attach(&manager, "two", Vec::new()).await;
    manager.submitted(large.clone()).await;
    assert_eq!(worker.run().await, (large, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_between_pieces_is_begun_again_from_the_first() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let large = task("j", "large", "", LARGE);
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    manager.submitted(large.clone()).await;
    worker.announced(1).await;
    worker.piece().await;
    drop(worker);
    // The same process: it knows of no task, for none was whole.
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    let bytes = worker.announced(1).await;
    assert_eq!(worker.pieces(bytes).await, large.encode_to_vec());

    // Killed while it sends: its next process sends all of it.
    manager.abort();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    worker.announced(1).await;
    worker.piece().await;
    manager.abort();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    let bytes = worker.announced(1).await;
    assert_eq!(worker.pieces(bytes).await, large.encode_to_vec());
    worker.report("j", "large", 1, ours::outcome::State::Succeeded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_overtakes_the_pieces_and_makes_them_void() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    manager.submitted(task("j", "large", "", LARGE)).await;
    let bytes = worker.announced(1).await;
    let mut taken = worker.piece().await.data.len();
    let request = ours::CancelTaskRequest {
        job_id: "j".into(),
        task_id: "large".into(),
        reason: "enough".into(),
    };
    soon("cancel", manager.ours().cancel_task(request)).await.unwrap();
    // What fills the windows of the connection comes before it.
    let kill = loop {
        match worker.order().await {
            Message::Piece(piece) => taken += piece.data.len(),
            other => break other,
        }
    };
    assert!(matches!(kill, Message::Kill(_)), "{kill:?}");
    assert!(taken < bytes, "nothing was spared");
    let void = worker.piece().await;
    assert!(void.void && void.data.is_empty());
    worker.report("j", "large", 1, ours::outcome::State::Cancelled).await;
    // The line is free for another.
    let small = task("j", "small", "", 100_000);
    manager.submitted(small.clone()).await;
    assert_eq!(worker.run().await, (small, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_piece_of_a_damaged_content_never_comes_and_its_task_fails() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    manager.submitted(task("j", "large", "", LARGE)).await;
    let file = payload_file(dir.path());
    let mut content = fs::read(&file).unwrap();
    let at = content.len() - 2;
    content[at] ^= 1;
    fs::write(&file, &content).unwrap();
    let mut ends = manager.watch(&[("j", "large")]).await;
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    let bytes = worker.announced(1).await;
    let mut taken = 0;
    loop {
        let piece = worker.piece().await;
        taken += piece.data.len();
        if piece.void {
            break;
        }
    }
    assert!(taken > 0 && taken < bytes, "{taken} of {bytes}");
    let (name, state, reason) = end(&mut ends).await;
    assert_eq!((name.as_str(), state), ("large", ours::outcome::State::Failed));
    assert!(reason.contains("its content cannot be read") && reason.contains("hash"), "{reason}");
    // The slot is free again, and the line too.
    let small = task("j", "small", "", 100_000);
    manager.submitted(small.clone()).await;
    assert_eq!(worker.run().await, (small, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_killed_before_its_turn_is_not_sent() {
    let dir = TempDir::new().unwrap();
    let manager = Manager::patient(dir.path()).await;
    let mut worker = Worker::taking_pieces(&manager, "one").await;
    for name in ["first", "second"] {
        manager.submitted(task("j", name, "", LARGE)).await;
    }
    let bytes = worker.announced(1).await;
    let mut taken = worker.piece().await.data.len();
    let request = ours::CancelTaskRequest {
        job_id: "j".into(),
        task_id: "second".into(),
        reason: "enough".into(),
    };
    soon("cancel", manager.ours().cancel_task(request)).await.unwrap();
    let mut killed = Vec::new();
    while taken < bytes {
        match worker.order().await {
            Message::Piece(piece) => taken += piece.data.len(),
            Message::Kill(kill) => killed.push(kill.task.unwrap().task_id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(killed, ["second"]);
    // Its end is not reported yet, so that the manager still has it for this worker.
    let small = task("j", "small", "", 100_000);
    manager.submitted(small.clone()).await;
    assert_eq!(worker.run().await, (small, 1));
}
