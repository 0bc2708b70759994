//! Large proposals at the coordinator: their tasks go to files as they come and to the parties as they are read, and what breaks off is nothing.

use crate::coordinator::{Client, Server, background, fetch, offered, propose, request, subscribe, within};
use fedbroker::wire::body::{self, Calling};
use fedbroker::wire::connect::MESSAGE_MAX;
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::coordinator::coordinator_client::CoordinatorClient;
use fedbroker::wire::fedvision::framework::coordinator::{fetch_task, proposal};
use futures_util::stream;
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};
use tonic::codegen::Bytes;
use tonic::{Code, Request, Status};

const LARGE: usize = 5_000_000;

fn large(job: &str, tasks: usize) -> proposal::Req {
    let mut request = request(job, tasks, 1, 1);
    for task in &mut request.tasks {
        task.task.as_mut().unwrap().value = vec![7; LARGE].into();
    }
    request
}

/// A Proposal call whose message is these bytes, as they are, in pieces, of which the first so many come before it breaks off.
async fn propose_raw(server: &Server, message: &[u8], breaks_off: Option<usize>) -> Result<proposal::Rep, Status> {
    let mut pieces: Vec<_> = message.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    if let Some(count) = breaks_off {
        pieces.truncate(count);
        pieces.push(Err(Status::internal("broken off")));
    }
    let body = body::call(&Bytes::new(), message.len() as u64, stream::iter(pieces)).unwrap();
    let mut client = CoordinatorClient::new(Calling::new(server.channel.clone(), body));
    let call = client.proposal(Request::new(proposal::Req::default()));
    Ok(within(call).await?.into_inner())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join("payloads")).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(fs::read_dir(entry).unwrap().map(|file| file.unwrap().path())),
            false => found.push(entry),
        }
    }
    found
}

/// Wait until the coordinator has let go of the files of what it did not take.
async fn until_files(dir: &Path, count: usize) {
    within(async {
        while files(dir).len() != count {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The one party accepts what `proposing` brings, and fetches its task.
async fn accepted<T: Send + 'static>(
    client: &Client,
    proposing: impl Future<Output = T> + Send + 'static,
) -> (T, fetch_task::Status, Option<Task>) {
    let mut offers = subscribe(client, "a").await;
    let proposing = background(proposing);
    let id = offered(&mut offers).await;
    let (status, task) = fetch(client, "a", &id).await;
    (proposing.await, status, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_proposal_is_itself_after_a_crash_and_another_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let request = large("j", 3);
    let (to, sent) = (client.clone(), request.clone());
    let (verdict, status, task) = accepted(&client, async move { propose(&to, sent).await.unwrap().0 }).await;
    assert_eq!((verdict, status), (proposal::Status::Success, fetch_task::Status::Ready));
    assert!(request.tasks.contains(&task.unwrap()), "another task");
    server.crash();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    assert_eq!(propose(&client, request.clone()).await.unwrap().0, proposal::Status::Success);
    let mut other = request;
    let mut value = vec![7; LARGE];
    value[LARGE - 1] = 8;
    other.tasks[2].task.as_mut().unwrap().value = value.into();
    assert_eq!(propose(&client, other).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let message = large("j", 2).encode_to_vec();
    // All of it but the last piece; all of it, but not its end; then one that says it is longer than it is.
    let pieces = message.len().div_ceil(100_000);
    for count in [pieces - 1, pieces] {
        propose_raw(&server, &message, Some(count)).await.unwrap_err();
    }
    let longer = stream::iter([Ok::<_, Status>(Bytes::from(message.clone()))]);
    let body = body::call(&Bytes::new(), message.len() as u64 + 1, longer).unwrap();
    let mut caller = CoordinatorClient::new(Calling::new(server.channel.clone(), body));
    let status = within(caller.proposal(proposal::Req::default())).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Internal, "Unexpected EOF decoding stream.")
    );
    // A task of another job, which is met when the first is in its file.
    let mut strange = large("j", 2);
    strange.tasks[1].job_id = "other".into();
    assert_eq!(propose(&client, strange).await.unwrap_err().code(), Code::InvalidArgument);
    // Nobody else comes by to clear them away.
    until_files(dir.path(), 0).await;
    // Its job is free: another proposal of it is the first.
    let (to, sent) = (client.clone(), request("j", 1, 1, 1));
    let (verdict, ..) = accepted(&client, async move { propose(&to, sent).await.unwrap().0 }).await;
    assert_eq!(verdict, proposal::Status::Success);
    until_files(dir.path(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_others_write_otherwise_are_taken_and_what_is_no_task_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let mut request = large("j", 1);
    let task = request.tasks.remove(0);
    // The ids behind the payload, and a field nobody knows; all that is no task behind it as well.
    let ids = Task {
        task: None,
        ..task.clone()
    };
    let payload = Task {
        task: task.task.clone(),
        ..Task::default()
    };
    let written = [&payload.encode_to_vec()[..], &ids.encode_to_vec(), &[0x32, 1, 0]].concat();
    let mut message = vec![4 << 3 | 2];
    prost::encode_length_delimiter(written.len(), &mut message).unwrap();
    message.extend_from_slice(&written);
    message.extend_from_slice(&request.encode_to_vec());
    let message_len = message.len();
    let sent = server.channel.clone();
    let call = async move {
        let pieces = stream::iter([Ok::<_, Status>(Bytes::from(message))]);
        let body = body::call(&Bytes::new(), message_len as u64, pieces).unwrap();
        let mut client = CoordinatorClient::new(Calling::new(sent, body));
        client.proposal(proposal::Req::default()).await.unwrap().into_inner().status()
    };
    let (verdict, status, fetched) = accepted(&client, call).await;
    assert_eq!((verdict, status), (proposal::Status::Success, fetch_task::Status::Ready));
    assert!(fetched == Some(task.clone()), "another task");
    // The same proposal, written as we do.
    request.tasks.push(task);
    assert_eq!(propose(&client, request).await.unwrap().0, proposal::Status::Success);

    let mut noise = vec![4 << 3 | 2];
    prost::encode_length_delimiter(200_000, &mut noise).unwrap();
    noise.extend_from_slice(&[0xff; 200_000]);
    let status = propose_raw(&server, &noise, None).await.unwrap_err();
    assert!(status.message().contains("failed to decode"), "{status}");
    let mut other = large("k", 1);
    other.tasks[0].job_id = "j".into();
    let status = propose_raw(&server, &other.encode_to_vec(), None).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tasks_than_are_taken_are_refused_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client().max_encoding_message_size(MESSAGE_MAX);
    let mut request = request("j", 200, 1, 1);
    let again = request.tasks.clone();
    request.tasks.extend(again);
    for task in &mut request.tasks {
        task.task.as_mut().unwrap().value = vec![7; 70_000].into();
    }
    let error = propose(&client, request).await;
    assert!(
        error.as_ref().map_or(true, |(verdict, _)| *verdict == proposal::Status::Reject),
        "{error:?}"
    );
    // Let go of with the next commit.
    let _offers = subscribe(&client, "a").await;
    until_files(dir.path(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_party_is_told_that_its_task_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let client = server.client();
    let (to, sent) = (client.clone(), large("j", 1));
    let mut offers = subscribe(&client, "a").await;
    let proposing = background(async move { propose(&to, sent).await.unwrap().0 });
    let id = offered(&mut offers).await;
    // As soon as there is a proposal there is its file.
    let file = files(dir.path()).remove(0);
    let mut content = fs::read(&file).unwrap();
    content[LARGE / 2] ^= 1;
    fs::write(&file, &content).unwrap();
    let request = fetch_task::Req {
        party_id: "a".into(),
        proposal_id: id,
    };
    let status = within(client.clone().fetch_task(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(status.message().contains("hash"), "{status}");
    assert_eq!(proposing.await, proposal::Status::Success);
}
