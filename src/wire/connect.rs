//! Outgoing connections: addresses, limits, backoff, and how a peer says that it is one of ours.
//!
//! No keep-alive pings are sent: a FedVision 0.1 peer (grpcio's default) closes a connection that pings faster than once in five
//! minutes (GOAWAY `too_many_pings`). Our own servers ping instead, which every client answers.

use super::fedbroker::v1::{HelloRequest, peer_client::PeerClient};
use super::metered;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::transport::{Channel, Endpoint};

/// The largest message taken or sent, bytes: the limit of FedVision 0.1 for its coordinator and cluster manager.
pub const MESSAGE_MAX: usize = 512 * 1024 * 1024;
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream that only receives does not notice that the other machine is gone without a word; TCP's own probes do, and no peer minds them.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
/// How long the answer of a FedVision 0.1 peer counts: one of ours may take its place without any call failing.
const FEDVISION_COUNTS: Duration = Duration::from_secs(10);
/// How long a peer may take to say what it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 windows fit for task payloads of megabytes; the 64 KiB default would cost a round trip each.
const WINDOW: u32 = 4 * 1024 * 1024;

/// An address that cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an address; give host:port")]
pub struct BadAddress(String);

/// A channel to `host:port` that connects when it is first used, and again whenever the connection was lost.
///
/// # Errors
/// The text is not `host:port`. Must be called inside a tokio runtime.
pub fn channel(address: &str) -> Result<Channel, BadAddress> {
    let bad = || BadAddress(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(bad());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEPALIVE))
        .tcp_keepalive_interval(Some(TCP_KEEPALIVE))
        .tcp_keepalive_retries(Some(3))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect_lazy())
}

/// What a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A Fedbroker process, which offers `fedbroker.v1` too.
    Fedbroker {
        /// Identity of its data directory.
        instance: String,
    },
    /// A FedVision 0.1 process: it answered that it does not know the question.
    FedVision,
}

/// Ask a peer what it is.
///
/// # Errors
/// Any failure but UNIMPLEMENTED: it says nothing about the peer, ask again.
pub async fn hello<C>(channel: C, role: &str) -> Result<PeerKind, tonic::Status>
where
    C: GrpcService<Body, Error: Into<StdError>, ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static>,
{
    let request = HelloRequest {
        role: role.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut client = PeerClient::new(channel);
    let answer = tokio::time::timeout(HELLO_TIMEOUT, client.hello(request)).await;
    match answer.map_err(|_| tonic::Status::deadline_exceeded("the peer did not say what it is"))? {
        Ok(reply) => Ok(PeerKind::Fedbroker {
            instance: reply.into_inner().instance,
        }),
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(PeerKind::FedVision),
        Err(status) => Err(status),
    }
}

/// What the peer behind a channel is, asked once and again when something went wrong. Cheap to clone.
#[derive(Clone)]
pub struct Probe {
    channel: metered::Channel,
    role: &'static str,
    known: Arc<Mutex<Option<(PeerKind, Instant)>>>,
}

impl Probe {
    /// Nothing is asked yet.
    pub fn new(channel: metered::Channel, role: &'static str) -> Self {
        Self {
            channel,
            role,
            known: Arc::default(),
        }
    }

    /// What the peer is.
    ///
    /// # Errors
    /// It could not be asked; see [`hello`].
    pub async fn kind(&self) -> Result<PeerKind, tonic::Status> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((kind, asked)) = known
            && (kind != PeerKind::FedVision || asked.elapsed() < FEDVISION_COUNTS)
        {
            return Ok(kind);
        }
        let kind = hello(self.channel.clone(), self.role).await?;
        self.channel.contact().told(kind.clone());
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((kind.clone(), Instant::now()));
        Ok(kind)
    }

    /// A call failed: behind the address there may be another process now.
    pub fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Capped, jittered, exponential backoff.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    /// FedVision 0.1 retries every 5 s; nothing of ours is deaf for longer.
    const CAP: Duration = Duration::from_secs(5);

    /// Starts at 100 ms, doubles to 5 s.
    pub fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// The next delay: a quarter more or less than planned, so that peers that failed together do not come back together.
    pub fn delay(&mut self) -> Duration {
        let delay = self.next.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        self.next = (self.next * 2).min(Self::CAP);
        delay
    }

    /// Sleep for the next delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }

    /// Begin again at 100 ms, after a success.
    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}
