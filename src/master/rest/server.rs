//! The connections of the REST service: how many, and how long each may keep a place without saying or taking anything.
//!
//! Called by `rest::serve`. A client that is slow, gone or hostile must never cost the master its file descriptors or its end: every
//! wait on a client has a limit, and a failed accept is survived.

use crate::supervisor::Supervisor;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

/// The most connections, whatever the process may open: what one door of one party needs, at some 20 KiB each.
const CONNECTIONS_MAX: u64 = 4096;
/// Where the system does not say how many files a process may open, the usual limit.
const FILES_USUAL: u64 = 1024;
/// How long after a failed accept the next one is tried: a process without file descriptors gets one when somebody closes one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests that have begun may take once the role stops.
const DRAIN: Duration = Duration::from_secs(1);

/// Who is at the other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once; who comes then waits in the queue of the system.
    pub(super) connections: usize,
    /// How long the head of a request may take, and a connection be idle between two.
    pub(super) head: Duration,
    /// How long its body may take.
    pub(super) body: Duration,
    /// How long a client may take no byte of its answer.
    pub(super) answer: Duration,
}

impl Limits {
    /// Half of the files this process may open: the other half is for the store, payloads, compile steps and calls to peers. Thirty seconds are
    /// long for a line of HTTP or a body of a mebibyte, and short against a client that never says the rest.
    pub(super) fn of_process() -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let connections = (files.unwrap_or(FILES_USUAL) / 2).clamp(1, CONNECTIONS_MAX);
        let long = Duration::from_secs(30);
        Self {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            head: long,
            body: long,
            answer: long,
        }
    }
}

/// Accept until dropped. Connections end by themselves when the role stops, after the request they are at.
pub(super) async fn run(listener: TcpListener, router: Router, limits: Limits, supervisor: Supervisor) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut failing = false;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                let served = connection(stream, Peer(peer), router.clone(), limits, supervisor.stopped());
                supervisor.finish("rest connection", async move {
                    served.await;
                    drop(place);
                });
            }
            // The client was gone before it was its turn.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "no connection can be accepted, trying again");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, router: Router, limits: Limits, stopped: impl Future<Output = ()>) {
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let stream = TokioIo::new(Patient::new(stream, limits.answer));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let mut served = pin!(http.serve_connection(stream, service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// A stream whose other side has to take a byte now and then.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Set while the other side takes nothing.
    until: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            until: None,
        }
    }

    fn limited<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.until = None;
            return polled;
        }
        let end = Instant::now() + self.patience;
        let until = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.limited(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    /// Nothing here takes so long.
    const DEADLINE: Duration = Duration::from_secs(60);

    struct Service {
        address: SocketAddr,
        supervisor: Supervisor,
        /// A request to `/slow` has begun; it may go on.
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
    }

    async fn service(connections: usize, head: Duration) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (begun, go_on) = (begun.clone(), go_on.clone());
            move || async move {
                begun.notify_one();
                go_on.notified().await;
                "done"
            }
        };
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/slow", get(slow))
            .route("/long", get(|| async { "x".repeat(64 << 20) }));
        let limits = Limits {
            connections,
            head,
            body: head,
            answer: head,
        };
        let supervisor = Supervisor::new();
        supervisor.spawn(
            "rest",
            crate::supervisor::Policy::Essential,
            run(listener, router, limits, supervisor.clone()),
        );
        Service {
            address,
            supervisor,
            begun,
            go_on,
        }
    }

    async fn say(stream: &mut TcpStream, bytes: &[u8]) -> String {
        stream.write_all(bytes).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }

    /// Read to the end; a reset is one.
    async fn ended(mut stream: TcpStream) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest))
            .await
            .expect("it is closed");
        rest
    }

    #[tokio::test]
    async fn half_requests_and_idle_connections_are_closed() {
        let service = service(100, Duration::from_millis(100)).await;
        let mut open = Vec::new();
        for begun in [b"".as_slice(), b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"] {
            let mut stream = TcpStream::connect(service.address).await.unwrap();
            stream.write_all(begun).await.unwrap();
            open.push(stream);
        }
        let mut idle = TcpStream::connect(service.address).await.unwrap();
        assert!(say(&mut idle, REQUEST).await.starts_with("HTTP/1.1 200"));
        open.push(idle);
        for stream in open {
            ended(stream).await;
        }
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_is_cut_off() {
        let service = service(1, Duration::from_millis(100)).await;
        let mut deaf = TcpStream::connect(service.address).await.unwrap();
        deaf.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // There is one place: the second one gets it when the first is cut off.
        let mut next = TcpStream::connect(service.address).await.unwrap();
        assert!(say(&mut next, REQUEST).await.starts_with("HTTP/1.1 200"));
        assert!(ended(deaf).await.len() < 64 << 20);
    }

    #[tokio::test]
    async fn one_connection_too_many_waits_for_its_place() {
        let service = service(2, DEADLINE).await;
        let mut first = TcpStream::connect(service.address).await.unwrap();
        let mut second = TcpStream::connect(service.address).await.unwrap();
        for stream in [&mut first, &mut second] {
            assert!(say(stream, REQUEST).await.starts_with("HTTP/1.1 200"));
        }
        let mut third = TcpStream::connect(service.address).await.unwrap();
        third.write_all(REQUEST).await.unwrap();
        // Those who have a place are served meanwhile, and the one that waits is not.
        for _ in 0..20 {
            assert!(say(&mut first, REQUEST).await.starts_with("HTTP/1.1 200"));
        }
        assert_eq!(third.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(second);
        assert!(say(&mut third, b"").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_request_that_has_begun_is_answered_when_the_role_stops() {
        let service = service(9, DEADLINE).await;
        let mut idle = TcpStream::connect(service.address).await.unwrap();
        assert!(say(&mut idle, REQUEST).await.starts_with("HTTP/1.1 200"));
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::timeout(DEADLINE, service.begun.notified()).await.unwrap();
        service.supervisor.stop();
        ended(idle).await;
        service.go_on.notify_one();
        let answer = String::from_utf8(ended(stream).await).unwrap();
        assert!(answer.ends_with("done"), "{answer}");
    }
}
