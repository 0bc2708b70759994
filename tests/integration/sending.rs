//! Messages that are read from payload files while they are sent: on the wire they are what tonic writes, and damage never looks whole.

use fedbroker::engine::outgoing;
use fedbroker::machine::content::Content;
use fedbroker::store::payload::Payloads;
use fedbroker::wire::Any;
use fedbroker::wire::body::{self, Calling};
use fedbroker::wire::connect::{MESSAGE_MAX, channel};
use fedbroker::wire::fedvision::framework::Task;
use fedbroker::wire::fedvision::framework::cluster::cluster_manager_client::ClusterManagerClient;
use fedbroker::wire::fedvision::framework::cluster::task_submit;
use fedbroker::wire::pieces;
use fedbroker::wire::serve;
use futures_util::stream;
use http_body_util::BodyExt;
use prost::Message;
use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::{Code, Status};

const DEADLINE: Duration = Duration::from_secs(30);

/// Stands where a cluster manager does, and keeps what comes: headers and the whole body, or why there was none.
#[derive(Clone)]
struct Capture(mpsc::UnboundedSender<(HeaderMap, Result<Bytes, String>)>);

impl tonic::server::NamedService for Capture {
    const NAME: &'static str = "fedvision.framework.cluster.ClusterManager";
}

impl Service<Request<Body>> for Capture {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kept = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
            kept.send((parts.headers, body)).unwrap();
            Ok(Status::unimplemented("only looks").into_http())
        })
    }
}

struct Bench {
    address: String,
    came: mpsc::UnboundedReceiver<(HeaderMap, Result<Bytes, String>)>,
    dir: tempfile::TempDir,
    payloads: Payloads,
}

impl Bench {
    #[expect(clippy::disallowed_methods, reason = "a test's own server")]
    async fn start() -> Self {
        let (listener, address) = serve::bind("127.0.0.1", 0).await.unwrap();
        let (kept, came) = mpsc::unbounded_channel();
        let router = serve::server().add_service(Capture(kept));
        tokio::spawn(router.serve_with_incoming(serve::incoming(listener)));
        let dir = tempfile::tempdir().unwrap();
        let payloads = Payloads::open(dir.path(), MESSAGE_MAX as u64).unwrap();
        let address = address.to_string();
        Self {
            address,
            came,
            dir,
            payloads,
        }
    }

    async fn came(&mut self) -> (HeaderMap, Result<Bytes, String>) {
        tokio::time::timeout(DEADLINE, self.came.recv())
            .await
            .expect("a call came")
            .unwrap()
    }

    /// Submit a kept task as our master does.
    async fn submit_kept(&self, content: &Content) -> Status {
        let payload = content.payload().unwrap();
        let kept = self.payloads.pieces(&payload).unwrap().unwrap();
        let head = pieces::before(&task_submit::Req::default(), 1, payload.len);
        let body = body::call(&head, payload.len, outgoing::stream(kept)).unwrap();
        let mut client = ClusterManagerClient::new(Calling::new(channel(&self.address).unwrap(), body));
        let call = client.task_submit(task_submit::Req::default());
        tokio::time::timeout(DEADLINE, call).await.expect("an answer").unwrap_err()
    }
}

fn task(size: usize) -> Task {
    Task {
        job_id: "j".into(),
        task_id: "t".into(),
        task_type: "dummy_trainer".into(),
        task: Some(Any {
            type_url: "x".into(),
            value: (0..size).map(|n| (n % 251) as u8).collect(),
        }),
        assignee: "w".into(),
    }
}

fn payload_file(dir: &Path, content: &Content) -> std::path::PathBuf {
    Payloads::path(dir, &content.payload().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_task_is_sent_as_tonic_sends_it() {
    let mut bench = Bench::start().await;
    for size in [600, 256 * 1024, 3_000_000] {
        let task = task(size);
        let mut client = ClusterManagerClient::new(channel(&bench.address).unwrap()).max_encoding_message_size(MESSAGE_MAX);
        let status = client.task_submit(task_submit::Req { task: Some(task.clone()) }).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        let (headers, body) = bench.came().await;
        let (content, _pin) = bench.payloads.keep(&pieces::of_task(&task)).unwrap();
        assert_eq!(fs::read(payload_file(bench.dir.path(), &content)).unwrap(), task.encode_to_vec());
        assert_eq!(bench.submit_kept(&content).await.code(), Code::Unimplemented);
        let (kept_headers, kept_body) = bench.came().await;
        assert_eq!(kept_headers, headers);
        assert!(kept_body.unwrap() == body.unwrap(), "other bytes for {size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_damaged_task_the_peer_never_gets_the_last_of_it() {
    let mut bench = Bench::start().await;
    let task = task(3_000_000);
    let (content, _pin) = bench.payloads.keep(&pieces::of_task(&task)).unwrap();
    let file = payload_file(bench.dir.path(), &content);
    let mut bytes = fs::read(&file).unwrap();
    bytes[1] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let status = bench.submit_kept(&content).await;
    assert_ne!(status.code(), Code::Unimplemented, "the peer took it");
    assert!(bench.came().await.1.is_err(), "the peer had a whole body");
    assert!(
        bench.payloads.pieces(&content.payload().unwrap()).unwrap().is_none(),
        "it is still relied on"
    );
}

#[test]
fn pieces_end_with_an_error_before_the_last_of_a_damaged_content() {
    let dir = tempfile::tempdir().unwrap();
    let payloads = Payloads::open(dir.path(), MESSAGE_MAX as u64).unwrap();
    let content = vec![7; 1_000_000];
    for damage in 0..3 {
        let pin = payloads.put(&content).unwrap();
        let file = Payloads::path(dir.path(), &pin);
        let mut read = payloads.pieces(&pin).unwrap().unwrap();
        assert_eq!(read.content_len(), 1_000_000);
        let mut bytes = content.clone();
        match damage {
            0 => bytes[10] ^= 1,
            // Cut, or longer, while it is read.
            1 => bytes.truncate(900_000),
            _ => bytes.push(7),
        }
        fs::write(&file, &bytes).unwrap();
        let mut given = 0;
        let error = loop {
            match read.read() {
                Ok(piece) => given += piece.expect("an error comes first").len(),
                Err(error) => break error,
            }
        };
        assert!(given > 0 && given < 1_000_000, "{given}");
        assert!(error.to_string().contains("hash"), "{error}");
        assert!(payloads.pin(&pin).is_none());
    }
    let pin = payloads.put(&content).unwrap();
    let mut read = payloads.pieces(&pin).unwrap().unwrap();
    let mut whole = Vec::new();
    while let Some(piece) = read.read().unwrap() {
        whole.extend_from_slice(&piece);
    }
    assert!(whole == content && read.read().unwrap().is_none());
}

#[test]
fn a_message_no_peer_takes_is_not_begun() {
    let none = || stream::empty::<Result<Bytes, Status>>();
    assert_eq!(
        body::call(&Bytes::new(), MESSAGE_MAX as u64 + 1, none()).unwrap_err().code(),
        Code::OutOfRange
    );
    assert_eq!(
        body::call(&Bytes::from("x"), MESSAGE_MAX as u64, none()).unwrap_err().code(),
        Code::OutOfRange
    );
    assert_eq!(
        body::call(&Bytes::new(), u64::MAX - 1, none()).unwrap_err().code(),
        Code::OutOfRange
    );
    assert!(body::call(&Bytes::new(), MESSAGE_MAX as u64, none()).is_ok());
}
