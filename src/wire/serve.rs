//! Incoming connections: the listener, the limits of our gRPC servers, and the answer to "what are you".

use super::fedbroker::v1::{HelloReply, HelloRequest, peer_server};
use super::metered::Meter;
use crate::metrics::Metrics;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower_layer::{Identity, Stack};

/// How often an idle client is asked whether it is still there, so that a half-open connection is found.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 windows fit for task payloads of megabytes.
const WINDOW: u32 = 4 * 1024 * 1024;

/// Take a port before any heavy work, so that a wrong one fails at once.
///
/// # Errors
/// The address cannot be bound; the text names it and the mend.
pub async fn bind(host: &str, port: u16) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((host, port)).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {host}:{port}: {error}; choose another --port (0 takes a free one) or --host")
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The connections of a listener, without the delay of small answers that the system would wait with otherwise (tonic heeds its own `tcp_nodelay` only
/// where it binds itself).
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A gRPC server with the limits every role has.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
}

/// [`server`], and what it is asked is measured.
pub fn metered_server(metrics: &Metrics) -> Server<Stack<Meter, Identity>> {
    server().layer(Meter::new(metrics))
}

/// Answers `fedbroker.v1.Peer/Hello` for a role.
#[derive(Clone, Debug)]
pub struct PeerService {
    /// The role's subcommand name.
    pub role: &'static str,
    /// Identity of its data directory, hexadecimal.
    pub instance: String,
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    async fn hello(&self, _: tonic::Request<HelloRequest>) -> Result<tonic::Response<HelloReply>, tonic::Status> {
        Ok(tonic::Response::new(HelloReply {
            role: self.role.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn connections_do_not_delay_small_answers() {
        let (listener, address) = bind("127.0.0.1", 0).await.unwrap();
        let _client = tokio::net::TcpStream::connect(address).await.unwrap();
        let accepted = incoming(listener).next().await.unwrap().unwrap();
        assert!(accepted.nodelay().unwrap());
    }
}
