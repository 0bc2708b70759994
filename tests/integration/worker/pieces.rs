//! Tasks that a manager sends in pieces, and what does not fit.

use super::manager::Manager;
use super::{Worker, attempt, dummy};
use fedbroker::wire::connect::MESSAGE_MAX;
use fedbroker::wire::fedbroker::v1::outcome::State;
use prost::Message;

/// A worker at its manager, and the encoding of a task for it.
async fn attached() -> (Manager, Worker, Vec<u8>) {
    let mut manager = Manager::ours(0).await;
    let worker = Worker::start(&manager, 4).await;
    manager.attached().await;
    (manager, worker, dummy("j", "t", 0).encode_to_vec())
}

#[tokio::test]
async fn a_task_in_pieces_runs_once_it_is_whole() {
    let mut manager = Manager::ours(0).await;
    let _worker = Worker::start(&manager, 4).await;
    assert!(manager.attached().await.pieces);
    let encoded = dummy("j", "t", 0).encode_to_vec();
    let (first, rest) = encoded.split_at(encoded.len() / 2);
    manager.announce(1, encoded.len() as u64).await;
    manager.piece(first).await;
    // Other orders may come in between.
    manager.run(dummy("j", "other", 0), 1).await;
    assert_eq!(manager.report().await.0, attempt("j", "other", 1));
    manager.piece(rest).await;
    let (task, outcome) = manager.report().await;
    assert_eq!((task, outcome.state()), (attempt("j", "t", 1), State::Succeeded));
}

#[tokio::test]
async fn what_is_not_whole_when_the_stream_ends_is_nothing() {
    let (mut manager, _worker, encoded) = attached().await;
    manager.announce(1, encoded.len() as u64).await;
    manager.piece(&encoded[..10]).await;
    manager.drop_worker();
    assert_eq!(manager.attached().await.known, []);
    manager.announce(1, encoded.len() as u64).await;
    manager.piece(&encoded).await;
    assert_eq!(manager.report().await.0, attempt("j", "t", 1));
}

#[tokio::test]
async fn a_task_killed_between_its_pieces_does_not_start() {
    let (mut manager, _worker, encoded) = attached().await;
    manager.announce(1, encoded.len() as u64).await;
    manager.piece(&encoded[..10]).await;
    manager.kill(attempt("j", "t", 1)).await;
    let (task, outcome) = manager.report().await;
    assert_eq!((task, outcome.state()), (attempt("j", "t", 1), State::Cancelled));
    // One that did not stop sending: it has the same end again.
    manager.piece(&encoded[10..]).await;
    let (task, outcome) = manager.report().await;
    assert_eq!((task, outcome.state()), (attempt("j", "t", 1), State::Cancelled));
}

#[tokio::test]
async fn pieces_that_do_not_fit_end_the_stream() {
    let mut manager = Manager::ours(0).await;
    let _worker = Worker::start(&manager, 4).await;
    for hostile in 0..6 {
        manager.attached().await;
        match hostile {
            0 => manager.announce(1, MESSAGE_MAX as u64 + 1).await,
            1 => manager.announce(1, u64::MAX).await,
            2 => manager.piece(b"stray").await,
            3 => {
                manager.announce(1, 3).await;
                manager.piece(b"more").await;
            }
            4 => {
                manager.announce(1, 3).await;
                manager.announce(1, 3).await;
            }
            _ => {
                manager.announce(1, 3).await;
                manager.piece(&[255; 3]).await;
            }
        }
    }
    // It comes back, and works.
    assert_eq!(manager.attached().await.known, []);
    manager.run(dummy("j", "t", 0), 1).await;
    assert_eq!(manager.report().await.0, attempt("j", "t", 1));
}
